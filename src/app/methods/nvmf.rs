//! Methods about the NVMe-oF target as a whole: its transport, its figures.

use super::reactor::TICK_RATE;
use super::refuse_unless_default;
use crate::app::bdevs::no_such_device;
use crate::app::service::Service;
use crate::target::nvmf::{ReactorFigures, TransportOptions};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "NVMe-oF",
        "Bdevs as namespaces of NVMe subsystems, for hosts that come over TCP: a transport, subsystems, what \
         they hold, who may see it and where. Each method takes every parameter that SPDK knows; what is not \
         offered is refused when it is asked for. A subsystem that is not there is −32602.",
    );
    registry.method("nvmf_create_transport", create_transport).about(
        "Makes the TCP transport, which subsystems listen by.",
        "true. −32602 for another type, and what is out of bounds or not offered; −32603 \"Transport type \
         'TCP' already exists\".",
    );
    registry
        .method("nvmf_delete_transport", delete_transport)
        .about(
            "Takes the TCP transport away, so that one with other limits can be made.",
            "true. −16 while a subsystem listens, −32602 if there is none.",
        );
    registry.method("nvmf_get_transports", get_transports).about(
        "The transports.",
        "`[]`, or one of `{trtype, max_queue_depth, max_io_qpairs_per_ctrlr, in_capsule_data_size, \
         max_io_size, max_aq_depth, iobuf_small_cache_size, iobuf_large_cache_size, dif_insert_or_strip, \
         zcopy, c2h_success, sock_priority, abort_timeout_sec, ack_timeout, data_wr_pool_size, \
         disable_command_passthru, kas, min_kato}`. −19 for a type that there is none of, −32603 for \
         another target than the default.",
    );
    registry.method("nvmf_get_stats", get_stats).about(
        "What each data reactor has done for hosts.",
        "`{tick_rate, poll_groups: [{name, admin_qpairs, io_qpairs, current_admin_qpairs, \
         current_io_qpairs, current_unassociated_qpairs, pending_bdev_io, completed_nvme_io, transports: \
         [{trtype}]}]}`: the reactor's thread; qpairs that have ever been connected, and those that are; \
         connections that have not said yet what they are.",
    );
}

/// The one target's name.
const TARGET: &str = "nvmf_tgt";
/// The one transport's type.
pub(in crate::app) const TCP: &str = "TCP";

/// Refuses what is meant for another target.
pub(super) fn check_target(name: Option<&str>) -> Result<(), Error> {
    match name {
        None | Some(TARGET) => Ok(()),
        Some(_) => Err(Error::new(
            Error::INTERNAL_ERROR,
            "Unable to find a target object.",
        )),
    }
}

