//! A simulated machine: reactors, a pool, caches and clients on one thread, driven in a seeded order
//! on a simulated clock.

use super::SimError;
use super::clients::{Client, Flight};
use super::disk::{DiskState, Faults, SimDisk};
use super::plan::Plan;
use super::pmem::{Media, SimPmem};
use super::rng::Rng;
use super::sectors::{SECTOR, Sectors, Wrong};
use super::trace::Trace;
use super::universe::{CONTROL, Snapshot, Universe};
use crate::bdev::{Bdev, Pmem};
use crate::cache::{Cache, CacheOptions, CreateCache, Durability, Pool, PoolFormat, Runtime};
use reactors::{Clock, IdlePolicy, ManualClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// A request that takes more turns on a machine with nothing wrong is held to be stuck.
pub(super) const TURNS_MAX: u64 = 400_000;

/// What must not be, and where.
#[derive(Clone, Debug)]
pub(super) struct Violation {
    /// Volume and sector, if it is about one.
    pub(super) place: Option<(usize, u64)>,
    pub(super) what: String,
}

impl Violation {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self {
            place: None,
            what: what.into(),
        }
    }

    pub(super) fn at(volume: usize, wrong: Wrong) -> Self {
        Self {
            place: Some((volume, wrong.sector)),
            what: wrong.what,
        }
    }
}

impl From<SimError> for Violation {
    fn from(error: SimError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<std::io::Error> for Violation {
    fn from(error: std::io::Error) -> Self {
        Self::new(format!("the machine that simulates: {error}"))
    }
}

pub(super) type Checked<T> = Result<T, Violation>;

/// A volume: what it is, and what it must hold.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) backing: Arc<SimDisk>,
    pub(super) model: Sectors,
    pub(super) cache: Option<Arc<Cache>>,
    /// How it was made or changed last.
    pub(super) options: CacheOptions,
    /// All that is acknowledged is on the backing, and so will be what comes.
    pub(super) complete: bool,
    /// Where the last request ended: streams go on there.
    pub(super) stream: u64,
}

impl Volume {
    /// Whether every acknowledged modification is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.options.durability == Durability::Write
    }
}

/// What a run counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) operations: u64,
    pub(super) cuts: u64,
    pub(super) replays: u64,
    /// Reads of whole volumes and backings, checks of pools, audits of caches.
    pub(super) checks: u64,
    /// Audits of caches that were at rest.
    pub(super) audits: u64,
    /// Ksets that were damaged while their cache ran.
    pub(super) lost_ksets: u64,
}

/// See the module.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) clock: Arc<ManualClock>,
    pub(super) universe: Universe,
    pub(super) run_dir: TempDir,
    pub(super) boot: u8,
    pub(super) pmem: Arc<SimPmem>,
    pub(super) data: Vec<Reactor>,
    /// One for writeback, one for GC.
    pub(super) maintenance: Vec<Reactor>,
    pub(super) runtime: Runtime,
    pub(super) pool: Option<Arc<Pool>>,
    pub(super) volumes: Vec<Volume>,
    pub(super) clients: Vec<Client>,
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) next_tag: u64,
    pub(super) turns: u64,
    /// Turn at which the last serious fault was mended.
    pub(super) mended: u64,
    pub(super) counts: Counts,
    pub(super) trace: Trace,
    /// The medium has lost something: `check` says so, and damaged keys leave the index before the log.
    pub(super) damaged: bool,
    /// Lines that have become unreadable.
    pub(super) poisoned: u32,
    /// Every persist point is cut, in a copy of this machine.
    pub(super) forks: bool,
    /// Who runs how often: weights of the reactors.
    pub(super) mood: Vec<u64>,
    /// Where the log's ends stood: a life likes to end just after one of them moved on.
    places: Vec<[u32; 4]>,
}

/// A directory for what lives in tmpfs.
pub(super) fn run_dir() -> std::io::Result<TempDir> {
    let shm = Path::new("/dev/shm");
    let builder = tempfile::Builder::new().prefix("pmcache-sim-").to_owned();
    if shm.is_dir() {
        builder.tempdir_in(shm)
    } else {
        builder.tempdir()
    }
}

