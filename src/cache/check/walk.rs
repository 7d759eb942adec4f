//! The walk along a log, from the key tail to its end, and beyond a place where it is damaged.

use super::bad_data::BadData;
use super::control::ControlCheck;
use super::findings::Findings;
use super::report::{CacheCheck, FindingKind, LogFigures, SegmentFigures};
use crate::cache::CacheError;
use crate::cache::error::LogDamage;
use crate::cache::log_probe::Later;
use crate::cache::log_reader::{Entry, LogReader, LogView, Stop};
use crate::cache::shared::LogPos;
use crate::media::{self, KeyFlags};
use crate::units::ByteRange;

/// References to a segment.
#[derive(Clone, Copy, Debug, Default)]
struct References {
    all: u64,
    /// Of the segment's present generation.
    live: u64,
    /// A key of a generation that the segment has not reached has been reported.
    from_future: bool,
}

/// See the module.
pub(super) struct Walk<'a> {
    view: &'a LogView,
    generations: &'a [Option<u64>],
    control: &'a ControlCheck,
    data_crc: bool,
    findings: &'a mut Findings,
    figures: LogFigures,
    references: Vec<References>,
    bad: BadData,
    dirty_tail_seen: bool,
}

/// What stands behind a damaged place of the log.
#[derive(Debug, Default)]
struct Beyond {
    ksets: u64,
    keys: u64,
    dirty_bytes: u64,
    first: Option<u64>,
    last: u64,
    proof: u64,
}

impl<'a> Walk<'a> {
    /// Walks, and puts what it finds into `cache` and `findings`.
    pub(super) fn run(
        view: &'a LogView,
        generations: &'a [Option<u64>],
        control: &'a ControlCheck,
        data_crc: bool,
        cache: &mut CacheCheck,
        findings: &'a mut Findings,
    ) {
        let mut walk = Self {
            view,
            generations,
            control,
            data_crc,
            findings,
            figures: LogFigures {
                first_sequence: control.key_tail.sequence,
                end_sequence: control.key_tail.sequence,
                ..LogFigures::default()
            },
            references: vec![References::default(); view.segments.places()],
            bad: BadData::default(),
            dirty_tail_seen: false,
        };
        let is_whole = match LogReader::new(view, control.key_tail) {
            Ok(reader) => walk.follow(reader),
            Err(error) => {
                let at = walk.place(&control.key_tail);
                let lost = "the way into the log: the cache can't be loaded, and all its dirty \
                            data are lost";
                walk.findings
                    .damage(FindingKind::LogStart, at, error.to_string(), lost);
                false
            }
        };
        walk.check_dirty_tail(is_whole);
        cache.segments = walk.segment_figures();
        let Self {
            bad,
            findings,
            mut figures,
            ..
        } = walk;
        figures.bad_bytes = bad.lost_bytes();
        bad.finish(findings);
        cache.log = Some(figures);
    }

    fn place(&self, pos: &LogPos) -> u64 {
        self.view.data_at(pos.segment, pos.offset)
    }

    fn pool_segment(&self, pos: &LogPos) -> u32 {
        self.view.segments.id(pos.segment).0
    }

    /// Walks to the end; false if that is not where the log ended.
    fn follow(&mut self, mut reader: LogReader) -> bool {
        self.figures.segments.push(self.pool_segment(&reader.pos));
        let stop = loop {
            let before = reader.mark();
            self.visit(&before.0);
            match reader.next(self.view, &self.control.incarnations) {
                Ok(Entry::Kset(kset)) => {
                    self.figures.ksets += 1;
                    for key in kset.keys {
                        self.take(key, kset.header.sequence, &before.0);
                    }
                }
                Ok(Entry::Last { .. }) => {
                    self.figures.lasts += 1;
                    let segment = self.pool_segment(&reader.pos);
                    self.figures.segments.push(segment);
                    if self.figures.segments.len() > self.view.segments.places() {
                        reader.return_to(before);
                        let next = segment;
                        let damage = self.view.damaged(&before.0, LogDamage::Last { next });
                        break Stop::Error(damage);
                    }
                }
                Err(stop) => {
                    reader.return_to(before);
                    break stop;
                }
            }
        };
        self.figures.end_sequence = reader.pos.sequence;
        self.figures.end_segment = self.pool_segment(&reader.pos);
        self.figures.end_offset = reader.pos.offset;
        self.judge(&reader, stop)
    }

