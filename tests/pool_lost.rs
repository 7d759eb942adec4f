//! A pool file that is cut short under a running service: what was in it is an I/O error, the service
//! goes on with the rest. What was not missed is there once the file is whole again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{Done, Fleet, Io, Layout, cache, flush_cache, reopen, stop_within};
use common::{PATIENCE, Service};
use pmcache::cache::{SEGMENT_CONTROL_BYTES, data_start, log_reserve};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SEGMENT: u64 = 256 << 10;
const SEGMENTS: u64 = 48;
const BLOCK: u64 = 32 << 10;

const LAYOUT: Layout = Layout {
    segment_bytes: SEGMENT,
    segments: SEGMENTS,
    lanes: 1,
    disk_bytes: 16 << 20,
    // Nothing is closed by age in the middle of a step.
    kset_flush_ms: 60_000,
    may_fail: false,
    persistence: "msync",
};

/// A service and one client of it.
struct Client {
    service: Service,
    fleet: Fleet,
}

impl Client {
    fn of(service: Service) -> Self {
        let fleet = Fleet::connect(&service.data("nbd.sock"), "c", 1);
        Self { service, fleet }
    }

    fn run(&mut self, io: &Io) -> Done {
        let cookie = self.fleet.submit(0, io);
        loop {
            let done = self.fleet.pump(PATIENCE).expect("the service is alive");
            if let Some(done) = done.into_iter().next() {
                assert_eq!(done.cookie, cookie);
                return done;
            }
        }
    }

    fn write(&mut self, block: u64, byte: u8, fua: bool) -> u32 {
        let data = vec![byte; usize::try_from(BLOCK).unwrap()];
        let offset = block * BLOCK;
        self.run(&Io::Write { offset, data, fua }).error
    }

    fn read(&mut self, block: u64) -> Result<Vec<u8>, u32> {
        let len = u32::try_from(BLOCK).unwrap();
        let offset = block * BLOCK;
        let done = self.run(&Io::Read { offset, len });
        match done.error {
            0 => Ok(done.data),
            error => Err(error),
        }
    }

    fn state(&self) -> String {
        cache(&self.service)["state"].as_str().unwrap().to_owned()
    }

    fn lost_bytes(&self) -> u64 {
        let devices = self
            .service
            .call("bdev_pmem_get_devices", json!({"name": "pm"}));
        devices[0]["lost_bytes"].as_u64().unwrap()
    }

    fn pool_file(&self) -> File {
        let path = self.service.dir().join("pool.pmem");
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(path).unwrap()
    }
}

fn is(block: &[u8], byte: u8) -> bool {
    block.iter().all(|b| *b == byte)
}

#[test]
fn half_a_pool_can_vanish_under_a_service_and_come_back() {
    let mut client = Client::of(LAYOUT.create(&[]));
    // What is lost shall not be missed by writeback before it is read here. Once room is scarce it is in
    // a hurry all the same, and misses what is not read.
    let options = json!({"name": "c", "writeback_delay_ms": 600_000});
    client.service.call("bdev_pmcache_set_options", options);
    let blocks = 96_u64;
    for block in 0..blocks {
        assert_eq!(client.write(block, 1, false), 0);
    }
    assert_eq!(client.run(&Io::Flush).error, 0);
    // The log and the first data segments stay.
    let kept = 1 + u64::from(log_reserve(1, SEGMENT)) + 5;
    let cut = data_start(SEGMENT) + kept * SEGMENT;
    let file = client.pool_file();
    let whole = file.metadata().unwrap().len();
    let mut rest = vec![0; usize::try_from(whole - cut).unwrap()];
    file.read_exact_at(&mut rest, cut).unwrap();
    assert_eq!(client.lost_bytes(), 0);
    file.set_len(cut).unwrap();

    // Every other block is read: what can't be had is BAD from then on.
    let mut lost = Vec::new();
    for block in (0..blocks).step_by(2) {
        match client.read(block) {
            Ok(data) => assert!(is(&data, 1), "block {block}"),
            Err(error) => {
                assert_eq!(error, 5, "EIO");
                lost.push(block);
            }
        }
    }
    assert!((1..blocks / 2).contains(&(lost.len() as u64)), "{lost:?}");
    assert!(client.lost_bytes() > 0);
    // One of the blocks may be lost only as far as it reached into the next segment.
    let bytes = lost.len() as u64 * BLOCK;
    let bad = cache(&client.service)["bad_bytes"].as_u64().unwrap();
    assert!(bad > bytes - BLOCK && bad <= bytes, "{bad} of {bytes}");
    // All free segments are gone: each write fails in another one, and changes nothing.
    for block in 0..20 {
        assert_eq!(client.write(block, 2, block % 7 == 0), 5, "EIO");
    }
    assert!(is(&client.read(0).unwrap(), 1));
    // The log still takes what has no data.
    let (offset, len) = (blocks * BLOCK, 1 << 20);
    let zero = Io::Zero {
        offset,
        len,
        trim: false,
    };
    assert_eq!(client.run(&zero).error, 0);
    assert_eq!(client.run(&Io::Flush).error, 0);
    let shown = cache(&client.service);
    let bad = shown["segments"]["bad"].as_u64().unwrap();
    assert!((20..SEGMENTS - kept).contains(&bad), "{bad}");
    // Those between them that writeback has missed meanwhile are BAD, too, and nothing else.
    let bad = shown["bad_bytes"].as_u64().unwrap();
    assert!(
        bad > bytes - BLOCK && bad <= 2 * bytes + BLOCK,
        "{bad} of {bytes}"
    );
    assert_eq!(client.state(), "running");

    let dir = client.service.kill();
    file.write_all_at(&rest, cut).unwrap();
    let mut client = Client::of(reopen(dir, &[]));
    for block in 0..blocks {
        match client.read(block) {
            Ok(data) => assert!(is(&data, 1) && !lost.contains(&block), "block {block}"),
            Err(error) => {
                let is_near = lost.iter().any(|lost| lost.abs_diff(block) <= 1);
                assert!(error == 5 && is_near, "block {block}");
            }
        }
        assert_eq!(client.write(block, 3, false), 0);
    }
    flush_cache(&client.service, Duration::from_secs(60));
    let dir = client.service.stop();
    let disk = std::fs::read(dir.path().join("disk.img")).unwrap();
    assert!(is(&disk[..usize::try_from(blocks * BLOCK).unwrap()], 3));
}

#[test]
fn a_log_that_vanishes_ends_the_pool_and_not_the_service() {
    let mut client = Client::of(LAYOUT.create(&[]));
    assert_eq!(client.write(0, 1, true), 0);
    let log = data_start(SEGMENT) + SEGMENT_CONTROL_BYTES;
    client.pool_file().set_len(log).unwrap();
    assert_ne!(client.write(1, 2, true), 0);
    assert_eq!(client.read(0), Err(5));
    // By the first kset that could not be stored, if not by that write.
    client.run(&Io::Flush);
    for block in 2..60 {
        assert_ne!(client.write(block, 2, true), 0);
    }
    assert_eq!(client.state(), "read_only");
    // A miss is served as ever.
    assert!(is(&client.read(200).unwrap(), 0));
    stop_within(client.service, Duration::from_secs(30));
}
