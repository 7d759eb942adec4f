//! Flushes that clients asked for: what they found when they began.

use super::shared::Shared;
use crate::cache::Cache;
use reactors::Nanos;
use std::collections::BTreeMap;
use uuid::Uuid;

#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Nanos,
    /// Bytes that writeback had written until then.
    written: u64,
}

/// How far a flush has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// It goes on.
    pub(super) in_progress: bool,
    /// Bytes that the backing lacks.
    pub(super) remaining_bytes: u64,
    /// Bytes a second since it began; 0 if none was asked for.
    pub(super) rate_bps: u64,
}

/// The last flush of each cache.
#[derive(Debug, Default)]
pub(super) struct Flushes(Shared<BTreeMap<Uuid, Begun>>);

impl Flushes {
    /// Starts one; one that goes on already goes on.
    pub(super) fn start(&self, cache: &Cache, now: Nanos) {
        let written = cache.writeback_figures().bytes;
        let begun = Begun { at: now, written };
        if cache.is_flushing() {
            return;
        }
        self.0.with(|flushes| flushes.insert(cache.uuid(), begun));
        cache.flush_start();
    }

    /// How far the last one has come.
    pub(super) fn progress(&self, cache: &Cache, now: Nanos) -> Progress {
        let begun = self.0.with(|flushes| flushes.get(&cache.uuid()).copied());
        let in_progress = cache.is_flushing();
        let rate_bps = begun.map_or(0, |begun| {
            let written = cache
                .writeback_figures()
                .bytes
                .saturating_sub(begun.written);
            let elapsed_us = (now.since(begun.at) / 1000).max(1);
            written.saturating_mul(1_000_000) / elapsed_us
        });
        Progress {
            in_progress,
            remaining_bytes: cache.dirty_bytes(),
            rate_bps,
        }
    }

    /// Whether one was asked for, has ended, and nothing is dirty since.
    pub(super) fn is_complete(&self, cache: &Cache) -> bool {
        let asked = self.0.with(|flushes| flushes.contains_key(&cache.uuid()));
        asked && !cache.is_flushing() && cache.dirty_bytes() == 0
    }

    /// Forgets those of a cache that is unloaded.
    pub(super) fn forget(&self, uuid: Uuid) {
        self.0.with(|flushes| flushes.remove(&uuid));
    }
}
