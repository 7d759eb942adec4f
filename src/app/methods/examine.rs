//! Methods about what SPDK finds on bdevs by itself. Here nothing is: pools and caches are loaded when
//! that is asked for.

use super::{Name, refuse_unless_default};
use crate::app::bdevs::bdev_error;
use crate::app::service::Service;
use rpc::{Allowed, Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .bdev_method("bdev_set_options", set_options)
        .allowed(Allowed::Startup)
        .about(
            "Takes SPDK's defaults, so that its configurations load: requests come from no pool here.",
            "true. −32602 for other values.",
        );
    registry.bdev_method("bdev_examine", examine).about(
        "Takes the name of a bdev that is to be examined, there or not. Nothing is on a bdev that would come up \
         of its own accord: `pool_load` and `bdev_pmcache_load` say what is to be loaded.",
        "true. −22 for what can be no bdev's name.",
    );
    registry
        .plain("bdev_wait_for_examine", |_: &Service| Ok(true))
        .about(
            "Waits until every bdev is examined, which takes no time.",
            "true.",
        );
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    /// Only 65535.
    bdev_io_pool_size: Option<u32>,
    /// Only 256.
    bdev_io_cache_size: Option<u32>,
    /// Taken as it is: nothing is examined.
    #[serde(rename = "bdev_auto_examine")]
    _bdev_auto_examine: Option<bool>,
    /// Only 128.
    iobuf_small_cache_size: Option<u32>,
    /// Only 16.
    iobuf_large_cache_size: Option<u32>,
}

fn set_options(_: &Service, params: SetOptions) -> Result<bool, Error> {
    refuse_unless_default("bdev_io_pool_size", params.bdev_io_pool_size, &65535)?;
    refuse_unless_default("bdev_io_cache_size", params.bdev_io_cache_size, &256)?;
    refuse_unless_default(
        "iobuf_small_cache_size",
        params.iobuf_small_cache_size,
        &128,
    )?;
    refuse_unless_default("iobuf_large_cache_size", params.iobuf_large_cache_size, &16)?;
    Ok(true)
}

fn examine(_: &Service, params: Name) -> Result<bool, Error> {
    crate::bdev::check_name(&params.name).map_err(|error| bdev_error(&error))?;
    Ok(true)
}
