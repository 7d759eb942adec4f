//! One virtqueue on its reactor: a poller that takes requests and answers them.

use super::calls::{CallPace, SharedCoalescing};
use super::chain::Chain;
use super::eventfd;
use super::guest_mem::{GuestMemory, MemoryFault, Window};
use super::inflight::{InflightFault, InflightQueue};
use super::queue_handle::{Order, QueueShared};
use super::request::{REQUEST_BYTES_MAX, Refusal, Rules, Wish, status_byte};
use super::ring::{Ring, RingFault, RingPlaces};
use crate::bdev::{
    Bdev, BdevError, BufPool, Channel, Completion, Data, IoBuf, IoStatus, Op, Request,
};
use crate::wire::virtio::status;
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// Payload in bytes that one queue may have under way.
const PAYLOAD_HELD_MAX: u64 = 32 << 20;
/// After so many answers the driver may see them, though more are being written: a driver that polls
/// works on them meanwhile, instead of taking turns with us. It is not called before all are there.
const SHOWN_AFTER: u32 = 8;
/// Payload that counts as much as a request: so many bytes are copied in about the time that one takes.
/// A round's budget is spent by large requests sooner than by small ones, and no queue keeps its
/// reactor for long.
const PAYLOAD_UNIT: u64 = 64 << 10;

/// Why a queue could not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueFault {
    #[error(transparent)]
    Ring(#[from] RingFault),
    #[error("inflight: {0}")]
    Inflight(#[from] InflightFault),
    #[error(transparent)]
    Bdev(#[from] BdevError),
    #[error("told to stop before it ran")]
    Stopped,
}

/// What a queue is made of.
#[derive(Debug)]
pub(super) struct QueuePlan {
    pub(super) bdev: Arc<dyn Bdev>,
    pub(super) rules: Rules,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) places: RingPlaces,
    /// Behind which request to begin; what is under way by `inflight` decides if that is there.
    pub(super) base: u16,
    /// What a predecessor has given up unanswered; what is under way by `inflight` goes before.
    pub(super) again: Vec<u16>,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    pub(super) inflight: Option<Window>,
    /// None: the front end wants to be polled.
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) coalescing: Arc<SharedCoalescing>,
    /// For the log.
    pub(super) name: String,
}

/// A request under way; its place in the list is its head.
#[derive(Debug, Default)]
struct Slot {
    busy: bool,
    /// Its buffer goes to the guest at the end.
    reads: bool,
    held: u64,
    chain: Chain,
}

/// This reactor's buffers, shared by its queues.
#[derive(Debug, Default)]
struct Buffers(Rc<RefCell<BufPool>>);

/// Where a queue calls, for messages to find.
#[derive(Debug)]
struct Call(RefCell<Option<OwnedFd>>);

/// Says that the queue is gone, however it went.
#[derive(Debug)]
struct Presence {
    shared: Arc<QueueShared>,
    taken: u16,
    abandoned: Vec<u16>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let abandoned = std::mem::take(&mut self.abandoned);
        self.shared.set_stopped(self.taken, abandoned);
    }
}

/// The poller.
#[derive(Debug)]
pub(super) struct Queue {
    ring: Ring,
    indirect: bool,
    rules: Rules,
    inflight: Option<InflightQueue>,
    /// Heads to do again, before new ones.
    again: VecDeque<u16>,
    slots: Vec<Slot>,
    under_way: u32,
    held: u64,
    channel: Box<dyn Channel>,
    pool: Rc<RefCell<BufPool>>,
    done: Vec<Completion>,
    /// Answers have been written, and the driver has not been told.
    unpublished: bool,
    /// How many of them it can't see.
    unseen: u32,
    /// The ring makes no sense: nothing is taken any more.
    broken: bool,
    /// Met where nothing may change: it is given up in the next round.
    fault: RefCell<Option<RingFault>>,
    obeyed: Order,
    kick: Option<OwnedFd>,
    call: Rc<Call>,
    calls: CallPace,
    err: Option<OwnedFd>,
    name: String,
    id: u64,
    own_id: Rc<Cell<Option<PollerId>>>,
    /// After what touches guest memory, and before what says that nobody does.
    memory: Arc<GuestMemory>,
    presence: Presence,
}

