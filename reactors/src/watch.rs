#![expect(
    unsafe_code,
    reason = "the descriptors to watch come as numbers, and rustix wants them borrowed"
)]
//! The descriptors that end a reactor's sleep: an epoll set and an eventfd.
//!
//! The set is looked at only by a reactor that is about to sleep: while it is awake its pollers
//! look at their own descriptors. It is level-triggered, so nothing is lost in between.

use crate::doorbell::Bell;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// What a watched descriptor must become for the reactor to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Readable (or at its end, or failed).
    Read,
    /// Writable (or failed).
    Write,
    /// Either.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Read => epoll::EventFlags::IN,
            Self::Write => epoll::EventFlags::OUT,
            Self::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        }
    }
}

/// How long a reactor sleeps at most while it has descriptors that the kernel cannot watch.
const UNWATCHABLE_NAP_NS: u64 = 1_000_000;

/// An eventfd as a doorbell's bell.
#[derive(Debug)]
pub(crate) struct EventBell(OwnedFd);

impl EventBell {
    pub(crate) fn new() -> std::io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }
}

impl Bell for EventBell {
    fn ring(&self) {
        // It fails only if the counter is full, and then the bell has rung already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl EventBell {
    /// Takes all rings so far.
    fn silence(&self) {
        // The only failure is that there are none.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

/// The watched descriptors of one reactor.
#[derive(Debug)]
pub(crate) struct WatchSet {
    epoll: OwnedFd,
    /// Those that epoll refused (regular files, no memory): the reactor looks after them itself.
    unwatchable: RefCell<BTreeSet<RawFd>>,
}

/// Borrows a descriptor by its number for the length of `f`.
fn with_fd<R>(fd: RawFd, f: impl FnOnce(BorrowedFd<'_>) -> R) -> Result<R, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the number is not -1, and whoever watches a descriptor keeps it open until after
    // `unwatch` (`Cx::watch`). It is handed to epoll_ctl only, which checks it.
    Ok(f(unsafe { BorrowedFd::borrow_raw(fd) }))
}

impl WatchSet {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            unwatchable: RefCell::new(BTreeSet::new()),
        })
    }

    /// Adds `fd`, or changes what it is watched for.
    pub(crate) fn watch(&self, fd: RawFd, interest: Interest) {
        let data = epoll::EventData::new_u64(u64::try_from(fd).unwrap_or(0));
        let added = with_fd(fd, |fd| {
            match epoll::add(&self.epoll, fd, data, interest.flags()) {
                Err(Errno::EXIST) => epoll::modify(&self.epoll, fd, data, interest.flags()),
                other => other,
            }
        });
        let mut unwatchable = self.unwatchable.borrow_mut();
        match added {
            Ok(Ok(())) => unwatchable.remove(&fd),
            Ok(Err(_)) | Err(_) => unwatchable.insert(fd),
        };
    }

    pub(crate) fn unwatch(&self, fd: RawFd) {
        self.unwatchable.borrow_mut().remove(&fd);
        // It fails if the descriptor was never watched.
        let _ = with_fd(fd, |fd| epoll::delete(&self.epoll, fd));
    }

    /// Waits until a watched descriptor is ready, `bell` rings or `timeout_ns` have passed; true
    /// if not for the time. Takes the ring. A signal ends the wait too.
    ///
    /// By ppoll on the set, and not by epoll_wait: which descriptors are ready does not matter,
    /// since all pollers run, and its time-out is in nanoseconds on every kernel.
    pub(crate) fn wait(&self, bell: &EventBell, timeout_ns: Option<u64>) -> bool {
        let timeout_ns = if self.unwatchable.borrow().is_empty() {
            timeout_ns
        } else {
            Some(timeout_ns.map_or(UNWATCHABLE_NAP_NS, |ns| ns.min(UNWATCHABLE_NAP_NS)))
        };
        let timeout = timeout_ns.map(|ns| Timespec {
            tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
        });
        let mut fds = [
            PollFd::from_borrowed_fd(bell.0.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.epoll.as_fd(), PollFlags::IN),
        ];
        let by_event = rustix::event::poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0);
        let [rung, _] = fds;
        if by_event && !rung.revents().is_empty() {
            bell.silence();
        }
        by_event
    }
}

#[cfg(test)]
mod tests {
    use super::{EventBell, WatchSet};
    use crate::doorbell::{Bell, Doorbell};

    #[test]
    fn ring_for_a_sleeper_that_did_not_wait_ends_one_later_wait_only() {
        let doorbell = Doorbell::new(EventBell::new().unwrap());
        let watches = WatchSet::new().unwrap();
        let wait_in_vain = || {
            doorbell.prepare();
            let rung = watches.wait(doorbell.bell(), Some(1));
            doorbell.awake();
            !rung
        };
        assert!(wait_in_vain());
        doorbell.prepare();
        doorbell.ring();
        doorbell.awake();
        assert!(!wait_in_vain());
        assert!(wait_in_vain());
        // One that had seen us sleep, and comes to its bell only now.
        doorbell.bell().ring();
        assert!(!wait_in_vain());
        assert!(wait_in_vain());
        doorbell.ring();
        assert!(wait_in_vain(), "nobody rings for a reactor that is awake");
    }
}
