//! Keys by RPC: hosts that must prove who they are, and what is told and saved of that.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod rpc_nvmf_common;

use common::Service;
use rpc_nvmf_common::{HOST, NQN, OTHER, is_refused, subsystem, with_subsystem};
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
    // Other keys, for who comes next; who is there stays.
    let other = json!({"nqn": NQN, "host": HOST, "dhchap_key": "k2"});
    assert_eq!(service.call("nvmf_subsystem_set_keys", other), true);
    assert_eq!(
        subsystem(&service, NQN)["hosts"],
        json!([{"nqn": HOST, "dhchap_key": "k2"}])
    );
    assert_eq!(qpairs(&service).len(), told.len());
    service.call("bdev_nvme_detach_controller", json!({"name": "Nvme0"}));
    assert_eq!(
        service.call("keyring_file_remove_key", json!({"name": "k1"})),
        true
    );
    let none = json!({"nqn": NQN, "host": HOST});
    assert_eq!(service.call("nvmf_subsystem_set_keys", none), true);
    assert_eq!(subsystem(&service, NQN)["hosts"], json!([{"nqn": HOST}]));
    assert_eq!(
        service.call("keyring_file_remove_key", json!({"name": "k2"})),
        true
    );
    assert_eq!(
        service.call(attach_method, attach(address, HOST)),
        json!(["Nvme0n1"])
    );
    assert_eq!(qpairs(&service)[0].get("auth"), None);
}

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
    let bad = [
        (json!({"dhchap_key": "none"}), -126, "not in the keyring"),
        (json!({"dhchap_key": "gone"}), -126, "can't be read"),
        (json!({"dhchap_key": "open"}), -1, "others than its owner"),
        (json!({"dhchap_key": "bad"}), -22, "32, 48 and 64"),
        (
            json!({"dhchap_key": "k1", "dhchap_ctrlr_key": "none"}),
            -126,
            "not in the keyring",
        ),
        (
            json!({"dhchap_ctrlr_key": "k1"}),
            -32602,
            "needs a dhchap_key",
        ),
    ];
    for (keys, code, text) in &bad {
        let with = |base: &Value| rpc_nvmf_common::with(base, &keys.to_string());
        is_refused(
            &service,
            "nvmf_subsystem_add_host",
            &with(&host),
            *code,
            text,
        );
        let attach = with(&attach(address, HOST));
        is_refused(
            &service,
            "bdev_nvme_attach_controller",
            &attach,
            *code,
            text,
        );
    }
    assert_eq!(subsystem(&service, NQN)["hosts"], json!([]));
    let keyed = json!({"nqn": NQN, "host": HOST, "dhchap_key": "k1"});
    service.call("nvmf_subsystem_add_host", keyed.clone());
    for (keys, code, text) in &bad {
        let params = rpc_nvmf_common::with(&host, &keys.to_string());
        is_refused(&service, "nvmf_subsystem_set_keys", &params, *code, text);
    }
    let set = "nvmf_subsystem_set_keys";
    let with = |text| rpc_nvmf_common::with(&keyed, text);
    is_refused(
        &service,
        set,
        &with(r#"{"host": "nqn.2026-11.x:y"}"#),
        -32602,
        "not in the list",
    );
    is_refused(
        &service,
        set,
        &with(&format!(r#"{{"nqn": "{OTHER}"}}"#)),
        -32602,
        "not found",
    );
    is_refused(
        &service,
        set,
        &with(r#"{"tgt_name": "x"}"#),
        -32603,
        "target",
    );
    is_refused(&service, set, &with(r#"{"psk": "x"}"#), -32602, "psk");
    assert_eq!(
        subsystem(&service, NQN)["hosts"],
        json!([{"nqn": HOST, "dhchap_key": "k1"}])
    );
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
