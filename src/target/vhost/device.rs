//! What a front end has set, and the queues that run by it.
//!
//! On the controller's thread. Nothing here is on the way of an I/O.

use super::backing::Backing;
use super::balance::Turn;
use super::controller::Status;
use super::guest_mem::GuestMemory;
use super::inflight::Inflight;
use super::notices::Notices;
use super::queue::QueuePlan;
use super::queue_handle::{Order, QueueHandle, StartFault};
use super::request::Rules;
use super::session::refuse;
use super::vring::Vring;
use crate::wire::virtio::feature;
use std::sync::Arc;
use std::time::Duration;
use vhost::vhost_user::Result;

/// How long a queue may take to answer what it has before what waits is given up.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// What the front end has set.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) backing: Arc<Backing>,
    status: Arc<Status>,
    /// Features that the driver has accepted.
    pub(super) acked: u64,
    /// Features that the front end has accepted.
    pub(super) protocol: u64,
    pub(super) memory: Arc<GuestMemory>,
    inflight: Option<Inflight>,
    pub(super) vrings: Vec<Vring>,
    /// The front end knows whether the cache writes back. One that comes back after the death of our
    /// predecessor does not ask, and its driver may believe anything.
    mode_known: bool,
    /// Size of the disk as the queues know it.
    blocks: u64,
    /// Where the front end is told of changes.
    pub(super) notices: Option<Notices>,
}

impl Device {
    pub(super) fn new(backing: Arc<Backing>, status: Arc<Status>) -> Self {
        let vrings = (0..backing.queues).map(|_| Vring::default()).collect();
        Self {
            blocks: backing.info().blocks,
            backing,
            status,
            acked: 0,
            protocol: 0,
            memory: Arc::default(),
            inflight: None,
            vrings,
            mode_known: false,
            notices: None,
        }
    }

