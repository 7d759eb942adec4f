//! Calls that make all that can be made of the NVMe/TCP target, and how they are saved.
#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::{Value, json};
use std::sync::atomic::{AtomicU8, Ordering};

type Calls = Vec<(&'static str, Value)>;

pub(crate) const NQNS: [&str; 3] = [
    "nqn.2014-08.org.nvmexpress.discovery",
    "nqn.2026-11.test:b",
    "nqn.2026-11.test:a",
];

/// A loopback address that no other test listens on, at a fixed port: it is to be the same after a restart.
pub(crate) fn own_address() -> Value {
    static COUNT: AtomicU8 = AtomicU8::new(64);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let ip = format!("127.{count}.{high}.{low}");
    json!({"trtype": "tcp", "traddr": ip, "trsvcid": "4420"})
}

/// In an order of their own, too.
pub(crate) fn calls() -> Calls {
    let address = own_address();
    let [discovery, b, a] = NQNS;
    let transport = json!({
        "trtype": "tcp", "max_queue_depth": 64, "in_capsule_data_size": 4096, "kas": 20, "c2h_success": false,
    });
    let whole = json!({
        "nqn": b, "serial_number": "B", "model_number": "m", "admin_label": "l", "min_cntlid": 3,
        "max_cntlid": 9,
    });
    let numbered = json!({
        "bdev_name": "c1", "nsid": 3, "nguid": "00112233445566778899aabbccddeeff",
        "eui64": "0011223344556677", "uuid": "0b0a2f8e-50a4-4ab4-8e05-6c0c5ee8a8f2",
    });
    let listener = |nqn: &str| {
        let params = json!({"nqn": nqn, "listen_address": address});
        ("nvmf_subsystem_add_listener", params)
    };
    let namespace = |nqn: &str, namespace: Value| {
        let params = json!({"nqn": nqn, "namespace": namespace});
        ("nvmf_subsystem_add_ns", params)
    };
    let host = |nqn: &str, host: &str| {
        let params = json!({"nqn": nqn, "host": format!("nqn.2026-11.test.host:{host}")});
        ("nvmf_subsystem_add_host", params)
    };
    let elsewhere = json!({
        "address": {"trtype": "tcp", "traddr": "192.0.2.1", "trsvcid": "8009"}, "subnqn": a,
    });
    let nobody = json!({"nqn": discovery, "allow_any_host": false});
    vec![
        ("nvmf_create_transport", transport),
        ("nvmf_create_subsystem", whole),
        (
            "nvmf_create_subsystem",
            json!({"nqn": a, "allow_any_host": true}),
        ),
        listener(a),
        listener(b),
        listener(discovery),
        namespace(b, numbered),
        namespace(b, json!({"bdev_name": "c0"})),
        namespace(a, json!({"bdev_name": "c0", "nsid": 9})),
        host(b, "one"),
        host(b, "another"),
        host(discovery, "one"),
        ("nvmf_subsystem_allow_any_host", nobody),
        ("nvmf_discovery_add_referral", elsewhere),
    ]
}

pub(crate) fn outline() -> Vec<String> {
    let [discovery, b, a] = NQNS;
    let nvmf = [
        ("create_transport", "-"),
        ("discovery_add_referral", "-"),
        ("subsystem_allow_any_host", discovery),
        ("subsystem_add_host", discovery),
        ("create_subsystem", b),
        ("subsystem_add_host", b),
        ("subsystem_add_host", b),
        ("subsystem_add_ns", b),
        ("subsystem_add_ns", b),
        ("create_subsystem", a),
        ("subsystem_add_ns", a),
        ("subsystem_add_listener", discovery),
        ("subsystem_add_listener", b),
        ("subsystem_add_listener", a),
    ];
    let named = nvmf.map(|(method, name)| format!("nvmf_{method} {name}"));
    named.into()
}

/// Where a namespace goes and what it was said to be is saved, in the order of the numbers.
pub(crate) fn assert_namespaces(nvmf: &Value) {
    let namespaces = [7, 8].map(|at| &nvmf[at]["params"]["namespace"]);
    assert_eq!(*namespaces[0], json!({"bdev_name": "c0", "nsid": 1}));
    assert_eq!(namespaces[1]["nguid"], "00112233445566778899AABBCCDDEEFF");
    assert_eq!(namespaces[1].as_object().unwrap().len(), 5);
    assert_eq!(nvmf[4]["params"]["admin_label"], "l");
}
