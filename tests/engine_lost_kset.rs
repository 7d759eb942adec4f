//! Ksets that can't be read any more while the cache runs: before the dirty tail GC goes on, behind it
//! writeback does, and nobody loses anything.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{IoStatus, MallocBdev, MallocConfig, Op, Pmem};
use pmcache::cache::{CacheOptions, check_pmem};
use pmcache::units::{ByteRange, SegmentId};
use rig::RigConfig;
use rig::bench::{Bench, How, VOLUME, malloc, pattern, range};
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use std::ops::Range;
use std::sync::Arc;

const EIO: Result<Vec<u8>, IoStatus> = Err(IoStatus::IoError);

/// A cache of which it is known where its ksets stand, and what must be read from it.
struct Lossy {
    b: Bench,
    model: Vec<u8>,
    writes: u64,
}

impl Lossy {
    fn new(lanes: u32, options: CacheOptions) -> Self {
        let config = RigConfig {
            lanes,
            options,
            ..RigConfig::default()
        };
        let model = vec![0; usize::try_from(VOLUME).unwrap()];
        Self {
            b: Bench::over(config, malloc()),
            model,
            writes: 0,
        }
    }

    fn write(&mut self, at: u64, len: u64) {
        self.writes += 1;
        let bytes = pattern(self.writes, usize::try_from(len).unwrap());
        let from = usize::try_from(at).unwrap();
        self.model[from..from + bytes.len()].copy_from_slice(&bytes);
        self.b.write(at, &bytes);
    }

    fn zero(&mut self, at: u64, len: u64) {
        let (from, to) = (
            usize::try_from(at).unwrap(),
            usize::try_from(at + len).unwrap(),
        );
        self.model[from..to].fill(0);
        let op = Op::WriteZeroes {
            may_unmap: false,
            fua: false,
        };
        self.b.act(op, range(at, len));
    }

    /// Where the log goes on, as a place on the medium.
    fn head(&self) -> u64 {
        let (segment, offset) = self.b.cache().status().key_head;
        let geometry = self.b.rig.pool.geometry();
        geometry.data_at(SegmentId(segment)) + u64::from(offset)
    }

    /// Makes ksets of what is open, and of what `act` does; says where they stand, if all of it is in
    /// one segment.
    fn kset(&mut self, act: impl FnOnce(&mut Self)) -> Range<u64> {
        self.b.flush();
        let begin = self.head();
        act(self);
        self.b.flush();
        begin..self.head()
    }

    fn damage(&self, kset: &Range<u64>, how: How) {
        match how {
            How::Flipped => self.b.pmem.flip(kset.start + 64, 8),
            How::Poisoned => self.b.pmem.refuse_loads(kset.start..kset.start + 64),
        }
    }

    fn verify(&mut self) {
        for at in (0..VOLUME).step_by(1 << 20) {
            let from = usize::try_from(at).unwrap();
            let found = self.b.read(at, 1 << 20).unwrap();
            let differs = (0..found.len()).find(|&i| found[i] != self.model[from + i]);
            assert_eq!(differs.map(|i| at + i as u64), None, "byte read");
        }
    }

    /// Everything is on the backing, and nothing is wrong any more.
    fn verify_backing(&mut self) {
        self.b.rig.flush_all();
        self.b
            .until("runs", |cache| cache.status().state == "running");
        for at in (0..VOLUME).step_by(1 << 20) {
            let from = usize::try_from(at).unwrap();
            let found = self.b.read_backing(at, 1 << 20);
            let differs = (0..found.len()).find(|&i| found[i] != self.model[from + i]);
            assert_eq!(differs.map(|i| at + i as u64), None, "byte of the backing");
        }
    }

    /// Writes more than the cache holds, several times.
    fn churn(&mut self) {
        for _ in 0..2 {
            for at in (0..VOLUME).step_by(64 << 10) {
                self.write(at, 64 << 10);
            }
        }
    }

