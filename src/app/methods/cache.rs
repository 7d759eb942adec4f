//! Methods about caches.

use super::cache_load::show_salvage;
use super::cache_mode::{CutoffName, ModeName};
use super::cache_resize::show_resize;
use super::{Name, or_forget, uuid_or_new};
use crate::app::bdevs::no_such_device;
use crate::app::caches::{self, cache_error, cache_object};
use crate::app::config::{MissingCache, Object};
use crate::app::service::Service;
use crate::bdev::Bdev;
use crate::cache::{
    Cache, CacheError, CacheOptions, CreateCache, Durability, Mode, WritebackOrder, segments_min,
};
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

/// What `bdev_pmcache_get` answers.
const GET_RESULT: &str = "A list of

- `name`, `uuid`, `pool`, `backing_bdev`, `block_size`, `size` (bytes); `lanes`: a list of {`lane`, `reactor` (data
  reactors count from 0), `reads`, `writes`, `keys`};
- `state`: `running`, `waiting` (a lane waits for space; with `reason`: see below), `flushing` (`flush_start` is at work), `degraded`
  (writeback or GC meets errors, or `flush_failed`), `read_only` (the medium failed, or loaded for salvage), `stopped`;
- `salvage`: null, or for one that is loaded for salvage {`missing`, `lost_clean`} as in `bdev_pmcache_load`;
- `resize`: null, or one that is under way: {`old_size`, `new_size` (bytes), `draining_segments`};
- `segments` {`total`, `free`, `log`, `log_reserve`, `retiring`, `leaving` (kept back for a resize), `data`, `bad` (gave media errors or took no
  data: marked, never allocated again), `bad_draining` (of these, those that still hold data or log)};
- `dirty_bytes`: of keys that are not written back; a block written twice counts twice;
- `bad_bytes`: bytes that are lost: reads of them fail until they are overwritten; neither clean nor dirty;
- `key_head` {`segment`, `offset`: where the next kset goes, `sequence`: highest given out}; `durable_sequence`:
  highest durable;
- `dirty_tail`, `key_tail`: {`segment`, `offset`, `sequence`} of the next kset to write back, to replay;
- `backing_between_boundaries`: the backing alone is between flush boundaries, or writes passed the cache by while older
  ones were not written back, and these are not yet;
- `flush_failed`: a flush of the backing failed behind completed writes that had passed the cache by: they may be lost,
  and FLUSH fails until `bdev_pmcache_set_options` has cleared it;
- `epochs_pending`, `writeback_lag_ms`: how far writeback is behind; `waiting_lanes`;
- all options, as in `bdev_pmcache_set_options`, and `mode`, `data_crc`.

