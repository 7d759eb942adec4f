//! The floors of a document: what the machine takes, measured beside its runs.

use super::device::{Device, NvmeWish};
use super::row::{Row, Submit, start_reactors};
use super::stack::{Backing, StackConfig};
use crate::bdev::pmem::{CopyKernel, PmemBdev, PmemConfig};
use crate::bdev::{Bdev, Pmem};
use crate::bench::floor::{self, FloorError, MemoryWork};
use crate::bench::{Ratios, RunReport, Workload};
use crate::cache::CacheOptions;
use crate::units::ByteRange;
use hdrhistogram::Histogram;
use reactors::{Cx, ReactorHandle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the operations whose times are the floors.
const PAGE: u32 = 4096;
/// Bytes of the media on which the copy kernels compete.
const TRIAL_BYTES: u64 = 64 << 20;
/// How long a floor may take beyond its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The floors; medians of several measurements if there were any.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Floors {
    /// Nanoseconds by name; null for what this machine has not (a second core).
    #[serde(flatten)]
    values: BTreeMap<&'static str, Option<u64>>,
    /// Least and most of several measurements.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    spread: BTreeMap<&'static str, [u64; 2]>,
}

impl Floors {
    /// Nanoseconds of a floor, 0 if there is none.
    pub(super) fn get(&self, name: &str) -> u64 {
        self.values.get(name).copied().flatten().unwrap_or(0)
    }

    /// Names and values.
    pub(super) fn values(&self) -> impl Iterator<Item = (&'static str, Option<u64>)> + '_ {
        self.values.iter().map(|(name, value)| (*name, *value))
    }

    /// One of several: each value is the median of theirs.
    pub(super) fn median(all: &[Self]) -> Self {
        let mut lists: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
        let mut median = Self::default();
        for (name, value) in all.iter().flat_map(Self::values) {
            median.values.entry(name).or_insert(None);
            lists.entry(name).or_default().extend(value);
        }
        for (name, list) in &mut lists {
            list.sort_unstable();
            let middle = list.get(list.len().saturating_sub(1) / 2).copied();
            median.values.insert(name, middle);
            if let [least, .., most] = list.as_slice() {
                median.spread.insert(name, [*least, *most]);
            }
        }
        median
    }
}

/// Measures floors on the cores of the runs.
#[derive(Debug)]
pub(super) struct FloorRig {
    cores: Vec<usize>,
    run_dir: PathBuf,
    medium: Arc<PmemBdev>,
    kernel: CopyKernel,
    run_ns: u64,
    /// Floors of other sizes than a page, by work and size.
    others: BTreeMap<(&'static str, u32), u64>,
}

fn medium(kernel: CopyKernel, bytes: u64) -> Result<Arc<PmemBdev>, Box<dyn Error>> {
    let mut config = PmemConfig::new("floor", "anon:");
    config.size = Some(bytes);
    config.kernel = Some(kernel);
    Ok(PmemBdev::open(config)?)
}

/// Runs `work` on the reactor, which does nothing else meanwhile.
fn on_reactor(
    handle: &ReactorHandle,
    run_ns: u64,
    work: impl FnOnce(&Cx) -> Result<Histogram<u64>, FloorError> + Send + 'static,
) -> Result<Histogram<u64>, Box<dyn Error>> {
    let patience = PATIENCE + Duration::from_nanos(run_ns);
    let found = handle.call(patience, move |cx| work(cx).map_err(|e| e.to_string()))?;
    Ok(found?)
}

fn memory_times(
    handle: &ReactorHandle,
    medium: &PmemBdev,
    work: MemoryWork,
    bytes: u32,
    run_ns: u64,
) -> Result<Histogram<u64>, Box<dyn Error>> {
    let pmem: Arc<dyn Pmem> = medium.pmem().ok_or("no medium")?;
    on_reactor(handle, run_ns, move |cx| {
        floor::memory(cx, &*pmem, work, bytes, run_ns)
    })
}

fn median(times: &Histogram<u64>) -> u64 {
    times.value_at_quantile(0.5)
}

impl FloorRig {
    /// Finds the best copy kernel, and takes `bytes` of memory to copy to and from. Each floor is
    /// measured for `run_ns`. The first of `cores` runs them, the second answers.
    ///
    /// # Errors
    /// Without memory or cores.
    pub(super) fn new(
        cores: &[usize],
        run_dir: &Path,
        bytes: u64,
        run_ns: u64,
    ) -> Result<Self, Box<dyn Error>> {
        let (first, _) = cores.split_at(cores.len().min(1));
        let reactors = start_reactors(first, 1)?;
        let handle = reactors.data_handles().first().ok_or("no reactor")?;
        let mut best = (u64::MAX, CopyKernel::detect());
        for kernel in CopyKernel::available() {
            let medium = medium(kernel, bytes.min(TRIAL_BYTES))?;
            let times = memory_times(handle, &medium, MemoryWork::Store, PAGE, run_ns / 4)?;
            if median(&times) < best.0 {
                best = (median(&times), kernel);
            }
        }
        reactors.stop();
        Ok(Self {
            cores: cores.to_vec(),
            run_dir: run_dir.to_owned(),
            medium: medium(best.1, bytes)?,
            kernel: best.1,
            run_ns,
            others: BTreeMap::new(),
        })
    }

