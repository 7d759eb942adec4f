//! Rate limits: how much may pass a bdev in a second, on all reactors together.
//!
//! Each limit is a line on which every unit takes its time: who wants to pass takes the next stretch
//! of it, and may pass when the stretch begins (the generic cell rate algorithm). So those who wait
//! pass in the order in which they asked, each knows when, and nobody looks again before. A channel
//! takes a stretch of about a millisecond at a time, shared among the channels there are, and what
//! passes within it touches nothing shared.

use crate::bdev::{BdevError, Op};
use crossbeam_utils::CachePadded;
use reactors::Nanos;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SECOND_NS: u64 = 1_000_000_000;
/// What was not used this long ago is lost; what was later may be made up for. One part in a hundred
/// of the second over which a limit holds.
const SAVED_NS: u64 = SECOND_NS / 100;
/// Stretches that a second is cut into.
const SLICES: u64 = 1000;
/// Requests a second are limited in steps of this.
const IOS_STEP: u64 = 1000;
const MIB: u64 = 1 << 20;

/// What may pass in a second; 0 for no limit. Reads and writes are limited, nothing else is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Reads and writes; a multiple of 1000.
    pub rw_ios_per_sec: u64,
    /// MiB read and written.
    pub rw_mbytes_per_sec: u64,
    /// MiB read.
    pub r_mbytes_per_sec: u64,
    /// MiB written.
    pub w_mbytes_per_sec: u64,
}

impl RateLimits {
    /// The limits as they can be kept: requests a second rounded up to a multiple of 1000.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for what is too much to be counted.
    pub fn rounded(self) -> Result<Self, BdevError> {
        let too_large = |what: &str, value: u64| {
            BdevError::Invalid(format!("{what} {value} is more than can be counted"))
        };
        let ios = self.rw_ios_per_sec.checked_next_multiple_of(IOS_STEP);
        let rounded = Self {
            rw_ios_per_sec: ios.ok_or_else(|| too_large("rw_ios_per_sec", self.rw_ios_per_sec))?,
            ..self
        };
        for (what, mbytes) in [
            ("rw_mbytes_per_sec", self.rw_mbytes_per_sec),
            ("r_mbytes_per_sec", self.r_mbytes_per_sec),
            ("w_mbytes_per_sec", self.w_mbytes_per_sec),
        ] {
            if mbytes.checked_mul(MIB).is_none() {
                return Err(too_large(what, mbytes));
            }
        }
        Ok(rounded)
    }

    /// Units a second of each line.
    fn rates(&self) -> [u64; LINES] {
        [
            self.rw_ios_per_sec,
            self.rw_mbytes_per_sec.saturating_mul(MIB),
            self.r_mbytes_per_sec.saturating_mul(MIB),
            self.w_mbytes_per_sec.saturating_mul(MIB),
        ]
    }
}

/// One limit.
#[derive(Debug)]
struct Line {
    /// Units a second; not 0.
    per_second: u64,
    /// Where the part that nobody has taken begins, ns.
    free_from: CachePadded<AtomicU64>,
}

impl Line {
    /// How long `units` take, ns.
    fn time_of(&self, units: u64) -> u64 {
        let ns = u128::from(units) * u128::from(SECOND_NS);
        u64::try_from(ns.div_ceil(u128::from(self.per_second))).unwrap_or(u64::MAX)
    }

    /// Takes the next stretch, for `units`; tells when it begins.
    fn take(&self, units: u64, now: Nanos) -> Nanos {
        let time = self.time_of(units);
        let earliest = now.0.saturating_sub(SAVED_NS);
        let mut free_from = self.free_from.load(Ordering::Relaxed);
        loop {
            let begin = free_from.max(earliest);
            // Nothing is handed over with it: the order of the stretches is all that counts.
            let taken = self.free_from.compare_exchange_weak(
                free_from,
                begin.saturating_add(time),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match taken {
                Ok(_) => return Nanos(begin),
                Err(found) => free_from = found,
            }
        }
    }

    /// What a channel takes at once, of `channels`.
    fn slice(&self, channels: u64) -> u64 {
        self.per_second / SLICES / channels.max(1)
    }
}

/// Requests, bytes, bytes read, bytes written.
const LINES: usize = 4;

/// The limits of a bdev, for all its channels.
#[derive(Debug, Default)]
pub(super) struct Limiter([Option<Arc<Line>>; LINES]);

impl Limiter {
    /// For `limits`, if there are any. A line of `before` whose rate stays goes on as it is.
    pub(super) fn new(limits: &RateLimits, before: Option<&Self>) -> Option<Arc<Self>> {
        if *limits == RateLimits::default() {
            return None;
        }
        let mut lines = Self::default();
        let old = before.map_or(&[None, None, None, None], |before| &before.0);
        for ((line, old), per_second) in lines.0.iter_mut().zip(old).zip(limits.rates()) {
            *line = match old {
                _ if per_second == 0 => None,
                Some(old) if old.per_second == per_second => Some(Arc::clone(old)),
                _ => Some(Arc::new(Line {
                    per_second,
                    free_from: CachePadded::default(),
                })),
            };
        }
        Some(Arc::new(lines))
    }

