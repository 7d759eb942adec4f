//! What the backing held at a clean stop, so that a change behind the cache's back is seen: CRCs of its
//! first and last MiB and of 256 pieces in between, leaving out what dirty data wait for.
//!
//! The masks of what counts are on media along with the CRCs: a load reads the same pieces, and needs
//! to know nothing of the cache to compare them.

use super::CacheError;
use super::geometry::CacheItem;
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
use super::log_start::next_salt;
use super::shared::LogPos;
use crate::bdev::IoBuf;
use crate::media::{BackingSample, SlotKind};
use crate::units::ByteRange;
use reactors::{Clock, Nanos};
use zerocopy::little_endian::{U32, U64};

/// Bytes of a piece; the last of a backing may be shorter.
const PIECE_BYTES: u64 = 4096;
/// Pieces of each of the three samples.
const PIECES: u64 = 256;

/// The three items, in order, and what their parts are called.
pub(super) const SAMPLE_ITEMS: [(CacheItem, SlotKind, &str); 3] = [
    (
        CacheItem::SampleFirst,
        SlotKind::SampleFirst,
        "the first MiB",
    ),
    (CacheItem::SampleLast, SlotKind::SampleLast, "the last MiB"),
    (
        CacheItem::SampleBlocks,
        SlotKind::SampleBlocks,
        "a sample of what is in between",
    ),
];

/// One piece of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    range: ByteRange,
    /// Place of its sample in [`SAMPLE_ITEMS`], and its number there.
    sample: usize,
    number: u64,
}

/// All pieces of a backing of `bytes`; `seed` chooses those in between.
fn pieces(bytes: u64, seed: u64) -> Vec<Piece> {
    let total = bytes.div_ceil(PIECE_BYTES);
    let mut salt = seed;
    let mut found = Vec::new();
    for number in 0..PIECES {
        let (from, to) = (number * total / PIECES, (number + 1) * total / PIECES);
        let chosen = next_salt(&mut salt)
            .checked_rem(to - from)
            .map(|step| from + step);
        let last = (total.saturating_sub(PIECES) + number).min(total);
        let places = [Some(number), Some(last), chosen];
        for (sample, piece) in places.into_iter().enumerate() {
            let Some(piece) = piece.filter(|&piece| piece < total) else {
                continue;
            };
            let start = piece * PIECE_BYTES;
            let range = ByteRange::between(start, bytes.min(start + PIECE_BYTES));
            found.push(Piece {
                range,
                sample,
                number,
            });
        }
    }
    found.sort_by_key(|piece| (piece.sample, piece.number));
    found
}

/// Three samples of a backing whose CRCs are still to be found out.
#[derive(Clone, Debug)]
pub(super) struct SamplePlan {
    pieces: Vec<Piece>,
    counted: [[u8; 32]; 3],
    final_sequence: u64,
}

fn bit(number: u64) -> (usize, u8) {
    let number = usize::try_from(number % PIECES).unwrap_or(0);
    (number / 8, 1 << (number % 8))
}

impl SamplePlan {
    /// What to read of a backing of `bytes` at a stop, with all that is dirty from `dirty_tail` up to
    /// `final_sequence` left out. Nothing if that takes longer than until `limit`, or can't be told.
    pub(super) fn for_stop(
        view: &LogView,
        incarnations: &Incarnations,
        dirty_tail: LogPos,
        final_sequence: u64,
        clock: &dyn Clock,
        limit: Nanos,
    ) -> Option<Self> {
        let mut pieces = pieces(view.backing_bytes(), final_sequence);
        pieces.sort_by_key(|piece| piece.range.start());
        let mut is_dirty = vec![false; pieces.len()];
        let mut reader = LogReader::new(view, dirty_tail).ok()?;
        while reader.pos.sequence <= final_sequence {
            if clock.now() > limit {
                return None;
            }
            match reader.next(view, incarnations) {
                Ok(Entry::Last { .. }) => {}
                Ok(Entry::Kset(kset)) => {
                    for key in kset.keys.iter().filter(|key| key.flags().is_dirty()) {
                        let start = key.offset.get();
                        let range = ByteRange::between(start, start + u64::from(key.len.get()));
                        note_dirty(&pieces, &mut is_dirty, range);
                    }
                }
                Err(Stop::NotThere(_) | Stop::Error(_)) => return None,
            }
        }
        let mut plan = Self {
            pieces: Vec::new(),
            counted: [[0; 32]; 3],
            final_sequence,
        };
        let clean = pieces.iter().zip(is_dirty).filter(|(_, dirty)| !dirty);
        for (piece, _) in clean {
            let (byte, mask) = bit(piece.number);
            plan.counted[piece.sample][byte] |= mask;
            plan.pieces.push(*piece);
        }
        plan.pieces
            .sort_by_key(|piece| (piece.sample, piece.number));
        Some(plan)
    }

    /// What to read of a backing of `bytes` to compare it with these.
    pub(super) fn for_load(samples: &[BackingSample; 3], bytes: u64) -> Self {
        let final_sequence = samples[0].final_sequence.get();
        let counted = samples.map(|sample| sample.counted);
        let mut pieces = pieces(bytes, final_sequence);
        pieces.retain(|piece| {
            let (byte, mask) = bit(piece.number);
            counted[piece.sample][byte] & mask != 0
        });
        Self {
            pieces,
            counted,
            final_sequence,
        }
    }

