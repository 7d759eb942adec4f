//! Methods that make bdevs of the disks of vhost-user back ends.

use super::{Name, remove_bdev};
use crate::app::bdevs::{Kind, bdev_error};
use crate::app::config::Recipe;
use crate::app::service::Service;
use crate::app::vhost_client::connect;
use crate::bdev::VhostConfig;
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .bdev_method("bdev_virtio_attach_controller", attach)
        .about(
            "The disk of a vhost-user-blk back end, as a bdev. When the back end dies, what is \
             under way fails; what comes then waits 10 s for it to come back. If the disk has a \
             volatile cache, the next flush of each user fails, since writes may have been lost. \
             One that comes back with another size or other features is not taken.",
            "A list of the name. −2 or −6 if nobody is at the socket, −110 if it does not answer \
             within 10 s (a back end serves one front end at a time), −71 if it does not speak the \
             protocol with REPLY_ACK, CONFIG and CONFIGURE_MEM_SLOTS, −95 for a disk from before \
             virtio 1 or with odd blocks, −22 for other values of `trtype` and `dev_type`.",
        );
    registry
        .bdev_method("bdev_virtio_detach_controller", detach)
        .about(
            "Ends the connection, and deletes the bdev.",
            "True. −19 if it is no such bdev, −16 while in use.",
        );
}

/// `bdev_virtio_attach_controller`: the disk behind the socket `traddr` as bdev `name`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Attach {
    /// The bdev's name.
    name: String,
    /// Only `user`: a Unix socket.
    trtype: String,
    /// The socket's path.
    traddr: PathBuf,
    /// Only `blk`.
    dev_type: String,
    /// Queues wanted: each user of the bdev takes one on each reactor that it uses. A back end that
    /// has fewer gives what it has. Data reactors plus 2 if not given, which is enough for a cache.
    vq_count: Option<u16>,
    /// Entries of each queue, a power of two from 16 to 1024; a request takes three. 512 if not given.
    vq_size: Option<u16>,
    /// Its identity; if not given, derived from the path.
    uuid: Option<Uuid>,
}

fn attach(service: &Service, params: Attach) -> Result<Vec<String>, Error> {
    for (what, given, only) in [
        ("trtype", &params.trtype, "user"),
        ("dev_type", &params.dev_type, "blk"),
    ] {
        if !given.eq_ignore_ascii_case(only) {
            let message = format!("Invalid argument: {what} {given:?} is not {only:?}");
            return Err(Error::errno_with(Errno::INVAL.raw_os_error(), message));
        }
    }
    let place = service.bdevs.reserve(&params.name)?;
    let mut config = VhostConfig::new(&params.name, &params.traddr);
    let reactors = service.data_infos().len();
    let enough = u16::try_from(reactors + 2).unwrap_or(u16::MAX);
    config.queues = params.vq_count.unwrap_or(enough);
    config.entries = params.vq_size.unwrap_or(config.entries);
    config.uuid = params.uuid;
    let bdev = connect(config).map_err(|error| bdev_error(&error))?;
    let recipe = json!({
        "name": params.name,
        "trtype": "user",
        "traddr": params.traddr.to_string_lossy(),
        "dev_type": "blk",
        "vq_count": params.vq_count,
        "vq_size": params.vq_size,
        "uuid": params.uuid,
    });
    let recipe = Recipe::new("bdev_virtio_attach_controller", recipe);
    let specific = json!({"virtio": {
        "trtype": "user",
        "traddr": params.traddr.to_string_lossy(),
        "dev_type": "blk",
        "vq_count": bdev.queues(),
        "vq_size": bdev.entries(),
    }});
    let made = place.fill(Kind::Virtio, Arc::new(bdev), specific, None, recipe);
    Ok(vec![made])
}

fn detach(service: &Service, params: Name) -> Result<bool, Error> {
    let is_virtio = |kind: &Kind| matches!(kind, Kind::Virtio);
    remove_bdev(service, &params.name, is_virtio)
}
