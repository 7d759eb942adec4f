//! A medium that can't be accessed in places: what was promised stays true, what can't be had is an
//! error, and nothing else is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{Bdev, Channel, Data, IoBuf, IoStatus, MallocBdev, Op, PmemError, Request};
use pmcache::bdev::{MallocConfig, Pmem};
use pmcache::cache::{CacheError, CacheOptions, CreateCache, Pool, PoolFormat, log_reserve};
use pmcache::units::{ByteRange, SegmentId};
use rig::disks::VolatileDisk;
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use rig::slow_pmem::SlowPmem;
use rig::world::{Mix, World, WorldConfig, pool_bytes};
use rig::{Rig, RigConfig};
use std::ops::Range;
use std::sync::Arc;

const SEGMENT: u64 = 256 << 10;
const DISK: u64 = 8 << 20;

/// One lane on one reactor, so that it is known what goes where.
struct Poisoned {
    rig: Rig,
    config: RigConfig,
    pmem: SlowPmem,
    channel: Box<dyn Channel>,
    dir: tempfile::TempDir,
}

fn malloc() -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: "disk0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: DISK / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

impl Poisoned {
    fn new(backing: Arc<dyn Bdev>) -> Self {
        let config = RigConfig {
            reactors: 1,
            lanes: 1,
            segments: 20,
            ..RigConfig::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let pmem = SlowPmem::new((4 << 20) + 20 * SEGMENT, 0, 1);
        let rig = Rig::new(&config, Arc::new(pmem.clone()), backing, dir.path());
        let channel = rig.open(0);
        Self {
            rig,
            config,
            pmem,
            channel,
            dir,
        }
    }

    /// The control area of a segment.
    fn control(&self, segment: u32) -> Range<u64> {
        let geometry = self.rig.pool.geometry();
        let id = SegmentId(segment);
        geometry.segment_start(id)..geometry.data_at(id)
    }

    /// The data of a segment from `offset` on.
    fn data(&self, segment: u32, offset: u64) -> Range<u64> {
        let geometry = self.rig.pool.geometry();
        let id = SegmentId(segment);
        geometry.data_at(id) + offset..geometry.segment_start(id) + SEGMENT
    }

    fn request(&mut self, op: Op, range: ByteRange, data: Data) -> (IoStatus, Data) {
        let request = Request {
            tag: 7,
            op,
            range,
            data,
        };
        let done = self.rig.run(&mut *self.channel, 0, request);
        (done.status, done.data)
    }

    fn try_write(&mut self, at: u64, bytes: &[u8], fua: bool) -> IoStatus {
        let range = ByteRange::between(at, at + bytes.len() as u64);
        let data = Data::Buf(IoBuf::copy_of(bytes));
        self.request(Op::Write { fua }, range, data).0
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        assert_eq!(self.try_write(at, bytes, false), IoStatus::Ok);
    }

    fn try_read(&mut self, at: u64, len: usize) -> Result<Vec<u8>, IoStatus> {
        let range = ByteRange::between(at, at + len as u64);
        let data = Data::Buf(IoBuf::zeroed(len));
        match self.request(Op::Read, range, data) {
            (IoStatus::Ok, data) => Ok(data.into_buf().unwrap().to_vec()),
            (status, _) => Err(status),
        }
    }

    /// All of `len` bytes at `at` are `byte`.
    fn expect(&mut self, at: u64, len: usize, byte: u8) {
        assert_eq!(self.try_read(at, len), Ok(vec![byte; len]), "at {at}");
    }

    fn flush(&mut self) -> IoStatus {
        self.request(Op::Flush, ByteRange::default(), Data::None).0
    }

    fn state(&self) -> &'static str {
        self.rig.cache.as_ref().unwrap().status().state
    }

    fn bad_segments(&self) -> u32 {
        self.rig.cache.as_ref().unwrap().status().segments_bad
    }

    /// Asks for a flush of everything and waits until it has ended somehow.
    fn flush_ends(&mut self) {
        let cache = self.rig.cache.clone().unwrap();
        cache.flush_start();
        for _ in 0..100_000 {
            if !cache.is_flushing() {
                return;
            }
            self.rig.step();
        }
        panic!("the flush did not end: {:?}", cache.status());
    }

