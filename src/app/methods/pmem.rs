//! Methods about persistent memory.

use super::Name;
use crate::app::bdevs::{Kind, bdev_error, no_such_device};
use crate::app::config::Recipe;
use crate::app::service::Service;
use crate::bdev::Bdev;
use crate::bdev::pmem::{PersistenceWish, PmemBdev, PmemConfig, PmemDescription};
use crate::cache::Pool;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmem_create", create);
    registry.method("bdev_pmem_delete", delete);
    registry.method("bdev_pmem_get_devices", get_devices);
}

/// `bdev_pmem_create`: the memory at `path`, a DAX device, a file or `anon:`. `size` in bytes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    name: String,
    path: PathBuf,
    size: Option<u64>,
    #[serde(default)]
    create_file: bool,
    block_size: Option<u32>,
    #[serde(default)]
    persistence: PersistenceWish,
    uuid: Option<Uuid>,
}

fn create(service: &Service, params: Create) -> Result<String, Error> {
    let place = service.bdevs.reserve(&params.name)?;
    let mut config = PmemConfig::new(params.name, params.path);
    config.size = params.size;
    config.create_file = params.create_file;
    config.block_size = params.block_size.unwrap_or(config.block_size);
    config.persistence = params.persistence;
    config.uuid = params.uuid;
    let recipe = pmem_recipe(&config);
    let bdev = PmemBdev::open(config).map_err(|error| bdev_error(&error))?;
    let specific = json!({"pmem": {"path": bdev.path(), "persistence": bdev.persistence()}});
    let kind = Kind::Pmem(Arc::clone(&bdev));
    Ok(place.fill(kind, bdev, specific, None, recipe))
}

/// How a `bdev_pmem_create` is repeated: of what exists by then, unless it is anonymous memory. An
/// identity that was found is not written down.
pub(in crate::app) fn pmem_recipe(config: &PmemConfig) -> Recipe {
    let params = json!({
        "name": config.name,
        "path": config.path.to_string_lossy(),
        "size": config.size.filter(|_| config.is_anonymous()),
        "block_size": config.block_size,
        "persistence": config.persistence,
        "uuid": config.uuid,
    });
    Recipe::new("bdev_pmem_create", params)
}

fn delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_pmem = |kind: &Kind| matches!(kind, Kind::Pmem(_));
    service.bdevs.remove(&params.name, is_pmem)?;
    Ok(true)
}

/// `bdev_pmem_get_devices`: all, or the one of that name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetDevices {
    name: Option<String>,
}

/// A device, and whether it holds a pool.
#[derive(Debug, Serialize)]
struct Device {
    #[serde(flatten)]
    description: PmemDescription,
    formatted: bool,
}

fn describe(bdev: &PmemBdev) -> Device {
    // A medium that can't be read there holds no pool that could be opened.
    let formatted = bdev
        .pmem()
        .is_some_and(|pmem| Pool::is_formatted(&*pmem).unwrap_or(false));
    Device {
        description: bdev.describe(),
        formatted,
    }
}

fn get_devices(service: &Service, params: GetDevices) -> Result<Vec<Device>, Error> {
    let entries = match &params.name {
        None => service.bdevs.list(),
        Some(name) => vec![service.bdevs.get(name)?],
    };
    let found: Vec<Device> = entries
        .iter()
        .filter_map(|entry| match &entry.kind {
            Kind::Pmem(bdev) => Some(describe(bdev)),
            _ => None,
        })
        .collect();
    if params.name.is_some() && found.is_empty() {
        return Err(no_such_device());
    }
    Ok(found)
}
