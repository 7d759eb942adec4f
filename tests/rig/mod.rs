//! The engine on reactors that one thread drives step by step, over memory.
#![allow(dead_code, reason = "each test uses its part of the rig")]

pub(crate) mod bench;
pub(crate) mod disks;
pub(crate) mod gate;
mod lives;
mod mix;
pub(crate) mod modes;
pub(crate) mod rng;
pub(crate) mod sectors;
pub(crate) mod slow_pmem;
pub(crate) mod world;

use pmcache::bdev::pmem::{PersistenceWish, PmemBdev, PmemConfig};
use pmcache::bdev::{Bdev, Channel, Completion, Data, IoBuf, IoStatus, Op, Pmem, Request};
use pmcache::cache::{
    Cache, CacheError, CacheOptions, CreateCache, LoadWish, Loading, Pool, PoolFormat, Runtime,
};
use pmcache::units::ByteRange;
use reactors::{IdlePolicy, ManualClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::path::Path;
use std::sync::Arc;

/// Reactors, a pool and a cache in front of a backing.
pub(crate) struct Rig {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) data: Vec<Reactor>,
    pub(crate) maintenance: Reactor,
    pub(crate) runtime: Runtime,
    pub(crate) pool: Arc<Pool>,
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) backing: Arc<dyn Bdev>,
    name: String,
}

/// Of the pool that every rig formats.
pub(crate) const POOL_UUID: [u8; 16] = [3; 16];

/// A volatile pool in anonymous memory.
pub(crate) fn anonymous_pmem(name: &str, bytes: u64) -> Arc<dyn Pmem> {
    let config = PmemConfig {
        size: Some(bytes),
        persistence: PersistenceWish::Volatile,
        ..PmemConfig::new(name, "anon:")
    };
    PmemBdev::open(config).unwrap().pmem().unwrap()
}

/// How to build a [`Rig`].
pub(crate) struct RigConfig {
    pub(crate) reactors: u32,
    pub(crate) lanes: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) segments: u64,
    pub(crate) options: CacheOptions,
    pub(crate) seed: u64,
}

impl Default for RigConfig {
    fn default() -> Self {
        Self {
            reactors: 2,
            lanes: 3,
            segment_bytes: 256 << 10,
            segments: 30,
            options: CacheOptions::default(),
            seed: 1,
        }
    }
}

pub(crate) fn reactors(
    count: u32,
    clock: &Arc<ManualClock>,
    seed: u64,
) -> (Vec<Reactor>, Arc<Quiescence>) {
    let quiescence = Quiescence::new(count as usize);
    let made = (0..count).map(|id| {
        let config = ReactorConfig {
            id: ReactorId(id),
            idle: IdlePolicy::Poll,
            seed: seed + u64::from(id),
        };
        Reactor::new(&config, clock.clone(), quiescence.clone()).unwrap()
    });
    (made.collect(), quiescence)
}

pub(crate) fn runtime(
    data: &[Reactor],
    maintenance: &Reactor,
    quiescence: Arc<Quiescence>,
    run_dir: &Path,
    seed: u64,
) -> Runtime {
    Runtime {
        data: data.iter().map(Reactor::handle).collect(),
        maintenance: vec![maintenance.handle()],
        quiescence,
        clock: Arc::new(ManualClock::default()),
        run_dir: run_dir.to_path_buf(),
        boot_id: [7; 16],
        seed,
    }
}

/// Takes a load to its end; `step` lets the reactors run.
pub(crate) fn load_by_steps(
    mut loading: Loading,
    mut step: impl FnMut(),
) -> Result<Arc<Cache>, CacheError> {
    for _ in 0..10_000 {
        if let Some(cache) = loading.step(false)? {
            return Ok(cache);
        }
        step();
    }
    panic!("the backing does not answer");
}

/// Makes the engine on this thread faulty, if `PMCACHE_FAULT` names a fault: the test should fail then.
#[cfg(feature = "fault-injection")]
pub(crate) fn inject_fault() {
    if let Ok(name) = std::env::var("PMCACHE_FAULT") {
        let fault = name.parse().expect("PMCACHE_FAULT is the name of a fault");
        pmcache::cache::inject(Some(fault));
    }
}

#[cfg(not(feature = "fault-injection"))]
pub(crate) fn inject_fault() {}

impl Rig {
    /// Formats a pool in `pmem`, makes a cache over all of it, and loads it.
    pub(crate) fn new(
        config: &RigConfig,
        pmem: Arc<dyn Pmem>,
        backing: Arc<dyn Bdev>,
        run_dir: &Path,
    ) -> Self {
        Pool::format(
            &*pmem,
            &PoolFormat {
                name: "p0".into(),
                uuid: POOL_UUID,
                segment_bytes: config.segment_bytes,
                force: true,
            },
        )
        .unwrap();
        let pool = Pool::open(pmem).unwrap();
        let create = CreateCache {
            name: "c0".into(),
            uuid: [5; 16],
            bytes: config.segments * config.segment_bytes,
            lanes: config.lanes,
            block_bytes: 512,
            options: config.options.clone(),
            seed: config.seed,
        };
        pool.create_cache(&create, &backing.info()).unwrap();
        let mut rig = Self::over(config, pool, backing, run_dir);
        rig.load();
        rig
    }

