//! What a controller that came back may have forgotten.
//!
//! A write that was acknowledged into a volatile cache is safe only after a flush. If the controller
//! dies in between and comes back, a flush would succeed there and mean nothing for that write. So the
//! next flush of each channel fails: its user writes again what it can't do without, as after any other
//! failed flush.

use std::sync::atomic::{AtomicU64, Ordering};

/// An epoch is in the bits above: one for each association.
const WRITES_BITS: u32 = 40;

/// Acknowledged writes of a controller, shared by its queues on all reactors.
///
/// Both marks are an epoch and a count of writes therein, and only grow. What lies between them may be
/// in a volatile cache.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    acknowledged: AtomicU64,
    flushed: AtomicU64,
    /// How often acknowledged writes may have been forgotten.
    forgotten: AtomicU64,
}

/// How far writes were acknowledged when a flush was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark(u64);

fn epoch_of(mark: u64) -> u64 {
    mark >> WRITES_BITS
}

impl Unflushed {
    /// A write of association `epoch` was acknowledged; to be called before its user hears of that.
    pub(super) fn note_write(&self, epoch: u32) {
        let epoch = u64::from(epoch);
        let noted = self
            .acknowledged
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
                match epoch_of(last) {
                    newer if newer > epoch => None,
                    same if same == epoch => Some(last + 1),
                    _ => Some(epoch << WRITES_BITS | 1),
                }
            });
        match noted {
            Ok(last) if epoch_of(last) == epoch => {}
            Ok(last) => self.note_end(last),
            // The acknowledgement of an association that has ended since.
            Err(_) => self.note_forgotten(),
        }
    }

    /// The association of `last` has ended: what of it was not flushed is in doubt.
    fn note_end(&self, last: u64) {
        if self.flushed.fetch_max(last, Ordering::SeqCst) < last {
            self.note_forgotten();
        }
    }

    /// Part of what was acknowledged may be gone, though the association is not.
    pub(super) fn note_loss(&self) {
        self.note_end(self.acknowledged.load(Ordering::SeqCst));
    }

    fn note_forgotten(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
    }

    /// A flush is to be sent in association `epoch`.
    pub(super) fn begin_flush(&self, epoch: u32) -> Mark {
        let last = self.acknowledged.load(Ordering::SeqCst);
        if epoch_of(last) < u64::from(epoch) {
            self.note_end(last);
        }
        Mark(last)
    }

    /// The flush that began with `mark` has succeeded.
    pub(super) fn end_flush(&self, mark: Mark) {
        self.flushed.fetch_max(mark.0, Ordering::SeqCst);
    }

    /// How often acknowledged writes may have been forgotten so far.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_counts_once_and_only_if_something_was_not_flushed() {
        let state = Unflushed::default();
        state.begin_flush(1);
        assert_eq!(state.forgotten(), 0);
        state.note_write(1);
        let mark = state.begin_flush(1);
        state.end_flush(mark);
        state.begin_flush(2);
        assert_eq!(state.forgotten(), 0, "all was flushed");
        state.note_write(2);
        state.begin_flush(3);
        state.begin_flush(3);
        assert_eq!(state.forgotten(), 1);
    }

    #[test]
    fn a_write_behind_the_mark_is_not_covered_by_the_flush() {
        let state = Unflushed::default();
        state.note_write(1);
        let mark = state.begin_flush(1);
        state.note_write(1);
        state.end_flush(mark);
        state.begin_flush(2);
        assert_eq!(state.forgotten(), 1);
    }

    #[test]
    fn a_flush_that_was_under_way_covers_nothing() {
        let state = Unflushed::default();
        state.note_write(1);
        state.begin_flush(1);
        // The connection is lost here; another queue flushes first.
        state.begin_flush(2);
        assert_eq!(state.forgotten(), 1);
    }

    #[test]
    fn writes_of_the_next_association_do_not_hide_those_before() {
        let state = Unflushed::default();
        state.note_write(1);
        state.note_write(2);
        assert_eq!(state.forgotten(), 1);
        let mark = state.begin_flush(2);
        state.end_flush(mark);
        state.begin_flush(3);
        assert_eq!(state.forgotten(), 1);
        // Heard of late, by a queue that had not noticed.
        state.note_write(3);
        state.note_write(2);
        assert_eq!(state.forgotten(), 2);
    }
}
