//! Methods about where NVMe-oF subsystems are reached, who may, and who is there.

use super::nvmf::{TCP, check_target, check_transport};
use super::nvmf_subsystem::Nqn;
use super::refuse_unless_default;
use crate::app::service::Service;
use crate::target::nvmf::{AnaState, AuthInfo, AuthStage, ChapGroup, ChapHash};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .method("nvmf_subsystem_add_listener", add_listener)
        .about(
            "Lets hosts reach the subsystem at an address of this machine. Several subsystems may share one.",
            "true. −32602 without a transport, for what is no address, if the subsystem listens there already \
             or somebody else does, and for what is not offered; −32603 \"Cannot establish secure channel, when \
             'allow_any_host' is set\".",
        );
    registry
        .method("nvmf_subsystem_remove_listener", remove_listener)
        .about(
            "Ends that, and the controllers that hosts have got there.",
            "true. −32602 if the subsystem does not listen there.",
        );
    registry
        .method("nvmf_subsystem_get_listeners", get_listeners)
        .about(
            "Where a subsystem listens.",
            "`[{address: {trtype, adrfam, traddr, trsvcid}, ana_states: [{ana_group, ana_state}]}]`: the groups \
             that have namespaces; none without `ana_reporting`.",
        );
    registry
        .method("nvmf_subsystem_listener_set_ana_state", set_ana_state)
        .about(
            "Says how good the way through a listener is, to one ANA group or to all: hosts are told, and take \
             the best.",
            "true. −32602 if the subsystem was made without `ana_reporting`, does not listen there, or has no such \
             group.",
        );
    register_hosts(registry);
}

/// Adds those about hosts.
fn register_hosts(registry: &mut Registry<Service>) {
    registry.method("nvmf_subsystem_add_host", add_host).about(
        "Lets a host connect, by its NQN. Without keys a host is who it says it is; with them it must prove \
         it, by DH-HMAC-CHAP, on each of its qpairs, and even if any host may connect.",
        "true. −32602 for what is no NQN, if the host is let in already, for a controller's key without a \
         host's, and for `psk`: TLS is not offered; −126 for a key that the keyring has not, −22 for one \
         whose file holds none.",
    );
    registry
        .method("nvmf_subsystem_set_keys", set_keys)
        .about(
            "Says what a host of the list must prove when it connects again; those of its qpairs that are \
             connected stay. Without keys it need not prove anything any more.",
            "true. −32602 if the host is not in the list, and for a controller's key without a host's; −126 \
             and −22 as `nvmf_subsystem_add_host`.",
        );
    registry
        .method("nvmf_subsystem_remove_host", remove_host)
        .about(
            "Lets a host connect no more, and ends its controllers unless any host may connect.",
            "true. −32602 if the host is not in the list.",
        );
    registry
        .method("nvmf_subsystem_allow_any_host", allow_any_host)
        .about(
            "Lets any host connect, or only those of the list: then the controllers of others are ended.",
            "true.",
        );
    registry
        .method("nvmf_subsystem_get_controllers", get_controllers)
        .about(
            "The controllers that hosts have.",
            "`[{cntlid, cntrltype, hostnqn, hostid, num_io_qpairs}]`; `cntrltype` is `io` or `discovery`.",
        );
    registry
        .method("nvmf_subsystem_get_qpairs", get_qpairs)
        .about(
            "The qpairs of all controllers.",
            "`[{cntlid, qid, state, thread, hostnqn, listen_address, peer_address}]`: `qid` 0 is the admin \
             qpair, `state` is `enabled`, or `authenticating` until the host has proved who it is; `thread` is \
             the reactor's; addresses are `{trtype, adrfam, traddr, trsvcid}`. Of a host that must prove \
             who it is also `auth`: `{state, digest, dhgroup}`, its state `negotiate`, `challenge`, `reply`, \
             `success1`, `success2`, `failure1`, `completed` or `error`, the others `unknown` until they \
             are chosen.",
        );
}

/// An address as NVMe-oF has it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Address {
    /// Only `TCP`, in any case.
    trtype: String,
    /// An IP address; no name.
    traddr: String,
    /// `IPv4` or `IPv6`, in any case; what `traddr` is if not given.
    adrfam: Option<String>,
    /// The port; 0 for any that is free.
    trsvcid: Option<String>,
}

impl Address {
    pub(super) fn parse(&self) -> Result<SocketAddr, Error> {
        check_transport(&self.trtype)?;
        let invalid = |what: String| Error::invalid_params(format!("Invalid parameters: {what}"));
        let ip: IpAddr = self
            .traddr
            .parse()
            .map_err(|_| invalid(format!("traddr '{}' is no IP address", self.traddr)))?;
        let family = family_of(ip);
        if let Some(other) = &self.adrfam
            && !other.eq_ignore_ascii_case(family)
        {
            let traddr = &self.traddr;
            return Err(invalid(format!("traddr '{traddr}' is not of {other}")));
        }
        let port = self.trsvcid.as_deref();
        let port = port.ok_or_else(|| invalid("trsvcid is missing".to_owned()))?;
        // A sign in front is no port.
        let number = port.parse().ok().filter(|_| !port.starts_with('+'));
        let number = number.ok_or_else(|| invalid(format!("trsvcid '{port}' is no port")))?;
        Ok(SocketAddr::new(ip, number))
    }
}

