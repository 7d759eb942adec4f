//! The lanes of one cache on one reactor, with what they share there: the backing channel, the
//! barrier, and the clients.

use super::backing_flush::BackingFlush;
use super::bad::{Inbox, PostBatch};
use super::close::{Cause, PRESSED_NS};
use super::fault::{self, Fault};
use super::lane::{Lane, LaneDone, LaneOp, LaneRequest, LaneSeed};
use super::latency::{Stamp, Timed};
use super::pace::Pace;
use super::pool::Pool;
use super::shared::Shared;
use crate::bdev::{
    Barrier, BarrierTicket, BdevError, BufPool, Channel, Completion, IoStatus, Request,
};
use crate::media::KSET_BYTES_MAX;
use reactors::ring::{Consumer, Producer};
use reactors::{Cx, Nanos, Poller, ReactorHandle, Wake};
use slab::Slab;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Set in the tag of a write past the cache, above all slots.
const BYPASS_TAG: u64 = 1 << 47;

/// Where the ends of a local client's requests go.
pub(crate) type LocalDone = Rc<RefCell<VecDeque<LaneDone>>>;

/// A client of the group.
#[derive(Debug)]
pub(crate) enum Client {
    /// It has gone with requests under way, whose replies nobody else may get.
    Gone,
    /// A channel on the same reactor.
    Local(LocalDone),
    /// A channel on another reactor.
    Remote {
        requests: Consumer<LaneRequest>,
        done: Producer<LaneDone>,
        /// What the ring did not take yet.
        parked: VecDeque<LaneDone>,
        reactor: ReactorHandle,
    },
}

/// What the lanes of a group share.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) shared: Arc<Shared>,
    backing: Box<dyn Channel>,
    /// Backing requests under way.
    backing_pending: usize,
    /// Writes among them.
    pub(super) bypass_writes: u32,
    barrier: Box<dyn Barrier>,
    /// Highest barrier that is done.
    pub(crate) barrier_done: BarrierTicket,
    barrier_submitted: BarrierTicket,
    pub(crate) pool: BufPool,
    /// Where ksets are made ready to be stored.
    pub(crate) kset_bytes: Box<[u8; KSET_BYTES_MAX]>,
    pub(crate) now: Nanos,
    clients: Slab<Client>,
    /// Something was parked that no doorbell announces: the reactor must not sleep.
    pub(crate) retry: bool,
    /// A FUA's kset had its place already: the epoch is still to be raised.
    pub(crate) raise_wanted: bool,
    pub(crate) pace: Pace,
    /// Lanes that no longer wait for a segment.
    pub(crate) leave_queue: Vec<u16>,
    /// Place of this reactor among the data reactors.
    reactor: usize,
    /// All clients are gone and the cache stops: nothing new is cached.
    pub(crate) stopping: bool,
}

impl Env {
    /// Ends a request of `client`; one that is gone gets nothing.
    pub(crate) fn reply(&mut self, client: usize, done: LaneDone) {
        self.shared
            .request_ended(self.reactor, &done.stamp, self.now);
        match self.clients.get_mut(client) {
            Some(Client::Local(queue)) => queue.borrow_mut().push_back(done),
            Some(Client::Remote {
                done: ring,
                parked,
                reactor,
                ..
            }) => {
                if parked.is_empty() {
                    if let Err(done) = ring.push(done) {
                        parked.push_back(done);
                        self.retry = true;
                    }
                } else {
                    parked.push_back(done);
                    self.retry = true;
                }
                reactor.ring();
            }
            Some(Client::Gone) | None => {}
        }
    }

    /// A read of the backing that was begun at `begun` has ended.
    pub(crate) fn time_backing_read(&self, begun: Nanos) {
        self.shared.latency[self.reactor].backing_read(begun, self.now);
    }

