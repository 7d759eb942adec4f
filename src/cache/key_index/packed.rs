//! A key as a leaf holds it: 24 bytes, so that 16 of them and their leaf take less than 32 bytes for
//! each block of 4 KiB.
//!
//! ```text
//! word 0: start 13 | len 8 | trim 13 | whole 14 | kind 16
//! word 1: place 37 (segment 20, offset in blocks 17; of a placeholder its slot) | generation, upper 27
//! word 2: crc 32 | generation, lower 32
//! ```

use super::super::geometry::{SEGMENTS_MAX, SegIx};
use super::super::key::{Key, Kind};
use super::super::plausible::COUNT_END;
use super::{BLOCK, LEAF_BLOCKS, SUBTREE_BLOCKS};

const START_BITS: u32 = 13;
const LEN_BITS: u32 = 8;
const TRIM_BITS: u32 = 13;
const WHOLE_BITS: u32 = 14;
const OFFSET_BITS: u32 = 17;
const PLACE_BITS: u32 = 37;

const LEN_AT: u32 = START_BITS;
const TRIM_AT: u32 = LEN_AT + LEN_BITS;
const WHOLE_AT: u32 = TRIM_AT + TRIM_BITS;
const KIND_AT: u32 = WHOLE_AT + WHOLE_BITS;
/// Stands for [`Kind::PLACEHOLDER`], above all media flags.
const PLACEHOLDER: u64 = 1 << 15;
/// Stands for the mark of a kind, above all media flags.
const MARK: u64 = 1 << 14;

const _: () = assert!(KIND_AT + 16 == 64);
const _: () =
    assert!(SUBTREE_BLOCKS as u64 <= 1 << START_BITS && (LEAF_BLOCKS as u64) < 1 << LEN_BITS);
const _: () = assert!((SUBTREE_BLOCKS as u64) < 1 << WHOLE_BITS);
const _: () = assert!(SEGMENTS_MAX as u64 <= 1 << (PLACE_BITS - OFFSET_BITS));
const _: () = assert!(super::super::geometry::SEGMENT_BYTES_MAX / BLOCK <= 1 << OFFSET_BITS);
const _: () = assert!(COUNT_END <= 1 << (64 - PLACE_BITS + 32));

/// The lowest `bits` of `word` from bit `at` on.
fn field(word: u64, at: u32, bits: u32) -> u64 {
    word >> at & ((1 << bits) - 1)
}

fn short(value: u64) -> u16 {
    // Every field is narrower.
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackedKey([u64; 3]);

const _: () = assert!(size_of::<PackedKey>() == 24);

impl PackedKey {
    /// Packs `key`, which lies within one leaf.
    pub(super) fn new(key: Key) -> Self {
        debug_assert!(
            key.len <= LEAF_BLOCKS && key.end() <= SUBTREE_BLOCKS,
            "{key:?}"
        );
        debug_assert!(key.generation < COUNT_END, "{key:?}");
        let is_placeholder = key.kind.is_placeholder();
        let kind = if is_placeholder {
            PLACEHOLDER
        } else {
            u64::from(key.kind.flags().0) | if key.kind.is_marked() { MARK } else { 0 }
        };
        let segment = u64::from(key.segment.0);
        let place = if is_placeholder {
            segment
        } else {
            (segment << OFFSET_BITS) | (u64::from(key.segment_offset) / BLOCK)
        };
        Self([
            u64::from(key.start)
                | u64::from(key.len) << LEN_AT
                | u64::from(key.trim) << TRIM_AT
                | u64::from(key.whole) << WHOLE_AT
                | kind << KIND_AT,
            place | key.generation >> 32 << PLACE_BITS,
            u64::from(key.crc) << 32 | field(key.generation, 0, 32),
        ])
    }

    /// All of it.
    pub(super) fn key(self) -> Key {
        let [range, place, rest] = self.0;
        let kind = field(range, KIND_AT, 16);
        let is_placeholder = kind == PLACEHOLDER;
        let (segment, offset) = if is_placeholder {
            (field(place, 0, 32), 0)
        } else {
            let segment = field(place, OFFSET_BITS, PLACE_BITS - OFFSET_BITS);
            (segment, field(place, 0, OFFSET_BITS) * BLOCK)
        };
        let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Key {
            start: self.start(),
            len: self.len(),
            trim: short(field(range, TRIM_AT, TRIM_BITS)),
            whole: short(field(range, WHOLE_AT, WHOLE_BITS)),
            segment: SegIx(word(segment)),
            segment_offset: word(offset),
            generation: field(place, PLACE_BITS, 64 - PLACE_BITS) << 32 | field(rest, 0, 32),
            crc: word(rest >> 32),
            kind: if is_placeholder {
                Kind::PLACEHOLDER
            } else {
                Kind::of(crate::media::KeyFlags(word(kind & !MARK))).marked(kind & MARK != 0)
            },
        }
    }

    /// First block, from the start of the subtree.
    pub(super) fn start(self) -> u16 {
        short(field(self.0[0], 0, START_BITS))
    }

    /// Blocks.
    pub(super) fn len(self) -> u16 {
        short(field(self.0[0], LEN_AT, LEN_BITS))
    }

    /// The block behind it.
    pub(super) fn end(self) -> u16 {
        self.start() + self.len()
    }

    /// The same with the mark, or without it.
    pub(super) fn marked(self, marked: bool) -> Self {
        let key = self.key();
        Self::new(Key {
            kind: key.kind.marked(marked),
            ..key
        })
    }

    /// The part of it before block `at`, which lies inside.
    pub(super) fn before(self, at: u16) -> Self {
        Self::new(self.key().before(at))
    }

    /// The part of it from block `at` on, which lies inside.
    pub(super) fn from(self, at: u16) -> Self {
        Self::new(self.key().from(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::KeyFlags;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packing_loses_nothing(
            leaf in 0..64_u16, start in 0..128_u16, len in 1..=128_u16, trim in 0..8192_u16,
            whole in 1..=8192_u16, segment: u32, offset in 0..131_072_u32,
            generation in 0..COUNT_END, crc: u32, flags in 0..128_u32, is_placeholder: bool,
            is_marked: bool,
        ) {
            let key = Key {
                start: leaf * LEAF_BLOCKS + start,
                len: len.min(LEAF_BLOCKS - start),
                trim,
                whole,
                segment: SegIx(if is_placeholder { segment } else { segment % SEGMENTS_MAX }),
                segment_offset: if is_placeholder { 0 } else { offset * 512 },
                generation,
                crc,
                kind: if is_placeholder {
                    Kind::PLACEHOLDER
                } else {
                    Kind::of(KeyFlags(flags)).marked(is_marked)
                },
            };
            let packed = PackedKey::new(key);
            prop_assert_eq!(packed.key(), key);
            prop_assert_eq!((packed.start(), packed.end()), (key.start, key.end()));
        }
    }
}
