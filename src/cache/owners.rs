//! Who owns the segments of a pool, and how they change hands.
//!
//! Infos say of a segment with which resize of its cache it joins or leaves; the table counts the
//! resizes, and so is what decides. Infos are durable first. Whatever is cut off, each segment has one
//! owner or none: what the table has not counted has not happened.

use super::CacheError;
use super::control_io::{PairState, load_pair, wipe_pair};
use super::fault::{self, Fault};
use super::geometry::{PoolGeometry, SegmentItem};
use super::log_reader::LogView;
use super::plausible::check_count;
use super::pool::Pool;
use crate::bdev::{Pmem, PmemError};
use crate::media::{CacheEntry, Generation, SegmentInfo, SlotKind};
use crate::units::SegmentId;
use std::collections::BTreeSet;
use std::sync::PoisonError;
use zerocopy::little_endian::{U32, U64};

/// A segment that a cache has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) id: SegmentId,
    /// On media, and above all that it or its place in the cache had.
    pub(crate) generation: u64,
}

fn info_at(geometry: &PoolGeometry, id: SegmentId) -> u64 {
    geometry.segment_start(id) + SegmentItem::Info as u64
}

/// Changes a segment's info; where none can be read it begins as that of nobody.
fn change_info(
    pmem: &dyn Pmem,
    geometry: &PoolGeometry,
    id: SegmentId,
    change: impl FnOnce(&mut SegmentInfo),
) -> Result<(), PmemError> {
    let at = info_at(geometry, id);
    let found = load_pair::<SegmentInfo>(pmem, at, SlotKind::SegmentInfo, "segment info");
    let nobody = SegmentInfo {
        cache: [0; 16],
        segment: U32::new(id.0),
        place: U32::ZERO,
        flags: U32::ZERO,
        joined: U64::ZERO,
        left: U64::ZERO,
        spare: [0; 4],
    };
    let (mut body, mut pair) = found.unwrap_or_else(|_| (nobody, PairState::fresh(at)));
    change(&mut body);
    pair.store(pmem, SlotKind::SegmentInfo, &body)
}

/// Gives a segment to `cache`, or to nobody if that is zero. A bad one stays bad, whoever owns it.
fn give(info: &mut SegmentInfo, cache: [u8; 16], place: u32, joined: u64) {
    info.cache = cache;
    info.place = U32::new(place);
    info.joined = U64::new(joined);
    info.left = U64::ZERO;
}

/// Says that a segment is nobody's. Not durable before a barrier.
///
/// # Errors
/// The medium's.
pub(super) fn disown(
    pmem: &dyn Pmem,
    geometry: &PoolGeometry,
    id: SegmentId,
) -> Result<(), PmemError> {
    change_info(pmem, geometry, id, |info| give(info, [0; 16], 0, 0))
}

/// Marks a segment of `cache` as bad; `place` counts if its info can't be read. Not durable before a
/// barrier.
///
/// # Errors
/// The medium's; it is not marked.
pub(crate) fn mark_bad(
    pmem: &dyn Pmem,
    geometry: &PoolGeometry,
    id: SegmentId,
    cache: [u8; 16],
    place: u32,
) -> Result<(), PmemError> {
    change_info(pmem, geometry, id, |info| {
        if info.cache == [0; 16] {
            give(info, cache, place, 0);
        }
        info.flags = U32::new(info.flags.get() | SegmentInfo::BAD);
    })
}

/// Wipes what a resize that was cut off said of segments of the cache of `view`: with the next one it
/// would come true. Before the cache runs, so that nobody else writes there.
///
/// # Errors
/// The medium's.
pub(super) fn forget_leaving(
    pool: &Pool,
    view: &LogView,
    entry: &CacheEntry,
) -> Result<(), CacheError> {
    let mut leaving = Vec::new();
    for (_, id) in view.segments.iter() {
        let info = pool.segment_info(id)?;
        if info.left.get() > entry.resizes.get() {
            leaving.push(id);
        }
    }
    if fault::injected(Fault::LeavingMarkKept) {
        return Ok(());
    }
    pool.change_infos(&leaving, |_, info| info.left = U64::ZERO)
}

