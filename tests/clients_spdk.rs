//! The service as SPDK's own clients see it: spdk-rpc, our plugin for it, and spdk-cli.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{EMPTY_CONFIG, Service, pmcache};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where SPDK's clients are. Without them a test is skipped; where `CI` is true nothing is.
fn clients() -> Option<PathBuf> {
    let made = Command::new(root().join("scripts/clients/spdk"))
        .arg("--venv")
        .output()
        .unwrap();
    if made.status.code() == Some(77) {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        let why = String::from_utf8_lossy(&made.stderr);
        assert!(!ci, "{why}, and CI is to run everything");
        eprintln!("skipped: {why}");
        return None;
    }
    assert!(made.status.success(), "{made:?}");
    Some(PathBuf::from(
        String::from_utf8(made.stdout).unwrap().trim(),
    ))
}

/// One spdk-rpc that runs command after command.
struct SpdkRpc {
    child: Child,
    commands: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
    socket: String,
}

impl SpdkRpc {
    fn start(clients: &Path, service: &Service) -> Self {
        let mut child = Command::new(clients.join("spdk-rpc"))
            .arg("--server")
            .env("PYTHONPATH", root().join("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(service.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            commands: child.stdin.take(),
            said: BufReader::new(child.stdout.take().unwrap()),
            child,
            socket: service.data("rpc.sock").to_str().unwrap().to_owned(),
        }
    }

    /// Runs a command line; what it printed, and whether it went well.
    fn ask(&mut self, line: &str) -> Result<String, String> {
        let to = if line.starts_with("-s") {
            String::new()
        } else {
            format!("-s {} ", self.socket)
        };
        writeln!(self.commands.as_mut().unwrap(), "{to}{line}").unwrap();
        let mut printed = String::new();
        loop {
            let from = printed.len();
            assert!(
                self.said.read_line(&mut printed).unwrap() > 0,
                "{line}: it ended: {printed}"
            );
            match printed[from..].trim_end() {
                "**STATUS=0" => return Ok(printed[..from].trim_end().to_owned()),
                "**STATUS=1" => return Err(printed[..from].trim_end().to_owned()),
                _ => {}
            }
        }
    }

    fn run(&mut self, line: &str) -> String {
        self.ask(line)
            .unwrap_or_else(|said| panic!("{line}: {said}"))
    }

    fn json(&mut self, line: &str) -> Value {
        let printed = self.run(line);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{line}: {error}: {printed}"))
    }

    fn own(&mut self, line: &str) -> String {
        self.run(&format!("--plugin pmcache_rpc {line}"))
    }

    fn is_refused(&mut self, line: &str, code: i64, text: &str) {
        let said = self.ask(line).expect_err(line);
        assert!(
            said.contains(&format!("\"code\": {code}")),
            "{line}: {said}"
        );
        assert!(said.contains(text), "{line}: {said}");
    }
}

impl Drop for SpdkRpc {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.child.wait();
    }
}

/// The service, and a client of it.
fn started(clients: &Path) -> (Service, SpdkRpc) {
    let service = Service::start();
    let rpc = SpdkRpc::start(clients, &service);
    (service, rpc)
}

#[test]
fn spdk_rpc_asks_about_the_process() {
    let Some(clients) = clients() else { return };
    let (service, mut rpc) = started(&clients);
    let version = rpc.json("spdk_get_version");
    assert!(version["version"].as_str().unwrap().starts_with("pmcache"));
    let methods = rpc.json("rpc_get_methods --current");
    assert!(
        methods
            .as_array()
            .unwrap()
            .contains(&json!("bdev_malloc_create"))
    );
    assert_eq!(
        rpc.json("framework_get_reactors")["reactors"][0]["lcore"],
        0
    );
    assert_eq!(
        rpc.json("framework_get_scheduler")["scheduler_name"],
        "static"
    );
    rpc.run("framework_set_scheduler static");
    rpc.is_refused("framework_set_scheduler dynamic", -22, "Invalid argument");
    assert_eq!(rpc.json("framework_get_governor"), json!({}));
    assert_eq!(
        rpc.json("framework_monitor_context_switch"),
        json!({"enabled": false})
    );
    assert_eq!(
        rpc.json("thread_get_stats")["threads"][0]["name"],
        "reactor_0"
    );
    assert_eq!(rpc.json("thread_get_pollers")["threads"][0]["id"], 1);
    rpc.run("thread_set_cpumask -i 1 -m 0x1");
    rpc.is_refused("thread_set_cpumask -i 1 -m 0x2", -95, "data reactor");
    assert_eq!(rpc.json("sock_impl_get_options -i posix")["tls_version"], 0);
    assert_eq!(
        rpc.json("sock_get_default_impl"),
        json!({"impl_name": "posix"})
    );
    assert_eq!(rpc.json("iobuf_get_stats"), json!([]));
    assert_eq!(rpc.json("trace_get_info")["tpoint_group_mask"], "0x0");
    assert_eq!(rpc.json("nvmf_get_transports"), json!([]));
    assert_eq!(rpc.json("vhost_get_controllers"), json!([]));
    let key = service.dir().join("key");
    std::fs::write(&key, "secret").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, mode).unwrap();
    rpc.run(&format!("keyring_file_add_key k0 {}", key.display()));
    assert_eq!(rpc.json("keyring_get_keys")[0]["name"], "k0");
    rpc.run("keyring_file_remove_key k0");
}

