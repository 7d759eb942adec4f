//! Small metadata: 64-byte slots, two of each item, the newer good one counts.
//!
//! A slot is `{crc, kind, seq}` ahead of a 48-byte body. To update an item the *older* slot is
//! written and made durable; a reader takes the good slot with the higher `seq`. Who reads and
//! writes them is `cache::control_io`; here is only what the bytes mean.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a slot: one cache line.
pub const SLOT_BYTES: usize = 64;

/// Which item a slot holds; also carries the version of its layout in the upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotKind {
    /// [`super::SegmentInfo`].
    SegmentInfo = 0x0001_0001,
    /// [`super::Generation`].
    Generation = 0x0001_0002,
    /// [`super::LogStart`].
    LogStart = 0x0001_0003,
    /// [`super::Tail`]: where replay begins.
    KeyTail = 0x0001_0004,
    /// [`super::Tail`]: where writeback begins.
    DirtyTail = 0x0001_0005,
    /// [`super::Incarnation`].
    Incarnation = 0x0001_0006,
    /// [`super::WindowEnd`].
    WindowEnd = 0x0001_0007,
    /// [`super::CleanStop`].
    CleanStop = 0x0001_0008,
    /// [`super::DurableMark`].
    DurableMark = 0x0001_0009,
    /// [`super::Boot`].
    Boot = 0x0001_000a,
    /// [`super::BackingSample`]: the first MiB.
    SampleFirst = 0x0001_000b,
    /// [`super::BackingSample`]: the last MiB.
    SampleLast = 0x0001_000c,
    /// [`super::BackingSample`]: pieces in between.
    SampleBlocks = 0x0001_000d,
    /// [`super::BackingFlush`].
    BackingFlush = 0x0001_000e,
}

/// A 48-byte body.
pub trait SlotBody: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    /// CRC-32C of bytes 4..64.
    crc: U32,
    kind: U32,
    /// Tells which of two copies is newer.
    seq: U64,
}

const _: () = assert!(size_of::<Header>() == 16);

/// Why a slot does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The CRC does not fit; also what a never-written slot gives.
    #[error("slot CRC is {stored:#010x}, its bytes give {computed:#010x}")]
    Crc {
        /// What stands there.
        stored: u32,
        /// What should.
        computed: u32,
    },
    /// A good slot, but of another item or version.
    #[error("slot is of kind {found:#010x}, not {wanted:#010x}")]
    Kind {
        /// What stands there.
        found: u32,
        /// What should.
        wanted: u32,
    },
    /// The medium does not give its bytes. Whoever reads media says so; a decoder never does.
    #[error("slot can't be read")]
    Unreadable,
}

/// The bytes of a slot with this body.
#[must_use]
pub fn seal_slot<B: SlotBody>(kind: SlotKind, seq: u64, body: &B) -> [u8; SLOT_BYTES] {
    const { assert!(size_of::<B>() == 48) };
    let mut bytes = [0; SLOT_BYTES];
    let header = Header {
        crc: U32::ZERO,
        kind: U32::new(kind as u32),
        seq: U64::new(seq),
    };
    bytes[..16].copy_from_slice(header.as_bytes());
    bytes[16..].copy_from_slice(body.as_bytes());
    let crc = super::crc(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a slot: its `seq` and body.
///
/// # Errors
/// [`SlotError`] if the CRC or the kind is wrong.
pub fn open_slot<B: SlotBody>(
    kind: SlotKind,
    bytes: &[u8; SLOT_BYTES],
) -> Result<(u64, B), SlotError> {
    const { assert!(size_of::<B>() == 48) };
    let header: Header = zerocopy::transmute!(*bytes.first_chunk::<16>().unwrap_or(&[0; 16]));
    let (stored, computed) = (header.crc.get(), super::crc(&bytes[4..]));
    if stored != computed {
        return Err(SlotError::Crc { stored, computed });
    }
    let (found, wanted) = (header.kind.get(), kind as u32);
    if found != wanted {
        return Err(SlotError::Kind { found, wanted });
    }
    match B::read_from_bytes(&bytes[16..]) {
        Ok(body) => Ok((header.seq.get(), body)),
        Err(_) => Err(SlotError::Kind { found, wanted }),
    }
}
