//! `bench --preset replay`: how fast a load takes a log of small keys that are all over the device.

use super::args::BenchArgs;
use super::device::Device;
use super::jobs::run_jobs;
use super::mib;
use super::row::start_reactors;
use super::stack::{BLOCK_BYTES, Stack, StackConfig};
use crate::app::caches::{start_parts, stop_parts};
use crate::bench::Workload;
use crate::cache::{CacheOptions, ReplayReport};
use crate::units::ByteRange;
use reactors::Reactors;
use serde_json::json;
use std::error::Error;
use std::path::Path;

/// Requests under way while the log is written.
const DEPTH: u32 = 32;

/// Writes one block for each block of the device, at random, stops the cache and loads it; `--repeat`
/// times. Prints what the loads found.
///
/// # Errors
/// What could not be built, or why it did not stop or load.
pub(super) fn run(
    args: &BenchArgs,
    cores: &[usize],
    run_dir: &Path,
    is_json: bool,
) -> Result<bool, Box<dyn Error>> {
    let bytes = mib(args.size_mib)?;
    let mut rates = Vec::new();
    let mut loads = Vec::new();
    for _ in 0..args.repeat {
        let (first, _) = cores.split_at(cores.len().min(1));
        let reactors = start_reactors(first, args.seed)?;
        let report = load(args, bytes, &reactors, run_dir)?;
        reactors.stop();
        let rate = report.keys.saturating_mul(1_000_000) / report.elapsed_us.max(1);
        rates.push(rate);
        loads.push(json!({
            "ksets": report.ksets,
            "keys": report.keys,
            "elapsed_us": report.elapsed_us,
            "keys_per_second": rate,
        }));
        if !is_json {
            println!(
                "{} keys in {} ksets, {} µs: {rate} keys a second",
                report.keys, report.ksets, report.elapsed_us
            );
        }
    }
    rates.sort_unstable();
    let median = rates.get(rates.len().saturating_sub(1) / 2).copied();
    if is_json {
        let document =
            json!({"schema": 1, "preset": "replay", "keys_per_second": median, "loads": loads});
        println!("{document}");
    }
    Ok(true)
}

fn load(
    args: &BenchArgs,
    bytes: u64,
    reactors: &Reactors,
    run_dir: &Path,
) -> Result<ReplayReport, Box<dyn Error>> {
    let mut config = StackConfig::of(Device::Cache, bytes);
    // Room for all of it and its log, so that nothing leaves the log before the load.
    config.pool_bytes = bytes.saturating_mul(2);
    config.options = CacheOptions {
        writeback_delay_ms: u32::MAX,
        dirty_low_percent: 100,
        dirty_high_percent: 100,
        gc_percent: 90,
        ..CacheOptions::default()
    };
    let handles = reactors.data_handles();
    let stack = Stack::build(&config, handles, reactors, run_dir)?;
    let job = Workload {
        depth: DEPTH,
        seed: args.seed,
        run_ns: u64::MAX,
        requests_max: Some(bytes / u64::from(BLOCK_BYTES)),
        ..Workload::new(ByteRange::between(0, bytes), BLOCK_BYTES)
    };
    let outcome = run_jobs(handles, &stack, &[job])?.outcome;
    if outcome.errors > 0 {
        return Err(format!("{} of the writes failed", outcome.errors).into());
    }
    let cache = stack.cache.ok_or("no cache was built")?;
    stop_parts(&cache)?;
    let (pool, name, backing) = (cache.pool(), cache.name().to_owned(), cache.backing());
    let runtime = super::stack::runtime(handles, reactors, run_dir);
    drop(cache);
    let cache = pool.load_cache(&name, backing, &runtime, false)?;
    let report = cache.replay_report();
    start_parts(&cache)?;
    stop_parts(&cache)?;
    Ok(report)
}
