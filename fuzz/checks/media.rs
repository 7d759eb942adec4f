//! Every decoder of `media`: what stands there is refused, or means what encodes to the same bytes.
//!
//! An input picks a good encoding, changes some of its bytes, and says whether the CRC shall be made
//! right again, so that what is behind the CRC is reached.

use super::input::Input;
use pmcache::media::{
    BackingFlush, BackingSample, Boot, CACHES_MAX, CacheEntry, CleanStop, DurableMark, Generation,
    Incarnation, KEY_BYTES, KEYS_MAX, KSET_BYTES_MAX, KSET_HEADER_BYTES, Key, KsetHeader,
    LAST_BYTES, Last, LogStart, NAME_BYTES_MAX, Parsed, SLOT_BYTES, SUPERBLOCK_BYTES, SegmentInfo,
    SlotBody, SlotError, SlotKind, Superblock, Tail, WindowEnd, crc, decode_superblock,
    encode_kset, encode_last, encode_superblock, kset_bytes, open_slot, parse_kset, seal_slot,
};
use std::sync::LazyLock;
use zerocopy::{FromZeros, IntoBytes};

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() {
        kind @ 0..=13 => any_slot(kind, &mut input),
        14..=15 => superblock(&mut input),
        16..=31 => last(&mut input),
        32..=47 => raw(&mut input),
        count => kset(usize::from(count) - 47, &mut input),
    }
}

