//! Bodies of the 64-byte slots: what each segment and each cache keeps beside its data.

use super::slot::SlotBody;
use super::superblock::CacheEntry;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! body {
    ($($name:ident),*) => { $(
        impl SlotBody for $name {}
        const _: () = assert!(size_of::<$name>() == 48);
    )* };
}
body!(
    SegmentInfo,
    Generation,
    LogStart,
    Tail,
    Incarnation,
    WindowEnd,
    CleanStop,
    BackingSample,
    DurableMark,
    Boot,
    BackingFlush
);

/// To whom a segment belongs. Written when a cache gets or gives back segments.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SegmentInfo {
    /// UUID of the cache that owns it; zero if none does.
    pub cache: [u8; 16],
    /// Whose slot this is: one read from the wrong place must not pass for ours.
    pub segment: U32,
    /// Its place among the segments of its cache, from 0.
    pub place: U32,
    /// Bit 0: bad, never allocated again.
    pub flags: U32,
    /// The resize of its cache with which it joined; 0 if it is of the cache's creation.
    pub joined: U64,
    /// The resize with which it leaves; 0 if none is known. See [`SegmentInfo::is_of`].
    pub left: U64,
    /// Zero.
    pub spare: [u8; 4],
}

impl SegmentInfo {
    /// Set in `flags` once a media error was met.
    pub const BAD: u32 = 1;

    /// Whether the segment is one of the cache of `entry`. The table counts a cache's resizes, and so
    /// decides at once for all segments that one of them gives or takes.
    #[must_use]
    pub fn is_of(&self, entry: &CacheEntry) -> bool {
        let resizes = entry.resizes.get();
        let has_left = self.left.get() != 0 && self.left.get() <= resizes;
        self.names(entry) && self.joined.get() <= resizes && !has_left
    }

    /// Whether it names the cache of `entry`: as its owner now, once, or of a resize that was cut off.
    #[must_use]
    pub fn names(&self, entry: &CacheEntry) -> bool {
        !entry.is_empty() && self.cache == entry.uuid
    }

    /// Whether it must not be allocated again.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.flags.get() & Self::BAD != 0
    }
}

/// How often a segment has been released.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Generation {
    /// Whose slot this is.
    pub segment: U32,
    /// Zero.
    pub spare_before: U32,
    /// Raised at each release, so that keys of an earlier life stop matching.
    pub generation: U64,
    /// Zero.
    pub spare: [u8; 32],
}

/// START: makes a segment part of a cache's log. Durable before the LAST that leads to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LogStart {
    /// UUID of the cache.
    pub cache: [u8; 16],
    /// Whose slot this is.
    pub segment: U32,
    /// The incarnation that wrote it.
    pub incarnation: U32,
    /// No kset in the segment has a lower sequence.
    pub sequence: U64,
    /// Random; every kset in the segment repeats it.
    pub salt: U64,
    /// Zero.
    pub spare: [u8; 8],
}

/// A place in the log, and what is expected there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tail {
    /// Segment of the pool.
    pub segment: U32,
    /// Bytes from the start of the segment's data.
    pub offset: U32,
    /// Sequence of the kset that is expected there.
    pub sequence: U64,
    /// Epoch of the last kset before it.
    pub epoch: U64,
    /// Zero.
    pub spare: [u8; 24],
}

/// Which run of the service wrote which sequences.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Incarnation {
    /// Raised by every load.
    pub incarnation: U32,
    /// Zero.
    pub spare_before: U32,
    /// Ksets from this sequence on are of this incarnation, or leftovers.
    pub first_sequence: U64,
    /// CLEAN keys of ksets below this sequence do not count: the backing was changed since.
    pub clean_until: U64,
    /// Nor do any others there but BAD and INVALID ones: they had been written back.
    pub written_back_until: U64,
    /// Zero.
    pub spare: [u8; 16],
}

/// End of a writeback window that spans epochs; the backing is between boundaries until the dirty
/// tail has reached it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WindowEnd {
    /// Sequence behind the window; a dirty tail at or above it ends the state.
    pub sequence: U64,
    /// Zero.
    pub spare: [u8; 40],
}

/// How the last run ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CleanStop {
    /// 1 after a clean stop; 0 while loaded, and after a death.
    pub clean: U32,
    /// 1 if the three [`BackingSample`]s are of this stop.
    pub sampled: U32,
    /// The last sequence of the log.
    pub final_sequence: U64,
    /// Zero.
    pub spare: [u8; 32],
}

/// What a part of the backing held at a clean stop: 256 pieces of 4096 bytes, of which those count
/// that nothing dirty waited for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BackingSample {
    /// Bit n of byte n / 8, from the lowest: piece n counts.
    pub counted: [u8; 32],
    /// CRC-32C of the pieces that count, in order.
    pub crc: U32,
    /// Zero.
    pub spare: U32,
    /// That of the [`CleanStop`] that it belongs to.
    pub final_sequence: U64,
}

/// Up to where the log is known to be durable: written when the cache falls idle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DurableMark {
    /// Highest durable sequence.
    pub sequence: U64,
    /// Zero.
    pub spare: [u8; 40],
}

/// In which boot of the machine the cache was last loaded: tells process death from power loss.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Boot {
    /// The kernel's boot id.
    pub boot_id: [u8; 16],
    /// Zero.
    pub spare: [u8; 32],
}

/// Whether the backing has lost what it had acknowledged. Written to both slots at each change.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BackingFlush {
    /// 1: a flush failed behind writes that had bypassed the cache, and no operator has taken note.
    pub failed: U32,
    /// Zero.
    pub spare: [u8; 44],
}
