//! `pmcache bench compare A.json B.json`: what has changed, and whether it can be told from noise.

use super::confidence::{Ratio, median, ratio};
use super::saved::{Document, Repeat, Run, duration};
use crate::app::cli::{UNUSABLE, fail};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

/// The smallest change that is worth a word: floors wander by more from one minute to the next.
const CHANGE_MIN: f64 = 0.01;

/// A figure that is compared.
#[derive(Clone, Copy, Debug)]
struct Metric {
    name: &'static str,
    more_is_better: bool,
    of: fn(&Repeat) -> Option<f64>,
}

const METRICS: [Metric; 4] = [
    Metric {
        name: "p50",
        more_is_better: false,
        of: |repeat| repeat.latency_ns.p50,
    },
    Metric {
        name: "p99",
        more_is_better: false,
        of: |repeat| repeat.latency_ns.p99,
    },
    Metric {
        name: "p999",
        more_is_better: false,
        of: |repeat| repeat.latency_ns.p999,
    },
    Metric {
        name: "iops",
        more_is_better: true,
        of: |repeat| repeat.iops,
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    NoDifference,
    TooFewRepeats,
}

impl Verdict {
    fn of(metric: Metric, ratio: Ratio) -> Self {
        let Some((low, high)) = ratio.interval else {
            return Self::TooFewRepeats;
        };
        let more = ratio.estimate > 1.0;
        if (ratio.estimate - 1.0).abs() < CHANGE_MIN || (low <= 1.0 && high >= 1.0) {
            Self::NoDifference
        } else if more == metric.more_is_better {
            Self::Better
        } else {
            Self::Worse
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifference => "no difference",
            Self::TooFewRepeats => "too few repeats",
        }
    }
}

/// One metric of one run in both documents.
#[derive(Clone, Copy, Debug)]
struct Row {
    metric: Metric,
    a: f64,
    b: f64,
    ratio: Ratio,
    verdict: Verdict,
}

/// What both documents say.
#[derive(Debug)]
struct Comparison<'a> {
    a: &'a Document,
    b: &'a Document,
    runs: Vec<(&'a str, Vec<Row>)>,
    only_in_a: Vec<&'a str>,
    only_in_b: Vec<&'a str>,
}

/// The run's repeats; the run itself if it has none.
fn repeats(run: &Run) -> Vec<Repeat> {
    if !run.repeats.is_empty() {
        return run.repeats.clone();
    }
    vec![Repeat {
        iops: run.iops,
        latency_ns: run.latency_ns,
    }]
}

fn values(run: &Run, metric: Metric) -> Vec<f64> {
    let mut values: Vec<f64> = repeats(run).iter().filter_map(metric.of).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn rows(a: &Run, b: &Run) -> Vec<Row> {
    let row = |metric: Metric| {
        let of = |run| {
            repeats(run)
                .iter()
                .filter_map(metric.of)
                .collect::<Vec<f64>>()
        };
        let ratio = ratio(&of(a), &of(b))?;
        Some(Row {
            metric,
            a: median(&values(a, metric))?,
            b: median(&values(b, metric))?,
            ratio,
            verdict: Verdict::of(metric, ratio),
        })
    };
    METRICS.into_iter().filter_map(row).collect()
}

impl<'a> Comparison<'a> {
    fn new(a: &'a Document, b: &'a Document) -> Self {
        let find = |document: &'a Document, name: &str| {
            let mut runs = document.runs.iter();
            runs.find(|run| run.name == name)
        };
        let lacks = |document: &'a Document, other: &'a Document| -> Vec<&'a str> {
            let names = document.runs.iter().map(|run| run.name.as_str());
            names.filter(|name| find(other, name).is_none()).collect()
        };
        let both = a.runs.iter().filter_map(|run| {
            let other = find(b, &run.name)?;
            Some((run.name.as_str(), rows(run, other)))
        });
        Self {
            runs: both.collect(),
            only_in_a: lacks(a, b),
            only_in_b: lacks(b, a),
            a,
            b,
        }
    }

    /// In a few words.
    fn verdict(&self) -> &'static str {
        let all: Vec<Verdict> = self
            .runs
            .iter()
            .flat_map(|(_, rows)| rows.iter().map(|row| row.verdict))
            .collect();
        let has = |verdict| all.contains(&verdict);
        if has(Verdict::Better) || has(Verdict::Worse) {
            "different"
        } else if has(Verdict::NoDifference) {
            "no difference"
        } else if has(Verdict::TooFewRepeats) {
            "too few repeats"
        } else {
            "nothing to compare"
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for ((name, a), (_, b)) in self.a.floors.all().into_iter().zip(self.b.floors.all()) {
            if let (Some(a), Some(b)) = (a, b) {
                let (a_text, b_text) = (duration(a), duration(b));
                let _ = writeln!(out, "floor {name:20}{a_text:>12}{b_text:>12}{:>8.2}", b / a);
            }
        }
        let _ = writeln!(
            out,
            "{:26}{:>12}{:>12}{:>8}  99 in 100",
            "", "A", "B", "B / A"
        );
        for (name, rows) in &self.runs {
            let _ = writeln!(out, "{name}");
            for row in rows {
                let _ = writeln!(out, "{row}");
            }
        }
        for (side, names) in [("A", &self.only_in_a), ("B", &self.only_in_b)] {
            if !names.is_empty() {
                let _ = writeln!(out, "only in {side}: {}", names.join(", "));
            }
        }
        let _ = write!(
            out,
            "{}",
            match self.verdict() {
                "too few repeats" => "too few repeats to tell: 5 on each side are the least",
                verdict => verdict,
            }
        );
        out
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "metric": row.metric.name,
                "a": row.a,
                "b": row.b,
                "ratio": row.ratio.estimate,
                "interval": row.ratio.interval.map(|(low, high)| [low, high]),
                "verdict": row.verdict.text(),
            })
        };
        let run = |(name, rows): &(&str, Vec<Row>)| {
            let rows: Vec<Value> = rows.iter().map(row).collect();
            json!({"name": name, "metrics": rows})
        };
        let floors = self.a.floors.all().into_iter().zip(self.b.floors.all());
        let floors: serde_json::Map<String, Value> = floors
            .map(|((name, a), (_, b))| (name.to_owned(), json!({"a": a, "b": b})))
            .collect();
        json!({
            "schema": 1,
            "confidence": 0.99,
            "floors": floors,
            "runs": self.runs.iter().map(run).collect::<Vec<Value>>(),
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "verdict": self.verdict(),
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = |value: f64| match self.metric.more_is_better {
            true => format!("{value:.0}"),
            false => duration(value),
        };
        let (a, b) = (value(self.a), value(self.b));
        let (name, ratio) = (self.metric.name, self.ratio.estimate);
        write!(f, "  {name:24}{a:>12}{b:>12}{ratio:>8.3}  ")?;
        match self.ratio.interval {
            Some((low, high)) => write!(f, "{low:.3}–{high:.3}  ")?,
            None => write!(f, "{:13}", "")?,
        }
        f.write_str(self.verdict.text())
    }
}

