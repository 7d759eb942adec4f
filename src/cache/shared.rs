//! What the lanes of a cache, its writeback and its GC share: each part with the smallest possible
//! critical section, and nothing that is written on a hit.

use super::activity::Activity;
use super::bypassed::Bypassed;
use super::geometry::{PoolGeometry, SegIx};
use super::key_index::SUBTREE_BYTES;
use super::latency::{LatencyStats, Stamp};
use super::live_options::LiveOptions;
use super::log::{LogHead, Place};
use super::log_reader::LogView;
use super::lost::LostBoard;
use super::pool::PoolFailure;
use super::resize::Resize;
use super::segment_alloc::SegmentAlloc;
use super::segment_map::SegmentMap;
use super::seq_tracker::SeqTracker;
use super::slow_io::SlowIos;
use super::stats::LaneStats;
use super::try_lock::TryLock;
use crate::bdev::{Pmem, PmemError};
use crossbeam_utils::CachePadded;
use reactors::{Clock, Nanos, Quiescence, ReactorHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Set in [`Shared::added`] once no key will be added to a segment.
pub(crate) const SEALED: u64 = 1 << 63;

/// Writeback has no write under way, and starts none any more.
pub(crate) const DRAIN_RESTED: u8 = 1;
/// All else of the cache has gone: whoever rests last lets it be loaded again.
pub(crate) const DRAIN_FREE: u8 = 2;

/// A place in the log with what is expected there, as the tails are published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogPos {
    pub(crate) segment: SegIx,
    pub(crate) offset: u32,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
}

impl From<Place> for LogPos {
    fn from(place: Place) -> Self {
        Self {
            segment: place.segment,
            offset: place.offset,
            sequence: place.sequence,
            epoch: place.epoch,
        }
    }
}

/// State of the maintenance pollers, for status and wake-ups.
#[derive(Debug, Default)]
pub(crate) struct Maintenance {
    /// Writeback shall look again now.
    pub(crate) kick_writeback: AtomicBool,
    /// A fill was left out for lack of space.
    pub(crate) fill_skipped: AtomicBool,
    /// GC shall look again now.
    pub(crate) kick_gc: AtomicBool,
    /// An operator wants all dirty data written back.
    pub(crate) flush_all: AtomicBool,
    /// What [`Shared::close_all`] became for it.
    pub(crate) flush_close: AtomicU64,
    /// Both pollers shall come to rest.
    pub(crate) stop: AtomicBool,
    /// 0 while writeback runs, then [`DRAIN_RESTED`] or [`DRAIN_FREE`].
    pub(crate) drain: AtomicU8,
    /// Pollers that have come to rest.
    pub(crate) rested: AtomicU32,
    /// Writeback meets errors.
    pub(crate) degraded: AtomicBool,
    /// Parts of the log that can't be read.
    pub(crate) lost: LostBoard,
    /// The backing is between flush boundaries.
    pub(crate) between_boundaries: AtomicBool,
    /// Sequence at the published dirty tail: all below is written back, durably.
    pub(crate) dirty_sequence: CachePadded<AtomicU64>,
    /// Epoch of the last kset before the dirty tail.
    pub(crate) dirty_epoch: AtomicU64,
    /// Sequence at the durable key tail.
    pub(crate) key_sequence: AtomicU64,
    /// Log segments from key tail to head.
    pub(crate) log_segments: AtomicU32,
    /// Segments on their way from released to free.
    pub(crate) retiring: AtomicU32,
    /// Bad segments that are drained: nothing can be done with them any more.
    pub(crate) bad_drained: AtomicU32,
    /// Dirty bytes that writeback has passed.
    pub(crate) dirty_passed: AtomicU64,
    /// Bytes a second that writeback has written lately.
    pub(crate) writeback_rate_bps: AtomicU64,
    /// What writeback takes to make room for a MiB, ns; 0: not known.
    pub(crate) room_ns_per_mib: AtomicU64,
    /// Positions of the tails, for status: segment << 32 | offset.
    pub(crate) dirty_position: AtomicU64,
    /// See `dirty_position`.
    pub(crate) key_position: AtomicU64,
    /// Time at which the oldest dirty kset was first seen by writeback, ns; 0 for none.
    pub(crate) oldest_dirty_since: AtomicU64,
    /// What writeback is at …
    pub(crate) writeback_activity: CachePadded<Activity>,
    /// … and what GC is at.
    pub(crate) gc_activity: CachePadded<Activity>,
}

