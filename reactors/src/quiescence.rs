//! Quiescent points: when has every reader passed a moment at which it held nothing?
//!
//! Whoever retires memory requests a ticket; the ticket has passed once every participant has
//! since stood at a quiescent point (the top of its loop) or sleeps. Participants write their own
//! cache line only, and only when somebody asked.

use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};
use crossbeam_utils::CachePadded;
use std::sync::Arc;

/// A request that passes once all participants were quiescent after it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuiescentTicket(u64);

#[derive(Debug, Default)]
struct Participant {
    seen: AtomicU64,
    asleep: AtomicBool,
}

/// The participants and the newest ticket.
#[derive(Debug)]
pub struct Quiescence {
    newest: CachePadded<AtomicU64>,
    participants: Box<[CachePadded<Participant>]>,
}

impl Quiescence {
    /// A domain of `participants` readers, all asleep until they first wake.
    #[must_use]
    pub fn new(participants: usize) -> Arc<Self> {
        let participants = (0..participants)
            .map(|_| {
                CachePadded::new(Participant {
                    seen: AtomicU64::new(0),
                    asleep: AtomicBool::new(true),
                })
            })
            .collect();
        Arc::new(Self {
            newest: CachePadded::new(AtomicU64::new(0)),
            participants,
        })
    }

    /// Asks every participant to pass a quiescent point. What the caller unpublished before this
    /// call is unreachable for all once [`Quiescence::has_passed`].
    #[must_use]
    pub fn request(&self) -> QuiescentTicket {
        QuiescentTicket(self.newest.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Whether every participant has been quiescent since `ticket` was requested.
    #[must_use]
    pub fn has_passed(&self, ticket: QuiescentTicket) -> bool {
        fence(Ordering::SeqCst);
        self.participants
            .iter()
            .all(|p| p.seen.load(Ordering::Acquire) >= ticket.0 || p.asleep.load(Ordering::SeqCst))
    }

    /// Says that participant `index` stands at a quiescent point now.
    pub fn pass(&self, index: usize) {
        let Some(participant) = self.participants.get(index) else {
            return;
        };
        // Acquire: what was unpublished before the request is seen unpublished from here on.
        let newest = self.newest.load(Ordering::Acquire);
        if participant.seen.load(Ordering::Relaxed) != newest {
            // Release: our earlier reads are over when the requester sees this.
            participant.seen.store(newest, Ordering::Release);
        }
    }

    /// Says that participant `index` holds nothing and will not look until [`Quiescence::wake`].
    pub fn sleep(&self, index: usize) {
        if let Some(participant) = self.participants.get(index) {
            participant.asleep.store(true, Ordering::SeqCst);
        }
    }

    /// Ends [`Quiescence::sleep`]; a full fence, so that later reads see what is published now.
    pub fn wake(&self, index: usize) {
        if let Some(participant) = self.participants.get(index) {
            participant.asleep.store(false, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Quiescence;

    #[test]
    fn ticket_waits_for_every_participant_that_is_awake() {
        let quiescence = Quiescence::new(3);
        quiescence.wake(0);
        quiescence.wake(1);
        let ticket = quiescence.request();
        quiescence.pass(0);
        assert!(!quiescence.has_passed(ticket));
        quiescence.pass(1);
        assert!(quiescence.has_passed(ticket));
        quiescence.wake(2);
        assert!(!quiescence.has_passed(quiescence.request()));
    }

    #[test]
    fn older_ticket_passes_with_a_newer_one_and_not_the_other_way_round() {
        let quiescence = Quiescence::new(1);
        quiescence.wake(0);
        let older = quiescence.request();
        quiescence.pass(0);
        let newer = quiescence.request();
        assert!(quiescence.has_passed(older));
        assert!(!quiescence.has_passed(newer));
        quiescence.sleep(0);
        assert!(quiescence.has_passed(newer), "a sleeper holds nothing");
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::Quiescence;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, Ordering};
    use loom::thread;

    /// A reader uses a cell while it finds it published, between quiescent points or naps; the
    /// writer unpublishes it and may touch it once its ticket has passed. Loom reports any access
    /// that is not ordered.
    fn retire(nap: bool) {
        let quiescence = Quiescence::new(1);
        let published = Arc::new(AtomicBool::new(true));
        let memory = Arc::new(UnsafeCell::new(1_u32));
        quiescence.wake(0);
        let reader = {
            let (quiescence, published) = (quiescence.clone(), published.clone());
            let memory = memory.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    if published.load(Ordering::Relaxed) {
                        memory.with(|at| assert!(!at.is_null()));
                    }
                    if nap {
                        quiescence.sleep(0);
                        quiescence.wake(0);
                    } else {
                        quiescence.pass(0);
                    }
                }
                quiescence.sleep(0);
            })
        };
        published.store(false, Ordering::Relaxed);
        let ticket = quiescence.request();
        while !quiescence.has_passed(ticket) {
            thread::yield_now();
        }
        memory.with_mut(|at| assert!(!at.is_null()));
        reader.join().unwrap();
    }

    #[test]
    fn loom_nobody_reads_what_has_been_retired_past_a_quiescent_point() {
        loom::model(|| retire(false));
    }

    #[test]
    fn loom_nobody_reads_what_was_retired_while_it_slept() {
        loom::model(|| retire(true));
    }
}
