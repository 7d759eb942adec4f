//! Disks of vhost-user back ends by RPC: made, told, refused, saved, waited for, and behind a cache.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{Load, Model, SECTOR_BYTES, flush_cache, settle_file};
use common::{EMPTY_CONFIG, Service, pmcache, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 8 * MIB;
const ATTACH: &str = "bdev_virtio_attach_controller";
const DETACH: &str = "bdev_virtio_detach_controller";
const SAVED: &str = "saved.json";

/// Offers a file of `dir` as a disk; returns the socket.
fn offer_file(back_end: &Service, image: &Path) -> PathBuf {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(image);
    file.unwrap().set_len(DISK_BYTES).unwrap();
    let params = json!({"name": "u0", "filename": image, "block_size": 512});
    back_end.call("bdev_uring_create", params);
    let params = json!({"ctrlr": "disk", "dev_name": "u0"});
    back_end.call("vhost_create_blk_controller", params);
    back_end.data("disk")
}

fn attach(socket: &Path) -> Value {
    json!({"name": "v0", "trtype": "user", "traddr": socket, "dev_type": "blk"})
}

fn save(service: &Service) -> String {
    let args = ["config", "save", "--data-dir", "data"];
    let done = pmcache().args(args).current_dir(service.dir()).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn degraded(service: &Service) -> Value {
    service.call("service_get_health", Value::Null)["degraded"].take()
}

#[test]
fn a_disk_is_attached_told_and_detached() {
    let back_end = Service::start();
    let socket = offer_file(&back_end, &back_end.dir().join("image"));
    let service = Service::start();
    let mut params = attach(&socket);
    params["vq_count"] = json!(100);
    params["vq_size"] = json!(64);
    assert_eq!(service.call(ATTACH, params.clone()), json!(["v0"]));
    let told = &service.call("bdev_get_bdevs", json!({"name": "v0"}))[0];
    assert_eq!(told["product_name"], "VirtioBlk Disk");
    assert_eq!(told["num_blocks"], DISK_BYTES / 512);
    let virtio = json!({
        "trtype": "user", "traddr": socket, "dev_type": "blk", "vq_count": 64, "vq_size": 64,
    });
    assert_eq!(told["driver_specific"], json!({"virtio": virtio}));
    assert_eq!(service.refused(ATTACH, params.clone()).0, -17);
    let saved = save(&service);
    assert!(saved.contains("\"vq_count\": 100") || saved.contains("\"vq_count\":100"));

    service.call("nbd_export_add", json!({"bdev_name": "v0"}));
    assert_eq!(service.refused(DETACH, json!({"name": "v0"})).0, -16);
    service.call("nbd_export_remove", json!({"name": "v0", "mode": "hard"}));
    assert_eq!(service.call(DETACH, json!({"name": "v0"})), true);
    assert_eq!(service.refused(DETACH, json!({"name": "v0"})).0, -19);
    // Its place with the back end is free at once.
    let sessions = || {
        let told = back_end.call("vhost_get_controllers", Value::Null);
        told[0]["sessions"].as_array().unwrap().len()
    };
    wait_until("the back end is left", || sessions() == 0);
    assert_eq!(service.call(ATTACH, params), json!(["v0"]));
    assert_eq!(sessions(), 1);
}

#[test]
fn what_can_not_be_attached_is_refused_with_its_code() {
    let service = Service::start();
    let nobody = service.dir().join("nobody");
    drop(std::os::unix::net::UnixListener::bind(service.dir().join("dead")).unwrap());
    let with = |key: &str, value: Value| {
        let mut params = attach(&nobody);
        params[key] = value;
        params
    };
    for (params, code) in [
        (attach(&nobody), -2),
        (attach(&service.dir().join("dead")), -6),
        (with("trtype", json!("pci")), -22),
        (with("dev_type", json!("scsi")), -22),
        (with("name", json!("a b")), -22),
        (with("vq_count", json!(0)), -22),
        (with("vq_size", json!(100)), -22),
        (with("vq_size", json!(65_536)), -32603),
        (with("vq_depth", json!(1)), -32603),
    ] {
        assert_eq!(service.refused(ATTACH, params.clone()).0, code, "{params}");
    }
    assert_eq!(service.refused(DETACH, json!({"name": "v0"})).0, -19);
    assert_eq!(service.call("bdev_get_bdevs", Value::Null), json!([]));
}

#[test]
fn a_back_end_that_is_absent_at_the_start_is_waited_for() {
    let back_end = Service::start();
    let image = back_end.dir().join("image");
    let socket = offer_file(&back_end, &image);
    let service = Service::start();
    service.call(ATTACH, attach(&socket));
    service.call("nbd_export_add", json!({"bdev_name": "v0"}));
    let saved = save(&service);
    let back_end_dir = back_end.kill();
    let dir = service.stop();
    std::fs::write(dir.path().join(SAVED), &saved).unwrap();
    let service = Service::start_in(dir, &["--config", SAVED]);
    let missing = degraded(&service);
    assert!(missing.to_string().contains("bdev 'v0'"), "{missing}");
    assert_eq!(save(&service), saved, "what waits is saved too");
    let back_end = Service::start_in(back_end_dir, &["--config", EMPTY_CONFIG]);
    offer_file(&back_end, &image);
    wait_until("it is attached", || degraded(&service) == json!([]));
    let (code, message) = service.refused(DETACH, json!({"name": "v0"}));
    assert_eq!(code, -16);
    assert!(message.contains("nbd export 'v0'"), "{message}");
}

/// A cache in front of the disk behind `socket`, exported as `c0`.
fn cache_on(service: &Service, socket: &Path) {
    service.call("nbd_server_start", json!({"address": "unix:data/nbd.sock"}));
    service.call(ATTACH, attach(socket));
    let params = json!({"name": "pm", "path": "pm.pmem", "size": 16 * MIB, "create_file": true});
    service.call("bdev_pmem_create", params);
    let params = json!({"name": "p", "bdev_name": "pm", "segment_size": 256 << 10});
    service.call("pool_create", params);
    let params = json!({
        "name": "c0", "pool": "p", "backing_bdev": "v0", "size": 8 * MIB, "lanes": 1,
    });
    service.call("bdev_pmcache_create", params);
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
}

#[test]
fn a_cache_loses_nothing_when_the_back_end_behind_it_is_killed() {
    let mut back_end = Service::start();
    let image = back_end.dir().join("image");
    let socket = offer_file(&back_end, &image);
    let service = Service::start();
    cache_on(&service, &socket);
    let sectors = DISK_BYTES / SECTOR_BYTES;
    let model = Model::new(sectors);
    let mut load = Load::new(&service.data("nbd.sock"), "c0", 1, model);
    for _ in 0..3 {
        // More than the cache holds: it has to write back, and the back end dies meanwhile.
        for first in (0..sectors).step_by(64) {
            load.write(0, first, 64, false);
        }
        back_end.signal(Signal::KILL);
        let (_, dir) = back_end.wait();
        back_end = Service::start_in(dir, &["--config", EMPTY_CONFIG]);
        offer_file(&back_end, &image);
        load.drain();
    }
    let mut model = load.hang_up();
    flush_cache(&service, Duration::from_secs(60));
    service.stop();
    let _dir = back_end.stop();
    settle_file(&mut model, &image);
}
