//! Loading a cache: replay, then the steps that make what was read true, then its parts start.
//!
//! The order is that of section 8 of the engine's specification; each step says why it stands where it
//! does. Until the first of them media are untouched.

use super::CacheError;
use super::bad::PostBatch;
use super::begin_run::begin_run;
use super::bypassed::Bypassed;
use super::cache::{Cache, CacheParts, CacheStart};
use super::control::Control;
use super::gc::GcSeed;
use super::generations::{Generations, load_generations};
use super::geometry::{SegIx, log_reserve};
use super::group::GroupSeed;
use super::key_index::{BLOCK, KeyIndex};
use super::lane::LaneSeed;
use super::live_options::LiveOptions;
use super::log::{LogHead, Place, ReadySegment};
use super::log_damage::unreferenced;
use super::log_reader::{LogReader, LogView};
use super::log_start::{next_salt, salt_seed, store_start};
use super::look_only::LookOnly;
use super::options::CacheOptions;
use super::owners::forget_leaving;
use super::pool::{Pool, PoolFailure};
use super::replay::{ReplayWish, Replayed, open_view, replay};
use super::resize::Resize;
use super::segment_alloc::SegmentAlloc;
use super::seq_tracker::SeqTracker;
use super::shared::{DRAIN_RESTED, Maintenance, Runtime, SEALED, Shared, next_instance};
use super::slow_io::SlowIos;
use super::staged::{Staged, close_staged, open_staging, take_staged};
use super::staging::LaneStaging;
use super::stats::{GcStats, LaneStats, WritebackStats};
use super::stop::CleanEnd;
use super::try_lock::TryLock;
use super::unreadable::{find_unwritable, leave_unreadable};
use super::writeback::{FlushNote, WritebackSeed};
use crate::bdev::{Bdev, Persistence};
use crate::media::{CacheEntry, LogStart};
use crossbeam_utils::CachePadded;
use reactors::ring::{Consumer, Producer, spsc};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use zerocopy::little_endian::{U32, U64};

/// Batches of posts that GC may have under way to a reactor.
const POST_RING: usize = 64;

/// Segments that nothing refers to, and those of them that become the log's reserve.
fn prepare_reserve(
    view: &LogView,
    replayed: &Replayed,
    staged_references: &[u64],
    wanted: u32,
    incarnation: u32,
    salt: &mut u64,
) -> Result<(VecDeque<SegIx>, VecDeque<ReadySegment>), CacheError> {
    let mut free = VecDeque::from(unreferenced(view, replayed, staged_references));
    let mut ready = VecDeque::new();
    while ready.len() < wanted as usize {
        let Some(segment) = free.pop_front() else {
            break;
        };
        let id = view.segments.id(segment);
        let salt = next_salt(salt);
        let body = LogStart {
            cache: view.cache,
            segment: U32::new(id.0),
            incarnation: U32::new(incarnation),
            sequence: U64::new(replayed.end.sequence),
            salt: U64::new(salt),
            spare: [0; 8],
        };
        store_start(&*view.pmem, view.geometry.segment_start(id), &body)?;
        ready.push_back(ReadySegment {
            segment,
            pool_segment: id.0,
            salt,
        });
    }
    view.pmem.barrier_wait()?;
    Ok((free, ready))
}

/// For each place, vacant ones included.
fn bad_segments(view: &LogView) -> impl Iterator<Item = bool> {
    (0..view.segments.places()).map(|place| view.segments.is_bad(SegIx::of(place)))
}

fn count_bad(view: &LogView) -> u32 {
    u32::try_from(bad_segments(view).filter(|&bad| bad).count()).unwrap_or(u32::MAX)
}

/// Everything that the running cache shares, from what replay found.
struct Loaded {
    view: LogView,
    control: Control,
    replayed: Replayed,
    generations: Vec<u64>,
    log: LogHead,
    free: VecDeque<SegIx>,
    incarnation: u32,
    reserve: u32,
    /// Where the salts of further log segments come from.
    salt: u64,
    /// Only looked at.
    read_only: bool,
    /// The last run may have left completed writes that the backing was not asked to flush.
    owes_flush: bool,
}

