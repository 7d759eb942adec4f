//! What GC does about what is lost for good: BAD keys that are still current go into the log again,
//! durably, before the key tail passes them; segments with media errors are marked and left out.

use super::CacheError;
use super::bad::{Answers, Post};
use super::gc::{Gc, State};
use super::owners::mark_bad;
use reactors::Cx;
use std::sync::atomic::Ordering;

/// BAD keys of one round, about: they must find room in the log's reserve.
pub(super) const BAD_KEYS_A_ROUND: usize = 128;

/// Whether a walk through the whole log has dropped anything. BAD keys go round and round: where there
/// is nothing else, passing them frees nothing.
#[derive(Debug, Default)]
pub(super) struct Lap {
    /// Ends when the key tail is past it.
    end: u64,
    /// Something else than BAD keys was passed.
    gained: bool,
    /// The head after a lap that gained nothing.
    in_vain_at: Option<u64>,
}

impl Lap {
    /// A round begins with the key tail at `tail` and the head at `head`.
    pub(super) fn begin_round(&mut self, tail: u64, head: u64) {
        if tail <= self.end {
            return;
        }
        // The first one is a guess, which counts as a gain.
        let in_vain = !self.gained && self.end > 0;
        self.in_vain_at = in_vain.then_some(head);
        self.end = head;
        self.gained = false;
    }

    /// A key was passed.
    pub(super) fn note(&mut self, is_bad: bool) {
        self.gained |= !is_bad;
    }

    /// Whether there is nothing to be gained with the head at `head`.
    pub(super) fn is_in_vain(&self, head: u64) -> bool {
        self.in_vain_at == Some(head)
    }
}

impl Gc {
    /// Lets the lanes log these BAD keys again, where they are current.
    pub(super) fn relog(&mut self, posts: Vec<Post>) {
        let shared = self.seed.shared.clone();
        self.seed.stats.relogged.add(posts.len() as u64);
        let answers = Answers::default();
        self.outbox.send(&shared, posts, Some(&answers));
        self.state = State::Relog(answers, None);
    }

    /// While lanes log BAD keys: they may need what only GC can make ready for the log.
    pub(super) fn follow_relog(&mut self, cx: &Cx) -> u32 {
        self.outbox.pump(&self.seed.shared);
        let State::Relog(answers, refill) = &self.state else {
            return 0;
        };
        let (are_in, refill) = (answers.are_in(), *refill);
        // A kick that stayed up would keep later ones from ringing.
        self.seed
            .shared
            .maintenance
            .kick_gc
            .store(false, Ordering::SeqCst);
        if let Some(ticket) = refill {
            if !self.barrier_done(cx, ticket) {
                return 0;
            }
            if !self.hand_out() {
                self.retry = true;
                return 0;
            }
            self.set_refill(None);
            return 1;
        }
        if are_in && self.recount.is_some() {
            self.recount_answered();
            return 1;
        }
        if are_in {
            self.store_tail(cx);
            return 1;
        }
        if self.seed.shared.has_failed() {
            // Nothing becomes durable any more.
            self.halt(&CacheError::Busy("the pool is read-only".into()));
            return 0;
        }
        self.retry = false;
        if let Err(error) = self.write_starts() {
            self.medium_failed(error);
            return 0;
        }
        if self.starting.is_empty() {
            return 0;
        }
        let ticket = self.barrier.submit(cx);
        self.set_refill(Some(ticket));
        1
    }

    fn set_refill(&mut self, ticket: Option<crate::bdev::BarrierTicket>) {
        if let State::Relog(_, refill) = &mut self.state {
            *refill = ticket;
        }
    }

    /// Marks the segments that have given media errors since it looked last; not durable before a
    /// barrier. False if there were none.
    pub(super) fn mark_suspects(&mut self) -> bool {
        let shared = self.seed.shared.clone();
        let count = shared.suspect_count.load(Ordering::SeqCst);
        if count == self.seen_suspects {
            return false;
        }
        self.seen_suspects = count;
        let view = &self.seed.view;
        for (segment, id) in shared.segments.iter() {
            let marked = &mut self.marked[segment.index()];
            if *marked || !shared.is_suspect(segment) {
                continue;
            }
            *marked = true;
            // Maybe it is not referred to by any key that could be passed.
            if !self.candidates.contains(&segment) {
                self.candidates.push(segment);
            }
            let stored = mark_bad(&*view.pmem, &view.geometry, id, view.cache, segment.0);
            if let Err(error) = stored {
                // This run leaves it all the same; the next one meets the fault again.
                tracing::error!(
                    cache = %shared.name, segment = id.0, %error, "can't mark a segment as bad"
                );
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lap_over_bad_keys_alone_is_in_vain_until_something_is_logged() {
        let mut lap = Lap::default();
        lap.begin_round(1, 10);
        lap.note(false);
        lap.note(true);
        assert!(!lap.is_in_vain(12));
        lap.begin_round(11, 12);
        assert!(!lap.is_in_vain(12), "the lap before dropped something");
        lap.note(true);
        lap.begin_round(12, 13);
        assert!(!lap.is_in_vain(13), "the lap has not ended");
        lap.begin_round(13, 14);
        assert!(lap.is_in_vain(14));
        assert!(!lap.is_in_vain(15), "something was logged");
    }
}
