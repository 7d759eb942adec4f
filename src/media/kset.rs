//! A kset: a header and up to 128 keys, the unit in which the log grows; and LAST, which leads from
//! one log segment to the next.

use super::key::{KEY_BYTES, Key};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most keys that a kset holds.
pub const KEYS_MAX: usize = 128;
/// Bytes of the header.
pub const KSET_HEADER_BYTES: usize = 48;
/// Every kset starts at a multiple of this and is padded to one.
pub const KSET_ALIGN: usize = 64;
/// Bytes of a full kset.
pub const KSET_BYTES_MAX: usize = kset_bytes(KEYS_MAX);
/// Bytes of a LAST.
pub const LAST_BYTES: usize = 64;

const FLAG_LAST: u32 = 1;

/// Bytes of a kset with `keys` keys, padding included.
#[must_use]
pub const fn kset_bytes(keys: usize) -> usize {
    (KSET_HEADER_BYTES + keys * KEY_BYTES).next_multiple_of(KSET_ALIGN)
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RawHeader {
    /// CRC-32C of everything behind it, padding included.
    crc: U32,
    /// Keys; in a LAST the next segment.
    count: U32,
    /// Bit 0: LAST.
    flags: U32,
    incarnation: U32,
    salt: U64,
    sequence: U64,
    durable: U64,
    epoch: U64,
}

const _: () = assert!(size_of::<RawHeader>() == KSET_HEADER_BYTES);

/// What a kset or LAST says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KsetHeader {
    /// The run of the service that wrote it.
    pub incarnation: u32,
    /// Its log segment's salt.
    pub salt: u64,
    /// Its place in the log.
    pub sequence: u64,
    /// The durable sequence when it was written.
    pub durable: u64,
    /// Its flush epoch.
    pub epoch: u64,
}

/// Where the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// Next log segment, of the pool.
    pub next_segment: u32,
    /// The salt that its START must show.
    pub next_salt: u64,
}

/// A kset whose CRC is right; its keys are still to be checked against the geometry.
#[derive(Clone, Copy, Debug)]
pub struct SealedKset<'a> {
    /// Its header.
    pub header: KsetHeader,
    /// Its keys, at least one.
    pub keys: &'a [Key],
}

/// What stands at a place of the log.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'a> {
    /// Keys.
    Kset(SealedKset<'a>),
    /// The end of this segment.
    Last(KsetHeader, Last),
}

/// Why bytes are not a kset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KsetError {
    /// Fewer bytes than it says it has.
    #[error("{available} bytes are too few for a kset of {needed}")]
    Short {
        /// Bytes that there are.
        available: usize,
        /// Bytes that it takes.
        needed: usize,
    },
    /// A count of 0 or above 128.
    #[error("key count {0} is not within 1..=128")]
    Count(u32),
    /// Unknown flags.
    #[error("unknown kset flags {0:#x}")]
    Flags(u32),
    /// The CRC does not fit.
    #[error("kset CRC is {stored:#010x}, its bytes give {computed:#010x}")]
    Crc {
        /// What stands there.
        stored: u32,
        /// What should.
        computed: u32,
    },
}

fn raw_header(header: &KsetHeader, count: u32, flags: u32) -> RawHeader {
    RawHeader {
        crc: U32::ZERO,
        count: U32::new(count),
        flags: U32::new(flags),
        incarnation: U32::new(header.incarnation),
        salt: U64::new(header.salt),
        sequence: U64::new(header.sequence),
        durable: U64::new(header.durable),
        epoch: U64::new(header.epoch),
    }
}