impl Loaded {
    /// The log head; what stays behind is empty.
    fn take_log(&mut self) -> LogHead {
        let at = Place {
            segment: self.log.segment,
            offset: self.log.offset,
            salt: self.log.salt,
            sequence: self.log.next_sequence,
            epoch: self.log.epoch,
        };
        let data_bytes = self.view.geometry.segment_data_bytes();
        std::mem::replace(&mut self.log, LogHead::new(at, VecDeque::new(), data_bytes))
    }

    /// Bad segments that nothing refers to any more.
    fn bad_drained(&self) -> u32 {
        let references = &self.replayed.references;
        let drained = bad_segments(&self.view)
            .enumerate()
            .filter(|&(place, bad)| {
                bad && references[place] == 0
                    && !self.replayed.log_segments.contains(&SegIx::of(place))
            });
        u32::try_from(drained.count()).unwrap_or(u32::MAX)
    }

    fn lane_stats(&self) -> Box<[CachePadded<LaneStats>]> {
        let lanes = self.replayed.indexes.iter().zip(&self.replayed.dirty);
        let stats = lanes.map(|(index, &dirty)| {
            let stats = LaneStats::default();
            stats.dirty_added.add(dirty);
            stats.bad_bytes.set(index.bad_blocks() * BLOCK);
            CachePadded::new(stats)
        });
        stats.collect()
    }

    fn maintenance(&self) -> Maintenance {
        let log_segments = u32::try_from(self.replayed.log_segments.len()).unwrap_or(u32::MAX);
        let window_end = self.control.window_end.0;
        // Without a writeback nothing of it is under way.
        let drain = if self.read_only { DRAIN_RESTED } else { 0 };
        Maintenance {
            drain: AtomicU8::new(drain),
            log_segments: AtomicU32::new(log_segments),
            between_boundaries: AtomicBool::new(window_end > self.control.dirty_tail.0.sequence),
            bad_drained: AtomicU32::new(self.bad_drained()),
            ..Maintenance::default()
        }
    }

    /// What counts the references of each segment; nothing is added to those that have some.
    fn references(&self) -> Box<[AtomicU64]> {
        let seal = |&count: &u64| AtomicU64::new(if count == 0 { 0 } else { SEALED | count });
        self.replayed.references.iter().map(seal).collect()
    }

    fn share(
        &mut self,
        entry: &CacheEntry,
        options: &CacheOptions,
        runtime: &Runtime,
        failure: Arc<PoolFailure>,
        backing_volatile: bool,
    ) -> Shared {
        let lanes = entry.lanes.get();
        let durable = self.log.last_sequence();
        let ready = u32::try_from(self.log.ready.len()).unwrap_or(0);
        let log = self.take_log();
        let head_segment = self.view.segments.id(log.segment).0;
        let head = u64::from(head_segment) << 32 | u64::from(log.offset);
        let added = self.references();
        let maintenance = self.maintenance();
        Shared {
            instance: next_instance(),
            name: entry.name(),
            uuid: entry.uuid,
            pmem: Arc::clone(&self.view.pmem),
            geometry: self.view.geometry,
            segments: Arc::clone(&self.view.segments),
            segment_count: AtomicU32::new(entry.segments.get()),
            lanes,
            log_reserve: self.reserve,
            block_bytes: entry.block_bytes.get(),
            data_crc: options.data_crc,
            sums_lost_data: !options.data_crc && self.view.pmem.persistence() == Persistence::Msync,
            incarnation: self.incarnation,
            options: LiveOptions::new(options),
            runtime: runtime.clone(),
            generations: self
                .generations
                .iter()
                .map(|&g| AtomicU64::new(g))
                .collect(),
            added,
            free_segments: AtomicU32::new(u32::try_from(self.free.len()).unwrap_or(u32::MAX)),
            suspect_count: AtomicU32::new(count_bad(&self.view)),
            suspects: bad_segments(&self.view).map(AtomicBool::new).collect(),
            alloc: TryLock::new(SegmentAlloc::new(std::mem::take(&mut self.free))),
            log: TryLock::new(log),
            log_deficit: AtomicU32::new(self.reserve.saturating_sub(ready)),
            head_position: AtomicU64::new(head),
            last_sequence: CachePadded::new(AtomicU64::new(durable)),
            durable: SeqTracker::new(durable),
            waiting_lanes: CachePadded::default(),
            close_all: CachePadded::default(),
            placed_all: (0..runtime.data.len().min(entry.lanes.get() as usize))
                .map(|_| CachePadded::default())
                .collect(),
            durable_waiters: CachePadded::default(),
            failure,
            failed: CachePadded::default(),
            read_only: self.read_only,
            unplaced: runtime
                .data
                .iter()
                .map(|_| CachePadded::default())
                .collect(),
            resize: Resize::default(),
            stats: self.lane_stats(),
            latency: runtime
                .data
                .iter()
                .map(|_| CachePadded::default())
                .collect(),
            slow_ios: SlowIos::new(runtime.data.len()),
            maintenance,
            bypassed: self.bypassed(backing_volatile, durable, entry),
        }
    }

