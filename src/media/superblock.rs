//! The superblock: what the pool is and which caches it holds. Two copies, the newer good one counts.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// First bytes of a formatted pool.
pub const MAGIC: [u8; 8] = *b"PMCACHE\0";
/// The format that this code writes.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = 65_536;
/// Caches that a pool can hold.
pub const CACHES_MAX: usize = 63;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 255;

/// A cache in the superblock's table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CacheEntry {
    /// Identity of the cache; zero in an empty place.
    pub uuid: [u8; 16],
    /// Identity of the backing device.
    pub backing_uuid: [u8; 16],
    /// Size of the backing, bytes.
    pub backing_bytes: U64,
    /// The cache's first segment, which holds its control items.
    pub first_segment: U32,
    /// How many segments it owns.
    pub segments: U32,
    /// Lanes, 1 to 128.
    pub lanes: U32,
    /// Logical block, bytes: 512 or 4096.
    pub block_bytes: U32,
    /// 0 wb, 1 wt, 2 wa, 3 wo, 4 pt.
    pub mode: U32,
    /// 0 flush, 1 write.
    pub durability: U32,
    /// 0 adaptive, 1 strict, 2 relaxed.
    pub writeback_order: U32,
    /// Bit 0: data CRC; bit 1: verify reads.
    pub checks: U32,
    /// 0 to 90.
    pub gc_percent: U32,
    /// Age limit of an open kset, ms.
    pub kset_flush_ms: U32,
    /// Requests that writeback keeps under way.
    pub writeback_depth: U32,
    /// Limit of writeback, MiB/s; 0 for none.
    pub writeback_rate_mbps: U32,
    /// Younger keys wait, ms.
    pub writeback_delay_ms: U32,
    /// Lag at which adaptive order gives way, s.
    pub writeback_lag_s: U32,
    /// Percent of the data space: writeback is paced from here …
    pub dirty_low_percent: U32,
    /// … and unbounded from here.
    pub dirty_high_percent: U32,
    /// A request that waits longer for space fails, s; 0 for never.
    pub no_space_timeout_s: U32,
    /// Length of `name`.
    pub name_len: U32,
    /// Length of `backing_name`.
    pub backing_name_len: U32,
    /// Name, UTF-8.
    pub name: [u8; 256],
    /// Name of the backing bdev as last seen, UTF-8.
    pub backing_name: [u8; 256],
    /// How often its set of segments has been changed.
    pub resizes: U64,
    /// 0 never, 1 full, 2 always.
    pub seq_cutoff_policy: U32,
    /// A sequential stream of so many KiB bypasses the cache.
    pub seq_cutoff_kib: U32,
    /// On which miss a block is kept, 1 to 100.
    pub admission: U32,
    /// 1 from when a write may have bypassed the cache: what an unclean end leaves may want a flush of
    /// the backing.
    pub bypassed: U32,
    /// Zero.
    pub spare: [u8; 372],
}

const _: () = assert!(size_of::<CacheEntry>() == 1024);

impl CacheEntry {
    /// An empty place.
    #[must_use]
    pub fn empty() -> Self {
        Self::new_zeroed()
    }

    /// Whether no cache is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uuid == [0; 16]
    }

    /// The name; what is not UTF-8 is replaced.
    #[must_use]
    pub fn name(&self) -> String {
        text(&self.name, self.name_len)
    }

    /// The backing's name.
    #[must_use]
    pub fn backing_name(&self) -> String {
        text(&self.backing_name, self.backing_name_len)
    }

    /// Sets the name, cut to 255 bytes.
    pub fn set_name(&mut self, name: &str) {
        self.name_len = put(&mut self.name, name);
    }

    /// Sets the backing's name, cut to 255 bytes.
    pub fn set_backing_name(&mut self, name: &str) {
        self.backing_name_len = put(&mut self.backing_name, name);
    }
}

fn text(bytes: &[u8; 256], len: U32) -> String {
    let len = (len.get() as usize).min(NAME_BYTES_MAX);
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

fn put(bytes: &mut [u8; 256], name: &str) -> U32 {
    // Cut between two characters: what is no UTF-8 is refused when it is read.
    let lens = (0..=NAME_BYTES_MAX).rev();
    let len = lens.into_iter().find(|&len| name.is_char_boundary(len));
    let len = len.unwrap_or(0);
    bytes.fill(0);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    U32::new(u32::try_from(len).unwrap_or(0))
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RawHeader {
    magic: [u8; 8],
    /// CRC-32C of bytes 12..65536.
    crc: U32,
    version: U32,
    seq: U64,
    uuid: [u8; 16],
    segment_bytes: U64,
    data_start: U64,
    segments: U32,
    name_len: U32,
    name: [u8; 256],
    spare: [u8; 704],
}

const _: () = assert!(size_of::<RawHeader>() == 1024);

/// What a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Tells which copy is newer.
    pub seq: u64,
    /// Identity of the pool.
    pub uuid: [u8; 16],
    /// Name of the pool, at most 255 bytes.
    pub name: String,
    /// Size of a segment, bytes: a power of two from 256 KiB to 64 MiB.
    pub segment_bytes: u64,
    /// Where segment 0 begins, bytes.
    pub data_start: u64,
    /// How many segments there are.
    pub segments: u32,
    /// The table: `CACHES_MAX` places, some empty.
    pub caches: Vec<CacheEntry>,
}

/// Why bytes are not a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Other bytes at the start: not a pool.
    #[error("no pool: the magic is missing")]
    Magic,
    /// The CRC does not fit.
    #[error("superblock CRC is {stored:#010x}, its bytes give {computed:#010x}")]
    Crc {
        /// What stands there.
        stored: u32,
        /// What should.
        computed: u32,
    },
    /// Written by other code.
    #[error("pool format {0} is not known to this version (it knows {FORMAT_VERSION})")]
    Version(u32),
    /// A value that no pool can have.
    #[error("superblock field {field} has the impossible value {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The medium does not give its bytes. Whoever reads media says so; the decoder never does.
    #[error("superblock can't be read")]
    Unreadable,
}

