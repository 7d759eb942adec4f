//! Statistics of caches, in the groups that SPDK's OCF users know, and more.

use super::Name;
use crate::app::caches;
use crate::app::service::Service;
use crate::cache::{Cache, LaneFigures, LatencyFigures};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// What `bdev_pmcache_get_stats` answers.
const GET_STATS_RESULT: &str = "- `usage` {`occupancy`, `free`, `clean`, `dirty`} and `requests` {`rd_hits`, `rd_partial_misses`,
  `rd_full_misses`, `rd_total`, `wr_total`, `total`}: each {`count`, `percentage`, `units`};
  `requests` also has `zeroes`, `joins`, `fills`, `fills_skipped`, `space_waits`, `space_wait_us`, and of what passes the cache by:
  `rd_pt`, `wr_pt` (requests that go to the backing alone), `wr_wt` (to both), `pt_cached` (cached all the same, since what
  is older was not written back), `pt_waits` (for that, or for one that they overlap), `cut_offs` (of long streams),
  `fills_not_admitted` (before the n-th miss), `fills_unflushed` (the backing had not flushed what passed by there);
- `blocks`: `backing_rd_bytes`, `backing_wr_bytes`, `volume_rd_bytes`, `volume_wr_bytes`,
  `volume_zero_bytes`; `errors`: `backing_rd`, `backing_wr`, `data_crc` (keys that reads or
  writeback found with other bytes than were written), `data_unreadable` (that the medium could not read), `bad_keys`
  (BAD keys logged, those that GC logged again included), `bad_bytes` (BAD now);
- `log`: `keys`, `ksets`, `keys_per_kset`, and ksets by cause: `closed_full`, `closed_age`, `closed_flush`,
  `closed_fua`, `closed_pressure`;
- `writeback`: `windows`, `ksets`, `requests`, `bytes`, `merged`, `elided_bytes`, `errors`, `flushes`,
  `spanning_windows`, `windows_ahead`, `crc_errors`, `unreadable`; `gc`: `ksets`, `keys`, `data_segments`, `log_segments`, `starts`,
  `relogged` (BAD keys), `lost_ksets` (that could not be read: what was current of them is logged again);
- `latency`: by operation (`read`, `write`, `zero`, `flush`) and stage (`ring`: client to lane, `engine`: lane to
  end, the backing included, `backing`: reads of it) {`count`, `p50_ns`, `p99_ns`, `p999_ns`, `p9999_ns`,
  `max_ns`}; of requests that end at once one in 16 is timed; what never happened is left out;
- `replay`, `segments`; with `per_lane`, `lanes`: each lane's counters.";

/// What `bdev_pmcache_get_slow_ios` answers.
const GET_SLOW_IOS_RESULT: &str = "A list; −19 without such a cache. Of each request:

- `when` it ended, in microseconds since 1970; `op` (`read`, `write`, `zero`, `flush`), `offset`, `length`;
- `total_us`: `ring_us` from its client to its lane, and `engine_us` from there to its end; `backing_us`: the
  longest read of the backing within that;
- `cause`, what it waited for: `space`, `pace` (its turn, while little room is left), `queue` (another request of its lane, a lock or a staging slot),
  `backing_read`, `kset` (to become durable), `flush`, `ring` (its lane's reactor was busy), `engine` (nothing of
  these);
- `writeback`, what that was at meanwhile: any of `write`, `flush` (of the backing), `tail`, `back_off` (after an
  error), `damage`, `halted`; `gc`, the same: any of `pass` (ksets), `retire`, `quiesce`, `hand_out` (segments),
  `damage`, `halted`; empty if it was idle.";

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_get_stats", get_stats).about(
        "Counters since the load, or since they were reset. A request that spans lanes counts in each.",
        GET_STATS_RESULT,
    );
    registry.method("bdev_pmcache_reset_stats", reset_stats).about(
        "Lets `bdev_pmcache_get_stats` count from here on: requests, blocks, errors, log, writeback, GC and \
             latencies. What there is (`usage`, `segments`, `bad_bytes`) and the load's figures stay.",
        "True. −19.",
    );
    registry
        .method("bdev_pmcache_get_slow_ios", get_slow_ios)
        .about(
            "The last requests of a cache that took at least `slow_io_us` (see \
             `bdev_pmcache_set_options`), latest first; 256 for each data reactor are kept. A request \
             that spans lanes is told in parts. Those that waited are all looked at; of those that end \
             in the round of the reactor in which they came, one in 16.",
            GET_SLOW_IOS_RESULT,
        );
}