    fn lost(&self) -> u64 {
        self.b.cache().gc_figures().lost_ksets
    }

    /// Stops, finds nothing to complain about, and loads again.
    fn restart(&mut self) {
        self.b
            .until("the key tail is behind it", |cache| !cache.is_log_lost());
        self.b.channel = None;
        self.b.rig.stop();
        let pmem: Arc<dyn Pmem> = Arc::new(self.b.pmem.clone());
        let report = check_pmem(&pmem).unwrap();
        assert!(report.is_clean(), "{report:?}");
        self.b.rig.load();
        self.b.open();
    }
}

#[test]
fn gc_passes_a_kset_that_can_not_be_read() {
    for how in [How::Flipped, How::Poisoned] {
        let mut t = Lossy::new(1, CacheOptions::default());
        let kset = t.kset(|t| {
            t.write(0, 64 << 10);
            t.zero(1 << 20, 8192);
        });
        t.write(4096, 8192);
        t.verify_backing();
        t.damage(&kset, how);
        t.verify();
        t.churn();
        t.churn();
        assert_eq!(t.lost(), 1, "{how:?}");
        t.verify();
        t.verify_backing();
        let suspects = t.b.cache().status().segments_bad;
        assert_eq!(suspects, u32::from(how == How::Poisoned));
        t.restart();
        t.verify();
    }
}

#[test]
fn writeback_passes_a_kset_that_can_not_be_read_and_loses_nothing() {
    for how in [How::Flipped, How::Poisoned] {
        let mut t = Lossy::new(1, CacheOptions::default());
        t.write(0, 32 << 10);
        let kset = t.kset(|t| {
            t.write(8192, 32 << 10);
            t.write(128 << 10, 4096);
            t.zero(1 << 20, 200 << 10);
        });
        // Parts are left of each of its keys.
        t.write(16 << 10, 512);
        t.write(1 << 20, 8192);
        t.b.flush();
        t.write(10 << 10, 1024);
        t.damage(&kset, how);
        t.verify_backing();
        assert_eq!(t.lost(), 1, "{how:?}");
        assert!(t.b.cache().figures().settled >= 5);
        t.verify();
        t.restart();
        t.verify();
        t.churn();
        t.verify();
        t.verify_backing();
    }
}

#[test]
fn what_is_lost_from_several_ksets_survives_a_power_cut() {
    let mut t = Lossy::new(3, CacheOptions::default());
    let mut ksets = Vec::new();
    for round in 0..6 {
        ksets.push(t.kset(|t| t.write(round * 8192, 12 << 10)));
    }
    t.damage(&ksets[1], How::Poisoned);
    t.damage(&ksets[2], How::Flipped);
    t.damage(&ksets[4], How::Flipped);
    t.verify_backing();
    t.write(0, 4096);
    t.b.flush();
    t.b.until("passed", |cache| !cache.is_log_lost());
    assert_eq!(t.lost(), 3);
    let mut rng = Rng::new(1);
    let Lossy { b, model, writes } = t;
    let b = b.lose_power(&mut rng);
    let mut t = Lossy { b, model, writes };
    t.verify();
    t.churn();
    t.verify_backing();
}

#[test]
fn a_log_that_comes_back_does_not_make_gc_forget_its_successor() {
    let mut t = Lossy::new(1, CacheOptions::default());
    let kset = t.kset(|t| t.write(0, 4096));
    t.damage(&kset, How::Poisoned);
    // Settled, and not passed by the key tail.
    t.b.cache().flush_start();
    t.b.until("settled", |cache| cache.gc_figures().lost_ksets > 0);
    t.b.pmem.heal();
    let Lossy { b, model, writes } = t;
    let mut t = Lossy {
        b: b.die(),
        model,
        writes,
    };
    for _ in 0..2 {
        for at in (1 << 20..VOLUME).step_by(64 << 10) {
            t.write(at, 64 << 10);
        }
    }
    t.verify();
    t.verify_backing();
}

