//! Methods about the process as SPDK's tools know it: threads, scheduler, log, notifications, keys, and
//! what is there in name only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{EMPTY_CONFIG, Service, wait_until};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn null_bdev(service: &Service, name: &str, blocks: u64) {
    let params = json!({"name": name, "block_size": 512, "num_blocks": blocks});
    service.call("bdev_null_create", params);
}

fn sorted_keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
fn threads_are_told_with_the_pollers_that_run_on_them() {
    let service = Service::start();
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    let stats = service.call("thread_get_stats", Value::Null);
    assert_eq!(stats["tick_rate"], 1_000_000_000);
    let threads = stats["threads"].as_array().unwrap();
    let told: Vec<(&str, u64)> = threads
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["id"].as_u64().unwrap()))
        .collect();
    // There are as many of the latter as the cores of this machine make sense of.
    assert_eq!(told[..2], [("reactor_0", 1), ("maintenance_0", 2)]);
    assert_eq!(threads[0]["cpumask"], "1");
    let expected = [
        "active_pollers_count",
        "busy",
        "cpumask",
        "id",
        "idle",
        "name",
        "paused_pollers_count",
        "timed_pollers_count",
    ];
    assert_eq!(sorted_keys(&threads[0]), expected);

    // The acceptor runs there, and its count goes on.
    let acceptor = || {
        let found = service.call("thread_get_pollers", Value::Null);
        let first = &found["threads"][0];
        assert_eq!(
            (&first["name"], &first["id"]),
            (&json!("reactor_0"), &json!(1))
        );
        assert_eq!(first["paused_pollers"], json!([]));
        let active = first["active_pollers"].as_array().unwrap().clone();
        active.into_iter().next().expect("an acceptor")
    };
    let before = acceptor();
    let expected = ["busy_count", "id", "name", "run_count", "state"];
    assert_eq!(sorted_keys(&before), expected);
    assert_eq!(before["state"], "waiting");
    let runs = before["run_count"].as_u64().unwrap();
    wait_until("another run", || {
        acceptor()["run_count"].as_u64().unwrap() > runs
    });
    let busy = before["busy_count"].as_u64().unwrap();
    drop(std::os::unix::net::UnixStream::connect(service.data("nbd.sock")).unwrap());
    wait_until("a busy run", || {
        acceptor()["busy_count"].as_u64().unwrap() > busy
    });
    for method in ["thread_get_stats", "thread_get_pollers"] {
        let expected = (-32602, format!("'{method}' requires no arguments"));
        assert_eq!(service.refused(method, json!({})), expected);
    }
}

#[test]
fn open_channels_are_told_with_the_thread_that_has_them() {
    let service = Service::start();
    null_bdev(&service, "n0", 8);
    let params = json!({"name": "d0", "block_size": 512, "num_blocks": 32768});
    service.call("bdev_malloc_create", params);
    let channels = || {
        let found = service.call("thread_get_io_channels", Value::Null);
        assert_eq!(found["tick_rate"], 1_000_000_000);
        assert_eq!(found["threads"][0]["name"], "reactor_0");
        found["threads"][0]["io_channels"].clone()
    };
    assert_eq!(channels(), json!([]));
    let pool = json!({"name": "m0", "path": "anon:", "size": 64 << 20});
    service.call("bdev_pmem_create", pool);
    let pool = json!({"name": "p0", "bdev_name": "m0", "segment_size": 1 << 20});
    service.call("pool_create", pool);
    let cache = json!({"name": "c0", "pool": "p0", "backing_bdev": "d0", "size": 32 << 20});
    service.call("bdev_pmcache_create", cache);
    let expected = json!([{"name": "d0", "ref": 1}]);
    assert_eq!(channels()[0]["name"], expected[0]["name"]);
    service.call("bdev_pmcache_unload", json!({"name": "c0"}));
    wait_until("they are closed", || channels() == json!([]));
}

#[test]
fn a_maintenance_thread_may_be_moved_and_a_data_reactor_may_not() {
    let service = Service::start();
    let set = |id: u64, mask: &str| json!({"id": id, "cpumask": mask});
    assert_eq!(service.call("thread_set_cpumask", set(1, "0x1")), true);
    let (code, message) = service.refused("thread_set_cpumask", set(1, "0x2"));
    assert_eq!(code, -95);
    assert!(
        message.contains("reactor_0 is the data reactor of core 0"),
        "{message}"
    );
    assert_eq!(service.call("thread_set_cpumask", set(2, "[0]")), true);
    let stats = service.call("thread_get_stats", Value::Null);
    assert_eq!(stats["threads"][1]["cpumask"], "1");
    for (params, code) in [
        (set(0, "1"), -3),
        (set(99, "1"), -3),
        (set(2, ""), -22),
        (set(2, "0x"), -22),
        (set(2, "0xg"), -22),
        // A core that no machine here has.
        (set(2, "[1023]"), -22),
        (set(2, "[1024]"), -22),
    ] {
        let refused = service.refused("thread_set_cpumask", params.clone());
        assert_eq!(refused.0, code, "{params}: {}", refused.1);
    }
}

