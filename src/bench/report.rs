//! What a job found.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt;

/// Latencies in nanoseconds, from submission to completion as the submitter sees them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Percentiles {
    /// The shortest.
    pub min: u64,
    /// Half are not longer.
    pub p50: u64,
    /// 90 % are not longer.
    pub p90: u64,
    /// 99 % are not longer.
    pub p99: u64,
    /// 99.9 % are not longer.
    #[serde(rename = "p99.9")]
    pub p99_9: u64,
    /// 99.99 % are not longer.
    #[serde(rename = "p99.99")]
    pub p99_99: u64,
    /// The longest.
    pub max: u64,
    /// The mean.
    pub mean: f64,
}

impl From<&Histogram<u64>> for Percentiles {
    fn from(histogram: &Histogram<u64>) -> Self {
        Self {
            min: histogram.min(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            p99_99: histogram.value_at_quantile(0.9999),
            max: histogram.max(),
            mean: histogram.mean(),
        }
    }
}

/// The result of one job.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which device.
    pub bdev: String,
    /// Which requests, as fio spells it.
    pub pattern: &'static str,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests under way.
    pub depth: u32,
    /// Requests that completed while it counted.
    pub requests: u64,
    /// How many of them failed.
    pub errors: u64,
    /// How long it counted, in nanoseconds.
    pub elapsed_ns: u64,
    /// Requests a second.
    pub iops: f64,
    /// Latencies of those that did not fail, in nanoseconds.
    pub latency_ns: Percentiles,
}

/// `count` per `elapsed_ns`, as a rate a second. Exact to what people can read.
#[expect(
    clippy::cast_precision_loss,
    reason = "a rate for people; 53 bits are enough"
)]
pub(super) fn per_second(count: u64, elapsed_ns: u64) -> f64 {
    if elapsed_ns == 0 {
        return 0.0;
    }
    count as f64 * 1e9 / elapsed_ns as f64
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds with two digits for people"
)]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = &self.latency_ns;
        write!(
            f,
            "{:<12} {:<9} {:>6} B  QD {:<4} {:>9.0} IOPS  µs: p50 {:.2}  p90 {:.2}  p99 {:.2}  \
             p99.9 {:.2}  p99.99 {:.2}  max {:.2}",
            self.bdev,
            self.pattern,
            self.block_bytes,
            self.depth,
            self.iops,
            us(latency.p50),
            us(latency.p90),
            us(latency.p99),
            us(latency.p99_9),
            us(latency.p99_99),
            us(latency.max),
        )?;
        if self.errors > 0 {
            write!(f, "  ERRORS {} of {}", self.errors, self.requests)?;
        }
        Ok(())
    }
}
