//! A key: which bytes of the backing a piece of the log is about.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a key.
pub const KEY_BYTES: usize = 40;

/// What a key says beyond its range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyFlags(pub u32);

impl KeyFlags {
    /// A dirty key with data.
    pub const DIRTY: Self = Self(0);
    /// Same as the backing.
    pub const CLEAN: Self = Self(1);
    /// Reads as zeroes; no data.
    pub const ZERO: Self = Self(2);
    /// With ZERO: the backing may give the space back.
    pub const UNMAP: Self = Self(4);
    /// The backing is newer (bypassing writes); no data.
    pub const INVALID: Self = Self(8);
    /// The data are lost; reads fail; no data.
    pub const BAD: Self = Self(16);
    /// With data: carries their CRC, though the cache was made without.
    pub const SUMMED: Self = Self(32);
    /// With data: logged again in place of a key that can't be read any more, and not to be taken for it.
    pub const AGAIN: Self = Self(64);
    const ALL: u32 = 127;

    /// Whether all bits of `other` are set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// With `other` where it is not, and without it where it is.
    #[must_use]
    pub fn toggled(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }

    /// Whether the key points at data.
    #[must_use]
    pub fn has_data(self) -> bool {
        self.0 & (Self::ZERO.0 | Self::INVALID.0 | Self::BAD.0) == 0
    }

    /// Whether writeback owes it to the backing.
    #[must_use]
    pub fn is_dirty(self) -> bool {
        self.0 & (Self::CLEAN.0 | Self::INVALID.0 | Self::BAD.0) == 0
    }

    /// Whether the combination is one that the engine writes.
    #[must_use]
    pub fn is_known(self) -> bool {
        let plain = self.0 & !(Self::SUMMED.0 | Self::AGAIN.0);
        self.0 & !Self::ALL == 0
            && (plain == self.0 || self.has_data())
            && [
                0,
                Self::CLEAN.0,
                Self::ZERO.0,
                Self::ZERO.0 | Self::UNMAP.0,
                8,
                16,
            ]
            .contains(&plain)
    }
}

/// A key on media.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Key {
    /// First byte on the backing.
    pub offset: U64,
    /// Bytes.
    pub len: U32,
    /// [`KeyFlags`].
    pub flags: U32,
    /// Segment of the pool that holds the data; 0 without data.
    pub segment: U32,
    /// Bytes from the start of that segment's data area; 0 without data.
    pub segment_offset: U32,
    /// The segment's generation; without data a serial that the lane never reuses.
    pub generation: U64,
    /// CRC-32C of the data; 0 without data or without checksums.
    pub crc: U32,
    /// Zero.
    pub spare: U32,
}

const _: () = assert!(size_of::<Key>() == KEY_BYTES);

impl Key {
    /// Its flags.
    #[must_use]
    pub fn flags(&self) -> KeyFlags {
        KeyFlags(self.flags.get())
    }
}