    /// Whether `op` counts.
    pub(super) fn limits(op: Op) -> bool {
        matches!(op, Op::Read | Op::Write { .. })
    }

    /// What a request uses of each line.
    fn costs(op: Op, bytes: u64) -> [u64; LINES] {
        let of = |counts: bool| if counts { bytes } else { 0 };
        [1, bytes, of(op == Op::Read), of(op != Op::Read)]
    }
}

/// What a channel has taken of the lines, and not used yet.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    left: [u64; LINES],
    /// When what was taken last may be used; none if all may be.
    from: Option<Nanos>,
}

impl Allowance {
    /// Whether the next request may pass now; then it counts as having passed. If not, it must be
    /// the next that is asked for, at [`Allowance::from`].
    pub(super) fn passes(
        &mut self,
        limiter: &Limiter,
        (op, bytes): (Op, u64),
        now: Nanos,
        channels: u64,
    ) -> bool {
        let costs = Limiter::costs(op, bytes);
        let from = match self.from {
            Some(from) => from,
            None => self.take(limiter, &costs, now, channels),
        };
        if from > now {
            self.from = Some(from);
            return false;
        }
        self.from = None;
        for ((left, cost), line) in self.left.iter_mut().zip(costs).zip(&limiter.0) {
            if line.is_some() {
                *left = left.saturating_sub(cost);
            }
        }
        true
    }

    /// Takes what is missing, and more; tells from when it may be used.
    fn take(&mut self, limiter: &Limiter, costs: &[u64], now: Nanos, channels: u64) -> Nanos {
        let mut from = now;
        for ((left, cost), line) in self.left.iter_mut().zip(costs).zip(&limiter.0) {
            if let Some(line) = line
                && *left < *cost
            {
                let units = (cost - *left).max(line.slice(channels));
                from = from.max(line.take(units, now));
                *left += units;
            }
        }
        from
    }

    /// When the request that may not pass yet may.
    pub(super) fn from(&self) -> Option<Nanos> {
        self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn line(per_second: u64) -> Line {
        Line {
            per_second,
            free_from: CachePadded::default(),
        }
    }

    #[test]
    fn stretches_follow_each_other_and_little_is_saved() {
        let line = line(1000);
        let now = Nanos(SECOND_NS);
        let begins: Vec<u64> = (0..13).map(|_| line.take(1, now).0).collect();
        let expected: Vec<u64> = (0..13).map(|n| SECOND_NS - SAVED_NS + n * MS).collect();
        assert_eq!(begins, expected);
    }

    #[test]
    fn the_first_who_asks_passes_first() {
        let limits = RateLimits {
            rw_ios_per_sec: 1000,
            ..RateLimits::default()
        };
        let limiter = Limiter::new(&limits, None).unwrap();
        let now = Nanos(SECOND_NS);
        let io = (Op::Read, 512);
        let mut greedy = Allowance::default();
        let passed = (0..100).take_while(|_| greedy.passes(&limiter, io, now, 2));
        assert_eq!(passed.count(), 11);
        let mut late = Allowance::default();
        assert!(!late.passes(&limiter, io, now, 2));
        assert_eq!(greedy.from(), Some(now.after(MS)));
        assert_eq!(late.from(), Some(now.after(2 * MS)));
        let then = now.after(2 * MS);
        assert!(greedy.passes(&limiter, io, then, 2));
        assert!(!greedy.passes(&limiter, io, then, 2));
        assert!(late.passes(&limiter, io, then, 2));
    }

    #[test]
    fn a_line_whose_rate_stays_is_not_begun_anew() {
        let limits = RateLimits {
            rw_ios_per_sec: 1000,
            ..RateLimits::default()
        };
        let limiter = Limiter::new(&limits, None).unwrap();
        let now = Nanos(SECOND_NS);
        let mut channel = Allowance::default();
        while channel.passes(&limiter, (Op::Read, 512), now, 1) {}
        let more = RateLimits {
            w_mbytes_per_sec: 1,
            ..limits
        };
        let limiter = Limiter::new(&more, Some(&limiter)).unwrap();
        let mut fresh = Allowance::default();
        assert!(!fresh.passes(&limiter, (Op::Read, 512), now, 1));
        assert!(Limiter::new(&RateLimits::default(), Some(&limiter)).is_none());
    }

    #[test]
    fn limits_are_rounded_up_and_bounded() {
        let limits = |ios, mbytes| RateLimits {
            rw_ios_per_sec: ios,
            r_mbytes_per_sec: mbytes,
            ..RateLimits::default()
        };
        assert_eq!(limits(1, 3).rounded().unwrap(), limits(1000, 3));
        assert_eq!(limits(2000, 0).rounded().unwrap(), limits(2000, 0));
        assert!(limits(u64::MAX, 0).rounded().is_err());
        assert!(limits(0, u64::MAX / MIB + 1).rounded().is_err());
        assert!(limits(0, u64::MAX / MIB).rounded().is_ok());
    }
}
