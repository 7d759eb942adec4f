//! Walks the log: for replay, writeback, GC and `check`.

use super::CacheError;
use super::control_io::load_pair;
use super::error::LogDamage;
use super::fault::{self, Fault};
use super::geometry::{PoolGeometry, SegIx, SegmentItem};
use super::key::KeyIdent;
use super::key_index::{BLOCK, LEAF_BYTES, SUBTREE_BYTES};
use super::plausible::COUNT_END;
use super::segment_map::SegmentMap;
use super::shared::LogPos;
use crate::bdev::{Pmem, PmemError};
use crate::media::Tail;
use crate::media::{
    self, KSET_BYTES_MAX, KsetHeader, LogStart, Parsed, SealedKset, SlotKind, claimed_header,
    kset_bytes, parse_kset,
};
use crate::units::ByteRange;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::little_endian::{U32, U64};

/// What is needed to find and judge ksets.
#[derive(Clone, Debug)]
pub(crate) struct LogView {
    pub(crate) pmem: Arc<dyn Pmem>,
    pub(crate) geometry: PoolGeometry,
    pub(crate) segments: Arc<SegmentMap>,
    pub(crate) cache: [u8; 16],
    /// Grows with the backing; all views of a cache see it.
    pub(crate) volume_bytes: Arc<AtomicU64>,
}

impl LogView {
    /// Bytes of the volume.
    pub(crate) fn backing_bytes(&self) -> u64 {
        self.volume_bytes.load(Ordering::Acquire)
    }

    /// Where byte `offset` of a segment's data is on the medium.
    pub(crate) fn data_at(&self, segment: SegIx, offset: u32) -> u64 {
        self.geometry.data_at(self.segments.id(segment)) + u64::from(offset)
    }

    /// The START of a log segment.
    pub(crate) fn start_of(&self, segment: SegIx) -> Result<LogStart, CacheError> {
        let id = self.segments.id(segment);
        let at = self.geometry.segment_start(id) + SegmentItem::LogStart as u64;
        let (start, _) = load_pair::<LogStart>(
            &*self.pmem,
            at,
            SlotKind::LogStart,
            "START of a log segment",
        )?;
        if start.segment.get() != id.0 || start.cache != self.cache {
            let (found, expected) = (start.segment.get().into(), id.0.into());
            return Err(CacheError::Identity {
                item: "START",
                at,
                found,
                expected,
            });
        }
        Ok(start)
    }

    pub(crate) fn damaged(&self, pos: &LogPos, reason: LogDamage) -> CacheError {
        CacheError::LogDamaged {
            segment: self.segments.id(pos.segment),
            offset: pos.offset,
            reason,
        }
    }

    /// The segment that a LAST at `pos` leads to.
    fn led_to(&self, pos: &LogPos, last: media::Last) -> Result<SegIx, CacheError> {
        let damage = LogDamage::Last {
            next: last.next_segment,
        };
        let Some(next) = self.segments.find(last.next_segment) else {
            return Err(self.damaged(pos, damage));
        };
        if self.start_of(next)?.salt.get() != last.next_salt {
            return Err(self.damaged(pos, damage));
        }
        Ok(next)
    }

    /// Checks every field of a key against the geometry.
    pub(crate) fn check_key(&self, key: &media::Key) -> Result<(), (&'static str, u64)> {
        let (offset, len) = (key.offset.get(), u64::from(key.len.get()));
        let flags = key.flags();
        if !flags.is_known() {
            return Err(("flags", u64::from(flags.0)));
        }
        let range = ByteRange::new(offset, len).filter(|r| r.end() <= self.backing_bytes());
        let Some(range) = range.filter(|r| r.is_aligned(BLOCK)) else {
            return Err(("offset", offset));
        };
        if range.is_empty() || (range.end() - 1) / SUBTREE_BYTES != offset / SUBTREE_BYTES {
            return Err(("len", len));
        }
        if key.generation.get() >= COUNT_END {
            return Err(("generation", key.generation.get()));
        }
        if !flags.has_data() {
            return Ok(());
        }
        if (range.end() - 1) / LEAF_BYTES != offset / LEAF_BYTES
            || len > super::geometry::DATA_KEY_BYTES_MAX
        {
            return Err(("len", len));
        }
        if self.segments.find(key.segment.get()).is_none() {
            return Err(("segment", u64::from(key.segment.get())));
        }
        let at = u64::from(key.segment_offset.get());
        if at % BLOCK != 0 || at + len > self.geometry.segment_data_bytes() {
            return Err(("segment_offset", at));
        }
        Ok(())
    }

