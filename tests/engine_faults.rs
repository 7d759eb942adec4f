//! A backing that fails, stalls or has bad sectors: cached data go on being served, writes wait rather
//! than fail, and nothing is lost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{
    Bdev, DelayBdev, DelayLatencies, ErrorBdev, ErrorIo, ErrorKind, Injection, IoStatus, Op,
};
use pmcache::cache::CacheOptions;
use pmcache::units::ByteRange;
use rig::anonymous_pmem;
use rig::disks::VolatileDisk;
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use rig::world::{Mix, World, WorldConfig, pool_bytes};
use std::sync::Arc;

struct Faulty {
    world: World,
    error: Arc<ErrorBdev>,
    disk: VolatileDisk,
    _dir: tempfile::TempDir,
}

fn faulty(config: WorldConfig) -> Faulty {
    let dir = tempfile::tempdir().unwrap();
    let disk = VolatileDisk::new(config.volume_bytes, config.seed);
    let error = Arc::new(ErrorBdev::new(Arc::new(disk.clone()), None).unwrap());
    let pmem = anonymous_pmem("p0", pool_bytes(&config));
    let run_dir = dir.path().to_path_buf();
    let world = World::over(config, pmem, vec![error.clone()], run_dir);
    Faulty {
        world,
        error,
        disk,
        _dir: dir,
    }
}

fn is_full(world: &World) -> bool {
    world.cache(0).status().waiting_lanes > 0
}

/// Small writes until somebody waits for space.
fn fill_up(world: &mut World) {
    let depth = world.config.depth;
    world.until("the pool fills up", |world| {
        if world.under_way() < depth && !is_full(world) {
            world.submit_random(&Mix::ONLY_WRITES);
        }
        is_full(world)
    });
}

#[test]
fn with_a_dead_backing_writes_wait_and_cached_data_are_read() {
    let seed = seed();
    let _say = SaySeed(seed);
    for kind in [ErrorKind::Failure, ErrorKind::Pending] {
        let mut f = faulty(WorldConfig::new(seed));
        let hot = ByteRange::between(0, 64 << 10);
        f.world.submit(0, Op::Write { fua: false }, hot);
        f.world.drain();
        let all = Injection::new(ErrorIo::All, kind, u32::MAX);
        f.error.inject(&all).unwrap();
        fill_up(&mut f.world);
        assert_eq!(f.world.errors, 0);
        // Whoever waits harms nobody who reads.
        let reader = f.world.open_client(0, 0);
        for _ in 0..20 {
            f.world.submit(reader, Op::Read, hot);
            f.world
                .until("a hit is served", |world| world.of_client(reader) == 0);
        }
        assert!(is_full(&f.world));
        if kind == ErrorKind::Failure {
            assert_eq!(f.world.cache(0).status().state, "degraded");
        }
        f.error.clear();
        f.world.drain();
        assert_eq!(f.world.errors, 0);
        f.world.check_volumes();
        f.world.flush_all();
        f.world.check_backings();
    }
}

/// A flush that fails loses writes that had completed, and the next good one says nothing of them: all
/// since the last good flush are issued again, also by the next process, and by one in a hurry.
#[test]
fn what_a_failed_flush_lost_is_written_again() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let mut f = faulty(WorldConfig::new(seed));
    for round in 0..if is_full_run() { 60 } else { 12 } {
        f.disk
            .fail_flushes(u32::try_from(1 + rng.below(4)).unwrap());
        let failed = f.disk.flushes_failed();
        f.world.until("flushes fail", |world| {
            if world.under_way() < world.config.depth {
                world.submit_random(&Mix::ALL);
            }
            f.disk.flushes_failed() > failed
        });
        // Reads that miss meanwhile must not take what the disk lost for what it has.
        for _ in 0..rng.below(3000) {
            if f.world.under_way() < f.world.config.depth {
                f.world.submit_random(&Mix::ALL);
            }
            f.world.turn();
        }
        f.world.drain();
        f.world.check_volumes();
        if rng.permille(400) {
            f.world.stop(rng.below(2000));
            f.world.restart();
            f.world.load();
            f.world.check_volumes();
        }
        if round % 3 == 2 {
            f.disk.fail_flushes(0);
            f.world.flush_all();
            f.world.check_backings();
            // A power cut of the disk alone shows what was durable.
            let durable = f.disk.image_after_cut(&mut rng);
            f.world.check_image(0, &durable);
        }
    }
    assert_eq!(f.world.errors, 0);
}

