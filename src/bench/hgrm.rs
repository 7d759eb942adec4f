//! Percentile distributions as text, as HdrHistogram's own tools write and plot them.

use hdrhistogram::Histogram;
use std::io::{self, Write};

/// Lines for each halving of the distance to 100 %.
const TICKS: u32 = 5;

/// Writes the distribution of `latencies` (nanoseconds) in microseconds.
///
/// # Errors
/// What `out` says.
pub fn write_hgrm(latencies: &Histogram<u64>, out: &mut impl Write) -> io::Result<()> {
    let us = |ns: f64| ns / 1000.0;
    let titles = ("Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        titles.0, titles.1, titles.2, titles.3
    )?;
    let mut count = 0;
    for step in latencies.iter_quantiles(TICKS) {
        count += step.count_since_last_iteration();
        let value = us(step.value_iterated_to() as f64);
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:>12.3} {quantile:.12} {count:>10}")?;
        if quantile < 1.0 {
            write!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = (us(latencies.mean()), us(latencies.stdev()));
    writeln!(
        out,
        "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]"
    )?;
    let (max, total) = (us(latencies.max() as f64), latencies.len());
    writeln!(
        out,
        "#[Max     = {max:>12.3}, Total count    = {total:>12}]"
    )?;
    let (buckets, subs) = (latencies.buckets(), 2048);
    writeln!(
        out,
        "#[Buckets = {buckets:>12}, SubBuckets     = {subs:>12}]"
    )
}

#[cfg(test)]
mod tests {
    use super::super::outcome::histogram;
    use super::*;

    #[test]
    fn lines_rise_to_the_maximum_and_the_trailer_has_the_counts() {
        let mut latencies = histogram().unwrap();
        (1..=1000).for_each(|n| latencies.record(n * 1000).unwrap());
        let mut out = Vec::new();
        write_hgrm(&latencies, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let titles: Vec<&str> = lines[0].split_whitespace().collect();
        assert_eq!(
            titles,
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        assert_eq!(lines[1], "");
        let rows: Vec<Vec<f64>> = lines[2..lines.len() - 3]
            .iter()
            .map(|line| {
                line.split_whitespace()
                    .map(|n| n.parse().unwrap())
                    .collect()
            })
            .collect();
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0]));
        let half = rows.iter().find(|row| row[1] >= 0.5).unwrap();
        assert!((half[0] - 500.0).abs() < 1.0 && half[2] >= 500.0 && half[3] >= 2.0);
        let last = rows.last().unwrap();
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 1000.0));
        assert!((last[0] - 1000.0).abs() < 1.0);
        assert!(lines[lines.len() - 2].contains("Total count    =         1000]"));
    }
}
