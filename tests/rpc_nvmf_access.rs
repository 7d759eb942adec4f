//! The methods about where NVMe/TCP subsystems are reached, and who may.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod rpc_nvmf_common;

use common::{Service, wait_until};
use pmcache::wire::nvme::Status;
use rpc_nvmf_common::{
    DISCOVERY, HOST, Host, NQN, OTHER, address_of, all_refused, any_port, is_refused, knock,
    listeners, subsystem, with, with_subsystem, with_transport,
};
use serde_json::{Value, json};
use std::net::SocketAddr;

const BAD_LISTENERS: &str = r#"
{"listen_address": null} | -32602 |
{"nqn": "nqn.none"} | -32602 | not found
{"listen_address": {"trtype": "RDMA"}} | -32602 | only 'TCP'
{"listen_address": {"traddr": "localhost"}} | -32602 | no IP address
{"listen_address": {"traddr": "203.0.113.1"}} | -32602 | can't listen on 203.0.113.1
{"listen_address": {"adrfam": "ipv6"}} | -32602 | not of ipv6
{"listen_address": {"trsvcid": "x"}} | -32602 | no port
{"listen_address": {"trsvcid": "+1"}} | -32602 | no port
{"listen_address": {"trsvcid": "65536"}} | -32602 | no port
{"listen_address": {"trsvcid": null}} | -32602 | trsvcid is missing
{"listen_address": {"weight": 1}} | -32602 | weight
{"secure_channel": true} | -32603 | Cannot establish secure channel, when 'allow_any_host' is set
{"ana_state": "inaccessible"} | -32602 | ana_state is not supported
{"sock_impl": "ssl"} | -32602 | sock_impl is not supported
{"numa_id": 0} | -32602 | numa_id is not supported
{"tgt_name": "x"} | -32603 | target
"#;

#[test]
fn what_is_no_address_is_not_listened_on() {
    let (service, address) = with_subsystem();
    let at = |address: Value| json!({"nqn": NQN, "listen_address": address});
    let add = "nvmf_subsystem_add_listener";
    all_refused(&service, add, &at(any_port()), BAD_LISTENERS);
    is_refused(
        &service,
        add,
        &at(address_of(address)),
        -32602,
        "listens on",
    );
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = at(address_of(socket.local_addr().unwrap()));
    is_refused(&service, add, &busy, -32602, "Address already in use");
    // What is said of TLS depends on who may come.
    let strict = json!({"nqn": OTHER, "listen_address": any_port(), "secure_channel": true});
    service.call("nvmf_create_subsystem", json!({"nqn": OTHER}));
    is_refused(
        &service,
        add,
        &strict,
        -32602,
        "secure_channel is not supported",
    );
    assert_eq!(listeners(&service, NQN), [address_of(address)]);
    let told = service.call("nvmf_subsystem_get_listeners", json!({"nqn": NQN}));
    let expected = json!([{"address": address_of(address), "ana_states": []}]);
    assert_eq!(told, expected);
}

#[test]
fn subsystems_share_a_listener_until_the_last_has_left() {
    let (service, address) = with_subsystem();
    let at = |nqn: &str| json!({"nqn": nqn, "listen_address": address_of(address)});
    service.call("nvmf_create_subsystem", json!({"nqn": OTHER}));
    service.call(
        "nvmf_subsystem_add_host",
        json!({"nqn": OTHER, "host": HOST}),
    );
    let defaults = r#"{"ana_state": "optimized", "sock_impl": "posix", "numa_id": -1, "secure_channel": false}"#;
    let params = with(&at(OTHER), defaults);
    assert_eq!(service.call("nvmf_subsystem_add_listener", params), true);
    let mut first = Host::connect(address, NQN);
    let mut second = Host::connect(address, OTHER);
    let remove = "nvmf_subsystem_remove_listener";
    assert_eq!(service.call(remove, at(NQN)), true);
    assert_eq!(first.admin.try_receive(), None);
    second.admin.identify(1, 0);
    assert_eq!(knock(address, NQN), Status::INVALID_HOST);
    let bad = r#"
        {} | -32602 | does not listen on
        {"nqn": "nqn.none"} | -32602 | not found
        {"listen_address": {"traddr": "x"}} | -32602 | no IP address
        {"tgt_name": "x"} | -32603 | target
    "#;
    all_refused(&service, remove, &at(NQN), bad);
    assert_eq!(service.call(remove, at(OTHER)), true);
    assert_eq!(second.admin.try_receive(), None);
    // Nobody listens once the call has returned.
    std::net::TcpListener::bind(address).unwrap();
}

