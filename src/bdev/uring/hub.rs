//! One io_uring for all uring channels of a reactor.
//!
//! The hub outlives the channels that use it: it has a poller of its own, which reaps what channels
//! that were dropped early have left in the kernel, and which takes the hub away when nobody uses it.

use super::job::Job;
use super::sys::{Finished, Ring};
use crate::bdev::BufPool;
use reactors::{Cx, Poller, PollerId, Wake};
use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// A reactor has one hub, stored under this key.
const KEY: u64 = 0;

/// Where a channel finds its jobs when the kernel is done with them, with what it said.
pub(super) type Replies = RefCell<VecDeque<(Job, i32)>>;

/// The reactor's ring and the jobs that wait for room in it.
#[derive(Debug)]
pub(super) struct Hub {
    inner: RefCell<Inner>,
    users: Cell<u32>,
    poller: Cell<Option<PollerId>>,
}

#[derive(Debug)]
struct Inner {
    ring: Ring,
    /// Jobs that the ring has no room for: bounded by what the channels' users have under way.
    parked: VecDeque<(Job, Rc<Replies>)>,
    pool: BufPool,
    finished: Vec<Finished>,
    /// System calls that failed.
    refusals: u64,
}

impl Hub {
    /// The hub of `cx`'s reactor, with one more user.
    ///
    /// # Errors
    /// If the kernel gives no ring.
    pub(super) fn attach(cx: &Cx) -> io::Result<Rc<Self>> {
        let hub = match cx.local::<Self>(KEY) {
            Some(hub) => hub,
            None => Self::start(cx)?,
        };
        hub.users.set(hub.users.get() + 1);
        Ok(hub)
    }

    fn start(cx: &Cx) -> io::Result<Rc<Self>> {
        let ring = Ring::new()?;
        cx.watch(ring.fd());
        let hub = Rc::new(Self {
            inner: RefCell::new(Inner {
                ring,
                parked: VecDeque::new(),
                pool: BufPool::default(),
                finished: Vec::new(),
                refusals: 0,
            }),
            users: Cell::new(0),
            poller: Cell::new(None),
        });
        let poller = cx.add_poller("uring", Box::new(HubPoller(hub.clone())));
        hub.poller.set(Some(poller));
        cx.set_local(KEY, hub.clone());
        Ok(hub)
    }

    /// Says that one user is gone. Its jobs stay until the kernel is done with them.
    pub(super) fn detach(&self) {
        self.users.set(self.users.get().saturating_sub(1));
    }

    /// Buffers for this reactor.
    pub(super) fn pool(&self) -> RefMut<'_, BufPool> {
        RefMut::map(self.inner.borrow_mut(), |inner| &mut inner.pool)
    }

    /// Queues a job, or parks it until there is room.
    pub(super) fn push(&self, job: Job, reply: &Rc<Replies>) {
        let mut inner = self.inner.borrow_mut();
        if let Err(parked) = inner.ring.push(job, reply.clone()) {
            inner.parked.push_back(parked);
        }
    }

    /// Tells the kernel what is queued, hands out what it has done, and queues what was parked.
    /// Returns how many jobs came back.
    pub(super) fn turn(&self) -> u32 {
        let mut inner = self.inner.borrow_mut();
        inner.submit();
        inner.reap()
    }

    /// Tells the kernel what is queued.
    pub(super) fn submit(&self) {
        self.inner.borrow_mut().submit();
    }

    /// Takes back the jobs of one channel that have not reached the ring.
    pub(super) fn unpark(&self, reply: &Rc<Replies>) -> Vec<Job> {
        let mut inner = self.inner.borrow_mut();
        let (own, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut inner.parked)
            .into_iter()
            .partition(|(_, owner)| Rc::ptr_eq(owner, reply));
        inner.parked = others;
        own.into_iter().map(|(job, _)| job).collect()
    }

    /// What no completion will announce must be polled for.
    pub(super) fn wake(&self) -> Wake {
        let mut inner = self.inner.borrow_mut();
        let startable = !inner.parked.is_empty() && inner.ring.has_room();
        if startable || inner.ring.unsubmitted() > 0 {
            Wake::Now
        } else {
            Wake::OnEvent
        }
    }

    fn is_deserted(&self) -> bool {
        let inner = self.inner.borrow();
        self.users.get() == 0 && inner.ring.in_flight() == 0 && inner.parked.is_empty()
    }
}

impl Inner {
    fn submit(&mut self) {
        if let Err(error) = self.ring.submit() {
            // The entries stay queued for the next round; this is memory pressure, or nothing.
            self.refusals += 1;
            if self.refusals.is_power_of_two() {
                tracing::warn!(count = self.refusals, "io_uring takes no entries: {error}");
            }
        }
    }

    fn reap(&mut self) -> u32 {
        self.ring.reap(&mut self.finished);
        let count = u32::try_from(self.finished.len()).unwrap_or(u32::MAX);
        for Finished { job, reply, result } in self.finished.drain(..) {
            // If the channel is gone, the queue and the job go with the last of these.
            reply.borrow_mut().push_back((job, result));
        }
        while let Some((job, reply)) = self.parked.pop_front() {
            if let Err(parked) = self.ring.push(job, reply) {
                self.parked.push_front(parked);
                break;
            }
        }
        count
    }
}

struct HubPoller(Rc<Hub>);

impl Poller for HubPoller {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let hub = &self.0;
        let count = hub.turn();
        if hub.is_deserted()
            && let Some(poller) = hub.poller.take()
        {
            cx.unwatch(hub.inner.borrow().ring.fd());
            cx.remove_local::<Hub>(KEY);
            cx.remove_poller(poller);
        }
        count
    }

    fn wake(&self) -> Wake {
        if self.0.is_deserted() {
            Wake::Now
        } else {
            self.0.wake()
        }
    }
}
