//! What `serve` says when it is ready: where everything is, how durable it is, and what to try.

use super::bdevs::{Entry, Kind};
use super::caches;
use super::service::Service;
use crate::bdev::{Bdev, Persistence};
use crate::cache::{Cache, Durability};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

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
    let socket = rpc_socket.display().to_string();
    let cores = service.reactors().data_handles().len();
    let list = service.bdevs.list();
    let bdevs: Vec<String> = list
        .iter()
        .map(|entry| entry.bdev.info().name.clone())
        .collect();
    let addresses: Vec<String> = service
        .nbd
        .servers()
        .iter()
        .map(|server| server.address.to_string())
        .collect();
    let exports: Vec<String> = service
        .nbd
        .exports()
        .iter()
        .map(|e| e.name.clone())
        .collect();
    let caches = caches::all(service);
    if json {
        let document = json!({
            "pid": std::process::id(),
            "data_dir": service.data_dir(),
            "rpc_socket": socket,
            "data_reactors": cores,
            "bdevs": bdevs,
            "caches": caches.iter().map(|cache| cache_json(cache)).collect::<Value>(),
            "nbd": addresses,
            "nbd_exports": exports,
            "degraded": service.degraded(),
        });
        println!("{document}");
        return;
    }
    print_places(service, &socket, cores, &list, &caches);
    for address in &addresses {
        println!("  NBD             {address} exports {}", exports.join(", "));
    }
    print_suggestions(&socket, addresses.first(), exports.first());
}

fn print_places(
    service: &Service,
    socket: &str,
    cores: usize,
    list: &[Entry],
    caches: &[Arc<Cache>],
) {
    println!("pmcache {} is ready", env!("CARGO_PKG_VERSION"));
    println!("  data directory  {}", service.data_dir().display());
    println!("  RPC socket      {socket}");
    println!("  data reactors   {cores}");
    for entry in list {
        if let Kind::Pmem(pmem) = &entry.kind {
            let description = pmem.describe();
            let (path, size) = (pmem.path().display(), description.size >> 20);
            println!(
                "  pmem            {path} ({size} MiB, {:?})",
                description.persistence
            );
        }
    }
    for cache in caches {
        let (name, size) = (cache.name(), cache.info().bytes() >> 20);
        let backing = cache.backing().info().name.clone();
        let dirty = cache.dirty_bytes() >> 10;
        println!("  cache           {name} ({size} MiB) before {backing}; {dirty} KiB dirty");
        println!("                  {}", durability(cache));
    }
}

fn print_suggestions(socket: &str, address: Option<&String>, export: Option<&String>) {
    println!("try:");
    match (address, export) {
        (Some(address), Some(export)) => {
            let uri = match address.strip_prefix("unix:") {
                Some(path) => format!("nbd+unix:///{export}?socket={path}"),
                None => format!("nbd://{address}/{export}"),
            };
            println!("  nbdinfo --map '{uri}'");
            println!(
                "  fio --name=t --ioengine=nbd --uri='{uri}' --rw=randwrite --bs=4k --size=64m"
            );
            println!("  pmcache rpc --rpc-socket {socket} bdev_pmcache_get");
        }
        _ => {
            println!("  pmcache rpc --rpc-socket {socket} rpc_get_methods");
            println!("  pmcache rpc --rpc-socket {socket} bdev_get_bdevs");
            println!("  pmcache rpc --rpc-socket {socket} service_get_health");
        }
    }
}
