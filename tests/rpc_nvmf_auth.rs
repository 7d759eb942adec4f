//! Keys by RPC: hosts that must prove who they are, and what is told and saved of that.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod rpc_nvmf_common;

use common::{Service, wait_until};
use rpc_nvmf_common::{HOST, NQN, all_refused, is_refused, subsystem, with, with_subsystem};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

/// As `src/wire/nvme/auth/key.rs` has them.
const KEY: &str = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
const OTHER_KEY: &str =
    "DHHC-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:";

/// Puts a key in the keyring.
fn add_key(service: &Service, name: &str, text: &str) {
    let path = service.dir().join(format!("{name}.key"));
    std::fs::write(&path, format!("{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    service.call("keyring_file_add_key", json!({"name": name, "path": path}));
}

fn attach(address: SocketAddr, host: &str) -> Value {
    json!({
        "name": "Nvme0",
        "trtype": "tcp",
        "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
        "subnqn": NQN,
        "hostnqn": host,
    })
}

/// A service with a subsystem that anybody may reach, and with two keys.
fn with_keys() -> (Service, SocketAddr) {
    let (service, address) = with_subsystem();
    add_key(&service, "k1", KEY);
    add_key(&service, "k2", OTHER_KEY);
    (service, address)
}

fn qpairs(service: &Service) -> Vec<Value> {
    let found = service.call("nvmf_subsystem_get_qpairs", json!({"nqn": NQN}));
    found.as_array().unwrap().clone()
}

#[test]
fn a_host_with_a_key_must_prove_it() {
    let (service, address) = with_keys();
    let host = json!({"nqn": NQN, "host": HOST, "dhchap_key": "k1", "dhchap_ctrlr_key": "k2"});
    assert_eq!(service.call("nvmf_subsystem_add_host", host.clone()), true);
    let keys = json!([{"nqn": HOST, "dhchap_key": "k1", "dhchap_ctrlr_key": "k2"}]);
    assert_eq!(subsystem(&service, NQN)["hosts"], keys);
    // Without, with the wrong one, and with the wrong one for the controller.
    let attach_method = "bdev_nvme_attach_controller";
    let mut params = attach(address, HOST);
    is_refused(&service, attach_method, &params, -13, "it has no key");
    params["dhchap_key"] = json!("k2");
    is_refused(
        &service,
        attach_method,
        &params,
        -13,
        "authentication failed",
    );
    params["dhchap_key"] = json!("k1");
    params["dhchap_ctrlr_key"] = json!("k1");
    is_refused(
        &service,
        attach_method,
        &params,
        -13,
        "does not prove who it is",
    );
    params["dhchap_ctrlr_key"] = json!("k2");
    assert_eq!(service.call(attach_method, params), json!(["Nvme0n1"]));
    let told = qpairs(&service);
    assert_eq!(
        (&told[0]["state"], &told[0]["qid"]),
        (&json!("enabled"), &json!(0))
    );
    let auth = json!({"state": "completed", "digest": "sha512", "dhgroup": "ffdhe8192"});
    assert_eq!(told[0]["auth"], auth);
    // A key in use stays.
    for key in ["k1", "k2"] {
        let params = json!({"name": key});
        is_refused(&service, "keyring_file_remove_key", &params, -16, key);
    }
    // Saved are names.
    for (of, method) in [("nvmf", "nvmf_subsystem_add_host"), ("bdev", attach_method)] {
        let saved = service.call("framework_get_config", json!({"name": of}));
        let calls = saved.as_array().unwrap().iter();
        let mut params = calls.filter(|call| call["method"] == method);
        let params = &params.next().unwrap()["params"];
        assert_eq!(
            (&params["dhchap_key"], &params["dhchap_ctrlr_key"]),
            (&json!("k1"), &json!("k2"))
        );
        assert!(!saved.to_string().contains("DHHC"));
    }
}

#[test]
fn other_keys_are_for_who_comes_next() {
    let (service, address) = with_keys();
    let attached = |params: Value| {
        let made = service.call("bdev_nvme_attach_controller", params);
        assert_eq!(made, json!(["Nvme0n1"]));
    };
    let hosts = || subsystem(&service, NQN)["hosts"].clone();
    let remove = |name: &str| {
        let removed = service.call("keyring_file_remove_key", json!({"name": name}));
        assert_eq!(removed, true);
    };
    let host = json!({"nqn": NQN, "host": HOST, "dhchap_key": "k1"});
    service.call("nvmf_subsystem_add_host", host);
    attached(with(&attach(address, HOST), r#"{"dhchap_key": "k1"}"#));
    let other = json!({"nqn": NQN, "host": HOST, "dhchap_key": "k2"});
    assert_eq!(service.call("nvmf_subsystem_set_keys", other), true);
    assert_eq!(hosts(), json!([{"nqn": HOST, "dhchap_key": "k2"}]));
    assert_eq!(qpairs(&service)[0]["state"], "enabled");
    service.call("bdev_nvme_detach_controller", json!({"name": "Nvme0"}));
    remove("k1");
    let none = json!({"nqn": NQN, "host": HOST});
    assert_eq!(service.call("nvmf_subsystem_set_keys", none), true);
    assert_eq!(hosts(), json!([{"nqn": HOST}]));
    remove("k2");
    wait_until("it has left", || qpairs(&service).is_empty());
    attached(attach(address, HOST));
    assert_eq!(qpairs(&service)[0].get("auth"), None);
}

const BAD_KEYS: &str = r#"
{"dhchap_key": "none"} | -126 | not in the keyring
{"dhchap_key": "gone"} | -126 | can't be read
{"dhchap_key": "open"} | -1 | others than its owner
{"dhchap_key": "bad"} | -22 | 32, 48 and 64
{"dhchap_key": "k1", "dhchap_ctrlr_key": "none"} | -126 | not in the keyring
{"dhchap_ctrlr_key": "k1"} | -32602 | needs a dhchap_key
"#;

const BAD_HOSTS: &str = r#"
{"host": "nqn.2026-11.x:y"} | -32602 | not in the list
{"nqn": "nqn.2026-11.x:y"} | -32602 | not found
{"tgt_name": "x"} | -32603 | target
{"psk": "x"} | -32602 | psk
"#;

#[test]
fn what_is_no_key_is_not_taken() {
    let (service, address) = with_keys();
    add_key(&service, "bad", "DHHC-1:01:AAAA:");
    add_key(&service, "gone", KEY);
    add_key(&service, "open", KEY);
    std::fs::remove_file(service.dir().join("gone.key")).unwrap();
    let open = service.dir().join("open.key");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o644)).unwrap();
    let host = json!({"nqn": NQN, "host": HOST});
    all_refused(&service, "nvmf_subsystem_add_host", &host, BAD_KEYS);
    let params = attach(address, HOST);
    all_refused(&service, "bdev_nvme_attach_controller", &params, BAD_KEYS);
    assert_eq!(subsystem(&service, NQN)["hosts"], json!([]));
    let keyed = json!({"nqn": NQN, "host": HOST, "dhchap_key": "k1"});
    service.call("nvmf_subsystem_add_host", keyed.clone());
    all_refused(&service, "nvmf_subsystem_set_keys", &host, BAD_KEYS);
    all_refused(&service, "nvmf_subsystem_set_keys", &keyed, BAD_HOSTS);
    let hosts = json!([{"nqn": HOST, "dhchap_key": "k1"}]);
    assert_eq!(subsystem(&service, NQN)["hosts"], hosts);
}

/// Loaded again it is the same, keys included.
#[test]
fn a_saved_configuration_asks_for_the_same_keys() {
    let (service, address) = with_keys();
    let host = json!({"nqn": NQN, "host": HOST, "dhchap_key": "k1", "dhchap_ctrlr_key": "k2"});
    service.call("nvmf_subsystem_add_host", host);
    let whole = |service: &Service| {
        let subsystems = service.call("framework_get_subsystems", Value::Null);
        let names = subsystems.as_array().unwrap().iter();
        let parts = names.map(|one| {
            let name = &one["subsystem"];
            let config = service.call("framework_get_config", json!({"name": name}));
            json!({"subsystem": name, "config": config})
        });
        json!({"subsystems": parts.collect::<Value>()})
    };
    let mut saved = whole(&service);
    // How hosts may prove it is said before the start.
    let nvmf = saved["subsystems"].as_array_mut().unwrap().iter_mut();
    let nvmf = nvmf.filter(|part| part["subsystem"] == "nvmf");
    let offer = json!({"method": "nvmf_set_config", "params": {"dhchap_digests": ["sha256"], "dhchap_dhgroups": ["null", "ffdhe2048"]}});
    for part in nvmf {
        let calls = part["config"].as_array_mut().unwrap();
        calls.insert(0, offer.clone());
    }
    let dir = service.stop();
    std::fs::write(dir.path().join("saved.json"), saved.to_string()).unwrap();
    let service = Service::start_in(dir, &["--config", "saved.json"]);
    assert_eq!(whole(&service), saved);
    let mut params = attach(address, HOST);
    params["dhchap_key"] = json!("k1");
    params["dhchap_ctrlr_key"] = json!("k2");
    service.call("bdev_nvme_attach_controller", params);
    let auth = json!({"state": "completed", "digest": "sha256", "dhgroup": "ffdhe2048"});
    assert_eq!(qpairs(&service)[0]["auth"], auth);
}
