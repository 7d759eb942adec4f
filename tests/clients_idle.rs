//! An idle service costs next to nothing, wakes at once, and still does what is due.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{
    Layout, Load, Model, SECTOR_BYTES, cache, elapsed, pause, stats, stop_within, wait_for,
};
use common::Service;
use serde_json::json;
use std::time::{Duration, SystemTime};

const KSET_FLUSH: Duration = Duration::from_millis(400);
/// What a busy machine may add to a time-out.
const TOLERANCE: Duration = Duration::from_millis(800);

/// USER_HZ: what /proc counts in, whatever the kernel's own tick is.
const TICKS_PER_SECOND: u128 = 100;

/// CPU time that the service has used, in the kernel's ticks.
fn ticks(service: &Service) -> u64 {
    let pid = &service.ready["pid"];
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may contain anything but ends with the last bracket; utime and stime are the 14th
    // and 15th field of all, the state behind the name is the third.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    [11, 12]
        .iter()
        .map(|at| fields[*at].parse::<u64>().unwrap())
        .sum()
}

/// Thousandths of a core that the service uses while nothing happens.
fn permille_used(service: &Service, interval: Duration) -> u128 {
    let before = ticks(service);
    let begun = SystemTime::now();
    pause(interval);
    let used = ticks(service) - before;
    let took = elapsed(begun);
    u128::from(used) * 1_000_000 / (TICKS_PER_SECOND * took.as_millis().max(1))
}

/// Nothing happens for three seconds: less than 2 % of a core is used.
fn costs_nothing(service: &Service, when: &str) {
    let permille = permille_used(service, Duration::from_secs(3));
    eprintln!("{when}: {permille} permille of a core");
    assert!(permille < 20, "{when}: {permille} permille of a core");
}

#[test]
fn an_idle_embedded_default_uses_next_to_no_cpu() {
    let service = Service::start_in(tempfile::tempdir().unwrap(), &["--idle", "adaptive"]);
    costs_nothing(&service, "embedded default without a client");
    // What is measured is there to be measured.
    service.call("reactor_set_idle", json!({"policy": "poll"}));
    let spinning = permille_used(&service, Duration::from_millis(500));
    assert!(spinning > 100, "{spinning} permille of a core spinning");
    stop_within(service, Duration::from_secs(5));
}

#[test]
fn an_idle_service_wakes_at_the_first_request_and_closes_ksets_in_time() {
    let layout = Layout {
        segment_bytes: 256 << 10,
        segments: 64,
        lanes: 4,
        disk_bytes: 32 << 20,
        kset_flush_ms: u32::try_from(KSET_FLUSH.as_millis()).unwrap(),
        may_fail: false,
        persistence: "auto",
    };
    let service = layout.create(&["--idle", "adaptive", "--cpumask", "0x3"]);
    let model = Model::new(layout.disk_bytes / SECTOR_BYTES);
    let mut load = Load::new(&service.data("nbd.sock"), "c", 2, model);
    load.read(0, 0, 8);
    load.drain();
    costs_nothing(&service, "two idle clients");

    let begun = SystemTime::now();
    load.write(0, 3, 5, false);
    load.drain();
    let woke = elapsed(begun);
    eprintln!("the first write after the sleep took {woke:?}");
    assert!(woke < TOLERANCE, "woke after {woke:?}");
    let closed_age = |service: &Service| stats(service)["log"]["closed_age"].as_u64().unwrap();
    let before = closed_age(&service);
    // Nobody asks meanwhile: the time-out alone has to do it.
    pause(KSET_FLUSH + TOLERANCE);
    assert_eq!(closed_age(&service), before + 1, "the kset is not closed");
    wait_for("writeback", Duration::from_secs(10), || {
        cache(&service)["dirty_bytes"] == 0
    });
    costs_nothing(&service, "after the kset was written back");
    let (dir, _) = stop_within(service, Duration::from_secs(5));
    client_common::settle_file(&mut load.model, &dir.path().join("disk.img"));
}
