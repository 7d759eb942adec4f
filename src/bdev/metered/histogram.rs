//! Latency histograms with the buckets of SPDK's, so that its tools can read them.
//!
//! Values are cut in *ranges*, one for each power of two, each of 2^granularity buckets of equal
//! width. The two lowest ranges have buckets of width 1; from there widths double:
//!
//! ```text
//! range 0: 0 .. 2^g   range 1: 2^g .. 2^(g+1)   range r: 2^(g+r-1) .. 2^(g+r), width 2^(r-1)
//! ```
//!
//! Only the ranges from that of the lowest value that is asked for to that of the highest are kept;
//! what lies outside counts in the first or the last bucket.

use crate::bdev::{BdevError, Op};
use std::sync::atomic::{AtomicU64, Ordering};

/// Finest granularity: 2^12 buckets a range are 2 MB for each reactor.
const GRANULARITY_MAX: u8 = 12;
const VALUE_BITS: u32 = u64::BITS;

/// Which requests a histogram is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramIo {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards.
    Unmap,
    /// Flushes.
    Flush,
    /// Zeroes.
    WriteZeroes,
}

impl HistogramIo {
    /// All of them.
    const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Unmap,
        Self::Flush,
        Self::WriteZeroes,
    ];

    /// SPDK's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Unmap => "unmap",
            Self::Flush => "flush",
            Self::WriteZeroes => "write_zeroes",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|io| io.name() == name)
    }

    fn is_of(self, op: Op) -> bool {
        match self {
            Self::Read => op == Op::Read,
            Self::Write => matches!(op, Op::Write { .. }),
            Self::Unmap => op == Op::Discard,
            Self::Flush => op == Op::Flush,
            Self::WriteZeroes => matches!(op, Op::WriteZeroes { .. }),
        }
    }
}

/// What a histogram holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistogramOptions {
    /// Of which requests; `None`: of all.
    pub io: Option<HistogramIo>,
    /// Each power of two is cut in 2^this buckets; 0 to 12.
    pub granularity: u8,
    /// Shortest latency that is told from shorter ones, ns.
    pub min_ns: u64,
    /// Latencies from here on are not told from each other, ns; above `min_ns`.
    pub max_ns: u64,
}

impl Default for HistogramOptions {
    fn default() -> Self {
        Self {
            io: None,
            granularity: 7,
            min_ns: 0,
            max_ns: u64::MAX,
        }
    }
}

/// Which buckets there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    granularity: u32,
    min_range: u32,
    max_range: u32,
}

fn range_of(granularity: u32, value: u64) -> u32 {
    let bits = VALUE_BITS - value.leading_zeros();
    bits.saturating_sub(granularity)
}

impl Layout {
    fn new(options: &HistogramOptions) -> Result<Self, BdevError> {
        let granularity = u32::from(options.granularity);
        if options.granularity > GRANULARITY_MAX {
            return Err(BdevError::Invalid(format!(
                "granularity {granularity} is not within 0..={GRANULARITY_MAX}"
            )));
        }
        let (min, max) = (options.min_ns, options.max_ns);
        let last = max.checked_sub(1).filter(|last| *last >= min);
        let Some(last) = last else {
            return Err(BdevError::Invalid(format!(
                "min_nsec {min} is not below max_nsec {max}"
            )));
        };
        Ok(Self {
            granularity,
            min_range: range_of(granularity, min),
            max_range: range_of(granularity, last),
        })
    }

    fn buckets_a_range(&self) -> usize {
        1 << self.granularity
    }

    fn buckets(&self) -> usize {
        (self.max_range - self.min_range + 1) as usize * self.buckets_a_range()
    }

    fn bucket_of(&self, value: u64) -> usize {
        let range = range_of(self.granularity, value);
        if range < self.min_range {
            return 0;
        }
        if range > self.max_range {
            return self.buckets() - 1;
        }
        let within = value >> range.saturating_sub(1);
        let index = usize::try_from(within).unwrap_or(usize::MAX) % self.buckets_a_range();
        (range - self.min_range) as usize * self.buckets_a_range() + index
    }

    /// The lowest value of a bucket; the first one also has all below.
    fn start_of(&self, bucket: usize) -> u64 {
        if bucket == 0 {
            return 0;
        }
        let ranges = u32::try_from(bucket / self.buckets_a_range()).unwrap_or(u32::MAX);
        let index = (bucket % self.buckets_a_range()) as u64;
        match self.min_range + ranges {
            0 => index,
            range => ((1 << self.granularity) + index) << (range - 1),
        }
    }
}

/// A histogram under way: one for each reactor, which alone writes it.
#[derive(Debug)]
pub(super) struct Histogram {
    pub(super) options: HistogramOptions,
    layout: Layout,
    reactors: Box<[Box<[AtomicU64]>]>,
}