#[test]
fn the_scheduler_is_static() {
    let service = Service::start();
    let found = service.call("framework_get_scheduler", Value::Null);
    let expected = json!({
        "scheduler_name": "static",
        "scheduler_period": 0,
        "isolated_core_mask": "0x0",
        "scheduling_core": 0,
    });
    assert_eq!(found, expected);
    let named = json!({"name": "static", "period": 0});
    assert_eq!(service.call("framework_set_scheduler", named), true);
    for (params, code) in [
        (json!({"name": "dynamic"}), -22),
        (json!({"name": "static", "period": 1}), -32602),
        (json!({"name": "static", "load_limit": 20}), -32602),
        (json!({"name": "static", "mappings": ""}), -32602),
        (json!({}), -32602),
    ] {
        let refused = service.refused("framework_set_scheduler", params.clone());
        assert_eq!(refused.0, code, "{params}: {}", refused.1);
    }
    assert_eq!(
        service.call("framework_get_governor", Value::Null),
        json!({})
    );
    assert_eq!(
        service.call("framework_get_pci_devices", Value::Null),
        json!([])
    );
    let watched = service.call("framework_monitor_context_switch", Value::Null);
    assert_eq!(watched, json!({"enabled": false}));
    let refused = service.refused("framework_monitor_context_switch", json!({"enabled": true}));
    assert_eq!(refused.0, -32602);
    assert!(
        refused.1.contains("enabled is not supported"),
        "{}",
        refused.1
    );
}

fn notices(service: &Service, params: Value) -> Vec<(String, String, u64)> {
    let found = service.call("notify_get_notifications", params);
    let found = found.as_array().unwrap().iter().map(|notice| {
        let text = |key: &str| notice[key].as_str().unwrap().to_owned();
        (text("type"), text("ctx"), notice["id"].as_u64().unwrap())
    });
    found.collect()
}

#[test]
fn what_happens_is_told_in_order() {
    let service = Service::start();
    let types = service.call("notify_get_types", Value::Null);
    assert_eq!(types[0], "bdev_register");
    assert_eq!(types.as_array().unwrap().len(), 9);
    assert_eq!(notices(&service, Value::Null), []);

    let told = |kind: &str, ctx: &str, id| (kind.to_owned(), ctx.to_owned(), id);
    let path = service.dir().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let params = json!({"name": "u0", "filename": path, "block_size": 512});
    service.call("bdev_uring_create", params);
    null_bdev(&service, "n0", 8);
    service.call("bdev_null_delete", json!({"name": "n0"}));
    assert_eq!(
        service.refused("bdev_null_delete", json!({"name": "u0"})).0,
        -19
    );
    let all = [
        told("bdev_register", "u0", 0),
        told("bdev_register", "n0", 1),
        told("bdev_unregister", "n0", 2),
    ];
    assert_eq!(notices(&service, Value::Null), all);
    assert_eq!(notices(&service, json!({"id": 1, "max": 1})), all[1..2]);
    assert_eq!(notices(&service, json!({"id": 3})), []);
    assert_eq!(
        service
            .refused("notify_get_notifications", json!({"id": -1}))
            .0,
        -32602
    );
}

#[test]
fn a_cache_is_told_of_when_its_state_changes() {
    let service = Service::start();
    let pool = json!({"name": "m0", "path": "anon:", "size": 64 << 20});
    service.call("bdev_pmem_create", pool);
    let pool = json!({"name": "p0", "bdev_name": "m0", "segment_size": 1 << 20});
    service.call("pool_create", pool);
    let disk = json!({"name": "d0", "block_size": 512, "num_blocks": 32768});
    service.call("bdev_malloc_create", disk);
    let cache = json!({"name": "c0", "pool": "p0", "backing_bdev": "d0", "size": 32 << 20});
    service.call("bdev_pmcache_create", cache);
    let found = notices(&service, Value::Null);
    let state = found.iter().find(|(kind, _, _)| kind == "pmcache_state");
    assert_eq!(state.unwrap().1, "c0 running", "{found:?}");
    // It is told once, however often one asks.
    assert_eq!(notices(&service, Value::Null), found);
    service.call("bdev_pmcache_unload", json!({"name": "c0"}));
    let later = notices(&service, json!({"id": found.last().unwrap().2 + 1}));
    let later: Vec<(&str, &str)> = later.iter().map(|(a, b, _)| (&**a, &**b)).collect();
    // Whether somebody looked while it was stopping is chance.
    assert_eq!(later.last(), Some(&("bdev_unregister", "c0")));
    assert!(!later.iter().any(|(kind, _)| *kind == "bdev_register"));
}

