//! Methods about caches.

use super::Name;
use super::cache_options::{self, Changes, DurabilityName, ModeName, OrderName};
use super::uuid_or_new;
use crate::app::pools::{
    self, cache_error, cache_object, check_durability, load_cache, unload_cache,
};
use crate::app::service::{Service, random_seed};
use crate::bdev::{Bdev, check_name};
use crate::cache::{Cache, CacheOptions, CreateCache, LANES_MAX, Pool, segments_min};
use rpc::{Error, Registry};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_create", create);
    registry.method("bdev_pmcache_load", load);
    registry.method("bdev_pmcache_unload", unload);
    registry.method("bdev_pmcache_destroy", destroy);
    registry.method("bdev_pmcache_get", get);
    registry.method("bdev_pmcache_set_options", set_options);
    registry.method("bdev_pmcache_flush_start", flush_start);
    registry.method("bdev_pmcache_flush_status", flush_status);
    registry.method("bdev_pmcache_flush_stop", flush_stop);
}

/// `bdev_pmcache_create`: a cache in `pool` in front of `backing_bdev`. `size`: bytes of pool space,
/// rounded down to whole segments. `lanes`: four for each data reactor, as far as they fit, if not
/// given. `block_size`: the backing's if not given. `force`: take `durability` write on memory that
/// has none.
#[derive(Debug, Deserialize)]
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
    #[serde(default)]
    force: bool,
}

impl Create {
    fn options(&self) -> CacheOptions {
        let mut options = CacheOptions::default();
        let changes = Changes {
            durability: self.durability,
            writeback_order: self.writeback_order,
            verify_reads: self.verify_reads,
            gc_percent: self.gc_percent,
            kset_flush_ms: self.kset_flush_ms,
            ..Changes::default()
        };
        changes.apply(&mut options);
        options.mode = self.mode.map_or(options.mode, Into::into);
        options.data_crc = self.data_crc.unwrap_or(options.data_crc);
        options
    }
}

/// Four lanes for each data reactor, as far as `bytes` of the pool hold what they need.
pub(in crate::app) fn default_lanes(pool: &Pool, bytes: u64, data_reactors: usize) -> u32 {
    let segment_bytes = pool.geometry().segment_bytes;
    let wanted = u32::try_from(data_reactors.saturating_mul(4)).unwrap_or(LANES_MAX);
    let fits =
        |lanes: &u32| u64::from(segments_min(*lanes, segment_bytes)) <= bytes / segment_bytes;
    let wanted = wanted.clamp(1, LANES_MAX);
    (1..=wanted).rev().find(fits).unwrap_or(1)
}

fn create(service: &Service, params: Create) -> Result<String, Error> {
    check_name(&params.name).map_err(|error| crate::app::bdevs::bdev_error(&error))?;
    let options = params.options();
    let pool = service.pools.get(&params.pool)?.pool;
    check_durability(&params.name, &pool, options.durability, params.force)?;
    let backing = service.bdevs.get(&params.backing_bdev)?.bdev.info();
    let reactors = service.runtime().data.len();
    let create = CreateCache {
        uuid: *uuid_or_new(params.uuid).as_bytes(),
        bytes: params.size,
        lanes: match params.lanes {
            Some(lanes) => lanes,
            None => default_lanes(&pool, params.size, reactors),
        },
        block_bytes: params.block_size.unwrap_or(backing.block_size),
        options,
        seed: random_seed(),
        name: params.name,
    };
    let (bdevs, runtime) = (&service.bdevs, service.runtime());
    pools::create_cache(bdevs, runtime, &pool, &params.backing_bdev, &create)?;
    Ok(create.name)
}

/// `bdev_pmcache_load`: starts a cache of `pool`, by `name` or `uuid`, in front of the bdev that
/// it was last in front of, or of `backing_bdev`, which must be the recorded device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    pool: String,
    name: Option<String>,
    uuid: Option<Uuid>,
    backing_bdev: Option<String>,
}

