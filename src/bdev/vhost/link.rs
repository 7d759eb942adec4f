//! A channel, its queue, and the poller that looks after it.

use super::connection::Connection;
use super::device::{Device, Seat};
use super::jobs::Jobs;
use super::ring::Ring;
use crate::bdev::inline::take_all;
use crate::bdev::{Channel, Completion, IoStatus, Op, Request};
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// How long requests wait for a back end that is gone.
const HOLD_NS: u64 = 10_000_000_000;
/// How long to wait before looking again whether it is back, while requests wait for it.
const LOOK_AGAIN_NS: u64 = 5_000_000;
/// The same, when nothing waits; and how long a sleep may be while the back end may die.
const LOOK_SELDOM_NS: u64 = 100_000_000;
/// How long a back end may take to answer what its user has given up.
const GIVE_UP_NS: u64 = 1_000_000_000;

#[derive(Debug)]
enum State {
    /// There is no back end.
    Waiting {
        /// When requests stop waiting for one.
        deadline: Nanos,
        again_at: Nanos,
    },
    Live {
        /// Before the connection, whose memory it uses.
        ring: Ring,
        connection: Arc<Connection>,
    },
}

/// A queue, shared by its channel and its poller.
#[derive(Debug)]
pub(super) struct Link {
    state: State,
    device: Arc<Device>,
    jobs: Jobs,
    /// When the last turn was.
    now: Nanos,
    /// When what was given up must have ended.
    give_up_at: Option<Nanos>,
    /// Completed writes may be lost: the next flush must say so.
    owes_failure: bool,
    /// The channel is gone.
    abandoned: bool,
    poller: Option<PollerId>,
}

impl Link {
    /// Takes a queue, on the reactor of `cx`, or waits for one.
    pub(super) fn start(cx: &Cx, device: Arc<Device>) -> Rc<RefCell<Self>> {
        let now = cx.now();
        let mut link = Self {
            owes_failure: device.owes_failure(),
            device,
            state: State::Waiting {
                deadline: now.after(HOLD_NS),
                again_at: now,
            },
            jobs: Jobs::default(),
            now,
            give_up_at: None,
            abandoned: false,
            poller: None,
        };
        link.look(cx);
        let link = Rc::new(RefCell::new(link));
        let poller = cx.add_poller("vhost initiator", Box::new(LinkPoller(Rc::clone(&link))));
        link.borrow_mut().poller = Some(poller);
        link
    }

    /// Looks for a queue while there is none.
    fn look(&mut self, cx: &Cx) {
        let State::Waiting { deadline, again_at } = &mut self.state else {
            return;
        };
        if self.now < *again_at {
            return;
        }
        if let Some((ring, connection)) = self.device.take() {
            // What a predecessor was called for.
            ring.forget_calls();
            cx.watch(ring.call_fd());
            self.state = State::Live { ring, connection };
            return;
        }
        let is_late = self.now >= *deadline;
        let pause = match self.jobs.is_idle() || is_late {
            true => LOOK_SELDOM_NS,
            false => LOOK_AGAIN_NS,
        };
        *again_at = self.now.after(pause);
        if is_late {
            self.jobs.fail_all(IoStatus::IoError);
        }
    }

    /// Finds out whether there is a back end.
    fn check(&mut self, cx: &Cx) {
        self.now = cx.now();
        if let State::Live { connection, .. } = &self.state
            && connection.is_dead()
        {
            self.lose(cx, IoStatus::IoError);
        }
        self.look(cx);
    }

    /// Goes on. Returns how much happened.
    fn turn(&mut self, cx: &Cx) -> u32 {
        self.check(cx);
        let late = self.give_up_at.is_some_and(|at| self.now >= at);
        let State::Live { ring, connection } = &mut self.state else {
            return 0;
        };
        if late {
            self.give_up_at = None;
            if self.jobs.has_given_up() {
                connection.bury();
                self.lose(cx, IoStatus::Aborted);
                return 1;
            }
        }
        ring.want_calls(false);
        let mut handled = 0;
        while let Some((tag, status)) = ring.answer() {
            self.jobs.end(ring, tag, status);
            handled += 1;
        }
        handled += self.jobs.send(&self.device.disk, ring);
        if ring.announce().is_err() {
            connection.bury();
            self.lose(cx, IoStatus::IoError);
        }
        handled
    }

