//! Methods about what SPDK's applications may choose and this service has one way for: its scheduler,
//! its governor, its PCI devices.

use super::refuse_unless_default;
use crate::app::service::Service;
use rpc::{Allowed, Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "Scheduler",
        "Threads stay where they are: the scheduler is SPDK's `static`, and nothing changes a core's clock.",
    );
    registry
        .plain("framework_get_scheduler", get_scheduler)
        .allowed(Allowed::Always)
        .about(
            "Which scheduler runs.",
            "`{scheduler_name: \"static\", scheduler_period: 0, isolated_core_mask: \"0x0\", \
             scheduling_core}`.",
        );
    registry
        .method("framework_set_scheduler", set_scheduler)
        .allowed(Allowed::Always)
        .about(
            "Takes `static`, which runs already.",
            "true. −22 for another scheduler, −32602 for options of others.",
        );
    registry
        .plain("framework_get_governor", |_: &Service| Ok(json!({})))
        .about("What changes the cores' clocks: nothing.", "`{}`.");
    registry
        .method("framework_monitor_context_switch", monitor_context_switch)
        .about(
            "Tells whether context switches are watched: they are not. The kernel counts them in \
             `/proc/PID/task/TID/status`.",
            "`{enabled: false}`. −32602 if it is to be enabled.",
        );
    registry
        .plain("framework_get_pci_devices", |_: &Service| Ok(json!([])))
        .about("The PCI devices that the service drives: none.", "`[]`.");
    registry
        .method("scheduler_set_options", set_options)
        .allowed(Allowed::Startup)
        .about(
            "Takes what the static scheduler does anyway.",
            "true. −32602 for another core, and for cores to be isolated.",
        );
}

/// The first data reactor's core.
fn main_core(service: &Service) -> usize {
    let infos = service.data_infos();
    infos
        .first()
        .and_then(|info| info.cores.iter().next())
        .unwrap_or(0)
}

fn get_scheduler(service: &Service) -> Result<Value, Error> {
    Ok(json!({
        "scheduler_name": "static",
        "scheduler_period": 0,
        "isolated_core_mask": "0x0",
        "scheduling_core": main_core(service),
    }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetScheduler {
    /// `static`.
    name: String,
    /// Only 0: nothing is scheduled periodically.
    period: Option<u64>,
    /// Of the dynamic scheduler, in percent: refused.
    load_limit: Option<u8>,
    /// Of the dynamic scheduler, in percent: refused.
    core_limit: Option<u8>,
    /// Of the dynamic scheduler, in percent: refused.
    core_busy: Option<u8>,
    /// Of the dynamic scheduler: refused.
    mappings: Option<String>,
}

fn set_scheduler(_: &Service, params: SetScheduler) -> Result<bool, Error> {
    if params.name != "static" {
        let text = format!(
            "Invalid argument: there is no scheduler '{}', only 'static'",
            params.name
        );
        return Err(Error::errno_with(
            rustix::io::Errno::INVAL.raw_os_error(),
            text,
        ));
    }
    refuse_unless_default("period", params.period, &0)?;
    let of_dynamic = [
        ("load_limit", params.load_limit.is_some()),
        ("core_limit", params.core_limit.is_some()),
        ("core_busy", params.core_busy.is_some()),
        ("mappings", params.mappings.is_some()),
    ];
    for (option, given) in of_dynamic {
        refuse_unless_default(option, Some(given), &false)?;
    }
    Ok(true)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MonitorContextSwitch {
    /// Only false.
    #[serde(default)]
    enabled: bool,
}

fn monitor_context_switch(_: &Service, params: MonitorContextSwitch) -> Result<Value, Error> {
    refuse_unless_default("enabled", Some(params.enabled), &false)?;
    Ok(json!({"enabled": false}))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    /// Only the first data reactor's core.
    scheduling_core: Option<u32>,
    /// Only a mask of no core.
    isolated_core_mask: Option<String>,
}

fn set_options(service: &Service, params: SetOptions) -> Result<bool, Error> {
    let core = u32::try_from(main_core(service)).unwrap_or(u32::MAX);
    refuse_unless_default("scheduling_core", params.scheduling_core, &core)?;
    let mask = params.isolated_core_mask.unwrap_or_default();
    let digits = mask.trim_start_matches("0x");
    let isolates = digits.chars().any(|digit| digit != '0');
    refuse_unless_default("isolated_core_mask", Some(isolates), &false)?;
    Ok(true)
}
