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

/// What `bdev_pmcache_load` answers.
const LOAD_RESULT: &str = "`name`, `uuid`, and `replay`:

- `ksets`, `keys`, `stale_keys` (their segment was released, or they are copies that count no more), `staged_keys` (from
  the staging file), `dirty_bytes`, `bad_bytes`, `elapsed_us`, `keys_per_second`;
- `staging_missing`: the staging file is gone (also noted in `service_get_health`);
- `clean_dropped`: `force` took a backing that is not what it was, without what the cache only repeats of it;
- `lost_clean`: null, or the log is damaged before the dirty tail, and the load began there (also noted in the health): `at`
  {`segment`, `offset`, `sequence`, `reason`}; `ksets` between the key tail and the dirty tail; `keys`, `bytes` of those
  that can be read; `bad_keys`, `bad_ranges` (a list of {`offset`, `len`}, at most 256): data that could not be read when they
  were to be written back, which read as the backing's older bytes from now on, unless written since;
- `missing`: null, or what a salvaged cache lacks (also noted in the health): `at`; `proof`, the sequence up to which the
  log is known to have been durable; `ksets`, `keys`, `dirty_bytes` behind `at` that can still be read, those of the staging file
  among them; `ranges` (at most 256, `ranges_left_off` more), which read as they were before. What stood in unreadable ksets is not known;
- `unwritable`: null, or {`item`, `at`}: a run would have to write there, and the medium does not take it. The cache is whole and
  read-only, as if loaded for salvage (also noted in the health).

−16 if it is loaded the other way (`salvage`). −116 for another backing, also with `force` for one of another size; −117
for damage; −30 for a pool that has failed; −16, −19.";

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_load", load).about(
        "Loads a cache of a pool. What is loaded is answered as loaded. A load after a \
             clean stop reads up to 3 MiB of the backing to compare it with what it was, for \
             at most 5 s.",
        LOAD_RESULT,
    );
}

/// `bdev_pmcache_load`: the cache `name` or `uuid` of `pool`, in front of `backing_bdev` or of the
/// bdev that was recorded. What is loaded already is answered as loaded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Load {
    /// A loaded pool.
    pool: String,
    /// Which cache; this or `uuid` is needed.
    name: Option<String>,
    /// Which cache.
    uuid: Option<Uuid>,
    /// The bdev below; if not given, the recorded one.
    backing_bdev: Option<String>,
    /// Take a backing of another identity, or one that was changed since the last clean stop or
    /// can't be compared. What the cache holds only as a copy of it is dropped; dirty data will be
    /// written to it.
    #[serde(default)]
    force: bool,
    /// For reading only, up to where the log is damaged; nothing in the pool and the staging file
    /// is changed, and nothing is written back.
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

pub(super) fn show_place(at: &BadPlace) -> Value {
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
