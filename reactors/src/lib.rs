//! Pinned, polled threads and what they need to talk to each other. Knows no storage.
//!
//! A [`Reactor`] runs one loop: drain the inbox, run the pollers, repeat. It can be driven by its
//! own pinned thread ([`Reactors`]) or one [`Reactor::step`] at a time by somebody else's loop,
//! with the clock and the randomness handed in.
//!
//! Under `cfg(loom)` only the lock-free parts are built, for the model checker: the rings, the
//! doorbell and the quiescent points (`RUSTFLAGS="--cfg loom" cargo test -p reactors --lib --release`).

mod doorbell;
mod quiescence;
pub mod ring;
mod sync;

#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
mod core_set;
#[cfg(not(loom))]
mod cx;
#[cfg(not(loom))]
mod handle;
#[cfg(not(loom))]
mod idle;
#[cfg(not(loom))]
mod poller;
#[cfg(not(loom))]
mod random;
#[cfg(not(loom))]
mod reactor;
#[cfg(not(loom))]
mod reactors;
#[cfg(not(loom))]
mod stats;
#[cfg(not(loom))]
mod watch;

pub use quiescence::{Quiescence, QuiescentTicket};

#[cfg(not(loom))]
pub use {
    clock::{Clock, ManualClock, MonotonicClock, Nanos},
    core_set::{CoreSet, CoreSetError},
    cx::Cx,
    handle::{CallError, Inbox, InboxFull, Message, ReactorHandle, ReactorId, Reply},
    idle::IdlePolicy,
    poller::{Poller, PollerId, Wake},
    random::SplitMix64,
    reactor::{Reactor, ReactorConfig},
    reactors::{ReactorInfo, ReactorKind, Reactors, ReactorsConfig, StartError},
    stats::{Counter, PollerStats, ReactorStats},
    watch::Interest,
};
