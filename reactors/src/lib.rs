//! Pinned, polled threads and what they need to talk to each other. Knows no storage.
//!
//! A [`Reactor`] runs one loop: drain the inbox, run the pollers, repeat. It can be driven by its
//! own pinned thread or one [`Reactor::step`] at a time by somebody else's loop, with the clock and
//! the randomness handed in.

mod clock;
mod cx;
mod poller;
mod quiescence;
mod reactor;
pub mod ring;

pub use clock::{Clock, ManualClock, MonotonicClock, Nanos};
pub use cx::{Cx, Inbox, InboxFull, Message, ReactorHandle, ReactorId};
pub use poller::{Poller, PollerId, Wake};
pub use quiescence::{Quiescence, QuiescentTicket};
pub use reactor::{IdlePolicy, Reactor, ReactorConfig};
