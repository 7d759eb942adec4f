//! The methods about the NBD target.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{Service, wait_until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const OPTION_EXPORT_NAME: u32 = 1;

/// A client in transmission on `export`, and the export's size in bytes.
fn connect(socket: &Path, export: &str) -> (UnixStream, u64) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    let mut hello = 3_u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend(OPTION_EXPORT_NAME.to_be_bytes());
    hello.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
    hello.extend(export.as_bytes());
    stream.write_all(&hello).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
    let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
    (stream, size)
}

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
    let (client, size) = connect(&service.data("nbd.sock"), "e0");
    assert_eq!(size, 2048 * 512);
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
    let mut client = client;
    assert_eq!(
        client.read(&mut [0]).unwrap(),
        0,
        "the server closes the connection"
    );
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
    let (mut client, _) = connect(&service.data("nbd.sock"), "M0");
    assert_eq!(
        service.call("nbd_server_stop", json!({"address": address})),
        true
    );
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
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
    let (mut client, _) = connect(&service.data("nbd.sock"), "M0");
    let dir = service.stop();
    wait_until("the end of the connection", || {
        matches!(client.read(&mut [0]), Ok(0))
    });
    assert!(!dir.path().join("data/nbd.sock").exists());
}
