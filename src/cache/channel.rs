//! A cache as a bdev: cuts requests at subtree borders, hands each part to its lane, here or on
//! another reactor, and carries FLUSH from lane to lane.

use super::fault::{self, Fault};
use super::group::{Client, GroupCell, LocalDone};
use super::key_index::SUBTREE_BYTES;
use super::lane::{LaneDone, LaneOp, LaneRequest};
use super::latency::{Stamp, Timed};
use super::options::SeqCutoff;
use super::shared::Shared;
use super::streams::Streams;
use crate::bdev::{
    BdevError, BdevInfo, Channel, Completion, Data, Extent, IoBuf, IoStatus, Op, Request,
};
use crate::units::ByteRange;
use reactors::ring::{Consumer, Producer, spsc};
use reactors::{Cx, Nanos, Wake};
use slab::Slab;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Places in the ring between a channel and a group on another reactor.
const RING: usize = 256;
/// Part number of a FLUSH visit, among the parts of a request.
const PART_BITS: u32 = 32;

/// The way to the lanes of one reactor.
#[derive(Debug)]
enum Route {
    Local {
        group: Rc<GroupCell>,
        client: usize,
        done: LocalDone,
    },
    Remote {
        requests: Producer<LaneRequest>,
        done: Consumer<LaneDone>,
        /// What the ring did not take yet.
        parked: VecDeque<LaneRequest>,
        reactor: reactors::ReactorHandle,
    },
}

/// How far a FLUSH has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushStep {
    /// Lanes are being visited.
    Visits,
    /// The last answer is in: note the highest sequence, raise the epoch.
    Raise,
    /// Wait until the log is durable up to here.
    Durable(u64),
    /// The backing is being flushed.
    Backing,
}

/// A request whose parts are under way.
#[derive(Debug)]
struct Pending {
    tag: u64,
    parts_left: usize,
    status: IoStatus,
    /// Payload of the parts, in order; empty if there is one part only, which needs no joining.
    bufs: Vec<Option<IoBuf>>,
    extents: Vec<Vec<Extent>>,
    wants_extents: bool,
    flush: Option<FlushStep>,
    submitted: Nanos,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CacheChannel {
    shared: Arc<Shared>,
    info: Arc<BdevInfo>,
    /// Place of our reactor among the data reactors.
    reactor: usize,
    routes: Vec<Option<Route>>,
    pending: Slab<Pending>,
    flushes: Vec<usize>,
    /// Once long streams are cut off.
    streams: Option<Box<Streams>>,
    done: VecDeque<Completion>,
    arrived: VecDeque<LaneDone>,
}

impl CacheChannel {
    pub(crate) fn open(
        shared: Arc<Shared>,
        info: Arc<BdevInfo>,
        cx: &Cx,
    ) -> Result<Self, BdevError> {
        let key = shared.instance;
        let mut routes = Vec::new();
        let ours = |handle: &reactors::ReactorHandle| handle.id() == cx.id();
        let reactor = shared
            .runtime
            .data
            .iter()
            .position(ours)
            .unwrap_or(usize::MAX);
        for (number, handle) in shared.runtime.data.iter().enumerate() {
            if number >= shared.lanes as usize {
                routes.push(None);
                continue;
            }
            if handle.id() == cx.id() {
                let Some(group) = cx.local::<GroupCell>(key) else {
                    return Err(BdevError::Busy(format!(
                        "{} (it is not running)",
                        info.name
                    )));
                };
                let done = LocalDone::default();
                let client = group.0.borrow_mut().attach(Client::Local(Rc::clone(&done)));
                routes.push(Some(Route::Local {
                    group,
                    client,
                    done,
                }));
                continue;
            }
            routes.push(Some(Self::open_remote(&shared, handle, cx, key)?));
        }
        Ok(Self {
            shared,
            info,
            reactor,
            routes,
            pending: Slab::new(),
            flushes: Vec::new(),
            streams: None,
            done: VecDeque::new(),
            arrived: VecDeque::new(),
        })
    }