    pub(super) fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let count = self.vrings.len();
        let vring = self.vrings.get_mut(index);
        vring.ok_or_else(|| refuse(format_args!("ring {index} of {count}")))
    }

    /// A ring that may be changed.
    pub(super) fn idle_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        match vring.running {
            None => Ok(vring),
            Some(_) => Err(refuse(format_args!("ring {index} runs"))),
        }
    }

    /// Lets controllers' lists see which queues there are.
    pub(super) fn show(&self) {
        let running = self.vrings.iter().filter_map(|v| v.running.as_ref());
        let queues = running.map(|queue| Arc::clone(queue.shared()));
        self.status.set_queues(queues.collect());
    }

    /// Starts ring `index` if all is there that it needs.
    pub(super) fn start_if_complete(&mut self, index: u32) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.running.is_some() || !vring.is_complete() {
            return Ok(());
        }
        self.start(index)?;
        self.show();
        Ok(())
    }

    fn start(&mut self, index: u32) -> Result<()> {
        let queue = u16::try_from(index).map_err(refuse)?;
        let memory = Arc::clone(&self.memory);
        let (acked, backing) = (self.acked, Arc::clone(&self.backing));
        let inflight = self.inflight.as_ref().and_then(|all| all.queue(queue));
        let write_back = self.writes_back();
        let vring = self.vring(index)?;
        let places = vring.places(&memory).transpose().map_err(refuse)?;
        let places = places.ok_or_else(|| refuse("a ring without an address"))?;
        let [kick, call, err] = vring.eventfds().map_err(refuse)?;
        let plan = QueuePlan {
            bdev: Arc::clone(&backing.bdev),
            rules: Rules::new(&backing.info(), backing.read_only, acked, write_back),
            memory,
            places,
            base: vring.base,
            again: std::mem::take(&mut vring.again),
            event_idx: acked & feature::RING_EVENT_IDX != 0,
            indirect: acked & feature::RING_INDIRECT_DESC != 0,
            inflight,
            kick,
            call,
            err,
            coalescing: Arc::clone(&backing.coalescing),
            name: format!("{}.{index}", backing.name),
        };
        let reactor = backing.reactor(queue).ok_or_else(|| refuse("no reactor"))?;
        let started = QueueHandle::start(reactor, Backing::next_queue_id(), plan);
        vring.running = Some(started.map_err(|fault: StartFault| refuse(fault))?);
        Ok(())
    }

    /// Ends all queues, and waits until they have.
    pub(super) fn stop_all(&mut self, order: Order) {
        // All are told before one is waited for.
        for queue in self.vrings.iter().filter_map(|v| v.running.as_ref()) {
            queue.stop(order);
        }
        let then = match order {
            Order::Drain => Order::Abandon,
            other => other,
        };
        for vring in &mut self.vrings {
            stop_vring(vring, order, then);
        }
        self.show();
    }

    /// Ends ring `index`'s queue. What it can't finish is done again by the next one.
    pub(super) fn pause(&mut self, index: u32) -> Result<()> {
        stop_vring(self.vring(index)?, Order::Drain, Order::Abandon);
        self.show();
        Ok(())
    }

    /// Ends ring `index`'s queue, for good unless there is a record of what it can't finish. Returns
    /// how far requests have been taken.
    pub(super) fn stop(&mut self, index: u32) -> Result<u16> {
        let then = match self.inflight {
            Some(_) => Order::Abandon,
            None => Order::Cancel,
        };
        let vring = self.vring(index)?;
        stop_vring(vring, Order::Drain, then);
        vring.kick = None;
        // Whoever starts it again says where, and has the record of the rest.
        vring.again.clear();
        let base = vring.base;
        self.show();
        Ok(base)
    }

    /// Changes something that running queues depend on. All rings run then that can, also those for
    /// whose place there was no memory so far.
    pub(super) fn change(&mut self, f: impl FnOnce(&mut Self)) -> Result<()> {
        self.stop_all(Order::Drain);
        f(self);
        let can_run = |vring: &Vring| {
            let places = vring.places(&self.memory);
            vring.is_complete() && places.is_some_and(|places| places.is_ok())
        };
        let all = (0..).zip(&self.vrings);
        let ready = all.filter(|(_, vring)| can_run(vring));
        let ready: Vec<u32> = ready.map(|(index, _)| index).collect();
        // One that fails does not keep the others from running.
        let mut started = Ok(());
        for index in ready {
            started = started.and(self.start(index));
        }
        self.show();
        started
    }

    /// Back to how it was when the front end connected; memory and descriptors stay.
    pub(super) fn reset(&mut self) {
        self.stop_all(Order::Drain);
        self.acked = 0;
        // Who begins anew has nothing under way.
        self.inflight = None;
        for vring in &mut self.vrings {
            vring.enabled = false;
            vring.addr = None;
            vring.entries = 0;
            vring.base = 0;
            vring.kick = None;
            vring.again.clear();
        }
    }

    /// Whether writes may complete before they are durable, where the driver may choose.
    fn writes_back(&self) -> bool {
        self.mode_known && self.backing.writes_back()
    }

    /// The front end and its driver know from now on whether the cache writes back.
    pub(super) fn set_mode(&mut self, write_back: bool) -> Result<()> {
        let before = self.writes_back();
        self.backing.set_writes_back(write_back);
        self.mode_known = true;
        if let Some(inflight) = &self.inflight {
            inflight.set_write_back(write_back).map_err(refuse)?;
        }
        match before == self.writes_back() {
            true => Ok(()),
            false => self.change(|_| {}),
        }
    }

    /// Takes the memory that the front end keeps for what is under way.
    pub(super) fn set_inflight(&mut self, inflight: Inflight) -> Result<()> {
        if self.vrings.iter().any(|vring| vring.running.is_some()) {
            return Err(refuse("inflight memory for rings that run"));
        }
        let kept = inflight.write_back().map_err(refuse)?;
        self.inflight = Some(inflight);
        match kept {
            Some(write_back) => self.set_mode(write_back),
            None if self.mode_known => self.set_mode(self.backing.writes_back()),
            None => Ok(()),
        }
    }

    /// Moves a queue to another reactor if that makes them more even.
    pub(super) fn balance(&mut self) {
        let Some(_turn) = Turn::take() else {
            return;
        };
        let reactors = &self.backing.reactors;
        let crowded = |vring: &Vring| {
            let queue = vring.running.as_ref()?;
            let is_crowded = queue.is_crowded(reactors);
            is_crowded.then(|| queue.shared().under_way())
        };
        let all = (0..).zip(&self.vrings);
        let found = all.filter_map(|(index, vring)| Some((crowded(vring)?, index)));
        // What it has under way is waited for.
        let Some((_, index)) = found.min() else {
            return;
        };
        let moved = self.pause(index).and_then(|()| self.start(index));
        if let Err(error) = moved {
            tracing::warn!(%error, index, ctrlr = self.backing.name, "vhost: a queue does not move");
        }
        self.show();
    }

    /// Looks whether the disk has another size. The queues then know it, and the front end is told.
    pub(super) fn look_at_size(&mut self) {
        let blocks = self.backing.info().blocks;
        if blocks == self.blocks {
            return;
        }
        self.blocks = blocks;
        if let Err(error) = self.change(|_| {}) {
            tracing::warn!(%error, ctrlr = self.backing.name, "vhost: after a resize");
        }
        if let Some(notices) = &self.notices {
            notices.config_changed();
        }
    }
}

/// Ends the ring's queue, if it has one, and waits until it has. What it can't finish in time is ended
/// by the order `then`.
fn stop_vring(vring: &mut Vring, order: Order, then: Order) {
    let Some(queue) = vring.running.take() else {
        return;
    };
    queue.stop(order);
    let mut end = queue.wait(DRAIN_WAIT);
    if end.is_none() {
        tracing::warn!("vhost: a queue does not end; what waits in it is given up");
        queue.stop(then);
    }
    // Its memory may not be unmapped before, however long a device takes.
    while end.is_none() {
        end = queue.wait(DRAIN_WAIT);
    }
    let (taken, abandoned) = end.unwrap_or_default();
    vring.base = taken;
    vring.again.extend(abandoned);
}
