//! Work that a reactor does again and again.

use crate::{Cx, Nanos};

/// When a poller must be polled next, asked just before its reactor would sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Not before a doorbell, a message or a watched file descriptor.
    OnEvent,
    /// At this time at the latest, or at an event.
    At(Nanos),
    /// It has work that nobody will announce: the reactor must not sleep.
    Now,
}

impl Wake {
    /// The earlier of two.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Now, _) | (_, Self::Now) => Self::Now,
            (Self::At(a), Self::At(b)) => Self::At(a.min(b)),
            (Self::At(a), Self::OnEvent) | (Self::OnEvent, Self::At(a)) => Self::At(a),
            (Self::OnEvent, Self::OnEvent) => Self::OnEvent,
        }
    }
}

/// Names a poller on its reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PollerId(pub u64);

/// A piece of work that is polled on one reactor. It never waits.
pub trait Poller {
    /// Handles at most about `budget` events, never waits, and returns how many it handled.
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32;

    /// When it must run again if nothing rings.
    fn wake(&self) -> Wake {
        Wake::OnEvent
    }
}