/// Who runs what.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The data reactors, in order.
    pub data: Vec<ReactorHandle>,
    /// The maintenance reactors: writeback on the first, GC on the last.
    pub maintenance: Vec<ReactorHandle>,
    /// The quiescence domain of all of them.
    pub quiescence: Arc<Quiescence>,
    /// Tells how long a load took.
    pub clock: Arc<dyn Clock>,
    /// Where the staging files are; on tmpfs.
    pub run_dir: std::path::PathBuf,
    /// The kernel's boot id.
    pub boot_id: [u8; 16],
    /// Seed for what must be unguessable: the salts of log segments.
    pub seed: u64,
}

/// A number for [`Shared::instance`].
pub(crate) fn next_instance() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Tells this running cache from every other one of the process: the key of what it stores on
    /// reactors. Identities can't serve: a fold of two UUIDs may be the same.
    pub(crate) instance: u64,
    pub(crate) name: String,
    pub(crate) uuid: [u8; 16],
    pub(crate) pmem: Arc<dyn Pmem>,
    pub(crate) geometry: PoolGeometry,
    /// The cache's segments; their numbers in the pool. What follows by place has room for as many.
    pub(crate) segments: Arc<SegmentMap>,
    /// How many there are.
    pub(crate) segment_count: AtomicU32,
    pub(crate) lanes: u32,
    pub(crate) log_reserve: u32,
    pub(crate) block_bytes: u32,
    pub(crate) data_crc: bool,
    /// Keys carry the CRC of their data all the same: the medium may forget what was stored when a
    /// barrier fails, and the next load must tell.
    pub(crate) sums_lost_data: bool,
    pub(crate) incarnation: u32,
    pub(crate) options: LiveOptions,
    pub(crate) runtime: Runtime,
    /// Raised in RAM first, then on media, before a segment is used again.
    pub(crate) generations: Box<[AtomicU64]>,
    /// Keys that were ever added for data in a segment, published with [`SEALED`].
    pub(crate) added: Box<[AtomicU64]>,
    /// Segments that gave media errors: drained, and never used again.
    pub(crate) suspects: Box<[AtomicBool]>,
    /// How many they are.
    pub(crate) suspect_count: AtomicU32,
    pub(crate) alloc: TryLock<SegmentAlloc>,
    pub(crate) free_segments: AtomicU32,
    pub(crate) log: TryLock<LogHead>,
    /// Segments that the log reserve lacks.
    pub(crate) log_deficit: AtomicU32,
    /// Where the log goes on, for status: as `Maintenance::dirty_position`.
    pub(crate) head_position: AtomicU64,
    /// Highest sequence given out.
    pub(crate) last_sequence: CachePadded<AtomicU64>,
    /// Up to where all ksets are durable.
    pub(crate) durable: SeqTracker,
    /// Lanes whose requests wait for space.
    pub(crate) waiting_lanes: CachePadded<AtomicU32>,
    /// Raised to make every lane close its open kset.
    pub(crate) close_all: CachePadded<AtomicU64>,
    /// For each data reactor the value of `close_all` up to which all keys that its lanes then held
    /// have their place.
    pub(crate) placed_all: Box<[CachePadded<AtomicU64>]>,
    /// Somebody waits for the durable sequence.
    pub(crate) durable_waiters: CachePadded<AtomicU32>,
    /// The medium's barrier has failed: nothing is acknowledged any more, in all caches of the pool …
    pub(crate) failure: Arc<PoolFailure>,
    /// … or the medium does not take what this cache must store. On a line of its own: every write
    /// looks at it.
    pub(crate) failed: CachePadded<AtomicBool>,
    /// Only looked at (salvage): nothing is ever stored.
    pub(crate) read_only: bool,
    /// Bit per lane that has keys without a sequence; a word pair per data reactor, written by it
    /// alone.
    pub(crate) unplaced: Box<[CachePadded<[AtomicU64; 2]>]>,
    pub(crate) stats: Box<[CachePadded<LaneStats>]>,
    /// For each data reactor, which alone writes there.
    pub(crate) latency: Box<[CachePadded<LatencyStats>]>,
    /// Requests that took long.
    pub(crate) slow_ios: SlowIos,
    pub(crate) maintenance: Maintenance,
    /// Segments that join or leave.
    pub(crate) resize: Resize,
    pub(crate) bypassed: Bypassed,
}

