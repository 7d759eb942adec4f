//! Methods about bdevs in general, and those that make the kinds that stand on nothing.

use super::filters::describe_delay;
use super::{Name, qos, refuse_unless_default, remove_bdev, uuid_or_new};
use crate::app::bdevs::{Entry, Kind, bdev_error};
use crate::app::config::Recipe;
use crate::app::service::Service;
use crate::bdev::{Bdev, BdevInfo, MallocBdev, MallocConfig, NullBdev, NullConfig};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.bdev_method("bdev_get_bdevs", get_bdevs).about(
        "All bdevs, or one.",
        "A list, by name, in SPDK's shape: `name`, `product_name`, `block_size`, \
             `num_blocks`, `uuid`, `assigned_rate_limits`, `claimed` (it has an owner), \
             `supported_io_types`, `driver_specific`, and constants. −19 if it does not appear.",
    );
    registry
        .bdev_method("bdev_malloc_create", malloc_create)
        .about(
            "A RAM disk, gone with the process. Of SPDK's parameters that it does not do, it \
             takes the defaults (`physical_block_size`: 0 or the block size), and refuses \
             (−32602) anything else.",
            "The name.",
        );
    registry
        .bdev_method("bdev_malloc_delete", malloc_delete)
        .about(
            "Deletes a RAM disk.",
            "True. −19 if it is no malloc bdev, −16 while in use.",
        );
    registry.bdev_method("bdev_null_create", null_create).about(
        "Takes every write and reads as zeroes. Of SPDK's others, the metadata ones must \
             be 0 or false, `physical_block_size` 0 or the block size, and `preferred_…`, \
             `optimal_write_size` 0 or 1.",
        "The name.",
    );
    registry.bdev_method("bdev_null_delete", null_delete).about(
        "As `bdev_malloc_delete`.",
        "True. −19 if it is no null bdev, −16 while in use.",
    );
}

/// `bdev_get_bdevs`: all, or one, for which it waits up to `timeout` milliseconds.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetBdevs {
    /// Only this one.
    name: Option<String>,
    /// How long to wait for it, in milliseconds.
    #[serde(default)]
    timeout: u64,
}

fn get_bdevs(service: &Service, params: GetBdevs) -> Result<Vec<Value>, Error> {
    let found = match params.name {
        None => service.bdevs.list(),
        Some(name) => vec![
            service
                .bdevs
                .wait(&name, Duration::from_millis(params.timeout))?,
        ],
    };
    Ok(found.iter().map(describe).collect())
}

fn describe(entry: &Entry) -> Value {
    let info = entry.bdev.info();
    let writable = !info.read_only;
    let specific = match &entry.kind {
        Kind::Delay(bdev) => describe_delay(bdev),
        _ => entry.driver_specific.clone(),
    };
    let mut value = json!({
        "name": info.name,
        "aliases": [],
        "product_name": info.product_name,
        "block_size": info.block_size,
        "num_blocks": info.blocks,
        "preferred_write_alignment": 1,
        "preferred_write_granularity": 1,
        "optimal_write_size": 1,
        "preferred_unmap_alignment": 1,
        "preferred_unmap_granularity": 1,
        "uuid": info.uuid,
        "assigned_rate_limits": qos::describe(entry.meter.limits()),
        "claimed": entry.owner.is_some(),
        "zoned": false,
        "supported_io_types": {
            "read": true,
            "write": writable,
            "unmap": writable && info.supports.discard,
            "flush": true,
            "reset": false,
            "nvme_admin": false,
            "nvme_io": false,
            "nvme_io_md": false,
            "write_zeroes": writable,
            "zcopy": false,
            "get_zone_info": false,
            "zone_management": false,
            "zone_append": false,
            "compare": false,
            "compare_and_write": false,
            "abort": false,
            "seek_hole": false,
            "seek_data": false,
            "copy": false,
            "nvme_iov_md": false,
            "nvme_nssr": false,
            "write_uncorrectable": false,
        },
        "driver_specific": specific,
    });
    if entry.owner.is_some()
        && let Some(members) = value.as_object_mut()
    {
        members.insert("claim_type".to_owned(), "exclusive_write".into());
    }
    value
}

/// How a bdev that is nothing but its geometry is made again.
fn geometry_recipe(method: &'static str, info: &BdevInfo) -> Recipe {
    let params = json!({
        "name": info.name,
        "num_blocks": info.blocks,
        "block_size": info.block_size,
        "uuid": info.uuid,
    });
    Recipe::new(method, params)
}