    /// Which instructions copy.
    pub(super) fn kernel(&self) -> CopyKernel {
        self.kernel
    }

    /// Bytes of most pages of its memory.
    pub(super) fn page_bytes(&self) -> u64 {
        self.medium.page_size()
    }

    /// Measures all of them once.
    ///
    /// # Errors
    /// If a reactor does not answer.
    pub(super) fn measure(&self) -> Result<Floors, Box<dyn Error>> {
        let run_ns = self.run_ns;
        let (first, _) = self.cores.split_at(self.cores.len().min(1));
        let reactors = start_reactors(first, 1)?;
        let handle = reactors.data_handles().first().ok_or("no reactor")?;
        let mut values = BTreeMap::new();
        for (name, work) in [
            ("memory_ns", MemoryWork::Store),
            ("memory_crc_ns", MemoryWork::StoreCrc),
            ("read_cold_ns", MemoryWork::Load),
        ] {
            let times = memory_times(handle, &self.medium, work, PAGE, run_ns)?;
            values.insert(name, Some(median(&times)));
        }
        let gaps = on_reactor(handle, run_ns, move |cx| floor::jitter(cx, run_ns))?;
        values.insert("clock_ns", Some(median(&gaps)));
        values.insert("jitter_p99_ns", Some(gaps.value_at_quantile(0.99)));
        values.insert("jitter_p999_ns", Some(gaps.value_at_quantile(0.999)));
        values.insert("jitter_p9999_ns", Some(gaps.value_at_quantile(0.9999)));
        values.insert("jitter_max_ns", Some(gaps.max()));
        reactors.stop();
        values.insert("harness_ns", Some(self.harness_ns()?));
        values.insert("ring_round_trip_ns", self.round_trip_ns()?);
        Ok(Floors {
            values,
            spread: BTreeMap::new(),
        })
    }

    /// What the harness itself takes: a device that does nothing, one request at a time.
    fn harness_ns(&self) -> Result<u64, Box<dyn Error>> {
        let bytes = self.medium.info().bytes();
        let row = Row {
            name: "harness".to_owned(),
            stack: StackConfig::of(Device::Null, bytes),
            job: Workload {
                warmup_ns: self.run_ns / 10,
                run_ns: self.run_ns,
                ..Workload::new(ByteRange::between(0, bytes), PAGE)
            },
            jobs: 1,
            submit: Submit::Local,
            fill: false,
            half_rate_of: None,
        };
        let (first, _) = self.cores.split_at(self.cores.len().min(1));
        Ok(row.run(first, &self.run_dir)?.latency_ns.p50)
    }