#[test]
fn a_client_that_gives_up_waiting_harms_nobody() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut f = faulty(WorldConfig {
        clients: 3,
        lanes: 1,
        ..WorldConfig::new(seed)
    });
    f.disk.stall(true);
    fill_up(&mut f.world);
    for _ in 0..3 {
        for client in 0..3 {
            // One that surely waits, behind the others of its lane.
            let range = ByteRange::between(8192, 16384);
            f.world.submit(client, Op::Write { fua: false }, range);
        }
    }
    let before = f.world.under_way();
    f.world.cancel(0);
    f.world
        .until("what waits is given up", |world| world.of_client(0) == 0);
    assert!(f.world.errors > 0, "nothing was aborted");
    assert!(f.world.under_way() > 0 && f.world.under_way() < before);
    let aborted = f.world.errors;
    f.disk.stall(false);
    f.world.drain();
    assert_eq!(f.world.errors, aborted);
    f.world.check_volumes();
    f.world.flush_all();
    f.world.check_backings();
}

#[test]
fn errors_and_stalls_that_pass_leave_no_trace() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let goal = if is_full_run() { 60_000 } else { 15_000 };
    let mut f = faulty(WorldConfig::new(seed));
    f.world.errors_allowed = true;
    let mut stops = 0;
    while f.world.operations < goal {
        let io = rng.pick(&[
            ErrorIo::Write,
            ErrorIo::Flush,
            ErrorIo::Unmap,
            ErrorIo::Read,
        ]);
        let kind = rng.pick(&[ErrorKind::Failure, ErrorKind::Pending]);
        let injection = Injection {
            skip: u32::try_from(rng.below(30)).unwrap(),
            ..Injection::new(io, kind, 1 + u32::try_from(rng.below(20)).unwrap())
        };
        f.error.inject(&injection).unwrap();
        for _ in 0..rng.below(5000) {
            if f.world.under_way() < f.world.config.depth {
                f.world.submit_random(&Mix::ALL);
            }
            f.world.turn();
        }
        f.error.clear();
        if rng.permille(300) {
            f.world.drain();
            let all = Injection::new(ErrorIo::All, kind, u32::MAX);
            f.error.inject(&all).unwrap();
            // A stop in the middle of it ends, and nothing is lost.
            f.world.stop(rng.below(3000));
            stops += 1;
            f.error.clear();
            f.world.config.reactors = rng.pick(&[1, 2, 3]);
            f.world.restart();
            f.world.load();
            f.world.check_volumes();
        }
    }
    f.world.drain();
    f.world.check_volumes();
    f.world.flush_all();
    f.world.check_backings();
    assert!(stops > 0);
    println!(
        "{} operations, {} failed reads, {stops} stops, writeback {:?}",
        f.world.operations,
        f.world.errors,
        f.world.cache(0).writeback_figures()
    );
}