#[test]
fn bad_keys_of_a_lost_kset_stay_bad() {
    let mut t = Lossy::new(1, CacheOptions::default());
    t.b.write_backing(0, &[7; 16 << 10]);
    let lost = pattern(1 << 20, 8192);
    t.b.write(4096, &lost);
    t.b.flush();
    t.b.damage(&lost, How::Flipped);
    let begin = t.head();
    t.b.rig.flush_all();
    assert_eq!(t.b.cache().bad_bytes(), 8192);
    let kset = begin..t.head();
    t.b.until("behind", |cache| {
        cache.status().dirty_tail.2 > cache.status().durable_sequence
    });
    t.damage(&kset, How::Flipped);
    for at in (1 << 20..VOLUME).step_by(64 << 10) {
        t.write(at, 64 << 10);
    }
    t.b.until("passed", |cache| cache.gc_figures().lost_ksets == 1);
    assert_eq!(t.b.read(4096, 8192), EIO);
    t.b.flush();
    t.b.until("passed", |cache| !cache.is_log_lost());
    let mut b = t.b.lose_power(&mut Rng::new(3));
    assert_eq!(b.cache().bad_bytes(), 8192);
    assert_eq!(b.read(4096, 8192), EIO);
    assert_eq!(b.read(0, 4096).unwrap(), [7; 4096]);
}

#[test]
fn the_rest_of_a_log_segment_may_be_unreadable_and_the_next_start_too() {
    for start_too in [false, true] {
        // Writeback has passed nothing of it.
        let options = CacheOptions {
            writeback_delay_ms: u32::MAX,
            ..CacheOptions::default()
        };
        let mut t = Lossy::new(1, options);
        let first = t.b.cache().status().key_head.0;
        let kset = t.kset(|t| t.write(0, 64 << 10));
        let mut at = 0;
        while t.b.cache().status().segments_log < 3 {
            at = (at + 4096) % (1 << 20);
            t.write(at, 512);
            t.b.flush();
        }
        let geometry = t.b.rig.pool.geometry();
        let id = SegmentId(first);
        let end = geometry.segment_start(id) + (256 << 10);
        t.b.pmem.refuse_loads(kset.start..end);
        if start_too {
            let (next, ..) = (first + 1, 0);
            let control =
                geometry.segment_start(SegmentId(next))..geometry.data_at(SegmentId(next));
            t.b.pmem.refuse_loads(control);
        }
        t.verify();
        t.verify_backing();
        assert!(t.lost() > 1000);
        t.verify();
        t.churn();
        t.verify();
        t.verify_backing();
        if !start_too {
            t.restart();
            t.verify();
        }
    }
}

#[test]
fn a_head_without_its_start_loses_only_the_last_that_led_there() {
    let mut t = Lossy::new(1, CacheOptions::default());
    let mut at = 0;
    while t.b.cache().status().segments_log < 2 {
        at = (at + 4096) % (1 << 20);
        t.write(at, 512);
        t.b.flush();
    }
    for at in (0..64 << 10).step_by(4096) {
        t.write(at, 4096);
        t.b.flush();
    }
    let geometry = t.b.rig.pool.geometry();
    let head = SegmentId(t.b.cache().status().key_head.0);
    t.b.pmem
        .refuse_loads(geometry.segment_start(head)..geometry.data_at(head));
    t.verify_backing();
    assert_eq!(t.lost(), 1);
    assert_eq!(t.b.cache().figures().settled, 0);
    t.verify();
    t.churn();
    t.verify();
    t.verify_backing();
}

