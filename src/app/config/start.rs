//! Loading a configuration while the service starts.

use super::call::Call;
use super::file::{self, FileError};
use super::load::{LoadError, Target, load};
use super::unresolved;
use crate::app::service::Service;
use rpc::{Error, Params, Phase, Registry};
use serde_json::value::{RawValue, to_raw_value};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long to wait before looking again whether devices have appeared.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the service can't start as configured.
#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum ConfigError {
    /// The file is of no use.
    #[error(transparent)]
    File(#[from] FileError),
    /// A call failed.
    #[error("{path}: {source}")]
    Load {
        /// Which file.
        path: String,
        /// Which call, and why.
        #[source]
        source: Box<LoadError>,
    },
}

/// The service itself, in the phase that the load has reached. Others see a running one meanwhile, so
/// that nobody else starts it.
struct Starting<'a> {
    registry: &'a Registry<Service>,
    service: &'a Service,
    phase: Phase,
}

impl Target for Starting<'_> {
    fn call(&mut self, method: &str, params: Option<&RawValue>) -> Result<Box<RawValue>, Error> {
        if method == "framework_start_init" {
            self.phase = Phase::Runtime;
            return to_raw_value(&true)
                .map_err(|why| Error::new(Error::INTERNAL_ERROR, why.to_string()));
        }
        let params = Params::new(params);
        self.registry
            .call_in(self.phase, self.service, method, params)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let params = Params::new(call.params.as_deref());
        self.registry.check(&call.method, params)
    }

    fn bears(&mut self, call: &Call, error: &Error) -> bool {
        self.service.unresolved.note(call, error)
    }

    fn forget_borne(&mut self) {
        self.service.unresolved.clear();
    }
}

/// Makes the calls of the file at `path`, those of the start first, then those of run time.
///
/// # Errors
/// If it can't be read or parsed, or a call fails that may not. What was made is unmade then.
pub(in crate::app) fn apply_file(
    registry: &Registry<Service>,
    service: &Service,
    path: &Path,
) -> Result<(), ConfigError> {
    let entries = file::read(path)?;
    let mut target = Starting {
        registry,
        service,
        phase: Phase::Startup,
    };
    let loaded = load(&mut target, entries).map_err(|source| ConfigError::Load {
        path: path.display().to_string(),
        source,
    })?;
    for method in loaded.unknown {
        tracing::info!(method, "not known here, skipped");
    }
    Ok(())
}

/// Makes the calls whose devices were absent again and again, on a thread of its own, until all have
/// succeeded or the service ends. Nothing if there are none.
///
/// # Errors
/// If the operating system gives no thread.
pub(in crate::app) fn watch(
    registry: &Arc<Registry<Service>>,
    service: &Arc<Service>,
) -> io::Result<Option<JoinHandle<()>>> {
    if !service.unresolved.any_waits() {
        return Ok(None);
    }
    let (registry, service) = (Arc::clone(registry), Arc::clone(service));
    let thread = std::thread::Builder::new().name("waiting".to_owned());
    let spawned = thread.spawn(move || {
        while !service.is_ending_within(PAUSE) && service.unresolved.any_waits() {
            unresolved::retry(&registry, &service);
        }
    })?;
    Ok(Some(spawned))
}
