//! Identify (spec section 5.3).

use super::TransportOptions;
use super::controller::Controller;
use super::events::Events;
use super::namespace::Namespace;
use super::properties::VERSION;
use crate::wire::nvme::{
    ControllerPage, DsmRange, IDENTIFY_BYTES, Sqe, Status, cns, put_descriptors,
    put_namespace_list, put_nvm_controller,
};
use std::sync::Arc;

/// Event requests that may wait.
pub(super) const EVENT_REQUESTS_MAX: u8 = 4;
/// The last namespace identifier that a list may begin behind.
const LIST_AFTER_MAX: u32 = 0xffff_fffd;
/// The only command set: NVM.
const CSI_NVM: u8 = 0;

/// The page that `sqe` asks for.
///
/// # Errors
/// The status to complete the command with.
pub(super) fn page(
    sqe: &Sqe,
    controller: &Controller,
    options: &TransportOptions,
) -> Result<Vec<u8>, Status> {
    if (sqe.sgl_len.get() as usize) < IDENTIFY_BYTES {
        return Err(Status::INVALID_FIELD);
    }
    let [cns, ..] = sqe.cdw10.to_bytes();
    let [.., csi] = sqe.cdw11.to_bytes();
    let subsystem = &controller.subsystem;
    if subsystem.is_discovery && !matches!(cns, cns::CONTROLLER | cns::ACTIVE_NAMESPACES) {
        return Err(Status::INVALID_FIELD);
    }
    let has_csi = matches!(
        cns,
        cns::CSI_NAMESPACE | cns::CSI_CONTROLLER | cns::CSI_ACTIVE_NAMESPACES
    );
    if has_csi && csi != CSI_NVM {
        return Err(Status::INVALID_FIELD);
    }
    let nsid = sqe.nsid.get();
    let table = subsystem.namespaces();
    let found = || table.iter().find(|namespace| namespace.nsid == nsid);
    let ana = subsystem.config.ana_reporting;
    let mut out = Vec::with_capacity(IDENTIFY_BYTES);
    match cns {
        cns::CONTROLLER => out = controller_page(controller, &table, options),
        cns::NAMESPACE | cns::CSI_NAMESPACE | cns::ANY_NAMESPACE => {
            if nsid == 0 || nsid > subsystem.config.namespaces_max {
                return Err(Status::INVALID_NAMESPACE);
            }
            match (cns, found()) {
                (cns::NAMESPACE, Some(namespace)) => out = namespace.page(ana).encode(),
                (cns::ANY_NAMESPACE, Some(namespace)) => out = namespace.page(ana).encode_common(),
                _ => out.resize(IDENTIFY_BYTES, 0),
            }
        }
        cns::ACTIVE_NAMESPACES | cns::CSI_ACTIVE_NAMESPACES => {
            if nsid > LIST_AFTER_MAX {
                return Err(Status::INVALID_NAMESPACE);
            }
            put_namespace_list(table.iter().map(|n| n.nsid), nsid, &mut out);
        }
        cns::DESCRIPTORS => {
            let namespace = found().ok_or(Status::INVALID_NAMESPACE)?;
            put_descriptors(&namespace.page(ana), namespace.uuid(), &mut out);
        }
        cns::CSI_CONTROLLER => {
            let ranges = u8::try_from(DsmRange::COUNT_MAX - 1).unwrap_or(u8::MAX);
            put_nvm_controller(0, ranges, u32::MAX, &mut out);
        }
        cns::COMMAND_SETS => {
            out.resize(IDENTIFY_BYTES, 0);
            // The first combination: NVM alone.
            if let Some(first) = out.first_mut() {
                *first = 1;
            }
        }
        _ => return Err(Status::INVALID_FIELD),
    }
    Ok(out)
}

fn controller_page(
    controller: &Controller,
    table: &[Arc<Namespace>],
    options: &TransportOptions,
) -> Vec<u8> {
    let config = &controller.subsystem.config;
    let volatile = table.iter().any(|n| n.bdev().info().volatile_cache);
    controller.tell(volatile);
    let page = ControllerPage {
        serial: &config.serial,
        model: &config.model,
        firmware: env!("CARGO_PKG_VERSION"),
        subnqn: &config.nqn,
        cntlid: controller.cntlid,
        is_discovery: controller.subsystem.is_discovery,
        version: VERSION,
        mdts: options.mdts(),
        keep_alive_unit: options.keep_alive_unit,
        event_requests: EVENT_REQUESTS_MAX,
        commands_max: options.queue_depth_max,
        namespaces_max: config.namespaces_max,
        volatile_cache: volatile,
        capsule_data_max: options.in_capsule_bytes,
        ana: config.ana_reporting,
    };
    page.encode()
}

/// What the controller's host will be told of, as things are now.
pub(super) fn first_look(controller: &Controller, generation: u64) -> Events {
    let subsystem = &controller.subsystem;
    Events::new(&subsystem.namespaces(), generation, subsystem.ana_changes())
}
