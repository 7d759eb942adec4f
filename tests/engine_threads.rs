//! The engine on real threads that sleep whenever they may: nobody is left waiting for a doorbell that
//! nobody rings.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{
    Bdev, Channel, Completion, Data, DelayBdev, DelayLatencies, IoBuf, IoStatus, MallocBdev,
    MallocConfig, Op, Request,
};
use pmcache::cache::{Cache, CacheOptions, CreateCache, Pool, PoolFormat, Runtime, segments_min};
use pmcache::units::ByteRange;
use reactors::{
    Clock, Cx, IdlePolicy, MonotonicClock, Nanos, Poller, Reactors, ReactorsConfig, Wake,
};
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use rig::{POOL_UUID, anonymous_pmem};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const SEGMENT: u64 = 256 << 10;
const REGION: u64 = 3 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// How a client fared.
#[derive(Debug)]
struct Outcome {
    operations: u64,
    slowest_ns: u64,
}

/// The byte that a block of this version is full of.
fn filler(version: u64) -> u8 {
    u8::try_from(version % 251).unwrap()
}

/// A client with a region of its own, so that a byte array is model enough: it keeps a few requests
/// under way that do not overlap each other.
struct ClientPoller {
    channel: Box<dyn Channel>,
    base: u64,
    /// Version of each block of 4 KiB.
    model: Vec<u64>,
    under_way: HashMap<u64, (Op, ByteRange, u64, Nanos)>,
    rng: Rng,
    depth: usize,
    left: u64,
    next: u64,
    outcome: Outcome,
    report: Sender<Outcome>,
}

impl ClientPoller {
    fn submit(&mut self, cx: &Cx) {
        let blocks = 1 + self.rng.below(64);
        let start = self.rng.below(REGION / 4096 - blocks);
        let range = ByteRange::between(start * 4096, (start + blocks) * 4096);
        let busy = |other: &ByteRange| other.overlaps(range);
        if self.under_way.values().any(|(_, other, ..)| busy(other)) {
            return;
        }
        let op = match self.rng.below(100) {
            0..=54 => Op::Write {
                fua: self.rng.permille(50),
            },
            55..=96 => Op::Read,
            _ => Op::Flush,
        };
        let tag = self.next;
        self.next += 1;
        let len = usize::try_from(range.len()).unwrap();
        let mut data = Data::None;
        if op != Op::Flush {
            let mut buf = IoBuf::zeroed(len);
            if op != Op::Read {
                for block in buf.chunks_exact_mut(4096) {
                    block.fill(filler(tag));
                    block[..8].copy_from_slice(&tag.to_le_bytes());
                }
            }
            data = Data::Buf(buf);
        }
        let range_on_volume =
            ByteRange::between(self.base + range.start(), self.base + range.end());
        let range = if op == Op::Flush {
            ByteRange::default()
        } else {
            range
        };
        self.under_way.insert(tag, (op, range, tag, cx.now()));
        let request = Request {
            tag,
            op,
            range: range_on_volume,
            data,
        };
        self.channel.submit(cx, request);
    }

    fn ended(&mut self, cx: &Cx, done: Completion) {
        let (op, range, version, since) = self.under_way.remove(&done.tag).unwrap();
        assert_eq!(done.status, IoStatus::Ok, "{op:?} of {range}");
        self.outcome.operations += 1;
        self.outcome.slowest_ns = self.outcome.slowest_ns.max(cx.now().since(since));
        let first = usize::try_from(range.start() / 4096).unwrap();
        match op {
            Op::Write { .. } => {
                let count = usize::try_from(range.len() / 4096).unwrap();
                self.model[first..first + count].fill(version);
            }
            Op::Read => {
                let buf = done.data.into_buf().unwrap();
                for (place, block) in buf.chunks_exact(4096).enumerate() {
                    let version = self.model[first + place];
                    let found = u64::from_le_bytes(block[..8].try_into().unwrap());
                    assert_eq!(found, version, "block {} of {range}", first + place);
                    let fill = filler(version);
                    assert!(block[8..].iter().all(|b| *b == fill), "torn block");
                }
            }
            _ => {}
        }
    }
}

impl Poller for ClientPoller {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let mut done = Vec::new();
        let count = self.channel.poll(cx, &mut done);
        for completion in done {
            self.ended(cx, completion);
        }
        if self.left == 0 && self.under_way.is_empty() {
            // Whoever listens has all it wants with the first one.
            let _ = self.report.send(Outcome { ..self.outcome });
            self.left = u64::MAX;
        }
        while self.left > 0 && self.left < u64::MAX && self.under_way.len() < self.depth {
            self.left -= 1;
            self.submit(cx);
        }
        count
    }

    fn wake(&self) -> Wake {
        let idle = self.under_way.is_empty() && self.left < u64::MAX;
        if idle { Wake::Now } else { self.channel.wake() }
    }
}

fn start_client(
    cache: &Arc<Cache>,
    reactors: &Reactors,
    number: usize,
    operations: u64,
    seed: u64,
    report: Sender<Outcome>,
) {
    let cache = cache.clone();
    let handle = reactors.data_handles()[number % reactors.data_handles().len()].clone();
    let start = move |cx: &Cx| {
        let channel = cache.open(cx).unwrap();
        let poller = ClientPoller {
            channel,
            base: number as u64 * REGION,
            model: vec![0; usize::try_from(REGION / 4096).unwrap()],
            under_way: HashMap::new(),
            rng: Rng::new(seed + number as u64),
            depth: 1 + number % 4 * 4,
            left: operations,
            next: 1,
            outcome: Outcome {
                operations: 0,
                slowest_ns: 0,
            },
            report,
        };
        cx.add_poller("client", Box::new(poller));
    };
    handle.call(PATIENCE, start).unwrap();
}

