//! Quiescent points: when has every reader passed a moment at which it held nothing?
//!
//! Whoever retires memory requests a ticket; the ticket has passed once every participant has
//! since stood at a quiescent point (the top of its loop) or sleeps. Participants write their own
//! cache line only, and only when somebody asked.

use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

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
        let newest = self.newest.load(Ordering::Relaxed);
        if participant.seen.load(Ordering::Relaxed) != newest {
            fence(Ordering::SeqCst);
            let newest = self.newest.load(Ordering::Relaxed);
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
