//! What the running service answers when it refuses: each errno with its text, what is no request, and
//! that nobody waits for another's slow call.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{EMPTY_CONFIG, Service, pmcache};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// A delay bdev `dd` on `d0`, a pool `p0` on `m0` with a cache `c0` on `d1`, an export of it.
fn populated() -> Service {
    let service = Service::start();
    for name in ["d0", "d1"] {
        let disk = json!({"name": name, "block_size": 512, "num_blocks": 32768});
        service.call("bdev_malloc_create", disk);
    }
    service.call("bdev_error_create", json!({"base_name": "d0"}));
    let pmem = json!({"name": "m0", "path": "anon:", "size": 64 << 20});
    service.call("bdev_pmem_create", pmem);
    let pool = json!({"name": "p0", "bdev_name": "m0", "segment_size": 1 << 20});
    service.call("pool_create", pool);
    let cache = json!({"name": "c0", "pool": "p0", "backing_bdev": "d1", "size": 32 << 20});
    service.call("bdev_pmcache_create", cache);
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    service
}

#[test]
fn each_errno_comes_with_the_text_of_strerror() {
    let service = populated();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let other_cache =
        json!({"name": "c1", "pool": "p0", "backing_bdev": "EE_d0", "size": 1_u64 << 40});
    let no_sct =
        json!({"name": "EE_d0", "io_type": "read", "error_type": "nvme_failure", "num": 1});
    let key = json!({"name": "k", "path": "relative"});
    let none = json!({"name": "none"});
    for (method, params, code, text) in [
        ("keyring_file_add_key", key, -1, "Operation not permitted"),
        (
            "keyring_file_remove_key",
            json!({"name": "k"}),
            -2,
            "No such file or directory",
        ),
        (
            "thread_set_cpumask",
            json!({"id": 9, "cpumask": "1"}),
            -3,
            "No such process",
        ),
        (
            "bdev_malloc_delete",
            json!({"name": "d0"}),
            -16,
            "Device or resource busy",
        ),
        (
            "bdev_malloc_create",
            json!({"name": "d0", "block_size": 512, "num_blocks": 8}),
            -17,
            "File exists",
        ),
        ("bdev_malloc_delete", none.clone(), -19, "No such device"),
        ("bdev_get_bdevs", none, -19, "No such device"),
        ("bdev_error_inject_error", no_sct, -22, "Invalid argument"),
        (
            "bdev_pmcache_create",
            other_cache,
            -28,
            "No space left on device",
        ),
        (
            "thread_set_cpumask",
            json!({"id": 1, "cpumask": "2"}),
            -95,
            "Operation not supported",
        ),
        (
            "nbd_server_start",
            json!({"address": taken.local_addr().unwrap().to_string()}),
            -98,
            "Address already in use",
        ),
        ("spdk_get_versions", Value::Null, -32601, "Method not found"),
    ] {
        let (found, message) = service.refused(method, params.clone());
        assert_eq!(found, code, "{method} {params}: {message}");
        assert!(message.contains(text), "{method} {params}: {message}");
    }
}

#[test]
fn a_method_of_the_start_is_refused_afterwards() {
    let service = populated();
    let early = service.refused("sock_set_default_impl", json!({"impl_name": "posix"}));
    let expected = "Method may only be called before framework is initialized. Use --wait-for-rpc \
                    command line parameter and then issue this RPC before the framework_start_init RPC.";
    assert_eq!(early, (-1, expected.to_owned()));
}

/// What is answered to `text` on a connection of its own.
fn answer(service: &Service, text: &str) -> String {
    let mut stream = UnixStream::connect(service.data("rpc.sock")).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut found = String::new();
    stream.read_to_string(&mut found).unwrap();
    found
}

#[test]
fn what_is_no_request_is_told_and_what_is_one_is_taken_as_spdk_takes_it() {
    let service = Service::start();
    let refused = |code: i64, message: &str, id: &str| {
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":{code},\"message\":\"{message}\"}}}}\n"
        )
    };
    for (text, expected) in [
        ("]", refused(-32700, "Parse error", "null")),
        (
            "{\"method\":\"a\",}",
            refused(-32700, "Parse error", "null"),
        ),
        ("7\n", refused(-32600, "Invalid request", "null")),
        ("[]", refused(-32600, "Invalid request", "null")),
        ("{\"id\":5}", refused(-32600, "Invalid request", "5")),
        (
            "{\"jsonrpc\":\"1.0\",\"method\":\"rpc_get_methods\",\"id\":5}",
            refused(-32600, "Invalid request", "5"),
        ),
        (
            "{\"method\":\"nope\",\"id\":\"x\"}",
            refused(-32601, "Method not found", "\"x\""),
        ),
        (
            "{\"method\":\"nope\"}",
            refused(-32601, "Method not found", "null"),
        ),
        // A notification that goes well says nothing, alone or in a batch.
        ("{\"method\":\"bdev_wait_for_examine\"}", String::new()),
        (
            "[{\"method\":\"bdev_wait_for_examine\",\"id\":null}]",
            String::new(),
        ),
        (
            "{\"method\":\"bdev_wait_for_examine\",\"params\":null,\"id\":1}",
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":true}\n".to_owned(),
        ),
        (
            "[{\"method\":\"bdev_wait_for_examine\",\"id\":1},{\"method\":\"bdev_wait_for_examine\"}]",
            "[{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":true}]\n".to_owned(),
        ),
        // Integral numbers in any form; nothing else is a number.
        (
            "{\"method\":\"bdev_null_create\",\"params\":{\"name\":\"n\",\"block_size\":5.12e2,\"num_blocks\":8.0},\"id\":1}",
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"n\"}\n".to_owned(),
        ),
    ] {
        assert_eq!(answer(&service, text), expected, "{text}");
    }
}

#[test]
fn a_slow_call_on_one_connection_delays_no_other() {
    let service = Service::start();
    let mut slow = service.client();
    let waiting = std::thread::spawn(move || {
        let params = json!({"name": "later", "timeout": 60_000});
        slow.call("bdev_get_bdevs", Some(&params))
            .map(|found| found.to_string())
    });
    // The slow call can't be over before `later` is there, and all these are.
    for _ in 0..100 {
        service.call("spdk_get_version", Value::Null);
        service.call("bdev_get_bdevs", Value::Null);
    }
    assert!(!waiting.is_finished(), "nothing was slow");
    let params = json!({"name": "later", "block_size": 512, "num_blocks": 8});
    service.call("bdev_null_create", params);
    assert!(waiting.join().unwrap().unwrap().contains("later"));
}

/// A port of this machine that nobody listens on, most likely.
fn free_port() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().to_string()
}

#[test]
fn rpc_is_answered_over_tcp_on_this_machine_only() {
    let address = free_port();
    let args = ["--config", EMPTY_CONFIG, "--rpc-tcp", &address];
    let service = Service::start_in(tempfile::tempdir().unwrap(), &args);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream
        .write_all(b"{\"method\":\"bdev_wait_for_examine\",\"id\":1}")
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut found = String::new();
    stream.read_to_string(&mut found).unwrap();
    assert_eq!(found, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":true}\n");
    service.stop();

    let dir = tempfile::tempdir().unwrap();
    for (address, text) in [
        ("0.0.0.0:5260", "no loopback address"),
        ("localhost", "invalid"),
    ] {
        let output = pmcache()
            .args(["serve", "--rpc-tcp", address])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{address}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(text), "{address}: {said}");
    }
}
