//! Modes, cut-off and admission: who reaches the backing when, and what the cache keeps, over a backing
//! whose requests end when the test lets them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{IoStatus, Op};
use pmcache::cache::{CacheError, CacheOptions, Durability, Mode, SeqCutoff};
use pmcache::units::ByteRange;
use rig::modes::{Modes, WRITE, block, options};
use rig::{Rig, RigConfig};

#[test]
fn write_through_has_it_in_both_when_it_completes() {
    let mut m = Modes::new(options(Mode::Wt), true);
    m.disk.hold_writes(true);
    let tag = m.submit(WRITE, block(3), 7);
    assert!(!m.has_ended(tag), "the backing has not got it");
    m.disk.hold_writes(false);
    assert_eq!(m.end(tag).status, IoStatus::Ok);
    assert_eq!(m.on_disk(block(3)), 7);
    let misses = m.figures().misses;
    assert_eq!(m.read(block(3)), 7);
    assert_eq!(m.figures().misses, misses, "it is a hit");
    assert_eq!(m.figures().writes_through, 1);
    m.disk.take_ended();
    assert_eq!(m.flush(), IoStatus::Ok);
    let flushes = m.disk.take_ended();
    assert!(flushes.iter().any(|(op, _)| *op == Op::Flush));
    m.run(
        Op::WriteZeroes {
            may_unmap: false,
            fua: false,
        },
        block(3),
        0,
    );
    assert_eq!((m.on_disk(block(3)), m.read(block(3))), (0, 0));
}

#[test]
fn write_through_waits_until_what_is_older_is_written_back() {
    let mut m = Modes::new(options(Mode::Wb), true);
    m.write(block(5), 1);
    m.set(|options| {
        options.mode = Mode::Wt;
        options.writeback_delay_ms = 60_000;
    });
    m.disk.hold_writes(true);
    let tag = m.submit(WRITE, block(5), 2);
    assert!(!m.has_ended(tag));
    // Elsewhere in the subtree nothing is older.
    m.disk.take_ended();
    m.disk.hold_writes(false);
    assert_eq!(m.end(tag).status, IoStatus::Ok);
    let ended = m.disk.take_ended();
    let first = ended.iter().position(|(op, _)| op.modifies()).unwrap();
    let flush = ended.iter().position(|(op, _)| *op == Op::Flush).unwrap();
    let direct = ended.iter().skip(flush).position(|(op, _)| op.modifies());
    assert!(
        first < flush && direct.is_some(),
        "old, flush, new: {ended:?}"
    );
    assert_eq!((m.on_disk(block(5)), m.read(block(5))), (2, 2));
    assert_eq!(m.figures().bypass_waits, 1);
    m.rig.flush_all();
    assert_eq!(m.on_disk(block(5)), 2);
}

#[test]
fn write_around_drops_what_the_cache_has_and_keeps_what_is_read() {
    let mut m = Modes::new(options(Mode::Wb), false);
    m.write(block(9), 1);
    m.rig.flush_all();
    m.set(|options| options.mode = Mode::Wa);
    m.write(block(9), 2);
    assert_eq!((m.on_disk(block(9)), m.dirty()), (2, 0));
    let misses = m.figures().misses;
    assert_eq!(m.read(block(9)), 2);
    assert_eq!(m.figures().misses, misses + 1, "the cache has dropped it");
    assert_eq!(m.read(block(9)), 2);
    assert_eq!(m.figures().misses, misses + 1, "the read was kept");
    m.run(Op::Discard, block(9), 0);
    assert_eq!((m.on_disk(block(9)), m.read(block(9))), (0, 0));
    assert_eq!(m.figures().writes_around, 2);
}

