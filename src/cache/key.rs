//! A key in memory: 32 bytes, in blocks of 512 bytes relative to its subtree.

use super::geometry::SegIx;
use crate::media::KeyFlags;

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u32);

impl Kind {
    /// Not a key but a promise: a miss is fetching these blocks. Above all media flags.
    pub(crate) const PLACEHOLDER: Self = Self(1 << 16);
    /// No readable kset was found to hold it yet (see `settle.rs`). Above all media flags.
    const MARK: u32 = 1 << 17;

    /// A key with these media flags.
    pub(crate) fn of(flags: KeyFlags) -> Self {
        Self(flags.0)
    }

    /// The media flags; for a placeholder nothing that media know.
    pub(crate) fn flags(self) -> KeyFlags {
        KeyFlags(self.0 & !Self::MARK)
    }

    /// With the mark, or without it. A placeholder is in no kset, and has none.
    pub(crate) fn marked(self, marked: bool) -> Self {
        if marked && !self.is_placeholder() {
            Self(self.0 | Self::MARK)
        } else {
            Self(self.0 & !Self::MARK)
        }
    }

    pub(crate) fn is_marked(self) -> bool {
        self.0 & Self::MARK != 0
    }

    /// The same of a key whose data have been written back: nobody needs to write them again, and the
    /// backing has them.
    pub(crate) fn written_back(self) -> Self {
        let flags = self.flags();
        if flags.has_data() && flags.is_dirty() {
            return Self(self.0 | KeyFlags::CLEAN.0);
        }
        self
    }

    /// Whether its data are lost.
    pub(crate) fn is_bad(self) -> bool {
        self.flags().has(KeyFlags::BAD)
    }

    /// Whether it stands for a miss in flight.
    pub(crate) fn is_placeholder(self) -> bool {
        self == Self::PLACEHOLDER
    }
}

/// A key, or what later writes have left of it.
///
/// `trim` and `whole` tell the original it is a part of, whose bytes and CRC stay where they are
/// until GC passes. For a placeholder, `generation` is the miss's id and `segment` its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// First block, from the start of the subtree.
    pub(crate) start: u16,
    /// Blocks, at least 1.
    pub(crate) len: u16,
    /// Blocks of the original before `start`.
    pub(crate) trim: u16,
    /// Blocks of the original.
    pub(crate) whole: u16,
    /// Where the original's data are.
    pub(crate) segment: SegIx,
    /// Bytes from the start of the segment's data to the original's data.
    pub(crate) segment_offset: u32,
    /// The segment's generation when written; without data a serial.
    pub(crate) generation: u64,
    /// CRC-32C of the original's data.
    pub(crate) crc: u32,
    /// What it is.
    pub(crate) kind: Kind,
}

const _: () = assert!(size_of::<Key>() == 32);

impl Key {
    /// The block behind it.
    pub(crate) fn end(&self) -> u16 {
        self.start + self.len
    }

    /// The part of it before block `at`, which lies inside.
    pub(crate) fn before(mut self, at: u16) -> Self {
        self.len = at - self.start;
        self
    }

    /// The part of it from block `at` on, which lies inside.
    pub(crate) fn from(mut self, at: u16) -> Self {
        let cut = at - self.start;
        self.start = at;
        self.len -= cut;
        self.trim += cut;
        self
    }

    /// Names the original that it is a part of.
    pub(crate) fn ident(&self) -> KeyIdent {
        KeyIdent {
            segment: self.segment,
            segment_offset: self.segment_offset,
            generation: self.generation,
            has_data: self.kind.flags().has_data(),
            again: self.kind.flags().has(KeyFlags::AGAIN),
        }
    }

    /// Whether both are parts of one and the same original.
    pub(crate) fn same_original(&self, ident: &KeyIdent) -> bool {
        self.segment == ident.segment
            && self.segment_offset == ident.segment_offset
            && self.generation == ident.generation
            && self.kind.flags().has_data() == ident.has_data
            && self.kind.flags().has(KeyFlags::AGAIN) == ident.again
            && !self.kind.is_placeholder()
    }
}

/// Names one key of the log, for GC: later keys at the same place do not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyIdent {
    pub(crate) segment: SegIx,
    pub(crate) segment_offset: u32,
    pub(crate) generation: u64,
    pub(crate) has_data: bool,
    /// It stands for a key that can't be read any more, and may have all else in common with it.
    pub(crate) again: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_logged_again_is_not_the_lost_one_and_a_mark_changes_nothing() {
        let lost = Key {
            start: 0,
            len: 8,
            trim: 0,
            whole: 8,
            segment: SegIx(3),
            segment_offset: 4096,
            generation: 2,
            crc: 0,
            kind: Kind::of(KeyFlags::DIRTY),
        };
        let flags = lost.kind.flags().toggled(KeyFlags::AGAIN);
        let kind = Kind::of(flags);
        let again = Key { kind, ..lost };
        assert!(flags.is_known() && flags.is_dirty() && flags.has_data());
        assert!(!again.same_original(&lost.ident()) && !lost.same_original(&again.ident()));
        let kind = again.kind.marked(true);
        assert!(kind.is_marked() && kind.flags() == flags);
        assert!(Key { kind, ..again }.same_original(&again.ident()));
    }
}
