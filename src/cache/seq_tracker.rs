//! Up to where every kset is done: lanes finish out of order, the log counts only without gaps.

use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};

/// Places for ksets that have a sequence and are not done: more than all lanes can have.
const WINDOW: usize = 4096;

/// The highest sequence up to which every kset is done.
///
/// Invariant: sequences above the mark are at most [`WINDOW`] ahead (each unfinished one occupies a
/// staging slot, 8 for each of at most 128 lanes, and a LAST shares its kset's).
#[derive(Debug)]
pub(crate) struct SeqTracker {
    mark: CachePadded<AtomicU64>,
    done: Box<[AtomicU64]>,
}

fn place(sequence: u64) -> usize {
    usize::try_from(sequence % WINDOW as u64).unwrap_or(0)
}

impl SeqTracker {
    /// All up to `mark` are done.
    pub(crate) fn new(mark: u64) -> Self {
        Self {
            mark: CachePadded::new(AtomicU64::new(mark)),
            done: (0..WINDOW).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The highest sequence with no gap below.
    pub(crate) fn mark(&self) -> u64 {
        self.mark.load(Ordering::Acquire)
    }

    /// Says that `sequence` is done, and moves the mark as far as there is no gap.
    pub(crate) fn finish(&self, sequence: u64) {
        // Sequentially consistent, so that of two neighbours that finish at once one sees the other.
        self.done[place(sequence)].store(sequence, Ordering::SeqCst);
        let mut mark = self.mark.load(Ordering::SeqCst);
        while self.done[place(mark + 1)].load(Ordering::SeqCst) == mark + 1 {
            match self
                .mark
                .compare_exchange(mark, mark + 1, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => mark += 1,
                Err(now) => mark = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stops_at_the_first_gap() {
        let tracker = SeqTracker::new(10);
        tracker.finish(12);
        tracker.finish(13);
        assert_eq!(tracker.mark(), 10);
        tracker.finish(11);
        assert_eq!(tracker.mark(), 13);
    }

    #[test]
    fn threads_that_finish_together_leave_no_gap() {
        let tracker = SeqTracker::new(0);
        std::thread::scope(|scope| {
            for worker in 0..4_u64 {
                let tracker = &tracker;
                scope.spawn(move || {
                    for i in 0..20_000_u64 {
                        let sequence = i * 4 + worker + 1;
                        while sequence > tracker.mark() + 1000 {
                            std::hint::spin_loop();
                        }
                        tracker.finish(sequence);
                    }
                });
            }
        });
        assert_eq!(tracker.mark(), 80_000);
    }
}
