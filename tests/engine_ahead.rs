//! Writeback under pressure: the next window is gathered while the current one is written; and a pool
//! with little room left lets writes in at the pace of the backing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{Channel, Completion, Data, DelayBdev, DelayLatencies, IoBuf, Op, Request};
use pmcache::bdev::{MallocBdev, MallocConfig};
use pmcache::cache::{CacheOptions, WritebackFigures, WritebackOrder};
use pmcache::units::ByteRange;
use rig::disks::VolatileDisk;
use rig::slow_pmem::SlowPmem;
use rig::{Rig, RigConfig, anonymous_pmem};
use std::sync::Arc;

const BLOCK: usize = 4096;
const VOLUME_BYTES: u64 = 16 << 20;

/// One lane on one reactor, and a disk that can stall.
struct Stalling {
    rig: Rig,
    disk: VolatileDisk,
    channel: Box<dyn Channel>,
    pmem: SlowPmem,
    _run_dir: tempfile::TempDir,
}

fn stalling(options: CacheOptions) -> Stalling {
    rig::inject_fault();
    let config = RigConfig {
        reactors: 1,
        lanes: 1,
        options,
        ..RigConfig::default()
    };
    let run_dir = tempfile::tempdir().unwrap();
    let pmem = SlowPmem::new((config.segments + 4) * config.segment_bytes, 0, 1);
    let disk = VolatileDisk::new(VOLUME_BYTES, 1);
    let (medium, backing) = (Arc::new(pmem.clone()), Arc::new(disk.clone()));
    let rig = Rig::new(&config, medium, backing, run_dir.path());
    let channel = rig.open(0);
    Stalling {
        rig,
        disk,
        channel,
        pmem,
        _run_dir: run_dir,
    }
}

/// The least dirty data are pressure.
fn pressed() -> CacheOptions {
    CacheOptions {
        dirty_low_percent: 0,
        dirty_high_percent: 0,
        ..CacheOptions::default()
    }
}

impl Stalling {
    /// Writes block `number` and ends the epoch.
    fn write(&mut self, number: u64, filler: u8) {
        let bytes = vec![filler; BLOCK];
        let at = number * BLOCK as u64;
        self.rig.write(&mut *self.channel, at, &bytes, true);
    }

    fn figures(&self) -> WritebackFigures {
        self.rig.cache.as_ref().unwrap().writeback_figures()
    }

    fn steps(&mut self, count: u32) {
        for _ in 0..count {
            self.rig.step();
        }
    }

    /// Steps until so many windows have been written; the disk stalls again then.
    fn finish_windows(&mut self, count: u64) {
        self.disk.stall(false);
        for _ in 0..10_000 {
            if self.figures().windows >= count {
                self.disk.stall(true);
                return;
            }
            self.rig.step();
        }
        panic!("{:?}", self.figures());
    }

    /// Writes all back, and looks at the disk alone.
    fn assert_disk_holds(&mut self, blocks: &[(u64, u8)]) {
        self.disk.stall(false);
        self.rig.flush_all();
        let image = self.disk.image_after_cut(&mut rig::rng::Rng::new(1));
        for &(number, filler) in blocks {
            let at = usize::try_from(number).unwrap() * BLOCK;
            let held = image[at..at + BLOCK].iter().all(|byte| *byte == filler);
            assert!(held, "block {number}: {} {:?}", image[at], self.figures());
        }
    }
}

#[test]
fn the_next_window_is_gathered_while_one_is_written() {
    let mut s = stalling(pressed());
    s.disk.stall(true);
    s.write(0, 1);
    s.steps(20);
    s.write(1, 2);
    s.write(0, 3);
    s.steps(20);
    s.finish_windows(3);
    assert!(s.figures().windows_ahead > 0, "{:?}", s.figures());
    s.assert_disk_holds(&[(0, 3), (1, 2)]);
}

#[test]
fn without_pressure_keys_grow_old_instead() {
    let mut s = stalling(CacheOptions {
        dirty_low_percent: 0,
        dirty_high_percent: 100,
        ..CacheOptions::default()
    });
    s.disk.stall(true);
    for round in 0..4 {
        s.write(round, 1);
        s.steps(20);
    }
    s.disk.stall(false);
    let cache = s.rig.cache.clone().unwrap();
    for _ in 0..10_000 {
        if cache.dirty_bytes() == 0 {
            break;
        }
        s.rig.clock.advance(1_000_000);
        s.rig.step();
    }
    assert!(s.figures().windows > 1, "{:?}", s.figures());
    assert_eq!(s.figures().windows_ahead, 0, "{:?}", s.figures());
    s.assert_disk_holds(&[(0, 1), (3, 1)]);
}