impl Shared {
    /// The lane that serves the bytes at `offset`.
    pub(crate) fn lane_of(&self, offset: u64) -> u32 {
        u32::try_from(offset / SUBTREE_BYTES % u64::from(self.lanes)).unwrap_or(0)
    }

    /// Which data reactor runs `lane`.
    pub(crate) fn reactor_of(&self, lane: u32) -> usize {
        lane as usize % self.runtime.data.len()
    }

    /// Where byte `offset` of a segment's data is on the medium.
    pub(crate) fn data_at(&self, segment: SegIx, offset: u32) -> u64 {
        self.geometry.data_at(self.segments.id(segment)) + u64::from(offset)
    }

    /// Whether what a key of `generation` says of `segment` is still true.
    pub(crate) fn is_current(&self, segment: SegIx, generation: u64) -> bool {
        self.generations[segment.index()].load(Ordering::Acquire) == generation
    }

    /// Wakes every data reactor that sleeps.
    pub(crate) fn ring_lanes(&self) {
        for handle in &self.runtime.data {
            handle.ring();
        }
    }

    /// Makes every lane close its open kset. Done when [`Shared::have_closed`] the result.
    pub(crate) fn close_all_ksets(&self) -> u64 {
        let number = self.close_all.fetch_add(1, Ordering::SeqCst) + 1;
        self.ring_lanes();
        number
    }

    /// Whether every key that a lane held when `close_all` became `number` has its place.
    pub(crate) fn have_closed(&self, number: u64) -> bool {
        self.placed_all
            .iter()
            .all(|placed| placed.load(Ordering::SeqCst) >= number)
    }

    /// Somebody waits for space: all that can free some starts now.
    pub(crate) fn make_room(&self) {
        self.close_all_ksets();
        self.kick_writeback();
        self.kick_gc();
    }

    /// Whether a request or a fill wants space.
    pub(crate) fn is_space_wanted(&self) -> bool {
        self.waiting_lanes.load(Ordering::SeqCst) > 0
            || self.maintenance.fill_skipped.load(Ordering::SeqCst)
    }

    /// Lets writeback look now.
    pub(crate) fn kick_writeback(&self) {
        if !self.maintenance.kick_writeback.swap(true, Ordering::SeqCst) {
            self.ring_maintenance();
        }
    }

    /// Lets GC look now.
    pub(crate) fn kick_gc(&self) {
        if !self.maintenance.kick_gc.swap(true, Ordering::SeqCst) {
            self.ring_maintenance();
        }
    }

    pub(crate) fn ring_maintenance(&self) {
        for handle in &self.runtime.maintenance {
            handle.ring();
        }
    }

    /// A kset is durable: moves the mark, and tells those who wait for it.
    pub(crate) fn finish_durable(&self, sequence: u64) {
        self.durable.finish(sequence);
        fence(Ordering::SeqCst);
        if self.durable_waiters.load(Ordering::Relaxed) > 0 {
            self.ring_lanes();
        }
        // Only now can writeback pass it, and nobody else would wake it before its period ends.
        if self.is_space_wanted() || self.is_tail_wanted() {
            self.kick_writeback();
        }
    }

    /// The medium has failed for good: stops all acknowledgements. Of all caches of the pool if it was
    /// a barrier; a place that takes no stores concerns this one.
    pub(crate) fn fail(&self, error: &PmemError) {
        if !matches!(error, PmemError::BarrierFailed(_)) {
            self.fail_alone(error);
        } else if self.failure.note(error) {
            // The reactors are those of all caches: the others of the pool stop now, too.
            self.ring_lanes();
            self.ring_maintenance();
        }
    }

