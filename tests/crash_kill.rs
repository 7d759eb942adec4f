//! `kill -9` under load, again and again: every acknowledged write is there afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{
    Layout, Load, Mix, Model, Random, SECTOR_BYTES, elapsed, flush_cache, pause, reopen,
    settle_file, start, stop_within, tool,
};
use common::Service;
use pmcache::cache::segments_min;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

const KILLS: u32 = 24;
/// The longest that a load may take until something is acknowledged.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);
const MASKS: [&str; 3] = ["0x1", "0x2", "0x3"];

const LAYOUT: Layout = Layout {
    segment_bytes: 256 << 10,
    segments: 128,
    lanes: 3,
    disk_bytes: 48 << 20,
    kset_flush_ms: 200,
    may_fail: false,
    persistence: "auto",
};

fn mix(random: &mut Random) -> Mix {
    // A run without flushes leaves all to the staging file; one of many makes many ksets.
    let flushes = [0, 1, 10][usize::try_from(random.below(3)).unwrap()];
    Mix {
        reads: 10,
        flushes,
        zeroes: 4,
        fua: flushes,
        sectors_max: 512,
        long: 10,
        depth: 16,
    }
}

/// `check` finds nothing wrong with a pool whose service was killed. Without effect while the binary
/// has no such command.
fn check(dir: &Path) {
    let pool = dir.join("pool.pmem");
    let help = common::run(&["check", "--help"]);
    if !help.status.success() {
        return;
    }
    let output = common::run(&["check", pool.to_str().unwrap()]);
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{errors}");
}

/// Lets the load run for a random time and kills the service in the middle of it: not before it has
/// acknowledged something, which may take long on a busy machine.
fn run_and_kill(
    service: Service,
    mut load: Load,
    mix: &Mix,
    random: &mut Random,
) -> (tempfile::TempDir, Model, u64) {
    let runs = Duration::from_micros(2_000 + random.below(400_000));
    let begun = SystemTime::now();
    while elapsed(begun) < runs || load.acknowledged < 2 {
        load.step(mix, random).expect("the service is alive");
        assert!(
            elapsed(begun) < ACKNOWLEDGED_WITHIN,
            "nothing is acknowledged"
        );
    }
    let dir = service.kill();
    let acknowledged = load.acknowledged;
    (dir, load.bury(), acknowledged)
}

/// Starts a service and kills it before or just after it is ready: what a load has done by then must
/// be good for the next.
fn kill_while_loading(dir: &Path, random: &mut Random) {
    let mask = MASKS[usize::try_from(random.below(3)).unwrap()];
    let mut child = common::pmcache()
        .args(["serve", "--data-dir", "data", "--run-dir", "run"])
        .args(["--config", client_common::CONFIG, "--cpumask", mask])
        .current_dir(dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    pause(Duration::from_micros(random.below(60_000)));
    child.kill().unwrap();
    child.wait().unwrap();
}

fn connect(service: &Service, model: Model) -> Load {
    Load::new(&service.data("nbd.sock"), "c", 4, model)
}

/// Kills and reopens `kills` times, then lets everything be written back and looks at the backing
/// alone. `options`: what `bdev_pmcache_set_options` is told at first.
fn kill_again_and_again(
    name: &str,
    layout: &Layout,
    kills: u32,
    options: Value,
    mix: fn(&mut Random) -> Mix,
) {
    let mut random = Random::new(name);
    let mut service = layout.create(&["--cpumask", "0x3"]);
    if !options.is_null() {
        service.call("bdev_pmcache_set_options", options);
    }
    let mut model = Model::new(layout.disk_bytes / SECTOR_BYTES);
    let mut all = 0;
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        let load = connect(&service, model);
        let (dir, survivors, acknowledged) =
            run_and_kill(service, load, &mix(&mut random), &mut random);
        all += acknowledged;
        check(dir.path());
        if random.chance(50) {
            kill_while_loading(dir.path(), &mut random);
            check(dir.path());
        }
        let mask = MASKS[usize::try_from(kill).unwrap() % MASKS.len()];
        let begun = SystemTime::now();
        service = reopen(dir, &["--cpumask", mask]);
        slowest = slowest.max(elapsed(begun));
        let mut load = connect(&service, survivors);
        load.verify();
        model = load.model;
    }
    eprintln!("{name}: {kills} kills, {all} acknowledged changes, slowest start {slowest:?}");
    assert!(all > u64::from(kills), "there was no load");
    flush_cache(&service, Duration::from_secs(60));
    let (dir, _) = stop_within(service, Duration::from_secs(5));
    settle_file(&mut model, &dir.path().join("disk.img"));
}

