//! The counters of one bdev on one reactor, and what can be read of them.
//!
//! Sums only grow; a reset remembers what they were (`meter.rs`). The longest and the shortest can't
//! be subtracted: they belong to an *era*, which a reset ends, and whose first request begins anew.

use crate::bdev::{IoStatus, Op};
use reactors::Counter;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of the requests that end in the round in which they came one in so many is timed, for all.
const SAMPLE: u64 = 16;

/// What is counted one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoKind {
    Read = 0,
    Write = 1,
    Unmap = 2,
}

impl IoKind {
    /// Under which kind `op` counts. Zeroes are written, as in the kernel's statistics; a flush, a
    /// hint and a question move no data.
    pub(super) fn of(op: Op) -> Option<Self> {
        match op {
            Op::Read => Some(Self::Read),
            Op::Write { .. } | Op::WriteZeroes { .. } => Some(Self::Write),
            Op::Discard => Some(Self::Unmap),
            Op::Flush | Op::Prefetch | Op::Extents => None,
        }
    }
}

/// What requests of one kind amounted to.
#[derive(Debug, Default)]
pub(super) struct KindCounters {
    ops: Counter,
    bytes: Counter,
    latency_ns: Counter,
    /// Of `era` …
    longest_ns: Counter,
    /// … both.
    shortest_ns: Counter,
    era: AtomicU64,
    /// Those that ended in the round in which they came.
    quick: Counter,
}

impl KindCounters {
    pub(super) fn done(&self, bytes: u64) {
        self.ops.add(1);
        self.bytes.add(bytes);
    }

    /// For how many the next quick request is to be timed; for most, none.
    pub(super) fn sample(&self) -> Option<u64> {
        let before = self.quick.get();
        self.quick.add(1);
        match before {
            0 => Some(1),
            many => many.is_multiple_of(SAMPLE).then_some(SAMPLE),
        }
    }

    pub(super) fn timed(&self, ns: u64, times: u64, era: u64) {
        self.latency_ns.add(ns.saturating_mul(times));
        if self.era.load(Ordering::Relaxed) != era {
            self.longest_ns.set(ns);
            self.shortest_ns.set(ns);
            // Release: who sees this era sees no value of an earlier one.
            self.era.store(era, Ordering::Release);
            return;
        }
        if ns > self.longest_ns.get() {
            self.longest_ns.set(ns);
        }
        if ns < self.shortest_ns.get() {
            self.shortest_ns.set(ns);
        }
    }

    fn read(&self, era: u64) -> KindFigures {
        let of_era = self.era.load(Ordering::Acquire) == era;
        let extreme = |counter: &Counter| of_era.then(|| counter.get());
        KindFigures {
            ops: self.ops.get(),
            bytes: self.bytes.get(),
            latency_ns: self.latency_ns.get(),
            longest_ns: extreme(&self.longest_ns),
            shortest_ns: extreme(&self.shortest_ns),
        }
    }
}

/// The counters of one bdev on one reactor, which alone writes them.
#[derive(Debug, Default)]
pub(super) struct ReactorCounters {
    kinds: [KindCounters; 3],
    /// By status.
    errors: [Counter; IoStatus::COUNT],
    /// Requests given to the bdev …
    pub(super) submitted: Counter,
    /// … and got back.
    pub(super) ended: Counter,
    /// Channels ever opened …
    pub(super) opened: Counter,
    /// … and closed again.
    pub(super) closed: Counter,
}

impl ReactorCounters {
    pub(super) fn kind(&self, kind: IoKind) -> &KindCounters {
        &self.kinds[kind as usize]
    }

    pub(super) fn failed(&self, status: IoStatus) {
        self.errors[status as usize].add(1);
    }

    /// What is there, with the extremes of `era`.
    pub(super) fn read(&self, era: u64) -> IoFigures {
        let [read, write, unmap] = &self.kinds;
        IoFigures {
            read: read.read(era),
            write: write.read(era),
            unmap: unmap.read(era),
            errors: self.errors.each_ref().map(Counter::get),
        }
    }
}

