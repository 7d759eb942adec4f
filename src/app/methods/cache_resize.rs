//! Resizing caches.

use crate::app::resizes::resize_cache;
use crate::app::service::Service;
use crate::cache::Cache;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// What `bdev_pmcache_resize` answers.
const RESIZE_RESULT: &str = "`old_size`, `new_size` (bytes, rounded down to whole segments), and `in_progress`: a shrink that \
takes longer than 5 s goes on in the background, and `bdev_pmcache_get` shows it as `resize`. −22 below what a cache needs, −28 if \
the pool has not enough free segments, −114 while another resize is under way (one to the size that the cache has calls that \
off), −16 if the cache is being stopped, or another client called this one off, −30 if it is read-only, −19.";

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_resize", resize).about(
        "Gives a cache more or less pool space while it serves. It grows by free segments of its pool, at \
             once. It shrinks by segments that are drained first: dirty data are written back as if requests \
             waited for space, cached data are dropped. A stop, or the death of the process, calls a shrink off \
             that is not done; the size is the old one or the new one, never anything in between.",
        RESIZE_RESULT,
    );
}

/// `bdev_pmcache_resize`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Resize {
    /// The cache.
    name: String,
    /// Bytes of pool space, as in `bdev_pmcache_create`.
    size: u64,
}

fn resize(service: &Service, params: Resize) -> Result<Value, Error> {
    let resized = resize_cache(service, &params.name, params.size)?;
    Ok(json!({
        "old_size": resized.old_bytes,
        "new_size": resized.new_bytes,
        "in_progress": resized.in_progress,
    }))
}

/// What the status says of a resize that is under way; else null.
pub(super) fn show_resize(cache: &Cache) -> Value {
    let segment_bytes = cache.pool().geometry().segment_bytes;
    cache.resize_status().map_or(Value::Null, |status| {
        json!({
            "old_size": u64::from(status.old_segments) * segment_bytes,
            "new_size": u64::from(status.new_segments) * segment_bytes,
            "draining_segments": status.draining,
        })
    })
}
