//! Media that decay: bits that flip and lines that can't be read, where it is known what they hold.

use super::rng::index;
use super::sectors::SECTOR;
use super::world::{Checked, Violation, World};
use crate::cache::{LoadWish, SurveyedData, SurveyedKset};
use crate::media::SLOT_BYTES;
use crate::units::ByteRange;

/// Lines of a medium that become unreadable at most.
pub(super) const POISONED_MAX: u32 = 6;

/// What was done to a medium at rest, and what a load has to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// A slot of a pair can't be read: the other one does, or the newer is told by the log.
    Slot,
    /// Data of keys: the cache loads, and no read gives other bytes than the right ones.
    Data,
    /// A kset before the dirty tail: only clean cache is lost.
    Passed,
    /// A kset in the middle of the log, with one bit flipped: the load is refused.
    Middle { at: u64, mask: u8 },
}

impl World {
    /// Damages the medium of a machine on which nothing is loaded.
    pub(super) fn damage(&mut self) -> Checked<Option<Damage>> {
        self.damaged = true;
        let name = self.volumes[0].name.clone();
        let survey = self.pool()?.survey(&name);
        let survey = survey.map_err(|e| Violation::new(format!("survey: {e}")))?;
        let last_proven = survey.ksets.iter().map(|kset| kset.durable).max();
        let used = self.plan.used();
        let nothing_lost = {
            let model = &mut self.volumes[0].model;
            let now = model.now();
            model.lost_sectors(used, now).is_empty()
        };
        match self.rng.below(10) {
            // BAD keys that a damaged kset held are lost with it: only where there are none.
            0..=2 if nothing_lost => {
                let passed = |kset: &&SurveyedKset| kset.sequence < survey.dirty_sequence;
                let Some(kset) = self.pick(survey.ksets.iter().filter(passed).copied()) else {
                    return Ok(None);
                };
                self.flip(kset.at, kset.len);
                Ok(Some(Damage::Passed))
            }
            3 | 4 => {
                let middle = |kset: &&SurveyedKset| {
                    kset.sequence >= survey.dirty_sequence && last_proven >= Some(kset.sequence)
                };
                let Some(kset) = self.pick(survey.ksets.iter().filter(middle).copied()) else {
                    return Ok(None);
                };
                let (at, mask) = self.flip(kset.at, kset.len);
                Ok(Some(Damage::Middle { at, mask }))
            }
            5 | 6 if self.poisoned < POISONED_MAX => {
                let pair = self.rng.pick(&survey.slots);
                let second = usize::from(self.rng.permille(500));
                let (at, other) = (pair[second], pair[1 - second]);
                if !self
                    .universe
                    .read()
                    .media
                    .is_readable(other, SLOT_BYTES as u64)
                {
                    return Ok(None);
                }
                self.trace
                    .note(|| format!("the slot at {at:#x} can't be read any more"));
                self.universe.write().media.poison(at);
                // It may be the newer dirty tail.
                self.volumes[0].model.lose_again();
                // Its segment is never used again as long as this is so.
                self.poisoned += 1;
                Ok(Some(Damage::Slot))
            }
            _ => {
                for _ in 0..=self.rng.below(3) {
                    if let Some(data) = self.pick(survey.data.iter().copied()) {
                        self.damage_data(&data);
                    }
                }
                Ok(Some(Damage::Data))
            }
        }
    }

    pub(super) fn pick<T: Copy>(&mut self, of: impl Iterator<Item = T>) -> Option<T> {
        let all: Vec<T> = of.collect();
        (!all.is_empty()).then(|| self.rng.pick(&all))
    }

    /// Flips a bit somewhere in these bytes; says where and which.
    pub(super) fn flip(&mut self, at: u64, len: u64) -> (u64, u8) {
        let at = at + self.rng.below(len);
        let mask = 1 << self.rng.below(8);
        self.trace
            .note(|| format!("bits {mask:#x} of byte {at:#x} flip"));
        self.universe.write().media.flip(at, mask);
        (at, mask)
    }

    fn damage_data(&mut self, data: &SurveyedData) {
        let len = data.range.len();
        // A segment that can't be read in places is never used again: leave enough of them.
        let few = self.poisoned >= POISONED_MAX;
        if few || self.rng.permille(500) {
            self.flip(data.at, len);
        } else {
            let at = data.at + self.rng.below(len);
            self.trace
                .note(|| format!("the line of byte {at:#x} can't be read any more"));
            self.universe.write().media.poison(at);
            self.poisoned += 1;
        }
        // The backing has what a clean key says.
        if !data.is_clean {
            self.volumes[0].model.lose(data.range);
        }
    }

    /// Somebody writes to a backing while no cache is loaded, after a clean stop with nothing dirty: the
    /// load is refused. Then the backing is as it was.
    pub(super) fn change_backing(&mut self) -> Checked<()> {
        let sectors = self.plan.volume_bytes.min(1 << 20) / SECTOR;
        let at = self.rng.below(sectors) * SECTOR;
        let before = {
            let state = self.universe.read();
            state.disks[0].peek(ByteRange::between(at, at + SECTOR))
        };
        let foreign: Vec<u8> = before.iter().map(|byte| byte ^ 0xff).collect();
        self.trace
            .note(|| format!("byte {at:#x} of the backing is changed"));
        self.universe.write().disks[0].change(at, &foreign);
        if self.try_load(0, LoadWish::default())?.is_ok() {
            return Err(Violation::new(format!(
                "byte {at:#x} of the backing was changed, and the cache was loaded"
            )));
        }
        self.universe.write().disks[0].change(at, &before);
        self.restart()?;
        self.open_pool()
    }

    /// Loads what [`World::damage`] left.
    pub(super) fn load_damaged(&mut self, damage: Option<Damage>) -> Checked<()> {
        let Some(Damage::Middle { at, mask }) = damage else {
            return self.load();
        };
        let before = self.universe.read().media.peek(0, self.plan.pool_bytes());
        if self.try_load(0, LoadWish::default())?.is_ok() {
            return Err(Violation::new(format!(
                "a cache was loaded whose log is damaged at {at:#x}, in the middle"
            )));
        }
        if self.rng.permille(500) {
            self.check_salvaged(0)?;
            self.restart()?;
        }
        let after = self.universe.read().media.peek(0, self.plan.pool_bytes());
        if let Some(differs) = (0..before.len()).find(|&place| before[place] != after[place]) {
            return Err(Violation::new(format!(
                "a load that was refused, or for salvage, changed byte {differs:#x}"
            )));
        }
        // The medium has a good day: nothing is lost.
        self.universe.write().media.flip(at, mask);
        debug_assert!(index(at) < before.len());
        self.open_pool()?;
        self.load()
    }
}
