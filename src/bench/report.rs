//! What a run found, as people and scripts get it (`docs/bench.md` has the schema).

use super::outcome::Outcome;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Latencies in nanoseconds, from submission to completion as the submitter sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
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
    pub p999: u64,
    /// 99.99 % are not longer.
    pub p9999: u64,
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
            p999: histogram.value_at_quantile(0.999),
            p9999: histogram.value_at_quantile(0.9999),
            max: histogram.max(),
            mean: histogram.mean(),
        }
    }
}

/// Reads or writes alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Part {
    /// How many were counted and did not fail.
    pub requests: u64,
    /// Their latencies.
    pub latency_ns: Percentiles,
}

impl Part {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        (!histogram.is_empty()).then(|| Self {
            requests: histogram.len(),
            latency_ns: histogram.into(),
        })
    }
}

/// What verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Sectors that were checked.
    pub sectors: u64,
    /// How many of them were wrong.
    pub mismatches: u64,
    /// The first of these: where, what should be there, and what is.
    pub first: Option<String>,
}

/// One interval of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// When it began, after the beginning of counting.
    pub at_ms: f64,
    /// Requests that completed in it.
    pub requests: u64,
    /// Half of them took at most this, in nanoseconds.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// A stage's latencies in a cache, of one kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// How many; hits are counted from a sample.
    pub count: u64,
    /// Half of them took at most this, in nanoseconds.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

/// A run's figures as multiples of what the machine itself takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratios {
    /// Which floor: a key of `floors`, or a sum of them.
    pub floor: String,
    /// The floor for this run's block size, in nanoseconds.
    pub floor_ns: u64,
    /// `latency_ns.min` / floor, and so on.
    pub min: f64,
    /// Of the median.
    pub p50: f64,
    /// Of the 90th percentile.
    pub p90: f64,
    /// Of the 99th.
    pub p99: f64,
    /// Of the 99.9th.
    pub p999: f64,
    /// Of the 99.99th.
    pub p9999: f64,
    /// Of the longest.
    pub max: f64,
    /// Of the mean.
    pub mean: f64,
    /// (p999 − `jitter_p999_ns`) / floor.
    pub p999_less_jitter: f64,
    /// Requests a second, as a share of one after the other at the floor.
    pub iops: f64,
}

impl Ratios {
    /// Of `run` to a floor; None without one.
    #[must_use]
    pub fn of(run: &RunReport, floor: &str, floor_ns: u64, jitter_p999_ns: u64) -> Option<Self> {
        if floor_ns == 0 {
            return None;
        }
        let base = floor_ns as f64;
        let part = |ns: u64| rounded(ns as f64 / base);
        let found = &run.latency_ns;
        Some(Self {
            floor: floor.to_owned(),
            floor_ns,
            min: part(found.min),
            p50: part(found.p50),
            p90: part(found.p90),
            p99: part(found.p99),
            p999: part(found.p999),
            p9999: part(found.p9999),
            max: part(found.max),
            mean: rounded(found.mean / base),
            p999_less_jitter: part(found.p999.saturating_sub(jitter_p999_ns)),
            iops: rounded(run.iops * base / 1e9),
        })
    }
}

/// To four digits behind the point: no machine measures better.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// One row: a job, or several jobs together, and what they found.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Unique in its document.
    pub name: String,
    /// Which device.
    pub bdev: String,
    /// Which requests, as fio spells it.
    pub rw: &'static str,
    /// Of 100 requests, how many read.
    pub read_percent: u32,
    /// Bytes of each request; of the largest if they differ.
    pub block_bytes: u32,
    /// Requests under way in each job.
    pub depth: u32,
    /// Jobs.
    pub jobs: u32,
    /// `local`, or `ring` if the submitter was on another core.
    pub submit: &'static str,
    /// Requests a second that each job should start; null in a closed loop.
    pub rate: Option<f64>,
    /// How long it counted.
    pub seconds: f64,
    /// Reads and writes that were counted.
    pub requests: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// Requests a second.
    pub iops: f64,
    /// MiB a second.
    pub mib_s: f64,
    /// Latencies of those that did not fail.
    pub latency_ns: Percentiles,
    /// Reads alone.
    pub read: Option<Part>,
    /// Writes alone.
    pub write: Option<Part>,
    /// Flushes, which are no requests in the figures above.
    pub flush: Option<Part>,
    /// Requests of an open loop that waited for a slot, the longest wait, and those that were given up.
    pub queued: u64,
    /// The longest of these waits, in nanoseconds.
    pub queue_wait_max_ns: u64,
    /// Requests of an open loop that were never started.
    pub abandoned: u64,
    /// What verification found; null without it.
    pub verify: Option<Verified>,
    /// The figures as multiples of the floor; null without one.
    pub ratios: Option<Ratios>,
    /// Where a cache's requests spent their time, by `write.engine` and the like.
    pub stages: Option<BTreeMap<String, Stage>>,
    /// Read hits among reads.
    pub hit_ratio: Option<f64>,
    /// What the cache did besides, by counter.
    pub maintenance: Option<BTreeMap<String, u64>>,
    /// Latencies over time.
    pub series: Vec<Interval>,
    /// Quantiles and their nanoseconds.
    pub curve: Vec<(f64, u64)>,
    /// All latencies, of all repeated runs together.
    #[serde(skip)]
    pub all: Histogram<u64>,
    /// What repeated runs had; empty for one run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// Least and most of each figure over repeated runs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub spread: BTreeMap<&'static str, [f64; 2]>,
}

