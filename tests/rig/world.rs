//! Caches, reactors and clients in one thread, driven at random, with the model beside them.

pub(crate) use super::mix::Mix;
use super::rng::Rng;
use super::sectors::{SECTOR, Sectors, Version, fill};
use super::slow_pmem::{CONTROL, act_as};
use super::{POOL_UUID, anonymous_pmem, inject_fault, load_by_steps, reactors, runtime};
use pmcache::bdev::{
    Bdev, Channel, Completion, Data, IoBuf, IoStatus, MallocBdev, MallocConfig, Op, Pmem, Request,
};
use pmcache::cache::{
    Cache, CacheError, CacheOptions, CreateCache, LoadWish, Pool, PoolFormat, Runtime, segments_min,
};
use pmcache::units::ByteRange;
use reactors::{ManualClock, Reactor};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// How a [`World`] is made.
#[derive(Clone)]
pub(crate) struct WorldConfig {
    pub(crate) reactors: u32,
    pub(crate) caches: usize,
    pub(crate) lanes: u32,
    pub(crate) segment_bytes: u64,
    /// Segments of each cache above the fewest that are allowed.
    pub(crate) spare_segments: u32,
    /// Bytes of each volume.
    pub(crate) volume_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) options: CacheOptions,
    pub(crate) seed: u64,
    /// Requests under way at most, over all clients.
    pub(crate) depth: usize,
    pub(crate) clients: usize,
    /// How many requests in a thousand may be up to 4 MiB.
    pub(crate) large_permille: u64,
    /// Power may be cut.
    pub(crate) keeps_durable: bool,
}

impl WorldConfig {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            reactors: 2,
            caches: 1,
            lanes: 3,
            segment_bytes: 256 << 10,
            spare_segments: 0,
            volume_bytes: (12 << 20) + 4096 * 7,
            block_bytes: 512,
            options: CacheOptions::default(),
            seed,
            depth: 24,
            clients: 4,
            large_permille: 10,
            keeps_durable: false,
        }
    }
}

/// What the machine runs on and what outlives the process.
pub(crate) struct Volume {
    name: String,
    pub(crate) backing: Arc<dyn Bdev>,
    pub(crate) model: Sectors,
    pub(crate) cache: Option<Arc<Cache>>,
}

pub(super) struct Client {
    pub(super) reactor: usize,
    pub(super) volume: usize,
    pub(super) channel: Box<dyn Channel>,
    pub(super) under_way: usize,
}

pub(super) struct Flight {
    pub(super) client: usize,
    pub(super) op: Op,
    range: ByteRange,
    version: Version,
    pub(super) since: u64,
    turn: u64,
}

/// See the module.
pub(crate) struct World {
    pub(crate) config: WorldConfig,
    pub(crate) rng: Rng,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) data: Vec<Reactor>,
    pub(crate) maintenance: Reactor,
    pub(super) runtime: Runtime,
    pub(crate) pmem: Arc<dyn Pmem>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) volumes: Vec<Volume>,
    pub(super) clients: Vec<Client>,
    pub(super) flights: HashMap<u64, Flight>,
    next_tag: u64,
    turns: u64,
    /// Requests that have ended.
    pub(crate) operations: u64,
    /// Requests that ended with an error that was allowed.
    pub(crate) errors: u64,
    /// What these errors were.
    pub(crate) error_statuses: Vec<IoStatus>,
    /// Errors of reads and writes are no failure of the test.
    pub(crate) errors_allowed: bool,
    /// A request that takes more turns is held to be stuck.
    pub(crate) turns_max: u64,
    /// Every acknowledged modification is durable (`durability = write`).
    pub(crate) durable_writes: bool,
    /// Now and then a third of a second passes.
    pub(crate) jumps: bool,
    pub(super) run_dir: PathBuf,
    pub(super) boot: u8,
}

pub(crate) fn backing(config: &WorldConfig, number: usize) -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: format!("disk{number}"),
        uuid: uuid::Uuid::from_bytes([9 + u8::try_from(number).unwrap(); 16]),
        block_size: 512,
        blocks: config.volume_bytes / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

/// Bytes that a pool needs for these caches.
pub(crate) fn pool_bytes(config: &WorldConfig) -> u64 {
    let each = segments_min(config.lanes, config.segment_bytes) + config.spare_segments;
    (4 << 20) + u64::from(each) * config.caches as u64 * config.segment_bytes
}

impl World {
    /// Over memory, with backings that nothing is wrong with.
    pub(crate) fn new(config: WorldConfig, run_dir: PathBuf) -> Self {
        let pmem = anonymous_pmem("p0", pool_bytes(&config));
        let backings = (0..config.caches).map(|n| backing(&config, n)).collect();
        Self::over(config, pmem, backings, run_dir)
    }