    /// The dirty tail must be one of the places that the walk comes to.
    fn visit(&mut self, pos: &LogPos) {
        if let Some(dirty) = self.control.dirty_tail
            && dirty.sequence == pos.sequence
        {
            self.dirty_tail_seen = true;
            if (dirty.segment, dirty.offset) != (pos.segment, pos.offset) {
                let what = format!(
                    "dirty tail leads to segment {}, offset {}, but kset {} is in segment {}, \
                     offset {}",
                    self.pool_segment(&dirty),
                    dirty.offset,
                    pos.sequence,
                    self.pool_segment(pos),
                    pos.offset
                );
                let lost = "nothing, but writeback can't begin";
                self.findings
                    .damage(FindingKind::Tail, self.place(&dirty), what, lost);
            }
        }
    }

    fn check_dirty_tail(&mut self, is_whole: bool) {
        let Some(dirty) = self.control.dirty_tail else {
            return;
        };
        if !self.dirty_tail_seen && (is_whole || dirty.sequence < self.figures.first_sequence) {
            let what = format!(
                "dirty tail, sequence {}, is not within the log, {} to {}",
                dirty.sequence, self.figures.first_sequence, self.figures.end_sequence
            );
            let lost = "what has been written back";
            self.findings
                .damage(FindingKind::Tail, self.place(&dirty), what, lost);
        }
    }

    fn is_owed(&self, key: &media::Key, sequence: u64) -> bool {
        let from = self.control.dirty_tail.map_or(0, |tail| tail.sequence);
        key.flags().is_dirty() && sequence >= from
    }

    /// Takes one key into account; its fields have been checked.
    fn take(&mut self, key: &media::Key, sequence: u64, pos: &LogPos) {
        let flags = key.flags();
        let len = u64::from(key.len.get());
        let is_owed = self.is_owed(key, sequence);
        self.figures.keys += 1;
        self.figures.clean_keys += u64::from(flags.has(KeyFlags::CLEAN));
        self.figures.zero_keys += u64::from(flags.has(KeyFlags::ZERO));
        if is_owed {
            self.figures.dirty_keys += 1;
            self.figures.dirty_bytes += len;
        }
        if !flags.has_data() {
            self.figures.bad_keys += u64::from(flags.has(KeyFlags::BAD));
            self.bad.take_empty(key);
            return;
        }
        let segment = self.view.ident(key).segment;
        let (found, said) = (self.generations[segment.index()], key.generation.get());
        self.references[segment.index()].all += 1;
        if found != Some(said) {
            self.figures.stale_keys += u64::from(found.is_some());
            if let Some(found) = found {
                self.judge_stale(key, sequence, pos, found);
            }
            return;
        }
        self.references[segment.index()].live += 1;
        self.bad.replace(key);
        self.figures.data.live_keys += 1;
        self.figures.data.live_bytes += len;
        if self.data_crc {
            self.figures.data.verified_keys += 1;
            let good = self
                .bad
                .verify(self.view, key, sequence, is_owed, self.findings);
            self.figures.data.damaged_keys += u64::from(!good);
        }
    }

    /// A key that is not of its segment's generation: no dirty one that waits, and none from later on.
    fn judge_stale(&mut self, key: &media::Key, sequence: u64, pos: &LogPos, found: u64) {
        let (start, said) = (key.offset.get(), key.generation.get());
        let range = ByteRange::between(start, start + u64::from(key.len.get()));
        let segment = key.segment.get();
        if said > found {
            let seen = &mut self.references[self.view.ident(key).segment.index()].from_future;
            if std::mem::replace(seen, true) {
                return;
            }
            let what = format!(
                "generation of segment {segment} is {found}, but kset {sequence} has a key of \
                 generation {said}: it has gone back"
            );
            let lost = "all keys of the segment; older ones may have come back to life";
            let kind = FindingKind::Generation;
            self.findings
                .damage_of(kind, self.place(pos), what, lost.into(), &[range]);
        } else if self.is_owed(key, sequence) {
            let what = format!(
                "segment {segment} has been released, generation {found}, though the dirty key \
                 of {range}, kset {sequence}, generation {said}, is in it"
            );
            let lost = format!("{} dirty bytes that the backing lacks", range.len());
            self.findings
                .damage_of(FindingKind::Key, self.place(pos), what, lost, &[range]);
        }
    }

