//! The I/O queue of a reactor, the channels that share it, and the poller that looks after it.

use super::NvmeFault;
use super::auth::{HostAuth, Step};
use super::controller::NvmeController;
use super::dialogue::{Dialogue, complain};
use super::jobs::{Jobs, Terms};
use super::outbox::Outbox;
use super::plan::at_once;
use super::receive::{Heard, Receiver};
use super::setup;
use super::shared::{Seat, Shared, Standing};
use super::watch::Watched;
use crate::bdev::inline::take_all;
use crate::bdev::live_info::{Gate, LiveInfo};
use crate::bdev::stream::Pace;
use crate::bdev::{BdevError, BdevInfo, Channel, Completion, IoStatus, Request};
use crate::wire::nvme::Status;
use reactors::{Cx, Interest, Nanos, Poller, PollerId, Wake};
use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// How long a controller may take to answer what a user has given up.
const GIVE_UP_NS: u64 = 1_000_000_000;
/// How often, and how long apart, a controller may say that a queue that has ended is in use.
const IN_USE_MAX: u32 = 40;
const IN_USE_NS: u64 = 50_000_000;
/// How often to look whether there is an association again: nobody rings for that.
const LOOK_NS: u64 = 10_000_000;

#[derive(Debug)]
enum State {
    /// There is no queue: it waits for an association with another number than this, and a time.
    Waiting { not: u32, until: Nanos },
    Opening {
        dialogue: Box<Dialogue>,
        epoch: u32,
        connects: bool,
        auth: Option<Box<HostAuth>>,
        deadline: Nanos,
    },
    Live {
        socket: OwnedFd,
        receiver: Box<Receiver>,
        epoch: u32,
    },
}

/// Waiting for another association than `not`.
fn waiting(not: u32) -> State {
    State::Waiting {
        not,
        until: Nanos::default(),
    }
}

/// A queue, shared by its channels and its poller.
#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
    /// Its place among the controller's queues, until it is left.
    seat: Option<Seat>,
    state: State,
    jobs: Jobs,
    outbox: Outbox,
    pace: Pace,
    watched: Watched,
    /// Since when there is none.
    down_since: Nanos,
    /// When to look again for what nobody rings for.
    look_at: Nanos,
    /// Requests fail instead of waiting.
    refuses: bool,
    /// How often the controller said lately that the queue is still in use.
    in_use: u32,
    /// When what was given up must have ended.
    give_up_at: Option<Nanos>,
    /// The last channel is gone.
    abandoned: bool,
    poller: Option<PollerId>,
}

impl Link {
    /// The reactor's queue to a controller; begins to connect if there is none.
    pub(super) fn of_reactor(
        cx: &Cx,
        shared: &Arc<Shared>,
    ) -> Result<Rc<RefCell<Self>>, BdevError> {
        if let Some(link) = cx.local::<RefCell<Self>>(shared.key) {
            link.borrow_mut().abandoned = false;
            return Ok(link);
        }
        let link = Rc::new(RefCell::new(Self {
            seat: Some(shared.take_seat()?),
            state: State::Waiting {
                not: 0,
                until: cx.now(),
            },
            jobs: Jobs::new(Arc::clone(shared)),
            shared: Arc::clone(shared),
            outbox: Outbox::default(),
            pace: Pace::default(),
            watched: Watched::default(),
            down_since: cx.now(),
            look_at: cx.now(),
            refuses: false,
            in_use: 0,
            give_up_at: None,
            abandoned: false,
            poller: None,
        }));
        let poller = cx.add_poller("nvme initiator", Box::new(LinkPoller(Rc::clone(&link))));
        link.borrow_mut().poller = Some(poller);
        cx.set_local(shared.key, Rc::clone(&link));
        Ok(link)
    }

    /// Goes on; `listen`: also looks for answers. Returns how much happened.
    fn turn(&mut self, cx: &Cx, listen: bool) -> u32 {
        let handled = match self.go_on(cx, listen) {
            Ok(handled) => handled,
            Err(fault) => {
                self.lose(cx, &fault);
                1
            }
        };
        self.watch(cx);
        handled
    }

