//! Writeback: brings dirty data to the backing, window by window, and moves the dirty tail behind
//! them. Its own poller, on a maintenance reactor.
//!
//! A window is: gather (and, if it spans epochs, make its end durable), write, flush the backing if it
//! has a volatile cache, make the new dirty tail durable. The next window's first write comes after
//! that: else a crash would write an older epoch over a newer one. Under pressure the next window is
//! gathered meanwhile.

mod ahead;
mod drain;
mod flush_note;
mod notes;
mod pressure;

pub(crate) use flush_note::FlushNote;

use super::CacheError;
use super::bad::{Answers, Outbox, PostBatch};
use super::control_io::PairState;
use super::fault::{self, Fault};
use super::flush_all::FlushAll;
use super::lag::{Lag, Rate};
use super::log_reader::{Incarnations, LogReader, LogView, tail_body};
use super::lost::LostStretch;
use super::pace::RoomRate;
use super::pool::Pool;
use super::shared::{LogPos, Shared};
use super::stats::WritebackStats;
use super::window::{Damage, DataBytes, Window};
use crate::bdev::{Barrier, BarrierTicket, Channel, Completion, Data, IoStatus, Op, Request};
use crate::media::{SlotKind, WindowEnd};
use crate::units::ByteRange;
use reactors::ring::Producer;
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::little_endian::U64;

pub(super) use ahead::Ahead;

/// Looks for work this often when nobody kicks, ns.
const PERIOD_NS: u64 = 1_000_000_000;
/// First and longest pause after an error, ns.
const BACK_OFF_NS: (u64, u64) = (100_000_000, 5_000_000_000);
/// From the end of a window's writes to the first of the next: tail, publish, begin, write.
const STEPS_AT_ONCE: usize = 4;
/// Tag of the backing flush.
const FLUSH_TAG: u64 = u64::MAX;

#[derive(Debug)]
pub(super) enum State {
    /// Nothing to do until then.
    Idle(Nanos),
    /// A lane logs BAD keys, and makes them durable.
    Bad(Answers),
    /// The end of a spanning window becomes durable.
    Mark(BarrierTicket),
    /// Writes are under way: the next to start, and those that failed.
    Write {
        next: usize,
        failed: VecDeque<usize>,
    },
    /// An error: all writes of the window are issued again then.
    BackOff(Nanos),
    /// The backing's flush is under way.
    Flush,
    /// The new dirty tail becomes durable.
    Tail(BarrierTicket),
    /// While idle: the durable sequence becomes known to the next load.
    Note(BarrierTicket),
    /// The log can't be read on: GC finds out what it held there.
    Lost,
    /// GC has stopped on damage, or the medium failed: only a restart helps.
    Halted,
    /// Stopped on request.
    Rested,
}

/// What the poller starts from.
#[derive(Debug)]
pub(crate) struct WritebackSeed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) view: LogView,
    pub(crate) incarnations: Incarnations,
    pub(crate) reader: LogReader,
    pub(crate) tail_pair: PairState,
    pub(crate) window_pair: PairState,
    /// End of the last window that spanned epochs.
    pub(crate) window_end: u64,
    pub(crate) mark_pair: PairState,
    pub(crate) flush_note: FlushNote,
    /// To the lanes of each data reactor.
    pub(crate) posts: Vec<Producer<PostBatch>>,
    pub(crate) stats: Arc<WritebackStats>,
    /// The backing may lose completed writes at power failure.
    pub(crate) backing_volatile: bool,
}

/// Reactor-local name of the poller.
pub(crate) struct WritebackPoller(pub(crate) PollerId);

/// See the module.
#[derive(Debug)]
pub(crate) struct Writeback {
    pub(super) seed: WritebackSeed,
    backing: Box<dyn Channel>,
    barrier: Box<dyn Barrier>,
    pub(super) state: State,
    pub(super) window: Window,
    /// The next one.
    pub(super) ahead: Ahead,
    /// What gathers that.
    ahead_reader: LogReader,
    /// For verifying.
    pub(super) data_bytes: DataBytes,
    /// Where the window begins.
    pub(super) begun: (LogPos, u64),
    /// Its keys whose data are lost.
    pub(super) damages: Vec<Damage>,
    pub(super) outbox: Outbox,
    /// Stretches of the log that can't be read, settled and not passed yet.
    pub(super) lost: Vec<LostStretch>,
    in_flight: usize,
    pause_ns: u64,
    lag: Lag,
    /// Earliest time of the next request, by the rate limit.
    next_request: Nanos,
    completions: Vec<Completion>,
    pub(super) flush_all: FlushAll,
    /// The durable sequence that was noted on media last.
    noted: u64,
    rate: Rate,
    room_rate: RoomRate,
}