#[test]
fn spdk_rpc_changes_the_log_and_reads_what_has_happened() {
    let Some(clients) = clients() else { return };
    let (_service, mut rpc) = started(&clients);
    rpc.run("log_set_flag rpc");
    assert_eq!(rpc.json("log_get_flags")["rpc"], true);
    rpc.run("log_clear_flag rpc");
    rpc.is_refused("log_set_flag nvme", -32602, "invalid log flag");
    rpc.run("log_set_level WARNING");
    assert_eq!(rpc.run("log_get_level").trim_matches('"'), "WARNING");
    rpc.run("log_set_print_level ERROR");
    assert_eq!(rpc.run("log_get_print_level").trim_matches('"'), "ERROR");
    rpc.run("log_enable_timestamps --no-timestamps");
    assert!(
        rpc.json("notify_get_types")
            .as_array()
            .unwrap()
            .contains(&json!("bdev_register"))
    );
    rpc.run("bdev_null_create n0 8 512");
    let happened = rpc.json("notify_get_notifications -i 0 -n 1");
    assert_eq!(
        happened,
        json!([{"type": "bdev_register", "ctx": "n0", "id": 0}])
    );
}

#[test]
fn spdk_rpc_makes_and_deletes_bdevs_of_each_kind() {
    let Some(clients) = clients() else { return };
    let (service, mut rpc) = started(&clients);
    for name in ["aio.img", "uring.img"] {
        let file = std::fs::File::create(service.dir().join(name)).unwrap();
        file.set_len(8 << 20).unwrap();
    }
    let made = [
        ("bdev_malloc_create -b m0 8 512", "m0"),
        ("bdev_malloc_create 8 4096", "Malloc0"),
        ("bdev_null_create n0 8 512", "n0"),
        ("bdev_aio_create aio.img a0 512", "a0"),
        ("bdev_uring_create uring.img u0 512", "u0"),
        ("bdev_delay_create -b m0 -d dl0 -r 1 -t 1 -w 1 -n 1", "dl0"),
        ("bdev_passthru_create -b a0 -p p0", "p0"),
    ];
    for (line, name) in made {
        assert_eq!(rpc.run(line), name, "{line}");
    }
    rpc.run("bdev_error_create n0");
    rpc.run("bdev_error_inject_error EE_n0 read failure -n 1");
    rpc.run("bdev_delay_update_latency dl0 avg_read 2");
    let names: BTreeSet<String> = rpc
        .json("bdev_get_bdevs")
        .as_array()
        .unwrap()
        .iter()
        .map(|bdev| bdev["name"].as_str().unwrap().to_owned())
        .collect();
    let expected = ["EE_n0", "Malloc0", "a0", "dl0", "m0", "n0", "p0", "u0"];
    assert!(names.iter().eq(expected), "{names:?}");
    assert_eq!(rpc.json("bdev_get_bdevs -b m0")[0]["claimed"], true);
    rpc.run("bdev_examine -b m0");
    rpc.run("bdev_wait_for_examine");

    rpc.is_refused("bdev_malloc_delete m0", -16, "Device or resource busy");
    rpc.is_refused("bdev_malloc_create -b m0 8 512", -17, "File exists");
    rpc.is_refused("bdev_get_bdevs -b none", -19, "No such device");
    for line in [
        "bdev_passthru_delete p0",
        "bdev_delay_delete dl0",
        "bdev_error_delete EE_n0",
        "bdev_malloc_delete m0",
        "bdev_malloc_delete Malloc0",
        "bdev_null_delete n0",
        "bdev_aio_delete a0",
        "bdev_uring_delete u0",
    ] {
        rpc.run(line);
    }
    assert_eq!(rpc.json("bdev_get_bdevs"), json!([]));
}

