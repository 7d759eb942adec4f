//! The methods about NVMe/TCP controllers of others, and a cache whose backing is one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod nbd_old;
mod nvme_common;

use common::{Service, wait_until};
use nbd_old::OldClient;
use nvme_common::fake::{Fake, Nature, SUBNQN};
use nvme_common::pattern;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const MIB: u64 = 1 << 20;

fn attach(fake: &Fake) -> Value {
    json!({
        "name": "Nvme0",
        "trtype": "tcp",
        "traddr": fake.address.ip().to_string(),
        "trsvcid": fake.address.port().to_string(),
        "subnqn": SUBNQN,
        "hostnqn": "nqn.2026-11.x:host",
    })
}

fn with(mut params: Value, key: &str, value: Value) -> Value {
    params[key] = value;
    params
}

#[test]
fn a_controller_is_attached_shown_saved_and_detached() {
    let fake = Fake::new(Nature {
        namespaces: 2,
        ..Nature::default()
    });
    let service = Service::start();
    let made = service.call("bdev_nvme_attach_controller", attach(&fake));
    assert_eq!(made, json!(["Nvme0n1", "Nvme0n2"]));
    let bdev = &service.call("bdev_get_bdevs", json!({"name": "Nvme0n1"}))[0];
    assert_eq!(bdev["product_name"], "NVMe disk");
    assert_eq!(
        (&bdev["block_size"], &bdev["num_blocks"]),
        (&json!(512), &json!(2048))
    );
    assert_eq!(bdev["uuid"], "07070707-0707-0707-0707-070707070707");
    let told = &bdev["driver_specific"]["nvme"][0];
    assert_eq!(told["ctrlr_data"]["model_number"], "fake");
    assert_eq!(told["ns_data"]["id"], 1);
    let found = service.call("bdev_nvme_get_controllers", json!({"name": "Nvme0"}));
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["name"], "Nvme0");
    let path = &found[0]["ctrlrs"][0];
    assert_eq!(path["state"], "enabled");
    assert_eq!(path["trid"]["trtype"], "TCP");
    assert_eq!(path["trid"]["trsvcid"], fake.address.port().to_string());
    assert_eq!(path["host"]["nqn"], "nqn.2026-11.x:host");

    // One call makes both, and both can be below others.
    let params = json!({"name": "D0", "base_bdev_name": "Nvme0n2"});
    service.call("bdev_passthru_create", params);
    let saved = service.call("framework_get_config", json!({"name": "bdev"}));
    let methods: Vec<_> = saved.as_array().unwrap().iter().collect();
    let names: Vec<_> = methods
        .iter()
        .map(|call| call["method"].as_str().unwrap())
        .collect();
    let expected = [
        "bdev_nvme_attach_controller",
        "bdev_passthru_create",
        "bdev_wait_for_examine",
    ];
    assert_eq!(names, expected);
    assert_eq!(methods[0]["params"]["hostnqn"], "nqn.2026-11.x:host");

    let detach = json!({"name": "Nvme0"});
    let (code, message) = service.refused("bdev_nvme_detach_controller", detach.clone());
    assert_eq!(code, -16, "{message}");
    service.call("bdev_passthru_delete", json!({"name": "D0"}));
    let other = json!({"name": "Nvme0", "trtype": "tcp", "traddr": "127.0.0.9"});
    assert_eq!(service.refused("bdev_nvme_detach_controller", other).0, -19);
    assert_eq!(
        service.call("bdev_nvme_detach_controller", detach.clone()),
        true
    );
    assert_eq!(
        service.refused("bdev_nvme_detach_controller", detach).0,
        -19
    );
    assert_eq!(
        service.call("bdev_nvme_get_controllers", json!({})),
        json!([])
    );
    let gone = json!({"name": "Nvme0"});
    assert_eq!(service.refused("bdev_nvme_get_controllers", gone).0, -19);
    wait_until("it is shut down", || {
        fake.counts().shutdowns.load(Ordering::SeqCst) == 1
    });
}

#[test]
fn what_can_not_be_attached_is_refused_with_its_number() {
    let fake = Fake::new(Nature::default());
    let service = Service::start();
    let refused = |key: &str, value: Value| {
        let params = with(attach(&fake), key, value);
        service.refused("bdev_nvme_attach_controller", params).0
    };
    for (key, value, code) in [
        ("trtype", json!("rdma"), -32603),
        ("traddr", json!("nowhere"), -32602),
        ("trsvcid", json!("0"), -32602),
        ("adrfam", json!("ipx"), -32603),
        ("adrfam", json!("ipv6"), -32602),
        ("psk", json!("key0"), -32602),
        ("multipath", json!("failover"), -32603),
        ("subnqn", json!("x"), -22),
        ("hostnqn", json!("x"), -22),
        ("num_io_queues", json!(0), -22),
        ("reconnect_delay_sec", json!(5), -22),
        ("name", json!("a b"), -22),
    ] {
        assert_eq!(refused(key, value.clone()), code, "{key}: {value}");
    }
    service.call("bdev_nvme_attach_controller", attach(&fake));
    assert_eq!(refused("hdgst", json!(true)), -17);
    fake.kill();
    assert_eq!(refused("name", json!("Nvme1")), -104);
}