#[test]
fn write_around_what_is_not_written_back_is_cached_and_nothing_is_lost() {
    for mode in [Mode::Wa, Mode::Pt] {
        let mut m = Modes::new(options(Mode::Wb), true);
        m.disk.hold_writes(true);
        m.write(block(1), 1);
        m.set(|options| options.mode = mode);
        m.write(block(1), 2);
        assert_eq!((m.read(block(1)), m.on_disk(block(1))), (2, 0));
        assert_eq!(m.figures().bypass_cached, 1);
        // What nothing older lies below goes past it all the same.
        let tag = m.submit(WRITE, block(2), 3);
        assert!(!m.has_ended(tag), "the backing does not answer");
        m.disk.hold_writes(false);
        m.end(tag);
        m.rig.flush_all();
        assert_eq!((m.on_disk(block(1)), m.on_disk(block(2))), (2, 3));
        m.write(block(1), 4);
        assert_eq!(
            (m.on_disk(block(1)), m.read(block(1)), m.dirty()),
            (4, 4, 0)
        );
    }
}

#[test]
fn while_a_write_bypasses_the_cache_reads_keep_nothing_and_overlapping_writes_wait() {
    let mut m = Modes::new(options(Mode::Wa), false);
    m.disk.hold_writes(true);
    let first = m.submit(WRITE, block(4), 1);
    assert!(!m.has_ended(first));
    // Both values are right now; what was read is not kept.
    let wide = ByteRange::between(block(3).start(), block(5).end());
    let tag = m.submit(Op::Read, wide, 0);
    assert_eq!(m.end(tag).status, IoStatus::Ok);
    let kept = m.figures().fills;
    assert_eq!(kept, 2, "the blocks on both sides are kept");
    // Also one that would be cached.
    m.set(|options| options.mode = Mode::Wb);
    let second = m.submit(WRITE, block(4), 2);
    let beside = m.submit(WRITE, block(6), 3);
    assert!(m.has_ended(beside) && !m.has_ended(second) && !m.has_ended(first));
    m.disk.hold_writes(false);
    assert_eq!(m.end(first).status, IoStatus::Ok);
    assert_eq!(m.end(second).status, IoStatus::Ok);
    assert_eq!(m.read(block(4)), 2);
    m.rig.flush_all();
    assert_eq!(m.on_disk(block(4)), 2);
}

#[test]
fn a_miss_in_flight_keeps_nothing_of_what_bypassed_the_cache_meanwhile() {
    let mut m = Modes::new(options(Mode::Wa), false);
    m.disk.hold_reads(true);
    let wide = ByteRange::between(block(3).start(), block(5).end());
    let miss = m.submit(Op::Read, wide, 0);
    m.settle();
    m.write(block(4), 8);
    m.disk.hold_reads(false);
    assert_eq!(m.end(miss).status, IoStatus::Ok);
    assert_eq!(m.figures().fills, 2);
    assert_eq!(m.read(block(4)), 8);
}

#[test]
fn write_only_and_pass_through_keep_no_misses() {
    for mode in [Mode::Wo, Mode::Pt] {
        let mut m = Modes::new(options(mode), false);
        for _ in 0..3 {
            assert_eq!(m.read(block(1)), 0);
        }
        let found = m.figures();
        assert_eq!((found.misses, found.fills, found.reads_around), (3, 0, 3));
        m.run(Op::Prefetch, block(2), 0);
        assert_eq!(m.figures().backing_reads, 3, "a prefetch would be in vain");
        m.write(block(1), 5);
        assert_eq!(m.read(block(1)), 5);
        let cached = mode == Mode::Wo;
        assert_eq!(m.on_disk(block(1)) == 5, !cached);
        assert_eq!(m.figures().hits, u64::from(cached));
    }
}

