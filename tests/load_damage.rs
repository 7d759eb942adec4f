//! Loading a pool whose log was damaged: what the backing has is given up, what it lacks is refused,
//! and shown by a load for salvage that changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::pmem::{PersistenceWish, PmemBdev, PmemConfig};
use pmcache::bdev::{
    Bdev, Channel, Data, IoBuf, IoStatus, MallocBdev, MallocConfig, Op, Pmem, Request,
};
use pmcache::cache::{CacheError, CacheOptions, LoadWish, LogDamage, Pool, check_pool};
use pmcache::media::{
    DurableMark, KSET_ALIGN, KSET_BYTES_MAX, Parsed, SlotKind, crc, kset_bytes, parse_kset,
    seal_slot,
};
use pmcache::units::ByteRange;
use rig::{Rig, RigConfig};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerocopy::little_endian::U64;

const SEGMENT: usize = 256 << 10;
/// Bytes of a segment's control area.
const CONTROL: usize = 8192;
const SALVAGE: LoadWish = LoadWish {
    force: false,
    salvage: true,
};

fn open_file(path: &Path) -> Arc<dyn Pmem> {
    let config = PmemConfig {
        size: Some(40 * SEGMENT as u64),
        create_file: true,
        persistence: PersistenceWish::Volatile,
        ..PmemConfig::new("p0", path)
    };
    PmemBdev::open(config).unwrap().pmem().unwrap()
}

/// A pool in a file, its backing, and the bytes of it in the middle of its life.
struct Sample {
    dir: tempfile::TempDir,
    config: RigConfig,
    disk: Arc<dyn Bdev>,
    bytes: Vec<u8>,
}

/// A kset with one key.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: usize,
    sequence: u64,
    offset: u64,
}

fn payload(number: u64) -> Vec<u8> {
    vec![u8::try_from(number % 251 + 1).unwrap(); 4096]
}

/// The `number`-th block that is written.
fn place(number: u64) -> u64 {
    number * 8192
}

impl Sample {
    /// Writes `clean` blocks, each a kset of its own, writes them back, writes `dirty` more, and
    /// `staged` ones whose kset stays open; then the process dies.
    fn new(clean: u64, dirty: u64, staged: u64) -> Self {
        Self::of_blocks(4096, [clean, dirty, staged], 0)
    }

    /// As [`Sample::new`], with blocks of `len` bytes, and reactors that run for `rounds` at the end.
    fn of_blocks(len: usize, [clean, dirty, staged]: [u64; 3], rounds: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = RigConfig {
            lanes: 1,
            // Dirty data stay dirty until a flush.
            options: CacheOptions {
                writeback_delay_ms: 3_600_000,
                ..CacheOptions::default()
            },
            ..RigConfig::default()
        };
        let malloc = MallocConfig {
            name: "disk0".into(),
            uuid: uuid::Uuid::from_bytes([9; 16]),
            block_size: 512,
            blocks: (64 << 20) / 512,
        };
        let disk: Arc<dyn Bdev> = Arc::new(MallocBdev::new(malloc).unwrap());
        let pmem = open_file(&dir.path().join("pool.pmem"));
        let mut rig = Rig::new(&config, pmem, disk.clone(), dir.path());
        let mut channel = rig.open(0);
        for number in 0..clean + dirty {
            if number == clean {
                rig.flush_all();
            }
            rig.write(&mut *channel, place(number), &payload(number)[..len], true);
        }
        for number in clean + dirty..clean + dirty + staged {
            rig.write(&mut *channel, place(number), &payload(number)[..len], false);
        }
        (0..rounds).for_each(|_| rig.step());
        drop(channel);
        drop(rig);
        let mut sample = Self {
            dir,
            config,
            disk,
            bytes: Vec::new(),
        };
        sample.bytes = sample.now();
        sample
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("pool.pmem")
    }