    fn open_remote(
        shared: &Shared,
        handle: &reactors::ReactorHandle,
        cx: &Cx,
        key: u64,
    ) -> Result<Route, BdevError> {
        let (requests, their_requests) = spsc(RING);
        let (their_done, done) = spsc(RING);
        let us = cx.handle();
        let attach = move |cx: &Cx| {
            if let Some(group) = cx.local::<GroupCell>(key) {
                group.0.borrow_mut().attach(Client::Remote {
                    requests: their_requests,
                    done: their_done,
                    parked: VecDeque::new(),
                    reactor: us,
                });
            }
        };
        if handle.send(Box::new(attach)).is_err() {
            return Err(BdevError::Busy(format!(
                "{} (its reactor's inbox is full)",
                shared.name
            )));
        }
        Ok(Route::Remote {
            requests,
            done,
            parked: VecDeque::new(),
            reactor: handle.clone(),
        })
    }

    fn send(&mut self, cx: &Cx, reactor: usize, request: LaneRequest) {
        match self.routes.get_mut(reactor) {
            Some(Some(Route::Local { group, client, .. })) => {
                group.0.borrow_mut().submit(cx, *client, request);
            }
            Some(Some(Route::Remote {
                requests,
                parked,
                reactor,
                ..
            })) => {
                if parked.is_empty() {
                    if let Err(request) = requests.push(request) {
                        parked.push_back(request);
                    }
                } else {
                    parked.push_back(request);
                }
                reactor.ring();
            }
            _ => {
                let LaneRequest {
                    tag,
                    submitted,
                    data,
                    ..
                } = request;
                self.arrived.push_back(LaneDone {
                    tag,
                    stamp: Stamp::new(Timed::Other, submitted, submitted),
                    status: IoStatus::Invalid,
                    data,
                });
            }
        }
    }

    fn submit_parts(&mut self, cx: &Cx, op: LaneOp, cut: bool, request: Request) {
        let Request {
            tag, range, data, ..
        } = request;
        let mut buf = match data {
            Data::Gather(views) => Some(gathered(&views)),
            other => other.into_buf(),
        };
        let first_tree = range.start() / SUBTREE_BYTES;
        let last_tree = (range.end() - 1) / SUBTREE_BYTES;
        let parts = usize::try_from(last_tree - first_tree + 1).unwrap_or(usize::MAX);
        let slot = self.pending.insert(Pending {
            tag,
            parts_left: parts,
            status: IoStatus::Ok,
            bufs: if parts > 1 {
                (0..parts).map(|_| None).collect()
            } else {
                Vec::new()
            },
            extents: Vec::new(),
            wants_extents: op == LaneOp::Extents,
            flush: None,
            submitted: cx.now(),
        });
        let mut at = range.start();
        for part in 0..parts {
            let end = range.end().min((at / SUBTREE_BYTES + 1) * SUBTREE_BYTES);
            let part_range = ByteRange::between(at, end);
            let mut part_buf = buf.take();
            if let Some(front) = &mut part_buf
                && part + 1 < parts
            {
                buf = Some(front.split_off(usize::try_from(part_range.len()).unwrap_or(0)));
            }
            let data = part_buf.map_or(Data::None, Data::Buf);
            let tag = (slot as u64) << PART_BITS | part as u64;
            let lane = self.shared.lane_of(at);
            let reactor = self.shared.reactor_of(lane);
            self.send(
                cx,
                reactor,
                LaneRequest {
                    submitted: cx.now(),
                    tag,
                    op,
                    cut,
                    range: part_range,
                    data,
                },
            );
            at = end;
        }
    }

    /// FLUSH: visits the lanes that have keys without a sequence.
    fn submit_flush(&mut self, cx: &Cx, request: &Request) {
        let slot = self.pending.insert(Pending {
            tag: request.tag,
            parts_left: 0,
            status: IoStatus::Ok,
            bufs: Vec::new(),
            extents: Vec::new(),
            wants_extents: false,
            flush: Some(FlushStep::Visits),
            submitted: cx.now(),
        });
        self.flushes.push(slot);
        self.shared.durable_waiters.fetch_add(1, Ordering::SeqCst);
        if fault::injected(Fault::EpochRaisedEarly)
            && let Some(mut log) = self.shared.log.try_lock()
        {
            log.raise_epoch();
        }
        for reactor in 0..self.routes.len() {
            let words = &self.shared.unplaced[reactor];
            if words.iter().all(|word| word.load(Ordering::Acquire) == 0) {
                continue;
            }
            if let Some(pending) = self.pending.get_mut(slot) {
                pending.parts_left += 1;
            }
            let visit = LaneRequest {
                submitted: cx.now(),
                tag: (slot as u64) << PART_BITS,
                op: LaneOp::Visit,
                cut: false,
                range: ByteRange::default(),
                data: Data::None,
            };
            self.send(cx, reactor, visit);
        }
    }

