//! The bytes of every struct on media, frozen; and the tables of `docs/format.md` against the structs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use pmcache::media::{
    BackingFlush, BackingSample, Boot, CACHES_MAX, CacheEntry, CleanStop, DurableMark, Generation,
    Incarnation, KSET_BYTES_MAX, Key, KeyFlags, KsetHeader, Last, LogStart, Parsed, SegmentInfo,
    SlotBody, SlotKind, Superblock, Tail, WindowEnd, decode_superblock, encode_kset, encode_last,
    encode_superblock, open_slot, parse_kset, seal_slot,
};
use std::fmt::Debug;
use std::fs;
use std::mem::offset_of;
use std::path::Path;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// The golden bytes of `name`, which must be `encoded`. Written instead if that was asked for.
fn golden(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = Path::new("tests/golden").join(format!("{name}.bin"));
    if std::env::var("PMCACHE_GOLDEN").is_ok_and(|what| what == "write") {
        fs::write(&path, encoded).unwrap();
    }
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes == encoded, "{name} encodes to other bytes");
    bytes
}

fn golden_slot<B: SlotBody + Debug + PartialEq>(name: &str, kind: SlotKind, seq: u64, body: B) {
    let bytes = golden(name, &seal_slot(kind, seq, &body));
    let decoded = open_slot::<B>(kind, bytes[..].try_into().unwrap());
    assert_eq!(decoded, Ok((seq, body)));
}

/// 16 bytes that rise from `first`.
fn id(first: u8) -> [u8; 16] {
    std::array::from_fn(|i| first + u8::try_from(i).unwrap())
}

fn entry() -> CacheEntry {
    let mut entry = CacheEntry::empty();
    entry.uuid = id(0x20);
    entry.backing_uuid = id(0x30);
    entry.backing_bytes = U64::new(0x0102_0304_0506_0708);
    let words = [
        &mut entry.first_segment,
        &mut entry.segments,
        &mut entry.lanes,
        &mut entry.block_bytes,
        &mut entry.mode,
        &mut entry.durability,
        &mut entry.writeback_order,
        &mut entry.checks,
        &mut entry.gc_percent,
        &mut entry.kset_flush_ms,
        &mut entry.writeback_depth,
        &mut entry.writeback_rate_mbps,
        &mut entry.writeback_delay_ms,
        &mut entry.writeback_lag_s,
        &mut entry.dirty_low_percent,
        &mut entry.dirty_high_percent,
        &mut entry.no_space_timeout_s,
    ];
    for (number, word) in (0x4000_0001..).zip(words) {
        *word = U32::new(number);
    }
    entry.resizes = U64::new(0x4142_4344_4546_4748);
    entry.seq_cutoff_policy = U32::new(0x5000_0001);
    entry.seq_cutoff_kib = U32::new(0x5000_0002);
    entry.admission = U32::new(0x5000_0003);
    entry.bypassed = U32::new(0x5000_0004);
    entry.set_name("cache0");
    entry.set_backing_name("disk0");
    entry
}

fn keys() -> [Key; 3] {
    let key = |number: u64, flags: KeyFlags| Key {
        offset: U64::new(number << 32 | 0x1200),
        len: U32::new(0x0a00),
        flags: U32::new(flags.0),
        segment: U32::new(0x51),
        segment_offset: U32::new(0x0003_0e00),
        generation: U64::new(0x6162_6364_6566_6768),
        crc: U32::new(0x7172_7374),
        spare: U32::ZERO,
    };
    [
        key(1, KeyFlags::DIRTY),
        key(2, KeyFlags::CLEAN),
        key(3, KeyFlags::ZERO.with(KeyFlags::UNMAP)),
    ]
}

fn header() -> KsetHeader {
    KsetHeader {
        incarnation: 0x8182_8384,
        salt: 0x9192_9394_9596_9798,
        sequence: 0xa1a2_a3a4_a5a6_a7a8,
        durable: 0xb1b2_b3b4_b5b6_b7b8,
        epoch: 0xc1c2_c3c4_c5c6_c7c8,
    }
}

