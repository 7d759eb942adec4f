//! A controller that says bytes, right or wrong, and an initiator bdev on a reactor driven by hand.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod driver;
pub(crate) mod fake;
pub(crate) mod peer;

use std::time::{Duration, SystemTime};

/// Waits until `condition` holds; stops the test after 20 seconds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = SystemTime::now();
    while !condition() {
        let waited = begun.elapsed().unwrap_or_default();
        assert!(waited < Duration::from_secs(20), "never happened: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 512 * 7) % 251).unwrap() ^ seed)
        .collect()
}
