//! The methods about the NVMe/TCP target: the transport, subsystems and namespaces, by a host that connects to
//! what they make.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod nvmf_calls;
mod rpc_nvmf_common;

use common::{Service, pmcache};
use pmcache::wire::nvme::{Status, admin, async_event, feature};
use rpc_nvmf_common::{
    DISCOVERY, HOST, Host, NQN, OTHER, add_ns, address_of, all_refused, disk, is_refused, parsed,
    subsystem, with_subsystem, with_transport,
};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Output;

#[test]
fn a_disk_is_written_and_read_by_a_host() {
    let (service, address) = with_subsystem();
    let host = Host::connect(address, NQN);
    let mut io = host.io(1, 0);
    let data: Vec<u8> = (0..=255).cycle().take(4096).collect();
    assert_eq!(io.write(8, &data), Status::SUCCESS);
    assert_eq!(io.read(8, 8), (Status::SUCCESS, data));

    let controllers = json!([{
        "cntlid": host.cntlid,
        "cntrltype": "io",
        "hostnqn": HOST,
        "hostid": "07070707-0707-0707-0707-070707070707",
        "num_io_qpairs": 1,
    }]);
    let nqn = json!({"nqn": NQN});
    let found = service.call("nvmf_subsystem_get_controllers", nqn.clone());
    assert_eq!(found, controllers);
    let found = service.call("nvmf_subsystem_get_qpairs", nqn);
    for (at, qpair) in [&host.admin, &io].into_iter().enumerate() {
        let expected = json!({
            "cntlid": host.cntlid,
            "qid": at,
            "state": "enabled",
            "thread": "reactor_0",
            "hostnqn": HOST,
            "listen_address": address_of(address),
            "peer_address": address_of(qpair.stream.local_addr().unwrap()),
        });
        assert_eq!(found[at], expected);
    }
    let stats = service.call("nvmf_get_stats", Value::Null);
    let group = &stats["poll_groups"][0];
    assert_eq!(
        (&stats["tick_rate"], &group["name"]),
        (&json!(1_000_000_000), &json!("reactor_0"))
    );
    assert_eq!(group["transports"], json!([{"trtype": "TCP"}]));
    for (key, expected) in [
        ("admin_qpairs", 1),
        ("io_qpairs", 1),
        ("current_admin_qpairs", 1),
        ("current_io_qpairs", 1),
        ("current_unassociated_qpairs", 0),
        ("pending_bdev_io", 0),
        ("completed_nvme_io", 2),
    ] {
        assert_eq!(group[key], expected, "{key}");
    }
    // In use, and it says by whom.
    let (code, message) = service.refused("bdev_malloc_delete", json!({"name": "M0"}));
    assert_eq!(code, -16);
    assert!(
        message.contains(&format!("nvmf subsystem '{NQN}'")),
        "{message}"
    );
}

const BAD_TRANSPORTS: &str = r#"
{"trtype": null} | -32602 |
{"trtype": "RDMA"} | -32602 | only 'TCP'
{"tgt_name": "x"} | -32603 | target
{"max_queue_depth": 1} | -32602 | max_queue_depth: 1 is not
{"max_aq_depth": 70000} | -32602 | max_aq_depth: 70000 is not
{"max_io_size": 12288} | -32602 | max_io_size
{"zcopy": true} | -32602 | zcopy is not supported
{"dif_insert_or_strip": true} | -32602 | dif_insert_or_strip
{"sock_priority": 1} | -32602 | sock_priority is not supported
{"abort_timeout_sec": 2} | -32602 | abort_timeout_sec
{"ack_timeout": 2} | -32602 | ack_timeout is not supported
{"masked_fuses": ["fcws"]} | -32602 | masked_fuses
{"masked_oncs": ["nvmcmps"]} | -32602 | masked_oncs
{"masked_oncs": ["x"]} | -32602 | unknown variant
{"weight": 1} | -32602 | weight
"#;