A cache that the configuration has and that is not there has `name`, `uuid` (null if not known), `pool`, `backing_bdev`,
`reason` and `state` only: `waiting` (it comes up when what it needs appears) or `failed` (it can't be loaded).";

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_create", create).about(
        "Makes a cache in a pool in front of a backing, and loads it. A cache needs at \
             least 10 segments a lane, and log reserve + 2 × lanes + 2; the error says the \
             sum.",
        "The name. −28 if the pool has not enough free segments, −17 if the name is \
             taken, −16 if the backing is in use, −19, −22, −95 for `write` on a volatile \
             medium without `force`. A cache that was made and does not start is taken out of \
             the pool again.",
    );
    registry.method("bdev_pmcache_unload", unload).about(
        "Closes ksets and stops. Dirty data stay in the pool. It reads up to 3 MiB of the \
             backing, so that the next load can tell whether it was changed; a backing that \
             does not answer is not waited for.",
        "True. −16 while exported. −110 if it does not stop within 4 s.",
    );
    registry.method("bdev_pmcache_destroy", destroy).about(
        "Unloads a cache and frees its segments.",
        "`discarded_bytes` (dirty ones), `bad_bytes`.",
    );
    registry
        .method("bdev_pmcache_get", get)
        .about("All caches, or one.", GET_RESULT);
    registry
        .method("bdev_pmcache_set_options", set_options)
        .about(
            "Changes options: all or nothing; on media first, then in effect at once. What is \
             not given stays.",
            "True. −16 for `durability` from `write` to `flush` while exported, −22, −95.",
        );
    registry
        .method("bdev_pmcache_flush_start", flush_start)
        .about(
            "Starts to write back all that is dirty now.",
            "True. −114 if one is under way.",
        );
    registry
        .method("bdev_pmcache_flush_status", flush_status)
        .about(
            "How far a flush is.",
            "`in_progress`, `remaining_bytes` (dirty), `rate_bps` (bytes a second over about \
             the last second), `status` (0, or −5 while the cache is degraded).",
        );
    registry
        .method("bdev_pmcache_flush_stop", flush_stop)
        .about("Gives a flush up; what is written stays written.", "True.");
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DurabilityName {
    Flush,
    Write,
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Self {
        match name {
            DurabilityName::Flush => Self::Flush,
            DurabilityName::Write => Self::Write,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OrderName {
    Adaptive,
    Strict,
    Relaxed,
}

impl From<OrderName> for WritebackOrder {
    fn from(name: OrderName) -> Self {
        match name {
            OrderName::Adaptive => Self::Adaptive,
            OrderName::Strict => Self::Strict,
            OrderName::Relaxed => Self::Relaxed,
        }
    }
}

/// The options that can be given at creation and changed later; absent means unchanged.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    /// The cache.
    name: String,
    /// 0 to 90: GC works above this share of used segments. 70 at creation.
    gc_percent: Option<u32>,
    /// 1 to 60000: an open kset older than this is closed. 1000 at creation.
    kset_flush_ms: Option<u32>,
    /// When a completed write survives power loss. `flush` at creation.
    durability: Option<DurabilityName>,
    /// What the backing alone is worth. `adaptive` at creation.
    writeback_order: Option<OrderName>,
    /// 1 to 256: requests that writeback keeps under way under pressure. 32 at creation.
    writeback_depth: Option<u32>,
    /// Limit in MiB/s; 0, at creation: none.
    writeback_rate_mbps: Option<u32>,
    /// Younger keys wait, to absorb overwrites. 0 at creation.
    writeback_delay_ms: Option<u32>,
    /// `adaptive` order gives way from this lag on. 30 at creation.
    writeback_lag_s: Option<u32>,
    /// 0 to high: writeback takes more than one request at a time above this. 10 at creation.
    dirty_low_percent: Option<u32>,
    /// Low to 100: … and all that it may above this. 60 at creation.
    dirty_high_percent: Option<u32>,
    /// A request that waits longer for space fails; 0, at creation: never.
    no_space_timeout_s: Option<u32>,
    /// Check the CRC of all that a hit reads; wants `data_crc`, else −22. False at creation.
    verify_reads: Option<bool>,
    /// Which sequential streams of reads or writes pass the cache by: none, all, or all while GC has
    /// to make room. `never` at creation.
    seq_cutoff_policy: Option<CutoffName>,
    /// 1 to 4194304: … once they are so long. A stream is what one client reads or writes without a
    /// gap, in order. 1024 at creation.
    seq_cutoff_kib: Option<u32>,
    /// 1 to 100: a block is kept on this miss of it; writes always are. 1 at creation.
    admission: Option<u32>,
    /// Take note of `flush_failed`: writes that had passed the cache by and completed may be lost, and
    /// have been read or written anew. FLUSH does not fail any more.
    #[serde(default)]
    clear_flush_error: bool,
    /// Requests that take at least so many microseconds are kept for `bdev_pmcache_get_slow_ios`;
    /// 0: none. Not kept on media: 10 000 after each load.
    slow_io_us: Option<u64>,
    /// Take `durability` write on memory that has none.
    #[serde(default)]
    force: bool,
}

impl SetOptions {
    fn over(&self, mut options: CacheOptions) -> CacheOptions {
        fn put<T: Copy>(option: &mut T, given: Option<T>) {
            if let Some(value) = given {
                *option = value;
            }
        }
        put(&mut options.gc_percent, self.gc_percent);
        put(&mut options.kset_flush_ms, self.kset_flush_ms);
        put(&mut options.durability, self.durability.map(Into::into));
        put(
            &mut options.writeback_order,
            self.writeback_order.map(Into::into),
        );
        put(&mut options.writeback_depth, self.writeback_depth);
        put(&mut options.writeback_rate_mbps, self.writeback_rate_mbps);
        put(&mut options.writeback_delay_ms, self.writeback_delay_ms);
        put(&mut options.writeback_lag_s, self.writeback_lag_s);
        put(&mut options.dirty_low_percent, self.dirty_low_percent);
        put(&mut options.dirty_high_percent, self.dirty_high_percent);
        put(&mut options.no_space_timeout_s, self.no_space_timeout_s);
        put(&mut options.verify_reads, self.verify_reads);
        put(
            &mut options.seq_cutoff_policy,
            self.seq_cutoff_policy.map(Into::into),
        );
        put(&mut options.seq_cutoff_kib, self.seq_cutoff_kib);
        put(&mut options.admission, self.admission);
        options
    }
}

/// `bdev_pmcache_create`: a cache named `name` on pool `pool`, in front of `backing_bdev`. `size`:
/// bytes of pool space; `block_size`: 512 or 4096, by default the backing's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// Of the cache and of its bdev.
    name: String,
    /// A loaded pool.
    pool: String,
    /// Owned from now on; its whole size is cached.
    backing_bdev: String,
    /// Bytes of pool space, rounded down to whole segments.
    size: u64,
    /// 1 to 128, fixed. If not given, 4 × data reactors, fewer if the size allows no more.
    lanes: Option<u32>,
    /// 512 or 4096, not below the backing's, fixed. If not given, the backing's.
    block_size: Option<u32>,
    /// How requests pass: see `bdev_pmcache_set_mode`. `wb` if not given.
    mode: Option<ModeName>,
    /// When a completed write survives power loss. `flush` at creation.
    durability: Option<DurabilityName>,
    /// What the backing alone is worth. `adaptive` at creation.
    writeback_order: Option<OrderName>,
    /// Keys carry a CRC-32C of their data; fixed. True if not given.
    data_crc: Option<bool>,
    /// Check the CRC of all that a hit reads; wants `data_crc`, else −22. False at creation.
    verify_reads: Option<bool>,
    /// 0 to 90: GC works above this share of used segments. 70 at creation.
    gc_percent: Option<u32>,
    /// 1 to 60000: an open kset older than this is closed. 1000 at creation.
    kset_flush_ms: Option<u32>,
    /// Its identity; a new one if not given.
    uuid: Option<Uuid>,
    /// Take `durability` write on memory that has none.
    #[serde(default)]
    force: bool,
}

/// As many lanes as are of use, and as the segments allow.
fn default_lanes(data_reactors: usize, segments: u64, segment_bytes: u64) -> u32 {
    let wanted = u32::try_from(4 * data_reactors).unwrap_or(128).min(128);
    let fits = |lanes: &u32| u64::from(segments_min(*lanes, segment_bytes)) <= segments;
    (1..=wanted).rev().find(fits).unwrap_or(1)
}

fn create(service: &Service, params: Create) -> Result<String, Error> {
    let pool = service.caches.pool(&params.pool)?.pool;
    let segment_bytes = pool.geometry().segment_bytes;
    let reactors = service.reactors().data_handles().len();
    let lanes = params
        .lanes
        .unwrap_or_else(|| default_lanes(reactors, params.size / segment_bytes, segment_bytes));
    let backing = service.bdevs.get(&params.backing_bdev)?.bdev.info();
    let set = SetOptions {
        durability: params.durability,
        writeback_order: params.writeback_order,
        verify_reads: params.verify_reads,
        gc_percent: params.gc_percent,
        kset_flush_ms: params.kset_flush_ms,
        ..SetOptions::default()
    };
    let mut options = set.over(CacheOptions::default());
    options.mode = params.mode.map_or(Mode::Wb, Into::into);
    options.data_crc = params.data_crc.unwrap_or(true);
    let object = cache_object(&params.name);
    caches::check_durability(&object, &pool, options.durability, params.force)?;
    let (seed, _) = Uuid::new_v4().as_u64_pair();
    let create = CreateCache {
        name: params.name,
        uuid: *uuid_or_new(params.uuid).as_bytes(),
        bytes: params.size,
        lanes,
        block_bytes: params.block_size.unwrap_or(backing.block_size),
        options,
        seed,
    };
    caches::create_cache(service, &params.pool, &params.backing_bdev, &create)?;
    Ok(create.name)
}

/// `bdev_pmcache_unload`: closes ksets and stops; dirty data stay in pmem, unless `flush` asks that
/// there be none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Unload {
    /// The cache.
    name: String,
    /// Refuse, with −16, while a flush is at work, or anything is dirty or lost: the backing alone is complete behind it.
    #[serde(default)]
    flush: bool,
}