    fn go_on(&mut self, cx: &Cx, listen: bool) -> Result<u32, NvmeFault> {
        if self.give_up_at.is_some_and(|at| cx.now() >= at) {
            self.give_up_at = None;
            if self.jobs.has_given_up() {
                return Err(NvmeFault::GivenUp);
            }
        }
        let standing = self.shared.standing();
        match &self.state {
            State::Waiting { not, until } => {
                let (not, is_time) = (*not, cx.now() >= *until);
                self.look(cx, standing, is_time.then_some(not));
                return Ok(0);
            }
            State::Opening { epoch, .. } | State::Live { epoch, .. } => {
                let is_ours = matches!(standing, Standing::Up { epoch: is, .. } if is == *epoch);
                if !is_ours {
                    return Err(NvmeFault::AssociationEnded);
                }
            }
        }
        if matches!(self.state, State::Opening { .. }) {
            return self.connect(cx);
        }
        let State::Live {
            socket, receiver, ..
        } = &mut self.state
        else {
            return Ok(0);
        };
        let mut handled = 0;
        if !self.outbox.is_empty() || self.jobs.has_next() {
            handled += self.outbox.send(&socket, &mut self.jobs)?;
        }
        if listen && self.pace.is_due(cx.now()) {
            match receiver.receive(&socket, &mut self.jobs)? {
                Heard::Nothing => self.pace.silent(cx.now()),
                Heard::Something => {
                    self.pace.heard(cx.now());
                    handled += 1;
                }
            }
        }
        Ok(handled)
    }

    /// Without a queue: begins one if there is an association, and ends requests that have waited too
    /// long.
    fn look(&mut self, cx: &Cx, standing: Standing, not: Option<u32>) {
        self.look_at = cx.now().after(LOOK_NS);
        let fast_fail = self.shared.config.patience.fast_fail_ns();
        let waited = cx.now().since(self.down_since);
        match standing {
            Standing::Up { epoch, .. } if not.is_some_and(|not| epoch != not) => {
                self.open(cx, epoch);
            }
            Standing::Failed => self.refuse_all(),
            Standing::Up { .. } | Standing::Down => {
                if fast_fail.is_some_and(|after| waited >= after) {
                    self.refuse_all();
                }
            }
        }
    }

    /// Whether there is an association, of which the queue may not have heard yet.
    fn may_come_back(&self) -> bool {
        matches!(self.shared.standing(), Standing::Up { .. })
    }

    fn refuse_all(&mut self) {
        if !self.refuses {
            let uri = &self.shared.config.uri;
            tracing::warn!(%uri, "nvme: I/O fails while the controller is away");
        }
        self.refuses = true;
        self.jobs.fail_all(IoStatus::IoError);
    }

    fn open(&mut self, cx: &Cx, epoch: u32) {
        let config = &self.shared.config;
        let dialogue = Dialogue::new(self.shared.address, config.digests());
        self.state = State::Opening {
            dialogue: Box::new(dialogue),
            epoch,
            connects: false,
            auth: None,
            deadline: cx
                .now()
                .after(config.connect_timeout_us.saturating_mul(1000)),
        };
    }

    fn connect(&mut self, cx: &Cx) -> Result<u32, NvmeFault> {
        let State::Opening {
            dialogue,
            epoch,
            connects,
            auth,
            deadline,
        } = &mut self.state
        else {
            return Ok(0);
        };
        if cx.now() >= *deadline {
            return Err(NvmeFault::Timeout);
        }
        if !dialogue.turn()? {
            return Ok(0);
        }
        let Standing::Up { cntlid, .. } = self.shared.standing() else {
            return Err(NvmeFault::AssociationEnded);
        };
        if !*connects {
            *connects = true;
            let entries = self.shared.queue_entries();
            let size = u16::try_from(entries - 1).unwrap_or(u16::MAX);
            let config = &self.shared.config;
            let qid = self.seat.as_ref().map_or(0, Seat::qid);
            dialogue.say(setup::connect(config, qid, cntlid, size))?;
            return Ok(1);
        }
        let epoch = *epoch;
        if let Some(cqe) = dialogue.answer() {
            match auth {
                Some(auth) => auth.answered(&cqe, dialogue.page())?,
                None => {
                    let (_, wants) = setup::connected(&cqe)?;
                    let (config, waker) = (&self.shared.config, Some(cx.handle()));
                    let Some(new) = HostAuth::behind_connect(config, wants, waker)? else {
                        return self.opened(epoch);
                    };
                    *auth = Some(Box::new(new));
                }
            }
        }
        let Some(auth) = auth else {
            return Ok(0);
        };
        match auth.next()? {
            Step::Say(saying) => dialogue.say(saying).map(|()| 1),
            Step::Wait => Ok(0),
            Step::Done => self.opened(epoch),
        }
    }

