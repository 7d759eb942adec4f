//! The model: for every sector of a volume the versions that it may hold.
//!
//! Requests overlap in time, so a sector's value is a set. Each modification has a number, its
//! version, and every event a tick. A version is out of the question for a reader once another one
//! was submitted after it had ended, and that other one was acknowledged before the reader began;
//! after a power cut "was durable before the cut" stands in place of "was acknowledged".

use super::rng::index;
use crate::units::ByteRange;
use std::collections::{BTreeSet, VecDeque};

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
pub(super) const NEVER: u64 = u64::MAX;

pub(super) type Version = u32;

#[derive(Clone, Copy, Debug)]
pub(super) struct Modification {
    pub(super) submitted: u64,
    /// From here on it can't change anything any more.
    pub(super) ended: u64,
    pub(super) acknowledged: u64,
    pub(super) durable: u64,
    pub(super) zero: bool,
}

/// What is wrong with a sector.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    pub(super) sector: u64,
    pub(super) what: String,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Sectors {
    /// Tells its sectors from those of other volumes.
    volume: u8,
    history: Vec<Vec<Version>>,
    /// For each sector all versions that were not lost: what a disk alone may show.
    all: Vec<Vec<Version>>,
    /// For each sector the versions that a power cut may bring back, though a later one was read …
    older: Vec<Vec<Version>>,
    /// … and those of which nobody knows whether they ever came there: they were never acknowledged.
    ghosts: Vec<Vec<Version>>,
    pub(super) modifications: Vec<Modification>,
    tick: u64,
    /// When reads began that have not ended, in order.
    reads: VecDeque<u64>,
    /// Acknowledged and not known to be durable.
    volatile: Vec<Version>,
    /// For each sector when its data may have been lost, so that reads fail until it is overwritten; 0
    /// for never.
    lost: Vec<u64>,
    /// For each sector when its medium lost what it held; 0 for never. Reads of the backing may have given
    /// it since.
    decayed: Vec<u64>,
    /// When the last flushes were submitted and completed, newest last.
    pub(super) flushes: Vec<(u64, u64)>,
}

/// What a sector says of itself: volume, number, version.
pub(super) type Tag = (u8, u64, Version);

/// Number and version in a sector, all 0 for zeroes; nothing if it is torn.
pub(super) fn parse(sector: &[u8]) -> Option<Tag> {
    let (words, _) = sector.as_chunks::<8>();
    let word = u64::from_le_bytes(*words.first()?);
    let whole = words.iter().all(|at| u64::from_le_bytes(*at) == word);
    let version = Version::try_from(word & 0xffff_ffff).ok()?;
    let volume = u8::try_from(word >> 56).ok()?;
    whole.then_some((volume, word >> 32 & 0xff_ffff, version))
}

impl Sectors {
    /// All sectors hold zeroes, version 0. `volume` is above 0.
    pub(super) fn new(volume: u8, count: u64) -> Self {
        Self {
            volume,
            history: vec![vec![0]; index(count)],
            all: vec![vec![0]; index(count)],
            older: vec![Vec::new(); index(count)],
            ghosts: vec![Vec::new(); index(count)],
            lost: vec![0; index(count)],
            decayed: vec![0; index(count)],
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
            flushes: Vec::new(),
        }
    }

    /// Makes a sector look as if it held `version` of sector `number`.
    pub(super) fn fill(&self, sector: &mut [u8], number: u64, version: Version) {
        let word = u64::from(self.volume) << 56 | number << 32 | u64::from(version);
        for at in sector.as_chunks_mut::<8>().0 {
            *at = word.to_le_bytes();
        }
    }