#[test]
fn a_flush_flushes_the_backing_once_behind_what_bypassed_the_cache_in_any_mode() {
    let mut m = Modes::new(options(Mode::Pt), true);
    let flushes = |m: &Modes| {
        let ended = m.disk.take_ended();
        ended.iter().filter(|(op, _)| *op == Op::Flush).count()
    };
    assert_eq!(m.flush(), IoStatus::Ok);
    assert_eq!(flushes(&m), 0, "nothing has bypassed it");
    m.write(block(1), 1);
    m.set(|options| options.mode = Mode::Wb);
    assert_eq!(m.flush(), IoStatus::Ok);
    assert_eq!(flushes(&m), 1);
    assert_eq!(m.flush(), IoStatus::Ok);
    assert_eq!(flushes(&m), 0);
    let mut m = Modes::new(options(Mode::Pt), false);
    m.write(block(1), 1);
    assert_eq!(m.flush(), IoStatus::Ok);
    assert_eq!(flushes(&m), 0, "it has no volatile cache");
}

#[test]
fn durable_writes_past_the_cache_are_durable_on_the_backing() {
    let mut m = Modes::new(options(Mode::Pt), true);
    let fua = Op::Write { fua: true };
    m.run(fua, block(1), 1);
    assert_eq!(m.disk.take_ended(), [(fua, block(1))]);
    m.set(|options| options.durability = Durability::Write);
    m.write(block(2), 1);
    assert_eq!(m.disk.take_ended(), [(fua, block(2))]);
    m.set(|options| options.mode = Mode::Wt);
    m.write(block(3), 1);
    let ended = m.disk.take_ended();
    assert!(ended.contains(&(fua, block(3))), "{ended:?}");
}

#[test]
fn what_bypassed_the_cache_is_kept_only_when_the_backing_has_flushed_it() {
    let mut m = Modes::new(options(Mode::Wa), true);
    m.write(block(1), 1);
    assert_eq!(m.read(block(1)), 1);
    assert_eq!((m.figures().fills, m.figures().fills_unflushed), (0, 1));
    assert_eq!(m.flush(), IoStatus::Ok);
    assert_eq!(m.read(block(1)), 1);
    assert_eq!(m.figures().fills, 1);
    // Nobody flushes: the cache does, for what it was asked to keep.
    m.write(block(2), 2);
    assert_eq!(m.read(block(2)), 2);
    m.rig.clock.advance(2_000_000_000);
    m.settle();
    assert_eq!(m.read(block(2)), 2);
    assert_eq!(m.figures().fills, 2);
}

#[test]
fn a_flush_that_failed_behind_a_bypassing_write_fails_until_it_is_cleared() {
    let mut m = Modes::new(options(Mode::Pt), true);
    m.write(block(1), 1);
    m.disk.fail_flushes(1);
    assert_eq!(m.flush(), IoStatus::IoError);
    assert_eq!(
        m.flush(),
        IoStatus::IoError,
        "a second try would prove nothing"
    );
    let status = m.rig.cache.as_ref().unwrap().status();
    assert!(status.flush_failed);
    assert_eq!(status.state, "degraded");
    m.restart();
    assert!(m.rig.cache.as_ref().unwrap().status().flush_failed);
    assert_eq!(m.flush(), IoStatus::IoError);
    m.rig.cache.as_ref().unwrap().clear_flush_failure();
    assert_eq!(m.flush(), IoStatus::Ok);
    m.settle();
    m.restart();
    assert!(!m.rig.cache.as_ref().unwrap().status().flush_failed);
    assert_eq!(m.flush(), IoStatus::Ok);
}

#[test]
fn a_failed_flush_of_writeback_counts_for_what_bypassed_the_cache_too() {
    let mut m = Modes::new(options(Mode::Wb), true);
    m.write(block(1), 1);
    m.set(|options| options.mode = Mode::Pt);
    m.write(block(900), 2);
    m.disk.fail_flushes(1);
    m.rig.flush_all();
    assert_eq!(m.flush(), IoStatus::IoError);
    // One behind which nothing had bypassed the cache is made good by writing anew.
    let mut m = Modes::new(options(Mode::Wb), true);
    m.write(block(1), 1);
    m.disk.fail_flushes(1);
    m.rig.flush_all();
    assert_eq!(m.flush(), IoStatus::Ok);
}

