//! The methods about pools and caches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{Service, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A service with a pmem bdev of 32 MiB on a file, and two disks.
fn service() -> Service {
    with_media(Service::start())
}

fn with_media(service: Service) -> Service {
    for name in ["d0.img", "d1.img"] {
        let path = service.dir().join(name);
        let mut options = std::fs::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        file.unwrap().set_len(64 * MIB).unwrap();
    }
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": "pm0.pmem", "size": 32 * MIB, "create_file": true}),
    );
    for (name, file) in [("d0", "d0.img"), ("d1", "d1.img")] {
        service.call("bdev_uring_create", json!({"name": name, "filename": file}));
    }
    service
}

fn pool_params() -> Value {
    json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10})
}

fn cache_params(name: &str, backing: &str) -> Value {
    json!({"name": name, "pool": "p0", "backing_bdev": backing, "size": 12 * MIB, "lanes": 2})
}

fn with_cache() -> Service {
    let service = service();
    service.call("pool_create", pool_params());
    service.call("bdev_pmcache_create", cache_params("c0", "d0"));
    service
}

#[test]
fn a_pool_is_made_once_and_opened_again() {
    let service = service();
    let device = service.call("bdev_pmem_get_devices", json!({"name": "pm0"}));
    assert_eq!(device[0]["formatted"], false);
    let made = service.call("pool_create", pool_params());
    assert_eq!(made["name"], "p0");
    let segments = made["segments"].as_u64().unwrap();
    let device = service.call("bdev_pmem_get_devices", json!({"name": "pm0"}));
    assert_eq!(device[0]["formatted"], true);
    let found = &service.call("pool_get", json!({"name": "p0"}))[0];
    assert_eq!(
        found["segments"],
        json!({"total": segments, "free": segments})
    );
    assert_eq!(found["segment_size"], 256 << 10);
    assert_eq!(found["caches"], json!([]));

    assert_eq!(service.refused("pool_create", pool_params()).0, -17);
    assert_eq!(
        service
            .refused("bdev_pmem_delete", json!({"name": "pm0"}))
            .0,
        -16
    );
    let twice = service.call("pool_load", json!({"bdev_name": "pm0"}));
    assert_eq!(twice["uuid"], made["uuid"], "what is loaded is no failure");
    assert_eq!(service.call("pool_unload", json!({"name": "p0"})), true);
    assert_eq!(service.refused("pool_unload", json!({"name": "p0"})).0, -19);
    assert_eq!(service.refused("pool_get", json!({"name": "p0"})).0, -19);
    let again = service.refused("pool_create", pool_params());
    assert_eq!(again.0, -17, "{}", again.1);
    assert!(again.1.starts_with("pool 'p0': "), "{}", again.1);
    let loaded = service.call("pool_load", json!({"bdev_name": "pm0"}));
    assert_eq!(
        loaded,
        json!({"name": "p0", "uuid": made["uuid"], "caches": []})
    );
}

#[test]
fn what_is_no_pool_is_refused() {
    let service = service();
    assert_eq!(
        service.refused("pool_load", json!({"bdev_name": "pm0"})).0,
        -2
    );
    let salvage = json!({"bdev_name": "pm0", "mode": "salvage"});
    assert_eq!(service.refused("pool_load", salvage).0, -2);
    assert_eq!(
        service.refused("pool_load", json!({"bdev_name": "x"})).0,
        -19
    );
    assert_eq!(
        service.refused("pool_load", json!({"bdev_name": "d0"})).0,
        -22
    );
    let odd = json!({"name": "p0", "bdev_name": "pm0", "segment_size": 300_000});
    assert_eq!(service.refused("pool_create", odd).0, -22);
    assert_eq!(
        service.refused("pool_create", json!({"name": "p0"})).0,
        -32602
    );
    // Refused ones leave the device free, and a foreign file is not overwritten.
    assert_eq!(
        service.call("bdev_pmem_delete", json!({"name": "pm0"})),
        true
    );
    let path = service.dir().join("pm0.pmem");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..6].copy_from_slice(b"a file");
    std::fs::write(&path, bytes).unwrap();
    service.call(
        "bdev_pmem_create",
        json!({"name": "pm0", "path": "pm0.pmem"}),
    );
    assert_eq!(service.refused("pool_create", pool_params()).0, -16);
    let mut forced = pool_params();
    forced["force"] = json!(true);
    assert_eq!(service.call("pool_create", forced)["name"], "p0");
}

