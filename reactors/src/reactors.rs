//! The threads: a set of reactors, started and stopped together.

use crate::core_set::CoreSet;
use crate::handle::{ReactorHandle, ReactorId};
use crate::idle::IdlePolicy;
use crate::reactor::{Reactor, ReactorConfig};
use crate::{Clock, Quiescence};
use rustix::thread::CpuSet;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// What to start.
#[derive(Clone, Debug)]
pub struct ReactorsConfig {
    /// One pinned data reactor on each of these cores.
    pub cores: Vec<usize>,
    /// One maintenance reactor for each element: on those cores, or (`None`) floating on the
    /// cores that data reactors leave free, or on all if they leave none.
    pub maintenance: Vec<Option<CoreSet>>,
    /// What data reactors do when idle. Maintenance reactors always sleep at once.
    pub idle: IdlePolicy,
    /// From which each reactor's generator is seeded.
    pub seed: u64,
    /// The time for all of them.
    pub clock: Arc<dyn Clock>,
}

/// Why no reactors were started; those that had been are stopped again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A core that this machine has not, or that this process may not use.
    #[error("{name}: core {core} is not available to this process")]
    CoreUnavailable {
        /// The thread that should run there.
        name: String,
        /// The core.
        core: usize,
    },
    /// Two data reactors on one core.
    #[error("core {core} is named twice")]
    CoreTwice {
        /// The core.
        core: usize,
    },
    /// The kernel would not bind the thread to its cores.
    #[error("{name}: cannot be bound to cores {cores}")]
    Bind {
        /// The thread.
        name: String,
        /// Where it should run.
        cores: CoreSet,
    },
    /// The kernel gave no thread, eventfd or epoll set.
    #[error("{name}: cannot be started")]
    Resources {
        /// The thread.
        name: String,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
}

/// What a reactor of the set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReactorKind {
    /// Lanes, connections, queues; pinned to this core.
    Data {
        /// The core.
        core: usize,
    },
    /// Writeback, GC and other background work.
    Maintenance,
}

/// One reactor of the set.
#[derive(Clone, Debug)]
pub struct ReactorInfo {
    /// Its thread's name: `reactor_0`, …, `maintenance_0`, …
    pub name: String,
    /// What it is for.
    pub kind: ReactorKind,
    /// Where it may run.
    pub cores: CoreSet,
    /// For talking to it.
    pub handle: ReactorHandle,
}

/// Running reactors: data reactors first, then maintenance reactors. Dropping stops them.
#[derive(Debug)]
pub struct Reactors {
    infos: Vec<ReactorInfo>,
    handles: Vec<ReactorHandle>,
    data_count: usize,
    quiescence: Arc<Quiescence>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One thread to start.
struct Plan {
    name: String,
    kind: ReactorKind,
    cores: CoreSet,
    config: ReactorConfig,
}

impl Reactors {
    /// Starts the threads and returns when all are in their loops.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(config: ReactorsConfig) -> Result<Self, StartError> {
        let plans = plan(&config)?;
        let mut reactors = Self {
            infos: Vec::new(),
            handles: Vec::new(),
            data_count: config.cores.len(),
            quiescence: Quiescence::new(plans.len()),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for plan in plans {
            // On an error `reactors` is dropped, which stops those before.
            reactors.spawn(plan, &config.clock)?;
        }
        Ok(reactors)
    }

    fn spawn(&mut self, plan: Plan, clock: &Arc<dyn Clock>) -> Result<(), StartError> {
        let Plan {
            name,
            kind,
            cores,
            config,
        } = plan;
        let (started, result) = mpsc::sync_channel(1);
        let thread = {
            let (name, cores, clock) = (name.clone(), cores.clone(), clock.clone());
            let (quiescence, stop) = (self.quiescence.clone(), self.stop.clone());
            std::thread::Builder::new()
                .name(name.clone())
                .spawn(move || {
                    wake_on_time();
                    // A reactor never leaves its thread, so it is made here and only its handle
                    // is sent back.
                    let made = bind(&name, kind, &cores).and_then(|()| {
                        Reactor::new(&config, clock, quiescence)
                            .map_err(|source| StartError::Resources { name, source })
                    });
                    match made {
                        Ok(mut reactor) => {
                            let _ = started.send(Ok(reactor.handle()));
                            reactor.run(&stop);
                        }
                        Err(error) => {
                            let _ = started.send(Err(error));
                        }
                    }
                })
        };
        let no_thread = |source| StartError::Resources {
            name: name.clone(),
            source,
        };
        self.threads.push(thread.map_err(no_thread)?);
        let handle = result
            .recv()
            .map_err(|gone| no_thread(std::io::Error::other(gone)))??;
        self.handles.push(handle.clone());
        self.infos.push(ReactorInfo {
            name,
            kind,
            cores,
            handle,
        });
        Ok(())
    }

