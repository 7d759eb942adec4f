//! Caches that are resized, checked, and counted anew through RPC.
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

const MIB: u64 = 1 << 20;

/// A pool of 15 MiB in 256 KiB segments, and two caches of 5 MiB.
fn set_up(service: &Service) {
    let size = 15 * MIB + (256 << 10);
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": "anon:", "size": size}),
    );
    service.call(
        "pool_create",
        json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10}),
    );
    for number in 0..2 {
        let (disk, cache) = (format!("d{number}"), format!("c{number}"));
        service.call(
            "bdev_malloc_create",
            json!({"name": disk, "num_blocks": 32 * MIB / 512, "block_size": 512}),
        );
        service.call(
            "bdev_pmcache_create",
            json!({"name": cache, "pool": "p0", "backing_bdev": disk, "size": 5 * MIB, "lanes": 2}),
        );
    }
}

fn free(service: &Service) -> u64 {
    let pools = service.call("pool_get", Value::Null);
    pools[0]["segments"]["free"].as_u64().unwrap()
}

#[test]
fn a_cache_grows_and_shrinks() {
    let service = Service::start();
    set_up(&service);
    assert_eq!(free(&service), 20);
    let resize = |name: &str, size: u64| {
        service.call("bdev_pmcache_resize", json!({"name": name, "size": size}))
    };
    let done = |old: u64, new: u64| json!({"old_size": old, "new_size": new, "in_progress": false});
    assert_eq!(resize("c0", 10 * MIB + 1), done(5 * MIB, 10 * MIB));
    assert_eq!(free(&service), 0);
    assert_eq!(resize("c0", 6 * MIB), done(10 * MIB, 6 * MIB));
    assert_eq!(resize("c1", 7 * MIB), done(5 * MIB, 7 * MIB));
    assert_eq!(resize("c1", 7 * MIB), done(7 * MIB, 7 * MIB));
    let shown = service.call("bdev_pmcache_get", json!({"name": "c1"}));
    assert_eq!(shown[0]["segments"]["total"], 28);
    assert_eq!(shown[0]["resize"], Value::Null);
    // The table has it.
    service.call("bdev_pmcache_unload", json!({"name": "c1"}));
    service.call("bdev_pmcache_load", json!({"pool": "p0", "name": "c1"}));
    let shown = service.call("bdev_pmcache_get", json!({"name": "c1"}));
    assert_eq!(shown[0]["segments"]["total"], 28);
    assert_eq!(free(&service), 60 - 24 - 28);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let service = Service::start();
    set_up(&service);
    for (name, size, code, text) in [
        ("c0", MIB, -22, "lanes want 10 each"),
        ("c0", 11 * MIB, -28, "free"),
        ("c9", 5 * MIB, -19, ""),
        ("d0", 5 * MIB, -19, ""),
    ] {
        let params = json!({"name": name, "size": size});
        let (found, message) = service.refused("bdev_pmcache_resize", params);
        assert_eq!(found, code, "{message}");
        assert!(message.contains(text), "{message}");
    }
    assert_eq!(free(&service), 20);
}

#[test]
fn a_cache_is_checked_while_it_serves() {
    let service = Service::start();
    set_up(&service);
    let start = json!({"name": "c0", "level": "data", "rate_mbps": 0});
    assert_eq!(service.call("bdev_pmcache_check_start", start), true);
    let mut status = Value::Null;
    common::wait_until("the end of the check", || {
        status = service.call("bdev_pmcache_check_status", json!({"name": "c0"}));
        status["in_progress"] == false
    });
    assert_eq!(status["complete"], true);
    assert_eq!(status["bad"], json!([]));
    assert_eq!(
        service.call("bdev_pmcache_check_stop", json!({"name": "c0"})),
        true
    );
    for method in ["start", "status", "stop"] {
        let method = format!("bdev_pmcache_check_{method}");
        assert_eq!(service.refused(&method, json!({"name": "c9"})).0, -19);
    }
}

#[test]
fn statistics_are_begun_anew() {
    let service = Service::start();
    set_up(&service);
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    let mut client = OldClient::connect(&service.data("nbd.sock"), "c0");
    let stats = |params: Value| service.call("bdev_pmcache_get_stats", params);
    let writes = |stats: &Value| stats["requests"]["wr_total"]["count"].as_u64().unwrap();
    let name = json!({"name": "c0"});
    // One in 16 that end at once is timed.
    for _ in 0..64 {
        client.write(0, &[1; 4096]);
    }
    let before = stats(name.clone());
    assert_eq!(writes(&before), 64);
    assert!(before["latency"]["write"].is_object(), "{before}");
    assert_eq!(service.call("bdev_pmcache_reset_stats", name.clone()), true);
    let after = stats(json!({"name": "c0", "per_lane": true}));
    assert_eq!(writes(&after), 0);
    assert_eq!(after["latency"], json!({}));
    assert_eq!(after["lanes"][0]["write_bytes"], 0);
    let occupied = |stats: &Value| stats["usage"]["occupancy"].clone();
    assert_eq!(occupied(&after), occupied(&before), "what there is stays");
    client.write(4096, &[1; 4096]);
    assert_eq!(
        writes(&stats(json!({"name": "c0", "reset_mode": "all"}))),
        1
    );
    assert_eq!(writes(&stats(name)), 0);
    let missing = service.refused("bdev_pmcache_reset_stats", json!({"name": "c9"}));
    assert_eq!(missing.0, -19);
    let odd = json!({"name": "c0", "reset_mode": "some"});
    assert_eq!(service.refused("bdev_pmcache_get_stats", odd).0, -32602);
}
