//! `check`: what it finds in pools that were damaged on purpose, and that it changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::pmem::{PersistenceWish, PmemBdev, PmemConfig};
use pmcache::bdev::{Bdev, MallocBdev, MallocConfig, Op, Pmem};
use pmcache::cache::{CacheError, CheckReport, Finding, FindingKind, LostRange, Pool, check_pool};
use pmcache::media::{
    KSET_ALIGN, KSET_BYTES_MAX, Parsed, SUPERBLOCK_BYTES, kset_bytes, parse_kset,
};
use pmcache::units::ByteRange;
use proptest::prelude::*;
use proptest::sample::Index;
use rig::{Rig, RigConfig};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};

const SEGMENT: usize = 256 << 10;
/// Bytes of a segment's control area.
const CONTROL: usize = 8192;
/// Writes of the pool that [`build`] makes: 4 KiB each, every one a kset of its own.
const WRITES: u64 = 20;

/// A pool in a file, in a directory that goes away with it.
struct Sample {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
}

/// The first key of a kset, and where the kset stands.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: usize,
    len: usize,
    sequence: u64,
    offset: u64,
    data_at: usize,
}

fn open_file(path: &Path) -> Arc<dyn Pmem> {
    let config = PmemConfig {
        size: Some(40 * SEGMENT as u64),
        create_file: true,
        persistence: PersistenceWish::Volatile,
        ..PmemConfig::new("p0", path)
    };
    PmemBdev::open(config).unwrap().pmem().unwrap()
}

fn disk() -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: "disk0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: (64 << 20) / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

/// Writes one-key ksets until the log has gone on to a second segment.
fn build_with_last() -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool.pmem");
    let config = RigConfig {
        lanes: 1,
        ..RigConfig::default()
    };
    let mut rig = Rig::new(&config, open_file(&path), disk(), dir.path());
    let mut channel = rig.open(0);
    let per_segment = ((SEGMENT - CONTROL) / kset_bytes(1)) as u64;
    for number in 0..per_segment + 20 {
        rig.write(&mut *channel, number * 1024, &[7; 512], true);
    }
    drop(channel);
    drop(rig);
    let bytes = fs::read(&path).unwrap();
    Sample { dir, bytes }
}

/// Writes as many ksets as [`WRITES`], the first half of which are written back; stops or dies.
fn build(clean_stop: bool) -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool.pmem");
    let mut rig = Rig::new(&RigConfig::default(), open_file(&path), disk(), dir.path());
    let mut channel = rig.open(0);
    for number in 0..WRITES {
        if number == WRITES / 2 {
            rig.flush_all();
        }
        let bytes = vec![u8::try_from(number + 1).unwrap(); 4096];
        rig.write(&mut *channel, number * 8192, &bytes, true);
    }
    rig.act(&mut *channel, Op::Flush, ByteRange::default());
    drop(channel);
    if clean_stop {
        rig.stop();
    }
    drop(rig);
    let bytes = fs::read(&path).unwrap();
    Sample { dir, bytes }
}

impl Sample {
    fn path(&self) -> PathBuf {
        self.dir.path().join("pool.pmem")
    }

    /// Puts `bytes` in place of the pool, checks it, and makes sure that nothing has changed.
    fn check(&self, bytes: &[u8]) -> CheckReport {
        fs::write(self.path(), bytes).unwrap();
        let report = check_pool(&self.path());
        assert!(
            fs::read(self.path()).unwrap() == bytes,
            "a byte has changed"
        );
        report.unwrap()
    }

    /// Why a pool of these bytes is not loaded.
    fn load(&self, bytes: &[u8]) -> String {
        fs::write(self.path(), bytes).unwrap();
        let pool = Pool::open(open_file(&self.path())).unwrap();
        let run_dir = tempfile::tempdir().unwrap();
        let rig = Rig::over(&RigConfig::default(), pool, disk(), run_dir.path());
        let refused = rig.pool.load_cache("c0", disk(), &rig.runtime, false);
        refused.map_or_else(|error| error.to_string(), |_| "it was loaded".into())
    }

    /// As [`Sample::check`], with one bit turned at each of these places.
    fn check_flipped(&self, places: &[usize]) -> CheckReport {
        let mut bytes = self.bytes.clone();
        for &at in places {
            bytes[at] ^= 0x10;
        }
        self.check(&bytes)
    }

