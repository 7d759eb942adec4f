//! GC: passes ksets at the key tail, lets the lanes forget their keys, and releases segments that no
//! key of the log refers to any more. Its own poller, on a maintenance reactor.
//!
//! A release is: no references → the key tail behind the last of them durable → generation raised in
//! RAM, then durable → every reader past a quiescent point → free. GC also keeps the log's reserve
//! filled: a segment's START is durable long before the LAST that leads to it.

use super::CacheError;
use super::control_io::{PairState, load_pair};
use super::geometry::{SegIx, SegmentItem};
use super::key::KeyIdent;
use super::log::ReadySegment;
use super::log_reader::tail_body;
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
use super::shared::{SEALED, Shared};
use super::stats::GcStats;
use crate::bdev::{Barrier, BarrierTicket, PmemError};
use crate::media::{Generation, LogStart, SlotKind};
use crate::units::ByteRange;
use reactors::ring::Producer;
use reactors::{Cx, Nanos, Poller, QuiescentTicket, Wake};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::little_endian::{U32, U64};

/// Looks for work this often when nobody kicks, ns.
const PERIOD_NS: u64 = 1_000_000_000;
/// Ksets that are passed before the key tail is made durable.
const KSETS_A_ROUND: u32 = 32;

/// Tells a lane that GC has passed a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Post {
    pub(crate) range: ByteRange,
    pub(crate) ident: KeyIdent,
}

/// Posts for the lanes of one reactor.
pub(crate) type PostBatch = Vec<Post>;

/// Segments used, above which GC works.
fn threshold(shared: &Shared) -> u32 {
    let allocatable = shared.good_segments().saturating_sub(shared.log_reserve);
    let wanted = u64::from(allocatable) * u64::from(shared.options.gc_percent()) / 100;
    // Every lane may sit on a segment that it fills: more than this can't be reached.
    let reachable = allocatable.saturating_sub(shared.lanes + 1).max(1);
    u32::try_from(wanted).unwrap_or(u32::MAX).min(reachable)
}

/// Whether more segments are used than `gc_percent` allows.
pub(crate) fn above_threshold(shared: &Shared) -> bool {
    let free = shared.free_segments.load(Ordering::Relaxed);
    let reserve = shared
        .log_reserve
        .saturating_sub(shared.log_deficit.load(Ordering::Relaxed));
    let used = shared.good_segments().saturating_sub(free + reserve);
    used > threshold(shared)
}

#[derive(Debug)]
enum State {
    Idle(Nanos),
    /// The key tail behind what was passed becomes durable.
    Tail(BarrierTicket),
    /// Raised generations and STARTs become durable.
    Retire(BarrierTicket),
    /// Readers must pass a quiescent point.
    Quiesce(QuiescentTicket),
    /// Everything is durable and quiet: segments are handed out, as soon as the locks are free.
    HandOut,
    Halted,
    Rested,
}

/// What the poller starts from.
#[derive(Debug)]
pub(crate) struct GcSeed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) view: LogView,
    pub(crate) incarnations: Incarnations,
    pub(crate) reader: LogReader,
    pub(crate) tail_pair: PairState,
    /// To the lanes of each data reactor.
    pub(crate) posts: Vec<Producer<PostBatch>>,
    /// Seed of the salts.
    pub(crate) salt_state: u64,
    pub(crate) stats: Arc<GcStats>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gc {
    seed: GcSeed,
    barrier: Box<dyn Barrier>,
    state: State,
    /// Keys passed for each segment since it became what it is.
    dropped: Vec<u64>,
    /// Segments with keys passed that are not released yet.
    candidates: Vec<SegIx>,
    /// Log segments that the key tail has left.
    left: Vec<SegIx>,
    /// Segments on their way to be free …
    retiring: Vec<SegIx>,
    /// … and on their way into the log's reserve.
    starting: Vec<ReadySegment>,
    /// Posts that a ring did not take yet.
    parked: VecDeque<(usize, PostBatch)>,
    /// A lock was taken by somebody else.
    retry: bool,
}