#[test]
fn a_bad_sector_fails_only_who_reads_it() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut f = faulty(WorldConfig {
        clients: 8,
        reactors: 1,
        ..WorldConfig::new(seed)
    });
    let sector = |n: u64| ByteRange::between(n * 512, (n + 1) * 512);
    for round in 0..30 {
        let base = 128 * round;
        f.disk.spoil(sector(base + 17));
        f.disk.stall(true);
        f.world.errors_allowed = true;
        // The first starts a miss over all, the others join it; a write takes a piece out of it.
        f.world.submit(
            0,
            Op::Read,
            ByteRange::between(base * 512, (base + 64) * 512),
        );
        for (client, n) in [(1, 0), (3, 16), (5, 18), (6, 40), (7, 63)] {
            f.world.submit(client, Op::Read, sector(base + n));
        }
        f.world
            .submit(1, Op::Write { fua: false }, sector(base + 30));
        f.world.submit(2, Op::Read, sector(base + 17));
        for _ in 0..20 {
            f.world.turn();
        }
        f.disk.stall(false);
        let before = f.world.errors;
        f.world.drain();
        // Only the big read and the one of that very sector.
        assert_eq!(f.world.errors - before, 2, "round {round}");
        f.disk.spoil(ByteRange::default());
        f.world.submit(
            3,
            Op::Read,
            ByteRange::between(base * 512, (base + 64) * 512),
        );
        f.world.drain();
        assert_eq!(f.world.errors - before, 2, "round {round}");
    }
    let figures = f.world.cache(0).figures();
    assert!(figures.joins >= 30 * 6, "{figures:?}");
    assert_eq!(f.world.error_statuses, vec![IoStatus::IoError; 60]);
}

#[test]
fn reads_join_and_fills_keep_what_was_written_meanwhile() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let mut f = faulty(WorldConfig {
        clients: 6,
        depth: 40,
        large_permille: 0,
        ..WorldConfig::new(seed)
    });
    for _ in 0..60 {
        f.disk.stall(true);
        for _ in 0..40 {
            f.world.submit_random(&Mix::ALL_BUT_FLUSH);
        }
        for _ in 0..rng.below(60) {
            f.world.turn();
        }
        f.disk.stall(false);
        f.world.drain();
        f.world.check_volumes();
    }
    let figures = f.world.cache(0).figures();
    assert!(
        figures.joins > 20 && figures.partial_hits > 20,
        "{figures:?}"
    );
    f.world.flush_all();
    f.world.check_backings();
    let info = f.error.info();
    assert!(info.volatile_cache, "flushes of the backing were exercised");
    assert!(f.world.cache(0).writeback_figures().flushes > 0);
}

/// A slow miss, behind which its range was written, written back, forgotten by GC and missed again:
/// what it brings is old, and the placeholder that it finds there is not its own.
#[test]
fn a_miss_fills_its_own_placeholders_only() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        lanes: 1,
        clients: 3,
        options: CacheOptions {
            gc_percent: 0,
            ..CacheOptions::default()
        },
        ..WorldConfig::new(1)
    };
    let disk = VolatileDisk::new(config.volume_bytes, 1);
    // What a read brings is decided when it is submitted, and comes a second later.
    let latencies = DelayLatencies {
        avg_read_us: 1_000_000,
        p99_read_us: 1_000_000,
        ..DelayLatencies::default()
    };
    let delay = DelayBdev::new("slow0".into(), Arc::new(disk), latencies, None).unwrap();
    let pmem = anonymous_pmem("p0", pool_bytes(&config));
    let run_dir = dir.path().to_path_buf();
    let mut world = World::over(config, pmem, vec![Arc::new(delay)], run_dir);
    world.jumps = false;
    let range = ByteRange::between(0, 4096);
    world.submit(0, Op::Read, range);
    for _ in 0..200 {
        world.turn();
    }
    world.submit(1, Op::Write { fua: true }, range);
    world.until("the write ends", |world| world.of_client(1) == 0);
    world.flush_all();
    world.until("GC passes it", |world| {
        let cache = world.cache(0);
        cache.gc_figures().keys > 0 && cache.figures().gc_posts == cache.gc_figures().keys
    });
    world.submit(2, Op::Read, range);
    for _ in 0..200 {
        world.turn();
    }
    assert_eq!(world.cache(0).figures().backing_reads, 2);
    assert_eq!(world.under_way(), 2, "both misses are under way");
    world.drain();
    for _ in 0..3 {
        world.submit(1, Op::Read, range);
        world.drain();
    }
    assert_eq!(world.cache(0).figures().hits, 3);
}
