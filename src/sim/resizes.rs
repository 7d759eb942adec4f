//! Caches that grow and shrink under load, with ends of life at any step of it.

use super::world::{Checked, Violation, World};
use crate::cache::segments_min;

/// A shrink that takes more turns on a machine with nothing wrong is held to be stuck.
const TURNS_MAX: u64 = 200_000;

impl World {
    /// The fewest segments that a cache can have here.
    fn least(&self) -> u32 {
        segments_min(self.plan.lanes, self.plan.segment_bytes)
    }

    /// Some cache gets another number of segments, unless its life ends on the way there.
    pub(super) fn resize(&mut self) -> Checked<()> {
        if !self.is_well() {
            return Ok(());
        }
        let number = self.rng.index(self.volumes.len());
        let cache = self.cache(number)?;
        let old = cache.status().segments_total;
        let most = old + self.pool()?.free_segments();
        let least = self.least();
        let wanted = match self.rng.below(4) {
            0 => least,
            1 => most,
            _ => least + u32::try_from(self.rng.below(u64::from(most - least) + 1)).unwrap_or(0),
        };
        self.trace
            .note(|| format!("resize {number} from {old} to {wanted}"));
        if self.rng.permille(500) {
            let ahead = 1 + self.rng.below(self.rng.clone().pick(&[10, 60, 600]));
            self.universe.keep_after(ahead, 0);
        }
        let bytes = u64::from(wanted) * self.plan.segment_bytes;
        let begun = cache.resize_start(bytes);
        begun.map_err(|e| Violation::new(format!("resize {number} to {wanted}: {e}")))?;
        let mut kept = self.universe.take_kept();
        let mut armed = false;
        let from = self.turns;
        while kept.is_empty() {
            let status = cache.resize_status();
            if !armed && status.is_some_and(|s| s.draining == 0) && self.rng.permille(500) {
                // Soon it gives them back: that is done in a few steps.
                armed = true;
                let ahead = 1 + self.rng.below(60);
                self.universe.keep_after(ahead, 0);
            }
            let done = cache.resize_step();
            let done = done.map_err(|e| Violation::new(format!("resize {number}: {e}")))?;
            kept = self.universe.take_kept();
            if done || !kept.is_empty() {
                break;
            }
            self.some_load(&mut kept)?;
            if self.turns - from > TURNS_MAX {
                return Err(self.stuck("a resize"));
            }
        }
        self.universe.keep_none();
        drop(cache);
        let allowed = if let Some(moment) = kept.pop() {
            let end = self.random_end();
            self.end_life(end, Some(moment))?;
            self.check_pool()?;
            self.load_with_ends(end)?;
            [old, wanted]
        } else {
            [wanted, wanted]
        };
        let found = self.cache(number)?.status().segments_total;
        if allowed.contains(&found) {
            return Ok(());
        }
        let what = format!("volume {number} has {found} segments, not one of {allowed:?}");
        Err(Violation::new(what))
    }

    /// A turn with some requests; ends early when a snapshot has been taken.
    fn some_load(&mut self, kept: &mut Vec<super::universe::Snapshot>) -> Checked<()> {
        let mix = self.plan.mix;
        if self.flights.len() < self.plan.depth && self.rng.permille(300) {
            self.submit_random(&mix)?;
            *kept = self.universe.take_kept();
            if !kept.is_empty() {
                return Ok(());
            }
        }
        self.turn_until_kept(kept)
    }

    /// The cache grows, works on what it got, and gives it back; every step may be looked at.
    pub(super) fn grow_and_shrink(&mut self, operations: u64) -> Checked<()> {
        for number in 0..self.volumes.len() {
            let cache = self.cache(number)?;
            let old = cache.status().segments_total;
            for wanted in [old + 3, old] {
                let bytes = u64::from(wanted) * self.plan.segment_bytes;
                let failed = |e| Violation::new(format!("resize {number}: {e}"));
                cache.resize_start(bytes).map_err(failed)?;
                self.until("a resize", |world| {
                    world.after_engine()?;
                    cache.resize_step().map_err(failed)
                })?;
                self.after_engine()?;
                self.run(operations)?;
            }
        }
        Ok(())
    }
}
