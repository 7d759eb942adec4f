//! What the structures of a cache cost that are on the way of each request: the key index, and the
//! kset that a write's key is appended to: `cargo bench --bench engine`.
//!
//! One reactor drives a cache on anonymous memory, as in `src/cache/hot_path_tests.rs`; maintenance
//! gets its turns between samples, outside of what is timed. Without CRC, so that the structures
//! show. Run as a test, everything happens once on a small cache.
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use divan::Bencher;
use pmcache::bdev::pmem::{PersistenceWish, PmemBdev, PmemConfig};
use pmcache::bdev::{
    Bdev, Channel, Completion, Data, IoBuf, IoStatus, MallocBdev, MallocConfig, Op, Request,
};
use pmcache::cache::{CacheOptions, CreateCache, LoadWish, Pool, PoolFormat, Runtime};
use pmcache::units::ByteRange;
use reactors::{IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::cell::RefCell;
use std::sync::Arc;
use uuid::Uuid;

const SEGMENT: u64 = 2 << 20;
const BYTES: u64 = if cfg!(debug_assertions) { 8 } else { 256 } << 20;
const POOL: u64 = if cfg!(debug_assertions) { 128 } else { 1024 } << 20;
/// Requests of a sample, between two of which maintenance rests.
const SAMPLE: u32 = 500;
const WRITE: Op = Op::Write { fua: false };

fn main() {
    divan::main();
}

struct Rig {
    data: Reactor,
    maintenance: Reactor,
    channel: Box<dyn Channel>,
    buf: Option<IoBuf>,
    done: Vec<Completion>,
    state: u64,
    _run_dir: tempfile::TempDir,
}

fn backing() -> Arc<MallocBdev> {
    let config = MallocConfig {
        name: "backing".into(),
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
        ..PmemConfig::new("pool", "anon:")
    };
    let pmem = PmemBdev::open(config).unwrap().pmem().unwrap();
    let format = PoolFormat {
        name: "pool".into(),
        uuid: [1; 16],
        segment_bytes: SEGMENT,
        force: false,
    };
    Pool::format(&*pmem, &format).unwrap();
    Pool::open(pmem).unwrap()
}

impl Rig {
    /// A cache that holds the device once, written in requests of `unit` bytes.
    fn new(unit: u64) -> RefCell<Self> {
        let (pool, backing) = (pool(), backing());
        let create = CreateCache {
            name: "cache".into(),
            uuid: [2; 16],
            bytes: u64::from(pool.geometry().segments) * SEGMENT,
            lanes: 2,
            block_bytes: 512,
            options: CacheOptions {
                data_crc: false,
                verify_reads: false,
                ..CacheOptions::default()
            },
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
        let mut loading = pool.load_start("cache", backing, &runtime, wish).unwrap();
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
            buf: None,
            done: Vec::with_capacity(16),
            state: 1,
            _run_dir: run_dir,
        };
        for at in (0..BYTES).step_by(usize::try_from(unit).unwrap()) {
            rig.request(WRITE, at, unit);
            rig.maintenance.step();
        }
        RefCell::new(rig)
    }

    /// One request, waited for. Maintenance has turns only if that takes long: then it is for room.
    fn request(&mut self, op: Op, at: u64, bytes: u64) {
        let len = usize::try_from(bytes).unwrap();
        let buf = self.buf.take().filter(|buf| buf.len() == len);
        let request = Request {
            tag: 1,
            op,
            range: ByteRange::between(at, at + bytes),
            data: Data::Buf(buf.unwrap_or_else(|| IoBuf::zeroed(len))),
        };
        self.channel.submit(self.data.cx(), request);
        loop {
            self.channel.poll(self.data.cx(), &mut self.done);
            self.data.step();
            if let Some(completion) = self.done.pop() {
                assert_eq!(completion.status, IoStatus::Ok);
                self.buf = completion.data.into_buf();
                return;
            }
            self.maintenance.step();
        }
    }

    /// A place for `unit` bytes that nothing foresees.
    fn place(&mut self, unit: u64) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % (BYTES / unit) * unit
    }
}

/// Times requests of `bytes` at multiples of them, on a cache that was written in `unit` bytes.
fn requests(bencher: Bencher<'_, '_>, op: Op, bytes: u64, unit: u64) {
    let rig = Rig::new(unit);
    bencher
        .with_inputs(|| {
            let mut rig = rig.borrow_mut();
            rig.maintenance.step();
            rig.place(bytes)
        })
        .bench_local_values(|at| rig.borrow_mut().request(op, at, bytes));
}

/// A look-up that finds one key, and the copy of its data.
#[divan::bench(sample_size = SAMPLE)]
fn read_hit_4k(bencher: Bencher<'_, '_>) {
    requests(bencher, Op::Read, 4096, 4096);
}

/// A look-up that puts eight keys together.
#[divan::bench(sample_size = SAMPLE)]
fn read_hit_4k_of_512b(bencher: Bencher<'_, '_>) {
    requests(bencher, Op::Read, 4096, 512);
}

/// Appends a key to the kset, and replaces one of the same range in the index.
#[divan::bench(sample_size = SAMPLE)]
fn write_hit_4k(bencher: Bencher<'_, '_>) {
    requests(bencher, WRITE, 4096, 4096);
}

/// The same where nearly nothing is copied.
#[divan::bench(sample_size = SAMPLE)]
fn write_hit_512b(bencher: Bencher<'_, '_>) {
    requests(bencher, WRITE, 512, 512);
}

/// Cuts a larger key in two, and inserts between them.
#[divan::bench(sample_size = SAMPLE)]
fn write_512b_into_64k(bencher: Bencher<'_, '_>) {
    requests(bencher, WRITE, 512, 65536);
}