    /// Tells the log's end from damage: true if it is the end.
    fn judge(&mut self, reader: &LogReader, stop: Stop) -> bool {
        let expected = reader.pos.sequence;
        let (kind, what) = match stop {
            Stop::NotThere(damage) => {
                let beyond = self.look_beyond(reader);
                let proof = beyond.proof.max(self.control.proven);
                if proof < expected {
                    return true;
                }
                let hole = LogDamage::Hole { expected, proof };
                (FindingKind::Log, format!("{hole}: {damage}"))
            }
            Stop::Error(error) => {
                let kind = match &error {
                    CacheError::LogDamaged {
                        reason: LogDamage::Key { .. },
                        ..
                    } => FindingKind::Key,
                    CacheError::LogDamaged { .. } => FindingKind::Log,
                    CacheError::Medium(_) => FindingKind::Medium,
                    _ => FindingKind::LogStart,
                };
                (kind, error.to_string())
            }
        };
        let beyond = self.look_beyond(reader);
        let lost = self.lost_beyond(expected, &beyond);
        self.findings
            .damage(kind, self.place(&reader.pos), what, lost);
        false
    }

    fn look_beyond(&mut self, reader: &LogReader) -> Beyond {
        let mut beyond = Beyond::default();
        let incarnations = self.control.incarnations;
        let visited = reader.visit_later(self.view, &mut |later: &Later| {
            let header = &later.header;
            if header.durable >= reader.pos.sequence {
                beyond.proof = beyond.proof.max(header.durable);
            }
            if !incarnations.fit(header) {
                return true;
            }
            let first = beyond.first.unwrap_or(header.sequence);
            beyond.first = Some(first.min(header.sequence));
            beyond.last = beyond.last.max(header.sequence);
            beyond.ksets += u64::from(!later.keys.is_empty());
            beyond.keys += later.keys.len() as u64;
            let owed = later
                .keys
                .iter()
                .filter(|key| self.is_owed(key, header.sequence));
            beyond.dirty_bytes += owed.map(|key| u64::from(key.len.get())).sum::<u64>();
            true
        });
        if let Err(error) = visited {
            let at = self.place(&reader.pos);
            let lost = "what stands behind the place where the log ends";
            self.findings
                .damage(FindingKind::Medium, at, error.to_string(), lost);
        }
        beyond
    }

    fn lost_beyond(&self, expected: u64, beyond: &Beyond) -> String {
        let known = self.control.proven.max(beyond.proof).max(expected);
        let last = match beyond.first {
            Some(first) => first.saturating_sub(1).max(expected),
            None => known,
        };
        let written_back = self
            .control
            .dirty_tail
            .is_some_and(|dirty| last < dirty.sequence);
        let dirty = if written_back {
            "which had been written back"
        } else {
            "whatever they wrote"
        };
        let mut lost = if last > expected {
            format!("ksets {expected} to {last}, {dirty}")
        } else {
            format!("kset {expected}, {dirty}")
        };
        if beyond.first.is_some() {
            lost.push_str(&format!(
                "; behind it {} ksets up to sequence {} can still be read: {} keys, {} dirty bytes",
                beyond.ksets, beyond.last, beyond.keys, beyond.dirty_bytes
            ));
        }
        lost.push_str(match &self.control.dirty_tail {
            Some(dirty) if expected < dirty.sequence => {
                "; a load begins at the dirty tail, if the log is good from there on"
            }
            _ => "; the cache can only be loaded for salvage",
        });
        lost
    }

    /// Counts the segments; one that is both log and live data is damaged.
    fn segment_figures(&mut self) -> SegmentFigures {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut is_log = vec![false; self.references.len()];
        for &id in &self.figures.segments {
            let Some(segment) = self.view.segments.find(id) else {
                continue;
            };
            let live = self.references[segment.index()].live;
            if live > 0 && !is_log[segment.index()] {
                let what = format!("segment {id} is part of the log, and {live} keys live in it");
                let at = self.view.data_at(segment, 0);
                let lost = "the data of these keys";
                self.findings.damage(FindingKind::Log, at, what, lost);
            }
            is_log[segment.index()] = true;
        }
        let data = self.references.iter().zip(&is_log);
        let data = data.filter(|(r, log)| r.all > 0 && !**log).count();
        let log = is_log.iter().filter(|log| **log).count();
        let total = self.view.segments.count();
        SegmentFigures {
            total: count(total),
            log: count(log),
            data: count(data),
            unreferenced: count(total.saturating_sub(log + data)),
            references: self.references.iter().map(|r| r.all).sum(),
        }
    }
}