fn unload(service: &Service, params: Unload) -> Result<bool, Error> {
    let unloaded = caches::unload_cache(service, &params.name, params.flush);
    or_forget(service, unloaded, &Object::Cache(params.name))
}

/// `bdev_pmcache_destroy`: frees the cache's segments. `discard_dirty` must equal its dirty bytes, if
/// there are dirty or BAD ones.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Destroy {
    /// The cache.
    name: String,
    /// Bytes: must repeat `dirty_bytes` exactly if there are dirty or BAD bytes, or if the cache is
    /// loaded for salvage with something missing, else −16; the text names both.
    discard_dirty: Option<u64>,
}

fn destroy(service: &Service, params: Destroy) -> Result<Value, Error> {
    let (dirty, bad) = caches::destroy_cache(service, &params.name, params.discard_dirty)?;
    Ok(json!({"discarded_bytes": dirty, "bad_bytes": bad}))
}

/// `bdev_pmcache_get`: all, or the one of that name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Get {
    /// Only this one.
    name: Option<String>,
}

fn show_options(options: &CacheOptions) -> Value {
    let order = match options.writeback_order {
        WritebackOrder::Adaptive => OrderName::Adaptive,
        WritebackOrder::Strict => OrderName::Strict,
        WritebackOrder::Relaxed => OrderName::Relaxed,
    };
    let durability = match options.durability {
        Durability::Flush => DurabilityName::Flush,
        Durability::Write => DurabilityName::Write,
    };
    json!({
        "mode": ModeName::from(options.mode),
        "durability": durability,
        "writeback_order": order,
        "data_crc": options.data_crc,
        "verify_reads": options.verify_reads,
        "gc_percent": options.gc_percent,
        "kset_flush_ms": options.kset_flush_ms,
        "writeback_depth": options.writeback_depth,
        "writeback_rate_mbps": options.writeback_rate_mbps,
        "writeback_delay_ms": options.writeback_delay_ms,
        "writeback_lag_s": options.writeback_lag_s,
        "dirty_low_percent": options.dirty_low_percent,
        "dirty_high_percent": options.dirty_high_percent,
        "no_space_timeout_s": options.no_space_timeout_s,
        "seq_cutoff_policy": CutoffName::from(options.seq_cutoff_policy),
        "seq_cutoff_kib": options.seq_cutoff_kib,
        "admission": options.admission,
    })
}

