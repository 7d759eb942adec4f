//! Scrub: bad places are found while the cache serves, and nothing is changed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::Pmem;
use pmcache::cache::{CacheError, CacheOptions, ScrubLevel, ScrubStatus};
use pmcache::units::SegmentId;
use rig::RigConfig;
use rig::bench::{Bench, How, pattern};
use rig::rng::{SaySeed, seed};
use rig::world::{Mix, World, WorldConfig};

fn scrub(b: &mut Bench, level: ScrubLevel) -> ScrubStatus {
    b.cache().check_start(level, 0).unwrap();
    b.until("a scrub", |cache| !cache.check_status().in_progress);
    b.cache().check_status()
}

/// With some data, all of it in the log.
fn bench() -> (Bench, Vec<u8>) {
    let mut b = Bench::new(RigConfig::default());
    let bytes = pattern(7, 64 << 10);
    b.write(4096, &bytes);
    b.write(9 << 20, &pattern(8, 8192));
    b.flush();
    (b, bytes)
}

#[test]
fn damaged_data_are_found_and_left_as_they_are() {
    for how in [How::Flipped, How::Poisoned] {
        let (mut b, bytes) = bench();
        let whole = scrub(&mut b, ScrubLevel::Data);
        assert!(whole.complete && whole.bad.is_empty(), "{whole:?}");
        assert!(whole.ksets > 0 && whole.keys >= 3, "{whole:?}");
        assert!(whole.bytes > 72 << 10, "{whole:?}");
        b.damage(&bytes[..32 << 10], how);
        let meta = scrub(&mut b, ScrubLevel::Meta);
        assert!(meta.complete && meta.bad.is_empty(), "{meta:?}");
        assert_eq!(meta.keys, 0);
        let data = scrub(&mut b, ScrubLevel::Data);
        assert!(data.complete, "{data:?}");
        assert_eq!((data.bad_total, data.bad.len()), (1, 1), "{data:?}");
        assert_eq!(b.cache().bad_bytes(), 0, "nobody was told");
        // What is overwritten counts no more once GC has passed it; the good data are still there.
        assert_eq!(
            b.read(4096 + (32 << 10), 4096).unwrap(),
            bytes[32 << 10..36 << 10]
        );
    }
}

#[test]
fn a_kset_that_cannot_be_read_ends_the_scrub_with_its_place() {
    let (mut b, _) = bench();
    let status = b.cache().status();
    let (segment, offset) = status.key_head;
    b.write(0, &pattern(9, 4096));
    b.flush();
    let at = b.rig.pool.geometry().data_at(SegmentId(segment)) + u64::from(offset);
    let good = {
        let mut bytes = vec![0; 64];
        b.pmem.load(at, &mut bytes).unwrap();
        bytes
    };
    b.pmem.store(at, &[0x55; 64]).unwrap();
    let found = scrub(&mut b, ScrubLevel::Meta);
    assert!(!found.complete);
    assert_eq!(found.bad_total, 1);
    let bad = &found.bad[0];
    assert_eq!((bad.segment, bad.offset), (SegmentId(segment), offset));
    assert_eq!(bad.sequence, status.key_head_sequence + 1);
    b.pmem.store(at, &good).unwrap();
    assert!(scrub(&mut b, ScrubLevel::Meta).complete);
}

#[test]
fn one_at_a_time_at_its_pace_until_it_is_stopped() {
    let (mut b, _) = bench();
    // A byte a second: it never comes to its end.
    b.cache().check_start(ScrubLevel::Data, 1).unwrap();
    for _ in 0..1000 {
        b.rig.step();
    }
    let status = b.cache().check_status();
    assert!(status.in_progress && !status.complete, "{status:?}");
    let error = b.cache().check_start(ScrubLevel::Meta, 0).unwrap_err();
    assert!(matches!(error, CacheError::Scrubbing), "{error}");
    // The pace holds for a stop, too, until its time comes or the cache goes.
    b.restart();
    assert!(!b.cache().check_status().in_progress);
    assert!(scrub(&mut b, ScrubLevel::Data).complete);
}

#[test]
fn no_false_alarm_while_requests_gc_and_resizes_go_on() {
    let config = WorldConfig {
        lanes: 2,
        options: CacheOptions {
            gc_percent: 10,
            ..CacheOptions::default()
        },
        spare_segments: 12,
        ..WorldConfig::new(seed())
    };
    let _say = SaySeed(config.seed);
    let dir = tempfile::tempdir().unwrap();
    let segment = config.segment_bytes;
    let mut world = World::new(config, dir.path().to_path_buf());
    let cache = world.cache(0).clone();
    let segments = cache.status().segments_total;
    let mut scrubs = 0;
    for round in 0..400_u32 {
        if !cache.check_status().in_progress {
            let status = cache.check_status();
            assert!(status.bad.is_empty(), "{:?}", status.bad);
            cache.check_start(ScrubLevel::Data, 200 << 20).unwrap();
            scrubs += 1;
        }
        if round % 100 == 50 {
            let wanted = segments - 12 * (round / 100 % 2);
            cache.resize_start(u64::from(wanted) * segment).unwrap();
        }
        cache.resize_step().unwrap();
        world.run(&Mix::ALL, 10);
    }
    assert!(scrubs > 3, "{scrubs}");
    assert!(cache.check_status().ksets > 0);
}
