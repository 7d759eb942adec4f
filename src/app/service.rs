//! The running service: reactors, bdevs, targets, health. The state of every RPC method.

use super::bdevs::Bdevs;
use super::caches::{self, Caches};
use super::config::Unresolved;
use super::keyring::Keyring;
use super::log::Log;
use super::methods;
use super::nbd::Nbd;
use super::notices::Notices;
use super::nvmf::Nvmf;
use super::observer::Observer;
use super::shared::Shared;
use super::vhost::Vhost;
use reactors::{
    Clock, CoreSet, IdlePolicy, MonotonicClock, Nanos, ReactorId, ReactorInfo, Reactors,
    ReactorsConfig, StartError,
};
use rpc::{Error, Phase, Phased, Registry};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
    /// Where staging files go: on tmpfs.
    pub(super) run_dir: PathBuf,
    /// Where the sockets of vhost controllers go.
    pub(super) vhost_dir: PathBuf,
    /// Nothing runs before `framework_start_init`.
    pub(super) wait_for_rpc: bool,
}

/// How far the service has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// It waits for `framework_start_init`.
    #[default]
    Waiting,
    /// It brings up what it is configured for.
    Loading,
    /// It serves.
    Ready,
    /// It goes down.
    Ending,
}

/// Something that does not work as it should, while the rest does.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Degraded {
    /// Which object.
    pub(super) object: String,
    /// Why.
    pub(super) reason: String,
}

/// The maintenance reactors beside data reactors on `cores`: writeback and GC each have their own if
/// there are two cores for them. On one core two threads would take turns by the scheduler's clock, so
/// that each waits for milliseconds: there they share a reactor.
pub(super) fn maintenance_reactors(
    cores: &CoreSet,
    pinned: Option<&CoreSet>,
) -> Vec<Option<CoreSet>> {
    let there = core_affinity::get_core_ids().unwrap_or_default();
    maintenance_among(&there.iter().map(|core| core.id).collect(), cores, pinned)
}

fn maintenance_among(
    there: &CoreSet,
    cores: &CoreSet,
    pinned: Option<&CoreSet>,
) -> Vec<Option<CoreSet>> {
    let left = there.without(cores);
    let used = match pinned {
        Some(pinned) => pinned,
        None if left.is_empty() => there,
        None => &left,
    };
    vec![pinned.cloned(); used.iter().take(2).count().max(1)]
}

/// The service. Methods get it by reference, from many threads at a time.
#[derive(Debug)]
pub(super) struct Service {
    reactors: Reactors,
    clock: Arc<MonotonicClock>,
    started: Nanos,
    data_dir: PathBuf,
    degraded: Shared<Vec<Degraded>>,
    stage: Shared<Stage>,
    /// What was set of the reactors' idleness, by core; nothing stands for all.
    idle_set: Shared<BTreeMap<Option<usize>, Value>>,
    /// What the configuration has and the service has not.
    pub(super) unresolved: Unresolved,
    /// All block devices.
    pub(super) bdevs: Arc<Bdevs>,
    /// The pools and caches.
    pub(super) caches: Caches,
    /// The NBD servers and exports.
    pub(super) nbd: Nbd,
    /// The NVMe-oF target.
    pub(super) nvmf: Nvmf,
    /// The vhost controllers.
    pub(super) vhost: Vhost,
    /// What has happened.
    pub(super) notices: Arc<Notices>,
    /// What was seen of bdevs and caches.
    pub(super) observer: Observer,
    /// The log.
    pub(super) log: Log,
    /// The keys.
    pub(super) keyring: Keyring,
}

impl Phased for Service {
    fn phase(&self) -> Phase {
        match self.stage.with(|stage| *stage) {
            Stage::Waiting => Phase::Startup,
            Stage::Loading | Stage::Ready | Stage::Ending => Phase::Runtime,
        }
    }
}

