//! What a cache did while jobs ran, by the difference of its own statistics.

use crate::bench::{RunReport, Stage};
use crate::cache::{Cache, GcFigures, LaneFigures, LatencySnapshot, WritebackFigures};
use std::collections::BTreeMap;

/// Counters of lanes that say what was done besides serving requests.
const LANE_COUNTERS: &[&str] = &[
    "backing_reads",
    "backing_read_bytes",
    "backing_errors",
    "fills",
    "fills_skipped",
    "space_waits",
    "space_wait_ns",
    "keys",
    "closed_full",
    "closed_age",
    "closed_flush",
    "closed_fua",
    "closed_pressure",
    "crc_errors",
];

/// A cache's statistics at one time.
#[derive(Debug)]
pub(super) struct CacheFigures {
    lanes: LaneFigures,
    writeback: WritebackFigures,
    gc: GcFigures,
    latencies: LatencySnapshot,
}

impl CacheFigures {
    /// As they are.
    pub(super) fn now(cache: &Cache) -> Self {
        Self {
            lanes: cache.figures(),
            writeback: cache.writeback_figures(),
            gc: cache.gc_figures(),
            latencies: cache.latency_snapshot(),
        }
    }

    /// Puts what the cache has done from then until `after` into `report`.
    pub(super) fn note_difference(&self, after: &Self, report: &mut RunReport) {
        let mut maintenance = BTreeMap::new();
        let lanes: BTreeMap<_, _> =
            difference(&after.lanes.fields(), &self.lanes.fields()).collect();
        for name in LANE_COUNTERS {
            maintenance.insert((*name).to_owned(), lanes.get(name).copied().unwrap_or(0));
        }
        for (name, count) in difference(&after.writeback.fields(), &self.writeback.fields()) {
            maintenance.insert(format!("writeback_{name}"), count);
        }
        for (name, count) in difference(&after.gc.fields(), &self.gc.fields()) {
            maintenance.insert(format!("gc_{name}"), count);
        }
        let of = |name: &str| lanes.get(name).copied().unwrap_or(0);
        let reads = of("hits") + of("partial_hits") + of("misses");
        report.hit_ratio = (reads > 0).then(|| of("hits") as f64 / reads as f64);
        report.maintenance = Some(maintenance);
        let figures = after.latencies.since(&self.latencies).figures();
        let stages = figures.iter().map(|found| {
            let stage = Stage {
                count: found.count,
                p50: found.p50_ns,
                p99: found.p99_ns,
                p999: found.p999_ns,
                max: found.max_ns,
            };
            (format!("{}.{}", found.op, found.stage), stage)
        });
        report.stages = Some(stages.collect());
    }
}

type Field = (&'static str, u64);

fn difference(after: &[Field], before: &[Field]) -> impl Iterator<Item = Field> {
    let pairs: Vec<Field> = after
        .iter()
        .zip(before)
        .map(|(after, before)| (after.0, after.1.wrapping_sub(before.1)))
        .collect();
    pairs.into_iter()
}