fn load(service: &Service, params: Load) -> Result<Value, Error> {
    let pool = service.pools.get(&params.pool)?.pool;
    if params.name.is_none() && params.uuid.is_none() {
        return Err(Error::invalid_params(
            "Invalid parameters: name or uuid is required",
        ));
    }
    let caches = pool.caches();
    let found = caches.iter().find(|entry| {
        let by_name = params
            .name
            .as_ref()
            .is_none_or(|name| *name == entry.name());
        by_name
            && params
                .uuid
                .is_none_or(|uuid| *uuid.as_bytes() == entry.uuid)
    });
    let entry = found.ok_or_else(crate::app::bdevs::no_such_device)?;
    let (name, uuid) = (entry.name(), Uuid::from_bytes(entry.uuid));
    if let Ok(running) = service.bdevs.cache(&name)
        && running.uuid() == uuid
    {
        return Ok(describe_load(&running));
    }
    let backing = params.backing_bdev.unwrap_or_else(|| entry.backing_name());
    let runtime = service.runtime();
    let cache = load_cache(&service.bdevs, runtime, &pool, &name, &backing)?;
    if cache.replay_report().staging_missing {
        let reason = "its staging file is gone: acknowledged writes of the last kset_flush_ms before \
                      the process died may be lost";
        service.degrade(&cache_object(&name), reason.to_owned());
    }
    Ok(describe_load(&cache))
}

fn describe_load(cache: &Cache) -> Value {
    json!({
        "name": cache.name(),
        "uuid": cache.uuid(),
        "replay": describe_replay(cache),
    })
}

/// What the load found.
pub(super) fn describe_replay(cache: &Cache) -> Value {
    let report = cache.replay_report();
    json!({
        "ksets": report.ksets,
        "keys": report.keys,
        "stale_keys": report.stale_keys,
        "staged_keys": report.staged_keys,
        "dirty_bytes": report.dirty_bytes,
        "elapsed_us": report.elapsed_us,
        "staging_missing": report.staging_missing,
    })
}

/// `bdev_pmcache_unload`: dirty data stay in the pool; with `flush` the backing must be complete.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unload {
    name: String,
    #[serde(default)]
    flush: bool,
}

fn unload(service: &Service, params: Unload) -> Result<bool, Error> {
    let cache = service.bdevs.cache(&params.name)?;
    if params.flush && !service.flushes.is_complete(&cache) {
        return Err(Error::errno_with(
            Errno::BUSY.raw_os_error(),
            format!(
                "{}: no flush_start has finished since the last write",
                cache_object(&params.name)
            ),
        ));
    }
    let uuid = cache.uuid();
    drop(cache);
    unload_cache(&service.bdevs, &params.name)?;
    service.flushes.forget(uuid);
    Ok(true)
}

/// `bdev_pmcache_destroy`: with dirty data only if `discard_dirty` repeats how many bytes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Destroy {
    name: String,
    discard_dirty: Option<u64>,
}

fn destroy(service: &Service, params: Destroy) -> Result<Value, Error> {
    let object = cache_object(&params.name);
    let cache = service.bdevs.cache(&params.name)?;
    let dirty_bytes = cache.dirty_bytes();
    if dirty_bytes > 0 && params.discard_dirty != Some(dirty_bytes) {
        let error = crate::cache::CacheError::Dirty { dirty_bytes };
        return Err(cache_error(&object, &error));
    }
    let (pool, uuid) = (cache.pool(), cache.uuid());
    drop(cache);
    unload_cache(&service.bdevs, &params.name)?;
    service.flushes.forget(uuid);
    // Nobody could write since: it was in use by nobody when it stopped.
    pool.destroy_cache(&params.name, dirty_bytes, params.discard_dirty)
        .map_err(|error| cache_error(&object, &error))?;
    Ok(json!({"discarded_bytes": dirty_bytes}))
}

/// `bdev_pmcache_get`: all running caches, or the one of that name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Get {
    name: Option<String>,
}

fn get(service: &Service, params: Get) -> Result<Vec<Value>, Error> {
    let caches = match params.name {
        None => service.bdevs.caches(),
        Some(name) => vec![service.bdevs.cache(&name)?],
    };
    Ok(caches
        .iter()
        .map(|cache| describe(service, cache))
        .collect())
}

