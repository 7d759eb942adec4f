//! A seeded generator for tests, and where its seed comes from.

/// SplitMix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// An index below `limit`.
    pub(crate) fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }

    /// True `n` times in a thousand.
    pub(crate) fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }
}

/// The seed that `PMCACHE_SEED` names, or one from the clock: every run tries something new, and the
/// failure message of a test says the seed with which it can be tried again.
pub(crate) fn seed() -> u64 {
    match std::env::var("PMCACHE_SEED") {
        Ok(text) => text.parse().expect("PMCACHE_SEED is a number"),
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |d| u64::from(d.subsec_nanos()) ^ d.as_secs()),
    }
}

/// Whether the long versions of tests shall run (`scripts/test` without `--quick`).
pub(crate) fn is_full_run() -> bool {
    std::env::var("PMCACHE_TEST_SCALE").is_ok_and(|scale| scale == "full")
}

/// Says the seed if the test fails.
pub(crate) struct SaySeed(pub(crate) u64);

impl Drop for SaySeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to try this again: PMCACHE_SEED={}", self.0);
        }
    }
}
