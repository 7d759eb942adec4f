//! Methods about buffers and sockets, which SPDK's applications tune and this service does not.

use super::refuse_unless_default;
use crate::app::service::Service;
use rpc::{Allowed, Error, Registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "Buffers and sockets",
        "Each connection has its own buffers; there are no pools to size. Sockets are the kernel's, `posix` \
         in SPDK's words, with the sizes that the kernel gives them. SPDK's defaults are taken, so that its \
         configurations load; other values are refused.",
    );
    registry
        .method("iobuf_set_options", iobuf_set_options)
        .allowed(Allowed::Startup)
        .about("Takes SPDK's defaults.", "true. −32602 for other values.");
    registry
        .plain("iobuf_get_stats", |_: &Service| Ok(json!([])))
        .about("How the buffer pools are used: there are none.", "`[]`.");
    registry
        .method("sock_impl_get_options", get_options)
        .allowed(Allowed::Always)
        .about(
            "How sockets are set up.",
            "`{recv_buf_size, send_buf_size, enable_recv_pipe, enable_quickack, enable_placement_id, \
             enable_zerocopy_send_server, enable_zerocopy_send_client, zerocopy_threshold, tls_version, \
             enable_ktls}`; a size of 0 is left to the kernel. −32602 for another implementation than \
             `posix`.",
        );
    registry
        .method("sock_impl_set_options", set_options)
        .allowed(Allowed::Startup)
        .about(
            "Takes what `sock_impl_get_options` tells, and SPDK's defaults.",
            "true. −32602 for other values.",
        );
    registry
        .plain("sock_get_default_impl", |_: &Service| {
            Ok(json!({"impl_name": POSIX}))
        })
        .allowed(Allowed::Always)
        .about("Which sockets are used.", "`{impl_name: \"posix\"}`.");
    registry
        .method("sock_set_default_impl", set_default)
        .allowed(Allowed::Startup)
        .about("Takes `posix`.", "true. −32602 for others.");
}

const POSIX: &str = "posix";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct IobufSetOptions {
    /// Only 8192.
    small_pool_count: Option<u64>,
    /// Only 1024.
    large_pool_count: Option<u64>,
    /// Bytes; only 8192.
    small_bufsize: Option<u32>,
    /// Bytes; only 135168.
    large_bufsize: Option<u32>,
    /// Only false.
    enable_numa: Option<bool>,
}

fn iobuf_set_options(_: &Service, params: IobufSetOptions) -> Result<bool, Error> {
    refuse_unless_default("small_pool_count", params.small_pool_count, &8192)?;
    refuse_unless_default("large_pool_count", params.large_pool_count, &1024)?;
    refuse_unless_default("small_bufsize", params.small_bufsize, &8192)?;
    refuse_unless_default("large_bufsize", params.large_bufsize, &(132 << 10))?;
    refuse_unless_default("enable_numa", params.enable_numa, &false)?;
    Ok(true)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ImplName {
    /// `posix`.
    impl_name: String,
}

fn check_posix(name: &str) -> Result<(), Error> {
    if name == POSIX {
        return Ok(());
    }
    Err(Error::invalid_params(format!(
        "Invalid parameters: there is no socket implementation '{name}', only 'posix'"
    )))
}

/// What SPDK tells of an implementation.
#[derive(Debug, Serialize)]
struct Options {
    recv_buf_size: u32,
    send_buf_size: u32,
    enable_recv_pipe: bool,
    enable_quickack: bool,
    enable_placement_id: u32,
    enable_zerocopy_send_server: bool,
    enable_zerocopy_send_client: bool,
    zerocopy_threshold: u32,
    tls_version: u32,
    enable_ktls: bool,
}

/// What is true of our sockets.
const OURS: Options = Options {
    recv_buf_size: 0,
    send_buf_size: 0,
    enable_recv_pipe: false,
    enable_quickack: false,
    enable_placement_id: 0,
    enable_zerocopy_send_server: false,
    enable_zerocopy_send_client: false,
    zerocopy_threshold: 0,
    tls_version: 0,
    enable_ktls: false,
};

/// SPDK's default sizes of a socket's buffers.
const SPDK_BUF_BYTES: u32 = 2 << 20;

fn get_options(_: &Service, params: ImplName) -> Result<Options, Error> {
    check_posix(&params.impl_name)?;
    Ok(OURS)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    /// `posix`.
    impl_name: String,
    /// Bytes; only 0, and SPDK's default of 2097152, which means as much.
    recv_buf_size: Option<u32>,
    /// Bytes; only 0, and SPDK's default of 2097152, which means as much.
    send_buf_size: Option<u32>,
    /// Taken as it is: it changes nothing that a client sees.
    #[serde(rename = "enable_recv_pipe")]
    _enable_recv_pipe: Option<bool>,
    /// Only false.
    enable_quickack: Option<bool>,
    /// Only 0.
    enable_placement_id: Option<u32>,
    /// Taken as it is: it changes nothing that a client sees.
    #[serde(rename = "enable_zerocopy_send_server")]
    _enable_zerocopy_send_server: Option<bool>,
    /// Only false.
    enable_zerocopy_send_client: Option<bool>,
    /// Only 0.
    zerocopy_threshold: Option<u32>,
    /// Only 0: there is no TLS.
    tls_version: Option<u32>,
    /// Only false.
    enable_ktls: Option<bool>,
}

fn set_options(_: &Service, params: SetOptions) -> Result<bool, Error> {
    check_posix(&params.impl_name)?;
    let size = |given: Option<u32>| given.filter(|bytes| *bytes != SPDK_BUF_BYTES);
    refuse_unless_default("recv_buf_size", size(params.recv_buf_size), &0)?;
    refuse_unless_default("send_buf_size", size(params.send_buf_size), &0)?;
    refuse_unless_default("enable_quickack", params.enable_quickack, &false)?;
    refuse_unless_default("enable_placement_id", params.enable_placement_id, &0)?;
    let zerocopy = params.enable_zerocopy_send_client;
    refuse_unless_default("enable_zerocopy_send_client", zerocopy, &false)?;
    refuse_unless_default("zerocopy_threshold", params.zerocopy_threshold, &0)?;
    refuse_unless_default("tls_version", params.tls_version, &0)?;
    refuse_unless_default("enable_ktls", params.enable_ktls, &false)?;
    Ok(true)
}

fn set_default(_: &Service, params: ImplName) -> Result<bool, Error> {
    check_posix(&params.impl_name)?;
    Ok(true)
}
