//! A channel that counts, times and limits what passes.
//!
//! Latency runs from the start of the round of its reactor in which a request came, to the start of
//! that in which its end was taken: no clock is read for it. Of the requests that come and end in
//! one round, one in sixteen is timed by the clock and counts for all. While there is a histogram
//! the clock is read once for all ends that are taken at once.

use super::counters::{IoKind, ReactorCounters};
use super::limits::{Allowance, Limiter};
use super::meter::{Meter, Settings};
use crate::bdev::in_flight::InFlight;
use crate::bdev::inline::{take_all, wake_for};
use crate::bdev::{Bdev, BdevError, Channel, Completion, IoStatus, Op, Request};
use reactors::{Cx, Nanos, ReactorId, Wake};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A request that the base has.
#[derive(Clone, Copy, Debug)]
struct Flying {
    /// The user's.
    tag: u64,
    op: Op,
    bytes: u64,
    begun: Nanos,
}

#[derive(Debug)]
pub(super) struct MeteredChannel {
    meter: Arc<Meter>,
    bdev: Arc<dyn Bdev>,
    base: Box<dyn Channel>,
    reactor: usize,
    settings: Arc<Settings>,
    /// Generation of the settings.
    seen: u64,
    in_flight: InFlight<Flying>,
    /// What the limits hold back, in order, and when it came.
    held: VecDeque<(Request, Nanos)>,
    allowance: Allowance,
    /// Given up while they were held back.
    given_up: Vec<Completion>,
}

impl MeteredChannel {
    pub(super) fn new(
        meter: Arc<Meter>,
        bdev: Arc<dyn Bdev>,
        base: Box<dyn Channel>,
        reactor: ReactorId,
    ) -> Result<Self, BdevError> {
        let reactor = reactor.index();
        let Some(counters) = meter.counters(reactor) else {
            let name = &bdev.info().name;
            return Err(BdevError::Invalid(format!(
                "bdev {name} has no counters for reactor {reactor}"
            )));
        };
        counters.opened.add(1);
        meter.channels.fetch_add(1, Ordering::Relaxed);
        // The number first: settings that change in between are looked at once more.
        let seen = meter.watched.generation.load(Ordering::Acquire);
        let settings = meter.settings();
        Ok(Self {
            meter,
            bdev,
            base,
            reactor,
            settings,
            seen,
            in_flight: InFlight::default(),
            held: VecDeque::new(),
            allowance: Allowance::default(),
            given_up: Vec::new(),
        })
    }

    fn has_new_settings(&self) -> bool {
        self.meter.watched.generation.load(Ordering::Acquire) != self.seen
    }

    #[cold]
    fn take_settings(&mut self) {
        self.seen = self.meter.watched.generation.load(Ordering::Acquire);
        let old = std::mem::replace(&mut self.settings, self.meter.settings());
        let limiter = |settings: &Settings| settings.limiter.as_ref().map(Arc::as_ptr);
        if limiter(&old) != limiter(&self.settings) {
            self.allowance = Allowance::default();
        }
    }

    fn counters(&self) -> Option<&ReactorCounters> {
        self.meter.counters(self.reactor)
    }

    /// Gives `request` to the base.
    fn start(&mut self, cx: &Cx, mut request: Request, begun: Nanos) {
        if let Some(counters) = self.counters() {
            counters.submitted.add(1);
        }
        request.tag = self.in_flight.insert(Flying {
            tag: request.tag,
            op: request.op,
            bytes: request.range.len(),
            begun,
        });
        self.base.submit(cx, request);
    }

    /// Holds `request` back until the limits let it pass.
    #[cold]
    fn hold(&mut self, cx: &Cx, request: Request) {
        // What the base refuses costs nothing, and may say any length.
        if self.bdev.info().admit(&request).is_err() {
            self.start(cx, request, cx.now());
            return;
        }
        self.held.push_back((request, cx.now()));
        self.let_pass(cx);
    }

