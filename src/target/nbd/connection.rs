//! One client: a poller that goes through handshake, transmission and closing.

use super::export::NbdExports;
use super::handshake::{Handshake, HandshakeFault, Step};
use super::session::{Session, SessionFault, Took};
use super::status::Entry;
use crate::bdev::BufPool;
use crate::bdev::stream::{Input, Pace, Received};
use crate::target::stream::{Output, peer_has_left};
use crate::wire::nbd::put_greeting;
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// How long a client may take to choose an export.
const HANDSHAKE_NS: u64 = 30_000_000_000;
/// How long a client may take to read its last replies.
const GOODBYE_NS: u64 = 1_000_000_000;
/// When to look again whether a full socket takes more; sleeping reactors watch for input only.
const BLOCKED_NS: u64 = 200_000;
/// Replies that may wait during the handshake, in bytes.
const HANDSHAKE_REPLIES_MAX: usize = 256 << 10;
/// Empty rounds after which a client with too much under way is no longer watched.
const FULL_ROUNDS_MAX: u32 = 64;
/// How often such a client is asked whether it is still there.
const ASK_NS: u64 = 100_000_000;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Handshake(#[from] HandshakeFault),
    #[error(transparent)]
    Session(#[from] SessionFault),
    #[error("the socket failed: {0}")]
    Socket(#[from] Errno),
    #[error("no export chosen in time")]
    HandshakeTimeout,
    #[error("closed by the client")]
    End,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake, Nanos),
    Transmission,
    /// Nothing is received any more. What is under way completes; then what waits is sent, until
    /// the time that is set when the last I/O has completed.
    Closing(Option<Nanos>),
}

/// This reactor's buffers, shared by its NBD connections.
#[derive(Debug, Default)]
struct Buffers(Rc<RefCell<BufPool>>);

#[derive(Debug)]
pub(super) struct Connection {
    own_id: Rc<Cell<Option<PollerId>>>,
    socket: OwnedFd,
    entry: Entry,
    exports: NbdExports,
    pool: Rc<RefCell<BufPool>>,
    input: Input,
    output: Output,
    pace: Pace,
    phase: Phase,
    session: Option<Session>,
    requests: u64,
    /// Received bytes may hold a request that is not taken yet.
    leftover: bool,
    /// The client is gone: nobody reads replies.
    deaf: bool,
    cancelled: bool,
    watched: bool,
    full_rounds: u32,
    /// When to ask again whether the client is there, while it is not watched.
    ask_at: Nanos,
    polled_at: Nanos,
}

impl Connection {
    /// Greets the client, on the reactor of `cx`.
    pub(super) fn settle_on(cx: &Cx, socket: OwnedFd, entry: Entry, exports: NbdExports) {
        let buffers = cx.local::<Buffers>(0).unwrap_or_else(|| {
            let buffers = Rc::new(Buffers::default());
            cx.set_local(0, Rc::clone(&buffers));
            buffers
        });
        let mut output = Output::default();
        output.put(put_greeting);
        cx.watch(socket.as_raw_fd());
        let own_id = Rc::new(Cell::new(None));
        let connection = Self {
            own_id: Rc::clone(&own_id),
            socket,
            entry,
            exports,
            pool: Rc::clone(&buffers.0),
            input: Input::new(),
            output,
            pace: Pace::default(),
            phase: Phase::Handshake(Handshake::default(), cx.now().after(HANDSHAKE_NS)),
            session: None,
            requests: 0,
            leftover: false,
            deaf: false,
            cancelled: false,
            watched: true,
            full_rounds: 0,
            ask_at: cx.now(),
            polled_at: cx.now(),
        };
        own_id.set(Some(cx.add_poller("nbd connection", Box::new(connection))));
    }

    fn is_ordered_to_stop(&self) -> bool {
        self.entry.shared.is_stopping()
            || self
                .session
                .as_ref()
                .is_some_and(Session::export_is_removed)
    }

    fn set_watched(&mut self, cx: &Cx, watched: bool) {
        if self.watched != watched {
            self.watched = watched;
            match watched {
                true => cx.watch(self.socket.as_raw_fd()),
                false => cx.unwatch(self.socket.as_raw_fd()),
            }
        }
    }

    /// Stops receiving. What is under way completes, and is answered while the client can hear.
    fn close(&mut self, cx: &Cx) {
        self.leftover = false;
        self.set_watched(cx, false);
        if !matches!(self.phase, Phase::Closing(_)) {
            self.phase = Phase::Closing(None);
        }
    }

    /// Closes, and gives up what waits for space or a stalled device.
    fn cancel(&mut self, cx: &Cx) {
        self.close(cx);
        if !self.cancelled {
            self.cancelled = true;
            if let Some(session) = &mut self.session {
                session.cancel(cx);
            }
        }
    }

    /// The client is gone or talks nonsense: no reply will be read.
    fn hang_up(&mut self, cx: &Cx, fault: &Fault) {
        match fault {
            Fault::End => tracing::debug!(peer = %self.entry.status.peer, "nbd: {fault}"),
            _ => tracing::info!(peer = %self.entry.status.peer, "nbd: hanging up: {fault}"),
        }
        self.deaf = true;
        self.output.clear(&self.pool);
        self.cancel(cx);
    }

    fn reap(&mut self, cx: &Cx) -> u32 {
        let output = (!self.deaf).then_some(&mut self.output);
        match &mut self.session {
            Some(session) => session.reap(cx, output),
            None => 0,
        }
    }

    /// Uses what has been received. Returns whether more should be received now.
    fn digest(&mut self, cx: &Cx, budget: &mut u32) -> Result<bool, Fault> {
        if let Phase::Handshake(..) = self.phase
            && !self.negotiate(cx, budget)?
        {
            return Ok(matches!(self.phase, Phase::Handshake(..)) && !self.leftover);
        }
        let (Phase::Transmission, Some(session)) = (&self.phase, &mut self.session) else {
            return Ok(false);
        };
        let before = *budget;
        let took = session.take(cx, &mut self.input, &mut self.output, budget)?;
        if before != *budget {
            self.requests += u64::from(before - *budget);
            let requests = &self.entry.status.requests;
            requests.store(self.requests, Ordering::Relaxed);
        }
        self.leftover = matches!(took, Took::Full | Took::Spent);
        if took == Took::Bye {
            self.close(cx);
        }
        Ok(took == Took::Hungry)
    }

    /// Goes on with the handshake. Returns whether transmission has begun.
    fn negotiate(&mut self, cx: &Cx, budget: &mut u32) -> Result<bool, Fault> {
        let Phase::Handshake(handshake, _) = &mut self.phase else {
            return Ok(false);
        };
        loop {
            self.leftover = *budget == 0 || self.output.head_bytes() > HANDSHAKE_REPLIES_MAX;
            if self.leftover {
                return Ok(false);
            }
            let mut step = Ok(Step::Hungry);
            let (input, exports) = (&mut self.input, &self.exports);
            self.output
                .put(|out| step = handshake.step(input, exports, out));
            let step = step?;
            if matches!(step, Step::Hungry) {
                return Ok(false);
            }
            *budget -= 1;
            match step {
                Step::Again | Step::Hungry => {}
                Step::Bye => {
                    self.close(cx);
                    return Ok(false);
                }
                Step::Begin(begin) => match begin.claim.config.bdev.open(cx) {
                    Ok(channel) => {
                        self.output.put(|out| begin.accept(out));
                        let name = begin.claim.config.name.clone();
                        let _ = self.entry.status.export.set(name);
                        let pool = Rc::clone(&self.pool);
                        self.session = Some(Session::new(begin, channel, pool));
                        self.phase = Phase::Transmission;
                        return Ok(true);
                    }
                    Err(error) => {
                        let name = &begin.claim.config.name;
                        tracing::warn!(%error, export = %name, "nbd: can't open a channel");
                        let mut refused = Ok(());
                        self.output.put(|out| refused = begin.refuse(out));
                        refused?;
                    }
                },
            }
        }
    }

    /// Receives and uses what it gets, until there is no more, no room, or no budget.
    fn receive(&mut self, cx: &Cx, mut budget: u32) -> Result<u32, Fault> {
        let given = budget;
        let mut all_received = !self.pace.is_due(cx.now());
        if all_received && !self.leftover {
            return Ok(0);
        }
        while self.digest(cx, &mut budget)? && !all_received && budget > 0 {
            budget -= 1;
            let payload = match &mut self.session {
                Some(session) => session.payload_room(),
                None => &mut [],
            };
            match self.input.receive(&self.socket, payload)? {
                Received::Nothing => {
                    budget += 1;
                    self.pace.silent(cx.now());
                    break;
                }
                Received::End => return Err(Fault::End),
                Received::Some { payload, all } => {
                    self.pace.heard(cx.now());
                    all_received = all;
                    if let Some(session) = &mut self.session {
                        session.payload_received(payload);
                    }
                }
            }
        }
        Ok(given - budget)
    }

    /// Whether received requests wait because too much is under way.
    fn is_full(&self) -> bool {
        let session = self.session.as_ref();
        self.leftover && session.is_some_and(|s| s.is_full(&self.output))
    }

    /// A client that has too much under way stays readable, and would keep the reactor from
    /// sleeping while a stalled device completes nothing. So it is not watched, but asked now and
    /// then whether it is still there. One that streams is not watched either, until the reactor would
    /// sleep.
    fn watch_or_not(&mut self, cx: &Cx, handled: u32) {
        if !self.is_full() {
            self.full_rounds = 0;
            self.set_watched(cx, !self.pace.is_stream());
        } else if handled == 0 {
            self.full_rounds = self.full_rounds.saturating_add(1);
            if self.watched && self.full_rounds > FULL_ROUNDS_MAX {
                self.set_watched(cx, false);
                self.ask_at = cx.now().after(ASK_NS);
            } else if !self.watched && cx.now() >= self.ask_at {
                self.ask_at = cx.now().after(ASK_NS);
                if peer_has_left(&self.socket) {
                    self.hang_up(cx, &Fault::End);
                }
            }
        }
    }

    /// Ends the connection when nothing is left to do.
    fn settle(&mut self, cx: &Cx) {
        let Phase::Closing(until) = &mut self.phase else {
            return;
        };
        if self.session.as_ref().is_some_and(|s| !s.is_idle()) {
            return;
        }
        self.session = None;
        let until = *until.get_or_insert(cx.now().after(GOODBYE_NS));
        if (self.output.is_empty() || cx.now() >= until)
            && let Some(id) = self.own_id.take()
        {
            self.output.clear(&self.pool);
            cx.remove_poller(id);
        }
    }

    fn send(&mut self, cx: &Cx) -> u32 {
        if self.output.is_empty() {
            return 0;
        }
        match self.output.send(&self.socket, &self.pool) {
            Ok(0) => 0,
            Ok(_) => 1,
            Err(error) => {
                self.hang_up(cx, &Fault::Socket(error));
                1
            }
        }
    }
}

impl Poller for Connection {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        self.polled_at = cx.now();
        let mut handled = self.reap(cx);
        if self.is_ordered_to_stop() {
            self.cancel(cx);
        }
        if !matches!(self.phase, Phase::Closing(_)) {
            match self.receive(cx, budget) {
                Ok(0) => {}
                Ok(count) => handled += count + self.reap(cx),
                Err(fault) => self.hang_up(cx, &fault),
            }
        }
        if let Phase::Handshake(_, until) = self.phase
            && cx.now() >= until
        {
            self.hang_up(cx, &Fault::HandshakeTimeout);
        }
        handled += self.send(cx);
        if !matches!(self.phase, Phase::Closing(_)) {
            self.watch_or_not(cx, handled);
        }
        self.settle(cx);
        handled
    }

    fn wake(&self) -> Wake {
        self.pace.before_sleep();
        if self.is_ordered_to_stop() && !self.cancelled {
            return Wake::Now;
        }
        let mut wake = self.session.as_ref().map_or(Wake::OnEvent, Session::wake);
        match self.phase {
            Phase::Handshake(_, until) | Phase::Closing(Some(until)) => {
                wake = wake.sooner(Wake::At(until));
            }
            Phase::Closing(None) | Phase::Transmission => {}
        }
        if !self.output.is_empty() {
            wake = wake.sooner(match self.output.is_blocked() {
                true => Wake::At(self.polled_at.after(BLOCKED_NS)),
                false => Wake::Now,
            });
        }
        match (self.leftover, self.is_full(), self.watched) {
            (true, false, _) => Wake::Now,
            // It streamed: the next round watches it again.
            (false, _, false) if !matches!(self.phase, Phase::Closing(_)) => Wake::Now,
            (true, true, false) => wake.sooner(Wake::At(self.ask_at)),
            _ => wake,
        }
    }
}
