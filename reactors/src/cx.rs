//! What a poller sees of its reactor.

use crate::handle::{ReactorHandle, ReactorId};
use crate::random::SplitMix64;
use crate::stats::{PollerCounters, PollerStats};
use crate::watch::{Interest, WatchSet};
use crate::{Clock, Nanos, Poller, PollerId};
use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

type Locals = HashMap<(TypeId, u64), Rc<dyn Any>>;

/// A change to the reactor that takes effect when the current round of polling is over.
pub(crate) enum Change {
    Add(Rc<PollerCounters>, Box<dyn Poller>),
    Remove(PollerId),
}

/// What code that runs on a reactor may ask of it. Never leaves its thread.
pub struct Cx {
    pub(crate) handle: ReactorHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) now: Cell<Nanos>,
    pub(crate) random: Cell<SplitMix64>,
    pub(crate) next_poller: Cell<u64>,
    pub(crate) changes: RefCell<Vec<Change>>,
    pub(crate) locals: RefCell<Locals>,
    /// Of the pollers there are, in the order in which they run.
    pub(crate) pollers: RefCell<Vec<Rc<PollerCounters>>>,
    pub(crate) watches: WatchSet,
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx")
            .field("reactor", &self.handle.id)
            .finish_non_exhaustive()
    }
}

impl Cx {
    /// Which reactor this is.
    #[must_use]
    pub fn id(&self) -> ReactorId {
        self.handle.id
    }

    /// A handle on this reactor, for others.
    #[must_use]
    pub fn handle(&self) -> ReactorHandle {
        self.handle.clone()
    }

    /// The time at which this round of the loop began: one clock read a round.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now.get()
    }

    /// The time now, by a clock read of its own.
    #[must_use]
    pub fn read_clock(&self) -> Nanos {
        self.clock.now()
    }

    /// The next number of this reactor's seeded generator (SplitMix64).
    pub fn random(&self) -> u64 {
        let mut random = self.random.get();
        let drawn = random.draw();
        self.random.set(random);
        drawn
    }

    fn add(&self, name: &'static str, period: Option<u64>, poller: Box<dyn Poller>) -> PollerId {
        let id = PollerId(self.next_poller.get());
        self.next_poller.set(id.0 + 1);
        let counters = Rc::new(PollerCounters::new(id, name, period));
        self.changes
            .borrow_mut()
            .push(Change::Add(counters, poller));
        id
    }

    /// Adds a poller; it runs from the next round on.
    pub fn add_poller(&self, name: &'static str, poller: Box<dyn Poller>) -> PollerId {
        self.add(name, None, poller)
    }

    /// Adds a poller that runs every `period_ns`, and for which a sleeping reactor wakes.
    pub fn add_timed_poller(
        &self,
        name: &'static str,
        period_ns: u64,
        poller: Box<dyn Poller>,
    ) -> PollerId {
        self.add(name, Some(period_ns), poller)
    }

    /// Drops a poller when this round is over. A poller may remove itself.
    pub fn remove_poller(&self, id: PollerId) {
        self.changes.borrow_mut().push(Change::Remove(id));
    }

    /// What the reactor's pollers have done, in the order in which they run.
    #[must_use]
    pub fn poller_stats(&self) -> Vec<PollerStats> {
        let pollers = self.pollers.borrow();
        pollers.iter().map(|counters| counters.read()).collect()
    }

    /// Lets a sleeping reactor wake when `fd` is readable; the same as
    /// [`Cx::watch_for`] with [`Interest::Read`].
    pub fn watch(&self, fd: RawFd) {
        self.watch_for(fd, Interest::Read);
    }

    /// Lets a sleeping reactor wake when `fd` becomes what `interest` says; replaces an earlier
    /// interest in the same descriptor. The caller keeps it open until after [`Cx::unwatch`].
    /// Level-triggered: somebody's poller must take what makes it ready, or the reactor spins. One
    /// that the kernel cannot watch (a regular file) makes the reactor wake once a millisecond.
    pub fn watch_for(&self, fd: RawFd, interest: Interest) {
        self.watches.watch(fd, interest);
    }

    /// Whether `fd`, which is watched, is worth a look: what one system call in 4 µs at most tells of all
    /// watched descriptors, and a new one once the reactor has asked its pollers whether it may sleep. None if the
    /// kernel does not tell: then it is the caller's to look.
    pub fn is_ready(&self, fd: RawFd) -> Option<bool> {
        self.watches.is_ready(fd, self.now())
    }

    /// Ends [`Cx::watch`]; to be called before the descriptor is closed.
    pub fn unwatch(&self, fd: RawFd) {
        self.watches.unwatch(fd);
    }

    /// What was stored on this reactor under `key` and this type.
    pub fn local<T: 'static>(&self, key: u64) -> Option<Rc<T>> {
        let found = self.locals.borrow().get(&(TypeId::of::<T>(), key)).cloned();
        found.and_then(|any| any.downcast::<T>().ok())
    }

    /// Stores `value` on this reactor, for others on it to find.
    pub fn set_local<T: 'static>(&self, key: u64, value: Rc<T>) {
        self.locals
            .borrow_mut()
            .insert((TypeId::of::<T>(), key), value);
    }

    /// Forgets what was stored under `key` and this type.
    pub fn remove_local<T: 'static>(&self, key: u64) {
        let old = self.locals.borrow_mut().remove(&(TypeId::of::<T>(), key));
        drop(old);
    }
}
