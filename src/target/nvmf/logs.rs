//! Get Log Page (spec section 5.5).

use super::controller::Controller;
use super::discovery;
use super::events::Events;
use super::target::NvmfTarget;
use crate::wire::nvme::{EventInfo, Sqe, Status, ana_log, effects_log, log_id, smart_log};
use reactors::Nanos;

/// Bytes of an error entry.
const ERROR_ENTRY_BYTES: usize = 64;

/// ANA log: without the namespaces.
const GROUPS_ONLY: u8 = 1;

/// What a log is made from.
pub(super) struct Sources<'a> {
    pub(super) controller: &'a Controller,
    pub(super) target: &'a NvmfTarget,
    pub(super) events: &'a mut Events,
    pub(super) connected_at: Nanos,
    pub(super) now: Nanos,
}

/// The part of a log that `sqe` asks for. All zeroes behind its end.
///
/// # Errors
/// The status to complete the command with.
pub(super) fn part(sqe: &Sqe, sources: &mut Sources) -> Result<Vec<u8>, Status> {
    let [id, options, low0, low1] = sqe.cdw10.to_bytes();
    let [high0, high1, ..] = sqe.cdw11.to_bytes();
    let dwords = u64::from(u32::from_le_bytes([low0, low1, high0, high1])) + 1;
    let len = dwords * 4;
    if len > u64::from(sqe.sgl_len.get()) {
        return Err(Status::INVALID_FIELD);
    }
    let offset = u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32;
    let retains = options & 0x80 != 0;
    let log = whole(id, sqe.nsid.get(), (retains, options), sources)?;
    if !offset.is_multiple_of(4) || offset >= log.len() as u64 {
        return Err(Status::INVALID_FIELD);
    }
    let len = usize::try_from(len).map_err(|_| Status::INVALID_FIELD)?;
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = log.get(start..).unwrap_or_default();
    let mut out = rest.get(..len.min(rest.len())).unwrap_or_default().to_vec();
    out.resize(len, 0);
    Ok(out)
}

/// `retains`: the host may be told again of what the log is about; with the log's own options.
fn whole(
    id: u8,
    nsid: u32,
    (retains, specific): (bool, u8),
    sources: &mut Sources,
) -> Result<Vec<u8>, Status> {
    let is_discovery = sources.controller.subsystem.is_discovery;
    if is_discovery && id != log_id::DISCOVERY {
        return match id {
            log_id::ERRORS => Ok(vec![0; ERROR_ENTRY_BYTES]),
            log_id::EFFECTS => Ok(effects_log(true)),
            _ => Err(Status::INVALID_LOG_PAGE),
        };
    }
    if nsid != 0 && nsid != u32::MAX {
        return Err(Status::INVALID_FIELD);
    }
    match id {
        log_id::SUPPORTED => Ok(supported(sources.controller.subsystem.config.ana_reporting)),
        log_id::ERRORS => Ok(vec![0; ERROR_ENTRY_BYTES]),
        log_id::SMART => {
            const HOUR_NS: u64 = 3_600_000_000_000;
            let mut figures = sources.controller.figures();
            figures.hours = sources.now.since(sources.connected_at) / HOUR_NS;
            Ok(smart_log(&figures))
        }
        log_id::FIRMWARE => {
            let mut bytes = vec![0; 512];
            let version = env!("CARGO_PKG_VERSION")
                .bytes()
                .chain(std::iter::repeat(b' '));
            let head = [1, 0, 0, 0, 0, 0, 0, 0].into_iter().chain(version.take(8));
            for (to, from) in bytes.iter_mut().zip(head) {
                *to = from;
            }
            Ok(bytes)
        }
        log_id::CHANGED_NAMESPACES => {
            let log = sources.events.take_changed();
            if !retains {
                sources.events.was_read(EventInfo::NamespaceChanged);
            }
            Ok(log)
        }
        log_id::EFFECTS => Ok(effects_log(false)),
        log_id::ANA if sources.controller.subsystem.config.ana_reporting => {
            let controller = sources.controller;
            let (changes, groups) = controller.subsystem.ana_groups(controller.listener);
            if !retains {
                sources.events.was_read(EventInfo::AnaChanged);
            }
            Ok(ana_log(changes, &groups, specific & GROUPS_ONLY != 0))
        }
        log_id::DISCOVERY if is_discovery => {
            let controller = sources.controller;
            let here = controller.listen_address;
            let log = discovery::log(sources.target, &controller.host.nqn, here);
            if !retains {
                sources.events.was_read(EventInfo::DiscoveryChanged);
            }
            Ok(log)
        }
        _ => Err(Status::INVALID_LOG_PAGE),
    }
}

fn supported(ana: bool) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    for id in [
        log_id::SUPPORTED,
        log_id::ERRORS,
        log_id::SMART,
        log_id::FIRMWARE,
        log_id::CHANGED_NAMESPACES,
        log_id::EFFECTS,
        if ana { log_id::ANA } else { log_id::SUPPORTED },
    ] {
        if let Some(entry) = bytes.get_mut(usize::from(id) * 4) {
            *entry = 1;
        }
    }
    bytes
}
