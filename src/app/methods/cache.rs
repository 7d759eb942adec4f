//! Methods about caches.

use super::cache_load::show_salvage;
use super::{Name, uuid_or_new};
use crate::app::bdevs::no_such_device;
use crate::app::caches::{self, cache_error, cache_object};
use crate::app::config::MissingCache;
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

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_create", create);
    registry.method("bdev_pmcache_unload", unload);
    registry.method("bdev_pmcache_destroy", destroy);
    registry.method("bdev_pmcache_get", get);
    registry.method("bdev_pmcache_set_options", set_options);
    registry.method("bdev_pmcache_flush_start", flush_start);
    registry.method("bdev_pmcache_flush_status", flush_status);
    registry.method("bdev_pmcache_flush_stop", flush_stop);
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ModeName {
    Wb,
    Wt,
    Wa,
    Wo,
    Pt,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Wb => Self::Wb,
            ModeName::Wt => Self::Wt,
            ModeName::Wa => Self::Wa,
            ModeName::Wo => Self::Wo,
            ModeName::Pt => Self::Pt,
        }
    }
}

impl From<Mode> for ModeName {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Wb => Self::Wb,
            Mode::Wt => Self::Wt,
            Mode::Wa => Self::Wa,
            Mode::Wo => Self::Wo,
            Mode::Pt => Self::Pt,
        }
    }
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
    name: String,
    gc_percent: Option<u32>,
    kset_flush_ms: Option<u32>,
    durability: Option<DurabilityName>,
    writeback_order: Option<OrderName>,
    writeback_depth: Option<u32>,
    writeback_rate_mbps: Option<u32>,
    writeback_delay_ms: Option<u32>,
    writeback_lag_s: Option<u32>,
    dirty_low_percent: Option<u32>,
    dirty_high_percent: Option<u32>,
    no_space_timeout_s: Option<u32>,
    verify_reads: Option<bool>,
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
        options
    }
}

/// `bdev_pmcache_create`: a cache named `name` on pool `pool`, in front of `backing_bdev`. `size`:
/// bytes of pool space; `block_size`: 512 or 4096, by default the backing's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    name: String,
    pool: String,
    backing_bdev: String,
    size: u64,
    lanes: Option<u32>,
    block_size: Option<u32>,
    mode: Option<ModeName>,
    durability: Option<DurabilityName>,
    writeback_order: Option<OrderName>,
    data_crc: Option<bool>,
    verify_reads: Option<bool>,
    gc_percent: Option<u32>,
    kset_flush_ms: Option<u32>,
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
    name: String,
    #[serde(default)]
    flush: bool,
}

fn unload(service: &Service, params: Unload) -> Result<bool, Error> {
    caches::unload_cache(service, &params.name, params.flush)?;
    Ok(true)
}

/// `bdev_pmcache_destroy`: frees the cache's segments. `discard_dirty` must equal its dirty bytes, if
/// there are dirty or BAD ones.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Destroy {
    name: String,
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
            "bad": status.segments_bad,
            "bad_draining": status.segments_bad_draining,
            "data": status.segments_total.saturating_sub(
                status.segments_free
                    + status.segments_log
                    + status.segments_reserve
                    + status.segments_retiring
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
        "epochs_pending": status.epochs_pending,
        "writeback_lag_ms": lag_ms,
        "waiting_lanes": status.waiting_lanes,
        "salvage": show_salvage(cache),
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
