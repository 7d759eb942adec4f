//! Where a log can't be read on: how far a walk came, and what is lost behind it.

use super::CacheError;
use super::control::Control;
use super::control_io::load_pair;
use super::error::LogDamage;
use super::geometry::{SegIx, SegmentItem};
use super::load_report::{BadPlace, LostClean, Missing, merged};
use super::log_probe::Later;
use super::log_reader::{LogReader, LogView, tail_body};
use super::replay::Replayed;
use super::shared::LogPos;
use super::staged::Staged;
use crate::bdev::PmemError;
use crate::media::{self, Generation, KeyFlags, SlotKind};
use crate::units::ByteRange;
use zerocopy::little_endian::U64;

/// How far a walk along the log came.
pub(super) struct Walked {
    pub(super) replayed: Replayed,
    /// At the end of the log, or at the place that is damaged.
    pub(super) reader: LogReader,
    pub(super) damage: Option<CacheError>,
    pub(super) seen: Seen,
    /// The damage was a generation that had gone back and is known now: walk anew.
    pub(super) learned: bool,
    /// Behind the last kset with a key whose segment has been released.
    pub(super) passed: Option<LogPos>,
    /// Where each log segment but the first begins.
    pub(super) hops: Vec<LogPos>,
}

/// What keys wrote, whether they count or not.
#[derive(Debug, Default)]
pub(super) struct Seen {
    keys: u64,
    bytes: u64,
    bad: Vec<ByteRange>,
}

fn range_of(key: &media::Key) -> ByteRange {
    let start = key.offset.get();
    ByteRange::between(start, start.saturating_add(key.len.get().into()))
}

impl Seen {
    pub(super) fn note(&mut self, key: &media::Key) {
        self.keys += 1;
        self.bytes += u64::from(key.len.get());
        if key.flags().has(KeyFlags::BAD) {
            self.bad.push(range_of(key));
        }
    }
}

impl Walked {
    pub(super) fn new(replayed: Replayed, reader: LogReader) -> Self {
        Self {
            replayed,
            reader,
            damage: None,
            seen: Seen::default(),
            learned: false,
            passed: None,
            hops: Vec::new(),
        }
    }

    pub(super) fn broken(mut self, damage: CacheError) -> Self {
        self.damage = Some(damage);
        self
    }
}

impl Walked {
    /// No kset continues the log here, or it can't be told (`unreadable`): this is its end, unless
    /// something proves that it goes on, or, if it can't be told, nothing proves that it does not.
    pub(super) fn at_end(
        mut self,
        view: &LogView,
        control: &Control,
        staged: &Staged,
        unreadable: bool,
    ) -> Result<Self, CacheError> {
        let (pos, expected) = (self.reader.pos, self.reader.pos.sequence);
        let found = self.reader.probe_hole(view)?;
        let proof = found.unwrap_or_else(|| control.proven_sequence());
        if proof >= expected {
            let hole = LogDamage::Hole { expected, proof };
            return Ok(self.broken(view.damaged(&pos, hole)));
        }
        if !unreadable || control.ends_before(expected) || staged.has_all_from(expected) {
            self.replayed.end_unreadable = unreadable;
            return Ok(self);
        }
        Ok(self.broken(view.damaged(&pos, LogDamage::Unreadable { expected })))
    }

    /// Where the key tail is at least, if the walk began at one that has gone back: a segment is released
    /// only when the key tail is past all keys that refer to it, and past all of it that is log.
    pub(super) fn real_tail(
        &self,
        control: &Control,
        staged: &Staged,
        view: &LogView,
    ) -> Option<LogPos> {
        let ((key_tail, key_pair), (dirty_tail, dirty_pair)) =
            (&control.key_tail, &control.dirty_tail);
        if !key_pair.lost {
            return None;
        }
        let references = staged.references(view, self.replayed.end.sequence);
        let is_data = |segment: &SegIx| {
            self.replayed.references[segment.index()] + references[segment.index()] > 0
        };
        let hops = self.replayed.log_segments.iter().zip(&self.hops);
        let reused = hops
            .filter(|(segment, _)| is_data(segment))
            .map(|(_, pos)| *pos);
        reused
            .chain(self.passed)
            .filter(|pos| pos.sequence > key_tail.sequence)
            .filter(|pos| pos.sequence <= dirty_tail.sequence || dirty_pair.lost)
            .max_by_key(|pos| pos.sequence)
    }
}

