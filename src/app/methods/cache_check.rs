//! Scrubbing caches that serve.

use super::Name;
use super::cache_load::show_place;
use crate::app::caches::{self, cache_error, cache_object};
use crate::app::service::Service;
use crate::cache::ScrubLevel;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_check_start", start).about(
        "Looks through the log of a cache while it serves, from the key tail to where the log ends now, and \
             with `data` at all data in the pool that count. It changes nothing: what it finds bad is repaired, \
             or becomes BAD, when GC, writeback or a read come there.",
        "True. −114 while one is at work, −30 if loaded for salvage, −16 if it is being stopped, −19.",
    );
    registry.method("bdev_pmcache_check_status", status).about(
        "How the last check of a cache stands.",
        "`in_progress`; `complete`: it came to the end, and not to a kset that can't be read, where it stops; \
             `checked` {`ksets`, `keys`, `bytes`}; `bad`: a list of {`segment`, `offset`, `sequence`, `reason`}, \
             at most 64; `bad_total`.",
    );
    registry
        .method("bdev_pmcache_check_stop", stop)
        .about("Ends a check before its time.", "True. −19.");
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Level {
    #[default]
    Meta,
    Data,
}

/// `bdev_pmcache_check_start`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Start {
    /// The cache.
    name: String,
    /// `meta`: ksets; `data`: also the data of their keys.
    #[serde(default)]
    level: Level,
    /// MiB a second that are read at most; 0: no limit.
    #[serde(default = "default_rate")]
    rate_mbps: u32,
}

/// Little beside what a cache does.
fn default_rate() -> u32 {
    100
}

fn start(service: &Service, params: Start) -> Result<bool, Error> {
    let cache = caches::find(service, &params.name)?;
    let level = match params.level {
        Level::Meta => ScrubLevel::Meta,
        Level::Data => ScrubLevel::Data,
    };
    let rate = u64::from(params.rate_mbps) << 20;
    cache
        .check_start(level, rate)
        .map_err(|error| cache_error(&cache_object(&params.name), &error))?;
    Ok(true)
}

fn status(service: &Service, params: Name) -> Result<Value, Error> {
    let status = caches::find(service, &params.name)?.check_status();
    let bad: Value = status.bad.iter().map(show_place).collect();
    Ok(json!({
        "in_progress": status.in_progress,
        "complete": status.complete,
        "checked": {"ksets": status.ksets, "keys": status.keys, "bytes": status.bytes},
        "bad": bad,
        "bad_total": status.bad_total,
    }))
}

fn stop(service: &Service, params: Name) -> Result<bool, Error> {
    caches::find(service, &params.name)?.check_stop();
    Ok(true)
}