    /// The ksets with keys, in the order of their sequences.
    fn ksets(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for at in (0..self.bytes.len()).step_by(KSET_ALIGN) {
            let end = (at + KSET_BYTES_MAX).min(self.bytes.len());
            let Ok(Parsed::Kset(kset)) = parse_kset(&self.bytes[at..end]) else {
                continue;
            };
            let key = kset.keys[0];
            let segment = data_of(key.segment.get());
            found.push(Found {
                at,
                len: kset_bytes(kset.keys.len()),
                sequence: kset.header.sequence,
                offset: key.offset.get(),
                data_at: segment + key.segment_offset.get() as usize,
            });
        }
        found.sort_by_key(|kset| kset.sequence);
        assert!(found.len() as u64 >= WRITES, "{found:?}");
        found
    }

    fn kset_of(&self, number: u64) -> Found {
        let is_it = |kset: &&Found| kset.offset == number * 8192;
        *self.ksets().iter().find(is_it).unwrap()
    }
}

/// Where a segment's control area begins; the pool's data start at 256 KiB.
fn control_of(segment: u32) -> usize {
    SEGMENT + segment as usize * SEGMENT
}

fn data_of(segment: u32) -> usize {
    control_of(segment) + CONTROL
}

/// Asserts that there is one damage, of this kind and place.
fn assert_one(report: &CheckReport, kind: FindingKind, at: usize) {
    let found: Vec<_> = report.damages.iter().map(|d| (d.kind, d.at)).collect();
    assert_eq!(found, [(kind, at as u64)], "{:#?}", report.damages);
    assert!(!report.is_clean());
}

#[test]
fn a_pool_that_stopped_is_clean_and_its_figures_are_right() {
    let sample = build(true);
    let report = sample.check(&sample.bytes);
    assert!(report.is_clean(), "{:#?}", report.damages);
    assert_eq!(report.warnings, []);
    let pool = report.pool.unwrap();
    assert_eq!((pool.segments, pool.segments_free), (39, 9));
    let cache = &report.caches[0];
    assert_eq!(cache.stopped_clean, Some(true));
    let log = cache.log.as_ref().unwrap();
    assert_eq!(log.keys, WRITES);
    assert_eq!(log.dirty_keys, WRITES / 2);
    assert_eq!(log.dirty_bytes, WRITES / 2 * 4096);
    assert_eq!(log.data.verified_keys, WRITES);
    assert_eq!(cache.segments.references, WRITES);
    assert_eq!(
        log.end_sequence,
        sample.ksets().last().unwrap().sequence + 1
    );
}

#[test]
fn a_pool_whose_service_died_is_clean_and_says_so() {
    let sample = build(false);
    let report = sample.check(&sample.bytes);
    assert!(report.is_clean(), "{:#?}", report.damages);
    assert_eq!(report.caches[0].stopped_clean, Some(false));
    assert_eq!(report.caches[0].log.as_ref().unwrap().keys, WRITES);
}

#[test]
fn one_good_superblock_is_enough_and_none_is_damage() {
    let sample = build(true);
    let second = 2 * SUPERBLOCK_BYTES;
    let report = sample.check_flipped(&[5000]);
    assert!(report.is_clean(), "{:#?}", report.damages);
    let warning = &report.warnings[0];
    assert_eq!((warning.kind, warning.at), (FindingKind::Superblock, 0));
    assert_eq!(report.caches[0].log.as_ref().unwrap().keys, WRITES);
    // The second is the newer one: the first is from before the cache was made.
    let report = sample.check_flipped(&[second + 5000]);
    assert_eq!(report.warnings[0].at, second as u64);
    assert_one(&report, FindingKind::SegmentInfo, SEGMENT);
    assert!(report.damages[0].what.starts_with("30 segments belong to"));
    let report = sample.check_flipped(&[5000, second + 5000]);
    assert_one(&report, FindingKind::Superblock, 0);
    assert!(report.pool.is_none());
}

#[test]
fn one_slot_of_a_pair_is_a_warning_and_both_are_damage() {
    let sample = build(true);
    // A generation of segment 3, of the cache, and of segment 35, which is free; the key tail.
    let cases = [
        (control_of(3) + 64, FindingKind::Generation),
        (control_of(35) + 64, FindingKind::Generation),
        (control_of(4), FindingKind::SegmentInfo),
        (control_of(0) + 256, FindingKind::ControlItem),
        (control_of(0) + 640, FindingKind::ControlItem),
    ];
    for (at, kind) in cases {
        let is_written = |at: usize| sample.bytes[at..at + 64].iter().any(|&b| b != 0);
        if is_written(at) && is_written(at + 4096) {
            for slot in [at, at + 4096] {
                let report = sample.check_flipped(&[slot + 20]);
                let found: Vec<_> = report.warnings.iter().map(|w| (w.kind, w.at)).collect();
                assert!(found.contains(&(kind, slot as u64)), "{found:?}");
            }
        }
        let report = sample.check_flipped(&[at + 20, at + 4096 + 20]);
        let damage = &report.damages[0];
        assert_eq!((damage.kind, damage.at), (kind, at as u64));
    }
}