    /// Fresh reactors over a pool that exists; nothing is loaded.
    pub(crate) fn over(
        config: &RigConfig,
        pool: Arc<Pool>,
        backing: Arc<dyn Bdev>,
        run_dir: &Path,
    ) -> Self {
        let clock = Arc::new(ManualClock::default());
        let (mut all, quiescence) = reactors(config.reactors + 1, &clock, config.seed);
        let maintenance = all.pop().unwrap();
        let runtime = runtime(&all, &maintenance, quiescence, run_dir, config.seed);
        Self {
            clock,
            data: all,
            maintenance,
            runtime,
            pool,
            cache: None,
            backing,
            name: "c0".into(),
        }
    }

    /// Loads the cache and waits until its parts run.
    pub(crate) fn load(&mut self) {
        self.try_load(LoadWish::default()).unwrap();
    }

    /// As [`Rig::load`], for a load that may be refused.
    pub(crate) fn try_load(&mut self, wish: LoadWish) -> Result<Arc<Cache>, CacheError> {
        let backing = self.backing.clone();
        let loading = self
            .pool
            .load_start(&self.name, backing, &self.runtime, wish)?;
        let cache = load_by_steps(loading, || self.step())?;
        for _ in 0..100 {
            if cache.is_installed().unwrap() {
                break;
            }
            self.step();
        }
        assert!(cache.is_installed().unwrap(), "the parts have started");
        self.cache = Some(cache.clone());
        Ok(cache)
    }

    /// One round of every reactor; 10 µs pass.
    pub(crate) fn step(&mut self) {
        self.clock.advance(10_000);
        for reactor in &mut self.data {
            reactor.step();
        }
        self.maintenance.step();
    }

    /// Stops the cache cleanly.
    pub(crate) fn stop(&mut self) {
        let cache = self.cache.take().unwrap();
        for round in 0..200_000 {
            if cache.stop_step(false).unwrap() {
                return;
            }
            assert!(round < 199_999, "stop ends: {:?}", cache.status());
            self.step();
        }
    }

    /// The process "dies": everything in memory is gone, the pool's and the staging file's bytes stay.
    pub(crate) fn die(self) -> (Arc<Pool>, Arc<dyn Bdev>) {
        (self.pool.clone(), self.backing.clone())
    }

    /// Opens a channel to the cache on reactor `number`.
    pub(crate) fn open(&self, number: usize) -> Box<dyn Channel> {
        self.cache
            .as_ref()
            .unwrap()
            .open(self.data[number].cx())
            .unwrap()
    }

    /// Submits one request on a channel of reactor `number` and steps until it ends.
    pub(crate) fn run(
        &mut self,
        channel: &mut dyn Channel,
        number: usize,
        request: Request,
    ) -> Completion {
        channel.submit(self.data[number].cx(), request);
        let mut done = Vec::new();
        for _ in 0..400_000 {
            channel.poll(self.data[number].cx(), &mut done);
            if let Some(completion) = done.pop() {
                return completion;
            }
            self.step();
        }
        panic!(
            "a request did not end: {:?}",
            self.cache.as_ref().map(|c| c.status())
        );
    }

    /// Writes, and asserts that it worked.
    pub(crate) fn write(&mut self, channel: &mut dyn Channel, at: u64, bytes: &[u8], fua: bool) {
        let range = ByteRange::between(at, at + bytes.len() as u64);
        let data = Data::Buf(IoBuf::copy_of(bytes));
        let done = self.run(
            channel,
            0,
            Request {
                tag: 1,
                op: Op::Write { fua },
                range,
                data,
            },
        );
        assert_eq!(done.status, IoStatus::Ok);
    }

    /// Reads, and asserts that it worked.
    pub(crate) fn read(&mut self, channel: &mut dyn Channel, at: u64, len: usize) -> Vec<u8> {
        let range = ByteRange::between(at, at + len as u64);
        let data = Data::Buf(IoBuf::zeroed(len));
        let done = self.run(
            channel,
            0,
            Request {
                tag: 2,
                op: Op::Read,
                range,
                data,
            },
        );
        assert_eq!(done.status, IoStatus::Ok);
        done.data.into_buf().unwrap().to_vec()
    }

    /// Does something without payload, and asserts that it worked.
    pub(crate) fn act(&mut self, channel: &mut dyn Channel, op: Op, range: ByteRange) {
        let done = self.run(
            channel,
            0,
            Request {
                tag: 3,
                op,
                range,
                data: Data::None,
            },
        );
        assert_eq!(done.status, IoStatus::Ok, "{op:?}");
    }

    /// Writes everything back.
    pub(crate) fn flush_all(&mut self) {
        let cache = self.cache.clone().unwrap();
        cache.flush_start();
        for _ in 0..400_000 {
            if !cache.is_flushing() {
                assert_eq!(cache.dirty_bytes(), 0);
                return;
            }
            self.step();
        }
        panic!("the flush did not end: {:?}", cache.status());
    }
}
