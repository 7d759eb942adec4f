//! The calls of subsystem `nvmf`, in SPDK's order: the transport and referrals, then each subsystem with its hosts and
//! namespaces. Listeners come last of all: a host that finds a subsystem again after a restart must find
//! all of it, or it takes a disk for gone.

use super::call::{Call, Recipe};
use super::object::Object;
use crate::app::methods;
use crate::app::service::Service;
use crate::target::nvmf::{AnaState, ChapOffer, SubsystemInfo, TransportOptions};
use serde_json::json;

/// All calls of the subsystem.
pub(super) fn nvmf(service: &Service) -> Vec<Call> {
    let mut calls = Vec::new();
    calls.extend(offer(&service.nvmf.chap_offer()));
    if let Some(max) = service.nvmf.subsystems_max() {
        let params = json!({"max_subsystems": max});
        calls.push(Call::new("nvmf_set_max_subsystems", &params));
    }
    calls.extend(service.nvmf.transport().map(|options| transport(&options)));
    let referrals = service.nvmf.referrals();
    calls.extend(referrals.iter().map(|referral| {
        let params = methods::referral_params(referral);
        Call::new("nvmf_discovery_add_referral", &params)
    }));
    let subsystems = service.nvmf.subsystems();
    let waiting = service.unresolved.calls(service);
    for info in &subsystems {
        calls.extend(made(service, info));
        let hosts = info.hosts.iter().map(|host| {
            let params = json!({
                "nqn": info.config.nqn,
                "host": host.nqn,
                "dhchap_key": host.dhchap_key,
                "dhchap_ctrlr_key": host.dhchap_ctrlr_key,
            });
            Recipe::new("nvmf_subsystem_add_host", params).call()
        });
        calls.extend(hosts);
        calls.extend(namespaces(info, &waiting));
    }
    for info in &subsystems {
        let listeners = info.listeners.iter().map(|address| {
            let address = methods::describe_address(*address);
            let params = json!({"nqn": info.config.nqn, "listen_address": address});
            Call::new("nvmf_subsystem_add_listener", &params)
        });
        calls.extend(listeners);
        calls.extend(ways(service, info));
    }
    calls
}

/// How hosts may prove who they are, if not by all that there is.
fn offer(offer: &ChapOffer) -> Option<Call> {
    let hashes: Vec<_> = offer.hashes.iter().map(|hash| hash.name()).collect();
    let groups: Vec<_> = offer.groups.iter().map(|group| group.name()).collect();
    let params = json!({"dhchap_digests": hashes, "dhchap_dhgroups": groups});
    (*offer != ChapOffer::default()).then(|| Call::new("nvmf_set_config", &params))
}

/// What was said of ways that are not the best.
fn ways(service: &Service, info: &SubsystemInfo) -> Vec<Call> {
    let nqn = &info.config.nqn;
    let mut calls = Vec::new();
    for (address, states) in service.nvmf.ana_states(nqn).unwrap_or_default() {
        let address = methods::describe_address(address);
        let set = |state: AnaState, group: Option<u32>| {
            let params = json!({
                "nqn": nqn,
                "listen_address": address,
                "ana_state": methods::ana_name(state),
                "anagrpid": group,
            });
            Recipe::new("nvmf_subsystem_listener_set_ana_state", params).call()
        };
        match states.split_first() {
            Some((&first, rest)) if rest.iter().all(|state| *state == first) => {
                calls.extend((first != AnaState::default()).then(|| set(first, None)));
            }
            _ => {
                let groups = (1..).zip(states);
                let worse = groups.filter(|(_, state)| *state != AnaState::default());
                calls.extend(worse.map(|(group, state)| set(state, Some(group))));
            }
        }
    }
    calls
}

fn transport(options: &TransportOptions) -> Call {
    let params = json!({
        "trtype": methods::TCP,
        "max_queue_depth": options.queue_depth_max,
        "max_io_qpairs_per_ctrlr": options.io_qpairs_max,
        "in_capsule_data_size": options.in_capsule_bytes,
        "max_io_size": options.io_bytes_max,
        "max_aq_depth": options.admin_depth_max,
        "c2h_success": options.c2h_success,
        "kas": options.keep_alive_unit,
        "min_kato": options.keep_alive_min_ms,
    });
    Call::new("nvmf_create_transport", &params)
}

/// The call that makes the subsystem. The one for discovery is always there, and only told whom it is for
/// if that was changed.
fn made(service: &Service, info: &SubsystemInfo) -> Option<Call> {
    let config = &info.config;
    if info.is_discovery {
        let params = json!({"nqn": config.nqn, "allow_any_host": false});
        let call = Call::new("nvmf_subsystem_allow_any_host", &params);
        return (!config.allow_any_host).then_some(call);
    }
    let params = json!({
        "nqn": config.nqn,
        "allow_any_host": config.allow_any_host,
        "serial_number": config.serial,
        "model_number": config.model,
        "admin_label": service.nvmf.label(&config.nqn),
        "max_namespaces": config.namespaces_max,
        "min_cntlid": config.cntlid_min,
        "max_cntlid": config.cntlid_max,
        "ana_reporting": config.ana_reporting,
    });
    Some(Recipe::new("nvmf_create_subsystem", params).call())
}

/// By number, so that it makes no difference which came up first; those without one last.
fn namespaces(info: &SubsystemInfo, waiting: &[(Option<Object>, Call)]) -> Vec<Call> {
    let nqn = &info.config.nqn;
    let there = info.namespaces.iter().map(|namespace| {
        let params = methods::namespace_params(nqn, namespace);
        let call = Call::new("nvmf_subsystem_add_ns", &params);
        (u64::from(namespace.nsid), call)
    });
    let mut all: Vec<_> = there.collect();
    for (object, call) in waiting {
        if let Some(Object::NvmfNamespace(of, _)) = object
            && of == nqn
        {
            let nsid = call.value()["namespace"]["nsid"].as_u64();
            all.push((nsid.filter(|n| *n != 0).unwrap_or(u64::MAX), call.clone()));
        }
    }
    all.sort_by_key(|(nsid, _)| *nsid);
    all.into_iter().map(|(_, call)| call).collect()
}
