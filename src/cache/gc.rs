//! GC: passes ksets at the key tail, lets the lanes forget their keys, and releases segments that no
//! key of the log refers to any more. Its own poller, on a maintenance reactor.
//!
//! A release is: no references → the key tail behind the last of them durable → generation raised in
//! RAM, then durable → every reader past a quiescent point → free. GC also keeps the log's reserve
//! filled: a segment's START is durable long before the LAST that leads to it.

use super::CacheError;
use super::bad::{Answers, Outbox, Post, PostBatch};
use super::control_io::PairState;
use super::fault::{self, Fault};
use super::geometry::SegIx;
use super::key::KeyIdent;
use super::log::ReadySegment;
use super::log_damage::is_damage;
use super::log_reader::tail_body;
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
use super::lost::{LostStretch, Recount};
use super::relog::{BAD_KEYS_A_ROUND, Lap};
use super::resize::{Drain, TailSeal};
use super::shared::{SEALED, Shared};
use super::stats::GcStats;
use crate::bdev::{Barrier, BarrierTicket, PmemError};
use crate::media::{self, KeyFlags, SlotKind};
use crate::units::ByteRange;
use reactors::ring::Producer;
use reactors::{Cx, Nanos, Poller, QuiescentTicket, Wake};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Looks for work this often when nobody kicks, ns.
pub(super) const PERIOD_NS: u64 = 1_000_000_000;
/// Ksets that are passed before the key tail is made durable.
pub(super) const KSETS_A_ROUND: u32 = 32;

/// Segments used, above which GC works.
pub(super) fn threshold(shared: &Shared) -> u32 {
    let allocatable = shared.usable_segments().saturating_sub(shared.log_reserve);
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
    let used = shared.usable_segments() + shared.resize.draining();
    used.saturating_sub(free + reserve) > threshold(shared)
}

/// Whether nothing refers to a segment any more, by its [`Shared::added`] and the keys passed.
fn is_unreferenced(added: u64, dropped: u64) -> bool {
    if fault::injected(Fault::ReferenceDroppedOnOverwrite) {
        return added & SEALED != 0 && dropped >= added & !SEALED;
    }
    added == SEALED | dropped
}

/// Whether a key's reference has been given up before GC passes it: its segment has a new life.
fn is_given_up(shared: &Shared, ident: &KeyIdent) -> bool {
    fault::injected(Fault::ReferenceDroppedOnOverwrite)
        && !shared.is_current(ident.segment, ident.generation)
}

#[derive(Debug)]
pub(super) enum State {
    Idle(Nanos),
    /// Lanes log BAD keys again; meanwhile STARTs may become durable.
    Relog(Answers, Option<BarrierTicket>),
    /// What a part of the log that can't be read has held is found out.
    Recount,
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
    pub(super) seed: GcSeed,
    pub(super) barrier: Box<dyn Barrier>,
    pub(super) state: State,
    /// Keys passed for each segment since it became what it is.
    pub(super) dropped: Vec<u64>,
    /// Segments with keys passed, or marked as bad by this run, that are not released yet.
    pub(super) candidates: Vec<SegIx>,
    /// Log segments that the key tail has left.
    pub(super) left: Vec<SegIx>,
    /// Segments on their way to be free …
    pub(super) retiring: Vec<SegIx>,
    /// … and on their way into the log's reserve.
    pub(super) starting: Vec<ReadySegment>,
    pub(super) outbox: Outbox,
    /// A lock was taken by somebody else.
    pub(super) retry: bool,
    pub(super) lap: Lap,
    /// Room for the keys of one kset.
    keys: Vec<media::Key>,
    /// Stretches of the log that can't be read, settled and not passed yet, in order …
    pub(super) lost: Vec<LostStretch>,
    /// … and those that are being settled.
    pub(super) recount: Option<Box<Recount>>,
    /// Until the dirty tail has moved from there nothing can be passed.
    pub(super) stuck_at: Option<u64>,
    /// Segments that are marked as bad …
    pub(super) marked: Vec<bool>,
    /// … and how many had media errors when it looked last.
    pub(super) seen_suspects: u32,
    pub(super) drain: Drain,
}

/// GC as its reactor's poller and an audit share it.
#[derive(Debug)]
pub(crate) struct GcCell(pub(crate) RefCell<Gc>);

/// What the reactor runs.
pub(crate) struct GcDriver(pub(crate) Rc<GcCell>);

impl Poller for GcDriver {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        let mut gc = self.0.0.borrow_mut();
        gc.show_activity(cx.now());
        let handled = gc.poll(cx, budget);
        gc.show_activity(cx.now());
        handled
    }

    fn wake(&self) -> Wake {
        self.0.0.borrow().wake()
    }
}

