//! Methods that tell what has happened.

use crate::app::notices::{Happening, Notice};
use crate::app::service::Service;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "Notifications",
        "The last 1024 events are kept. A client asks from the number on that it has not seen, again and \
         again.",
    );
    registry
        .plain("notify_get_types", |_: &Service| Ok(Happening::ALL))
        .about(
            "What may happen.",
            "`bdev_register`, `bdev_unregister`, `bdev_resize`; `pmcache_state` (a new state), \
             `pmcache_dirty_high` (the dirty bytes have passed `dirty_high_percent`), `pmcache_recovered` \
             (it serves again, after an error or a load that replayed a log); `media_error` (bad segments or \
             lost data of a cache); `nvmf_host_connect`, `nvmf_host_disconnect` (of an NVMe-oF subsystem).",
        );
    registry.method("notify_get_notifications", get_notifications).about(
        "What has happened. Bdevs and caches are looked at for it, and twice a second.",
        "`[{type, ctx, id}]`, the oldest first: `ctx` is the object's name, for `pmcache_state` with the \
         state after a blank, for hosts the subsystem's with the host's after a blank.",
    );
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetNotifications {
    /// The number of the first event wanted; of those that are no longer kept, the oldest that is.
    #[serde(default)]
    id: u64,
    /// How many at most; all by default.
    max: Option<u64>,
}

fn get_notifications(service: &Service, params: GetNotifications) -> Result<Vec<Notice>, Error> {
    service.observer.look(service);
    let max = params.max.unwrap_or(u64::MAX);
    Ok(service.notices.since(params.id, max))
}
