//! The end of writeback: it rests when no write is under way, and leaves when all else has gone.

use super::super::shared::{DRAIN_FREE, DRAIN_RESTED};
use super::{State, Writeback, WritebackPoller};
use reactors::Cx;
use std::sync::atomic::Ordering;

impl Writeback {
    /// Comes to rest when that is asked for and no write is under way; true while it rests.
    pub(super) fn rest_if_asked(&mut self, cx: &Cx) -> bool {
        let shared = self.seed.shared.clone();
        if !shared.maintenance.stop.load(Ordering::SeqCst) {
            return false;
        }
        if !matches!(self.state, State::Rested) {
            let barrier = matches!(self.state, State::Mark(_) | State::Tail(_) | State::Note(_))
                || (self.seed.flush_note.is_storing() && !matches!(self.state, State::Halted));
            if barrier || self.in_flight > 0 {
                return false;
            }
            self.state = State::Rested;
            shared.maintenance.rested.fetch_add(1, Ordering::SeqCst);
            if shared
                .maintenance
                .drain
                .swap(DRAIN_RESTED, Ordering::SeqCst)
                == DRAIN_FREE
            {
                shared.maintenance.drain.store(DRAIN_FREE, Ordering::SeqCst);
                if shared.bypassed.leave_gate() {
                    self.seed.pool.note_unloaded(shared.uuid);
                }
            }
        }
        if shared.maintenance.drain.load(Ordering::SeqCst) == DRAIN_FREE
            && let Some(poller) = cx.local::<WritebackPoller>(shared.instance)
        {
            cx.remove_poller(poller.0);
            cx.remove_local::<WritebackPoller>(shared.instance);
        }
        true
    }
}
