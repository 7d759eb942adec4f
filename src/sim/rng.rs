//! The only source of chance in a run: one seed is one run.

use reactors::SplitMix64;

/// The chance of a run.
#[derive(Clone, Debug)]
pub(super) struct Rng(SplitMix64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.draw()
    }

    /// A generator of its own, such that what one draws does not move the other.
    pub(super) fn fork(&mut self) -> Self {
        Self::new(self.next())
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// An index below `limit`.
    pub(super) fn index(&mut self, limit: usize) -> usize {
        index(self.below(limit as u64))
    }

    /// True `n` times in a thousand.
    pub(super) fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// One of these; there is at least one.
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }
}

/// A simulated size or place as an index: all of them fit.
pub(super) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