impl Queue {
    /// Starts the queue on the reactor of `cx`.
    pub(super) fn settle_on(
        cx: &Cx,
        id: u64,
        plan: QueuePlan,
        shared: Arc<QueueShared>,
    ) -> Result<(), QueueFault> {
        if shared.order() != Order::Run {
            return Err(QueueFault::Stopped);
        }
        let entries = plan.places.entries;
        let mut ring = Ring::new(plan.places.clone(), plan.event_idx, plan.base)?;
        let mut again = plan.again;
        let mut inflight = None;
        if let Some(window) = plan.inflight {
            let (record, marked) = InflightQueue::open(window, entries, ring.published())?;
            // What was taken is either answered or marked, and a front end whose back end died
            // knows neither.
            let marked_count = u16::try_from(marked.len()).unwrap_or(u16::MAX);
            let taken = ring.published().wrapping_add(marked_count);
            ring = Ring::new(plan.places, plan.event_idx, taken)?;
            inflight = Some(record);
            if marked_count > 0 {
                tracing::info!(
                    queue = plan.name,
                    requests = marked_count,
                    "vhost: requests that nobody answered are done again"
                );
            }
            again = marked;
        }
        let channel = plan.bdev.open(cx)?;
        let buffers = cx.local::<Buffers>(0).unwrap_or_else(|| {
            let buffers = Rc::new(Buffers::default());
            cx.set_local(0, Rc::clone(&buffers));
            buffers
        });
        // A predecessor may have published answers, and died before it called.
        if let Some(fd) = &plan.call {
            eventfd::ring(fd);
        }
        let call = Rc::new(Call(RefCell::new(plan.call)));
        cx.set_local(id, Rc::clone(&call));
        if let Some(kick) = &plan.kick {
            cx.watch(kick.as_raw_fd());
        }
        let own_id = Rc::new(Cell::new(None));
        let queue = Self {
            presence: Presence {
                taken: ring.taken(),
                abandoned: Vec::new(),
                shared,
            },
            ring,
            indirect: plan.indirect,
            rules: plan.rules,
            inflight,
            again: again.into(),
            slots: (0..entries).map(|_| Slot::default()).collect(),
            under_way: 0,
            held: 0,
            channel,
            pool: Rc::clone(&buffers.0),
            done: Vec::with_capacity(usize::from(entries)),
            unpublished: false,
            unseen: 0,
            broken: false,
            fault: RefCell::new(None),
            obeyed: Order::Run,
            kick: plan.kick,
            call,
            calls: CallPace::new(plan.coalescing),
            err: plan.err,
            name: plan.name,
            id,
            own_id: Rc::clone(&own_id),
            memory: plan.memory,
        };
        own_id.set(Some(cx.add_poller("vhost queue", Box::new(queue))));
        Ok(())
    }

    /// Changes where the queue `id` calls, if it is still there.
    pub(super) fn set_call(cx: &Cx, id: u64, fd: Option<OwnedFd>) {
        if let Some(call) = cx.local::<Call>(id) {
            // For what was published while it changed hands.
            if let Some(fd) = &fd {
                eventfd::ring(fd);
            }
            *call.0.borrow_mut() = fd;
        }
    }