#[test]
fn an_older_dirty_tail_is_a_warning_and_counts() {
    let sample = build(true);
    // Which slot of the dirty tail is newer: the `seq` stands in bytes 8 to 16.
    let at = control_of(0) + 320;
    let seq = |at: usize| u64::from_le_bytes(sample.bytes[at + 8..at + 16].try_into().unwrap());
    let newer = if seq(at) > seq(at + 4096) {
        at
    } else {
        at + 4096
    };
    let report = sample.check_flipped(&[newer + 20]);
    assert!(report.is_clean(), "{:#?}", report.damages);
    assert_eq!(report.warnings[0].at, newer as u64);
    let log = report.caches[0].log.as_ref().unwrap();
    assert!(log.dirty_bytes > WRITES / 2 * 4096);
}

#[test]
fn a_kset_in_the_middle_is_damage_with_its_position() {
    let sample = build(false);
    let kset = sample.kset_of(WRITES / 2 + 3);
    let report = sample.check_flipped(&[kset.at + 50]);
    assert_one(&report, FindingKind::Log, kset.at);
    let damage = &report.damages[0];
    assert_eq!(damage.segment, u32::try_from(kset.at / SEGMENT - 1).ok());
    let lost = &damage.lost;
    assert!(
        lost.starts_with(&format!("kset {}, whatever", kset.sequence)),
        "{lost}"
    );
    let behind = WRITES / 2 - 4;
    let text = format!("{behind} ksets up to sequence {}", kset.sequence + behind);
    assert!(lost.contains(&text), "{lost}");
    assert!(
        lost.contains(&format!("{} dirty bytes", behind * 4096)),
        "{lost}"
    );
    let log = report.caches[0].log.as_ref().unwrap();
    assert_eq!(log.end_sequence, kset.sequence);
}

#[test]
fn a_kset_that_has_been_written_back_loses_no_dirty_data() {
    let sample = build(true);
    let kset = sample.kset_of(2);
    let report = sample.check_flipped(&[kset.at + 50]);
    let lost = &report.damages[0].lost;
    assert!(lost.contains("which had been written back"), "{lost}");
}

#[test]
fn the_last_kset_is_damage_after_a_clean_stop_and_the_end_after_a_death() {
    for clean in [true, false] {
        let sample = build(clean);
        let kset = *sample.ksets().last().unwrap();
        let report = sample.check_flipped(&[kset.at + kset.len - 1]);
        if clean {
            assert_one(&report, FindingKind::Log, kset.at);
        }
        let log = report.caches[0].log.as_ref().unwrap();
        assert_eq!(log.end_sequence, kset.sequence);
    }
}

#[test]
fn damaged_data_name_their_logical_range() {
    let sample = build(true);
    for (number, lost) in [(WRITES / 2 + 1, "dirty bytes"), (1, "the backing has them")] {
        let kset = sample.kset_of(number);
        let report = sample.check_flipped(&[kset.data_at + 100]);
        assert_one(&report, FindingKind::Data, kset.data_at);
        let damage = &report.damages[0];
        let (offset, len) = (number * 8192, 4096);
        assert_eq!(damage.ranges, [LostRange { offset, len }]);
        assert!(damage.lost.contains(lost), "{}", damage.lost);
        assert_eq!(report.caches[0].log.as_ref().unwrap().data.damaged_keys, 1);
    }
}

