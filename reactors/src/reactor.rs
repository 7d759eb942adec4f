//! The loop itself.

use crate::cx::{Change, Cx};
use crate::handle::{Inbox, ReactorHandle, ReactorId};
use crate::idle::IdlePolicy;
use crate::random::SplitMix64;
use crate::stats::PollerCounters;
use crate::watch::WatchSet;
use crate::{Clock, Nanos, Poller, Quiescence, Wake};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Events that a poller may handle in one turn, so that no other waits long for its own.
const POLL_BUDGET: u32 = 64;

/// How to make a reactor.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Which one; also its place in the quiescence domain.
    pub id: ReactorId,
    /// What it does when idle.
    pub idle: IdlePolicy,
    /// Seed of its generator.
    pub seed: u64,
}

struct Slot {
    due: Nanos,
    counters: Rc<PollerCounters>,
    poller: Box<dyn Poller>,
}

/// A polled loop on one thread.
///
/// Driven by [`Reactor::run`] on a thread of its own, or by [`Reactor::step`] from somebody else's
/// loop. Dropping it drops its pollers and locals, and the messages that nobody will run.
pub struct Reactor {
    cx: Cx,
    quiescence: Arc<Quiescence>,
    pollers: Vec<Slot>,
    /// Whether the round that began at `cx.now` handled anything.
    was_busy: bool,
    /// When last a round handled something that did not come by the clock alone.
    last_traffic: Nanos,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor")
            .field("cx", &self.cx)
            .finish_non_exhaustive()
    }
}

impl Reactor {
    /// Makes a reactor that nobody drives yet.
    ///
    /// # Errors
    /// If the kernel gives no eventfd.
    pub fn new(
        config: &ReactorConfig,
        clock: Arc<dyn Clock>,
        quiescence: Arc<Quiescence>,
    ) -> std::io::Result<Self> {
        let inbox = Arc::new(Inbox::new(config.idle)?);
        let watches = WatchSet::new()?;
        let now = clock.now();
        quiescence.wake(config.id.index());
        Ok(Self {
            cx: Cx {
                handle: ReactorHandle {
                    id: config.id,
                    inbox,
                },
                clock,
                now: Cell::new(now),
                random: Cell::new(SplitMix64::new(config.seed)),
                next_poller: Cell::new(1),
                changes: RefCell::new(Vec::new()),
                locals: RefCell::new(HashMap::new()),
                pollers: RefCell::new(Vec::new()),
                watches,
            },
            quiescence,
            pollers: Vec::new(),
            was_busy: false,
            last_traffic: now,
        })
    }