impl Gc {
    pub(crate) fn new(seed: GcSeed, barrier: Box<dyn Barrier>, now: Nanos) -> Self {
        let segments = seed.view.segments.len();
        Self {
            seed,
            barrier,
            state: State::Idle(now),
            dropped: vec![0; segments],
            candidates: Vec::new(),
            left: Vec::new(),
            retiring: Vec::new(),
            starting: Vec::new(),
            parked: VecDeque::new(),
            retry: false,
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.seed.shared
    }

    /// Whether ksets shall be passed: room is wanted, and there are some behind the key tail.
    fn shall_pass(&self) -> bool {
        let shared = self.shared();
        let dirty = shared.maintenance.dirty_sequence.load(Ordering::Acquire);
        if self.seed.reader.pos.sequence >= dirty {
            return false;
        }
        shared.is_space_wanted() || above_threshold(shared)
    }

    /// Passes up to [`KSETS_A_ROUND`] ksets.
    fn pass_ksets(&mut self) -> Result<u32, CacheError> {
        let dirty = self
            .shared()
            .maintenance
            .dirty_sequence
            .load(Ordering::Acquire);
        let mut batches: Vec<PostBatch> = vec![Vec::new(); self.seed.posts.len()];
        let mut passed = 0;
        while passed < KSETS_A_ROUND && self.seed.reader.pos.sequence < dirty {
            let before = self.seed.reader.pos;
            let view = &self.seed.view;
            match self.seed.reader.next(view, &self.seed.incarnations) {
                Ok(Entry::Last { left }) => self.left.push(left),
                Ok(Entry::Kset(kset)) => {
                    self.seed.stats.keys.add(kset.keys.len() as u64);
                    for key in kset.keys {
                        let ident = view.ident(key);
                        if ident.has_data {
                            let dropped = &mut self.dropped[ident.segment.index()];
                            if *dropped == 0 {
                                self.candidates.push(ident.segment);
                            }
                            *dropped += 1;
                        }
                        let start = key.offset.get();
                        let range = ByteRange::between(start, start + u64::from(key.len.get()));
                        let lane = self.seed.shared.lane_of(start);
                        batches[self.seed.shared.reactor_of(lane)].push(Post { range, ident });
                    }
                }
                Err(Stop::NotThere(damage)) => return Err(view.damaged(&before, damage)),
                Err(Stop::Error(error)) => return Err(error),
            }
            passed += 1;
        }
        self.seed.stats.ksets.add(u64::from(passed));
        let posts = batches
            .into_iter()
            .enumerate()
            .filter(|(_, batch)| !batch.is_empty());
        self.parked.extend(posts);
        self.send_posts();
        Ok(passed)
    }

    fn send_posts(&mut self) {
        while let Some((reactor, batch)) = self.parked.pop_front() {
            let ring = &mut self.seed.posts[reactor];
            if ring.is_orphaned() {
                continue;
            }
            match ring.push(batch) {
                Ok(()) => self.seed.shared.runtime.data[reactor].ring(),
                Err(batch) => {
                    self.parked.push_front((reactor, batch));
                    return;
                }
            }
        }
    }

    fn halt(&mut self, error: &CacheError) {
        tracing::error!(cache = %self.shared().name, %error, "GC has stopped");
        self.shared()
            .maintenance
            .degraded
            .store(true, Ordering::SeqCst);
        self.state = State::Halted;
    }

    /// What GC has to note on the medium can't be stored there, or not durably: final.
    fn medium_failed(&mut self, error: PmemError) {
        self.shared().fail(&error);
        self.halt(&error.into());
    }

    /// Starts a round: passes ksets if that is wanted, else only looks after segments.
    fn start_round(&mut self, cx: &Cx) {
        if self.shall_pass() && self.parked.is_empty() {
            match self.pass_ksets() {
                Err(error) => {
                    self.halt(&error);
                    return;
                }
                Ok(0) => {}
                Ok(_) => {
                    let body = tail_body(&self.seed.view, &self.seed.reader.pos);
                    let pmem = &*self.seed.shared.pmem;
                    match self.seed.tail_pair.store(pmem, SlotKind::KeyTail, &body) {
                        Ok(()) => self.state = State::Tail(self.barrier.submit(cx)),
                        Err(error) => self.medium_failed(error),
                    }
                    return;
                }
            }
        }
        self.retire(cx);
    }

    /// Raises the generations of segments without references, and writes the STARTs that the log's
    /// reserve lacks.
    fn retire(&mut self, cx: &Cx) {
        self.retry = false;
        let shared = self.seed.shared.clone();
        let mut retiring: Vec<SegIx> = std::mem::take(&mut self.left);
        self.seed.stats.log_segments.add(retiring.len() as u64);
        let logs = u32::try_from(retiring.len()).unwrap_or(0);
        shared
            .maintenance
            .log_segments
            .fetch_sub(logs, Ordering::SeqCst);
        let dropped = &mut self.dropped;
        self.candidates.retain(|&segment| {
            let index = segment.index();
            let added = shared.added[index].load(Ordering::SeqCst);
            let done = added == SEALED | dropped[index];
            if done {
                dropped[index] = 0;
                shared.added[index].store(0, Ordering::SeqCst);
                if !shared.is_bad(segment) {
                    retiring.push(segment);
                }
            }
            !done
        });
        self.seed
            .stats
            .data_segments
            .add((retiring.len() - logs as usize) as u64);
        for &segment in &retiring {
            if let Err(error) = self.raise_generation(segment) {
                self.halt(&error);
                return;
            }
        }
        self.retiring = retiring;
        self.note_retiring();
        if let Err(error) = self.write_starts() {
            self.medium_failed(error);
            return;
        }
        if self.retiring.is_empty() && self.starting.is_empty() {
            let idle = if self.shall_pass() {
                cx.now()
            } else {
                cx.now().after(PERIOD_NS)
            };
            let head = shared.last_sequence.load(Ordering::SeqCst);
            if self.seed.reader.pos.sequence > head {
                // There is nothing more to gain for the fill that was left out.
                shared
                    .maintenance
                    .fill_skipped
                    .store(false, Ordering::SeqCst);
            }
            self.state = State::Idle(idle);
        } else {
            self.state = State::Retire(self.barrier.submit(cx));
        }
    }

    fn note_retiring(&self) {
        let count = u32::try_from(self.retiring.len()).unwrap_or(u32::MAX);
        self.shared()
            .maintenance
            .retiring
            .store(count, Ordering::Relaxed);
    }

    fn raise_generation(&mut self, segment: SegIx) -> Result<(), CacheError> {
        let shared = &self.seed.shared;
        let id = shared.segments[segment.index()];
        let at = shared.geometry.segment_start(id) + SegmentItem::Generation as u64;
        let (body, mut pair) =
            load_pair::<Generation>(&*shared.pmem, at, SlotKind::Generation, "generation")?;
        let generation = body.generation.get() + 1;
        shared.generations[segment.index()].store(generation, Ordering::SeqCst);
        let body = Generation {
            generation: U64::new(generation),
            ..body
        };
        pair.store(&*shared.pmem, SlotKind::Generation, &body)
            .inspect_err(|error| shared.fail(error))?;
        Ok(())
    }

    /// Takes free segments for the log's reserve and writes their START.
    fn write_starts(&mut self) -> Result<(), PmemError> {
        let shared = self.seed.shared.clone();
        while shared.log_deficit.load(Ordering::SeqCst) > 0 {
            let Some(mut alloc) = shared.alloc.try_lock() else {
                self.retry = true;
                return Ok(());
            };
            let Some(segment) = alloc.take_log() else {
                return Ok(());
            };
            shared.log_deficit.fetch_sub(1, Ordering::SeqCst);
            let free = u32::try_from(alloc.free_count()).unwrap_or(u32::MAX);
            shared.free_segments.store(free, Ordering::Relaxed);
            drop(alloc);
            let salt = next_salt(&mut self.seed.salt_state);
            store_start(&shared, segment, salt, shared.durable.mark())?;
            self.seed.stats.starts.add(1);
            let pool_segment = shared.segments[segment.index()].0;
            self.starting.push(ReadySegment {
                segment,
                pool_segment,
                salt,
            });
        }
        Ok(())
    }

    /// Hands the segments out; false if a lock was taken.
    fn hand_out(&mut self) -> bool {
        let shared = self.seed.shared.clone();
        if !self.starting.is_empty() {
            let Some(mut log) = shared.log.try_lock() else {
                return false;
            };
            log.ready.extend(self.starting.drain(..));
        }
        if !self.retiring.is_empty() {
            let Some(mut alloc) = shared.alloc.try_lock() else {
                return false;
            };
            for segment in self.retiring.drain(..) {
                alloc.release(segment);
            }
            shared.maintenance.retiring.store(0, Ordering::Relaxed);
            let free = u32::try_from(alloc.free_count()).unwrap_or(u32::MAX);
            shared.free_segments.store(free, Ordering::Relaxed);
            shared
                .maintenance
                .fill_skipped
                .store(false, Ordering::SeqCst);
        }
        shared.ring_waiting_lanes();
        true
    }

    fn barrier_done(&mut self, cx: &Cx, ticket: BarrierTicket) -> bool {
        match self.barrier.poll(cx) {
            Ok(done) => done >= ticket,
            Err(error) => {
                self.medium_failed(error);
                false
            }
        }
    }

    fn rest_if_asked(&mut self) -> bool {
        if matches!(self.state, State::Rested) {
            return true;
        }
        let stop = self.shared().maintenance.stop.load(Ordering::SeqCst);
        if stop && matches!(self.state, State::Idle(_) | State::Halted) {
            self.state = State::Rested;
            self.shared()
                .maintenance
                .rested
                .fetch_add(1, Ordering::SeqCst);
            return true;
        }
        false
    }

    fn step(&mut self, cx: &Cx) -> u32 {
        match self.state {
            State::Idle(until) => {
                let kicked = self
                    .shared()
                    .maintenance
                    .kick_gc
                    .swap(false, Ordering::SeqCst);
                if !kicked && cx.now() < until && !self.retry && !self.shall_pass() {
                    return 0;
                }
                self.start_round(cx);
                1
            }
            State::Tail(ticket) => {
                let done = self.barrier_done(cx, ticket);
                if done {
                    let pos = self.seed.reader.pos;
                    self.shared().publish_key_tail(&pos);
                    self.retire(cx);
                }
                u32::from(done)
            }
            State::Retire(ticket) => {
                let done = self.barrier_done(cx, ticket);
                if done {
                    let ticket = self.shared().runtime.quiescence.request();
                    self.state = State::Quiesce(ticket);
                }
                u32::from(done)
            }
            State::Quiesce(ticket) => {
                if !self.shared().runtime.quiescence.has_passed(ticket) {
                    return 0;
                }
                self.state = State::HandOut;
                1
            }
            State::HandOut => {
                if self.hand_out() {
                    self.state = State::Idle(cx.now());
                }
                1
            }
            State::Halted | State::Rested => 0,
        }
    }
}

/// Where a generator of salts starts. The salts of two runs, or of two caches of a process, must
/// differ: segments go from one to the other, and a leftover would fit. A segment's generation, which
/// rises when a cache is created, tells caches apart that have the same UUID.
pub(crate) fn salt_seed(seed: u64, cache: &[u8; 16], incarnation: u32, generation: u64) -> u64 {
    let (a, b) = cache.split_at(8);
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let parts = [word(a), word(b), incarnation.into(), generation];
    parts.into_iter().fold(seed, |state, part| {
        let mut state = state ^ part;
        next_salt(&mut state)
    })
}

/// The next number of a SplitMix64 generator, never 0.
pub(crate) fn next_salt(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).max(1)
}