impl Service {
    /// Starts the reactors of an empty service, which says what it has to say in `log`.
    ///
    /// # Errors
    /// If a reactor can't be started.
    pub(super) fn start(config: &ServiceConfig, log: Log) -> Result<Self, StartError> {
        let clock = Arc::new(MonotonicClock);
        let started = clock.now();
        let reactors = Reactors::start(ReactorsConfig {
            cores: config.cores.iter().collect(),
            maintenance: maintenance_reactors(&config.cores, config.maintenance.as_ref()),
            idle: config.idle,
            seed: started.0,
            clock: clock.clone(),
        })?;
        let count = reactors.infos().len();
        let stage = Shared::default();
        if !config.wait_for_rpc {
            stage.with(|stage| *stage = Stage::Loading);
        }
        let notices = Arc::<Notices>::default();
        let nvmf = Nvmf::new(reactors.data_handles().to_vec());
        Ok(Self {
            reactors,
            clock,
            started,
            data_dir: config.data_dir.clone(),
            degraded: Shared::default(),
            stage,
            idle_set: Shared::default(),
            unresolved: Unresolved::default(),
            bdevs: Arc::new(Bdevs::new(count, Arc::clone(&notices))),
            caches: Caches::new(config.run_dir.clone()),
            nbd: Nbd::default(),
            nvmf,
            vhost: Vhost::new(config.vhost_dir.clone()),
            notices,
            observer: Observer::default(),
            log,
            keyring: Keyring::default(),
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

    /// The name of a reactor's thread.
    pub(super) fn reactor_name(&self, id: ReactorId) -> &str {
        let mut infos = self.reactors.infos().iter();
        let found = infos.find(|info| info.handle.id() == id);
        found.map_or("", |info| &*info.name)
    }

    /// Where the files of this service are.
    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The clock of the service.
    pub(super) fn clock(&self) -> Arc<MonotonicClock> {
        self.clock.clone()
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
        let mut degraded = self.degraded.with(|list| list.clone());
        degraded.extend(self.unresolved.degraded(self));
        degraded
    }

    /// Says that all that is configured is up.
    pub(super) fn set_ready(&self) {
        self.stage.with(|stage| {
            if *stage == Stage::Loading {
                *stage = Stage::Ready;
            }
        });
    }

    /// Begins to serve what clients will configure.
    ///
    /// # Errors
    /// If it does not wait for that (any more).
    pub(super) fn start_init(&self) -> Result<(), Error> {
        self.stage.with(|stage| match *stage {
            Stage::Waiting => {
                *stage = Stage::Ready;
                Ok(())
            }
            _ => Err(Error::new(
                Error::WRONG_STATE,
                "framework_start_init has been called already",
            )),
        })
    }

    /// Whether start-up is over.
    pub(super) fn is_ready(&self) -> bool {
        self.stage.with(|stage| *stage == Stage::Ready)
    }

    /// Waits until start-up is over; returns whether it serves then.
    pub(super) fn wait_ready(&self) -> bool {
        const LONG: Duration = Duration::from_secs(3600);
        loop {
            let over = self.stage.wait_for(LONG, |stage| match stage {
                Stage::Waiting | Stage::Loading => None,
                Stage::Ready => Some(true),
                Stage::Ending => Some(false),
            });
            if let Some(serves) = over {
                return serves;
            }
        }
    }

    /// Says that it goes down: who waits for it gives up.
    pub(super) fn set_ending(&self) {
        self.stage.with(|stage| *stage = Stage::Ending);
    }

    /// Waits for `time`, or until it goes down. Returns whether it does.
    pub(super) fn is_ending_within(&self, time: Duration) -> bool {
        let ends = |stage: &Stage| (*stage == Stage::Ending).then_some(());
        self.stage.wait_for(time, ends).is_some()
    }

    /// Notes what `reactor_set_idle` set, of one core or of all.
    pub(super) fn note_idle(&self, lcore: Option<usize>, params: Value) {
        self.idle_set.with(|set| {
            if lcore.is_none() {
                set.clear();
            }
            set.insert(lcore, params);
        });
    }

    /// What `reactor_set_idle` set, in an order in which it can be set again.
    pub(super) fn idle_set(&self) -> Vec<Value> {
        self.idle_set.with(|set| set.values().cloned().collect())
    }

    /// Stops serving and closes everything, what is above before what is below. Dropping the
    /// service then stops its reactors.
    pub(super) fn close(&self) {
        self.vhost.stop_all(&self.bdevs);
        self.nvmf.stop_all(&self.bdevs);
        self.nbd.stop_all(&self.bdevs);
        caches::close_all(self);
        self.bdevs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_maintenance_reactors_want_two_cores() {
        let set = |cores: &[usize]| -> CoreSet { cores.iter().copied().collect() };
        let count = |there: &[usize], cores: &[usize]| {
            maintenance_among(&set(there), &set(cores), None).len()
        };
        assert_eq!(count(&[0], &[0]), 1);
        assert_eq!(count(&[0, 1], &[0]), 1);
        assert_eq!(count(&[0, 1], &[0, 1]), 2);
        assert_eq!(count(&[0, 1, 2, 3], &[0]), 2);
        let there = set(&[0, 1, 2, 3]);
        for pinned in [set(&[2]), set(&[2, 3])] {
            let made = maintenance_among(&there, &set(&[0]), Some(&pinned));
            assert_eq!(made, vec![Some(pinned.clone()); pinned.iter().count()]);
        }
    }
}