/// A window is what it may be when it begins to be written, and not when it was gathered.
#[test]
fn a_window_that_may_not_span_epochs_any_more_is_gathered_anew() {
    for order in [WritebackOrder::Adaptive, WritebackOrder::Strict] {
        let mut s = stalling(pressed());
        s.disk.stall(true);
        s.write(0, 1);
        s.steps(20);
        // The first window is being written: gathered ahead are the epochs of 1 and 2 as one window.
        for block in 1..4 {
            let range = ByteRange::between(block * BLOCK as u64, (block + 1) * BLOCK as u64);
            let data = Data::Buf(IoBuf::copy_of(&[2; BLOCK]));
            let write = request(Op::Write { fua: true }, range, data);
            s.channel.submit(s.rig.data[0].cx(), write);
        }
        s.steps(20);
        s.channel.poll(s.rig.data[0].cx(), &mut Vec::new());
        let cache = s.rig.cache.clone().unwrap();
        cache
            .set_options(CacheOptions {
                writeback_order: order,
                ..pressed()
            })
            .unwrap();
        s.finish_windows(3);
        let strict = order == WritebackOrder::Strict;
        assert_eq!(
            s.figures().spanning_windows == 0,
            strict,
            "{:?}",
            s.figures()
        );
        s.assert_disk_holds(&[(0, 1), (1, 2), (2, 2), (3, 2)]);
    }
}

/// Damage is found ahead, and handled when its window's turn comes.
#[test]
fn damaged_data_of_the_next_window_become_bad() {
    let mut s = stalling(pressed());
    s.disk.stall(true);
    s.write(0, 1);
    s.steps(20);
    let bytes = vec![7; BLOCK];
    s.rig.write(&mut *s.channel, BLOCK as u64, &bytes, true);
    s.write(2, 3);
    let at = s.pmem.find(&bytes)[0];
    s.pmem.flip(at, 512);
    s.steps(20);
    assert_eq!(s.figures().crc_errors, 0, "its window is not written yet");
    s.assert_disk_holds(&[(0, 1), (1, 0), (2, 3)]);
    assert_eq!(s.figures().crc_errors, 1);
    let cache = s.rig.cache.clone().unwrap();
    assert_eq!(cache.bad_bytes(), BLOCK as u64);
}

fn request(op: Op, range: ByteRange, data: Data) -> Request {
    Request {
        tag: 1,
        op,
        range,
        data,
    }
}

/// Little room is left: writes that come at once do not begin at once, though there is room for them, so
/// that none has to wait for a segment.
#[test]
fn writes_are_let_in_at_the_pace_of_a_slow_backing() {
    let run_dir = tempfile::tempdir().unwrap();
    let config = RigConfig {
        reactors: 1,
        lanes: 1,
        segments: 60,
        ..RigConfig::default()
    };
    let disk = MallocBdev::new(MallocConfig {
        name: "malloc0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: 64 << 11,
    })
    .unwrap();
    let latencies = DelayLatencies {
        avg_read_us: 500,
        p99_read_us: 500,
        avg_write_us: 500,
        p99_write_us: 500,
    };
    let slow = DelayBdev::new("slow0".into(), Arc::new(disk), latencies, None).unwrap();
    let pmem = anonymous_pmem("pool0", (config.segments + 4) * config.segment_bytes);
    let mut rig = Rig::new(&config, pmem, Arc::new(slow), run_dir.path());
    let mut channel = rig.open(0);
    let (mut sent, mut done, mut waits, mut held) = (0_u64, Vec::<Completion>::new(), 0, 0);
    let mut ended = 0_u64;
    for _ in 0..40_000 {
        while sent < ended + 16 {
            // Far apart: nothing merges.
            let at = sent * 5 % (8 << 10) * 2 * BLOCK as u64;
            let range = ByteRange::between(at, at + BLOCK as u64);
            let data = Data::Buf(IoBuf::zeroed(BLOCK));
            channel.submit(
                rig.data[0].cx(),
                request(Op::Write { fua: false }, range, data),
            );
            sent += 1;
        }
        channel.poll(rig.data[0].cx(), &mut done);
        ended += done.drain(..).count() as u64;
        let status = rig.cache.as_ref().unwrap().status();
        if status.waiting_lanes > 0 {
            waits += 1;
        } else if sent > ended {
            held += 1;
        }
        rig.step();
    }
    assert!(held > 1000, "{held} rounds in which a write was held back");
    // Until the rate is known writes take all there is.
    assert!(
        waits * 4 < held,
        "{waits} rounds of waiting for space, {held} of a pace"
    );
}
