//! Which reactor runs which queue: each as many as the others.
//!
//! All controllers count together. A queue starts where the fewest are; when front ends have left, those
//! that stay are moved, one at a time, as long as that makes it more even. A queue is not moved for its
//! traffic: what is busy now may be idle in a second, and each move is a short pause.

use reactors::{ReactorHandle, ReactorId};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Reactors that are counted each for itself; beyond, some share a count.
const REACTORS: usize = 256;

/// Queues that run on each reactor.
static RUNNING: [AtomicU32; REACTORS] = [const { AtomicU32::new(0) }; REACTORS];
/// Some controller moves a queue: two that do it at once would undo each other's work.
static MOVING: AtomicBool = AtomicBool::new(false);

fn count(reactor: ReactorId) -> &'static AtomicU32 {
    // The remainder is in bounds.
    &RUNNING[reactor.index() % REACTORS]
}

fn load(reactor: &ReactorHandle) -> u32 {
    count(reactor.id()).load(Ordering::Relaxed)
}

/// A queue's place among those of its reactor, as long as it is held.
#[derive(Debug)]
pub(super) struct Place(ReactorId);

impl Place {
    pub(super) fn on(reactor: &ReactorHandle) -> Self {
        count(reactor.id()).fetch_add(1, Ordering::Relaxed);
        Self(reactor.id())
    }

    /// Whether moving it from here to the emptiest of `reactors` makes the counts more even.
    pub(super) fn is_crowded(&self, reactors: &[ReactorHandle]) -> bool {
        let here = count(self.0).load(Ordering::Relaxed);
        let least = reactors.iter().map(load).min();
        least.is_some_and(|least| here >= least.saturating_add(2))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        count(self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// The one with the fewest queues; the first of these from the `start`-th on.
pub(super) fn emptiest(reactors: &[ReactorHandle], start: usize) -> Option<&ReactorHandle> {
    let start = start % reactors.len().max(1);
    let (before, from) = reactors.split_at(start);
    from.iter()
        .chain(before)
        .min_by_key(|reactor| load(reactor))
}

/// The right to move a queue, of one at a time.
#[derive(Debug)]
pub(super) struct Turn(());

impl Turn {
    pub(super) fn take() -> Option<Self> {
        let taken = MOVING.swap(true, Ordering::Acquire);
        (!taken).then_some(Self(()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        MOVING.store(false, Ordering::Release);
    }
}