/// As SPDK's client sends it, and what means nothing here.
const TRANSPORT: &str = r#"{
    "trtype": "TCP", "tgt_name": "nvmf_tgt", "no_srq": false, "c2h_success": false, "zcopy": false,
    "dif_insert_or_strip": false, "no_wr_batching": false, "disable_mappable_bar0": false,
    "disable_adaptive_irq": false, "disable_shadow_doorbells": false, "disable_command_passthru": false,
    "max_queue_depth": 256, "max_io_qpairs_per_ctrlr": 9, "in_capsule_data_size": 4096,
    "max_io_size": 1048576, "max_aq_depth": 64, "kas": 5, "min_kato": 3000, "io_unit_size": 131072,
    "num_shared_buffers": 511, "buf_cache_size": 32, "iobuf_small_cache_size": 1, "num_cqe": 1,
    "iobuf_large_cache_size": 1, "max_srq_depth": 1, "sock_priority": 0, "acceptor_backlog": 1,
    "abort_timeout_sec": 1, "control_msg_num": 32, "acceptor_poll_rate": 1, "ack_timeout": 0,
    "data_wr_pool_size": 1, "masked_oncs": ["reservs", "nvmcpys"], "masked_fuses": []
}"#;

/// What is told of it.
const TRANSPORT_TOLD: &str = r#"[{
    "trtype": "TCP", "max_queue_depth": 256, "max_io_qpairs_per_ctrlr": 9,
    "in_capsule_data_size": 4096, "max_io_size": 1048576, "max_aq_depth": 64,
    "iobuf_small_cache_size": 4294967295, "iobuf_large_cache_size": 4294967295,
    "dif_insert_or_strip": false, "zcopy": false, "c2h_success": false, "sock_priority": 0,
    "abort_timeout_sec": 1, "ack_timeout": 0, "data_wr_pool_size": 0,
    "disable_command_passthru": true, "kas": 5, "min_kato": 3000
}]"#;

#[test]
fn a_transport_is_made_once_and_told() {
    let service = Service::start();
    let told = |params: &Value| service.call("nvmf_get_transports", params.clone());
    assert_eq!(told(&Value::Null), json!([]));
    let tcp = json!({"trtype": "tcp"});
    is_refused(&service, "nvmf_get_transports", &tcp, -19, "No such device");
    all_refused(&service, "nvmf_create_transport", &tcp, BAD_TRANSPORTS);
    assert_eq!(told(&Value::Null), json!([]));
    let params = parsed(TRANSPORT);
    assert_eq!(service.call("nvmf_create_transport", params.clone()), true);
    let again = service.refused("nvmf_create_transport", params);
    let text = "Transport type 'TCP' already exists";
    assert_eq!(again, (-32603, text.to_owned()));
    assert_eq!(told(&tcp), parsed(TRANSPORT_TOLD));

    assert_eq!(service.call("nvmf_delete_transport", tcp.clone()), true);
    let bad = r#"
        {} | -32602 | no TCP transport
        {"trtype": "x"} | -32602 | only 'TCP'
    "#;
    all_refused(&service, "nvmf_delete_transport", &tcp, bad);
}

#[test]
fn a_transport_stays_while_anybody_listens() {
    let (service, address) = with_subsystem();
    let tcp = json!({"trtype": "TCP"});
    let text = format!("listens on {address}");
    is_refused(&service, "nvmf_delete_transport", &tcp, -16, &text);
    service.call("nvmf_delete_subsystem", json!({"nqn": NQN}));
    assert_eq!(service.call("nvmf_delete_transport", tcp.clone()), true);
    assert_eq!(service.call("nvmf_create_transport", tcp), true);
}

const BAD_SUBSYSTEMS: &str = r#"
{"nqn": "nqn.x"} | -32603 | Unable to create subsystem nqn.x
{"nqn": "nqn.2014-08.org.nvmexpress.discovery"} | -32603 | exists
{"serial_number": ""} | -32603 | serial number
{"serial_number": "123456789012345678901"} | -32603 | serial number
{"model_number": "\u00e9"} | -32603 | model number
{"max_namespaces": 1025} | -32603 | max_namespaces: 1025
{"min_cntlid": 0} | -32603 | min_cntlid
{"max_cntlid": 65520} | -32603 | max_cntlid
{"ana_reporting": 1} | -32602 |
{"passthrough": true} | -32602 | passthrough is not supported
{"enable_nssr": true} | -32602 | enable_nssr is not supported
{"dmrsl": 1} | -32602 | dmrsl is not supported
{"wzsl": 1} | -32602 | wzsl is not supported
{"tgt_name": "x"} | -32603 | target
{"weight": 1} | -32602 | weight
"#;

const SUBSYSTEM: &str = r#"{
    "nqn": "nqn.2026-11.test.pmcache:one", "tgt_name": "nvmf_tgt", "serial_number": "S1", "model_number": "M",
    "admin_label": "L", "max_namespaces": 4, "allow_any_host": false, "ana_reporting": false,
    "min_cntlid": 5, "max_cntlid": 9, "dmrsl": 0, "wzsl": 0, "passthrough": false, "enable_nssr": false
}"#;

