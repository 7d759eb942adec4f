//! fio works on one export, and checks what it reads, while everything else changes around it.
//!
//! No error may reach it. How much the changes cost is told, as a ratio of the slowest hundredth of its
//! writes in write-back with and without them in the same run; it depends on the machine, so nothing is
//! asserted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{Layout, Random, cache, elapsed, pause, start, stats, stop_within, tool};
use common::{Service, pmcache};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, SystemTime};

const SEGMENT_BYTES: u64 = 512 << 10;
const DISK_BYTES: u64 = 24 << 20;

/// How long fio works alone, and while things change.
fn times() -> (Duration, Duration) {
    let full = std::env::var("PMCACHE_TEST_SCALE").is_ok_and(|scale| scale == "full");
    let seconds = if full { (20, 60) } else { (4, 8) };
    let [alone, disturbed] = [seconds.0, seconds.1].map(Duration::from_secs);
    (alone, disturbed)
}

/// A pool with room for other caches beside the one under test.
fn service() -> Service {
    let layout = Layout {
        segment_bytes: SEGMENT_BYTES,
        segments: 48,
        lanes: 2,
        disk_bytes: DISK_BYTES,
        kset_flush_ms: 1000,
        may_fail: false,
        persistence: "auto",
    };
    let service = layout.create_with_room(&[], 48);
    let scratch = json!({"name": "scratch", "block_size": 512, "num_blocks": 16 << 10});
    service.call("bdev_malloc_create", scratch);
    service
}

/// fio, which runs for `time` and writes down each latency.
fn fio(service: &Service, time: Duration) -> Child {
    let dir = service.dir().display();
    let uri = format!("nbd+unix:///c?socket={dir}/data/nbd.sock");
    start(
        "fio",
        &[
            "--name=torture",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=4",
            "--rate_iops=4000",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--serialize_overlap=1",
            "--time_based",
            &format!("--size={DISK_BYTES}"),
            &format!("--runtime={}", time.as_secs()),
            "--log_unix_epoch=1",
            &format!("--write_lat_log={dir}/fio"),
            &format!("--output={dir}/fio.out"),
            &format!("--aux-path={dir}"),
        ],
    )
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap()
}

/// When each write of fio's ended (ms since 1970), and how long it took (ns).
fn latencies(dir: &Path) -> Vec<(u64, u64)> {
    const WRITE: &str = "1";
    let log = std::fs::read_to_string(dir.join("fio_lat.1.log")).unwrap();
    let lines = log.lines().map(|line| line.split(", ").collect::<Vec<_>>());
    let writes = lines.filter(|fields| fields[2] == WRITE);
    writes
        .map(|fields| (fields[0].parse().unwrap(), fields[1].parse().unwrap()))
        .collect()
}

/// The latency that 99 of 100 do not exceed.
fn p99(latencies: impl Iterator<Item = u64>) -> u64 {
    let mut all: Vec<u64> = latencies.collect();
    all.sort_unstable();
    assert!(!all.is_empty(), "fio wrote nothing");
    all[(all.len() * 99 / 100).min(all.len() - 1)]
}

/// The hand that stirs.
struct Hand {
    service: Service,
    random: Random,
    /// When the cache was in write-back, in ms since 1970; the last interval lasts.
    written_back: Vec<(u64, u64)>,
    /// How often each change was made.
    made: std::collections::BTreeMap<&'static str, u64>,
}

impl Hand {
    fn stir(&mut self) {
        type Change = fn(&mut Hand);
        const CHANGES: &[(&str, Change)] = &[
            ("options", Hand::set_options),
            ("save", Hand::save),
            ("beside", Hand::make_one_beside),
            ("look", Hand::look),
            ("resize", Hand::resize),
            ("mode", Hand::switch_mode),
        ];
        let count = u64::try_from(CHANGES.len()).unwrap();
        let chosen = usize::try_from(self.random.below(count)).unwrap();
        let (name, change) = CHANGES[chosen];
        change(self);
        *self.made.entry(name).or_default() += 1;
    }

    fn set_options(&mut self) {
        let orders = ["adaptive", "strict", "relaxed"];
        let order = orders[usize::try_from(self.random.below(3)).unwrap()];
        let params = json!({
            "name": "c",
            "writeback_order": order,
            "writeback_depth": 1 + self.random.below(64),
            "kset_flush_ms": 1 + self.random.below(1000),
            "gc_percent": 40 + self.random.below(50),
            "verify_reads": self.random.chance(50),
        });
        assert_eq!(self.service.call("bdev_pmcache_set_options", params), true);
    }

