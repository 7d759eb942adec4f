//! Methods that SPDK's applications call before the NVMe-oF target is there.

use super::refuse_unless_default;
use crate::app::service::Service;
use crate::target::nvmf::{ChapGroup, ChapHash, ChapOffer};
use reactors::CoreSet;
use rpc::{Allowed, Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .method("nvmf_set_config", set_config)
        .allowed(Allowed::Startup)
        .about(
            "Says how hosts may prove who they are that must; of all else it takes what is so.",
            "true. −32602 for other values, and for a list with nothing in it.",
        );
    registry
        .method("nvmf_set_max_subsystems", set_max_subsystems)
        .allowed(Allowed::Startup)
        .about(
            "How many subsystems there may be beside the discovery subsystem; 1024 without it.",
            "true. −32602 for 0 and more than 1024.",
        );
    registry
        .method("nvmf_set_crdt", set_crdt)
        .allowed(Allowed::Startup)
        .about(
            "Takes 0: hosts are never asked to try again later.",
            "true. −32602 for other values.",
        );
}

/// Which admin commands devices are to answer themselves.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Passthru {
    /// Only false.
    identify_ctrlr: Option<bool>,
    /// Only false.
    identify_uuid_list: Option<bool>,
    /// Only false.
    get_log_page: Option<bool>,
    /// Only false.
    get_set_features: Option<bool>,
    /// Only false.
    sanitize: Option<bool>,
    /// Only false.
    security_send_recv: Option<bool>,
    /// Only false.
    fw_update: Option<bool>,
    /// Only false.
    nvme_mi: Option<bool>,
    /// Only false.
    vendor_specific: Option<bool>,
}

impl Passthru {
    fn any(&self) -> bool {
        let all = [
            self.identify_ctrlr,
            self.identify_uuid_list,
            self.get_log_page,
            self.get_set_features,
            self.sanitize,
            self.security_send_recv,
            self.fw_update,
            self.nvme_mi,
            self.vendor_specific,
        ];
        all.contains(&Some(true))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DiscoveryFilter {
    Transport,
    Address,
    Svcid,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DhGroup {
    Null,
    Ffdhe2048,
    Ffdhe3072,
    Ffdhe4096,
    Ffdhe6144,
    Ffdhe8192,
}

impl From<Digest> for ChapHash {
    fn from(digest: Digest) -> Self {
        match digest {
            Digest::Sha256 => Self::Sha256,
            Digest::Sha384 => Self::Sha384,
            Digest::Sha512 => Self::Sha512,
        }
    }
}

impl From<DhGroup> for ChapGroup {
    fn from(group: DhGroup) -> Self {
        match group {
            DhGroup::Null => Self::Null,
            DhGroup::Ffdhe2048 => Self::Ffdhe2048,
            DhGroup::Ffdhe3072 => Self::Ffdhe3072,
            DhGroup::Ffdhe4096 => Self::Ffdhe4096,
            DhGroup::Ffdhe6144 => Self::Ffdhe6144,
            DhGroup::Ffdhe8192 => Self::Ffdhe8192,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum DupHost {
    Allow,
    RestrictPerListener,
}

/// `nvmf_set_config`: the target.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetConfig {
    /// No command is passed through.
    admin_cmd_passthru: Option<Passthru>,
    /// Only the cores of all data reactors.
    poll_groups_mask: Option<String>,
    /// Only `match_any`: a host is told of every address.
    discovery_filter: Option<String>,
    /// Only an empty list.
    discovery_filters: Option<Vec<DiscoveryFilter>>,
    /// Hashes by which hosts may prove who they are; all if not given.
    dhchap_digests: Option<Vec<Digest>>,
    /// Groups that they may exchange numbers of; all if not given.
    dhchap_dhgroups: Option<Vec<DhGroup>>,
    /// Only `allow`: a host may connect several times.
    dup_host_policy: Option<DupHost>,
}

/// With nothing to choose from, no host could ever come in.
fn refuse_nothing<T>(option: &str, list: &[T]) -> Result<(), Error> {
    match list.is_empty() {
        true => Err(Error::invalid_params(format!(
            "Invalid parameters: {option} has nothing in it"
        ))),
        false => Ok(()),
    }
}

fn set_config(service: &Service, params: SetConfig) -> Result<bool, Error> {
    let passthru = params.admin_cmd_passthru.map(|commands| commands.any());
    refuse_unless_default("admin_cmd_passthru", passthru, &false)?;
    if let Some(mask) = params.poll_groups_mask {
        let parsed = mask.parse::<CoreSet>();
        let cores = parsed.map_err(|error| {
            Error::invalid_params(format!("Invalid parameters: poll_groups_mask: {error}"))
        })?;
        let infos = service.data_infos().iter();
        let ours = infos.flat_map(|info| info.cores.iter()).collect();
        refuse_unless_default(
            "poll_groups_mask but all data reactors'",
            Some(cores),
            &ours,
        )?;
    }
    let filter = params.discovery_filter;
    refuse_unless_default("discovery_filter", filter, &"match_any".to_owned())?;
    refuse_unless_default("discovery_filters", params.discovery_filters, &vec![])?;
    refuse_unless_default("dup_host_policy", params.dup_host_policy, &DupHost::Allow)?;
    let mut offer = ChapOffer::default();
    if let Some(digests) = params.dhchap_digests {
        refuse_nothing("dhchap_digests", &digests)?;
        offer.hashes = digests.into_iter().map(ChapHash::from).collect();
    }
    if let Some(groups) = params.dhchap_dhgroups {
        refuse_nothing("dhchap_dhgroups", &groups)?;
        offer.groups = groups.into_iter().map(ChapGroup::from).collect();
    }
    service.nvmf.set_chap_offer(offer);
    Ok(true)
}

/// `nvmf_set_max_subsystems`: how many there may be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetMaxSubsystems {
    /// 1 to 1024.
    max_subsystems: u32,
}

fn set_max_subsystems(service: &Service, params: SetMaxSubsystems) -> Result<bool, Error> {
    let max = params.max_subsystems;
    if !(1..=crate::app::nvmf::SUBSYSTEMS_MAX).contains(&max) {
        return Err(Error::invalid_params(format!(
            "Invalid parameters: max_subsystems: {max} is not within 1 to 1024"
        )));
    }
    service.nvmf.set_subsystems_max(max);
    Ok(true)
}

/// `nvmf_set_crdt`: when to try again, in 100 ms.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetCrdt {
    /// Only 0.
    crdt1: Option<u16>,
    /// Only 0.
    crdt2: Option<u16>,
    /// Only 0.
    crdt3: Option<u16>,
}

fn set_crdt(_: &Service, params: SetCrdt) -> Result<bool, Error> {
    refuse_unless_default("crdt1", params.crdt1, &0)?;
    refuse_unless_default("crdt2", params.crdt2, &0)?;
    refuse_unless_default("crdt3", params.crdt3, &0)?;
    Ok(true)
}