/// Reactors on `clock`, and what a cache needs to know of them.
pub(super) fn machine(
    plan: &Plan,
    clock: &Arc<ManualClock>,
    run_dir: &Path,
    boot: u8,
) -> std::io::Result<(Vec<Reactor>, Vec<Reactor>, Runtime)> {
    let count = plan.reactors + 2;
    let quiescence = Quiescence::new(count as usize);
    let mut data = Vec::new();
    for id in 0..count {
        let config = ReactorConfig {
            id: ReactorId(id),
            idle: IdlePolicy::Poll,
            seed: plan.seed + u64::from(id),
        };
        data.push(Reactor::new(&config, clock.clone(), quiescence.clone())?);
    }
    let maintenance = data.split_off(plan.reactors as usize);
    let runtime = Runtime {
        data: data.iter().map(Reactor::handle).collect(),
        maintenance: maintenance.iter().map(Reactor::handle).collect(),
        quiescence,
        clock: clock.clone(),
        run_dir: run_dir.to_path_buf(),
        boot_id: [boot; 16],
        seed: plan.seed,
    };
    Ok((data, maintenance, runtime))
}

impl World {
    /// A new machine with a formatted pool and its caches, loaded.
    pub(super) fn new(plan: Plan, mut rng: Rng, trace: Trace) -> Checked<Self> {
        let run_dir = run_dir()?;
        let clock = Arc::new(ManualClock::default());
        let mut media = Media::new(plan.medium, plan.pool_bytes());
        media.barrier_ns = plan.barrier_ns;
        let disks = (0..plan.caches).map(|_| {
            let mut disk = DiskState::new(plan.volume_bytes, plan.disk_cache);
            disk.faults = Faults::none(&plan);
            disk
        });
        let universe = Universe::new(
            media,
            disks.collect(),
            clock.clone(),
            run_dir.path().to_path_buf(),
            rng.fork(),
        );
        let (data, maintenance, runtime) = machine(&plan, &clock, run_dir.path(), 1)?;
        let volumes = (0..plan.caches).map(|number| {
            let tag = u8::try_from(number + 1).unwrap_or(u8::MAX);
            Volume {
                name: format!("c{number}"),
                backing: Arc::new(SimDisk::new(universe.clone(), number)),
                model: Sectors::new(tag, plan.volume_bytes / SECTOR),
                cache: None,
                options: plan.options.clone(),
                complete: false,
                stream: 0,
            }
        });
        let volumes = volumes.collect();
        let mut world = Self {
            rng,
            clock,
            pmem: Arc::new(SimPmem::new(universe.clone())),
            universe,
            run_dir,
            boot: 1,
            data,
            maintenance,
            runtime,
            pool: None,
            volumes,
            clients: Vec::new(),
            flights: BTreeMap::new(),
            next_tag: 1,
            turns: 1,
            mended: 0,
            counts: Counts::default(),
            trace,
            damaged: false,
            poisoned: 0,
            forks: false,
            mood: vec![1; plan.reactors as usize + 2],
            places: Vec::new(),
            plan,
        };
        world.format()?;
        world.load()?;
        Ok(world)
    }

    /// Another machine with the same past, whose media are those of `moment`; nothing runs on it.
    pub(super) fn copy(&self, moment: &Snapshot, mut rng: Rng) -> Checked<Self> {
        let run_dir = run_dir()?;
        let clock = Arc::new(ManualClock::default());
        clock.advance(self.clock.now().0);
        let universe = Universe::new(
            moment.media.clone(),
            moment.disks.clone(),
            clock.clone(),
            run_dir.path().to_path_buf(),
            rng.fork(),
        );
        let (data, maintenance, runtime) = machine(&self.plan, &clock, run_dir.path(), self.boot)?;
        let volumes = self
            .volumes
            .iter()
            .enumerate()
            .map(|(number, volume)| Volume {
                name: volume.name.clone(),
                backing: Arc::new(SimDisk::new(universe.clone(), number)),
                model: volume.model.clone(),
                cache: None,
                options: volume.options.clone(),
                complete: false,
                stream: volume.stream,
            });
        Ok(Self {
            plan: self.plan.clone(),
            rng,
            volumes: volumes.collect(),
            clock,
            pmem: Arc::new(SimPmem::new(universe.clone())),
            universe,
            run_dir,
            boot: self.boot,
            data,
            maintenance,
            runtime,
            pool: None,
            clients: Vec::new(),
            flights: BTreeMap::new(),
            next_tag: 1,
            turns: self.turns,
            mended: self.turns,
            counts: Counts::default(),
            trace: self.trace.clone(),
            damaged: self.damaged,
            poisoned: self.poisoned,
            forks: false,
            mood: self.mood.clone(),
            places: Vec::new(),
        })
    }

