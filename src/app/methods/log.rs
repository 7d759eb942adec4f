//! Methods about the log.

use crate::app::log::LogLevel;
use crate::app::service::Service;
use rpc::{Allowed, Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "Log",
        "There is one log, on standard error. SPDK's two levels, of what is logged and of what is printed, \
         are one here: whichever is set, both change. `PMCACHE_LOG` of the environment sets the first one. \
         A flag lets one part log what it has to say for debugging, whatever the level.",
    );
    for name in ["log_set_level", "log_set_print_level"] {
        registry
            .method(name, set_level)
            .allowed(Allowed::Always)
            .about("Logs this level and what is graver, from now on.", "true.");
    }
    for name in ["log_get_level", "log_get_print_level"] {
        registry
            .plain(name, |service: &Service| Ok(service.log.level()))
            .allowed(Allowed::Always)
            .about("The level of the log.", "`\"NOTICE\"`, for instance.");
    }
    registry
        .method("log_set_flag", set_flag)
        .allowed(Allowed::Always)
        .about(
            "Lets a part log all that it has to say, `DEBUG` included.",
            "true. −32602 for what is no flag.",
        );
    registry
        .method("log_clear_flag", clear_flag)
        .allowed(Allowed::Always)
        .about(
            "Ends `log_set_flag`: the part logs what the level lets it.",
            "true. −32602 for what is no flag.",
        );
    registry
        .plain("log_get_flags", |service: &Service| Ok(service.log.flags()))
        .allowed(Allowed::Always)
        .about(
            "The flags, and whether each is set.",
            "`{app, bdev, cache, nbd, rpc}`, each true or false.",
        );
    registry
        .method("log_enable_timestamps", enable_timestamps)
        .about("Whether lines of the log begin with the time.", "true.");
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetLevel {
    /// `INFO` is as `NOTICE`: nothing is between them.
    level: LogLevel,
}

fn set_level(service: &Service, params: SetLevel) -> Result<bool, Error> {
    service.log.set_level(params.level)?;
    Ok(true)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Flag {
    /// `app`, `bdev`, `cache`, `nbd`, `rpc`, or `all`.
    flag: String,
}

fn set_flag(service: &Service, params: Flag) -> Result<bool, Error> {
    service.log.set_flag(&params.flag, true)?;
    Ok(true)
}

fn clear_flag(service: &Service, params: Flag) -> Result<bool, Error> {
    service.log.set_flag(&params.flag, false)?;
    Ok(true)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EnableTimestamps {
    /// As they do after the start.
    enabled: bool,
}

fn enable_timestamps(service: &Service, params: EnableTimestamps) -> Result<bool, Error> {
    service.log.enable_timestamps(params.enabled);
    Ok(true)
}