    /// What to read for which sample, neighbours as one.
    fn reads(&self) -> Vec<(usize, ByteRange)> {
        let mut found: Vec<(usize, ByteRange)> = Vec::new();
        for piece in &self.pieces {
            match found.last_mut() {
                Some((sample, last))
                    if *sample == piece.sample && last.end() == piece.range.start() =>
                {
                    *last = ByteRange::between(last.start(), piece.range.end());
                }
                _ => found.push((piece.sample, piece.range)),
            }
        }
        found
    }

    /// The ranges to read.
    pub(super) fn ranges(&self) -> Vec<ByteRange> {
        self.reads().into_iter().map(|(_, range)| range).collect()
    }

    /// The samples, from what was read of [`SamplePlan::ranges`].
    pub(super) fn samples(&self, read: &[IoBuf]) -> [BackingSample; 3] {
        let mut crcs = [0; 3];
        for ((sample, _), bytes) in self.reads().into_iter().zip(read) {
            crcs[sample] = crc32c::crc32c_append(crcs[sample], bytes);
        }
        std::array::from_fn(|sample| BackingSample {
            counted: self.counted[sample],
            crc: U32::new(crcs[sample]),
            spare: U32::ZERO,
            final_sequence: U64::new(self.final_sequence),
        })
    }
}

/// Marks the pieces, which are sorted by their start, that `range` touches.
fn note_dirty(pieces: &[Piece], is_dirty: &mut [bool], range: ByteRange) {
    let from = pieces.partition_point(|piece| piece.range.start() + PIECE_BYTES <= range.start());
    let to = pieces.partition_point(|piece| piece.range.start() < range.end());
    if let Some(touched) = is_dirty.get_mut(from..to) {
        touched.fill(true);
    }
}

/// Compares what was recorded with what is found.
///
/// # Errors
/// [`CacheError::BackingAltered`] that names the first part that differs.
pub(super) fn compare(
    name: &str,
    recorded: &[BackingSample; 3],
    found: &[BackingSample; 3],
) -> Result<(), CacheError> {
    for ((recorded, found), (_, _, part)) in recorded.iter().zip(found).zip(SAMPLE_ITEMS) {
        let (recorded, found) = (recorded.crc.get(), found.crc.get());
        if recorded != found {
            return Err(CacheError::BackingAltered {
                name: name.to_owned(),
                part,
                recorded,
                found,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_both_ends_and_some_in_between() {
        for bytes in [512, 4096, 5000 * 512, 1 << 20, (1 << 20) + 512, 1 << 30] {
            let found = pieces(bytes, 7);
            assert_eq!(found, pieces(bytes, 7), "a load finds the same");
            let end = found.iter().map(|piece| piece.range.end()).max();
            assert_eq!(end, Some(bytes), "the last byte counts");
            let all = found.iter().all(|piece| !piece.range.is_empty());
            assert!(all && found.iter().any(|piece| piece.range.start() == 0));
            let of = |sample| found.iter().filter(move |p| p.sample == sample).count() as u64;
            let total = bytes.div_ceil(PIECE_BYTES).min(PIECES);
            assert_eq!((of(0), of(1), of(2)), (total, total, total));
        }
        assert_ne!(pieces(1 << 30, 7), pieces(1 << 30, 8));
    }

    #[test]
    fn what_dirty_data_touch_is_left_out() {
        let mut pieces = pieces(1 << 30, 1);
        pieces.sort_by_key(|piece| piece.range.start());
        let mut is_dirty = vec![false; pieces.len()];
        note_dirty(&pieces, &mut is_dirty, ByteRange::between(4608, 12_800));
        let marked = pieces.iter().zip(is_dirty).filter(|(_, dirty)| *dirty);
        let marked: Vec<u64> = marked
            .filter(|(piece, _)| piece.sample == 0)
            .map(|(piece, _)| piece.number)
            .collect();
        assert_eq!(marked, [1, 2, 3]);
    }

    #[test]
    fn neighbours_are_read_as_one_and_count_as_many() {
        let mut plan = SamplePlan {
            pieces: pieces(1 << 30, 1),
            counted: [[0xff; 32]; 3],
            final_sequence: 9,
        };
        plan.pieces.retain(|piece| piece.sample < 2);
        let ranges = plan.ranges();
        assert_eq!(ranges.len(), 2);
        let read = ranges.iter().map(|range| {
            let len = usize::try_from(range.len()).unwrap();
            IoBuf::copy_of(&vec![u8::try_from(range.start() >> 24).unwrap(); len])
        });
        let read: Vec<IoBuf> = read.collect();
        let samples = plan.samples(&read);
        assert_eq!(samples[1].crc.get(), crc32c::crc32c(&read[1]));
        assert!(compare("d", &samples, &samples).is_ok());
        let other = plan.samples(&[read[1].to_vec(), read[1].to_vec()].map(|b| IoBuf::copy_of(&b)));
        let error = compare("d", &samples, &other).unwrap_err();
        assert!(error.to_string().contains("the first MiB"), "{error}");
    }
}
