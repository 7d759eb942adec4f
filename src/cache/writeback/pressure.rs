//! How much is to be done, how urgent it is, and how fast it goes: what the next window shall be.

use super::super::gather::WindowWish;
use super::super::options::WritebackOrder;
use super::Writeback;
use reactors::Nanos;
use std::sync::atomic::Ordering;

/// Most keys of a window; under pressure, and otherwise.
const KEYS_PRESSED: usize = 4096;
const KEYS_CALM: usize = 512;
/// Most bytes of a window, about: it makes room only at its end, and who waits for room waits for that.
const BYTES_MAX: u64 = 2 << 20;
/// The same where that takes little time: fewer have to wait then.
const BYTES_MAX_FAST: u64 = 8 << 20;

impl Writeback {
    /// Notes what is durable now, and how long the oldest dirty kset has been.
    pub(super) fn observe(&mut self, now: Nanos) {
        let durable = self.shared().durable.mark();
        self.lag
            .observe(now, self.seed.reader.pos.sequence, durable);
        let oldest = self.lag.oldest_ns();
        self.shared()
            .maintenance
            .oldest_dirty_since
            .store(oldest, Ordering::Relaxed);
    }

    /// Whether somebody suffers if writeback takes its time.
    pub(super) fn is_pressed(&self) -> bool {
        let shared = self.shared();
        shared.waiting_lanes.load(Ordering::SeqCst) > 0
            || shared.is_room_scarce()
            || shared.maintenance.flush_all.load(Ordering::SeqCst)
            || shared.is_dirty_above(shared.options.dirty_high_percent())
    }

    /// The highest sequence that may be written back now.
    pub(super) fn limit(&self, now: Nanos) -> u64 {
        let delay = self.shared().options.writeback_delay_ns();
        if delay == 0 || self.is_pressed() || self.shared().is_tail_wanted() {
            return self.shared().durable.mark();
        }
        self.lag.older_than(now, delay)
    }

    /// What the next window shall be.
    pub(in crate::cache) fn wish(&self, now: Nanos) -> WindowWish {
        let order = self.shared().options.order();
        let pressed = self.is_pressed();
        let lagging = self.lag.ns(now) >= self.shared().options.writeback_lag_ns();
        WindowWish {
            limit: self.limit(now),
            keys_max: if pressed { KEYS_PRESSED } else { KEYS_CALM },
            bytes_max: if self.shared().is_room_made_fast() {
                BYTES_MAX_FAST
            } else {
                BYTES_MAX
            },
            may_span: match order {
                WritebackOrder::Strict => false,
                WritebackOrder::Adaptive => pressed || lagging,
                WritebackOrder::Relaxed => true,
            },
            ends_on_boundary: order != WritebackOrder::Relaxed,
        }
    }

    /// A window of `bytes` has ended: shows at what pace writes can be let in.
    pub(super) fn measure_room(&mut self, now: Nanos, bytes: u64) {
        if !self.is_pressed() {
            self.room_rate.pause();
        } else if let Some(ns) = self.room_rate.window_ended(now, bytes) {
            self.shared()
                .maintenance
                .room_ns_per_mib
                .store(ns, Ordering::Relaxed);
        }
    }
}
