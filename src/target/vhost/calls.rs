//! When a queue tells its driver of answers: at once, or, under load and if that is wanted, later, for
//! many of them.
//!
//! A call costs a guest an interrupt. `delay_base_us` and `iops_threshold` mean what they mean to
//! SPDK: a queue that has answered more than the threshold, taken over [`LOOK_NS`], waits between two
//! calls for the base delay times the excess over the threshold.

use reactors::Nanos;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often a queue looks at its rate.
const LOOK_NS: u64 = 10_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// The longest wait between two calls, whatever the rate.
const DELAY_MAX_NS: u64 = 10_000_000;

/// Whether a controller's calls may wait, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalescing {
    /// The base of the delay, in microseconds; 0 for calls at once.
    pub delay_base_us: u32,
    /// Answers a second of one queue, up to which it calls at once. At least [`Coalescing::IOPS_MIN`].
    pub iops_threshold: u32,
}

impl Coalescing {
    /// With fewer answers a second a queue can't tell whether it has reached the threshold.
    pub const IOPS_MIN: u32 = 100;
}

impl Default for Coalescing {
    fn default() -> Self {
        Self {
            delay_base_us: 0,
            iops_threshold: 60_000,
        }
    }
}

/// The same, for queues to look at while it may be changed.
#[derive(Debug)]
pub(super) struct SharedCoalescing(AtomicU64);

impl SharedCoalescing {
    pub(super) fn get(&self) -> Coalescing {
        let [a, b, c, d, e, f, g, h] = self.0.load(Ordering::Relaxed).to_le_bytes();
        Coalescing {
            delay_base_us: u32::from_le_bytes([a, b, c, d]),
            iops_threshold: u32::from_le_bytes([e, f, g, h]),
        }
    }

    pub(super) fn set(&self, wanted: Coalescing) {
        let packed = u64::from(wanted.iops_threshold) << 32 | u64::from(wanted.delay_base_us);
        self.0.store(packed, Ordering::Relaxed);
    }
}

impl Default for SharedCoalescing {
    fn default() -> Self {
        let new = Self(AtomicU64::new(0));
        new.set(Coalescing::default());
        new
    }
}

/// One queue's rate, and when it may call again.
#[derive(Debug)]
pub(super) struct CallPace {
    wanted: Arc<SharedCoalescing>,
    /// Answers since the last look at the rate, and when the next is due.
    answers: u64,
    look_at: Nanos,
    delay_ns: u64,
    /// Not before.
    call_at: Nanos,
    /// Answers wait for a call.
    owed: bool,
}

impl CallPace {
    pub(super) fn new(wanted: Arc<SharedCoalescing>) -> Self {
        Self {
            wanted,
            answers: 0,
            look_at: Nanos(0),
            delay_ns: 0,
            call_at: Nanos(0),
            owed: false,
        }
    }

    /// So many answers were published.
    pub(super) fn published(&mut self, answers: u32) {
        self.answers += u64::from(answers);
        self.owed = true;
    }

    /// Whether to call now, if the driver wants that.
    pub(super) fn may_call(&mut self, now: Nanos) -> bool {
        if now >= self.look_at {
            self.look(now);
        }
        if !self.owed || now < self.call_at {
            return false;
        }
        self.owed = false;
        self.call_at = now.after(self.delay_ns);
        true
    }

    fn look(&mut self, now: Nanos) {
        let wanted = self.wanted.get();
        let since = now.since(self.look_at).saturating_add(LOOK_NS);
        let base_ns = u64::from(wanted.delay_base_us) * 1000;
        let free = u64::from(wanted.iops_threshold).saturating_mul(since) / NS_PER_SECOND;
        let excess = self.answers.saturating_sub(free);
        let delay = base_ns.saturating_mul(excess) / free.max(1);
        self.delay_ns = delay.min(DELAY_MAX_NS);
        if self.delay_ns == 0 {
            self.call_at = now;
        }
        self.answers = 0;
        self.look_at = now.after(LOOK_NS);
    }

    /// When a call that is owed is due.
    pub(super) fn due(&self) -> Option<Nanos> {
        self.owed.then_some(self.call_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn coalescing(delay_base_us: u32, iops_threshold: u32) -> Arc<SharedCoalescing> {
        let shared = Arc::<SharedCoalescing>::default();
        let wanted = Coalescing {
            delay_base_us,
            iops_threshold,
        };
        shared.set(wanted);
        assert_eq!(shared.get(), wanted);
        shared
    }

    /// Calls of a queue that answers once every `every_ns` for 100 ms, after the first look.
    fn calls(wanted: Arc<SharedCoalescing>, every_ns: u64) -> u64 {
        let mut pace = CallPace::new(wanted);
        let mut count = 0;
        for at in (0..110 * MS).step_by(usize::try_from(every_ns).unwrap()) {
            pace.published(1);
            let called = pace.may_call(Nanos(at));
            count += u64::from(called && at >= 10 * MS);
        }
        count
    }

    #[test]
    fn without_a_delay_or_below_the_threshold_each_answer_is_told_at_once() {
        assert_eq!(calls(Arc::default(), 1000), 100_000);
        // 10,000 a second.
        assert_eq!(calls(coalescing(50, 10_000), 100_000), 1000);
    }

    #[test]
    fn the_delay_grows_with_the_rate() {
        // 100,000 a second, twice the threshold: a call every 50 µs, or the answer after it.
        let twice = calls(coalescing(50, 50_000), 10_000);
        assert!((1650..=2100).contains(&twice), "{twice}");
        // Ten times: every 450 µs.
        let ten = calls(coalescing(50, 10_000), 10_000);
        assert!((200..=240).contains(&ten), "{ten}");
        // However high the rate, 10 ms at most.
        let most = calls(coalescing(u32::MAX, 100), 10_000);
        assert!((9..=12).contains(&most), "{most}");
    }

    #[test]
    fn what_waits_is_due_and_ends_with_the_load() {
        let mut pace = CallPace::new(coalescing(100, 1000));
        pace.published(1000);
        assert!(pace.may_call(Nanos(0)));
        pace.published(1000);
        assert!(pace.may_call(Nanos(10 * MS)));
        pace.published(1);
        assert!(!pace.may_call(Nanos(10 * MS + 1)));
        let due = pace.due().unwrap();
        assert!(
            due > Nanos(10 * MS + 1) && due <= Nanos(20 * MS + 1),
            "{due:?}"
        );
        assert!(pace.may_call(due));
        assert_eq!(pace.due(), None);
        assert!(!pace.may_call(Nanos(40 * MS)), "nothing is owed");
        pace.published(1);
        assert!(pace.may_call(Nanos(40 * MS + 1)), "the rate is low again");
    }
}