    /// The back end is lost, with all that it has.
    fn lose(&mut self, cx: &Cx, status: IoStatus) {
        let lost = self.jobs.fail_sent(status);
        if lost > 0 {
            let path = self.device.path.display();
            tracing::warn!(%path, lost, "vhost initiator: requests under way fail");
        }
        self.owes_failure = self.device.info.volatile_cache && !self.device.info.read_only;
        self.give_up_at = None;
        self.drop_ring(cx);
    }

    /// Ends the use of a queue that is not given back.
    fn drop_ring(&mut self, cx: &Cx) {
        if let State::Live { ring, .. } = &self.state {
            cx.unwatch(ring.call_fd());
        }
        self.state = State::Waiting {
            deadline: self.now.after(HOLD_NS),
            again_at: self.now,
        };
    }

    fn wake(&mut self) -> Wake {
        if self.jobs.has_ready() || self.abandoned {
            return Wake::Now;
        }
        let wake = self.give_up_at.map_or(Wake::OnEvent, Wake::At);
        let is_idle = self.jobs.is_idle();
        match &mut self.state {
            State::Waiting { again_at, .. } => wake.sooner(Wake::At(*again_at)),
            State::Live { ring, .. } if is_idle => {
                ring.forget_calls();
                wake
            }
            State::Live { ring, .. } => match ring.arm() || self.jobs.has_next(ring) {
                true => Wake::Now,
                false => wake.sooner(Wake::At(self.now.after(LOOK_SELDOM_NS))),
            },
        }
    }

    fn submit(&mut self, request: Request) {
        if request.op == Op::Flush && self.owes_failure {
            self.owes_failure = false;
            self.device.has_failed();
            self.jobs.refuse(request, IoStatus::IoError);
            return;
        }
        match &self.state {
            State::Waiting { deadline, .. } if self.now >= *deadline => {
                self.jobs.refuse(request, IoStatus::IoError);
            }
            State::Waiting { .. } | State::Live { .. } => {
                self.jobs.submit(&self.device, request);
            }
        }
    }

    /// Ends what a channel that is gone has left.
    fn leave(&mut self, cx: &Cx) {
        let is_idle = self.jobs.is_idle();
        if let State::Live { ring, connection } = &self.state
            && !is_idle
        {
            // Nobody may have this queue before it is empty, which nobody waits for.
            cx.unwatch(ring.call_fd());
            connection.bury();
        }
        let gone = State::Waiting {
            deadline: self.now,
            again_at: self.now,
        };
        if let State::Live { ring, connection } = std::mem::replace(&mut self.state, gone)
            && is_idle
        {
            cx.unwatch(ring.call_fd());
            connection.give(ring);
        }
        if let Some(poller) = self.poller.take() {
            cx.remove_poller(poller);
        }
    }
}

/// Notices the back end's death and return while the channel has no reason to look.
struct LinkPoller(Rc<RefCell<Link>>);

impl Poller for LinkPoller {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let mut link = self.0.borrow_mut();
        if link.abandoned {
            link.leave(cx);
            return 1;
        }
        // While its user expects answers, the user polls.
        if link.jobs.is_idle() {
            link.check(cx);
        }
        0
    }

    fn wake(&self) -> Wake {
        self.0.borrow_mut().wake()
    }
}

/// A channel of a [`VhostBdev`](super::VhostBdev).
#[derive(Debug)]
pub(super) struct VhostChannel {
    link: Rc<RefCell<Link>>,
    _seat: Seat,
}

impl VhostChannel {
    pub(super) fn new(link: Rc<RefCell<Link>>, seat: Seat) -> Self {
        Self { link, _seat: seat }
    }
}

impl Channel for VhostChannel {
    /// Requests that come together are announced together, by the next turn.
    fn submit(&mut self, cx: &Cx, request: Request) {
        let link = &mut *self.link.borrow_mut();
        link.check(cx);
        link.submit(request);
        if let State::Live { ring, .. } = &mut link.state {
            link.jobs.send(&link.device.disk, ring);
        }
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let link = &mut *self.link.borrow_mut();
        if !link.jobs.is_idle() {
            link.turn(cx);
        }
        take_all(link.jobs.ready(), done)
    }

    fn wake(&self) -> Wake {
        self.link.borrow_mut().wake()
    }

    /// What is not sent ends at once; what is gets a second to be answered, then the back end is
    /// given up.
    fn cancel(&mut self, cx: &Cx) {
        let link = &mut *self.link.borrow_mut();
        if link.jobs.give_up() && link.give_up_at.is_none() {
            link.give_up_at = Some(cx.now().after(GIVE_UP_NS));
        }
    }
}

impl Drop for VhostChannel {
    fn drop(&mut self) {
        self.link.borrow_mut().abandoned = true;
    }
}
