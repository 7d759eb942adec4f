//! Starting without devices that the configuration names: nothing is made in their place, the rest
//! serves, and they come up when they appear.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{Load, Model, SECTOR_BYTES, wait_for};
use common::{EMPTY_CONFIG, PATIENCE, Service, pmcache};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 8 * MIB;
const SAVED: &str = "saved.json";

const NQN: &str = "nqn.2026-11.test:waiting";
/// The namespaces of `c0` and `c1`, as the health names them.
const NAMESPACES: [&str; 2] = [
    "nvmf namespace 2 of 'nqn.2026-11.test:waiting'",
    "nvmf namespace 1 of 'nqn.2026-11.test:waiting'",
];

/// What was set of `c0`, as the health names it.
const LIMIT: &str = "bdev_set_qos_limit {\"name\":\"c0\",\"rw_ios_per_sec\":1000000,\
                     \"rw_mbytes_per_sec\":0,\"r_mbytes_per_sec\":0,\"w_mbytes_per_sec\":0}";

/// The controller of `c0`, and what was set of it, as the health names them.
const CONTROLLER: [&str; 2] = [
    "vhost controller 'v0'",
    "vhost_controller_set_coalescing {\"ctrlr\":\"v0\",\"delay_base_us\":20,\"iops_threshold\":50000}",
];

/// Two pools of one cache each, in front of a disk of its own, with data in it.
struct Rig {
    service: Service,
    models: Vec<Model>,
    saved: String,
}

fn save(service: &Service) -> String {
    let args = ["config", "save", "--data-dir", "data"];
    let done = pmcache().args(args).current_dir(service.dir()).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn connect(service: &Service, export: &str, model: Model) -> Load {
    Load::new(&service.data("nbd.sock"), export, 1, model)
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["d0.img", "d1.img"] {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_len(DISK_BYTES).unwrap();
        }
        let service = Service::start_in(dir, &["--config", EMPTY_CONFIG]);
        let server = json!({"address": "unix:data/nbd.sock"});
        service.call("nbd_server_start", server);
        let mut models = Vec::new();
        for n in 0..2 {
            let (pmem, disk) = (format!("pm{n}"), format!("d{n}"));
            let (pool, cache) = (format!("p{n}"), format!("c{n}"));
            let file = format!("{pmem}.pmem");
            let params = json!({"name": pmem, "path": file, "size": 16 * MIB, "create_file": true});
            service.call("bdev_pmem_create", params);
            let file = format!("{disk}.img");
            service.call("bdev_uring_create", json!({"name": disk, "filename": file}));
            let params = json!({"name": pool, "bdev_name": pmem, "segment_size": 256 << 10});
            service.call("pool_create", params);
            let params = json!({
                "name": cache,
                "pool": pool,
                "backing_bdev": disk,
                "size": 8 * MIB,
                "lanes": 1,
            });
            service.call("bdev_pmcache_create", params);
            service.call("nbd_export_add", json!({"bdev_name": cache}));
            let mut load = connect(&service, &cache, Model::new(DISK_BYTES / SECTOR_BYTES));
            for first in (0..512).step_by(64) {
                load.write(0, first, 64, false);
            }
            load.drain();
            models.push(load.hang_up());
        }
        let limit = json!({"name": "c0", "rw_ios_per_sec": 1_000_000});
        service.call("bdev_set_qos_limit", limit);
        let subsystem = json!({"nqn": NQN, "allow_any_host": true});
        service.call("nvmf_create_subsystem", subsystem);
        for cache in ["c1", "c0"] {
            let params = json!({"nqn": NQN, "namespace": {"bdev_name": cache}});
            service.call("nvmf_subsystem_add_ns", params);
        }
        let controller = json!({"ctrlr": "v0", "dev_name": "c0"});
        service.call("vhost_create_blk_controller", controller);
        let coalescing = json!({"ctrlr": "v0", "delay_base_us": 20, "iops_threshold": 50_000});
        service.call("vhost_controller_set_coalescing", coalescing);
        let saved = save(&service);
        std::fs::write(service.dir().join(SAVED), &saved).unwrap();
        Self {
            service,
            models,
            saved,
        }
    }

    /// Stops it, changes its files, and starts it as it was saved.
    fn restart(self, change: impl FnOnce(&Path)) -> Self {
        let dir = self.service.stop();
        change(dir.path());
        Self {
            service: Service::start_in(dir, &["--config", SAVED]),
            ..self
        }
    }

    fn health(&self) -> Value {
        self.service.call("service_get_health", Value::Null)["degraded"].take()
    }

    /// The objects that are not there, and why.
    fn missing(&self) -> Vec<(String, String)> {
        let health = self.health();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let told = health.as_array().unwrap().iter();
        told.map(|item| (text(&item["object"]), text(&item["reason"])))
            .collect()
    }

    fn missing_objects(&self) -> Vec<String> {
        self.missing().into_iter().map(|item| item.0).collect()
    }

    /// The numbers of the namespaces that are offered.
    fn namespaces(&self) -> Value {
        let found = self
            .service
            .call("nvmf_get_subsystems", json!({"nqn": NQN}));
        let namespaces = found[0]["namespaces"].as_array().unwrap().iter();
        namespaces.map(|one| one["nsid"].clone()).collect()
    }

    fn state(&self, cache: &str) -> Value {
        let found = self
            .service
            .call("bdev_pmcache_get", json!({"name": cache}));
        found[0]["state"].clone()
    }

    fn wait_until_whole(&self) {
        wait_for("the end of the wait for devices", PATIENCE, || {
            self.health() == json!([])
        });
    }

    /// Everything is there again, with its data.
    fn verify(self) {
        assert_eq!(save(&self.service), self.saved);
        for (n, model) in self.models.into_iter().enumerate() {
            connect(&self.service, &format!("c{n}"), model).verify();
        }
    }
}