    pub(crate) fn submit_barrier(&mut self, cx: &Cx) -> BarrierTicket {
        let ticket = self.barrier.submit(cx);
        self.barrier_submitted = ticket;
        self.poll_barrier(cx);
        ticket
    }

    fn poll_barrier(&mut self, cx: &Cx) {
        if self.barrier_done >= self.barrier_submitted {
            return;
        }
        match self.barrier.poll(cx) {
            Ok(done) => self.barrier_done = done,
            Err(_) if fault::injected(Fault::FailedBarrierRetried) => {
                self.barrier_done = self.barrier_submitted;
            }
            Err(error) => self.shared.fail(&error),
        }
    }

    /// Raises the epoch if a FUA asked for it; false if it could not be done now.
    pub(crate) fn raise_if_wanted(&mut self) -> bool {
        if !self.raise_wanted {
            return true;
        }
        match self.shared.log.try_lock() {
            Some(mut log) => {
                log.raise_epoch();
                self.raise_wanted = false;
                true
            }
            None => {
                self.retry = true;
                false
            }
        }
    }

    /// Says for FLUSH whether `lane` has keys without a sequence.
    pub(crate) fn mark_unplaced(&self, lane: u16, has: bool) {
        let words = &self.shared.unplaced[self.reactor];
        let word = &words[usize::from(lane / 64)];
        let bit = 1_u64 << (lane % 64);
        let old = word.load(Ordering::Relaxed);
        let new = if has { old | bit } else { old & !bit };
        if new != old {
            word.store(new, Ordering::Release);
        }
    }

    /// The tag under which a lane's miss comes back.
    pub(crate) fn backing_tag(&self, lane: u16, slot: usize) -> u64 {
        u64::from(lane) << 48 | slot as u64
    }

    /// The tag under which a lane's write past the cache comes back; counts it.
    pub(crate) fn bypass_tag(&mut self, lane: u16, slot: usize) -> u64 {
        self.bypass_writes += 1;
        self.backing_tag(lane, slot) | BYPASS_TAG
    }

    /// Lane, slot, and whether it is a write past the cache.
    pub(super) fn told_by(tag: u64) -> (usize, usize, bool) {
        let lane = usize::try_from(tag >> 48).unwrap_or(usize::MAX);
        let slot = usize::try_from(tag & (BYPASS_TAG - 1)).unwrap_or(usize::MAX);
        (lane, slot, tag & BYPASS_TAG != 0)
    }

    pub(crate) fn submit_backing(&mut self, cx: &Cx, request: Request) {
        self.backing_pending += 1;
        self.backing.submit(cx, request);
    }

    pub(super) fn has_backing_pending(&self) -> bool {
        self.backing_pending > 0
    }

    pub(super) fn cancel_backing(&mut self, cx: &Cx) {
        self.backing.cancel(cx);
    }

    pub(super) fn poll_backing(&mut self, cx: &Cx, done: &mut Vec<Completion>) {
        self.backing.poll(cx, done);
        self.backing_pending -= done.len();
    }

    /// Place of its reactor among the data reactors.
    pub(super) fn reactor(&self) -> usize {
        self.reactor
    }
}

/// Who wants to know when keys have a sequence.
#[derive(Debug)]
enum Visitor {
    /// A client's FLUSH.
    Client { client: usize, tag: u64 },
    /// All that raised [`Shared::close_all`] to this.
    Everybody(u64),
}

/// A visit that waits until the lanes' keys have a sequence.
#[derive(Debug)]
struct Visit {
    visitor: Visitor,
    /// Lane (local index) and the kset that must have its place.
    targets: Vec<(usize, u64)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) env: Env,
    pub(super) lanes: Vec<Lane>,
    visits: Vec<Visit>,
    /// From GC and from writeback.
    pub(super) inboxes: Vec<Inbox>,
    /// Segments with media errors that the lanes know of.
    seen_suspects: u32,
    pub(super) completions: Vec<Completion>,
    /// The remote client to be served first.
    next_client: usize,
    seen_close_all: u64,
    /// Clients that are gone and have requests under way.
    gone: Vec<usize>,
    /// It has said that it is at rest.
    pub(super) rested: bool,
    pub(super) flush: BackingFlush,
    /// It goes when its last write to the backing has ended.
    pub(super) leaving: Option<Arc<Pool>>,
}

