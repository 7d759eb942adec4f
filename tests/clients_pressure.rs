//! Pools that are far too small, and a backing that dies: requests wait, and nothing goes wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{
    Fleet, Io, Layout, Load, Mix, Model, Random, SECTOR_BYTES, cache, elapsed, flush_cache, reopen,
    settle_file, stats, stop_within, wait_for,
};
use common::Service;
use pmcache::cache::segments_min;
use serde_json::json;
use std::time::{Duration, SystemTime};

const SEGMENT_BYTES: u64 = 256 << 10;
const STOP: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
const EIO: u32 = 5;

/// The smallest pool for so many lanes.
fn tiny(lanes: u32, disk_bytes: u64) -> Layout {
    Layout {
        segment_bytes: SEGMENT_BYTES,
        segments: u64::from(segments_min(lanes, SEGMENT_BYTES)),
        lanes,
        disk_bytes,
        kset_flush_ms: 100,
        may_fail: false,
        persistence: "auto",
    }
}

fn connect(service: &Service, layout: &Layout, links: usize) -> Load {
    let model = Model::new(layout.disk_bytes / SECTOR_BYTES);
    Load::new(&service.data("nbd.sock"), "c", links, model)
}

/// Overlapping writes of up to 4 MiB, a hundred times what the pool can hold.
fn overrun(lanes: u32, mask: &str) {
    let mut random = Random::new("overrun");
    let layout = tiny(lanes, 16 << 20);
    let service = layout.create(&["--cpumask", mask]);
    let mut load = connect(&service, &layout, 3);
    let mix = Mix {
        reads: 10,
        flushes: 2,
        zeroes: 4,
        fua: 2,
        sectors_max: (4 << 20) / SECTOR_BYTES,
        long: 30,
        depth: 6,
    };
    let begun = SystemTime::now();
    let capacity = layout.segments * SEGMENT_BYTES;
    while load.written < 100 * capacity {
        load.step(&mix, &mut random).expect("the service is alive");
    }
    load.verify();
    let took = elapsed(begun);
    let stats = stats(&service);
    eprintln!(
        "{lanes} lanes, {} KiB: {} MiB in {took:?}, waits {}",
        capacity >> 10,
        load.written >> 20,
        stats["requests"]["space_waits"]
    );
    assert!(
        stats["requests"]["space_waits"].as_u64() > Some(0),
        "{stats}"
    );
    // A stop in the middle, and on with what it left.
    for _ in 0..20 {
        load.step(&mix, &mut random).expect("the service is alive");
    }
    let (dir, _) = stop_within(service, STOP);
    let model = load.bury();
    let service = reopen(dir, &["--cpumask", "0x1"]);
    let mut load = Load::new(&service.data("nbd.sock"), "c", 1, model);
    load.verify();
    flush_cache(&service, PATIENCE);
    let (dir, _) = stop_within(service, STOP);
    settle_file(&mut load.model, &dir.path().join("disk.img"));
}

#[test]
fn one_lane_takes_a_hundred_times_its_pool() {
    overrun(1, "0x1");
}

#[test]
fn three_lanes_take_a_hundred_times_their_pool() {
    overrun(3, "0x3");
}

fn count(service: &Service, group: &str, name: &str) -> u64 {
    let stats = stats(service);
    let leaf = &stats[group][name];
    let count = leaf.as_u64().or_else(|| leaf["count"].as_u64());
    count.unwrap_or_else(|| panic!("no {group}.{name} in {stats}"))
}

/// Writes the whole volume once.
fn fill(load: &mut Load) {
    let piece = (1 << 20) / SECTOR_BYTES;
    for first in (0..load.model.sectors()).step_by(usize::try_from(piece).unwrap()) {
        load.write(0, first, piece, false);
        load.take_until("room in the pipeline", |load| load.under_way() < 8);
    }
    load.drain();
}

#[test]
fn a_cache_of_clean_data_takes_new_data_in() {
    let layout = tiny(2, 32 << 20);
    let service = layout.create(&[]);
    let mut load = connect(&service, &layout, 2);
    fill(&mut load);
    flush_cache(&service, PATIENCE);
    assert_eq!(cache(&service)["dirty_bytes"], 0);

    let capacity = layout.segments * SEGMENT_BYTES;
    let piece = (64 << 10) / SECTOR_BYTES;
    let mut fills = count(&service, "requests", "fills");
    let (mut next, mut read) = (0, 0);
    for _quarter in 0..4 {
        let upto = read + 10 * capacity / 4;
        while read < upto {
            load.read(0, next, piece);
            read += piece * SECTOR_BYTES;
            next = (next + piece) % load.model.sectors();
            load.take_until("room in the pipeline", |load| load.under_way() < 4);
        }
        // Where reads come faster than GC runs, fills are left out; but not for long.
        let mut now = fills;
        wait_for("new data in the cache", Duration::from_secs(5), || {
            load.read(0, next, piece);
            next = (next + piece) % load.model.sectors();
            load.drain();
            now = count(&service, "requests", "fills");
            now > fills
        });
        fills = now;
    }
    eprintln!(
        "{} MiB read through {} KiB: {fills} fills",
        read >> 20,
        capacity >> 10
    );

    // What is read again and again is a hit in the end.
    let hits = count(&service, "requests", "rd_hits");
    wait_for("a hit", PATIENCE, || {
        load.read(1, next, piece);
        load.drain();
        count(&service, "requests", "rd_hits") > hits
    });
    stop_within(service, STOP);
}

