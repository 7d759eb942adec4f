//! What a load found, and what it could not find: for whoever loads, and for the status.

use super::log_reader::LogView;
use super::shared::LogPos;
use crate::units::{ByteRange, SegmentId};

/// Most ranges that a report lists.
const RANGES_MAX: usize = 256;

/// A place in the log that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPlace {
    /// Segment of the pool.
    pub segment: SegmentId,
    /// Bytes from the start of its data.
    pub offset: u32,
    /// The sequence that was expected there.
    pub sequence: u64,
    /// What is wrong.
    pub reason: String,
}

impl BadPlace {
    pub(super) fn new(view: &LogView, pos: &LogPos, reason: String) -> Self {
        Self {
            segment: view.segments.id(pos.segment),
            offset: pos.offset,
            sequence: pos.sequence,
            reason,
        }
    }
}

/// Cached data that a load did without, since the backing has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostClean {
    /// Where the log could not be read on.
    pub at: BadPlace,
    /// Ksets and LASTs between the key tail and the dirty tail, where the load began instead.
    pub ksets: u64,
    /// Keys in those of them that can be read.
    pub keys: u64,
    /// Bytes of these keys.
    pub bytes: u64,
    /// BAD keys among them: their ranges read as the older bytes of the backing, if they were not
    /// written again.
    pub bad_keys: u64,
    /// These ranges, merged, at most 256.
    pub bad_ranges: Vec<ByteRange>,
}

/// What a salvaged cache lacks: it is as it was before the bad place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Where the log could not be read on.
    pub at: BadPlace,
    /// Up to where the log was durable, at least.
    pub proof: u64,
    /// Ksets behind it that can still be read, and are not used.
    pub ksets: u64,
    /// Keys in them, and in the staging file.
    pub keys: u64,
    /// Bytes that they wrote: these ranges read as they were before.
    pub dirty_bytes: u64,
    /// These ranges, merged, at most 256. What stood in ksets that can't be read is not among them.
    pub ranges: Vec<ByteRange>,
    /// There are more.
    pub ranges_left_off: u64,
}

/// Where a run would have to be written and can't be: the cache is whole, and read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritable {
    /// What stands there.
    pub item: &'static str,
    /// Its place on the medium, bytes.
    pub at: u64,
}

/// Sorted, touching and overlapping ones as one; at most 256, and how many were left off.
pub(super) fn merged(mut ranges: Vec<ByteRange>) -> (Vec<ByteRange>, u64) {
    ranges.sort_unstable_by_key(|range| range.start());
    let mut found: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match found.last_mut() {
            Some(last) if last.end() >= range.start() => {
                *last = ByteRange::between(last.start(), last.end().max(range.end()));
            }
            _ => found.push(range),
        }
    }
    let left_off = found.len().saturating_sub(RANGES_MAX) as u64;
    found.truncate(RANGES_MAX);
    (found, left_off)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_and_bounded() {
        let range = |from: u64, to: u64| ByteRange::between(from, to);
        let (found, left_off) = merged(vec![range(8, 9), range(0, 4), range(2, 6), range(6, 7)]);
        assert_eq!((found, left_off), (vec![range(0, 7), range(8, 9)], 0));
        let (found, left_off) = merged((0..300).map(|n| range(3 * n, 3 * n + 1)).collect());
        assert_eq!((found.len(), left_off), (RANGES_MAX, 44));
    }
}
