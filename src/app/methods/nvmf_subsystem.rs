//! Methods about NVMe-oF subsystems.

use super::nvmf::check_target;
use super::nvmf_access::describe_address;
use super::nvmf_namespace::describe_namespace;
use super::refuse_unless_default;
use crate::app::service::Service;
use crate::target::nvmf::{HostInfo, SubsystemConfig, SubsystemInfo};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .method("nvmf_create_subsystem", create_subsystem)
        .about(
            "Makes a subsystem without namespaces and listeners. There is always one for discovery, \
             `nqn.2014-08.org.nvmexpress.discovery`, which is told wherever somebody listens.",
            "true. −32603 \"Unable to create subsystem …\" with what is wrong with it, −32602 for what is not \
             offered.",
        );
    registry
        .method("nvmf_delete_subsystem", delete_subsystem)
        .about(
            "Ends a subsystem, and the controllers that hosts have of it: what waits is given up, what a \
             device has is finished first.",
            "true. −32602 \"Subsystem with NQN '…' not found\", and for the discovery subsystem.",
        );
    registry.method("nvmf_get_subsystems", get_subsystems).about(
        "All subsystems, the discovery subsystem first, or one.",
        "A list of `nqn`, `subtype` (`Discovery`, `NVMe`), `listen_addresses` (list of `trtype`, `adrfam`, \
         `traddr`, `trsvcid`), `allow_any_host`, `hosts` (list of `nqn`); except of the discovery subsystem: \
         `serial_number`, `model_number`, `admin_label` (if given), `max_namespaces`, `min_cntlid`, \
         `max_cntlid`, `ana_reporting`, `dmrsl`, `wzsl`, `namespaces` (list of `nsid`, `bdev_name`, `name`, `nguid`, `eui64` if \
         there is one, `uuid`, `anagrpid`). −32602 \"Subsystem with NQN '…' not found\".",
    );
}

/// `nvmf_create_subsystem`: a subsystem called `nqn`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateSubsystem {
    /// 11 to 223 bytes, `nqn.YYYY-MM.reverse.domain:name` or `nqn.2014-08.org.nvmexpress:uuid:…`.
    nqn: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// 1 to 20 printable ASCII characters; zeros if not given.
    serial_number: Option<String>,
    /// 1 to 40 printable ASCII characters; `pmcache controller` if not given.
    model_number: Option<String>,
    /// For administrators; hosts are not told.
    admin_label: Option<String>,
    /// The highest namespace number: 1 to 1024; 32 if not given, or 0.
    max_namespaces: Option<u32>,
    /// Any host may connect; false if not given.
    #[serde(default)]
    allow_any_host: bool,
    /// Hosts are told how good each listener's way to a namespace is; false if not given.
    #[serde(default)]
    ana_reporting: bool,
    /// The lowest number of a controller: 1 to 65519; 1 if not given.
    min_cntlid: Option<u16>,
    /// The highest: `min_cntlid` to 65519; 65519 if not given.
    max_cntlid: Option<u16>,
    /// Only 0: no limit of its own on deallocation.
    dmrsl: Option<u32>,
    /// Only 0: no limit of its own on zeroing.
    wzsl: Option<u8>,
    /// Only false.
    passthrough: Option<bool>,
    /// Only false.
    enable_nssr: Option<bool>,
}

fn create_subsystem(service: &Service, params: CreateSubsystem) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    refuse_unless_default("dmrsl", params.dmrsl, &0)?;
    refuse_unless_default("wzsl", params.wzsl, &0)?;
    refuse_unless_default("passthrough", params.passthrough, &false)?;
    refuse_unless_default("enable_nssr", params.enable_nssr, &false)?;
    let default = SubsystemConfig::new(params.nqn);
    let namespaces_max = params.max_namespaces.filter(|max| *max != 0);
    let config = SubsystemConfig {
        serial: params.serial_number.unwrap_or(default.serial),
        model: params.model_number.unwrap_or(default.model),
        namespaces_max: namespaces_max.unwrap_or(default.namespaces_max),
        allow_any_host: params.allow_any_host,
        cntlid_min: params.min_cntlid.unwrap_or(default.cntlid_min),
        cntlid_max: params.max_cntlid.unwrap_or(default.cntlid_max),
        ana_reporting: params.ana_reporting,
        nqn: default.nqn,
    };
    service.nvmf.create_subsystem(config, params.admin_label)?;
    Ok(true)
}

/// Parameters of the many methods that are about one subsystem only.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nqn {
    /// The subsystem.
    pub(super) nqn: String,
    /// The target; `nvmf_tgt` by default.
    pub(super) tgt_name: Option<String>,
}

fn delete_subsystem(service: &Service, params: Nqn) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let nqn = &params.nqn;
    service.nvmf.delete_subsystem(&service.bdevs, nqn)?;
    service.unresolved.forget_namespaces(nqn);
    Ok(true)
}

/// `nvmf_get_subsystems`: all, or the one called `nqn`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetSubsystems {
    /// Only the one of this name.
    nqn: Option<String>,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
}

fn get_subsystems(service: &Service, params: GetSubsystems) -> Result<Vec<Value>, Error> {
    check_target(params.tgt_name.as_deref())?;
    let found = match params.nqn {
        Some(nqn) => vec![service.nvmf.subsystem(&nqn)?],
        None => service.nvmf.subsystems(),
    };
    Ok(found.iter().map(|info| describe(service, info)).collect())
}

fn describe_host(host: &HostInfo) -> Value {
    let mut told = json!({"nqn": host.nqn});
    let keys = [
        ("dhchap_key", &host.dhchap_key),
        ("dhchap_ctrlr_key", &host.dhchap_ctrlr_key),
    ];
    for (which, name) in keys {
        if let (Some(name), Some(members)) = (name, told.as_object_mut()) {
            members.insert(which.to_owned(), json!(name));
        }
    }
    told
}

fn describe(service: &Service, info: &SubsystemInfo) -> Value {
    let config = &info.config;
    let listeners = info.listeners.iter().copied().map(describe_address);
    let hosts = info.hosts.iter().map(describe_host);
    let mut told = json!({
        "nqn": config.nqn,
        "subtype": if info.is_discovery { "Discovery" } else { "NVMe" },
        "listen_addresses": listeners.collect::<Value>(),
        "allow_any_host": config.allow_any_host,
        "hosts": hosts.collect::<Value>(),
    });
    let Some(members) = told.as_object_mut().filter(|_| !info.is_discovery) else {
        return told;
    };
    let mut tell = |key: &str, value: Value| members.insert(key.to_owned(), value);
    tell("serial_number", json!(config.serial));
    tell("model_number", json!(config.model));
    if let Some(label) = service.nvmf.label(&config.nqn) {
        tell("admin_label", json!(label));
    }
    tell("max_namespaces", json!(config.namespaces_max));
    tell("min_cntlid", json!(config.cntlid_min));
    tell("max_cntlid", json!(config.cntlid_max));
    tell("ana_reporting", json!(config.ana_reporting));
    tell("dmrsl", json!(0));
    tell("wzsl", json!(0));
    let namespaces = info.namespaces.iter().map(describe_namespace);
    tell("namespaces", namespaces.collect());
    told
}
