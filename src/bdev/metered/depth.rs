//! Queue depth, as seen at regular times by a poller that may be on any reactor.

use super::meter::Meter;
use reactors::{Counter, Cx, Poller, PollerId};
use std::rc::Rc;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the samples say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DepthFigures {
    /// How often it looks, µs.
    pub period_us: u64,
    /// Requests that the device had when it looked last.
    pub depth: u64,
    /// Time in which the device had something to do, µs, to a period.
    pub busy_us: u64,
    /// The same, times the depth.
    pub weighted_us: u64,
}

/// The samples.
#[derive(Debug, Default)]
pub(super) struct Depth {
    /// 0 while nobody looks.
    period_us: AtomicU64,
    depth: Counter,
    busy_us: Counter,
    weighted_us: Counter,
}

impl Depth {
    pub(super) fn figures(&self) -> Option<DepthFigures> {
        let period_us = self.period_us.load(Ordering::Acquire);
        (period_us > 0).then(|| DepthFigures {
            period_us,
            depth: self.depth.get(),
            busy_us: self.busy_us.get(),
            weighted_us: self.weighted_us.get(),
        })
    }

    fn sample(&self, depth: u64) {
        let period_us = self.period_us.load(Ordering::Relaxed);
        self.depth.set(depth);
        if depth > 0 {
            self.busy_us.add(period_us);
            self.weighted_us.add(period_us.saturating_mul(depth));
        }
    }
}

/// Reactor-local name of the poller.
struct SamplerId(PollerId);

struct Sampler {
    key: u64,
    meter: Weak<Meter>,
}

impl Poller for Sampler {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        match self.meter.upgrade() {
            Some(meter) => meter.depth.sample(meter.in_flight()),
            None => forget(cx, self.key),
        }
        0
    }
}

fn forget(cx: &Cx, key: u64) {
    if let Some(old) = cx.local::<SamplerId>(key) {
        cx.remove_poller(old.0);
        cx.remove_local::<SamplerId>(key);
    }
}

/// Looks every `period_us` from now on; with 0, no more. Always on the same reactor.
pub(super) fn sample_every(meter: &std::sync::Arc<Meter>, cx: &Cx, period_us: u64) {
    let key = meter.instance;
    forget(cx, key);
    meter.depth.period_us.store(period_us, Ordering::Release);
    if period_us == 0 {
        return;
    }
    let sampler = Sampler {
        key,
        meter: std::sync::Arc::downgrade(meter),
    };
    let period_ns = period_us.saturating_mul(1000);
    let id = cx.add_timed_poller("bdev_queue_depth", period_ns, Box::new(sampler));
    cx.set_local(key, Rc::new(SamplerId(id)));
}
