//! Latency histograms: each written by one reactor with plain stores, read by anybody.
//!
//! A request that ends in the round in which it came is a hit; one in [`SAMPLE`] of these is timed,
//! and counts for all, so that a hit costs no clock read of its own. All others are timed by the
//! clock of the rounds in which they came and ended.

use hdrhistogram::Histogram;
use reactors::{Clock, Nanos};
use std::sync::atomic::{AtomicU64, Ordering};

/// One hit in so many is timed.
const SAMPLE: u32 = 16;
/// Values are kept to one part in 16.
const SUB_BITS: u32 = 4;
const SUBS: usize = 1 << SUB_BITS;
/// Powers of two above the linear part: up to some 70 s.
const POWERS: usize = 33;
const BUCKETS: usize = SUBS * (POWERS + 1);

/// Counts of values, in buckets that widen with the value.
#[derive(Debug)]
struct Buckets(Box<[AtomicU64]>);

impl Default for Buckets {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

fn bucket_of(value: u64) -> usize {
    let subs = SUBS as u64;
    if value < subs {
        return usize::try_from(value).unwrap_or(0);
    }
    let power = value.ilog2() - SUB_BITS;
    let sub = usize::try_from((value >> power) - subs).unwrap_or(0);
    (SUBS * (power as usize + 1) + sub).min(BUCKETS - 1)
}

/// The highest value of a bucket.
fn value_of(bucket: usize) -> u64 {
    let (power, sub) = (bucket / SUBS, (bucket % SUBS) as u64);
    match power.checked_sub(1) {
        None => sub,
        Some(power) => ((SUBS as u64 + sub + 1) << power) - 1,
    }
}

impl Buckets {
    /// The owner alone may call it.
    fn record(&self, value: u64, times: u64) {
        let count = &self.0[bucket_of(value)];
        count.store(count.load(Ordering::Relaxed) + times, Ordering::Relaxed);
    }

    fn add_to(&self, sum: &mut Counts) {
        for (sum, count) in sum.0.iter_mut().zip(&self.0) {
            *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
        }
    }
}

/// What [`Buckets`] held at one time.
#[derive(Clone, Debug)]
struct Counts(Box<[u64]>);

impl Default for Counts {
    fn default() -> Self {
        Self(vec![0; BUCKETS].into())
    }
}

impl Counts {
    /// None if there is nothing in it.
    fn histogram(&self) -> Option<Histogram<u64>> {
        // Three digits hold what the buckets know.
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 1 << 37, 3).ok()?;
        for (bucket, count) in self.0.iter().enumerate() {
            if *count > 0 {
                histogram.saturating_record_n(value_of(bucket), *count);
            }
        }
        (!histogram.is_empty()).then_some(histogram)
    }
}

/// What kind of request a latency is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    Read = 0,
    Write = 1,
    Zero = 2,
    Flush = 3,
    /// Not timed.
    Other = 4,
}

/// What a request waited for, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Nothing.
    Nothing,
    /// A read of the backing.
    Backing,
    /// A kset that had to become durable.
    Kset,
    /// Another request of its lane, a lock or a staging slot.
    Queue,
    /// Its turn, while little room is left.
    Pace,
    /// Space.
    Space,
}

/// Where a request has been when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) kind: Timed,
    pub(crate) waited: Waited,
    /// Bytes of its range.
    pub(crate) len: u32,
    /// The longest read of the backing that it waited for, µs.
    pub(crate) backing_us: u32,
    /// Where its range begins.
    pub(crate) offset: u64,
    /// When its client gave it away.
    pub(crate) submitted: Nanos,
    /// When its lane got it.
    pub(crate) begun: Nanos,
}

impl Stamp {
    /// Of a request without a range, that waited for nothing.
    pub(crate) fn new(kind: Timed, submitted: Nanos, begun: Nanos) -> Self {
        Self {
            kind,
            waited: Waited::Nothing,
            len: 0,
            backing_us: 0,
            offset: 0,
            submitted,
            begun,
        }
    }

    /// A read of the backing that it waited for took so long.
    pub(crate) fn waited_for_backing(&mut self, ns: u64) {
        let us = u32::try_from(ns / 1000).unwrap_or(u32::MAX);
        self.backing_us = self.backing_us.max(us);
        self.waited = Waited::Backing;
    }
}

/// How long a request was where, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    /// Between its client and its lane.
    pub(crate) ring_ns: u64,
    /// From there to its end.
    pub(crate) engine_ns: u64,
}

#[derive(Debug, Default)]
struct Stages {
    ring: Buckets,
    engine: Buckets,
    backing: Buckets,
}

/// The histograms of one reactor.
#[derive(Debug, Default)]
pub(crate) struct LatencyStats {
    kinds: [Stages; 4],
    /// Hits since one was timed.
    hits: AtomicU64,
}

impl LatencyStats {
    /// A request ends now, in the round that began at `now`; tells how long it took, if that is
    /// known. On the owner's reactor.
    pub(crate) fn end(&self, stamp: &Stamp, now: Nanos, clock: &dyn Clock) -> Option<Spent> {
        let stages = self.kinds.get(stamp.kind as usize)?;
        let ring_ns = stamp.begun.since(stamp.submitted);
        if stamp.begun != now {
            let engine_ns = now.since(stamp.begun);
            stages.engine.record(engine_ns, 1);
            stages.ring.record(ring_ns, 1);
            return Some(Spent { ring_ns, engine_ns });
        }
        let hits = self.hits.load(Ordering::Relaxed) + 1;
        self.hits.store(hits, Ordering::Relaxed);
        if !hits.is_multiple_of(SAMPLE.into()) {
            return None;
        }
        let engine_ns = clock.now().since(stamp.begun);
        stages.engine.record(engine_ns, SAMPLE.into());
        stages.ring.record(ring_ns, SAMPLE.into());
        Some(Spent { ring_ns, engine_ns })
    }

