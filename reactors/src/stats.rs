//! What a reactor and its pollers have done, readable while they go on.

use crate::{Nanos, PollerId};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// A reactor's counters since it was made. Each is exact; together they are not one instant's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorStats {
    /// Time spent in rounds that handled something, in nanoseconds.
    pub busy_ns: u64,
    /// Time spent in rounds that handled nothing and asleep, in nanoseconds; the sleep under way
    /// is not in it yet (see [`ReactorStats::idle_ns_at`]).
    pub idle_ns: u64,
    /// Rounds of the loop begun.
    pub rounds: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Sleeps that a doorbell or a watched descriptor ended; the others ended by time.
    pub wakeups: u64,
    /// Since when it has been asleep, if it is.
    pub asleep_since: Option<Nanos>,
}

impl ReactorStats {
    /// Idle time with the sleep under way, for a reader whose (same) clock says `now`.
    #[must_use]
    pub fn idle_ns_at(&self, now: Nanos) -> u64 {
        let asleep = self.asleep_since.map_or(0, |since| now.since(since));
        self.idle_ns.saturating_add(asleep)
    }
}

/// A number that its owner alone writes, with plain stores, and that anybody reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; the owner alone may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(value, Ordering::Relaxed);
    }

    /// Shows `n`: a gauge, not a sum. The owner alone may call it.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters behind [`ReactorStats`], written by the reactor alone, on a line of their own.
#[derive(Debug, Default)]
pub(crate) struct ReactorCounters {
    busy_ns: Counter,
    idle_ns: Counter,
    rounds: Counter,
    sleeps: Counter,
    wakeups: Counter,
    /// 1 + the time; 0 while awake.
    asleep_since: AtomicU64,
}

impl ReactorCounters {
    #[inline]
    pub(crate) fn round(&self, previous_ns: u64, previous_was_busy: bool) {
        let spent = if previous_was_busy {
            &self.busy_ns
        } else {
            &self.idle_ns
        };
        spent.add(previous_ns);
        self.rounds.add(1);
    }

    pub(crate) fn sleep(&self, now: Nanos) {
        self.sleeps.add(1);
        let code = now.0.saturating_add(1);
        // Release: who sees that the reactor sleeps sees the counters of its last round.
        self.asleep_since.store(code, Ordering::Release);
    }

    pub(crate) fn wake(&self, by_event: bool) {
        self.wakeups.add(u64::from(by_event));
        self.asleep_since.store(0, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> ReactorStats {
        let asleep_since = self.asleep_since.load(Ordering::Acquire);
        ReactorStats {
            busy_ns: self.busy_ns.get(),
            idle_ns: self.idle_ns.get(),
            rounds: self.rounds.get(),
            sleeps: self.sleeps.get(),
            wakeups: self.wakeups.get(),
            asleep_since: asleep_since.checked_sub(1).map(Nanos),
        }
    }
}

/// A poller's counters since it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollerStats {
    /// Which one.
    pub id: PollerId,
    /// Its name.
    pub name: &'static str,
    /// Its period in nanoseconds, if it is a timed one.
    pub period_ns: Option<u64>,
    /// Times it was polled.
    pub run_count: u64,
    /// Times it handled something.
    pub busy_count: u64,
}

/// The counters behind [`PollerStats`]: they never leave their reactor, who is asked by message.
#[derive(Debug)]
pub(crate) struct PollerCounters {
    pub(crate) id: PollerId,
    pub(crate) name: &'static str,
    pub(crate) period_ns: Option<u64>,
    runs: Cell<u64>,
    busy: Cell<u64>,
}

impl PollerCounters {
    pub(crate) fn new(id: PollerId, name: &'static str, period_ns: Option<u64>) -> Self {
        Self {
            id,
            name,
            period_ns,
            runs: Cell::new(0),
            busy: Cell::new(0),
        }
    }

    #[inline]
    pub(crate) fn ran(&self, handled: u32) {
        self.runs.set(self.runs.get().wrapping_add(1));
        let busy = self.busy.get().wrapping_add(u64::from(handled > 0));
        self.busy.set(busy);
    }

    pub(crate) fn read(&self) -> PollerStats {
        PollerStats {
            id: self.id,
            name: self.name,
            period_ns: self.period_ns,
            run_count: self.runs.get(),
            busy_count: self.busy.get(),
        }
    }
}
