//! The methods about persistent memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::Service;
use serde_json::{Value, json};

const SIZE: u64 = 4 << 20;

#[test]
fn a_pmem_bdev_on_a_file_comes_and_goes_and_comes_back() {
    let service = Service::start();
    let params = json!({"name": "p0", "path": "p.pmem", "size": SIZE, "create_file": true});
    assert_eq!(service.call("bdev_pmem_create", params.clone()), "p0");
    assert_eq!(service.refused("bdev_pmem_create", params).0, -17);

    let devices = service.call("bdev_pmem_get_devices", Value::Null);
    assert_eq!(devices.as_array().unwrap().len(), 1);
    assert_eq!(devices[0]["name"], "p0");
    assert_eq!(devices[0]["size"], SIZE);
    assert!(devices[0]["persistence"].is_string());
    assert!(devices[0]["flush_method"].is_string());
    let bdev = &service.call("bdev_get_bdevs", json!({"name": "p0"}))[0];
    assert_eq!(bdev["num_blocks"], SIZE / 512);
    assert_eq!(bdev["uuid"], devices[0]["uuid"]);

    assert_eq!(
        service.call("bdev_pmem_delete", json!({"name": "p0"})),
        true
    );
    assert_eq!(
        service.refused("bdev_pmem_delete", json!({"name": "p0"})).0,
        -19
    );
    let again = json!({"name": "p1", "path": "p.pmem"});
    assert_eq!(service.call("bdev_pmem_create", again), "p1");
}

#[test]
fn anonymous_memory_says_that_it_is_volatile() {
    let service = Service::start();
    let params = json!({"name": "ram", "path": "anon:", "size": SIZE});
    service.call("bdev_pmem_create", params);
    let devices = service.call("bdev_pmem_get_devices", json!({"name": "ram"}));
    assert_eq!(devices[0]["persistence"], "volatile");
    assert_eq!(devices[0]["kind"], "memory");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_the_name_free() {
    let service = Service::start();
    for (params, code) in [
        (json!({"name": "p0", "path": "absent.pmem"}), -2),
        (json!({"name": "p0", "path": "anon:"}), -22),
        (
            json!({"name": "p0", "path": "anon:", "size": SIZE, "persistence": "dax"}),
            -95,
        ),
        (
            json!({"name": "p0", "path": "anon:", "size": SIZE, "persistence": "yes"}),
            -32602,
        ),
        (json!({"name": "p0"}), -32602),
    ] {
        let refused = service.refused("bdev_pmem_create", params.clone());
        assert_eq!(refused.0, code, "{params}: {}", refused.1);
    }
    let params = json!({"name": "p0", "path": "anon:", "size": SIZE});
    service.call("bdev_pmem_create", params);
    service.call(
        "bdev_null_create",
        json!({"name": "n", "block_size": 512, "num_blocks": 8}),
    );
    assert_eq!(
        service
            .refused("bdev_pmem_get_devices", json!({"name": "n"}))
            .0,
        -19
    );
    assert_eq!(
        service
            .refused("bdev_pmem_get_devices", json!({"name": "x"}))
            .0,
        -19
    );
}