/// The subsystem of these calls, with one namespace, and its only listener's address.
fn with_ways(service: &Service) -> Value {
    let made =
        json!({"nqn": OTHER, "ana_reporting": true, "max_namespaces": 3, "allow_any_host": true});
    service.call("nvmf_create_subsystem", made);
    let namespace = json!({"bdev_name": "M0", "nsid": 2});
    let params = json!({"nqn": OTHER, "namespace": namespace});
    service.call("nvmf_subsystem_add_ns", params);
    let params = json!({"nqn": OTHER, "listen_address": any_port(), "ana_state": "non_optimized"});
    service.call("nvmf_subsystem_add_listener", params);
    let mut told = listeners(service, OTHER);
    told.remove(0)
}

#[test]
fn ways_are_told_and_saved() {
    let (service, _) = with_subsystem();
    let address = with_ways(&service);
    let told = || {
        let told = service.call("nvmf_subsystem_get_listeners", json!({"nqn": OTHER}));
        told[0]["ana_states"].clone()
    };
    assert_eq!(
        told(),
        json!([{"ana_group": 2, "ana_state": "non_optimized"}])
    );
    let set = "nvmf_subsystem_listener_set_ana_state";
    let params = json!({"nqn": OTHER, "listen_address": address, "ana_state": "inaccessible", "anagrpid": 2});
    assert_eq!(service.call(set, params.clone()), true);
    assert_eq!(
        told(),
        json!([{"ana_group": 2, "ana_state": "inaccessible"}])
    );
    let bad = r#"
        {"nqn": "nqn.none"} | -32602 | not found
        {"nqn": "nqn.2026-11.test.pmcache:one"} | -32602 | without ANA
        {"anagrpid": 4} | -32602 | ANA group 4 is not within 1 to 3
        {"ana_state": "best"} | -32602 |
        {"listen_address": {"trsvcid": "1"}} | -32602 | does not listen
        {"tgt_name": "x"} | -32603 | target
    "#;
    all_refused(&service, set, &params, bad);
    let group = "nvmf_subsystem_set_ns_ana_group";
    let params = json!({"nqn": OTHER, "nsid": 2, "anagrpid": 3});
    assert_eq!(service.call(group, params.clone()), true);
    assert_eq!(
        told(),
        json!([{"ana_group": 3, "ana_state": "non_optimized"}])
    );
    assert_eq!(subsystem(&service, OTHER)["namespaces"][0]["anagrpid"], 3);
    let bad = r#"
        {"nqn": "nqn.2026-11.test.pmcache:one"} | -32602 | without ANA
        {"nsid": 1} | -32602 | no namespace 1
        {"anagrpid": 0} | -32602 | ANA group 0
        {"tgt_name": "x"} | -32603 | target
    "#;
    all_refused(&service, group, &params, bad);
    let saved = service.call("framework_get_config", json!({"name": "nvmf"}));
    let calls = saved.as_array().unwrap().iter();
    let ways = calls.filter(|call| call["method"] == set);
    let ways: Vec<_> = ways
        .map(|call| (&call["params"]["anagrpid"], &call["params"]["ana_state"]))
        .collect();
    let said = |group: u32, state: &str| (json!(group), json!(state));
    let expected = [
        said(1, "non_optimized"),
        said(2, "inaccessible"),
        said(3, "non_optimized"),
    ];
    assert!(
        ways.into_iter()
            .eq(expected.iter().map(|(group, state)| (group, state)))
    );
}

