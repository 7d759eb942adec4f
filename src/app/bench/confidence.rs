//! Whether two groups of measurements differ, and by how much.
//!
//! The groups are compared by all ratios of one of B to one of A. Their median is the estimate
//! (Hodges and Lehmann). How far in from both ends of the sorted ratios the interval begins follows from
//! the exact distribution of the Mann-Whitney statistic: no shape is assumed, and an outlier
//! counts for no more than its rank.

/// How often an interval may miss the true ratio.
const MISS: f64 = 0.01;
/// Measurements of a group that are used; more are left out evenly.
const GROUP_MAX: usize = 64;

/// The ratio of B to A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    /// The best guess.
    pub(super) estimate: f64,
    /// Where it is, 99 times in a hundred; nothing if there are too few measurements to tell.
    pub(super) interval: Option<(f64, f64)>,
}

/// Compares two groups of positive numbers; nothing if one has none.
pub(super) fn ratio(a: &[f64], b: &[f64]) -> Option<Ratio> {
    let (a, b) = (usable(a), usable(b));
    let mut ratios: Vec<f64> = b
        .iter()
        .flat_map(|b| a.iter().map(move |a| b / a))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let estimate = median(&ratios)?;
    let interval = ends(a.len(), b.len())
        .and_then(|skip| Some((*ratios.get(skip)?, *ratios.get(ratios.len() - 1 - skip)?)));
    Some(Ratio { estimate, interval })
}

fn usable(group: &[f64]) -> Vec<f64> {
    let step = group.len().div_ceil(GROUP_MAX).max(1);
    let every = group.iter().step_by(step).copied();
    every.filter(|x| x.is_finite() && *x > 0.0).collect()
}

/// The middle of sorted numbers.
pub(super) fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some(f64::midpoint(*sorted.get(low)?, *sorted.get(high)?))
}

/// How many of the sorted ratios of `n` and `m` measurements may be cut off at each end; nothing if
/// even all of them are not enough.
fn ends(n: usize, m: usize) -> Option<usize> {
    let counts = statistic(n, m);
    let all: f64 = counts.iter().sum();
    let mut tail = 0.0;
    let mut allowed = 0;
    for count in counts {
        tail += count;
        if tail / all > MISS / 2.0 {
            break;
        }
        allowed += 1;
    }
    // With the statistic at 0 as rare as that, the outermost ratios are the ends.
    (allowed > 0).then(|| allowed - 1)
}

/// In how many of the orders of `n` and `m` equal measurements the Mann-Whitney statistic is 0, 1, 2
/// and so on. The last in order is one of the `n`, which is then above all `m`, or one of the `m`.
fn statistic(n: usize, m: usize) -> Vec<f64> {
    // Of the n so far, with each number of the m.
    let mut rows = vec![vec![1.0]; m + 1];
    for _ in 0..n {
        for of_m in 0..=m {
            let mut counts = vec![0.0; of_m];
            counts.extend_from_slice(&rows[of_m]);
            if let Some(fewer) = of_m.checked_sub(1) {
                for (count, more) in counts.iter_mut().zip(&rows[fewer]) {
                    *count += more;
                }
            }
            rows[of_m] = counts;
        }
    }
    rows.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistic_counts_orders() {
        assert_eq!(statistic(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
        assert_eq!(statistic(1, 3), [1.0; 4]);
        let orders: f64 = statistic(5, 5).iter().sum();
        assert_eq!(orders, 252.0);
        let counts = statistic(64, 64);
        assert!(counts.iter().all(|count| *count >= 0.0));
        let mirrored = counts.iter().rev();
        assert!(
            counts
                .iter()
                .zip(mirrored)
                .all(|(a, b)| (a / b - 1.0).abs() < 1e-6)
        );
    }

    #[test]
    fn cut_off_is_what_the_tables_say() {
        // The tables' critical values: the largest statistic that rejects, two-sided, at 0.01.
        for ((n, m), critical) in [((5, 5), 0), ((6, 6), 2), ((8, 8), 7), ((10, 10), 16)] {
            assert_eq!(ends(n, m), Some(critical), "{n} and {m}");
        }
        assert_eq!(ends(4, 4), None);
    }

    #[test]
    fn groups_that_lie_apart_differ() {
        let a = [100.0, 101.0, 102.0, 103.0, 99.0];
        let b = a.map(|x| x * 1.2);
        let found = ratio(&a, &b).unwrap();
        assert!((found.estimate - 1.2).abs() < 0.01);
        let (low, high) = found.interval.unwrap();
        assert!(low > 1.15 && high < 1.25, "{found:?}");
        let back = ratio(&b, &a).unwrap();
        assert!(back.interval.unwrap().1 < 1.0);
    }

    #[test]
    fn the_same_group_does_not_differ_and_an_outlier_does_not_matter() {
        let a = [100.0, 101.0, 102.0, 103.0, 99.0, 98.0];
        let mut b = a;
        b[2] = 10_000.0;
        for group in [a, b] {
            let found = ratio(&a, &group).unwrap();
            let (low, high) = found.interval.unwrap();
            assert!(low < 1.0 && high > 1.0, "{found:?}");
            assert!((found.estimate - 1.0).abs() < 0.01, "{found:?}");
        }
    }

    #[test]
    fn few_and_useless_measurements_say_little() {
        let found = ratio(&[1.0, 1.1], &[2.0, 2.2]).unwrap();
        assert_eq!((found.estimate, found.interval), (2.0, None));
        for useless in [&[][..], &[0.0], &[-1.0], &[f64::NAN]] {
            assert_eq!(ratio(useless, &[1.0]), None);
        }
        let many = vec![1.0; 5000];
        assert_eq!(ratio(&many, &many).unwrap().interval, Some((1.0, 1.0)));
    }

    /// Of many pairs of groups with the same distribution, about one in a hundred seems to differ.
    #[test]
    fn equal_groups_seldom_seem_to_differ() {
        let mut state = 7_u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bits = u32::try_from(state >> 33).unwrap();
            1.0 + f64::from(bits) / f64::from(u32::MAX)
        };
        let mut differ = 0;
        for _ in 0..4000 {
            let mut group = || -> Vec<f64> { (0..6).map(|_| random()).collect() };
            let (low, high) = ratio(&group(), &group()).unwrap().interval.unwrap();
            differ += u32::from(low > 1.0 || high < 1.0);
        }
        assert!((5..80).contains(&differ), "{differ} of 4000");
    }
}
