//! Methods about the threads as SPDK's tools see them: each reactor runs one.

use super::reactor::TICK_RATE;
use crate::app::service::Service;
use reactors::{CallError, CoreSet, PollerStats, ReactorId, ReactorInfo, ReactorKind};
use rpc::{Error, Registry};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::CpuSet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "Threads",
        "Each reactor, data or maintenance, runs one thread in SPDK's sense. Ticks are nanoseconds.",
    );
    registry.plain("thread_get_stats", get_stats).about(
        "What each thread has done, and how many pollers it runs.",
        "`{tick_rate, threads: [{name, id, cpumask, busy, idle, active_pollers_count, \
         timed_pollers_count, paused_pollers_count}]}`; `cpumask` is hexadecimal. −110 if a reactor \
         does not answer.",
    );
    registry.plain("thread_get_pollers", get_pollers).about(
        "The pollers of each thread, and how often each ran and found something to do.",
        "`{tick_rate, threads: [{name, id, active_pollers, timed_pollers, paused_pollers}]}`, a poller \
         being `{name, id, state, run_count, busy_count}`, a timed one with `period_ticks`. No poller is \
         ever paused. −110 if a reactor does not answer.",
    );
    registry.plain("thread_get_io_channels", get_io_channels).about(
        "The channels to bdevs that each thread has open: a client's, a cache's, another bdev's.",
        "`{tick_rate, threads: [{name, io_channels: [{name, ref}]}]}`: the bdev, and how many.",
    );
    registry
        .method("thread_set_cpumask", set_cpumask)
        .about(
            "Moves a maintenance thread to other cores. A data reactor stays on the core that \
             `--cpumask` gave it: it takes the mask that it has, and no other.",
            "true. −3 without such a thread, −22 for a mask without a core that this process may use, −95 \
             for a data reactor and another core.",
        );
}

/// A reactor that does not answer within this time will not.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How clients number the threads: from 1.
pub(super) fn thread_id(info: &ReactorInfo) -> u64 {
    u64::from(info.handle.id().0) + 1
}

/// What a reactor that was asked did not say.
pub(super) fn call_error(error: &CallError) -> Error {
    let errno = match error {
        CallError::TimedOut { .. } => Errno::TIMEDOUT,
        CallError::InboxFull(_) => Errno::AGAIN,
        CallError::Dropped(_) | CallError::OwnThread(_) => Errno::SHUTDOWN,
    };
    let errno = errno.raw_os_error();
    let strerror = Error::errno(errno).message;
    Error::errno_with(errno, format!("{strerror}: {error}"))
}

fn pollers(info: &ReactorInfo) -> Result<Vec<PollerStats>, Error> {
    let asked = info.handle.call(ANSWER_MAX, |cx| cx.poller_stats());
    asked.map_err(|error| call_error(&error))
}

fn thread_of(info: &ReactorInfo) -> Option<Pid> {
    info.handle.thread_id().and_then(Pid::from_raw)
}

/// Where the kernel lets the thread run now.
fn cores_of(info: &ReactorInfo) -> CoreSet {
    match rustix::thread::sched_getaffinity(thread_of(info)) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|core| set.is_set(*core))
            .collect(),
        Err(_) => info.cores.clone(),
    }
}

fn get_stats(service: &Service) -> Result<Value, Error> {
    let mut threads = Vec::new();
    for info in service.reactors().infos() {
        let pollers = pollers(info)?;
        let timed = pollers.iter().filter(|p| p.period_ns.is_some()).count();
        let stats = info.handle.stats();
        threads.push(json!({
            "name": info.name,
            "id": thread_id(info),
            "cpumask": format!("{:x}", cores_of(info)),
            "busy": stats.busy_ns,
            "idle": stats.idle_ns_at(service.now()),
            "active_pollers_count": pollers.len() - timed,
            "timed_pollers_count": timed,
            "paused_pollers_count": 0,
        }));
    }
    Ok(json!({"tick_rate": TICK_RATE, "threads": threads}))
}

fn show_poller(poller: &PollerStats) -> Value {
    let mut shown = json!({
        "name": poller.name,
        "id": poller.id.0,
        "state": "waiting",
        "run_count": poller.run_count,
        "busy_count": poller.busy_count,
    });
    if let (Some(period), Some(members)) = (poller.period_ns, shown.as_object_mut()) {
        members.insert("period_ticks".to_owned(), period.into());
    }
    shown
}

fn get_pollers(service: &Service) -> Result<Value, Error> {
    let mut threads = Vec::new();
    for info in service.reactors().infos() {
        let (timed, active): (Vec<PollerStats>, Vec<PollerStats>) = pollers(info)?
            .into_iter()
            .partition(|p| p.period_ns.is_some());
        threads.push(json!({
            "name": info.name,
            "id": thread_id(info),
            "active_pollers": active.iter().map(show_poller).collect::<Value>(),
            "timed_pollers": timed.iter().map(show_poller).collect::<Value>(),
            "paused_pollers": [],
        }));
    }
    Ok(json!({"tick_rate": TICK_RATE, "threads": threads}))
}

fn get_io_channels(service: &Service) -> Result<Value, Error> {
    let open: Vec<(ReactorId, Value)> = service
        .bdevs
        .list()
        .iter()
        .flat_map(|entry| {
            let name = entry.bdev.info().name.clone();
            let channels = entry.meter.channels_open().into_iter();
            channels.map(move |(reactor, count)| (reactor, json!({"name": name, "ref": count})))
        })
        .collect();
    let threads = service.reactors().infos().iter().map(|info| {
        let own = open.iter().filter(|(id, _)| *id == info.handle.id());
        let channels: Value = own.map(|(_, shown)| shown.clone()).collect();
        json!({"name": info.name, "io_channels": channels})
    });
    Ok(json!({"tick_rate": TICK_RATE, "threads": threads.collect::<Value>()}))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetCpumask {
    /// The thread's `id`, as `thread_get_stats` tells it.
    id: u64,
    /// The cores: `0x3`, `3`, or `[0,1]`.
    cpumask: String,
}

fn invalid(why: impl std::fmt::Display) -> Error {
    let errno = Errno::INVAL.raw_os_error();
    Error::errno_with(errno, format!("Invalid argument: {why}"))
}

fn set_cpumask(service: &Service, params: SetCpumask) -> Result<bool, Error> {
    let infos = service.reactors().infos().iter();
    let found = infos.into_iter().find(|info| thread_id(info) == params.id);
    let info = found.ok_or_else(|| Error::errno(Errno::SRCH.raw_os_error()))?;
    let cores: CoreSet = params.cpumask.parse().map_err(invalid)?;
    if let ReactorKind::Data { core } = info.kind {
        if cores == info.cores {
            return Ok(true);
        }
        let text = format!(
            "Operation not supported: {} is the data reactor of core {core} and stays there; \
             --cpumask of serve says where data reactors run",
            info.name
        );
        return Err(Error::errno_with(Errno::OPNOTSUPP.raw_os_error(), text));
    }
    let mut set = CpuSet::new();
    for core in cores.iter() {
        set.set(core);
    }
    // The kernel leaves out what this process may not use, and refuses if nothing is left.
    let moved = rustix::thread::sched_setaffinity(thread_of(info), &set);
    moved.map_err(|errno| Error::os(&info.name, &errno.into()))?;
    Ok(true)
}