    /// Formats a pool in `pmem` and loads caches in front of `backings`.
    pub(crate) fn over(
        config: WorldConfig,
        pmem: Arc<dyn Pmem>,
        backings: Vec<Arc<dyn Bdev>>,
        run_dir: PathBuf,
    ) -> Self {
        inject_fault();
        let format = PoolFormat {
            name: "p0".into(),
            uuid: POOL_UUID,
            segment_bytes: config.segment_bytes,
            force: true,
        };
        Pool::format(&*pmem, &format).unwrap();
        let pool = Pool::open(pmem.clone()).unwrap();
        let segments = segments_min(config.lanes, config.segment_bytes) + config.spare_segments;
        let mut volumes = Vec::new();
        for (number, backing) in backings.into_iter().enumerate() {
            let create = CreateCache {
                name: format!("c{number}"),
                uuid: [5 + u8::try_from(number).unwrap(); 16],
                bytes: u64::from(segments) * config.segment_bytes,
                lanes: config.lanes,
                block_bytes: config.block_bytes,
                options: config.options.clone(),
                seed: config.seed,
            };
            pool.create_cache(&create, &backing.info()).unwrap();
            volumes.push(Volume {
                name: create.name,
                backing,
                model: Sectors::new(config.volume_bytes / SECTOR, config.keeps_durable),
                cache: None,
            });
        }
        let clock = Arc::new(ManualClock::default());
        let (data, maintenance, runtime) = machine(&config, &clock, &run_dir, 1);
        let mut world = Self {
            rng: Rng::new(config.seed),
            config,
            clock,
            data,
            maintenance,
            runtime,
            pmem,
            pool,
            volumes,
            clients: Vec::new(),
            flights: HashMap::new(),
            next_tag: 1,
            turns: 0,
            operations: 0,
            errors: 0,
            error_statuses: Vec::new(),
            errors_allowed: false,
            turns_max: 400_000,
            durable_writes: false,
            jumps: true,
            run_dir,
            boot: 1,
        };
        world.load();
        world
    }

    /// Loads every cache and opens the clients.
    pub(crate) fn load(&mut self) {
        for number in 0..self.volumes.len() {
            self.try_load(number).unwrap();
        }
        for number in 0..self.config.clients {
            self.open_client(number % self.data.len(), number % self.volumes.len());
        }
    }

    /// Loads one cache; its load may be refused.
    pub(crate) fn try_load(&mut self, number: usize) -> Result<(), CacheError> {
        let volume = &mut self.volumes[number];
        let (backing, wish) = (volume.backing.clone(), LoadWish::default());
        let loading = self
            .pool
            .load_start(&volume.name, backing, &self.runtime, wish)?;
        let mut step = || step_all(&mut self.data, &mut self.maintenance);
        let cache = load_by_steps(loading, &mut step)?;
        for _ in 0..1000 {
            if cache.is_installed().unwrap() {
                break;
            }
            step();
        }
        assert!(cache.is_installed().unwrap(), "the parts have started");
        volume.cache = Some(cache);
        Ok(())
    }

    /// Opens one more client of a volume on a reactor; returns its number.
    pub(crate) fn open_client(&mut self, reactor: usize, volume: usize) -> usize {
        let cache = self.volumes[volume].cache.as_ref().unwrap();
        let channel = cache.open(self.data[reactor].cx()).unwrap();
        self.clients.push(Client {
            reactor,
            volume,
            channel,
            under_way: 0,
        });
        self.clients.len() - 1
    }

    pub(crate) fn cache(&self, volume: usize) -> &Arc<Cache> {
        self.volumes[volume].cache.as_ref().unwrap()
    }

    pub(crate) fn under_way(&self) -> usize {
        self.flights.len()
    }

    /// Requests under way of one client.
    pub(crate) fn of_client(&self, client: usize) -> usize {
        self.clients[client].under_way
    }

    /// A place where something may go wrong, more often than not.
    fn random_range(&mut self) -> ByteRange {
        let block = u64::from(self.config.block_bytes);
        let blocks = self.config.volume_bytes / block;
        let rng = &mut self.rng;
        let len_max = match rng.below(1000) {
            n if n < self.config.large_permille => 4 << 20,
            n if n < 100 => 256 << 10,
            n if n < 350 => 64 << 10,
            _ => 8 << 10,
        };
        let len = 1 + rng.below(len_max / block);
        let near = |rng: &mut Rng, border: u64| {
            let count = (blocks * block / border).max(1);
            let at = (1 + rng.below(count)) * border / block;
            at.saturating_sub(rng.below(len + 2))
        };
        let start = match rng.below(10) {
            0..=1 => near(rng, 4 << 20),
            2..=3 => near(rng, 64 << 10),
            4 => near(rng, 32 << 10),
            5..=7 => rng.below((128 << 10) / block),
            _ => rng.below(blocks),
        };
        let start = start.min(blocks - 1);
        let len = len.min(blocks - start);
        ByteRange::between(start * block, (start + len) * block)
    }

