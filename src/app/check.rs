//! `pmcache check`: verifies a pool that no service uses, and changes nothing.

use super::cli::{UNUSABLE, fail};
use crate::cache::{CacheCheck, CheckReport, Finding, PoolCheck, TailCheck, check_pool};
use clap::Args;
use reactors::{Clock, MonotonicClock};
use serde::Serialize;
use std::fmt::{self, Display, Formatter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Verifies every structure and checksum of a pool, read-only. Exit code 0: clean; 1: damaged; 2: no
/// pool, or in use.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The file or DAX device that holds the pool.
    pool: PathBuf,
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs, json: bool) -> ExitCode {
    let clock = MonotonicClock;
    let begun = clock.now();
    let report = match check_pool(&args.pool) {
        Ok(report) => report,
        Err(error) => {
            let path = args.pool.display();
            return fail(UNUSABLE, json, format_args!("{path}: {error}"));
        }
    };
    let elapsed_ns = clock.now().since(begun);
    if json {
        let timed = Timed {
            report: &report,
            elapsed_us: elapsed_ns / 1000,
            keys_per_second: keys_per_second(&report, elapsed_ns),
        };
        match serde_json::to_string_pretty(&timed) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(UNUSABLE, json, error),
        }
    } else {
        println!(
            "checked in {} ms: {} keys of the logs a second",
            elapsed_ns / 1_000_000,
            keys_per_second(&report, elapsed_ns)
        );
        print!("{}", Text(&report));
    }
    ExitCode::from(u8::from(!report.is_clean()))
}

/// A report, and how long it took.
#[derive(Serialize)]
struct Timed<'a> {
    #[serde(flatten)]
    report: &'a CheckReport,
    elapsed_us: u64,
    keys_per_second: u64,
}

/// Keys of all logs by the time of everything: data are verified, too.
fn keys_per_second(report: &CheckReport, elapsed_ns: u64) -> u64 {
    let logs = report.caches.iter().filter_map(|cache| cache.log.as_ref());
    let keys: u64 = logs.map(|log| log.keys).sum();
    keys.saturating_mul(1_000_000_000) / elapsed_ns.max(1)
}

/// A report for people.
struct Text<'a>(&'a CheckReport);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let report = self.0;
        if let Some(pool) = &report.pool {
            write_pool(f, pool)?;
        }
        for cache in &report.caches {
            write_cache(f, cache)?;
        }
        for (word, list, total) in [
            ("warning", &report.warnings, report.warnings_total),
            ("DAMAGED", &report.damages, report.damages_total),
        ] {
            for finding in list {
                write_finding(f, word, finding)?;
            }
            let more = total.saturating_sub(list.len() as u64);
            if more > 0 {
                writeln!(f, "{word}: {more} more")?;
            }
        }
        match report.damages_total {
            0 => writeln!(f, "clean; {} warnings", report.warnings_total),
            n => writeln!(f, "{n} damages; {} warnings", report.warnings_total),
        }
    }
}

/// Bytes with the largest unit that divides them.
struct Size(u64);

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units
            .iter()
            .find(|(shift, _)| self.0 > 0 && self.0.trailing_zeros() >= *shift)
        {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

fn write_pool(f: &mut Formatter<'_>, pool: &PoolCheck) -> fmt::Result {
    writeln!(
        f,
        "pool {:?}: format {}, {}",
        pool.name, pool.format, pool.uuid
    )?;
    writeln!(
        f,
        "  {}: {} segments of {} from {} on; {} free, {} bad",
        Size(pool.medium_bytes),
        pool.segments,
        Size(pool.segment_bytes),
        Size(pool.data_start),
        pool.segments_free,
        pool.segments_bad
    )
}

/// A figure that may not have been readable.
fn known<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "unknown".into(), |value| value.to_string())
}

