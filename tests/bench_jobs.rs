//! `pmcache bench` on exports of NBD servers and vhost-user back ends, and with job files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod bench_common;
mod common;

use bench_common::{check_run, number};
use common::{Service, pmcache};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

/// Runs `pmcache bench` quickly with these flags; it may fail.
fn quick(line: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = pmcache();
    command.args(["bench", "--json", "--floors", "false", "--run-dir"]);
    command.arg(dir.path()).args(line.split_whitespace());
    let output = command.output().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    output
}

fn document(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

const MIB: usize = 1 << 20;

/// A service with an export of 4 MiB, all 0xa5; what it holds can be read from the file.
fn with_export() -> (Service, String, std::path::PathBuf) {
    let service = Service::start();
    let file = service.data("content");
    std::fs::write(&file, vec![0xa5; 4 * MIB]).unwrap();
    let disk = json!({"name": "P0", "path": file});
    service.call("bdev_pmem_create", disk);
    let socket = service.data("nbd.sock");
    let address = json!({"address": format!("unix:{}", socket.display())});
    service.call("nbd_server_start", address);
    let export = json!({"bdev_name": "P0", "name": "vol"});
    service.call("nbd_export_add", export);
    let uri = format!("nbd+unix:///vol?socket={}", socket.display());
    (service, uri, file)
}

fn is_untouched(file: &Path) -> bool {
    std::fs::read(file)
        .unwrap()
        .iter()
        .all(|byte| *byte == 0xa5)
}

#[test]
fn an_export_is_read_and_not_written_unless_somebody_says_so() {
    let (_service, uri, file) = with_export();
    let short = "--seconds 0.1 --warmup 0";
    let found = document(&quick(&format!(
        "--bdev {uri},malloc --rw randread,read --size-mib 8 {short}"
    )));
    let runs = found["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().flat_map(|run| run["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "nbd-randread-qd1",
            "nbd-read-qd1",
            "malloc-randread-qd1",
            "malloc-read-qd1"
        ]
    );
    runs.iter().for_each(check_run);
    assert_eq!(runs[0]["bdev"], *uri);
    assert!(runs[0]["ratios"].is_null(), "there is no floor for it");
    for (flags, what) in [
        ("--rw randwrite", "randwrite"),
        ("--rw rw", "rw"),
        ("--rw read --verify", "verification"),
        ("--rw read --prefill true", "--prefill"),
    ] {
        let output = quick(&format!("--bdev {uri} {flags} {short}"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = error["error"]["message"].as_str().unwrap();
        assert!(
            text.starts_with(&format!("{what} would overwrite")),
            "{text}"
        );
        assert!(text.contains("--allow-writes"), "{text}");
    }
    assert!(is_untouched(&file));
    // Larger than it is: known before anything has been measured.
    let output = quick(&format!(
        "--bdev {uri} --rw read --working-set-mib 5 {short}"
    ));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn writes_to_an_export_stay_within_the_range() {
    let (_service, uri, file) = with_export();
    let line = format!(
        "--bdev {uri} --rw randrw --depth 4 --seconds 0.1 --warmup 0 --offset-mib 1 \
         --working-set-mib 2 --allow-writes"
    );
    for flags in ["--prefill true", "--verify --flush-every 20 --jobs 2"] {
        std::fs::write(&file, vec![0xa5; 4 * MIB]).unwrap();
        let found = document(&quick(&format!("{line} {flags}")));
        check_run(&found["runs"][0]);
        let bytes = std::fs::read(&file).unwrap();
        let is_old = |part: &[u8]| part.iter().all(|byte| *byte == 0xa5);
        assert!(
            is_old(&bytes[..MIB]) && is_old(&bytes[3 * MIB..]),
            "{flags}"
        );
        let written = &bytes[MIB..3 * MIB];
        assert!(
            !written.chunks(512).any(is_old),
            "{flags}: all of the range"
        );
        if flags.contains("--verify") {
            assert_eq!(found["runs"][0]["verify"]["mismatches"], 0);
        }
    }
}

#[test]
fn the_disk_of_a_vhost_back_end_is_measured_as_an_export_is() {
    let (service, _, file) = with_export();
    let disk = json!({"ctrlr": "v", "dev_name": "P0"});
    service.call("vhost_create_blk_controller", disk);
    let address = format!("vhost:{}", service.data("v").display());
    let short = "--seconds 0.1 --warmup 0";
    let found = document(&quick(&format!(
        "--bdev {address} --rw randread --depth 1,32 {short}"
    )));
    let runs = found["runs"].as_array().unwrap();
    runs.iter().for_each(check_run);
    let names: Vec<&str> = runs.iter().flat_map(|run| run["name"].as_str()).collect();
    assert_eq!(names, ["vhost-randread-qd1", "vhost-randread-qd32"]);
    assert_eq!(runs[0]["bdev"], *address);
    let output = quick(&format!("--bdev {address} --rw randwrite {short}"));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(is_untouched(&file));
    let found = document(&quick(&format!(
        "--bdev {address} --rw randrw --depth 16 --jobs 2 --verify --flush-every 20 --allow-writes \
         --offset-mib 1 --working-set-mib 2 {short}"
    )));
    check_run(&found["runs"][0]);
    assert_eq!(found["runs"][0]["verify"]["mismatches"], 0);
    let bytes = std::fs::read(&file).unwrap();
    let is_old = |part: &[u8]| part.iter().all(|byte| *byte == 0xa5);
    assert!(is_old(&bytes[..MIB]) && is_old(&bytes[3 * MIB..]));
    assert!(!bytes[MIB..3 * MIB].chunks(512).any(is_old));
}

#[test]
fn a_server_of_others_is_measured() {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("nbdkit").is_file()));
    if !found {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!ci, "nbdkit is missing, and CI is to run everything");
        eprintln!("skipped: no nbdkit");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bench = format!(
        "{} bench --json --floors false --run-dir {} --bdev \"$uri\" --rw randrw --depth 8 \
         --seconds 0.1 --warmup 0 --verify --allow-writes",
        env!("CARGO_BIN_EXE_pmcache"),
        dir.path().display()
    );
    let output = Command::new("nbdkit")
        .args(["-U", "-", "memory", "4M", "--run", &bench])
        .output()
        .unwrap();
    let found = document(&output);
    check_run(&found["runs"][0]);
    assert_eq!(found["runs"][0]["verify"]["mismatches"], 0);
}

/// What a job file gives with these flags.
fn job_file(text: &str, flags: &str) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.fio");
    std::fs::write(&path, text).unwrap();
    let output = quick(&format!("--job-file {} {flags}", path.display()));
    let name = path.display().to_string();
    (output, name)
}