impl Pool {
    pub(super) fn segment_info(&self, id: SegmentId) -> Result<SegmentInfo, CacheError> {
        let at = info_at(&self.geometry, id);
        let (pmem, kind) = (&*self.pmem, SlotKind::SegmentInfo);
        let (info, _) = load_pair::<SegmentInfo>(pmem, at, kind, "segment info")?;
        if info.segment.get() != id.0 {
            let (found, expected) = (info.segment.get().into(), id.0.into());
            return Err(CacheError::Identity {
                item: "segment info",
                at,
                found,
                expected,
            });
        }
        Ok(info)
    }

    /// The info of every segment.
    ///
    /// # Errors
    /// Corrupt metadata, naming the segment's place.
    pub(crate) fn segment_infos(&self) -> Result<Vec<SegmentInfo>, CacheError> {
        (0..self.geometry.segments)
            .map(|id| self.segment_info(SegmentId(id)))
            .collect()
    }

    /// Changes infos, each by its number among `ids`, durably in both slots: should one be lost, what is
    /// left must not speak of an owner before.
    fn change_infos(
        &self,
        ids: &[SegmentId],
        change: impl Fn(usize, &mut SegmentInfo),
    ) -> Result<(), CacheError> {
        if ids.is_empty() {
            return Ok(());
        }
        for _ in 0..2 {
            for (number, id) in ids.iter().enumerate() {
                change_info(&*self.pmem, &self.geometry, *id, |info| {
                    change(number, info);
                })?;
            }
            self.barrier_wait()?;
        }
        Ok(())
    }

    /// The first `wanted` segments that nobody owns and that are good.
    fn pick_free(&self, infos: &[SegmentInfo], wanted: u32) -> Result<Vec<SegmentId>, CacheError> {
        let entries = self.caches();
        let is_free =
            |info: &&SegmentInfo| !info.is_bad() && !entries.iter().any(|entry| info.is_of(entry));
        let free: Vec<SegmentId> = infos
            .iter()
            .filter(is_free)
            .map(|info| SegmentId(info.segment.get()))
            .collect();
        free.get(..wanted as usize)
            .map(<[_]>::to_vec)
            .ok_or_else(|| CacheError::NoSegments {
                wanted,
                free: u32::try_from(free.len()).unwrap_or(u32::MAX),
            })
    }

    /// Begins another life of segments that nobody owns: a generation above any that they had and above
    /// `above`, and no START of an earlier life.
    fn begin_lives(&self, ids: &[SegmentId], above: u64) -> Result<Vec<Joined>, CacheError> {
        let mut joined = Vec::new();
        for &id in ids {
            let control = self.geometry.segment_start(id);
            let at = control + SegmentItem::Generation as u64;
            let (body, mut pair) =
                load_pair::<Generation>(&*self.pmem, at, SlotKind::Generation, "generation")?;
            check_count("generation", at, body.generation.get())?;
            let generation = body.generation.get().max(above) + 1;
            let body = Generation {
                generation: U64::new(generation),
                ..body
            };
            pair.store(&*self.pmem, SlotKind::Generation, &body)?;
            wipe_pair(&*self.pmem, control + SegmentItem::LogStart as u64)?;
            joined.push(Joined { id, generation });
        }
        Ok(joined)
    }

    /// Takes free segments for a cache to be made. They are its own once the table names it.
    pub(super) fn take_for_new(
        &self,
        cache: [u8; 16],
        wanted: u32,
    ) -> Result<Vec<Joined>, CacheError> {
        self.refuse_changes()?;
        let infos = self.segment_infos()?;
        let ids = self.pick_free(&infos, wanted)?;
        let joined = self.begin_lives(&ids, 0)?;
        self.change_infos(&ids, |number, info| {
            give(info, cache, u32::try_from(number).unwrap_or(u32::MAX), 0);
        })?;
        // A create that was cut off, or a destroyed cache, may have had the same UUID.
        let stale = infos.iter().filter(|info| info.cache == cache);
        let stale = stale.map(|info| SegmentId(info.segment.get()));
        let stale: Vec<SegmentId> = stale.filter(|id| !ids.contains(id)).collect();
        self.change_infos(&stale, |_, info| give(info, [0; 16], 0, 0))?;
        Ok(joined)
    }

