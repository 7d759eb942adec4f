//! Methods about bdevs that get another size.

use super::Name;
use crate::app::bdevs::Kind;
use crate::app::grown::{rescan, resize_null};
use crate::app::service::Service;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .bdev_method("bdev_uring_rescan", uring_rescan)
        .about(
            "Looks how large the file or device is now. What stands on it follows: filters at once; a cache \
             records the size in its pool, and its volume grows while it serves; exports show it to clients \
             that connect from now on. A volume whose backing grew while it was not loaded follows then.",
            "True. −16 if it has shrunk and somebody uses it: it keeps the size that it had. −19 if it is no \
             uring bdev; −30, −16 if a cache on it is read-only or being stopped.",
        );
    registry.bdev_method("bdev_aio_rescan", aio_rescan).about(
        "As `bdev_uring_rescan`.",
        "True. −19 if it is no aio bdev, −16.",
    );
    registry
        .bdev_method("bdev_null_resize", null_resize)
        .about(
            "Gives a null bdev another size; what stands on it follows, as for `bdev_uring_rescan`.",
            "True. −16 if it would shrink and somebody uses it, −19 if it is no null bdev, −22 for no size.",
        );
}

fn uring_rescan(service: &Service, params: Name) -> Result<bool, Error> {
    rescan(service, &params.name, |kind| match kind {
        Kind::Uring(bdev) => Some(Arc::clone(bdev)),
        _ => None,
    })?;
    Ok(true)
}

fn aio_rescan(service: &Service, params: Name) -> Result<bool, Error> {
    rescan(service, &params.name, |kind| match kind {
        Kind::Aio(bdev) => Some(Arc::clone(bdev)),
        _ => None,
    })?;
    Ok(true)
}

/// `bdev_null_resize`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NullResize {
    /// The null bdev.
    name: String,
    /// MiB.
    new_size: u64,
}

fn null_resize(service: &Service, params: NullResize) -> Result<bool, Error> {
    let bytes = params.new_size.checked_mul(1 << 20).ok_or_else(|| {
        Error::invalid_params("Invalid parameters: new_size is beyond 64 bits".to_owned())
    })?;
    resize_null(service, &params.name, bytes)?;
    let blocks = service.bdevs.get(&params.name)?.bdev.info().blocks;
    service
        .bdevs
        .amend(&params.name, "num_blocks", blocks.into());
    Ok(true)
}
