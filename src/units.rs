//! Types that keep units apart.

use std::fmt;

/// Counts the segments of a pool from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SegmentId {
    /// As an index into an array of segments.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A range of bytes of a block device. Its end never overflows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    len: u64,
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len)
    }
}

impl ByteRange {
    /// `len` bytes from `start`, or nothing if they do not fit 64 bits.
    #[must_use]
    pub fn new(start: u64, len: u64) -> Option<Self> {
        start.checked_add(len).map(|_| Self { start, len })
    }

    /// From `start` to `end`; empty if `end` is not above `start`.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Self {
        Self {
            start,
            len: end.saturating_sub(start),
        }
    }

    /// The first byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// How many bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// The first byte behind it.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether it covers nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// What both cover; empty if nothing.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }

    /// Whether both cover some byte.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// Whether start and length are multiples of `block` (a power of two).
    #[must_use]
    pub fn is_aligned(self, block: u64) -> bool {
        (self.start | self.len) & (block - 1) == 0
    }
}