#[test]
fn listening_wants_a_transport() {
    let service = Service::start();
    service.call("nvmf_create_subsystem", json!({"nqn": NQN}));
    let params = json!({"nqn": NQN, "listen_address": any_port()});
    let text = "no TCP transport";
    is_refused(
        &service,
        "nvmf_subsystem_add_listener",
        &params,
        -32602,
        text,
    );
}

#[test]
fn ipv6_is_listened_on_too() {
    let service = with_transport();
    service.call("nvmf_create_subsystem", json!({"nqn": NQN}));
    let address = json!({"trtype": "TCP", "traddr": "::1", "trsvcid": "0", "adrfam": "IPv6"});
    let params = json!({"nqn": NQN, "listen_address": address});
    // Not every machine has it.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        service.call("nvmf_subsystem_add_listener", params);
        let told = &listeners(&service, NQN)[0];
        assert_eq!(
            (&told["adrfam"], &told["traddr"]),
            (&json!("IPv6"), &json!("::1"))
        );
    }
}

const BAD_HOSTS: &str = r#"
{"host": null} | -32602 |
{"host": "nobody"} | -32602 | NQN
{"nqn": "nqn.none"} | -32602 | not found
{"psk": "k"} | -32602 | psk is not supported
{"dhchap_key": "k"} | -126 | not in the keyring
{"dhchap_ctrlr_key": "k"} | -32602 | needs a dhchap_key
{"tgt_name": "x"} | -32603 | target
"#;

