//! A service with an NVMe/TCP target, and a host that connects to it.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../nvmf_common/host.rs"]
mod host;

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use host::{Host, Qpair};

use crate::common::Service;
use pmcache::wire::nvme::{ConnectData, Status};
use serde_json::{Value, json};
use std::net::SocketAddr;

pub(crate) const NQN: &str = "nqn.2026-11.test.pmcache:one";
pub(crate) const OTHER: &str = "nqn.2026-11.test.pmcache:two";
/// Who the host says it is.
pub(crate) const HOST: &str = "nqn.2026-11.test.host:a";
pub(crate) const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

pub(crate) fn any_port() -> Value {
    json!({"trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": "0"})
}

/// A transport, and a disk of 1 MiB.
pub(crate) fn with_transport() -> Service {
    let service = Service::start();
    let made = service.call("nvmf_create_transport", json!({"trtype": "TCP"}));
    assert_eq!(made, true);
    disk(&service, "M0");
    service
}

pub(crate) fn disk(service: &Service, name: &str) {
    let params = json!({"name": name, "block_size": 512, "num_blocks": 2048});
    service.call("bdev_malloc_create", params);
}

pub(crate) fn add_ns(service: &Service, nqn: &str, namespace: Value) -> Value {
    let params = json!({"nqn": nqn, "namespace": namespace});
    service.call("nvmf_subsystem_add_ns", params)
}

pub(crate) fn listen(service: &Service, nqn: &str) -> SocketAddr {
    let params = json!({"nqn": nqn, "listen_address": any_port()});
    assert_eq!(service.call("nvmf_subsystem_add_listener", params), true);
    let address = listeners(service, nqn).pop().unwrap();
    let text = |key: &str| address[key].as_str().unwrap().to_owned();
    let address = format!("{}:{}", text("traddr"), text("trsvcid"));
    address.parse().unwrap()
}

pub(crate) fn address_of(address: SocketAddr) -> Value {
    json!({
        "trtype": "TCP",
        "adrfam": "IPv4",
        "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
    })
}

pub(crate) fn subsystem(service: &Service, nqn: &str) -> Value {
    let mut found = service.call("nvmf_get_subsystems", json!({"nqn": nqn}));
    found[0].take()
}

pub(crate) fn listeners(service: &Service, nqn: &str) -> Vec<Value> {
    let found = subsystem(service, nqn);
    found["listen_addresses"].as_array().unwrap().clone()
}

/// A subsystem with the disk as namespace 1, which anybody reaches.
pub(crate) fn with_subsystem() -> (Service, SocketAddr) {
    let service = with_transport();
    let params = json!({"nqn": NQN, "allow_any_host": true});
    assert_eq!(service.call("nvmf_create_subsystem", params), true);
    assert_eq!(add_ns(&service, NQN, json!({"bdev_name": "M0"})), 1);
    let address = listen(&service, NQN);
    (service, address)
}

/// How the target answers a Connect of the host.
pub(crate) fn knock(address: SocketAddr, nqn: &str) -> Status {
    let mut qpair = Qpair::greeted(address);
    let done = qpair.connect_to(nqn, 0, 31, ConnectData::ANY, 0);
    done.status
}

/// `base` with the members that `text` has, those of its objects one by one.
pub(crate) fn with(base: &Value, text: &str) -> Value {
    let mut params = base.clone();
    let changed: Value = serde_json::from_str(text).unwrap();
    for (key, value) in changed.as_object().unwrap() {
        match (params[key].as_object_mut(), value.as_object()) {
            (Some(members), Some(new)) => members.extend(new.clone()),
            _ => params[key] = value.clone(),
        }
    }
    params
}

/// Each line of `bad` has what makes the good call `base` a bad one, the code, and a part of the message.
pub(crate) fn all_refused(service: &Service, method: &str, base: &Value, bad: &str) {
    let lines = bad.lines().map(str::trim).filter(|line| !line.is_empty());
    for line in lines {
        let [change, code, text] = line.split('|').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let code = code.trim().parse().unwrap();
        is_refused(service, method, &with(base, change), code, text.trim());
    }
}

/// The call is refused.
pub(crate) fn is_refused(service: &Service, method: &str, params: &Value, code: i64, text: &str) {
    let (found, message) = service.refused(method, params.clone());
    assert_eq!(found, code, "{method} {params}: {message}");
    assert!(message.contains(text), "{method} {params}: {message}");
}

pub(crate) fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}