    /// What the backing has, read past the cache.
    fn on_backing(&mut self, at: u64, len: usize) -> Vec<u8> {
        let backing = self.rig.backing.clone();
        let mut channel = backing.open(self.rig.data[0].cx()).unwrap();
        self.rig.read(&mut *channel, at, len)
    }

    /// The process dies; another one finds the medium healed.
    fn die_and_heal(self) -> Self {
        let Self {
            rig,
            config,
            pmem,
            channel,
            dir,
        } = self;
        drop(channel);
        let (_, backing) = rig.die();
        pmem.heal();
        let pool = Pool::open(Arc::new(pmem.clone())).unwrap();
        let mut rig = Rig::over(&config, pool, backing, dir.path());
        rig.load();
        let channel = rig.open(0);
        Self {
            rig,
            config,
            pmem,
            channel,
            dir,
        }
    }
}

/// The segment that the first write goes to: the log has its first one and its reserve.
fn first_data_segment() -> u32 {
    1 + log_reserve(1, SEGMENT)
}

#[test]
fn a_write_that_is_not_taken_changes_nothing_and_the_next_goes_elsewhere() {
    let mut t = Poisoned::new(malloc());
    let segment = first_data_segment();
    t.write(0, &[1; 8192]);
    // Half of the next one would fit.
    let bad = t.data(segment, 8192 + 4096);
    t.pmem.refuse_stores(bad);
    assert_eq!(t.try_write(0, &[2; 8192], false), IoStatus::IoError);
    t.expect(0, 8192, 1);
    assert_eq!(t.bad_segments(), 1);
    t.write(0, &[3; 8192]);
    t.expect(0, 8192, 3);
    assert_eq!(t.flush(), IoStatus::Ok);
    t.flush_ends();
    assert_eq!(t.on_backing(0, 8192), [3; 8192]);
    // Once around all segments and again: the bad one never has its turn.
    for round in 0..4_u8 {
        for at in (0..2 * DISK / 4).step_by(32 << 10) {
            t.write(at, &[10 + round; 32 << 10]);
        }
    }
    t.expect(0, 32 << 10, 13);
    assert_eq!((t.state(), t.bad_segments()), ("running", 1));
    // It is marked: the next run leaves it too.
    let mut t = t.die_and_heal();
    t.expect(64 << 10, 32 << 10, 13);
    assert_eq!(t.bad_segments(), 1);
}

#[test]
fn a_bad_segment_that_takes_no_mark_is_left_all_the_same() {
    let mut t = Poisoned::new(malloc());
    let segment = first_data_segment();
    let everything = t.control(segment).start..t.data(segment, 0).end;
    t.pmem.refuse_stores(everything);
    assert_eq!(t.try_write(0, &[2; 8192], false), IoStatus::IoError);
    for round in 0..4_u8 {
        for at in (0..DISK / 2).step_by(32 << 10) {
            t.write(at, &[10 + round; 32 << 10]);
        }
    }
    t.flush_ends();
    let status = t.rig.cache.as_ref().unwrap().status();
    assert_eq!((status.segments_bad, status.segments_bad_draining), (1, 0));
    assert_eq!(t.state(), "running");
    // The next run knows nothing of it.
    let t = t.die_and_heal();
    assert_eq!(t.bad_segments(), 0);
}

#[test]
fn a_write_that_fails_at_the_end_of_a_segment_gives_its_space_back() {
    let mut t = Poisoned::new(malloc());
    let len = t.data(0, 0).end - t.data(0, 0).start;
    let mut at = 0;
    while at + (32 << 10) < len {
        t.write(at, &[1; 32 << 10]);
        at += 32 << 10;
    }
    // What is left of the segment is less than an extent: it is sealed when that is reserved.
    let bad = t.data(first_data_segment(), len - 512);
    t.pmem.refuse_stores(bad);
    assert_eq!(t.try_write(0, &[2; 32 << 10], false), IoStatus::IoError);
    t.expect(0, 32 << 10, 1);
    t.write(0, &[3; 32 << 10]);
    t.flush_ends();
    for round in 0..4_u8 {
        for at in (0..DISK / 2).step_by(32 << 10) {
            t.write(at, &[10 + round; 32 << 10]);
        }
    }
    assert_eq!((t.state(), t.bad_segments()), ("running", 1));
}