#[test]
fn only_hosts_of_the_list_come_in() {
    let (service, address) = with_subsystem();
    let host = json!({"nqn": NQN, "host": HOST});
    let any = |any: bool| {
        let params = json!({"nqn": NQN, "allow_any_host": any});
        service.call("nvmf_subsystem_allow_any_host", params)
    };
    let mut before = Host::connect(address, NQN);
    assert_eq!(any(false), true);
    assert_eq!(before.admin.try_receive(), None);
    assert_eq!(knock(address, NQN), Status::INVALID_HOST);
    all_refused(&service, "nvmf_subsystem_add_host", &host, BAD_HOSTS);
    let added = service.call("nvmf_subsystem_add_host", host.clone());
    assert_eq!(added, true);
    is_refused(
        &service,
        "nvmf_subsystem_add_host",
        &host,
        -32602,
        "allowed already",
    );
    let told = subsystem(&service, NQN);
    assert_eq!(told["hosts"], json!([{"nqn": HOST}]));
    assert_eq!(told["allow_any_host"], false);

    let mut listed = Host::connect(address, NQN);
    let patient = with(&host, r#"{"timeout_ms": 18446744073709551615}"#);
    assert_eq!(service.call("nvmf_subsystem_remove_host", patient), true);
    let left = service.call("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    assert_eq!(left, json!([]));
    assert_eq!(listed.admin.try_receive(), None);
    assert_eq!(knock(address, NQN), Status::INVALID_HOST);
    let bad = r#"
        {} | -32602 | not in the list
        {"nqn": "nqn.none"} | -32602 | not found
    "#;
    all_refused(&service, "nvmf_subsystem_remove_host", &host, bad);
    let params = json!({"nqn": NQN, "allow_any_host": true});
    let bad = r#"
        {"allow_any_host": null} | -32602 |
        {"nqn": "nqn.none"} | -32602 | not found
    "#;
    all_refused(&service, "nvmf_subsystem_allow_any_host", &params, bad);
    assert_eq!(any(true), true);
    Host::connect(address, NQN);
}

const BAD_REFERRALS: &str = r#"
{"address": null} | -32602 |
{"address": {"trtype": "RDMA"}} | -32602 | only 'TCP'
{"address": {"traddr": "localhost"}} | -32602 | no IP address
{"address": {"traddr": "0.0.0.0"}} | -32602 | no host can connect to 0.0.0.0:8009
{"address": {"trsvcid": "0"}} | -32602 | no host can connect to 192.0.2.1:0
{"subnqn": "there"} | -32602 | NQN
{"secure_channel": true} | -32602 | secure_channel is not supported
{"tgt_name": "x"} | -32603 | target
"#;

/// Subtype, NQN, address and port of each entry of the discovery log.
fn discovered(address: SocketAddr) -> Vec<(u8, String, String, String)> {
    let mut host = Host::connect(address, DISCOVERY);
    let entries = 3_u32;
    let len = 1024 * (entries + 1);
    let sqe = host.admin.admin(0x02, 0, 0x70 | (len / 4 - 1) << 16, len);
    let (done, log) = host.admin.run(sqe, &[]);
    assert_eq!(done.status, Status::SUCCESS);
    let count = usize::from(log[8]);
    let text = |entry: &[u8], at: usize, len: usize| {
        let text = String::from_utf8(entry[at..at + len].to_vec()).unwrap();
        text.trim_end_matches(['\0', ' ']).to_owned()
    };
    let entries = log[1024..].chunks(1024).take(count);
    let told = entries.map(|entry| {
        let [nqn, at, port] =
            [(256, 256), (512, 256), (32, 32)].map(|(at, len)| text(entry, at, len));
        (entry[2], nqn, at, port)
    });
    told.collect()
}

#[test]
fn hosts_are_sent_elsewhere_too() {
    let (service, address) = with_subsystem();
    let at = json!({"trtype": "tcp", "traddr": "192.0.2.1", "trsvcid": "8009"});
    let referral = json!({"address": at});
    let other = json!({"address": at, "subnqn": OTHER});
    let add = "nvmf_discovery_add_referral";
    let remove = "nvmf_discovery_remove_referral";
    let list = |service: &Service| service.call("nvmf_discovery_get_referrals", Value::Null);
    assert_eq!(list(&service), json!([]));
    all_refused(&service, add, &referral, BAD_REFERRALS);
    assert_eq!(list(&service), json!([]));
    for params in [&referral, &other] {
        assert_eq!(service.call(add, params.clone()), true);
        is_refused(&service, add, params, -32602, "already");
    }
    let told = |nqn: &str| {
        let address =
            json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "192.0.2.1", "trsvcid": "8009"});
        json!({"address": address, "secure_channel": false, "subnqn": nqn})
    };
    assert_eq!(list(&service), json!([told(DISCOVERY), told(OTHER)]));
    let entry = |kind: u8, nqn: &str, ip: &str, port: &str| {
        (kind, nqn.to_owned(), ip.to_owned(), port.to_owned())
    };
    let own = entry(2, NQN, "127.0.0.1", &address.port().to_string());
    let sent = [
        entry(1, DISCOVERY, "192.0.2.1", "8009"),
        entry(2, OTHER, "192.0.2.1", "8009"),
    ];
    assert_eq!(
        discovered(address),
        [own.clone(), sent[0].clone(), sent[1].clone()]
    );
    assert_eq!(service.call(remove, referral.clone()), true);
    is_refused(&service, remove, &referral, -32602, "no referral");
    assert_eq!(list(&service), json!([told(OTHER)]));
    assert_eq!(discovered(address), [own, sent[1].clone()]);
}

#[test]
fn who_comes_and_goes_is_told() {
    let (service, address) = with_subsystem();
    let told = |service: &Service| -> Vec<String> {
        let all = service.call("notify_get_notifications", Value::Null);
        let hosts = all.as_array().unwrap().iter();
        let text = |notice: &Value| {
            format!(
                "{} {}",
                notice["type"].as_str().unwrap(),
                notice["ctx"].as_str().unwrap()
            )
        };
        hosts
            .map(text)
            .filter(|text| text.starts_with("nvmf"))
            .collect()
    };
    assert!(told(&service).is_empty());
    let host = Host::connect(address, NQN);
    let came = format!("nvmf_host_connect {NQN} {HOST}");
    assert_eq!(told(&service), std::slice::from_ref(&came));
    // One that only looks around is no host of a subsystem.
    drop(Host::connect(address, DISCOVERY));
    let io = host.io(1, 0);
    drop((host, io));
    let went = format!("nvmf_host_disconnect {NQN} {HOST}");
    wait_until("the host's leaving is told", || told(&service).len() == 2);
    assert_eq!(told(&service), [came, went]);
}