/// What a group needs to start on its reactor; made by the control thread.
#[derive(Debug)]
pub(crate) struct GroupSeed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reactor: usize,
    pub(crate) lanes: Vec<LaneSeed>,
    pub(crate) backing: Arc<dyn crate::bdev::Bdev>,
    /// From GC and from writeback.
    pub(crate) posts: [Consumer<PostBatch>; 2],
}

/// A group as its reactor's poller and local channels share it.
#[derive(Debug)]
pub(crate) struct GroupCell(pub(crate) RefCell<Group>);

struct GroupPoller(Rc<GroupCell>);

impl Group {
    /// Starts the group on the reactor of `cx`.
    pub(crate) fn install(seed: GroupSeed, cx: &Cx) -> Result<(), BdevError> {
        let shared = seed.shared;
        let env = Env {
            backing: seed.backing.open(cx)?,
            backing_pending: 0,
            bypass_writes: 0,
            barrier: shared.pmem.open_barrier(cx)?,
            barrier_done: BarrierTicket(0),
            barrier_submitted: BarrierTicket(0),
            pool: BufPool::default(),
            kset_bytes: Box::new([0; KSET_BYTES_MAX]),
            now: cx.now(),
            clients: Slab::new(),
            retry: false,
            raise_wanted: false,
            pace: Pace::default(),
            leave_queue: Vec::new(),
            reactor: seed.reactor,
            stopping: false,
            shared: shared.clone(),
        };
        let last = shared.last_sequence.load(Ordering::SeqCst);
        let lanes = seed.lanes.into_iter();
        let lanes = lanes.map(|seed| Lane::new(seed, last)).collect();
        let group = Self {
            env,
            lanes,
            visits: Vec::new(),
            inboxes: seed.posts.into_iter().map(Inbox::new).collect(),
            seen_suspects: 0,
            completions: Vec::new(),
            next_client: 0,
            seen_close_all: 0,
            gone: Vec::new(),
            rested: false,
            flush: BackingFlush::default(),
            leaving: None,
        };
        let cell = Rc::new(GroupCell(RefCell::new(group)));
        cx.set_local(shared.instance, Rc::clone(&cell));
        let id = cx.add_poller("pmcache_lanes", Box::new(GroupPoller(cell)));
        cx.set_local(shared.instance, Rc::new(id));
        Ok(())
    }

    pub(crate) fn attach(&mut self, client: Client) -> usize {
        self.env.clients.insert(client)
    }

    /// A client goes. What waits for it is given up; its number is used again only when nothing of it
    /// is under way any more.
    pub(crate) fn detach(&mut self, client: usize) {
        if let Some(place) = self.env.clients.get_mut(client) {
            *place = Client::Gone;
        }
        for lane in &mut self.lanes {
            lane.cancel(&mut self.env, Some(client));
        }
        self.leave_queues();
        self.gone.push(client);
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        let (lanes, visits, env) = (&self.lanes, &self.visits, &mut self.env);
        let flush = &self.flush;
        self.gone.retain(|&number| {
            let visits = visits
                .iter()
                .any(|v| matches!(v.visitor, Visitor::Client { client, .. } if client == number));
            let in_use =
                visits || flush.serves(number) || lanes.iter().any(|lane| lane.serves(number));
            if !in_use {
                env.clients.try_remove(number);
            }
            in_use
        });
    }

    pub(super) fn lane_index(&self, offset: u64) -> usize {
        let lane = self.env.shared.lane_of(offset) as usize;
        lane / self.env.shared.runtime.data.len()
    }

