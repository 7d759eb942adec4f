//! Rate limits of bdevs.

use crate::app::bdevs::Entry;
use crate::app::config::Recipe;
use crate::app::service::Service;
use crate::bdev::RateLimits;
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .bdev_method("bdev_set_qos_limit", set_qos_limit)
        .about(
            "Limits how much may be read from and written to a bdev in a second, on all reactors \
             together: over any second to one part in twenty, and to requests that can't be cut. What \
             is too much waits, in order, and is no error; channels take turns. Flush, discard and \
             write-zeroes are not limited. `bdev_get_bdevs` shows the limits.",
            "True. −19 without such a bdev, −22 \"No rate limits specified\", −32602 \"Failed to \
             configure rate limit: …\".",
        );
}

/// Absent is unchanged, 0 is unlimited.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetQosLimit {
    /// The bdev.
    name: String,
    /// Reads and writes a second, rounded up to a multiple of 1000; 0: unlimited; absent: unchanged.
    rw_ios_per_sec: Option<u64>,
    /// MiB read and written a second; 0: unlimited; absent: unchanged.
    rw_mbytes_per_sec: Option<u64>,
    /// MiB read a second; 0: unlimited; absent: unchanged.
    r_mbytes_per_sec: Option<u64>,
    /// MiB written a second; 0: unlimited; absent: unchanged.
    w_mbytes_per_sec: Option<u64>,
}

fn set_qos_limit(service: &Service, params: SetQosLimit) -> Result<bool, Error> {
    let meter = service.bdevs.get(&params.name)?.meter;
    let given = [
        params.rw_ios_per_sec,
        params.rw_mbytes_per_sec,
        params.r_mbytes_per_sec,
        params.w_mbytes_per_sec,
    ];
    if given.iter().all(Option::is_none) {
        let errno = Errno::INVAL.raw_os_error();
        return Err(Error::errno_with(errno, "No rate limits specified"));
    }
    let set = meter.change_limits(|old| RateLimits {
        rw_ios_per_sec: params.rw_ios_per_sec.unwrap_or(old.rw_ios_per_sec),
        rw_mbytes_per_sec: params.rw_mbytes_per_sec.unwrap_or(old.rw_mbytes_per_sec),
        r_mbytes_per_sec: params.r_mbytes_per_sec.unwrap_or(old.r_mbytes_per_sec),
        w_mbytes_per_sec: params.w_mbytes_per_sec.unwrap_or(old.w_mbytes_per_sec),
    });
    set.map_err(|error| Error::invalid_params(format!("Failed to configure rate limit: {error}")))?;
    // What is held back by the old limits looks at the new ones now.
    for handle in service.reactors().handles() {
        handle.ring();
    }
    Ok(true)
}

/// The call that sets the limits of a bdev again; nothing without limits.
pub(super) fn setting(entry: &Entry) -> Option<Recipe> {
    let limits = entry.meter.limits();
    if limits == RateLimits::default() {
        return None;
    }
    let params = json!({
        "name": entry.bdev.info().name,
        "rw_ios_per_sec": limits.rw_ios_per_sec,
        "rw_mbytes_per_sec": limits.rw_mbytes_per_sec,
        "r_mbytes_per_sec": limits.r_mbytes_per_sec,
        "w_mbytes_per_sec": limits.w_mbytes_per_sec,
    });
    Some(Recipe::new("bdev_set_qos_limit", params))
}

/// The limits as `bdev_get_bdevs` shows them.
pub(super) fn describe(limits: RateLimits) -> Value {
    json!({
        "rw_ios_per_sec": limits.rw_ios_per_sec,
        "rw_mbytes_per_sec": limits.rw_mbytes_per_sec,
        "r_mbytes_per_sec": limits.r_mbytes_per_sec,
        "w_mbytes_per_sec": limits.w_mbytes_per_sec,
    })
}
