//! Methods about the process itself.

use crate::app::service::{Degraded, Service};
use rpc::{Allowed, Error, Registry};
use rustix::process::{Signal, getpid, kill_process};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .plain("spdk_get_version", get_version)
        .about(
            "The version. SPDK's clients look at the numbers.",
            "`version` (\"pmcache v…\"), `fields` {`major`, `minor`, `patch`, `suffix`}.",
        )
        .allowed(Allowed::Always);
    registry
        .method("spdk_kill_instance", kill_instance)
        .about("Sends a signal to the service.", "True.");
    registry
        .plain("service_get_health", get_health)
        .about(
            "Whether all is well.",
            "`ready` (start-up is over), `degraded` (list of {`object`, `reason`}: what could \
             not be brought up by the configuration, and caches whose staging file was \
             missing), `uptime_s`.",
        )
        .allowed(Allowed::Always);
}

/// SPDK's clients look at the numbers; people read the text.
fn get_version(_: &Service) -> Result<Value, Error> {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    Ok(json!({
        "version": concat!("pmcache v", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": "",
        },
    }))
}

/// `spdk_kill_instance`: sends this process a signal.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KillInstance {
    /// Which one.
    sig_name: SignalName,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
enum SignalName {
    #[serde(rename = "SIGINT")]
    Int,
    #[serde(rename = "SIGTERM")]
    Term,
    #[serde(rename = "SIGQUIT")]
    Quit,
    #[serde(rename = "SIGHUP")]
    Hup,
    #[serde(rename = "SIGKILL")]
    Kill,
    #[serde(rename = "SIGUSR1")]
    Usr1,
}

fn kill_instance(_: &Service, params: KillInstance) -> Result<bool, Error> {
    let signal = match params.sig_name {
        SignalName::Int => Signal::INT,
        SignalName::Term => Signal::TERM,
        SignalName::Quit => Signal::QUIT,
        SignalName::Hup => Signal::HUP,
        SignalName::Kill => Signal::KILL,
        SignalName::Usr1 => Signal::USR1,
    };
    kill_process(getpid(), signal).map_err(|errno| Error::errno(errno.raw_os_error()))?;
    Ok(true)
}

#[derive(Serialize)]
struct Health {
    ready: bool,
    degraded: Vec<Degraded>,
    uptime_s: u64,
}

fn get_health(service: &Service) -> Result<Health, Error> {
    Ok(Health {
        ready: service.is_ready(),
        degraded: service.degraded(),
        uptime_s: service.uptime_ns() / 1_000_000_000,
    })
}
