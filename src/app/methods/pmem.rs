//! Methods about persistent memory.

use super::{Name, remove_bdev};
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
    registry.method("bdev_pmem_create", create).about(
        "Persistent memory as a bdev. Locks the file, fills its holes, maps it.",
        "The name. −16 if it is locked for more than 5 s, −22 for a size that does not \
             fit, −95 for what can't be a medium or a persistence that it does not have.",
    );
    registry.method("bdev_pmem_delete", delete).about(
        "Closes it; the medium is untouched.",
        "True. −16 while a pool is on it.",
    );
    registry.method("bdev_pmem_get_devices", get_devices).about(
        "All, or one.",
        "A list of `name`, `path`, `kind` (`devdax`, `fsdax`, `file`, `memory`), `size`, \
             `persistence` (`dax`, `msync`, `volatile`), `flush_method` (`clwb`, \
             `clflushopt`, `clflush`, `msync`, `none`), `page_size` (of most pages mapped \
             when it was opened), `lost_bytes` (of pages that could not be accessed, as far \
             as somebody wanted them), `uuid`, `formatted` (it holds a pool, good or \
             damaged).",
    );
}

/// `bdev_pmem_create`: the memory at `path`, a DAX device, a file or `anon:`. `size` in bytes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// Its name.
    name: String,
    /// A DAX device, a file, or `anon:` for anonymous memory.
    path: PathBuf,
    /// Bytes, of a new file or anonymous memory; of what exists it must be the size. If not given,
    /// what is there.
    size: Option<u64>,
    /// Create the file (mode 0600), or give an empty one its size.
    #[serde(default)]
    create_file: bool,
    /// 512 (if not given) or 4096 bytes.
    block_size: Option<u32>,
    /// What a barrier shall mean; more than the medium has is refused.
    #[serde(default)]
    persistence: PersistenceWish,
    /// Its identity; if not given, derived from the absolute path.
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
    remove_bdev(service, &params.name, is_pmem)
}

/// `bdev_pmem_get_devices`: all, or the one of that name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetDevices {
    /// Only this one.
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