    fn round_trip_ns(&self) -> Result<Option<u64>, Box<dyn Error>> {
        let &[here, there, ..] = self.cores.as_slice() else {
            return Ok(None);
        };
        let run_ns = self.run_ns;
        let reactors = start_reactors(&[here, there], 1)?;
        let [here, there, ..] = reactors.data_handles() else {
            return Ok(None);
        };
        let (ping, echo) = floor::round_trip();
        let sent = there.send(Box::new(move |_cx| echo.run()));
        sent.map_err(|_full| "a reactor's inbox is full")?;
        let times = on_reactor(here, run_ns, move |cx| ping.run(cx, run_ns))?;
        reactors.stop();
        Ok(Some(median(&times)))
    }

    /// The floor of one kind of work for requests of `bytes`.
    fn floor_ns(
        &mut self,
        floors: &Floors,
        (name, work): (&'static str, MemoryWork),
        bytes: u32,
    ) -> Result<u64, Box<dyn Error>> {
        if bytes == PAGE {
            return Ok(floors.get(name));
        }
        if let Some(known) = self.others.get(&(name, bytes)) {
            return Ok(*known);
        }
        let (first, _) = self.cores.split_at(self.cores.len().min(1));
        let reactors = start_reactors(first, 1)?;
        let handle = reactors.data_handles().first().ok_or("no reactor")?;
        let times = memory_times(handle, &self.medium, work, bytes, self.run_ns)?;
        reactors.stop();
        self.others.insert((name, bytes), median(&times));
        Ok(median(&times))
    }

    /// Puts a run's figures in relation to the floor that its requests can't go below.
    ///
    /// # Errors
    /// If a floor can't be measured.
    pub(super) fn relate(
        &mut self,
        floors: &Floors,
        row: &Row,
        report: &mut RunReport,
    ) -> Result<(), Box<dyn Error>> {
        let has_crc = row.stack.device == Device::Cache && row.stack.options.data_crc;
        let write = if has_crc {
            ("memory_crc_ns", MemoryWork::StoreCrc)
        } else {
            ("memory_ns", MemoryWork::Store)
        };
        let read = ("read_cold_ns", MemoryWork::Load);
        if matches!(
            row.stack.device,
            Device::Null | Device::Backing | Device::Export(_)
        ) {
            return Ok(());
        }
        let bytes = mean_bytes(&row.job);
        let reads = u64::from(row.job.read_percent);
        let (mut name, mut ns) = match reads {
            0 => (write.0.to_owned(), self.floor_ns(floors, write, bytes)?),
            100 => (read.0.to_owned(), self.floor_ns(floors, read, bytes)?),
            _ => {
                let writes = self.floor_ns(floors, write, bytes)?;
                let mean = self.floor_ns(floors, read, bytes)? * reads + writes * (100 - reads);
                (format!("{}%{}+{}", reads, read.0, write.0), mean / 100)
            }
        };
        if row.submit == Submit::Ring {
            name.push_str("+ring_round_trip_ns");
            ns += floors.get("ring_round_trip_ns");
        }
        report.ratios = Ratios::of(report, &name, ns, floors.get("jitter_p999_ns"));
        Ok(())
    }
}

/// The mean of the sizes, up to the next multiple of 512.
fn mean_bytes(job: &Workload) -> u32 {
    let weights: u64 = job.sizes.iter().map(|size| u64::from(size.weight)).sum();
    let weighted = job.sizes.iter();
    let sum: u64 = weighted
        .map(|size| u64::from(size.weight) * u64::from(size.bytes))
        .sum();
    let mean = (sum / weights.max(1)).next_multiple_of(512);
    u32::try_from(mean).unwrap_or(PAGE)
}

impl StackConfig {
    /// A device of `bytes` with the usual options; a cache gets a pool of twice that.
    pub(super) fn of(device: Device, bytes: u64) -> Self {
        Self {
            device,
            bytes,
            pool_bytes: bytes.saturating_mul(2),
            segment_bytes: 2 << 20,
            lanes: 4,
            options: CacheOptions::default(),
            backing: Backing::Malloc,
            backing_delay_us: 0,
            writes: false,
            users: 1,
            nvme: NvmeWish::default(),
        }
    }
}