    fn random_op(&mut self, mix: &Mix) -> Op {
        let fua = self.rng.permille(mix.fua_permille);
        let weights = [
            (mix.write, Op::Write { fua }),
            (mix.read, Op::Read),
            (mix.flush, Op::Flush),
            (
                mix.zero,
                Op::WriteZeroes {
                    may_unmap: self.rng.permille(500),
                    fua,
                },
            ),
            (mix.discard, Op::Discard),
            (mix.prefetch, Op::Prefetch),
            (mix.extents, Op::Extents),
        ];
        let sum = weights.iter().map(|(weight, _)| weight).sum();
        let mut at = self.rng.below(sum);
        for (weight, op) in weights {
            if at < weight {
                return op;
            }
            at -= weight;
        }
        Op::Read
    }

    /// Submits something by some client.
    pub(crate) fn submit_random(&mut self, mix: &Mix) {
        let client = self.rng.index(self.clients.len());
        let op = self.random_op(mix);
        let range = if op == Op::Flush {
            ByteRange::default()
        } else {
            self.random_range()
        };
        self.submit(client, op, range);
    }

    /// Submits a request and tells the model.
    pub(crate) fn submit(&mut self, client: usize, op: Op, range: ByteRange) {
        let to = &mut self.clients[client];
        let model = &mut self.volumes[to.volume].model;
        let len = usize::try_from(range.len()).unwrap();
        let (mut version, mut since) = (0, 0);
        let mut data = Data::None;
        match op {
            Op::Write { .. } => {
                version = model.begin(range.start(), range.len(), false);
                let mut buf = IoBuf::zeroed(len);
                for (place, sector) in buf.chunks_exact_mut(512).enumerate() {
                    fill(sector, range.start() / SECTOR + place as u64, version);
                }
                data = Data::Buf(buf);
            }
            Op::WriteZeroes { .. } | Op::Discard => {
                version = model.begin(range.start(), range.len(), true);
            }
            Op::Read => {
                since = model.begin_read();
                let mut buf = IoBuf::zeroed(len);
                buf.fill(0xee);
                data = Data::Buf(buf);
            }
            Op::Extents => since = model.begin_read(),
            Op::Flush => since = model.now(),
            Op::Prefetch => {}
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        let flight = Flight {
            client,
            op,
            range,
            version,
            since,
            turn: self.turns,
        };
        self.flights.insert(tag, flight);
        to.under_way += 1;
        let request = Request {
            tag,
            op,
            range,
            data,
        };
        act_as(to.reactor + 1);
        let cx = self.data[to.reactor].cx();
        to.channel.submit(cx, request);
        act_as(CONTROL);
    }

    fn ended(&mut self, completion: Completion) {
        let flight = self.flights.remove(&completion.tag).expect("a known tag");
        self.operations += 1;
        let client = &mut self.clients[flight.client];
        client.under_way -= 1;
        let volume = client.volume;
        let durable = self.durable_writes;
        let model = &mut self.volumes[volume].model;
        let (start, len) = (flight.range.start(), flight.range.len());
        let ok = completion.status.is_ok();
        if !ok {
            self.errors += 1;
            self.error_statuses.push(completion.status);
            let (op, status) = (flight.op, completion.status);
            assert!(
                self.errors_allowed || status == IoStatus::Aborted,
                "{op:?} of {} ended with {status:?}",
                flight.range
            );
        }
        let checked = match flight.op {
            Op::Write { fua } | Op::WriteZeroes { fua, .. } if ok => {
                model.acknowledge(flight.version, start, len, fua || durable);
                Ok(())
            }
            Op::Discard if ok => {
                model.acknowledge(flight.version, start, len, durable);
                Ok(())
            }
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard => {
                model.give_up(flight.version);
                Ok(())
            }
            Op::Read => {
                let buf = completion.data.into_buf().expect("the buffer comes back");
                let checked = if ok {
                    model.check(start, &buf, flight.since)
                } else {
                    Ok(())
                };
                model.end_read(flight.since);
                checked
            }
            Op::Flush => {
                if ok {
                    model.flushed(flight.since);
                }
                Ok(())
            }
            Op::Prefetch => Ok(()),
            Op::Extents => {
                let checked = check_extents(model, &flight, &completion.data);
                model.end_read(flight.since);
                checked
            }
        };
        if let Err(text) = checked {
            panic!("{:?} of {}: {text}", flight.op, flight.range);
        }
    }

    /// Takes the completions of a client.
    pub(crate) fn poll(&mut self, client: usize) {
        let mut done = Vec::new();
        let to = &mut self.clients[client];
        act_as(to.reactor + 1);
        to.channel.poll(self.data[to.reactor].cx(), &mut done);
        act_as(CONTROL);
        for completion in done {
            self.ended(completion);
        }
    }

    /// Some reactor makes a round, some client looks, and some time passes.
    pub(crate) fn turn(&mut self) {
        self.turns += 1;
        let ns = if self.jumps && self.rng.below(20_000) == 0 {
            300_000_000
        } else {
            self.rng.below(20_000)
        };
        self.clock.advance(ns);
        let reactor = self.rng.index(self.data.len() + 1);
        act_as(reactor + 1);
        match self.data.get_mut(reactor) {
            Some(reactor) => reactor.step(),
            None => self.maintenance.step(),
        };
        act_as(CONTROL);
        let client = self.rng.index(self.clients.len());
        self.poll(client);
        if self.turns.is_multiple_of(4096) {
            self.check_counts();
        }
        if self.turns.is_multiple_of(65_536) {
            let oldest = self.flights.values().map(|flight| flight.turn).min();
            let age = oldest.map_or(0, |turn| self.turns - turn);
            assert!(
                age < self.turns_max,
                "a request is stuck: {}",
                self.describe()
            );
        }
    }

    pub(crate) fn describe(&self) -> String {
        let caches = self.volumes.iter().filter_map(|v| v.cache.as_ref());
        let caches: Vec<_> = caches
            .map(|c| {
                (
                    c.status(),
                    c.figures(),
                    c.writeback_figures(),
                    c.gc_figures(),
                )
            })
            .collect();
        format!("{} under way; {caches:#?}", self.flights.len())
    }

    /// Figures of the status that must agree whatever happens.
    pub(crate) fn check_counts(&self) {
        for cache in self.volumes.iter().filter_map(|v| v.cache.as_ref()) {
            let s = cache.status();
            let counted = s.segments_free + s.segments_log + s.segments_reserve;
            assert!(counted <= s.segments_total, "{s:?}");
            assert!(s.durable_sequence <= s.key_head_sequence, "{s:?}");
            assert!(s.key_tail.2 <= s.dirty_tail.2, "{s:?}");
            assert!(s.dirty_tail.2 <= s.durable_sequence + 1, "{s:?}");
        }
    }

    /// Makes `count` requests of this mix, keeping up to `depth` under way.
    pub(crate) fn run(&mut self, mix: &Mix, count: u64) {
        let goal = self.operations + count;
        while self.operations < goal {
            while self.flights.len() < self.config.depth && self.rng.permille(700) {
                self.submit_random(mix);
            }
            self.turn();
        }
    }

    /// Waits until nothing is under way.
    pub(crate) fn drain(&mut self) {
        let from = self.turns;
        while !self.flights.is_empty() {
            self.turn();
            assert!(self.turns - from < self.turns_max, "{}", self.describe());
        }
    }

    /// Turns until `done`, and at most `turns_max`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let from = self.turns;
        while !done(self) {
            self.turn();
            assert!(
                self.turns - from < self.turns_max,
                "{what}: {}",
                self.describe()
            );
        }
    }
}

