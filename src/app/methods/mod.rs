//! The RPC methods, by subject. Each declares its parameters as a strict struct and is a plain
//! function of the service; a file registers its own in `register`.

mod bdev;
mod cache;
mod cache_load;
mod cache_mode;
mod cache_stats;
mod examine;
mod files;
mod filters;
mod iostat;
mod keyring;
mod log;
mod nbd;
mod notify;
mod pmem;
mod pool;
mod qos;
mod reactor;
mod scheduler;
mod service;
mod sock;
mod targets;
mod threads;
mod trace;

use super::service::Service;

pub(super) use reactor::IDLE_US;

use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

/// Adds every method of the service.
pub(super) fn register(registry: &mut Registry<Service>) {
    service::register(registry);
    reactor::register(registry);
    threads::register(registry);
    scheduler::register(registry);
    registry.section("Bdevs", "");
    bdev::register(registry);
    examine::register(registry);
    iostat::register(registry);
    qos::register(registry);
    files::register(registry);
    filters::register(registry);
    registry.section("Persistent memory and pools", "");
    pmem::register(registry);
    pool::register(registry);
    registry.section("Caches", "");
    cache::register(registry);
    cache_load::register(registry);
    cache_mode::register(registry);
    cache_stats::register(registry);
    registry.section("NBD", "");
    nbd::register(registry);
    targets::register(registry);
    keyring::register(registry);
    sock::register(registry);
    log::register(registry);
    notify::register(registry);
    trace::register(registry);
}

/// Parameters of the many methods that take a name only.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Name {
    /// Which one.
    name: String,
}

/// The given uuid, or a new one.
fn uuid_or_new(given: Option<Uuid>) -> Uuid {
    given.unwrap_or_else(Uuid::new_v4)
}

/// Refuses an option of SPDK's that was asked for and that we can't do; its default is fine.
fn refuse_unless_default<T: PartialEq>(
    option: &str,
    given: Option<T>,
    default: &T,
) -> Result<(), Error> {
    match given {
        Some(value) if value != *default => Err(Error::invalid_params(format!(
            "Invalid parameters: {option} is not supported"
        ))),
        _ => Ok(()),
    }
}
