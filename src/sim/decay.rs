//! Ksets that can't be read any more while their cache runs.

use super::damage::POISONED_MAX;
use super::world::{Checked, Violation, World};
use crate::cache::{CacheOptions, SurveyedKset};

/// Turns after which a part of the log that can't be read must have been passed.
const TURNS_MAX: u32 = 20_000;
/// Turns after which GC has no reason to go there.
const TURNS_UNKNOWN: u32 = 500;

/// A kset that was damaged: where, and by which bits; nothing for a line that can't be read.
#[derive(Clone, Copy, Debug)]
struct Spoiled {
    sequence: u64,
    at: u64,
    mask: Option<u8>,
}

impl World {
    /// Damages durable ksets while requests are under way. All goes on, nothing is lost, and in the end
    /// the log is as good as any.
    pub(super) fn decay_running(&mut self) -> Checked<()> {
        if !self.is_well() {
            return Ok(());
        }
        let lost = self.cache(0)?.gc_figures().lost_ksets;
        let mut spoiled = Vec::new();
        for _ in 0..=self.rng.below(3) {
            spoiled.extend(self.spoil_kset()?);
            let operations = self.rng.below(30);
            self.run(operations)?;
        }
        let count = spoiled.len() as u64;
        if count == 0 {
            return Ok(());
        }
        self.counts.lost_ksets += count;
        self.drain()?;
        self.flush_all()?;
        self.check_backing(0)?;
        self.pass_lost(lost + count, &spoiled)?;
        self.check_volumes()?;
        self.rest(2_500_000_000)?;
        self.audit()
    }

    /// GC passes all that is written back, so that it meets what the dirty tail had passed before it
    /// was damaged. What is left when nothing is to be gained from that has a good day.
    fn pass_lost(&mut self, lost: u64, spoiled: &[Spoiled]) -> Checked<()> {
        let cache = self.cache(0)?;
        let before = cache.options();
        let failed = |e| Violation::new(format!("set_options: {e}"));
        let none = CacheOptions {
            gc_percent: 0,
            ..before.clone()
        };
        cache.set_options(none).map_err(failed)?;
        for turn in 0..TURNS_MAX {
            let known = cache.gc_figures().lost_ksets >= lost || turn >= TURNS_UNKNOWN;
            if known && !cache.is_log_lost() {
                break;
            }
            self.turn()?;
        }
        let status = cache.status();
        if cache.is_log_lost() {
            let what = format!("a kset that can't be read stays in the log: {status:?}");
            return Err(Violation::new(what));
        }
        for kset in spoiled.iter().filter(|s| s.sequence >= status.key_tail.2) {
            let media = &mut self.universe.write().media;
            match kset.mask {
                Some(mask) => media.flip(kset.at, mask),
                None => media.heal(kset.at),
            }
        }
        cache.set_options(before).map_err(failed)
    }

    /// Damages a kset of the first volume's log, if there is one for it.
    fn spoil_kset(&mut self) -> Checked<Option<Spoiled>> {
        let (name, cache) = (self.volumes[0].name.clone(), self.cache(0)?);
        // Another one that nobody has met yet.
        let Ok(survey) = self.pool()?.survey(&name) else {
            return Ok(None);
        };
        let durable = cache.status().durable_sequence;
        let before = self.rng.permille(300);
        let is_there = |kset: &&SurveyedKset| {
            kset.sequence <= durable && (before || kset.sequence >= survey.dirty_sequence)
        };
        let Some(kset) = self.pick(survey.ksets.iter().filter(is_there).copied()) else {
            return Ok(None);
        };
        let sequence = kset.sequence;
        if self.poisoned >= POISONED_MAX || self.rng.permille(600) {
            let (at, mask) = self.flip(kset.at, kset.len);
            let mask = Some(mask);
            return Ok(Some(Spoiled { sequence, at, mask }));
        }
        let at = kset.at + self.rng.below(kset.len);
        self.trace
            .note(|| format!("the line of byte {at:#x} can't be read any more, of a kset"));
        self.universe.write().media.poison(at);
        self.poisoned += 1;
        self.damaged = true;
        let mask = None;
        Ok(Some(Spoiled { sequence, at, mask }))
    }
}
