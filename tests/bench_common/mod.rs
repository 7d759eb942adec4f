//! What tests of `pmcache bench` share.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes it, and uses a part of it"
)]

use crate::common::run;
use serde_json::Value;
use std::collections::BTreeSet;

/// Runs `pmcache bench --json` with these flags, and a directory for what it keeps meanwhile.
pub fn bench(line: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec!["bench", "--json", "--run-dir", dir.path().to_str().unwrap()];
    args.extend(line.split_whitespace());
    let output = run(&args);
    assert!(output.status.success(), "{output:?}");
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "nothing stays behind");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A number of a document, by its JSON pointer.
pub fn number(value: &Value, name: &str) -> f64 {
    let found = value.pointer(name).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("{name} of {value}"))
}

/// That a run has all of the schema, and that its figures fit together.
pub fn check_run(run: &Value) {
    let keys: BTreeSet<&str> = run
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    for key in [
        "name",
        "bdev",
        "rw",
        "block_bytes",
        "depth",
        "jobs",
        "submit",
        "rate",
        "seconds",
        "requests",
        "errors",
        "bytes",
        "iops",
        "mib_s",
        "latency_ns",
        "read",
        "write",
        "flush",
        "ratios",
        "stages",
        "hit_ratio",
        "maintenance",
        "series",
        "curve",
    ] {
        assert!(keys.contains(key), "{key} of {run}");
    }
    assert_eq!(run["errors"], 0, "{run}");
    assert!(number(run, "/requests") > 0.0, "{run}");
    let rising = ["min", "p50", "p90", "p99", "p999", "p9999", "max"];
    let rising = rising.map(|name| number(run, &format!("/latency_ns/{name}")));
    assert!(rising[0] > 0.0 && rising.is_sorted(), "{run}");
    let curve = run["curve"].as_array().unwrap();
    assert_eq!(curve[0][0], 0.0);
    assert_eq!(curve.last().unwrap()[0], 1.0);
    assert!(
        curve
            .iter()
            .map(|point| point[1].as_u64().unwrap())
            .is_sorted()
    );
    let parts = ["/read/requests", "/write/requests"];
    let sum: f64 = parts
        .iter()
        .map(|part| run.pointer(part).map_or(0.0, |n| n.as_f64().unwrap()))
        .sum();
    assert_eq!(sum, number(run, "/requests"), "{run}");
}