#[test]
fn the_jobs_of_a_file_are_measured_in_order() {
    let (_service, uri, file) = with_export();
    let text = format!(
        "[global]\nioengine=libaio\nbs=4k\ntime_based\nruntime=100ms\n\
         [hot]\nfilename=cache\nrw=randwrite\nrandom_distribution=zipf:1.1\niodepth=8\n\
         [mixed]\nfilename=malloc\nrw=randrw\nrwmixread=80\nnumjobs=2\nverify=crc32c\nsize=50%\n\
         [once]\nfilename=null\nrw=write\nsize=1m\ntime_based=0\n\
         [far]\nfilename={uri}\nrw=randread\nrate_iops=1000\n"
    );
    let (output, name) = job_file(&text, "--size-mib 8");
    let found = document(&output);
    let runs = found["runs"].as_array().unwrap();
    runs.iter().for_each(check_run);
    let of = |key: &str| -> Vec<&Value> { runs.iter().map(|run| &run[key]).collect() };
    assert_eq!(of("name"), ["hot", "mixed", "once", "far"]);
    assert_eq!(of("rw"), ["randwrite", "randrw", "write", "randread"]);
    assert_eq!(of("depth"), [8, 1, 1, 1]);
    assert_eq!(of("jobs"), [1, 2, 1, 1]);
    assert_eq!(runs[1]["read_percent"], 80);
    // 4 MiB are tagged, and read again at the end.
    assert!(number(&runs[1], "/verify/sectors") >= 8192.0);
    assert_eq!(runs[2]["requests"], 256);
    assert_eq!(number(&runs[3], "/rate"), 1000.0);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        notes,
        format!(
            "pmcache: {name}: line 2: ioengine is ignored: the bdev decides\n\
             pmcache: {name}: its jobs run one after the other, as if with stonewall\n"
        )
    );
    assert!(is_untouched(&file));
}

