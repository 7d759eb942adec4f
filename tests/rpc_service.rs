//! The process: start, health, threads, configuration, stop, and the command-line client.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{EMPTY_CONFIG, Service, pmcache, run};
use serde_json::{Value, json};
use std::process::Stdio;

#[test]
fn version_and_health_are_told() {
    let service = Service::start();
    let version = service.call("spdk_get_version", Value::Null);
    assert!(version["version"].as_str().unwrap().contains("pmcache v"));
    assert!(version["fields"]["major"].is_u64());
    let health = service.call("service_get_health", Value::Null);
    assert_eq!(health["ready"], true);
    assert_eq!(health["degraded"], json!([]));
    for method in [
        "spdk_get_version",
        "service_get_health",
        "framework_get_reactors",
    ] {
        let (code, message) = service.refused(method, json!({"x": 1}));
        assert_eq!(code, -32602);
        assert_eq!(message, format!("'{method}' requires no arguments"));
    }
}

#[test]
fn methods_are_listed_and_others_refused() {
    let service = Service::start();
    let params = json!({"current": true, "include_aliases": false});
    let methods = service.call("rpc_get_methods", params);
    let methods: Vec<&str> = methods
        .as_array()
        .unwrap()
        .iter()
        .flat_map(Value::as_str)
        .collect();
    assert!(methods.contains(&"rpc_get_methods") && methods.contains(&"bdev_get_bdevs"));
    assert_eq!(
        service.refused("rpc_get_methods", json!({"x": 1})).0,
        -32602
    );
    let refused = service.refused("bdev_lvol_create", Value::Null);
    assert_eq!(refused, (-32601, "Method not found".to_owned()));
}

#[test]
fn reactors_are_told_and_their_idle_policy_changes() {
    let service = Service::start();
    let found = service.call("framework_get_reactors", Value::Null);
    assert_eq!(found["tick_rate"], 1_000_000_000);
    let reactors = found["reactors"].as_array().unwrap();
    assert_eq!(reactors.len(), 1);
    assert_eq!(reactors[0]["lcore"], 0);
    assert_eq!(reactors[0]["in_interrupt"], false);
    assert!(reactors[0]["tid"].as_u64().unwrap() > 0);
    // Two where two cores are left for them.
    let left = std::thread::available_parallelism().unwrap().get() - 1;
    assert_eq!(
        found["maintenance"].as_array().unwrap().len(),
        left.clamp(1, 2)
    );

    assert_eq!(
        service.call("reactor_set_idle", json!({"policy": "interrupt"})),
        true
    );
    let found = service.call("framework_get_reactors", Value::Null);
    assert_eq!(found["reactors"][0]["in_interrupt"], true);
    service.call(
        "reactor_set_idle",
        json!({"policy": "adaptive", "idle_us": 10, "lcore": 0}),
    );
    let unknown = json!({"policy": "poll", "lcore": 900});
    assert_eq!(service.refused("reactor_set_idle", unknown).0, -19);
    let odd = json!({"policy": "poll", "idle_us": 10});
    assert_eq!(service.refused("reactor_set_idle", odd).0, -32602);
    assert_eq!(
        service
            .refused("reactor_set_idle", json!({"policy": "nap"}))
            .0,
        -32602
    );
}

#[test]
fn a_signal_ends_it_cleanly_and_leaves_no_socket() {
    let service = Service::start();
    let refused = service.refused("spdk_kill_instance", json!({"sig_name": "SIGSEGV"}));
    assert_eq!(refused.0, -32602);
    assert_eq!(
        service.call("spdk_kill_instance", json!({"sig_name": "SIGHUP"})),
        true
    );
    assert_eq!(
        service.call("spdk_kill_instance", json!({"sig_name": "SIGTERM"})),
        true
    );
    let (status, dir) = service.wait();
    assert!(status.success(), "{status}");
    assert_eq!(
        std::fs::read_dir(dir.path().join("data")).unwrap().count(),
        0
    );
}