const SUBSYSTEMS_TOLD: &str = r#"[{
    "nqn": "nqn.2014-08.org.nvmexpress.discovery", "subtype": "Discovery", "listen_addresses": [],
    "allow_any_host": true, "hosts": []
}, {
    "nqn": "nqn.2026-11.test.pmcache:one", "subtype": "NVMe", "listen_addresses": [],
    "allow_any_host": false, "hosts": [], "serial_number": "S1", "model_number": "M", "admin_label": "L",
    "max_namespaces": 4, "min_cntlid": 5, "max_cntlid": 9, "ana_reporting": false, "dmrsl": 0, "wzsl": 0, "namespaces": []
}]"#;

#[test]
fn subsystems_are_made_and_told() {
    let service = with_transport();
    let expected = parsed(SUBSYSTEMS_TOLD);
    let told = |service: &Service| service.call("nvmf_get_subsystems", Value::Null);
    assert_eq!(told(&service), json!([expected[0]]));
    let good = json!({"nqn": NQN});
    all_refused(&service, "nvmf_create_subsystem", &good, BAD_SUBSYSTEMS);
    let params = parsed(SUBSYSTEM);
    assert_eq!(service.call("nvmf_create_subsystem", params.clone()), true);
    is_refused(&service, "nvmf_create_subsystem", &params, -32603, "exists");
    assert_eq!(told(&service), expected);
    assert_eq!(subsystem(&service, NQN), expected[1]);
    let params = json!({"nqn": OTHER, "max_namespaces": 0});
    assert_eq!(service.call("nvmf_create_subsystem", params), true);
    let other = subsystem(&service, OTHER);
    assert_eq!(
        (&other["nqn"], &other["max_namespaces"]),
        (&json!(OTHER), &json!(32))
    );
    assert_eq!(other.get("admin_label"), None);
    let target = json!({"tgt_name": "x"});
    is_refused(&service, "nvmf_get_subsystems", &target, -32603, "target");
}

#[test]
fn subsystems_are_ended() {
    let service = with_transport();
    service.call("nvmf_create_subsystem", parsed(SUBSYSTEM));
    let nqn = json!({"nqn": NQN});
    assert_eq!(service.call("nvmf_delete_subsystem", nqn.clone()), true);
    let gone = format!("Subsystem with NQN '{NQN}' not found");
    for method in ["nvmf_delete_subsystem", "nvmf_get_subsystems"] {
        is_refused(&service, method, &nqn, -32602, &gone);
    }
    let discovery = json!({"nqn": DISCOVERY});
    is_refused(
        &service,
        "nvmf_delete_subsystem",
        &discovery,
        -32602,
        "discovery",
    );
    // What it was called is forgotten.
    service.call("nvmf_create_subsystem", nqn.clone());
    assert_eq!(subsystem(&service, NQN).get("admin_label"), None);
    let bad = r#"
        {"nqn": "nqn.none"} | -32602 | not found
        {"tgt_name": "x"} | -32603 | target
    "#;
    for list in ["listeners", "controllers", "qpairs"] {
        let method = format!("nvmf_subsystem_get_{list}");
        assert_eq!(service.call(&method, nqn.clone()), json!([]), "{method}");
        all_refused(&service, &method, &nqn, bad);
    }
}

#[test]
fn a_host_loses_the_subsystem_that_is_ended() {
    let (service, address) = with_subsystem();
    let mut host = Host::connect(address, NQN);
    let mut io = host.io(1, 0);
    assert_eq!(io.read(0, 1).0, Status::SUCCESS);
    assert_eq!(
        service.call("nvmf_delete_subsystem", json!({"nqn": NQN})),
        true
    );
    // Nobody uses it, nobody listens, and both ends are closed, once the call has returned.
    service.call("bdev_malloc_delete", json!({"name": "M0"}));
    std::net::TcpListener::bind(address).unwrap();
    assert_eq!(io.try_receive(), None);
    assert_eq!(host.admin.try_receive(), None);
}