/// Marking a large index takes many rounds: what is written meanwhile has no mark, though its kset has its
/// place before all is marked.
#[test]
fn a_kset_that_came_while_keys_were_marked_may_be_lost_too() {
    const LARGE: u64 = 256 << 20;
    for wait in 0..8 {
        let config = MallocConfig {
            name: "disk0".into(),
            uuid: uuid::Uuid::from_bytes([9; 16]),
            block_size: 512,
            blocks: LARGE / 512,
        };
        let backing = Arc::new(MallocBdev::new(config).unwrap());
        let mut b = Bench::over(RigConfig::default(), backing);
        for at in (0..LARGE).step_by(4 << 20) {
            b.write(at, &pattern(at, 512));
        }
        let place = |b: &Bench| {
            let (segment, offset) = b.cache().status().key_head;
            let geometry = b.rig.pool.geometry();
            geometry.data_at(SegmentId(segment)) + u64::from(offset)
        };
        b.flush();
        let first = place(&b);
        b.write(8192, &pattern(1, 4096));
        b.flush();
        b.pmem.flip(first + 64, 8);
        b.cache().flush_start();
        b.until("degraded", |cache| cache.status().state == "degraded");
        for _ in 0..wait {
            b.rig.step();
        }
        let second = place(&b);
        let newest = pattern(2, 4096);
        let mut channel = b.channel.take().unwrap();
        b.rig.write(&mut *channel, 0, &newest, true);
        b.channel = Some(channel);
        b.pmem.flip(second + 64, 8);
        b.rig.flush_all();
        assert_eq!(b.cache().gc_figures().lost_ksets, 2, "wait {wait}");
        assert!(b.read_backing(8192, 4096) == pattern(1, 4096), "{wait}");
        assert!(b.read_backing(0, 4096) == newest, "{wait}");
        assert!(b.read(0, 4096).unwrap() == newest, "{wait}");
    }
}

/// Random requests, while ksets that can be anywhere in the log are damaged.
fn storm(seed: u64) -> u64 {
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let options = CacheOptions {
        gc_percent: rng.pick(&[0, 30, 70]),
        ..CacheOptions::default()
    };
    let lanes = rng.pick(&[1, 3]);
    let mut t = Lossy::new(lanes, options);
    let mut ksets: Vec<(u64, Range<u64>)> = Vec::new();
    let mut damaged = 0;
    for _ in 0..rng.below(400) + 100 {
        let block = rng.below(VOLUME / 512);
        let left = (VOLUME / 512 - block).min(128);
        let len = (rng.below(left) + 1) * 512;
        match rng.below(20) {
            0..=8 => t.write(block * 512, len),
            9 => t.zero(block * 512, len),
            10..=12 => {
                let found = t.b.read(block * 512, len).unwrap();
                let from = usize::try_from(block * 512).unwrap();
                assert!(
                    found == t.model[from..from + found.len()],
                    "at {}",
                    block * 512
                );
            }
            13..=16 => {
                let kset = t.kset(|t| t.write(block * 512, len));
                if kset.start < kset.end {
                    ksets.push((t.b.cache().status().key_head_sequence, kset));
                }
            }
            17 => t.b.act(Op::Flush, ByteRange::default()),
            18 => {
                for _ in 0..rng.below(3000) {
                    t.b.rig.step();
                }
            }
            _ => {
                if !ksets.is_empty() && damaged < 4 {
                    // The newest are what writeback has not seen.
                    let back = rng.below(ksets.len().min(8) as u64);
                    let place = ksets.len() - 1 - usize::try_from(back).unwrap();
                    let (sequence, kset) = ksets.remove(place);
                    // Else something else may stand there now.
                    if sequence > t.b.cache().status().key_tail.2 {
                        t.damage(&kset, How::Flipped);
                        damaged += 1;
                    }
                }
            }
        }
        if rng.permille(10) {
            t.verify_backing();
        }
    }
    t.verify_backing();
    t.verify();
    let lost = t.lost();
    t.churn();
    t.verify_backing();
    t.restart();
    t.verify();
    lost
}

#[test]
fn any_kset_may_be_lost_at_any_time() {
    let count = if is_full_run() { 300 } else { 25 };
    let first = seed();
    let lost: u64 = (0..count).map(|round| storm(first + round)).sum();
    assert!(lost > count / 4, "{lost} ksets were lost");
}