fn inject(service: &Service, io_type: &str, error_type: &str) {
    let params = json!({
        "name": "EE_disk",
        "io_type": io_type,
        "error_type": error_type,
        "num": u32::MAX,
    });
    service.call("bdev_error_inject_error", params);
}

/// Writes on connection 0 until they wait for space.
fn fill_up(service: &Service, load: &mut Load, random: &mut Random) {
    let begun = SystemTime::now();
    let waits = |service: &Service| cache(service)["waiting_lanes"].as_u64() > Some(0);
    while !(load.is_silent_for(Duration::from_millis(200)) && waits(service)) {
        assert!(elapsed(begun) < PATIENCE, "the pool never gets full");
        if load.fleet.in_flight(0) < 16 {
            let count = 1 + random.below(256);
            // The first MiB stays as it is: its reads are hits.
            let above = load.model.sectors() - 2048 - count;
            load.write(0, 2048 + random.below(above), count, false);
        }
        load.take(Duration::from_millis(if load.fleet.in_flight(0) < 16 {
            0
        } else {
            20
        }))
        .expect("the service is alive");
    }
}

/// A pool in front of a disk that dies, up to the point where writes wait.
fn with_dead_disk(error_type: &str, random: &mut Random) -> (Service, Load) {
    let layout = Layout {
        may_fail: true,
        segments: 40,
        ..tiny(3, 64 << 20)
    };
    let service = layout.create(&["--cpumask", "0x3"]);
    let mut load = connect(&service, &layout, 2);
    inject(&service, "all", error_type);
    load.write(0, 0, 2048, false);
    load.drain();
    fill_up(&service, &mut load, random);
    (service, load)
}

/// Reads what is cached, on a connection that waits for nothing.
fn cached_data_are_read(load: &mut Load) {
    let waiting = load.under_way();
    for first in (0..2048).step_by(256) {
        load.read(1, first, 256);
    }
    load.take_until("an answer from the cache", |load| {
        load.under_way() <= waiting
    });
}

#[test]
fn a_dead_backing_holds_up_writes_only_and_only_while_it_is_dead() {
    let mut random = Random::new("dead backing");
    let (service, mut load) = with_dead_disk("failure", &mut random);
    cached_data_are_read(&mut load);
    assert!(count(&service, "errors", "backing_wr") > 0);

    // Nobody has that sector but the backing.
    let mut other = Fleet::connect(&service.data("nbd.sock"), "c", 1);
    let last = load.model.sectors() - 1;
    let io = Io::Read {
        offset: last * SECTOR_BYTES,
        len: 512,
    };
    other.submit(0, &io);
    let mut errors = Vec::new();
    wait_for("the answer of the backing", PATIENCE, || {
        let replies = other.pump(Duration::from_millis(20)).unwrap();
        errors.extend(replies.iter().map(|reply| reply.error));
        !errors.is_empty()
    });
    assert!(errors == [EIO] || errors == [0], "{errors:?}");

    // A client that waits, too, and leaves.
    let version = load.model.send(4096, 8192, false);
    let io = Io::Write {
        offset: 4096 * SECTOR_BYTES,
        data: Model::payload(version, 4096, 8192),
        fua: false,
    };
    other.submit(0, &io);
    assert!(other.pump(Duration::from_millis(100)).unwrap().is_empty());
    drop(other);
    cached_data_are_read(&mut load);

    inject(&service, "clear", "failure");
    let begun = SystemTime::now();
    load.drain();
    eprintln!("drained in {:?}", elapsed(begun));
    load.verify();
    flush_cache(&service, PATIENCE);
    wait_for("the end of the degraded state", PATIENCE, || {
        cache(&service)["state"] == "running"
    });
    let (dir, _) = stop_within(service, STOP);
    settle_file(&mut load.model, &dir.path().join("disk.img"));
}

/// Stops while writes wait for a disk that does `error_type`; all that was acknowledged is there.
fn stop_with_dead_disk(error_type: &str) {
    let mut random = Random::new("stop with a dead backing");
    let (service, mut load) = with_dead_disk(error_type, &mut random);
    cached_data_are_read(&mut load);
    let (dir, took) = stop_within(service, STOP);
    eprintln!("stopped in {took:?} with a backing that does {error_type}");
    let model = load.bury();
    let service = reopen(dir, &["--cpumask", "0x2"]);
    let mut load = Load::new(&service.data("nbd.sock"), "c", 2, model);
    load.verify();
    flush_cache(&service, PATIENCE);
    let (dir, _) = stop_within(service, STOP);
    settle_file(&mut load.model, &dir.path().join("disk.img"));
}

#[test]
fn a_stop_with_a_failing_backing_loses_nothing() {
    stop_with_dead_disk("failure");
}

#[test]
fn a_stop_with_a_backing_that_never_answers_loses_nothing() {
    stop_with_dead_disk("pending");
}
