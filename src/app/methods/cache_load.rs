//! Loading caches, and what a load found.

use crate::app::caches::{self, cache_object};
use crate::app::service::Service;
use crate::cache::{BadPlace, Cache, LoadWish, LostClean, Missing, ReplayReport};
use crate::units::ByteRange;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_load", load);
}

/// `bdev_pmcache_load`: the cache `name` or `uuid` of `pool`, in front of `backing_bdev` or of the
/// bdev that was recorded. What is loaded already is answered as loaded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Load {
    pool: String,
    name: Option<String>,
    uuid: Option<Uuid>,
    backing_bdev: Option<String>,
    /// Take a backing of another identity, or one that was changed.
    #[serde(default)]
    force: bool,
    /// For reading only, up to where the log is damaged.
    #[serde(default)]
    salvage: bool,
}

fn load(service: &Service, params: Load) -> Result<Value, Error> {
    let name = match (&params.name, params.uuid) {
        (_, Some(uuid)) => uuid.to_string(),
        (Some(name), None) => name.clone(),
        (None, None) => {
            let text = "Invalid parameters: one of name and uuid is needed";
            return Err(Error::invalid_params(text));
        }
    };
    let backing = params.backing_bdev.as_deref();
    let wish = LoadWish {
        force: params.force,
        salvage: params.salvage,
    };
    let cache = caches::load_cache(service, &params.pool, &name, backing, wish)?;
    let report = cache.replay_report();
    for reason in complaints(&report) {
        service.degrade(&cache_object(cache.name()), reason);
    }
    Ok(json!({
        "name": cache.name(),
        "uuid": cache.uuid(),
        "replay": show_replay(&report),
    }))
}

/// What of a load the health must say.
fn complaints(report: &ReplayReport) -> Vec<String> {
    let mut found = Vec::new();
    if report.staging_missing {
        found.push(
            "its staging file is gone: what was acknowledged in the last kset_flush_ms before the \
             process died may be lost"
                .to_owned(),
        );
    }
    if let Some(lost) = &report.lost_clean {
        let (at, bad) = (&lost.at, lost.bad_keys);
        found.push(format!(
            "its log was damaged before the dirty tail ({}): cached clean data are lost, and {bad} \
             keys of data that could not be read: their ranges show what the backing has",
            at.reason
        ));
    }
    if let Some(missing) = &report.missing {
        found.push(format!(
            "loaded for salvage up to sequence {}: {}; what was written later is missing",
            missing.at.sequence, missing.at.reason
        ));
    }
    if let Some(lost) = &report.unwritable {
        found.push(format!(
            "its {} can't be written at byte {} of the pool's medium: it is whole, and read-only",
            lost.item, lost.at
        ));
    }
    found
}

fn show_place(at: &BadPlace) -> Value {
    json!({
        "segment": at.segment.0,
        "offset": at.offset,
        "sequence": at.sequence,
        "reason": at.reason,
    })
}

fn show_ranges(ranges: &[ByteRange]) -> Value {
    let shown = ranges
        .iter()
        .map(|range| json!({"offset": range.start(), "len": range.len()}));
    shown.collect()
}

fn show_lost(lost: &LostClean) -> Value {
    json!({
        "at": show_place(&lost.at),
        "ksets": lost.ksets,
        "keys": lost.keys,
        "bytes": lost.bytes,
        "bad_keys": lost.bad_keys,
        "bad_ranges": show_ranges(&lost.bad_ranges),
    })
}

fn show_missing(missing: &Missing) -> Value {
    json!({
        "at": show_place(&missing.at),
        "proof": missing.proof,
        "ksets": missing.ksets,
        "keys": missing.keys,
        "dirty_bytes": missing.dirty_bytes,
        "ranges": show_ranges(&missing.ranges),
        "ranges_left_off": missing.ranges_left_off,
    })
}

fn show_replay(report: &ReplayReport) -> Value {
    json!({
        "ksets": report.ksets,
        "keys": report.keys,
        "stale_keys": report.stale_keys,
        "staged_keys": report.staged_keys,
        "dirty_bytes": report.dirty_bytes,
        "bad_bytes": report.bad_bytes,
        "elapsed_us": report.elapsed_us,
        "keys_per_second": report.keys.saturating_mul(1_000_000) / report.elapsed_us.max(1),
        "staging_missing": report.staging_missing,
        "clean_dropped": report.clean_dropped,
        "lost_clean": report.lost_clean.as_ref().map(show_lost),
        "missing": report.missing.as_ref().map(show_missing),
        "unwritable": report.unwritable.map(|lost| json!({"item": lost.item, "at": lost.at})),
    })
}

/// What the status says of a cache that was loaded for salvage; null for others.
pub(super) fn show_salvage(cache: &Cache) -> Value {
    if !cache.is_salvaged() {
        return Value::Null;
    }
    let report = cache.replay_report();
    json!({
        "missing": report.missing.as_ref().map(show_missing),
        "lost_clean": report.lost_clean.as_ref().map(show_lost),
    })
}
