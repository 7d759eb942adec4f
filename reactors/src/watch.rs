#![expect(
    unsafe_code,
    reason = "the descriptors to watch come as numbers, and rustix wants them borrowed"
)]
//! The descriptors that end a reactor's sleep: an epoll set and an eventfd.
//!
//! The set ends a sleep, and tells pollers of an awake reactor which of many silent descriptors is worth a
//! look, for one system call instead of one each; those that are busy are looked at by their
//! pollers. It is level-triggered, so nothing is lost in between.

use crate::Nanos;
use crate::doorbell::Bell;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
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

/// How old the answer to [`WatchSet::is_ready`] may be.
const LOOK_NS: u64 = 4000;
/// Ready descriptors that one look tells apart. If there are more, all count as ready.
const READY_MAX: usize = 64;

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

/// What the last look at the set has found.
struct Look {
    /// When it was; none if it says nothing any more.
    at: Option<Nanos>,
    ready: Vec<epoll::Event>,
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Look {
    fn is_fresh(&self, now: Nanos) -> bool {
        self.at.is_some_and(|at| now.since(at) < LOOK_NS)
    }

    fn again(&mut self, epoll: &OwnedFd, now: Nanos) -> Result<(), Errno> {
        self.at = None;
        self.ready.clear();
        let spare = rustix::buffer::spare_capacity(&mut self.ready);
        epoll::wait(epoll, spare, Some(&Timespec::default()))?;
        self.at = Some(now);
        Ok(())
    }

    fn has(&self, fd: RawFd) -> bool {
        let is_it = |event: &epoll::Event| RawFd::try_from(event.data.u64()) == Ok(fd);
        self.ready.len() >= READY_MAX || self.ready.iter().any(is_it)
    }
}

/// The watched descriptors of one reactor.
#[derive(Debug)]
pub(crate) struct WatchSet {
    epoll: OwnedFd,
    /// Those that epoll refused (regular files, no memory): the reactor looks after them itself.
    unwatchable: RefCell<BTreeSet<RawFd>>,
    look: RefCell<Look>,
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
            look: RefCell::new(Look {
                at: None,
                ready: Vec::with_capacity(READY_MAX),
            }),
        })
    }

    /// What has been seen says nothing any more.
    pub(crate) fn forget(&self) {
        self.look.borrow_mut().at = None;
    }

    /// Whether `fd`, which is watched, was ready at a look that is not older than [`LOOK_NS`], and not
    /// forgotten; none if the kernel does not tell.
    pub(crate) fn is_ready(&self, fd: RawFd, now: Nanos) -> Option<bool> {
        if self.unwatchable.borrow().contains(&fd) {
            return None;
        }
        let mut look = self.look.borrow_mut();
        if !look.is_fresh(now) {
            look.again(&self.epoll, now).ok()?;
        }
        Some(look.has(fd))
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
    use super::{EventBell, Interest, LOOK_NS, READY_MAX, WatchSet};
    use crate::Nanos;
    use crate::doorbell::{Bell, Doorbell};
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    /// What `is_ready` says of a pipe's end at this time.
    fn ask(watches: &WatchSet, end: &impl AsRawFd, at: u64) -> Option<bool> {
        watches.is_ready(end.as_raw_fd(), Nanos(at))
    }

    #[test]
    fn one_look_serves_all_who_ask_until_it_is_old_or_forgotten() {
        let watches = WatchSet::new().unwrap();
        let (one, mut to_one) = std::io::pipe().unwrap();
        let (other, _to_other) = std::io::pipe().unwrap();
        watches.watch(one.as_raw_fd(), Interest::Read);
        watches.watch(other.as_raw_fd(), Interest::Read);
        assert_eq!(ask(&watches, &one, 1000), Some(false));
        to_one.write_all(b"x").unwrap();
        assert_eq!(ask(&watches, &one, 1000 + LOOK_NS - 1), Some(false));
        assert_eq!(ask(&watches, &one, 1000 + LOOK_NS), Some(true));
        assert_eq!(ask(&watches, &other, 1000 + LOOK_NS), Some(false));
        watches.unwatch(one.as_raw_fd());
        assert_eq!(ask(&watches, &one, 1000 + 2 * LOOK_NS), Some(false));
        watches.watch(one.as_raw_fd(), Interest::Read);
        watches.forget();
        assert_eq!(ask(&watches, &one, 1000 + 2 * LOOK_NS), Some(true));
    }

    #[test]
    fn more_than_a_look_tells_apart_all_count_as_ready() {
        let watches = WatchSet::new().unwrap();
        let (silent, _to_silent) = std::io::pipe().unwrap();
        watches.watch(silent.as_raw_fd(), Interest::Read);
        let mut pipes = vec![];
        for count in 0..=READY_MAX {
            let now = LOOK_NS * u64::try_from(count).unwrap();
            let expected = Some(count == READY_MAX);
            assert_eq!(ask(&watches, &silent, now), expected, "{count}");
            let (end, mut to_end) = std::io::pipe().unwrap();
            to_end.write_all(b"x").unwrap();
            watches.watch(end.as_raw_fd(), Interest::Read);
            pipes.push((end, to_end));
        }
    }

    #[test]
    fn of_a_descriptor_that_cannot_be_watched_nothing_is_known() {
        let watches = WatchSet::new().unwrap();
        let file = File::open("Cargo.toml").unwrap();
        watches.watch(file.as_raw_fd(), Interest::Read);
        assert_eq!(ask(&watches, &file, 1000), None);
        watches.unwatch(file.as_raw_fd());
        assert_eq!(ask(&watches, &file, 1000), Some(false));
    }

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