impl Writeback {
    pub(crate) fn new(
        mut seed: WritebackSeed,
        backing: Box<dyn Channel>,
        barrier: Box<dyn Barrier>,
        now: Nanos,
    ) -> Self {
        Self {
            backing,
            barrier,
            state: State::Idle(now),
            window: Window::default(),
            ahead: Ahead::None,
            ahead_reader: seed.reader.clone(),
            data_bytes: DataBytes::default(),
            begun: seed.reader.mark(),
            damages: Vec::new(),
            outbox: Outbox::new(std::mem::take(&mut seed.posts)),
            lost: Vec::new(),
            in_flight: 0,
            pause_ns: 0,
            lag: Lag::default(),
            next_request: now,
            completions: Vec::new(),
            flush_all: FlushAll::default(),
            noted: 0,
            rate: Rate::new(now),
            room_rate: RoomRate::default(),
            seed,
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.seed.shared
    }

    pub(super) fn halt(&mut self, error: &CacheError) {
        self.seed.stats.errors.add(1);
        tracing::error!(cache = %self.shared().name, %error, "writeback has stopped");
        self.shared()
            .maintenance
            .degraded
            .store(true, Ordering::SeqCst);
        self.state = State::Halted;
        self.flush_all.give_up(&self.seed.shared);
    }

    /// With durable writes nobody flushes: the window that is gathered now ends an epoch.
    fn end_epoch(&self) {
        let shared = self.shared();
        if shared.options.durable_writes()
            && let Some(mut log) = shared.log.try_lock()
        {
            log.raise_epoch();
        }
    }

    fn start_window(&mut self, cx: &Cx) {
        let now = cx.now();
        let shared = self.shared().clone();
        let found = match self.take_ahead(now) {
            Some(spans) => Ok(Some(spans)),
            None => {
                self.end_epoch();
                self.gather(now)
            }
        };
        match found {
            Err(error) => self.ask_about_lost(&error),
            Ok(None) => self.state = State::Idle(now.after(PERIOD_NS)),
            Ok(Some(_)) if !self.damages.is_empty() => self.report_damages(),
            Ok(Some(true)) => {
                self.seed.stats.spanning_windows.add(1);
                shared
                    .maintenance
                    .between_boundaries
                    .store(true, Ordering::SeqCst);
                // An earlier run, or a window that was given up, may have left one that ends further on.
                self.seed.window_end = self.window.end.sequence.max(self.seed.window_end);
                let end = WindowEnd {
                    sequence: U64::new(self.seed.window_end),
                    spare: [0; 40],
                };
                let pair = &mut self.seed.window_pair;
                let stored = pair.store(&*shared.pmem, SlotKind::WindowEnd, &end);
                self.make_durable(cx, stored, State::Mark);
            }
            Ok(Some(false)) => self.begin_writes(),
        }
    }

    pub(super) fn begin_writes(&mut self) {
        self.state = State::Write {
            next: 0,
            failed: VecDeque::new(),
        };
    }

    /// Starts as many writes as depth and rate allow.
    fn feed(&mut self, cx: &Cx) -> u32 {
        let options = &self.seed.shared.options;
        let pressed = self.is_pressed() || self.shared().is_tail_wanted();
        // Paced while nobody waits, so that the foreground's tail latency stays as it is.
        let depth = if pressed {
            options.writeback_depth()
        } else if self.seed.shared.is_dirty_above(options.dirty_low_percent()) {
            options.writeback_depth().min(4)
        } else {
            1
        };
        let rate = u64::from(options.writeback_rate_mbps());
        let mut started = 0;
        while self.in_flight < depth {
            let State::Write { next, failed } = &mut self.state else {
                break;
            };
            if *next >= self.window.writes.len() || cx.now() < self.next_request {
                break;
            }
            let index = *next;
            let request = self.window.request(&self.seed.view, index);
            *next += 1;
            let request = match request {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(error) => {
                    // The rest of the window is not worth writing: it is collected anew.
                    failed.push_back(index);
                    *next = self.window.writes.len();
                    self.note_lost(&error);
                    break;
                }
            };
            // At `rate` MiB/s, near enough a byte a microsecond each; 0 is no limit.
            let ns = request
                .range
                .len()
                .saturating_mul(1000)
                .checked_div(rate)
                .unwrap_or(0);
            self.next_request = self.next_request.max(cx.now()).after(ns);
            self.in_flight += 1;
            started += 1;
            self.backing.submit(cx, request);
        }
        started
    }

    fn reap(&mut self, cx: &Cx) -> u32 {
        if self.in_flight == 0 {
            return 0;
        }
        let mut done = std::mem::take(&mut self.completions);
        self.backing.poll(cx, &mut done);
        let count = u32::try_from(done.len()).unwrap_or(u32::MAX);
        for Completion { tag, status, .. } in done.drain(..) {
            self.in_flight -= 1;
            self.completed(cx, tag, status);
        }
        self.completions = done;
        count
    }

    fn completed(&mut self, cx: &Cx, tag: u64, status: IoStatus) {
        if tag == FLUSH_TAG {
            self.backing_flushed(status);
            if status.is_ok() {
                self.seed.stats.flushes.add(1);
                self.store_tail(cx);
            } else {
                // Every write since the last good flush is issued again before the next.
                self.fail(cx, "flush", status);
            }
            return;
        }
        let index = usize::try_from(tag).unwrap_or(usize::MAX);
        if let Err(error) = self.window.check(&self.seed.view, index) {
            // Whatever the backing has got instead: BAD keys will hide it.
            self.note_lost(&error);
        } else if status.is_ok() {
            self.seed.stats.requests.add(1);
            self.seed.stats.bytes.add(self.window.bytes(index));
            return;
        }
        if let State::Write { failed, .. } = &mut self.state {
            failed.push_back(index);
        }
    }

    fn fail(&mut self, cx: &Cx, what: &str, status: IoStatus) {
        self.seed.stats.errors.add(1);
        self.room_rate.pause();
        self.pause_ns = (self.pause_ns * 2).clamp(BACK_OFF_NS.0, BACK_OFF_NS.1);
        let shared = self.shared();
        if !shared.maintenance.degraded.swap(true, Ordering::SeqCst) {
            tracing::warn!(cache = %shared.name, ?status, "{what} of the backing failed; retrying");
        }
        self.state = State::BackOff(cx.now().after(self.pause_ns));
    }

    /// All writes have ended: flush, or go back.
    fn writes_done(&mut self, cx: &Cx) {
        let State::Write { next, failed } = &self.state else {
            return;
        };
        if self.in_flight > 0 || *next < self.window.writes.len() {
            return;
        }
        if !failed.is_empty() {
            self.fail(cx, "write", IoStatus::IoError);
            return;
        }
        let must_flush =
            self.seed.backing_volatile && !fault::injected(Fault::DirtyTailBeforeFlush);
        if must_flush && !self.window.writes.is_empty() {
            self.state = State::Flush;
            self.seed.flush_note.begin(&self.seed.shared);
            self.in_flight += 1;
            let request = Request {
                tag: FLUSH_TAG,
                op: Op::Flush,
                range: ByteRange::default(),
                data: Data::None,
            };
            self.backing.submit(cx, request);
        } else {
            self.store_tail(cx);
        }
    }

    fn store_tail(&mut self, cx: &Cx) {
        self.pause_ns = 0;
        self.shared()
            .maintenance
            .degraded
            .store(false, Ordering::SeqCst);
        let body = tail_body(&self.seed.view, &self.window.end);
        let pmem = &*self.seed.shared.pmem;
        let stored = self.seed.tail_pair.store(pmem, SlotKind::DirtyTail, &body);
        self.make_durable(cx, stored, State::Tail);
    }

    /// The dirty tail is durable: publishes it.
    fn publish(&mut self, cx: &Cx) {
        let window = std::mem::take(&mut self.window);
        let stats = &self.seed.stats;
        stats.windows.add(1);
        stats.ksets.add(window.ksets);
        stats.merged.add(window.merged);
        stats.elided_bytes.add(window.elided_bytes);
        let shared = self.shared();
        shared
            .maintenance
            .dirty_passed
            .fetch_add(window.dirty_bytes, Ordering::SeqCst);
        let between = window.end.sequence < self.seed.window_end;
        shared
            .maintenance
            .between_boundaries
            .store(between, Ordering::SeqCst);
        shared.publish_dirty_tail(&window.end);
        if shared.is_tail_wanted() {
            shared.ring_lanes();
        }
        let lost_ahead = shared.maintenance.lost.is_ahead();
        if lost_ahead || shared.is_space_wanted() || super::gc::above_threshold(shared) {
            shared.kick_gc();
        }
        self.measure_room(cx.now(), window.dirty_bytes);
        self.state = State::Idle(cx.now());
        self.observe(cx.now());
    }

    fn step(&mut self, cx: &Cx) -> u32 {
        match self.state {
            State::Idle(until) => {
                let kicked = self
                    .shared()
                    .maintenance
                    .kick_writeback
                    .swap(false, Ordering::SeqCst);
                if !kicked && cx.now() < until && !self.is_pressed() {
                    return 0;
                }
                self.observe(cx.now());
                self.flush_all
                    .follow(&self.seed.shared, self.seed.reader.pos.sequence);
                if self.seed.reader.pos.sequence > self.limit(cx.now()) {
                    self.room_rate.pause();
                    self.note_durable(cx);
                    return 0;
                }
                self.start_window(cx);
                1
            }
            State::Bad(_) => self.follow_damages(),
            State::Lost => self.follow_lost(cx.now()),
            State::Mark(ticket) => {
                let done = self.barrier_done(cx, ticket);
                if done {
                    self.begin_writes();
                }
                u32::from(done)
            }
            State::Write { .. } => {
                let started = if self.shared().maintenance.stop.load(Ordering::SeqCst) {
                    0
                } else {
                    self.feed(cx)
                };
                self.writes_done(cx);
                started
            }
            State::BackOff(until) => {
                if cx.now() < until || self.in_flight > 0 {
                    return 0;
                }
                if self.is_window_lost() {
                    self.state = State::Idle(cx.now());
                } else {
                    self.begin_writes();
                }
                1
            }
            State::Tail(ticket) => {
                let done = self.barrier_done(cx, ticket);
                if done {
                    self.publish(cx);
                }
                u32::from(done)
            }
            State::Note(ticket) => {
                let done = self.barrier_done(cx, ticket);
                if done {
                    self.state = State::Idle(cx.now().after(PERIOD_NS));
                }
                u32::from(done)
            }
            State::Halted => {
                self.flush_all.give_up(&self.seed.shared);
                0
            }
            State::Flush | State::Rested => 0,
        }
    }

    fn round(&mut self, cx: &Cx) -> u32 {
        let reaped = self.reap(cx);
        if let Some(rate) = self
            .rate
            .measure(cx.now(), || self.seed.stats.snapshot().bytes)
        {
            self.seed
                .shared
                .maintenance
                .writeback_rate_bps
                .store(rate, Ordering::Relaxed);
        }
        self.note_flush_state(cx);
        if self.rest_if_asked(cx) {
            return reaped;
        }
        let mut handled = reaped;
        // What can be done at once is: other pollers of this reactor may take their time.
        for _ in 0..STEPS_AT_ONCE {
            let before = std::mem::discriminant(&self.state);
            handled += self.step(cx);
            if std::mem::discriminant(&self.state) == before {
                break;
            }
        }
        handled + self.go_ahead(cx.now())
    }
}

impl Poller for Writeback {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        self.show_activity(cx.now());
        let handled = self.round(cx);
        self.show_activity(cx.now());
        handled
    }