#[test]
fn spdk_rpc_measures_and_limits_bdevs() {
    let Some(clients) = clients() else { return };
    let (_service, mut rpc) = started(&clients);
    rpc.run("bdev_malloc_create -b m0 8 512");
    rpc.run("bdev_null_create n0 8 512");
    let stats = rpc.json("bdev_get_iostat");
    assert_eq!(stats["bdevs"].as_array().unwrap().len(), 2);
    assert_eq!(
        rpc.json("bdev_get_iostat --names m0")["bdevs"][0]["num_read_ops"],
        0
    );
    let channels = rpc.json("bdev_get_iostat --names m0 -c --reset-mode all");
    assert_eq!(channels["channels"], json!([]));
    rpc.is_refused("bdev_get_iostat --names m0,n0 -c", -22, "");
    rpc.is_refused("bdev_get_iostat --names none", -19, "No such device");
    rpc.run("bdev_reset_iostat -b m0 -m maxmin");
    rpc.run("bdev_set_qos_limit m0 --rw-ios-per-sec 1500");
    let limits = rpc.json("bdev_get_bdevs -b m0")[0]["assigned_rate_limits"].clone();
    assert_eq!(limits["rw_ios_per_sec"], 2000);
    rpc.is_refused("bdev_set_qos_limit m0", -22, "No rate limits specified");
    rpc.is_refused("bdev_get_histogram m0", -32603, "Bad address");
    rpc.run("bdev_enable_histogram m0 --histogram");
    let histogram = rpc.run("bdev_get_histogram m0");
    assert!(histogram.contains("tsc_rate"), "{histogram}");
    rpc.run("bdev_enable_histogram m0 --no-histogram");
    rpc.run("bdev_set_qd_sampling_period m0 1000");
    let channels = rpc.json("thread_get_io_channels");
    assert_eq!(channels["threads"][0]["name"], "reactor_0");
}

const NQN: &str = "nqn.2026-11.test:one";
const HOST: &str = "nqn.2026-11.test:host";

#[test]
fn spdk_rpc_runs_the_nvmf_target() {
    let Some(clients) = clients() else { return };
    let (_service, mut rpc) = started(&clients);
    rpc.run("bdev_malloc_create -b m0 8 512");
    rpc.run("nvmf_create_transport -t TCP -q 64");
    assert_eq!(rpc.json("nvmf_get_transports")[0]["max_queue_depth"], 64);
    let text = "Transport type 'TCP' already exists";
    rpc.is_refused("nvmf_create_transport -t TCP", -32603, text);
    rpc.run(&format!(
        "nvmf_create_subsystem {NQN} -a -s S1 -d Model -m 8"
    ));
    rpc.run(&format!("nvmf_subsystem_add_ns {NQN} m0 -n 3"));
    rpc.is_refused(
        &format!("nvmf_subsystem_add_ns {NQN} none"),
        -19,
        "No such device",
    );
    // The client knows the discovery subsystem by a short name.
    for nqn in [NQN, "discovery"] {
        rpc.run(&format!(
            "nvmf_subsystem_add_listener {nqn} -t tcp -a 127.0.0.1 -s 0"
        ));
    }
    rpc.run(&format!("nvmf_subsystem_add_host {NQN} {HOST}"));
    rpc.run(&format!(
        "nvmf_subsystem_allow_any_host {NQN} --no-allow-any-host"
    ));
    let all = rpc.json("nvmf_get_subsystems");
    assert_eq!(all[0]["subtype"], "Discovery");
    let told = &all[1];
    assert_eq!(
        (&told["serial_number"], &told["max_namespaces"]),
        (&json!("S1"), &json!(8))
    );
    assert_eq!(
        (&told["allow_any_host"], &told["hosts"][0]["nqn"]),
        (&json!(false), &json!(HOST))
    );
    let namespace = &told["namespaces"][0];
    assert_eq!(
        (&namespace["nsid"], &namespace["bdev_name"]),
        (&json!(3), &json!("m0"))
    );
    let listeners = rpc.json(&format!("nvmf_subsystem_get_listeners {NQN}"));
    let port = listeners[0]["address"]["trsvcid"].as_str().unwrap();
    for what in ["controllers", "qpairs"] {
        let found = rpc.json(&format!("nvmf_subsystem_get_{what} {NQN}"));
        assert_eq!(found, json!([]), "{what}");
    }
    assert_eq!(
        rpc.json("nvmf_get_stats")["poll_groups"][0]["name"],
        "reactor_0"
    );
    assert_eq!(rpc.json("nvmf_discovery_get_referrals"), json!([]));
    let key = format!("nvmf_subsystem_add_host {NQN} {HOST}2 --dhchap-key k");
    rpc.is_refused(&key, -126, "not in the keyring");

    rpc.run(&format!("nvmf_subsystem_remove_host {NQN} {HOST}"));
    rpc.run(&format!(
        "nvmf_subsystem_remove_listener {NQN} -t tcp -a 127.0.0.1 -s {port}"
    ));
    rpc.run(&format!("nvmf_subsystem_remove_ns {NQN} 3"));
    rpc.run(&format!("nvmf_delete_subsystem {NQN}"));
    let gone = format!("nvmf_get_subsystems {NQN}");
    rpc.is_refused(&gone, -32602, "not found");
    rpc.run("bdev_malloc_delete m0");
}

