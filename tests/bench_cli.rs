//! `pmcache bench` as a person or a script runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::run;
use serde_json::Value;

#[test]
fn every_device_is_measured_at_every_depth_in_one_document() {
    let dir = tempfile::tempdir().unwrap();
    let line = "bench --json --bdev null,malloc,pmem,cache --rw randwrite,read --depth 1,4 \
                --size-mib 8 --seconds 0.05 --warmup 0.01 --run-dir";
    let mut args: Vec<&str> = line.split_whitespace().collect();
    args.push(dir.path().to_str().unwrap());
    let output = run(&args);
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let jobs = document["jobs"].as_array().unwrap();
    let expected = ["null", "malloc", "pmem", "cache"];
    assert_eq!(jobs.len(), expected.len() * 4);
    for (job, device) in jobs.iter().zip(expected.iter().flat_map(|d| [d; 4])) {
        assert_eq!(job["bdev"], **device);
        assert_eq!(job["errors"], 0, "{job}");
        assert!(job["requests"].as_u64().unwrap() > 0, "{job}");
        let latency = |name: &str| job["latency_ns"][name].as_u64().unwrap();
        assert!(
            latency("min") > 0 && latency("min") <= latency("p50"),
            "{job}"
        );
        assert!(latency("p50") <= latency("p99.99"), "{job}");
        assert!(latency("p99.99") <= latency("max"), "{job}");
    }
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "nothing stays behind");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for line in [
        "bench --json --bdev null --depth 0",
        "bench --json --bdev null --block-size 100",
        "bench --json --bdev null --seconds -1",
        "bench --json --bdev null --cpumask [1023]",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{line}: {output:?}");
    }
}
