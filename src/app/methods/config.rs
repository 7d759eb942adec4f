//! Methods about the start of the service, and about what it saves of its configuration.

use crate::app::config::{Call, Subsystem, subsystems};
use crate::app::service::Service;
use rpc::{Allowed, Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .plain("framework_start_init", start_init)
        .about(
            "Begins to serve. Only of a service that was started with `--wait-for-rpc`, and once.",
            "True.",
        )
        .allowed(Allowed::Startup);
    registry
        .plain("framework_wait_init", wait_init)
        .about(
            "Waits until the service has come up: all that its configuration has is there, or is \
             told in the health.",
            "True. −32603 if it goes down before.",
        )
        .allowed(Allowed::Always);
    registry
        .plain("framework_get_subsystems", get_subsystems)
        .about(
            "The subsystems that a configuration may have, in order.",
            "`subsystem`, and `depends_on`: earlier ones that it needs.",
        );
    registry.method("framework_get_config", get_config).about(
        "The calls that make again what a subsystem has now, in order. They load pools and \
             caches, and never format anything. The same whenever nothing was changed.",
        "A list of {`method`, `params`}. −32602 for a subsystem that there is not.",
    );
}

fn start_init(service: &Service) -> Result<bool, Error> {
    service.start_init()?;
    Ok(true)
}

fn wait_init(service: &Service) -> Result<bool, Error> {
    match service.wait_ready() {
        true => Ok(true),
        false => Err(Error::new(
            Error::INTERNAL_ERROR,
            "framework_initialization failed",
        )),
    }
}

fn get_subsystems(_: &Service) -> Result<Value, Error> {
    let told = subsystems().iter().map(|subsystem| {
        let Subsystem {
            name, depends_on, ..
        } = subsystem;
        json!({"subsystem": name, "depends_on": depends_on})
    });
    Ok(told.collect())
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetConfig {
    /// Which subsystem.
    name: String,
    /// Without effect: calls are answered one by one, which every reader understands.
    #[serde(default, rename = "with_batches")]
    _with_batches: bool,
}

fn get_config(service: &Service, params: GetConfig) -> Result<Vec<Call>, Error> {
    let mut all = subsystems().iter();
    match all.find(|subsystem| subsystem.name == params.name) {
        Some(subsystem) => Ok((subsystem.save)(service)),
        None => Err(Error::invalid_params(format!(
            "Subsystem '{}' not found",
            params.name
        ))),
    }
}