    /// Gives the base what the limits let pass now.
    fn let_pass(&mut self, cx: &Cx) {
        while let Some((request, _)) = self.held.front() {
            if let Some(limiter) = &self.settings.limiter {
                let channels = self.meter.channels.load(Ordering::Relaxed);
                let io = (request.op, request.range.len());
                if !self.allowance.passes(limiter, io, cx.now(), channels) {
                    return;
                }
            }
            if let Some((request, begun)) = self.held.pop_front() {
                self.start(cx, request, begun);
            }
        }
    }

    /// Counts the ends in `done` from `first` on, and gives them back their tags.
    fn count(&mut self, cx: &Cx, done: &mut Vec<Completion>, first: usize) {
        let histogram = self.settings.histogram.as_ref();
        let clock = histogram.map(|_| cx.read_clock());
        let now = clock.unwrap_or_else(|| cx.now());
        let mut at = first;
        while let Some(completion) = done.get_mut(at) {
            let Some(flying) = self.in_flight.remove(completion.tag) else {
                // The base made it up: nobody waits for it.
                done.swap_remove(at);
                continue;
            };
            completion.tag = flying.tag;
            at += 1;
            let Some(counters) = self.meter.counters(self.reactor) else {
                continue;
            };
            counters.ended.add(1);
            if !completion.status.is_ok() {
                counters.failed(completion.status);
                continue;
            }
            let was_quick = clock.is_none() && flying.begun == now;
            let took = now.since(flying.begun);
            if let Some(kind) = IoKind::of(flying.op) {
                let kind = counters.kind(kind);
                kind.done(flying.bytes);
                let era = self.meter.watched.era.load(Ordering::Relaxed);
                if !was_quick {
                    kind.timed(took, 1, era);
                } else if let Some(times) = kind.sample() {
                    kind.timed(cx.read_clock().since(flying.begun), times, era);
                }
            }
            if let Some(histogram) = histogram.filter(|h| h.is_of(flying.op)) {
                histogram.tally(self.reactor, took);
            }
        }
    }
}

impl Channel for MeteredChannel {
    fn submit(&mut self, cx: &Cx, request: Request) {
        if self.has_new_settings() {
            self.take_settings();
        }
        let may_be_held = self.settings.limiter.is_some() || !self.held.is_empty();
        if may_be_held && Limiter::limits(request.op) {
            self.hold(cx, request);
        } else {
            self.start(cx, request, cx.now());
        }
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        if self.has_new_settings() {
            self.take_settings();
        }
        if !self.held.is_empty() {
            self.let_pass(cx);
        }
        let first = done.len();
        self.base.poll(cx, done);
        if done.len() > first {
            self.count(cx, done, first);
        }
        let ended = u32::try_from(done.len() - first).unwrap_or(u32::MAX);
        ended.saturating_add(take_all(&mut self.given_up, done))
    }

    fn wake(&self) -> Wake {
        let wake = wake_for(&self.given_up).sooner(self.base.wake());
        if self.held.is_empty() {
            return wake;
        }
        let held = match self.allowance.from() {
            Some(from) if !self.has_new_settings() => Wake::At(from),
            _ => Wake::Now,
        };
        wake.sooner(held)
    }

    /// What it took of the limits for a request that waited is lost.
    fn cancel(&mut self, cx: &Cx) {
        if !self.held.is_empty() {
            self.allowance = Allowance::default();
        }
        for (request, _) in std::mem::take(&mut self.held) {
            if let Some(counters) = self.counters() {
                counters.failed(IoStatus::Aborted);
            }
            self.given_up.push(request.complete(IoStatus::Aborted));
        }
        self.base.cancel(cx);
    }
}

impl Drop for MeteredChannel {
    fn drop(&mut self) {
        self.meter.channels.fetch_sub(1, Ordering::Relaxed);
        // A channel ends on its own reactor.
        if let Some(counters) = self.counters() {
            counters.closed.add(1);
        }
    }
}

#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod tests;