    fn advance_flushes(&mut self, cx: &Cx) {
        let mut still = std::mem::take(&mut self.flushes);
        let mut owed = Vec::new();
        still.retain(|&slot| {
            let Some(pending) = self.pending.get_mut(slot) else {
                return false;
            };
            let failed = self.shared.has_failed();
            if pending.flush == Some(FlushStep::Visits) && pending.parts_left == 0 {
                pending.flush = Some(FlushStep::Raise);
            }
            if pending.flush == Some(FlushStep::Raise)
                && let Some(mut log) = self.shared.log.try_lock()
            {
                pending.flush = Some(FlushStep::Durable(log.last_sequence()));
                if !fault::injected(Fault::EpochRaisedEarly) {
                    log.raise_epoch();
                }
            }
            if let Some(FlushStep::Durable(sequence)) = pending.flush
                && self.shared.durable.mark() >= sequence
            {
                pending.flush = Some(FlushStep::Backing);
                if self.shared.bypassed.has_failed() {
                    pending.status = IoStatus::IoError;
                } else if self.shared.bypassed.owes_flush()
                    && !fault::injected(Fault::FlushSkipsBacking)
                {
                    pending.parts_left = 1;
                    owed.push(slot);
                }
            }
            let ended = pending.flush == Some(FlushStep::Backing) && pending.parts_left == 0;
            let given_up = failed && pending.parts_left == 0;
            if !ended && !given_up {
                return true;
            }
            let status = if failed {
                IoStatus::IoError
            } else {
                pending.status
            };
            let begun = pending.submitted;
            let stamp = Stamp::new(Timed::Flush, begun, begun);
            self.shared.request_ended(self.reactor, &stamp, cx.now());
            let (tag, data) = (pending.tag, Data::None);
            self.pending.remove(slot);
            self.shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
            self.done.push_back(Completion { tag, status, data });
            false
        });
        self.flushes = still;
        for slot in owed {
            let flush = LaneRequest {
                submitted: cx.now(),
                tag: (slot as u64) << PART_BITS,
                op: LaneOp::FlushBacking,
                cut: false,
                range: ByteRange::default(),
                data: Data::None,
            };
            self.send(cx, 0, flush);
        }
    }

    /// Whether a request belongs to a stream that is cut off.
    fn is_cut_off(&mut self, op: LaneOp, range: ByteRange) -> bool {
        let shared = &self.shared;
        let cutoff = shared.options.policy().cutoff();
        let is_write = match op {
            _ if cutoff == SeqCutoff::Never => return false,
            LaneOp::Read => false,
            LaneOp::Write { .. } => true,
            _ => return false,
        };
        let streams = self.streams.get_or_insert_default();
        let bytes = streams.follow(range, is_write);
        bytes >= shared.options.seq_cutoff_bytes()
            && (cutoff == SeqCutoff::Always || super::gc::above_threshold(shared))
    }

