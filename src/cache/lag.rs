//! How far writeback is behind, and how fast it goes.

use reactors::Nanos;
use std::collections::VecDeque;

/// Samples are at least this far apart, ns: keeps their number bounded.
const SAMPLE_NS: u64 = 100_000_000;
/// Most samples: with a dead backing the newest one stands for all that follows.
const SAMPLES_MAX: usize = 4096;
/// A rate is measured over at least this long, ns.
const RATE_NS: u64 = 1_000_000_000;

/// When which sequence was seen durable, for those that are not written back.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    seen: VecDeque<(u64, Nanos)>,
}

impl Lag {
    /// At `now` everything below `tail` is written back and everything up to `durable` is durable.
    pub(crate) fn observe(&mut self, now: Nanos, tail: u64, durable: u64) {
        while self
            .seen
            .front()
            .is_some_and(|(sequence, _)| *sequence < tail)
        {
            self.seen.pop_front();
        }
        if durable < tail
            || self
                .seen
                .back()
                .is_some_and(|(sequence, _)| *sequence >= durable)
        {
            return;
        }
        let full = self.seen.len() >= SAMPLES_MAX;
        match self.seen.back_mut() {
            // The older time stays: a lag is never shown smaller than it is.
            Some(last) if full || now.since(last.1) < SAMPLE_NS => last.0 = durable,
            _ => self.seen.push_back((durable, now)),
        }
    }

    /// When the oldest of them was seen first; 0 if there is none.
    pub(crate) fn oldest_ns(&self) -> u64 {
        self.seen.front().map_or(0, |(_, at)| at.0.max(1))
    }

    /// For how long the oldest of them has been seen.
    pub(crate) fn ns(&self, now: Nanos) -> u64 {
        self.seen.front().map_or(0, |(_, at)| now.since(*at))
    }

    /// The highest sequence that was durable `delay` ns ago; 0 for none.
    pub(crate) fn older_than(&self, now: Nanos, delay: u64) -> u64 {
        let old = self
            .seen
            .iter()
            .rev()
            .find(|(_, at)| now.since(*at) >= delay);
        old.map_or(0, |(sequence, _)| *sequence)
    }
}

/// Bytes a second, over about the last second.
#[derive(Debug)]
pub(crate) struct Rate {
    since: Nanos,
    before: u64,
}

impl Rate {
    pub(crate) fn new(now: Nanos) -> Self {
        Self {
            since: now,
            before: 0,
        }
    }

    /// The rate since the last time, if that is long enough ago; `bytes` counts all so far.
    pub(crate) fn measure(&mut self, now: Nanos, bytes: impl FnOnce() -> u64) -> Option<u64> {
        let elapsed = now.since(self.since);
        if elapsed < RATE_NS {
            return None;
        }
        let bytes = bytes();
        let rate = bytes
            .saturating_sub(self.before)
            .saturating_mul(1_000_000_000)
            / elapsed;
        *self = Self {
            since: now,
            before: bytes,
        };
        Some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_that_of_the_oldest_kset_not_written_back() {
        let mut lag = Lag::default();
        lag.observe(Nanos(1_000), 1, 5);
        lag.observe(Nanos(200_000_000), 1, 9);
        assert_eq!(lag.ns(Nanos(300_000_000)), 299_999_000);
        assert_eq!(lag.older_than(Nanos(300_000_000), 150_000_000), 5);
        assert_eq!(lag.older_than(Nanos(300_000_000), 100_000_000), 9);
        lag.observe(Nanos(300_000_000), 6, 9);
        assert_eq!(lag.ns(Nanos(300_000_000)), 100_000_000);
        lag.observe(Nanos(300_000_000), 10, 9);
        assert_eq!((lag.ns(Nanos(300_000_000)), lag.oldest_ns()), (0, 0));
    }
}