impl Histogram {
    pub(super) fn new(options: HistogramOptions, reactors: usize) -> Result<Self, BdevError> {
        let layout = Layout::new(&options)?;
        let zeroes = || (0..layout.buckets()).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            options,
            layout,
            reactors: (0..reactors).map(|_| zeroes()).collect(),
        })
    }

    pub(super) fn is_of(&self, op: Op) -> bool {
        self.options.io.is_none_or(|io| io.is_of(op))
    }

    /// A request took so long. On its reactor.
    pub(super) fn tally(&self, reactor: usize, ns: u64) {
        let buckets = self.reactors.get(reactor);
        if let Some(count) = buckets.and_then(|b| b.get(self.layout.bucket_of(ns))) {
            let value = count.load(Ordering::Relaxed).wrapping_add(1);
            count.store(value, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> HistogramCounts {
        let mut buckets = vec![0_u64; self.layout.buckets()];
        for reactor in &self.reactors {
            for (sum, count) in buckets.iter_mut().zip(reactor) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        HistogramCounts {
            layout: self.layout,
            buckets,
        }
    }
}

/// What a histogram holds at one time, of all reactors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramCounts {
    layout: Layout,
    buckets: Vec<u64>,
}

impl HistogramCounts {
    /// Each power of two is cut in 2^this buckets.
    #[must_use]
    pub fn granularity(&self) -> u32 {
        self.layout.granularity
    }

    /// The first range that is kept, and the last.
    #[must_use]
    pub fn ranges(&self) -> (u32, u32) {
        (self.layout.min_range, self.layout.max_range)
    }

    /// The counts, shortest latencies first.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// How many there are in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many took at most `ns`, or lie in the bucket in which it does.
    #[must_use]
    pub fn up_to(&self, ns: u64) -> u64 {
        let counts = (0..).zip(&self.buckets);
        let within = counts.take_while(|(bucket, _)| self.layout.start_of(*bucket) <= ns);
        within.map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(min_ns: u64, max_ns: u64) -> Histogram {
        let options = HistogramOptions {
            min_ns,
            max_ns,
            ..HistogramOptions::default()
        };
        Histogram::new(options, 2).unwrap()
    }

    #[test]
    fn a_full_histogram_has_the_buckets_that_spdk_has() {
        let counts = histogram(0, u64::MAX).counts();
        assert_eq!((counts.granularity(), counts.ranges()), (7, (0, 57)));
        assert_eq!(counts.buckets().len(), 58 * 128);
        let layout = counts.layout;
        // Range, index in it, by hand.
        for (value, range, index) in [
            (0, 0, 0),
            (127, 0, 127),
            (128, 1, 0),
            (255, 1, 127),
            (256, 2, 0),
            (259, 2, 1),
            (1000, 3, 122),
            (1 << 63, 57, 0),
            (u64::MAX, 57, 127),
        ] {
            assert_eq!(layout.bucket_of(value), range * 128 + index, "{value}");
        }
    }

    #[test]
    fn every_value_lies_between_the_starts_of_its_bucket_and_the_next() {
        for granularity in 0..=GRANULARITY_MAX {
            let options = HistogramOptions {
                granularity,
                ..HistogramOptions::default()
            };
            let layout = Layout::new(&options).unwrap();
            let values = (0..3000).chain((10..64).map(|power| (1_u64 << power) + 77));
            for value in values {
                let bucket = layout.bucket_of(value);
                assert!(layout.start_of(bucket) <= value, "{granularity}: {value}");
                if bucket + 1 < layout.buckets() {
                    assert!(
                        layout.start_of(bucket + 1) > value,
                        "{granularity}: {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_lies_outside_counts_at_the_ends() {
        let histogram = histogram(1 << 9, 1 << 30);
        for value in [1, 1 << 8, 1 << 9, 1 << 29, (1 << 30) - 1, 1 << 30, u64::MAX] {
            histogram.tally(1, value);
        }
        let counts = histogram.counts();
        assert_eq!(counts.ranges(), (3, 23));
        assert_eq!(counts.buckets().len(), 21 * 128);
        assert_eq!((counts.buckets()[0], counts.total()), (3, 7));
        assert_eq!(counts.buckets().last(), Some(&3));
    }

    #[test]
    fn a_border_has_all_below_it_and_the_bucket_it_lies_in() {
        let histogram = histogram(0, u64::MAX);
        for value in 0..1 << 16 {
            histogram.tally(0, value);
        }
        for value in 1000..10_000 {
            histogram.tally(1, value);
        }
        let counts = histogram.counts();
        let total = (1 << 16) + 9000;
        // Widths: 4 at 1000, 64 at 10000, 128 at 30000.
        for (border, expected) in [
            (1000, 1004 + 4),
            (10_000, 10_048 + 9000),
            (10_011, 10_048 + 9000),
            (30_000, 30_080 + 9000),
            (u64::MAX, total),
        ] {
            assert_eq!(counts.up_to(border), expected, "{border}");
        }
        assert_eq!(counts.total(), total);
    }

    #[test]
    fn bad_bounds_are_refused() {
        let fine = HistogramOptions::default();
        for bad in [
            HistogramOptions {
                granularity: 13,
                ..fine
            },
            HistogramOptions {
                min_ns: 5,
                max_ns: 5,
                ..fine
            },
            HistogramOptions { max_ns: 0, ..fine },
        ] {
            assert!(Histogram::new(bad, 1).is_err(), "{bad:?}");
        }
    }
}
