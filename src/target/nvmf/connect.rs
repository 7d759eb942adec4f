//! Connect: a connection becomes a qpair of a controller (spec section 4.1).

use super::TransportOptions;
use super::controller::{Controller, Host, QpairEntry, QpairStatus};
use super::listener::ListenAddress;
use super::target::NvmfTarget;
use crate::wire::nvme::{ConnectCommand, ConnectData, Status, cc, connect_flag};
use reactors::ReactorId;
use std::net::SocketAddr;
use std::sync::Arc;

/// Why a Connect is refused: the status, and DW0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: Status,
    pub(super) dw0: u32,
    /// Perhaps the qpair's predecessor is just going: it may be tried again shortly.
    pub(super) may_pass: bool,
}

/// A field of the command, by its byte.
fn in_command(at: u32) -> Refusal {
    Refusal {
        status: Status::INVALID_PARAMETER,
        dw0: at,
        may_pass: false,
    }
}

/// A field of the data, by its byte.
fn in_data(at: u32) -> Refusal {
    const IN_DATA: u32 = 1 << 16;
    in_command(at | IN_DATA)
}

impl Refusal {
    /// A status, and no more to say.
    pub(super) fn plain(status: Status) -> Self {
        Self {
            status,
            dw0: 0,
            may_pass: false,
        }
    }
}

const QID_AT: u32 = 42;
const QUEUE_SIZE_AT: u32 = 44;

/// Where a Connect comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    pub(super) target: &'a NvmfTarget,
    pub(super) options: &'a TransportOptions,
    pub(super) address: ListenAddress,
    pub(super) peer: SocketAddr,
    pub(super) reactor: ReactorId,
}

/// What a Connect has made.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) entry: QpairEntry,
    /// Entries of its queue.
    pub(super) size: u16,
    pub(super) flow_control: bool,
    /// Milliseconds; 0 for never. Of the admin qpair.
    pub(super) keep_alive_ms: u32,
    /// The host must prove who it is.
    pub(super) is_to_prove: bool,
}

/// Does what a Connect asks for.
///
/// # Errors
/// What to refuse it with.
pub(super) fn connect(
    command: &ConnectCommand,
    data: &ConnectData,
    origin: Origin,
) -> Result<Connected, Refusal> {
    if command.format.get() != 0 {
        return Err(Refusal::plain(Status::INCOMPATIBLE_FORMAT));
    }
    let subnqn = data.subnqn().ok_or(in_data(ConnectData::SUBNQN_AT))?;
    let hostnqn = data.hostnqn().filter(|nqn| !nqn.is_empty());
    let hostnqn = hostnqn.ok_or(in_data(ConnectData::HOSTNQN_AT))?;
    let subsystem = origin.target.find(subnqn);
    let subsystem = subsystem.map_err(|_| in_data(ConnectData::SUBNQN_AT))?;
    // Discovery is answered wherever somebody listens: hosts rely on it.
    let here = subsystem.is_discovery || subsystem.listens_on(origin.address.listener);
    if !here || !subsystem.admits(hostnqn) {
        return Err(Refusal::plain(Status::INVALID_HOST));
    }
    let host = Host {
        nqn: hostnqn.to_owned(),
        id: data.host_id,
    };
    let qid = command.qid.get();
    let depth_max = match qid {
        0 => origin.options.admin_depth_max,
        _ => origin.options.queue_depth_max,
    };
    let last = command.queue_size.get();
    if last == 0 || last >= depth_max {
        return Err(in_command(QUEUE_SIZE_AT));
    }
    let status = QpairStatus::new(qid, origin.reactor, origin.peer);
    let (controller, is_new) = match qid {
        0 => {
            if data.cntlid.get() != ConnectData::ANY {
                return Err(in_data(ConnectData::CNTLID_AT));
            }
            let reactors = origin.target.reactors().to_vec();
            let patience_ms = patience_ms(command, origin.options);
            let made = subsystem.new_controller(|cntlid| {
                Controller::new(
                    cntlid,
                    Arc::clone(&subsystem),
                    host,
                    origin.address,
                    (reactors, patience_ms),
                )
            });
            (made.ok_or(Refusal::plain(Status::CONTROLLER_BUSY))?, true)
        }
        _ => {
            let found = subsystem.controller(data.cntlid.get());
            let found = found.filter(|controller| !controller.has_ended());
            let controller = found.ok_or(in_data(ConnectData::CNTLID_AT))?;
            admit_io(qid, &controller, &host, origin)?;
            (controller, false)
        }
    };
    let Some(entry) = controller.enter(status) else {
        return Err(Refusal {
            may_pass: true,
            ..Refusal::plain(Status::INVALID_QUEUE)
        });
    };
    // Between the look at the list and the controller's entry into it, the host may have been taken off.
    if is_new && !subsystem.admits(&controller.host.nqn) {
        return Err(Refusal::plain(Status::INVALID_HOST));
    }
    Ok(Connected {
        is_to_prove: must_prove(&controller, is_new),
        entry,
        size: last.saturating_add(1),
        flow_control: command.flags & connect_flag::NO_FLOW_CONTROL == 0,
        keep_alive_ms: command.keep_alive_ms.get(),
    })
}

/// How long the host may be silent; 0 if for ever.
fn patience_ms(command: &ConnectCommand, options: &TransportOptions) -> u32 {
    match command.keep_alive_ms.get() {
        0 => 0,
        ms => ms.max(options.keep_alive_min_ms),
    }
}

/// Whether the host must prove who it is. The new controller of one that need not is told of at once.
fn must_prove(controller: &Controller, is_new: bool) -> bool {
    let keys = controller.subsystem.keys_of(&controller.host.nqn);
    if is_new && keys.is_none() {
        controller.subsystem.welcome(controller);
    }
    keys.is_some()
}

/// Whether an I/O qpair may join the controller.
fn admit_io(qid: u16, controller: &Controller, host: &Host, origin: Origin) -> Result<(), Refusal> {
    if controller.host.nqn != host.nqn {
        return Err(in_data(ConnectData::HOSTNQN_AT));
    }
    if controller.host.id != host.id {
        return Err(in_data(0));
    }
    let config = controller.cc();
    let sizes = config & cc::ENTRY_SIZES_MASK == cc::ENTRY_SIZES;
    if !controller.is_enabled() || !sizes || controller.subsystem.is_discovery {
        return Err(in_command(QID_AT));
    }
    if qid > origin.options.io_qpairs_max {
        return Err(Refusal::plain(Status::INVALID_QUEUE));
    }
    Ok(())
}