/// What requests of one kind amounted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindFigures {
    /// How many succeeded.
    pub ops: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// How long they took in all, ns; of those that ended at once, counted from a sample.
    pub latency_ns: u64,
    /// The longest that was timed, ns; none if none was.
    pub longest_ns: Option<u64>,
    /// The shortest.
    pub shortest_ns: Option<u64>,
}

impl KindFigures {
    fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.latency_ns += other.latency_ns;
        self.longest_ns = self.longest_ns.max(other.longest_ns);
        let both = self.shortest_ns.into_iter().chain(other.shortest_ns);
        self.shortest_ns = both.min();
    }

    fn subtract(&mut self, before: &Self) {
        self.ops = self.ops.saturating_sub(before.ops);
        self.bytes = self.bytes.saturating_sub(before.bytes);
        self.latency_ns = self.latency_ns.saturating_sub(before.latency_ns);
    }
}

/// What a bdev has done, on one reactor or on all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoFigures {
    /// Reads.
    pub read: KindFigures,
    /// Writes, zeroes among them.
    pub write: KindFigures,
    /// Discards.
    pub unmap: KindFigures,
    /// By status.
    pub(super) errors: [u64; IoStatus::COUNT],
}

impl IoFigures {
    /// How many requests ended with `status`, which is a failure.
    #[must_use]
    pub fn failed(&self, status: IoStatus) -> u64 {
        self.errors[status as usize]
    }

    /// Adds another reactor's.
    pub fn add(&mut self, other: &Self) {
        self.read.add(&other.read);
        self.write.add(&other.write);
        self.unmap.add(&other.unmap);
        for (sum, more) in self.errors.iter_mut().zip(&other.errors) {
            *sum += more;
        }
    }

    /// Takes off what was there at the last reset.
    pub(super) fn subtract(&mut self, before: &Self) {
        self.read.subtract(&before.read);
        self.write.subtract(&before.write);
        self.unmap.subtract(&before.unmap);
        for (sum, less) in self.errors.iter_mut().zip(&before.errors) {
            *sum = sum.saturating_sub(*less);
        }
    }
}

/// What begins anew once the figures have been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetFigures {
    /// Everything.
    All,
    /// The longest and the shortest.
    Extremes,
    /// The errors.
    Errors,
    /// Nothing.
    #[default]
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_era_begins_with_its_first_request() {
        let counters = KindCounters::default();
        assert_eq!(counters.read(1).longest_ns, None);
        counters.timed(7, 1, 1);
        counters.timed(3, 1, 1);
        counters.timed(5, 1, 1);
        let first = counters.read(1);
        assert_eq!((first.longest_ns, first.shortest_ns), (Some(7), Some(3)));
        assert_eq!(counters.read(2).shortest_ns, None);
        counters.timed(4, 16, 2);
        let second = counters.read(2);
        assert_eq!((second.longest_ns, second.shortest_ns), (Some(4), Some(4)));
        assert_eq!(second.latency_ns, 15 + 64);
    }

    #[test]
    fn the_samples_count_for_all() {
        let counters = KindCounters::default();
        let weights: u64 = (0..161).filter_map(|_| counters.sample()).sum();
        assert_eq!(weights, 161);
    }

    #[test]
    fn sums_add_up_and_extremes_are_those_of_all() {
        let one = |ops, longest, shortest| KindFigures {
            ops,
            bytes: ops * 512,
            latency_ns: ops * 10,
            longest_ns: longest,
            shortest_ns: shortest,
        };
        let mut sum = one(1, None, None);
        sum.add(&one(2, Some(9), Some(4)));
        sum.add(&one(3, Some(8), Some(2)));
        assert_eq!(sum, one(6, Some(9), Some(2)));
    }
}
