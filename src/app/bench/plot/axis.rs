//! Values to pixels, and what stands at the ticks.

use crate::app::bench::saved::duration;

/// What the ticks of an axis say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticks {
    /// p0, p90, p99 and so on: at 1, 10, 100 …
    Percentiles,
    /// Nanoseconds with their unit, at 1, 2 and 5 of each decade, or at whole decades.
    Durations,
    /// Seconds, at round steps.
    Seconds,
}

/// An axis: from a range of values to a range of pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    pixels: (f64, f64),
    log: bool,
    ticks: Ticks,
}

/// From here on, every decade alone has ticks enough.
const DECADES_MANY: f64 = 3.0;
/// About how many ticks a linear axis has.
const STEPS: f64 = 8.0;

impl Axis {
    /// A logarithmic axis over positive values; a little wider than a single value.
    pub(super) fn log((low, high): (f64, f64), pixels: (f64, f64), ticks: Ticks) -> Self {
        let (low, high) = match ticks {
            Ticks::Durations => (low / 1.1, high * 1.1),
            Ticks::Percentiles | Ticks::Seconds => (low, high.max(low * 1.01)),
        };
        Self {
            low,
            high,
            pixels,
            log: true,
            ticks,
        }
    }

    pub(super) fn linear((low, high): (f64, f64), pixels: (f64, f64), ticks: Ticks) -> Self {
        Self {
            low,
            high,
            pixels,
            log: false,
            ticks,
        }
    }

    /// Where `value` is; at an end if it is outside.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        let (from, to) = self.pixels;
        share.clamp(0.0, 1.0).mul_add(to - from, from)
    }

    /// Where the ticks are, and what they say.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let values = match self.ticks {
            Ticks::Percentiles => self.decades(&[1.0]),
            Ticks::Durations if (self.high / self.low).log10() > DECADES_MANY => {
                self.decades(&[1.0])
            }
            Ticks::Durations => self.decades(&[1.0, 2.0, 5.0]),
            Ticks::Seconds => self.steps(),
        };
        let label = |value: f64| match self.ticks {
            Ticks::Percentiles => percentile(value),
            Ticks::Durations => duration_short(value),
            Ticks::Seconds => format!("{}", (value * 1000.0).round() / 1000.0),
        };
        let tick = |value| (self.place(value), label(value));
        values.into_iter().map(tick).collect()
    }

    /// The multiples of all powers of ten that are on the axis.
    fn decades(&self, multiples: &[f64]) -> Vec<f64> {
        let mut found = Vec::new();
        let mut decade = 10_f64.powf(self.low.log10().floor());
        while decade <= self.high && found.len() < 100 {
            let values = multiples.iter().map(|multiple| multiple * decade);
            // A hair of tolerance: powers are not exact.
            found.extend(values.filter(|v| *v >= self.low * 0.999 && *v <= self.high * 1.001));
            decade *= 10.0;
        }
        found
    }

    fn steps(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / STEPS;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|multiple| multiple * decade)
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let mut found = Vec::new();
        let mut value = (self.low / step).ceil() * step;
        while value <= self.high && found.len() < 100 {
            found.push(value);
            value += step;
        }
        found
    }
}

/// 100 is p99: one in a hundred is slower.
fn percentile(one_in: f64) -> String {
    let percent = 100.0 - 100.0 / one_in;
    let text = format!("{percent:.9}");
    format!("p{}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Without the zeroes behind the point.
fn duration_short(ns: f64) -> String {
    let text = duration(ns);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            let number = number.trim_end_matches('0').trim_end_matches('.');
            format!("{number} {unit}")
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn percentiles_stand_at_equal_distances() {
        let axis = Axis::log((1.0, 10_000.0), (0.0, 400.0), Ticks::Percentiles);
        assert_eq!(labels(&axis), ["p0", "p90", "p99", "p99.9", "p99.99"]);
        for ((at, _), want) in axis.ticks().iter().zip([0.0, 100.0, 200.0, 300.0, 400.0]) {
            assert!((at - want).abs() < 0.01, "{at} for {want}");
        }
    }

    #[test]
    fn durations_have_round_numbers_and_units() {
        let axis = Axis::log((400.0, 30_000.0), (300.0, 0.0), Ticks::Durations);
        let want = ["500 ns", "1 µs", "2 µs", "5 µs", "10 µs", "20 µs"];
        assert_eq!(labels(&axis), want);
        let wide = Axis::log((400.0, 3e7), (300.0, 0.0), Ticks::Durations);
        assert_eq!(labels(&wide), ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms"]);
        assert!(axis.place(1e9) == 0.0 && axis.place(1.0) == 300.0);
    }

    #[test]
    fn seconds_go_up_in_round_steps() {
        let axis = Axis::linear((0.0, 3.0), (0.0, 300.0), Ticks::Seconds);
        assert_eq!(labels(&axis), ["0", "0.5", "1", "1.5", "2", "2.5", "3"]);
        assert_eq!(axis.place(1.5), 150.0);
    }

    #[test]
    fn a_single_value_still_makes_an_axis() {
        let axis = Axis::log((500.0, 500.0), (100.0, 0.0), Ticks::Durations);
        assert!((axis.place(500.0) - 50.0).abs() < 0.01);
        assert_eq!(labels(&axis), ["500 ns"]);
    }
}