#[test]
fn a_mode_that_wants_a_clean_cache_is_refused_or_makes_it_clean() {
    let mut m = Modes::new(options(Mode::Wb), true);
    m.write(block(1), 1);
    let cache = m.rig.cache.clone().unwrap();
    for mode in [Mode::Wt, Mode::Wa, Mode::Pt] {
        assert!(matches!(
            cache.set_mode(mode, false),
            Err(CacheError::Busy(_))
        ));
        assert_eq!(cache.options().mode, Mode::Wb);
    }
    cache.set_mode(Mode::Wo, false).unwrap();
    cache.set_mode(Mode::Pt, true).unwrap();
    for _ in 0..20 {
        m.settle();
    }
    assert!(!cache.is_flushing());
    assert_eq!((cache.dirty_bytes(), m.on_disk(block(1))), (0, 1));
    cache.set_mode(Mode::Wa, false).unwrap();
}

#[test]
fn mode_cut_off_and_admission_are_kept_over_a_load() {
    let mut m = Modes::new(options(Mode::Wb), true);
    m.set(|options| {
        options.mode = Mode::Pt;
        options.seq_cutoff_policy = SeqCutoff::Full;
        options.seq_cutoff_kib = 77;
        options.admission = 3;
    });
    let before = m.rig.cache.as_ref().unwrap().options();
    m.restart();
    assert_eq!(m.rig.cache.as_ref().unwrap().options(), before);
    m.write(block(1), 6);
    assert_eq!(m.on_disk(block(1)), 6);
    for (kib, admission) in [(0, 1), (1, 0), (1, 101), (5 << 20, 1)] {
        let bad = CacheOptions {
            seq_cutoff_kib: kib,
            admission,
            ..before.clone()
        };
        assert!(matches!(bad.check(), Err(CacheError::Invalid(_))));
    }
}

#[test]
fn after_a_death_the_cache_shows_what_bypassed_it_and_owes_a_flush() {
    let mut m = Modes::new(options(Mode::Wb), true);
    m.write(block(1), 1);
    m.rig.flush_all();
    m.set(|options| options.mode = Mode::Pt);
    m.write(block(1), 2);
    m.disk.take_ended();
    m.channel = None;
    let (pool, backing) = m.rig.die();
    let pmem = pool.pmem();
    drop(pool);
    let pool = pmcache::cache::Pool::open(pmem).unwrap();
    let mut rig = Rig::over(&RigConfig::default(), pool, backing, m.dir.path());
    rig.load();
    m.channel = Some(rig.open(0));
    m.rig = rig;
    assert_eq!(m.read(block(1)), 2);
    m.disk.take_ended();
    assert_eq!(m.flush(), IoStatus::Ok);
    let ended = m.disk.take_ended();
    assert!(ended.iter().any(|(op, _)| *op == Op::Flush), "{ended:?}");
}

#[test]
fn a_stop_waits_for_what_bypasses_the_cache_and_in_a_hurry_nobody_loads_before_it_has_ended() {
    let mut m = Modes::new(options(Mode::Pt), true);
    m.disk.hold_writes(true);
    m.submit(WRITE, block(1), 1);
    m.settle();
    m.channel = None;
    let cache = m.rig.cache.take().unwrap();
    let mut hurry = false;
    for round in 0.. {
        if cache.stop_step(hurry).unwrap() {
            break;
        }
        hurry |= round > 500;
        m.rig.step();
        assert!(round < 5000, "a stop in a hurry ends");
    }
    assert!(hurry, "without a hurry it waits");
    for _ in 0..100 {
        m.rig.step();
    }
    assert!(m.rig.pool.has_loaded(), "its write is under way");
    m.disk.hold_writes(false);
    for _ in 0..100 {
        m.rig.step();
    }
    assert!(!m.rig.pool.has_loaded());
    m.rig.load();
    m.channel = Some(m.rig.open(0));
    assert_eq!(m.read(block(1)), 1);
}

