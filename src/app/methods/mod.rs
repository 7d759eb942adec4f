//! The RPC methods, by subject. Each declares its parameters as a strict struct and is a plain
//! function of the service; a file registers its own in `register`.

mod bdev;
mod cache;
mod cache_check;
mod cache_load;
mod cache_mode;
mod cache_resize;
mod cache_stats;
mod config;
mod examine;
mod files;
mod filters;
mod iostat;
mod keyring;
mod log;
mod nbd;
mod notify;
mod nvme;
mod nvmf;
mod nvmf_access;
mod nvmf_config;
mod nvmf_namespace;
mod nvmf_referral;
mod nvmf_subsystem;
mod pmem;
mod pool;
mod qos;
mod reactor;
mod scheduler;
mod service;
mod sizes;
mod sock;
mod threads;
mod trace;
mod vhost;
mod virtio;

use super::bdevs::{Entry, Kind};
use super::config::{Object, Recipe};
use super::service::Service;

pub(super) use files::uring_recipe;
pub(super) use nvmf::TCP;
pub(super) use nvmf_access::{ana_name, describe_address};
pub(super) use nvmf_namespace::namespace_params;
pub(super) use nvmf_referral::referral_params;
pub(super) use pmem::pmem_recipe;
pub(super) use reactor::IDLE_US;

use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

/// Adds every method of the service.
pub(super) fn register(registry: &mut Registry<Service>) {
    service::register(registry);
    config::register(registry);
    reactor::register(registry);
    threads::register(registry);
    scheduler::register(registry);
    registry.section("Bdevs", "");
    bdev::register(registry);
    examine::register(registry);
    iostat::register(registry);
    qos::register(registry);
    files::register(registry);
    virtio::register(registry);
    filters::register(registry);
    nvme::register(registry);
    sizes::register(registry);
    registry.section("Persistent memory and pools", "");
    pmem::register(registry);
    pool::register(registry);
    registry.section("Caches", "");
    cache::register(registry);
    cache_load::register(registry);
    cache_resize::register(registry);
    cache_check::register(registry);
    cache_mode::register(registry);
    cache_stats::register(registry);
    registry.section("NBD", "");
    nbd::register(registry);
    vhost::register(registry);
    nvmf::register(registry);
    nvmf_config::register(registry);
    nvmf_subsystem::register(registry);
    nvmf_namespace::register(registry);
    nvmf_access::register(registry);
    nvmf_referral::register(registry);
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

/// The calls that set again what was set of a bdev, since it was made.
pub(super) fn settings(entry: &Entry) -> Vec<Recipe> {
    let all = [qos::setting(entry), iostat::setting(entry)];
    all.into_iter().flatten().collect()
}

/// Deletes a bdev if `is_kind` of it. One that the service waits for is not waited for any more.
fn remove_bdev(
    service: &Service,
    name: &str,
    is_kind: impl Fn(&Kind) -> bool,
) -> Result<bool, Error> {
    let removed = service.bdevs.remove(name, is_kind);
    or_forget(service, removed, &Object::Bdev(name.to_owned()))?;
    // Without its medium a pool that could not be loaded is nobody's concern.
    let pool = Object::PoolOn(name.to_owned());
    service.unresolved.forget(&pool);
    Ok(true)
}

/// Whether it says that there is no such thing, under whatever code.
fn is_missing(error: &Error) -> bool {
    error.as_errno() == Some(Errno::NODEV.raw_os_error())
}

/// Turns −19 into success if `object` is one that the service waits for, and ends that.
fn or_forget(
    service: &Service,
    removed: Result<(), Error>,
    object: &Object,
) -> Result<bool, Error> {
    match removed {
        Err(error) if is_missing(&error) && service.unresolved.forget(object) => Ok(true),
        other => other.map(|()| true),
    }
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
