//! The engine end to end, single-threaded: what is written is read, whatever lies between.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{Bdev, BdevError, BdevInfo, Channel, MallocBdev, MallocConfig, Op};
use pmcache::cache::{CreateCache, Pool};
use pmcache::units::ByteRange;
use rig::rng::{Rng, SaySeed, seed};
use rig::world::{Mix, World, WorldConfig};
use rig::{Rig, RigConfig, anonymous_pmem};
use std::sync::Arc;

fn malloc(bytes: u64) -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: "disk0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: bytes / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

#[test]
fn what_is_written_is_read_again_before_and_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let config = RigConfig::default();
    let pmem = anonymous_pmem("p0", 40 * config.segment_bytes);
    let mut rig = Rig::new(&config, pmem, malloc(64 << 20), dir.path());
    let mut channel = rig.open(0);
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|i| (i % 251) as u8)
        .take(299_520)
        .collect();
    rig.write(&mut *channel, (4 << 20) - 5120, &bytes, false);
    assert_eq!(
        rig.read(&mut *channel, (4 << 20) - 5120, bytes.len()),
        bytes
    );
    rig.act(&mut *channel, Op::Flush, ByteRange::default());
    drop(channel);
    rig.stop();
    rig.load();
    let report = rig.cache.as_ref().unwrap().replay_report();
    assert_eq!(report.dirty_bytes, bytes.len() as u64);
    let mut channel = rig.open(1);
    drop(std::mem::replace(&mut channel, rig.open(0)));
    assert_eq!(
        rig.read(&mut *channel, (4 << 20) - 5120, bytes.len()),
        bytes
    );
    rig.flush_all();
    drop(channel);
    rig.stop();
    let mut direct = rig.backing.open(rig.data[0].cx()).unwrap();
    assert_eq!(rig.read(&mut *direct, (4 << 20) - 5120, bytes.len()), bytes);
}

#[test]
fn a_flush_of_everything_ends_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        spare_segments: 60,
        ..WorldConfig::new(seed())
    };
    let _say = SaySeed(config.seed);
    let mut world = World::new(config, dir.path().to_path_buf());
    for round in 0..10 {
        world.run(&Mix::ALL, 100);
        let cache = world.cache(0).clone();
        cache.flush_start();
        if round % 2 == 1 {
            // One that was given up leaves nothing behind that would end the next one early.
            world.run(&Mix::ALL, 1);
            cache.flush_stop();
            cache.flush_start();
        }
        let from = world.operations;
        while cache.is_flushing() {
            world.run(&Mix::ALL, 1);
            assert!(world.operations - from < 5000, "{}", world.describe());
        }
    }
    world.drain();
    world.flush_all();
    world.check_backings();
}

#[test]
fn nobody_gets_the_replies_of_a_client_that_is_gone() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        reactors: 2,
        clients: 4,
        depth: 32,
        ..WorldConfig::new(seed)
    };
    let mut world = World::new(config, dir.path().to_path_buf());
    for _ in 0..200 {
        world.run(&Mix::ALL, 20);
        world.replace_client(rng.index(4));
    }
    world.drain();
    world.check_volumes();
}

#[test]
fn what_a_destroyed_cache_left_is_not_taken_for_the_log_of_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let config = RigConfig {
        reactors: 1,
        lanes: 1,
        segments: 10,
        ..RigConfig::default()
    };
    let pmem = anonymous_pmem("p0", 12 * config.segment_bytes);
    let backing = malloc(8 << 20);
    let mut rig = Rig::new(&config, pmem, backing.clone(), dir.path());
    let fua = Op::WriteZeroes {
        may_unmap: false,
        fua: true,
    };
    let sector = |n: u64| ByteRange::between(n * 512, (n + 1) * 512);
    let mut channel = rig.open(0);
    for n in 0..40 {
        rig.act(&mut *channel, fua, sector(n));
    }
    drop(channel);
    rig.stop();
    let entry = rig.pool.caches().pop().unwrap();
    let dirty = 40 * 512;
    rig.pool.destroy_cache("c0", dirty, 0, Some(dirty)).unwrap();
    let create = CreateCache {
        name: "c0".into(),
        uuid: entry.uuid,
        bytes: config.segments * config.segment_bytes,
        lanes: config.lanes,
        block_bytes: 512,
        options: config.options.clone(),
        seed: config.seed,
    };
    rig.pool.create_cache(&create, &backing.info()).unwrap();
    rig.load();
    let mut channel = rig.open(0);
    for n in 0..20 {
        rig.write(&mut *channel, n * 512, &[7; 512], true);
    }
    drop(channel);
    let (pool, backing) = rig.die();
    let pool = Pool::open(pool.pmem()).unwrap();
    let mut rig = Rig::over(&config, pool, backing, dir.path());
    rig.load();
    assert_eq!(rig.cache.as_ref().unwrap().replay_report().ksets, 20);
    let mut channel = rig.open(0);
    assert_eq!(rig.read(&mut *channel, 0, 20 * 512), [7; 20 * 512]);
}

/// Opens for the data reactors, and not for the maintenance reactor.
#[derive(Debug)]
struct NotForMaintenance {
    inner: Arc<dyn Bdev>,
    data_reactors: u32,
}

impl Bdev for NotForMaintenance {
    fn info(&self) -> Arc<BdevInfo> {
        self.inner.info()
    }

    fn open(&self, cx: &reactors::Cx) -> Result<Box<dyn Channel>, BdevError> {
        if cx.id().0 >= self.data_reactors {
            return Err(BdevError::NotSupported("no channel for writeback".into()));
        }
        self.inner.open(cx)
    }
}

// A cache whose writeback had never run was held to be loaded for ever, since only writeback said that
// none of its writes was under way.
#[test]
fn a_cache_whose_writeback_cannot_start_can_be_loaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = RigConfig::default();
    let pmem = anonymous_pmem("p0", 40 * config.segment_bytes);
    let mut rig = Rig::new(&config, pmem, malloc(64 << 20), dir.path());
    let mut channel = rig.open(0);
    rig.write(&mut *channel, 4096, &[7; 512], false);
    drop(channel);
    rig.stop();
    let half = Arc::new(NotForMaintenance {
        inner: rig.backing.clone(),
        data_reactors: config.reactors,
    });
    let cache = rig
        .pool
        .load_cache("c0", half, &rig.runtime, false)
        .unwrap();
    (0..100).for_each(|_| rig.step());
    assert!(cache.is_installed().is_err(), "writeback has not started");
    for round in 0..100_000 {
        if cache.stop_step(true).unwrap() {
            break;
        }
        assert!(round < 99_999, "the stop ends");
        rig.step();
    }
    rig.load();
    let mut channel = rig.open(0);
    assert_eq!(rig.read(&mut *channel, 4096, 512), [7; 512]);
}
