//! Barriers: at once where a fence is enough, later where a file must be synced.
//!
//! A kernel reports a failed write-back once per open file description. So each [`SyncBarrier`] has
//! a description of its own, opened before the stores that it will cover; with a shared one, the
//! sync of another reactor could swallow the error of this one's stores.

use super::barrier_sys::SyncRing;
use super::persist;
use crate::bdev::{Barrier, BarrierTicket, PmemError};
use reactors::{Cx, ReactorHandle, Wake};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The first barrier failure of a medium: an errno, kept for good.
#[derive(Debug, Default)]
pub(super) struct Failure(AtomicI32);

impl Failure {
    /// Records `errno` unless there was a failure before.
    pub(super) fn record(&self, errno: i32) {
        // The first one stays: it is the cause.
        let _ = self
            .0
            .compare_exchange(0, errno.max(1), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// # Errors
    /// The recorded failure.
    pub(super) fn check(&self) -> Result<(), PmemError> {
        match self.0.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(PmemError::BarrierFailed(errno)),
        }
    }
}

/// Counts tickets, and what of them the owner has been told.
#[derive(Debug, Default)]
struct Tickets {
    submitted: u64,
    completed: u64,
    told: u64,
}

impl Tickets {
    fn submit(&mut self) -> BarrierTicket {
        self.submitted += 1;
        BarrierTicket(self.submitted)
    }

    fn tell(&mut self) -> BarrierTicket {
        self.told = self.completed;
        BarrierTicket(self.told)
    }

    /// A completion that the owner has not polled yet rings no bell.
    fn wake(&self) -> Wake {
        if self.told < self.completed {
            Wake::Now
        } else {
            Wake::OnEvent
        }
    }
}

/// Complete when submitted: a fence. On a volatile medium too, for the sake of other threads
/// (`Pmem::store_data`).
#[derive(Debug, Default)]
pub(super) struct ImmediateBarrier {
    tickets: Tickets,
}

impl Barrier for ImmediateBarrier {
    fn submit(&mut self, _cx: &Cx) -> BarrierTicket {
        persist::fence();
        let ticket = self.tickets.submit();
        self.tickets.completed = ticket.0;
        ticket
    }

    fn poll(&mut self, _cx: &Cx) -> Result<BarrierTicket, PmemError> {
        Ok(self.tickets.tell())
    }

    fn wake(&self) -> Wake {
        self.tickets.wake()
    }
}

/// What the ring of a [`SyncBarrier`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    Idle,
    /// The kernel would not take it yet.
    Parked,
    /// Under way, and covers this ticket and those before it: no later one, since those may be
    /// about stores made after the kernel had begun.
    InFlight(u64),
}

/// fdatasync through an io_uring of its own, one at a time; what is submitted meanwhile shares the
/// next one.
#[derive(Debug)]
pub(super) struct SyncBarrier {
    /// Only [`Drop`] takes it out.
    ring: Option<SyncRing>,
    state: SyncState,
    tickets: Tickets,
    failure: Arc<Failure>,
    /// The owner has heard of the failure since it last submitted.
    failure_told: bool,
    reactor: ReactorHandle,
}

impl SyncBarrier {
    /// `file`: a description of the medium's file that nobody else syncs.
    ///
    /// # Errors
    /// What `io_uring_setup` says.
    pub(super) fn new(cx: &Cx, file: File, failure: Arc<Failure>) -> io::Result<Self> {
        let ring = SyncRing::new(file)?;
        cx.watch(ring.fd());
        Ok(Self {
            ring: Some(ring),
            state: SyncState::Idle,
            tickets: Tickets::default(),
            failure,
            failure_told: false,
            reactor: cx.handle(),
        })
    }

    /// Starts a sync for all tickets so far, unless one is under way.
    fn start(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        if matches!(self.state, SyncState::InFlight(_)) || self.failure.check().is_err() {
            return;
        }
        self.state = match ring.start() {
            Ok(true) => SyncState::InFlight(self.tickets.submitted),
            Ok(false) => SyncState::Parked,
            Err(error) => {
                self.fail(error.raw_os_error().unwrap_or(libc::EIO));
                SyncState::Idle
            }
        };
    }

    /// Ends what is under way, tells the failure, and starts what waits.
    fn progress(&mut self) -> Result<(), PmemError> {
        if let SyncState::InFlight(covers) = self.state
            && let Some(result) = self.ring.as_mut().and_then(SyncRing::take)
        {
            self.state = SyncState::Idle;
            if result < 0 {
                self.fail(result.saturating_neg());
            } else {
                self.tickets.completed = covers;
            }
        }
        // Another reactor's failure counts too, and before our own success: nobody knows whose
        // stores the kernel has lost.
        self.failure.check()?;
        if self.tickets.completed < self.tickets.submitted {
            self.start();
        }
        self.failure.check()
    }

    fn fail(&self, errno: i32) {
        tracing::error!(
            errno,
            "fdatasync failed: stores since the last barrier may be lost, the medium is done for"
        );
        self.failure.record(errno);
    }
}

impl Barrier for SyncBarrier {
    fn submit(&mut self, _cx: &Cx) -> BarrierTicket {
        persist::fence();
        let ticket = self.tickets.submit();
        self.failure_told = false;
        self.start();
        ticket
    }

    fn poll(&mut self, _cx: &Cx) -> Result<BarrierTicket, PmemError> {
        let progress = self.progress();
        self.failure_told = progress.is_err();
        progress?;
        Ok(self.tickets.tell())
    }

    fn wake(&self) -> Wake {
        let failure_waits = !self.failure_told && self.failure.check().is_err();
        if failure_waits || self.state == SyncState::Parked {
            return Wake::Now;
        }
        self.tickets.wake()
    }
}

