//! An operator's flush: everything that is logged by now goes to the backing.

use super::shared::Shared;
use std::sync::atomic::Ordering;

/// How far the flush that an operator asked for has come.
#[derive(Debug, Default)]
pub(crate) struct FlushAll {
    /// Which flush ([`Maintenance::flush_close`](super::shared::Maintenance)), and the sequence up to
    /// which everything is to be written back.
    target: Option<(u64, u64)>,
}

impl FlushAll {
    /// Nothing is written back any more.
    pub(crate) fn give_up(&mut self, shared: &Shared) {
        self.target = None;
        shared.maintenance.flush_all.store(false, Ordering::SeqCst);
    }

    /// What it covers has been logged again, up to `sequence`.
    pub(crate) fn extend(&mut self, sequence: u64) {
        if let Some((_, target)) = &mut self.target {
            *target = sequence.max(*target);
        }
    }

    /// Takes as the target what has a place once every lane has closed what it held, and ends the
    /// flush when all below `written` (the sequence at the dirty tail) is past it. More may come
    /// meanwhile, and is not waited for.
    pub(crate) fn follow(&mut self, shared: &Shared, written: u64) {
        let maintenance = &shared.maintenance;
        if !maintenance.flush_all.load(Ordering::SeqCst) {
            return;
        }
        if shared.has_failed() {
            // Nothing becomes durable any more: the flush has failed with the medium.
            self.give_up(shared);
            return;
        }
        let close = maintenance.flush_close.load(Ordering::SeqCst);
        let target = match self.target {
            Some((of, target)) if of == close => target,
            _ if !shared.have_closed(close) => return,
            _ => shared.last_sequence.load(Ordering::SeqCst),
        };
        self.target = Some((close, target));
        if written > target {
            maintenance.flush_all.store(false, Ordering::SeqCst);
            if maintenance.flush_close.load(Ordering::SeqCst) != close {
                // Another flush has begun at this very moment.
                maintenance.flush_all.store(true, Ordering::SeqCst);
            }
        }
    }
}