    /// This cache can't go on: stops its acknowledgements.
    pub(crate) fn fail_alone(&self, error: &dyn std::error::Error) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            tracing::error!(cache = %self.name, %error, "the cache is read-only from now on");
            self.ring_lanes();
            self.ring_maintenance();
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) || self.failure.has_failed()
    }

    /// Logical bytes that the backing lacks.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        let passed = self.maintenance.dirty_passed.load(Ordering::Acquire);
        let added: u64 = self.stats.iter().map(|s| s.dirty_added.get()).sum();
        added.saturating_sub(passed)
    }

    /// Segments that can be used, without those that shall leave.
    pub(crate) fn usable_segments(&self) -> u32 {
        let bad = self.maintenance.bad_drained.load(Ordering::Relaxed);
        let leaving = self.resize.wanted.load(Ordering::Relaxed);
        self.segment_count().saturating_sub(bad + leaving)
    }

    /// Most log segments before requests that only log have to wait.
    pub(crate) fn log_segments_max(&self) -> u32 {
        (self.log_reserve + 2).max(self.usable_segments() / 8)
    }

    pub(crate) fn segment_count(&self) -> u32 {
        self.segment_count.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// A request has ended on data reactor `reactor`, in the round that began at `now`.
    pub(crate) fn request_ended(&self, reactor: usize, stamp: &Stamp, now: Nanos) {
        let latency = self.latency.get(reactor);
        if let Some(spent) = latency.and_then(|l| l.end(stamp, now, &*self.runtime.clock)) {
            self.slow_ios
                .note(reactor, stamp, &spent, now, &self.maintenance);
        }
    }

    /// Whether the dirty bytes exceed `percent` of the data space.
    pub(crate) fn is_dirty_above(&self, percent: u32) -> bool {
        let segments = self.usable_segments().saturating_sub(self.log_reserve);
        let space = u64::from(segments) * self.geometry.segment_data_bytes();
        self.dirty_bytes() > space / 100 * u64::from(percent)
    }

    /// All before `pos` is written back, durably.
    pub(crate) fn publish_dirty_tail(&self, pos: &LogPos) {
        self.maintenance
            .dirty_epoch
            .store(pos.epoch, Ordering::Relaxed);
        self.maintenance
            .dirty_position
            .store(self.position(pos), Ordering::Relaxed);
        self.maintenance
            .dirty_sequence
            .store(pos.sequence, Ordering::Release);
    }

    /// Replay begins at `pos`, durably.
    pub(crate) fn publish_key_tail(&self, pos: &LogPos) {
        self.maintenance
            .key_position
            .store(self.position(pos), Ordering::Relaxed);
        self.maintenance
            .key_sequence
            .store(pos.sequence, Ordering::Release);
    }

    /// The published dirty tail, once nobody moves it any more.
    pub(crate) fn dirty_tail(&self, view: &LogView) -> Option<LogPos> {
        let position = self.maintenance.dirty_position.load(Ordering::SeqCst);
        let half = |word: u64| u32::try_from(word & 0xffff_ffff).ok();
        Some(LogPos {
            segment: view.segments.find(half(position >> 32)?)?,
            offset: half(position)?,
            sequence: self.maintenance.dirty_sequence.load(Ordering::SeqCst),
            epoch: self.maintenance.dirty_epoch.load(Ordering::SeqCst),
        })
    }

    /// Pool segment and offset in one word, for status.
    pub(crate) fn position(&self, pos: &LogPos) -> u64 {
        self.position_of(pos.segment, pos.offset)
    }

    /// See [`Shared::position`].
    pub(crate) fn position_of(&self, segment: SegIx, offset: u32) -> u64 {
        u64::from(self.segments.id(segment).0) << 32 | u64::from(offset)
    }

    /// Wakes the lanes if some wait for space.
    pub(crate) fn ring_waiting_lanes(&self) {
        if self.waiting_lanes.load(Ordering::SeqCst) > 0 {
            self.ring_lanes();
        }
    }
}