fn position(tail: (u32, u32, u64)) -> Value {
    json!({"segment": tail.0, "offset": tail.1, "sequence": tail.2})
}

/// Which reactor runs each lane, and how busy it has been.
fn lanes(cache: &Cache) -> Value {
    let figures = cache.lane_figures();
    let shown = (0..cache.lanes()).zip(&figures).map(|(lane, figures)| {
        json!({
            "lane": lane,
            "reactor": cache.reactor_of_lane(lane),
            "reads": figures.reads,
            "writes": figures.writes,
            "keys": figures.keys,
        })
    });
    shown.collect()
}

fn show(service: &Service, cache: &Cache) -> Value {
    let status = cache.status();
    let since = status.oldest_dirty_since_ns;
    let lag_ms = if since == 0 {
        0
    } else {
        service.now().0.saturating_sub(since) / 1_000_000
    };
    let mut shown = json!({
        "name": cache.name(),
        "uuid": cache.uuid(),
        "pool": cache.pool().name(),
        "backing_bdev": cache.backing().info().name,
        "state": status.state,
        "lanes": lanes(cache),
        "block_size": cache.info().block_size,
        "size": cache.info().bytes(),
        "segments": {
            "total": status.segments_total,
            "free": status.segments_free,
            "log": status.segments_log,
            "log_reserve": status.segments_reserve,
            "retiring": status.segments_retiring,
            "leaving": status.segments_leaving,
            "bad": status.segments_bad,
            "bad_draining": status.segments_bad_draining,
            "data": status.segments_total.saturating_sub(
                status.segments_free
                    + status.segments_log
                    + status.segments_reserve
                    + status.segments_retiring
                    + status.segments_leaving
                    + (status.segments_bad - status.segments_bad_draining)
            ),
        },
        "dirty_bytes": status.dirty_bytes,
        "bad_bytes": cache.bad_bytes(),
        "key_head": position((status.key_head.0, status.key_head.1, status.key_head_sequence)),
        "durable_sequence": status.durable_sequence,
        "dirty_tail": position(status.dirty_tail),
        "key_tail": position(status.key_tail),
        "backing_between_boundaries": status.between_boundaries,
        "flush_failed": status.flush_failed,
        "epochs_pending": status.epochs_pending,
        "writeback_lag_ms": lag_ms,
        "waiting_lanes": status.waiting_lanes,
        "slow_io_us": cache.slow_io_us(),
        "salvage": show_salvage(cache),
        "resize": show_resize(cache),
    });
    if let (Some(shown), Value::Object(options)) =
        (shown.as_object_mut(), show_options(&cache.options()))
    {
        shown.extend(options);
    }
    shown
}