    fn part_done(&mut self, done: LaneDone) {
        let slot = usize::try_from(done.tag >> PART_BITS).unwrap_or(usize::MAX);
        let part = usize::try_from(done.tag & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let Some(pending) = self.pending.get_mut(slot) else {
            return;
        };
        pending.status = pending.status.and(done.status);
        pending.parts_left -= 1;
        if pending.flush.is_some() {
            return;
        }
        if pending.bufs.is_empty() {
            let Pending { tag, status, .. } = self.pending.remove(slot);
            self.done.push_back(Completion {
                tag,
                status,
                data: done.data,
            });
            return;
        }
        match done.data {
            Data::Buf(buf) => {
                if let Some(place) = pending.bufs.get_mut(part) {
                    *place = Some(buf);
                }
            }
            Data::Extents(extents) => {
                if pending.extents.len() <= part {
                    pending.extents.resize_with(part + 1, Vec::new);
                }
                pending.extents[part] = extents;
            }
            _ => {}
        }
        if pending.parts_left > 0 {
            return;
        }
        let pending = self.pending.remove(slot);
        let mut bufs = pending.bufs.into_iter().flatten();
        let data = if pending.wants_extents {
            Data::Extents(pending.extents.into_iter().flatten().collect())
        } else {
            match bufs.next() {
                None => Data::None,
                Some(mut whole) => {
                    for rest in bufs {
                        let joined = whole.join(rest);
                        debug_assert!(joined.is_ok(), "parts of one buffer join in order");
                    }
                    Data::Buf(whole)
                }
            }
        };
        self.done.push_back(Completion {
            tag: pending.tag,
            status: pending.status,
            data,
        });
    }

    /// Takes what has come back from the lanes.
    fn collect(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        for route in self.routes.iter_mut().flatten() {
            match route {
                Route::Local { done, .. } => arrived.append(&mut done.borrow_mut()),
                Route::Remote {
                    requests,
                    done,
                    parked,
                    reactor,
                } => {
                    while let Some(request) = parked.pop_front() {
                        if let Err(request) = requests.push(request) {
                            parked.push_front(request);
                            break;
                        }
                        reactor.ring();
                    }
                    while let Some(done) = done.pop() {
                        arrived.push_back(done);
                    }
                }
            }
        }
        while let Some(done) = arrived.pop_front() {
            self.part_done(done);
        }
        self.arrived = arrived;
    }
}

fn gathered(views: &[crate::bdev::MemView]) -> IoBuf {
    let len = views.iter().map(|view| view.len()).sum();
    let mut buf = IoBuf::zeroed(len);
    let mut at = 0;
    for view in views {
        buf[at..at + view.len()].copy_from_slice(view);
        at += view.len();
    }
    buf
}

impl Channel for CacheChannel {
    fn submit(&mut self, cx: &Cx, request: Request) {
        if let Err(status) = self.info.admit(&request) {
            self.done.push_back(request.complete(status));
            return;
        }
        let op = match request.op {
            Op::Flush => {
                self.submit_flush(cx, &request);
                return;
            }
            Op::Read => LaneOp::Read,
            Op::Write { fua } => LaneOp::Write { fua },
            Op::Discard => LaneOp::Zero {
                unmap: true,
                fua: false,
            },
            Op::WriteZeroes { may_unmap, fua } => LaneOp::Zero {
                unmap: may_unmap,
                fua,
            },
            Op::Prefetch => LaneOp::Prefetch,
            Op::Extents => LaneOp::Extents,
        };
        if request.range.is_empty() {
            self.done.push_back(request.complete(IoStatus::Ok));
            return;
        }
        let cut = self.is_cut_off(op, request.range);
        self.submit_parts(cx, op, cut, request);
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        self.collect();
        if !self.flushes.is_empty() {
            self.advance_flushes(cx);
        }
        let count = u32::try_from(self.done.len()).unwrap_or(u32::MAX);
        done.extend(self.done.drain(..));
        count
    }

    fn wake(&self) -> Wake {
        let raising = self.flushes.iter().any(|&slot| {
            self.pending.get(slot).is_some_and(|p| match p.flush {
                Some(FlushStep::Visits | FlushStep::Backing) => p.parts_left == 0,
                Some(FlushStep::Durable(sequence)) => self.shared.durable.mark() >= sequence,
                _ => true,
            })
        });
        let arrived = self.routes.iter().flatten().any(|route| match route {
            Route::Local { done, .. } => !done.borrow().is_empty(),
            Route::Remote { done, parked, .. } => !done.is_empty() || !parked.is_empty(),
        });
        if raising || arrived || !self.done.is_empty() || !self.arrived.is_empty() {
            Wake::Now
        } else {
            Wake::OnEvent
        }
    }

    fn cancel(&mut self, cx: &Cx) {
        for reactor in 0..self.routes.len() {
            if self.routes[reactor].is_some() {
                let cancel = LaneRequest {
                    submitted: cx.now(),
                    tag: u64::MAX,
                    op: LaneOp::Cancel,
                    cut: false,
                    range: ByteRange::default(),
                    data: Data::None,
                };
                self.send(cx, reactor, cancel);
            }
        }
    }
}

impl Drop for CacheChannel {
    fn drop(&mut self) {
        for _ in &self.flushes {
            self.shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
        }
        for route in self.routes.iter().flatten() {
            match route {
                Route::Local { group, client, .. } => {
                    if let Ok(mut group) = group.0.try_borrow_mut() {
                        group.detach(*client);
                    }
                }
                // The group sees that the ring is orphaned.
                Route::Remote { reactor, .. } => reactor.ring(),
            }
        }
    }
}
