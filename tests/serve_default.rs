//! `pmcache serve` without a configuration: what it makes, says, and finds again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::Service;
use serde_json::{Value, json};

#[test]
fn the_default_is_made_once_and_reopened_after_a_stop_and_a_kill() {
    let service = Service::start_in(tempfile::tempdir().unwrap(), &[]);
    let ready = service.ready.clone();
    assert_eq!(ready["caches"][0]["name"], "cache0");
    assert_eq!(ready["nbd_exports"], json!(["cache0"]));
    assert_eq!(ready["nbd"][0], "unix:data/nbd.sock");
    assert!(ready["caches"][0]["durability"].is_string());
    let cache = |service: &Service| service.call("bdev_pmcache_get", Value::Null)[0].clone();
    let first = cache(&service);
    assert_eq!(first["size"], 1_u64 << 30);
    assert_eq!(first["block_size"], 512);
    assert_eq!(first["lanes"].as_array().unwrap().len(), 4);
    let pool = &service.call("pool_get", json!({"name": "pool0"}))[0];
    assert_eq!(pool["segment_size"], 2 << 20);
    for file in ["pool.pmem", "disk.img", "nbd.sock", "rpc.sock"] {
        assert!(service.data(file).exists(), "{file}");
    }

    // Staging outlives the process, and holds memory only as long as it may be wanted.
    let staging = |dir: &std::path::Path| std::fs::read_dir(dir.join("run")).unwrap().count();
    assert_eq!(staging(service.dir()), 1);
    let dir = service.stop();
    assert_eq!(staging(dir.path()), 0, "after a clean stop");
    let service = Service::start_in(dir, &["--cpumask", "0x1", "--idle", "interrupt"]);
    assert_eq!(cache(&service)["uuid"], first["uuid"]);
    let dir = service.kill();
    assert_eq!(staging(dir.path()), 1, "after a kill");
    let service = Service::start_in(dir, &[]);
    assert_eq!(cache(&service)["uuid"], first["uuid"]);
    service.stop();
}
