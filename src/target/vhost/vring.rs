//! One ring as the front end has described it so far.

use super::guest_mem::{GuestMemory, MemoryFault};
use super::queue_handle::QueueHandle;
use super::ring::RingPlaces;
use std::io;
use std::os::fd::OwnedFd;

/// Where the front end sees the three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VringAddr {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

impl VringAddr {
    /// Whether each part is aligned as it must be.
    pub(super) fn is_aligned(&self) -> bool {
        self.desc.is_multiple_of(16) && self.avail.is_multiple_of(2) && self.used.is_multiple_of(4)
    }
}

/// A ring to be, or one that runs.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) entries: u16,
    pub(super) addr: Option<VringAddr>,
    pub(super) base: u16,
    /// Outer: set at all; inner: with a descriptor.
    pub(super) kick: Option<Option<OwnedFd>>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) enabled: bool,
    pub(super) running: Option<QueueHandle>,
    /// Heads that the last queue has given up unanswered, to be done again.
    pub(super) again: Vec<u16>,
}

impl Vring {
    /// Whether all is known that is needed to run it.
    pub(super) fn is_complete(&self) -> bool {
        self.entries > 0 && self.addr.is_some() && self.kick.is_some() && self.enabled
    }

    /// The parts of the ring in `memory`; none if it has no address.
    pub(super) fn places(&self, memory: &GuestMemory) -> Option<Result<RingPlaces, MemoryFault>> {
        let addr = self.addr?;
        let entries = self.entries;
        let window = |at, bytes| memory.window(at, bytes);
        Some((|| {
            Ok(RingPlaces {
                entries,
                desc: window(addr.desc, RingPlaces::desc_bytes(entries))?,
                avail: window(addr.avail, RingPlaces::avail_bytes(entries))?,
                used: window(addr.used, RingPlaces::used_bytes(entries))?,
            })
        })())
    }

    /// Copies of the descriptors, for a queue: kick, call, err.
    pub(super) fn eventfds(&self) -> io::Result<[Option<OwnedFd>; 3]> {
        let copy = |fd: Option<&OwnedFd>| fd.map(OwnedFd::try_clone).transpose();
        let kick = self.kick.as_ref().and_then(Option::as_ref);
        Ok([
            copy(kick)?,
            copy(self.call.as_ref())?,
            copy(self.err.as_ref())?,
        ])
    }
}