/// Gives up the log before the dirty tail, which is damaged, or before where the tails are known to be
/// though media say less: the key tail goes there, and
/// segments of which only the lost ksets may speak are released by the usual rule, a tail that is
/// durable first, then a raised generation.
pub(super) fn leave_damage(
    view: &LogView,
    control: &mut Control,
    replayed: &Replayed,
    staged_references: &[u64],
    generations: &mut [u64],
) -> Result<(), CacheError> {
    let pmem = &*view.pmem;
    if replayed.begins_at_dirty_tail {
        control.key_tail.0 = control.dirty_tail.0;
    }
    if control.tails_moved {
        let body = tail_body(view, &control.dirty_tail.0);
        let pair = &mut control.dirty_tail.1;
        pair.store(pmem, SlotKind::DirtyTail, &body)?;
        // A key tail never passes the durable dirty tail.
        pmem.barrier_wait()?;
    }
    let body = tail_body(view, &control.key_tail.0);
    control.key_tail.1.store(pmem, SlotKind::KeyTail, &body)?;
    pmem.barrier_wait()?;
    for segment in unreferenced(view, replayed, staged_references) {
        let id = view.segments.id(segment);
        let at = view.geometry.segment_start(id) + SegmentItem::Generation as u64;
        let (body, mut pair) =
            load_pair::<Generation>(pmem, at, SlotKind::Generation, "generation")?;
        let generation = body.generation.get() + 1;
        generations[segment.index()] = generation;
        let generation = U64::new(generation);
        let body = Generation { generation, ..body };
        pair.store(pmem, SlotKind::Generation, &body)?;
    }
    pmem.barrier_wait()?;
    Ok(())
}

/// Segments that are no log and that no key refers to.
pub(super) fn unreferenced(
    view: &LogView,
    replayed: &Replayed,
    staged_references: &[u64],
) -> Vec<SegIx> {
    let owned = view.segments.iter().map(|(segment, _)| segment);
    owned
        .filter(|segment| {
            replayed.references[segment.index()] == 0
                && !view.segments.is_bad(*segment)
                && staged_references
                    .get(segment.index())
                    .is_none_or(|&n| n == 0)
                && !replayed.log_segments.contains(segment)
        })
        .collect()
}

/// Whether an error says that what stands on the medium is wrong, or can't be read, at one place.
pub(super) fn is_damage(error: &CacheError) -> bool {
    matches!(
        error,
        CacheError::LogDamaged { .. }
            | CacheError::Metadata { .. }
            | CacheError::Identity { .. }
            | CacheError::Impossible { .. }
            | CacheError::Medium(PmemError::Poison { .. })
    )
}

/// Whether an error says that it can't be told whether the log goes on.
pub(super) fn is_unreadable(error: &CacheError) -> bool {
    matches!(error, CacheError::Medium(PmemError::Poison { .. }))
}

fn bad_place(view: &LogView, walked: &Walked, damage: &CacheError) -> BadPlace {
    BadPlace::new(view, &walked.reader.pos, damage.to_string())
}

/// What a load that begins at the dirty tail does without.
pub(super) fn lost_clean(
    view: &LogView,
    control: &Control,
    walked: &Walked,
    damage: &CacheError,
) -> Result<LostClean, CacheError> {
    let (from, to) = (control.key_tail.0.sequence, control.dirty_tail.0.sequence);
    let incarnations = control.incarnations();
    let mut behind = Seen::default();
    walked.reader.visit_later(view, &mut |later: &Later| {
        if later.header.sequence < to && incarnations.fit(&later.header) {
            later.keys.iter().for_each(|key| behind.note(key));
        }
        true
    })?;
    let before = &walked.seen;
    let bad = before.bad.iter().chain(&behind.bad).copied();
    let (bad_ranges, _) = merged(bad.collect());
    Ok(LostClean {
        at: bad_place(view, walked, damage),
        ksets: to - from,
        keys: before.keys + behind.keys,
        bytes: before.bytes + behind.bytes,
        bad_keys: (before.bad.len() + behind.bad.len()) as u64,
        bad_ranges,
    })
}

/// What stands behind the place to which a cache was salvaged.
pub(super) fn missing(
    view: &LogView,
    control: &Control,
    walked: &Walked,
    damage: &CacheError,
) -> Result<Missing, CacheError> {
    let incarnations = control.incarnations();
    let mut ranges = Vec::new();
    let (mut ksets, mut keys, mut dirty_bytes) = (0, 0, 0);
    let mut proof = control.proven_sequence();
    walked.reader.visit_later(view, &mut |later: &Later| {
        if !incarnations.fit(&later.header) {
            return true;
        }
        proof = proof.max(later.header.durable);
        ksets += u64::from(!later.keys.is_empty());
        keys += later.keys.len() as u64;
        let dirty = later.keys.iter().filter(|key| key.flags().is_dirty());
        for range in dirty.map(range_of) {
            dirty_bytes += range.len();
            ranges.push(range);
        }
        true
    })?;
    let mut found = Missing {
        at: bad_place(view, walked, damage),
        proof,
        ksets,
        keys,
        dirty_bytes,
        ranges: Vec::new(),
        ranges_left_off: 0,
    };
    (found.ranges, found.ranges_left_off) = merged(ranges);
    Ok(found)
}

impl Missing {
    /// Adds keys of the staging file, which were written behind the bad place.
    pub(super) fn add_staged<'a>(&mut self, keys: impl Iterator<Item = &'a media::Key>) {
        let mut ranges = std::mem::take(&mut self.ranges);
        for key in keys.filter(|key| key.flags().is_dirty()) {
            self.keys += 1;
            self.dirty_bytes += u64::from(key.len.get());
            ranges.push(range_of(key));
        }
        let (ranges, left_off) = merged(ranges);
        self.ranges = ranges;
        self.ranges_left_off += left_off;
    }
}
