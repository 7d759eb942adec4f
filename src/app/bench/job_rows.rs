//! The rows of a job file: what its keys mean here.

use super::args::BenchArgs;
use super::device::Device;
use super::flag_rows::{assemble, plan};
use super::row::Row;
use crate::bench::{
    Arrival, JobDistribution, JobExtent, JobFile, JobRw, JobSpec, Load, Order, Size, Workload,
};
use crate::units::ByteRange;
use std::error::Error;
use std::path::Path;

/// Bytes of a request if nobody says: fio's.
const BLOCK_BYTES: u32 = 4096;
/// Clones that a job may have, as with --jobs.
const JOBS_MAX: u32 = 64;
/// How long a job may take that ends by its size alone: a year.
const NO_RUNTIME_NS: u64 = 365 * 86_400 * 1_000_000_000;

/// Reads the file, and says on standard error which of its keys change nothing.
///
/// # Errors
/// The line that can't be measured, and why.
pub(super) fn of_file(args: &BenchArgs, path: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{place}: {error}"))?;
    let file = JobFile::parse(&text).map_err(|error| format!("{place}: {error}"))?;
    let row = |spec: &JobSpec| {
        row(args, spec).map_err(|error| {
            let (line, name) = (spec.line, &spec.name);
            format!("{place}: line {line}: job {name}: {error}").into()
        })
    };
    let rows = file.jobs.iter().map(row).collect::<Result<_, _>>();
    for note in &file.notes {
        eprintln!("pmcache: {place}: {note}");
    }
    if file.jobs.len() > 1 && !file.notes.iter().any(|note| note.key == "stonewall") {
        eprintln!("pmcache: {place}: its jobs run one after the other, as if with stonewall");
    }
    rows
}

fn row(args: &BenchArgs, spec: &JobSpec) -> Result<Row, Box<dyn Error>> {
    if spec.name.contains('/') {
        return Err("its name is also that of a file, and can't have a /".into());
    }
    let jobs = spec.jobs.unwrap_or(1);
    if jobs > JOBS_MAX {
        return Err(format!("numjobs={jobs}: more than {JOBS_MAX}").into());
    }
    let device = spec.bdev.as_deref().ok_or("filename is missing")?;
    let device: Device = device.parse().map_err(|e| format!("filename: {e}"))?;
    let (stack, info) = plan(args, &device)?;
    let mut job = workload(spec, info.bytes())?;
    job.seed = spec.seed.unwrap_or(args.seed);
    job.series_ns = args.series_ms.saturating_mul(1_000_000);
    job.places(&info)?;
    assemble(args, spec.name.clone(), stack, (job, jobs))
}

/// What a job does on a device of `device_bytes`.
fn workload(spec: &JobSpec, device_bytes: u64) -> Result<Workload, Box<dyn Error>> {
    let (is_random, read_percent) = pattern(spec)?;
    let sizes = sizes(spec);
    let range = range(spec, &sizes, device_bytes)?;
    let is_time_based = spec.time_based.unwrap_or(false);
    let run_ns = match (spec.run_ns, is_time_based) {
        (Some(0), _) => return Err("runtime=0: nothing would be measured".into()),
        (None, true) => return Err("time_based wants a runtime".into()),
        (found, _) => found.unwrap_or(NO_RUNTIME_NS),
    };
    let requests_max = match is_time_based {
        true => spec.requests_max,
        false => {
            let of_size = requests(&range, &sizes);
            Some(spec.requests_max.unwrap_or(u64::MAX).min(of_size).max(1))
        }
    };
    Ok(Workload {
        read_percent,
        order: match spec.distribution {
            _ if !is_random => Order::Sequential,
            None | Some(JobDistribution::Random) => Order::Uniform,
            Some(JobDistribution::Zipf { theta }) => Order::Zipf { theta },
        },
        sizes,
        depth: spec.depth.unwrap_or(1),
        load: load(spec),
        warmup_ns: spec.ramp_ns.unwrap_or(0),
        run_ns,
        requests_max,
        fua_every: u32::from(spec.fua.unwrap_or(false)),
        flush_every: spec.flush_every.unwrap_or(0),
        verify: spec.verify.unwrap_or(false),
        ..Workload::new(range, BLOCK_BYTES)
    })
}

/// Whether places are drawn, and how many of 100 requests read.
fn pattern(spec: &JobSpec) -> Result<(bool, u32), &'static str> {
    let mix = spec.read_percent.unwrap_or(50);
    Ok(match spec.rw.unwrap_or_default() {
        JobRw::Read => (false, 100),
        JobRw::Write => (false, 0),
        JobRw::ReadWrite => (false, mix),
        JobRw::RandRead => (true, 100),
        JobRw::RandWrite => (true, 0),
        JobRw::RandReadWrite => (true, mix),
        JobRw::Trim | JobRw::RandTrim => return Err("rw: discards can't be measured"),
    })
}

/// Those that occur.
fn sizes(spec: &JobSpec) -> Vec<Size> {
    let Some(split) = &spec.block_split else {
        let bytes = spec.block_bytes.unwrap_or(BLOCK_BYTES);
        return vec![Size { bytes, weight: 1 }];
    };
    let used = split.iter().filter(|part| part.percent > 0);
    used.map(|part| Size {
        bytes: part.block_bytes,
        weight: part.percent,
    })
    .collect()
}

