//! Data that the medium loses: what only the cache had is an error until it is overwritten, never the
//! backing's older bytes; what the backing has is fetched again; and the rest of the cache goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{
    Data, ErrorBdev, ErrorIo, ErrorKind, Injection, IoBuf, IoStatus, Op, Pmem, Request,
};
use pmcache::cache::{CacheError, CacheOptions, check_pool};
use rig::RigConfig;
use rig::bench::{Bench, How, VOLUME, malloc, pattern, range};
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use rig::slow_pmem::SlowPmem;
use std::sync::Arc;

const EIO: Result<Vec<u8>, IoStatus> = Err(IoStatus::IoError);

#[test]
fn lost_dirty_data_are_an_error_until_overwritten_and_all_else_goes_on() {
    for how in [How::Flipped, How::Poisoned] {
        let mut b = Bench::new(RigConfig::default());
        let old = pattern(1, 64 << 10);
        b.write_backing(0, &old);
        let (lost, kept) = (pattern(2, 8192), pattern(3, 4096));
        b.write(4096, &lost);
        b.write(5 << 20, &kept);
        b.flush();
        b.damage(&lost, how);
        b.rig.flush_all();

        let cache = b.cache();
        assert_eq!(cache.bad_bytes(), 8192, "{how:?}");
        assert_eq!(cache.status().state, "running");
        let status = cache.status();
        assert!(status.dirty_tail.2 > 2, "the dirty tail has passed it");
        let figures = cache.writeback_figures();
        let found = (figures.crc_errors, figures.unreadable);
        assert_eq!(found, if how == How::Flipped { (1, 0) } else { (0, 1) });
        // Only who touches it is failed.
        assert_eq!(b.read(4096, 8192), EIO);
        assert_eq!(b.read(0, 4096 + 512), EIO);
        assert_eq!(b.read(0, 4096).unwrap(), old[..4096]);
        assert_eq!(b.read(12288, 4096).unwrap(), old[12288..16384]);
        assert_eq!(b.read(5 << 20, 4096).unwrap(), kept);
        assert_eq!(b.read_backing(0, 64 << 10), old);
        assert_eq!(b.read_backing(5 << 20, 4096), kept);

        b.restart();
        assert_eq!(b.cache().replay_report().bad_bytes, 8192);
        assert_eq!(b.read(4096, 8192), EIO);
        let mut b = b.die();
        assert_eq!(b.cache().bad_bytes(), 8192);
        assert_eq!(b.read(4096, 512), EIO);

        // Whatever replaces it heals it.
        let newer = pattern(4, 2048);
        b.write(4096 + 1024, &newer);
        assert_eq!(b.cache().bad_bytes(), 8192 - 2048);
        assert_eq!(b.read(4096 + 1024, 2048).unwrap(), newer);
        assert_eq!(b.read(4096, 1024), EIO);
        assert_eq!(b.read(4096 + 3072, 512), EIO);
        let zero = Op::WriteZeroes {
            may_unmap: false,
            fua: false,
        };
        b.act(zero, range(4096, 1024));
        b.act(Op::Discard, range(4096 + 3072, 8192 - 3072));
        assert_eq!(b.cache().bad_bytes(), 0);
        let mut healed = vec![0; 8192];
        healed[1024..3072].copy_from_slice(&newer);
        assert_eq!(b.read(4096, 8192).unwrap(), healed);
        b.rig.flush_all();
        assert_eq!(b.read_backing(4096, 8192), healed);
        let mut b = b.die();
        assert_eq!(b.read(4096, 8192).unwrap(), healed);
        assert_eq!(b.cache().bad_bytes(), 0);
    }
}

