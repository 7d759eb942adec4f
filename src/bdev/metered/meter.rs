//! What the channels of a metered bdev share: nothing in it is written while requests pass, but by
//! each reactor in its own place.

use super::counters::{IoFigures, ReactorCounters, ResetFigures};
use super::depth::Depth;
use super::histogram::{Histogram, HistogramOptions};
use super::limits::{Limiter, RateLimits};
use crate::bdev::BdevError;
use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use reactors::ReactorId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What an operator has set. Replaced as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) histogram: Option<Arc<Histogram>>,
    pub(super) limits: RateLimits,
    pub(super) limiter: Option<Arc<Limiter>>,
}

/// What every request looks at; on lines that are written by an operator only.
#[derive(Debug)]
pub(super) struct Watched {
    /// Raised after each change of the settings.
    pub(super) generation: AtomicU64,
    /// Raised to let the extremes begin anew.
    pub(super) era: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Meter {
    /// Tells it from every other one of the process.
    pub(super) instance: u64,
    pub(super) watched: CachePadded<Watched>,
    settings: ArcSwap<Settings>,
    reactors: Box<[CachePadded<ReactorCounters>]>,
    /// What each reactor's figures were at the last reset.
    before: ArcSwap<Vec<IoFigures>>,
    /// Channels that are open.
    pub(super) channels: CachePadded<AtomicU64>,
    pub(super) depth: CachePadded<Depth>,
}

fn next_instance() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Meter {
    pub(super) fn new(reactors: usize) -> Self {
        Self {
            instance: next_instance(),
            watched: CachePadded::new(Watched {
                generation: AtomicU64::new(1),
                era: AtomicU64::new(1),
            }),
            settings: ArcSwap::default(),
            reactors: (0..reactors).map(|_| CachePadded::default()).collect(),
            before: ArcSwap::from_pointee(vec![IoFigures::default(); reactors]),
            channels: CachePadded::default(),
            depth: CachePadded::default(),
        }
    }

    /// The place of a reactor.
    pub(super) fn counters(&self, reactor: usize) -> Option<&ReactorCounters> {
        self.reactors.get(reactor).map(|padded| &**padded)
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Replaces the settings by what `change` makes of them, unless it refuses.
    fn change(
        &self,
        change: impl Fn(&mut Settings) -> Result<(), BdevError>,
    ) -> Result<(), BdevError> {
        let mut refused = None;
        self.settings.rcu(|old| {
            let mut new = Settings::clone(old);
            refused = change(&mut new).err();
            if refused.is_none() {
                Arc::new(new)
            } else {
                Arc::clone(old)
            }
        });
        // Release: who sees the number sees the settings.
        self.watched.generation.fetch_add(1, Ordering::Release);
        refused.map_or(Ok(()), Err)
    }

    pub(super) fn change_limits(
        &self,
        change: impl Fn(RateLimits) -> RateLimits,
    ) -> Result<(), BdevError> {
        self.change(|settings| {
            let limits = change(settings.limits).rounded()?;
            settings.limiter = Limiter::new(&limits, settings.limiter.as_deref());
            settings.limits = limits;
            Ok(())
        })
    }

    pub(super) fn set_histogram(&self, options: Option<HistogramOptions>) -> Result<(), BdevError> {
        let fresh = |options| Histogram::new(options, self.reactors.len()).map(Arc::new);
        let histogram = options.map(fresh).transpose()?;
        self.change(|settings| {
            settings.histogram.clone_from(&histogram);
            Ok(())
        })
    }

    /// Requests that the device has.
    pub(super) fn in_flight(&self) -> u64 {
        // Ended first: what ends between the two reads counts as under way, never the other way.
        let ended: u64 = self.reactors.iter().map(|r| r.ended.get()).sum();
        let submitted: u64 = self.reactors.iter().map(|r| r.submitted.get()).sum();
        submitted.saturating_sub(ended)
    }

    /// How many channels every reactor has open, of those that have some.
    pub(super) fn channels_open(&self) -> Vec<(ReactorId, u64)> {
        let places = (0..).map(ReactorId).zip(&self.reactors);
        let open = places.map(|(id, place)| {
            // What closed first: one that comes in between is not taken for one too few.
            let closed = place.closed.get();
            (id, place.opened.get().saturating_sub(closed))
        });
        open.filter(|(_, count)| *count > 0).collect()
    }

    /// The figures of every reactor that has ever opened a channel, since the last reset.
    pub(super) fn figures(&self, reset: ResetFigures) -> Vec<(ReactorId, IoFigures)> {
        let era = self.watched.era.load(Ordering::Acquire);
        let read: Vec<IoFigures> = self.reactors.iter().map(|r| r.read(era)).collect();
        let before = self.before.load_full();
        match reset {
            ResetFigures::Nothing => {}
            ResetFigures::All => self.before.store(Arc::new(read.clone())),
            ResetFigures::Errors => {
                let mut with_errors = Vec::clone(&before);
                for (before, read) in with_errors.iter_mut().zip(&read) {
                    before.errors = read.errors;
                }
                self.before.store(Arc::new(with_errors));
            }
            ResetFigures::Extremes => {}
        }
        if matches!(reset, ResetFigures::All | ResetFigures::Extremes) {
            self.watched.era.fetch_add(1, Ordering::Release);
        }
        let places = (0..).map(ReactorId).zip(&self.reactors);
        let since = read.into_iter().zip(before.iter()).zip(places);
        let opened = since.filter(|(_, (_, place))| place.opened.get() > 0);
        let figures = opened.map(|((mut figures, before), (id, _))| {
            figures.subtract(before);
            (id, figures)
        });
        figures.collect()
    }
}