#[test]
fn a_cache_is_made_told_and_destroyed() {
    let service = with_cache();
    let found = &service.call("bdev_pmcache_get", json!({"name": "c0"}))[0];
    assert_eq!(found["pool"], "p0");
    assert_eq!(found["backing_bdev"], "d0");
    assert_eq!(found["state"], "running");
    assert_eq!(found["segments"]["total"], 48);
    assert_eq!(found["lanes"].as_array().unwrap().len(), 2);
    assert_eq!(found["lanes"][1]["lane"], 1);
    assert_eq!(
        (&found["mode"], &found["durability"]),
        (&json!("wb"), &json!("flush"))
    );
    let bdev = &service.call("bdev_get_bdevs", json!({"name": "c0"}))[0];
    assert_eq!(bdev["product_name"], "Pmcache volume");
    assert_eq!(bdev["uuid"], found["uuid"]);
    assert_eq!(
        service.call("pool_get", Value::Null)[0]["caches"],
        json!(["c0"])
    );
    let stats = service.call(
        "bdev_pmcache_get_stats",
        json!({"name": "c0", "per_lane": true}),
    );
    assert_eq!(stats["requests"]["total"]["count"], 0);
    assert_eq!(stats["lanes"].as_array().unwrap().len(), 2);
    for name in ["data_crc", "data_unreadable", "bad_keys", "bad_bytes"] {
        assert_eq!(stats["errors"][name], 0, "{name}");
    }
    assert_eq!(
        (&found["bad_bytes"], &found["segments"]["bad"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(
        service
            .refused("bdev_pmcache_get_stats", json!({"name": "d0"}))
            .0,
        -19
    );
}

#[test]
fn a_cache_in_use_and_what_it_uses_stay() {
    let service = with_cache();
    assert_eq!(
        service
            .refused("bdev_uring_delete", json!({"name": "d0"}))
            .0,
        -16
    );
    assert_eq!(service.refused("pool_unload", json!({"name": "p0"})).0, -16);
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    assert_eq!(
        service
            .refused("bdev_pmcache_destroy", json!({"name": "c0"}))
            .0,
        -16
    );
    assert_eq!(
        service
            .refused("bdev_pmcache_unload", json!({"name": "c0"}))
            .0,
        -16
    );
    service.call("nbd_export_remove", json!({"name": "c0"}));

    let gone = service.call("bdev_pmcache_destroy", json!({"name": "c0"}));
    assert_eq!(gone, json!({"discarded_bytes": 0, "bad_bytes": 0}));
    assert_eq!(
        service
            .refused("bdev_pmcache_destroy", json!({"name": "c0"}))
            .0,
        -19
    );
    assert_eq!(
        service.refused("bdev_pmcache_get", json!({"name": "c0"})).0,
        -19
    );
    assert_eq!(
        service.call("pool_get", Value::Null)[0]["caches"],
        json!([])
    );
    assert_eq!(
        service.call("bdev_uring_delete", json!({"name": "d0"})),
        true
    );
    assert_eq!(service.call("pool_unload", json!({"name": "p0"})), true);
}

#[test]
fn what_a_cache_cannot_be_is_refused_and_leaves_no_trace() {
    let service = with_cache();
    let with = |key: &str, value: Value| {
        let mut params = cache_params("c1", "d1");
        params[key] = value;
        params
    };
    for (params, code) in [
        (with("name", json!("c0")), -17),
        (with("name", json!("a/b")), -22),
        (with("pool", json!("p9")), -19),
        (with("backing_bdev", json!("x")), -19),
        (with("backing_bdev", json!("d0")), -16),
        (with("size", json!(MIB)), -22),
        (with("size", json!(24 * MIB)), -28),
        (with("lanes", json!(200)), -22),
        (with("mode", json!("wx")), -32602),
        (with("gc_percent", json!(95)), -22),
        (with("kset_flush_ms", json!(0)), -22),
        (with("colour", json!(1)), -32602),
    ] {
        let refused = service.refused("bdev_pmcache_create", params.clone());
        assert_eq!(refused.0, code, "{params}: {}", refused.1);
    }
    assert_eq!(
        service.call("pool_get", Value::Null)[0]["caches"],
        json!(["c0"])
    );
    assert_eq!(
        service.call("bdev_pmcache_create", cache_params("c1", "d1")),
        "c1"
    );
}

#[test]
fn durability_write_on_volatile_memory_wants_force() {
    let service = service();
    let anonymous = json!({"name": "ram", "path": "anon:", "size": 32 * MIB});
    service.call("bdev_pmem_create", anonymous);
    let pool = json!({"name": "p0", "bdev_name": "ram", "segment_size": 256 << 10});
    service.call("pool_create", pool);
    let mut params = cache_params("c0", "d0");
    params["durability"] = json!("write");
    let (code, message) = service.refused("bdev_pmcache_create", params.clone());
    assert_eq!(code, -95);
    assert!(message.contains("volatile"), "{message}");
    params["force"] = json!(true);
    assert_eq!(service.call("bdev_pmcache_create", params), "c0");
}

#[test]
fn options_change_all_or_nothing_and_are_kept() {
    let service = with_cache();
    let options =
        |service: &Service| service.call("bdev_pmcache_get", json!({"name": "c0"}))[0].clone();
    let good = json!({"name": "c0", "gc_percent": 50, "writeback_order": "strict"});
    assert_eq!(service.call("bdev_pmcache_set_options", good), true);
    let bad = json!({"name": "c0", "kset_flush_ms": 5, "gc_percent": 99});
    assert_eq!(service.refused("bdev_pmcache_set_options", bad).0, -22);
    let later = json!({"name": "c0", "verify_reads": true});
    assert_eq!(service.call("bdev_pmcache_set_options", later), true);
    assert_eq!(
        service
            .refused("bdev_pmcache_set_options", json!({"name": "d0"}))
            .0,
        -19
    );
    let dir = service.stop();
    let service = with_media(Service::start_in(dir, &["--config", common::EMPTY_CONFIG]));
    service.call("pool_load", json!({"bdev_name": "pm0"}));
    service.call("bdev_pmcache_load", json!({"pool": "p0", "name": "c0"}));
    let found = options(&service);
    assert_eq!(found["gc_percent"], 50);
    assert_eq!(found["writeback_order"], "strict");
    assert_eq!(found["verify_reads"], true);
    assert_eq!(found["kset_flush_ms"], 1000);
}

#[test]
fn a_cache_is_unloaded_and_loaded_in_front_of_its_own_backing_only() {
    let service = with_cache();
    let uuid = service.call("bdev_pmcache_get", Value::Null)[0]["uuid"].clone();
    let load = json!({"pool": "p0", "name": "c0"});
    let twice = service.call("bdev_pmcache_load", load.clone());
    assert_eq!(twice["uuid"], uuid, "what runs already is no failure");
    assert_eq!(
        service.call("bdev_pmcache_unload", json!({"name": "c0"})),
        true
    );
    assert_eq!(
        service
            .refused("bdev_pmcache_unload", json!({"name": "c0"}))
            .0,
        -19
    );
    assert_eq!(
        service.refused("bdev_get_bdevs", json!({"name": "c0"})).0,
        -19
    );
    let other = json!({"pool": "p0", "name": "c0", "backing_bdev": "d1"});
    let (code, message) = service.refused("bdev_pmcache_load", other);
    assert_eq!(code, -116, "{message}");
    assert!(message.starts_with("pmcache 'c0': "), "{message}");
    for (params, code) in [
        (json!({"pool": "p0"}), -32602),
        (json!({"pool": "p0", "name": "c9"}), -19),
        (json!({"pool": "p9", "name": "c0"}), -19),
    ] {
        assert_eq!(
            service.refused("bdev_pmcache_load", params.clone()).0,
            code,
            "{params}"
        );
    }
    let loaded = service.call("bdev_pmcache_load", json!({"pool": "p0", "uuid": uuid}));
    assert_eq!(loaded["name"], "c0");
    assert_eq!(loaded["replay"]["keys"], 0);
    assert_eq!(loaded["replay"]["staging_missing"], false);
}

#[test]
fn a_flush_is_started_followed_and_required() {
    let service = with_cache();
    let unload = json!({"name": "c0", "flush": true});
    assert_eq!(
        service.call("bdev_pmcache_flush_start", json!({"name": "c0"})),
        true
    );
    let mut status = Value::Null;
    wait_until("the end of the flush", || {
        status = service.call("bdev_pmcache_flush_status", json!({"name": "c0"}));
        status["in_progress"] == false
    });
    assert_eq!(status["remaining_bytes"], 0);
    assert_eq!(status["status"], 0);
    assert_eq!(
        service.call("bdev_pmcache_flush_stop", json!({"name": "c0"})),
        true
    );
    for method in ["start", "status", "stop"] {
        let method = format!("bdev_pmcache_flush_{method}");
        assert_eq!(service.refused(&method, json!({"name": "d0"})).0, -19);
    }
    assert_eq!(service.call("bdev_pmcache_unload", unload), true);
}

#[test]
fn a_backing_that_was_changed_meanwhile_is_refused_unless_forced() {
    let service = with_cache();
    let name = json!({"name": "c0"});
    let load = json!({"pool": "p0", "name": "c0"});
    service.call("bdev_pmcache_unload", name.clone());
    let loaded = service.call("bdev_pmcache_load", load.clone());
    assert_eq!(loaded["replay"]["clean_dropped"], false);
    service.call("bdev_pmcache_unload", name);
    let disk = std::fs::File::options();
    let disk = disk.clone().write(true).open(service.dir().join("d0.img"));
    let disk = disk.unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &[1; 4096], 8192).unwrap();
    disk.sync_all().unwrap();
    let (code, message) = service.refused("bdev_pmcache_load", load);
    assert_eq!(code, -116);
    assert!(message.contains("the first MiB"), "{message}");
    let forced = json!({"pool": "p0", "name": "c0", "force": true});
    let loaded = service.call("bdev_pmcache_load", forced);
    assert_eq!(loaded["replay"]["clean_dropped"], true);
}

#[test]
fn a_cache_that_is_loaded_for_salvage_is_only_looked_at() {
    let service = with_cache();
    let name = json!({"name": "c0"});
    let (load, salvage) = (
        json!({"pool": "p0", "name": "c0"}),
        json!({"pool": "p0", "name": "c0", "salvage": true}),
    );
    assert_eq!(service.refused("bdev_pmcache_load", salvage.clone()).0, -16);
    service.call("bdev_pmcache_unload", name.clone());
    let pool = || std::fs::read(service.dir().join("pm0.pmem")).unwrap();
    let before = pool();
    let loaded = service.call("bdev_pmcache_load", salvage);
    assert_eq!(loaded["replay"]["missing"], Value::Null);
    assert_eq!(loaded["replay"]["lost_clean"], Value::Null);
    let shown = &service.call("bdev_pmcache_get", name.clone())[0];
    assert_eq!(shown["state"], "read_only");
    let salvage = json!({"missing": null, "lost_clean": null});
    assert_eq!(shown["salvage"], salvage);
    let depth = json!({"name": "c0", "writeback_depth": 3});
    assert_eq!(service.refused("bdev_pmcache_set_options", depth).0, -30);
    let flush = service.refused("bdev_pmcache_flush_start", name.clone());
    assert_eq!(flush.0, -30);
    assert_eq!(service.refused("bdev_pmcache_load", load.clone()).0, -16);
    service.call("bdev_pmcache_unload", name.clone());
    assert!(pool() == before, "nothing has changed");
    service.call("bdev_pmcache_load", load);
    let shown = &service.call("bdev_pmcache_get", name)[0];
    assert_eq!(shown["salvage"], Value::Null);
}

#[test]
fn mode_cut_off_and_admission_are_set_told_refused_and_kept() {
    let service = with_cache();
    let mut through = cache_params("c1", "d1");
    through["mode"] = json!("wt");
    service.call("bdev_pmcache_create", through);
    let shown = |service: &Service, name: &str| {
        service.call("bdev_pmcache_get", json!({"name": name}))[0].clone()
    };
    assert_eq!(shown(&service, "c1")["mode"], "wt");
    assert_eq!(shown(&service, "c0")["flush_failed"], false);
    for mode in ["wt", "wa", "wo", "pt"] {
        let params = json!({"name": "c0", "mode": mode, "flush": false});
        assert_eq!(service.call("bdev_pmcache_set_mode", params), mode);
        assert_eq!(shown(&service, "c0")["mode"], mode);
    }
    let refused = |params| service.refused("bdev_pmcache_set_mode", params).0;
    assert_eq!(refused(json!({"name": "c9", "mode": "wb"})), -19);
    assert_eq!(refused(json!({"name": "c0", "mode": "wi"})), -32602);
    assert_eq!(refused(json!({"name": "c0"})), -32602);
    let options = json!({"name": "c0", "seq_cutoff_policy": "always", "seq_cutoff_kib": 64,
        "admission": 2, "clear_flush_error": true});
    assert_eq!(service.call("bdev_pmcache_set_options", options), true);
    for bad in [json!({"seq_cutoff_kib": 0}), json!({"admission": 101})] {
        let mut bad = bad;
        bad["name"] = json!("c0");
        assert_eq!(service.refused("bdev_pmcache_set_options", bad).0, -22);
    }
    service.call("bdev_pmcache_unload", json!({"name": "c0"}));
    service.call("bdev_pmcache_load", json!({"pool": "p0", "name": "c0"}));
    let found = shown(&service, "c0");
    assert_eq!(found["mode"], "pt");
    assert_eq!(found["seq_cutoff_policy"], "always");
    assert_eq!(
        (&found["seq_cutoff_kib"], &found["admission"]),
        (&json!(64), &json!(2))
    );
    let stats = service.call("bdev_pmcache_get_stats", json!({"name": "c0"}));
    for counter in ["rd_pt", "wr_pt", "wr_wt"] {
        assert_eq!(stats["requests"][counter]["count"], 0, "{counter}");
    }
    assert_eq!(stats["requests"]["cut_offs"], 0);
}