/// Changes `bytes` at places that the input names; then makes the CRC at `crc_at`, which covers as
/// many bytes as `len` says, right if the input wants it.
fn edit(bytes: &mut [u8], crc_at: usize, len: impl Fn(&[u8]) -> usize, input: &mut Input) {
    let reseal = input.u8() & 1 == 0;
    while !input.is_empty() {
        let at = usize::from(input.u16()) % bytes.len();
        let count = usize::from(input.u8() % 16);
        for (byte, value) in bytes[at..].iter_mut().zip(input.bytes(count)) {
            *byte = *value;
        }
    }
    if reseal {
        let crc = crc(&bytes[crc_at + 4..len(bytes)]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

const KINDS: [SlotKind; 14] = [
    SlotKind::SegmentInfo,
    SlotKind::Generation,
    SlotKind::LogStart,
    SlotKind::KeyTail,
    SlotKind::DirtyTail,
    SlotKind::Incarnation,
    SlotKind::WindowEnd,
    SlotKind::CleanStop,
    SlotKind::DurableMark,
    SlotKind::Boot,
    SlotKind::SampleFirst,
    SlotKind::SampleLast,
    SlotKind::SampleBlocks,
    SlotKind::BackingFlush,
];

fn any_slot(kind: u8, input: &mut Input) {
    let kind = KINDS[usize::from(kind)];
    match kind {
        SlotKind::SegmentInfo => slot::<SegmentInfo>(kind, input),
        SlotKind::Generation => slot::<Generation>(kind, input),
        SlotKind::LogStart => slot::<LogStart>(kind, input),
        SlotKind::KeyTail | SlotKind::DirtyTail => slot::<Tail>(kind, input),
        SlotKind::Incarnation => slot::<Incarnation>(kind, input),
        SlotKind::WindowEnd => slot::<WindowEnd>(kind, input),
        SlotKind::CleanStop => slot::<CleanStop>(kind, input),
        SlotKind::DurableMark => slot::<DurableMark>(kind, input),
        SlotKind::Boot => slot::<Boot>(kind, input),
        SlotKind::SampleFirst | SlotKind::SampleLast | SlotKind::SampleBlocks => {
            slot::<BackingSample>(kind, input);
        }
        SlotKind::BackingFlush => slot::<BackingFlush>(kind, input),
    }
}

fn slot<B: SlotBody + FromZeros>(kind: SlotKind, input: &mut Input) {
    let mut bytes = seal_slot(kind, 7, &B::new_zeroed());
    edit(&mut bytes, 0, <[u8]>::len, input);
    open_any::<B>(kind, &bytes);
}

fn open_any<B: SlotBody>(kind: SlotKind, bytes: &[u8; SLOT_BYTES]) {
    let computed = crc(&bytes[4..]);
    let is_sealed = bytes[..4] == computed.to_le_bytes();
    match open_slot::<B>(kind, bytes) {
        Ok((seq, body)) => assert_eq!(&seal_slot(kind, seq, &body), bytes),
        Err(SlotError::Crc { .. }) => assert!(!is_sealed),
        Err(SlotError::Kind { found, wanted }) => assert!(is_sealed && found != wanted),
        Err(SlotError::Unreadable) => panic!("a decoder reads no medium"),
    }
}

fn template() -> Superblock {
    let mut caches = vec![CacheEntry::empty(); CACHES_MAX];
    for (place, name) in [(0, "c0"), (5, "other")] {
        caches[place].uuid = [u8::try_from(place + 1).unwrap_or(1); 16];
        caches[place].set_name(name);
        caches[place].set_backing_name("disk0");
    }
    Superblock {
        seq: 3,
        uuid: [9; 16],
        name: "p0".into(),
        segment_bytes: 256 << 10,
        data_start: 256 << 10,
        segments: 10,
        caches,
    }
}

fn superblock(input: &mut Input) {
    static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| encode_superblock(&template()));
    let mut bytes = GOOD.clone();
    // The CRC covers what stands behind it only, not the magic.
    edit(&mut bytes, 8, <[u8]>::len, input);
    decode_any_superblock(&bytes);
}

fn decode_any_superblock(bytes: &[u8]) {
    let Ok(superblock) = decode_superblock(bytes) else {
        return;
    };
    assert!(superblock.segments > 0 && superblock.name.len() <= NAME_BYTES_MAX);
    assert_eq!(superblock.caches.len(), CACHES_MAX);
    for entry in &superblock.caches {
        // Names are shown, also those that are no UTF-8.
        let mut shown = *entry;
        shown.set_name(&entry.name());
        shown.set_backing_name(&entry.backing_name());
    }
    let again = encode_superblock(&superblock);
    assert_eq!(again.len(), SUPERBLOCK_BYTES);
    assert_eq!(decode_superblock(&again).as_ref(), Ok(&superblock));
}

fn header() -> KsetHeader {
    KsetHeader {
        incarnation: 1,
        salt: 0x5a17,
        sequence: 12,
        durable: 11,
        epoch: 2,
    }
}

fn last(input: &mut Input) {
    let next = Last {
        next_segment: 3,
        next_salt: 99,
    };
    let mut bytes = encode_last(&header(), next);
    edit(&mut bytes, 0, |_| LAST_BYTES, input);
    parse_any(&bytes);
}

fn kset(count: usize, input: &mut Input) {
    let count = count.min(KEYS_MAX);
    let cut = usize::from(input.u16());
    let keys: Vec<Key> = (0..count)
        .map(|number| {
            let mut key = Key::new_zeroed();
            key.offset.set(number as u64 * 4096);
            key.len.set(4096);
            key
        })
        .collect();
    let mut bytes = [0; KSET_BYTES_MAX];
    encode_kset(&header(), &keys, &mut bytes);
    let says = |bytes: &[u8]| {
        let count = bytes[4..8].try_into().map_or(0, u32::from_le_bytes);
        kset_bytes((count as usize).min(KEYS_MAX))
    };
    edit(&mut bytes, 0, says, input);
    parse_any(&bytes);
    // Cut short, it is refused.
    let cut = cut % says(&bytes);
    assert!(matches!(
        parse_kset(&bytes[..cut]),
        Err(_) | Ok(Parsed::Last(..))
    ));
}

fn parse_any(bytes: &[u8]) {
    match parse_kset(bytes) {
        Ok(Parsed::Last(header, last)) => {
            let again = encode_last(&header, last);
            // Padding is not kept.
            assert_eq!(again[4..56], bytes[4..56]);
            assert!(bytes.len() >= LAST_BYTES);
        }
        Ok(Parsed::Kset(kset)) => {
            let mut again = [0; KSET_BYTES_MAX];
            let len = encode_kset(&kset.header, kset.keys, &mut again);
            let end = KSET_HEADER_BYTES + kset.keys.len() * KEY_BYTES;
            assert_eq!(len, kset_bytes(kset.keys.len()));
            assert_eq!(again[4..end], bytes[4..end]);
            assert_eq!(kset.keys.as_bytes(), &bytes[KSET_HEADER_BYTES..end]);
            kset.keys.iter().for_each(key);
        }
        Err(_) => {}
    }
}

/// A known combination of flags says one thing about the data.
fn key(key: &Key) {
    use pmcache::media::KeyFlags as F;
    let flags = key.flags();
    if !flags.is_known() {
        return;
    }
    let natures = [F::CLEAN, F::ZERO, F::INVALID, F::BAD];
    let natures = natures.iter().filter(|nature| flags.has(**nature)).count();
    assert!(natures <= 1, "{flags:?}");
    let dirty = !flags.has(F::CLEAN) && !flags.has(F::INVALID) && !flags.has(F::BAD);
    assert_eq!(flags.is_dirty(), dirty);
}

/// Bytes as they come, to every decoder.
fn raw(input: &mut Input) {
    let bytes = input.rest();
    parse_any(bytes);
    decode_any_superblock(bytes);
    if let Some(slot) = bytes.first_chunk() {
        for kind in KINDS {
            open_any::<Tail>(kind, slot);
        }
    }
}
