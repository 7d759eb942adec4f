//! What the service tells of the I/O of its bdevs, and how it limits it; by an NBD client's traffic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::{Service, wait_until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const OPTION_EXPORT_NAME: u32 = 1;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;

/// An NBD client that gets simple replies.
struct Client(UnixStream);

impl Client {
    fn connect(service: &Service, export: &str) -> Self {
        let mut stream = UnixStream::connect(service.data("nbd.sock")).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(OPTION_EXPORT_NAME.to_be_bytes());
        hello.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello).unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        Self(stream)
    }

    fn send(&mut self, command: u16, offset: u64, len: u32) {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        if command == WRITE {
            bytes.extend(vec![1; len as usize]);
        }
        self.0.write_all(&bytes).unwrap();
    }

    /// The error of the next reply, to a read of `len` bytes or something else.
    fn reply(&mut self, len: u32) -> u32 {
        let mut head = [0; 16];
        self.0.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        if error == 0 {
            self.0.read_exact(&mut vec![0; len as usize]).unwrap();
        }
        error
    }

    fn run(&mut self, command: u16, offset: u64, len: u32) -> u32 {
        self.send(command, offset, len);
        self.reply(if command == READ { len } else { 0 })
    }
}

/// A service with a disk `M0` of 16 MiB and an NBD server.
fn service() -> Service {
    let service = Service::start();
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": 32768});
    service.call("bdev_malloc_create", params);
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    service
}

fn export(service: &Service, bdev: &str) -> Client {
    service.call("nbd_export_add", json!({"bdev_name": bdev}));
    Client::connect(service, bdev)
}

/// The figures of one bdev.
fn iostat(service: &Service, name: &str, reset_mode: &str) -> Value {
    let params = json!({"names": [name], "per_channel": false, "reset_mode": reset_mode});
    let found = service.call("bdev_get_iostat", params);
    assert_eq!(found["tick_rate"], 1_000_000_000);
    assert!(found["ticks"].as_u64().unwrap() > 0);
    found["bdevs"][0].clone()
}

#[test]
fn every_layer_counts_what_passes_it() {
    let service = service();
    let params = json!({"name": "Pt0", "base_bdev_name": "M0"});
    service.call("bdev_passthru_create", params);
    let mut client = export(&service, "Pt0");
    for n in 0..3 {
        assert_eq!(client.run(WRITE, n * 4096, 4096), 0);
    }
    assert_eq!(client.run(READ, 512, 1024), 0);
    assert_eq!(client.run(TRIM, 0, 8192), 0);
    assert_eq!(client.run(FLUSH, 0, 0), 0);
    for name in ["Pt0", "M0"] {
        let figures = iostat(&service, name, "none");
        for (key, value) in [
            ("name", json!(name)),
            ("bytes_written", json!(3 * 4096)),
            ("num_write_ops", json!(3)),
            ("bytes_read", json!(1024)),
            ("num_read_ops", json!(1)),
            ("bytes_unmapped", json!(8192)),
            ("num_unmap_ops", json!(1)),
            ("bytes_copied", json!(0)),
            ("num_copy_ops", json!(0)),
            ("copy_latency_ticks", json!(0)),
            ("max_copy_latency_ticks", json!(0)),
            ("min_copy_latency_ticks", json!(0)),
            ("io_error", json!({})),
        ] {
            assert_eq!(figures[key], value, "{name}: {key} of {figures}");
        }
        for kind in ["read", "write", "unmap"] {
            let ticks = |what: &str| figures[format!("{what}{kind}_latency_ticks")].as_u64();
            let (sum, max, min) = (ticks("").unwrap(), ticks("max_"), ticks("min_"));
            assert!(sum > 0 && max >= min && Some(sum) >= max, "{figures}");
        }
        assert_eq!(figures.get("queue_depth"), None);
    }
    let all = service.call("bdev_get_iostat", json!({"per_channel": false}));
    assert_eq!(all["bdevs"].as_array().unwrap().len(), 2);
}

