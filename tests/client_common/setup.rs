//! A pool, a disk, a cache and its export, made over RPC once and opened by a configuration later.

use super::{elapsed, wait_for};
use crate::common::Service;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

/// The configuration that opens everything again.
pub const CONFIG: &str = "load.json";

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub segment_bytes: u64,
    pub segments: u64,
    pub lanes: u32,
    pub disk_bytes: u64,
    pub kset_flush_ms: u32,
    /// Puts an error bdev between cache and disk.
    pub may_fail: bool,
    /// How a pmem bdev is to be opened.
    pub persistence: &'static str,
}

impl Layout {
    /// The calls that open what exists, in order.
    fn bdevs(&self) -> Vec<(&'static str, Value)> {
        let pmem = json!({"name": "pm", "path": "pool.pmem", "persistence": self.persistence});
        let disk = json!({"name": "disk", "filename": "disk.img", "block_size": 512});
        let mut calls = vec![("bdev_pmem_create", pmem), ("bdev_uring_create", disk)];
        if self.may_fail {
            calls.push(("bdev_error_create", json!({"base_name": "disk"})));
        }
        calls
    }

    fn backing(&self) -> &'static str {
        if self.may_fail { "EE_disk" } else { "disk" }
    }

    fn exports() -> [(&'static str, Value); 2] {
        [
            ("nbd_server_start", json!({"address": "unix:data/nbd.sock"})),
            ("nbd_export_add", json!({"bdev_name": "c"})),
        ]
    }

    /// Makes it all in a new directory, with these arguments of `serve`.
    pub fn create(&self, args: &[&str]) -> Service {
        self.create_with_room(args, 0)
    }

    /// As [`Layout::create`], with so many segments of the pool left over.
    pub fn create_with_room(&self, args: &[&str], segments: u64) -> Service {
        let dir = tempfile::tempdir().unwrap();
        let disk = std::fs::File::create(dir.path().join("disk.img")).unwrap();
        disk.set_len(self.disk_bytes).unwrap();
        let mut load = self.bdevs();
        load.push(("pool_load", json!({"bdev_name": "pm"})));
        load.push((
            "bdev_pmcache_load",
            json!({"pool": "p", "name": "c", "backing_bdev": self.backing()}),
        ));
        load.extend(Self::exports());
        let calls: Vec<Value> = load
            .iter()
            .map(|(method, params)| json!({"method": method, "params": params}))
            .collect();
        let config = json!({"subsystems": [{"subsystem": "bdev", "config": calls}]});
        std::fs::write(dir.path().join(CONFIG), config.to_string()).unwrap();

        let args = [&["--config", crate::common::EMPTY_CONFIG], args].concat();
        let service = Service::start_in(dir, &args);
        for (method, mut params) in self.bdevs() {
            if method == "bdev_pmem_create" {
                let start = self.segment_bytes.max(2 << 20);
                params["size"] = json!(start + (self.segments + segments) * self.segment_bytes);
                params["create_file"] = json!(true);
            }
            service.call(method, params);
        }
        let pool = json!({"name": "p", "bdev_name": "pm", "segment_size": self.segment_bytes});
        service.call("pool_create", pool);
        let cache = json!({
            "name": "c",
            "pool": "p",
            "backing_bdev": self.backing(),
            "size": self.segments * self.segment_bytes,
            "lanes": self.lanes,
            "kset_flush_ms": self.kset_flush_ms,
        });
        service.call("bdev_pmcache_create", cache);
        for (method, params) in Self::exports() {
            service.call(method, params);
        }
        service
    }
}

/// Opens what [`Layout::create`] made.
pub fn reopen(dir: tempfile::TempDir, args: &[&str]) -> Service {
    let args = [&["--config", CONFIG], args].concat();
    let service = Service::start_in(dir, &args);
    assert_eq!(service.ready["degraded"], json!([]), "it comes up whole");
    service
}

/// Stops the service as an operator would; it has to end well, and within `bound`.
pub fn stop_within(service: Service, bound: Duration) -> (tempfile::TempDir, Duration) {
    let begun = SystemTime::now();
    service.signal(rustix::process::Signal::TERM);
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(service.wait()));
    let (status, dir) = end.recv_timeout(bound).expect("SIGTERM does not end it");
    assert!(status.success(), "{status}");
    (dir, elapsed(begun))
}

/// The one running cache, as `bdev_pmcache_get` shows it.
pub fn cache(service: &Service) -> Value {
    service.call("bdev_pmcache_get", Value::Null)[0].take()
}

/// Its statistics.
pub fn stats(service: &Service) -> Value {
    let name = cache(service)["name"].clone();
    service.call("bdev_pmcache_get_stats", json!({"name": name}))
}

/// Writes everything back; afterwards the backing alone is complete.
pub fn flush_cache(service: &Service, bound: Duration) {
    let name = cache(service)["name"].clone();
    service.call("bdev_pmcache_flush_start", json!({"name": name}));
    wait_for("the end of the flush", bound, || {
        let status = service.call("bdev_pmcache_flush_status", json!({"name": name}));
        status["in_progress"] == false
    });
    let status = service.call("bdev_pmcache_flush_status", json!({"name": name}));
    assert_eq!(status["status"], 0, "{status}");
    assert_eq!(status["remaining_bytes"], 0, "{status}");
}

/// Compares a file, read without the cache, with what the model says.
pub fn settle_file(model: &mut super::Model, path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    if let Err(complaint) = model.settle(0, &bytes) {
        panic!("{}: {complaint}", path.display());
    }
}