/// One of several repeated runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Requests a second.
    pub iops: f64,
    /// Latencies.
    pub latency_ns: Percentiles,
}

impl Sample {
    /// Names and values.
    #[must_use]
    pub fn figures(&self) -> [(&'static str, f64); 9] {
        let found = &self.latency_ns;
        [
            ("iops", self.iops),
            ("min", found.min as f64),
            ("p50", found.p50 as f64),
            ("p90", found.p90 as f64),
            ("p99", found.p99 as f64),
            ("p999", found.p999 as f64),
            ("p9999", found.p9999 as f64),
            ("max", found.max as f64),
            ("mean", found.mean),
        ]
    }
}

/// What a run was: all that its outcome does not know.
#[derive(Clone, Debug)]
pub struct RunHead {
    /// The row's name.
    pub name: String,
    /// The device's name.
    pub bdev: String,
    /// `local` or `ring`.
    pub submit: &'static str,
    /// How many jobs.
    pub jobs: u32,
}

impl RunReport {
    /// Whether all requests went well, and all sectors were right.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.errors == 0
            && self
                .verify
                .as_ref()
                .is_none_or(|found| found.mismatches == 0)
    }

    /// The report of `jobs` alike, of which `job` is one.
    #[must_use]
    pub fn new(head: RunHead, job: &super::Workload, outcome: &Outcome) -> Self {
        let all = outcome.all();
        let elapsed_ns = outcome.elapsed_ns();
        let rate = match job.load {
            super::Load::Closed => None,
            super::Load::Open { rate, .. } => Some(rate),
        };
        Self {
            name: head.name,
            bdev: head.bdev,
            rw: job.rw(),
            read_percent: job.read_percent,
            block_bytes: job.bytes_max(),
            depth: job.depth,
            jobs: head.jobs,
            submit: head.submit,
            rate,
            seconds: elapsed_ns as f64 / 1e9,
            requests: outcome.requests,
            errors: outcome.errors,
            bytes: outcome.bytes,
            iops: per_second(outcome.requests, elapsed_ns).round(),
            mib_s: rounded(per_second(outcome.bytes, elapsed_ns) / f64::from(1 << 20)),
            latency_ns: Percentiles::from(&all),
            read: Part::of(&outcome.reads),
            write: Part::of(&outcome.writes),
            flush: Part::of(&outcome.flushes),
            queued: outcome.queued,
            queue_wait_max_ns: outcome.queue_wait_max_ns,
            abandoned: outcome.abandoned,
            verify: job.verify.then(|| Verified {
                sectors: outcome.verified,
                mismatches: outcome.mismatches,
                first: outcome.first_mismatch.map(|found| found.to_string()),
            }),
            ratios: None,
            stages: None,
            hit_ratio: None,
            maintenance: None,
            series: series(outcome),
            curve: curve(&all),
            all,
            samples: Vec::new(),
            spread: BTreeMap::new(),
        }
    }

    /// One report of several runs of the same row: every figure is the median of theirs, and the
    /// rest is of the run whose p50 is the median. None for no runs.
    #[must_use]
    pub fn median(mut runs: Vec<Self>) -> Option<Self> {
        runs.sort_by_key(|run| run.latency_ns.p50);
        let samples: Vec<Sample> = runs
            .iter()
            .map(|run| Sample {
                iops: run.iops,
                latency_ns: run.latency_ns,
            })
            .collect();
        let errors = runs.iter().map(|run| run.errors).sum();
        let wrong = runs.iter().filter_map(|run| run.verify.clone());
        let wrong = wrong.max_by_key(|found| found.mismatches);
        let mut all = runs.first()?.all.clone();
        let added = runs.iter().skip(1).all(|run| all.add(&run.all).is_ok());
        debug_assert!(added, "the same bounds");
        let middle = runs.len().saturating_sub(1) / 2;
        let mut median = runs.into_iter().nth(middle)?;
        if samples.len() == 1 {
            return Some(median);
        }
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for (name, value) in samples.iter().flat_map(Sample::figures) {
            values.entry(name).or_default().push(value);
        }
        for list in values.values_mut() {
            list.sort_by(f64::total_cmp);
        }
        let of = |name: &str| values.get(name).and_then(|list| list.get(middle).copied());
        let ns = |name: &str| whole(of(name).unwrap_or(0.0));
        median.iops = of("iops").unwrap_or(0.0);
        median.mib_s = rounded(
            median.iops * median.bytes as f64
                / (median.requests.max(1) as f64 * f64::from(1 << 20)),
        );
        median.latency_ns = Percentiles {
            min: ns("min"),
            p50: ns("p50"),
            p90: ns("p90"),
            p99: ns("p99"),
            p999: ns("p999"),
            p9999: ns("p9999"),
            max: ns("max"),
            mean: of("mean").unwrap_or(0.0),
        };
        median.all = all;
        median.errors = errors;
        median.verify = wrong;
        let ends = |list: &Vec<f64>| Some([*list.first()?, *list.last()?]);
        median.spread = values
            .iter()
            .filter_map(|(name, list)| Some((*name, ends(list)?)))
            .collect();
        median.samples = samples;
        Some(median)
    }
}

