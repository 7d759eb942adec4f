//! `pmcache bench`: builds devices in this process and drives them; no service, no sockets.

mod args;
mod bars;
mod compare;
mod confidence;
mod device;
mod document;
mod flag_rows;
mod floors;
mod job_rows;
mod jobs;
mod overlay;
mod plot;
mod replay;
mod row;
mod saved;
mod stack;
mod stages;

pub(super) use args::BenchArgs;

use super::cli::{UNUSABLE, fail};
use crate::bdev::pmem::CopyKernel;
use crate::bench::{Arrival, Load, RunReport, write_hgrm};
use args::{Preset, SavedCommand};
use bars::BarsConfig;
use document::{Document, Host};
use floors::{FloorRig, Floors};
use row::{Row, Submit};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long a floor is measured, at least and at most.
const FLOOR_NS: (u64, u64) = (2_000_000, 250_000_000);

/// Runs the command.
pub(super) fn run(args: &BenchArgs, json: bool) -> ExitCode {
    match &args.command {
        Some(SavedCommand::Compare { a, b }) => return compare::run(a, b, json),
        Some(SavedCommand::Plot { files, out }) => return overlay::run(files, out, json),
        None => {}
    }
    match measure(args, json) {
        Ok(is_good) => ExitCode::from(u8::from(!is_good)),
        Err(error) => fail(UNUSABLE, json, error),
    }
}

/// In nanoseconds, up to a century: sums of two stay within 64 bits.
fn nanos(seconds: f64) -> Result<u64, Box<dyn Error>> {
    let duration = Duration::try_from_secs_f64(seconds)
        .map_err(|_| "--seconds and --warmup must be 0 or more")?;
    let century = Duration::from_secs(36_525 * 86_400);
    Ok(u64::try_from(duration.min(century).as_nanos()).unwrap_or(0))
}

fn mib(count: u64) -> Result<u64, Box<dyn Error>> {
    let bytes = count.checked_mul(1 << 20).filter(|bytes| *bytes < 1 << 56);
    bytes.ok_or_else(|| format!("{count} MiB are too much").into())
}

/// Runs all rows and prints them. Returns whether all requests went well.
fn measure(args: &BenchArgs, json: bool) -> Result<bool, Box<dyn Error>> {
    let cores = cores(args);
    let rows = match args.preset {
        Some(Preset::Bars) => bars(args, cores.len() > 1)?,
        Some(Preset::Replay) => select(Vec::new(), &args.rows)?,
        None if !args.rows.is_empty() => return Err("--rows wants --preset bars".into()),
        None => match &args.job_file {
            Some(path) => job_rows::of_file(args, path)?,
            None => flag_rows::of_flags(args)?,
        },
    };
    // In a directory of its own, so that what an interrupted run leaves is easily found.
    let run_dir = args
        .run_dir
        .join(format!("pmcache-bench.{}", std::process::id()));
    std::fs::create_dir(&run_dir).map_err(|e| format!("{}: {e}", run_dir.display()))?;
    let measured = match args.preset {
        Some(Preset::Replay) => replay::run(args, &cores, &run_dir, json),
        _ => measure_rows(args, &cores, &rows, &run_dir, json),
    };
    std::fs::remove_dir_all(&run_dir).map_err(|e| format!("{}: {e}", run_dir.display()))?;
    measured
}

/// The cores of the mask; a preset takes one more to submit from, if there is one.
fn cores(args: &BenchArgs) -> Vec<usize> {
    let mut cores: Vec<usize> = args.cpumask.iter().collect();
    if args.preset.is_some() {
        let others = core_affinity::get_core_ids().unwrap_or_default();
        let others = others.iter().map(|core| core.id);
        cores.extend(others.filter(|core| !args.cpumask.contains(*core)));
        cores.truncate(2);
    }
    cores
}

fn bars(args: &BenchArgs, has_ring: bool) -> Result<Vec<Row>, Box<dyn Error>> {
    let config = BarsConfig {
        bytes: mib(args.size_mib)?,
        warmup_ns: nanos(args.warmup)?,
        run_ns: nanos(args.seconds)?,
        series_ns: args.series_ms.saturating_mul(1_000_000),
        seed: args.seed,
        has_ring,
    };
    select(config.rows(), &args.rows)
}