const BAD_NAMESPACES: &str = r#"
{"namespace": null} | -32602 |
{"nqn": "nqn.none"} | -32602 | not found
{"nqn": "nqn.2014-08.org.nvmexpress.discovery"} | -32602 | discovery
{"namespace": {"bdev_name": "none"}} | -19 | No such device
{"namespace": {"nsid": 7}} | -32602 | taken
{"namespace": {"nsid": 33}} | -32602 | above 32
{"namespace": {"uuid": "0b0a2f8e-50a4-4ab4-8e05-6c0c5ee8a8f1"}} | -32602 | namespace 7 has the same UUID
{"namespace": {"nguid": "00112233445566778899AABBCCDDEEFF"}} | -32602 | same NGUID
{"namespace": {"eui64": "0011223344556677"}} | -32602 | same EUI-64
{"namespace": {"bdev_name": "M0"}} | -32602 | namespace 1 has the same UUID
{"namespace": {"nguid": "00"}} | -32602 | 32 hexadecimal digits
{"namespace": {"eui64": "x"}} | -32602 | 16 hexadecimal digits
{"namespace": {"uuid": "x"}} | -32602 |
{"namespace": {"ptpl_file": "/x"}} | -32602 | ptpl_file is not supported
{"namespace": {"anagrpid": 33}} | -32602 | ANA group 33
{"namespace": {"no_auto_visible": true}} | -32602 | no_auto_visible is not
{"namespace": {"weight": 1}} | -32602 | weight
{"tgt_name": "x"} | -32603 | target
"#;

/// Everything that can be said of one.
const NAMESPACE: &str = r#"{
    "bdev_name": "M1", "nsid": 7, "nguid": "00112233445566778899aabbccddeeff", "eui64": "0011223344556677",
    "uuid": "0b0a2f8e-50a4-4ab4-8e05-6c0c5ee8a8f1", "anagrpid": 0, "no_auto_visible": false,
    "hide_metadata": true
}"#;

const NAMESPACE_TOLD: &str = r#"{
    "nsid": 7, "bdev_name": "M1", "name": "M1", "uuid": "0b0a2f8e-50a4-4ab4-8e05-6c0c5ee8a8f1",
    "nguid": "00112233445566778899AABBCCDDEEFF", "eui64": "0011223344556677", "anagrpid": 7
}"#;

#[test]
fn namespaces_come_and_hosts_are_told() {
    let (service, address) = with_subsystem();
    for name in ["M1", "M2", "M3"] {
        disk(&service, name);
    }
    let mut host = Host::connect(address, NQN);
    let mut features = host
        .admin
        .admin(admin::SET_FEATURES, 0, feature::ASYNC_EVENTS.into(), 0);
    features.cdw11 = async_event::NAMESPACE_CHANGED.into();
    host.admin.ok(features);
    let event = host.admin.admin(admin::ASYNC_EVENT_REQUEST, 0, 0, 0);
    let bytes = host.admin.capsule(event, &[]);
    host.admin.send(&bytes);
    assert_eq!(add_ns(&service, NQN, parsed(NAMESPACE)), 7);
    assert_eq!(host.admin.receive().completion().cid, event.cid.get());
    let told = &subsystem(&service, NQN)["namespaces"];
    assert_eq!(
        (&told[0]["nsid"], &told[1]),
        (&json!(1), &parsed(NAMESPACE_TOLD))
    );
    // Without an identity of its own it has the bdev's.
    let bdev = service.call("bdev_get_bdevs", json!({"name": "M0"}));
    assert_eq!(told[0]["uuid"], bdev[0]["uuid"]);
    let digits = bdev[0]["uuid"].as_str().unwrap().replace('-', "");
    assert_eq!(told[0]["nguid"], digits.to_uppercase());
    assert_eq!(told[0].get("eui64"), None);
    assert_eq!(
        add_ns(&service, NQN, json!({"bdev_name": "M2", "nsid": 0})),
        2
    );
    // As hosts see it.
    let listed = host.admin.identify(2, 0);
    assert_eq!(
        listed[..16],
        [1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]
    );

    let good = json!({"nqn": NQN, "namespace": {"bdev_name": "M3"}});
    all_refused(&service, "nvmf_subsystem_add_ns", &good, BAD_NAMESPACES);
    // The refused ones hold nothing.
    service.call("bdev_malloc_delete", json!({"name": "M3"}));
}

