//! What a job has found: histograms and counts, all allocated and touched before it starts.

use super::verify::Mismatch;
use hdrhistogram::{CreationError, Histogram};
use reactors::Nanos;

/// Latencies are told apart up to a minute; longer ones count as a minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// Significant digits of the histograms of a whole run …
const DIGITS: u8 = 3;
/// … and of one interval of a series, of which there are many.
const SERIES_DIGITS: u8 = 2;
/// Intervals of a series; what comes later counts for the last.
const INTERVALS_MAX: u64 = 2048;

/// A histogram of nanoseconds whose memory has been touched: recording meets no page fault.
///
/// # Errors
/// Never for these bounds; the crate wants it.
pub(super) fn touched(digits: u8) -> Result<Histogram<u64>, CreationError> {
    let mut histogram = Histogram::new_with_bounds(1, LATENCY_MAX_NS, digits)?;
    histogram.clear();
    Ok(histogram)
}

/// As [`touched`], with the digits of a whole run.
///
/// # Errors
/// Never for these bounds.
pub(super) fn histogram() -> Result<Histogram<u64>, CreationError> {
    touched(DIGITS)
}

/// The result of one job, or of several together.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Reads and writes that were counted.
    pub requests: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// When counting began.
    pub begun: Nanos,
    /// When the last counted request completed.
    pub ended: Nanos,
    /// Latencies of the reads that did not fail, in nanoseconds.
    pub reads: Histogram<u64>,
    /// … of the writes.
    pub writes: Histogram<u64>,
    /// … of the flushes, which are no requests in the sums above.
    pub flushes: Histogram<u64>,
    /// Latencies of reads and writes over time, by when they completed.
    pub series: Vec<Histogram<u64>>,
    /// Nanoseconds of each interval.
    pub series_ns: u64,
    /// Requests of an open loop that should have started while `depth` were under way.
    pub queued: u64,
    /// The longest that one of them waited for its turn, in nanoseconds.
    pub queue_wait_max_ns: u64,
    /// Requests of an open loop that were never started: the device was too slow for the rate.
    pub abandoned: u64,
    /// Sectors that were not what had been written.
    pub mismatches: u64,
    /// The first of them.
    pub first_mismatch: Option<Mismatch>,
    /// Sectors that were checked.
    pub verified: u64,
}

impl Outcome {
    /// Nothing yet, with a series for `run_ns` if it is to have one.
    ///
    /// # Errors
    /// Never for our bounds.
    pub(super) fn new(run_ns: u64, series_ns: u64) -> Result<Self, CreationError> {
        // Behind the last interval there is one for what completes late.
        let intervals = match run_ns.div_ceil(series_ns.max(1)) {
            _ if series_ns == 0 => 0,
            whole => whole.saturating_add(1).min(INTERVALS_MAX),
        };
        let series = (0..intervals).map(|_| touched(SERIES_DIGITS));
        Ok(Self {
            requests: 0,
            errors: 0,
            bytes: 0,
            begun: Nanos(0),
            ended: Nanos(0),
            reads: histogram()?,
            writes: histogram()?,
            flushes: histogram()?,
            series: series.collect::<Result<_, _>>()?,
            series_ns,
            queued: 0,
            queue_wait_max_ns: 0,
            abandoned: 0,
            mismatches: 0,
            first_mismatch: None,
            verified: 0,
        })
    }

    /// Adds what another job of the same run found.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        self.begun = self.begun.min(other.begun);
        self.ended = self.ended.max(other.ended);
        self.queued += other.queued;
        self.queue_wait_max_ns = self.queue_wait_max_ns.max(other.queue_wait_max_ns);
        self.abandoned += other.abandoned;
        self.mismatches += other.mismatches;
        self.first_mismatch = self.first_mismatch.or(other.first_mismatch);
        self.verified += other.verified;
        // All have the same bounds, so nothing is left out.
        let add = |ours: &mut Histogram<u64>, theirs: &Histogram<u64>| ours.add(theirs).is_ok();
        let mut whole = add(&mut self.reads, &other.reads);
        whole &= add(&mut self.writes, &other.writes);
        whole &= add(&mut self.flushes, &other.flushes);
        for (ours, theirs) in self.series.iter_mut().zip(&other.series) {
            whole &= add(ours, theirs);
        }
        debug_assert!(whole, "histograms of one run have the same bounds");
    }

    /// Reads and writes together.
    #[must_use]
    pub fn all(&self) -> Histogram<u64> {
        let mut all = self.reads.clone();
        let whole = all.add(&self.writes).is_ok();
        debug_assert!(whole, "the same bounds");
        all
    }

    /// Nanoseconds from the beginning of counting to the last completion.
    #[must_use]
    pub fn elapsed_ns(&self) -> u64 {
        self.ended.since(self.begun)
    }

    /// Whether all went well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.errors == 0 && self.mismatches == 0
    }
}
