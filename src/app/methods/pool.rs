//! Methods about pools.

use super::uuid_or_new;
use crate::app::pools::{PoolEntry, uuid_text};
use crate::app::service::Service;
use crate::bdev::check_name;
use crate::cache::PoolFormat;
use rpc::{Error, Registry};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("pool_create", create);
    registry.method("pool_load", load);
    registry.method("pool_unload", unload);
    registry.method("pool_get", get);
}

/// Segments of a pool if nothing else is said, in bytes.
const SEGMENT_BYTES: u64 = 16 << 20;

/// `pool_create`: formats the pmem bdev `bdev_name`. `segment_size` in bytes; what is there is
/// overwritten only with `force`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    name: String,
    bdev_name: String,
    segment_size: Option<u64>,
    uuid: Option<Uuid>,
    #[serde(default)]
    force: bool,
}

fn check_pool_name(name: &str) -> Result<(), Error> {
    check_name(name).map_err(|error| crate::app::bdevs::bdev_error(&error))
}

fn create(service: &Service, params: Create) -> Result<Value, Error> {
    check_pool_name(&params.name)?;
    let format = PoolFormat {
        uuid: *uuid_or_new(params.uuid).as_bytes(),
        segment_bytes: params.segment_size.unwrap_or(SEGMENT_BYTES),
        force: params.force,
    };
    let pools = &service.pools;
    let entry = pools.open(
        &service.bdevs,
        &params.name,
        &params.bdev_name,
        Some(&format),
    )?;
    Ok(json!({
        "name": entry.name,
        "uuid": uuid_text(entry.pool.uuid()),
        "segments": entry.pool.geometry().segments,
    }))
}

/// `pool_load`: opens the pool on the pmem bdev `bdev_name`, called `name` (by default as its bdev).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    bdev_name: String,
    name: Option<String>,
    #[serde(default)]
    mode: LoadMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LoadMode {
    #[default]
    Auto,
    ReadOnly,
    Salvage,
}

fn load(service: &Service, params: Load) -> Result<Value, Error> {
    if params.mode != LoadMode::Auto {
        return Err(Error::errno(Errno::OPNOTSUPP.raw_os_error()));
    }
    let name = params.name.unwrap_or_else(|| params.bdev_name.clone());
    check_pool_name(&name)?;
    let pools = &service.pools;
    let entry = pools.open(&service.bdevs, &name, &params.bdev_name, None)?;
    Ok(json!({
        "name": entry.name,
        "uuid": uuid_text(entry.pool.uuid()),
        "caches": cache_names(&entry),
    }))
}

fn cache_names(entry: &PoolEntry) -> Vec<String> {
    let caches = entry.pool.caches();
    caches.iter().map(|cache| cache.name()).collect()
}

/// `pool_unload`: dirty data stay in the pool.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unload {
    name: String,
}

fn unload(service: &Service, params: Unload) -> Result<bool, Error> {
    service.pools.close(&service.bdevs, &params.name)?;
    Ok(true)
}

/// `pool_get`: all pools, or the one of that name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Get {
    name: Option<String>,
}

fn get(service: &Service, params: Get) -> Result<Vec<Value>, Error> {
    let found = match params.name {
        None => service.pools.list(),
        Some(name) => vec![service.pools.get(&name)?],
    };
    Ok(found.iter().map(describe).collect())
}

fn describe(entry: &PoolEntry) -> Value {
    let pool = &entry.pool;
    json!({
        "name": entry.name,
        "uuid": uuid_text(pool.uuid()),
        "bdev_name": entry.bdev_name,
        "segment_size": pool.geometry().segment_bytes,
        "segments": {"total": pool.geometry().segments, "free": pool.free_segments()},
        "caches": cache_names(entry),
        "persistence": pool.pmem().persistence(),
        "state": if pool.has_loaded() { "in_use" } else { "idle" },
    })
}