    /// A key of the kset that is of a later life of its segment than `generations` say.
    pub(crate) fn life_ahead(&self, generations: &[u64], kset: &SealedKset) -> Option<LogDamage> {
        let mut keys = kset.keys.iter();
        let index = keys.position(|key| self.is_ahead(generations, key))?;
        Some(LogDamage::Key {
            sequence: kset.header.sequence,
            index: u32::try_from(index).unwrap_or(u32::MAX),
            field: "generation",
            value: kset.keys.get(index)?.generation.get(),
        })
    }

    /// Whether a good key is of a later life of its segment than `generations` say. A generation is
    /// durable before keys carry it, so this one has gone back: its newer slot is lost, and with the
    /// older one keys of earlier lives would be believed, and those of this one not.
    pub(crate) fn is_ahead(&self, generations: &[u64], key: &media::Key) -> bool {
        let ident = self.ident(key);
        let now = generations.get(ident.segment.index());
        ident.has_data && now.is_none_or(|now| ident.generation > *now)
    }

    /// Names the key for the index.
    pub(crate) fn ident(&self, key: &media::Key) -> KeyIdent {
        let has_data = key.flags().has_data();
        KeyIdent {
            segment: self
                .segments
                .find(key.segment.get())
                .filter(|_| has_data)
                .unwrap_or_default(),
            segment_offset: if has_data {
                key.segment_offset.get()
            } else {
                0
            },
            generation: key.generation.get(),
            has_data,
            again: key.flags().has(media::KeyFlags::AGAIN),
        }
    }
}

/// The body of a tail that stands at `pos`.
pub(crate) fn tail_body(view: &LogView, pos: &LogPos) -> Tail {
    Tail {
        segment: U32::new(view.segments.id(pos.segment).0),
        offset: U32::new(pos.offset),
        sequence: U64::new(pos.sequence),
        epoch: U64::new(pos.epoch),
        spare: [0; 24],
    }
}

/// What [`LogReader::next`] found.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    /// Keys.
    Kset(SealedKset<'a>),
    /// The log went on from this segment into another.
    Last {
        /// The segment that has been left.
        left: SegIx,
    },
}

/// Why there is no next entry.
#[derive(Debug)]
pub(crate) enum Stop {
    /// What stands there is not the kset that would continue the log.
    NotThere(LogDamage),
    /// The kset is good and in its place, but what it says cannot be; or the medium failed.
    Error(CacheError),
}

/// Which ksets are of this log, and not leftovers of an earlier run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incarnations {
    /// The current one.
    pub(crate) current: u32,
    /// Its first sequence.
    pub(crate) first_sequence: u64,
}

impl Incarnations {
    /// Whether a kset is of the incarnation that its sequence wants.
    pub(crate) fn fit(&self, header: &KsetHeader) -> bool {
        if fault::injected(Fault::IncarnationUnchecked) {
            true
        } else if header.sequence >= self.first_sequence {
            header.incarnation == self.current
        } else {
            header.incarnation < self.current
        }
    }
}

fn check_epoch(header: &KsetHeader) -> Result<(), LogDamage> {
    let (sequence, epoch) = (header.sequence, header.epoch);
    if epoch < COUNT_END {
        return Ok(());
    }
    Err(LogDamage::Epoch { sequence, epoch })
}

/// Fills `bytes` up to the first line that can't be read, which is the error with its place, and
/// zeroes what is behind: a kset is shorter than what is read ahead of it.
fn load_front(view: &LogView, at: u64, bytes: &mut [u8]) -> Result<(), (u64, PmemError)> {
    if view.pmem.load(at, bytes).is_ok() {
        return Ok(());
    }
    bytes.fill(0);
    let mut from = at;
    for line in bytes.chunks_mut(media::KSET_ALIGN) {
        view.pmem.load(from, line).map_err(|error| (from, error))?;
        from += line.len() as u64;
    }
    Ok(())
}

/// A position that walks along the log.
#[derive(Clone, Debug)]
pub(crate) struct LogReader {
    pub(crate) pos: LogPos,
    salt: u64,
    buf: Box<[u8; KSET_BYTES_MAX]>,
}

impl LogReader {
    /// Stands at `pos`, whose segment must be a log segment.
    pub(crate) fn new(view: &LogView, pos: LogPos) -> Result<Self, CacheError> {
        let salt = view.start_of(pos.segment)?.salt.get();
        Ok(Self {
            pos,
            salt,
            buf: Box::new([0; KSET_BYTES_MAX]),
        })
    }

    /// Stands at `pos`, whose segment has lost its START: nothing continues the log there.
    pub(crate) fn without_start(pos: LogPos) -> Self {
        Self {
            pos,
            // No log segment has it.
            salt: 0,
            buf: Box::new([0; KSET_BYTES_MAX]),
        }
    }