/// Refuses what is meant for another transport.
pub(super) fn check_transport(trtype: &str) -> Result<(), Error> {
    if trtype.eq_ignore_ascii_case(TCP) {
        return Ok(());
    }
    Err(Error::invalid_params(format!(
        "Invalid parameters: there is no transport type '{trtype}', only 'TCP'"
    )))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Optional {
    Nvmcmps,
    Nvmdsmsv,
    Nvmwzsv,
    Reservs,
    Nvmcpys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Fused {
    Fcws,
}

/// `nvmf_create_transport`: the TCP transport and its limits.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateTransport {
    /// Only `TCP`, in any case.
    trtype: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Commands that an I/O qpair may have under way: 2 to 4096; 128 if not given.
    max_queue_depth: Option<u16>,
    /// Qpairs of a controller beside the admin qpair: 1 to 127; 127 if not given.
    max_io_qpairs_per_ctrlr: Option<u16>,
    /// Bytes that a write may bring along: 0 to 131072, a multiple of 16; 8192 if not given.
    in_capsule_data_size: Option<u32>,
    /// Bytes of one command: a power of two from 4096 to 4194304; 131072 if not given.
    max_io_size: Option<u32>,
    /// Taken as it is: each connection has its own buffers.
    #[serde(rename = "io_unit_size")]
    _io_unit_size: Option<u32>,
    /// Commands that an admin qpair may have under way: 32 to 4096; 128 if not given.
    max_aq_depth: Option<u32>,
    /// Taken as it is: each connection has its own buffers.
    #[serde(rename = "num_shared_buffers")]
    _num_shared_buffers: Option<u32>,
    /// Taken as it is: each connection has its own buffers.
    #[serde(rename = "buf_cache_size")]
    _buf_cache_size: Option<u32>,
    /// Taken as it is: each connection has its own buffers.
    #[serde(rename = "iobuf_small_cache_size")]
    _iobuf_small_cache_size: Option<u32>,
    /// Taken as it is: each connection has its own buffers.
    #[serde(rename = "iobuf_large_cache_size")]
    _iobuf_large_cache_size: Option<u32>,
    /// Only false.
    zcopy: Option<bool>,
    /// Taken as it is: of RDMA.
    #[serde(rename = "num_cqe")]
    _num_cqe: Option<i32>,
    /// Taken as it is: of RDMA.
    #[serde(rename = "max_srq_depth")]
    _max_srq_depth: Option<u32>,
    /// Taken as it is: of RDMA.
    #[serde(rename = "no_srq")]
    _no_srq: Option<bool>,
    /// The last data of a read may be its completion; true if not given.
    c2h_success: Option<bool>,
    /// Only false.
    dif_insert_or_strip: Option<bool>,
    /// Only 0.
    sock_priority: Option<u32>,
    /// Taken as it is: of RDMA.
    #[serde(rename = "acceptor_backlog")]
    _acceptor_backlog: Option<i32>,
    /// Only 1.
    abort_timeout_sec: Option<u32>,
    /// Taken as it is: of RDMA.
    #[serde(rename = "no_wr_batching")]
    _no_wr_batching: Option<bool>,
    /// Taken as it is: each connection has its own buffers.
    #[serde(rename = "control_msg_num")]
    _control_msg_num: Option<u16>,
    /// Taken as it is: of vfio-user.
    #[serde(rename = "disable_mappable_bar0")]
    _disable_mappable_bar0: Option<bool>,
    /// Taken as it is: of vfio-user.
    #[serde(rename = "disable_adaptive_irq")]
    _disable_adaptive_irq: Option<bool>,
    /// Taken as it is: of vfio-user.
    #[serde(rename = "disable_shadow_doorbells")]
    _disable_shadow_doorbells: Option<bool>,
    /// Taken as it is: a reactor is told of connections.
    #[serde(rename = "acceptor_poll_rate")]
    _acceptor_poll_rate: Option<u32>,
    /// Only 0.
    ack_timeout: Option<u32>,
    /// Taken as it is: of RDMA.
    #[serde(rename = "data_wr_pool_size")]
    _data_wr_pool_size: Option<u32>,
    /// Taken as it is: no command is passed through.
    #[serde(rename = "disable_command_passthru")]
    _disable_command_passthru: Option<bool>,
    /// Unit of the keep-alive time, in 100 ms: 1 to 65535; 10 if not given.
    kas: Option<u16>,
    /// The least keep-alive time, in milliseconds; 1000 if not given.
    min_kato: Option<u32>,
    /// Commands that are not to be offered: only those that are not.
    masked_oncs: Option<Vec<Optional>>,
    /// Only an empty list.
    masked_fuses: Option<Vec<Fused>>,
}

impl CreateTransport {
    fn options(&self) -> Result<TransportOptions, Error> {
        let mut options = TransportOptions::default();
        if let Some(depth) = self.max_aq_depth {
            options.admin_depth_max = u16::try_from(depth).map_err(|_| {
                Error::invalid_params(format!(
                    "Invalid parameters: max_aq_depth: {depth} is not within 32 to 4096"
                ))
            })?;
        }
        fn take<T: Copy>(into: &mut T, given: Option<T>) {
            *into = given.unwrap_or(*into);
        }
        take(&mut options.queue_depth_max, self.max_queue_depth);
        take(&mut options.io_qpairs_max, self.max_io_qpairs_per_ctrlr);
        take(&mut options.in_capsule_bytes, self.in_capsule_data_size);
        take(&mut options.io_bytes_max, self.max_io_size);
        take(&mut options.c2h_success, self.c2h_success);
        take(&mut options.keep_alive_unit, self.kas);
        take(&mut options.keep_alive_min_ms, self.min_kato);
        Ok(options)
    }
}

fn create_transport(service: &Service, params: CreateTransport) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    check_transport(&params.trtype)?;
    refuse_unless_default("zcopy", params.zcopy, &false)?;
    let dif = params.dif_insert_or_strip;
    refuse_unless_default("dif_insert_or_strip", dif, &false)?;
    refuse_unless_default("sock_priority", params.sock_priority, &0)?;
    refuse_unless_default("abort_timeout_sec", params.abort_timeout_sec, &1)?;
    refuse_unless_default("ack_timeout", params.ack_timeout, &0)?;
    refuse_unless_default("masked_fuses", params.masked_fuses.clone(), &vec![])?;
    let mut masked = params.masked_oncs.clone().unwrap_or_default();
    masked.retain(|one| !matches!(one, Optional::Reservs | Optional::Nvmcpys));
    refuse_unless_default("masked_oncs of what is offered", Some(masked), &vec![])?;
    service.nvmf.create_transport(params.options()?)?;
    Ok(true)
}

