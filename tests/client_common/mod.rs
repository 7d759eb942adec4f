//! What the tests with real clients share: a service to be killed and opened again, NBD clients of
//! our own that know what must be there, and the tools that Debian ships.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes it, and uses a part of it"
)]

mod fleet;
mod load;
mod model;
mod setup;
mod tools;

#[allow(unused_imports, reason = "each test file uses its part")]
pub use {
    fleet::{Done, Fleet, FleetError, Io},
    load::{Load, Mix},
    model::{Model, SECTOR, SECTOR_BYTES},
    setup::{CONFIG, Layout, cache, flush_cache, reopen, settle_file, stats, stop_within},
    tools::{run, start, tool},
};

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

/// A small random generator (splitmix64): the seed is all there is to remember of a run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From the environment's `PMCACHE_SEED`, or the clock; prints it either way.
    pub fn new(test: &str) -> Self {
        let seed = match std::env::var("PMCACHE_SEED") {
            Ok(seed) => seed.parse().expect("PMCACHE_SEED is a number"),
            Err(_) => {
                let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                since.as_secs() ^ u64::from(since.subsec_nanos()) << 20
            }
        };
        eprintln!("{test}: PMCACHE_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// From 0 to `below` − 1.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    /// True in `percent` of the cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = count.div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}

/// Every bit of `word` decides about every bit of the result.
pub fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Waits until `condition` holds, looking a few hundred times a second; stops the test after `bound`.
pub fn wait_for(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let begun = SystemTime::now();
    while !condition() {
        assert!(
            elapsed(begun) < bound,
            "{what} does not happen in {bound:?}"
        );
        pause(Duration::from_millis(3));
    }
}

/// What a real clock has run since `begun`.
pub fn elapsed(begun: SystemTime) -> Duration {
    begun.elapsed().unwrap_or_default()
}

/// Lets the interval pass that a measurement is about.
pub fn pause(interval: Duration) {
    let (_keep, never) = channel::<()>();
    assert_eq!(never.recv_timeout(interval), Err(RecvTimeoutError::Timeout));
}