    /// The ring can't be followed: its guest gets no more answers, nobody else notices.
    fn give_up(&mut self, fault: &RingFault) {
        if !self.broken {
            self.broken = true;
            tracing::warn!(queue = self.name, %fault, "vhost: the ring makes no sense; it stands still");
            if let Some(err) = &self.err {
                eventfd::ring(err);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.held + REQUEST_BYTES_MAX <= PAYLOAD_HELD_MAX
    }

    /// The head of the next request.
    fn next_head(&mut self) -> Result<Option<u16>, RingFault> {
        if let Some(head) = self.again.pop_front() {
            return Ok(Some(head));
        }
        if self.obeyed != Order::Run {
            return Ok(None);
        }
        let Some(head) = self.ring.take()? else {
            return Ok(None);
        };
        self.presence.taken = self.ring.taken();
        if self.slots[usize::from(head)].busy {
            return Err(RingFault::Twice(head));
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.begin(head)?;
        }
        Ok(Some(head))
    }

    /// Takes requests, until they and their payload have used up the budget.
    fn take(&mut self, cx: &Cx, budget: u32) -> u32 {
        let mut used = 0;
        while used < budget && !self.broken && self.has_room() {
            let held = self.held;
            match self.next_head() {
                Ok(Some(head)) => self.begin(cx, head),
                Ok(None) => break,
                Err(fault) => self.give_up(&fault),
            }
            // No request is so long that this would be cut off.
            let units = self.held.saturating_sub(held) / PAYLOAD_UNIT;
            used += 1 + u32::try_from(units).unwrap_or(budget);
        }
        used
    }

    /// Starts the request of `head`, which is inside the ring and not under way.
    fn begin(&mut self, cx: &Cx, head: u16) {
        let ring = &self.ring;
        let slot = &mut self.slots[usize::from(head)];
        slot.busy = true;
        slot.reads = false;
        slot.held = 0;
        self.under_way += 1;
        let table = &ring.places().desc;
        let followed = slot
            .chain
            .follow(table, ring.entries(), head, &self.memory, self.indirect);
        let admitted = match followed {
            Ok(()) => self.rules.admit(&self.memory, &slot.chain),
            Err(fault) => {
                tracing::debug!(queue = self.name, head, %fault, "vhost: a bad chain");
                Err(Refusal::NoStatus)
            }
        };
        match admitted {
            Ok(Wish::Io { op, range }) => self.submit(cx, head, op, range),
            Ok(Wish::Id) => self.tell_id(head),
            Err(Refusal::Status(status)) => self.answer(head, status, 0),
            Err(Refusal::NoStatus) => self.finish(head, 0),
        }
    }

    fn submit(&mut self, cx: &Cx, head: u16, op: Op, range: crate::units::ByteRange) {
        let slot = &mut self.slots[usize::from(head)];
        // No longer than a request may be, which fits every `usize`.
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let data = match op {
            Op::Read => Data::Buf(self.pool.borrow_mut().take(len)),
            Op::Write { .. } => {
                let mut buf = self.pool.borrow_mut().take(len);
                // The one time that these bytes are read.
                let read = slot.chain.readable.read(&self.memory, 16, &mut buf);
                if read.is_err() {
                    self.pool.borrow_mut().give(buf);
                    return self.answer(head, status::IOERR, 0);
                }
                Data::Buf(buf)
            }
            _ => Data::None,
        };
        slot.reads = op == Op::Read;
        slot.held = data.len();
        self.held += slot.held;
        let tag = u64::from(head);
        let request = Request {
            tag,
            op,
            range,
            data,
        };
        self.channel.submit(cx, request);
    }

    fn tell_id(&mut self, head: u16) {
        let slot = &self.slots[usize::from(head)];
        let space = slot.chain.writable.bytes() - 1;
        let count = usize::try_from(space).unwrap_or(usize::MAX);
        let id = self.rules.id;
        let id = id.get(..count).unwrap_or(&id);
        match slot.chain.writable.write(&self.memory, 0, id) {
            Ok(()) => self.answer(head, status::OK, id.len()),
            Err(_) => self.answer(head, status::IOERR, 0),
        }
    }

    fn reap(&mut self, cx: &Cx) -> u32 {
        if self.under_way == 0 {
            return 0;
        }
        let mut done = std::mem::take(&mut self.done);
        let count = self.channel.poll(cx, &mut done);
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.done = done;
        count
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { tag, status, data } = completion;
        let Some(slot) = usize::try_from(tag).ok().and_then(|at| self.slots.get(at)) else {
            unreachable!("the bdev completed tag {tag}, which no request has");
        };
        let head = u16::try_from(tag).unwrap_or(u16::MAX);
        let abandoned = self.obeyed == Order::Abandon && status == IoStatus::Aborted;
        let (mut said, mut bytes) = (status_byte(status), 0);
        if let Data::Buf(buf) = data {
            if status.is_ok() && slot.reads {
                match slot.chain.writable.write(&self.memory, 0, &buf) {
                    Ok(()) => bytes = buf.len(),
                    Err(_) => said = status::IOERR,
                }
            }
            self.give(buf);
        }
        match abandoned {
            true => {
                self.free(head);
                self.presence.abandoned.push(head);
            }
            false => self.answer(head, said, bytes),
        }
    }

    fn give(&self, buf: IoBuf) {
        self.pool.borrow_mut().give(buf);
    }

    /// Writes the status behind `bytes` of data, and the answer.
    fn answer(&mut self, head: u16, status: u8, bytes: usize) {
        let writable = &self.slots[usize::from(head)].chain.writable;
        let at = writable.bytes() - 1;
        let written = match writable.write(&self.memory, at, &[status]) {
            Ok(()) => u32::try_from(bytes + 1).unwrap_or(u32::MAX),
            Err(_) => 0,
        };
        self.finish(head, written);
    }

    fn free(&mut self, head: u16) {
        let slot = &mut self.slots[usize::from(head)];
        slot.busy = false;
        self.under_way -= 1;
        self.held -= std::mem::take(&mut slot.held);
    }

    /// Writes the answer to the used ring.
    fn finish(&mut self, head: u16, bytes: u32) {
        self.free(head);
        let linked = match &mut self.inflight {
            Some(inflight) => inflight.answer(head).map_err(RingFault::from),
            None => Ok(()),
        };
        let mut written = linked.and_then(|()| self.ring.answer(head, bytes));
        self.unpublished = true;
        self.unseen += 1;
        if self.unseen >= SHOWN_AFTER && !self.broken {
            written = written.and_then(|()| self.show());
        }
        if let Err(fault) = written {
            self.give_up(&fault);
        }
    }

    /// Lets the driver see all answers so far.
    fn show(&mut self) -> Result<(), RingFault> {
        self.calls.published(std::mem::take(&mut self.unseen));
        self.ring.publish()?;
        if let Some(inflight) = &mut self.inflight {
            inflight.published(self.ring.published())?;
        }
        Ok(())
    }

    /// Lets the driver see all answers of this round, and tells it if it is time and it wants to know.
    fn publish(&mut self, now: Nanos) -> Result<(), RingFault> {
        if std::mem::take(&mut self.unpublished) {
            self.show()?;
        }
        // Nobody waits for more answers at the end.
        let is_time = self.calls.may_call(now) || self.obeyed != Order::Run;
        if is_time
            && self.ring.wants_call()?
            && let Some(call) = &*self.call.0.borrow()
        {
            eventfd::ring(call);
        }
        Ok(())
    }

    fn obey(&mut self, cx: &Cx) {
        let order = self.presence.shared.order();
        if order > self.obeyed {
            self.obeyed = order;
            if order >= Order::Cancel {
                self.channel.cancel(cx);
            }
        }
    }

    /// Ends the queue when it is to, and nothing is under way.
    fn settle(&mut self, cx: &Cx) {
        let has_more = self.obeyed == Order::Drain && !self.again.is_empty() && !self.broken;
        if self.obeyed != Order::Run
            && self.under_way == 0
            && !has_more
            && let Some(id) = self.own_id.take()
        {
            if let Some(kick) = &self.kick {
                cx.unwatch(kick.as_raw_fd());
            }
            self.presence.abandoned.extend(self.again.drain(..));
            cx.remove_local::<Call>(self.id);
            cx.remove_poller(id);
        }
    }
}

impl Poller for Queue {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        let mut handled = self.reap(cx);
        self.obey(cx);
        let fault = self.fault.take();
        if let Some(fault) = fault {
            self.give_up(&fault);
        }
        // What a predecessor has taken has to be answered before an orderly end, too.
        if self.obeyed <= Order::Drain {
            let taken = self.take(cx, budget);
            if taken > 0 {
                handled += taken + self.reap(cx);
            }
        }
        if (self.unpublished || self.calls.due().is_some())
            && !self.broken
            && let Err(fault) = self.publish(cx.now())
        {
            self.give_up(&fault);
        }
        self.presence.shared.set_under_way(self.under_way);
        self.settle(cx);
        handled
    }

    fn wake(&self) -> Wake {
        if self.presence.shared.order() > self.obeyed {
            return Wake::Now;
        }
        let wake = match self.under_way {
            0 => Wake::OnEvent,
            _ => self.channel.wake(),
        };
        let wake = self
            .calls
            .due()
            .map_or(wake, |at| wake.sooner(Wake::At(at)));
        if self.obeyed != Order::Run || self.broken {
            return self.silence_kicks(wake);
        }
        if !self.has_room() {
            return self.silence_kicks(wake);
        }
        let Some(kick) = &self.kick else {
            return Wake::Now;
        };
        // The kicks first: one that comes later is of what we may not see here.
        let _ = eventfd::silence(kick);
        match self.ring.arm() {
            Ok(false) if self.again.is_empty() => wake,
            Ok(_) => Wake::Now,
            Err(fault) => {
                self.fault.replace(Some(fault));
                Wake::Now
            }
        }
    }
}

impl Queue {
    /// While nothing is taken, kicks would keep the reactor from sleeping.
    fn silence_kicks(&self, wake: Wake) -> Wake {
        if let Some(kick) = &self.kick {
            let _ = eventfd::silence(kick);
        }
        wake
    }
}

impl From<MemoryFault> for QueueFault {
    fn from(fault: MemoryFault) -> Self {
        Self::Ring(fault.into())
    }
}