/// Nanoseconds that have been floats for a while.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "never negative, and a float to an integer saturates"
)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

fn series(outcome: &Outcome) -> Vec<Interval> {
    let step_ms = outcome.series_ns as f64 / 1e6;
    // What follows the last request is not a pause.
    let used = outcome.series.iter().rposition(|found| !found.is_empty());
    let intervals = outcome.series.iter().take(used.map_or(0, |last| last + 1));
    intervals
        .enumerate()
        .map(|(number, found)| Interval {
            at_ms: rounded(number as f64 * step_ms),
            requests: found.len(),
            p50: found.value_at_quantile(0.5),
            p99: found.value_at_quantile(0.99),
            max: found.max(),
        })
        .collect()
}

/// Quantiles from 0 to 1, closer together where the tail is.
fn curve(all: &Histogram<u64>) -> Vec<(f64, u64)> {
    if all.is_empty() {
        return Vec::new();
    }
    let body = (0..20).map(|step| f64::from(step) * 0.05);
    let tail = (1..5).flat_map(|power| {
        let rest = 10_f64.powi(-power);
        (1..10).map(move |step| 1.0 - rest * (1.0 - f64::from(step) * 0.1))
    });
    let quantiles = body.chain(tail).chain([0.999_99, 1.0]);
    let mut curve: Vec<(f64, u64)> = quantiles
        .map(|quantile| ((quantile * 1e7).round() / 1e7, quantile))
        .map(|(shown, quantile)| (shown, all.value_at_quantile(quantile)))
        .collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    curve.dedup_by(|a, b| a.0 == b.0);
    // The lowest bucket holds the least value, and the least value is known.
    if let Some(first) = curve.first_mut() {
        first.1 = all.min();
    }
    curve
}

/// `count` per `elapsed_ns`, as a rate a second.
fn per_second(count: u64, elapsed_ns: u64) -> f64 {
    if elapsed_ns == 0 {
        return 0.0;
    }
    count as f64 * 1e9 / elapsed_ns as f64
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = &self.latency_ns;
        write!(
            f,
            "{:<24} {:>9.0} IOPS {:>8.1} MiB/s  µs: p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  \
             p99.99 {:.2}  max {:.2}",
            self.name,
            self.iops,
            self.mib_s,
            us(latency.p50),
            us(latency.p90),
            us(latency.p99),
            us(latency.p999),
            us(latency.p9999),
            us(latency.max),
        )?;
        if let Some([least, most]) = self.spread.get("p50") {
            write!(
                f,
                "  p50 of {} runs {least:.0}–{most:.0} ns",
                self.samples.len()
            )?;
        }
        if let Some(ratios) = &self.ratios {
            write!(f, "  p50 = {:.2} × {}", ratios.p50, ratios.floor)?;
        }
        if let (Some(read), Some(written)) = (&self.read, &self.write) {
            write!(
                f,
                "\n{:<24} reads: p50 {:.2} p99 {:.2}; writes: p50 {:.2} p99 {:.2}",
                "",
                us(read.latency_ns.p50),
                us(read.latency_ns.p99),
                us(written.latency_ns.p50),
                us(written.latency_ns.p99)
            )?;
        }
        if let Some(hits) = self.hit_ratio {
            write!(f, "\n{:<24} hit ratio {hits:.3}", "")?;
        }
        if self.queued + self.abandoned > 0 {
            write!(
                f,
                "\n{:<24} {} waited for a slot, up to {:.0} µs; {} were never started",
                "",
                self.queued,
                us(self.queue_wait_max_ns),
                self.abandoned
            )?;
        }
        if let Some(found) = &self.verify {
            let (sectors, wrong) = (found.sectors, found.mismatches);
            write!(f, "\n{:<24} {sectors} sectors checked, {wrong} wrong", "")?;
            if let Some(first) = &found.first {
                write!(f, ": {first}")?;
            }
        }
        if self.errors > 0 {
            write!(
                f,
                "\n{:<24} ERRORS {} of {}",
                "", self.errors, self.requests
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