    /// A read of the backing, begun at `begun`, ends now.
    pub(crate) fn backing_read(&self, begun: Nanos, now: Nanos) {
        self.kinds[Timed::Read as usize]
            .backing
            .record(now.since(begun), 1);
    }

    fn add_to(&self, kind: Timed, sum: &mut [Counts; 3]) {
        if let Some(stages) = self.kinds.get(kind as usize) {
            stages.ring.add_to(&mut sum[0]);
            stages.engine.add_to(&mut sum[1]);
            stages.backing.add_to(&mut sum[2]);
        }
    }
}

/// Latencies of one kind of request at one stage, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyFigures {
    /// `read`, `write`, `zero` or `flush`.
    pub op: &'static str,
    /// `ring`: from the client to the lane; `engine`: from there to the end, the backing included;
    /// `backing`: reads of the backing.
    pub stage: &'static str,
    /// How many; hits are counted from a sample.
    pub count: u64,
    /// Half of them took at most this.
    pub p50_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %.
    pub p999_ns: u64,
    /// 99.99 %.
    pub p9999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// The histograms of all reactors at one time, so that what happened between two times can be told.
/// Taking one costs some tens of microseconds.
#[derive(Clone, Debug, Default)]
pub struct LatencySnapshot {
    /// Operation, stage, and the summed counts.
    stages: Vec<(&'static str, &'static str, Counts)>,
}

impl LatencySnapshot {
    /// Sums the reactors' histograms.
    pub(crate) fn of<'a>(reactors: impl Iterator<Item = &'a LatencyStats> + Clone) -> Self {
        let kinds = [
            ("read", Timed::Read),
            ("write", Timed::Write),
            ("zero", Timed::Zero),
            ("flush", Timed::Flush),
        ];
        let mut stages = Vec::new();
        for (op, kind) in kinds {
            let mut sum = [Counts::default(), Counts::default(), Counts::default()];
            reactors
                .clone()
                .for_each(|stats| stats.add_to(kind, &mut sum));
            let named = ["ring", "engine", "backing"].into_iter().zip(sum);
            stages.extend(named.map(|(stage, counts)| (op, stage, counts)));
        }
        Self { stages }
    }

    /// What came after `earlier`, a snapshot of the same cache. The longest is known to one part in
    /// sixteen only.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut stages = self.stages.clone();
        for (now, before) in stages.iter_mut().zip(&earlier.stages) {
            for (now, before) in now.2.0.iter_mut().zip(&before.2.0) {
                debug_assert!(*now >= *before, "counts only grow");
                *now = now.saturating_sub(*before);
            }
        }
        Self { stages }
    }

    /// Figures of what happened; what never did is left out.
    #[must_use]
    pub fn figures(&self) -> Vec<LatencyFigures> {
        let figures = self.stages.iter().filter_map(|(op, stage, counts)| {
            let histogram = counts.histogram()?;
            Some(LatencyFigures {
                op,
                stage,
                count: histogram.len(),
                p50_ns: histogram.value_at_quantile(0.5),
                p99_ns: histogram.value_at_quantile(0.99),
                p999_ns: histogram.value_at_quantile(0.999),
                p9999_ns: histogram.value_at_quantile(0.9999),
                max_ns: histogram.max(),
            })
        });
        figures.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactors::ManualClock;

    #[test]
    fn every_value_falls_into_a_bucket_that_is_at_most_a_sixteenth_above_it() {
        let mut last = 0;
        for value in (0..5000).chain((13..36).map(|power| (1_u64 << power) + 12_345)) {
            let bucket = bucket_of(value);
            assert!(bucket >= last, "buckets rise");
            last = bucket;
            let top = value_of(bucket);
            assert!(
                top >= value && top - value <= value / 16 + 1,
                "{value}: {top}"
            );
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn hits_are_sampled_and_count_for_all() {
        let (stats, clock) = (LatencyStats::default(), ManualClock::default());
        clock.advance(1000);
        let now = Nanos(500);
        let stamp = Stamp::new(Timed::Write, now, now);
        let known = (0..160).filter_map(|_| stats.end(&stamp, now, &clock));
        assert_eq!(known.count(), 10);
        let waited = Stamp::new(Timed::Write, Nanos(100), Nanos(200));
        let spent = stats.end(&waited, Nanos(10_200), &clock);
        let expected = Spent {
            ring_ns: 100,
            engine_ns: 10_000,
        };
        assert_eq!(spent, Some(expected));
        let snapshot = LatencySnapshot::of([&stats].into_iter());
        let figures = snapshot.figures();
        let engine = figures.iter().find(|f| f.stage == "engine").unwrap();
        assert_eq!((engine.op, engine.count), ("write", 161));
        assert!((500..540).contains(&engine.p50_ns), "{engine:?}");
        assert!((10_000..10_700).contains(&engine.max_ns), "{engine:?}");
    }

    #[test]
    fn a_difference_has_only_what_came_between() {
        let stats = LatencyStats::default();
        stats.backing_read(Nanos(0), Nanos(1_000_000));
        let before = LatencySnapshot::of([&stats].into_iter());
        stats.backing_read(Nanos(0), Nanos(5_000));
        let after = LatencySnapshot::of([&stats].into_iter());
        let figures = after.since(&before).figures();
        let [only] = figures.as_slice() else {
            panic!("{figures:?}");
        };
        assert_eq!((only.op, only.stage, only.count), ("read", "backing", 1));
        assert!((5_000..5_400).contains(&only.max_ns), "{only:?}");
    }
}
