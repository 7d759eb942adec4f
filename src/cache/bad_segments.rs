//! Segments that did not take data: what they hold is drained as ever, then they are left alone.
//!
//! They are known until the cache stops: the next run meets the fault again if it is still there.

use super::CacheError;
use super::geometry::{SegIx, segments_needed};
use super::shared::Shared;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// See the module.
#[derive(Debug)]
pub(crate) struct BadSegments {
    flags: Box<[AtomicBool]>,
    count: AtomicU32,
}

impl BadSegments {
    /// None of `segments` is bad.
    pub(crate) fn none(segments: usize) -> Self {
        Self {
            flags: (0..segments).map(|_| AtomicBool::new(false)).collect(),
            count: AtomicU32::new(0),
        }
    }
}

impl Shared {
    /// `segment` has a media error. With fewer good segments than a cache needs to go on, requests
    /// would wait for space for ever: that is the end of the pool.
    pub(crate) fn note_bad(&self, segment: SegIx) {
        if self.bad.flags[segment.index()].swap(true, Ordering::SeqCst) {
            return;
        }
        let bad = self.bad.count.fetch_add(1, Ordering::SeqCst) + 1;
        let id = self.segments[segment.index()];
        tracing::error!(cache = %self.name, segment = id.0, bad, "a segment takes no data");
        let needed = segments_needed(self.lanes, self.log_reserve);
        if self.good_segments() < needed {
            self.fail(&CacheError::NoSegments {
                wanted: needed,
                free: self.good_segments(),
            });
        }
    }

    /// Whether `segment` has a media error.
    pub(crate) fn is_bad(&self, segment: SegIx) -> bool {
        self.bad.flags[segment.index()].load(Ordering::SeqCst)
    }

    /// Segments without media errors.
    pub(crate) fn good_segments(&self) -> u32 {
        self.segment_count()
            .saturating_sub(self.bad.count.load(Ordering::Relaxed))
    }
}