#[test]
fn what_newer_keys_replaced_is_not_lost() {
    let mut b = Bench::new(RigConfig::default());
    let whole = pattern(1, 32 << 10);
    b.write(0, &whole);
    b.flush();
    // In the same window, in a later kset; and one that no kset holds yet.
    let newer = pattern(2, 4096);
    b.write(8192, &newer);
    b.flush();
    b.damage(&whole, How::Flipped);
    b.rig.flush_all();
    assert_eq!(b.cache().bad_bytes(), 28 << 10);
    assert_eq!(b.cache().figures().bad_keys, 2, "one on each side");
    assert_eq!(b.read(8192, 4096).unwrap(), newer);
    assert_eq!(b.read_backing(8192, 4096), newer);
    assert_eq!(b.read(8192 - 512, 512), EIO);
    assert_eq!(b.read(12288, 512), EIO);

    // All of it replaced: nobody notices.
    let (under, over) = (pattern(3, 4096), pattern(4, 4096));
    b.write(1 << 20, &under);
    b.flush();
    b.write(1 << 20, &over);
    b.damage(&under, How::Poisoned);
    b.rig.flush_all();
    assert_eq!(b.cache().bad_bytes(), 28 << 10);
    assert_eq!(b.read(1 << 20, 4096).unwrap(), over);
    assert_eq!(b.read_backing(1 << 20, 4096), over);
}

/// The newer key over lost data must be durable before the dirty tail passes these: at a power cut it
/// may be gone, and then the backing's older bytes would come back.
#[test]
fn a_power_cut_does_not_bring_older_bytes_back() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let mut passed = 0;
    for _ in 0..if is_full_run() { 60 } else { 20 } {
        let mut b = Bench::new(RigConfig {
            seed: rng.next(),
            options: CacheOptions {
                // Nobody else closes the kset of the newer key.
                kset_flush_ms: 60_000,
                ..CacheOptions::default()
            },
            ..RigConfig::default()
        });
        let (old, lost, newer) = (pattern(1, 4096), pattern(2, 4096), pattern(3, 4096));
        b.write_backing(0, &old);
        b.write(0, &lost);
        b.flush();
        b.damage(&lost, How::Flipped);
        let replaced = rng.permille(700);
        if replaced {
            b.write(0, &newer);
        }
        // Writeback has its turn, and is cut off somewhere, or just behind.
        b.rig.clock.advance(1_100_000_000);
        let tail = |b: &Bench| b.cache().status().dirty_tail.2;
        for _ in 0..rng.below(100) {
            if tail(&b) == 1 {
                b.rig.step();
            }
        }
        passed += u32::from(tail(&b) > 1);
        let mut b = b.lose_power(&mut rng);
        b.set_options(|options| options.verify_reads = true);
        let found = b.read(0, 4096);
        let is_fine = found == EIO || (replaced && found.as_ref() == Ok(&newer));
        assert!(is_fine, "replaced: {replaced}");
        b.rig.flush_all();
        assert_eq!(b.read(0, 4096), found);
    }
    assert!(passed > 0, "the tail never passed the lost data");
}

#[test]
fn an_older_key_that_the_lost_one_hid_is_written() {
    let mut b = Bench::new(RigConfig {
        lanes: 1,
        ..RigConfig::default()
    });
    let (older, lost) = (pattern(1, 8192), pattern(2, 4096));
    b.write(0, &older);
    b.write(2048, &lost);
    b.flush();
    b.damage(&lost, How::Flipped);
    b.rig.flush_all();
    assert_eq!(b.read_backing(0, 8192), older);
    assert_eq!(b.read(2048, 4096), EIO);
    assert_eq!(b.read(0, 2048).unwrap(), older[..2048]);
    assert_eq!(b.cache().bad_bytes(), 4096);
}