/// Stores the START of a log segment; not durable before a barrier.
fn store_start(shared: &Shared, segment: SegIx, salt: u64, sequence: u64) -> Result<(), PmemError> {
    let id = shared.segments[segment.index()];
    let at = shared.geometry.segment_start(id) + SegmentItem::LogStart as u64;
    let body = LogStart {
        cache: shared.uuid,
        segment: U32::new(id.0),
        incarnation: U32::new(shared.incarnation),
        sequence: U64::new(sequence),
        salt: U64::new(salt),
        spare: [0; 8],
    };
    store_pair_over(shared, at, SlotKind::LogStart, &body)
}

/// Stores a slot over the older of a pair, whatever is there.
fn store_pair_over(
    shared: &Shared,
    at: u64,
    kind: SlotKind,
    body: &LogStart,
) -> Result<(), PmemError> {
    let pmem = &*shared.pmem;
    let mut pair = match load_pair::<LogStart>(pmem, at, kind, "START") {
        Ok((_, pair)) => pair,
        Err(_) => PairState::fresh(at),
    };
    pair.store(pmem, kind, body)
}

impl Poller for Gc {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        if !self.parked.is_empty() {
            self.send_posts();
        }
        if self.rest_if_asked() {
            return 0;
        }
        self.step(cx)
    }

    fn wake(&self) -> Wake {
        let shared = self.shared();
        let stop = shared.maintenance.stop.load(Ordering::SeqCst);
        let soon = if self.parked.is_empty() {
            Wake::OnEvent
        } else {
            Wake::Now
        };
        match self.state {
            State::Rested | State::Halted if !stop => Wake::OnEvent,
            State::Rested => Wake::OnEvent,
            State::Halted => Wake::Now,
            State::Idle(until) => {
                let kicked = shared.maintenance.kick_gc.load(Ordering::SeqCst);
                if kicked || stop || self.retry || self.shall_pass() {
                    Wake::Now
                } else {
                    Wake::At(until).sooner(soon)
                }
            }
            State::Tail(_) | State::Retire(_) => self.barrier.wake().sooner(soon),
            State::Quiesce(_) | State::HandOut => Wake::Now,
        }
    }
}
