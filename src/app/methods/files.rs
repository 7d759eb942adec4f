//! Methods that make bdevs of files and block devices, under both of SPDK's names.

use super::{Name, refuse_unless_default, remove_bdev};
use crate::app::bdevs::{Kind, bdev_error};
use crate::app::config::Recipe;
use crate::app::service::Service;
use crate::bdev::{UringBdev, UringConfig, UringKind};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .bdev_method("bdev_uring_create", uring_create)
        .about(
            "A file or block device through io_uring. Locked for this process; block devices \
             are opened exclusively. I/O bypasses the page cache where possible. It waits up \
             to 5 s for another holder of the lock.",
            "The name. All failures of opening are −32603 \"Unable to create URING bdev.: …\", \
             as SPDK says it.",
        );
    registry
        .bdev_method("bdev_uring_delete", uring_delete)
        .about(
            "As `bdev_malloc_delete`.",
            "True. −19 if it is no uring bdev, −16 while in use.",
        );
    registry.bdev_method("bdev_aio_create", aio_create).about(
        "The same device under SPDK's other name.",
        "The name. Failures are negated errnos.",
    );
    registry.bdev_method("bdev_aio_delete", aio_delete).about(
        "As `bdev_malloc_delete`.",
        "True. −19 if it is no aio bdev, −16 while in use.",
    );
}

/// `bdev_uring_create`: the file or block device `filename`. `block_size` 0 or absent: as found.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UringCreate {
    /// A regular file or block device that exists.
    filename: PathBuf,
    /// Its name.
    name: String,
    /// 512, 4096, or 0: as found. Not below what the device needs.
    block_size: Option<u32>,
    /// Its identity; if not given, derived from the disk's serial number, else from the path (and
    /// inode of a file).
    uuid: Option<Uuid>,
}

fn uring_create(service: &Service, params: UringCreate) -> Result<String, Error> {
    let specific = json!({"uring": {"filename": params.filename}});
    let mut config = UringConfig::new(&params.name, &params.filename, UringKind::Uring);
    config.block_size = params.block_size.filter(|size| *size != 0);
    config.uuid = params.uuid;
    let recipe = uring_recipe(&config);
    open(service, config, Kind::Uring, specific, recipe).map_err(|error| {
        // SPDK says this whatever went wrong, and scripts look for it.
        let message = format!("Unable to create URING bdev.: {}", error.message);
        error.hidden_behind(Error::INTERNAL_ERROR, message)
    })
}

/// How a `bdev_uring_create` is repeated. An identity that was found is not written down: another disk
/// in that place must not pass for the one that was there.
pub(in crate::app) fn uring_recipe(config: &UringConfig) -> Recipe {
    let params = json!({
        "filename": config.path.to_string_lossy(),
        "name": config.name,
        "block_size": config.block_size,
        "uuid": config.uuid,
    });
    Recipe::new("bdev_uring_create", params)
}

fn uring_delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_uring = |kind: &Kind| matches!(kind, Kind::Uring(_));
    remove_bdev(service, &params.name, is_uring)
}

/// `bdev_aio_create`: as `bdev_uring_create`. Discard gives space back with and without
/// `fallocate`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AioCreate {
    /// Its name.
    name: String,
    /// A regular file or block device that exists.
    filename: PathBuf,
    /// 512, 4096, or 0: as found. Not below what the device needs.
    #[serde(default)]
    block_size: u32,
    /// Refuse writes; the lock is shared with other readers.
    #[serde(default)]
    readonly: bool,
    /// Taken; discard gives space back either way.
    #[serde(default)]
    fallocate: bool,
    /// Its identity; if not given, derived from the disk's serial number, else from the path (and
    /// inode of a file).
    uuid: Option<Uuid>,
    /// False only.
    nowait: Option<bool>,
}

fn aio_create(service: &Service, params: AioCreate) -> Result<String, Error> {
    refuse_unless_default("nowait", params.nowait, &false)?;
    let specific = json!({"aio": {
        "filename": params.filename,
        "block_size_override": params.block_size != 0,
        "readonly": params.readonly,
        "fallocate": params.fallocate,
        "nowait": false,
    }});
    let mut config = UringConfig::new(&params.name, &params.filename, UringKind::Aio);
    config.block_size = Some(params.block_size).filter(|size| *size != 0);
    config.read_only = params.readonly;
    config.uuid = params.uuid;
    let recipe = json!({
        "name": params.name,
        "filename": params.filename,
        "block_size": config.block_size,
        "readonly": params.readonly,
        "fallocate": params.fallocate,
        "uuid": params.uuid,
    });
    let recipe = Recipe::new("bdev_aio_create", recipe);
    open(service, config, Kind::Aio, specific, recipe)
}

fn aio_delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_aio = |kind: &Kind| matches!(kind, Kind::Aio(_));
    remove_bdev(service, &params.name, is_aio)
}

fn open(
    service: &Service,
    config: UringConfig,
    kind: fn(Arc<UringBdev>) -> Kind,
    specific: Value,
    recipe: Recipe,
) -> Result<String, Error> {
    let place = service.bdevs.reserve(&config.name)?;
    let bdev = UringBdev::open(config).map_err(|error| bdev_error(&error))?;
    let bdev = Arc::new(bdev);
    Ok(place.fill(kind(bdev.clone()), bdev, specific, None, recipe))
}
