//! `pmcache bench` as a person or a script runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod bench_common;
mod common;

use bench_common::{bench, check_run, number};
use common::run;
use serde_json::Value;

#[test]
fn every_device_is_measured_at_every_depth_in_one_document() {
    let document = bench(
        "--bdev null,malloc,pmem,cache,backing --rw randwrite,read --depth 1,4 --size-mib 8 \
         --seconds 0.05 --warmup 0.01 --series-ms 10",
    );
    let runs = document["runs"].as_array().unwrap();
    let expected = ["null", "malloc", "pmem", "cache", "backing"];
    assert_eq!(runs.len(), expected.len() * 4);
    for (run, device) in runs.iter().zip(expected.iter().flat_map(|d| [d; 4])) {
        check_run(run);
        let name = run["name"].as_str().unwrap();
        assert!(name.starts_with(*device), "{run}");
        assert!(!run["series"].as_array().unwrap().is_empty());
        let has_floor = !["null", "backing"].contains(device);
        assert_eq!(run["ratios"].is_object(), has_floor, "{run}");
        assert_eq!(run["stages"].is_object(), *device == "cache", "{run}");
    }
    let hits = runs.iter().find(|run| run["name"] == "cache-read-qd1");
    assert_eq!(number(hits.unwrap(), "/hit_ratio"), 1.0);
    assert_eq!(document["schema"], 1);
    assert!(number(&document, "/floors/harness_ns") > 0.0);
}

