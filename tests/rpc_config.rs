//! Saving and loading configurations, and starting with clients' calls.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;
mod nvmf_calls;

use client_common::{Load, Mix, Model, Random, SECTOR_BYTES};
use common::{EMPTY_CONFIG, Service, pmcache};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 16 * MIB;
const CACHES: [&str; 3] = ["c0", "c1", "c2"];
const SAVED: &str = "saved.json";

fn disk(dir: &Path, name: &str) {
    let file = std::fs::File::create(dir.join(name)).unwrap();
    file.set_len(DISK_BYTES).unwrap();
}

type Calls = Vec<(&'static str, Value)>;

/// What makes everything that can be made: every kind of bdev, two pools, three caches, exports of
/// each kind.
fn calls() -> Calls {
    [
        bdevs(),
        caches(),
        settings(),
        exports(),
        nvmf_calls::calls(),
    ]
    .concat()
}

/// In an order of their own: names decide how they are saved.
fn bdevs() -> Calls {
    let pmem =
        |name, file| json!({"name": name, "path": file, "size": 32 * MIB, "create_file": true});
    let ram = json!({"name": "ram", "path": "anon:", "size": 2 * MIB, "block_size": 4096});
    let uuid = "0b0a2f8e-50a4-4ab4-8e05-6c0c5ee8a8f1";
    let delay = json!({
        "name": "slow",
        "base_bdev_name": "d1",
        "avg_read_latency": 1,
        "p99_read_latency": 2,
        "avg_write_latency": 3,
        "p99_write_latency": 4,
    });
    let uring = [
        json!({"name": "d2", "filename": "d2.img", "block_size": 512}),
        json!({"name": "d0", "filename": "d0.img", "uuid": uuid}),
    ];
    let aio = json!({"name": "d1", "filename": "d1.img", "block_size": 512, "fallocate": true});
    let [d2, d0] = uring;
    vec![
        ("bdev_pmem_create", pmem("pm1", "pm1.pmem")),
        ("bdev_pmem_create", pmem("pm0", "pm0.pmem")),
        ("bdev_pmem_create", ram),
        ("bdev_uring_create", d2),
        ("bdev_uring_create", d0),
        ("bdev_aio_create", aio),
        (
            "bdev_malloc_create",
            json!({"block_size": 4096, "num_blocks": 256}),
        ),
        (
            "bdev_null_create",
            json!({"name": "n0", "block_size": 512, "num_blocks": 8}),
        ),
        ("bdev_delay_create", delay),
        (
            "bdev_error_create",
            json!({"base_name": "d2", "uuid": null}),
        ),
        (
            "bdev_passthru_create",
            json!({"name": "pass", "base_bdev_name": "d0"}),
        ),
    ]
}

fn caches() -> Calls {
    let pool = |name, bdev| {
        let params = json!({"name": name, "bdev_name": bdev, "segment_size": 256 << 10});
        ("pool_create", params)
    };
    let cache = |name, pool, backing| {
        let params = json!({
            "name": name,
            "pool": pool,
            "backing_bdev": backing,
            "size": 8 * MIB,
            "lanes": 2,
        });
        ("bdev_pmcache_create", params)
    };
    let above = json!({"name": "above", "base_bdev_name": "c2"});
    vec![
        pool("p1", "pm1"),
        pool("p0", "pm0"),
        cache("c2", "p1", "EE_d2"),
        cache("c1", "p0", "slow"),
        cache("c0", "p0", "pass"),
        ("bdev_passthru_create", above),
    ]
}

fn settings() -> Calls {
    let latency = json!({
        "delay_bdev_name": "slow",
        "latency_type": "p99_write",
        "latency_us": 5,
    });
    let limit = json!({"name": "c1", "w_mbytes_per_sec": 1000});
    let histogram = [
        json!({"name": "c1", "enable": true, "opc": "write"}),
        json!({"name": "Malloc0", "enable": true, "max_nsec": 5000}),
    ];
    let idle = [
        json!({"policy": "interrupt"}),
        json!({"policy": "adaptive", "idle_us": 20, "lcore": 0}),
    ];
    let mut calls = vec![
        ("bdev_delay_update_latency", latency),
        ("bdev_set_qos_limit", limit),
    ];
    calls.extend(histogram.map(|params| ("bdev_enable_histogram", params)));
    calls.extend(idle.map(|params| ("reactor_set_idle", params)));
    calls
}

fn exports() -> Calls {
    let server = json!({"address": "unix:data/nbd.sock", "max_connections": 9});
    let exports = [
        json!({"bdev_name": "c0"}),
        json!({"bdev_name": "c1", "name": "e1", "description": "x", "max_payload": MIB}),
        json!({"bdev_name": "above", "name": "c2"}),
        json!({"bdev_name": "Malloc0", "read_only": true}),
    ];
    let controller = json!({"ctrlr": "v0", "dev_name": "c1", "readonly": true, "cpumask": "0x1"});
    let mut calls = vec![
        ("nbd_server_start", server),
        ("vhost_create_blk_controller", controller),
        (
            "vhost_controller_set_coalescing",
            json!({"ctrlr": "v0", "delay_base_us": 20, "iops_threshold": 50_000}),
        ),
    ];
    calls.extend(exports.map(|params| ("nbd_export_add", params)));
    calls
}

/// A service that has everything, and nothing in its configuration.
fn full() -> Service {
    let dir = tempfile::tempdir().unwrap();
    for name in ["d0.img", "d1.img", "d2.img"] {
        disk(dir.path(), name);
    }
    let key = dir.path().join("secret.key");
    std::fs::write(&key, "never told").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let service = Service::start_in(dir, &["--config", EMPTY_CONFIG]);
    service.call("keyring_file_add_key", json!({"name": "k0", "path": key}));
    for (method, params) in calls() {
        service.call(method, params);
    }
    service
}

/// Runs `pmcache config` on the service in `dir`.
fn config(dir: &Path, args: &[&str]) -> Output {
    let output = pmcache().arg("config").args(args).current_dir(dir).output();
    output.unwrap()
}

/// What the service saves.
fn saved(service: &Service) -> String {
    let done = config(service.dir(), &["save", "--data-dir", "data"]);
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn save_to_file(service: &Service) -> String {
    let done = config(service.dir(), &["save", "--data-dir", "data", SAVED]);
    assert!(done.status.success() && done.stdout.is_empty(), "{done:?}");
    let text = std::fs::read_to_string(service.dir().join(SAVED)).unwrap();
    assert_eq!(text, saved(service));
    text
}

/// The methods of a saved subsystem with the names of their objects, in order.
fn outline(saved: &str, subsystem: &str) -> Vec<String> {
    let saved: Value = serde_json::from_str(saved).unwrap();
    let parts = saved["subsystems"].as_array().unwrap();
    let part = parts.iter().find(|part| part["subsystem"] == subsystem);
    let calls = part.unwrap()["config"].as_array().unwrap().iter();
    let keys = [
        "name",
        "base_name",
        "bdev_name",
        "ctrlr",
        "nqn",
        "address",
        "policy",
    ];
    calls
        .map(|call| {
            let name = keys.iter().find_map(|key| call["params"][key].as_str());
            let method = call["method"].as_str().unwrap();
            format!("{method} {}", name.unwrap_or("-"))
        })
        .collect()
}

const BDEV_OUTLINE: &[&str] = &[
    "bdev_pmem_create pm0",
    "bdev_pmem_create pm1",
    "bdev_pmem_create ram",
    "bdev_malloc_create Malloc0",
    "bdev_uring_create d0",
    "bdev_aio_create d1",
    "bdev_uring_create d2",
    "bdev_null_create n0",
    "bdev_error_create d2",
    "bdev_passthru_create pass",
    "bdev_delay_create slow",
    "pool_load pm0",
    "pool_load pm1",
    "bdev_pmcache_load c0",
    "bdev_pmcache_load c1",
    "bdev_pmcache_load c2",
    "bdev_passthru_create above",
    "bdev_enable_histogram Malloc0",
    "bdev_enable_histogram c1",
    "bdev_set_qos_limit c1",
    "bdev_wait_for_examine -",
];

#[test]
fn a_saved_configuration_makes_the_same_again_and_saves_the_same() {
    let service = full();
    let before = save_to_file(&service);
    assert_eq!(outline(&before, "bdev"), BDEV_OUTLINE);
    let exports = ["Malloc0", "c0", "c2", "e1"].map(|name| format!("nbd_export_add {name}"));
    let server = "nbd_server_start unix:data/nbd.sock".to_owned();
    assert_eq!(outline(&before, "nbd"), [&exports[..], &[server]].concat());
    let controller = [
        "vhost_create_blk_controller v0",
        "vhost_controller_set_coalescing v0",
    ];
    assert_eq!(outline(&before, "vhost_blk"), controller);
    assert_eq!(outline(&before, "nvmf"), nvmf_calls::outline());
    let idle = ["reactor_set_idle interrupt", "reactor_set_idle adaptive"];
    assert_eq!(outline(&before, "scheduler"), idle);
    assert_eq!(outline(&before, "keyring"), ["keyring_file_add_key k0"]);
    for never in [
        "never told",
        "create_file",
        "pool_create",
        "pmcache_create",
        "force",
    ] {
        assert!(!before.contains(never), "{never}");
    }
    let told: Value = serde_json::from_str(&before).unwrap();
    let parts = told["subsystems"].as_array().unwrap().iter();
    let parts: Vec<_> = parts.map(|part| &part["subsystem"]).collect();
    assert_eq!(
        parts,
        [
            "scheduler",
            "keyring",
            "iobuf",
            "sock",
            "bdev",
            "nvmf",
            "vhost_blk",
            "nbd"
        ]
    );
    let bdev = told["subsystems"][4]["config"].as_array().unwrap();
    let slow = bdev.iter().find(|call| call["params"]["name"] == "slow");
    assert_eq!(slow.unwrap()["params"]["p99_write_latency"], 5);
    let malloc = bdev.iter().find(|call| call["params"]["name"] == "Malloc0");
    assert!(malloc.unwrap()["params"]["uuid"].is_string());
    nvmf_calls::assert_namespaces(&told["subsystems"][5]["config"]);
    // An identity that was found is left to be found again.
    let found = bdev.iter().find(|call| call["params"]["name"] == "d2");
    assert_eq!(found.unwrap()["params"].get("uuid"), None);

    let dir = service.stop();
    let service = Service::start_in(dir, &["--config", SAVED]);
    assert_eq!(service.ready["degraded"], json!([]));
    assert_eq!(saved(&service), before);

    let dir = service.stop();
    let service = Service::start_in(dir, &["--wait-for-rpc"]);
    let done = config(service.dir(), &["load", "--data-dir", "data", SAVED]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(saved(&service), before);
    let again = config(service.dir(), &["load", "--data-dir", "data", SAVED]);
    let said = String::from_utf8(again.stderr).unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        said.contains("subsystem keyring, entry 1, keyring_file_add_key: File exists"),
        "{said}"
    );
    assert_eq!(saved(&service), before, "what is there already stays");
}

#[test]
fn what_spdk_asks_for_saves_is_answered() {
    let service = full();
    let subsystems = service.call("framework_get_subsystems", Value::Null);
    let mut earlier: Vec<&str> = Vec::new();
    for subsystem in subsystems.as_array().unwrap() {
        let name = subsystem["subsystem"].as_str().unwrap();
        for needed in subsystem["depends_on"].as_array().unwrap() {
            assert!(earlier.contains(&needed.as_str().unwrap()), "{name}");
        }
        for with_batches in [false, true] {
            let params = json!({"name": name, "with_batches": with_batches});
            let config = service.call("framework_get_config", params);
            assert!(config.is_array(), "{name}");
        }
        earlier.push(name);
    }
    let unknown = service.refused("framework_get_config", json!({"name": "iscsi"}));
    assert_eq!(unknown, (-32602, "Subsystem 'iscsi' not found".to_owned()));
}

fn methods(service: &Service, current: bool) -> Vec<String> {
    let listed = service.call("rpc_get_methods", json!({"current": current}));
    serde_json::from_value(listed).unwrap()
}

#[test]
fn a_service_waits_for_its_clients_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start_in(dir, &["--wait-for-rpc"]);
    assert_eq!(service.ready["ready"], false);
    let start = "framework_start_init".to_owned();
    assert!(methods(&service, true).contains(&start));
    let (code, message) = service.refused("bdev_get_bdevs", Value::Null);
    assert_eq!(code, -1);
    assert!(message.contains("framework_start_init"), "{message}");

    let mut client = service.client();
    let waiting = std::thread::spawn(move || {
        let ready = client.call("framework_wait_init", None).unwrap();
        ready.get().to_owned()
    });
    assert_eq!(service.call("framework_start_init", Value::Null), true);
    assert_eq!(waiting.join().unwrap(), "true");
    assert!(!methods(&service, true).contains(&start));
    assert!(methods(&service, false).contains(&start));
    assert_eq!(service.call("bdev_get_bdevs", Value::Null), json!([]));
    assert_eq!(service.refused("framework_start_init", Value::Null).0, -1);
    assert_eq!(
        service.call("service_get_health", Value::Null)["ready"],
        true
    );
    service.stop();

    let both = ["serve", "--wait-for-rpc", "--config", "x"];
    let refused = pmcache().args(both).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_stop_ends_the_wait_for_a_start_that_never_comes() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start_in(dir, &["--wait-for-rpc"]);
    let mut client = service.client();
    // Its answer to the call before says that the server is at it.
    client.call("rpc_get_methods", None).unwrap();
    let waiting = std::thread::spawn(move || client.call("framework_wait_init", None).is_err());
    service.stop();
    assert!(waiting.join().unwrap());
}

fn file(dir: &Path, name: &str, subsystem: &str, calls: &Value) {
    let config = json!({"subsystems": [{"subsystem": subsystem, "config": calls}]});
    std::fs::write(dir.join(name), config.to_string()).unwrap();
}

fn null_bdev(name: &str) -> Value {
    let params = json!({"name": name, "block_size": 512, "num_blocks": 8});
    json!({"method": "bdev_null_create", "params": params})
}

#[test]
fn a_load_that_fails_leaves_a_running_service_as_it_was() {
    let service = full();
    let before = save_to_file(&service);
    let passthru = json!({"name": "q", "base_bdev_name": "n1"});
    let export = json!({"bdev_name": "q"});
    file(
        service.dir(),
        "bad.json",
        "bdev",
        &json!([
            null_bdev("n1"),
            [
                {"method": "bdev_passthru_create", "params": passthru},
                {"method": "nbd_export_add", "params": export},
            ],
            {"method": "pool_load", "params": {"bdev_name": "pm0"}},
            [null_bdev("n2"), {"method": "bdev_null_delete", "params": {"name": "none"}}],
            null_bdev("n3"),
        ]),
    );
    let done = config(
        service.dir(),
        &["--json", "load", "--data-dir", "data", "bad.json"],
    );
    assert_eq!(done.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    let expected = json!({"error": {
        "subsystem": "bdev",
        "entry": 4,
        "call": 2,
        "method": "bdev_null_delete",
        "code": -19,
        "message": "No such device",
        "unmade": ["bdev 'n2'", "nbd export 'q'", "bdev 'q'", "bdev 'n1'"],
        "kept": [],
    }});
    assert_eq!(said, expected);
    assert_eq!(saved(&service), before);
}

#[test]
fn calls_of_the_start_run_first_and_too_late_are_left_off() {
    let dir = tempfile::tempdir().unwrap();
    let options = json!({"method": "bdev_set_options", "params": {"bdev_auto_examine": true}});
    file(
        dir.path(),
        "c.json",
        "bdev",
        &json!([null_bdev("a"), options]),
    );
    let service = Service::start_in(dir, &["--config", "c.json"]);
    assert_eq!(service.ready["bdevs"], json!(["a"]));
    file(
        service.dir(),
        "d.json",
        "bdev",
        &json!([options, null_bdev("b")]),
    );
    let done = config(service.dir(), &["load", "--data-dir", "data", "d.json"]);
    assert_eq!(done.status.code(), Some(0));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(
        said.contains("bdev_set_options: only while a service starts"),
        "{said}"
    );
    assert_eq!(
        service.call("bdev_get_bdevs", json!({"name": "b"}))[0]["name"],
        "b"
    );
}

#[test]
fn a_file_is_checked_without_a_service() {
    let dir = tempfile::tempdir().unwrap();
    let check = |calls: &Value| {
        file(dir.path(), "c.json", "bdev", calls);
        let done = config(dir.path(), &["check", "c.json"]);
        let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        (done.status.code(), said)
    };
    let good = check(&json!([null_bdev("a"), [null_bdev("b")]]));
    assert_eq!(good, (Some(0), "2 calls can be made\n".to_owned()));
    for (calls, expected) in [
        (
            json!([null_bdev("a"), {"method": "bdev_raid_create"}]),
            "c.json: subsystem bdev, entry 2, bdev_raid_create: Method not found (-32601)",
        ),
        (
            json!([{"method": "bdev_null_create", "params": {"name": "a", "x": 1}}]),
            "entry 1, bdev_null_create: spdk_json_decode_object failed: unknown field `x`",
        ),
        (
            json!([{"method": "pool_create", "params": {"name": "p", "bdev_name": "b"}}]),
            "entry 1, pool_create: Operation not permitted: a configuration never formats",
        ),
    ] {
        let (code, said) = check(&calls);
        assert_eq!(code, Some(1));
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(check(&json!([{"no": 1}])).0, Some(2));
}

const MIX: Mix = Mix {
    reads: 30,
    flushes: 3,
    zeroes: 5,
    fua: 3,
    sectors_max: 256,
    long: 20,
    depth: 4,
};

#[test]
fn three_caches_on_two_pools_keep_their_data_over_save_and_load() {
    let service = full();
    save_to_file(&service);
    let mut random = Random::new("three caches");
    let connect = |service: &Service, models: Vec<Model>| -> Vec<Load> {
        let socket = service.data("nbd.sock");
        let exports = ["c0", "e1", "c2"].into_iter().zip(models);
        exports
            .map(|(export, model)| Load::new(&socket, export, 2, model))
            .collect()
    };
    let models = CACHES.map(|_| Model::new(DISK_BYTES / SECTOR_BYTES));
    let mut loads = connect(&service, models.into());
    let mut dir;
    let mut service = service;
    for _ in 0..2 {
        for _ in 0..60 {
            for load in &mut loads {
                load.step(&MIX, &mut random).expect("the service is alive");
            }
        }
        for load in &mut loads {
            load.verify();
        }
        dir = service.stop();
        let models = loads.into_iter().map(Load::bury).collect();
        service = Service::start_in(dir, &["--config", SAVED]);
        assert_eq!(service.ready["degraded"], json!([]));
        loads = connect(&service, models);
        for load in &mut loads {
            load.verify();
        }
    }
}