/// Section 9 of the engine's specification, with a backing behind a network: it vanishes under a cache
/// with dirty data, what is cached is served meanwhile, and all of it is there when it is back.
#[test]
fn a_remote_that_vanishes_under_a_cache_and_comes_back_has_everything() {
    let fake = Fake::new(Nature {
        blocks: 32 * MIB / 512,
        ..Nature::default()
    });
    let service = Service::start();
    service.call("bdev_nvme_attach_controller", attach(&fake));
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": "pm0.pmem", "size": 32 * MIB, "create_file": true}),
    );
    let pool = json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10});
    service.call("pool_create", pool);
    let cache = json!({
        "name": "c0", "pool": "p0", "backing_bdev": "Nvme0n1", "size": 12 * MIB, "lanes": 2,
    });
    service.call("bdev_pmcache_create", cache);
    let backing = &service.call("bdev_get_bdevs", json!({"name": "Nvme0n1"}))[0];
    assert_eq!(backing["claimed"], true);
    service.call("nbd_server_start", json!({"address": "unix:nbd.sock"}));
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    let socket = ["nbd.sock", "data/nbd.sock"].map(|name| service.dir().join(name));
    let socket = socket.into_iter().find(|path| path.exists()).unwrap();
    let mut client = OldClient::connect(&socket, "c0");
    let block = |seed: u8| pattern(seed, 64 << 10);
    for seed in 0..16_u8 {
        client.write(u64::from(seed) * (1 << 20), &block(seed));
    }
    fake.kill();
    for seed in 16..32_u8 {
        client.write(u64::from(seed) * (1 << 20), &block(seed));
    }
    service.call("bdev_pmcache_flush_start", json!({"name": "c0"}));
    for seed in 0..32_u8 {
        assert!(client.read(u64::from(seed) * (1 << 20), 64 << 10) == block(seed));
    }
    let state = || {
        let found = service.call("bdev_nvme_get_controllers", json!({}));
        found[0]["ctrlrs"][0]["state"].as_str().unwrap().to_owned()
    };
    wait_until("the loss is shown", || state() == "resetting");
    fake.revive();
    wait_until("it is back", || state() == "enabled");
    wait_until("all is written back", || {
        let status = service.call("bdev_pmcache_flush_status", json!({"name": "c0"}));
        status["in_progress"] == false && status["remaining_bytes"] == 0
    });
    let disk = fake.disk();
    for seed in 0..32_u8 {
        let at = usize::from(seed) << 20;
        assert!(disk[at..at + (64 << 10)] == block(seed), "block {seed}");
    }
    assert!(fake.counts().flushes.load(Ordering::SeqCst) > 0);
}

/// The controller says so itself: nobody has to call.
#[test]
fn a_cache_follows_a_namespace_that_grows() {
    let fake = Fake::new(Nature::default());
    let service = Service::start();
    service.call("bdev_nvme_attach_controller", attach(&fake));
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": "pm0.pmem", "size": 32 * MIB, "create_file": true}),
    );
    let pool = json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10});
    service.call("pool_create", pool);
    let cache = json!({
        "name": "c0", "pool": "p0", "backing_bdev": "Nvme0n1", "size": 12 * MIB, "lanes": 2,
    });
    service.call("bdev_pmcache_create", cache);
    let bytes = |name: &str| {
        let bdev = &service.call("bdev_get_bdevs", json!({"name": name}))[0];
        bdev["num_blocks"].as_u64().unwrap() * bdev["block_size"].as_u64().unwrap()
    };
    assert_eq!((bytes("Nvme0n1"), bytes("c0")), (MIB, MIB));
    for mib in [2, 3] {
        fake.change(|nature| nature.blocks = mib * MIB / 512);
        wait_until("an event request", || fake.tell(0x04_0002));
        wait_until("the cache to follow", || bytes("c0") == mib * MIB);
        assert_eq!(bytes("Nvme0n1"), mib * MIB);
    }
}

/// A controller of the configuration that is not there yet is waited for, and the cache over it, too.
#[test]
fn a_controller_that_is_not_there_at_the_start_is_waited_for() {
    let fake = Fake::new(Nature::default());
    fake.kill();
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_nvme_attach_controller", "params": attach(&fake)},
        {"method": "bdev_passthru_create",
         "params": {"name": "P0", "base_bdev_name": "Nvme0n1"}},
    ]}]});
    std::fs::write(dir.path().join("c.json"), config.to_string()).unwrap();
    let service = Service::start_in(dir, &["--config", "c.json"]);
    assert_eq!(service.call("bdev_get_bdevs", json!({})), json!([]));
    let health = service.call("service_get_health", Value::Null).to_string();
    assert!(health.contains("nvme controller 'Nvme0'"), "{health}");
    let saved = service.call("framework_get_config", json!({"name": "bdev"}));
    let saved = saved.to_string();
    assert!(saved.contains("bdev_nvme_attach_controller"), "{saved}");
    fake.revive();
    wait_until("both are there", || {
        let found = service.call("bdev_get_bdevs", json!({}));
        found.as_array().unwrap().len() == 2
    });
}
