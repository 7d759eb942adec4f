//! The running service: reactors, bdevs, targets, health. The state of every RPC method.

use super::bdevs::Bdevs;
use super::flushes::Flushes;
use super::methods;
use super::nbd::Nbd;
use super::pools::{Pools, stop_caches};
use super::shared::Shared;
use crate::cache::Runtime;
use reactors::{
    Clock, CoreSet, IdlePolicy, MonotonicClock, Nanos, ReactorInfo, Reactors, ReactorsConfig,
    StartError,
};
use rpc::Registry;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What to start.
#[derive(Clone, Debug)]
pub(super) struct ServiceConfig {
    /// One data reactor on each.
    pub(super) cores: CoreSet,
    /// Where maintenance reactors run; `None`: on the cores that are left.
    pub(super) maintenance: Option<CoreSet>,
    /// What data reactors do when idle.
    pub(super) idle: IdlePolicy,
    /// Where files go whose path is relative to nothing else.
    pub(super) data_dir: PathBuf,
    /// Where staging files go; on tmpfs.
    pub(super) run_dir: PathBuf,
}

/// Something that does not work as it should, while the rest does.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Degraded {
    /// Which object.
    pub(super) object: String,
    /// Why.
    pub(super) reason: String,
}

/// How long each cache may wait for its backing when the service ends.
const CACHE_STOP_WAIT: Duration = Duration::from_secs(1);

/// Writeback and GC each have a thread of their own.
const MAINTENANCE_REACTORS: usize = 2;

/// The kernel's id of this boot; zeroes, which no boot has, if it doesn't tell.
pub(super) fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    *Uuid::parse_str(text.trim()).unwrap_or_default().as_bytes()
}

/// A number that nobody can guess.
pub(super) fn random_seed() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}

/// The service. Methods get it by reference, from many threads at a time.
#[derive(Debug)]
pub(super) struct Service {
    reactors: Reactors,
    clock: Arc<MonotonicClock>,
    started: Nanos,
    data_dir: PathBuf,
    runtime: Runtime,
    degraded: Shared<Vec<Degraded>>,
    ready: Shared<bool>,
    /// All block devices.
    pub(super) bdevs: Arc<Bdevs>,
    /// The pools; their caches are among the bdevs.
    pub(super) pools: Pools,
    /// Flushes that were asked for.
    pub(super) flushes: Flushes,
    /// The NBD servers and exports.
    pub(super) nbd: Nbd,
}

impl Service {
    /// Starts the reactors of an empty service.
    ///
    /// # Errors
    /// If a reactor can't be started.
    pub(super) fn start(config: &ServiceConfig) -> Result<Self, StartError> {
        let clock = Arc::new(MonotonicClock);
        let started = clock.now();
        let reactors = Reactors::start(ReactorsConfig {
            cores: config.cores.iter().collect(),
            maintenance: vec![config.maintenance.clone(); MAINTENANCE_REACTORS],
            idle: config.idle,
            seed: started.0,
            clock: clock.clone(),
        })?;
        let runtime = Runtime {
            data: reactors.data_handles().to_vec(),
            maintenance: reactors.maintenance_handles().to_vec(),
            quiescence: reactors.quiescence(),
            run_dir: config.run_dir.clone(),
            boot_id: boot_id(),
            seed: random_seed(),
        };
        Ok(Self {
            reactors,
            runtime,
            clock,
            started,
            data_dir: config.data_dir.clone(),
            degraded: Shared::default(),
            ready: Shared::default(),
            bdevs: Arc::default(),
            pools: Pools::default(),
            flushes: Flushes::default(),
            nbd: Nbd::default(),
        })
    }

    /// Every method that it answers.
    pub(super) fn registry() -> Registry<Self> {
        let mut registry = Registry::new();
        methods::register(&mut registry);
        registry
    }

    /// The threads.
    pub(super) fn reactors(&self) -> &Reactors {
        &self.reactors
    }

    /// The data reactors' descriptions, in order.
    pub(super) fn data_infos(&self) -> &[ReactorInfo] {
        let count = self.reactors.data_handles().len();
        self.reactors.infos().get(..count).unwrap_or_default()
    }

    /// What a cache needs to run here.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where the files of this service are.
    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The time now.
    pub(super) fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// Nanoseconds since it was started.
    pub(super) fn uptime_ns(&self) -> u64 {
        self.now().since(self.started)
    }

    /// Notes that `object` does not work; the rest goes on.
    pub(super) fn degrade(&self, object: &str, reason: String) {
        tracing::warn!(object, reason, "degraded");
        let object = object.to_owned();
        self.degraded
            .with(|list| list.push(Degraded { object, reason }));
    }

    /// What does not work.
    pub(super) fn degraded(&self) -> Vec<Degraded> {
        self.degraded.with(|list| list.clone())
    }

    /// Says that start-up is over.
    pub(super) fn set_ready(&self) {
        self.ready.with(|ready| *ready = true);
    }

    /// Whether start-up is over.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.with(|ready| *ready)
    }

    /// Stops serving and closes everything, what is above before what is below. Dropping the
    /// service then stops its reactors.
    pub(super) fn close(&self) {
        self.nbd.stop_all(&self.bdevs);
        stop_caches(&self.bdevs, CACHE_STOP_WAIT);
        self.bdevs.clear();
        self.pools.clear();
    }
}
