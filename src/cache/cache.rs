//! A running cache as the control thread sees it: start, options, flush, status, stop.

use super::CacheError;
use super::channel::CacheChannel;
use super::gc::{Gc, GcCell, GcDriver, GcSeed};
use super::group::{Group, GroupSeed};
use super::latency::{LatencyFigures, LatencySnapshot};
use super::options::{CacheOptions, Durability};
use super::pool::Pool;
use super::replay::ReplayReport;
use super::resize::Resizing;
use super::scrub::ScrubBoard;
use super::shared::{DRAIN_RESTED, Shared};
use super::stats::{GcFigures, GcStats, LaneFigures, WritebackFigures, WritebackStats};
use super::stats_base::Counted;
use super::stop::{CleanEnd, Shutdown, Stop};
use super::writeback::{Writeback, WritebackPoller, WritebackSeed};
use crate::bdev::{Bdev, BdevError, BdevInfo, Channel, Supports};
use reactors::{Cx, PollerId, ReactorHandle};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use uuid::Uuid;

/// The parts that run on reactors.
#[derive(Debug)]
pub(crate) struct CacheParts {
    pub(crate) groups: Vec<GroupSeed>,
    /// Writeback and GC; none of a cache that is only looked at.
    pub(crate) maintenance: Option<(WritebackSeed, GcSeed)>,
}

/// What [`Cache::start`] takes.
#[derive(Debug)]
pub(crate) struct CacheStart {
    pub(crate) pool: Arc<Pool>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: CacheOptions,
    pub(crate) backing: Arc<dyn Bdev>,
    /// Bytes of the volume: what the backing had when the cache was made.
    pub(crate) logical_bytes: u64,
    pub(crate) report: ReplayReport,
    pub(crate) end: CleanEnd,
    pub(crate) writeback_stats: Arc<WritebackStats>,
    pub(crate) gc_stats: Arc<GcStats>,
    pub(crate) parts: CacheParts,
}

/// What an operator sees of a cache.
#[derive(Clone, Debug)]
pub struct CacheStatus {
    /// running, waiting, flushing, degraded, read_only or stopped.
    pub state: &'static str,
    /// All segments of the cache.
    pub segments_total: u32,
    /// Free ones.
    pub segments_free: u32,
    /// Log segments from key tail to head.
    pub segments_log: u32,
    /// Ready for the log.
    pub segments_reserve: u32,
    /// Those that gave media errors or did not take data: marked, and never allocated again …
    pub segments_bad: u32,
    /// … of which these still hold data or log.
    pub segments_bad_draining: u32,
    /// Released, and not free before every reader has passed a quiescent point.
    pub segments_retiring: u32,
    /// Kept back for a resize that is under way.
    pub segments_leaving: u32,
    /// Bytes that the backing lacks.
    pub dirty_bytes: u64,
    /// Highest sequence given out, and the position of the log's head is behind it.
    pub key_head_sequence: u64,
    /// (pool segment, offset) where the next kset goes.
    pub key_head: (u32, u32),
    /// Highest durable sequence.
    pub durable_sequence: u64,
    /// (pool segment, offset, sequence) where writeback goes on.
    pub dirty_tail: (u32, u32, u64),
    /// (pool segment, offset, sequence) where replay would begin.
    pub key_tail: (u32, u32, u64),
    /// The backing alone is between flush boundaries, or has newer writes than some that it lacks.
    pub between_boundaries: bool,
    /// A flush of the backing failed behind writes that had bypassed the cache: FLUSH fails.
    pub flush_failed: bool,
    /// Epochs that are logged and not written back.
    pub epochs_pending: u64,
    /// When the oldest dirty kset was seen, on the reactors' clock, ns; 0 for none.
    pub oldest_dirty_since_ns: u64,
    /// Lanes with requests that wait for space.
    pub waiting_lanes: u32,
}

/// A running cache. It is a bdev; channels are opened on the data reactors.
#[derive(Debug)]
pub struct Cache {
    pub(super) pool: Arc<Pool>,
    pub(super) shared: Arc<Shared>,
    options: RwLock<CacheOptions>,
    info: RwLock<Arc<BdevInfo>>,
    backing: Arc<dyn Bdev>,
    report: ReplayReport,
    writeback_stats: Arc<WritebackStats>,
    gc_stats: Arc<GcStats>,
    pub(super) shutdown: RwLock<Shutdown>,
    /// Taken behind `shutdown`, as the next one.
    pub(super) resizing: RwLock<Resizing>,
    pub(super) scrub: RwLock<Option<Arc<ScrubBoard>>>,
    /// What had been counted when an operator began the figures anew.
    pub(super) stats_base: RwLock<Option<Counted>>,
    pub(super) started: Arc<Started>,
    /// Parts that run …
    pub(super) expected: u32,
    /// … and groups of lanes among them.
    pub(super) groups: u32,
}