#[test]
fn a_long_stream_is_cut_off_and_others_are_cached() {
    let mut m = Modes::new(
        CacheOptions {
            seq_cutoff_policy: SeqCutoff::Always,
            seq_cutoff_kib: 16,
            ..CacheOptions::default()
        },
        false,
    );
    for number in 0..6 {
        m.write(block(number), 1);
        m.write(block(500 + 3 * number), 2);
    }
    let found = m.figures();
    assert_eq!((found.writes_around, found.cut_offs), (3, 3));
    assert_eq!(m.writes_to(ByteRange::between(0, block(6).end())), 3);
    for number in 0..6 {
        assert_eq!(m.read(block(1000 + number)), 0);
    }
    let found = m.figures();
    assert_eq!((found.fills, found.reads_around, found.cut_offs), (3, 3, 6));
    // Only while GC has to make room, or not at all.
    m.set(|options| options.seq_cutoff_policy = SeqCutoff::Full);
    for number in 0..6 {
        m.write(block(100 + number), 1);
    }
    m.set(|options| options.seq_cutoff_policy = SeqCutoff::Never);
    for number in 0..6 {
        m.write(block(200 + number), 1);
    }
    assert_eq!(m.figures().cut_offs, 6);
    m.set(|options| {
        options.seq_cutoff_policy = SeqCutoff::Full;
        options.gc_percent = 0;
    });
    for number in 0..40 {
        m.write(
            ByteRange::between(
                block(300 + 8 * number).start(),
                block(308 + 8 * number).start(),
            ),
            1,
        );
    }
    assert!(m.figures().cut_offs > 6);
}

#[test]
fn a_block_is_kept_on_its_nth_miss() {
    let mut m = Modes::new(
        CacheOptions {
            admission: 3,
            ..CacheOptions::default()
        },
        false,
    );
    for _ in 0..5 {
        assert_eq!(m.read(block(7)), 0);
    }
    let found = m.figures();
    assert_eq!((found.misses, found.hits, found.fills), (3, 2, 1));
    assert_eq!(found.fills_not_admitted, 2);
    m.write(block(8), 1);
    assert_eq!((m.read(block(8)), m.figures().hits), (1, 3));
}

#[test]
fn a_failed_write_past_the_cache_is_told_and_leaves_the_backing_to_be_read() {
    let mut m = Modes::new(options(Mode::Wb), false);
    m.write(block(1), 1);
    m.rig.flush_all();
    m.set(|options| options.mode = Mode::Pt);
    m.disk.fail_writes(true);
    let tag = m.submit(WRITE, block(1), 2);
    assert_eq!(m.end(tag).status, IoStatus::IoError);
    assert_eq!(m.figures().bypass_errors, 1);
    assert_eq!(m.read(block(1)), 1);
    m.disk.fail_writes(false);
    m.write(block(1), 3);
    assert_eq!((m.read(block(1)), m.on_disk(block(1))), (3, 3));
}

#[test]
fn the_backing_is_between_boundaries_while_something_older_than_a_bypassing_write_is_dirty() {
    let mut m = Modes::new(options(Mode::Wb), true);
    let between = |m: &Modes| m.rig.cache.as_ref().unwrap().status().between_boundaries;
    m.write(block(1), 1);
    assert_eq!(m.flush(), IoStatus::Ok);
    m.set(|options| {
        options.mode = Mode::Pt;
        options.writeback_delay_ms = 60_000;
    });
    assert!(!between(&m));
    m.write(block(900), 2);
    assert!(between(&m));
    m.rig.flush_all();
    assert!(!between(&m));
    m.set(|options| options.mode = Mode::Wt);
    for number in 0..4 {
        m.write(block(900), number);
        assert!(!between(&m), "in write-through nothing is behind");
    }
}
