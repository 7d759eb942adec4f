//! Methods about where else the discovery subsystem sends hosts.

use super::nvmf::{Target, check_target};
use super::nvmf_access::{Address, describe_address};
use super::refuse_unless_default;
use crate::app::service::Service;
use crate::target::nvmf::Referral;
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .method("nvmf_discovery_add_referral", add_referral)
        .about(
            "Tells hosts that ask the discovery subsystem of another target, or of a subsystem there. Whether \
             anything is there is for the hosts to find out.",
            "true. −32602 for what is no address or no NQN, if it is told already, and with `secure_channel`: \
             TLS is not offered.",
        );
    registry
        .method("nvmf_discovery_remove_referral", remove_referral)
        .about("Tells them no more.", "true. −32602 if there is none.");
    registry
        .method("nvmf_discovery_get_referrals", get_referrals)
        .about(
            "What hosts are told of other targets.",
            "`[{address: {trtype, adrfam, traddr, trsvcid}, secure_channel, subnqn}]`, in the order in which \
             they were added. −32603 for another target than the default.",
        );
}

/// `nvmf_discovery_add_referral`: where else a host may look.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddReferral {
    /// The target that tells; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Where: `trtype`, only `TCP`; `traddr`, an IP address; `trsvcid`, the port; `adrfam`, `IPv4` or `IPv6`,
    /// what `traddr` is if not given.
    address: Address,
    /// Only false: there is no TLS.
    secure_channel: Option<bool>,
    /// What is there; the discovery subsystem if not given.
    subnqn: Option<String>,
}

/// `nvmf_discovery_remove_referral`: which one to forget.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoveReferral {
    /// The target that tells; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// As it was added.
    address: Address,
    /// As it was added.
    subnqn: Option<String>,
}

fn add_referral(service: &Service, params: AddReferral) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    refuse_unless_default("secure_channel", params.secure_channel, &false)?;
    let referral = Referral::new(params.address.parse()?, params.subnqn);
    service.nvmf.add_referral(referral)?;
    Ok(true)
}

fn remove_referral(service: &Service, params: RemoveReferral) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let referral = Referral::new(params.address.parse()?, params.subnqn);
    service.nvmf.remove_referral(referral)?;
    Ok(true)
}

fn get_referrals(service: &Service, params: Target) -> Result<Value, Error> {
    check_target(params.tgt_name.as_deref())?;
    let referrals = service.nvmf.referrals();
    Ok(referrals.iter().map(referral_params).collect())
}

/// What clients are told of a referral, and make it again with.
pub(in crate::app) fn referral_params(referral: &Referral) -> Value {
    json!({
        "address": describe_address(referral.address),
        "secure_channel": false,
        "subnqn": referral.nqn,
    })
}