/// How many parts run, and why one could not start.
#[derive(Debug, Default)]
pub(super) struct Started {
    running: AtomicU32,
    /// Groups that have come to rest.
    pub(super) at_rest: AtomicU32,
    pub(super) left: AtomicU32,
    error: RwLock<Option<BdevError>>,
}

impl Started {
    fn note_unsent(&self, sent: Result<(), CacheError>) {
        if let Err(error) = sent {
            self.note(Err(BdevError::Busy(error.to_string())));
        }
    }

    fn note(&self, result: Result<(), BdevError>) {
        match result {
            Ok(()) => {
                self.running.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                *self.error.write().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
    }
}

fn describe(start: &CacheStart) -> BdevInfo {
    let shared = &start.shared;
    let block = u64::from(shared.block_bytes);
    BdevInfo {
        name: shared.name.clone(),
        product_name: "Pmcache volume",
        uuid: Uuid::from_bytes(shared.uuid),
        block_size: shared.block_bytes,
        blocks: start.logical_bytes / block,
        volatile_cache: start.options.durability == Durability::Flush,
        read_only: shared.read_only,
        supports: Supports {
            discard: true,
            discard_zeroes: true,
            write_zeroes: true,
            extents: true,
        },
    }
}

pub(super) fn send(
    handle: &ReactorHandle,
    message: impl FnOnce(&Cx) + Send + 'static,
) -> Result<(), CacheError> {
    handle
        .send(Box::new(message))
        .map_err(|_| CacheError::Busy(format!("reactor {}: its inbox is full", handle.id().0)))
}

/// Reactor-local name of GC's poller.
pub(super) struct GcPoller(pub(super) PollerId);

fn start_writeback(seed: WritebackSeed, backing: &dyn Bdev, cx: &Cx) -> Result<(), BdevError> {
    let key = seed.shared.instance;
    let channel = backing.open(cx)?;
    let barrier = seed.shared.pmem.open_barrier(cx)?;
    let poller = Writeback::new(seed, channel, barrier, cx.now());
    let id = cx.add_poller("pmcache_writeback", Box::new(poller));
    cx.set_local(key, std::rc::Rc::new(WritebackPoller(id)));
    Ok(())
}

fn start_gc(seed: GcSeed, cx: &Cx) -> Result<(), BdevError> {
    let key = seed.shared.instance;
    let barrier = seed.shared.pmem.open_barrier(cx)?;
    let gc = std::rc::Rc::new(GcCell(Gc::new(seed, barrier, cx.now()).into()));
    cx.set_local(key, gc.clone());
    let id = cx.add_poller("pmcache_gc", Box::new(GcDriver(gc)));
    cx.set_local(key, std::rc::Rc::new(GcPoller(id)));
    Ok(())
}

/// Sends writeback and GC to their reactors.
fn start_maintenance(
    writeback: WritebackSeed,
    gc: GcSeed,
    backing: &Arc<dyn Bdev>,
    started: &Arc<Started>,
) {
    let shared = Arc::clone(&writeback.shared);
    let maintenance = &shared.runtime.maintenance;
    let (Some(first), Some(last)) = (maintenance.first(), maintenance.last()) else {
        return;
    };
    // What never ran has nothing under way.
    let never_ran = |shared: &Shared| {
        let drain = &shared.maintenance.drain;
        drain.store(DRAIN_RESTED, Ordering::SeqCst);
    };
    let (note, device) = (Arc::clone(started), Arc::clone(backing));
    let parts_shared = Arc::clone(&shared);
    let sent = send(first, move |cx| {
        let result = start_writeback(writeback, &*device, cx);
        if result.is_err() {
            never_ran(&parts_shared);
        }
        note.note(result);
    });
    if sent.is_err() {
        never_ran(&shared);
    }
    started.note_unsent(sent);
    let note = Arc::clone(started);
    started.note_unsent(send(last, move |cx| note.note(start_gc(gc, cx))));
}

impl Cache {
    /// Sends the parts to their reactors.
    pub(crate) fn start(start: CacheStart) -> Result<Arc<Self>, CacheError> {
        let info = RwLock::new(Arc::new(describe(&start)));
        let CacheStart {
            pool,
            shared,
            options,
            backing,
            report,
            parts,
            ..
        } = start;
        if parts.maintenance.is_some() && shared.runtime.maintenance.is_empty() {
            return Err(CacheError::Invalid(
                "a cache needs a maintenance reactor".into(),
            ));
        }
        let started = Arc::new(Started::default());
        let groups = u32::try_from(parts.groups.len()).unwrap_or(u32::MAX);
        let expected = groups + if parts.maintenance.is_some() { 2 } else { 0 };
        // A part that can't be sent is one that can't start: `is_installed` tells, and whoever loads
        // the cache then stops those that could.
        for seed in parts.groups {
            let note = Arc::clone(&started);
            let handle = &shared.runtime.data[seed.reactor];
            let sent = send(handle, move |cx| note.note(Group::install(seed, cx)));
            started.note_unsent(sent);
        }
        if let Some((writeback, gc)) = parts.maintenance {
            start_maintenance(writeback, gc, &backing, &started);
        }
        Ok(Arc::new(Self {
            pool,
            options: RwLock::new(options),
            info,
            backing,
            report,
            writeback_stats: start.writeback_stats,
            gc_stats: start.gc_stats,
            shutdown: RwLock::new(Shutdown::new(start.end)),
            resizing: RwLock::default(),
            scrub: RwLock::default(),
            stats_base: RwLock::default(),
            started,
            expected,
            groups,
            shared,
        }))
    }

    /// Whether all its parts run on their reactors.
    ///
    /// # Errors
    /// What kept one of them from starting.
    pub fn is_installed(&self) -> Result<bool, CacheError> {
        let mut error = self
            .started
            .error
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match error.take() {
            Some(error) => Err(error.into()),
            None => Ok(self.started.running.load(Ordering::SeqCst) == self.expected),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its identity.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.shared.uuid)
    }

    /// The bdev behind it.
    #[must_use]
    pub fn backing(&self) -> Arc<dyn Bdev> {
        Arc::clone(&self.backing)
    }

    /// The pool that it is in.
    #[must_use]
    pub fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    /// How many lanes it has.
    #[must_use]
    pub fn lanes(&self) -> u32 {
        self.shared.lanes
    }

    /// Which data reactor runs `lane`.
    #[must_use]
    pub fn reactor_of_lane(&self, lane: u32) -> usize {
        self.shared.reactor_of(lane)
    }

    /// What the load found.
    #[must_use]
    pub fn replay_report(&self) -> ReplayReport {
        self.report.clone()
    }

    /// Whether it was loaded for salvage, and is only looked at.
    #[must_use]
    pub fn is_salvaged(&self) -> bool {
        self.shared.read_only
    }

    /// Its options now.
    #[must_use]
    pub fn options(&self) -> CacheOptions {
        self.options
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes options, on media first; all or nothing.
    ///
    /// # Errors
    /// Values out of bounds, an attempt to change `data_crc`, a medium that fails.
    pub fn set_options(&self, options: CacheOptions) -> Result<(), CacheError> {
        options.check()?;
        if self.shared.read_only {
            return Err(CacheError::Salvaged);
        }
        if options.data_crc != self.shared.data_crc {
            return Err(CacheError::NotSupported(
                "data_crc is fixed when a cache is created".into(),
            ));
        }
        let (place, _) = self.pool.find(&self.uuid().to_string())?;
        let updated = self.pool.update(|caches| {
            if let Some(entry) = caches.get_mut(place) {
                options.store(entry);
            }
            Ok(())
        });
        if self.shared.has_failed() {
            self.shared.ring_lanes();
        }
        updated?;
        self.shared.options.set(&options);
        let mut info = self.info.write().unwrap_or_else(PoisonError::into_inner);
        let volatile_cache = options.durability == Durability::Flush;
        *info = Arc::new(BdevInfo {
            volatile_cache,
            ..(**info).clone()
        });
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = options;
        Ok(())
    }

    /// The volume has so many blocks from now on.
    pub(super) fn set_blocks(&self, blocks: u64) {
        let mut info = self.info.write().unwrap_or_else(PoisonError::into_inner);
        *info = Arc::new(BdevInfo {
            blocks,
            ..(**info).clone()
        });
    }

    /// Starts to write all dirty data back; [`Cache::is_flushing`] tells when it is done. One that is
    /// salvaged writes nothing.
    pub fn flush_start(&self) {
        if self.shared.read_only {
            return;
        }
        let close = self.shared.close_all_ksets();
        let maintenance = &self.shared.maintenance;
        maintenance.flush_close.fetch_max(close, Ordering::SeqCst);
        maintenance.flush_all.store(true, Ordering::SeqCst);
        self.shared.kick_writeback();
    }

    /// Gives a flush up; what is written stays written.
    pub fn flush_stop(&self) {
        self.shared
            .maintenance
            .flush_all
            .store(false, Ordering::SeqCst);
    }

    /// Whether a flush is under way.
    #[must_use]
    pub fn is_flushing(&self) -> bool {
        self.shared.maintenance.flush_all.load(Ordering::SeqCst)
    }

    /// Bytes a second that writeback has written over about the last second.
    #[must_use]
    pub fn writeback_rate_bps(&self) -> u64 {
        self.shared
            .maintenance
            .writeback_rate_bps
            .load(Ordering::Relaxed)
    }

    /// Whether the dirty bytes are above `dirty_high_percent` of the data space.
    #[must_use]
    pub fn is_dirty_high(&self) -> bool {
        let percent = self.shared.options.dirty_high_percent();
        self.shared.is_dirty_above(percent)
    }

    /// Bytes that the backing lacks.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.shared.dirty_bytes()
    }

    /// Bytes whose data are lost: reads of them fail until they are overwritten. Neither clean nor
    /// dirty.
    #[must_use]
    pub fn bad_bytes(&self) -> u64 {
        let lanes = self.shared.stats.iter();
        lanes.map(|lane| lane.bad_bytes.get()).sum()
    }

    /// The sum of all lanes' counters.
    #[must_use]
    pub fn figures(&self) -> LaneFigures {
        let mut sum = LaneFigures::default();
        self.shared
            .stats
            .iter()
            .for_each(|lane| sum.add(&lane.snapshot()));
        sum
    }

    /// Latencies of every kind of request at every stage since the load.
    #[must_use]
    pub fn latencies(&self) -> Vec<LatencyFigures> {
        self.latency_snapshot().figures()
    }

    /// The histograms behind [`Cache::latencies`].
    #[must_use]
    pub fn latency_snapshot(&self) -> LatencySnapshot {
        LatencySnapshot::of(self.shared.latency.iter().map(|stats| &**stats))
    }

    /// Each lane's counters.
    #[must_use]
    pub fn lane_figures(&self) -> Vec<LaneFigures> {
        self.shared
            .stats
            .iter()
            .map(|lane| lane.snapshot())
            .collect()
    }

    /// What writeback did.
    #[must_use]
    pub fn writeback_figures(&self) -> WritebackFigures {
        self.writeback_stats.snapshot()
    }

    /// What GC did.
    #[must_use]
    pub fn gc_figures(&self) -> GcFigures {
        self.gc_stats.snapshot()
    }

    fn state(&self) -> &'static str {
        let m = &self.shared.maintenance;
        let step = self
            .shutdown
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .step;
        if step != Stop::Running {
            "stopped"
        } else if self.shared.has_failed() || self.shared.read_only {
            "read_only"
        } else if m.degraded.load(Ordering::SeqCst) || self.shared.bypassed.has_failed() {
            "degraded"
        } else if m.flush_all.load(Ordering::SeqCst) {
            "flushing"
        } else if self.shared.waiting_lanes.load(Ordering::SeqCst) > 0 {
            "waiting"
        } else {
            "running"
        }
    }

    /// A snapshot; may be torn between values.
    #[must_use]
    pub fn status(&self) -> CacheStatus {
        let shared = &self.shared;
        let m = &shared.maintenance;
        let position = |word: u64, sequence: u64| {
            let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
            (half(word >> 32), half(word), sequence)
        };
        let relaxed = Ordering::Relaxed;
        let deficit = shared.log_deficit.load(relaxed);
        let epoch = shared.log.try_lock().map(|log| log.epoch);
        let dirty_epoch = m.dirty_epoch.load(relaxed);
        let bad = shared.suspect_count.load(relaxed);
        CacheStatus {
            state: self.state(),
            segments_total: shared.segment_count(),
            segments_free: shared.free_segments.load(relaxed),
            segments_log: m.log_segments.load(relaxed),
            segments_retiring: m.retiring.load(relaxed),
            segments_bad: bad,
            segments_bad_draining: bad.saturating_sub(m.bad_drained.load(relaxed)),
            segments_reserve: shared.log_reserve.saturating_sub(deficit),
            segments_leaving: shared.resize.kept.load(relaxed),
            dirty_bytes: shared.dirty_bytes(),
            key_head_sequence: shared.last_sequence.load(relaxed),
            key_head: {
                let (segment, offset, _) = position(shared.head_position.load(relaxed), 0);
                (segment, offset)
            },
            durable_sequence: shared.durable.mark(),
            dirty_tail: position(
                m.dirty_position.load(relaxed),
                m.dirty_sequence.load(relaxed),
            ),
            key_tail: position(m.key_position.load(relaxed), m.key_sequence.load(relaxed)),
            between_boundaries: m.between_boundaries.load(relaxed)
                || shared.bypassed.is_mixed(m.dirty_sequence.load(relaxed)),
            flush_failed: shared.bypassed.has_failed(),
            epochs_pending: epoch.map_or(0, |epoch| epoch.saturating_sub(dirty_epoch)),
            oldest_dirty_since_ns: m.oldest_dirty_since.load(relaxed),
            waiting_lanes: shared.waiting_lanes.load(relaxed),
        }
    }
}

impl Bdev for Cache {
    fn info(&self) -> Arc<BdevInfo> {
        Arc::clone(&self.info.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(CacheChannel::open(
            Arc::clone(&self.shared),
            self.info(),
            cx,
        )?))
    }
}
