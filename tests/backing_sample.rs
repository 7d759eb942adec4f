//! A backing that was changed between a clean stop and the next load is refused, or taken on request
//! without anything of the cache that only repeats what it was.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{Bdev, Data, IoBuf, IoStatus, MallocBdev, MallocConfig, Op, Request};
use pmcache::cache::{CacheError, CacheOptions, LoadWish};
use pmcache::units::ByteRange;
use rig::disks::VolatileDisk;
use rig::{Rig, RigConfig, anonymous_pmem};
use std::sync::Arc;

const DISK: u64 = 64 << 20;
const FORCE: LoadWish = LoadWish {
    force: true,
    salvage: false,
};

fn malloc() -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: "disk0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: DISK / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

/// Dirty data stay dirty until a flush.
fn config() -> RigConfig {
    RigConfig {
        options: CacheOptions {
            writeback_delay_ms: 3_600_000,
            ..CacheOptions::default()
        },
        ..RigConfig::default()
    }
}

struct Machine {
    rig: Rig,
    _dir: tempfile::TempDir,
}

fn machine(disk: Arc<dyn Bdev>) -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let pmem = anonymous_pmem("p0", 40 * config.segment_bytes);
    let rig = Rig::new(&config, pmem, disk, dir.path());
    Machine { rig, _dir: dir }
}

/// Writes to the backing behind the cache's back.
fn alter(rig: &mut Rig, at: u64, byte: u8) {
    let backing = rig.backing.clone();
    let mut channel = backing.open(rig.data[0].cx()).unwrap();
    let request = Request {
        tag: 0,
        op: Op::Write { fua: false },
        range: ByteRange::between(at, at + 512),
        data: Data::Buf(IoBuf::copy_of(&[byte; 512])),
    };
    assert_eq!(rig.run(&mut *channel, 0, request).status, IoStatus::Ok);
}

fn read(rig: &mut Rig, at: u64) -> u8 {
    let mut channel = rig.open(0);
    rig.read(&mut *channel, at, 512)[0]
}

fn write(rig: &mut Rig, at: u64, byte: u8) {
    let mut channel = rig.open(0);
    rig.write(&mut *channel, at, &[byte; 4096], true);
}

