//! What SPDK's clients ask of NVMe-oF when they start: there is nothing yet to tell of.

use crate::app::bdevs::no_such_device;
use crate::app::service::Service;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "NVMe-oF",
        "Not offered by this version; clients that list what there is find nothing.",
    );
    registry
        .method("nvmf_get_subsystems", get_subsystems)
        .about(
            "The NVMe-oF subsystems: none.",
            "`[]`. −32602 for one by its name, −32603 for another target than the default.",
        );
    registry
        .method("nvmf_get_transports", get_transports)
        .about(
            "The NVMe-oF transports: none.",
            "`[]`. −19 for one by its type, −32603 for another target than the default.",
        );
    registry
        .method("nvmf_discovery_get_referrals", get_referrals)
        .about(
            "The referrals of the discovery subsystem: none.",
            "`[]`. −32603 for another target than the default.",
        );
}

/// The one target's name.
const TARGET: &str = "nvmf_tgt";

fn check_target(name: Option<&str>) -> Result<(), Error> {
    match name {
        None | Some(TARGET) => Ok(()),
        Some(_) => Err(Error::new(
            Error::INTERNAL_ERROR,
            "Unable to find a target object.",
        )),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetSubsystems {
    /// Only the one of this name.
    nqn: Option<String>,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
}

fn get_subsystems(_: &Service, params: GetSubsystems) -> Result<[Value; 0], Error> {
    check_target(params.tgt_name.as_deref())?;
    match params.nqn {
        None => Ok([]),
        Some(nqn) => Err(Error::invalid_params(format!(
            "Subsystem with NQN '{nqn}' not found"
        ))),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetTransports {
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Only the one of this type.
    trtype: Option<String>,
}

fn get_transports(_: &Service, params: GetTransports) -> Result<[Value; 0], Error> {
    check_target(params.tgt_name.as_deref())?;
    match params.trtype {
        None => Ok([]),
        Some(_) => Err(no_such_device()),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetReferrals {
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
}

fn get_referrals(_: &Service, params: GetReferrals) -> Result<[Value; 0], Error> {
    check_target(params.tgt_name.as_deref())?;
    Ok([])
}