#[test]
fn figures_are_told_by_reactor_and_begin_anew() {
    let service = service();
    let mut client = export(&service, "M0");
    client.run(READ, 0, 512);
    let params = json!({"names": ["M0"], "per_channel": true});
    let found = service.call("bdev_get_iostat", params);
    assert_eq!(found["name"], "M0");
    let reactors = service.call("framework_get_reactors", Value::Null);
    let thread = &reactors["reactors"][0]["lw_threads"][0]["id"];
    let channels = found["channels"].as_array().unwrap();
    assert_eq!(channels.len(), 1);
    assert_eq!(channels[0]["thread_id"], *thread);
    assert_eq!(channels[0]["num_read_ops"], 1);
    for bad in [
        json!({"per_channel": true}),
        json!({"names": ["M0", "M0"], "per_channel": true}),
    ] {
        let refused = service.refused("bdev_get_iostat", bad);
        assert_eq!(refused, (-22, "Invalid argument".to_owned()));
    }
    let unknown = (-19, "No such device".to_owned());
    let names = json!({"names": ["M0", "M1"]});
    assert_eq!(service.refused("bdev_get_iostat", names), unknown);
    let name = json!({"name": "M1"});
    assert_eq!(service.refused("bdev_reset_iostat", name), unknown);
    assert_eq!(
        service
            .refused("bdev_get_iostat", json!({"reset_mode": "some"}))
            .0,
        -32603
    );

    let extremes = iostat(&service, "M0", "maxmin");
    assert!(extremes["max_read_latency_ticks"].as_u64().unwrap() > 0);
    let sums = iostat(&service, "M0", "all");
    assert_eq!(sums["max_read_latency_ticks"], 0);
    assert_eq!(sums["num_read_ops"], 1);
    assert_eq!(iostat(&service, "M0", "none")["num_read_ops"], 0);
    client.run(READ, 0, 512);
    drop(client);
    assert_eq!(iostat(&service, "M0", "none")["num_read_ops"], 1);
    service.call("bdev_reset_iostat", json!({"name": "M0", "mode": "none"}));
    assert_eq!(iostat(&service, "M0", "none")["num_read_ops"], 1);
    assert_eq!(service.call("bdev_reset_iostat", Value::Null), true);
    assert_eq!(iostat(&service, "M0", "none")["num_read_ops"], 0);
}

#[test]
fn failures_are_counted_by_name() {
    let service = service();
    service.call("bdev_error_create", json!({"base_name": "M0"}));
    let params = json!({
        "name": "EE_M0", "io_type": "read", "error_type": "failure", "num": 2,
    });
    service.call("bdev_error_inject_error", params);
    let mut client = export(&service, "EE_M0");
    assert_ne!(client.run(READ, 0, 512), 0);
    assert_ne!(client.run(READ, 0, 512), 0);
    assert_eq!(client.run(READ, 0, 512), 0);
    let figures = iostat(&service, "EE_M0", "error");
    assert_eq!(figures["io_error"], json!({"failed": 2}));
    assert_eq!(figures["num_read_ops"], 1);
    let after = iostat(&service, "EE_M0", "none");
    assert_eq!(
        (&after["io_error"], &after["num_read_ops"]),
        (&json!({}), &json!(1))
    );
    assert_eq!(iostat(&service, "M0", "none")["io_error"], json!({}));
}

