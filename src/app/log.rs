//! The log on standard error. Its level, the flags that let one part say more, and whether lines begin
//! with the time can be changed while the service runs.

use super::shared::Shared;
use rpc::Error;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// SPDK's levels, the gravest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum LogLevel {
    Error,
    Warning,
    #[default]
    Notice,
    /// Nothing is between it and a notice here.
    Info,
    Debug,
}

impl LogLevel {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warning => LevelFilter::WARN,
            Self::Notice | Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        }
    }

    /// What `PMCACHE_LOG` says; the default if it says nothing that is understood.
    fn from_environment() -> Self {
        let text = std::env::var("PMCACHE_LOG").unwrap_or_default();
        match text.parse() {
            Ok(tracing::Level::ERROR) => Self::Error,
            Ok(tracing::Level::WARN) => Self::Warning,
            Ok(tracing::Level::DEBUG | tracing::Level::TRACE) => Self::Debug,
            _ => Self::Notice,
        }
    }
}

/// The parts that a flag lets say all, and where they are.
const FLAGS: &[(&str, &str)] = &[
    ("app", "pmcache::app"),
    ("bdev", "pmcache::bdev"),
    ("cache", "pmcache::cache"),
    ("nbd", "pmcache::target::nbd"),
    ("rpc", "rpc"),
];

#[derive(Debug, Default)]
struct Wish {
    level: LogLevel,
    flags: BTreeSet<&'static str>,
}

impl Wish {
    fn targets(&self) -> Targets {
        let raised = FLAGS.iter().filter(|(flag, _)| self.flags.contains(flag));
        let raised = raised.map(|(_, target)| (*target, LevelFilter::DEBUG));
        Targets::new()
            .with_default(self.level.filter())
            .with_targets(raised)
    }
}

/// The handle on it. By default one that has no log, for a service that is not the process.
#[derive(Debug, Default)]
pub(super) struct Log {
    wish: Shared<Wish>,
    timestamps: Arc<AtomicBool>,
    filter: Option<reload::Handle<Targets, Registry>>,
}

impl Log {
    /// Starts the process's log; `PMCACHE_LOG` sets its level (error … trace).
    pub(super) fn start() -> Self {
        let wish = Wish {
            level: LogLevel::from_environment(),
            ..Wish::default()
        };
        let timestamps = Arc::new(AtomicBool::new(true));
        let (filter, handle) = reload::Layer::new(wish.targets());
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .event_format(Lines {
                timed: Format::default(),
                bare: Format::default().without_time(),
                timestamps: Arc::clone(&timestamps),
            });
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .init();
        Self {
            wish: Shared::new(wish),
            timestamps,
            filter: Some(handle),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Wish)) -> Result<(), Error> {
        self.wish.with(|wish| {
            change(wish);
            let Some(filter) = &self.filter else {
                return Ok(());
            };
            filter.reload(wish.targets()).map_err(|error| {
                Error::new(Error::INTERNAL_ERROR, format!("Internal error: {error}"))
            })
        })
    }

    /// What is logged, unless a flag says more.
    pub(super) fn level(&self) -> LogLevel {
        self.wish.with(|wish| wish.level)
    }

    /// Logs `level` and what is graver.
    ///
    /// # Errors
    /// −32603 if the process's log has gone.
    pub(super) fn set_level(&self, level: LogLevel) -> Result<(), Error> {
        self.change(|wish| wish.level = level)
    }

    /// All flags, and whether each is set.
    pub(super) fn flags(&self) -> BTreeMap<&'static str, bool> {
        self.wish.with(|wish| {
            let flags = FLAGS.iter().map(|(flag, _)| *flag);
            flags
                .map(|flag| (flag, wish.flags.contains(flag)))
                .collect()
        })
    }

    /// Sets or clears `flag`; "all" is every one.
    ///
    /// # Errors
    /// −32602 for what is no flag.
    pub(super) fn set_flag(&self, flag: &str, on: bool) -> Result<(), Error> {
        let flags = FLAGS.iter().map(|(known, _)| *known);
        let chosen: Vec<&'static str> = flags
            .filter(|known| flag == "all" || flag == *known)
            .collect();
        if chosen.is_empty() {
            return Err(Error::invalid_params("invalid log flag"));
        }
        self.change(|wish| {
            for flag in chosen {
                if on {
                    wish.flags.insert(flag);
                } else {
                    wish.flags.remove(flag);
                }
            }
        })
    }

    /// Whether lines begin with the time.
    pub(super) fn enable_timestamps(&self, enabled: bool) {
        self.timestamps.store(enabled, Ordering::Relaxed);
    }
}

/// Lines with or without the time.
struct Lines {
    timed: Format,
    bare: Format<Full, ()>,
    timestamps: Arc<AtomicBool>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.timestamps.load(Ordering::Relaxed) {
            self.timed.format_event(context, writer, event)
        } else {
            self.bare.format_event(context, writer, event)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_raises_its_part_and_no_other() {
        let log = Log::default();
        assert_eq!(log.level(), LogLevel::Notice);
        log.set_flag("nbd", true).unwrap();
        let passes = |target: &str| {
            let targets = log.wish.with(|wish| wish.targets());
            targets.would_enable(target, &tracing::Level::DEBUG)
        };
        assert!(passes("pmcache::target::nbd::connection"));
        assert!(!passes("pmcache::cache::load") && !passes("rpc::request"));
        log.set_flag("nbd", false).unwrap();
        assert!(!passes("pmcache::target::nbd::connection"));
        log.set_flag("all", true).unwrap();
        assert!(log.flags().values().all(|on| *on));
        assert!(passes("rpc::request") && !passes("hyper::proto"));
        assert_eq!(log.set_flag("ALL", true).unwrap_err().code, -32602);
        log.set_level(LogLevel::Debug).unwrap();
        assert!(passes("anything"));
    }
}