    fn bypassed(&self, backing_volatile: bool, durable: u64, entry: &CacheEntry) -> Bypassed {
        Bypassed::new(
            backing_volatile,
            self.owes_flush,
            self.control.backing_flush.0.failed.get() == 1,
            durable,
            entry.bypassed.get() != 0,
        )
    }
}

fn note_missing(entry: &CacheEntry, replayed: &mut Replayed, staged: &Staged, runtime: &Runtime) {
    replayed.report.staging_missing = staged.missing;
    if staged.missing {
        tracing::error!(
            cache = %entry.name(), run_dir = %runtime.run_dir.display(),
            "the staging file is gone though the machine was not rebooted: writes that were \
             acknowledged and not flushed may be lost"
        );
    }
}

/// Whether the keys of a cache carry the CRC of their data.
fn has_data_crc(entry: &CacheEntry) -> bool {
    entry.checks.get() & 1 != 0
}

/// What was found, to be looked at only: nothing is stored, here or later.
fn salvaged(
    view: LogView,
    control: Control,
    mut replayed: Replayed,
    generations: Vec<u64>,
    mut staged: Staged,
    entry: &CacheEntry,
) -> (Loaded, Vec<LaneStaging>) {
    let first = replayed.end.sequence;
    let data_crc = has_data_crc(entry);
    take_staged(&view, &staged, &mut replayed, &generations, data_crc);
    let references = staged.references(&view, first);
    let free = VecDeque::from(unreferenced(&view, &replayed, &references));
    let log = LogHead::new(
        replayed.log_place(),
        VecDeque::new(),
        view.geometry.segment_data_bytes(),
    );
    // Copies, which only these lanes see.
    staged.lanes.iter_mut().for_each(LaneStaging::clear);
    let loaded = Loaded {
        incarnation: control.incarnation.0.incarnation.get(),
        reserve: log_reserve(entry.lanes.get(), view.geometry.segment_bytes),
        view,
        control,
        replayed,
        generations,
        log,
        free,
        salt: 0,
        read_only: true,
        owes_flush: false,
    };
    (loaded, staged.lanes)
}

fn load_media(
    pool: &Pool,
    place: usize,
    entry: &CacheEntry,
    runtime: &Runtime,
    wish: ReplayWish,
) -> Result<(Loaded, Vec<LaneStaging>), CacheError> {
    let mut view = open_view(pool, entry)?;
    if wish.salvage {
        view.pmem = Arc::new(LookOnly::new(Arc::clone(&view.pmem)));
    }
    let mut control = Control::load(&view)?;
    let mut generations = load_generations(&view)?;
    leave_unreadable(&view)?;
    let lanes = entry.lanes.get();
    let found = open_staging(pool, place, entry, &control, runtime, wish, true)?;
    let keys: Vec<_> = found.keys(0).copied().collect();
    generations.learn(&view, &keys);
    let mut replayed = replay(
        &view,
        &mut control,
        &mut generations,
        lanes as usize,
        wish,
        &found,
    )?;
    control.doubt_boundaries(replayed.end.sequence);
    if !wish.salvage {
        replayed.report.unwritable = find_unwritable(&view, &mut control, &replayed)?;
    }
    let look_only = wish.salvage || replayed.report.unwritable.is_some();
    let staged = if look_only {
        view.pmem = Arc::new(LookOnly::new(Arc::clone(&view.pmem)));
        found
    } else {
        open_staging(pool, place, entry, &control, runtime, wish, false)?
    };
    note_missing(entry, &mut replayed, &staged, runtime);
    if look_only {
        return Ok(salvaged(
            view,
            control,
            replayed,
            generations.now,
            staged,
            entry,
        ));
    }
    let found = Found {
        view,
        control,
        replayed,
        generations,
        staged,
    };
    take_over(pool, found, entry, runtime)
}