fn wait_for(what: &str, clock: &MonotonicClock, mut done: impl FnMut() -> bool) {
    let since = clock.now();
    while !done() {
        std::thread::yield_now();
        let waited = Duration::from_nanos(clock.now().since(since));
        assert!(waited < PATIENCE, "{what} takes too long");
    }
}

fn outcomes(results: &Receiver<Outcome>, count: usize, cache: &Cache) -> Vec<Outcome> {
    let next = |_| {
        results.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let figures = (
                cache.figures(),
                cache.writeback_figures(),
                cache.gc_figures(),
            );
            panic!("a client does not end: {:#?} {figures:#?}", cache.status())
        })
    };
    (0..count).map(next).collect()
}

/// A backing that takes its time.
fn slow_backing() -> Arc<dyn Bdev> {
    let disk = MallocBdev::new(MallocConfig {
        name: "disk0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: 8 * REGION / 512,
    });
    let latencies = DelayLatencies {
        avg_read_us: 50,
        p99_read_us: 500,
        avg_write_us: 50,
        p99_write_us: 500,
    };
    Arc::new(DelayBdev::new("slow0".into(), Arc::new(disk.unwrap()), latencies, None).unwrap())
}

/// Damages what clients wrote, wherever it stands; the log stays whole.
fn lose_data(pool: &Pool) {
    let pmem = pool.pmem();
    let mut bytes = vec![0; usize::try_from(pmem.bytes()).unwrap()];
    pmem.load(0, &mut bytes).unwrap();
    for place in (0..bytes.len() - 4095).step_by(512) {
        let (tag, rest) = bytes[place..place + 4096].split_at(8);
        let fill = filler(u64::from_le_bytes(tag.try_into().unwrap()));
        if fill != 0 && rest.iter().all(|byte| *byte == fill) {
            pmem.store(place as u64 + 64, &[!fill; 8]).unwrap();
        }
    }
}

fn run(idle: IdlePolicy, cores: usize, operations: u64, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let clock = MonotonicClock;
    let config = ReactorsConfig {
        cores: (0..cores).collect(),
        maintenance: vec![None, None],
        idle,
        seed,
        clock: Arc::new(MonotonicClock),
    };
    let reactors = Reactors::start(config).unwrap();
    let runtime = Runtime {
        data: reactors.data_handles().to_vec(),
        maintenance: reactors.maintenance_handles().to_vec(),
        quiescence: reactors.quiescence(),
        clock: Arc::new(MonotonicClock),
        run_dir: dir.path().to_path_buf(),
        boot_id: [7; 16],
        seed,
    };
    let lanes = 4;
    let segments = u64::from(segments_min(lanes, SEGMENT));
    let pmem = anonymous_pmem("p0", (segments + 8) * SEGMENT);
    let format = PoolFormat {
        name: "p0".into(),
        uuid: POOL_UUID,
        segment_bytes: SEGMENT,
        force: true,
    };
    Pool::format(&*pmem, &format).unwrap();
    let pool = Pool::open(pmem).unwrap();
    let backing = slow_backing();
    let create = CreateCache {
        name: "c0".into(),
        uuid: [5; 16],
        bytes: segments * SEGMENT,
        lanes,
        block_bytes: 512,
        options: CacheOptions {
            // Nothing of this may have to wait for an open kset's age.
            kset_flush_ms: 60_000,
            ..CacheOptions::default()
        },
        seed,
    };
    pool.create_cache(&create, &backing.info()).unwrap();
    let cache = pool.load_cache("c0", backing, &runtime, false).unwrap();
    wait_for("the start", &clock, || cache.is_installed().unwrap());
    let (report, results) = channel();
    for number in 0..8 {
        start_client(&cache, &reactors, number, operations, seed, report.clone());
    }
    let outcomes = outcomes(&results, 8, &cache);
    let figures = cache.figures();
    println!(
        "{idle:?}, {cores} cores: {} waits of {} us; {outcomes:?}",
        figures.space_waits,
        figures.space_wait_ns / 1000 / figures.space_waits.max(1)
    );
    assert!(figures.space_waits > 0, "{figures:?}");
    // A doorbell that nobody rang would cost the second after which maintenance looks by itself.
    assert!(
        figures.space_wait_ns / figures.space_waits < 500_000_000,
        "{figures:?}"
    );
    // Lanes are asked for BAD keys, and answer.
    let dirty = cache.dirty_bytes();
    lose_data(&pool);
    cache.flush_start();
    wait_for("a flush", &clock, || !cache.is_flushing());
    assert_eq!(cache.dirty_bytes(), 0);
    let bad = cache.bad_bytes();
    println!("of {dirty} dirty bytes {bad} became BAD");
    reactors.stop();
}

#[test]
fn sleeping_reactors_are_woken_for_all_there_is_to_do() {
    let seed = seed();
    let _say = SaySeed(seed);
    let operations = if is_full_run() { 3000 } else { 800 };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    run(IdlePolicy::Interrupt, 1, operations, seed);
    run(IdlePolicy::Interrupt, cores, operations, seed);
    run(IdlePolicy::Poll, cores, operations, seed);
}