/// Compares two documents; text for people, or one line of JSON.
fn compare(a: &Document, b: &Document, json: bool) -> String {
    let comparison = Comparison::new(a, b);
    match json {
        true => comparison.json().to_string(),
        false => comparison.text(),
    }
}

/// Runs the command: prints the comparison of two files. Ends with 0 whatever it finds.
pub(super) fn run(a: &Path, b: &Path, json: bool) -> ExitCode {
    let both = Document::read(a).and_then(|a| Ok((a, Document::read(b)?)));
    match both {
        Ok((a, b)) => {
            println!("{}", compare(&a, &b, json));
            ExitCode::SUCCESS
        }
        Err(error) => fail(UNUSABLE, json, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A document with one run, whose repeats have these p50s in ns.
    fn document(name: &str, p50s: &[f64]) -> String {
        let repeats: Vec<Value> = p50s
            .iter()
            .map(|p50| {
                json!({"iops": 1e9 / p50, "latency_ns": {"p50": p50, "p99": 2.0 * p50, "p999": 900}})
            })
            .collect();
        let run = json!({"name": name, "iops": 1, "latency_ns": {}, "samples": repeats});
        json!({"schema": 1, "floors": {"memory_ns": 250}, "runs": [run]}).to_string()
    }

    fn compare(a: &str, b: &str, json: bool) -> String {
        let [a, b] = [a, b].map(|text| Document::parse(text).unwrap());
        super::compare(&a, &b, json)
    }

    const BASE: [f64; 6] = [500.0, 505.0, 510.0, 495.0, 502.0, 508.0];

    fn verdicts(a: &str, b: &str) -> (Vec<String>, String) {
        let text = compare(a, b, true);
        let value: Value = serde_json::from_str(&text).unwrap();
        let metrics = value["runs"][0]["metrics"].as_array().cloned();
        let verdict = |metric: &Value| {
            format!(
                "{}: {}",
                metric["metric"].as_str().unwrap(),
                metric["verdict"].as_str().unwrap()
            )
        };
        let all = metrics.unwrap_or_default().iter().map(verdict).collect();
        (all, value["verdict"].as_str().unwrap().to_owned())
    }

    #[test]
    fn what_is_the_same_is_no_difference() {
        let a = document("w", &BASE);
        let shuffled = [505.0, 495.0, 508.0, 500.0, 510.0, 502.0];
        // As many up as down, and one far off.
        let noisy = [498.0, 507.0, 503.0, 900.0, 501.0, 497.0];
        for b in [&BASE, &shuffled, &noisy] {
            let b = document("w", b);
            let (all, verdict) = verdicts(&a, &b);
            assert!(all.iter().all(|v| v.ends_with("no difference")), "{all:?}");
            assert_eq!(verdict, "no difference");
            assert!(compare(&a, &b, false).ends_with("no difference"));
        }
        // Apart for sure, but by less than is worth a word.
        let (exact, beside) = (document("w", &[500.0; 6]), document("w", &[504.0; 6]));
        assert_eq!(verdicts(&exact, &beside).1, "no difference");
    }

    #[test]
    fn what_is_faster_is_better_and_slower_is_worse() {
        let (a, b) = (document("w", &BASE), document("w", &BASE.map(|x| x * 0.9)));
        let better = [
            "p50: better",
            "p99: better",
            "p999: no difference",
            "iops: better",
        ];
        assert_eq!(
            verdicts(&a, &b),
            (better.map(str::to_owned).to_vec(), "different".to_owned())
        );
        let worse = [
            "p50: worse",
            "p99: worse",
            "p999: no difference",
            "iops: worse",
        ];
        assert_eq!(
            verdicts(&b, &a),
            (worse.map(str::to_owned).to_vec(), "different".to_owned())
        );
        let text = compare(&a, &b, false);
        assert!(text.contains("floor memory_ns"), "{text}");
        assert!(text.contains("504 ns") || text.contains("503 ns"), "{text}");
        assert!(text.contains("0.900"), "{text}");
        assert!(text.ends_with("different"), "{text}");
    }

    #[test]
    fn too_few_repeats_are_no_ground_for_a_verdict() {
        let (a, b) = (document("w", &BASE[..4]), document("w", &[1.0; 4]));
        let (all, verdict) = verdicts(&a, &b);
        assert!(
            all.iter().all(|v| v.ends_with("too few repeats")),
            "{all:?}"
        );
        assert_eq!(verdict, "too few repeats");
        // A run without repeats is one by itself.
        let lone = r#"{"schema":1,"runs":[{"name":"w","iops":5,"latency_ns":{"p50":2}}]}"#;
        let (all, verdict) = verdicts(lone, lone);
        assert_eq!(all, ["p50: too few repeats", "iops: too few repeats"]);
        assert_eq!(verdict, "too few repeats");
    }

    #[test]
    fn runs_are_matched_by_name() {
        let (a, b) = (document("a", &BASE), document("b", &BASE));
        let text = compare(&a, &b, false);
        assert!(text.contains("only in A: a\nonly in B: b\n"), "{text}");
        assert!(text.ends_with("nothing to compare"), "{text}");
    }

    #[test]
    fn files_that_can_not_be_read_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
        std::fs::write(&good, document("w", &BASE)).unwrap();
        std::fs::write(&bad, "{}").unwrap();
        let code = |a: &Path, b: &Path| format!("{:?}", run(a, b, false));
        let ok = format!("{:?}", ExitCode::SUCCESS);
        assert_eq!(code(&good, &good), ok);
        assert_ne!(code(&good, &bad), ok);
        assert_ne!(code(&dir.path().join("none"), &good), ok);
    }
}