/// What a load found, before anything is changed.
struct Found {
    view: LogView,
    control: Control,
    replayed: Replayed,
    generations: Generations,
    staged: Staged,
}

/// Makes what was found the beginning of a run: first durable, then its own.
fn take_over(
    pool: &Pool,
    found: Found,
    entry: &CacheEntry,
    runtime: &Runtime,
) -> Result<(Loaded, Vec<LaneStaging>), CacheError> {
    let Found {
        view,
        mut control,
        mut replayed,
        mut generations,
        mut staged,
    } = found;
    let lanes = entry.lanes.get();
    let owes_flush = entry.bypassed.get() != 0 && !control.stopped_clean();
    let incarnation = begin_run(
        &view,
        &mut control,
        &replayed,
        &mut generations,
        &mut staged,
        runtime,
    )?;
    forget_leaving(pool, &view, entry)?;
    let generations = generations.now;
    let reserve = log_reserve(lanes, view.geometry.segment_bytes);
    let generation = generations.first().copied().unwrap_or(0);
    let mut salt = salt_seed(runtime.seed, &view.cache, incarnation, generation);
    let first = replayed.end.sequence;
    let references = staged.references(&view, first);
    let data_bytes = view.geometry.segment_data_bytes();
    let ready = reserve.max(staged.log_segments_needed(first, data_bytes));
    let (mut free, ready) =
        prepare_reserve(&view, &replayed, &references, ready, incarnation, &mut salt)?;
    let mut log = LogHead::new(replayed.log_place(), ready, data_bytes);
    log.chain = replayed.log_segments.clone().into();
    close_staged(
        &view,
        &mut staged,
        &mut replayed,
        &generations,
        &mut log,
        incarnation,
        has_data_crc(entry),
    )?;
    // Where nothing but data stood that the medium has lost.
    let is_free = |segment: &SegIx| references[segment.index()] > 0;
    free.extend(
        unreferenced(&view, &replayed, &[])
            .into_iter()
            .filter(is_free),
    );
    let loaded = Loaded {
        view,
        control,
        replayed,
        generations,
        log,
        free,
        incarnation,
        reserve,
        salt,
        read_only: false,
        owes_flush,
    };
    Ok((loaded, staged.lanes))
}

/// Spreads the lanes over the data reactors.
fn lanes_by_reactor(
    indexes: Vec<KeyIndex>,
    serials: Vec<u64>,
    staging: Vec<LaneStaging>,
    runtime: &Runtime,
) -> Vec<Vec<LaneSeed>> {
    let reactors = runtime.data.len().min(indexes.len());
    let mut by_reactor: Vec<Vec<LaneSeed>> = (0..reactors).map(|_| Vec::new()).collect();
    let lanes = indexes.into_iter().zip(serials).zip(staging).enumerate();
    for (number, ((index, serial), staging)) in lanes {
        let lane = LaneSeed {
            number: u16::try_from(number).unwrap_or(u16::MAX),
            index,
            staging,
            serial,
        };
        by_reactor[number % runtime.data.len()].push(lane);
    }
    by_reactor
}

/// The groups, and the ways to post to them: GC's and writeback's.
fn group_seeds(
    shared: &Arc<Shared>,
    backing: &Arc<dyn Bdev>,
    by_reactor: Vec<Vec<LaneSeed>>,
) -> (Vec<GroupSeed>, [Vec<Producer<PostBatch>>; 2]) {
    let reactors = by_reactor.len();
    let rings = || (0..reactors).map(|_| spsc::<PostBatch>(POST_RING)).unzip();
    let (gc_posts, from_gc): (Vec<_>, Vec<Consumer<PostBatch>>) = rings();
    let (writeback_posts, from_writeback): (Vec<_>, Vec<Consumer<PostBatch>>) = rings();
    let posts = from_gc.into_iter().zip(from_writeback);
    let groups = by_reactor.into_iter().zip(posts).enumerate();
    let groups = groups.map(|(reactor, (lanes, posts))| GroupSeed {
        shared: Arc::clone(shared),
        reactor,
        lanes,
        backing: Arc::clone(backing),
        posts: posts.into(),
    });
    (groups.collect(), [gc_posts, writeback_posts])
}

