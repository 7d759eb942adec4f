use super::super::outcome::histogram;
use super::super::{Load, Workload};
use super::*;
use crate::units::ByteRange;
use reactors::Nanos;

/// `count` requests whose latencies are 1, 2, 3 … microseconds, times `scale`.
fn report(count: u64, scale: u64) -> RunReport {
    let mut outcome = Outcome::new(1_000_000_000, 500_000_000).unwrap();
    (1..=count).for_each(|n| outcome.writes.record(n * 1000 * scale).unwrap());
    outcome.requests = count;
    outcome.bytes = count * 4096;
    outcome.begun = Nanos(1_000_000_000);
    outcome.ended = Nanos(3_000_000_000);
    if let Some(interval) = outcome.series.get_mut(1) {
        interval.record(77).unwrap();
    }
    let head = RunHead {
        name: "row".to_owned(),
        bdev: "d".to_owned(),
        submit: "local",
        jobs: 1,
    };
    let job = Workload::new(ByteRange::between(0, 1 << 20), 4096);
    assert_eq!(job.load, Load::Closed);
    RunReport::new(head, &job, &outcome)
}

/// Histograms keep three digits.
fn near(found: u64, expected: u64) -> bool {
    found.abs_diff(expected) * 1000 <= expected
}

#[test]
fn rates_and_percentiles_follow_from_the_histogram() {
    let report = report(10_000, 1);
    assert_eq!((report.seconds, report.iops), (2.0, 5000.0));
    assert!((report.mib_s - 19.5313).abs() < 1e-3);
    let found = report.latency_ns;
    assert!(near(found.p50, 5_000_000) && near(found.p90, 9_000_000));
    assert!(near(found.p99, 9_900_000) && near(found.p999, 9_990_000));
    assert!(near(found.p9999, 9_999_000) && near(found.max, 10_000_000));
    assert!(near(found.min, 1_000));
    assert_eq!(report.write.unwrap().requests, 10_000);
    assert!(report.read.is_none() && report.rate.is_none());
    assert_eq!(report.series.len(), 2);
    assert_eq!((report.series[1].at_ms, report.series[1].max), (500.0, 77));
}

#[test]
fn the_curve_rises_from_the_least_to_the_longest() {
    let curve = report(100_000, 1).curve;
    assert!((45..=70).contains(&curve.len()), "{}", curve.len());
    assert_eq!(curve.first().unwrap().0, 0.0);
    assert!(near(curve[0].1, 1000));
    assert_eq!(curve.last().unwrap().0, 1.0);
    assert!(near(curve.last().unwrap().1, 100_000_000));
    assert!(curve.iter().any(|point| point.0 == 0.99999));
    for pair in curve.windows(2) {
        assert!(pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1, "{pair:?}");
    }
    assert!(super::curve(&histogram().unwrap()).is_empty());
}

#[test]
fn ratios_divide_by_the_floor_and_take_the_jitter_off_the_tail() {
    let report = report(10_000, 1);
    let ratios = Ratios::of(&report, "memory_ns", 1_000_000, 990_000).unwrap();
    assert!((ratios.p50 - 5.0).abs() < 0.01);
    assert!((ratios.p999_less_jitter - 9.0).abs() < 0.02);
    assert!((ratios.iops - 5.0).abs() < 1e-9);
    assert!(Ratios::of(&report, "memory_ns", 0, 0).is_none());
}

#[test]
fn several_runs_give_medians_and_their_spread() {
    let runs = vec![report(1000, 5), report(1000, 1), report(1000, 3)];
    let median = RunReport::median(runs).unwrap();
    assert!(near(median.latency_ns.p50, 1_500_000));
    assert!(near(median.latency_ns.max, 3_000_000));
    let [least, most] = median.spread["p50"];
    assert!(near(super::whole(least), 500_000) && near(super::whole(most), 2_500_000));
    assert_eq!(median.spread["iops"], [500.0, 500.0]);
    assert_eq!(median.samples.len(), 3);
    assert!(RunReport::median(Vec::new()).is_none());
    let alone = RunReport::median(vec![report(10, 1)]).unwrap();
    assert!(alone.spread.is_empty() && alone.samples.is_empty());
}

#[test]
fn in_words_a_report_tells_what_is_wrong() {
    let mut report = report(10, 1);
    assert!(report.is_good());
    let text = report.to_string();
    assert!(text.starts_with("row ") && text.contains("p99.9"), "{text}");
    report.errors = 3;
    assert!(report.to_string().contains("ERRORS 3 of 10"));
    report.errors = 0;
    report.verify = Some(Verified {
        sectors: 7,
        mismatches: 1,
        first: Some("it is elsewhere".to_owned()),
    });
    assert!(!report.is_good());
    let text = report.to_string();
    assert!(
        text.contains("7 sectors checked, 1 wrong: it is elsewhere"),
        "{text}"
    );
}
