//! The poller that has the admin queue: it looks after the association, and makes it anew when it is
//! lost.

use super::NvmeFault;
use super::auth::Step;
use super::dialogue::Dialogue;
use super::live::Live;
use super::setup::{Found, Setup};
use super::shared::{Shared, Standing};
use super::watch::Watched;
use crate::bdev::stream::Pace;
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// An admin queue that is set up.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) dialogue: Dialogue,
    pub(super) found: Found,
}

/// Goes on with `setup` on `dialogue`; whether all has been said.
pub(super) fn converse(dialogue: &mut Dialogue, setup: &mut Setup) -> Result<bool, NvmeFault> {
    while dialogue.turn()? {
        if let Some(cqe) = dialogue.answer() {
            setup.answered(&cqe, dialogue.page())?;
        }
        match setup.next()? {
            Step::Say(saying) => dialogue.say(saying)?,
            Step::Wait => return Ok(false),
            Step::Done => return Ok(true),
        }
    }
    Ok(false)
}

#[derive(Debug)]
enum State {
    Live(Box<Live>),
    Opening {
        dialogue: Box<Dialogue>,
        setup: Box<Setup>,
        deadline: Nanos,
    },
    Pause(Nanos),
    Over,
}

/// The poller.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    state: State,
    watched: Watched,
    pace: Pace,
    epoch: u32,
    lost_at: Nanos,
    last_attempt: Nanos,
    poller: Rc<Cell<Option<PollerId>>>,
}

impl Keeper {
    /// Takes over an established queue, on the reactor of `cx`.
    pub(super) fn start(cx: &Cx, shared: Arc<Shared>, established: Established) {
        let poller = Rc::new(Cell::new(None));
        let mut keeper = Self {
            shared,
            state: State::Over,
            watched: Watched::default(),
            // Nothing that comes here is in a hurry.
            pace: Pace::of_listener(),
            epoch: 0,
            lost_at: cx.now(),
            last_attempt: cx.now(),
            poller: Rc::clone(&poller),
        };
        keeper.live(cx, established.dialogue, &established.found);
        keeper.watch(cx);
        poller.set(Some(cx.add_poller("nvme keeper", Box::new(keeper))));
    }

    /// How long a side waits for a sign of life.
    fn patience_ns(&self) -> Option<u64> {
        let ms = u64::from(self.shared.config.keep_alive_ms);
        (ms > 0).then_some(ms * 1_000_000)
    }

    fn live(&mut self, cx: &Cx, dialogue: Dialogue, found: &Found) {
        self.epoch = self.epoch.wrapping_add(1);
        let live = Live::new(cx.now(), dialogue, found.tells, self.patience_ns());
        self.state = State::Live(Box::new(live));
        let (epoch, cntlid) = (self.epoch, found.cntlid);
        self.shared.set_standing(Standing::Up { epoch, cntlid });
    }

    fn go_on(&mut self, cx: &Cx) -> Result<u32, NvmeFault> {
        match &mut self.state {
            State::Live(live) => {
                if self.shared.is_suspected(self.epoch) {
                    return Err(NvmeFault::AssociationEnded);
                }
                let now = cx.now();
                if !live.has_to_say(now) && !self.pace.is_due(now) {
                    return Ok(0);
                }
                let handled = live.turn(now, &self.shared)?;
                match handled {
                    0 => self.pace.silent(now),
                    _ => self.pace.heard(now),
                }
                Ok(handled)
            }
            State::Opening {
                dialogue,
                setup,
                deadline,
            } => {
                let deadline = *deadline;
                if !converse(dialogue, setup)? {
                    return match cx.now() >= deadline {
                        true => Err(NvmeFault::Timeout),
                        false => Ok(0),
                    };
                }
                self.opened(cx)
            }
            State::Pause(until) => {
                let until = *until;
                self.pause(cx, until)
            }
            State::Over => Ok(0),
        }
    }

    fn opened(&mut self, cx: &Cx) -> Result<u32, NvmeFault> {
        let State::Opening {
            dialogue, setup, ..
        } = std::mem::replace(&mut self.state, State::Over)
        else {
            return Ok(0);
        };
        let found = setup.finish().ok_or(NvmeFault::Timeout)?;
        if let Err(fault) = self.shared.recognise(&found) {
            // Kept until it has been reported.
            self.state = State::Pause(cx.now());
            return Err(fault);
        }
        let uri = &self.shared.config.uri;
        tracing::info!(%uri, cntlid = found.cntlid, "nvme: the controller is back");
        self.live(cx, *dialogue, &found);
        Ok(1)
    }