/// Loads what is on the media of the cache at `place` of the pool's table, and starts its parts in
/// front of `backing`.
pub(super) fn load_and_start(
    pool: &Arc<Pool>,
    place: usize,
    entry: &CacheEntry,
    backing: Arc<dyn Bdev>,
    runtime: &Runtime,
    wish: ReplayWish,
) -> Result<Arc<Cache>, CacheError> {
    let options = CacheOptions::load(entry)?;
    let begun = runtime.clock.now();
    let (mut loaded, staging) = load_media(pool, place, entry, runtime, wish)?;
    let bad = loaded.replayed.indexes.iter().map(KeyIndex::bad_blocks);
    loaded.replayed.report.bad_bytes = bad.sum::<u64>() * BLOCK;
    loaded.replayed.report.elapsed_us = runtime.clock.now().since(begun) / 1000;
    let report = &loaded.replayed.report;
    tracing::debug!(
        cache = entry.name(),
        ksets = report.ksets,
        keys = report.keys,
        "read"
    );
    pool.start_cache(entry, options, backing, runtime, loaded, staging)
        .inspect(|cache| cache.shared.check_segments())
}

impl Pool {
    fn start_cache(
        self: &Arc<Self>,
        entry: &CacheEntry,
        options: CacheOptions,
        backing: Arc<dyn Bdev>,
        runtime: &Runtime,
        mut loaded: Loaded,
        staging: Vec<LaneStaging>,
    ) -> Result<Arc<Cache>, CacheError> {
        let backing_volatile = backing.info().volatile_cache;
        let failure = Arc::clone(&self.failure);
        let shared = loaded.share(entry, &options, runtime, failure, backing_volatile);
        let shared = Arc::new(shared);
        let Loaded {
            view,
            control,
            replayed,
            salt,
            read_only,
            ..
        } = loaded;
        shared.publish_dirty_tail(&control.dirty_tail.0);
        shared.publish_key_tail(&control.key_tail.0);
        let by_reactor = lanes_by_reactor(replayed.indexes, replayed.serials, staging, runtime);
        let (groups, [gc_posts, writeback_posts]) = group_seeds(&shared, &backing, by_reactor);
        let incarnations = control.incarnations();
        let (writeback_stats, gc_stats) =
            (Arc::<WritebackStats>::default(), Arc::<GcStats>::default());
        let maintenance = if read_only {
            None
        } else {
            let writeback = WritebackSeed {
                shared: Arc::clone(&shared),
                pool: Arc::clone(self),
                view: view.clone(),
                incarnations,
                reader: LogReader::new(&view, control.dirty_tail.0)?,
                tail_pair: control.dirty_tail.1,
                window_pair: control.window_end.1,
                window_end: control.window_end.0,
                mark_pair: control.durable_mark.1,
                posts: writeback_posts,
                stats: Arc::clone(&writeback_stats),
                flush_note: FlushNote::new(control.backing_flush),
                backing_volatile,
            };
            let gc = GcSeed {
                shared: Arc::clone(&shared),
                view: view.clone(),
                incarnations,
                reader: LogReader::new(&view, control.key_tail.0)?,
                tail_pair: control.key_tail.1,
                posts: gc_posts,
                salt_state: salt,
                stats: Arc::clone(&gc_stats),
            };
            Some((writeback, gc))
        };
        let end = CleanEnd {
            view,
            incarnations,
            clean_stop: control.clean_stop.1,
            samples: control.samples,
        };
        Cache::start(CacheStart {
            pool: Arc::clone(self),
            shared,
            options,
            backing,
            logical_bytes: entry.backing_bytes.get(),
            report: replayed.report,
            end,
            writeback_stats,
            gc_stats,
            parts: CacheParts {
                groups,
                maintenance,
            },
        })
    }
}