/// The rows that are named; all without names.
fn select(rows: Vec<Row>, names: &[String]) -> Result<Vec<Row>, Box<dyn Error>> {
    if names.is_empty() {
        return Ok(rows);
    }
    for name in names {
        let row = rows.iter().find(|row| row.name == *name);
        let row = row.ok_or_else(|| format!("--rows {name}: the preset has no such row here"))?;
        if let Some(other) = row.half_rate_of
            && names.iter().all(|name| name != other)
        {
            return Err(format!("--rows {name}: it takes its rate from {other}").into());
        }
    }
    let named = |row: &Row| names.contains(&row.name);
    Ok(rows.into_iter().filter(named).collect())
}

/// Measures floors and rows in turns, and prints the document. Returns whether all went well.
fn measure_rows(
    args: &BenchArgs,
    cores: &[usize],
    rows: &[Row],
    run_dir: &Path,
    json: bool,
) -> Result<bool, Box<dyn Error>> {
    let floor_ns = (nanos(args.seconds)? / 8).clamp(FLOOR_NS.0, FLOOR_NS.1);
    let mut rig = match args.floors {
        true => Some(FloorRig::new(
            cores,
            run_dir,
            mib(args.size_mib)?,
            floor_ns,
        )?),
        false => None,
    };
    let mut floors = Vec::new();
    let mut runs: Vec<Vec<RunReport>> = rows.iter().map(|_| Vec::new()).collect();
    for turn in 0..args.repeat {
        if let Some(rig) = &rig {
            floors.push(rig.measure()?);
        }
        let mut rates = BTreeMap::new();
        for (row, runs) in rows.iter().zip(&mut runs) {
            let used = if args.preset.is_some() && row.submit == Submit::Local {
                cores.split_at(cores.len().min(1)).0
            } else {
                cores
            };
            runs.push(paced(row, &rates).run(used, run_dir)?);
            rates.extend(runs.last().map(|run| (row.name.clone(), run.iops)));
            if !json && args.repeat > 1 {
                eprintln!("{} of {}: {}", turn + 1, args.repeat, row.name);
            }
        }
    }
    let floors = (!floors.is_empty()).then(|| Floors::median(&floors));
    let mut reports = Vec::new();
    for (row, runs) in rows.iter().zip(runs) {
        let Some(mut report) = RunReport::median(runs) else {
            continue;
        };
        if let (Some(rig), Some(floors)) = (&mut rig, &floors) {
            rig.relate(floors, row, &mut report)?;
        }
        reports.push(report);
    }
    if let Some(dir) = &args.hgrm {
        write_percentiles(dir, &reports)?;
    }
    let is_good = reports.iter().all(RunReport::is_good);
    let kernel = rig
        .as_ref()
        .map_or_else(CopyKernel::detect, FloorRig::kernel);
    let host = Host::of(cores, kernel, rig.as_ref().map(FloorRig::page_bytes));
    let document = Document::new(host, floors, reports);
    print(&document, args.plot.as_deref(), json)?;
    Ok(is_good)
}

/// `row`, at half the rate of another one if it wants that.
fn paced(row: &Row, rates: &BTreeMap<String, f64>) -> Row {
    let mut row = row.clone();
    if let Some(rate) = row.half_rate_of.and_then(|name| rates.get(name)) {
        row.job.load = Load::Open {
            rate: (rate / 2.0).max(1.0),
            arrival: Arrival::Constant,
        };
    }
    row
}

/// Writes one percentile file for each run.
fn write_percentiles(dir: &Path, reports: &[RunReport]) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    for report in reports {
        let path = dir.join(format!("{}.hgrm", report.name));
        let mut text = Vec::new();
        write_hgrm(&report.all, &mut text)?;
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Draws the runs of `document`, and prints it.
fn print(document: &Document, picture: Option<&Path>, json: bool) -> Result<(), Box<dyn Error>> {
    if let Some(path) = picture {
        // By way of what is printed: so the picture can be drawn again from it.
        let saved = saved::Document::parse(&serde_json::to_string(document)?)?;
        plot::write(&saved, path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if json {
        println!("{}", serde_json::to_string(document)?);
        return Ok(());
    }
    print!("{document}");
    Ok(())
}