    fn format(&mut self) -> Checked<()> {
        let format = PoolFormat {
            name: "p0".into(),
            uuid: [3; 16],
            segment_bytes: self.plan.segment_bytes,
            force: true,
        };
        let pmem: Arc<dyn Pmem> = self.pmem.clone();
        Pool::format(&*pmem, &format).map_err(|e| Violation::new(format!("format: {e}")))?;
        self.open_pool()?;
        for number in 0..self.volumes.len() {
            self.create(number)?;
        }
        Ok(())
    }

    pub(super) fn open_pool(&mut self) -> Checked<()> {
        let pool = Pool::open(self.pmem.clone());
        self.pool = Some(pool.map_err(|e| Violation::new(format!("open the pool: {e}")))?);
        Ok(())
    }

    pub(super) fn pool(&self) -> Checked<&Arc<Pool>> {
        let pool = self.pool.as_ref();
        pool.ok_or_else(|| Violation::new("the simulator has no pool"))
    }

    /// Makes the cache of a volume.
    pub(super) fn create(&mut self, number: usize) -> Checked<()> {
        let plan = &self.plan;
        let volume = &self.volumes[number];
        // Another cache may have grown.
        let segments = plan.segments().min(self.pool()?.free_segments());
        let create = CreateCache {
            name: volume.name.clone(),
            uuid: [5 + u8::try_from(number).unwrap_or(0); 16],
            bytes: u64::from(segments) * plan.segment_bytes,
            lanes: plan.lanes,
            block_bytes: plan.block_bytes,
            options: volume.options.clone(),
            seed: plan.seed ^ self.turns,
        };
        let info = volume.backing.info();
        let created = self.pool()?.create_cache(&create, &info);
        self.trace.note(|| format!("create {}", create.name));
        created.map_err(|e| Violation::new(format!("create {}: {e}", create.name)))?;
        Ok(())
    }

    pub(super) fn cache(&self, volume: usize) -> Checked<Arc<Cache>> {
        let cache = self.volumes[volume].cache.clone();
        cache.ok_or_else(|| Violation::new("the simulator has no cache there"))
    }

    /// Whether nothing is wrong that would excuse an error or a wait.
    pub(super) fn is_well(&self) -> bool {
        let state = self.universe.read();
        !state.media.has_failed() && !state.disks.iter().any(|disk| disk.faults.are_serious())
    }

    /// One round of reactor `number`; the maintenance reactors come behind those of the data.
    pub(super) fn step(&mut self, number: usize) {
        self.universe.act_as(number + 1);
        let data = self.data.len();
        let reactor = match self.data.get_mut(number) {
            Some(reactor) => Some(reactor),
            None => self.maintenance.get_mut(number - data),
        };
        if let Some(reactor) = reactor {
            reactor.step();
        }
        self.universe.act_as(CONTROL);
    }

    pub(super) fn reactor_count(&self) -> usize {
        self.data.len() + self.maintenance.len()
    }

    /// One round of every reactor.
    pub(super) fn step_all(&mut self) {
        for number in 0..self.reactor_count() {
            self.step(number);
        }
    }

    fn pass_time(&mut self) {
        let ns = if self.rng.below(20_000) == 0 {
            300_000_000
        } else {
            self.rng.below(20_000)
        };
        self.clock.advance(ns);
    }

    fn pick_reactor(&mut self) -> usize {
        if self.turns.is_multiple_of(512) {
            let unfair = self.plan.unfair;
            for weight in &mut self.mood {
                *weight = if unfair {
                    self.rng.pick(&[0, 1, 1, 20])
                } else {
                    1
                };
            }
        }
        let sum: u64 = self.mood.iter().sum();
        let mut at = self.rng.below(sum);
        for (number, weight) in self.mood.iter().enumerate() {
            if at < *weight {
                return number;
            }
            at -= weight;
        }
        0
    }

    /// Some reactor makes a round, some client looks, and some time passes.
    pub(super) fn turn(&mut self) -> Checked<()> {
        self.turns += 1;
        self.pass_time();
        let reactor = self.pick_reactor();
        self.step(reactor);
        self.after_engine()?;
        if !self.clients.is_empty() {
            let client = self.rng.index(self.clients.len());
            self.poll(client)?;
        }
        if self.turns.is_multiple_of(4096) {
            self.check_counts()?;
        }
        if self.turns.is_multiple_of(16_384) {
            self.check_ages()?;
        }
        Ok(())
    }

