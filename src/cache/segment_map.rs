//! Which segments of the pool are the cache's, and which place each has.

use super::geometry::{PoolGeometry, SegIx};
use crate::units::SegmentId;

const NONE: u32 = u32::MAX;

/// The segments of a cache, in order.
#[derive(Clone, Debug)]
pub(crate) struct SegmentMap {
    ids: Box<[SegmentId]>,
    /// For each segment of the pool its place in `ids`.
    places: Box<[u32]>,
    /// By their place: marked as bad.
    bad: Box<[bool]>,
}

impl SegmentMap {
    /// `ids` in order, each with whether it is marked as bad.
    pub(crate) fn new(segments: Vec<(SegmentId, bool)>, geometry: &PoolGeometry) -> Self {
        let (ids, bad): (Vec<SegmentId>, Vec<bool>) = segments.into_iter().unzip();
        let mut places = vec![NONE; geometry.segments as usize].into_boxed_slice();
        for (place, id) in ids.iter().enumerate() {
            if let Some(slot) = places.get_mut(id.index()) {
                *slot = SegIx::of(place).0;
            }
        }
        Self {
            ids: ids.into_boxed_slice(),
            places,
            bad: bad.into_boxed_slice(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn id(&self, segment: SegIx) -> SegmentId {
        self.ids[segment.index()]
    }

    /// Whether it was marked as bad by an earlier run.
    pub(crate) fn is_bad(&self, segment: SegIx) -> bool {
        self.bad[segment.index()]
    }

    /// Takes it for one that was.
    pub(crate) fn mark_bad(&mut self, segment: SegIx) {
        if let Some(bad) = self.bad.get_mut(segment.index()) {
            *bad = true;
        }
    }

    pub(crate) fn ids(&self) -> &[SegmentId] {
        &self.ids
    }

    /// The place of the pool's segment `id`, if the cache owns it.
    pub(crate) fn find(&self, id: u32) -> Option<SegIx> {
        self.places
            .get(id as usize)
            .filter(|&&place| place != NONE)
            .map(|&place| SegIx(place))
    }
}
