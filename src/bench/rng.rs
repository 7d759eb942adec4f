//! The generator of a job: seeded, so that a job can be run again.

use reactors::SplitMix64;

/// A job's chance.
#[derive(Clone, Debug)]
pub(super) struct Rng(SplitMix64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// 64 random bits.
    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0.draw()
    }

    /// One of `0..bound`, without a division; 0 if `bound` is 0.
    #[inline]
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Above 0, at most 1.
    #[inline]
    pub(super) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// True with a chance of `share` in 2^32.
    #[inline]
    pub(super) fn happens(&mut self, share: u64) -> bool {
        self.next() >> 32 < share
    }
}

/// A share between 0 and 1 as [`Rng::happens`] takes it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=2^32 before"
)]
pub(super) fn share(of_one: f64) -> u64 {
    (of_one.clamp(0.0, 1.0) * (1_u64 << 32) as f64) as u64
}
