//! Caches that are resized through RPC.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::Service;
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