    fn opened(&mut self, epoch: u32) -> Result<u32, NvmeFault> {
        let State::Opening { dialogue, .. } = std::mem::replace(&mut self.state, waiting(epoch))
        else {
            return Ok(0);
        };
        let parts = dialogue.into_parts().ok_or(NvmeFault::End)?;
        let (socket, receiver, agreed) = parts;
        self.jobs.begin(Terms { epoch, agreed });
        self.state = State::Live {
            socket,
            receiver: Box::new(receiver),
            epoch,
        };
        self.refuses = false;
        self.in_use = 0;
        self.pace = Pace::default();
        Ok(1)
    }

    /// The connection has ended, or there will be none.
    fn lose(&mut self, cx: &Cx, fault: &NvmeFault) {
        let uri = &self.shared.config.uri;
        match self.jobs.is_idle() {
            true => tracing::info!(%uri, "nvme: the queue ends: {fault}"),
            false => tracing::warn!(%uri, "nvme: the queue ends, I/O waits: {fault}"),
        }
        let until = match fault {
            // The controller has not noticed yet that the queue before has ended.
            NvmeFault::Refused { status, .. }
                if *status == Status::INVALID_QUEUE && self.in_use < IN_USE_MAX =>
            {
                self.in_use += 1;
                Some(cx.now().after(IN_USE_NS))
            }
            _ => None,
        };
        // A lost queue alone is made again on the same controller, which forgets nothing meanwhile; one
        // that can't be made puts the controller in doubt.
        let reconnects = self.shared.config.patience.reconnects();
        let not = match (&self.state, fault) {
            _ if until.is_some() => 0,
            (_, NvmeFault::AssociationEnded | NvmeFault::GivenUp) => 0,
            (State::Live { .. }, _) if reconnects => 0,
            (State::Opening { epoch, .. } | State::Live { epoch, .. }, _) => {
                self.shared.suspect(*epoch);
                *epoch
            }
            (State::Waiting { not, .. }, _) => *not,
        };
        match (&self.state, fault) {
            (
                State::Live {
                    socket, receiver, ..
                },
                NvmeFault::Pdu(fault),
            ) => complain(socket, *fault, receiver),
            (State::Opening { dialogue, .. }, fault) => dialogue.complain(fault),
            _ => {}
        }
        if matches!(self.state, State::Live { .. }) {
            self.down_since = cx.now();
        }
        self.jobs.rewind();
        self.outbox.clear();
        self.watched.set(cx, None);
        let until = until.unwrap_or(cx.now());
        self.state = State::Waiting { not, until };
    }

    fn watch(&mut self, cx: &Cx) {
        let wanted = match &self.state {
            State::Opening { dialogue, .. } => dialogue.waits_for(),
            State::Live { socket, .. } => {
                let interest = match self.outbox.is_blocked() {
                    true => Interest::ReadWrite,
                    false => Interest::Read,
                };
                Some((socket.as_raw_fd(), interest))
            }
            State::Waiting { .. } => None,
        };
        self.watched.set(cx, wanted);
    }