    /// Starts a request of `client`.
    pub(crate) fn submit(&mut self, cx: &Cx, client: usize, request: LaneRequest) {
        // The client's poller may run before ours in the round after a sleep.
        self.env.now = cx.now();
        match request.op {
            LaneOp::Visit => {
                let tag = request.tag;
                self.visit(cx, Visitor::Client { client, tag }, Cause::Flush);
            }
            LaneOp::FlushBacking => self.flush_backing_for(cx, client, request.tag),
            LaneOp::Cancel => {
                for lane in &mut self.lanes {
                    lane.cancel(&mut self.env, Some(client));
                }
                self.leave_queues();
            }
            _ => {
                let lane = self.lane_index(request.range.start());
                if let Some(lane) = self.lanes.get_mut(lane) {
                    lane.submit(&mut self.env, cx, client, request);
                }
            }
        }
    }

    /// Closes what is open, and answers once all of it has a sequence.
    fn visit(&mut self, cx: &Cx, visitor: Visitor, cause: Cause) {
        let mut targets = Vec::new();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let Some(order) = lane.newest_unplaced() else {
                continue;
            };
            if fault::injected(Fault::FlushSkipsClosing) && !lane.has_open() {
                continue;
            }
            if cause == Cause::Flush {
                lane.stats(&self.env.shared).flushes.add(1);
            }
            lane.close(&mut self.env, cx, cause);
            targets.push((index, order));
        }
        self.visits.push(Visit { visitor, targets });
        self.answer_visits();
    }

    fn answer_visits(&mut self) {
        let failed = self.env.shared.has_failed();
        let lanes = &self.lanes;
        let env = &mut self.env;
        self.visits.retain(|visit| {
            let placed = visit
                .targets
                .iter()
                .all(|&(lane, order)| lanes.get(lane).is_none_or(|l| l.placed_order >= order));
            if !placed && !failed {
                return true;
            }
            let status = if failed {
                IoStatus::IoError
            } else {
                IoStatus::Ok
            };
            match visit.visitor {
                Visitor::Client { client, tag } => {
                    let stamp = Stamp::new(Timed::Other, env.now, env.now);
                    let data = crate::bdev::Data::None;
                    let done = LaneDone {
                        tag,
                        stamp,
                        status,
                        data,
                    };
                    env.reply(client, done);
                }
                Visitor::Everybody(number) => {
                    let shared = &env.shared;
                    // In the order in which they came: each covers those before it.
                    shared.placed_all[env.reactor].fetch_max(number, Ordering::SeqCst);
                    if shared.maintenance.flush_all.load(Ordering::SeqCst) {
                        shared.kick_writeback();
                    }
                }
            }
            false
        });
    }

    fn drain_clients(&mut self, cx: &Cx, budget: u32) -> u32 {
        let mut handled = 0;
        let mut gone = None;
        let places = self.env.clients.capacity();
        // The next round begins behind the client that was served last: nobody is starved.
        let begin = self.next_client;
        'clients: for number in (0..places).map(|step| (begin + step) % places) {
            while let Some(Client::Remote {
                requests,
                done,
                parked,
                reactor,
            }) = self.env.clients.get_mut(number)
            {
                while let Some(reply) = parked.pop_front() {
                    if let Err(reply) = done.push(reply) {
                        parked.push_front(reply);
                        self.env.retry = true;
                        break;
                    }
                    reactor.ring();
                }
                if handled >= budget {
                    self.env.retry = true;
                    break 'clients;
                }
                let Some(request) = requests.pop() else {
                    if requests.is_orphaned() && requests.is_empty() {
                        gone = Some(number);
                    }
                    break;
                };
                handled += 1;
                self.next_client = number + 1;
                self.submit(cx, number, request);
            }
        }
        if let Some(number) = gone {
            self.detach(number);
        }
        handled
    }

    /// Lanes that fill a segment with media errors go on in another one.
    fn leave_suspects(&mut self) {
        let shared = &self.env.shared;
        let count = shared.suspect_count.load(Ordering::Relaxed);
        if count == self.seen_suspects {
            return;
        }
        self.seen_suspects = count;
        for lane in &mut self.lanes {
            lane.leave_suspect(shared);
        }
    }

    pub(super) fn leave_queues(&mut self) {
        if self.env.leave_queue.is_empty() {
            return;
        }
        let Some(mut alloc) = self.env.shared.alloc.try_lock() else {
            self.env.retry = true;
            return;
        };
        for number in self.env.leave_queue.drain(..) {
            let index = usize::from(number) / self.env.shared.runtime.data.len();
            // A lane that has begun to wait again keeps its turn.
            if self
                .lanes
                .get(index)
                .is_none_or(|lane| !lane.waits_for_space())
            {
                alloc.stop_waiting(number);
            }
        }
        drop(alloc);
        // Their turn has come to somebody who may have looked already and gone to sleep.
        self.env.shared.ring_waiting_lanes();
    }

    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        self.env.now = cx.now();
        if self.leaving.is_some() {
            return self.poll_backing(cx) + u32::from(self.is_leaving(cx));
        }
        self.env.retry = false;
        self.env.pace.look(&self.env.shared, cx.now());
        self.env.poll_barrier(cx);
        let mut handled = self.apply_posts(cx);
        self.leave_suspects();
        handled += self.poll_backing(cx);
        handled += self.drain_clients(cx, budget);
        let close_all = self.env.shared.close_all.load(Ordering::Acquire);
        if close_all != self.seen_close_all {
            self.seen_close_all = close_all;
            self.visit(cx, Visitor::Everybody(close_all), Cause::Pressure);
        }
        for lane in &mut self.lanes {
            lane.close_if_due(&mut self.env, cx);
            if !lane.closing.is_empty() || !lane.placed.is_empty() || !lane.acks.is_empty() {
                lane.pump(&mut self.env, cx);
            }
            if !lane.spoiled.is_empty() {
                lane.replace_spoiled(&mut self.env, cx);
            }
            if !lane.bypass.is_idle() {
                lane.drive_bypasses(&mut self.env, cx);
            }
            lane.serve_waiting(&mut self.env, cx);
        }
        self.flush_for_fills(cx);
        self.answer_posts(cx);
        if self.env.raise_wanted {
            self.env.raise_if_wanted();
        }
        self.leave_queues();
        if !self.visits.is_empty() {
            self.answer_visits();
        }
        if !self.gone.is_empty() {
            self.forget_gone();
        }
        handled
    }

    fn wake(&self) -> Wake {
        let mut wake = Wake::OnEvent;
        if self.env.retry {
            return Wake::Now;
        }
        if self.env.backing_pending > 0 {
            wake = wake.sooner(self.env.backing.wake());
        }
        if self.env.barrier_done < self.env.barrier_submitted && !self.env.shared.has_failed() {
            wake = wake.sooner(self.env.barrier.wake());
        }
        wake = wake.sooner(self.flush_wake());
        let mut limit = self.env.shared.options.kset_flush_ns();
        if self.env.shared.waiting_lanes.load(Ordering::SeqCst) > 0 {
            limit = limit.min(PRESSED_NS);
        }
        let timeout = self.env.shared.options.no_space_timeout_ns();
        for lane in &self.lanes {
            if let Some(open) = lane.open.as_ref().filter(|open| open.count > 0) {
                wake = wake.sooner(Wake::At(open.opened.after(limit)));
            }
            wake = wake.sooner(lane.wake_waiting(timeout));
        }
        wake
    }
}

impl Poller for GroupPoller {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        self.0.0.borrow_mut().poll(cx, budget)
    }

    fn wake(&self) -> Wake {
        self.0.0.borrow().wake()
    }
}