#[test]
fn gc_logs_again_what_is_still_bad_and_comes_to_rest() {
    let mut b = Bench::new(RigConfig {
        options: CacheOptions {
            gc_percent: 0,
            ..CacheOptions::default()
        },
        ..RigConfig::default()
    });
    let old = pattern(1, 16 << 10);
    b.write_backing(0, &old);
    let lost = pattern(2, 8192);
    b.write(4096, &lost);
    b.flush();
    b.damage(&lost, How::Flipped);
    b.rig.flush_all();
    b.write(4096, &pattern(3, 512));
    b.flush();
    let first = b.cache().status().dirty_tail.2;
    b.rig.flush_all();
    b.until("GC logs it again", |cache| {
        cache.gc_figures().relogged > 0 && cache.status().key_tail.2 > first
    });
    assert_eq!(b.cache().bad_bytes(), 8192 - 512);
    assert_eq!(b.read(4096 + 512, 512), EIO);
    // With nothing else in the log there is nothing to gain: it does not go round for ever.
    for _ in 0..3 {
        b.rig.clock.advance(2_000_000_000);
        for _ in 0..2000 {
            b.rig.step();
        }
    }
    let before = b.cache().gc_figures().relogged;
    for _ in 0..3 {
        b.rig.clock.advance(2_000_000_000);
        for _ in 0..2000 {
            b.rig.step();
        }
    }
    assert_eq!(b.cache().gc_figures().relogged, before);
    let mut b = b.die();
    assert_eq!(b.cache().bad_bytes(), 8192 - 512);
    assert_eq!(b.read(4096 + 512, 8192 - 512), EIO);
    assert_eq!(b.read(4096, 512).unwrap(), pattern(3, 512));
    assert_eq!(b.read(0, 4096).unwrap(), old[..4096]);
}

#[test]
fn a_damaged_clean_copy_is_fetched_again() {
    for how in [How::Flipped, How::Poisoned] {
        let mut b = Bench::new(RigConfig::default());
        // What can't be read is noticed in any case, wrong bytes only by those who look.
        b.set_options(|options| options.verify_reads = how == How::Flipped);
        let bytes = pattern(1, 16 << 10);
        b.write_backing(0, &bytes);
        assert_eq!(b.read(0, 16 << 10).unwrap(), bytes);
        assert_eq!(b.read(4096, 4096).unwrap(), bytes[4096..8192]);
        assert_eq!(b.cache().figures().backing_reads, 1);
        b.damage(&bytes, how);
        // Verified is the whole key, whatever is read of it.
        let at = if how == How::Flipped { 4096 } else { 0 };
        let read = b.read(at, 4096).unwrap();
        assert_eq!(read, bytes[usize::try_from(at).unwrap()..][..4096]);
        let figures = b.cache().figures();
        assert_eq!(figures.backing_reads, 2);
        let found = (figures.crc_errors, figures.unreadable);
        assert_eq!(found, if how == How::Flipped { (1, 0) } else { (0, 1) });
        assert_eq!((figures.bad_keys, b.cache().bad_bytes()), (0, 0));
        // The new copy is a hit.
        assert_eq!(b.read(at, 4096).unwrap(), read);
        assert_eq!(b.cache().figures().backing_reads, 2);
        assert_eq!(b.read(0, 16 << 10).unwrap(), bytes);
    }
}

#[test]
fn a_read_makes_lost_dirty_data_bad_unless_they_are_written_back() {
    let mut b = Bench::new(RigConfig::default());
    b.set_options(|options| options.verify_reads = true);
    let (written, lost) = (pattern(1, 4096), pattern(2, 4096));
    b.write(0, &written);
    b.rig.flush_all();
    b.damage(&written, How::Flipped);
    assert_eq!(b.read(0, 4096).unwrap(), written, "the backing has it");
    b.write(1 << 20, &lost);
    b.damage(&lost, How::Flipped);
    assert_eq!(b.read(1 << 20, 512), EIO);
    let figures = b.cache().figures();
    assert_eq!((figures.crc_errors, figures.bad_keys), (2, 1));
    assert_eq!(b.cache().bad_bytes(), 4096);
    // It is logged: also who does not look is told, and the next process too.
    b.set_options(|options| options.verify_reads = false);
    assert_eq!(b.read(1 << 20, 512), EIO);
    let mut b = b.die();
    assert_eq!(b.read(1 << 20, 4096), EIO);
    b.rig.flush_all();
    assert_eq!(b.read(1 << 20, 4096), EIO);
    assert_eq!(b.cache().bad_bytes(), 4096);
}