    /// The configuration is the same whatever goes on, as long as no cache comes or goes.
    fn save(&mut self) {
        let save = || {
            let args = ["config", "save", "--data-dir", "data"];
            let done = pmcache()
                .args(args)
                .current_dir(self.service.dir())
                .output();
            let done = done.unwrap();
            assert!(done.status.success(), "{done:?}");
            done.stdout
        };
        assert!(save() == save(), "two saves differ");
    }

    /// Another cache in the same pool, for a moment.
    fn make_one_beside(&mut self) {
        let params = json!({
            "name": "beside",
            "pool": "p",
            "backing_bdev": "scratch",
            "size": (24 + self.random.below(16)) * SEGMENT_BYTES,
            "lanes": 1,
        });
        self.service.call("bdev_pmcache_create", params);
        let export = json!({"bdev_name": "beside"});
        self.service.call("nbd_export_add", export);
        let named = json!({"name": "beside"});
        self.service.call("nbd_export_remove", named.clone());
        self.service.call("bdev_pmcache_destroy", named);
    }

    /// More or less space for the cache under test; what is left is enough for one beside it.
    fn resize(&mut self) {
        // A shrink that takes long goes on by itself, and no other may begin meanwhile.
        if cache(&self.service)["resize"].is_null() {
            let size = (40 + self.random.below(17)) * SEGMENT_BYTES;
            let params = json!({"name": "c", "size": size});
            self.service.call("bdev_pmcache_resize", params);
        }
    }

    /// Another mode for a moment, and back.
    fn switch_mode(&mut self) {
        let modes = ["wt", "wa", "wo", "pt"];
        let mode = modes[usize::try_from(self.random.below(4)).unwrap()];
        self.set_mode(mode);
        pause(Duration::from_millis(200));
        self.set_mode("wb");
    }

    fn set_mode(&mut self, mode: &str) {
        let params = json!({"name": "c", "mode": mode});
        if mode != "wb"
            && let Some(interval) = self.written_back.last_mut()
        {
            interval.1 = now_ms();
        }
        assert_eq!(self.service.call("bdev_pmcache_set_mode", params), mode);
        if mode == "wb" {
            self.written_back.push((now_ms(), u64::MAX));
        }
    }

    fn look(&mut self) {
        stats(&self.service);
        self.service.call("bdev_get_bdevs", Value::Null);
        self.service.call("bdev_get_iostat", Value::Null);
        assert_eq!(
            self.service.call("service_get_health", Value::Null)["degraded"],
            json!([])
        );
    }
}

#[test]
fn fio_sees_no_error_while_everything_changes_around_it() {
    if !tool("fio") {
        return;
    }
    let service = service();
    let (alone, disturbed) = times();
    let mut fio = fio(&service, alone + disturbed);
    // The first second is fio's own.
    pause(Duration::from_secs(1));
    let from = now_ms();
    pause(alone.saturating_sub(Duration::from_secs(1)));
    let between = now_ms();
    let mut hand = Hand {
        service,
        random: Random::new("torture"),
        written_back: vec![(between, u64::MAX)],
        made: std::collections::BTreeMap::default(),
    };
    let begun = SystemTime::now();
    while elapsed(begun) < disturbed.saturating_sub(Duration::from_secs(1)) {
        hand.stir();
    }
    let to = now_ms();
    let Hand {
        service,
        written_back,
        made,
        ..
    } = hand;
    let status = fio.wait().unwrap();
    let said = std::fs::read_to_string(service.dir().join("fio.out")).unwrap_or_default();
    assert!(status.success(), "{status}: {said}");
    assert!(made.len() > 1, "{made:?}");
    assert_eq!(cache(&service)["bad_bytes"], 0);

    let latencies = latencies(service.dir());
    // What began in another mode may end behind its interval.
    let within = |intervals: &[(u64, u64)]| {
        let begun = |at: u64, took: u64| at.saturating_sub(took / 1_000_000 + 1);
        let is_in = |at: u64, took: u64| {
            let mut all = intervals.iter();
            all.any(|(from, to)| *from <= begun(at, took) && at < *to)
        };
        let chosen = latencies.iter().filter(|(at, took)| is_in(*at, *took));
        p99(chosen.map(|(_, took)| *took))
    };
    let quiet = within(&[(from, between)]);
    let whole = within(&[(between, to)]);
    let stirred = within(&written_back);
    let percent = stirred * 100 / quiet.max(1);
    eprintln!(
        "p99 of fio's writes: {quiet} ns alone; {stirred} ns in write-back while {made:?}: \
         {percent} %; {whole} ns in all modes"
    );
    stop_within(service, Duration::from_secs(10));
}
