//! A running queue, as its controller's thread holds it.

use super::balance::Place;
use super::queue::{Queue, QueueFault, QueuePlan};
use reactors::{CallError, ReactorHandle};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

/// How long a reactor may take to start a queue.
const START_WAIT: Duration = Duration::from_secs(10);

/// What a queue is to do, in the order in which it may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Order {
    /// Take requests.
    Run,
    /// Take no more; end when all that was taken is answered.
    Drain,
    /// Also give up what waits: it is answered with an error.
    Cancel,
    /// Give up what waits, and do not answer it: nobody is there, or it will be done again.
    Abandon,
}

impl Order {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Run,
            1 => Self::Drain,
            2 => Self::Cancel,
            _ => Self::Abandon,
        }
    }
}

/// What the thread and the queue share.
#[derive(Debug)]
pub(super) struct QueueShared {
    order: AtomicU8,
    stopped: AtomicBool,
    /// How far requests have been taken; true once it has stopped.
    taken: AtomicU16,
    under_way: AtomicU32,
    /// Heads that were given up unanswered; there once it has stopped.
    abandoned: OnceLock<Vec<u16>>,
    /// Who waits for the end.
    waiter: Thread,
}

impl QueueShared {
    fn new() -> Self {
        Self {
            order: AtomicU8::new(Order::Run as u8),
            stopped: AtomicBool::new(false),
            taken: AtomicU16::new(0),
            under_way: AtomicU32::new(0),
            abandoned: OnceLock::new(),
            waiter: std::thread::current(),
        }
    }

    pub(super) fn order(&self) -> Order {
        Order::of(self.order.load(Ordering::Relaxed))
    }

    /// Requests that have been taken and not answered.
    pub(super) fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// By the queue alone, so that no other core writes the line.
    pub(super) fn set_under_way(&self, count: u32) {
        if self.under_way() != count {
            self.under_way.store(count, Ordering::Relaxed);
        }
    }

    /// The queue is gone: it touches no guest memory any more.
    pub(super) fn set_stopped(&self, taken: u16, abandoned: Vec<u16>) {
        // Only the queue says it, once.
        let _ = self.abandoned.set(abandoned);
        self.taken.store(taken, Ordering::Relaxed);
        self.stopped.store(true, Ordering::Release);
        self.waiter.unpark();
    }
}

/// Why a queue did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartFault {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Queue(#[from] QueueFault),
}

/// A queue that runs, or is stopping.
#[derive(Debug)]
pub(super) struct QueueHandle {
    shared: Arc<QueueShared>,
    reactor: ReactorHandle,
    place: Place,
    id: u64,
}

impl QueueHandle {
    /// Starts a queue on `reactor` and waits until it polls. `id`: never used again.
    pub(super) fn start(
        reactor: &ReactorHandle,
        id: u64,
        plan: QueuePlan,
    ) -> Result<Self, StartFault> {
        let place = Place::on(reactor);
        let shared = Arc::new(QueueShared::new());
        let theirs = Arc::clone(&shared);
        let started = reactor.call(START_WAIT, move |cx| Queue::settle_on(cx, id, plan, theirs));
        match started {
            Ok(Ok(())) => Ok(Self {
                shared,
                reactor: reactor.clone(),
                place,
                id,
            }),
            Ok(Err(fault)) => Err(fault.into()),
            Err(error) => {
                // It may get there yet.
                let order = Order::Abandon as u8;
                shared.order.store(order, Ordering::Relaxed);
                Err(error.into())
            }
        }
    }

    /// Whether it had better run on another one of `reactors`.
    pub(super) fn is_crowded(&self, reactors: &[ReactorHandle]) -> bool {
        self.place.is_crowded(reactors)
    }

    pub(super) fn shared(&self) -> &Arc<QueueShared> {
        &self.shared
    }

    /// Tells the queue to stop so, unless it was told something stronger. Returns at once.
    pub(super) fn stop(&self, order: Order) {
        self.shared.order.fetch_max(order as u8, Ordering::Relaxed);
        // One whose inbox is full is awake anyway.
        let _ = self.reactor.send(Box::new(|_| {}));
    }

    /// Waits until it has stopped, for `patience` at most. Returns how far it has taken requests, and
    /// which of these it has given up unanswered.
    pub(super) fn wait(&self, patience: Duration) -> Option<(u16, Vec<u16>)> {
        const SLICE: Duration = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while !self.shared.stopped.load(Ordering::Acquire) {
            if waited >= patience {
                return None;
            }
            // It wakes us; the slice is for a token that was spent on something else.
            std::thread::park_timeout(SLICE);
            waited += SLICE;
        }
        let abandoned = self.shared.abandoned.get().cloned();
        let taken = self.shared.taken.load(Ordering::Relaxed);
        Some((taken, abandoned.unwrap_or_default()))
    }

    /// Changes where it calls, and waits until it does.
    pub(super) fn set_call(&self, call: Option<OwnedFd>) -> Result<(), CallError> {
        let id = self.id;
        self.reactor
            .call(START_WAIT, move |cx| Queue::set_call(cx, id, call))
    }
}