/// A read that found them lost got them from the backing, and after a power cut that took its new copy
/// only an error: other data were dirty. Found by `simulate --profile damage`, seed 1026.
#[test]
fn what_was_written_back_before_a_load_is_not_lost_whatever_is_dirty_since() {
    for how in [How::Flipped, How::Poisoned] {
        let mut b = Bench::new(RigConfig::default());
        b.set_options(|options| options.verify_reads = true);
        let (written, dirty, newer) = (pattern(1, 8192), pattern(2, 4096), pattern(3, 4096));
        b.write(0, &written);
        b.rig.flush_all();
        b.write(1 << 20, &dirty);
        b.write(4096, &newer);
        let mut b = b.die();
        b.damage(&written, how);
        assert!(b.cache().dirty_bytes() > 0);
        assert_eq!(b.read(0, 4096).unwrap(), written[..4096], "{how:?}");
        assert_eq!(b.read(4096, 4096).unwrap(), newer);
        let figures = b.cache().figures();
        assert_eq!((figures.backing_reads, figures.bad_keys), (1, 0));
        // What was dirty at the load is not in the backing.
        b.damage(&dirty, how);
        assert_eq!(b.read(1 << 20, 4096), EIO);
        b.rig.flush_all();
        assert_eq!(b.read(0, 4096).unwrap(), written[..4096]);
        assert_eq!(b.read(1 << 20, 4096), EIO);
    }
}

#[test]
fn verify_reads_wants_checksums() {
    let options = CacheOptions {
        data_crc: false,
        verify_reads: true,
        ..CacheOptions::default()
    };
    assert!(matches!(options.check(), Err(CacheError::Invalid(_))));
    let mut b = Bench::new(RigConfig {
        options: CacheOptions {
            data_crc: false,
            ..CacheOptions::default()
        },
        ..RigConfig::default()
    });
    // Without them what can't be read is found all the same.
    let lost = pattern(1, 4096);
    b.write(0, &lost);
    b.flush();
    b.damage(&lost, How::Poisoned);
    b.rig.flush_all();
    assert_eq!(b.read(0, 4096), EIO);
    assert_eq!(b.cache().bad_bytes(), 4096);
}

#[test]
fn destroy_names_bad_bytes() {
    let mut b = Bench::new(RigConfig::default());
    let lost = pattern(1, 4096);
    b.write(0, &lost);
    b.flush();
    b.damage(&lost, How::Flipped);
    b.rig.flush_all();
    let bad = b.cache().bad_bytes();
    b.channel = None;
    b.rig.stop();
    let pool = &b.rig.pool;
    let refused = pool.destroy_cache("c0", 0, bad, None).unwrap_err();
    assert!(
        matches!(
            refused,
            CacheError::Dirty {
                dirty_bytes: 0,
                bad_bytes: 4096
            }
        ),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("4096 bytes are BAD"),
        "{refused}"
    );
    pool.destroy_cache("c0", 0, bad, Some(0)).unwrap();
}

