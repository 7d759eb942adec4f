//! Pools that are loaded to be looked at.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod nbd_old;

use common::Service;
use nbd_old::OldClient;
use serde_json::{Value, json};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// A pool in a file, with a cache before a RAM disk.
fn set_up() -> (Service, PathBuf) {
    let service = Service::start();
    let file = service.data("pool");
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": file, "size": 12 * MIB, "create_file": true}),
    );
    service.call(
        "bdev_malloc_create",
        json!({"name": "d0", "num_blocks": 16 * MIB / 512, "block_size": 512}),
    );
    service.call(
        "pool_create",
        json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10}),
    );
    service.call(
        "bdev_pmcache_create",
        json!({"name": "c0", "pool": "p0", "backing_bdev": "d0", "size": 8 * MIB, "lanes": 2}),
    );
    (service, file)
}

/// Everything that would change the pool is refused.
fn changes_nothing(service: &Service) {
    service.call(
        "bdev_malloc_create",
        json!({"name": "d1", "num_blocks": 4096, "block_size": 512}),
    );
    let name = json!({"name": "c0"});
    let create = json!({
        "name": "c1", "pool": "p0", "backing_bdev": "d1", "size": 3 * MIB, "lanes": 1
    });
    let resize = json!({"name": "c0", "size": 9 * MIB});
    let options = json!({"name": "c0", "gc_percent": 50});
    let destroy = json!({"name": "c0", "discard_dirty": 8192});
    for (method, params) in [
        ("bdev_pmcache_create", create),
        ("bdev_pmcache_resize", resize),
        ("bdev_pmcache_set_options", options),
        ("bdev_pmcache_destroy", destroy),
        ("bdev_pmcache_check_start", name.clone()),
        ("bdev_pmcache_flush_start", name),
    ] {
        let (code, message) = service.refused(method, params);
        assert_eq!(code, -30, "{method}: {message}");
    }
    service.call("bdev_malloc_delete", json!({"name": "d1"}));
}

#[test]
fn a_pool_that_is_only_looked_at_shows_its_caches_and_stays_as_it_is() {
    let (service, file) = set_up();
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    let export = |service: &Service| {
        service.call("nbd_export_add", json!({"bdev_name": "c0"}));
        OldClient::connect(&service.data("nbd.sock"), "c0")
    };
    let take_back = || service.call("nbd_export_remove", json!({"name": "c0", "mode": "hard"}));
    let mut client = export(&service);
    client.write(5 * MIB, &[7; 8192]);
    drop(client);
    take_back();
    let name = json!({"name": "c0"});
    service.call("bdev_pmcache_unload", name.clone());
    service.call("pool_unload", json!({"name": "p0"}));
    let before = std::fs::read(&file).unwrap();

    for mode in ["read_only", "salvage"] {
        let load = json!({"bdev_name": "pm0", "mode": mode});
        let loaded = service.call("pool_load", load.clone());
        assert_eq!(loaded["caches"], json!(["c0"]));
        assert_eq!(service.call("pool_load", load), loaded, "it is loaded so");
        let (code, message) = service.refused("pool_load", json!({"bdev_name": "pm0"}));
        assert_eq!(code, -16, "{message}");
        let pools = service.call("pool_get", Value::Null);
        assert_eq!(pools[0]["state"], "read_only");
        let loaded = service.call("bdev_pmcache_load", json!({"pool": "p0", "name": "c0"}));
        assert_eq!(loaded["replay"]["missing"], Value::Null);
        let mut client = export(&service);
        assert_eq!(client.read(5 * MIB, 8192), [7; 8192]);
        drop(client);
        take_back();
        changes_nothing(&service);
        service.call("bdev_pmcache_unload", name.clone());
        service.call("pool_unload", json!({"name": "p0"}));
        assert!(
            std::fs::read(&file).unwrap() == before,
            "{mode} changed the pool"
        );
    }
    service.call("pool_load", json!({"bdev_name": "pm0"}));
    service.call("bdev_pmcache_load", json!({"pool": "p0", "name": "c0"}));
    let mut client = export(&service);
    assert_eq!(client.read(5 * MIB, 8192), [7; 8192]);
}