#[test]
fn spdk_rpc_comes_over_tcp_too() {
    let Some(clients) = clients() else { return };
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    let args = ["--config", EMPTY_CONFIG, "--rpc-tcp", &address.to_string()];
    let service = Service::start_in(tempfile::tempdir().unwrap(), &args);
    let mut rpc = SpdkRpc::start(&clients, &service);
    let line = format!(
        "-s 127.0.0.1 -p {} bdev_null_create n0 8 512",
        address.port()
    );
    assert_eq!(rpc.run(&line), "n0");
}

#[test]
fn spdk_cli_prints_its_tree() {
    let Some(clients) = clients() else { return };
    let service = Service::start();
    for name in ["Malloc0", "Malloc1"] {
        let params = json!({"name": name, "block_size": 512, "num_blocks": 8});
        service.call("bdev_malloc_create", params);
    }
    service.call("nvmf_create_transport", json!({"trtype": "TCP"}));
    service.call("nvmf_create_subsystem", json!({"nqn": NQN}));
    for (method, params) in [
        (
            "ns",
            json!({"nqn": NQN, "namespace": {"bdev_name": "Malloc1"}}),
        ),
        ("host", json!({"nqn": NQN, "host": HOST})),
        (
            "listener",
            json!({
                "nqn": NQN,
                "listen_address": {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "0"},
            }),
        ),
    ] {
        service.call(&format!("nvmf_subsystem_add_{method}"), params);
    }
    let printed = Command::new(clients.join("spdk-cli"))
        .arg("-s")
        .arg(service.data("rpc.sock"))
        .arg("ls")
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&printed.stdout);
    assert!(
        printed.status.success(),
        "{tree}{}",
        String::from_utf8_lossy(&printed.stderr)
    );
    let told = service.call("nvmf_subsystem_get_listeners", json!({"nqn": NQN}));
    let port = told[0]["address"]["trsvcid"].as_str().unwrap();
    let listener = format!("127.0.0.1:{port}");
    let nodes = [
        "bdevs",
        "malloc",
        "Malloc0",
        "Malloc1",
        "null",
        "transport",
        "TCP",
    ];
    for node in nodes.into_iter().chain([NQN, HOST, &*listener]) {
        assert!(
            tree.contains(&format!("o- {node} ")),
            "no {node} in\n{tree}"
        );
    }
    assert!(tree.contains("[Malloc1, 1]"), "no namespace in\n{tree}");
}

