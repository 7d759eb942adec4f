//! The last steps of a segment's way from used to free: a new generation, and then other hands.

use super::CacheError;
use super::control_io::load_pair;
use super::gc::Gc;
use super::geometry::{SegIx, SegmentItem};
use super::lost::suspect_where;
use crate::media::{Generation, SlotKind};
use std::sync::atomic::Ordering;
use zerocopy::little_endian::U64;

impl Gc {
    /// Raises the generations of what is retiring; false if that can't be done, and GC has stopped.
    pub(super) fn raise_generations(&mut self) -> bool {
        for &segment in &self.retiring {
            if let Err(error) = self.raise_generation(segment) {
                if matches!(error, CacheError::Metadata { .. }) {
                    suspect_where(&self.seed.shared, &self.seed.view, &error);
                }
                if self.seed.shared.is_suspect(segment) {
                    // It gets no other life, whose keys could be taken for those of this one.
                    continue;
                }
                if let CacheError::Medium(error) = &error {
                    self.seed.shared.fail(error);
                }
                self.halt(&error);
                return false;
            }
        }
        true
    }

    pub(super) fn note_retiring(&self) {
        let count = u32::try_from(self.retiring.len()).unwrap_or(u32::MAX);
        self.shared()
            .maintenance
            .retiring
            .store(count, Ordering::Relaxed);
    }

    fn raise_generation(&self, segment: SegIx) -> Result<(), CacheError> {
        let shared = &self.seed.shared;
        let id = shared.segments.id(segment);
        let at = shared.geometry.segment_start(id) + SegmentItem::Generation as u64;
        let (body, mut pair) =
            load_pair::<Generation>(&*shared.pmem, at, SlotKind::Generation, "generation")?;
        // The medium may say less than was found out by the load.
        let now = shared.generations[segment.index()].load(Ordering::SeqCst);
        let generation = body.generation.get().max(now) + 1;
        shared.generations[segment.index()].store(generation, Ordering::SeqCst);
        let body = Generation {
            generation: U64::new(generation),
            ..body
        };
        pair.store(&*shared.pmem, SlotKind::Generation, &body)?;
        Ok(())
    }

    /// Hands the segments out; false if a lock was taken.
    pub(super) fn hand_out(&mut self) -> bool {
        let shared = self.seed.shared.clone();
        if !self.starting.is_empty() {
            let Some(mut log) = shared.log.try_lock() else {
                return false;
            };
            // A segment may be of the log again.
            let tail = self.seed.reader.pos.segment;
            while log.chain.front().is_some_and(|front| *front != tail) {
                log.chain.pop_front();
            }
            log.ready.extend(self.starting.drain(..));
        }
        if !self.retiring.is_empty() {
            let Some(mut alloc) = shared.alloc.try_lock() else {
                return false;
            };
            for segment in self.retiring.drain(..) {
                if shared.is_suspect(segment) {
                    shared
                        .maintenance
                        .bad_drained
                        .fetch_add(1, Ordering::SeqCst);
                } else {
                    alloc.release(segment);
                }
            }
            shared.maintenance.retiring.store(0, Ordering::Relaxed);
            let free = u32::try_from(alloc.free_count()).unwrap_or(u32::MAX);
            shared.free_segments.store(free, Ordering::Relaxed);
            shared
                .maintenance
                .fill_skipped
                .store(false, Ordering::SeqCst);
        }
        shared.ring_waiting_lanes();
        true
    }
}