    fn wake(&self) -> Wake {
        let kicked = self
            .shared()
            .maintenance
            .kick_writeback
            .load(Ordering::SeqCst);
        let stop = self.shared().maintenance.stop.load(Ordering::SeqCst);
        let backing = if self.in_flight > 0 {
            self.backing.wake()
        } else {
            Wake::OnEvent
        };
        let noting = self.flush_note_wake();
        noting.sooner(match self.state {
            State::Rested => backing,
            _ if stop && self.in_flight == 0 => Wake::Now,
            _ if self.is_going_ahead() && !stop => Wake::Now,
            // A flush waits for lanes to close: look again soon; they ring nobody for it.
            State::Idle(until) => {
                let soon = self.shared().maintenance.flush_all.load(Ordering::SeqCst);
                if kicked {
                    Wake::Now
                } else if soon {
                    Wake::At(Nanos(0))
                } else {
                    Wake::At(until)
                }
            }
            State::Mark(_) | State::Tail(_) | State::Note(_) => self.barrier.wake(),
            State::Write { next, .. } => {
                if next < self.window.writes.len() && self.in_flight == 0 {
                    Wake::At(self.next_request)
                } else {
                    backing
                }
            }
            State::BackOff(until) => Wake::At(until).sooner(backing),
            State::Bad(_) if !self.outbox.is_empty() => Wake::Now,
            // GC had the answer in its hands.
            State::Lost if !self.shared().maintenance.lost.is_wanted() => Wake::Now,
            State::Bad(_) | State::Lost => Wake::OnEvent,
            State::Flush | State::Halted => backing,
        })
    }
}