    fn now(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    /// Everything that outlives the process, by name.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(self.dir.path()).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        paths
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    /// The ksets with keys, by their sequence.
    fn ksets(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for at in (0..self.bytes.len()).step_by(KSET_ALIGN) {
            let end = (at + KSET_BYTES_MAX).min(self.bytes.len());
            if let Ok(Parsed::Kset(kset)) = parse_kset(&self.bytes[at..end]) {
                found.push(Found {
                    at,
                    sequence: kset.header.sequence,
                    offset: kset.keys[0].offset.get(),
                });
            }
        }
        found.sort_by_key(|kset| kset.sequence);
        found
    }

    fn kset_of(&self, number: u64) -> Found {
        let is_it = |kset: &&Found| kset.offset == place(number);
        *self.ksets().iter().find(is_it).unwrap()
    }

    /// Turns a bit at each of these places.
    fn flip(&mut self, places: &[usize]) {
        for &at in places {
            self.bytes[at] ^= 0x10;
        }
        fs::write(self.path(), &self.bytes).unwrap();
    }

    /// A new process over the same media; nothing is loaded.
    fn rig(&self) -> Rig {
        let pool = Pool::open(open_file(&self.path())).unwrap();
        Rig::over(&self.config, pool, self.disk.clone(), self.dir.path())
    }
}

fn status_of(rig: &mut Rig, channel: &mut dyn Channel, op: Op, at: u64) -> IoStatus {
    let range = ByteRange::between(at, at + 4096);
    let data = match op {
        Op::Write { .. } => Data::Buf(IoBuf::zeroed(4096)),
        _ => Data::None,
    };
    let request = Request {
        tag: 9,
        op,
        range,
        data,
    };
    rig.run(channel, 0, request).status
}

fn assert_blocks(rig: &mut Rig, numbers: impl Iterator<Item = u64>) {
    let mut channel = rig.open(0);
    for number in numbers {
        let read = rig.read(&mut *channel, place(number), 4096);
        assert!(read == payload(number), "block {number}");
    }
}

fn hole_at(refused: Result<impl Sized, CacheError>) -> (u32, u64) {
    match refused {
        Err(CacheError::LogDamaged {
            offset,
            reason: LogDamage::Hole { expected, .. },
            ..
        }) => (offset, expected),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn damage_before_the_dirty_tail_loses_clean_cache_only() {
    // So many that data and log take several segments.
    let mut sample = Sample::new(300, 10, 3);
    let bad = sample.kset_of(50);
    sample.flip(&[bad.at + 50]);
    let mut rig = sample.rig();
    rig.load();
    let report = rig.cache.as_ref().unwrap().replay_report();
    let lost = report.lost_clean.unwrap();
    assert_eq!(lost.at.sequence, bad.sequence);
    assert_eq!(lost.at.segment.0 as usize, bad.at / SEGMENT - 1);
    assert_eq!((lost.ksets, lost.keys, lost.bytes), (300, 299, 299 * 4096));
    assert_eq!(report.dirty_bytes, 13 * 4096);
    assert_eq!(
        (report.ksets, report.staged_keys, lost.bad_keys),
        (10, 3, 0)
    );
    let status = rig.cache.as_ref().unwrap().status();
    assert_eq!(status.key_tail, status.dirty_tail);
    // What only lost ksets spoke of is free; the rest is one of log, and the last two of data.
    let used = status.segments_total - status.segments_free - status.segments_reserve;
    assert_eq!(used, 3, "{status:?}");
    assert_blocks(&mut rig, 0..313);
    // A pool that works: it goes round several times, and gives up nothing that is in use.
    let mut channel = rig.open(0);
    let mut bytes = payload(0);
    for round in 0..12_000_u64 {
        let number = 1000 + round % 1500;
        bytes[0] = u8::try_from(round % 256).unwrap();
        rig.write(&mut *channel, place(number), &bytes, false);
    }
    drop(channel);
    assert_blocks(&mut rig, 0..313);
    rig.flush_all();
    assert_blocks(&mut rig, 0..313);
    rig.stop();
    drop(rig);
    assert!(check_pool(&sample.path()).unwrap().is_clean());
    let mut rig = sample.rig();
    rig.load();
    assert_eq!(rig.cache.as_ref().unwrap().replay_report().lost_clean, None);
    assert_blocks(&mut rig, 0..313);
}

/// The key tail is durable at the dirty tail before anything is reused: also a load that dies right
/// behind this one finds its way.
#[test]
fn a_load_past_damage_leaves_a_log_that_is_whole() {
    let mut sample = Sample::new(100, 5, 0);
    let bad = sample.kset_of(50);
    sample.flip(&[bad.at + 50]);
    let mut rig = sample.rig();
    rig.load();
    drop(rig);
    let report = check_pool(&sample.path()).unwrap();
    assert!(report.is_clean(), "{:?}", report.damages);
    let mut rig = sample.rig();
    rig.load();
    assert_eq!(rig.cache.as_ref().unwrap().replay_report().lost_clean, None);
    assert_blocks(&mut rig, 0..105);
}

#[test]
fn a_lost_start_before_the_dirty_tail_loses_clean_cache_only() {
    // The log goes on to a second segment, which the dirty tail is in.
    let per_segment = ((SEGMENT - CONTROL) / kset_bytes(1)) as u64;
    let mut sample = Sample::new(per_segment + 20, 5, 0);
    let first = sample.ksets()[0];
    let start = (first.at / SEGMENT) * SEGMENT + 128;
    sample.flip(&[start + 20, start + 4096 + 20]);
    let mut rig = sample.rig();
    rig.load();
    let report = rig.cache.as_ref().unwrap().replay_report();
    let lost = report.lost_clean.unwrap();
    assert!(lost.at.reason.contains("START"), "{lost:?}");
    assert_blocks(&mut rig, 0..per_segment + 25);
}

#[test]
fn damage_behind_the_dirty_tail_is_refused_and_salvaged_without_a_change() {
    let mut sample = Sample::new(20, 30, 3);
    let bad = sample.kset_of(40);
    sample.flip(&[bad.at + 50]);
    let before = sample.files();
    let mut rig = sample.rig();
    let offset = u32::try_from(bad.at % SEGMENT - CONTROL).unwrap();
    let refused = rig.try_load(LoadWish::default());
    assert_eq!(hole_at(refused), (offset, bad.sequence));
    assert!(sample.files() == before, "a refused load changes nothing");

    let cache = rig.try_load(SALVAGE).unwrap();
    let report = cache.replay_report();
    let missing = report.missing.unwrap();
    assert_eq!(missing.at.sequence, bad.sequence);
    assert_eq!(missing.at.offset, offset);
    assert_eq!((missing.ksets, missing.keys), (9, 9 + 3));
    assert_eq!(missing.dirty_bytes, 12 * 4096);
    let lacks = (41..53).map(|n| ByteRange::between(place(n), place(n) + 4096));
    assert_eq!(missing.ranges, lacks.collect::<Vec<_>>());
    assert!(missing.proof >= bad.sequence);
    assert_eq!(report.dirty_bytes, 20 * 4096);
    assert_eq!(cache.status().state, "read_only");
    assert!(cache.info().read_only && cache.is_salvaged());
    assert!(cache.set_options(cache.options()).is_err());

    // What stands before the bad place, and of the rest what was there before it: zeroes.
    assert_blocks(&mut rig, 0..40);
    let mut channel = rig.open(0);
    for number in 40..53 {
        let read = rig.read(&mut *channel, place(number), 4096);
        assert!(read == [0; 4096], "block {number}");
    }
    for op in [
        Op::Write { fua: false },
        Op::Discard,
        Op::WriteZeroes {
            may_unmap: false,
            fua: true,
        },
    ] {
        let status = status_of(&mut rig, &mut *channel, op, 0);
        assert_eq!(status, IoStatus::ReadOnly, "{op:?}");
    }
    rig.act(&mut *channel, Op::Flush, ByteRange::default());
    cache.flush_start();
    // Long enough for writeback, GC and ksets to grow old, if there were any.
    for _ in 0..300_000 {
        rig.step();
    }
    drop(channel);
    drop(cache);
    rig.stop();
    drop(rig);
    assert!(sample.files() == before, "salvage changes nothing");
}

#[test]
fn salvage_of_a_whole_cache_shows_all_of_it_and_leaves_it_as_it_was() {
    let sample = Sample::new(20, 30, 5);
    let before = sample.files();
    let mut rig = sample.rig();
    let cache = rig.try_load(SALVAGE).unwrap();
    let report = cache.replay_report();
    assert_eq!((report.missing, report.lost_clean), (None, None));
    assert_eq!((report.ksets, report.staged_keys), (50, 5));
    assert_blocks(&mut rig, 0..55);
    drop(cache);
    rig.stop();
    drop(rig);
    assert!(sample.files() == before, "salvage changes nothing");
    let mut rig = sample.rig();
    rig.load();
    assert_eq!(rig.cache.as_ref().unwrap().replay_report().staged_keys, 5);
    assert_blocks(&mut rig, 0..55);
}

#[test]
fn salvage_past_damage_before_the_dirty_tail_shows_all_of_it() {
    let mut sample = Sample::new(20, 30, 5);
    let bad = sample.kset_of(3);
    sample.flip(&[bad.at + 50]);
    let before = sample.files();
    let mut rig = sample.rig();
    let cache = rig.try_load(SALVAGE).unwrap();
    let report = cache.replay_report();
    assert!(report.missing.is_none() && report.lost_clean.is_some());
    assert_blocks(&mut rig, 0..55);
    drop(cache);
    rig.stop();
    drop(rig);
    assert!(sample.files() == before, "salvage changes nothing");
}

/// All that stands behind the bad place is unreadable. A START that was written when the log was durable
/// beyond it tells.
#[test]
fn a_start_that_was_written_later_proves_that_ksets_are_missing() {
    let per_segment = ((SEGMENT - CONTROL) / kset_bytes(1)) as u64;
    // Small ones, so that nothing must be written back; and GC gets ready what the reserve lacks.
    let mut sample = Sample::of_blocks(512, [0, per_segment + 20, 0], 20);
    let ksets = sample.ksets();
    let bad = ksets[100];
    let behind = ksets.iter().filter(|kset| kset.sequence >= bad.sequence);
    let mut places: Vec<usize> = behind.map(|kset| kset.at + 50).collect();
    // Not in the control areas, where a slot looks much like one.
    let is_data = |at: &usize| *at >= SEGMENT && at % SEGMENT >= CONTROL;
    let all = (0..sample.bytes.len()).step_by(KSET_ALIGN);
    for at in all.filter(is_data) {
        if let Ok(Parsed::Last(..)) = parse_kset(&sample.bytes[at..(at + 64)]) {
            places.push(at + 50);
        }
    }
    // The mark that a quiet cache leaves, as if it had never been quiet.
    let mark = DurableMark {
        sequence: U64::ZERO,
        spare: [0; 40],
    };
    let at = (ksets[0].at / SEGMENT) * SEGMENT + 576;
    for at in [at, at + 4096] {
        let slot = seal_slot(SlotKind::DurableMark, 1, &mark);
        sample.bytes[at..at + 64].copy_from_slice(&slot);
    }
    sample.flip(&places);
    let mut rig = sample.rig();
    let refused = rig.try_load(LoadWish::default());
    assert_eq!(hole_at(refused).1, bad.sequence);
}

/// A torn tail that nothing proves stays the end of the log.
#[test]
fn the_last_kset_may_be_torn() {
    let mut sample = Sample::new(5, 5, 0);
    let last = *sample.ksets().last().unwrap();
    sample.flip(&[last.at + 50]);
    let mut rig = sample.rig();
    rig.load();
    let report = rig.cache.as_ref().unwrap().replay_report();
    assert_eq!((report.lost_clean, report.missing), (None, None));
    assert_eq!(report.ksets, 9);
}

/// Two slots stand for each item of control; the newer one may be lost, and must not take the ksets of
/// its run along unseen.
#[test]
fn no_damaged_line_of_control_loses_data_unseen() {
    const LINE: usize = 64;
    const CONTROL_BYTES: usize = 8192;
    let mut sample = Sample::new(3, 5, 2);
    // A second run, so that a control item that goes back tells of the first.
    let mut rig = sample.rig();
    rig.load();
    let mut channel = rig.open(0);
    for number in 10..14 {
        rig.write(&mut *channel, place(number), &payload(number), true);
    }
    drop(channel);
    drop(rig);
    sample.bytes = sample.now();
    let files = sample.files();
    let first = sample.kset_of(0).at / SEGMENT * SEGMENT;
    let (mut whole, mut refused) = (0, 0);
    for line in 0..CONTROL_BYTES / LINE {
        for (path, bytes) in &files {
            fs::write(path, bytes).unwrap();
        }
        let at = first + line * LINE + 20;
        sample.flip(&[at]);
        let loaded = {
            let rig = sample.rig();
            let disk = sample.disk.clone();
            rig.pool
                .load_cache("c0", disk, &rig.runtime, false)
                .map(drop)
        };
        match loaded {
            Err(_) => refused += 1,
            Ok(()) => {
                for (path, bytes) in &files {
                    fs::write(path, bytes).unwrap();
                }
                sample.flip(&[]);
                let mut rig = sample.rig();
                rig.load();
                assert_blocks(&mut rig, 0..14);
                whole += 1;
            }
        }
        sample.flip(&[at]);
    }
    // What may not go back stands in both slots.
    assert_eq!((refused, whole), (0, CONTROL_BYTES / LINE));
}

/// A run that the control has lost, with a single kset: none behind it proves that it was durable, but it
/// says itself which run it is of.
#[test]
fn a_kset_of_a_run_that_control_has_lost_is_not_taken_for_a_leftover() {
    let mut sample = Sample::new(3, 5, 0);
    let mut rig = sample.rig();
    rig.load();
    let mut channel = rig.open(0);
    rig.write(&mut *channel, place(8), &payload(8), true);
    drop(channel);
    drop(rig);
    sample.bytes = sample.now();
    let first = sample.kset_of(0).at / SEGMENT * SEGMENT;
    // As if the run had been cut off before its number stood in both slots.
    let at = first + 384;
    let seq = u64::from_le_bytes(sample.bytes[at + 8..at + 16].try_into().unwrap());
    let (older, newer) = if seq % 2 == 0 {
        (at, at + 4096)
    } else {
        (at + 4096, at)
    };
    let body = &mut sample.bytes[older + 16..older + 64];
    let number = u32::from_le_bytes(body[..4].try_into().unwrap()) - 1;
    body[..4].copy_from_slice(&number.to_le_bytes());
    body[8..16].copy_from_slice(&1_u64.to_le_bytes());
    let crc = crc(&sample.bytes[older + 4..older + 64]);
    sample.bytes[older..older + 4].copy_from_slice(&crc.to_le_bytes());
    // What else tells how far the log went: the mark of a quiet cache.
    let mark = DurableMark {
        sequence: U64::ZERO,
        spare: [0; 40],
    };
    let mut outcomes = Vec::new();
    for lost in [older, newer] {
        for at in [first + 576, first + 576 + 4096] {
            let slot = seal_slot(SlotKind::DurableMark, 1, &mark);
            sample.bytes[at..at + 64].copy_from_slice(&slot);
        }
        sample.flip(&[lost + 20]);
        let files = sample.files();
        let mut rig = sample.rig();
        match rig.try_load(LoadWish::default()) {
            Ok(_) => {
                assert_blocks(&mut rig, 0..9);
                outcomes.push("whole");
            }
            Err(CacheError::LogDamaged {
                reason: LogDamage::Incarnation { current, found },
                ..
            }) => {
                assert_eq!(found, current + 1);
                assert!(sample.files() == files, "a refused load changes nothing");
                outcomes.push("refused");
            }
            Err(other) => panic!("{other}"),
        }
        drop(rig);
        sample.flip(&[lost + 20]);
    }
    assert_eq!(outcomes, ["whole", "refused"]);
}
