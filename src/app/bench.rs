//! `pmcache bench`: builds a stack in this process and drives it; no service, no sockets.

#[cfg(test)]
mod compare;
#[cfg(test)]
mod confidence;
#[cfg(test)]
mod document;
#[cfg(test)]
mod plot;

use super::bench_stack::{Device, Stack};
use super::cli::{UNUSABLE, fail};
use super::serve::RUN_DIR;
use crate::bdev::Bdev;
use crate::bench::{self, Pattern, Report, Workload};
use crate::units::ByteRange;
use clap::{Args, ValueEnum};
use reactors::{CoreSet, IdlePolicy, MonotonicClock, ReactorHandle, Reactors, ReactorsConfig};
use serde_json::json;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Measures latencies in this process; every device with every pattern at every depth.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Device::Null, Device::Malloc, Device::Cache])]
    bdev: Vec<Device>,
    /// Which requests.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Rw::Randwrite, Rw::Randread])]
    rw: Vec<Rw>,
    /// Requests under way.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    depth: Vec<u32>,
    /// Bytes of each request.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    block_size: u32,
    /// Size of each device in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    size_mib: u64,
    /// Seconds to count.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds to run before that.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// The core to run on: the first of the set.
    #[arg(long, value_name = "MASK", default_value = "0x1")]
    cpumask: CoreSet,
    /// Where the cache's staging file goes; on tmpfs.
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rw {
    Randread,
    Randwrite,
    Read,
    Write,
}

impl From<Rw> for Pattern {
    fn from(rw: Rw) -> Self {
        match rw {
            Rw::Randread => Self::RandRead,
            Rw::Randwrite => Self::RandWrite,
            Rw::Read => Self::SeqRead,
            Rw::Write => Self::SeqWrite,
        }
    }
}

/// Bytes of the requests that fill a device before it is measured.
const FILL_BYTES: u32 = 64 << 10;

/// How long a job may take beyond the time that it was given, or at all if it is bounded otherwise.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the command.
pub(super) fn run(args: &BenchArgs, json: bool) -> ExitCode {
    let times = [args.seconds, args.warmup].map(Duration::try_from_secs_f64);
    let [Ok(seconds), Ok(warmup)] = times else {
        return fail(UNUSABLE, json, "--seconds and --warmup must be 0 or more");
    };
    match measure(args, seconds, warmup, json) {
        Ok(failed) => ExitCode::from(u8::from(failed)),
        Err(error) => fail(UNUSABLE, json, error),
    }
}

/// Runs all jobs and prints them. Returns whether a request failed.
fn measure(
    args: &BenchArgs,
    seconds: Duration,
    warmup: Duration,
    json: bool,
) -> Result<bool, Box<dyn Error>> {
    let core = args.cpumask.iter().next().ok_or("no core to run on")?;
    let reactors = Reactors::start(ReactorsConfig {
        cores: vec![core],
        maintenance: vec![None; 2],
        idle: IdlePolicy::Poll,
        seed: 1,
        clock: Arc::new(MonotonicClock),
    })?;
    let bytes = args.size_mib.checked_mul(1 << 20);
    let bytes = bytes.ok_or("--size-mib is too large")?;
    // In a directory of its own, so that what an interrupted run leaves is easily found.
    let run_dir = args
        .run_dir
        .join(format!("pmcache-bench.{}", std::process::id()));
    std::fs::create_dir(&run_dir).map_err(|e| format!("{}: {e}", run_dir.display()))?;
    let mut reports = Vec::new();
    let mut jobs = || {
        for device in &args.bdev {
            let stack = Stack::build(*device, bytes, &reactors, &run_dir)?;
            let times = (nanos(warmup), nanos(seconds));
            let measured = measure_device(args, &reactors, &stack.bdev, times, &mut |report| {
                if !json {
                    println!("{report}");
                }
                reports.push(report);
            });
            stack.finish().and(measured)?;
        }
        Ok::<(), Box<dyn Error>>(())
    };
    let done = jobs();
    std::fs::remove_dir_all(&run_dir).map_err(|e| format!("{}: {e}", run_dir.display()))?;
    done?;
    let failed = reports.iter().any(|report| report.errors > 0);
    if json {
        println!("{}", json!({"cpu": core, "jobs": reports}));
    }
    Ok(failed)
}

/// Fills a device, then runs each pattern at each depth; `times`: to warm up and to count, in
/// nanoseconds.
fn measure_device(
    args: &BenchArgs,
    reactors: &Reactors,
    bdev: &Arc<dyn Bdev>,
    times: (u64, u64),
    found: &mut dyn FnMut(Report),
) -> Result<(), Box<dyn Error>> {
    let handle = reactors.data_handles().first().ok_or("no reactor")?;
    let range = ByteRange::between(0, bdev.info().bytes());
    run_job(handle, bdev.clone(), Workload::fill(range, FILL_BYTES))?;
    for rw in &args.rw {
        for depth in &args.depth {
            let workload = Workload {
                pattern: (*rw).into(),
                block_bytes: args.block_size,
                depth: *depth,
                range,
                warmup_ns: times.0,
                run_ns: times.1,
                requests_max: None,
            };
            found(run_job(handle, bdev.clone(), workload)?);
        }
    }
    Ok(())
}

/// In nanoseconds, up to a century: sums of two stay within 64 bits.
fn nanos(duration: Duration) -> u64 {
    let century = Duration::from_secs(36_525 * 86_400);
    u64::try_from(duration.min(century).as_nanos()).unwrap_or(0)
}

/// Runs one job on the reactor and waits for its report.
fn run_job(
    handle: &ReactorHandle,
    bdev: Arc<dyn Bdev>,
    workload: Workload,
) -> Result<Report, Box<dyn Error>> {
    let patience = match workload.requests_max {
        Some(_) => PATIENCE,
        None => PATIENCE + Duration::from_nanos(workload.warmup_ns + workload.run_ns),
    };
    let report = handle.call_with_reply(patience, move |cx, reply| {
        let reply = std::rc::Rc::new(std::cell::Cell::new(Some(reply)));
        let at_end = std::rc::Rc::clone(&reply);
        let done = Box::new(move |report| {
            if let Some(reply) = at_end.take() {
                reply.send(Ok(report));
            }
        });
        if let Err(error) = bench::start(cx, &*bdev, &workload, done)
            && let Some(reply) = reply.take()
        {
            reply.send(Err(error.to_string()));
        }
    })??;
    Ok(report)
}