impl Drop for SyncBarrier {
    /// The reactor must forget the ring's descriptor before it is closed, and only its own thread
    /// can tell it: the ring travels there.
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            let close = move |cx: &Cx| {
                cx.unwatch(ring.fd());
                drop(ring);
            };
            // A full inbox drops the message and with it the ring: closing a descriptor ends its
            // watch in the kernel, which is all that is left to do.
            let _ = self.reactor.send(Box::new(close));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactors::{
        Clock, IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorId,
    };

    fn reactor() -> Reactor {
        let config = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Poll,
            seed: 1,
        };
        Reactor::new(&config, Arc::new(MonotonicClock), Quiescence::new(1)).unwrap()
    }

    /// A pipe: to sync it is `EINVAL`.
    fn unsyncable() -> File {
        let (read_end, _) = std::io::pipe().unwrap();
        File::from(std::os::fd::OwnedFd::from(read_end))
    }

    /// Polls until something else than `old` comes out.
    fn next(
        barrier: &mut SyncBarrier,
        cx: &Cx,
        old: BarrierTicket,
    ) -> Result<BarrierTicket, PmemError> {
        let deadline = MonotonicClock.now().after(10_000_000_000);
        while MonotonicClock.now() < deadline {
            match barrier.poll(cx) {
                Ok(ticket) if ticket == old => std::thread::yield_now(),
                other => return other,
            }
        }
        panic!("no progress behind {old:?}: {barrier:?}");
    }

    #[test]
    fn a_ticket_submitted_while_a_sync_is_under_way_waits_for_the_next() {
        let reactor = reactor();
        let cx = reactor.cx();
        let file = tempfile::tempfile().unwrap();
        let mut barrier = SyncBarrier::new(cx, file, Arc::default()).unwrap();
        assert_eq!(barrier.wake(), Wake::OnEvent);
        let first = barrier.submit(cx);
        assert_eq!(barrier.state, SyncState::InFlight(first.0));
        let second = barrier.submit(cx);
        let third = barrier.submit(cx);
        assert!(first < second && second < third);
        assert_eq!(barrier.state, SyncState::InFlight(first.0));
        assert_eq!(barrier.wake(), Wake::OnEvent);
        assert_eq!(next(&mut barrier, cx, BarrierTicket(0)), Ok(first));
        // The two that waited share one sync.
        assert_eq!(barrier.state, SyncState::InFlight(third.0));
        assert_eq!(next(&mut barrier, cx, first), Ok(third));
        assert_eq!(barrier.state, SyncState::Idle);
        assert_eq!(barrier.wake(), Wake::OnEvent);
    }

    #[test]
    fn a_failed_sync_is_final_for_every_barrier_of_the_medium() {
        let reactor = reactor();
        let cx = reactor.cx();
        let failure = Arc::<Failure>::default();
        let mut good =
            SyncBarrier::new(cx, tempfile::tempfile().unwrap(), failure.clone()).unwrap();
        let mut bad = SyncBarrier::new(cx, unsyncable(), failure.clone()).unwrap();
        let ticket = good.submit(cx);
        assert_eq!(next(&mut good, cx, BarrierTicket(0)), Ok(ticket));
        bad.submit(cx);
        let failed = Err(PmemError::BarrierFailed(libc::EINVAL));
        assert_eq!(next(&mut bad, cx, BarrierTicket(0)), failed);
        assert_eq!(good.wake(), Wake::Now, "the other one has not heard yet");
        assert_eq!(good.poll(cx), failed);
        assert_eq!(good.wake(), Wake::OnEvent);
        good.submit(cx);
        assert_eq!(good.wake(), Wake::Now);
        assert_eq!(good.state, SyncState::Idle, "nothing is tried again");
        assert_eq!((good.poll(cx), bad.poll(cx)), (failed, failed));
        failure.record(libc::EIO);
        assert_eq!(failure.check(), Err(PmemError::BarrierFailed(libc::EINVAL)));
    }

    #[test]
    fn a_sync_that_succeeds_after_anothers_failure_is_not_believed() {
        let reactor = reactor();
        let cx = reactor.cx();
        let failure = Arc::<Failure>::default();
        let file = tempfile::tempfile().unwrap();
        let mut barrier = SyncBarrier::new(cx, file, failure.clone()).unwrap();
        barrier.submit(cx);
        failure.record(libc::EIO);
        let failed = Err(PmemError::BarrierFailed(libc::EIO));
        assert_eq!(next(&mut barrier, cx, BarrierTicket(0)), failed);
    }

    #[test]
    fn an_immediate_barrier_completes_at_once_and_says_so() {
        let reactor = reactor();
        let cx = reactor.cx();
        let mut barrier = ImmediateBarrier::default();
        let _ = barrier.submit(cx);
        let last = barrier.submit(cx);
        assert_eq!(barrier.wake(), Wake::Now);
        assert_eq!(barrier.poll(cx), Ok(last));
        assert_eq!(barrier.wake(), Wake::OnEvent);
    }

    #[test]
    fn a_dropped_barrier_closes_its_ring_on_the_reactor() {
        let mut reactor = reactor();
        let file = tempfile::tempfile().unwrap();
        let barrier = SyncBarrier::new(reactor.cx(), file, Arc::default()).unwrap();
        let fd = barrier.ring.as_ref().unwrap().fd();
        let target = format!("/proc/self/fd/{fd}");
        let is_ring = || {
            std::fs::read_link(&target).is_ok_and(|to| to.to_string_lossy().contains("io_uring"))
        };
        assert!(is_ring());
        drop(barrier);
        assert!(is_ring(), "the reactor must forget the descriptor first");
        assert_eq!(reactor.step(), 1);
    }
}