fn family_of(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// What clients are told of an address, and make it again with.
pub(in crate::app) fn describe_address(address: SocketAddr) -> Value {
    json!({
        "trtype": TCP,
        "adrfam": family_of(address.ip()),
        "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
    })
}

/// How good a way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Ana {
    Optimized,
    NonOptimized,
    Inaccessible,
}

impl From<Ana> for AnaState {
    fn from(state: Ana) -> Self {
        match state {
            Ana::Optimized => Self::Optimized,
            Ana::NonOptimized => Self::NonOptimized,
            Ana::Inaccessible => Self::Inaccessible,
        }
    }
}

/// As clients say it.
pub(in crate::app) fn ana_name(state: AnaState) -> &'static str {
    match state {
        AnaState::Optimized => "optimized",
        AnaState::NonOptimized => "non_optimized",
        AnaState::Inaccessible => "inaccessible",
    }
}

/// `nvmf_subsystem_add_listener`: where a subsystem is reached.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddListener {
    /// The subsystem.
    nqn: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Where to listen: `trtype`, only `TCP`; `traddr`, an IP address; `trsvcid`, the port, 0 for any that is
    /// free; `adrfam`, `IPv4` or `IPv6`, what `traddr` is if not given.
    listen_address: Address,
    /// Only false: there is no TLS.
    secure_channel: Option<bool>,
    /// How good this way is, to all namespaces; `optimized` if not given. Another only with `ana_reporting`.
    ana_state: Option<Ana>,
    /// Only `posix`.
    sock_impl: Option<String>,
    /// Only −1: any.
    numa_id: Option<i32>,
}

fn add_listener(service: &Service, params: AddListener) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let address = params.listen_address.parse()?;
    if params.secure_channel == Some(true) {
        if service.nvmf.subsystem(&params.nqn)?.config.allow_any_host {
            return Err(Error::new(
                Error::INTERNAL_ERROR,
                "Cannot establish secure channel, when 'allow_any_host' is set",
            ));
        }
        refuse_unless_default("secure_channel", params.secure_channel, &false)?;
    }
    let state = params.ana_state.unwrap_or(Ana::Optimized);
    if !service.nvmf.subsystem(&params.nqn)?.config.ana_reporting {
        refuse_unless_default("ana_state", Some(state), &Ana::Optimized)?;
    }
    refuse_unless_default("sock_impl", params.sock_impl, &"posix".to_owned())?;
    refuse_unless_default("numa_id", params.numa_id, &-1)?;
    service
        .nvmf
        .add_listener(&params.nqn, address, state.into())?;
    Ok(true)
}

/// `nvmf_subsystem_listener_set_ana_state`: how good a way is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetAnaState {
    /// The subsystem.
    nqn: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Where it listens, as it was said when it was added.
    listen_address: Address,
    /// How good this way is.
    ana_state: Ana,
    /// To which ANA group; to all if 0 or not given.
    anagrpid: Option<u32>,
}

fn set_ana_state(service: &Service, params: SetAnaState) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let address = params.listen_address.parse()?;
    let group = params.anagrpid.filter(|group| *group != 0);
    let state = params.ana_state.into();
    service
        .nvmf
        .set_ana_state(&params.nqn, address, group, state)?;
    Ok(true)
}

/// `nvmf_subsystem_remove_listener`: ends that.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoveListener {
    /// The subsystem.
    nqn: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Where it listens, as it was said when it was added.
    listen_address: Address,
}

fn remove_listener(service: &Service, params: RemoveListener) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let address = params.listen_address.parse()?;
    service.nvmf.remove_listener(&params.nqn, address)?;
    Ok(true)
}

fn get_listeners(service: &Service, params: Nqn) -> Result<Vec<Value>, Error> {
    check_target(params.tgt_name.as_deref())?;
    let subsystem = service.nvmf.subsystem(&params.nqn)?;
    // Without asymmetric access there are no groups to have a state.
    let groups: BTreeSet<u32> = match subsystem.config.ana_reporting {
        true => subsystem.namespaces.iter().map(|n| n.ana_group).collect(),
        false => BTreeSet::new(),
    };
    let listeners = service.nvmf.ana_states(&params.nqn)?.into_iter();
    let told = listeners.map(|(address, states)| {
        // The first state is group 1's.
        let states = (1..)
            .zip(states)
            .filter(|(group, _)| groups.contains(group));
        let states =
            states.map(|(group, state)| json!({"ana_group": group, "ana_state": ana_name(state)}));
        json!({"address": describe_address(address), "ana_states": states.collect::<Value>()})
    });
    Ok(told.collect())
}

