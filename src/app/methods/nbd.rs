//! Methods about the NBD target.

use super::or_forget;
use crate::app::config::Object;
use crate::app::service::Service;
use crate::target::nbd::{ExportConfig, PAYLOAD_BYTES_MAX, RemoveMode};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("nbd_server_start", server_start).about(
        "Listens for NBD clients. Every server offers all exports. A socket file has mode \
             0600; a dead one is replaced.",
        "True. −17 if it is served already or the path is no socket, −98, −22.",
    );
    registry
        .method("nbd_server_stop", server_stop)
        .about("Ends the server and its connections.", "True. −19.");
    registry.method("nbd_server_get", server_get).about(
        "All servers, or one.",
        "A list of `address`, `exports` (names), `connections` (list of `peer`, `export`, \
             `requests`).",
    );
    registry.method("nbd_export_add", export_add).about(
        "Offers a bdev on every NBD server.",
        "The export's name. −16 if the bdev has an owner, −17, −19, −22.",
    );
    registry
        .method("nbd_export_remove", export_remove)
        .about("Ends an export.", "True. −16 with clients and `safe`, −19.");
}

/// `nbd_server_start`: listens on `address`, `unix:/path` or `ip:port`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServerStart {
    /// `unix:/path` or `ip:port`.
    address: String,
    /// Above 0; 256 if not given.
    max_connections: Option<usize>,
}

fn server_start(service: &Service, params: ServerStart) -> Result<bool, Error> {
    if params.max_connections == Some(0) {
        return Err(Error::invalid_params(
            "Invalid parameters: max_connections must be above 0",
        ));
    }
    let reactors = service.reactors().data_handles();
    service
        .nbd
        .start(&params.address, params.max_connections, reactors)?;
    Ok(true)
}

/// `nbd_server_stop`: ends the server and its connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServerStop {
    /// Where it listens.
    address: String,
}

fn server_stop(service: &Service, params: ServerStop) -> Result<bool, Error> {
    service.nbd.stop(&params.address)?;
    Ok(true)
}

/// `nbd_server_get`: all servers, or the one on `address`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServerGet {
    /// Only the one that listens there.
    address: Option<String>,
}

fn server_get(service: &Service, params: ServerGet) -> Result<Vec<Value>, Error> {
    let exports = service.nbd.exports();
    let names: Vec<&str> = exports.iter().map(|export| &*export.name).collect();
    let servers = service.nbd.servers();
    let found: Vec<Value> = servers
        .iter()
        .map(|server| (server.address.to_string(), &server.connections))
        .filter(|(address, _)| {
            params
                .address
                .as_ref()
                .is_none_or(|wanted| wanted == address)
        })
        .map(|(address, connections)| {
            let connections: Vec<Value> = connections
                .iter()
                .map(|found| {
                    json!({
                        "peer": found.peer,
                        "export": found.export,
                        "requests": found.requests,
                    })
                })
                .collect();
            json!({"address": address, "exports": names, "connections": connections})
        })
        .collect();
    if params.address.is_some() && found.is_empty() {
        return Err(crate::app::bdevs::no_such_device());
    }
    Ok(found)
}

/// `nbd_export_add`: offers a bdev on every NBD server, under its own name by default.
/// `max_payload` in bytes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExportAdd {
    /// What is exported.
    bdev_name: String,
    /// Of the export, 1 to 4096 bytes; the bdev's if not given.
    name: Option<String>,
    /// For people.
    #[serde(default)]
    description: String,
    /// Refuse writes.
    #[serde(default)]
    read_only: bool,
    /// Bytes of the longest READ or WRITE: 4 KiB to 32 MiB, a multiple of the block size; 32 MiB if
    /// not given.
    max_payload: Option<u32>,
}

fn export_add(service: &Service, params: ExportAdd) -> Result<String, Error> {
    let name = params.name.unwrap_or_else(|| params.bdev_name.clone());
    let shown = name.clone();
    service
        .nbd
        .add(&service.bdevs, &params.bdev_name, |bdev| ExportConfig {
            name,
            bdev,
            description: params.description,
            read_only: params.read_only,
            max_payload: params.max_payload.unwrap_or(PAYLOAD_BYTES_MAX),
        })?;
    Ok(shown)
}

/// `nbd_export_remove`: refused while there are clients, unless `mode` is hard.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExportRemove {
    /// The export.
    name: String,
    /// `safe`: refuse while clients are connected; `hard`: close their connections.
    #[serde(default)]
    mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Safe,
    Hard,
}

fn export_remove(service: &Service, params: ExportRemove) -> Result<bool, Error> {
    let mode = match params.mode {
        Mode::Safe => RemoveMode::Safe,
        Mode::Hard => RemoveMode::Hard,
    };
    let removed = service.nbd.remove(&service.bdevs, &params.name, mode);
    or_forget(service, removed, &Object::NbdExport(params.name))
}
