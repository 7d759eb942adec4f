//! What `pmcache bench --json` printed, read again: to be compared and plotted.

use serde::{Deserialize, Deserializer};
use std::path::Path;

/// The layout that is understood.
const SCHEMA: u32 = 1;

/// Why a text is no such document.
#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentError {
    /// Not JSON, or without the fields.
    #[error("no output of `bench --json`: {0}")]
    Json(#[from] serde_json::Error),
    /// Another layout.
    #[error("its schema is {0}, this version reads {SCHEMA}")]
    Schema(u32),
}

/// One document: floors and runs.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Document {
    schema: u32,
    /// Null if they were not measured.
    #[serde(default, deserialize_with = "null_is_none")]
    pub(super) floors: Floors,
    #[serde(default)]
    pub(super) runs: Vec<Run>,
}

/// What the machine itself took, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Floors {
    /// A 4 KiB copy and its barrier.
    pub(super) memory_ns: Option<f64>,
    /// The same with a CRC.
    pub(super) memory_crc_ns: Option<f64>,
    /// To another core and back.
    pub(super) ring_round_trip_ns: Option<f64>,
    /// A 4 KiB copy from a cold page.
    pub(super) read_cold_ns: Option<f64>,
    /// p99.9 of a bare polling loop.
    pub(super) jitter_p999_ns: Option<f64>,
}

fn null_is_none<'de, D: Deserializer<'de>>(from: D) -> Result<Floors, D::Error> {
    Ok(Option::<Floors>::deserialize(from)?.unwrap_or_default())
}

impl Floors {
    /// All of them, with their names.
    pub(super) fn all(&self) -> [(&'static str, Option<f64>); 5] {
        [
            ("memory_ns", self.memory_ns),
            ("memory_crc_ns", self.memory_crc_ns),
            ("ring_round_trip_ns", self.ring_round_trip_ns),
            ("read_cold_ns", self.read_cold_ns),
            ("jitter_p999_ns", self.jitter_p999_ns),
        ]
    }
}

/// Latencies in nanoseconds; what a document leaves out can't be compared.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Latency {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) p999: Option<f64>,
}

/// One of the interleaved repeats of a run.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Repeat {
    pub(super) iops: Option<f64>,
    #[serde(default)]
    pub(super) latency_ns: Latency,
}

/// Latencies of a stretch of time, in nanoseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Moment {
    /// When it began, in milliseconds from the beginning of counting.
    pub(super) at_ms: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// One run.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) iops: Option<f64>,
    #[serde(default)]
    pub(super) latency_ns: Latency,
    #[serde(default, rename = "samples")]
    pub(super) repeats: Vec<Repeat>,
    #[serde(default)]
    pub(super) series: Vec<Moment>,
    /// Quantile (0 to 1) and nanoseconds, in order.
    #[serde(default)]
    pub(super) curve: Vec<(f64, f64)>,
}

impl Document {
    /// Reads what `bench --json` printed to `path`.
    ///
    /// # Errors
    /// If it can't be read or is something else, with its name.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads what `bench --json` printed.
    ///
    /// # Errors
    /// If it is something else.
    pub(super) fn parse(text: &str) -> Result<Self, DocumentError> {
        let document: Self = serde_json::from_str(text)?;
        if document.schema != SCHEMA {
            return Err(DocumentError::Schema(document.schema));
        }
        Ok(document)
    }
}

/// Nanoseconds as people read them.
pub(super) fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{} µs", short(ns / 1e3)),
        ns if ns < 1e9 => format!("{} ms", short(ns / 1e6)),
        ns => format!("{} s", short(ns / 1e9)),
    }
}

/// Three digits that count, of a number below 1000.
fn short(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_known_schema_is_read() {
        let document = Document::parse(r#"{"schema":1,"runs":[{"name":"a","more":1}]}"#).unwrap();
        assert_eq!(document.runs[0].name, "a");
        let bare = Document::parse(r#"{"schema":1,"floors":null}"#).unwrap();
        assert_eq!(bare.floors.memory_ns, None);
        assert!(matches!(
            Document::parse(r#"{"schema":2,"runs":[]}"#),
            Err(DocumentError::Schema(2))
        ));
        for text in ["", "[]", "{}", r#"{"schema":1,"runs":[{}]}"#] {
            assert!(matches!(Document::parse(text), Err(DocumentError::Json(_))));
        }
    }

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        for (ns, text) in [
            (0.4, "0 ns"),
            (999.0, "999 ns"),
            (1000.0, "1.00 µs"),
            (12_345.0, "12.3 µs"),
            (9_996.0, "10.0 µs"),
            (123_456.0, "123 µs"),
            (2.5e6, "2.50 ms"),
            (3e9, "3.00 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }
}