#[test]
fn a_lost_last_is_damage_and_keeps_a_load_from_forgetting_what_is_behind() {
    let sample = build_with_last();
    let report = sample.check(&sample.bytes);
    assert!(report.is_clean(), "{:#?}", report.damages);
    let log = report.caches[0].log.as_ref().unwrap();
    assert_eq!((log.lasts, log.segments.len()), (1, 2));
    let end = data_of(log.segments[0]) + (SEGMENT - CONTROL);
    let is_last = |at: &usize| matches!(parse_kset(&sample.bytes[*at..]), Ok(Parsed::Last(..)));
    let last = (end - 2 * KSET_BYTES_MAX..end)
        .step_by(KSET_ALIGN)
        .find(is_last);
    let last = last.unwrap();
    let report = sample.check_flipped(&[last + 50]);
    assert_one(&report, FindingKind::Log, last);
    assert!(report.damages[0].lost.contains(" ksets up to sequence "));

    let pool = Pool::open(open_file(&sample.path())).unwrap();
    let run_dir = tempfile::tempdir().unwrap();
    let rig = Rig::over(&RigConfig::default(), pool, disk(), run_dir.path());
    let refused = rig.pool.load_cache("c0", disk(), &rig.runtime, false);
    let Err(CacheError::LogDamaged { segment, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(segment.0, log.segments[0]);
}

#[test]
fn a_generation_that_went_back_is_seen() {
    let sample = build(true);
    let kset = sample.kset_of(1);
    let segment = kset.data_at / SEGMENT - 1;
    let at = control_of(u32::try_from(segment).unwrap()) + 64;
    let mut bytes = sample.bytes.clone();
    // Only the slot that format wrote is left: the generation before the cache was made.
    bytes[at + 4096 + 20] ^= 1;
    let is_generation = |finding: &Finding| finding.kind == FindingKind::Generation;
    // The keys prove what the lost slot held, as long as it was one step.
    let report = sample.check(&bytes);
    assert!(report.is_clean(), "{:?}", report.damages);
    let told = report.warnings.iter().filter(|w| is_generation(w));
    assert_eq!(told.count(), 2);
    assert_eq!(sample.load(&bytes), "it was loaded");
    bytes[at + 24] -= 1;
    Sealed::new(at, 0, 64).seal(&mut bytes);
    assert!(sample.check(&bytes).damages.iter().any(is_generation));
    let error = sample.load(&bytes);
    assert!(error.contains("generation has the"), "{error}");
}

/// Found by fuzzing: each of these values ended the process, though its checksum is right.
#[test]
fn impossible_values_are_found_and_not_loaded() {
    let sample = build(false);
    let newer = |item: usize| {
        let seq = |at: usize| u64::from_le_bytes(sample.bytes[at + 8..at + 16].try_into().unwrap());
        let at = control_of(0) + item;
        Sealed::new(at + 4096 * usize::from(seq(at + 4096) > seq(at)), 0, 64)
    };
    // One that the backing lacks: a load does without the others.
    let kset = sample.kset_of(WRITES / 2 + 3);
    let kset = Sealed::new(kset.at, 0, kset.len);
    let cache = Sealed::new(2 * SUPERBLOCK_BYTES, 8, SUPERBLOCK_BYTES);
    let max = [0xff; 8];
    let cases: [(Sealed, usize, &[u8], &str); 8] = [
        (cache, 1024 + 48, &[0; 4], "0 lanes"),
        (cache, 1024 + 48, &max[..4], "4294967295 lanes"),
        (cache, 1024 + 48, &[100, 0, 0, 0], "segments for 100 lanes"),
        (cache, 1024 + 52, &[0; 4], "block size 0"),
        (newer(256), 32, &max, "key tail"),
        (newer(384), 16, &max[..4], "incarnation"),
        (kset, 40, &max, "epoch has the impossible value"),
        (kset, 72, &max, "generation has the impossible value"),
    ];
    for (place, at, value, expected) in cases {
        let mut bytes = sample.bytes.clone();
        bytes[place.at + at..][..value.len()].copy_from_slice(value);
        place.seal(&mut bytes);
        let report = sample.check(&bytes);
        let told = |d: &Finding| d.what.contains(expected);
        assert!(report.damages.iter().any(told), "{:#?}", report.damages);
        let error = sample.load(&bytes);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_file_that_was_cut_says_which_segments_are_gone() {
    let sample = build(true);
    let report = sample.check(&sample.bytes[..11 * SEGMENT + 5000]);
    assert_one(&report, FindingKind::Medium, 11 * SEGMENT + 5000);
    assert!(report.damages[0].lost.contains("segments 10 to 38"));
    assert_eq!(report.caches[0].name, "c0");
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmcache"));
    command.args(args).output().unwrap()
}

#[test]
fn the_command_tells_by_its_exit_code_and_in_json() {
    let sample = build(true);
    let path = sample.path();
    let path = path.to_str().unwrap();
    let output = run(&["check", path]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("dirty bytes: 40960"), "{text}");
    assert!(text.ends_with("clean; 0 warnings\n"), "{text}");

    let kset = sample.kset_of(3);
    let mut bytes = sample.bytes.clone();
    bytes[kset.data_at] ^= 1;
    fs::write(path, bytes).unwrap();
    let output = run(&["check", "--json", path]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["damages"][0]["kind"], "data");
    assert_eq!(json["damages"][0]["ranges"][0]["offset"], 3 * 8192);
    assert_eq!(json["caches"][0]["log"]["dirty_bytes"], 40960);
    assert!(json["keys_per_second"].as_u64().unwrap() > 0, "{json}");
    let text = String::from_utf8(run(&["check", path]).stdout).unwrap();
    assert!(text.contains("DAMAGED: at 0x"), "{text}");
}

#[test]
fn what_is_no_pool_or_in_use_is_refused_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool.pmem");
    let path_text = path.to_str().unwrap();
    let refused = |what: &str| {
        let output = run(&["check", "--json", path_text]);
        assert_eq!(output.status.code(), Some(2), "{what}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let message = json["error"]["message"].as_str().unwrap();
        assert!(message.contains(what), "{message}");
    };
    refused("No such file");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    refused("no pool");
    fs::write(&path, b"#!/bin/sh\n").unwrap();
    refused("no pool");
    fs::remove_file(&path).unwrap();
    let held = open_file(&path);
    refused("in use");
    drop(held);
    refused("no pool");
}

/// A place that has a checksum: where it begins, where its CRC is, and what that covers.
#[derive(Clone, Copy, Debug)]
struct Sealed {
    at: usize,
    crc_at: usize,
    len: usize,
}

impl Sealed {
    fn new(at: usize, crc_at: usize, len: usize) -> Self {
        Self { at, crc_at, len }
    }

    /// Makes the checksum right again, so that what stands there is believed.
    fn seal(self, bytes: &mut [u8]) {
        let covered = &bytes[self.at + self.crc_at + 4..self.at + self.len];
        let crc = pmcache::media::crc(covered).to_le_bytes();
        bytes[self.at + self.crc_at..][..4].copy_from_slice(&crc);
    }
}

/// All such places of a sample.
fn sealed_places(sample: &Sample) -> Vec<Sealed> {
    let mut places = vec![
        Sealed::new(0, 8, SUPERBLOCK_BYTES),
        Sealed::new(2 * SUPERBLOCK_BYTES, 8, SUPERBLOCK_BYTES),
    ];
    for segment in 0..39 {
        let items = if segment == 0 { 11 } else { 3 };
        for slot in (0..items).filter(|slot| *slot != 3) {
            for page in [0, 4096] {
                places.push(Sealed::new(control_of(segment) + page + slot * 64, 0, 64));
            }
        }
    }
    let ksets = sample.ksets();
    places.extend(ksets.iter().map(|kset| Sealed::new(kset.at, 0, kset.len)));
    places
}

/// Checks these bytes: any outcome is fine, as long as there is one and nothing has changed.
fn survives(bytes: &[u8]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool.pmem");
    fs::write(&path, bytes).unwrap();
    let _ = check_pool(&path);
    prop_assert!(fs::read(&path).unwrap() == bytes);
    Ok(())
}

static SAMPLE: LazyLock<(Vec<u8>, Vec<Sealed>)> = LazyLock::new(|| {
    let sample = build(false);
    (sample.bytes.clone(), sealed_places(&sample))
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Anything may stand in the places that are read: it is reported or refused, and never worse.
    #[test]
    fn no_content_brings_it_down(
        edits in proptest::collection::vec((any::<Index>(), any::<Index>(), any::<u8>()), 1..40),
        cut in proptest::option::weighted(0.1, any::<Index>()),
    ) {
        let (bytes, places) = &*SAMPLE;
        let mut bytes = bytes.clone();
        for (place, within, value) in edits {
            let place = places[place.index(places.len())];
            bytes[place.at + within.index(place.len.min(1500))] ^= value;
        }
        if let Some(cut) = cut {
            let len = cut.index(bytes.len());
            bytes.truncate(len);
        }
        survives(&bytes)?;
    }

    /// The same where every checksum is right, so that the values themselves must be judged. Most
    /// of what is wrong here is a small or an extreme number.
    #[test]
    fn no_value_under_a_good_checksum_brings_it_down(
        edits in proptest::collection::vec(
            (any::<Index>(), any::<Index>(), prop_oneof![
                Just(0_u32), Just(1), Just(u32::MAX), Just(1 << 31), Just(64), any::<u32>(),
            ], any::<bool>()),
            1..6,
        ),
    ) {
        let (bytes, places) = &*SAMPLE;
        let mut bytes = bytes.clone();
        for (place, within, value, wide) in edits {
            let place = places[place.index(places.len())];
            let words = place.len.min(1152) / 8;
            let at = place.at + within.index(words) * 8;
            let value = value.to_le_bytes();
            bytes[at..at + 4].copy_from_slice(&value);
            if wide {
                bytes[at + 4..at + 8].copy_from_slice(&value);
            }
            place.seal(&mut bytes);
        }
        survives(&bytes)?;
    }
}