#[test]
fn namespaces_go_and_let_their_bdevs_go() {
    let (service, address) = with_subsystem();
    let host = Host::connect(address, NQN);
    let mut io = host.io(1, 0);
    assert_eq!(io.read(0, 1).0, Status::SUCCESS);
    let first = json!({"nqn": NQN, "nsid": 1});
    let gone = service.call("nvmf_subsystem_remove_ns", first.clone());
    assert_eq!(gone, true);
    service.call("bdev_malloc_delete", json!({"name": "M0"}));
    assert_eq!(io.read(0, 1).0, Status::INVALID_NAMESPACE);
    let bad = r#"
        {} | -32602 | no namespace 1
        {"nqn": "nqn.none"} | -32602 | not found
        {"nsid": null} | -32602 |
        {"tgt_name": "x"} | -32603 | target
    "#;
    all_refused(&service, "nvmf_subsystem_remove_ns", &first, bad);
    // One bdev in two subsystems is used until the last has let it go.
    disk(&service, "M2");
    service.call("nvmf_create_subsystem", json!({"nqn": OTHER}));
    for nqn in [NQN, OTHER] {
        add_ns(&service, nqn, json!({"bdev_name": "M2"}));
    }
    service.call("nvmf_delete_subsystem", json!({"nqn": NQN}));
    let named = json!({"name": "M2"});
    is_refused(&service, "bdev_malloc_delete", &named, -16, OTHER);
    service.call("nvmf_subsystem_remove_ns", json!({"nqn": OTHER, "nsid": 1}));
    service.call("bdev_malloc_delete", named);
}

#[test]
fn a_bdev_with_an_owner_is_no_namespace() {
    let (service, _) = with_subsystem();
    disk(&service, "M1");
    let params = json!({"name": "P1", "base_bdev_name": "M1"});
    service.call("bdev_passthru_create", params);
    let params = json!({"nqn": NQN, "namespace": {"bdev_name": "M1"}});
    is_refused(&service, "nvmf_subsystem_add_ns", &params, -16, "busy");
    // And the other way round.
    let params = json!({"name": "P0", "base_bdev_name": "M0"});
    is_refused(
        &service,
        "bdev_passthru_create",
        &params,
        -16,
        "nvmf subsystem",
    );
}

const CONFIG: &str = r#"{
    "admin_cmd_passthru": {
        "identify_ctrlr": false, "identify_uuid_list": false, "get_log_page": false,
        "get_set_features": false, "sanitize": false, "security_send_recv": false, "fw_update": false,
        "nvme_mi": false, "vendor_specific": false
    },
    "poll_groups_mask": "0x1", "discovery_filter": "match_any", "discovery_filters": [],
    "dhchap_digests": ["sha256", "sha384", "sha512"],
    "dhchap_dhgroups": ["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"],
    "dup_host_policy": "allow"
}"#;

const BAD_CONFIGS: &str = r#"
{"admin_cmd_passthru": {"sanitize": true}} | -32602 | admin_cmd_passthru
{"admin_cmd_passthru": {"x": true}} | -32602 | x
{"poll_groups_mask": "0x2"} | -32602 | poll_groups_mask
{"poll_groups_mask": "x"} | -32602 | poll_groups_mask
{"discovery_filter": "transport"} | -32602 | discovery_filter
{"discovery_filters": ["address"]} | -32602 | discovery_filters
{"dhchap_digests": ["md5"]} | -32602 | unknown variant
{"dhchap_digests": []} | -32602 | nothing in it
{"dhchap_dhgroups": []} | -32602 | nothing in it
{"dup_host_policy": "restrict_per_listener"} | -32602 | dup_host_policy
"#;

#[test]
fn the_start_takes_what_is_so() {
    let args = ["--wait-for-rpc", "--cpumask", "0x1"];
    let service = Service::start_in(tempfile::tempdir().unwrap(), &args);
    let config = parsed(CONFIG);
    assert_eq!(service.call("nvmf_set_config", config.clone()), true);
    all_refused(&service, "nvmf_set_config", &config, BAD_CONFIGS);
    let zeros = json!({"crdt1": 0, "crdt2": 0, "crdt3": 0});
    assert_eq!(service.call("nvmf_set_crdt", zeros.clone()), true);
    let bad = r#"
        {"crdt1": 1} | -32602 | crdt1 is not supported
        {"crdt2": 1} | -32602 | crdt2 is not supported
        {"crdt3": 1} | -32602 | crdt3 is not supported
    "#;
    all_refused(&service, "nvmf_set_crdt", &zeros, bad);
    let one = json!({"max_subsystems": 1});
    let bad = r#"
        {"max_subsystems": 0} | -32602 | 0 is not
        {"max_subsystems": 1025} | -32602 | 1025 is not
        {"max_subsystems": null} | -32602 |
    "#;
    all_refused(&service, "nvmf_set_max_subsystems", &one, bad);
    assert_eq!(service.call("nvmf_set_max_subsystems", one.clone()), true);
    let nqn = json!({"nqn": NQN});
    is_refused(&service, "nvmf_create_subsystem", &nqn, -1, "");

    service.call("framework_start_init", Value::Null);
    service.call("nvmf_create_subsystem", nqn);
    let second = json!({"nqn": OTHER});
    is_refused(
        &service,
        "nvmf_create_subsystem",
        &second,
        -32603,
        "no more than 1",
    );
    let late = "before framework is initialized";
    is_refused(&service, "nvmf_set_config", &config, -1, late);
    is_refused(&service, "nvmf_set_crdt", &zeros, -1, late);
    is_refused(&service, "nvmf_set_max_subsystems", &one, -1, late);
}