#[test]
fn a_second_service_on_the_same_data_is_refused_and_a_killed_one_is_replaced() {
    let service = Service::start();
    let second = pmcache()
        .args([
            "serve",
            "--json",
            "--data-dir",
            "data",
            "--config",
            EMPTY_CONFIG,
        ])
        .current_dir(service.dir())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&second.stdout).unwrap();
    let message = said["error"]["message"].as_str().unwrap();
    assert!(message.contains("served by another process"), "{message}");
    let dir = service.kill();
    assert!(dir.path().join("data/rpc.sock").exists());
    Service::start_in(dir, &["--config", EMPTY_CONFIG]).stop();
}

fn with_config(config: &Value) -> (tempfile::TempDir, [&'static str; 2]) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.json"), config.to_string()).unwrap();
    (dir, ["--config", "c.json"])
}

#[test]
fn a_configuration_is_applied_in_order_and_strange_subsystems_are_skipped() {
    let null_bdev = |name: &str| {
        let params = json!({"name": name, "block_size": 512, "num_blocks": 8});
        json!({"method": "bdev_null_create", "params": params})
    };
    let config = json!({"subsystems": [
        {"subsystem": "accel", "config": [{"method": "accel_set_options"}]},
        {"subsystem": "sock", "config": null},
        {"subsystem": "bdev", "config": [
            null_bdev("a"),
            [null_bdev("b"), {"method": "bdev_null_delete", "params": {"name": "a"}}],
        ]},
    ]});
    let (dir, args) = with_config(&config);
    let service = Service::start_in(dir, &args);
    assert_eq!(service.ready["bdevs"], json!(["b"]));
}

#[test]
fn a_wrong_configuration_ends_the_start_with_its_place() {
    for (config, expected) in [
        ("{", "EOF"),
        (
            r#"{"subsystems":[{"subsystem":"bdev","config":[{"method":"bdev_raid_create"}]}]}"#,
            "c.json: subsystem bdev, entry 1, bdev_raid_create: Method not found (-32601)",
        ),
        (
            r#"{"subsystems":[{"subsystem":"bdev","config":[
                {"method":"bdev_null_create",
                 "params":{"name":"a","block_size":512,"num_blocks":8}},
                {"method":"bdev_null_delete","params":{"name":"x"}}]}]}"#,
            "c.json: subsystem bdev, entry 2, bdev_null_delete: No such device (-19); \
             unmade again: bdev 'a'",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c.json"), config).unwrap();
        let output = pmcache()
            .args(["serve", "--config", "c.json"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{config}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected), "{config}: {said}");
    }
}

#[test]
fn the_client_prints_results_and_errors() {
    let service = Service::start();
    let socket = service.data("rpc.sock");
    let socket = socket.to_str().unwrap();
    let rpc = |args: &[&str]| run(&[&["rpc", "--rpc-socket", socket][..], args].concat());
    let done = rpc(&[
        "bdev_null_create",
        "name=n0",
        "block_size=512",
        "num_blocks=16",
    ]);
    assert_eq!((done.status.code(), &*done.stdout), (Some(0), &b"n0\n"[..]));
    let done = rpc(&["bdev_get_bdevs", r#"{"name":"n0"}"#, "--json"]);
    let bdevs: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(bdevs[0]["num_blocks"], 16);

    let refused = rpc(&["bdev_null_delete", "name=none"]);
    assert_eq!(
        (refused.status.code(), &*refused.stdout),
        (Some(1), &b""[..])
    );
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("No such device (-19)"), "{said}");
    let refused = rpc(&["--json", "bdev_null_delete", "name=none"]);
    let expected = json!({"error": {"code": -19, "message": "No such device"}});
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        serde_json::from_slice::<Value>(&refused.stdout).unwrap(),
        expected
    );

    assert_eq!(rpc(&["bdev_get_bdevs", "nonsense"]).status.code(), Some(2));
    let nobody = run(&[
        "rpc",
        "--rpc-socket",
        "/nonexistent/rpc.sock",
        "rpc_get_methods",
    ]);
    assert_eq!(nobody.status.code(), Some(1));
}
