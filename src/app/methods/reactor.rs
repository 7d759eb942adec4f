//! Methods about the threads.

use crate::app::service::Service;
use reactors::{IdlePolicy, ReactorHandle, ReactorInfo, ReactorKind};
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What `framework_get_reactors` answers.
const GET_REACTORS_RESULT: &str = "- `tick_rate`: 1 000 000 000, ticks are nanoseconds; `pid`;
- `reactors`, the data reactors: `lcore`, `numa_id` (0), `tid`, `busy` and `idle` (ns), `in_interrupt` (the
  policy is `interrupt`), `irq`, `sys`, `usr` (of the core, kernel clock ticks), `lw_threads` (one: `name`,
  `id`, `cpumask`, `elapsed` ns);
- `maintenance`: `name`, `tid`, `cpumask`, `busy`, `idle`.";

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .plain("framework_get_reactors", get_reactors)
        .about("The threads that do I/O.", GET_REACTORS_RESULT);
    registry.method("reactor_set_idle", set_idle).about(
        "Sets what data reactors do when they have nothing to do.",
        "True. −19 without such a reactor.",
    );
}

/// Our ticks are nanoseconds.
pub(super) const TICK_RATE: u64 = 1_000_000_000;

/// How long an adaptive reactor spins if nothing else is said, in microseconds.
pub(in crate::app) const IDLE_US: u32 = 50;

fn get_reactors(service: &Service) -> Result<Value, Error> {
    let usage = ProcStat::read();
    let reactors: Vec<Value> = service
        .data_infos()
        .iter()
        .map(|info| describe_data(service, info, &usage))
        .collect();
    let maintenance: Vec<Value> = service
        .reactors()
        .infos()
        .iter()
        .filter(|info| info.kind == ReactorKind::Maintenance)
        .map(|info| describe_thread(service, info))
        .collect();
    Ok(json!({
        "tick_rate": TICK_RATE,
        "pid": std::process::id(),
        "reactors": reactors,
        "maintenance": maintenance,
    }))
}

fn describe_data(service: &Service, info: &ReactorInfo, usage: &ProcStat) -> Value {
    let core = match info.kind {
        ReactorKind::Data { core } => core,
        ReactorKind::Maintenance => 0,
    };
    let (usr, sys, irq) = usage.of_core(core);
    let stats = info.handle.stats();
    json!({
        "lcore": core,
        "numa_id": 0,
        "tid": info.handle.thread_id(),
        "busy": stats.busy_ns,
        "idle": stats.idle_ns_at(service.now()),
        "in_interrupt": matches!(info.handle.idle(), IdlePolicy::Interrupt),
        "irq": irq,
        "sys": sys,
        "usr": usr,
        "lw_threads": [{
            "name": info.name,
            "id": info.handle.id().0 + 1,
            "cpumask": format!("{:x}", info.cores),
            "elapsed": service.uptime_ns(),
        }],
    })
}

fn describe_thread(service: &Service, info: &ReactorInfo) -> Value {
    let stats = info.handle.stats();
    json!({
        "name": info.name,
        "tid": info.handle.thread_id(),
        "cpumask": format!("{:x}", info.cores),
        "busy": stats.busy_ns,
        "idle": stats.idle_ns_at(service.now()),
    })
}

/// The kernel's account of the cores, in its clock ticks.
struct ProcStat(String);

impl ProcStat {
    fn read() -> Self {
        // A number that can't be told is 0: it is for the eye only.
        Self(std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// User, system and interrupt time of a core.
    fn of_core(&self, core: usize) -> (u64, u64, u64) {
        let name = format!("cpu{core}");
        let mut lines = self.0.lines().map(str::split_ascii_whitespace);
        let line = lines.find_map(|mut words| (words.next() == Some(&name)).then_some(words));
        let numbers: Vec<u64> = line
            .into_iter()
            .flatten()
            .filter_map(|word| word.parse().ok())
            .collect();
        let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
        (at(0), at(2), at(5) + at(6))
    }
}

/// `reactor_set_idle`: what a data reactor, or all of them, do when idle.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetIdle {
    /// Spin; spin for a while, then sleep; sleep at once.
    policy: IdleName,
    /// Microseconds that `adaptive` spins, 50 if not given; refused with the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_us: Option<u32>,
    /// The core of one reactor; all if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    lcore: Option<usize>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum IdleName {
    Poll,
    Adaptive,
    Interrupt,
}

fn set_idle(service: &Service, params: SetIdle) -> Result<bool, Error> {
    let policy = match (params.policy, params.idle_us) {
        (IdleName::Adaptive, idle_us) => IdlePolicy::Adaptive {
            idle_us: idle_us.unwrap_or(IDLE_US),
        },
        (_, Some(_)) => {
            return Err(Error::invalid_params(
                "Invalid parameters: idle_us goes with policy adaptive only",
            ));
        }
        (IdleName::Poll, None) => IdlePolicy::Poll,
        (IdleName::Interrupt, None) => IdlePolicy::Interrupt,
    };
    let chosen: Vec<&ReactorHandle> = service
        .data_infos()
        .iter()
        .filter(|info| match (params.lcore, info.kind) {
            (Some(wanted), ReactorKind::Data { core }) => wanted == core,
            (None, _) => true,
            _ => false,
        })
        .map(|info| &info.handle)
        .collect();
    if chosen.is_empty() {
        return Err(Error::errno(Errno::NODEV.raw_os_error()));
    }
    for handle in chosen {
        handle.set_idle(policy);
    }
    service.note_idle(params.lcore, json!(params));
    Ok(true)
}