fn write_cache(f: &mut Formatter<'_>, cache: &CacheCheck) -> fmt::Result {
    writeln!(f, "cache {:?}: {}", cache.name, cache.uuid)?;
    writeln!(
        f,
        "  backing {:?}: {}, {}",
        cache.backing_name,
        Size(cache.backing_bytes),
        cache.backing_uuid
    )?;
    writeln!(
        f,
        "  {} lanes, blocks of {} B, control in segment {}",
        cache.lanes, cache.block_bytes, cache.first_segment
    )?;
    writeln!(f, "  options: {}", options(cache)?)?;
    let boundaries = match cache.between_boundaries {
        Some(true) => "; the backing is between flush boundaries",
        _ => "",
    };
    writeln!(
        f,
        "  incarnation {}, from sequence {}; durable mark {}{boundaries}",
        known(cache.incarnation),
        known(cache.first_sequence),
        known(cache.durable_sequence),
    )?;
    let stop = match cache.stopped_clean {
        Some(true) => "clean",
        Some(false) => {
            "not clean: the staging file may hold further keys, which are not part of this check"
        }
        None => "unknown",
    };
    writeln!(f, "  last stop: {stop}")?;
    write_tail(f, "key tail", cache.key_tail.as_ref())?;
    write_tail(f, "dirty tail", cache.dirty_tail.as_ref())?;
    write_log(f, cache)
}

/// The options, in one line.
fn options(cache: &CacheCheck) -> Result<String, fmt::Error> {
    let o = &cache.options;
    let mut text = String::new();
    write!(
        text,
        "mode {}, durability {}, writeback_order {}, data_crc {}, verify_reads {}, gc_percent {}, \
         kset_flush_ms {}, writeback_depth {}, writeback_rate_mbps {}, writeback_delay_ms {}, \
         writeback_lag_s {}, dirty_low_percent {}, dirty_high_percent {}, no_space_timeout_s {}, \
         seq_cutoff_policy {}, seq_cutoff_kib {}, admission {}",
        o.mode,
        o.durability,
        o.writeback_order,
        o.data_crc,
        o.verify_reads,
        o.gc_percent,
        o.kset_flush_ms,
        o.writeback_depth,
        o.writeback_rate_mbps,
        o.writeback_delay_ms,
        o.writeback_lag_s,
        o.dirty_low_percent,
        o.dirty_high_percent,
        o.no_space_timeout_s,
        o.seq_cutoff_policy,
        o.seq_cutoff_kib,
        o.admission
    )?;
    Ok(text)
}

fn write_tail(f: &mut Formatter<'_>, name: &str, tail: Option<&TailCheck>) -> fmt::Result {
    match tail {
        Some(tail) => writeln!(
            f,
            "  {name}: segment {}, offset {}, sequence {}, epoch {}",
            tail.segment, tail.offset, tail.sequence, tail.epoch
        ),
        None => writeln!(f, "  {name}: unknown"),
    }
}

fn write_log(f: &mut Formatter<'_>, cache: &CacheCheck) -> fmt::Result {
    let Some(log) = &cache.log else {
        return writeln!(f, "  log: not walked");
    };
    let segments = &cache.segments;
    writeln!(
        f,
        "  segments: {}: {} log, {} data, {} unreferenced; {} references",
        segments.total, segments.log, segments.data, segments.unreferenced, segments.references
    )?;
    writeln!(
        f,
        "  log: sequences {} to {}, {} ksets, {} LASTs, {} segments; ends in segment {} at {}",
        log.first_sequence,
        log.end_sequence.saturating_sub(1),
        log.ksets,
        log.lasts,
        log.segments.len(),
        log.end_segment,
        log.end_offset
    )?;
    writeln!(
        f,
        "  keys: {}: {} dirty, {} clean, {} zero, {} stale",
        log.keys, log.dirty_keys, log.clean_keys, log.zero_keys, log.stale_keys
    )?;
    writeln!(f, "  dirty bytes: {}", log.dirty_bytes)?;
    if log.bad_bytes > 0 {
        writeln!(f, "  BAD bytes: {}", log.bad_bytes)?;
    }
    writeln!(
        f,
        "  live data: {} keys, {} bytes; {} keys verified, {} damaged",
        log.data.live_keys, log.data.live_bytes, log.data.verified_keys, log.data.damaged_keys
    )
}

fn write_finding(f: &mut Formatter<'_>, word: &str, finding: &Finding) -> fmt::Result {
    write!(f, "{word}: at {:#x}", finding.at)?;
    if let Some(segment) = finding.segment {
        write!(f, " (segment {segment})")?;
    }
    if let Some(cache) = &finding.cache {
        write!(f, ", cache {cache:?}")?;
    }
    writeln!(f, ": {}", finding.what)?;
    write!(f, "  lost: {}", finding.lost)?;
    for range in &finding.ranges {
        write!(f, "; {}+{}", range.offset, range.len)?;
    }
    writeln!(f)
}