    /// What code on this reactor sees; for whoever drives it by steps.
    #[must_use]
    pub fn cx(&self) -> &Cx {
        &self.cx
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> ReactorHandle {
        self.cx.handle.clone()
    }

    /// Runs rounds until `stop` is set, sleeping as the idle policy allows. Whoever sets `stop`
    /// must ring the reactor's doorbell afterwards.
    pub fn run(&mut self, stop: &AtomicBool) {
        self.cx.handle.inbox.adopt_thread();
        while !stop.load(Ordering::Acquire) {
            let handled = self.step();
            if handled == 0 && self.has_idled_enough() {
                self.try_sleep(stop);
            }
        }
    }

    /// One round: quiescent point, inbox, pollers. Returns how many events were handled.
    pub fn step(&mut self) -> u32 {
        self.quiescence.pass(self.cx.handle.id.index());
        let now = self.begin_round();
        let mut handled = self.run_messages();
        self.apply_changes();
        let mut by_clock = 0_u32;
        for slot in &mut self.pollers {
            let own = if let Some(period) = slot.counters.period_ns {
                if now < slot.due {
                    continue;
                }
                slot.due = now.after(period);
                let own = slot.poller.poll(&self.cx, POLL_BUDGET);
                by_clock = by_clock.saturating_add(own);
                own
            } else {
                let own = slot.poller.poll(&self.cx, POLL_BUDGET);
                handled = handled.saturating_add(own);
                own
            };
            slot.counters.ran(own);
        }
        self.apply_changes();
        if handled > 0 {
            self.last_traffic = now;
        }
        let all = handled.saturating_add(by_clock);
        self.was_busy = all > 0;
        all
    }

    /// When the loop must run again if nothing rings.
    #[must_use]
    pub fn wake(&self) -> Wake {
        // It may sleep now: the round before that, and the one after it, see what is there then.
        self.cx.watches.forget();
        self.pollers.iter().fold(Wake::OnEvent, |wake, slot| {
            let own = match slot.counters.period_ns {
                Some(_) => Wake::At(slot.due),
                None => slot.poller.wake(),
            };
            wake.sooner(own)
        })
    }

    /// Reads the clock, and books the time of the round before.
    fn begin_round(&self) -> Nanos {
        let now = self.cx.clock.now();
        let previous_ns = now.since(self.cx.now.replace(now));
        let counters = &self.cx.handle.inbox.counters;
        counters.round(previous_ns, self.was_busy);
        now
    }

    /// Runs the messages that wait now; those that they send to this reactor run next round.
    fn run_messages(&self) -> u32 {
        let messages = &self.cx.handle.inbox.messages;
        // An empty queue's `pop` has a full fence in it, `is_empty` has not.
        if messages.is_empty() {
            return 0;
        }
        let mut handled = 0_u32;
        for _ in 0..messages.len() {
            let Some(message) = messages.pop() else {
                break;
            };
            message(&self.cx);
            handled = handled.saturating_add(1);
        }
        handled
    }

    /// Whether the policy lets an idle reactor sleep now, and its pollers might.
    fn has_idled_enough(&self) -> bool {
        let Some(spin_ns) = self.cx.handle.inbox.idle.get().spin_ns() else {
            return false;
        };
        self.cx.now().since(self.last_traffic) >= spin_ns && self.wake() != Wake::Now
    }

    /// Sleeps until there is something to do, unless one last round finds something.
    ///
    /// The order matters (`doorbell.rs`): say that we sleep, look for work, and only then wait.
    fn try_sleep(&mut self, stop: &AtomicBool) {
        self.cx.handle.inbox.doorbell.prepare();
        if !stop.load(Ordering::Acquire)
            && self.step() == 0
            && let Some(timeout_ns) = self.sleep_limit()
        {
            self.sleep(timeout_ns);
        }
        self.cx.handle.inbox.doorbell.awake();
    }

    /// How long to sleep at most (`Some(None)`: until an event), or not at all.
    #[expect(
        clippy::option_option,
        reason = "not at all, without limit, and so long"
    )]
    fn sleep_limit(&self) -> Option<Option<u64>> {
        match self.wake() {
            Wake::Now => None,
            Wake::OnEvent => Some(None),
            Wake::At(due) => {
                let ns = due.since(self.cx.read_clock());
                (ns > 0).then_some(Some(ns))
            }
        }
    }

    fn sleep(&self, timeout_ns: Option<u64>) {
        let inbox = &self.cx.handle.inbox;
        let index = self.cx.handle.id.index();
        inbox.counters.sleep(self.cx.now());
        // Nothing is held between rounds, so nobody who retires memory need wait for us.
        self.quiescence.sleep(index);
        let by_event = self.cx.watches.wait(inbox.doorbell.bell(), timeout_ns);
        self.quiescence.wake(index);
        inbox.counters.wake(by_event);
    }

    fn apply_changes(&mut self) {
        while !self.cx.changes.borrow().is_empty() {
            let changes = std::mem::take(&mut *self.cx.changes.borrow_mut());
            for change in changes {
                match change {
                    Change::Add(counters, poller) => self.pollers.push(Slot {
                        due: self.cx.now.get(),
                        counters,
                        poller,
                    }),
                    Change::Remove(id) => self.pollers.retain(|slot| slot.counters.id != id),
                }
            }
            let counters = self.pollers.iter().map(|slot| slot.counters.clone());
            *self.cx.pollers.borrow_mut() = counters.collect();
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.pollers.clear();
        drop(std::mem::take(&mut *self.cx.changes.borrow_mut()));
        drop(std::mem::take(&mut *self.cx.locals.borrow_mut()));
        self.cx.handle.inbox.stop();
        self.quiescence.sleep(self.cx.handle.id.index());
    }
}

#[cfg(test)]
mod tests;
