//! What a hit may not do: allocate, call the system, take a lock. Counted, not timed.

use super::try_lock::ASKED;
use super::{CacheOptions, CreateCache, LoadWish, Pool, PoolFormat, Runtime};
use crate::bdev::pmem::{PersistenceWish, PmemBdev, PmemConfig};
use crate::bdev::{
    Bdev, Channel, Completion, Data, IoBuf, IoStatus, MallocBdev, MallocConfig, Op, Request,
};
use crate::media::KEYS_MAX;
use crate::units::ByteRange;
use reactors::{IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use uuid::Uuid;

const SEGMENT: u64 = 2 << 20;
const POOL: u64 = 256 << 20;
const BYTES: u64 = 8 << 20;
const PAGE: u64 = 4096;
/// Set for the child that may not call the system.
const CHILD: &str = "PMCACHE_TEST_NO_SYSCALLS";

/// A cache whose lanes and maintenance this thread drives.
struct Rig {
    data: Reactor,
    maintenance: Reactor,
    channel: Box<dyn Channel>,
    buf: Option<IoBuf>,
    done: Vec<Completion>,
    _run_dir: tempfile::TempDir,
}

fn malloc() -> Arc<MallocBdev> {
    let config = MallocConfig {
        name: "b".into(),
        uuid: Uuid::nil(),
        block_size: 512,
        blocks: BYTES / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

fn pool() -> Arc<Pool> {
    let config = PmemConfig {
        size: Some(POOL),
        persistence: PersistenceWish::Volatile,
        ..PmemConfig::new("p", "anon:")
    };
    let pmem = PmemBdev::open(config).unwrap().pmem().unwrap();
    let format = PoolFormat {
        name: "p".into(),
        uuid: [1; 16],
        segment_bytes: SEGMENT,
        force: false,
    };
    Pool::format(&*pmem, &format).unwrap();
    Pool::open(pmem).unwrap()
}

impl Rig {
    /// All blocks are cached, and everything that grows has grown.
    fn new() -> Self {
        let (pool, backing) = (pool(), malloc());
        let create = CreateCache {
            name: "c".into(),
            uuid: [2; 16],
            bytes: u64::from(pool.geometry().segments) * SEGMENT,
            lanes: 2,
            block_bytes: 512,
            options: CacheOptions::default(),
            seed: 1,
        };
        pool.create_cache(&create, &backing.info()).unwrap();
        let (clock, quiescence) = (Arc::new(MonotonicClock), Quiescence::new(2));
        let reactor = |id| {
            let config = ReactorConfig {
                id: ReactorId(id),
                idle: IdlePolicy::Poll,
                seed: 1,
            };
            Reactor::new(&config, clock.clone(), quiescence.clone()).unwrap()
        };
        let (mut data, mut maintenance) = (reactor(0), reactor(1));
        let run_dir = tempfile::tempdir().unwrap();
        let runtime = Runtime {
            data: vec![data.handle()],
            maintenance: vec![maintenance.handle()],
            quiescence: quiescence.clone(),
            clock: clock.clone(),
            run_dir: run_dir.path().into(),
            boot_id: [7; 16],
            seed: 1,
        };
        let wish = LoadWish::default();
        let mut loading = pool.load_start("c", backing, &runtime, wish).unwrap();
        let cache = loop {
            if let Some(cache) = loading.step(false).unwrap() {
                break cache;
            }
            data.step();
            maintenance.step();
        };
        while !cache.is_installed().unwrap() {
            data.step();
            maintenance.step();
        }
        let channel = cache.open(data.cx()).unwrap();
        let mut rig = Self {
            data,
            maintenance,
            channel,
            buf: Some(IoBuf::zeroed(4096)),
            done: Vec::with_capacity(16),
            _run_dir: run_dir,
        };
        for _ in 0..3 {
            for page in 0..BYTES / PAGE {
                rig.hit(Op::Write { fua: false }, page);
                rig.maintenance.step();
            }
        }
        rig
    }

    /// One request that ends at once, and a round of the reactor.
    fn hit(&mut self, op: Op, page: u64) {
        let range = ByteRange::between(page * PAGE, (page + 1) * PAGE);
        let data = Data::Buf(self.buf.take().unwrap());
        let request = Request {
            tag: 1,
            op,
            range,
            data,
        };
        self.channel.submit(self.data.cx(), request);
        self.channel.poll(self.data.cx(), &mut self.done);
        let completion = self.done.pop().unwrap();
        assert_eq!(completion.status, IoStatus::Ok);
        self.buf = completion.data.into_buf();
        self.data.step();
    }

    /// Reads every block, then overwrites a part of them.
    fn read_hits(&mut self) {
        for page in 0..BYTES / PAGE {
            self.hit(Op::Read, page * 7 % (BYTES / PAGE));
        }
    }

    /// Overwrites: as many as fit the segment that the lane fills, so that none wants another one.
    fn write_hits(&mut self, count: u64) {
        for page in 0..count {
            self.hit(Op::Write { fua: false }, page * 7 % (BYTES / PAGE));
        }
    }
}

#[test]
fn a_hit_allocates_nothing() {
    let mut rig = Rig::new();
    let reads = allocation_counter::measure(|| rig.read_hits());
    assert_eq!(reads.count_total, 0, "{reads:?}");
    let writes = allocation_counter::measure(|| rig.write_hits(1500));
    assert_eq!(writes.count_total, 0, "{writes:?}");
    let counted = allocation_counter::measure(|| drop(IoBuf::zeroed(4096)));
    assert!(counted.count_total > 0, "it counts");
}

#[test]
fn a_read_hit_asks_for_no_lock_and_a_write_hit_for_one_a_kset() {
    let mut rig = Rig::new();
    let before = ASKED.get();
    rig.read_hits();
    assert_eq!(ASKED.get(), before);
    let count = 1500_u64;
    rig.write_hits(count);
    let asked = ASKED.get() - before;
    // Each kset asks for the log twice, to be promised room and to take its place; and each segment
    // that a lane begins for the allocator.
    let ksets = count / KEYS_MAX as u64 + 2;
    let segments = count * PAGE / SEGMENT + 2;
    assert!(asked > 0 && asked <= 2 * ksets + segments, "{asked}");
}

/// Ends the process at its next system call but a few that end it.
fn forbid_system_calls() {
    let allowed = [
        libc::SYS_sigaltstack,
        libc::SYS_munmap,
        libc::SYS_exit_group,
    ];
    let rules = BTreeMap::from(allowed.map(|call| (call, Vec::new())));
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter(&program).unwrap();
}

#[test]
fn a_hit_calls_no_system() {
    if let Ok(what) = std::env::var(CHILD) {
        let mut rig = Rig::new();
        forbid_system_calls();
        rig.read_hits();
        rig.write_hits(1500);
        if what == "and then one" {
            let _ = std::fs::metadata("/");
        }
        std::process::exit(77);
    }
    let test = "cache::hot_path_tests::a_hit_calls_no_system";
    let run = |what: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, what);
        output.output().unwrap()
    };
    let none = run("none");
    assert_eq!(none.status.code(), Some(77), "{none:?}");
    let one = run("and then one");
    assert_ne!(one.status.code(), Some(77), "the filter ends a process");
}