#[test]
fn a_fill_that_is_not_taken_is_served_and_not_cached() {
    let mut t = Poisoned::new(malloc());
    let backing = t.rig.backing.clone();
    let mut direct = backing.open(t.rig.data[0].cx()).unwrap();
    t.rig.write(&mut *direct, 0, &[5; 4096], false);
    let bad = t.data(first_data_segment(), 0);
    t.pmem.refuse_stores(bad);
    t.expect(0, 4096, 5);
    // Had it been kept, or the reader's placeholder, this one would not see the new bytes.
    t.rig.write(&mut *direct, 0, &[6; 4096], false);
    t.expect(0, 4096, 6);
    // Now there was a good segment.
    t.rig.write(&mut *direct, 0, &[7; 4096], false);
    t.expect(0, 4096, 6);
    let figures = t.rig.cache.as_ref().unwrap().figures();
    assert_eq!((figures.fills_skipped, figures.fills), (1, 1));
    assert_eq!((t.state(), t.bad_segments()), ("running", 1));
}

#[test]
fn with_too_few_good_segments_the_pool_is_read_only_instead_of_stuck() {
    let mut t = Poisoned::new(malloc());
    t.write(0, &[1; 4096]);
    for segment in first_data_segment()..20 {
        let bad = t.data(segment, 8192);
        t.pmem.refuse_stores(bad);
    }
    // Whatever finds no good place is an error, never a wait without end.
    let statuses: Vec<IoStatus> = (0..40)
        .map(|_| t.try_write(0, &[2; 16 << 10], false))
        .collect();
    assert!(!statuses.contains(&IoStatus::Ok), "{statuses:?}");
    assert_eq!(statuses.last(), Some(&IoStatus::ReadOnly));
    assert_eq!(t.state(), "read_only");
    t.expect(0, 4096, 1);
    let bad = t.bad_segments();
    for _ in 0..1000 {
        t.rig.step();
    }
    // The marks count for the next run as well. It brings what is dirty to the backing.
    let mut t = t.die_and_heal();
    assert_eq!((t.state(), t.bad_segments()), ("read_only", bad));
    assert_eq!(t.try_write(0, &[3; 4096], false), IoStatus::ReadOnly);
    t.expect(0, 4096, 1);
    for _ in 0..1000 {
        t.rig.step();
    }
    assert_eq!(t.rig.cache.as_ref().unwrap().dirty_bytes(), 0);
    assert_eq!(t.on_backing(0, 4096), [1; 4096]);
}

#[test]
fn a_kset_that_cannot_be_stored_is_final() {
    let mut t = Poisoned::new(malloc());
    t.write(0, &[1; 4096]);
    assert_eq!(t.flush(), IoStatus::Ok);
    t.write(4096, &[2; 4096]);
    let log = t.data(0, 0);
    t.pmem.refuse_stores(log);
    assert_eq!(t.try_write(8192, &[3; 4096], true), IoStatus::IoError);
    assert_eq!(t.state(), "read_only");
    assert_eq!(t.try_write(0, &[4; 4096], false), IoStatus::ReadOnly);
    assert_eq!(t.flush(), IoStatus::IoError);
    t.expect(0, 4096, 1);
    t.expect(4096, 4096, 2);
    // Healed or not, this process acknowledges nothing any more.
    t.pmem.heal();
    assert_eq!(t.flush(), IoStatus::IoError);
    assert_eq!(t.try_write(0, &[4; 4096], true), IoStatus::ReadOnly);
    // What was acknowledged and not logged is in the staging file.
    let mut t = t.die_and_heal();
    t.expect(0, 4096, 1);
    t.expect(4096, 4096, 2);
    assert_eq!(t.flush(), IoStatus::Ok);
}