#[test]
fn superblock_and_cache_entry_keep_their_bytes() {
    let bytes = golden("cache_entry", entry().as_bytes());
    assert_eq!(CacheEntry::read_from_bytes(&bytes).unwrap(), entry());

    let mut caches = vec![CacheEntry::empty(); CACHES_MAX];
    caches[0] = entry();
    caches[CACHES_MAX - 1] = entry();
    let superblock = Superblock {
        seq: 0x1112_1314_1516_1718,
        uuid: id(0x10),
        name: "pool0".into(),
        segment_bytes: 2 << 20,
        data_start: 2 << 20,
        segments: 0x0001_0203,
        caches,
    };
    let bytes = golden("superblock", &encode_superblock(&superblock));
    assert_eq!(decode_superblock(&bytes).unwrap(), superblock);
}

#[test]
fn slots_of_segments_keep_their_bytes() {
    let body = SegmentInfo {
        cache: id(0x20),
        segment: U32::new(0x51),
        place: U32::new(0x52),
        flags: U32::new(1),
        joined: U64::new(0x5152_5354_5556_5758),
        left: U64::new(0x5961_5a62_5b63_5c64),
        spare: [0; 4],
    };
    golden_slot("segment_info", SlotKind::SegmentInfo, 3, body);
    let body = Generation {
        segment: U32::new(0x51),
        spare_before: U32::ZERO,
        generation: U64::new(0x6162_6364_6566_6768),
        spare: [0; 32],
    };
    golden_slot("generation", SlotKind::Generation, u64::MAX, body);
    let body = LogStart {
        cache: id(0x20),
        segment: U32::new(0x51),
        incarnation: U32::new(0x8182_8384),
        sequence: U64::new(0xa1a2_a3a4_a5a6_a7a8),
        salt: U64::new(0x9192_9394_9596_9798),
        spare: [0; 8],
    };
    golden_slot("log_start", SlotKind::LogStart, 5, body);
}

#[test]
fn slots_of_caches_keep_their_bytes() {
    let tail = Tail {
        segment: U32::new(0x51),
        offset: U32::new(0x0003_0e40),
        sequence: U64::new(0x21a2_a3a4_a5a6_a7a8),
        epoch: U64::new(0xc1c2_c3c4_c5c6_c7c8),
        spare: [0; 24],
    };
    golden_slot("key_tail", SlotKind::KeyTail, 6, tail);
    golden_slot("dirty_tail", SlotKind::DirtyTail, 7, tail);
    let body = Incarnation {
        incarnation: U32::new(0x8182_8384),
        spare_before: U32::ZERO,
        first_sequence: U64::new(0xa1a2_a3a4_a5a6_a7a8),
        clean_until: U64::new(0xb1b2_b3b4_b5b6_b7b8),
        written_back_until: U64::new(0xc1c2_c3c4_c5c6_c7c8),
        spare: [0; 16],
    };
    golden_slot("incarnation", SlotKind::Incarnation, 8, body);
    let sequence = U64::new(0xa1a2_a3a4_a5a6_a7a8);
    let spare = [0; 40];
    let body = WindowEnd { sequence, spare };
    golden_slot("window_end", SlotKind::WindowEnd, 9, body);
    let body = DurableMark { sequence, spare };
    golden_slot("durable_mark", SlotKind::DurableMark, 10, body);
    let body = CleanStop {
        clean: U32::new(1),
        sampled: U32::new(1),
        final_sequence: sequence,
        spare: [0; 32],
    };
    golden_slot("clean_stop", SlotKind::CleanStop, 11, body);
    let body = BackingSample {
        counted: std::array::from_fn(|i| 0x60 + u8::try_from(i).unwrap()),
        crc: U32::new(0x7172_7374),
        spare: U32::ZERO,
        final_sequence: sequence,
    };
    golden_slot("sample_first", SlotKind::SampleFirst, 13, body);
    golden_slot("sample_last", SlotKind::SampleLast, 14, body);
    golden_slot("sample_blocks", SlotKind::SampleBlocks, 15, body);
    let body = Boot {
        boot_id: id(0x40),
        spare: [0; 32],
    };
    golden_slot("boot", SlotKind::Boot, 12, body);
    let body = BackingFlush {
        failed: U32::new(1),
        spare: [0; 44],
    };
    golden_slot("backing_flush", SlotKind::BackingFlush, 16, body);
}