#[test]
fn a_histogram_can_be_read_as_spdk_writes_it() {
    let service = service();
    let mut client = export(&service, "M0");
    let none = service.refused("bdev_get_histogram", json!({"name": "M0"}));
    assert_eq!(none, (-32603, "Bad address".to_owned()));
    // As SPDK's client sends it.
    let params = json!({"name": "M0", "enable": true, "opc": "read", "granularity": 5});
    assert_eq!(service.call("bdev_enable_histogram", params), true);
    for n in 0..100 {
        client.run(READ, n * 512, 512);
        client.run(WRITE, n * 512, 512);
    }
    let found = service.call("bdev_get_histogram", json!({"name": "M0"}));
    let bytes = found["histogram"].as_str().unwrap();
    let bytes = BASE64_STANDARD.decode(bytes).unwrap();
    let counts: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(counts.iter().sum::<u64>(), 100);
    assert_eq!(found["granularity"], 5);
    assert_eq!(
        (&found["min_range"], &found["max_range"]),
        (&json!(0), &json!(59))
    );
    assert_eq!(counts.len(), 60 << 5);
    assert_eq!(found["tsc_rate"], 1_000_000_000);
    let params = json!({"name": "M0", "borders": [0, 100_000_000]});
    let borders = service.call("bdev_get_histogram_borders", params);
    assert_eq!(borders, json!({"borders_count": [0, 100, 100]}));

    for (bad, code) in [
        (json!({"name": "M1", "enable": true}), -19),
        (
            json!({"name": "M0", "enable": true, "granularity": 13}),
            -22,
        ),
        (
            json!({"name": "M0", "enable": true, "min_nsec": 5, "max_nsec": 5}),
            -22,
        ),
        (
            json!({"name": "M0", "enable": true, "opc": "juggle"}),
            -32603,
        ),
        (json!({"name": "M0"}), -32603),
    ] {
        assert_eq!(service.refused("bdev_enable_histogram", bad).0, code);
    }
    let still = service.call("bdev_get_histogram", json!({"name": "M0"}));
    assert_eq!(still["granularity"], 5);
    service.call(
        "bdev_enable_histogram",
        json!({"name": "M0", "enable": false}),
    );
    let borders = json!({"name": "M0", "borders": [1]});
    let none = service.refused("bdev_get_histogram_borders", borders);
    assert_eq!(none.0, -32603);
}

#[test]
fn the_queue_depth_is_sampled_while_somebody_wants_it() {
    let service = service();
    let second = 1_000_000;
    let params = json!({
        "name": "D0", "base_bdev_name": "M0", "avg_read_latency": 60 * second,
        "p99_read_latency": 60 * second, "avg_write_latency": 0, "p99_write_latency": 0,
    });
    service.call("bdev_delay_create", params);
    let mut client = export(&service, "D0");
    for n in 0..3 {
        client.send(READ, n * 512, 512);
    }
    let params = json!({"name": "D0", "period": 1000});
    assert_eq!(service.call("bdev_set_qd_sampling_period", params), true);
    let mut seen = Value::Null;
    wait_until("three requests are under way", || {
        seen = iostat(&service, "D0", "none");
        seen["queue_depth"] == 3
    });
    assert_eq!(seen["queue_depth_polling_period"], 1000);
    wait_until("time passes", || {
        seen = iostat(&service, "D0", "none");
        seen["io_time"].as_u64() >= Some(10_000)
    });
    assert!(seen["weighted_io_time"].as_u64() > seen["io_time"].as_u64());
    let off = json!({"name": "D0", "period": 0});
    service.call("bdev_set_qd_sampling_period", off);
    assert_eq!(iostat(&service, "D0", "none").get("queue_depth"), None);
    let unknown = json!({"name": "D1", "period": 1000});
    assert_eq!(
        service.refused("bdev_set_qd_sampling_period", unknown).0,
        -19
    );
}

