//! What a cache has done, in groups as OCF's users know them.

use super::cache::describe_replay;
use crate::app::service::Service;
use crate::cache::{Cache, LaneFigures};
use rpc::{Error, Registry};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_get_stats", get_stats);
}

/// `bdev_pmcache_get_stats`: since the cache was loaded.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetStats {
    name: String,
    #[serde(default)]
    per_lane: bool,
}

/// Blocks are told in these units, as OCF does.
const BLOCK_BYTES: u64 = 4096;

/// One figure with its share of `whole`.
fn leaf(count: u64, whole: u64, units: &str) -> Value {
    // Basis points: two digits behind the point.
    let share = u128::from(count) * 10_000 / u128::from(whole.max(1));
    let percentage = format!("{}.{:02}", share / 100, share % 100);
    json!({"count": count, "percentage": percentage, "units": units})
}

fn requests(figures: &LaneFigures) -> Value {
    let total = figures.reads + figures.writes + figures.zeroes + figures.flushes;
    let of_reads = |count| leaf(count, figures.reads, "Requests");
    let of_total = |count| leaf(count, total, "Requests");
    json!({
        "rd_hits": of_reads(figures.hits),
        "rd_partial_misses": of_reads(figures.partial_hits),
        "rd_full_misses": of_reads(figures.misses),
        "rd_total": of_total(figures.reads),
        "wr_total": of_total(figures.writes),
        "zeroes": of_total(figures.zeroes),
        "flushes": of_total(figures.flushes),
        "total": of_total(total),
    })
}

fn usage(cache: &Cache) -> Value {
    let status = cache.status();
    let segment_blocks = cache.pool().geometry().segment_data_bytes() / BLOCK_BYTES;
    let total = u64::from(status.segments_total) * segment_blocks;
    let free = u64::from(status.segments_free) * segment_blocks;
    let occupancy = total.saturating_sub(free);
    let dirty = status.dirty_bytes.div_ceil(BLOCK_BYTES).min(occupancy);
    let of_total = |count| leaf(count, total, "4KiB blocks");
    json!({
        "occupancy": of_total(occupancy),
        "free": of_total(free),
        "clean": leaf(occupancy - dirty, occupancy, "4KiB blocks"),
        "dirty": leaf(dirty, occupancy, "4KiB blocks"),
    })
}

fn blocks(figures: &LaneFigures, written_back: u64) -> Value {
    let group = |name: &str, read: u64, written: u64| {
        let (read, written) = (read.div_ceil(BLOCK_BYTES), written.div_ceil(BLOCK_BYTES));
        let total = read + written;
        let of_total = |count| leaf(count, total, "4KiB blocks");
        [
            (format!("{name}_rd"), of_total(read)),
            (format!("{name}_wr"), of_total(written)),
            (format!("{name}_total"), of_total(total)),
        ]
    };
    let core = group("core_volume", figures.backing_read_bytes, written_back);
    let volume = group("volume", figures.read_bytes, figures.write_bytes);
    Value::Object(core.into_iter().chain(volume).collect())
}

fn plain(fields: Vec<(&'static str, u64)>) -> Map<String, Value> {
    let members = fields.into_iter();
    members
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect()
}

fn get_stats(service: &Service, params: GetStats) -> Result<Value, Error> {
    let cache = service.bdevs.cache(&params.name)?;
    let figures = cache.figures();
    let writeback = cache.writeback_figures();
    let errors = figures.backing_errors + writeback.errors;
    let of_errors = |count| leaf(count, errors, "Requests");
    let mut value = json!({
        "usage": usage(&cache),
        "requests": requests(&figures),
        "blocks": blocks(&figures, writeback.bytes),
        "errors": {
            "core_volume_rd": of_errors(figures.backing_errors),
            "core_volume_wr": of_errors(writeback.errors),
            "total": of_errors(errors),
        },
        "log": plain(figures.fields()),
        "writeback": plain(writeback.fields()),
        "gc": plain(cache.gc_figures().fields()),
        "replay": describe_replay(&cache),
    });
    if params.per_lane
        && let Some(members) = value.as_object_mut()
    {
        let lanes: Vec<Value> = cache
            .lane_figures()
            .iter()
            .map(|lane| Value::Object(plain(lane.fields())))
            .collect();
        members.insert("lanes".to_owned(), lanes.into());
    }
    Ok(value)
}
