//! Random requests, damages of the medium, and deaths: whatever is damaged, a read gives the newest bytes
//! or an error, never others.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{IoStatus, Op};
use pmcache::cache::CacheOptions;
use rig::RigConfig;
use rig::bench::{Bench, pattern, range};
use rig::rng::{Rng, SaySeed, is_full_run, seed};

/// Volumes of two subtrees that random requests, damages and deaths meet, and what they must hold.
struct Storm {
    bench: Option<Bench>,
    model: Vec<u8>,
    rng: Rng,
    failed: u64,
    served: u64,
    relogged: u64,
}

const SPAN: u64 = 512 << 10;

impl Storm {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let lanes = rng.pick(&[1, 3]);
        let bench = Bench::new(RigConfig {
            lanes,
            reactors: rng.pick(&[1, 2]),
            segments: u64::from(lanes) * 10 + rng.below(3),
            seed: rng.next(),
            options: CacheOptions {
                verify_reads: true,
                gc_percent: rng.pick(&[0, 30, 70]),
                // Writeback works when a test says so, or somebody waits for space.
                dirty_low_percent: 100,
                dirty_high_percent: 100,
                ..CacheOptions::default()
            },
            ..RigConfig::default()
        });
        Self {
            bench: Some(bench),
            model: vec![0; usize::try_from(2 * SPAN).unwrap()],
            rng,
            failed: 0,
            served: 0,
            relogged: 0,
        }
    }

    fn b(&mut self) -> &mut Bench {
        self.bench.as_mut().unwrap()
    }

    /// Where byte `at` of the model is on the volume.
    fn offset(at: u64) -> u64 {
        if at < SPAN { at } else { at - SPAN + (4 << 20) }
    }

    fn write(&mut self, at: u64, len: usize) {
        let bytes = pattern(self.rng.next(), len);
        self.b().write(Self::offset(at), &bytes);
        let from = usize::try_from(at).unwrap();
        self.model[from..from + len].copy_from_slice(&bytes);
    }

    fn read(&mut self, at: u64, len: usize) {
        match self.b().read(Self::offset(at), len as u64) {
            Ok(bytes) => {
                let from = usize::try_from(at).unwrap();
                assert!(bytes == self.model[from..from + len], "{at}+{len}");
                self.served += 1;
            }
            Err(status) => {
                assert_eq!(status, IoStatus::IoError);
                self.failed += 1;
            }
        }
    }

    /// Damages whatever has the bytes that the model has there.
    fn damage(&mut self, at: u64) {
        // Not between verifying and writing back, which nobody can see.
        for _ in 0..500 {
            self.b().rig.step();
        }
        let from = usize::try_from(at).unwrap();
        let value = self.model[from..from + 512].to_vec();
        if value.iter().any(|&byte| byte != 0) {
            for place in self.b().pmem.find(&value) {
                let at = place + 8 * self.rng.below(64);
                self.b().pmem.flip(at, 8);
            }
        }
    }

    fn die(&mut self, power: bool) {
        let mut bench = self.bench.take().unwrap();
        self.relogged += bench.cache().gc_figures().relogged;
        self.bench = Some(if power {
            bench.flush();
            bench.lose_power(&mut self.rng)
        } else {
            bench.die()
        });
    }

    fn step(&mut self) {
        let blocks = 1 + self.rng.below(16);
        let len = usize::try_from(blocks * 512).unwrap();
        let at = self.rng.below(SPAN / 512 - blocks) * 512 + self.rng.below(2) * SPAN;
        match self.rng.below(100) {
            0..45 => self.write(at, len),
            45..50 => {
                self.b()
                    .act(Op::Discard, range(Self::offset(at), len as u64));
                let from = usize::try_from(at).unwrap();
                self.model[from..from + len].fill(0);
            }
            50..80 => self.read(at, len),
            80..85 => self.b().flush(),
            85..90 => self.b().rig.flush_all(),
            90..96 => self.damage(at),
            96 => self.die(false),
            97 => self.die(true),
            // Also while lanes are being asked for BAD keys.
            98 => {
                self.b().cache().flush_start();
                for _ in 0..self.rng.below(40) {
                    self.b().rig.step();
                }
                self.b().restart();
            }
            _ => {
                self.b().rig.clock.advance(1_500_000_000);
                for _ in 0..self.rng.below(500) {
                    self.b().rig.step();
                }
            }
        }
    }

    /// All is overwritten at last: nothing is left of it.
    fn heal(&mut self) {
        self.b().rig.flush_all();
        let failed = self.failed;
        for at in (0..2 * SPAN).step_by(32 << 10) {
            self.write(at, 32 << 10);
            self.read(at, 32 << 10);
        }
        assert_eq!(self.failed, failed);
        assert_eq!(self.b().cache().bad_bytes(), 0);
        self.b().rig.flush_all();
        self.relogged += self.b().cache().gc_figures().relogged;
    }
}

/// Whatever is damaged, a read gives the newest bytes or an error.
#[test]
fn no_read_ever_gives_other_bytes_than_the_newest() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let (mut failed, mut served, mut relogged) = (0, 0, 0);
    for _ in 0..if is_full_run() { 40 } else { 8 } {
        let mut storm = Storm::new(rng.next());
        for _ in 0..1200 {
            storm.step();
        }
        storm.heal();
        failed += storm.failed;
        served += storm.served;
        relogged += storm.relogged;
    }
    println!("{served} reads served, {failed} failed, {relogged} BAD keys logged again");
    assert!(served > 0 && failed > 0 && relogged > 0);
}
