//! vhost-user-blk: bdevs as disks of virtual machines, their virtqueues polled on reactors.
//!
//! A [`VhostController`] listens on a Unix socket and serves one front end at a time. Its
//! [`ControlLoop`], run by a thread of the caller's, speaks the vhost-user protocol (rust-vmm's
//! `vhost` crate) and holds what the front end has set: memory, rings, features. As soon as a ring
//! is complete it becomes a queue: a poller on a reactor, with a channel of its own to the bdev. No
//! I/O passes through the thread. To change something under a queue's feet, the thread stops the
//! queue, waits until nothing is under way, and starts another.
//!
//! Nothing that a guest says is believed: each descriptor, index and address is read once, checked,
//! and used from the copy. A bad request fails; a bad ring stops its queue. Guest memory that
//! vanishes (a truncated file) is caught by the SIGBUS guard.

mod backing;
mod balance;
mod calls;
mod chain;
mod control;
mod controller;
mod device;
mod eventfd;
mod guest_mem;
mod inflight;
mod notices;
mod queue;
mod queue_handle;
mod request;
mod ring;
mod session;
mod vring;

pub use calls::Coalescing;
pub use control::ControlLoop;
pub use controller::{SessionInfo, VhostConfig, VhostController};

use std::io;
use std::path::PathBuf;

/// Virtqueues of one controller.
pub const QUEUES_MAX: u16 = 64;
/// Entries of one virtqueue.
pub const RING_ENTRIES_MAX: u16 = 1024;

/// Why there is no controller.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// A name is 1 to 80 bytes of `[A-Za-z0-9_.:-]` and does not begin with a dot.
    #[error("{0:?} can't be the name of a controller")]
    BadName(String),
    /// Somebody listens there.
    #[error("{} is in use", .0.display())]
    AddressInUse(PathBuf),
    /// There is something at the path, and it is no socket.
    #[error("{} exists and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("can't listen on {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// See [`Coalescing::iops_threshold`].
    #[error("a threshold of {0} requests a second is too low: at least {min}", min = Coalescing::IOPS_MIN)]
    Threshold(u32),
    /// There is no reactor to run on.
    #[error("no reactor takes the queues")]
    NoReactor,
}
