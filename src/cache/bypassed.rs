//! What the parts of a cache tell each other about writes that bypass it: whether the backing has
//! flushed them, whether it may have lost some, and who waits for the dirty tail.

use super::fault::{self, Fault};
use super::shared::Shared;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub(crate) struct Bypassed {
    /// The backing may lose what it has acknowledged.
    backing_volatile: bool,
    /// Bypassing writes that have ended and that the backing may lose; begins with 1 if an earlier
    /// process may have left some.
    completed: CachePadded<AtomicU64>,
    /// Of these so many are safe.
    flushed: AtomicU64,
    /// A flush failed behind some: they may be lost, and no later one can tell.
    failed: AtomicBool,
    /// Bypassing writes under way.
    pub(crate) under_way: AtomicU32,
    /// Lanes with writes that wait until the dirty tail is past what is older.
    pub(crate) tail_waiters: AtomicU32,
    /// A fill was left out since the backing may lose what it brought.
    pub(crate) flush_wanted: AtomicBool,
    /// Dirty keys that the backing lacks stand in ksets up to this sequence …
    pub(crate) cached_until: AtomicU64,
    /// … and so did they when a write last bypassed them.
    mixed_until: AtomicU64,
    /// Those who must be gone before the cache can be loaded again.
    gate: AtomicU32,
}

impl Bypassed {
    /// Of a cache whose log reaches to `sequence`. Earlier runs may have let writes bypass older ones that
    /// are dirty yet: no record is kept of when they did.
    pub(crate) fn new(
        backing_volatile: bool,
        owes_flush: bool,
        failed: bool,
        sequence: u64,
        may_be_mixed: bool,
    ) -> Self {
        let owes = backing_volatile && owes_flush && !fault::injected(Fault::OwedFlushForgotten);
        Self {
            backing_volatile,
            completed: CachePadded::new(AtomicU64::new(u64::from(owes))),
            flushed: AtomicU64::new(0),
            failed: AtomicBool::new(failed),
            under_way: AtomicU32::new(0),
            tail_waiters: AtomicU32::new(0),
            flush_wanted: AtomicBool::new(false),
            cached_until: AtomicU64::new(sequence),
            mixed_until: AtomicU64::new(if may_be_mixed { sequence } else { 0 }),
            gate: AtomicU32::new(1),
        }
    }

    /// Whether a write is safe only when the backing has been flushed.
    pub(crate) fn is_backing_volatile(&self) -> bool {
        self.backing_volatile
    }

    /// A bypassing write has ended that the backing may lose; its number.
    pub(crate) fn complete(&self) -> u64 {
        self.completed.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Writes that a flush which is submitted now covers.
    pub(crate) fn completed(&self) -> u64 {
        self.completed.load(Ordering::SeqCst)
    }

    /// Whether bypassing writes have ended that the backing may lose.
    pub(crate) fn owes_flush(&self) -> bool {
        self.completed() > self.flushed.load(Ordering::SeqCst)
    }

    /// Whether the backing can't lose write `number` any more.
    pub(crate) fn is_safe(&self, number: u64) -> bool {
        number <= self.flushed.load(Ordering::SeqCst)
    }

    /// A flush ended that covers `covered` writes. One that fails may lose those that were owed then, for
    /// good: what comes after proves nothing.
    pub(crate) fn flush_ended(&self, covered: u64, is_ok: bool) {
        if is_ok && !self.has_failed() {
            self.flushed.fetch_max(covered, Ordering::SeqCst);
        }
        // Also what ended while it was under way, or is about to: it came too late to be covered, and
        // early enough to be lost.
        let owed = self.owes_flush() || self.under_way.load(Ordering::SeqCst) > 0;
        if !is_ok && owed && !fault::injected(Fault::FailedBypassFlushForgotten) {
            self.failed.store(true, Ordering::SeqCst);
        }
    }

    /// Whether bypassing writes that had ended may be lost.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// An operator has taken note.
    pub(crate) fn clear_failure(&self) {
        self.failed.store(false, Ordering::SeqCst);
    }

    /// A write is about to bypass what is dirty, with the sequence `dirty_tail` at the dirty tail.
    pub(crate) fn note_mixed(&self, dirty_tail: u64) {
        let cached = self.cached_until.load(Ordering::SeqCst);
        if cached >= dirty_tail && self.mixed_until.load(Ordering::Relaxed) < cached {
            self.mixed_until.fetch_max(cached, Ordering::SeqCst);
        }
    }

    /// Whether the backing has got newer writes than some of those that it lacks.
    pub(crate) fn is_mixed(&self, dirty_tail: u64) -> bool {
        self.mixed_until.load(Ordering::SeqCst) >= dirty_tail
    }

    /// One more must be gone before the cache can be loaded again.
    pub(crate) fn hold_gate(&self) {
        self.gate.fetch_add(1, Ordering::SeqCst);
    }

    /// One is gone; true for the last.
    pub(crate) fn leave_gate(&self) -> bool {
        self.gate.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

impl Shared {
    /// Whether a write waits until the dirty tail is past what is older.
    pub(crate) fn is_tail_wanted(&self) -> bool {
        self.bypassed.tail_waiters.load(Ordering::SeqCst) > 0
    }

    /// A fill was left out since the backing may lose what it brought: it shall be flushed.
    pub(crate) fn want_backing_flush(&self) {
        if !self.bypassed.flush_wanted.swap(true, Ordering::SeqCst)
            && let Some(first) = self.runtime.data.first()
        {
            first.ring();
        }
    }
}
