//! The methods about the NBD target.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod nbd_old;

use common::{Service, wait_until};
use nbd_old::OldClient;
use serde_json::{Value, json};

fn with_disk() -> (Service, String) {
    let service = Service::start();
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": 2048});
    service.call("bdev_malloc_create", params);
    let address = format!("unix:{}", service.data("nbd.sock").display());
    (service, address)
}

#[test]
fn an_exported_disk_is_reached_and_told() {
    let (service, address) = with_disk();
    assert_eq!(
        service.call("nbd_server_start", json!({"address": address})),
        true
    );
    let params = json!({"bdev_name": "M0", "name": "e0", "description": "a disk"});
    assert_eq!(service.call("nbd_export_add", params), "e0");
    let mut client = OldClient::connect(&service.data("nbd.sock"), "e0");
    assert_eq!(client.size, 2048 * 512);
    let found = service.call("nbd_server_get", Value::Null);
    assert_eq!(found[0]["address"], *address);
    assert_eq!(found[0]["exports"], json!(["e0"]));
    assert_eq!(found[0]["connections"][0]["export"], "e0");
    assert_eq!(found[0]["connections"][0]["requests"], 0);

    // In use, and it says by whom.
    let (code, message) = service.refused("bdev_malloc_delete", json!({"name": "M0"}));
    assert_eq!(code, -16);
    assert!(message.contains("nbd export 'e0'"), "{message}");
    assert_eq!(
        service
            .refused("nbd_export_remove", json!({"name": "e0"}))
            .0,
        -16
    );
    let hard = json!({"name": "e0", "mode": "hard"});
    assert_eq!(service.call("nbd_export_remove", hard), true);
    assert!(client.has_ended(), "the server closes the connection");
    assert_eq!(
        service.call("bdev_malloc_delete", json!({"name": "M0"})),
        true
    );
}

#[test]
fn servers_start_once_and_stop() {
    let (service, address) = with_disk();
    service.call(
        "nbd_server_start",
        json!({"address": address, "max_connections": 4}),
    );
    assert_eq!(
        service
            .refused("nbd_server_start", json!({"address": address}))
            .0,
        -17
    );
    service.call("nbd_export_add", json!({"bdev_name": "M0"}));
    let mut client = OldClient::connect(&service.data("nbd.sock"), "M0");
    assert_eq!(
        service.call("nbd_server_stop", json!({"address": address})),
        true
    );
    assert!(client.has_ended());
    assert!(!service.data("nbd.sock").exists());
    assert_eq!(
        service
            .refused("nbd_server_stop", json!({"address": address}))
            .0,
        -19
    );
    assert_eq!(service.call("nbd_server_get", Value::Null), json!([]));
    assert_eq!(
        service
            .refused("nbd_server_get", json!({"address": address}))
            .0,
        -19
    );
}

#[test]
fn what_cannot_be_served_is_refused() {
    let (service, address) = with_disk();
    for (params, code) in [
        (json!({"address": "nowhere"}), -22),
        (json!({"address": "unix:"}), -22),
        (json!({"address": address, "max_connections": 0}), -32602),
        (json!({}), -32602),
    ] {
        assert_eq!(
            service.refused("nbd_server_start", params.clone()).0,
            code,
            "{params}"
        );
    }
    service.call("nbd_export_add", json!({"bdev_name": "M0"}));
    for (params, code) in [
        (json!({"bdev_name": "M0"}), -17),
        (json!({"bdev_name": "none"}), -19),
        (json!({"bdev_name": "M0", "name": ""}), -22),
        (
            json!({"bdev_name": "M0", "name": "e", "max_payload": 100}),
            -22,
        ),
        (json!({"bdev_name": "M0", "name": "e", "weight": 1}), -32602),
    ] {
        assert_eq!(
            service.refused("nbd_export_add", params.clone()).0,
            code,
            "{params}"
        );
    }
    // The refused ones hold nothing.
    assert_eq!(
        service.refused("nbd_export_remove", json!({"name": "e"})).0,
        -19
    );
    assert_eq!(
        service.call("nbd_export_remove", json!({"name": "M0"})),
        true
    );
    assert_eq!(
        service.call("bdev_malloc_delete", json!({"name": "M0"})),
        true
    );
}

#[test]
fn a_stop_closes_connections_and_removes_the_socket() {
    let (service, address) = with_disk();
    service.call("nbd_server_start", json!({"address": address}));
    service.call("nbd_export_add", json!({"bdev_name": "M0"}));
    let mut client = OldClient::connect(&service.data("nbd.sock"), "M0");
    let dir = service.stop();
    wait_until("the end of the connection", || client.has_ended());
    assert!(!dir.path().join("data/nbd.sock").exists());
}