/// `bdev_pmcache_get_stats`: counters since the load. `per_lane` adds each lane's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetStats {
    /// The cache.
    name: String,
    /// Also each lane's counters.
    #[serde(default)]
    per_lane: bool,
    /// `all`: as `bdev_pmcache_reset_stats`, once they are told; `none` if not given.
    #[serde(default)]
    reset_mode: ResetMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ResetMode {
    All,
    #[default]
    None,
}

fn reset_stats(service: &Service, params: Name) -> Result<bool, Error> {
    caches::find(service, &params.name)?.reset_stats();
    Ok(true)
}

/// `count` and its share of `whole`, as SPDK's OCF module writes it.
fn leaf(count: u64, whole: u64, units: &str) -> Value {
    // Hundredths of a percent, in whole numbers.
    let share = count.saturating_mul(10_000).checked_div(whole).unwrap_or(0);
    json!({
        "count": count,
        "percentage": format!("{}.{:02}", share / 100, share % 100),
        "units": units,
    })
}

fn requests(figures: &LaneFigures) -> Value {
    let total = figures.reads + figures.writes;
    let leaf = |count| leaf(count, total, "Requests");
    json!({
        "rd_hits": leaf(figures.hits),
        "rd_partial_misses": leaf(figures.partial_hits),
        "rd_full_misses": leaf(figures.misses),
        "rd_total": leaf(figures.reads),
        "wr_total": leaf(figures.writes),
        "zeroes": figures.zeroes,
        "joins": figures.joins,
        "fills": figures.fills,
        "fills_skipped": figures.fills_skipped,
        "rd_pt": leaf(figures.reads_around),
        "wr_pt": leaf(figures.writes_around),
        "wr_wt": leaf(figures.writes_through),
        "pt_cached": figures.bypass_cached,
        "pt_waits": figures.bypass_waits,
        "cut_offs": figures.cut_offs,
        "fills_not_admitted": figures.fills_not_admitted,
        "fills_unflushed": figures.fills_unflushed,
        "space_waits": figures.space_waits,
        "space_wait_us": figures.space_wait_ns / 1000,
        "total": leaf(total),
    })
}

