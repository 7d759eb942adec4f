//! Methods about pools.

use super::{Name, uuid_or_new};
use crate::app::caches::{self, PoolEntry};
use crate::app::service::Service;
use crate::cache::{Pool, PoolFormat};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("pool_create", create).about(
        "Formats a pmem bdev and loads the pool.",
        "`name`, `uuid`, `segments`. −17 if the medium holds a pool or the name is \
             loaded, −16 if it holds anything else or is in use, −22.",
    );
    registry.method("pool_load", load).about(
        "Loads the pool on a pmem bdev; its caches are loaded by `bdev_pmcache_load`. A \
             pool that is loaded in this mode is answered as loaded.",
        "`name`, `uuid`, `caches` (names). −2 without a pool, −117, −17 if a pool of that \
             name is loaded, −16 if it is loaded in another mode, or if the operating system keeps pages of an `msync` medium in \
             memory: somebody else has it open.",
    );
    registry
        .method("pool_unload", unload)
        .about("Closes a pool.", "True. −16 while a cache of it is loaded.");
    registry.method("pool_get", get).about(
        "All pools, or one.",
        "A list of `name`, `uuid`, `bdev_name`, `segment_size`, `segments` {`total`, \
             `free` (of no cache; bad ones among them are not given out)}, `caches` (names), \
             `state`: `loaded`, `read_only` (loaded so), or `failed`: a barrier of its medium has \
             failed, and all its caches are read-only.",
    );
}

/// Bytes of a segment if nothing is said.
const SEGMENT_BYTES: u64 = 16 << 20;

/// `pool_create`: formats the pmem bdev `bdev_name`. `segment_size` in bytes, a power of two from
/// 256 KiB to 64 MiB. Refuses what is not empty, unless `force`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// Kept on media; as a bdev's name.
    name: String,
    /// A pmem bdev.
    bdev_name: String,
    /// Bytes, a power of two from 256 KiB to 64 MiB; 16 MiB if not given.
    segment_size: Option<u64>,
    /// Its identity; a new one if not given.
    uuid: Option<Uuid>,
    /// Erase what is there.
    #[serde(default)]
    force: bool,
}

fn names(entry: &PoolEntry) -> Vec<String> {
    entry
        .pool
        .caches()
        .iter()
        .map(|cache| cache.name())
        .collect()
}

fn create(service: &Service, params: Create) -> Result<Value, Error> {
    let uuid = uuid_or_new(params.uuid);
    let format = PoolFormat {
        name: params.name,
        uuid: *uuid.as_bytes(),
        segment_bytes: params.segment_size.unwrap_or(SEGMENT_BYTES),
        force: params.force,
    };
    let entry = caches::create_pool(service, &params.bdev_name, &format)?;
    Ok(json!({
        "name": entry.pool.name(),
        "uuid": uuid,
        "segments": entry.pool.geometry().segments,
    }))
}

/// `pool_load`: the pool on the pmem bdev `bdev_name`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Load {
    /// A pmem bdev.
    bdev_name: String,
    /// `read_only` and `salvage`: nothing on the medium and in the staging file is changed, and its caches
    /// are loaded with `salvage`.
    #[serde(default)]
    mode: LoadMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LoadMode {
    #[default]
    Auto,
    ReadOnly,
    Salvage,
}

fn load(service: &Service, params: Load) -> Result<Value, Error> {
    let read_only = params.mode != LoadMode::Auto;
    let entry = caches::load_pool(service, &params.bdev_name, read_only)?;
    Ok(json!({
        "name": entry.pool.name(),
        "uuid": Uuid::from_bytes(entry.pool.uuid()),
        "caches": names(&entry),
    }))
}

fn unload(service: &Service, params: Name) -> Result<bool, Error> {
    caches::unload_pool(service, &params.name)?;
    Ok(true)
}

fn state(pool: &Pool) -> &'static str {
    if pool.has_failed() {
        "failed"
    } else if pool.is_read_only() {
        "read_only"
    } else {
        "loaded"
    }
}

/// `pool_get`: all, or the one of that name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Get {
    /// Only this one.
    name: Option<String>,
}

fn get(service: &Service, params: Get) -> Result<Value, Error> {
    let entries = match &params.name {
        None => service.caches.pools(),
        Some(name) => vec![service.caches.pool(name)?],
    };
    let shown = entries.iter().map(|entry| {
        let geometry = entry.pool.geometry();
        json!({
            "name": entry.pool.name(),
            "uuid": Uuid::from_bytes(entry.pool.uuid()),
            "bdev_name": entry.bdev_name,
            "segment_size": geometry.segment_bytes,
            "segments": {"total": geometry.segments, "free": entry.pool.free_segments()},
            "caches": names(entry),
            "state": state(&entry.pool),
        })
    });
    Ok(Value::Array(shown.collect()))
}
