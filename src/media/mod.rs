//! Bytes on media and the structs they mean: no I/O, no unsafe. `docs/format.md` has the tables.
//!
//! All integers are little-endian, spare bytes are zero, and every struct is declared once, sized by
//! the compiler and frozen by a file in `tests/golden/`.

mod control;
mod key;
mod kset;
mod slot;
mod superblock;

pub use control::{
    BackingFlush, BackingSample, Boot, CleanStop, DurableMark, Generation, Incarnation, LogStart,
    SegmentInfo, Tail, WindowEnd,
};
pub use key::{KEY_BYTES, Key, KeyFlags};
pub use kset::{
    KEYS_MAX, KSET_ALIGN, KSET_BYTES_MAX, KSET_HEADER_BYTES, KsetError, KsetHeader, LAST_BYTES,
    Last, Parsed, SealedKset, claimed_header, encode_kset, encode_last, kset_bytes, parse_kset,
};
pub use slot::{SLOT_BYTES, SlotBody, SlotError, SlotKind, open_slot, seal_slot};
pub use superblock::{
    CACHES_MAX, CacheEntry, FORMAT_VERSION, MAGIC, NAME_BYTES_MAX, SUPERBLOCK_BYTES, Superblock,
    SuperblockError, decode_superblock, encode_superblock,
};

/// CRC-32C of `bytes`.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}