    /// Gives `more` free segments to a cache, durably. Their generations are above `above`.
    ///
    /// # Errors
    /// Too few free segments; a medium that fails. The cache has what it had.
    pub(super) fn grow_cache(
        &self,
        cache: [u8; 16],
        more: u32,
        above: u64,
    ) -> Result<Vec<Joined>, CacheError> {
        let _turn = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        self.refuse_changes()?;
        self.refuse_lost_table()?;
        let (place, entry) = self.find_uuid(cache)?;
        let infos = self.segment_infos()?;
        self.disown_stale(&infos, &entry)?;
        let ids = self.pick_free(&infos, more)?;
        let taken: BTreeSet<u32> = infos
            .iter()
            .filter(|info| info.is_of(&entry))
            .map(|info| info.place.get())
            .collect();
        let places: Vec<u32> = (0..)
            .filter(|at| !taken.contains(at))
            .take(ids.len())
            .collect();
        let resizes = entry.resizes.get() + 1;
        let joined = self.begin_lives(&ids, above)?;
        if !fault::injected(Fault::GrownBeforeDurable) {
            self.change_infos(&ids, |number, info| {
                give(info, cache, places[number], resizes);
            })?;
        }
        self.count_resize(place, entry.segments.get() + more, resizes)?;
        Ok(joined)
    }

    /// Takes segments from a cache that refers to them no more, durably.
    ///
    /// # Errors
    /// A medium that fails. The cache has what it had, but must not be resized before its next load.
    pub(super) fn give_back(&self, cache: [u8; 16], ids: &[SegmentId]) -> Result<(), CacheError> {
        let _turn = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        self.refuse_changes()?;
        let (place, entry) = self.find_uuid(cache)?;
        self.disown_stale(&self.segment_infos()?, &entry)?;
        let resizes = entry.resizes.get() + 1;
        self.change_infos(ids, |_, info| info.left = U64::new(resizes))?;
        let gone = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        self.count_resize(place, entry.segments.get().saturating_sub(gone), resizes)?;
        // From here on they are free; that their infos name the cache is of no consequence.
        if let Err(error) = self.change_infos(ids, |_, info| give(info, [0; 16], 0, 0)) {
            tracing::warn!(%error, "infos of segments that were given back stay as they are");
        }
        Ok(())
    }

    /// What a resize that was cut off left behind would come true with the next one.
    fn disown_stale(&self, infos: &[SegmentInfo], entry: &CacheEntry) -> Result<(), CacheError> {
        let stale = infos
            .iter()
            .filter(|info| info.names(entry) && !info.is_of(entry));
        let stale: Vec<SegmentId> = stale.map(|info| SegmentId(info.segment.get())).collect();
        self.change_infos(&stale, |_, info| give(info, [0; 16], 0, 0))
    }

    /// The table says how many segments the cache has: from here on the resize has happened.
    fn count_resize(&self, place: usize, segments: u32, resizes: u64) -> Result<(), CacheError> {
        self.update(|caches| {
            if let Some(entry) = caches.get_mut(place) {
                entry.segments = U32::new(segments);
                entry.resizes = U64::new(resizes);
            }
            Ok(())
        })?;
        self.repeat_table();
        Ok(())
    }

    /// Both copies of the table say the same, before anybody relies on it: the loss of one must not undo
    /// what it says.
    fn repeat_table(&self) {
        if let Err(error) = self.update(|_| Ok(())) {
            tracing::warn!(%error, "a change of the table stands in one copy only");
        }
    }

    /// Records how large the backing of a cache is.
    ///
    /// # Errors
    /// A medium that fails.
    pub(super) fn record_backing_bytes(
        &self,
        cache: [u8; 16],
        bytes: u64,
    ) -> Result<(), CacheError> {
        let (place, _) = self.find_uuid(cache)?;
        self.update(|caches| {
            if let Some(entry) = caches.get_mut(place) {
                entry.backing_bytes = U64::new(bytes);
            }
            Ok(())
        })?;
        self.repeat_table();
        Ok(())
    }
}
