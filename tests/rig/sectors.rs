//! The model: for every sector the versions that it may hold.
//!
//! Requests overlap in time, so a sector's value is a set. Each modification has a number, its
//! version, and every event a tick. A version is out of the question for a reader once another one
//! was submitted after it had ended, and that other one was acknowledged before the reader began;
//! after a power cut "was durable before the cut" stands in place of "was acknowledged".

use std::collections::VecDeque;

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;
const NEVER: u64 = u64::MAX;

pub(crate) type Version = u32;

#[derive(Clone, Copy, Debug)]
struct Modification {
    submitted: u64,
    /// From here on it can't change anything any more.
    ended: u64,
    acknowledged: u64,
    durable: u64,
    zero: bool,
}

/// See the module.
pub(crate) struct Sectors {
    history: Vec<Vec<Version>>,
    modifications: Vec<Modification>,
    tick: u64,
    /// When reads began that have not ended, in order.
    reads: VecDeque<u64>,
    /// Acknowledged and not known to be durable.
    volatile: Vec<Version>,
    /// Power may be cut: keep what an earlier flush left.
    keeps_durable: bool,
}

/// How a sector looks that holds `version` of sector `number`.
pub(crate) fn fill(sector: &mut [u8], number: u64, version: Version) {
    let word = number << 32 | u64::from(version);
    for at in sector.chunks_exact_mut(8) {
        at.copy_from_slice(&word.to_le_bytes());
    }
}

/// Number and version in a sector, both 0 for zeroes; nothing if it is torn.
pub(crate) fn parse(sector: &[u8]) -> Option<(u64, Version)> {
    let word = u64::from_le_bytes(sector[..8].try_into().unwrap());
    let whole = sector.chunks_exact(8).all(|at| at == &sector[..8]);
    whole.then_some((word >> 32, u32::try_from(word & 0xffff_ffff).unwrap()))
}

impl Sectors {
    /// All sectors hold zeroes, version 0.
    pub(crate) fn new(count: u64, keeps_durable: bool) -> Self {
        Self {
            history: vec![vec![0]; usize::try_from(count).unwrap()],
            modifications: vec![Modification {
                submitted: 0,
                ended: 0,
                acknowledged: 0,
                durable: 0,
                zero: true,
            }],
            tick: 1,
            reads: VecDeque::new(),
            volatile: Vec::new(),
            keeps_durable,
        }
    }

