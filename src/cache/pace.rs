//! Lets writes in at the rate at which writeback makes room, while little of it is left.
//!
//! Without it writes take what room there is at memory speed, and the next ones wait until writeback
//! and GC have made more, in steps of a window or a segment: thousands of requests take microseconds and
//! one takes milliseconds. With it each takes about as long as the backing does, and the room that is
//! left bridges the steps.
//!
//! Each data reactor has a clock of its own: a write begins when the clock allows, and moves it on. How
//! far depends on the measured rate, and on how much room is left: the less, the longer. So reactors
//! share the rate without talking about it, and an error of the measurement corrects itself.

use super::gc::threshold;
use super::shared::Shared;
use reactors::Nanos;
use std::sync::atomic::Ordering;

/// A reactor looks at the room this often, ns.
const LOOK_NS: u64 = 50_000;
/// What was not used of the rate can be made up for so long, ns.
const CREDIT_NS: u64 = 200_000;
/// No write is held back for longer, ns: what then finds no room waits for it.
const HOLD_NS_MAX: u64 = 10_000_000;
/// With fewer segments to go by, room comes in too large steps.
const SEGMENTS_MIN: u32 = 4;
/// A backing that makes room for a MiB sooner, ns (more than 1.3 GiB/s), makes it about as fast as writes
/// come: to hold each of them back costs more than the waits that it saves.
const ROOM_NS_MIN: u64 = 750_000;
/// Slowest pace, in 1024ths of the measured rate's.
const FACTOR_MAX: u64 = 4 << 10;

/// Segments below which room is scarce: half of what GC leaves free.
fn scarce_segments(shared: &Shared) -> u32 {
    let allocatable = shared.usable_segments().saturating_sub(shared.log_reserve);
    allocatable.saturating_sub(threshold(shared)) / 2
}

impl Shared {
    /// Whether writeback is known to make room about as fast as writes come: they have no pace then.
    pub(crate) fn is_room_made_fast(&self) -> bool {
        let measured = self.maintenance.room_ns_per_mib.load(Ordering::Relaxed);
        (1..ROOM_NS_MIN).contains(&measured)
    }

    /// Whether writes are let in at a pace.
    pub(crate) fn is_room_scarce(&self) -> bool {
        self.pace_factor() > 0
    }

    /// How long a write takes its turn, in 1024ths of what writeback takes for as much: 0 while there is
    /// room enough, one when half of what is scarce is left, more below.
    fn pace_factor(&self) -> u64 {
        let scarce = scarce_segments(self);
        let free = self.free_segments.load(Ordering::Relaxed);
        let left = free.saturating_sub(self.log_deficit.load(Ordering::Relaxed));
        if scarce < SEGMENTS_MIN || left >= scarce {
            return 0;
        }
        let taken = u64::from(scarce - left);
        (taken << 10)
            .checked_div(u64::from(left))
            .map_or(FACTOR_MAX, |factor| factor.min(FACTOR_MAX))
    }
}

/// The clock of a data reactor.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// What a MiB costs now, ns; 0: there is room enough.
    ns_per_mib: u64,
    /// When the next write may begin.
    next: Nanos,
    /// When to look at the room again.
    look_at: Nanos,
}

impl Pace {
    /// Looks how much room is left, from time to time.
    pub(crate) fn look(&mut self, shared: &Shared, now: Nanos) {
        if now < self.look_at {
            return;
        }
        self.look_at = now.after(LOOK_NS);
        let measured = shared.maintenance.room_ns_per_mib.load(Ordering::Relaxed);
        self.ns_per_mib = if measured < ROOM_NS_MIN {
            0
        } else {
            measured.saturating_mul(shared.pace_factor()) >> 10
        };
    }

    /// When a write of `bytes` may begin; nothing for at once.
    pub(crate) fn admit(&mut self, now: Nanos, bytes: u64) -> Option<Nanos> {
        if self.ns_per_mib == 0 {
            return None;
        }
        let at = self.next.max(Nanos(now.0.saturating_sub(CREDIT_NS)));
        let cost = bytes.saturating_mul(self.ns_per_mib) >> 20;
        self.next = at.after(cost).min(now.after(HOLD_NS_MAX));
        (at > now).then_some(at)
    }
}

/// How long writeback takes to make room, of the windows that followed one another under pressure.
#[derive(Debug, Default)]
pub(crate) struct RoomRate {
    /// When the last window ended, if the next one followed at once.
    last: Option<Nanos>,
    ns: u64,
    bytes: u64,
}

impl RoomRate {
    /// A window of `bytes` has ended; returns what a MiB takes, ns, if that can be told.
    pub(crate) fn window_ended(&mut self, now: Nanos, bytes: u64) -> Option<u64> {
        let since = self.last.replace(now)?;
        // The last eight windows, about.
        self.ns = self.ns - self.ns / 8 + now.since(since);
        self.bytes = self.bytes - self.bytes / 8 + bytes;
        (self.ns << 20).checked_div(self.bytes)
    }

    /// Writeback has nothing to do, waits for something else, or takes its time.
    pub(crate) fn pause(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paced(ns_per_mib: u64) -> Pace {
        Pace {
            ns_per_mib,
            ..Pace::default()
        }
    }

    #[test]
    fn writes_begin_one_after_another_at_the_pace() {
        let mut pace = paced(256_000);
        let now = Nanos(1_000_000_000);
        // What was not used is made up for: 200 writes of 1 us.
        for _ in 0..200 {
            assert_eq!(pace.admit(now, 4096), None);
        }
        assert_eq!(pace.admit(now, 4096), None, "its turn is now");
        assert_eq!(pace.admit(now, 4096), Some(now.after(1000)));
        assert_eq!(pace.admit(now, 8192), Some(now.after(2000)));
        assert_eq!(pace.admit(now.after(500), 4096), Some(now.after(4000)));
        assert_eq!(pace.admit(now.after(5000), 4096), None);
    }

    #[test]
    fn nobody_is_held_back_for_long_or_without_need() {
        let mut pace = paced(10_000_000_000);
        let now = Nanos(1_000_000_000);
        assert_eq!(pace.admit(now, 1 << 20), None);
        for _ in 0..3 {
            assert_eq!(pace.admit(now, 1 << 20), Some(now.after(HOLD_NS_MAX)));
        }
        let mut pace = paced(0);
        for _ in 0..1000 {
            assert_eq!(pace.admit(now, 1 << 20), None);
        }
    }

    #[test]
    fn room_is_measured_over_windows_that_follow_one_another() {
        let mut rate = RoomRate::default();
        let at = |ms: u64| Nanos(ms * 1_000_000);
        assert_eq!(rate.window_ended(at(1), 1 << 20), None);
        assert_eq!(rate.window_ended(at(3), 1 << 20), Some(2_000_000));
        assert_eq!(rate.window_ended(at(4), 1 << 19), Some(2_000_000));
        rate.pause();
        assert_eq!(rate.window_ended(at(900), 1 << 20), None);
        let faster = rate.window_ended(at(901), 1 << 20).unwrap();
        assert!((1_000_000..2_000_000).contains(&faster), "{faster}");
    }
}
