//! The loop itself. (First form: driven by `step` only.)

use crate::cx::{Change, Cx, Inbox, ReactorHandle, ReactorId};
use crate::{Clock, Nanos, Poller, PollerId, Quiescence, Wake};
use crossbeam_queue::ArrayQueue;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a reactor does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Spin.
    Poll,
    /// Spin for this many microseconds, then sleep until a doorbell.
    Adaptive {
        /// How long to spin.
        idle_us: u32,
    },
    /// Sleep at once.
    Interrupt,
}

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
    id: PollerId,
    period: Option<u64>,
    due: Nanos,
    poller: Box<dyn Poller>,
}

/// A polled loop on one thread.
pub struct Reactor {
    cx: Cx,
    quiescence: Arc<Quiescence>,
    pollers: Vec<Slot>,
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
        let doorbell = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC,
        )?;
        let inbox = Inbox {
            messages: ArrayQueue::new(1024),
            sleeping: AtomicBool::new(false),
            doorbell,
        };
        let now = clock.now();
        quiescence.wake(config.id.0 as usize);
        Ok(Self {
            cx: Cx {
                handle: ReactorHandle {
                    id: config.id,
                    inbox: Arc::new(inbox),
                },
                clock,
                now: Cell::new(now),
                random: Cell::new(config.seed),
                next_poller: Cell::new(1),
                changes: RefCell::new(Vec::new()),
                locals: RefCell::new(HashMap::new()),
            },
            quiescence,
            pollers: Vec::new(),
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

    /// One round: quiescent point, inbox, pollers. Returns how many events were handled.
    pub fn step(&mut self) -> u32 {
        self.quiescence.pass(self.cx.handle.id.0 as usize);
        self.cx.now.set(self.cx.clock.now());
        let mut handled = 0_u32;
        while let Some(message) = self.cx.handle.inbox.messages.pop() {
            message(&self.cx);
            handled = handled.saturating_add(1);
        }
        self.apply_changes();
        let now = self.cx.now.get();
        for slot in &mut self.pollers {
            if let Some(period) = slot.period {
                if now < slot.due {
                    continue;
                }
                slot.due = now.after(period);
            }
            handled = handled.saturating_add(slot.poller.poll(&self.cx, 64));
        }
        self.apply_changes();
        handled
    }

    /// When the loop must run again if nothing rings.
    #[must_use]
    pub fn wake(&self) -> Wake {
        self.pollers.iter().fold(Wake::OnEvent, |wake, slot| {
            let own = match slot.period {
                Some(_) => Wake::At(slot.due),
                None => slot.poller.wake(),
            };
            wake.sooner(own)
        })
    }

    fn apply_changes(&mut self) {
        loop {
            let changes = std::mem::take(&mut *self.cx.changes.borrow_mut());
            if changes.is_empty() {
                return;
            }
            for change in changes {
                match change {
                    Change::Add(id, _name, period, poller) => {
                        let due = self.cx.now.get();
                        self.pollers.push(Slot {
                            id,
                            period,
                            due,
                            poller,
                        });
                    }
                    Change::Remove(id) => self.pollers.retain(|slot| slot.id != id),
                    Change::Watch(_) | Change::Unwatch(_) => {}
                }
            }
        }
    }
}