/// The bytes of one copy.
#[must_use]
pub fn encode_superblock(superblock: &Superblock) -> Vec<u8> {
    let mut name = [0; 256];
    let name_len = put(&mut name, &superblock.name);
    let header = RawHeader {
        magic: MAGIC,
        crc: U32::ZERO,
        version: U32::new(FORMAT_VERSION),
        seq: U64::new(superblock.seq),
        uuid: superblock.uuid,
        segment_bytes: U64::new(superblock.segment_bytes),
        data_start: U64::new(superblock.data_start),
        segments: U32::new(superblock.segments),
        name_len,
        name,
        spare: [0; 704],
    };
    let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
    bytes.extend_from_slice(header.as_bytes());
    for entry in superblock.caches.iter().take(CACHES_MAX) {
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes.resize(SUPERBLOCK_BYTES, 0);
    let crc = super::crc(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads one copy.
///
/// # Errors
/// [`SuperblockError`]: length and magic, CRC, version, ranges, in that order.
pub fn decode_superblock(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
    let Some(bytes) = bytes.get(..SUPERBLOCK_BYTES) else {
        return Err(SuperblockError::Magic);
    };
    let Some(head) = bytes.first_chunk::<1024>() else {
        return Err(SuperblockError::Magic);
    };
    let raw: RawHeader = zerocopy::transmute!(*head);
    if raw.magic != MAGIC {
        return Err(SuperblockError::Magic);
    }
    let (stored, computed) = (raw.crc.get(), super::crc(&bytes[12..]));
    if stored != computed {
        return Err(SuperblockError::Crc { stored, computed });
    }
    if raw.version.get() != FORMAT_VERSION {
        return Err(SuperblockError::Version(raw.version.get()));
    }
    let (segment_bytes, data_start) = (raw.segment_bytes.get(), raw.data_start.get());
    let field = |field, value| Err(SuperblockError::Field { field, value });
    if !segment_bytes.is_power_of_two() || !((256 << 10)..=(64 << 20)).contains(&segment_bytes) {
        return field("segment_bytes", segment_bytes);
    }
    if data_start % 4096 != 0 || data_start < 4 * SUPERBLOCK_BYTES as u64 {
        return field("data_start", data_start);
    }
    if raw.segments.get() == 0 {
        return field("segments", 0);
    }
    // It is written again with every change of the table, and must stay what it is.
    let name_len = raw.name_len.get();
    let name = raw.name[..NAME_BYTES_MAX].get(..name_len as usize);
    let Some(name) = name.and_then(|name| str::from_utf8(name).ok()) else {
        return field("name_len", name_len.into());
    };
    let caches = <[CacheEntry]>::ref_from_bytes(&bytes[1024..]).map(<[CacheEntry]>::to_vec);
    let Ok(caches) = caches else {
        return field("caches", 0);
    };
    Ok(Superblock {
        seq: raw.seq.get(),
        uuid: raw.uuid,
        name: name.to_owned(),
        segment_bytes,
        data_start,
        segments: raw.segments.get(),
        caches,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME_AT: usize = std::mem::offset_of!(RawHeader, name);

    #[test]
    fn a_superblock_reads_back_and_a_flipped_bit_is_seen() {
        let mut caches = vec![CacheEntry::empty(); CACHES_MAX];
        caches[1].uuid = [7; 16];
        caches[1].set_name("cache0");
        let superblock = Superblock {
            seq: 4,
            uuid: [1; 16],
            name: "pool0".into(),
            segment_bytes: 2 << 20,
            data_start: 2 << 20,
            segments: 127,
            caches,
        };
        let mut bytes = encode_superblock(&superblock);
        let back = decode_superblock(&bytes).unwrap();
        assert_eq!(back, superblock);
        assert_eq!(back.caches[1].name(), "cache0");
        bytes[40_000] ^= 1;
        assert!(matches!(
            decode_superblock(&bytes),
            Err(SuperblockError::Crc { .. })
        ));
        bytes[0] ^= 1;
        assert_eq!(decode_superblock(&bytes), Err(SuperblockError::Magic));
    }

    /// Found by fuzzing: such a name was replaced by another one, and written so at the next change.
    #[test]
    fn a_name_that_is_no_text_is_refused() {
        let superblock = Superblock {
            seq: 1,
            uuid: [1; 16],
            name: "é".repeat(200),
            segment_bytes: 256 << 10,
            data_start: 256 << 10,
            segments: 10,
            caches: vec![CacheEntry::empty(); CACHES_MAX],
        };
        let good = encode_superblock(&superblock);
        let cut = decode_superblock(&good).unwrap();
        assert_eq!(cut.name, "é".repeat(127));
        for (at, value) in [(NAME_AT, 0xff), (NAME_AT - 4, 253), (NAME_AT - 3, 1)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let crc = crate::media::crc(&bytes[12..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            let refused = decode_superblock(&bytes);
            assert!(
                matches!(
                    refused,
                    Err(SuperblockError::Field {
                        field: "name_len",
                        ..
                    })
                ),
                "{refused:?}"
            );
        }
    }
}