fn load(spec: &JobSpec) -> Load {
    match spec.rate_iops {
        None => Load::Closed,
        Some(rate) => Load::Open {
            rate: rate as f64,
            arrival: match spec.rate_poisson {
                Some(true) => Arrival::Poisson,
                _ => Arrival::Constant,
            },
        },
    }
}

/// The part of the device that is used. Shares of it are whole units.
fn range(spec: &JobSpec, sizes: &[Size], device_bytes: u64) -> Result<ByteRange, String> {
    let smallest = sizes.iter().map(|size| size.bytes).min();
    let unit = u64::from(smallest.unwrap_or(BLOCK_BYTES).max(1));
    let bytes = |extent| match extent {
        JobExtent::Bytes(bytes) => bytes,
        // First divided, so that it does not overflow; a hundredth of a unit is nobody's concern.
        JobExtent::Percent(100) => device_bytes,
        JobExtent::Percent(share) => device_bytes / 100 * u64::from(share) / unit * unit,
    };
    let start = spec.offset.map_or(0, bytes);
    let rest = device_bytes.checked_sub(start).filter(|rest| *rest > 0);
    let rest = rest.ok_or_else(|| {
        format!("offset={start} is not within the device's {device_bytes} bytes (--size-mib)")
    })?;
    let len = match spec.size {
        None => rest,
        // All of the device, from where the job begins.
        Some(JobExtent::Percent(100)) => rest,
        Some(size) => bytes(size),
    };
    if len > rest {
        return Err(format!(
            "size={len} is more than the {rest} bytes that the device has from there (--size-mib)"
        ));
    }
    Ok(ByteRange::between(start, start + len))
}

/// How many requests it takes to do as many bytes as `range` has.
fn requests(range: &ByteRange, sizes: &[Size]) -> u64 {
    let weights: u128 = sizes.iter().map(|size| u128::from(size.weight)).sum();
    let weighted: u128 = sizes
        .iter()
        .map(|size| u128::from(size.weight) * u128::from(size.bytes))
        .sum();
    let count = (u128::from(range.len()) * weights).div_ceil(weighted.max(1));
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn of(keys: &str) -> Result<Workload, String> {
        let file = JobFile::parse(&format!("[a]\n{keys}")).unwrap();
        workload(&file.jobs[0], 100 * MIB).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_what_fio_does() {
        let job = of("").unwrap();
        assert_eq!((job.rw(), job.depth, job.warmup_ns), ("read", 1, 0));
        assert_eq!(job.range, ByteRange::between(0, 100 * MIB));
        // All of it once.
        assert_eq!(job.requests_max, Some(25_600));
        assert_eq!(job.run_ns, NO_RUNTIME_NS);
        assert_eq!((job.load, job.verify), (Load::Closed, false));
    }

    #[test]
    fn every_key_arrives() {
        let job = of(
            "rw=randrw\nrwmixread=70\nbssplit=4k/60:8k/40:64k/0\niodepth=8\nsize=25%\n\
             offset=10%\nruntime=2\nramp_time=500ms\nrate_iops=100\nrate_process=poisson\n\
             random_distribution=zipf:1.2\nfsync=7\nsync=1\nverify=crc32c",
        )
        .unwrap();
        assert_eq!((job.rw(), job.read_percent), ("randrw", 70));
        let sizes: Vec<_> = job.sizes.iter().map(|s| (s.bytes, s.weight)).collect();
        assert_eq!(sizes, [(4096, 60), (8192, 40)]);
        assert_eq!((job.depth, job.flush_every, job.fua_every), (8, 7, 1));
        let (start, len) = (job.range.start(), job.range.len());
        assert_eq!((start, len), (10 * MIB, 25 * MIB));
        assert_eq!((job.run_ns, job.warmup_ns), (2_000_000_000, 500_000_000));
        // 25 MiB in requests of 5.6 KiB.
        assert!((4500..4700).contains(&job.requests_max.unwrap()));
        let arrival = Arrival::Poisson;
        let rate = 100.0;
        assert_eq!(job.load, Load::Open { rate, arrival });
        assert_eq!(job.order, Order::Zipf { theta: 1.2 });
        assert!(job.verify);
    }

    #[test]
    fn size_ends_a_job_unless_it_is_time_based() {
        let ends = |keys: &str| of(keys).unwrap().requests_max;
        assert_eq!(ends("size=1m\nruntime=1"), Some(256));
        assert_eq!(ends("size=1m\nnumber_ios=10"), Some(10));
        assert_eq!(ends("size=1m\nnumber_ios=1000"), Some(256));
        assert_eq!(ends("size=1m\nruntime=1\ntime_based"), None);
        assert_eq!(ends("runtime=1\ntime_based\nnumber_ios=9"), Some(9));
        // No draw for a job in sequence.
        let order = of("rw=write\nrandom_distribution=zipf:2").unwrap().order;
        assert_eq!(order, Order::Sequential);
    }

    #[test]
    fn what_has_no_meaning_here_is_refused() {
        for (keys, want) in [
            ("rw=trim", "rw: discards can't be measured"),
            ("time_based", "time_based wants a runtime"),
            ("runtime=0", "runtime=0: nothing would be measured"),
            (
                "offset=100m",
                "offset=104857600 is not within the device's 104857600 bytes (--size-mib)",
            ),
            (
                "offset=99m\nsize=2m",
                "size=2097152 is more than the 1048576 bytes that the device has from there (--size-mib)",
            ),
        ] {
            assert_eq!(of(keys).unwrap_err(), want);
        }
    }
}