#[test]
fn a_job_file_that_can_not_be_measured_is_refused_with_the_line() {
    let (_service, uri, file) = with_export();
    let to_export = format!("[a]\nfilename={uri}\nrw=write\nruntime=1\n");
    for (text, want) in [
        ("[a]\nspeed=11", "line 2: unknown key speed"),
        ("[a]\nbs=4k", "line 1: job a: filename is missing"),
        (
            "\n[a]\nfilename=/dev/sda",
            "line 2: job a: filename: \"/dev/sda\" is not null,",
        ),
        (
            "[a]\nfilename=null\nrw=trim",
            "line 1: job a: rw: discards can't be measured",
        ),
        (
            "[a]\nfilename=null\nnumjobs=65",
            "line 1: job a: numjobs=65: more than 64",
        ),
        (
            "[a/b]\nfilename=null",
            "line 1: job a/b: its name is also that of a file",
        ),
        (
            "[a]\nfilename=null\niodepth=5000",
            "line 1: job a: depth 5000 is not within",
        ),
        (
            "[a]\nfilename=null\nbs=700",
            "line 1: job a: 700 bytes are not a multiple",
        ),
        (
            "[a]\nfilename=null\nsize=9m",
            "line 1: job a: size=9437184 is more than",
        ),
        (&to_export, "line 1: job a: write would overwrite what"),
    ] {
        let (output, name) = job_file(text, "--size-mib 8");
        assert_eq!(output.status.code(), Some(2), "{text}: {output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = error["error"]["message"].as_str().unwrap();
        assert!(found.starts_with(&format!("{name}: {want}")), "{found}");
    }
    assert!(is_untouched(&file));
    for flags in [
        "--bdev null",
        "--rw read",
        "--depth 2",
        "--seconds 1",
        "--count 5",
        "--verify",
        "--preset bars",
    ] {
        let (output, _) = job_file("[a]\nfilename=null\nsize=1m", flags);
        assert_eq!(output.status.code(), Some(2), "{flags}: {output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("cannot be used with"), "{text}");
    }
    let output = quick("--job-file /nowhere.fio");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn jobs_have_qpairs_of_their_own_behind_nvme_tcp() {
    let (service, _, _) = with_export();
    let nqn = "nqn.2026-11.test.pmcache:bench";
    service.call("nvmf_create_transport", json!({"trtype": "TCP"}));
    let subsystem = json!({"nqn": nqn, "allow_any_host": true});
    service.call("nvmf_create_subsystem", subsystem);
    let namespace = json!({"nqn": nqn, "namespace": {"bdev_name": "P0"}});
    service.call("nvmf_subsystem_add_ns", namespace);
    let at = json!({"trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": "0"});
    let listener = json!({"nqn": nqn, "listen_address": at});
    service.call("nvmf_subsystem_add_listener", listener);
    let found = service.call("nvmf_get_subsystems", json!({"nqn": nqn}));
    let port = found[0]["listen_addresses"][0]["trsvcid"].as_str().unwrap();
    let qpairs = || {
        let stats = service.call("nvmf_get_stats", Value::Null);
        let groups = stats["poll_groups"].as_array().unwrap().clone();
        let each = groups.iter().map(|group| group["io_qpairs"].as_u64());
        each.sum::<Option<u64>>().unwrap()
    };
    let mut before = 0;
    for (flags, expected) in [
        ("--jobs 3", 1),
        ("--jobs 3 --nvme-qpairs 3", 3),
        ("--jobs 3 --nvme-qpairs 2 --nvme-digests", 2),
    ] {
        let found = document(&quick(&format!(
            "--bdev nvme://127.0.0.1:{port}/{nqn} --rw randread --depth 4 --seconds 0.1 --warmup 0 \
             {flags}"
        )));
        check_run(&found["runs"][0]);
        assert_eq!(qpairs() - before, expected, "{flags}");
        before = qpairs();
    }
}
