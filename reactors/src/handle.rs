//! What other threads may do to a reactor: send it messages, wake it, ask it, watch it.

use crate::Cx;
use crate::doorbell::Doorbell;
use crate::idle::{IdlePolicy, SharedIdlePolicy};
use crate::stats::{ReactorCounters, ReactorStats};
use crate::watch::EventBell;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Messages that an inbox holds.
const INBOX_CAPACITY: usize = 1024;

/// Counts reactors from 0, data reactors first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReactorId(pub u32);

impl ReactorId {
    /// Its place in lists of reactors and in the quiescence domain.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A control message: runs once on the reactor that it was sent to.
pub type Message = Box<dyn FnOnce(&Cx) + Send>;

/// The inbox is full; the message comes back, to be sent again later.
pub struct InboxFull(pub Message);

impl fmt::Debug for InboxFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InboxFull")
    }
}

/// Why a [`ReactorHandle::call`] has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Too many messages wait already; nothing was sent.
    #[error("reactor {0:?}: the inbox is full")]
    InboxFull(ReactorId),
    /// No answer in time. The call may still run, or be running.
    #[error("reactor {reactor:?}: no answer within {timeout:?}")]
    TimedOut {
        /// Who was asked.
        reactor: ReactorId,
        /// How long the caller waited.
        timeout: Duration,
    },
    /// The reactor has stopped, or the answer's [`Reply`] was dropped.
    #[error("reactor {0:?}: the call was dropped")]
    Dropped(ReactorId),
    /// The caller is the reactor itself, which would wait for itself.
    #[error("reactor {0:?}: called from its own thread")]
    OwnThread(ReactorId),
}

/// The answer to a [`ReactorHandle::call_with_reply`], to be given now or later, from any thread.
#[derive(Debug)]
pub struct Reply<R>(mpsc::SyncSender<R>);

impl<R> Reply<R> {
    /// Answers. A caller that has given up is none the wiser.
    pub fn send(self, result: R) {
        // There is room for the one answer, so this never waits.
        let _ = self.0.try_send(result);
    }
}

/// The part of a reactor that other threads may touch.
pub struct Inbox {
    pub(crate) messages: ArrayQueue<Message>,
    pub(crate) doorbell: Doorbell<EventBell>,
    pub(crate) idle: SharedIdlePolicy,
    /// The reactor is gone, and nobody will take messages any more.
    stopped: AtomicBool,
    /// The thread that runs the loop, 0 before there is one.
    thread: AtomicI32,
    /// On a line of their own: written each round, while the others are read by every sender.
    pub(crate) counters: CachePadded<ReactorCounters>,
}

impl Inbox {
    pub(crate) fn new(idle: IdlePolicy) -> std::io::Result<Self> {
        Ok(Self {
            messages: ArrayQueue::new(INBOX_CAPACITY),
            doorbell: Doorbell::new(EventBell::new()?),
            idle: SharedIdlePolicy::new(idle),
            stopped: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            counters: CachePadded::default(),
        })
    }

    /// Notes that this thread runs the loop from now on.
    pub(crate) fn adopt_thread(&self) {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(thread, Ordering::Relaxed);
    }

    /// Notes that nobody will take messages any more, and drops those that wait.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.drop_messages();
    }

    fn drop_messages(&self) {
        while let Some(message) = self.messages.pop() {
            drop(message);
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("waiting", &self.messages.len())
            .finish_non_exhaustive()
    }
}

/// Sends messages to a reactor and rings its doorbell, from any thread.
#[derive(Clone, Debug)]
pub struct ReactorHandle {
    pub(crate) id: ReactorId,
    pub(crate) inbox: Arc<Inbox>,
}

impl ReactorHandle {
    /// Which reactor this is.
    #[must_use]
    pub fn id(&self) -> ReactorId {
        self.id
    }

    /// Puts `message` in the inbox and wakes the reactor if it sleeps. A reactor that has stopped
    /// drops what it gets.
    ///
    /// # Errors
    /// [`InboxFull`] with the message in it.
    pub fn send(&self, message: Message) -> Result<(), InboxFull> {
        self.inbox.messages.push(message).map_err(InboxFull)?;
        // After its full fence either we see that the reactor has stopped, or it, when it stops,
        // sees our message.
        self.ring();
        if self.inbox.stopped.load(Ordering::SeqCst) {
            self.inbox.drop_messages();
        }
        Ok(())
    }

    /// Wakes the reactor if it has said that it sleeps. Call it after having published what the
    /// reactor shall find; costs one fence and one read when the reactor is awake.
    #[inline]
    pub fn ring(&self) {
        self.inbox.doorbell.ring();
    }

    /// Runs `f` on the reactor and waits for its result. For control threads only: never call it
    /// on a reactor, which must not wait.
    ///
    /// # Errors
    /// [`CallError`] if the reactor does not answer within `timeout`, or cannot.
    pub fn call<R: Send + 'static>(
        &self,
        timeout: Duration,
        f: impl FnOnce(&Cx) -> R + Send + 'static,
    ) -> Result<R, CallError> {
        self.call_with_reply(timeout, |cx, reply| reply.send(f(cx)))
    }

    /// Runs `f` on the reactor and waits until somebody answers through its [`Reply`]: for jobs
    /// that go on after `f` has returned. For control threads only.
    ///
    /// # Errors
    /// [`CallError`] if nobody answers within `timeout`, or nobody can.
    pub fn call_with_reply<R: Send + 'static>(
        &self,
        timeout: Duration,
        f: impl FnOnce(&Cx, Reply<R>) + Send + 'static,
    ) -> Result<R, CallError> {
        if self.thread_id() == Some(rustix::thread::gettid().as_raw_nonzero().get()) {
            return Err(CallError::OwnThread(self.id));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(Box::new(move |cx| f(cx, Reply(sender))))
            .map_err(|_full| CallError::InboxFull(self.id))?;
        receiver.recv_timeout(timeout).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => CallError::TimedOut {
                reactor: self.id,
                timeout,
            },
            mpsc::RecvTimeoutError::Disconnected => CallError::Dropped(self.id),
        })
    }

    /// What the reactor does when idle.
    #[must_use]
    pub fn idle(&self) -> IdlePolicy {
        self.inbox.idle.get()
    }

    /// Changes what the reactor does when idle, at once.
    pub fn set_idle(&self, policy: IdlePolicy) {
        self.inbox.idle.set(policy);
        self.ring();
    }

    /// What the reactor has done so far; does not disturb it.
    #[must_use]
    pub fn stats(&self) -> ReactorStats {
        self.inbox.counters.read()
    }

    /// The kernel's number of the thread that runs the loop; `None` while it is driven by steps.
    #[must_use]
    pub fn thread_id(&self) -> Option<i32> {
        Some(self.inbox.thread.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    /// True once the reactor is gone: messages to it are dropped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.inbox.stopped.load(Ordering::SeqCst)
    }
}