/// For an audit.
impl Gc {
    /// Whether no segment is on its way anywhere.
    pub(crate) fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Idle(_))
            && self.left.is_empty()
            && self.starting.is_empty()
            && self.retiring.is_empty()
            && self.outbox.is_empty()
    }

    pub(crate) fn view(&self) -> &LogView {
        &self.seed.view
    }

    /// Where it stands in the log.
    pub(crate) fn place(&self) -> (LogReader, Incarnations) {
        (self.seed.reader.clone(), self.seed.incarnations)
    }

    /// Keys passed for each segment.
    pub(crate) fn dropped(&self) -> &[u64] {
        &self.dropped
    }
}

impl Gc {
    pub(crate) fn new(mut seed: GcSeed, barrier: Box<dyn Barrier>, now: Nanos) -> Self {
        let segments = seed.view.segments.places();
        let marked = (0..segments).map(|place| seed.view.segments.is_bad(SegIx::of(place)));
        Self {
            marked: marked.collect(),
            barrier,
            state: State::Idle(now),
            dropped: vec![0; segments],
            candidates: Vec::new(),
            left: Vec::new(),
            retiring: Vec::new(),
            starting: Vec::new(),
            outbox: Outbox::new(std::mem::take(&mut seed.posts)),
            retry: false,
            lap: Lap::default(),
            keys: Vec::new(),
            lost: Vec::new(),
            recount: None,
            stuck_at: None,
            drain: Drain::default(),
            seen_suspects: seed.shared.suspect_count.load(Ordering::SeqCst),
            seed,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.seed.shared
    }

    /// The first sequence that must not be passed: the one at the durable dirty tail.
    fn limit(&self) -> u64 {
        let shared = self.shared();
        if fault::injected(Fault::KeyTailPastDirtyTail) {
            return shared.durable.mark() + 1;
        }
        shared.maintenance.dirty_sequence.load(Ordering::Acquire)
    }

    /// Whether ksets shall be passed: room is wanted, and there are some behind the key tail.
    fn shall_pass(&self) -> bool {
        let shared = self.shared();
        let limit = self.limit();
        if self.seed.reader.pos.sequence >= limit || self.stuck_at == Some(limit) {
            return false;
        }
        if self.has_lost_behind(limit) {
            return true;
        }
        let head = shared.last_sequence.load(Ordering::SeqCst);
        shared.is_space_wanted() || (above_threshold(shared) && !self.lap.is_in_vain(head))
    }

    /// Passes up to [`KSETS_A_ROUND`] ksets; names the BAD keys among their keys.
    fn pass_ksets(&mut self) -> Result<(u32, Vec<Post>), CacheError> {
        let limit = self.limit();
        let mut posts = Vec::new();
        let mut bad = Vec::new();
        let mut passed = 0;
        while passed < KSETS_A_ROUND
            && bad.len() < BAD_KEYS_A_ROUND
            && self.seed.reader.pos.sequence < limit
        {
            passed += 1;
            if self.pass_lost(limit) {
                continue;
            }
            let before = self.seed.reader.mark();
            let mut keys = std::mem::take(&mut self.keys);
            keys.clear();
            let view = &self.seed.view;
            let found = match self.seed.reader.next(view, &self.seed.incarnations) {
                Ok(Entry::Last { left }) => {
                    self.left.push(left);
                    Ok(())
                }
                Ok(Entry::Kset(kset)) => {
                    keys.extend_from_slice(kset.keys);
                    Ok(())
                }
                Err(Stop::NotThere(damage)) => Err(view.damaged(&before.0, damage)),
                Err(Stop::Error(error)) => Err(error),
            };
            if let Err(error) = found {
                self.seed.reader.return_to(before);
                passed -= 1;
                if passed == 0 || !is_damage(&error) {
                    return Err(error);
                }
                // The next round begins there.
                break;
            }
            self.pass_keys(&keys, &mut posts, &mut bad);
            self.keys = keys;
        }
        self.seed.stats.ksets.add(u64::from(passed));
        self.outbox.send(&self.seed.shared, posts, None);
        Ok((passed, bad))
    }

    fn pass_keys(&mut self, keys: &[media::Key], posts: &mut Vec<Post>, bad: &mut Vec<Post>) {
        self.seed.stats.keys.add(keys.len() as u64);
        for key in keys {
            let ident = self.seed.view.ident(key);
            if ident.has_data && !is_given_up(&self.seed.shared, &ident) {
                self.drop_references(ident.segment, 1);
            }
            let start = key.offset.get();
            let range = ByteRange::between(start, start + u64::from(key.len.get()));
            let is_bad = key.flags().has(KeyFlags::BAD);
            self.lap.note(is_bad);
            let to = if is_bad { &mut *bad } else { &mut *posts };
            to.push(Post { range, ident });
        }
    }

    /// `count` references to `segment` have been passed.
    pub(super) fn drop_references(&mut self, segment: SegIx, count: u64) {
        let dropped = &mut self.dropped[segment.index()];
        let known = self.marked[segment.index()] && self.candidates.contains(&segment);
        if *dropped == 0 && !known {
            self.candidates.push(segment);
        }
        *dropped += count;
    }

    pub(super) fn halt(&mut self, error: &CacheError) {
        self.shared().maintenance.lost.refuse();
        self.shared().ring_maintenance();
        tracing::error!(cache = %self.shared().name, %error, "GC has stopped");
        self.shared()
            .maintenance
            .degraded
            .store(true, Ordering::SeqCst);
        self.state = State::Halted;
    }

    /// What GC has to note on the medium can't be stored there, or not durably: final.
    pub(super) fn medium_failed(&mut self, error: PmemError) {
        self.shared().fail(&error);
        self.halt(&error.into());
    }

    /// Starts a round: passes ksets if that is wanted, else only looks after segments.
    fn start_round(&mut self, cx: &Cx) {
        let head = self.shared().last_sequence.load(Ordering::SeqCst);
        self.lap.begin_round(self.seed.reader.pos.sequence, head);
        if self.shared().maintenance.lost.is_wanted() {
            return self.begin_recount();
        }
        if self.shall_pass() && self.outbox.is_empty() {
            match self.pass_ksets() {
                Err(error) if is_damage(&error) => return self.begin_recount(),
                Err(error) => {
                    self.halt(&error);
                    return;
                }
                Ok((0, _)) => {}
                Ok((_, bad)) if bad.is_empty() => return self.store_tail(cx),
                Ok((_, bad)) => return self.relog(bad),
            }
        }
        if self.drain.seal == TailSeal::Wanted {
            return self.store_tail(cx);
        }
        self.retire(cx);
    }

    pub(super) fn store_tail(&mut self, cx: &Cx) {
        let body = tail_body(&self.seed.view, &self.seed.reader.pos);
        let pmem = &*self.seed.shared.pmem;
        match self.seed.tail_pair.store(pmem, SlotKind::KeyTail, &body) {
            Ok(()) => {
                if self.drain.seal == TailSeal::Wanted {
                    self.drain.seal = TailSeal::Stored;
                }
                self.state = State::Tail(self.barrier.submit(cx));
            }
            Err(error) => self.medium_failed(error),
        }
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
            let done = is_unreferenced(added, dropped[index]);
            if done {
                dropped[index] = 0;
                shared.added[index].store(0, Ordering::SeqCst);
                retiring.push(segment);
            }
            !done
        });
        self.seed
            .stats
            .data_segments
            .add((retiring.len() - logs as usize) as u64);
        self.retiring = retiring;
        let late = fault::injected(Fault::GenerationNotDurable);
        if !late && !self.raise_generations() {
            return;
        }
        self.note_retiring();
        if let Err(error) = self.write_starts() {
            self.medium_failed(error);
            return;
        }
        let marked = self.mark_suspects();
        if self.retiring.is_empty() && self.starting.is_empty() && !marked {
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
            if late {
                self.raise_generations();
            }
        }
    }

    pub(super) fn barrier_done(&mut self, cx: &Cx, ticket: BarrierTicket) -> bool {
        match self.barrier.poll(cx) {
            Ok(done) => done >= ticket,
            Err(_) if fault::injected(Fault::FailedBarrierRetried) => true,
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
        if stop
            && matches!(
                self.state,
                State::Idle(_) | State::Relog(_, None) | State::Recount | State::Halted
            )
        {
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
                let moved = self.follow_resize();
                let wanted = self.shall_pass()
                    || moved
                    || self.drain.seal == TailSeal::Wanted
                    || self.shared().maintenance.lost.is_wanted();
                if !kicked && cx.now() < until && !self.retry && !wanted {
                    return 0;
                }
                self.start_round(cx);
                1
            }
            State::Relog(..) => self.follow_relog(cx),
            State::Recount => self.follow_recount(cx),
            State::Tail(ticket) => {
                let done = self.barrier_done(cx, ticket);
                if done {
                    let pos = self.seed.reader.pos;
                    self.shared().publish_key_tail(&pos);
                    self.note_lost_ahead();
                    self.note_tail_durable();
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

impl Poller for Gc {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        if !self.outbox.is_empty() {
            self.outbox.pump(&self.seed.shared);
        }
        if self.rest_if_asked() {
            return 0;
        }
        self.step(cx)
    }

    fn wake(&self) -> Wake {
        let shared = self.shared();
        let stop = shared.maintenance.stop.load(Ordering::SeqCst);
        let soon = if self.outbox.is_empty() {
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
                let resizes = shared.resize.news.load(Ordering::SeqCst)
                    || self.drain.seal == TailSeal::Wanted;
                if kicked || stop || self.retry || resizes || self.shall_pass() {
                    Wake::Now
                } else {
                    Wake::At(until).sooner(soon)
                }
            }
            State::Tail(_) | State::Retire(_) => self.barrier.wake().sooner(soon),
            State::Relog(..) if self.retry || stop => Wake::Now,
            State::Relog(_, Some(_)) => self.barrier.wake(),
            State::Relog(..) if shared.maintenance.kick_gc.load(Ordering::SeqCst) => Wake::Now,
            State::Relog(..) => soon,
            State::Quiesce(_) | State::HandOut | State::Recount => Wake::Now,
        }
    }
}
