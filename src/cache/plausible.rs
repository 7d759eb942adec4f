//! Values that no media of ours hold, good checksum or not: they are refused when they are read, so that
//! nobody need expect them later.

use super::CacheError;
use super::geometry::{LANES_MAX, SEGMENTS_MAX, segments_min};
use crate::media::CacheEntry;

/// No sequence, epoch, generation or serial gets here: it leaves room to count on from any below.
/// 59 bits are what the key index keeps of a generation.
pub(crate) const COUNT_END: u64 = 1 << 59;

/// A number of which `item` at `at` says that it has been counted up to there.
///
/// # Errors
/// [`CacheError::Impossible`].
pub(crate) fn check_count(item: &'static str, at: u64, value: u64) -> Result<(), CacheError> {
    if value < COUNT_END {
        return Ok(());
    }
    Err(CacheError::Impossible { item, at, value })
}

/// As [`check_count`], for the number of the run, which is shorter.
///
/// # Errors
/// [`CacheError::Impossible`].
pub(crate) fn check_incarnation(at: u64, value: u32) -> Result<(), CacheError> {
    if value < 1 << 31 {
        return Ok(());
    }
    Err(CacheError::Impossible {
        item: "incarnation",
        at,
        value: value.into(),
    })
}

/// The shape of a cache as the superblock has it, by the rules of its creation.
///
/// # Errors
/// [`CacheError::Invalid`], naming the value.
pub(crate) fn check_shape(entry: &CacheEntry, segment_bytes: u64) -> Result<(), CacheError> {
    let invalid = |text: String| Err(CacheError::Invalid(format!("superblock: {text}")));
    let (lanes, block) = (entry.lanes.get(), entry.block_bytes.get());
    if !(1..=LANES_MAX).contains(&lanes) {
        return invalid(format!("{lanes} lanes are not within 1..={LANES_MAX}"));
    }
    if ![512, 4096].contains(&block) {
        return invalid(format!("block size {block} is not 512 or 4096"));
    }
    let resizes = entry.resizes.get();
    if resizes >= COUNT_END {
        return invalid(format!("{resizes} resizes are not below {COUNT_END}"));
    }
    let (segments, least) = (entry.segments.get(), segments_min(lanes, segment_bytes));
    if !(least..=SEGMENTS_MAX).contains(&segments) {
        return invalid(format!(
            "{segments} segments for {lanes} lanes are not within {least}..={SEGMENTS_MAX}"
        ));
    }
    Ok(())
}
