//! What the log may hold of a range, as a lane knows it by its index and its marks: whether all of it is
//! written back, whether replay would find something, and whether a read may be kept.

use super::fault::{self, Fault};
use super::key::Key;
use super::key_index::BLOCK;
use super::lane::{Job, Lane};
use super::marks::LastKset;
use super::shared::Shared;
use crate::media::{self, KeyFlags};
use crate::units::ByteRange;
use std::sync::atomic::Ordering;

/// A write's part of a lane, as the index counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) subtree: usize,
    pub(super) start: u16,
    pub(super) end: u16,
}

impl Place {
    pub(super) fn of(shared: &Shared, range: ByteRange) -> Self {
        let (subtree, start, end) = Lane::locate(shared, range);
        Self {
            subtree,
            start,
            end,
        }
    }
}

impl Lane {
    /// Whether the durable dirty tail is past every dirty key of a range that the log has.
    pub(super) fn is_written_back(&self, shared: &Shared, place: Place) -> bool {
        let tail = shared.maintenance.dirty_sequence.load(Ordering::Acquire);
        if self
            .marks
            .is_written_back(place.subtree, self.placed_order, tail)
        {
            return true;
        }
        // The index forgets a dirty key only for a newer one, which is dirty too, or behind the tail.
        let Place {
            subtree,
            start,
            end,
        } = place;
        let is_dirty = |key: &Key| {
            !key.kind.is_placeholder() && (key.kind.flags().is_dirty() || key.kind.is_bad())
        };
        !self.index.any(subtree, start, end, is_dirty)
    }

    /// Whether replay may find something for a range that is not what the backing is about to get.
    pub(super) fn wants_invalid(&self, shared: &Shared, place: Place) -> bool {
        let tail = shared.maintenance.key_sequence.load(Ordering::Acquire);
        !self
            .marks
            .is_out_of_log(place.subtree, self.placed_order, tail)
    }

    /// Whether the cache knows that the backing is newer. Of a write that has ended, so durably.
    pub(super) fn is_invalid(&self, place: Place) -> bool {
        let mut is_invalid = true;
        let Place {
            subtree,
            start,
            end,
        } = place;
        self.index.walk(subtree, start, end, |piece| {
            let invalid =
                |key: Key| !key.kind.is_placeholder() && key.kind.flags().has(KeyFlags::INVALID);
            is_invalid &= piece.key.is_some_and(invalid);
        });
        is_invalid
    }

    /// A key was appended to the open kset `order`.
    pub(crate) fn mark_key(&mut self, shared: &Shared, order: u64, key: &media::Key) {
        let flags = key.flags();
        if !flags.has(KeyFlags::INVALID) {
            let (start, len) = (key.offset.get(), u64::from(key.len.get()));
            let range = ByteRange::between(start, start + len);
            let (subtree, ..) = Self::locate(shared, range);
            self.marks.note_key(subtree, order, flags.is_dirty());
            if flags.is_dirty() {
                let below = |(job, _): &&mut (Job, _)| job.request.range.overlaps(range);
                for (_, older) in self.bypass.for_tail.iter_mut().filter(below) {
                    *older = LastKset::new(order, 0);
                }
            }
        }
    }

    /// Kset `order`, with these keys, has its place.
    pub(crate) fn mark_placed(
        &mut self,
        shared: &Shared,
        (slot, count): (usize, usize),
        order: u64,
        sequence: u64,
    ) {
        let keys = self.staging.keys(slot, count);
        let subtrees = keys.iter().map(|key| {
            let range = ByteRange::between(key.offset.get(), key.offset.get() + BLOCK);
            Self::locate(shared, range).0
        });
        self.marks.place(order, sequence, subtrees);
        for (_, older) in &mut self.bypass.for_tail {
            older.place(order, sequence);
        }
    }

    /// Whether what a read brings may be kept: what bypassed the cache there is safe on the backing.
    pub(crate) fn admits(&self, shared: &Shared, range: ByteRange) -> bool {
        if !shared.bypassed.owes_flush() || fault::injected(Fault::AdmitBeforeFlush) {
            return true;
        }
        let (subtree, ..) = Self::locate(shared, range);
        // An earlier process may have left one, as number 1, anywhere.
        let last = self.marks.last_bypassed(subtree).max(1);
        shared.bypassed.is_safe(last)
    }
}