/// The methods that the plugin knows, and their parameters.
fn plugin_table() -> Value {
    let text = std::fs::read_to_string(root().join("python/pmcache_rpc.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_plugin_is_in_step_with_the_declarations() {
    let Ok(mut made) = Command::new("python3")
        .arg(root().join("python/pmcache_rpc.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    else {
        eprintln!("skipped: no python3");
        return;
    };
    let schema = common::run(&["rpc", "--schema"]).stdout;
    let mut stdin = made.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&schema).unwrap());
    let made = made.wait_with_output().unwrap();
    writer.join().unwrap();
    let file = std::fs::read_to_string(root().join("python/pmcache_rpc.json")).unwrap();
    let command = "pmcache rpc --schema | python3 python/pmcache_rpc.py > python/pmcache_rpc.json";
    assert_eq!(file, String::from_utf8(made.stdout).unwrap(), "{command}");
}

#[test]
fn what_spdk_rpc_lacks_the_plugin_has() {
    let Some(clients) = clients() else { return };
    let program = "from spdk.spdk_rpc import create_parser\n\
                   print(*create_parser()[1].choices)";
    let known = Command::new(clients.join("python3"))
        .args(["-c", program])
        .output()
        .unwrap();
    let known = String::from_utf8(known.stdout).unwrap();
    let known: BTreeSet<&str> = known.split_whitespace().collect();
    assert!(known.contains("bdev_malloc_create"));
    let table = plugin_table();
    let ours = table["methods"].as_array().unwrap().iter();
    let ours: BTreeSet<&str> = ours
        .map(|method| method["name"].as_str().unwrap())
        .collect();
    let printed = pmcache().args(["rpc", "--schema"]).output().unwrap();
    let declared: Value = serde_json::from_slice(&printed.stdout).unwrap();
    for method in declared["methods"].as_array().unwrap() {
        let name = method["name"].as_str().unwrap();
        // A command or two of SPDK's have no subcommand: what a client never asks by hand.
        assert!(
            known.contains(name) != ours.contains(name),
            "{name}: spdk-rpc {}, plugin {}",
            known.contains(name),
            ours.contains(name)
        );
    }
}

#[test]
fn the_plugin_runs_a_pool_a_cache_and_an_export() {
    let Some(clients) = clients() else { return };
    let (service, mut rpc) = started(&clients);
    let help = Command::new(clients.join("spdk-rpc"))
        .args(["--plugin", "pmcache_rpc", "bdev_pmcache_create", "--help"])
        .env("PYTHONPATH", root().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.contains("--writeback-order {") && help.contains("backing_bdev"),
        "{help}"
    );

    rpc.run("bdev_malloc_create -b d0 32 512");
    assert_eq!(rpc.own("bdev_pmem_create pm0 anon: --size 67108864"), "pm0");
    let pool: Value =
        serde_json::from_str(&rpc.own("pool_create p0 pm0 --segment-size 1048576")).unwrap();
    assert_eq!(pool["segments"].as_u64().map(|n| n > 32), Some(true));
    let cache = "bdev_pmcache_create c0 p0 d0 33554432 --gc-percent 60 --no-verify-reads";
    assert_eq!(rpc.own(cache), "c0");
    assert_eq!(
        rpc.own("bdev_pmcache_set_options c0 --durability flush"),
        "true"
    );
    let shown: Value = serde_json::from_str(&rpc.own("bdev_pmcache_get --name c0")).unwrap();
    assert_eq!(shown[0]["gc_percent"], 60);
    assert_eq!(rpc.own("bdev_pmcache_flush_start c0"), "true");
    rpc.own("bdev_pmcache_flush_status c0");
    rpc.own("bdev_pmcache_get_stats c0");
    let address = format!("unix:{}", service.data("nbd.sock").display());
    assert_eq!(rpc.own(&format!("nbd_server_start {address}")), "true");
    assert_eq!(rpc.own("nbd_export_add c0 --name e0 --read-only"), "e0");
    let shown: Value = serde_json::from_str(&rpc.own("nbd_server_get")).unwrap();
    assert_eq!(shown[0]["exports"], json!(["e0"]));
    rpc.own("nbd_export_remove e0 --mode hard");
    rpc.own(&format!("nbd_server_stop {address}"));
    rpc.own("reactor_set_idle adaptive --idle-us 20");
    assert!(rpc.own("service_get_health").contains("\"ready\": true"));
    rpc.is_refused(
        "--plugin pmcache_rpc bdev_pmcache_unload none",
        -19,
        "No such device",
    );
    rpc.own("bdev_pmcache_unload c0");
    rpc.own("bdev_pmcache_load p0 --name c0");
    rpc.own("bdev_pmcache_unload c0");
    rpc.own("pool_unload p0");
    rpc.own("bdev_pmem_delete pm0");
}