#[test]
fn every_acknowledged_write_survives_kills_at_random_moments() {
    kill_again_and_again("kills", &LAYOUT, KILLS, Value::Null, mix);
}

/// Requests of up to 4 MiB for a pool of a few: writeback and GC are always in the middle of it.
fn pressing(random: &mut Random) -> Mix {
    Mix {
        sectors_max: (4 << 20) / SECTOR_BYTES,
        long: 30,
        ..mix(random)
    }
}

#[test]
fn a_tiny_pool_survives_kills_in_every_order_of_writeback() {
    let layout = Layout {
        segments: u64::from(segments_min(LAYOUT.lanes, LAYOUT.segment_bytes)),
        disk_bytes: 16 << 20,
        ..LAYOUT
    };
    for options in [
        json!({"name": "c", "writeback_order": "strict"}),
        json!({"name": "c", "writeback_order": "relaxed"}),
        json!({"name": "c", "durability": "write"}),
    ] {
        kill_again_and_again(&options.to_string(), &layout, 4, options.clone(), pressing);
    }
}

/// fio on the upper half of the disk, for as long as the service lives.
fn fio(service: &Service, from: u64) -> Child {
    let uri = format!(
        "nbd+unix:///c?socket={}",
        service.data("nbd.sock").display()
    );
    start(
        "fio",
        &[
            "--name=load",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=16",
            "--time_based",
            "--runtime=60",
            "--verify=crc32c",
            "--do_verify=0",
            "--verify_state_save=0",
            "--fsync=64",
            &format!("--offset={from}"),
            &format!("--size={from}"),
            &format!("--aux-path={}", service.dir().display()),
        ],
    )
}

#[test]
fn kills_under_fio_lose_nothing_either() {
    if !tool("fio") {
        return;
    }
    let mut random = Random::new("kills with fio");
    let mut service = LAYOUT.create(&[]);
    let half = LAYOUT.disk_bytes / 2;
    // The model knows the lower half; what fio wrote in the upper one must be readable.
    let mut model = Model::new(half / SECTOR_BYTES);
    for kill in 0..6_usize {
        let mut fio = fio(&service, half);
        let written =
            |service: &Service| client_common::stats(service)["blocks"]["volume_wr_bytes"].as_u64();
        client_common::wait_for("fio's first writes", Duration::from_secs(20), || {
            written(&service) > Some(1 << 20)
        });
        let load = connect(&service, model);
        let (dir, survivors, _) = run_and_kill(service, load, &mix(&mut random), &mut random);
        fio.wait().unwrap();
        check(dir.path());
        service = reopen(dir, &["--cpumask", MASKS[kill % MASKS.len()]]);
        let mut load = connect(&service, survivors);
        load.verify();
        model = load.model;
    }
    flush_cache(&service, Duration::from_secs(60));
    let (dir, _) = stop_within(service, Duration::from_secs(5));
    let bytes = std::fs::read(dir.path().join("disk.img")).unwrap();
    let lower = usize::try_from(half).unwrap();
    model.settle(0, &bytes[..lower]).unwrap();
    assert!(bytes[lower..].iter().any(|byte| *byte != 0), "fio's data");
}