#[test]
fn a_stop_after_a_kset_that_could_not_be_stored_keeps_it_for_the_next_run() {
    let mut t = Poisoned::new(malloc());
    t.write(0, &[1; 4096]);
    let log = t.data(0, 0);
    t.pmem.refuse_stores(log);
    assert_eq!(t.flush(), IoStatus::IoError);
    let cache = t.rig.cache.clone().unwrap();
    t.channel = t.rig.backing.open(t.rig.data[0].cx()).unwrap();
    let mut rounds = 0;
    while !cache.stop_step(rounds > 1000).unwrap() {
        t.rig.step();
        rounds += 1;
        assert!(rounds < 3000, "a stop ends: {:?}", cache.status());
    }
    drop(cache);
    let mut t = t.die_and_heal();
    t.expect(0, 4096, 1);
}

#[test]
fn a_tail_or_generation_that_cannot_be_stored_is_final() {
    // The control area of the cache's first segment has the tails, a data segment's its generation.
    for segment in [0, first_data_segment()] {
        let mut t = Poisoned::new(malloc());
        t.write(0, &[1; 32 << 10]);
        assert_eq!(t.flush(), IoStatus::Ok);
        let control = t.control(segment);
        t.pmem.refuse_stores(control);
        let mut last = IoStatus::Ok;
        for at in (0..4 * DISK).step_by(32 << 10) {
            last = t.try_write(at % (DISK / 2), &[2; 32 << 10], false);
            if last != IoStatus::Ok {
                break;
            }
        }
        assert_eq!((last, t.state()), (IoStatus::ReadOnly, "read_only"));
        t.flush_ends();
        t.expect(0, 32 << 10, 2);
        let mut t = t.die_and_heal();
        t.expect(0, 32 << 10, 2);
        t.flush_ends();
        assert_eq!(t.on_backing(0, 32 << 10), [2; 32 << 10]);
    }
}

#[test]
fn a_hit_that_cannot_be_read_costs_its_key_alone() {
    let mut t = Poisoned::new(malloc());
    t.write(0, &[1; 4096]);
    t.write(4096, &[2; 4096]);
    let bad = t.data(first_data_segment(), 0).start;
    t.pmem.refuse_loads(bad + 512..bad + 513);
    assert_eq!(t.try_read(0, 4096), Err(IoStatus::IoError));
    assert_eq!(t.try_read(0, 8192), Err(IoStatus::IoError));
    t.expect(4096, 4096, 2);
    t.write(0, &[3; 4096]);
    t.expect(0, 4096, 3);
    assert_eq!((t.state(), t.bad_segments()), ("running", 1));
}

#[test]
fn data_that_were_lost_while_the_backing_read_them_are_bad() {
    let disk = VolatileDisk::new(DISK, 1);
    let mut t = Poisoned::new(Arc::new(disk.clone()));
    t.write(0, &[1; 4096]);
    disk.stall(true);
    let cache = t.rig.cache.clone().unwrap();
    cache.flush_start();
    for _ in 0..1000 {
        t.rig.step();
    }
    assert!(cache.is_flushing(), "a write of the backing is under way");
    let bad = t.data(first_data_segment(), 0).start;
    t.pmem.refuse_loads(bad..bad + 4096);
    disk.stall(false);
    for _ in 0..1000 {
        t.rig.step();
    }
    t.flush_ends();
    assert_eq!((cache.dirty_bytes(), cache.bad_bytes()), (0, 4096));
    assert_eq!(t.try_read(0, 4096), Err(IoStatus::IoError));
    drop(cache);
    // Whatever the backing has got: nobody sees it, healed or not.
    let mut t = t.die_and_heal();
    assert_eq!(t.try_read(0, 4096), Err(IoStatus::IoError));
    t.write(0, &[2; 4096]);
    t.flush_ends();
    assert_eq!(t.on_backing(0, 4096), [2; 4096]);
}

fn is_poison<T: std::fmt::Debug>(result: Result<T, CacheError>) {
    match result {
        Err(CacheError::Medium(PmemError::Poison { .. })) => {}
        other => panic!("not a medium's error: {other:?}"),
    }
}