/// All that waits for space waits for writeback, which can only pass lost data once BAD keys are in the
/// log: the log's reserve has room for them.
#[test]
fn a_full_pool_of_lost_data_is_passed() {
    for (lanes, segments) in [(1, 10), (3, 30)] {
        let error = Arc::new(ErrorBdev::new(malloc(), None).unwrap());
        let config = RigConfig {
            lanes,
            segments,
            ..RigConfig::default()
        };
        let mut b = Bench::over(config, error.clone());
        let failing = Injection::new(ErrorIo::Write, ErrorKind::Failure, u32::MAX);
        error.inject(&failing).unwrap();
        let mut channel = b.channel.take().unwrap();
        let mut submitted = Vec::new();
        let mut done = Vec::new();
        let cache = b.cache();
        while cache.status().waiting_lanes < lanes && submitted.len() < 12_000 {
            let number = submitted.len() as u64;
            // Every lane, in small pieces: many keys.
            let at = number % 4 * (4 << 20) + number / 4 * 1024;
            let request = Request {
                tag: number,
                op: Op::Write { fua: false },
                range: range(at, 1024),
                data: Data::Buf(IoBuf::copy_of(&pattern(number, 1024))),
            };
            channel.submit(b.rig.data[0].cx(), request);
            submitted.push(at);
            b.rig.step();
            channel.poll(b.rig.data[0].cx(), &mut done);
        }
        assert!(cache.status().waiting_lanes > 0, "{:?}", cache.status());
        let mut lost = 0;
        for number in 0..submitted.len() as u64 {
            if number % 16 != 0 {
                for place in b.pmem.find(&pattern(number, 1024)) {
                    b.pmem.flip(place, 4);
                    lost += 1;
                }
            }
        }
        assert!(lost > 1000, "{lost}");
        error.clear();
        let total = submitted.len();
        for _ in 0..400_000 {
            channel.poll(b.rig.data[0].cx(), &mut done);
            if done.len() == total {
                break;
            }
            b.rig.step();
        }
        assert_eq!(done.len(), total, "{:?}", cache.status());
        assert!(done.iter().all(|done| done.status == IoStatus::Ok));
        b.channel = Some(channel);
        b.rig.flush_all();
        let mut errors = 0;
        for (number, &at) in submitted.iter().enumerate() {
            let expected = pattern(number as u64, 1024);
            match b.read(at, 1024) {
                Ok(bytes) => assert_eq!(bytes, expected, "{number}"),
                Err(status) => {
                    assert_eq!(status, IoStatus::IoError);
                    errors += 1;
                }
            }
        }
        assert_eq!(errors * 1024, b.cache().bad_bytes());
        assert_eq!(errors, lost);
    }
}

#[test]
fn a_segment_with_a_media_error_is_drained_and_never_used_again() {
    let config = RigConfig {
        lanes: 1,
        segments: 14,
        ..RigConfig::default()
    };
    let segment_bytes = config.segment_bytes;
    let mut b = Bench::new(config);
    let lost = pattern(1, 4096);
    b.write(0, &lost);
    b.flush();
    let place = b.pmem.find(&lost)[0];
    b.pmem.refuse_loads(place..place + 64);
    assert_eq!(b.read(0, 4096), EIO);
    let status = b.cache().status();
    assert_eq!((status.segments_bad, status.segments_bad_draining), (1, 1));
    let geometry = b.rig.pool.geometry();
    let number = (place - geometry.data_start) / segment_bytes;
    let begin = geometry.data_start + number * segment_bytes + 8192;
    // The lane was filling it, and has left it.
    let next = pattern(2, 4096);
    b.write(8192, &next);
    let place = b.pmem.find(&next)[0];
    assert!(!(begin..begin + segment_bytes).contains(&place));
    let fill = |b: &mut Bench, from: u64| {
        for number in 0..3 * 14 * 8 {
            let at = (number * (32 << 10)) % (VOLUME - (1 << 20)) + (1 << 20);
            let bytes = pattern(from + number, 32 << 10);
            b.write(at, &bytes);
        }
    };
    fill(&mut b, 1000);
    b.until("it is drained", |cache| {
        cache.status().segments_bad_draining == 0
    });
    b.pmem.heal();
    let content = |pmem: &SlowPmem| {
        let mut bytes = vec![0; usize::try_from(segment_bytes - 8192).unwrap()];
        pmem.load(begin, &mut bytes).unwrap();
        bytes
    };
    let before = content(&b.pmem);
    fill(&mut b, 2000);
    b.restart();
    let status = b.cache().status();
    assert_eq!((status.segments_bad, status.segments_bad_draining), (1, 0));
    fill(&mut b, 3000);
    assert!(content(&b.pmem) == before, "the bad segment was used");
    assert_eq!(b.read(0, 4096), EIO, "still, though the medium has healed");
    b.rig.flush_all();
    b.channel = None;
    b.rig.stop();
    let path = b.dir.path().join("pool");
    let mut image = vec![0; usize::try_from(b.pmem.bytes()).unwrap()];
    b.pmem.load(0, &mut image).unwrap();
    std::fs::write(&path, image).unwrap();
    let report = check_pool(&path).unwrap();
    let pool = report.pool.unwrap();
    assert_eq!(pool.segments_bad, 1);
    let log = report.caches[0].log.clone().unwrap();
    assert_eq!((log.bad_keys, log.bad_bytes), (1, 4096));
}
