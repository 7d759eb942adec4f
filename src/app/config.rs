//! Configuration files: the same methods as over RPC, in order, in SPDK's layout.
//!
//! `{"subsystems":[{"subsystem":"bdev","config":[{"method":"…","params":{…}}]}]}`. An entry may be an
//! array of entries. A method that is not known here is skipped if its subsystem isn't either, and
//! fatal otherwise. A call that fails ends the start, except where the rest of the service is worth
//! having: a pool or cache that can't be loaded is noted as degraded, and so is whatever then lacks
//! its bdev.

use super::service::Service;
use rpc::{Error, Params, Registry};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::path::Path;

/// Why the service can't start as configured.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{path}: {source}")]
    Parse {
        /// Which file.
        path: String,
        /// What the parser said, with the line.
        #[source]
        source: serde_json::Error,
    },
    /// A call failed.
    #[error("configuration entry {entry}, {method}: {error}")]
    Call {
        /// Counts the calls of the file from 1.
        entry: usize,
        /// The method.
        method: String,
        /// What it answered.
        error: Error,
    },
}

#[derive(Debug, Deserialize)]
struct File {
    subsystems: Vec<Subsystem>,
}

#[derive(Debug, Deserialize)]
struct Subsystem {
    subsystem: String,
    /// SPDK writes null for none. Each is a call or an array of calls; kept raw, so that double
    /// keys of the parameters are still seen by who decodes them.
    config: Option<Vec<Box<RawValue>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    method: String,
    params: Option<Box<RawValue>>,
}

/// The calls of one entry.
fn calls(entry: &RawValue) -> Result<Vec<Call>, serde_json::Error> {
    if entry.get().starts_with('[') {
        serde_json::from_str(entry.get())
    } else {
        Ok(vec![serde_json::from_str(entry.get())?])
    }
}

/// The subsystems in which a method that we don't know is a mistake.
const SUBSYSTEMS: &[&str] = &["bdev", "nbd"];

/// Methods whose failure degrades the service instead of ending it.
const MAY_FAIL: &[&str] = &["pool_load", "bdev_pmcache_load"];

/// Runs every call of the file at `path`.
///
/// # Errors
/// If it can't be read or parsed, or a call fails that may not.
pub(super) fn apply_file(
    registry: &Registry<Service>,
    service: &Service,
    path: &Path,
) -> Result<(), ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: shown.clone(),
        source,
    })?;
    let parse_error = |source| ConfigError::Parse {
        path: shown.clone(),
        source,
    };
    let file: File = serde_json::from_str(&text).map_err(parse_error)?;
    let mut all = Vec::new();
    for subsystem in file.subsystems {
        let ours = SUBSYSTEMS.contains(&subsystem.subsystem.as_str());
        for entry in subsystem.config.unwrap_or_default() {
            let calls = calls(&entry).map_err(parse_error)?;
            all.extend(calls.into_iter().map(|call| (ours, call)));
        }
    }
    apply(registry, service, all)
}

/// Runs `calls`, each with whether its subsystem is one of ours.
fn apply(
    registry: &Registry<Service>,
    service: &Service,
    calls: Vec<(bool, Call)>,
) -> Result<(), ConfigError> {
    let known = registry.names();
    for (index, (ours, call)) in calls.into_iter().enumerate() {
        if !ours && !known.contains(&call.method.as_str()) {
            tracing::info!(method = call.method, "not known here, skipped");
            continue;
        }
        run(registry, service, &call).map_err(|error| ConfigError::Call {
            entry: index + 1,
            method: call.method,
            error,
        })?;
    }
    Ok(())
}

fn run(registry: &Registry<Service>, service: &Service, call: &Call) -> Result<(), Error> {
    let params = Params::new(call.params.as_deref());
    let Err(error) = registry.call(service, &call.method, params) else {
        return Ok(());
    };
    let lacks_its_bdev = error.code == -19 && !service.degraded().is_empty();
    if !MAY_FAIL.contains(&call.method.as_str()) && !lacks_its_bdev {
        return Err(error);
    }
    let params = call.params.as_ref().map_or("", |params| params.get());
    service.degrade(&format!("{} {params}", call.method), error.message);
    Ok(())
}
