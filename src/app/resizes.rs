//! Resizes of caches: begun by a method, which waits for the end for a while; a thread sees to the rest.

use super::caches::{self, cache_error, cache_object};
use super::service::Service;
use super::shared::poll_until;
use crate::cache::{Cache, CacheError};
use rpc::Error;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long the method waits. Others have connections of their own meanwhile.
const RESIZE_WAIT: Duration = Duration::from_secs(5);
/// How often the thread looks.
const PAUSE: Duration = Duration::from_millis(10);

/// What a resize came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resized {
    /// Bytes of pool space before.
    pub(super) old_bytes: u64,
    /// And behind it.
    pub(super) new_bytes: u64,
    /// It goes on.
    pub(super) in_progress: bool,
}

/// Nothing while it is under way.
fn step(cache: &Cache) -> Option<Result<(), CacheError>> {
    cache
        .resize_step()
        .map(|done| done.then_some(()))
        .transpose()
}

/// Gives the cache `name` `bytes` of pool space.
pub(super) fn resize_cache(service: &Service, name: &str, bytes: u64) -> Result<Resized, Error> {
    let object = cache_object(name);
    let cache = caches::find(service, name)?;
    let refused = |error| cache_error(&object, &error);
    let begun = cache.resize_start(bytes).map_err(refused)?;
    let mut ended = None;
    poll_until(RESIZE_WAIT, || {
        ended = step(&cache);
        ended.is_some()
    });
    let in_progress = ended.is_none();
    ended.unwrap_or(Ok(())).map_err(refused)?;
    let segment_bytes = u64::from(begun.new_segments) * cache.pool().geometry().segment_bytes;
    if in_progress {
        see_to_the_end(&cache).map_err(refused)?;
    } else if cache.status().segments_total != begun.new_segments {
        // Another connection had it called off.
        let why = "the resize was called off".to_owned();
        return Err(refused(CacheError::Busy(why)));
    }
    Ok(Resized {
        old_bytes: u64::from(begun.old_segments) * cache.pool().geometry().segment_bytes,
        new_bytes: segment_bytes,
        in_progress,
    })
}

/// Takes the resize on until it is over, in a thread that keeps nobody from taking the cache down.
fn see_to_the_end(cache: &Arc<Cache>) -> Result<(), CacheError> {
    let cache = Arc::downgrade(cache);
    let thread = std::thread::Builder::new().name("resize".into());
    let run = move || {
        while !is_over(&cache) {
            std::thread::park_timeout(PAUSE);
        }
    };
    thread
        .spawn(run)
        .map(drop)
        .map_err(|source| CacheError::Os {
            what: "a thread for the resize".into(),
            source,
        })
}

fn is_over(cache: &Weak<Cache>) -> bool {
    let Some(cache) = cache.upgrade() else {
        return true;
    };
    match step(&cache) {
        None => false,
        Some(Ok(())) => {
            let segments = cache.status().segments_total;
            tracing::info!(cache = cache.name(), segments, "the resize is over");
            true
        }
        Some(Err(error)) => {
            tracing::warn!(cache = cache.name(), %error, "the resize has failed");
            true
        }
    }
}
