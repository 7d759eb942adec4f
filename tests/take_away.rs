//! A cache is put in front of a disk that holds data, and taken away again.
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
use std::fs;
use std::os::unix::fs::FileExt;

const MIB: usize = 1 << 20;
const DISK: usize = 16 * MIB;

/// What stands at each byte of the disk before there is a cache.
fn pattern() -> Vec<u8> {
    let word = |n: usize| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..DISK / 8).flat_map(word).collect()
}

/// A disk with data, a pool, and an NBD server.
fn set_up() -> Service {
    let service = Service::start();
    fs::write(service.data("disk"), pattern()).unwrap();
    open_disk(&service);
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": "anon:", "size": 16 * MIB}),
    );
    service.call(
        "pool_create",
        json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10}),
    );
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    service
}

fn open_disk(service: &Service) {
    let file = service.data("disk").display().to_string();
    service.call("bdev_aio_create", json!({"name": "d0", "filename": file}));
}

fn close_disk(service: &Service) {
    service.call("bdev_aio_delete", json!({"name": "d0"}));
}

fn create(service: &Service) {
    service.call(
        "bdev_pmcache_create",
        json!({"name": "c0", "pool": "p0", "backing_bdev": "d0", "size": 12 * MIB, "lanes": 2}),
    );
}

/// Writes through an export to 40 places, and reads others.
fn use_it(service: &Service, model: &mut [u8]) {
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    let mut client = OldClient::connect(&service.data("nbd.sock"), "c0");
    assert_eq!(client.size, DISK as u64);
    for number in 0..40_usize {
        let at = number * 397 * 1024 % (DISK - 65_536);
        let read = client.read(at as u64, 8192);
        assert!(read == model[at..at + 8192], "read at {at}");
        let at = (at + 20_480) / 4096 * 4096;
        let data = vec![u8::try_from(number).unwrap() + 1; 12_288];
        client.write(at as u64, &data);
        model[at..at + data.len()].copy_from_slice(&data);
        assert_eq!(client.read(at as u64, data.len()), data);
    }
    let unload = json!({"name": "c0", "flush": true});
    assert_eq!(service.refused("bdev_pmcache_unload", unload).0, -16);
    drop(client);
    let export = json!({"name": "c0", "mode": "hard"});
    service.call("nbd_export_remove", export);
}

#[test]
fn the_disk_alone_is_complete_when_its_cache_was_flushed_and_taken_away() {
    let service = set_up();
    create(&service);
    let mut model = pattern();
    use_it(&service, &mut model);
    let unload = json!({"name": "c0", "flush": true});
    let (code, message) = service.refused("bdev_pmcache_unload", unload.clone());
    assert_eq!(code, -16);
    assert!(message.contains("dirty"), "{message}");
    service.call("bdev_pmcache_flush_start", json!({"name": "c0"}));
    let mut status = Value::Null;
    wait_until("the end of the flush", || {
        status = service.call("bdev_pmcache_flush_status", json!({"name": "c0"}));
        status["in_progress"] == false
    });
    assert_eq!(status["remaining_bytes"], 0);
    assert_eq!(service.call("bdev_pmcache_unload", unload), true);
    let destroyed = service.refused("bdev_pmcache_destroy", json!({"name": "c0"}));
    assert_eq!(destroyed.0, -19);
    close_disk(&service);
    let disk = fs::read(service.data("disk")).unwrap();
    assert!(disk == model, "the disk alone is not complete");

    // Put in front again, elsewhere.
    open_disk(&service);
    service.call("bdev_pmcache_load", json!({"pool": "p0", "name": "c0"}));
    use_it(&service, &mut model);
}

#[test]
fn dirty_data_wait_in_the_pool_for_the_very_disk_that_they_are_of() {
    let service = set_up();
    create(&service);
    let mut model = pattern();
    use_it(&service, &mut model);
    let found = service.call("bdev_pmcache_get", json!({"name": "c0"}));
    assert_ne!(found[0]["dirty_bytes"], 0);
    service.call("bdev_pmcache_unload", json!({"name": "c0"}));
    close_disk(&service);
    // Somebody writes to the disk meanwhile.
    let file = fs::File::options()
        .write(true)
        .open(service.data("disk"))
        .unwrap();
    let end = DISK as u64 - 4096;
    file.write_all_at(&[0xee; 4096], end).unwrap();
    open_disk(&service);
    let load = json!({"pool": "p0", "name": "c0"});
    let (code, message) = service.refused("bdev_pmcache_load", load.clone());
    assert_eq!(code, -116, "{message}");
    close_disk(&service);
    // As if nothing had happened.
    file.write_all_at(&pattern()[DISK - 4096..], end).unwrap();
    drop(file);
    open_disk(&service);
    service.call("bdev_pmcache_load", load);
    use_it(&service, &mut model);
}