    /// To be called whenever the engine may have done something, before the model learns of it.
    pub(super) fn after_engine(&mut self) -> Checked<()> {
        if let Some(what) = self.universe.take_complaint() {
            return Err(Violation::new(what));
        }
        if self.forks {
            for snapshot in self.universe.take_kept() {
                self.cut_fork(&snapshot)?;
            }
        }
        Ok(())
    }

    /// Liveness: with nothing wrong every request ends.
    fn check_ages(&mut self) -> Checked<()> {
        if !self.is_well() {
            self.mended = self.turns;
        }
        let oldest = self.flights.values().map(|flight| flight.turn).min();
        let begun = oldest.map_or(self.turns, |turn| turn.max(self.mended));
        if self.turns - begun > TURNS_MAX {
            return Err(self.stuck("a request"));
        }
        Ok(())
    }

    pub(super) fn stuck(&self, what: &str) -> Violation {
        let caches = self.volumes.iter().filter_map(|v| v.cache.as_ref());
        let caches: Vec<_> = caches
            .map(|c| (c.status(), c.figures(), c.writeback_figures()))
            .collect();
        let flights: Vec<_> = self.flights.values().collect();
        Violation::new(format!("{what} is stuck: {flights:?}; {caches:?}"))
    }

    /// Figures of the status that must agree whatever happens.
    fn check_counts(&self) -> Checked<()> {
        for cache in self.volumes.iter().filter_map(|v| v.cache.as_ref()) {
            let s = cache.status();
            let counted = s.segments_free + s.segments_log + s.segments_reserve;
            let right = counted <= s.segments_total
                && s.durable_sequence <= s.key_head_sequence
                && s.key_tail.2 <= s.dirty_tail.2
                && s.dirty_tail.2 <= s.durable_sequence + 1;
            if !right {
                return Err(Violation::new(format!(
                    "the status contradicts itself: {s:?}"
                )));
            }
        }
        Ok(())
    }

    /// Turns until `done`, and at most so many as a well machine needs.
    pub(super) fn until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Checked<bool>,
    ) -> Checked<()> {
        let from = self.turns;
        while !done(self)? {
            self.turn()?;
            if self.turns - from > TURNS_MAX {
                return Err(self.stuck(what));
            }
        }
        Ok(())
    }

    /// Waits until nothing is under way.
    pub(super) fn drain(&mut self) -> Checked<()> {
        self.until("a request", |world| Ok(world.flights.is_empty()))
    }

    /// Whether something rare has just happened: the log's head or a tail has gone on to another
    /// segment, or segments are being released.
    fn is_hot(&mut self) -> bool {
        let caches = self.volumes.iter().filter_map(|v| v.cache.as_ref());
        let places: Vec<_> = caches
            .map(|cache| {
                let s = cache.status();
                [
                    s.key_head.0,
                    s.dirty_tail.0,
                    s.key_tail.0,
                    s.segments_retiring,
                ]
            })
            .collect();
        let moved = places != self.places && places.len() == self.places.len();
        self.places = places;
        moved
    }

    /// Makes requests until `count` have ended, keeping up to the plan's depth under way; ends
    /// early when that is a good moment for a crash.
    pub(super) fn run(&mut self, count: u64) -> Checked<()> {
        let mix = self.plan.mix;
        let goal = self.counts.operations + count;
        let from = self.turns;
        while self.counts.operations < goal {
            while self.flights.len() < self.plan.depth && self.rng.permille(700) {
                self.submit_random(&mix)?;
            }
            self.turn()?;
            if self.is_hot() && self.rng.permille(self.plan.hot_permille) {
                return Ok(());
            }
            if !self.is_well() && self.turns - from > 20_000 {
                // A dead backing: nothing more will come of it.
                return Ok(());
            }
        }
        Ok(())
    }

    /// So much time passes, while the reactors run on.
    pub(super) fn rest(&mut self, ns: u64) -> Checked<()> {
        for _ in 0..8 {
            self.clock.advance(ns / 8);
            self.step_all();
            self.after_engine()?;
        }
        Ok(())
    }
}