fn step_all(data: &mut [Reactor], maintenance: &mut Reactor) {
    for (number, reactor) in data.iter_mut().enumerate() {
        act_as(number + 1);
        reactor.step();
    }
    act_as(data.len() + 1);
    maintenance.step();
    act_as(CONTROL);
}

pub(super) fn machine(
    config: &WorldConfig,
    clock: &Arc<ManualClock>,
    run_dir: &std::path::Path,
    boot: u8,
) -> (Vec<Reactor>, Reactor, Runtime) {
    let (mut data, quiescence) = reactors(config.reactors + 1, clock, config.seed);
    let maintenance = data.pop().unwrap();
    let mut runtime = runtime(&data, &maintenance, quiescence, run_dir, config.seed);
    runtime.boot_id = [boot; 16];
    (data, maintenance, runtime)
}

fn check_extents(model: &Sectors, flight: &Flight, data: &Data) -> Result<(), String> {
    let Data::Extents(extents) = data else {
        return Err(format!("no extents: {data:?}"));
    };
    let mut at = flight.range.start();
    for extent in extents {
        if extent.zero && !model.may_be_zero(at, extent.len, flight.since) {
            return Err(format!("{extent:?} at {at} is not zero"));
        }
        if (extent.hole && !extent.zero) || (extent.dirty && !extent.cached) || extent.len == 0 {
            return Err(format!("{extent:?} contradicts itself"));
        }
        at += extent.len;
    }
    if at == flight.range.end() {
        Ok(())
    } else {
        Err(format!("extents end at {at}"))
    }
}