    pub(crate) fn salt(&self) -> u64 {
        self.salt
    }

    /// Expects the kset that stands here, if one of this log segment does, whatever its sequence.
    pub(crate) fn expect_what_stands_here(&mut self, view: &LogView) {
        let at = view.data_at(self.pos.segment, self.pos.offset);
        let room = view.geometry.segment_data_bytes() - u64::from(self.pos.offset);
        let len = usize::try_from(room).unwrap_or(usize::MAX);
        let bytes = &mut self.buf[..len.min(KSET_BYTES_MAX)];
        if view.pmem.load(at, bytes).is_err() {
            return;
        }
        let header = match parse_kset(bytes) {
            Ok(Parsed::Kset(kset)) => kset.header,
            Ok(Parsed::Last(header, _)) => header,
            Err(_) => return,
        };
        if header.salt == self.salt {
            self.pos.sequence = header.sequence;
        }
    }

    /// Where it stands, to come back to.
    pub(crate) fn mark(&self) -> (LogPos, u64) {
        (self.pos, self.salt)
    }

    /// Goes back to a mark.
    pub(crate) fn return_to(&mut self, mark: (LogPos, u64)) {
        (self.pos, self.salt) = mark;
    }

    /// Whether what can be read of this place may be the front of the kset that continues the log. If its
    /// first line can be read and is not, no kset was durable here: its lines are all as it left them.
    fn has_claim(&self, incarnations: &Incarnations) -> bool {
        claimed_header(&self.buf[..]).is_some_and(|header| {
            let fits = header.incarnation > incarnations.current || incarnations.fit(&header);
            fits && header.salt == self.salt && header.sequence == self.pos.sequence
        })
    }

    /// The entry that continues the log here, and steps behind it.
    pub(crate) fn next(
        &mut self,
        view: &LogView,
        incarnations: &Incarnations,
    ) -> Result<Entry<'_>, Stop> {
        let pos = self.pos;
        let room = view.geometry.segment_data_bytes() - u64::from(pos.offset);
        let len = usize::try_from(room)
            .unwrap_or(usize::MAX)
            .min(KSET_BYTES_MAX);
        let at = view.data_at(pos.segment, pos.offset);
        let expected = pos.sequence;
        let unreadable = load_front(view, at, &mut self.buf[..len]).err();
        let parsed = match parse_kset(&self.buf[..len]) {
            Ok(parsed) => parsed,
            Err(error) => {
                let absent = Stop::NotThere(LogDamage::Kset { expected, error });
                return Err(match unreadable {
                    Some((from, _)) if from > at && !self.has_claim(incarnations) => absent,
                    Some((_, error)) => Stop::Error(error.into()),
                    None => absent,
                });
            }
        };
        let header = match &parsed {
            Parsed::Kset(kset) => kset.header,
            Parsed::Last(header, _) => *header,
        };
        let found = header.sequence;
        let is_next = found == expected || fault::injected(Fault::SequenceUnchecked);
        if header.salt == self.salt && header.incarnation > incarnations.current {
            // A leftover is never newer than the run that control speaks of: that item has gone back.
            let (current, found) = (incarnations.current, header.incarnation);
            let damage = LogDamage::Incarnation { current, found };
            return Err(Stop::Error(view.damaged(&pos, damage)));
        }
        if !is_next || header.salt != self.salt || !incarnations.fit(&header) {
            return Err(Stop::NotThere(LogDamage::Sequence { expected, found }));
        }
        check_epoch(&header).map_err(|damage| Stop::Error(view.damaged(&pos, damage)))?;
        self.pos.sequence = expected + 1;
        self.pos.epoch = header.epoch;
        match parsed {
            Parsed::Kset(kset) => {
                self.pos.offset += u32::try_from(kset_bytes(kset.keys.len())).unwrap_or(0);
                for (index, key) in kset.keys.iter().enumerate() {
                    view.check_key(key).map_err(|(field, value)| {
                        let index = u32::try_from(index).unwrap_or(u32::MAX);
                        let damage = LogDamage::Key {
                            sequence: expected,
                            index,
                            field,
                            value,
                        };
                        Stop::Error(view.damaged(&pos, damage))
                    })?;
                }
                Ok(Entry::Kset(kset))
            }
            Parsed::Last(_, last) => {
                let next = view.led_to(&pos, last).map_err(Stop::Error)?;
                self.pos.segment = next;
                self.pos.offset = 0;
                self.salt = last.next_salt;
                Ok(Entry::Last { left: pos.segment })
            }
        }
    }
}
