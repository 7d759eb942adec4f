//! One connection, the channel that uses it, and the poller that looks after it.

use super::NbdFault;
use super::device::{Device, HANDSHAKE_NS, LOOK_AGAIN_NS, Seat, say_goodbye};
use super::jobs::Jobs;
use super::opening::{Opened, Opening};
use super::outbox::Outbox;
use super::replies::{Heard, Replies};
use crate::bdev::inline::take_all;
use crate::bdev::stream::Pace;
use crate::bdev::{Channel, Completion, IoStatus, Request};
use reactors::{Cx, Interest, Nanos, Poller, PollerId, Wake};
use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// How long a server may take to answer what its user has given up.
const GIVE_UP_NS: u64 = 1_000_000_000;

#[derive(Debug)]
enum State {
    Opening {
        opening: Box<Opening>,
        deadline: Nanos,
        /// When to go on if no descriptor says so.
        again_at: Nanos,
    },
    Live {
        socket: OwnedFd,
        replies: Replies,
    },
    Failed,
}

/// A connection, shared by its channel and its poller.
#[derive(Debug)]
pub(super) struct Link {
    device: Arc<Device>,
    state: State,
    jobs: Jobs,
    outbox: Outbox,
    pace: Pace,
    watched: Option<(RawFd, Interest)>,
    /// When what was given up must have ended.
    give_up_at: Option<Nanos>,
    /// The channel is gone.
    abandoned: bool,
    poller: Option<PollerId>,
}

impl Link {
    /// Begins to connect, on the reactor of `cx`.
    pub(super) fn start(cx: &Cx, device: Arc<Device>) -> Rc<RefCell<Self>> {
        let state = State::Opening {
            opening: Box::new(device.dial()),
            deadline: cx.now().after(HANDSHAKE_NS),
            again_at: cx.now(),
        };
        let link = Rc::new(RefCell::new(Self {
            device,
            state,
            jobs: Jobs::default(),
            outbox: Outbox::default(),
            pace: Pace::default(),
            watched: None,
            give_up_at: None,
            abandoned: false,
            poller: None,
        }));
        let poller = cx.add_poller("nbd initiator", Box::new(LinkPoller(Rc::clone(&link))));
        link.borrow_mut().poller = Some(poller);
        link
    }

    /// Goes on; `listen`: also looks for answers. Returns how much happened.
    fn turn(&mut self, cx: &Cx, listen: bool) -> u32 {
        let handled = match self.go_on(cx, listen) {
            Ok(handled) => handled,
            Err(fault) => {
                self.fail(cx, &fault);
                1
            }
        };
        self.watch(cx);
        handled
    }

    fn go_on(&mut self, cx: &Cx, listen: bool) -> Result<u32, NbdFault> {
        if self.give_up_at.is_some_and(|at| cx.now() >= at) {
            self.give_up_at = None;
            if self.jobs.has_given_up() {
                return Err(NbdFault::GivenUp);
            }
        }
        if matches!(self.state, State::Opening { .. }) {
            return self.connect(cx);
        }
        let State::Live { socket, replies } = &mut self.state else {
            return Ok(0);
        };
        let mut handled = 0;
        if !self.outbox.is_empty() || self.jobs.has_next() {
            handled += self.outbox.send(&socket, &mut self.jobs)?;
        }
        if listen && self.pace.is_due(cx.now()) {
            match replies.receive(&socket, &mut self.jobs)? {
                Heard::Nothing => self.pace.silent(cx.now()),
                Heard::Something => {
                    self.pace.heard(cx.now());
                    handled += 1;
                }
            }
        }
        Ok(handled)
    }

    fn connect(&mut self, cx: &Cx) -> Result<u32, NbdFault> {
        let State::Opening {
            opening,
            deadline,
            again_at,
        } = &mut self.state
        else {
            return Ok(0);
        };
        if cx.now() >= *deadline {
            return Err(NbdFault::Timeout);
        }
        if opening.waits_for().is_none() && cx.now() < *again_at {
            return Ok(0);
        }
        let opened = opening.turn()?;
        *again_at = cx.now().after(LOOK_AGAIN_NS);
        let Some(Opened {
            socket,
            input,
            agreed,
        }) = opened
        else {
            return Ok(0);
        };
        self.device.recognise(&agreed)?;
        let replies = Replies::new(input, agreed.structured);
        self.state = State::Live { socket, replies };
        Ok(1)
    }

