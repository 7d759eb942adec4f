//! Figures since an operator began them anew. The counters themselves go on: each has one writer.

use super::cache::Cache;
use super::latency::{LatencyFigures, LatencySnapshot};
use super::stats::{GcFigures, LaneFigures, WritebackFigures};
use std::sync::PoisonError;

/// What a cache had counted at some moment.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    lanes: Vec<LaneFigures>,
    writeback: WritebackFigures,
    gc: GcFigures,
    latencies: LatencySnapshot,
}

/// What a cache did since [`Cache::reset_stats`], or since its load.
#[derive(Clone, Debug, Default)]
pub struct StatsFigures {
    /// Each lane.
    pub lanes: Vec<LaneFigures>,
    /// All of them.
    pub sum: LaneFigures,
    /// Writeback.
    pub writeback: WritebackFigures,
    /// GC.
    pub gc: GcFigures,
    /// Latencies of every kind of request at every stage.
    pub latencies: Vec<LatencyFigures>,
}

impl Cache {
    fn counted(&self) -> Counted {
        Counted {
            lanes: self.lane_figures(),
            writeback: self.writeback_figures(),
            gc: self.gc_figures(),
            latencies: self.latency_snapshot(),
        }
    }

    /// What it did since the figures were begun anew; with `reset` they are now, in one step.
    #[must_use]
    pub fn stats(&self, reset: bool) -> StatsFigures {
        let mut base = self
            .stats_base
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let now = self.counted();
        let mut figures = StatsFigures {
            lanes: now.lanes.clone(),
            writeback: now.writeback,
            gc: now.gc,
            ..StatsFigures::default()
        };
        let mut latencies = None;
        if let Some(base) = &*base {
            let lanes = figures.lanes.iter_mut().zip(&base.lanes);
            lanes.for_each(|(lane, before)| *lane = lane.since(before));
            figures.writeback = figures.writeback.since(&base.writeback);
            figures.gc = figures.gc.since(&base.gc);
            latencies = Some(now.latencies.since(&base.latencies));
        }
        for (lane, now) in figures.lanes.iter_mut().zip(&now.lanes) {
            // That is what is BAD, not what became so.
            lane.bad_bytes = now.bad_bytes;
            figures.sum.add(lane);
        }
        figures.latencies = latencies.as_ref().unwrap_or(&now.latencies).figures();
        if reset {
            *base = Some(now);
        }
        figures
    }

    /// Begins the figures of [`Cache::stats`] anew.
    pub fn reset_stats(&self) {
        let _ = self.stats(true);
    }
}