#[test]
fn log_entries_keep_their_bytes() {
    let bytes = golden("key", keys()[0].as_bytes());
    assert_eq!(Key::read_from_bytes(&bytes).unwrap(), keys()[0]);

    let mut out = [0xff; KSET_BYTES_MAX];
    let len = encode_kset(&header(), &keys(), &mut out);
    let bytes = golden("kset", &out[..len]);
    let Ok(Parsed::Kset(kset)) = parse_kset(&bytes) else {
        panic!("no kset");
    };
    assert_eq!((kset.header, kset.keys), (header(), &keys()[..]));

    let last = Last {
        next_segment: 0x53,
        next_salt: 0xd1d2_d3d4_d5d6_d7d8,
    };
    let bytes = golden("last", &encode_last(&header(), last));
    let Ok(Parsed::Last(found, to)) = parse_kset(&bytes) else {
        panic!("no LAST");
    };
    assert_eq!((found, to), (header(), last));
}

/// A field: its name, where it is, and its size.
type Field = (&'static str, usize, usize);

fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layout {
    ($name:ident: $($field:ident)*) => {
        (stringify!($name), vec![$((
            stringify!($field),
            offset_of!($name, $field),
            size_of_field(|s: &$name| &s.$field),
        )),*])
    };
}

/// The rows of the first table behind the heading of `name` that begin with two numbers.
fn documented(text: &str, name: &str) -> Vec<(String, usize, usize)> {
    let heading = |line: &&str| {
        line.strip_prefix("### ")
            .is_some_and(|title| title.split([':', ' ']).next() == Some(name))
    };
    let lines = text.lines().skip_while(|line| !heading(line)).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('#'));
    let rows = lines.skip_while(|line| !line.starts_with("| offset"));
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let (offset, size) = (cells.next()?.parse().ok()?, cells.next()?.parse().ok()?);
        Some((cells.next()?.to_owned(), offset, size))
    })
    .collect()
}

#[test]
fn the_documented_tables_are_those_of_the_structs() {
    let text = fs::read_to_string("docs/format.md").unwrap();
    let whole: Vec<(&str, Vec<Field>)> = vec![
        layout!(CacheEntry: uuid backing_uuid backing_bytes first_segment segments lanes block_bytes
            mode durability writeback_order checks gc_percent kset_flush_ms writeback_depth
            writeback_rate_mbps writeback_delay_ms writeback_lag_s dirty_low_percent
            dirty_high_percent no_space_timeout_s name_len backing_name_len name backing_name resizes
            seq_cutoff_policy seq_cutoff_kib admission bypassed spare),
        layout!(Key: offset len flags segment segment_offset generation crc spare),
    ];
    let bodies: Vec<(&str, Vec<Field>)> = vec![
        layout!(SegmentInfo: cache segment place flags joined left spare),
        layout!(Generation: segment spare_before generation spare),
        layout!(LogStart: cache segment incarnation sequence salt spare),
        layout!(Tail: segment offset sequence epoch spare),
        layout!(Incarnation: incarnation spare_before first_sequence clean_until written_back_until
            spare),
        layout!(WindowEnd: sequence spare),
        layout!(CleanStop: clean sampled final_sequence spare),
        layout!(BackingSample: counted crc spare final_sequence),
        layout!(DurableMark: sequence spare),
        layout!(Boot: boot_id spare),
        layout!(BackingFlush: failed spare),
    ];
    let whole = whole.into_iter().map(|layout| (0, layout));
    let bodies = bodies.into_iter().map(|layout| (16, layout));
    for (start, (name, fields)) in whole.chain(bodies) {
        let fields = fields.into_iter();
        let declared: Vec<_> = fields
            .map(|(field, at, size)| (field.to_owned(), start + at, size))
            .collect();
        assert_eq!(documented(&text, name), declared, "{name}");
    }
}
