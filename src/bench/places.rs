//! Where requests go: the order of places, and how often each is drawn.

use super::rng::{Rng, share};

/// How the places of requests follow one another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Each behind the one before, wrapping around.
    Sequential,
    /// All places equally often.
    Uniform,
    /// The place of rank *r* with a weight of 1 / *r*^θ; ranks are scattered over the range.
    Zipf {
        /// θ: above 0, at most 10.
        theta: f64,
    },
    /// The front of the range is hot.
    HotCold {
        /// Share of the requests that go there; 0 to 1.
        requests: f64,
        /// Share of the range that it is; above 0, below 1.
        space: f64,
    },
}

impl Order {
    /// Whether places are drawn.
    #[must_use]
    pub fn is_random(self) -> bool {
        self != Self::Sequential
    }

    /// Whether its numbers are within their bounds.
    #[must_use]
    pub fn is_valid(self) -> bool {
        match self {
            Self::Sequential | Self::Uniform => true,
            Self::Zipf { theta } => theta > 0.0 && theta <= 10.0,
            Self::HotCold { requests, space } => {
                (0.0..=1.0).contains(&requests) && space > 0.0 && space < 1.0
            }
        }
    }
}

/// Draws places: `0..count`.
#[derive(Clone, Debug)]
pub(super) struct Places {
    count: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Uniform,
    Zipf(Zipf),
    HotCold { share: u64, hot: u64 },
}

impl Places {
    /// For a valid `order` that is random; `count` is above 0.
    pub(super) fn new(order: Order, count: u64) -> Self {
        let kind = match order {
            Order::Sequential | Order::Uniform => Kind::Uniform,
            Order::Zipf { theta } => Kind::Zipf(Zipf::new(count, theta)),
            Order::HotCold { requests, space } => Kind::HotCold {
                share: share(requests),
                hot: part_of(count, space).clamp(1, count),
            },
        };
        Self { count, kind }
    }

    #[inline]
    pub(super) fn draw(&self, rng: &mut Rng) -> u64 {
        match &self.kind {
            Kind::Uniform => rng.below(self.count),
            Kind::Zipf(zipf) => zipf.draw(rng),
            Kind::HotCold { share, hot } => {
                let cold = self.count - hot;
                if rng.happens(*share) || cold == 0 {
                    rng.below(*hot)
                } else {
                    hot + rng.below(cold)
                }
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float to an integer saturates, and the caller clamps"
)]
fn part_of(count: u64, share: f64) -> u64 {
    (count as f64 * share).round() as u64
}

/// Zipf-distributed ranks by rejection-inversion (Hörmann and Derflinger 1996): exact for any
/// exponent, without a table, and a draw is rejected rarely.
#[derive(Clone, Debug)]
struct Zipf {
    count: u64,
    theta: f64,
    /// Integrals of the hat function at the first and behind the last rank.
    first: f64,
    last: f64,
    /// Below this distance a rank is accepted without a further look.
    accept: f64,
    /// Scatters ranks: coprime to `count`.
    step: u64,
}

impl Zipf {
    fn new(count: u64, theta: f64) -> Self {
        let mut zipf = Self {
            count,
            theta,
            first: 0.0,
            last: 0.0,
            accept: 0.0,
            step: coprime_step(count),
        };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.last = zipf.integral(count as f64 + 0.5);
        zipf.accept = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    fn weight(&self, rank: f64) -> f64 {
        (-self.theta * rank.ln()).exp()
    }

    /// Of the weight, from 1 to `x`.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let power = (1.0 - self.theta) * log;
        if power.abs() < 1e-9 {
            log * (1.0 + power / 2.0)
        } else {
            power.exp_m1() / (1.0 - self.theta)
        }
    }

    fn inverse(&self, y: f64) -> f64 {
        let scaled = (y * (1.0 - self.theta)).max(-1.0);
        if scaled.abs() < 1e-9 {
            (y * (1.0 - scaled / 2.0)).exp()
        } else {
            (scaled.ln_1p() / (1.0 - self.theta)).exp()
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 1..=count"
    )]
    fn draw(&self, rng: &mut Rng) -> u64 {
        loop {
            let u = self.last + rng.unit() * (self.first - self.last);
            let x = self.inverse(u);
            let rank = x.round().clamp(1.0, self.count as f64);
            let near = rank - x <= self.accept;
            if near || u >= self.integral(rank + 0.5) - self.weight(rank) {
                let rank = u128::from(rank as u64 - 1);
                let place = rank * u128::from(self.step) % u128::from(self.count);
                return u64::try_from(place).unwrap_or(0);
            }
        }
    }
}

/// A number near `count` times the golden ratio that has no divisor in common with it.
fn coprime_step(count: u64) -> u64 {
    let mut step = part_of(count, 0.618_033_988_749_895).max(1);
    while gcd(step, count) != 1 {
        step += 1;
    }
    step
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(order: Order, places: usize, draws: u32) -> Vec<u32> {
        let drawer = Places::new(order, places as u64);
        let mut rng = Rng::new(7);
        let mut counts = vec![0; places];
        for _ in 0..draws {
            counts[usize::try_from(drawer.draw(&mut rng)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn uniform_places_are_drawn_equally_often() {
        let counts = counts(Order::Uniform, 100, 100_000);
        assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
    }

    #[test]
    fn zipf_weights_fall_with_the_power_of_the_rank() {
        for theta in [0.5, 0.99, 1.0, 1.2, 2.0] {
            let mut counts = counts(Order::Zipf { theta }, 1000, 400_000);
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let sum: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-theta)).sum();
            for rank in [1_u32, 2, 3, 10] {
                let expected = 400_000.0 * f64::from(rank).powf(-theta) / sum;
                let found = f64::from(counts[rank as usize - 1]);
                let off = (found - expected).abs() / expected.sqrt();
                assert!(
                    off < 6.0,
                    "theta {theta} rank {rank}: {found}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn zipf_scatters_its_ranks_over_all_places() {
        for count in [1_u64, 2, 7, 1000, 65_536] {
            let step = coprime_step(count);
            let mut seen: Vec<u64> = (0..count).map(|rank| rank * step % count).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..count), "{count}");
        }
        let counts = counts(Order::Zipf { theta: 1.2 }, 1000, 10_000);
        let hottest = (0..1000).max_by_key(|place| counts[*place]).unwrap();
        assert!(counts[hottest] > 4 * counts[(hottest + 1) % 1000]);
    }

    #[test]
    fn hot_places_get_their_share() {
        let order = Order::HotCold {
            requests: 0.9,
            space: 0.1,
        };
        let counts = counts(order, 1000, 100_000);
        let hot: u32 = counts.iter().take(100).sum();
        assert!((89_000..91_000).contains(&hot), "{hot}");
        assert!(counts.iter().skip(100).all(|n| *n > 0 && *n < 60));
    }

    #[test]
    fn numbers_out_of_their_bounds_are_known() {
        assert!(!Order::Zipf { theta: 0.0 }.is_valid());
        assert!(!Order::Zipf { theta: f64::NAN }.is_valid());
        let all = Order::HotCold {
            requests: 0.5,
            space: 1.0,
        };
        assert!(!all.is_valid());
        assert!(Order::Uniform.is_valid());
    }
}