fn seal(bytes: &mut [u8]) {
    let crc = super::crc(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Writes a kset of `keys` (1 to 128) into `out` and returns its padded length.
///
/// # Panics
/// If the count is out of bounds: our own bug.
pub fn encode_kset(header: &KsetHeader, keys: &[Key], out: &mut [u8; KSET_BYTES_MAX]) -> usize {
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    assert!(
        (1..=KEYS_MAX).contains(&keys.len()),
        "a kset of {count} keys"
    );
    let len = kset_bytes(keys.len());
    out[..KSET_HEADER_BYTES].copy_from_slice(raw_header(header, count, 0).as_bytes());
    let keys_end = KSET_HEADER_BYTES + keys.len() * KEY_BYTES;
    out[KSET_HEADER_BYTES..keys_end].copy_from_slice(keys.as_bytes());
    out[keys_end..len].fill(0);
    seal(&mut out[..len]);
    len
}

/// The bytes of a LAST.
#[must_use]
pub fn encode_last(header: &KsetHeader, last: Last) -> [u8; LAST_BYTES] {
    let mut bytes = [0; LAST_BYTES];
    let raw = raw_header(header, last.next_segment, FLAG_LAST);
    bytes[..KSET_HEADER_BYTES].copy_from_slice(raw.as_bytes());
    bytes[KSET_HEADER_BYTES..KSET_HEADER_BYTES + 8].copy_from_slice(&last.next_salt.to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// What the header at the start of `bytes` claims. Nothing vouches for it: a kset of which only the
/// front can be read has no good CRC.
#[must_use]
pub fn claimed_header(bytes: &[u8]) -> Option<KsetHeader> {
    let head = bytes.first_chunk::<KSET_HEADER_BYTES>()?;
    let raw: RawHeader = zerocopy::transmute!(*head);
    Some(header_of(&raw))
}

fn header_of(raw: &RawHeader) -> KsetHeader {
    KsetHeader {
        incarnation: raw.incarnation.get(),
        salt: raw.salt.get(),
        sequence: raw.sequence.get(),
        durable: raw.durable.get(),
        epoch: raw.epoch.get(),
    }
}

/// Reads what stands at the start of `bytes`, which may be longer: up to [`KSET_BYTES_MAX`] are
/// looked at.
///
/// # Errors
/// [`KsetError`]: length, flags, count and CRC are checked, in that order.
pub fn parse_kset(bytes: &[u8]) -> Result<Parsed<'_>, KsetError> {
    let available = bytes.len();
    let Some(head) = bytes.first_chunk::<KSET_HEADER_BYTES>() else {
        return Err(KsetError::Short {
            available,
            needed: KSET_HEADER_BYTES,
        });
    };
    let raw: RawHeader = zerocopy::transmute!(*head);
    let (count, flags) = (raw.count.get(), raw.flags.get());
    let is_last = flags == FLAG_LAST;
    if flags & !FLAG_LAST != 0 {
        return Err(KsetError::Flags(flags));
    }
    let keys = count as usize;
    if !is_last && !(1..=KEYS_MAX).contains(&keys) {
        return Err(KsetError::Count(count));
    }
    let needed = if is_last {
        LAST_BYTES
    } else {
        kset_bytes(keys)
    };
    let Some(whole) = bytes.get(..needed) else {
        return Err(KsetError::Short { available, needed });
    };
    let (stored, computed) = (raw.crc.get(), super::crc(&whole[4..]));
    if stored != computed {
        return Err(KsetError::Crc { stored, computed });
    }
    let header = header_of(&raw);
    if is_last {
        let mut salt = [0; 8];
        salt.copy_from_slice(&whole[KSET_HEADER_BYTES..KSET_HEADER_BYTES + 8]);
        let last = Last {
            next_segment: count,
            next_salt: u64::from_le_bytes(salt),
        };
        return Ok(Parsed::Last(header, last));
    }
    let keys_end = KSET_HEADER_BYTES + keys * KEY_BYTES;
    match <[Key]>::ref_from_bytes(&whole[KSET_HEADER_BYTES..keys_end]) {
        Ok(keys) => Ok(Parsed::Kset(SealedKset { header, keys })),
        Err(_) => Err(KsetError::Short { available, needed }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> KsetHeader {
        KsetHeader {
            incarnation: 3,
            salt: 77,
            sequence: 9,
            durable: 8,
            epoch: 2,
        }
    }

    #[test]
    fn a_kset_of_every_size_reads_back_and_any_flipped_bit_is_seen() {
        let mut out = [0; KSET_BYTES_MAX];
        for count in 1..=KEYS_MAX {
            let keys = vec![
                Key {
                    offset: U64::new(4096),
                    len: U32::new(512),
                    flags: U32::new(0),
                    segment: U32::new(1),
                    segment_offset: U32::new(512),
                    generation: U64::new(5),
                    crc: U32::new(6),
                    spare: U32::ZERO,
                };
                count
            ];
            let len = encode_kset(&header(), &keys, &mut out);
            let Ok(Parsed::Kset(kset)) = parse_kset(&out[..len]) else {
                panic!("count {count}")
            };
            assert_eq!((kset.header, kset.keys), (header(), &keys[..]));
            let bit = (count * 7919) % (len * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_kset(&out[..len]).is_err(), "count {count}, bit {bit}");
            assert!(parse_kset(&out[..len - 1]).is_err());
        }
    }

    #[test]
    fn last_reads_back() {
        let last = Last {
            next_segment: 12,
            next_salt: 99,
        };
        let bytes = encode_last(&header(), last);
        let Ok(Parsed::Last(found, to)) = parse_kset(&bytes) else {
            panic!("not a LAST")
        };
        assert_eq!((found, to), (header(), last));
    }
}