/// The lines of the log that hold `word`.
fn lines(log: &Path, word: &str) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    let found = text.lines().filter(|line| line.contains(word));
    found.map(str::to_owned).collect()
}

#[test]
fn level_flags_and_timestamps_of_the_log_change_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let file = File::create(&log).unwrap();
    let service = Service::start_with(dir, &["--config", EMPTY_CONFIG], file.into());
    let refuse = |method: &str| {
        service.refused(method, Value::Null);
    };
    assert_eq!(service.call("log_get_level", Value::Null), "NOTICE");
    assert_eq!(service.call("log_get_print_level", Value::Null), "NOTICE");
    refuse("not_logged_1");
    assert_eq!(service.call("log_set_flag", json!({"flag": "rpc"})), true);
    refuse("by_flag_1");
    assert_eq!(service.call("log_get_flags", Value::Null)["rpc"], true);
    assert_eq!(service.call("log_get_flags", Value::Null)["nbd"], false);
    service.call("log_clear_flag", json!({"flag": "rpc"}));
    service.call("log_set_flag", json!({"flag": "nbd"}));
    refuse("not_logged_2");
    service.call("log_clear_flag", json!({"flag": "all"}));
    service.call("log_set_print_level", json!({"level": "DEBUG"}));
    assert_eq!(service.call("log_get_level", Value::Null), "DEBUG");
    refuse("by_level_1");
    service.call("log_enable_timestamps", json!({"enabled": false}));
    refuse("without_time_1");
    service.call("log_enable_timestamps", json!({"enabled": true}));
    refuse("with_time_1");
    service.call("log_set_level", json!({"level": "ERROR"}));
    refuse("not_logged_3");
    for (method, params, text) in [
        ("log_set_flag", json!({"flag": "nvme"}), "invalid log flag"),
        ("log_clear_flag", json!({"flag": ""}), "invalid log flag"),
        (
            "log_set_level",
            json!({"level": "notice"}),
            "unknown variant",
        ),
        ("log_set_print_level", json!({}), "missing field"),
    ] {
        let refused = service.refused(method, params);
        assert_eq!(refused.0, -32602);
        assert!(refused.1.contains(text), "{}", refused.1);
    }
    assert!(lines(&log, "not_logged").is_empty());
    assert_eq!(lines(&log, "by_flag_1").len(), 1);
    assert_eq!(lines(&log, "by_level_1").len(), 1);
    let begins_with_the_year = |word: &str| lines(&log, word)[0].starts_with("20");
    assert!(begins_with_the_year("by_level_1") && begins_with_the_year("with_time_1"));
    assert!(!begins_with_the_year("without_time_1"));
    assert!(
        lines(&log, "without_time_1")[0]
            .trim_start()
            .starts_with("DEBUG")
    );
}

#[test]
fn each_flag_lets_its_part_say_more() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let file = File::create(&log).unwrap();
    let service = Service::start_with(dir, &["--config", EMPTY_CONFIG], file.into());
    service.call("log_set_flag", json!({"flag": "nbd"}));
    service.call("log_set_flag", json!({"flag": "cache"}));
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    drop(std::os::unix::net::UnixStream::connect(service.data("nbd.sock")).unwrap());
    wait_until("a line about the connection", || {
        !lines(&log, "DEBUG pmcache::target::nbd").is_empty()
    });
    let pool = json!({"name": "m0", "path": "anon:", "size": 64 << 20});
    service.call("bdev_pmem_create", pool);
    let pool = json!({"name": "p0", "bdev_name": "m0", "segment_size": 1 << 20});
    service.call("pool_create", pool);
    null_bdev(&service, "d0", 32768);
    let cache = json!({"name": "c0", "pool": "p0", "backing_bdev": "d0", "size": 32 << 20});
    service.call("bdev_pmcache_create", cache);
    assert_eq!(lines(&log, "DEBUG pmcache::cache").len(), 1);
    assert_eq!(lines(&log, "DEBUG rpc").len(), 0);
}

