//! Sizes and places: what is where in a pool, and how much of it a cache needs.

use crate::media::{CACHES_MAX, KSET_BYTES_MAX, LAST_BYTES, SUPERBLOCK_BYTES};
use crate::units::SegmentId;

/// A segment of a cache, counted from 0 within that cache. On media the pool's number stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegIx(pub(crate) u32);

impl SegIx {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn of(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// Bytes at the start of each segment that hold its metadata, two pages of 4 KiB: slot pairs have
/// one slot in each.
pub const SEGMENT_CONTROL_BYTES: u64 = 8192;
/// Distance between the two slots of a pair.
pub(crate) const PAIR_DISTANCE: u64 = 4096;
/// Smallest segment.
pub const SEGMENT_BYTES_MIN: u64 = 256 << 10;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Most segments of a cache.
pub const SEGMENTS_MAX: u32 = 1 << 20;
/// Most lanes of a cache.
pub const LANES_MAX: u32 = 128;
/// Longest key with data, bytes.
pub(crate) const DATA_KEY_BYTES_MAX: u64 = 32 << 10;

/// Place of the second superblock.
pub(crate) const SUPERBLOCK_SECOND: u64 = 2 * SUPERBLOCK_BYTES as u64;
const _: () = assert!(1024 + CACHES_MAX * 1024 == SUPERBLOCK_BYTES);

/// Where the first segment of a pool with segments of this size begins: room for two superblocks,
/// and aligned so that huge pages can map segments whole.
#[must_use]
pub fn data_start(segment_bytes: u64) -> u64 {
    segment_bytes.clamp(4 * SUPERBLOCK_BYTES as u64, 2 << 20)
}

/// Segments that the log holds in reserve for `lanes` lanes: section 7 of the specification,
/// counted in largest ksets.
#[must_use]
pub fn log_reserve(lanes: u32, segment_bytes: u64) -> u32 {
    let per_segment = largest_ksets(segment_bytes - SEGMENT_CONTROL_BYTES).max(1);
    2 + (2 * lanes).div_ceil(per_segment)
}

/// How many of the largest ksets fit into `bytes` of log with a LAST behind them.
pub(crate) fn largest_ksets(bytes: u64) -> u32 {
    let room = bytes.saturating_sub(LAST_BYTES as u64) / KSET_BYTES_MAX as u64;
    u32::try_from(room).unwrap_or(u32::MAX)
}

/// The fewest segments that a cache with `lanes` lanes can have.
#[must_use]
pub fn segments_min(lanes: u32, segment_bytes: u64) -> u32 {
    (10 * lanes).max(segments_needed(lanes, log_reserve(lanes, segment_bytes)))
}

/// The fewest good segments with which a running cache always gets on.
pub(crate) fn segments_needed(lanes: u32, log_reserve: u32) -> u32 {
    log_reserve + 2 * lanes + 2
}

/// Places within a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Bytes of a segment, control included.
    pub segment_bytes: u64,
    /// Where segment 0 begins.
    pub data_start: u64,
    /// How many segments there are.
    pub segments: u32,
}

impl PoolGeometry {
    /// Bytes of a segment that hold data or log.
    #[must_use]
    pub fn segment_data_bytes(&self) -> u64 {
        self.segment_bytes - SEGMENT_CONTROL_BYTES
    }

    /// Where a segment begins, with its control area.
    #[must_use]
    pub fn segment_start(&self, segment: SegmentId) -> u64 {
        self.data_start + u64::from(segment.0) * self.segment_bytes
    }

    /// Where the last segment ends; nothing if that is beyond 64 bits.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        u64::from(self.segments)
            .checked_mul(self.segment_bytes)?
            .checked_add(self.data_start)
    }

    /// Where a segment's data begin.
    #[must_use]
    pub fn data_at(&self, segment: SegmentId) -> u64 {
        self.segment_start(segment) + SEGMENT_CONTROL_BYTES
    }
}

/// A slot pair of every segment, by its place in the control area.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SegmentItem {
    Info = 0,
    Generation = 64,
    LogStart = 128,
}

/// Bytes of the first slots of [`SegmentItem`]s, one behind the other.
pub(crate) const SEGMENT_ITEMS_BYTES: usize = 192;

/// A slot pair of a cache, by its place in the control area of the cache's first segment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CacheItem {
    KeyTail = 256,
    DirtyTail = 320,
    Incarnation = 384,
    WindowEnd = 448,
    CleanStop = 512,
    DurableMark = 576,
    Boot = 640,
    SampleFirst = 704,
    SampleLast = 768,
    SampleBlocks = 832,
    BackingFlush = 896,
}

/// Where the last [`CacheItem`] ends.
pub(crate) const CONTROL_ITEMS_END: u64 = CacheItem::BackingFlush as u64 + 64;