#[test]
fn a_stop_ends_all_connections() {
    let (service, address) = with_subsystem();
    let mut host = Host::connect(address, NQN);
    let mut io = host.io(1, 0);
    assert_eq!(io.read(0, 1).0, Status::SUCCESS);
    service.stop();
    assert_eq!(io.try_receive(), None);
    assert_eq!(host.admin.try_receive(), None);
    std::net::TcpListener::bind(address).unwrap();
}

fn file(dir: &Path, name: &str, calls: &Value) {
    let config = json!({"subsystems": [{"subsystem": "nvmf", "config": calls}]});
    std::fs::write(dir.join(name), config.to_string()).unwrap();
}

fn config(service: &Service, args: &[&str]) -> Output {
    let mut command = pmcache();
    command.arg("config").args(args).current_dir(service.dir());
    command.output().unwrap()
}

#[test]
fn what_a_load_made_of_the_nvmf_target_is_unmade() {
    let service = Service::start();
    let before = service.call("nvmf_get_subsystems", Value::Null);
    let of = |params: &str, value: Value| json!({"nqn": NQN, params: value});
    disk(&service, "n1");
    let address = nvmf_calls::own_address();
    let calls: Vec<Value> = [
        ("nvmf_create_transport", json!({"trtype": "TCP"})),
        ("nvmf_create_subsystem", json!({"nqn": NQN})),
        (
            "nvmf_subsystem_add_host",
            of("host", json!("nqn.2026-11.test:h")),
        ),
        (
            "nvmf_subsystem_add_ns",
            of("namespace", json!({"bdev_name": "n1"})),
        ),
        (
            "nvmf_subsystem_add_listener",
            of("listen_address", address.clone()),
        ),
        ("nvmf_subsystem_remove_ns", of("nsid", json!(2))),
    ]
    .map(|(method, params)| json!({"method": method, "params": params}))
    .into();
    file(service.dir(), "bad.json", &json!(calls));
    let done = config(
        &service,
        &["--json", "load", "--data-dir", "data", "bad.json"],
    );
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    let ip = address["traddr"].as_str().unwrap();
    let unmade = json!([
        format!("nvmf listener at {ip} port 4420 of '{NQN}'"),
        format!("nvmf namespace with bdev 'n1' of '{NQN}'"),
        format!("nvmf host 'nqn.2026-11.test:h' of '{NQN}'"),
        format!("nvmf subsystem '{NQN}'"),
        "nvmf transport",
    ]);
    assert_eq!(said["error"]["unmade"], unmade, "{said}");
    assert_eq!(said["error"]["kept"], json!([]));
    assert_eq!(service.call("nvmf_get_subsystems", Value::Null), before);
    assert_eq!(service.call("nvmf_get_transports", Value::Null), json!([]));
    service.call("bdev_malloc_delete", json!({"name": "n1"}));
}

#[test]
fn how_many_subsystems_there_may_be_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let limit = json!({"method": "nvmf_set_max_subsystems", "params": {"max_subsystems": 7}});
    file(dir.path(), "c.json", &json!([limit]));
    let service = Service::start_in(dir, &["--config", "c.json"]);
    let save = |service: &Service| {
        let done = config(service, &["save", "--data-dir", "data", "saved.json"]);
        assert!(done.status.success(), "{done:?}");
        std::fs::read_to_string(service.dir().join("saved.json")).unwrap()
    };
    let saved = save(&service);
    let calls = &parsed(&saved)["subsystems"][5];
    assert_eq!(*calls, json!({"subsystem": "nvmf", "config": [limit]}));
    let service = Service::start_in(service.stop(), &["--config", "saved.json"]);
    assert_eq!(save(&service), saved);
}