/// `nvmf_subsystem_add_host`: who may connect.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddHost {
    /// The subsystem.
    nqn: String,
    /// The host's NQN.
    host: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Not offered: there is no TLS.
    psk: Option<String>,
    /// The key, by its name in the keyring, that the host must prove to have.
    dhchap_key: Option<String>,
    /// The key that controllers prove to have to a host that asks; only with `dhchap_key`.
    dhchap_ctrlr_key: Option<String>,
}

fn add_host(service: &Service, params: AddHost) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    refuse_unless_default("psk", params.psk.map(|_| true), &false)?;
    let keys = (params.dhchap_key.as_ref(), params.dhchap_ctrlr_key.as_ref());
    let keys = service.keyring.host_keys(keys.0, keys.1)?;
    service.nvmf.add_host(&params.nqn, &params.host, keys)?;
    Ok(true)
}

/// `nvmf_subsystem_set_keys`: what a host must prove.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetKeys {
    /// The subsystem.
    nqn: String,
    /// The host's NQN.
    host: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// The key, by its name in the keyring, that the host must prove to have.
    dhchap_key: Option<String>,
    /// The key that controllers prove to have to a host that asks; only with `dhchap_key`.
    dhchap_ctrlr_key: Option<String>,
}

fn set_keys(service: &Service, params: SetKeys) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let keys = (params.dhchap_key.as_ref(), params.dhchap_ctrlr_key.as_ref());
    let keys = service.keyring.host_keys(keys.0, keys.1)?;
    service.nvmf.set_keys(&params.nqn, &params.host, keys)?;
    Ok(true)
}

/// `nvmf_subsystem_remove_host`: who may connect no more.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoveHost {
    /// The subsystem.
    nqn: String,
    /// The host's NQN.
    host: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// How long to wait until its controllers are gone, in milliseconds; 2000 if not given, no more than
    /// 60000. They go in any case.
    timeout_ms: Option<u64>,
}

fn remove_host(service: &Service, params: RemoveHost) -> Result<bool, Error> {
    const WAIT_MAX_MS: u64 = 60_000;
    check_target(params.tgt_name.as_deref())?;
    let patience = params.timeout_ms;
    let patience = patience.map(|ms| Duration::from_millis(ms.min(WAIT_MAX_MS)));
    let nvmf = &service.nvmf;
    nvmf.remove_host(&params.nqn, &params.host, patience)?;
    Ok(true)
}

/// `nvmf_subsystem_allow_any_host`: whether the list of hosts matters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AllowAnyHost {
    /// The subsystem.
    nqn: String,
    /// Any host may connect.
    allow_any_host: bool,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
}

fn allow_any_host(service: &Service, params: AllowAnyHost) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let (nqn, any) = (&params.nqn, params.allow_any_host);
    service.nvmf.allow_any_host(nqn, any)?;
    Ok(true)
}

fn get_controllers(service: &Service, params: Nqn) -> Result<Vec<Value>, Error> {
    check_target(params.tgt_name.as_deref())?;
    let controllers = service.nvmf.controllers(&params.nqn)?.into_iter();
    let told = controllers.map(|info| {
        json!({
            "cntlid": info.cntlid,
            "cntrltype": if info.is_discovery { "discovery" } else { "io" },
            "hostnqn": info.hostnqn,
            "hostid": Uuid::from_bytes(info.hostid),
            "num_io_qpairs": info.io_qpairs,
        })
    });
    Ok(told.collect())
}

fn get_qpairs(service: &Service, params: Nqn) -> Result<Vec<Value>, Error> {
    check_target(params.tgt_name.as_deref())?;
    let qpairs = service.nvmf.qpairs(&params.nqn)?.into_iter();
    let told = qpairs.map(|info| {
        let is_enabled = |auth: AuthInfo| auth.stage == AuthStage::Completed;
        let mut told = json!({
            "cntlid": info.cntlid,
            "qid": info.qid,
            "state": if info.auth.is_none_or(is_enabled) { "enabled" } else { "authenticating" },
            "thread": service.reactor_name(info.reactor),
            "hostnqn": info.hostnqn,
            "listen_address": describe_address(info.listener.local),
            "peer_address": describe_address(info.peer),
        });
        if let (Some(auth), Some(members)) = (info.auth, told.as_object_mut()) {
            members.insert("auth".to_owned(), describe_auth(auth));
        }
        told
    });
    Ok(told.collect())
}

fn describe_auth(auth: AuthInfo) -> Value {
    let state = match auth.stage {
        AuthStage::Negotiate => "negotiate",
        AuthStage::Challenge => "challenge",
        AuthStage::Reply => "reply",
        AuthStage::Success1 => "success1",
        AuthStage::Success2 => "success2",
        AuthStage::Failure1 => "failure1",
        AuthStage::Completed => "completed",
        AuthStage::Error => "error",
    };
    json!({
        "state": state,
        "digest": auth.hash.map_or("unknown", ChapHash::name),
        "dhgroup": auth.group.map_or("unknown", ChapGroup::name),
    })
}
