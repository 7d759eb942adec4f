//! Methods about the NBD target.

use crate::app::service::Service;
use crate::target::nbd::{ExportConfig, PAYLOAD_BYTES_MAX, RemoveMode};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("nbd_server_start", server_start);
    registry.method("nbd_server_stop", server_stop);
    registry.method("nbd_server_get", server_get);
    registry.method("nbd_export_add", export_add);
    registry.method("nbd_export_remove", export_remove);
}

/// `nbd_server_start`: listens on `address`, `unix:/path` or `ip:port`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServerStart {
    address: String,
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
    bdev_name: String,
    name: Option<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    read_only: bool,
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
    name: String,
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
    service.nbd.remove(&service.bdevs, &params.name, mode)?;
    Ok(true)
}