#[test]
fn a_step_of_format_create_or_load_that_cannot_be_stored_is_named_and_can_be_tried_again() {
    let pmem = SlowPmem::new((4 << 20) + 20 * SEGMENT, 0, 1);
    let format = PoolFormat {
        name: "p0".into(),
        uuid: rig::POOL_UUID,
        segment_bytes: SEGMENT,
        force: true,
    };
    let everything = 0..pmem.bytes();
    pmem.refuse_stores(everything.clone());
    is_poison(Pool::format(&pmem, &format));
    pmem.heal();
    pmem.refuse_stores(0..4096);
    is_poison(Pool::format(&pmem, &format));
    pmem.heal();
    Pool::format(&pmem, &format).unwrap();
    let pool = Pool::open(Arc::new(pmem.clone())).unwrap();
    let start = pool.geometry().segment_start(SegmentId(0));
    let backing = malloc();
    let create = CreateCache {
        name: "c0".into(),
        uuid: [5; 16],
        bytes: 20 * SEGMENT,
        lanes: 1,
        block_bytes: 512,
        options: CacheOptions::default(),
        seed: 1,
    };
    for bad in [everything.clone(), start..start + 8192, 0..start] {
        pmem.refuse_stores(bad);
        is_poison(pool.create_cache(&create, &backing.info()));
        assert!(pool.caches().is_empty());
        pmem.heal();
    }
    pool.create_cache(&create, &backing.info()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = RigConfig {
        reactors: 1,
        lanes: 1,
        ..RigConfig::default()
    };
    let mut rig = Rig::over(&config, pool, backing, dir.path());
    for bad in [everything, start..start + 8192] {
        pmem.refuse_stores(bad);
        let load = rig
            .pool
            .load_cache("c0", rig.backing.clone(), &rig.runtime, false);
        is_poison(load.map(|_| ()));
        pmem.heal();
    }
    rig.load();
}

/// Random requests on a medium that takes no stores in some places, until it is read-only or has done
/// `goal` of them; then power fails, and what was promised is on the healed medium.
fn refuse_somewhere(goal: u64, rng: &mut Rng) {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        volume_bytes: (4 << 20) + 65_536,
        keeps_durable: true,
        large_permille: 1,
        spare_segments: 6,
        ..WorldConfig::new(rng.next())
    };
    let pmem = SlowPmem::new(pool_bytes(&config), rng.pick(&[0, 10]), rng.next());
    let disk = VolatileDisk::new(config.volume_bytes, rng.next());
    let run_dir = dir.path().to_path_buf();
    let backing = Arc::new(disk.clone());
    let mut world = World::over(config, Arc::new(pmem.clone()), vec![backing], run_dir);
    world.errors_allowed = true;
    world.run(&Mix::ALL, rng.below(300));
    let start = world.pool.geometry().segment_start(SegmentId(0));
    for _ in 0..1 + rng.below(4) {
        let at = start + rng.below((pmem.bytes() - start) / 512) * 512;
        pmem.refuse_stores(at..at + 512 * (1 + rng.below(32)));
    }
    let goal = world.operations + goal;
    world.until("it is read-only, or enough was done", |world| {
        if world.under_way() < world.config.depth {
            world.submit_random(&Mix::ALL);
        }
        world.operations >= goal || world.cache(0).status().state == "read_only"
    });
    // Everybody gets an answer, and reads of cached data are right.
    world.drain();
    world.check_volumes();
    let allowed = [IoStatus::IoError, IoStatus::ReadOnly];
    let statuses = &world.error_statuses;
    assert!(statuses.iter().all(|s| allowed.contains(s)), "{statuses:?}");
    if rng.permille(500) {
        world.stop(1000);
    }
    let pmem = pmem.cut_power(rng);
    world.volumes[0].backing = Arc::new(disk.cut_power(rng));
    world.lose_power(Arc::new(pmem), 2);
    world.load();
    world.settle(true);
    world.errors_allowed = false;
    world.run(&Mix::ALL, 200);
    world.drain();
    world.flush_all();
    world.check_backings();
}

#[test]
fn stores_that_fail_anywhere_break_no_promise() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    for _ in 0..if is_full_run() { 60 } else { 8 } {
        refuse_somewhere(1500, &mut rng);
    }
}