    /// All of them; a reactor's place is its [`ReactorId`].
    #[must_use]
    pub fn handles(&self) -> &[ReactorHandle] {
        &self.handles
    }

    /// The data reactors.
    #[must_use]
    pub fn data_handles(&self) -> &[ReactorHandle] {
        self.handles.split_at(self.data_count).0
    }

    /// The maintenance reactors.
    #[must_use]
    pub fn maintenance_handles(&self) -> &[ReactorHandle] {
        self.handles.split_at(self.data_count).1
    }

    /// Names, kinds and cores, in the order of [`Reactors::handles`].
    #[must_use]
    pub fn infos(&self) -> &[ReactorInfo] {
        &self.infos
    }

    /// The domain in which all of them take part, each at the index of its [`ReactorId`].
    #[must_use]
    pub fn quiescence(&self) -> Arc<Quiescence> {
        self.quiescence.clone()
    }

    /// Changes what the data reactors do when idle; maintenance reactors go on sleeping at once.
    pub fn set_idle(&self, policy: IdlePolicy) {
        for handle in self.data_handles() {
            handle.set_idle(policy);
        }
    }

    /// Stops all reactors and waits for their threads. Each drops its pollers on its own thread.
    ///
    /// # Panics
    /// If a reactor has panicked, with what it panicked with.
    pub fn stop(mut self) {
        if let Some(payload) = self.join() {
            std::panic::resume_unwind(payload);
        }
    }

    /// Stops and joins; returns the first panic.
    fn join(&mut self) -> Option<Box<dyn std::any::Any + Send>> {
        self.stop.store(true, Ordering::SeqCst);
        for handle in &self.handles {
            handle.ring();
        }
        let mut first = None;
        for thread in self.threads.drain(..) {
            if let Err(payload) = thread.join() {
                first = first.or(Some(payload));
            }
        }
        first
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        // A panic has been reported by the panic hook already.
        let _ = self.join();
    }
}

/// The cores that this thread may use now.
fn available() -> Result<CoreSet, StartError> {
    let set = rustix::thread::sched_getaffinity(None).map_err(|errno| StartError::Resources {
        name: "affinity".to_owned(),
        source: errno.into(),
    })?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .collect())
}

fn plan(config: &ReactorsConfig) -> Result<Vec<Plan>, StartError> {
    let available = available()?;
    let mut plans = Vec::new();
    let mut add = |name: String, kind, cores: CoreSet, idle| {
        if let Some(core) = cores.iter().find(|core| !available.contains(*core)) {
            return Err(StartError::CoreUnavailable { name, core });
        }
        let index = u32::try_from(plans.len()).unwrap_or(u32::MAX);
        let config = ReactorConfig {
            id: ReactorId(index),
            idle,
            // Far apart on the generators' common sequence.
            seed: config.seed ^ u64::from(index).wrapping_mul(0xd6e8_feb8_6659_fd93),
        };
        plans.push(Plan {
            name,
            kind,
            cores,
            config,
        });
        Ok(())
    };
    let mut taken = CoreSet::default();
    for (index, core) in config.cores.iter().copied().enumerate() {
        if taken.contains(core) {
            return Err(StartError::CoreTwice { core });
        }
        taken = taken.iter().chain([core]).collect();
        let kind = ReactorKind::Data { core };
        let cores = [core].into_iter().collect();
        add(format!("reactor_{index}"), kind, cores, config.idle)?;
    }
    let left = available.without(&taken);
    let floating = if left.is_empty() { &available } else { &left };
    for (index, cores) in config.maintenance.iter().enumerate() {
        let cores = cores.as_ref().unwrap_or(floating).clone();
        let name = format!("maintenance_{index}");
        add(name, ReactorKind::Maintenance, cores, IdlePolicy::Interrupt)?;
    }
    Ok(plans)
}

/// The kernel rounds sleeps up by 50 µs if nothing else is said: a quarter of what a fast disk takes.
fn wake_on_time() {
    // A kernel that refuses costs only that.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

/// Binds this thread to its cores, and lets its timers be as exact as the kernel can.
fn bind(name: &str, kind: ReactorKind, cores: &CoreSet) -> Result<(), StartError> {
    let bound = match kind {
        ReactorKind::Data { core } => {
            core_affinity::set_for_current(core_affinity::CoreId { id: core })
        }
        ReactorKind::Maintenance => {
            let mut set = CpuSet::new();
            for core in cores.iter() {
                set.set(core);
            }
            rustix::thread::sched_setaffinity(None, &set).is_ok()
        }
    };
    if !bound {
        return Err(StartError::Bind {
            name: name.to_owned(),
            cores: cores.clone(),
        });
    }
    if matches!(kind, ReactorKind::Data { .. }) {
        // Without it a sleep ends up to 50 us late; a kernel that refuses costs only that.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    }
    Ok(())
}