    fn pause(&mut self, cx: &Cx, until: Nanos) -> Result<u32, NvmeFault> {
        let now = cx.now();
        let uri = &self.shared.config.uri;
        if self.gives_up_at().is_some_and(|at| now >= at) {
            tracing::error!(%uri, "nvme: the controller is given up");
            self.shared.set_standing(Standing::Failed);
            self.state = State::Over;
            return Ok(1);
        }
        if now < until {
            return Ok(0);
        }
        let config = &self.shared.config;
        self.last_attempt = now;
        self.state = State::Opening {
            dialogue: Box::new(Dialogue::new(self.shared.address, config.digests())),
            setup: Box::new(Setup::new(config, Some(cx.handle()))),
            deadline: now.after(config.connect_timeout_us.saturating_mul(1000)),
        };
        self.go_on(cx)
    }

    fn gives_up_at(&self) -> Option<Nanos> {
        let patience = &self.shared.config.patience;
        patience.loss_ns().map(|ns| self.lost_at.after(ns))
    }

    fn lose(&mut self, cx: &Cx, fault: &NvmeFault) {
        let patience = self.shared.config.patience;
        let uri = &self.shared.config.uri;
        let mut until = self.last_attempt.after(patience.delay_ns());
        if let State::Live(live) = &self.state {
            tracing::warn!(%uri, "nvme: the association ends: {fault}");
            live.dialogue().complain(fault);
            self.lost_at = cx.now();
            self.shared.set_standing(Standing::Down);
            // The old association may still be at writes of ours until it has missed us for as long:
            // what is sent again, and what follows, must not be overtaken by them.
            if let (NvmeFault::Unanswered, Some(ns)) = (fault, self.patience_ns()) {
                until = until.max(cx.now().after(ns));
            }
        } else {
            match fault {
                NvmeFault::Changed { .. } | NvmeFault::Weaker(_) => {
                    tracing::error!(%uri, "nvme: not the controller that it was: {fault}");
                }
                _ => tracing::info!(%uri, "nvme: not connected: {fault}"),
            }
            if let State::Opening { dialogue, .. } = &self.state {
                dialogue.complain(fault);
            }
        }
        self.watched.set(cx, None);
        self.state = State::Pause(until);
    }

    fn watch(&mut self, cx: &Cx) {
        let wanted = match &self.state {
            State::Live(live) => live.dialogue().waits_for(),
            State::Opening { dialogue, .. } => dialogue.waits_for(),
            State::Pause(_) | State::Over => None,
        };
        self.watched.set(cx, wanted);
    }

    /// Shuts the controller down, as far as that can be done without waiting.
    fn leave(&mut self, cx: &Cx) {
        if let State::Live(live) = &mut self.state {
            live.shut_down();
        }
        self.shared.set_standing(Standing::Failed);
        self.watched.set(cx, None);
        self.state = State::Over;
        if let Some(poller) = self.poller.take() {
            cx.remove_poller(poller);
        }
    }
}

impl Poller for Keeper {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        if self.shared.is_leaving() {
            self.leave(cx);
            return 1;
        }
        let handled = match self.go_on(cx) {
            Ok(handled) => handled,
            Err(fault) => {
                self.lose(cx, &fault);
                1
            }
        };
        self.watch(cx);
        handled
    }

    fn wake(&self) -> Wake {
        self.pace.before_sleep();
        if self.shared.is_leaving() || self.must_look() {
            return Wake::Now;
        }
        match &self.state {
            State::Live(live) => live.due().map_or(Wake::OnEvent, Wake::At),
            State::Over => Wake::OnEvent,
            State::Opening { deadline, .. } => Wake::At(*deadline),
            State::Pause(until) => Wake::At(self.gives_up_at().map_or(*until, |at| at.min(*until))),
        }
    }
}

impl Keeper {
    /// A queue has asked for a new association.
    fn must_look(&self) -> bool {
        matches!(self.state, State::Live(_)) && self.shared.is_suspected(self.epoch)
    }
}