#[test]
fn limits_hold_requests_back_and_let_them_go() {
    let service = service();
    let mut client = export(&service, "M0");
    let limits = || {
        let found = service.call("bdev_get_bdevs", json!({"name": "M0"}));
        found[0]["assigned_rate_limits"].clone()
    };
    for (bad, refused) in [
        (
            json!({"name": "M1", "rw_ios_per_sec": 1}),
            (-19, "No such device"),
        ),
        (json!({"name": "M0"}), (-22, "No rate limits specified")),
    ] {
        let found = service.refused("bdev_set_qos_limit", bad);
        assert_eq!(found, (refused.0, refused.1.to_owned()));
    }
    let (code, message) = service.refused(
        "bdev_set_qos_limit",
        json!({"name": "M0", "rw_mbytes_per_sec": u64::MAX}),
    );
    assert_eq!(code, -32602);
    assert!(
        message.starts_with("Failed to configure rate limit: "),
        "{message}"
    );

    let params = json!({"name": "M0", "rw_ios_per_sec": 999});
    assert_eq!(service.call("bdev_set_qos_limit", params), true);
    for n in 0..60 {
        client.send(READ, n * 512, 512);
    }
    for _ in 0..60 {
        assert_eq!(client.reply(512), 0);
    }
    // Ten milliseconds are saved; at one request a millisecond the last of 60 waits 49.
    let figures = iostat(&service, "M0", "none");
    let longest = figures["max_read_latency_ticks"].as_u64().unwrap();
    assert!(longest > 40_000_000, "{figures}");

    let params = json!({"name": "M0", "rw_ios_per_sec": 0, "r_mbytes_per_sec": 1});
    service.call("bdev_set_qos_limit", params);
    let expected = json!({
        "rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0,
        "r_mbytes_per_sec": 1, "w_mbytes_per_sec": 0,
    });
    assert_eq!(limits(), expected);
    // Longer than this test may take, but for the end of the limit.
    for _ in 0..100 {
        client.send(READ, 0, 1 << 20);
    }
    assert_eq!(client.reply(1 << 20), 0);
    service.call(
        "bdev_set_qos_limit",
        json!({"name": "M0", "r_mbytes_per_sec": 0}),
    );
    for _ in 1..100 {
        assert_eq!(client.reply(1 << 20), 0);
    }
    let unlimited = limits();
    let limits = unlimited.as_object().unwrap().values();
    assert!(limits.into_iter().all(|limit| *limit == 0));
}

#[test]
fn slow_requests_of_a_cache_are_kept_with_their_cause() {
    let service = service();
    let params = json!({
        "name": "D0", "base_bdev_name": "M0", "avg_read_latency": 20_000,
        "p99_read_latency": 20_000, "avg_write_latency": 0, "p99_write_latency": 0,
    });
    service.call("bdev_delay_create", params);
    let params = json!({"name": "pm0", "path": "pm0.pmem", "size": 32 << 20, "create_file": true});
    service.call("bdev_pmem_create", params);
    let params = json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10});
    service.call("pool_create", params);
    let params = json!({
        "name": "c0", "pool": "p0", "backing_bdev": "D0", "size": 12 << 20, "lanes": 2,
    });
    service.call("bdev_pmcache_create", params);
    let mut client = export(&service, "c0");
    let ask = |params: Value| service.call("bdev_pmcache_get_slow_ios", params);
    let misses = || {
        let found = ask(json!({"name": "c0", "max": 1000}));
        let found = found.as_array().unwrap();
        let is_miss = |io: &&Value| io["cause"] == "backing_read";
        found.iter().filter(is_miss).cloned().collect::<Vec<_>>()
    };
    assert_eq!(client.run(READ, 1 << 20, 4096), 0);
    assert_eq!(client.run(READ, 3 << 20, 512), 0);
    let found = misses();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[1]["op"], "read");
    assert_eq!(found[1]["offset"], 1 << 20);
    assert_eq!(found[1]["length"], 4096);
    assert_eq!(found[0]["offset"], 3 << 20);
    let us = |key: &str| found[1][key].as_u64().unwrap();
    assert!(us("backing_us") >= 20_000, "{found:?}");
    assert!(us("engine_us") >= us("backing_us"), "{found:?}");
    assert!(us("total_us") >= us("engine_us"), "{found:?}");
    assert!(found[0]["when"].as_u64() >= found[1]["when"].as_u64());
    assert!(found[0]["writeback"].is_array() && found[0]["gc"].is_array());
    let one = ask(json!({"name": "c0", "max": 1}));
    assert_eq!(one.as_array().unwrap().len(), 1);

    let shown = || service.call("bdev_pmcache_get", json!({"name": "c0"}))[0].clone();
    assert_eq!(shown()["slow_io_us"], 10_000);
    let off = json!({"name": "c0", "slow_io_us": 0});
    service.call("bdev_pmcache_set_options", off);
    assert_eq!(shown()["slow_io_us"], 0);
    assert_eq!(client.run(READ, 5 << 20, 4096), 0);
    assert_eq!(misses().len(), found.len());
    let refused = service.refused("bdev_pmcache_get_slow_ios", json!({"name": "D0"}));
    assert_eq!(refused.0, -19);
}