/// Whether a client that asks for `export` gets it.
fn is_offered(service: &Service, export: &str) -> bool {
    let mut stream = UnixStream::connect(service.data("nbd.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    let mut hello = 3_u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend(1_u32.to_be_bytes());
    hello.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
    hello.extend(export.as_bytes());
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut [0; 10]).is_ok()
}

fn hide(dir: &Path, name: &str) {
    std::fs::rename(dir.join(name), dir.join(format!("hidden-{name}"))).unwrap();
}

fn show(dir: &Path, name: &str) {
    std::fs::rename(dir.join(format!("hidden-{name}")), dir.join(name)).unwrap();
}

#[test]
fn a_cache_waits_for_its_backing_and_the_rest_serves() {
    let rig = Rig::new().restart(|dir| hide(dir, "d0.img"));
    let [namespace, _] = NAMESPACES;
    let waiting = [
        "bdev 'd0'",
        "pmcache 'c0'",
        LIMIT,
        namespace,
        CONTROLLER[0],
        CONTROLLER[1],
        "nbd export 'c0'",
    ];
    assert_eq!(rig.missing_objects(), waiting);
    for (object, reason) in rig.missing() {
        assert!(reason.starts_with("waiting: "), "{object}: {reason}");
    }
    let found = &rig.service.call("bdev_pmcache_get", json!({"name": "c0"}))[0];
    assert_eq!(found["state"], "waiting");
    assert_eq!(found["pool"], "p0");
    assert_eq!(found["backing_bdev"], "d0");
    assert_eq!(found["reason"], "No such device");
    assert_eq!(rig.state("c1"), "running");
    assert!(!is_offered(&rig.service, "c0"));
    assert!(is_offered(&rig.service, "c1"));
    assert_eq!(rig.namespaces(), json!([1]));
    assert_eq!(save(&rig.service), rig.saved, "what waits is saved");

    // A start with the same thing missing is as good as the first.
    let rig = rig.restart(|_| {});
    assert_eq!(rig.missing_objects(), waiting);
    assert!(!rig.service.dir().join("d0.img").exists());
    show(rig.service.dir(), "d0.img");
    rig.wait_until_whole();
    assert_eq!(rig.state("c0"), "running");
    assert_eq!(rig.namespaces(), json!([1, 2]));
    rig.verify();
}

#[test]
fn a_cache_waits_for_its_pmem_and_nothing_is_made_in_its_place() {
    let rig = Rig::new().restart(|dir| {
        hide(dir, "pm1.pmem");
        hide(dir, "d1.img");
    });
    let waiting = [
        "bdev 'pm1'",
        "bdev 'd1'",
        "pool on 'pm1'",
        "pmcache 'c1'",
        NAMESPACES[1],
        "nbd export 'c1'",
    ];
    assert_eq!(rig.missing_objects(), waiting);
    assert!(!rig.service.dir().join("pm1.pmem").exists());
    assert_eq!(save(&rig.service), rig.saved);
    show(rig.service.dir(), "d1.img");
    wait_for("the disk alone", PATIENCE, || {
        rig.missing_objects().len() == waiting.len() - 1
    });
    assert_eq!(rig.state("c1"), "waiting");
    show(rig.service.dir(), "pm1.pmem");
    rig.wait_until_whole();
    rig.verify();
}

#[test]
fn a_medium_without_its_pool_is_left_alone_until_the_right_one_is_there() {
    let rig = Rig::new().restart(|dir| {
        hide(dir, "pm0.pmem");
        std::fs::write(dir.join("pm0.pmem"), vec![0; 16 << 20]).unwrap();
    });
    assert_eq!(
        rig.missing_objects(),
        [
            "pool on 'pm0'",
            "pmcache 'c0'",
            LIMIT,
            NAMESPACES[0],
            CONTROLLER[0],
            CONTROLLER[1],
            "nbd export 'c0'"
        ]
    );
    let (_, reason) = &rig.missing()[0];
    assert!(reason.contains("No such file or directory"), "{reason}");
    assert!(!reason.starts_with("waiting"), "{reason}");
    assert_eq!(save(&rig.service), rig.saved);
    // By hand the pool is put right; what needs it follows.
    rig.service.call("bdev_pmem_delete", json!({"name": "pm0"}));
    let dir = rig.service.dir();
    assert!(
        std::fs::read(dir.join("pm0.pmem"))
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    show(dir, "pm0.pmem");
    let pmem = json!({"name": "pm0", "path": "pm0.pmem"});
    rig.service.call("bdev_pmem_create", pmem);
    rig.service.call("pool_load", json!({"bdev_name": "pm0"}));
    rig.wait_until_whole();
    rig.verify();
}

#[test]
fn what_nobody_wants_any_more_is_not_waited_for() {
    let rig = Rig::new().restart(|dir| hide(dir, "d0.img"));
    let named = |name: &str| json!({"name": name});
    let second = json!({"nqn": NQN, "nsid": 2});
    let gone = rig.service.call("nvmf_subsystem_remove_ns", second.clone());
    assert_eq!(gone, true);
    let refused = rig.service.refused("nvmf_subsystem_remove_ns", second);
    assert_eq!(refused.0, -32602);
    for (method, name) in [
        ("nbd_export_remove", "c0"),
        ("bdev_pmcache_unload", "c0"),
        ("bdev_uring_delete", "d0"),
    ] {
        assert_eq!(rig.service.call(method, named(name)), true, "{method}");
        assert_eq!(rig.service.refused(method, named(name)).0, -19, "{method}");
    }
    let delete = json!({"ctrlr": "v0"});
    assert_eq!(
        rig.service.call("vhost_delete_controller", delete.clone()),
        true
    );
    let refused = rig.service.refused("vhost_delete_controller", delete);
    assert_eq!(refused.0, -32602);
    assert_eq!(rig.health(), json!([]));
    let saved = save(&rig.service);
    assert!(
        !["d0", "\"c0\"", "v0"]
            .iter()
            .any(|gone| saved.contains(gone)),
        "{saved}"
    );
    assert_eq!(rig.service.refused("bdev_pmcache_get", named("c0")).0, -19);
}

#[test]
fn no_namespace_of_a_subsystem_that_is_ended_is_waited_for() {
    let rig = Rig::new().restart(|dir| hide(dir, "d0.img"));
    assert!(
        rig.missing_objects()
            .iter()
            .any(|name| name == NAMESPACES[0])
    );
    rig.service
        .call("nvmf_delete_subsystem", json!({"nqn": NQN}));
    assert!(
        !rig.missing_objects()
            .iter()
            .any(|name| name == NAMESPACES[0])
    );
    show(rig.service.dir(), "d0.img");
    rig.wait_until_whole();
    let refused = rig
        .service
        .refused("nvmf_get_subsystems", json!({"nqn": NQN}));
    assert_eq!(refused.0, -32602);
}

#[test]
fn what_is_made_by_hand_is_not_waited_for() {
    let rig = Rig::new().restart(|dir| hide(dir, "d0.img"));
    let disk = json!({"name": "d0", "filename": "hidden-d0.img"});
    rig.service.call("bdev_uring_create", disk);
    // Its UUID depends on its path.
    wait_for("the load that is refused", PATIENCE, || {
        rig.state("c0") == "failed"
    });
    let (code, _) = rig
        .service
        .refused("bdev_pmcache_load", json!({"pool": "p0", "name": "c0"}));
    assert_eq!(code, -116);
    let forced = json!({"pool": "p0", "name": "c0", "force": true});
    rig.service.call("bdev_pmcache_load", forced);
    rig.wait_until_whole();
    assert!(is_offered(&rig.service, "c0"));
}
