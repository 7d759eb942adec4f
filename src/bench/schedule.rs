//! When the requests of a job should start.

use super::rng::Rng;
use super::workload::{Arrival, Load};
use reactors::Nanos;

/// Times are kept in so many parts of a nanosecond, so that a rate is met over hours.
const PARTS: u64 = 1024;

/// The times at which the requests of an open loop should start, one after the other.
#[derive(Debug)]
pub(super) struct Schedule {
    from: Nanos,
    /// When the next one should start, after `from`, in parts of a nanosecond.
    next: u64,
    /// Mean distance in parts of a nanosecond.
    distance: f64,
    poisson: Option<Rng>,
}

impl Schedule {
    /// From `from` on; None for a closed loop.
    pub(super) fn new(load: Load, from: Nanos, seed: u64) -> Option<Self> {
        let Load::Open { rate, arrival } = load else {
            return None;
        };
        let poisson = (arrival == Arrival::Poisson).then(|| Rng::new(!seed));
        let mut schedule = Self {
            from,
            next: 0,
            distance: 1e9 * PARTS as f64 / rate,
            poisson,
        };
        if schedule.poisson.is_some() {
            schedule.advance();
        }
        Some(schedule)
    }

    /// When the next request should start.
    #[inline]
    pub(super) fn next(&self) -> Nanos {
        self.from.after(self.next / PARTS)
    }

    /// That one has been started.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and a float to an integer saturates"
    )]
    pub(super) fn advance(&mut self) {
        let distance = match &mut self.poisson {
            Some(rng) => -rng.unit().ln() * self.distance,
            None => self.distance,
        };
        self.next = self.next.saturating_add(distance as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(arrival: Arrival, rate: f64) -> Schedule {
        Schedule::new(Load::Open { rate, arrival }, Nanos(500), 3).unwrap()
    }

    #[test]
    fn constant_arrivals_keep_their_distance() {
        let mut schedule = schedule(Arrival::Constant, 3e6);
        for n in 0..3_000_000_u64 {
            let exact = 500 + n * 1000 / 3;
            let off = exact.abs_diff(schedule.next().0);
            assert!(off <= 1 + n / 1000, "{n}: {off}");
            schedule.advance();
        }
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_of_an_exponential() {
        let mut schedule = schedule(Arrival::Poisson, 1e6);
        let (mut last, mut distances) = (schedule.next(), Vec::new());
        for _ in 0..100_000 {
            schedule.advance();
            distances.push(schedule.next().since(last) as f64);
            last = schedule.next();
        }
        let mean = distances.iter().sum::<f64>() / 1e5;
        let variance = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((980.0..1020.0).contains(&mean), "{mean}");
        assert!((970.0..1030.0).contains(&variance.sqrt()), "{variance}");
    }

    #[test]
    fn a_closed_loop_has_no_times() {
        assert!(Schedule::new(Load::Closed, Nanos(0), 1).is_none());
    }
}