#[test]
fn the_bars_have_their_rows_and_floors() {
    let document = bench("--preset bars --size-mib 8 --seconds 0.05 --warmup 0.02 --repeat 2");
    let names = [
        "memory_ns",
        "memory_crc_ns",
        "read_cold_ns",
        "jitter_p999_ns",
        "clock_ns",
        "harness_ns",
    ];
    for name in names {
        assert!(
            number(&document, &format!("/floors/{name}")) > 0.0,
            "{name}"
        );
    }
    for key in [
        "cpu_model",
        "cores",
        "page_bytes",
        "copy_kernel",
        "crc_kernel",
    ] {
        assert!(!document["host"][key].is_null(), "{key}");
    }
    let runs = document["runs"].as_array().unwrap();
    let find = |name: &str| {
        let found = runs.iter().find(|run| run["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    };
    for name in [
        "write_qd1_local",
        "write_qd1_local_crc",
        "read_hit_qd1_local",
        "write_qd32_local",
        "write_qd1_gc_wb",
        "write_qd1_gc_wb_paced",
        "write_qd1_idle_paced",
        "write_qd1_durable",
        "backing_slow_qd",
        "write_full_pool",
    ] {
        let run = find(name);
        check_run(run);
        assert_eq!(run["samples"].as_array().unwrap().len(), 2, "{name}");
        let [least, most] = ["/spread/p50/0", "/spread/p50/1"].map(|at| number(run, at));
        let p50 = number(run, "/latency_ns/p50");
        assert!(least <= p50 && p50 <= most, "{run}");
    }
    // With a second core there is a way through the rings.
    let has_ring = !document["floors"]["ring_round_trip_ns"].is_null();
    assert_eq!(
        runs.iter().any(|run| run["name"] == "write_qd1_ring"),
        has_ring
    );
    if has_ring {
        assert_eq!(find("write_qd1_ring")["submit"], "ring");
        assert!(number(find("write_qd1_ring"), "/stages/write.ring/count") > 0.0);
    }
    // Rows differ in what they are about.
    assert_eq!(
        number(find("write_qd1_local"), "/maintenance/writeback_bytes"),
        0.0
    );
    assert_eq!(
        number(find("write_qd1_local"), "/maintenance/gc_ksets"),
        0.0
    );
    assert!(number(find("write_full_pool"), "/maintenance/writeback_bytes") > 0.0);
    let ratio = number(find("write_qd1_local_crc"), "/ratios/p50");
    let expected = number(find("write_qd1_local_crc"), "/latency_ns/p50")
        / number(&document, "/floors/memory_crc_ns");
    assert!((ratio - expected).abs() < 0.001, "{ratio} {expected}");
}

#[test]
fn mixes_sizes_rates_and_jobs_show_in_the_report() {
    let document = bench(
        "--bdev malloc --rw randrw --rwmixread 70 --bssplit 4k/70:64k/30 --distribution zipf:1.1 \
         --size-mib 8 --working-set-mib 4 --offset-mib 2 --seconds 0.2 --warmup 0 --jobs 2 \
         --depth 2 --flush-every 10 --fua-every 3 --rate 5000 --arrival poisson --floors false",
    );
    let run = &document["runs"][0];
    check_run(run);
    assert_eq!(run["rw"], "randrw");
    assert_eq!(run["jobs"], 2);
    assert_eq!(number(run, "/rate"), 5000.0);
    // 2 jobs of 5000 a second in 0.2 s.
    let requests = number(run, "/requests");
    assert!((1_700.0..2_300.0).contains(&requests), "{requests}");
    let share = number(run, "/read/requests") / requests;
    assert!((0.6..0.8).contains(&share), "{share}");
    let mean = number(run, "/bytes") / requests;
    assert!((17_000.0..28_000.0).contains(&mean), "{mean}");
    assert!(number(run, "/flush/requests") > 0.0);
    assert!(document["floors"].is_null() && run["ratios"].is_null());
}

#[test]
fn verification_reads_what_was_written_and_finds_a_device_that_forgets() {
    let line = "--size-mib 8 --seconds 0.1 --warmup 0 --floors false --rw randrw --depth 8 \
                --jobs 2 --verify --flush-every 50";
    let document = bench(&format!("{line} --bdev malloc,pmem,cache"));
    for run in document["runs"].as_array().unwrap() {
        check_run(run);
        assert_eq!(run["verify"]["mismatches"], 0, "{run}");
        assert!(number(run, "/verify/sectors") > 16384.0, "{run}");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec!["bench", "--json", "--bdev", "null", "--run-dir"];
    args.push(dir.path().to_str().unwrap());
    args.extend(line.split_whitespace());
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = &document["runs"][0]["verify"];
    assert!(number(found, "/mismatches") > 0.0);
    let text = found["first"].as_str().unwrap();
    assert!(
        text.contains("the sector at 0x") && text.contains("has"),
        "{text}"
    );
}

#[test]
fn percentile_files_are_written_for_every_run() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("percentiles");
    let line = "--bdev null,malloc --rw write --count 1000 --warmup 0 --floors false --size-mib 8";
    bench(&format!("{line} --hgrm {}", files.display()));
    for name in ["null-write-qd1.hgrm", "malloc-write-qd1.hgrm"] {
        let text = std::fs::read_to_string(files.join(name)).unwrap();
        assert!(text.trim_start().starts_with("Value") && text.contains("Total count"));
    }
}

#[test]
fn a_count_ends_a_run() {
    let line = "--bdev null --rw write --count 1000 --seconds 60 --warmup 0 --floors false \
                --size-mib 8";
    assert_eq!(number(&bench(line)["runs"][0], "/requests"), 1000.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for line in [
        "--bdev null --depth 0",
        "--bdev null --block-size 100",
        "--bdev null --bssplit 4k/0",
        "--bdev null --bssplit 4k",
        "--bdev null --distribution zipf:0",
        "--bdev null --rwmixread 101",
        "--bdev null --rate 0",
        "--bdev null,null",
        "--bdev null --arrival poisson",
        "--bdev null --seconds -1",
        "--bdev null --cpumask [1023]",
        "--bdev null --submit ring --cpumask [0]",
        "--bdev null --working-set-mib 9 --size-mib 8",
        "--bdev null --offset-mib 8 --size-mib 8",
        "--bdev cache --verify-reads true --data-crc false",
        "--bdev cache --lanes 0",
        "--preset bars --depth 4",
        "--bdev null --rows write_qd1_local",
        "--preset bars --rows write_qd1_local,nonesuch",
        "--preset bars --rows write_qd1_idle_paced",
        "--preset replay --rows write_qd1_local",
        "--bdev disk",
        "--bdev nbd://",
        "--bdev nbd+unix:///x?socket=/nowhere --rw read",
    ] {
        let mut args = vec!["bench", "--json", "--floors", "false", "--run-dir"];
        args.push(dir.path().to_str().unwrap());
        args.extend(line.split(' '));
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{line}: {output:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn rows_of_a_preset_are_chosen_by_name() {
    let line = "--preset bars --rows write_full_pool,backing_slow_qd --size-mib 8 --seconds 0.05 \
                --warmup 0.02 --floors false";
    let document = bench(line);
    let runs = document["runs"].as_array().unwrap();
    let names: Vec<&str> = runs
        .iter()
        .map(|run| run["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["backing_slow_qd", "write_full_pool"]);
}

#[test]
fn a_document_is_compared_and_drawn_by_what_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, b, drawn, drawn_later) = (
        path("a.json"),
        path("b.json"),
        path("a.svg"),
        path("all.html"),
    );
    let document = bench(&format!(
        "--bdev null,malloc --rw randwrite --size-mib 8 --seconds 0.01 --warmup 0 --repeat 5 \
         --series-ms 2 --floors false --plot {drawn}"
    ));
    std::fs::write(&a, document.to_string()).unwrap();
    let lone = "--bdev null --rw randwrite --count 1000 --warmup 0 --size-mib 8 --seconds 0.01";
    std::fs::write(&b, bench(lone).to_string()).unwrap();

    for args in [
        ["bench", "compare", &a, &a, "--json"],
        ["--json", "bench", "compare", &a, &a],
    ] {
        let output = run(&args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["verdict"], "no difference");
        let runs = found["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 2);
        for run in runs {
            // All that is compared has been found in the document.
            let metrics = run["metrics"].as_array().unwrap();
            let names: Vec<&str> = metrics.iter().flat_map(|m| m["metric"].as_str()).collect();
            assert_eq!(names, ["p50", "p99", "p999", "iops"], "{run}");
            for metric in metrics {
                assert_eq!(metric["ratio"], 1.0, "{metric}");
                assert!(metric["interval"].is_array(), "{metric}");
            }
        }
    }
    let text = run(&["bench", "compare", &a, &b]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("only in A: malloc-randwrite-qd1"), "{text}");
    assert!(text.contains("too few repeats to tell"), "{text}");

    let picture = std::fs::read_to_string(&drawn).unwrap();
    for name in ["null-randwrite-qd1", "malloc-randwrite-qd1"] {
        assert!(picture.contains(name), "{name}");
    }
    for class in ["class=\"curve\"", "class=\"series-p99\""] {
        assert_eq!(picture.matches(class).count(), 2, "{class}");
    }
    let output = run(&["bench", "plot", &a, &b, "--out", &drawn_later]);
    assert!(output.status.success(), "{output:?}");
    let page = std::fs::read_to_string(&drawn_later).unwrap();
    for name in [
        "a: null-randwrite-qd1",
        "a: malloc-randwrite-qd1",
        "b: null-randwrite-qd1",
    ] {
        assert!(page.contains(name), "{name}");
    }

    for args in [
        &["bench", "compare", &a, &path("none")][..],
        &["bench", "compare", &a, &drawn],
        &["bench", "compare", &a],
        &["bench", "--depth", "4", "compare", &a, &a],
        &["bench", "plot", "--out", &drawn],
        &["bench", "plot", &a],
        &["bench", "plot", &a, "--out", &path("x.png")],
        &["bench", "--bdev", "null", "--plot", &path("x.png")],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_load_finds_every_key_of_the_log_that_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let line = "bench --json --preset replay --size-mib 8 --repeat 2 --run-dir";
    let mut args: Vec<&str> = line.split_whitespace().collect();
    args.push(dir.path().to_str().unwrap());
    let output = run(&args);
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let loads = document["loads"].as_array().unwrap();
    assert_eq!(loads.len(), 2);
    for load in loads {
        assert_eq!(load["keys"], (8 << 20) / 512, "{load}");
        assert!(load["keys_per_second"].as_u64().unwrap() > 0, "{load}");
    }
}