    pub(crate) fn now(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn range(start: u64, len: u64) -> std::ops::Range<usize> {
        usize::try_from(start / SECTOR).unwrap()..usize::try_from((start + len) / SECTOR).unwrap()
    }

    /// A modification begins.
    pub(crate) fn begin(&mut self, start: u64, len: u64, zero: bool) -> Version {
        let version = Version::try_from(self.modifications.len()).unwrap();
        let submitted = self.now();
        self.modifications.push(Modification {
            submitted,
            ended: NEVER,
            acknowledged: NEVER,
            durable: NEVER,
            zero,
        });
        for sector in &mut self.history[Self::range(start, len)] {
            sector.push(version);
        }
        version
    }

    /// It ended well; `durable` says whether it is safe from power cuts from now on.
    pub(crate) fn acknowledge(&mut self, version: Version, start: u64, len: u64, durable: bool) {
        let now = self.now();
        let entry = &mut self.modifications[version as usize];
        (entry.ended, entry.acknowledged) = (now, now);
        if durable {
            entry.durable = now;
        } else if self.keeps_durable {
            self.volatile.push(version);
        }
        let before = self.reads.front().copied().unwrap_or(now + 1);
        for number in Self::range(start, len) {
            let sector = std::mem::take(&mut self.history[number]);
            let kept = sector.iter().copied().filter(|&v| {
                let settled = if self.keeps_durable {
                    self.superseded_durably(&sector, v)
                } else {
                    true
                };
                !(settled && self.superseded(&sector, v, before))
            });
            self.history[number] = kept.collect();
        }
    }

    /// It ended without success: it may have changed something, or not.
    pub(crate) fn give_up(&mut self, version: Version) {
        self.modifications[version as usize].ended = self.now();
    }

    /// A flush that was submitted at tick `since` ended well.
    pub(crate) fn flushed(&mut self, since: u64) {
        let now = self.now();
        let modifications = &mut self.modifications;
        self.volatile.retain(|&version| {
            let entry = &mut modifications[version as usize];
            let covered = entry.acknowledged < since;
            if covered {
                entry.durable = now;
            }
            !covered
        });
    }

    fn superseded(&self, sector: &[Version], version: Version, before: u64) -> bool {
        let ended = self.modifications[version as usize].ended;
        sector.iter().any(|&other| {
            let other = &self.modifications[other as usize];
            other.submitted > ended && other.acknowledged < before
        })
    }

    fn superseded_durably(&self, sector: &[Version], version: Version) -> bool {
        let ended = self.modifications[version as usize].ended;
        sector.iter().any(|&other| {
            let other = &self.modifications[other as usize];
            other.submitted > ended && other.durable != NEVER
        })
    }

    /// A read begins.
    pub(crate) fn begin_read(&mut self) -> u64 {
        let now = self.now();
        self.reads.push_back(now);
        now
    }

    /// A read ended that began at `since`.
    pub(crate) fn end_read(&mut self, since: u64) {
        let place = self.reads.iter().position(|&at| at == since).unwrap();
        self.reads.remove(place);
    }

    fn content(&self, version: Version) -> Version {
        if self.modifications[version as usize].zero {
            0
        } else {
            version
        }
    }

    /// Checks what a read that began at `since` brought from `start` on.
    pub(crate) fn check(&self, start: u64, bytes: &[u8], since: u64) -> Result<(), String> {
        for (place, sector) in bytes.chunks_exact(512).enumerate() {
            let number = start / SECTOR + place as u64;
            let history = &self.history[usize::try_from(number).unwrap()];
            let right = parse(sector).is_some_and(|(at, found)| {
                (at == number || (at == 0 && found == 0))
                    && history.iter().rev().any(|&version| {
                        self.content(version) == found && !self.superseded(history, version, since)
                    })
            });
            if !right {
                return Err(self.explain(number, sector, since));
            }
        }
        Ok(())
    }

    fn explain(&self, number: u64, sector: &[u8], since: u64) -> String {
        let history = &self.history[usize::try_from(number).unwrap()];
        let known: Vec<_> = history
            .iter()
            .map(|&v| (v, self.modifications[v as usize]))
            .collect();
        let found = parse(sector);
        let about = found.and_then(|(_, v)| self.modifications.get(v as usize));
        format!(
            "sector {number} (byte {}) holds {found:?} = {about:?}, first bytes {:x?}; \
             a reader from tick {since} may see of {known:?}",
            number * SECTOR,
            &sector[..16]
        )
    }

    /// Whether a reader from `since` on can only see zeroes in the range.
    pub(crate) fn may_be_zero(&self, start: u64, len: u64, since: u64) -> bool {
        self.history[Self::range(start, len)].iter().all(|history| {
            history
                .iter()
                .any(|&v| self.content(v) == 0 && !self.superseded(history, v, since))
        })
    }

    /// All is over for the process: what was under way has ended somehow.
    pub(crate) fn die(&mut self) {
        let now = self.now();
        for entry in &mut self.modifications {
            entry.ended = entry.ended.min(now);
        }
        self.reads.clear();
    }

    /// Takes what was read after a death for the truth from now on, after checking it against what
    /// may be there: every acknowledged version, or after a power cut every durable one.
    pub(crate) fn settle(&mut self, bytes: &[u8], power: bool) -> Result<(), String> {
        let now = self.now();
        let mut found_versions = Vec::with_capacity(self.history.len());
        for (number, sector) in bytes.chunks_exact(512).enumerate() {
            let history = &self.history[number];
            let number = number as u64;
            let right = parse(sector).and_then(|(at, found)| {
                let fits = at == number || (at == 0 && found == 0);
                history.iter().rev().copied().find(|&version| {
                    let gone = if power {
                        self.superseded_durably(history, version)
                    } else {
                        self.superseded(history, version, now)
                    };
                    fits && self.content(version) == found && !gone
                })
            });
            match right {
                Some(version) => found_versions.push(version),
                None => return Err(self.explain(number, sector, now)),
            }
        }
        assert_eq!(found_versions.len(), self.history.len());
        for (number, version) in found_versions.into_iter().enumerate() {
            self.history[number] = vec![version];
            let entry = &mut self.modifications[version as usize];
            entry.acknowledged = entry.acknowledged.min(now);
            entry.durable = entry.durable.min(now);
        }
        self.volatile.clear();
        Ok(())
    }
}
