//! The methods about bdevs that stand on another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::Service;
use serde_json::{Value, json};

fn with_disk() -> Service {
    let service = Service::start();
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": 2048});
    service.call("bdev_malloc_create", params);
    service
}

#[test]
fn a_filter_owns_its_base_until_it_is_deleted() {
    let service = with_disk();
    let params = json!({"name": "P0", "base_bdev_name": "M0"});
    assert_eq!(service.call("bdev_passthru_create", params.clone()), "P0");
    let base = &service.call("bdev_get_bdevs", json!({"name": "M0"}))[0];
    assert_eq!(base["claimed"], true);
    assert_eq!(base["claim_type"], "exclusive_write");
    let filter = &service.call("bdev_get_bdevs", json!({"name": "P0"}))[0];
    assert_eq!(filter["product_name"], "passthru");
    assert_eq!(filter["num_blocks"], 2048);
    assert_eq!(
        filter["driver_specific"]["passthru"]["base_bdev_name"],
        "M0"
    );

    assert_eq!(service.refused("bdev_passthru_create", params).0, -17);
    let second = json!({"name": "P1", "base_bdev_name": "M0"});
    let (code, message) = service.refused("bdev_passthru_create", second);
    assert_eq!(code, -16);
    assert!(message.contains("in use by bdev 'P0'"), "{message}");
    assert_eq!(
        service
            .refused("bdev_malloc_delete", json!({"name": "M0"}))
            .0,
        -16
    );
    assert_eq!(
        service
            .refused("nbd_export_add", json!({"bdev_name": "M0"}))
            .0,
        -16
    );
    let orphan = json!({"name": "P1", "base_bdev_name": "none"});
    assert_eq!(service.refused("bdev_passthru_create", orphan).0, -19);

    // A stack of two; the lower can't go first.
    let top = json!({"name": "P1", "base_bdev_name": "P0"});
    assert_eq!(service.call("bdev_passthru_create", top), "P1");
    assert_eq!(
        service
            .refused("bdev_passthru_delete", json!({"name": "P0"}))
            .0,
        -16
    );
    for name in ["P1", "P0"] {
        assert_eq!(
            service.call("bdev_passthru_delete", json!({"name": name})),
            true
        );
    }
    assert_eq!(
        service
            .refused("bdev_passthru_delete", json!({"name": "P0"}))
            .0,
        -19
    );
    assert_eq!(
        service.call("bdev_malloc_delete", json!({"name": "M0"})),
        true
    );
}

#[test]
fn a_delay_tells_its_latencies_and_changes_them() {
    let service = with_disk();
    let mut params = json!({
        "name": "D0", "base_bdev_name": "M0",
        "avg_read_latency": 10, "p99_read_latency": 5,
        "avg_write_latency": 30, "p99_write_latency": 40,
    });
    assert_eq!(service.refused("bdev_delay_create", params.clone()).0, -22);
    params["p99_read_latency"] = json!(20);
    assert_eq!(service.call("bdev_delay_create", params), "D0");
    let update = |kind: &str| {
        json!({
            "delay_bdev_name": "D0", "latency_type": kind, "latency_us": 77,
        })
    };
    assert_eq!(
        service.call("bdev_delay_update_latency", update("p99_write")),
        true
    );
    let found = &service.call("bdev_get_bdevs", json!({"name": "D0"}))[0]["driver_specific"];
    assert_eq!(found["delay"]["avg_read_latency"], 10);
    assert_eq!(found["delay"]["p99_read_latency"], 20);
    assert_eq!(found["delay"]["avg_write_latency"], 30);
    assert_eq!(found["delay"]["p99_write_latency"], 77);
    assert_eq!(
        service
            .refused("bdev_delay_update_latency", update("p50"))
            .0,
        -32603
    );
    let other = json!({"delay_bdev_name": "M0", "latency_type": "avg_read", "latency_us": 1});
    assert_eq!(service.refused("bdev_delay_update_latency", other).0, -19);
    assert_eq!(
        service
            .refused("bdev_delay_delete", json!({"name": "M0"}))
            .0,
        -19
    );
    assert_eq!(
        service.call("bdev_delay_delete", json!({"name": "D0"})),
        true
    );
}

#[test]
fn an_error_bdev_takes_injections() {
    let service = with_disk();
    assert_eq!(
        service.call("bdev_error_create", json!({"base_name": "M0"})),
        true
    );
    assert_eq!(
        service
            .refused("bdev_error_create", json!({"base_name": "M0"}))
            .0,
        -17
    );
    let found = &service.call("bdev_get_bdevs", json!({"name": "EE_M0"}))[0];
    assert_eq!(
        found["driver_specific"],
        json!({"error_disk": {"base_bdev": "M0"}})
    );
    let inject = |name: &str, io_type: &str, error_type: &str, more: Value| {
        let mut params = json!({"name": name, "io_type": io_type, "error_type": error_type});
        let members = more.as_object().unwrap().clone();
        params.as_object_mut().unwrap().extend(members);
        params
    };
    for params in [
        inject("EE_M0", "read", "failure", json!({"num": 3})),
        inject("EE_M0", "all", "pending", json!({"skip": 2})),
        inject("EE_M0", "clear", "failure", json!({})),
        inject(
            "EE_M0",
            "write",
            "corrupt_data",
            json!({"corrupt_value": 255}),
        ),
    ] {
        assert_eq!(service.call("bdev_error_inject_error", params), true);
    }
    for (params, code) in [
        (inject("EE_M0", "write", "nvme_failure", json!({})), -22),
        (inject("EE_M0", "write", "corrupt_data", json!({})), -22),
        (inject("EE_M0", "verify", "failure", json!({})), -32603),
        (inject("M0", "read", "failure", json!({})), -19),
    ] {
        let refused = service.refused("bdev_error_inject_error", params.clone());
        assert_eq!(refused.0, code, "{params}");
    }
    assert_eq!(
        service.call("bdev_error_resume_pending", json!({"name": "EE_M0"})),
        true
    );
    assert_eq!(
        service
            .refused("bdev_error_resume_pending", json!({"name": "M0"}))
            .0,
        -19
    );
    assert_eq!(
        service.call("bdev_error_delete", json!({"name": "EE_M0"})),
        true
    );
    assert_eq!(
        service
            .refused("bdev_error_delete", json!({"name": "EE_M0"}))
            .0,
        -19
    );
}

#[test]
fn a_stack_is_taken_down_from_the_top_at_the_end() {
    let service = with_disk();
    service.call("bdev_error_create", json!({"base_name": "M0"}));
    let params = json!({"name": "A", "base_bdev_name": "EE_M0"});
    service.call("bdev_passthru_create", params);
    service.stop();
}
