//! The layout of a configuration file.
//!
//! `{"subsystems":[{"subsystem":"bdev","config":[{"method":"…","params":{…}}]}]}`. An entry may be an
//! array of calls, a batch.

use super::call::Call;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;
use std::path::Path;

/// Why there is no configuration to be had from a file.
#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum FileError {
    /// It can't be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not a configuration.
    #[error("{path}: {source}")]
    Parse {
        /// Which file.
        path: String,
        /// What the parser said, with the line.
        #[source]
        source: serde_json::Error,
    },
    /// An entry is no call.
    #[error("{path}: {place}: {source}")]
    Entry {
        /// Which file.
        path: String,
        /// Which entry.
        place: Place,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

/// Where in the file something stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::app) struct Place {
    /// The subsystem's name.
    pub(super) subsystem: String,
    /// Counts the entries of the subsystem from 1.
    pub(super) entry: usize,
    /// Counts the calls of a batch from 1; nothing for a call alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) call: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subsystem {}, entry {}", self.subsystem, self.entry)?;
        match self.call {
            Some(call) => write!(f, ", call {call}"),
            None => Ok(()),
        }
    }
}

/// A call alone, or a batch: either runs as one.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Each with its place.
    pub(super) calls: Vec<(Place, Call)>,
}

#[derive(Debug, Deserialize)]
struct Layout {
    subsystems: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    subsystem: String,
    /// SPDK writes null for none.
    config: Option<Vec<Box<RawValue>>>,
}

/// A configuration that is written.
#[derive(Debug, Serialize)]
pub(super) struct Saved {
    /// In order.
    pub(super) subsystems: Vec<SavedPart>,
}

/// One subsystem of [`Saved`].
#[derive(Debug, Serialize)]
pub(super) struct SavedPart {
    /// Its name.
    pub(super) subsystem: String,
    /// Its calls.
    pub(super) config: Value,
}

/// Reads the file at `path`.
///
/// # Errors
/// If it can't be read, or is no configuration.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, FileError> {
    let shown = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&shown, &text),
        Err(source) => Err(FileError::Read {
            path: shown,
            source,
        }),
    }
}

fn parse(path: &str, text: &str) -> Result<Vec<Entry>, FileError> {
    let layout: Layout = serde_json::from_str(text).map_err(|source| FileError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let mut entries = Vec::new();
    for part in layout.subsystems {
        for (index, raw) in part.config.unwrap_or_default().iter().enumerate() {
            let place = Place {
                subsystem: part.subsystem.clone(),
                entry: index + 1,
                call: None,
            };
            let entry = entry(&place, raw).map_err(|source| FileError::Entry {
                path: path.to_owned(),
                place,
                source,
            })?;
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn entry(place: &Place, raw: &RawValue) -> Result<Entry, serde_json::Error> {
    if !raw.get().starts_with('[') {
        let call = serde_json::from_str(raw.get())?;
        return Ok(Entry {
            calls: vec![(place.clone(), call)],
        });
    }
    let batch: Vec<Call> = serde_json::from_str(raw.get())?;
    let calls = batch.into_iter().zip(1..).map(|(call, number)| {
        let place = Place {
            call: Some(number),
            ..place.clone()
        };
        (place, call)
    });
    Ok(Entry {
        calls: calls.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_know_their_place() {
        let text = r#"{"subsystems":[
            {"subsystem":"sock","config":null},
            {"subsystem":"bdev","config":[
                {"method":"a"},
                [{"method":"b","params":{"x":1}},{"method":"c","params":null}]]}]}"#;
        let entries = parse("f", text).unwrap();
        let calls = entries.iter().flat_map(|entry| &entry.calls);
        let told: Vec<String> = calls
            .map(|(place, call)| format!("{place}, {}: {}", call.method, call.value()))
            .collect();
        let expected = [
            "subsystem bdev, entry 1, a: null",
            "subsystem bdev, entry 2, call 1, b: {\"x\":1}",
            "subsystem bdev, entry 2, call 2, c: null",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_no_call_is_told_with_its_place() {
        let text = r#"{"subsystems":[{"subsystem":"bdev","config":[{"method":"a"},{"x":1}]}]}"#;
        let said = parse("f", text).unwrap_err().to_string();
        assert!(said.starts_with("f: subsystem bdev, entry 2: "), "{said}");
        assert!(matches!(parse("f", "{"), Err(FileError::Parse { .. })));
    }
}