/// `bdev_malloc_create`: a RAM disk of `num_blocks` × `block_size` bytes; `Malloc<n>` by default.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MallocCreate {
    /// If not given, the first free `Malloc<n>`.
    name: Option<String>,
    /// 512 or 4096 bytes.
    block_size: u32,
    /// Its size in blocks.
    num_blocks: u64,
    /// Its identity; a new one if not given.
    uuid: Option<Uuid>,
    /// 0 only.
    optimal_io_boundary: Option<u32>,
    /// 0 only.
    md_size: Option<u32>,
    /// False only.
    md_interleave: Option<bool>,
    /// 0 only.
    dif_type: Option<i32>,
    /// False only.
    dif_is_head_of_md: Option<bool>,
    /// 0 or the block size.
    physical_block_size: Option<u32>,
    /// 0 only.
    dif_pi_format: Option<u32>,
    /// −1 only: any.
    numa_id: Option<i32>,
}

fn malloc_create(service: &Service, params: MallocCreate) -> Result<String, Error> {
    refuse_unless_default("optimal_io_boundary", params.optimal_io_boundary, &0)?;
    refuse_unless_default("md_size", params.md_size, &0)?;
    refuse_unless_default("md_interleave", params.md_interleave, &false)?;
    refuse_unless_default("dif_type", params.dif_type, &0)?;
    refuse_unless_default("dif_is_head_of_md", params.dif_is_head_of_md, &false)?;
    refuse_unless_default("dif_pi_format", params.dif_pi_format, &0)?;
    refuse_unless_default("numa_id", params.numa_id, &-1)?;
    let physical = params.physical_block_size.filter(|size| *size != 0);
    refuse_unless_default("physical_block_size", physical, &params.block_size)?;
    let place = match &params.name {
        Some(name) => service.bdevs.reserve(name)?,
        None => service.bdevs.reserve_numbered("Malloc"),
    };
    let config = MallocConfig {
        name: place.name().to_owned(),
        uuid: uuid_or_new(params.uuid),
        block_size: params.block_size,
        blocks: params.num_blocks,
    };
    let bdev = MallocBdev::new(config).map_err(|error| bdev_error(&error))?;
    let recipe = geometry_recipe("bdev_malloc_create", &bdev.info());
    Ok(place.fill(Kind::Malloc, Arc::new(bdev), json!({}), None, recipe))
}

fn malloc_delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_malloc = |kind: &Kind| matches!(kind, Kind::Malloc);
    remove_bdev(service, &params.name, is_malloc)
}

/// `bdev_null_create`: takes every write and reads as zeroes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NullCreate {
    /// Its name.
    name: String,
    /// 512 or 4096 bytes.
    block_size: u32,
    /// Its size in blocks.
    num_blocks: u64,
    /// Its identity; a new one if not given.
    uuid: Option<Uuid>,
    /// 0 or the block size.
    physical_block_size: Option<u32>,
    /// 0 only.
    md_size: Option<u32>,
    /// 0 only.
    dif_type: Option<i32>,
    /// 0 only.
    dif_pi_format: Option<u32>,
    /// False only.
    dif_is_head_of_md: Option<bool>,
    /// 0 or 1.
    preferred_write_granularity: Option<u32>,
    /// 0 or 1.
    preferred_write_alignment: Option<u32>,
    /// 0 or 1.
    optimal_write_size: Option<u32>,
    /// 0 or 1.
    preferred_unmap_granularity: Option<u32>,
    /// 0 or 1.
    preferred_unmap_alignment: Option<u32>,
}

fn null_create(service: &Service, params: NullCreate) -> Result<String, Error> {
    refuse_unless_default("md_size", params.md_size, &0)?;
    refuse_unless_default("dif_type", params.dif_type, &0)?;
    refuse_unless_default("dif_pi_format", params.dif_pi_format, &0)?;
    refuse_unless_default("dif_is_head_of_md", params.dif_is_head_of_md, &false)?;
    for (option, given) in [
        (
            "preferred_write_granularity",
            params.preferred_write_granularity,
        ),
        (
            "preferred_write_alignment",
            params.preferred_write_alignment,
        ),
        ("optimal_write_size", params.optimal_write_size),
        (
            "preferred_unmap_granularity",
            params.preferred_unmap_granularity,
        ),
        (
            "preferred_unmap_alignment",
            params.preferred_unmap_alignment,
        ),
    ] {
        refuse_unless_default(option, given.filter(|value| *value != 0), &1)?;
    }
    let physical = params.physical_block_size.filter(|size| *size != 0);
    refuse_unless_default("physical_block_size", physical, &params.block_size)?;
    let place = service.bdevs.reserve(&params.name)?;
    let config = NullConfig {
        name: params.name,
        uuid: uuid_or_new(params.uuid),
        block_size: params.block_size,
        blocks: params.num_blocks,
    };
    let bdev = NullBdev::new(config).map_err(|error| bdev_error(&error))?;
    let recipe = geometry_recipe("bdev_null_create", &bdev.info());
    let bdev = Arc::new(bdev);
    let kind = Kind::Null(Arc::clone(&bdev));
    Ok(place.fill(kind, bdev, json!({}), None, recipe))
}

fn null_delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_null = |kind: &Kind| matches!(kind, Kind::Null(_));
    remove_bdev(service, &params.name, is_null)
}