/// `nvmf_delete_transport`: takes the transport away.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DeleteTransport {
    /// Only `TCP`, in any case.
    trtype: String,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
}

fn delete_transport(service: &Service, params: DeleteTransport) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    check_transport(&params.trtype)?;
    service.nvmf.delete_transport()?;
    Ok(true)
}

/// `nvmf_get_transports`: all, or the one of a type.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetTransports {
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
    /// Only the one of this type.
    trtype: Option<String>,
}

fn get_transports(service: &Service, params: GetTransports) -> Result<Vec<Value>, Error> {
    check_target(params.tgt_name.as_deref())?;
    let wanted = |trtype: &String| trtype.eq_ignore_ascii_case(TCP);
    let transport = service.nvmf.transport();
    let found = transport.filter(|_| params.trtype.as_ref().is_none_or(wanted));
    match found {
        None if params.trtype.is_some() => Err(no_such_device()),
        found => Ok(found.iter().map(describe).collect()),
    }
}

fn describe(options: &TransportOptions) -> Value {
    json!({
        "trtype": TCP,
        "max_queue_depth": options.queue_depth_max,
        "max_io_qpairs_per_ctrlr": options.io_qpairs_max,
        "in_capsule_data_size": options.in_capsule_bytes,
        "max_io_size": options.io_bytes_max,
        "max_aq_depth": options.admin_depth_max,
        "iobuf_small_cache_size": u32::MAX,
        "iobuf_large_cache_size": u32::MAX,
        "dif_insert_or_strip": false,
        "zcopy": false,
        "c2h_success": options.c2h_success,
        "sock_priority": 0,
        "abort_timeout_sec": 1,
        "ack_timeout": 0,
        "data_wr_pool_size": 0,
        "disable_command_passthru": true,
        "kas": options.keep_alive_unit,
        "min_kato": options.keep_alive_min_ms,
    })
}

/// Parameters of the methods that are about a target only.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    /// The target; `nvmf_tgt` by default.
    pub(super) tgt_name: Option<String>,
}

fn get_stats(service: &Service, params: Target) -> Result<Value, Error> {
    check_target(params.tgt_name.as_deref())?;
    let transports: Vec<Value> = service
        .nvmf
        .transport()
        .iter()
        .map(|_| json!({"trtype": TCP}))
        .collect();
    let groups = service.nvmf.figures().into_iter().map(|figures| {
        let ReactorFigures {
            reactor,
            admin_qpairs,
            io_qpairs,
            current_admin_qpairs,
            current_io_qpairs,
            current_unassociated_qpairs,
            pending_bdev_io,
            completed_nvme_io,
        } = figures;
        json!({
            "name": service.reactor_name(reactor),
            "admin_qpairs": admin_qpairs,
            "io_qpairs": io_qpairs,
            "current_admin_qpairs": current_admin_qpairs,
            "current_io_qpairs": current_io_qpairs,
            "current_unassociated_qpairs": current_unassociated_qpairs,
            "pending_bdev_io": pending_bdev_io,
            "completed_nvme_io": completed_nvme_io,
            "transports": transports,
        })
    });
    Ok(json!({"tick_rate": TICK_RATE, "poll_groups": groups.collect::<Value>()}))
}