/// A cache that the configuration has and the service has not.
fn show_missing(cache: &MissingCache) -> Value {
    json!({
        "name": cache.text("name"),
        "uuid": cache.text("uuid"),
        "pool": cache.text("pool"),
        "backing_bdev": cache.text("backing_bdev"),
        "state": if cache.waits { "waiting" } else { "failed" },
        "reason": cache.reason,
    })
}

fn get(service: &Service, params: Get) -> Result<Value, Error> {
    let is_wanted = |name: Option<&str>| params.name.is_none() || params.name.as_deref() == name;
    let caches = caches::all(service).into_iter();
    let found = caches.filter(|cache| is_wanted(Some(cache.name())));
    let mut shown: Vec<Value> = found.map(|cache| show(service, &cache)).collect();
    let missing = service.unresolved.caches(service).into_iter();
    let missing = missing.filter(|cache| is_wanted(cache.text("name").as_deref()));
    shown.extend(missing.map(|cache| show_missing(&cache)));
    if shown.is_empty() && params.name.is_some() {
        return Err(no_such_device());
    }
    Ok(Value::Array(shown))
}

fn set_options(service: &Service, params: SetOptions) -> Result<bool, Error> {
    let cache = caches::find(service, &params.name)?;
    let object = cache_object(&params.name);
    let before = cache.options();
    let options = params.over(before.clone());
    let weaker = before.durability == Durability::Write && options.durability == Durability::Flush;
    if weaker && !service.bdevs.get(&params.name)?.users.is_empty() {
        let why = "its durability can't be weakened while it is exported".to_owned();
        return Err(cache_error(&object, &CacheError::Busy(why)));
    }
    caches::check_durability(&object, &cache.pool(), options.durability, params.force)?;
    cache
        .set_options(options)
        .map_err(|error| cache_error(&object, &error))?;
    if params.clear_flush_error {
        cache.clear_flush_failure();
    }
    if let Some(slow_io_us) = params.slow_io_us {
        cache.set_slow_io_us(slow_io_us);
    }
    Ok(true)
}

fn flush_start(service: &Service, params: Name) -> Result<bool, Error> {
    let cache = caches::find(service, &params.name)?;
    if cache.is_salvaged() {
        let object = cache_object(&params.name);
        return Err(cache_error(&object, &CacheError::Salvaged));
    }
    if cache.is_flushing() {
        return Err(Error::errno(Errno::ALREADY.raw_os_error()));
    }
    cache.flush_start();
    Ok(true)
}

fn flush_status(service: &Service, params: Name) -> Result<Value, Error> {
    let cache = caches::find(service, &params.name)?;
    let in_progress = cache.is_flushing();
    let degraded = matches!(cache.status().state, "degraded" | "read_only");
    let io_error = i64::from(Errno::IO.raw_os_error());
    Ok(json!({
        "in_progress": in_progress,
        "remaining_bytes": cache.dirty_bytes(),
        "rate_bps": cache.writeback_rate_bps(),
        "status": if degraded { -io_error } else { 0 },
    }))
}

fn flush_stop(service: &Service, params: Name) -> Result<bool, Error> {
    caches::find(service, &params.name)?.flush_stop();
    Ok(true)
}