fn describe(service: &Service, cache: &Arc<Cache>) -> Value {
    let status = cache.status();
    let pool_uuid = cache.pool().uuid();
    let pools = service.pools.list();
    let pool = pools.iter().find(|entry| entry.pool.uuid() == pool_uuid);
    let position = |(segment, offset, sequence): (u32, u32, u64)| json!({"segment": segment, "offset": offset, "sequence": sequence});
    let lag_ns = match status.oldest_dirty_since_ns {
        0 => 0,
        since => service.now().0.saturating_sub(since),
    };
    let lanes: Vec<Value> = (0..cache.lanes())
        .map(|lane| json!({"lane": lane, "reactor": lane as usize % service.runtime().data.len()}))
        .collect();
    let mut value = json!({
        "name": cache.name(),
        "uuid": cache.uuid(),
        "pool": pool.map(|entry| &entry.name),
        "backing_bdev": cache.backing().info().name,
        "state": status.state,
        "block_size": cache.info().block_size,
        "size": cache.info().bytes(),
        "segments": {
            "total": status.segments_total,
            "data": status.segments_total.saturating_sub(
                status.segments_free + status.segments_log + status.segments_reserve
            ),
            "log": status.segments_log,
            "reserve": status.segments_reserve,
            "free": status.segments_free,
        },
        "dirty_bytes": status.dirty_bytes,
        "key_head": {"sequence": status.key_head_sequence},
        "durable_sequence": status.durable_sequence,
        "dirty_tail": position(status.dirty_tail),
        "key_tail": position(status.key_tail),
        "between_boundaries": status.between_boundaries,
        "epochs_pending": status.epochs_pending,
        "lag_ms": lag_ns / 1_000_000,
        "waiting_lanes": status.waiting_lanes,
        "lanes": lanes,
    });
    if let Some(members) = value.as_object_mut() {
        members.extend(cache_options::describe(&cache.options()));
    }
    value
}

/// `bdev_pmcache_set_options`: all or nothing, kept on media.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    name: String,
    durability: Option<DurabilityName>,
    writeback_order: Option<OrderName>,
    verify_reads: Option<bool>,
    gc_percent: Option<u32>,
    kset_flush_ms: Option<u32>,
    writeback_depth: Option<u32>,
    writeback_rate_mbps: Option<u32>,
    writeback_delay_ms: Option<u32>,
    writeback_lag_s: Option<u32>,
    dirty_low_percent: Option<u32>,
    dirty_high_percent: Option<u32>,
    no_space_timeout_s: Option<u32>,
    seq_cutoff_policy: Option<String>,
    seq_cutoff_kib: Option<u32>,
    admission: Option<String>,
    slow_io_us: Option<u32>,
    #[serde(default)]
    force: bool,
}

fn set_options(service: &Service, params: SetOptions) -> Result<bool, Error> {
    let cache = service.bdevs.cache(&params.name)?;
    cache_options::refuse_later("seq_cutoff_policy", params.seq_cutoff_policy.is_some())?;
    cache_options::refuse_later("seq_cutoff_kib", params.seq_cutoff_kib.is_some())?;
    cache_options::refuse_later("admission", params.admission.is_some())?;
    cache_options::refuse_later("slow_io_us", params.slow_io_us.is_some())?;
    let mut options = cache.options();
    let changes = Changes {
        durability: params.durability,
        writeback_order: params.writeback_order,
        verify_reads: params.verify_reads,
        gc_percent: params.gc_percent,
        kset_flush_ms: params.kset_flush_ms,
        writeback_depth: params.writeback_depth,
        writeback_rate_mbps: params.writeback_rate_mbps,
        writeback_delay_ms: params.writeback_delay_ms,
        writeback_lag_s: params.writeback_lag_s,
        dirty_low_percent: params.dirty_low_percent,
        dirty_high_percent: params.dirty_high_percent,
        no_space_timeout_s: params.no_space_timeout_s,
    };
    changes.apply(&mut options);
    check_durability(
        &params.name,
        &cache.pool(),
        options.durability,
        params.force,
    )?;
    let set = cache.set_options(options);
    set.map_err(|error| cache_error(&cache_object(&params.name), &error))?;
    Ok(true)
}

fn flush_start(service: &Service, params: Name) -> Result<bool, Error> {
    let cache = service.bdevs.cache(&params.name)?;
    service.flushes.start(&cache, service.now());
    Ok(true)
}

fn flush_status(service: &Service, params: Name) -> Result<Value, Error> {
    let cache = service.bdevs.cache(&params.name)?;
    let progress = service.flushes.progress(&cache, service.now());
    let mut value = json!({
        "in_progress": progress.in_progress,
        "remaining_bytes": progress.remaining_bytes,
        "rate_bps": progress.rate_bps,
    });
    if !progress.in_progress
        && let Some(members) = value.as_object_mut()
    {
        members.insert("status".to_owned(), 0.into());
    }
    Ok(value)
}

fn flush_stop(service: &Service, params: Name) -> Result<bool, Error> {
    service.bdevs.cache(&params.name)?.flush_stop();
    Ok(true)
}
