//! What `serve` says when it is ready: where everything is, how durable it is, what to try.

use super::service::Service;
use crate::bdev::{Bdev, Persistence};
use crate::cache::{Cache, Durability};
use serde_json::{Value, json};
use std::path::Path;

/// What persistence means, for people.
fn persistence_text(persistence: Persistence) -> &'static str {
    match persistence {
        Persistence::Dax => "persistent memory (dax): what is flushed survives power loss",
        Persistence::Msync => {
            "an ordinary file (msync): what is flushed survives power loss; a flush is as slow as \
             the disk below"
        }
        Persistence::Volatile => {
            "RAM (volatile): survives the end of this process, but no power loss"
        }
    }
}

fn durability_text(cache: &Cache) -> &'static str {
    match cache.options().durability {
        Durability::Flush => "flush: a write is durable after the next flush, or within a second",
        Durability::Write => "write: a completed write is durable",
    }
}

/// Prints it on standard output.
pub(super) fn announce(service: &Service, rpc_socket: &Path, json: bool) {
    if json {
        println!("{}", document(service, rpc_socket));
        return;
    }
    let socket = rpc_socket.display().to_string();
    println!("pmcache {} is ready", env!("CARGO_PKG_VERSION"));
    println!("  data directory  {}", service.data_dir().display());
    println!("  RPC socket      {socket}");
    for server in service.nbd.servers() {
        println!("  NBD             {}", server.address);
    }
    for export in service.nbd.exports() {
        println!(
            "  export          {} (bdev {})",
            export.name, export.bdev_name
        );
    }
    for cache in service.bdevs.caches() {
        let (info, pool) = (cache.info(), cache.pool());
        println!(
            "  cache           {}: {} MiB, in front of {}, {} MiB of it dirty in the cache",
            info.name,
            info.bytes() >> 20,
            cache.backing().info().name,
            cache.dirty_bytes() >> 20,
        );
        println!("  durability      {}", durability_text(&cache));
        println!(
            "  memory          {}",
            persistence_text(pool.pmem().persistence())
        );
    }
    for degraded in service.degraded() {
        println!("  DEGRADED        {}: {}", degraded.object, degraded.reason);
    }
    println!("try:");
    for command in commands(service, &socket) {
        println!("  {command}");
    }
}

/// Three commands that work here.
fn commands(service: &Service, socket: &str) -> [String; 3] {
    let rpc = |rest: &str| format!("pmcache rpc --rpc-socket {socket} {rest}");
    let servers = service.nbd.servers();
    let exports = service.nbd.exports();
    let nbd = servers.first().zip(exports.first());
    let uri = nbd.map(|(server, export)| {
        let (address, name) = (server.address.to_string(), &export.name);
        match address.strip_prefix("unix:") {
            Some(path) => format!("'nbd+unix:///{name}?socket={path}'"),
            None => format!("'nbd://{address}/{name}'"),
        }
    });
    match uri {
        Some(uri) => [
            format!("nbdinfo {uri}"),
            format!("qemu-img bench -w -f raw -c 20000 -d 16 {uri}"),
            rpc("bdev_pmcache_get"),
        ],
        None => [
            rpc("rpc_get_methods"),
            rpc("bdev_get_bdevs"),
            rpc("service_get_health"),
        ],
    }
}

/// The same as one JSON document.
fn document(service: &Service, rpc_socket: &Path) -> Value {
    let servers = service.nbd.servers();
    let nbd: Vec<String> = servers.iter().map(|s| s.address.to_string()).collect();
    let exports: Vec<String> = service.nbd.exports().into_iter().map(|e| e.name).collect();
    let bdevs = service.bdevs.list();
    let bdevs: Vec<String> = bdevs.iter().map(|e| e.bdev.info().name.clone()).collect();
    let caches: Vec<Value> = service
        .bdevs
        .caches()
        .iter()
        .map(|cache| {
            json!({
                "name": cache.name(),
                "backing_bdev": cache.backing().info().name,
                "dirty_bytes": cache.dirty_bytes(),
                "durability": match cache.options().durability {
                    Durability::Flush => "flush",
                    Durability::Write => "write",
                },
                "persistence": cache.pool().pmem().persistence(),
            })
        })
        .collect();
    json!({
        "pid": std::process::id(),
        "data_dir": service.data_dir(),
        "rpc_socket": rpc_socket,
        "data_reactors": service.reactors().data_handles().len(),
        "nbd": nbd,
        "exports": exports,
        "caches": caches,
        "bdevs": bdevs,
        "degraded": service.degraded(),
    })
}