    /// Ends the connection and everything on it.
    fn fail(&mut self, cx: &Cx, fault: &NbdFault) {
        let uri = &self.device.uri;
        if self.jobs.is_idle() {
            tracing::info!(%uri, "nbd: the connection ends: {fault}");
        } else {
            tracing::warn!(%uri, "nbd: I/O fails: {fault}");
        }
        let status = match fault {
            NbdFault::GivenUp => IoStatus::Aborted,
            _ => IoStatus::IoError,
        };
        self.jobs.fail_all(status);
        self.outbox = Outbox::default();
        self.give_up_at = None;
        self.set_watched(cx, None);
        self.state = State::Failed;
    }

    fn set_watched(&mut self, cx: &Cx, wanted: Option<(RawFd, Interest)>) {
        if self.watched == wanted {
            return;
        }
        if let Some((fd, _)) = self.watched
            && wanted.is_none_or(|(new, _)| new != fd)
        {
            cx.unwatch(fd);
        }
        if let Some((fd, interest)) = wanted {
            cx.watch_for(fd, interest);
        }
        self.watched = wanted;
    }

    /// Watches for what the connection waits for.
    fn watch(&mut self, cx: &Cx) {
        let wanted = match &self.state {
            State::Opening { opening, .. } => opening.waits_for(),
            State::Live { socket, .. } => {
                let interest = match self.outbox.is_blocked() {
                    true => Interest::ReadWrite,
                    false => Interest::Read,
                };
                Some((socket.as_raw_fd(), interest))
            }
            State::Failed => None,
        };
        self.set_watched(cx, wanted);
    }

    fn wake(&self) -> Wake {
        self.pace.before_sleep();
        if self.jobs.has_ready() || self.abandoned {
            return Wake::Now;
        }
        let wake = self.give_up_at.map_or(Wake::OnEvent, Wake::At);
        match &self.state {
            State::Opening {
                opening,
                deadline,
                again_at,
            } => {
                let next = match opening.waits_for() {
                    Some(_) => *deadline,
                    None => *again_at.min(deadline),
                };
                wake.sooner(Wake::At(next))
            }
            State::Live { .. } => {
                let unsent = !self.outbox.is_empty() || self.jobs.has_next();
                match unsent && !self.outbox.is_blocked() {
                    true => Wake::Now,
                    false => wake,
                }
            }
            State::Failed => Wake::OnEvent,
        }
    }

    /// Ends the connection of a channel that is gone.
    fn leave(&mut self, cx: &Cx) {
        if let State::Live { socket, .. } = &self.state
            && self.outbox.is_empty()
        {
            say_goodbye(socket);
        }
        self.set_watched(cx, None);
        self.state = State::Failed;
        if let Some(poller) = self.poller.take() {
            cx.remove_poller(poller);
        }
    }
}

/// Sends for the channel, goes on with the handshake, and listens while the channel has no reason to.
struct LinkPoller(Rc<RefCell<Link>>);

impl Poller for LinkPoller {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let mut link = self.0.borrow_mut();
        if link.abandoned {
            link.leave(cx);
            return 1;
        }
        // Answers are the channel's to look for, and its user polls while it expects some.
        let listen = link.jobs.is_idle();
        link.turn(cx, listen)
    }

    fn wake(&self) -> Wake {
        self.0.borrow().wake()
    }
}

/// A channel of an [`NbdBdev`](super::NbdBdev).
#[derive(Debug)]
pub(super) struct NbdChannel {
    link: Rc<RefCell<Link>>,
    _seat: Seat,
}

impl NbdChannel {
    pub(super) fn new(link: Rc<RefCell<Link>>, seat: Seat) -> Self {
        Self { link, _seat: seat }
    }
}

impl Channel for NbdChannel {
    /// Requests that come together go together: they are sent by the next turn.
    fn submit(&mut self, _cx: &Cx, request: Request) {
        let link = &mut *self.link.borrow_mut();
        match link.state {
            State::Failed => link.jobs.refuse(request, IoStatus::IoError),
            State::Opening { .. } | State::Live { .. } => {
                link.jobs.submit(&link.device, request);
            }
        }
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let link = &mut *self.link.borrow_mut();
        if !link.jobs.is_idle() {
            link.turn(cx, true);
        }
        take_all(link.jobs.ready(), done)
    }

    fn wake(&self) -> Wake {
        self.link.borrow().wake()
    }

    /// What is not sent ends at once; what is gets a second to be answered, then the connection is
    /// given up.
    fn cancel(&mut self, cx: &Cx) {
        let link = &mut *self.link.borrow_mut();
        if link.jobs.give_up() && link.give_up_at.is_none() {
            link.give_up_at = Some(cx.now().after(GIVE_UP_NS));
        }
    }
}

impl Drop for NbdChannel {
    fn drop(&mut self) {
        self.link.borrow_mut().abandoned = true;
    }
}
