//! Which segments of the pool are the cache's, and which place each has.
//!
//! There are as many places as the pool has segments, so that a cache can grow while it runs; those
//! behind its own are vacant. Whoever knows of a segment has it from the allocator or from the log, both
//! of which are told behind the map: relaxed accesses do.

use super::geometry::{PoolGeometry, SEGMENTS_MAX, SegIx};
use crate::units::SegmentId;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const NONE: u32 = u32::MAX;

/// The segments of a cache, in order.
#[derive(Debug)]
pub(crate) struct SegmentMap {
    /// By place: the segment of the pool, or `NONE`.
    ids: Box<[AtomicU32]>,
    /// For each segment of the pool its place in `ids`.
    places: Box<[AtomicU32]>,
    /// By their place: marked as bad when the cache was loaded.
    bad: Box<[AtomicBool]>,
}

impl SegmentMap {
    /// `ids` in order, each with whether it is marked as bad.
    pub(crate) fn new(segments: &[(SegmentId, bool)], geometry: &PoolGeometry) -> Self {
        let none = |count: usize| (0..count).map(|_| AtomicU32::new(NONE)).collect();
        let places = (geometry.segments.min(SEGMENTS_MAX) as usize).max(segments.len());
        let map = Self {
            ids: none(places),
            places: none(geometry.segments as usize),
            bad: (0..places).map(|_| AtomicBool::new(false)).collect(),
        };
        for (place, &(id, bad)) in segments.iter().enumerate() {
            map.put(SegIx::of(place), id);
            map.bad[place].store(bad, Ordering::Relaxed);
        }
        map
    }

    /// How many places there are, vacant ones included.
    pub(crate) fn places(&self) -> usize {
        self.ids.len()
    }

    /// The segment at a place that is not vacant.
    pub(crate) fn id(&self, segment: SegIx) -> SegmentId {
        SegmentId(self.ids[segment.index()].load(Ordering::Relaxed))
    }

    /// Whether no segment is there.
    pub(crate) fn is_vacant(&self, segment: SegIx) -> bool {
        self.id(segment).0 == NONE
    }

    /// Whether it was marked as bad by an earlier run.
    pub(crate) fn is_bad(&self, segment: SegIx) -> bool {
        self.bad[segment.index()].load(Ordering::Relaxed)
    }

    /// Takes it for one that was.
    pub(crate) fn mark_bad(&self, segment: SegIx) {
        self.bad[segment.index()].store(true, Ordering::Relaxed);
    }

    /// The cache's segments, by their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SegIx, SegmentId)> + '_ {
        let places = (0..self.ids.len()).map(SegIx::of);
        places
            .filter(|&place| !self.is_vacant(place))
            .map(|place| (place, self.id(place)))
    }

    /// How many segments the cache has.
    pub(crate) fn count(&self) -> usize {
        self.iter().count()
    }

    /// Places without a segment.
    pub(crate) fn vacant(&self) -> impl Iterator<Item = SegIx> + '_ {
        let places = (0..self.ids.len()).map(SegIx::of);
        places.filter(|&place| self.is_vacant(place))
    }

    /// The place of the pool's segment `id`, if the cache owns it.
    pub(crate) fn find(&self, id: u32) -> Option<SegIx> {
        let place = self.places.get(id as usize)?.load(Ordering::Relaxed);
        (place != NONE).then_some(SegIx(place))
    }

    /// The pool's segment `id` is the cache's from now on.
    pub(crate) fn put(&self, place: SegIx, id: SegmentId) {
        self.ids[place.index()].store(id.0, Ordering::Relaxed);
        if let Some(slot) = self.places.get(id.index()) {
            slot.store(place.0, Ordering::Relaxed);
        }
    }

    /// The segment at `place`, to which nothing refers, is the cache's no longer.
    pub(crate) fn vacate(&self, place: SegIx) {
        let id = self.ids[place.index()].swap(NONE, Ordering::Relaxed);
        if let Some(slot) = self.places.get(id as usize) {
            slot.store(NONE, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_was_vacated_is_taken_by_another_segment() {
        let geometry = PoolGeometry {
            segment_bytes: 256 << 10,
            data_start: 256 << 10,
            segments: 6,
        };
        let map = SegmentMap::new(&[(SegmentId(4), false), (SegmentId(2), true)], &geometry);
        assert_eq!((map.places(), map.count()), (6, 2));
        assert_eq!(map.find(2), Some(SegIx(1)));
        assert!(map.is_bad(SegIx(1)) && !map.is_bad(SegIx(0)));
        map.put(SegIx(2), SegmentId(5));
        map.vacate(SegIx(1));
        assert_eq!(map.find(2), None);
        assert_eq!(map.vacant().next(), Some(SegIx(1)));
        map.put(SegIx(1), SegmentId(0));
        let owned: Vec<_> = map.iter().map(|(_, id)| id.0).collect();
        assert_eq!(owned, [4, 0, 5]);
        assert_eq!((map.find(0), map.find(6)), (Some(SegIx(1)), None));
    }
}
