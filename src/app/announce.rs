//! What `serve` says when it is ready: where everything is, how durable it is, and what to try.

use super::bdevs::Kind;
use super::caches;
use super::service::Service;
use crate::bdev::{Bdev, Persistence};
use crate::cache::{Cache, Durability};
use serde_json::{Value, json};
use std::path::Path;

/// What a completed write is worth, in a sentence.
fn durability(cache: &Cache) -> &'static str {
    let written = cache.options().durability == Durability::Write;
    match (cache.pool().pmem().persistence(), written) {
        (Persistence::Volatile, _) => {
            "acknowledged writes survive the death of the service; nothing survives power loss"
        }
        (_, true) => "acknowledged writes survive the death of the service and power loss",
        (_, false) => {
            "acknowledged writes survive the death of the service; flushed writes power loss"
        }
    }
}

fn cache_json(cache: &Cache) -> Value {
    json!({
        "name": cache.name(),
        "pool": cache.pool().name(),
        "backing_bdev": cache.backing().info().name,
        "size": cache.info().bytes(),
        "dirty_bytes": cache.dirty_bytes(),
        "persistence": cache.pool().pmem().persistence(),
        "durability": durability(cache),
    })
}

/// Says it, in text or as one JSON document.
pub(super) fn announce(service: &Service, rpc_socket: &Path, json: bool) {
    if json {
        println!("{}", document(service, rpc_socket));
        return;
    }
    let socket = rpc_socket.display().to_string();
    let state = match service.is_ready() {
        true => "is ready",
        false => "waits for framework_start_init",
    };
    println!("pmcache {} {state}", env!("CARGO_PKG_VERSION"));
    println!("  data directory  {}", service.data_dir().display());
    println!("  RPC socket      {socket}");
    for entry in service.bdevs.list() {
        if let Kind::Pmem(pmem) = &entry.kind {
            let description = pmem.describe();
            let (path, size) = (pmem.path().display(), description.size >> 20);
            let persistence = description.persistence;
            println!("  pmem            {path} ({size} MiB, {persistence:?})");
        }
    }
    for cache in caches::all(service) {
        let (name, size) = (cache.name(), cache.info().bytes() >> 20);
        let backing = cache.backing().info().name.clone();
        let dirty = cache.dirty_bytes() >> 10;
        println!("  cache           {name} ({size} MiB) before {backing}; {dirty} KiB dirty");
        println!("                  {}", durability(&cache));
    }
    let exports = exports(service).join(", ");
    for server in service.nbd.servers() {
        println!("  NBD             {} exports {exports}", server.address);
    }
    for degraded in service.degraded() {
        println!("  DEGRADED        {}: {}", degraded.object, degraded.reason);
    }
    println!("try:");
    for command in commands(service, &socket) {
        println!("  {command}");
    }
}

fn exports(service: &Service) -> Vec<String> {
    let exports = service.nbd.exports().into_iter();
    exports.map(|export| export.name).collect()
}

/// Three commands that work here.
fn commands(service: &Service, socket: &str) -> [String; 3] {
    let rpc = |method: &str| format!("pmcache rpc --rpc-socket {socket} {method}");
    let servers = service.nbd.servers();
    let exports = exports(service);
    let Some((server, export)) = servers.first().zip(exports.first()) else {
        return ["rpc_get_methods", "bdev_get_bdevs", "service_get_health"].map(rpc);
    };
    let address = server.address.to_string();
    let uri = match address.strip_prefix("unix:") {
        Some(path) => format!("nbd+unix:///{export}?socket={path}"),
        None => format!("nbd://{address}/{export}"),
    };
    [
        format!("nbdinfo --map '{uri}'"),
        format!("fio --name=t --ioengine=nbd --uri='{uri}' --rw=randwrite --bs=4k --size=64m"),
        rpc("bdev_pmcache_get"),
    ]
}

fn document(service: &Service, rpc_socket: &Path) -> Value {
    let bdevs = service.bdevs.list();
    let bdevs: Vec<String> = bdevs.iter().map(|e| e.bdev.info().name.clone()).collect();
    let servers = service.nbd.servers();
    let addresses: Vec<String> = servers.iter().map(|s| s.address.to_string()).collect();
    let caches = caches::all(service);
    json!({
        "pid": std::process::id(),
        "ready": service.is_ready(),
        "data_dir": service.data_dir(),
        "rpc_socket": rpc_socket,
        "data_reactors": service.reactors().data_handles().len(),
        "bdevs": bdevs,
        "caches": caches.iter().map(|cache| cache_json(cache)).collect::<Value>(),
        "nbd": addresses,
        "nbd_exports": exports(service),
        "degraded": service.degraded(),
    })
}
