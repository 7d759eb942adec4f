//! Methods about the vhost target.

use super::or_forget;
use crate::app::config::Object;
use crate::app::service::Service;
use crate::app::vhost::{NewController, TRANSPORT, refused};
use crate::target::vhost::Coalescing;
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "vhost",
        "Bdevs as disks of virtual machines: vhost-user-blk, one Unix socket for each controller, \
         one front end at a time. All failures are −32602, with the text of strerror.",
    );
    registry
        .method("vhost_create_blk_controller", create)
        .about(
            "Offers a bdev as a disk. The socket is `<vhost-dir>/<ctrlr>` (`serve --vhost-dir`), \
             with mode 0600; a dead one is replaced.",
            "True. −32602: \"File exists\", \"No such device\", \"Device or resource busy\" \
             if the bdev has an owner, \"Invalid argument\", \"Operation not supported\" for a \
             packed ring or another transport.",
        );
    registry
        .method("vhost_get_controllers", get_controllers)
        .about(
            "All vhost controllers, or one.",
            "A list of `ctrlr`, `cpumask`, `delay_base_us` and `iops_threshold` (0: calls \
             never wait), `socket`, `sessions` (list of `vid`, `id`, `name`, `started`, \
             `max_queues`: those that run, `inflight_task_cnt`), `backend_specific.block` \
             (`readonly`, `bdev`, `transport`). −32602 \"No such device\".",
        );
    registry
        .method("vhost_controller_set_coalescing", set_coalescing)
        .about(
            "Lets calls (a guest's interrupts) of busy queues wait, so that one tells of many answers: a \
             queue with more than `iops_threshold` answers a second waits between two calls for \
             `delay_base_us` times the excess over the threshold, 10 ms at most. The latency of single \
             requests grows by that.",
            "True. −32602 \"No such device\", or \"Invalid argument\" for a threshold below 100.",
        );
    registry.method("vhost_delete_controller", delete).about(
        "Ends a controller, and the session of its front end: what waits is given up, what the \
         device has is finished first.",
        "True. −32602 \"No such device\".",
    );
}

/// `vhost_create_blk_controller`: the bdev `dev_name` as a disk on the socket `ctrlr`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// 1 to 80 bytes of `[A-Za-z0-9_.:-]`, no dot in front.
    ctrlr: String,
    /// The bdev.
    dev_name: String,
    /// Refuse writes; false if not given.
    #[serde(default)]
    readonly: bool,
    /// Only false: packed rings are not offered.
    #[serde(default)]
    packed_ring: bool,
    /// The cores whose data reactors run its queues; all if not given.
    cpumask: Option<String>,
    /// Only `vhost_user_blk`.
    transport: Option<String>,
}

fn create(service: &Service, params: Create) -> Result<bool, Error> {
    if params.packed_ring {
        return Err(refused(Errno::OPNOTSUPP, "packed rings"));
    }
    if let Some(other) = params.transport.filter(|name| name != TRANSPORT) {
        return Err(refused(
            Errno::OPNOTSUPP,
            format_args!("transport {other:?}"),
        ));
    }
    let parsed = params.cpumask.map(|mask| mask.parse()).transpose();
    let cores = parsed.map_err(|error| refused(Errno::INVAL, error))?;
    let new = NewController {
        name: params.ctrlr,
        bdev_name: params.dev_name,
        read_only: params.readonly,
        cores,
    };
    let infos = service.data_infos();
    service.vhost.create(&service.bdevs, infos, new)?;
    Ok(true)
}

/// `vhost_get_controllers`: all, or the one called `name`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetControllers {
    /// Only the one of this name.
    name: Option<String>,
}

fn get_controllers(service: &Service, params: GetControllers) -> Result<Vec<Value>, Error> {
    let found = service.vhost.list(params.name.as_deref());
    match params.name {
        Some(name) if found.is_empty() => Err(refused(Errno::NODEV, format_args!("no {name:?}"))),
        _ => Ok(found),
    }
}

/// `vhost_controller_set_coalescing`: how long calls may wait.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetCoalescing {
    /// The controller.
    ctrlr: String,
    /// The base of the delay, in microseconds; 0 for calls at once.
    delay_base_us: u32,
    /// Answers a second of one queue up to which it calls at once, at least 100.
    iops_threshold: u32,
}

fn set_coalescing(service: &Service, params: SetCoalescing) -> Result<bool, Error> {
    let wanted = Coalescing {
        delay_base_us: params.delay_base_us,
        iops_threshold: params.iops_threshold,
    };
    service.vhost.set_coalescing(&params.ctrlr, wanted)?;
    Ok(true)
}

/// `vhost_delete_controller`: ends it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Delete {
    /// Its name.
    ctrlr: String,
}

fn delete(service: &Service, params: Delete) -> Result<bool, Error> {
    let deleted = service.vhost.delete(&service.bdevs, &params.ctrlr);
    or_forget(service, deleted, &Object::VhostController(params.ctrlr))
}