fn fields(fields: Vec<(&'static str, u64)>) -> Value {
    let map: Map<String, Value> = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    Value::Object(map)
}

fn usage(cache: &Cache) -> Value {
    const BLOCK: u64 = 4096;
    let status = cache.status();
    let segment = cache.pool().geometry().segment_data_bytes();
    let total = u64::from(status.segments_total) * segment / BLOCK;
    let free = u64::from(status.segments_free + status.segments_reserve) * segment / BLOCK;
    let dirty = status.dirty_bytes / BLOCK;
    let used = total.saturating_sub(free);
    let leaf = |count| leaf(count, total, "4KiB blocks");
    json!({
        "occupancy": leaf(used),
        "free": leaf(free),
        "clean": leaf(used.saturating_sub(dirty)),
        "dirty": leaf(dirty),
    })
}

/// Nanoseconds by operation and stage; what never happened is left out.
fn latency(latencies: &[LatencyFigures]) -> Value {
    let mut ops: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
    for found in latencies {
        let shown = json!({
            "count": found.count,
            "p50_ns": found.p50_ns,
            "p99_ns": found.p99_ns,
            "p999_ns": found.p999_ns,
            "p9999_ns": found.p9999_ns,
            "max_ns": found.max_ns,
        });
        ops.entry(found.op).or_default().insert(found.stage, shown);
    }
    json!(ops)
}

/// What is told if no `max` is given.
const SLOW_IOS: usize = 64;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetSlowIos {
    /// The cache.
    name: String,
    /// How many at most; 64 if not given.
    max: Option<usize>,
}

fn get_slow_ios(service: &Service, params: GetSlowIos) -> Result<Vec<Value>, Error> {
    let cache = caches::find(service, &params.name)?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_us = u64::try_from(since_1970.unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
    let now = service.now();
    let found = cache.slow_ios(params.max.unwrap_or(SLOW_IOS));
    let shown = found.into_iter().map(|io| {
        let ago_us = now.0.saturating_sub(io.ended_ns) / 1000;
        json!({
            "when": now_us.saturating_sub(ago_us),
            "op": io.op,
            "offset": io.offset,
            "length": io.length,
            "total_us": (io.ring_ns + io.engine_ns) / 1000,
            "ring_us": io.ring_ns / 1000,
            "engine_us": io.engine_ns / 1000,
            "backing_us": io.backing_ns / 1000,
            "cause": io.cause,
            "writeback": io.writeback,
            "gc": io.gc,
        })
    });
    Ok(shown.collect())
}

fn get_stats(service: &Service, params: GetStats) -> Result<Value, Error> {
    let cache = caches::find(service, &params.name)?;
    let found = cache.stats(params.reset_mode == ResetMode::All);
    let (figures, writeback, gc) = (found.sum, found.writeback, found.gc);
    let replay = cache.replay_report();
    let status = cache.status();
    let ksets = figures.closed_full
        + figures.closed_age
        + figures.closed_flush
        + figures.closed_fua
        + figures.closed_pressure;
    let mut stats = json!({
        "usage": usage(&cache),
        "requests": requests(&figures),
        "blocks": {
            "backing_rd_bytes": figures.backing_read_bytes,
            "backing_wr_bytes": writeback.bytes + figures.bypass_bytes,
            "volume_rd_bytes": figures.read_bytes,
            "volume_wr_bytes": figures.write_bytes,
            "volume_zero_bytes": figures.zero_bytes,
        },
        "errors": {
            "backing_rd": figures.backing_errors,
            "backing_wr": writeback.errors + figures.bypass_errors,
            "data_crc": figures.crc_errors + writeback.crc_errors,
            "data_unreadable": figures.unreadable + writeback.unreadable,
            "bad_keys": figures.bad_keys,
            "bad_bytes": figures.bad_bytes,
        },
        "log": {
            "keys": figures.keys,
            "ksets": ksets,
            "keys_per_kset": figures.keys.checked_div(ksets).unwrap_or(0),
            "closed_full": figures.closed_full,
            "closed_age": figures.closed_age,
            "closed_flush": figures.closed_flush,
            "closed_fua": figures.closed_fua,
            "closed_pressure": figures.closed_pressure,
        },
        "writeback": fields(writeback.fields()),
        "gc": fields(gc.fields()),
        "latency": latency(&found.latencies),
        "replay": {
            "ksets": replay.ksets,
            "keys": replay.keys,
            "stale_keys": replay.stale_keys,
            "staged_keys": replay.staged_keys,
            "dirty_bytes": replay.dirty_bytes,
            "bad_bytes": replay.bad_bytes,
            "elapsed_us": replay.elapsed_us,
        },
        "segments": {
            "total": status.segments_total,
            "free": status.segments_free,
            "log": status.segments_log,
            "log_reserve": status.segments_reserve,
            "bad": status.segments_bad,
        },
    });
    if params.per_lane
        && let Some(stats) = stats.as_object_mut()
    {
        let lanes = found
            .lanes
            .iter()
            .map(|lane| fields(lane.fields()))
            .collect();
        stats.insert("lanes".to_owned(), Value::Array(lanes));
    }
    Ok(stats)
}