#[test]
fn a_key_is_a_private_file() {
    let service = Service::start();
    let path = service.dir().join("key");
    std::fs::write(&path, "secret").unwrap();
    let mode = |bits| std::fs::set_permissions(&path, PermissionsExt::from_mode(bits)).unwrap();
    let add = |name: &str, path: &Path| json!({"name": name, "path": path});
    for bits in [0o640, 0o604, 0o700 | 0o001] {
        mode(bits);
        let (code, message) = service.refused("keyring_file_add_key", add("k0", &path));
        assert_eq!(code, -1, "{message}");
        assert!(message.starts_with("Operation not permitted"), "{message}");
    }
    mode(0o600);
    for (params, code) in [
        (add("k0", Path::new("key")), -1),
        (add("k0", &path.with_extension("none")), -2),
        (add("k0", service.dir()), -22),
        (add("", &path), -22),
        (json!({"name": "k0"}), -32602),
    ] {
        let refused = service.refused("keyring_file_add_key", params.clone());
        assert_eq!(refused.0, code, "{params}: {}", refused.1);
    }
    assert_eq!(service.call("keyring_get_keys", Value::Null), json!([]));
    assert_eq!(service.call("keyring_file_add_key", add("k0", &path)), true);
    assert_eq!(
        service.refused("keyring_file_add_key", add("k0", &path)).0,
        -17
    );
    let expected = json!([{
        "name": "k0",
        "module": "keyring_file",
        "removed": false,
        "probed": false,
        "refcnt": 1,
        "path": path,
    }]);
    assert_eq!(service.call("keyring_get_keys", Value::Null), expected);
    assert_eq!(
        service.call("keyring_file_remove_key", json!({"name": "k0"})),
        true
    );
    assert_eq!(
        service
            .refused("keyring_file_remove_key", json!({"name": "k0"}))
            .0,
        -2
    );
}

#[test]
fn what_is_there_in_name_only_says_so() {
    let service = Service::start();
    for method in [
        "nvmf_get_transports",
        "nvmf_discovery_get_referrals",
        "vhost_get_controllers",
        "iobuf_get_stats",
    ] {
        assert_eq!(service.call(method, Value::Null), json!([]), "{method}");
    }

    let found = service.call("sock_get_default_impl", Value::Null);
    assert_eq!(found, json!({"impl_name": "posix"}));
    let found = service.call("sock_impl_get_options", json!({"impl_name": "posix"}));
    assert_eq!(found["recv_buf_size"], 0);
    assert_eq!(found.as_object().unwrap().len(), 10);
    assert_eq!(
        service
            .refused("sock_impl_get_options", json!({"impl_name": "uring"}))
            .0,
        -32602
    );

    assert_eq!(service.call("bdev_wait_for_examine", Value::Null), true);
    assert_eq!(service.call("bdev_examine", json!({"name": "later"})), true);
    assert_eq!(
        service.refused("bdev_examine", json!({"name": "a b"})).0,
        -22
    );
}

#[test]
fn there_are_no_tracepoints() {
    let service = Service::start();
    let mask = service.call("trace_get_tpoint_group_mask", Value::Null);
    assert_eq!(mask, json!({"tpoint_group_mask": "0x0"}));
    assert_eq!(
        service.call("trace_get_info", Value::Null)["tpoint_group_mask"],
        "0x0"
    );
    assert_eq!(service.call("trace_clear", Value::Null), true);
    for method in ["trace_enable_tpoint_group", "trace_disable_tpoint_group"] {
        assert_eq!(service.refused(method, json!({"name": "bdev"})).0, -32602);
    }
    for method in ["trace_set_tpoint_mask", "trace_clear_tpoint_mask"] {
        let params = json!({"name": "bdev", "tpoint_mask": 1});
        assert_eq!(service.refused(method, params).0, -32602);
    }
}

#[test]
fn what_goes_before_the_start_is_refused_after_it() {
    let service = Service::start();
    for method in [
        "bdev_set_options",
        "iobuf_set_options",
        "scheduler_set_options",
        "sock_set_default_impl",
        "sock_impl_set_options",
        "keyring_linux_set_options",
    ] {
        let (code, message) = service.refused(method, json!({}));
        assert_eq!(code, -1, "{method}: {message}");
        assert!(
            message.contains("before framework is initialized"),
            "{message}"
        );
    }
}
