//! Bdevs that get another size, and what stands on them.
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
use serde_json::json;
use std::fs::File;

const MIB: u64 = 1 << 20;

/// How many bytes `bdev_get_bdevs` says that a bdev has.
fn bytes(service: &Service, name: &str) -> u64 {
    let found = service.call("bdev_get_bdevs", json!({"name": name}));
    let number = |key: &str| found[0][key].as_u64().unwrap();
    number("num_blocks") * number("block_size")
}

fn set_len(service: &Service, bytes: u64) {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(service.data("disk"))
        .unwrap();
    file.set_len(bytes).unwrap();
}

fn open_disk(service: &Service) {
    let file = service.data("disk").display().to_string();
    service.call("bdev_aio_create", json!({"name": "d0", "filename": file}));
}

/// A cache over a filter over a file of 8 MiB, exported.
fn set_up() -> Service {
    let service = Service::start();
    set_len(&service, 8 * MIB);
    open_disk(&service);
    service.call(
        "bdev_passthru_create",
        json!({"name": "t0", "base_bdev_name": "d0"}),
    );
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": "anon:", "size": 10 * MIB}),
    );
    service.call(
        "pool_create",
        json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10}),
    );
    service.call(
        "bdev_pmcache_create",
        json!({"name": "c0", "pool": "p0", "backing_bdev": "t0", "size": 8 * MIB, "lanes": 2}),
    );
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    service
}

fn flush(service: &Service) {
    service.call("bdev_pmcache_flush_start", json!({"name": "c0"}));
    common::wait_until("the end of the flush", || {
        let status = service.call("bdev_pmcache_flush_status", json!({"name": "c0"}));
        status["in_progress"] == false
    });
}

#[test]
fn a_file_that_grows_makes_all_above_it_grow_while_they_serve() {
    let service = set_up();
    let socket = service.data("nbd.sock");
    let mut early = OldClient::connect(&socket, "c0");
    early.write(8 * MIB - 4096, &[1; 4096]);
    set_len(&service, 13 * MIB);
    assert_eq!(bytes(&service, "c0"), 8 * MIB, "nobody has looked");
    assert_eq!(service.call("bdev_aio_rescan", json!({"name": "d0"})), true);
    for name in ["d0", "t0", "c0"] {
        assert_eq!(bytes(&service, name), 13 * MIB, "{name}");
    }
    let mut late = OldClient::connect(&socket, "c0");
    assert_eq!((early.size, late.size), (8 * MIB, 13 * MIB));
    // A miss, and dirty data, in the new part; the early client goes on.
    assert_eq!(late.read(12 * MIB, 4096), [0; 4096]);
    late.write(13 * MIB - 8192, &[2; 8192]);
    assert_eq!(early.read(8 * MIB - 4096, 4096), [1; 4096]);
    flush(&service);
    let disk = std::fs::read(service.data("disk")).unwrap();
    assert_eq!(disk.len() as u64, 13 * MIB);
    assert!(disk[disk.len() - 8192..].iter().all(|&byte| byte == 2));
    late.write(12 * MIB, &[3; 4096]);
    drop((early, late));
    service.call("nbd_export_remove", json!({"name": "c0", "mode": "hard"}));
    // The pool has it, with dirty data in the new part.
    service.call("bdev_pmcache_unload", json!({"name": "c0"}));
    service.call("bdev_pmcache_load", json!({"pool": "p0", "name": "c0"}));
    assert_eq!(bytes(&service, "c0"), 13 * MIB);
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    let mut client = OldClient::connect(&socket, "c0");
    assert_eq!(client.read(12 * MIB, 4096), [3; 4096]);
    assert_eq!(client.read(13 * MIB - 8192, 8192), [2; 8192]);
}

#[test]
fn a_file_that_shrinks_under_somebody_is_refused() {
    let service = set_up();
    set_len(&service, 6 * MIB);
    let (code, message) = service.refused("bdev_aio_rescan", json!({"name": "d0"}));
    assert_eq!(code, -16);
    assert!(
        message.contains("bdev 't0'") && message.contains("from 8388608 to 6291456"),
        "{message}"
    );
    assert_eq!(bytes(&service, "c0"), 8 * MIB);
    assert_eq!(
        service
            .refused("bdev_uring_rescan", json!({"name": "d0"}))
            .0,
        -19
    );
    set_len(&service, 8 * MIB);
    assert_eq!(service.call("bdev_aio_rescan", json!({"name": "d0"})), true);
}

#[test]
fn a_backing_that_grew_meanwhile_is_loaded_and_one_that_shrank_is_not() {
    let service = set_up();
    service.call("nbd_export_remove", json!({"name": "c0", "mode": "hard"}));
    let reopen = |bytes| {
        service.call("bdev_passthru_delete", json!({"name": "t0"}));
        service.call("bdev_aio_delete", json!({"name": "d0"}));
        set_len(&service, bytes);
        open_disk(&service);
        service.call(
            "bdev_passthru_create",
            json!({"name": "t0", "base_bdev_name": "d0"}),
        );
    };
    service.call("bdev_pmcache_unload", json!({"name": "c0"}));
    let load = json!({"pool": "p0", "name": "c0"});
    reopen(7 * MIB);
    let (code, message) = service.refused("bdev_pmcache_load", load.clone());
    assert_eq!(code, -116, "{message}");
    assert!(message.contains("size"), "{message}");
    reopen(9 * MIB);
    service.call("bdev_pmcache_load", load);
    assert_eq!(bytes(&service, "c0"), 8 * MIB, "as recorded, until told");
    service.call("bdev_aio_rescan", json!({"name": "d0"}));
    assert_eq!(bytes(&service, "c0"), 9 * MIB);
}

#[test]
fn a_null_bdev_gets_another_size() {
    let service = Service::start();
    service.call(
        "bdev_null_create",
        json!({"name": "n0", "num_blocks": 2048, "block_size": 4096}),
    );
    let resize = |size: u64| json!({"name": "n0", "new_size": size});
    assert_eq!(service.call("bdev_null_resize", resize(4)), true);
    assert_eq!(bytes(&service, "n0"), 4 * MIB, "nobody uses it");
    service.call("bdev_error_create", json!({"base_name": "n0"}));
    assert_eq!(service.call("bdev_null_resize", resize(6)), true);
    // A saved configuration makes it as large as it is.
    let saved = service.call("framework_get_config", json!({"name": "bdev"}));
    let saved = saved.as_array().unwrap().iter();
    let mut made = saved.filter(|call| call["method"] == "bdev_null_create");
    assert_eq!(made.next().unwrap()["params"]["num_blocks"], 6 << 8);
    assert_eq!(bytes(&service, "EE_n0"), 6 * MIB);
    assert_eq!(service.refused("bdev_null_resize", resize(5)).0, -16);
    assert_eq!(service.refused("bdev_null_resize", resize(0)).0, -16);
    service.call("bdev_error_delete", json!({"name": "EE_n0"}));
    assert_eq!(service.refused("bdev_null_resize", resize(0)).0, -22);
    assert_eq!(
        service.refused("bdev_null_resize", resize(u64::MAX)).0,
        -32602
    );
    let other = json!({"name": "EE_n0", "new_size": 1});
    assert_eq!(service.refused("bdev_null_resize", other).0, -19);
}