    pub(super) fn now(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn range(start: u64, len: u64) -> std::ops::Range<usize> {
        index(start / SECTOR)..index((start + len) / SECTOR)
    }

    fn of(&self, version: Version) -> &Modification {
        &self.modifications[version as usize]
    }

    /// A modification begins.
    pub(super) fn begin(&mut self, start: u64, len: u64, zero: bool) -> Version {
        let version = Version::try_from(self.modifications.len()).unwrap_or(Version::MAX);
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
        for sector in &mut self.all[Self::range(start, len)] {
            sector.push(version);
        }
        version
    }

    /// It ended well; `durable` says whether it is safe from power cuts from now on.
    pub(super) fn acknowledge(&mut self, version: Version, start: u64, len: u64, durable: bool) {
        let now = self.now();
        let entry = &mut self.modifications[version as usize];
        (entry.ended, entry.acknowledged) = (now, now);
        if durable {
            entry.durable = now;
        } else {
            self.volatile.push(version);
        }
        let before = self.reads.front().copied().unwrap_or(now + 1);
        for number in Self::range(start, len) {
            let sector = std::mem::take(&mut self.history[number]);
            let kept = sector.iter().copied().filter(|&v| {
                !(self.superseded_durably(&sector, v) && self.superseded(&sector, v, before))
            });
            self.history[number] = kept.collect();
        }
    }

    /// It ended without success: it may have changed something, or not.
    pub(super) fn give_up(&mut self, version: Version) {
        self.modifications[version as usize].ended = self.now();
    }

    /// A flush that was submitted at tick `since` ended well.
    pub(super) fn flushed(&mut self, since: u64) {
        let now = self.now();
        self.flushes.push((since, now));
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
        let ended = self.of(version).ended;
        sector.iter().any(|&other| {
            let other = self.of(other);
            other.submitted > ended && other.acknowledged < before
        })
    }

    fn superseded_durably(&self, sector: &[Version], version: Version) -> bool {
        let ended = self.of(version).ended;
        sector.iter().any(|&other| {
            let other = self.of(other);
            other.submitted > ended && other.durable != NEVER
        })
    }

    /// A read begins.
    pub(super) fn begin_read(&mut self) -> u64 {
        let now = self.now();
        self.reads.push_back(now);
        now
    }

    /// A read ended that began at `since`.
    pub(super) fn end_read(&mut self, since: u64) {
        if let Some(place) = self.reads.iter().position(|&at| at == since) {
            self.reads.remove(place);
        }
    }

    pub(super) fn content(&self, version: Version) -> Version {
        if self.of(version).zero { 0 } else { version }
    }

    /// The version that a sector shows, if it is one of this place.
    fn shown(&self, number: u64, sector: &[u8]) -> Option<Version> {
        let (volume, at, version) = parse(sector)?;
        let zero = version == 0 && at == 0 && volume == 0;
        (zero || (volume == self.volume && at == number)).then_some(version)
    }

    /// The versions of a sector that may be seen and look like `sector`, newest first.
    fn candidates<'a>(
        &'a self,
        number: u64,
        sector: &[u8],
    ) -> impl Iterator<Item = (&'a [Version], Version)> + use<'a> {
        let shown = self.shown(number, sector);
        let history = &self.history[index(number)];
        history
            .iter()
            .rev()
            .copied()
            .filter(move |&version| Some(self.content(version)) == shown)
            .map(move |version| (history.as_slice(), version))
    }

    /// The version that a sector shows after a death, if it may.
    fn found(&self, number: u64, sector: &[u8], power: bool, now: u64) -> Option<Version> {
        let mut candidates = self.candidates(number, sector);
        let right = candidates.find(|(history, version)| {
            !if power {
                self.superseded_durably(history, *version)
            } else {
                self.superseded(history, *version, now)
            }
        });
        let right = right.map(|(_, version)| version);
        right.or_else(|| self.ghost(number, sector, power))
    }

    /// A version that looks like `sector` and may have come there without anybody knowing.
    fn ghost(&self, number: u64, sector: &[u8], power: bool) -> Option<Version> {
        let shown = self.shown(number, sector)?;
        let history = &self.history[index(number)];
        let ghosts = self.ghosts[index(number)].iter().copied();
        ghosts
            .filter(|&version| power && self.content(version) == shown)
            .find(|&version| !self.superseded_durably(history, version))
    }

    /// Checks what a read that began at `since` brought from `start` on, apart from the sectors that
    /// could not be read.
    pub(super) fn check(
        &self,
        start: u64,
        bytes: &[u8],
        since: u64,
        unreadable: &BTreeSet<u64>,
    ) -> Result<(), Wrong> {
        for (sector, number) in bytes.chunks_exact(index(SECTOR)).zip(start / SECTOR..) {
            if unreadable.contains(&number) {
                continue;
            }
            let right = self
                .candidates(number, sector)
                .any(|(history, version)| !self.superseded(history, version, since));
            if !right {
                return Err(self.explain(number, sector, since));
            }
        }
        Ok(())
    }

    /// Checks that no sector shows what belongs to another place.
    pub(super) fn check_places(&self, start: u64, bytes: &[u8]) -> Result<(), Wrong> {
        for (sector, number) in bytes.chunks_exact(index(SECTOR)).zip(start / SECTOR..) {
            if self.shown(number, sector).is_none() {
                return Err(self.explain(number, sector, 0));
            }
        }
        Ok(())
    }

    fn explain(&self, number: u64, sector: &[u8], since: u64) -> Wrong {
        let history = &self.history[index(number)];
        let known: Vec<_> = history.iter().map(|&v| (v, self.of(v))).collect();
        let found = parse(sector);
        let about = found.and_then(|(_, _, v)| self.modifications.get(v as usize));
        Wrong {
            sector: number,
            what: format!(
                "sector {number} (byte {}) holds (volume, sector, version) {found:?} = {about:?}, \
                 first bytes {:x?}; a reader from tick {since} may see of {known:?}",
                number * SECTOR,
                &sector[..16]
            ),
        }
    }

    /// Whether a reader from `since` on can only see zeroes in the range.
    pub(super) fn may_be_zero(&self, start: u64, len: u64, since: u64) -> bool {
        self.history[Self::range(start, len)].iter().all(|history| {
            history
                .iter()
                .any(|&v| self.content(v) == 0 && !self.superseded(history, v, since))
        })
    }

    /// All is over for the process: what was under way has ended somehow.
    pub(super) fn die(&mut self) {
        let now = self.now();
        for entry in &mut self.modifications {
            entry.ended = entry.ended.min(now);
        }
        self.reads.clear();
        for lost in self.lost.iter_mut().filter(|lost| **lost > 0) {
            *lost = now;
        }
    }

    /// The medium has lost what it held for `range`, or may have.
    pub(super) fn lose(&mut self, range: ByteRange) {
        let now = self.now();
        let sectors = Self::range(range.start(), range.len());
        self.lost[sectors.clone()].fill(now);
        self.decayed[sectors].fill(now);
    }

    /// The cache may no longer know that the backing has what the medium lost: as if that were lost now.
    pub(super) fn lose_again(&mut self) {
        let now = self.now();
        for number in 0..self.lost.len() {
            let decayed = self.decayed[number];
            let rewritten = |&v: &Version| {
                let version = self.of(v);
                version.submitted > decayed && version.acknowledged != NEVER
            };
            if decayed > 0 && !self.history[number].iter().any(rewritten) {
                self.lost[number] = now;
            }
        }
    }

    /// The medium may have lost whatever is not known to be durable.
    pub(super) fn lose_volatile(&mut self) {
        let now = self.now();
        let modifications = &self.modifications;
        for (lost, history) in self.lost.iter_mut().zip(&self.history) {
            let durable = |&v: &Version| modifications[v as usize].durable != NEVER;
            if !history.iter().all(durable) {
                *lost = now;
            }
        }
    }

    /// Whether a read from `since` on may fail because some of the range is lost.
    pub(super) fn may_fail(&self, range: ByteRange, since: u64) -> bool {
        Self::range(range.start(), range.len()).any(|number| self.is_lost(number, since))
    }

    /// The sectors of a range that a read from `since` on may not give.
    pub(super) fn lost_sectors(&self, range: ByteRange, since: u64) -> BTreeSet<u64> {
        Self::range(range.start(), range.len())
            .filter(|&number| self.is_lost(number, since))
            .map(|number| number as u64)
            .collect()
    }

    fn is_lost(&self, number: usize, since: u64) -> bool {
        let lost = self.lost[number];
        let rewritten = |&v: &Version| {
            let version = self.of(v);
            version.submitted > lost && version.acknowledged < since
        };
        lost > 0 && !self.history[number].iter().any(rewritten)
    }

    /// Takes what was read from `start` on after a death for the truth from now on, after checking it against what
    /// may be there: every acknowledged version, or after a power cut every durable one. With `volatile` a
    /// later power cut may take it away again.
    pub(super) fn settle(
        &mut self,
        start: u64,
        bytes: &[u8],
        power: bool,
        volatile: bool,
        unreadable: &BTreeSet<u64>,
    ) -> Result<(), Wrong> {
        let now = self.now();
        if power {
            for (history, older) in self.history.iter_mut().zip(&mut self.older) {
                // As old as they are: the newest that fits is taken.
                older.append(history);
                older.sort_unstable();
                older.dedup();
                std::mem::swap(history, older);
            }
        }
        let stays_volatile = volatile && !power;
        let mut found = Vec::with_capacity(self.history.len());
        for (sector, number) in bytes.chunks_exact(index(SECTOR)).zip(start / SECTOR..) {
            if unreadable.contains(&number) {
                found.push(None);
                continue;
            }
            match self.found(number, sector, power, now) {
                Some(version) => found.push(Some(version)),
                None => return Err(self.explain(number, sector, now)),
            }
        }
        for (number, version) in (index(start / SECTOR)..).zip(found) {
            let Some(version) = version else {
                // Nothing older than the newest may ever be seen again: that the backing may have.
                let modifications = &self.modifications;
                let history = &mut self.history[number];
                let begun = history.iter().map(|&v| modifications[v as usize].submitted);
                let newest = begun.max().unwrap_or(0);
                history.retain(|&v| modifications[v as usize].ended >= newest);
                self.lost[number] = now;
                continue;
            };
            self.lost[number] = 0;
            // What came behind it is lost: as if it had never been written.
            let ended = self.of(version).ended;
            let modifications = &self.modifications;
            // Another sector may have shown that they came there: that says nothing of this one.
            let came = |v: &Version| modifications[*v as usize].acknowledged < now;
            let stays = |v: &Version| stays_volatile && *v != version && came(v);
            self.all[number].retain(|v| modifications[*v as usize].submitted <= ended || stays(v));
            let before = std::mem::replace(&mut self.history[number], vec![version]);
            if stays_volatile {
                let others = before.into_iter().filter(|v| *v != version);
                let (older, ghosts): (Vec<_>, Vec<_>) = others.partition(came);
                self.older[number].extend(older);
                self.ghosts[number].extend(ghosts);
                let entry = &mut self.modifications[version as usize];
                entry.acknowledged = entry.acknowledged.min(now);
                if entry.durable == NEVER {
                    self.volatile.push(version);
                }
                continue;
            }
            let entry = &mut self.modifications[version as usize];
            entry.acknowledged = entry.acknowledged.min(now);
            entry.durable = entry.durable.min(now);
        }
        if power {
            self.ghosts.iter_mut().for_each(Vec::clear);
        }
        if stays_volatile {
            self.volatile.sort_unstable();
            self.volatile.dedup();
        } else {
            self.volatile.clear();
        }
        Ok(())
    }

    /// Checks a disk that is all that is left: it is at a flush boundary, plus any subset of what was
    /// written behind it.
    ///
    /// Whoever sees something that was submitted after a flush had completed must also see
    /// everything that was acknowledged before that flush was submitted.
    pub(super) fn check_boundary(&self, image: &[u8]) -> Result<(), Wrong> {
        let shown: Vec<Option<Version>> = image
            .chunks_exact(index(SECTOR))
            .zip(0..)
            .map(|(sector, number)| self.shown(number, sector))
            .collect();
        let newest = shown.iter().flatten().filter(|&&version| version > 0);
        let newest = newest.map(|&v| self.of(v).submitted).max().unwrap_or(0);
        let flush = self.flushes.iter().rev().find(|(_, end)| *end < newest);
        let Some(&(since, _)) = flush else {
            return Ok(());
        };
        for (number, shown) in shown.iter().enumerate() {
            let all = &self.all[number];
            let due = match *shown {
                // A torn sector, or one of another place.
                None => true,
                // Zeroes may be of any version that wrote some.
                Some(0) => all
                    .iter()
                    .chain(&self.ghosts[number])
                    .filter(|&&v| self.content(v) == 0)
                    .all(|&v| self.superseded(all, v, since)),
                Some(version) => self.superseded(all, version, since),
            };
            if due {
                let sector = &image[number * index(SECTOR)..][..index(SECTOR)];
                let Wrong { sector, what } = self.explain(number as u64, sector, since);
                let what = format!(
                    "the backing alone shows what came at tick {newest}, behind a flush from tick \
                     {since}, but not all from before it: {what}"
                );
                return Err(Wrong { sector, what });
            }
        }
        Ok(())
    }
}