    /// When to go on, whoever's requests it is about.
    fn wake(&self) -> Wake {
        self.pace.before_sleep();
        if self.abandoned {
            return Wake::Now;
        }
        let wake = self.give_up_at.map_or(Wake::OnEvent, Wake::At);
        match &self.state {
            State::Waiting { not, until } => match self.shared.standing() {
                Standing::Failed if !self.jobs.is_idle() => Wake::Now,
                Standing::Up { epoch, .. } if epoch != *not => wake.sooner(Wake::At(*until)),
                _ if self.jobs.is_idle() => wake,
                _ => wake.sooner(Wake::At(self.look_at)),
            },
            State::Opening { deadline, .. } => wake.sooner(Wake::At(*deadline)),
            State::Live { .. } => {
                let unsent = !self.outbox.is_empty() || self.jobs.has_next();
                match unsent && !self.outbox.is_blocked() {
                    true => Wake::Now,
                    false => wake,
                }
            }
        }
    }

    /// Ends the queue of channels that are gone.
    fn leave(&mut self, cx: &Cx) {
        self.watched.set(cx, None);
        self.state = waiting(u32::MAX);
        self.seat = None;
        cx.remove_local::<RefCell<Self>>(self.shared.key);
        if let Some(poller) = self.poller.take() {
            cx.remove_poller(poller);
        }
    }
}

/// Sends for the channels, connects, and listens while no channel has a reason to.
struct LinkPoller(Rc<RefCell<Link>>);

impl Poller for LinkPoller {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let mut link = self.0.borrow_mut();
        if link.abandoned {
            link.leave(cx);
            return 1;
        }
        // Answers are the channels' to look for, and their users poll while they expect some.
        let listen = link.jobs.is_idle();
        link.turn(cx, listen)
    }

    fn wake(&self) -> Wake {
        self.0.borrow().wake()
    }
}

/// A channel of an [`NvmeBdev`](super::NvmeBdev).
#[derive(Debug)]
pub(super) struct NvmeChannel {
    link: Rc<RefCell<Link>>,
    number: u64,
    namespace: usize,
    /// Of which only the size changes: that is the gate's to know.
    info: Arc<BdevInfo>,
    gate: Gate,
    /// Not left while somebody may use it.
    _controller: Arc<NvmeController>,
}

impl NvmeChannel {
    pub(super) fn new(
        link: Rc<RefCell<Link>>,
        controller: Arc<NvmeController>,
        namespace: usize,
        live: &Arc<LiveInfo>,
    ) -> Self {
        let number = link.borrow_mut().jobs.add_channel();
        Self {
            link,
            number,
            namespace,
            info: live.get(),
            gate: Gate::new(live),
            _controller: controller,
        }
    }
}

impl Channel for NvmeChannel {
    /// Requests that come together go together: they are sent by the next turn.
    fn submit(&mut self, _cx: &Cx, mut request: Request) {
        let link = &mut *self.link.borrow_mut();
        let info = &self.info;
        let status = match self.gate.admit(&request) {
            Ok(()) => at_once(info, &mut request),
            Err(status) => Some(status),
        };
        match status {
            Some(status) => link.jobs.refuse(self.number, request, status),
            None if link.refuses && !link.may_come_back() => {
                link.jobs.refuse(self.number, request, IoStatus::IoError);
            }
            None => link.jobs.submit(self.number, self.namespace, info, request),
        }
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let link = &mut *self.link.borrow_mut();
        if !link.jobs.is_idle_for(self.number) {
            link.turn(cx, true);
        }
        let ready = link.jobs.ready(self.number);
        ready.map_or(0, |ready| take_all(ready, done))
    }

    fn wake(&self) -> Wake {
        let link = self.link.borrow();
        match link.jobs.has_ready(self.number) {
            true => Wake::Now,
            false => link.wake(),
        }
    }

    /// What is not sent ends at once; what is gets a second to be answered, then the connection is
    /// given up, and made anew for the others.
    fn cancel(&mut self, cx: &Cx) {
        let link = &mut *self.link.borrow_mut();
        if link.jobs.give_up(self.number) && link.give_up_at.is_none() {
            link.give_up_at = Some(cx.now().after(GIVE_UP_NS));
        }
    }
}

impl Drop for NvmeChannel {
    fn drop(&mut self) {
        let mut link = self.link.borrow_mut();
        if link.jobs.remove_channel(self.number) {
            link.abandoned = true;
        }
    }
}