fn part_of(refused: Result<impl Sized, CacheError>) -> &'static str {
    match refused {
        Err(CacheError::BackingAltered { part, .. }) => part,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn a_change_at_either_end_is_refused_and_undone_it_is_not() {
    let mut m = machine(malloc());
    write(&mut m.rig, 8 << 20, 7);
    m.rig.stop();
    for (at, part) in [
        (0, "the first MiB"),
        ((1 << 20) - 512, "the first MiB"),
        (DISK - 512, "the last MiB"),
        (DISK - (1 << 20), "the last MiB"),
    ] {
        alter(&mut m.rig, at, 1);
        assert_eq!(part_of(m.rig.try_load(LoadWish::default())), part);
        alter(&mut m.rig, at, 0);
    }
    m.rig.load();
    assert_eq!(read(&mut m.rig, 8 << 20), 7);
}

#[test]
fn a_change_in_between_is_seen_where_a_sample_was_taken() {
    let mut m = machine(malloc());
    m.rig.stop();
    // A quarter of a MiB is about one of 256 parts: all of it was changed.
    for at in (4 << 20..(4 << 20) + (256 << 10)).step_by(512) {
        alter(&mut m.rig, at, 3);
    }
    let part = part_of(m.rig.try_load(LoadWish::default()));
    assert_eq!(part, "a sample of what is in between");
}

#[test]
fn what_dirty_data_wait_for_may_change() {
    let mut m = machine(malloc());
    write(&mut m.rig, 4096, 7);
    m.rig.stop();
    alter(&mut m.rig, 4096, 9);
    m.rig.load();
    assert_eq!(read(&mut m.rig, 4096), 7);
}

#[test]
fn a_changed_backing_is_taken_by_force_and_nothing_old_is_served() {
    let mut m = machine(malloc());
    // Written back; only read; dirty.
    write(&mut m.rig, 0, 1);
    write(&mut m.rig, 65_536, 1);
    m.rig.flush_all();
    assert_eq!(read(&mut m.rig, 131_072), 0);
    write(&mut m.rig, 65_536, 2);
    m.rig.stop();
    m.rig.load();
    assert_eq!(m.rig.cache.as_ref().unwrap().figures().backing_reads, 0);
    assert_eq!(read(&mut m.rig, 131_072), 0);
    m.rig.stop();
    for at in [0, 65_536, 131_072] {
        alter(&mut m.rig, at, 9);
    }
    part_of(m.rig.try_load(LoadWish::default()));
    let cache = m.rig.try_load(FORCE).unwrap();
    assert!(cache.replay_report().clean_dropped);
    drop(cache);
    let show = |rig: &mut Rig| [0, 65_536, 131_072].map(|at| read(rig, at));
    // Dirty data are worth more than what was changed under them.
    assert_eq!(show(&mut m.rig), [9, 2, 9]);
    // Also for the load after a death, which knows nothing of the force.
    let dir = tempfile::tempdir().unwrap();
    let (pool, disk) = m.rig.die();
    let pool = pmcache::cache::Pool::open(pool.pmem()).unwrap();
    let mut rig = Rig::over(&config(), pool, disk, dir.path());
    rig.load();
    assert_eq!(show(&mut rig), [9, 2, 9]);
    rig.flush_all();
    rig.stop();
    rig.load();
    assert_eq!(show(&mut rig), [9, 2, 9]);
}

#[test]
fn a_sample_is_void_as_soon_as_a_load_has_begun() {
    let mut m = machine(malloc());
    m.rig.stop();
    m.rig.load();
    let dir = tempfile::tempdir().unwrap();
    let (pool, disk) = m.rig.die();
    let pool = pmcache::cache::Pool::open(pool.pmem()).unwrap();
    let mut rig = Rig::over(&config(), pool, disk, dir.path());
    // As writeback might have done it before the death.
    alter(&mut rig, 0, 1);
    rig.load();
    assert_eq!(read(&mut rig, 0), 1);
}

#[test]
fn a_dead_backing_holds_up_neither_a_stop_nor_a_load() {
    let disk = VolatileDisk::new(DISK, 1);
    let mut m = machine(Arc::new(disk.clone()));
    write(&mut m.rig, 0, 1);
    disk.stall(true);
    let cache = m.rig.cache.take().unwrap();
    for _ in 0..1000 {
        assert!(!cache.stop_step(false).unwrap(), "it waits for the backing");
        m.rig.step();
    }
    let mut steps = 0;
    while !cache.stop_step(true).unwrap() {
        m.rig.step();
        steps += 1;
        assert!(steps < 100, "a stop in a hurry ends");
    }
    drop(cache);
    disk.stall(false);
    for _ in 0..100 {
        m.rig.step();
    }
    // It was a clean stop without a sample.
    alter(&mut m.rig, 1 << 20, 3);
    m.rig.load();
    m.rig.stop();

    disk.stall(true);
    let start = |rig: &Rig, wish| {
        let (pool, runtime) = (&rig.pool, &rig.runtime);
        pool.load_start("c0", Arc::new(disk.clone()), runtime, wish)
            .unwrap()
    };
    let mut loading = start(&m.rig, LoadWish::default());
    for _ in 0..100 {
        assert!(loading.step(false).unwrap().is_none());
        m.rig.step();
    }
    let refused = loading.step(true);
    assert!(
        matches!(refused, Err(CacheError::BackingUnread { .. })),
        "{refused:?}"
    );
    drop(loading);
    let mut loading = start(&m.rig, FORCE);
    assert!(loading.step(true).unwrap().is_some());
}

#[test]
fn a_backing_that_can_not_be_read_is_not_believed() {
    let disk = VolatileDisk::new(DISK, 1);
    let mut m = machine(Arc::new(disk.clone()));
    m.rig.stop();
    disk.spoil(ByteRange::between(512, 1024));
    let refused = m.rig.try_load(LoadWish::default());
    assert!(matches!(refused, Err(CacheError::BackingUnread { .. })));
    disk.spoil(ByteRange::default());
    m.rig.load();
    // One that can't be read at the stop leaves no sample.
    disk.spoil(ByteRange::between(512, 1024));
    m.rig.stop();
    alter(&mut m.rig, 0, 1);
    m.rig.load();
}
