//! One client: a poller that goes through handshake, transmission and closing.

use super::export::NbdExports;
use super::handshake::{Handshake, HandshakeFault, Step};
use super::session::{Session, SessionFault, Took};
use super::status::Entry;
use crate::bdev::stream::Received;
use crate::target::stream::Line;
use crate::wire::nbd::put_greeting;
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use rustix::io::Errno;
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// How long a client may take to choose an export.
const HANDSHAKE_NS: u64 = 30_000_000_000;
/// How long a client may take to read its last replies.
const GOODBYE_NS: u64 = 1_000_000_000;
/// Replies that may wait during the handshake, in bytes.
const HANDSHAKE_REPLIES_MAX: usize = 256 << 10;

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

#[derive(Debug)]
pub(super) struct Connection {
    own_id: Rc<Cell<Option<PollerId>>>,
    line: Line,
    entry: Entry,
    exports: NbdExports,
    phase: Phase,
    session: Option<Session>,
    requests: u64,
    /// The client is gone: nobody reads replies.
    deaf: bool,
    cancelled: bool,
}

impl Connection {
    /// Greets the client, on the reactor of `cx`.
    pub(super) fn settle_on(cx: &Cx, socket: OwnedFd, entry: Entry, exports: NbdExports) {
        let mut line = Line::new(cx, socket);
        line.output.put(put_greeting);
        let own_id = Rc::new(Cell::new(None));
        let connection = Self {
            own_id: Rc::clone(&own_id),
            line,
            entry,
            exports,
            phase: Phase::Handshake(Handshake::default(), cx.now().after(HANDSHAKE_NS)),
            session: None,
            requests: 0,
            deaf: false,
            cancelled: false,
        };
        own_id.set(Some(cx.add_poller("nbd connection", Box::new(connection))));
    }

    fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Closing(_))
    }

    fn is_ordered_to_stop(&self) -> bool {
        self.entry.shared.is_stopping()
            || self
                .session
                .as_ref()
                .is_some_and(Session::export_is_removed)
    }

    /// Stops receiving. What is under way completes, and is answered while the client can hear.
    fn close(&mut self, cx: &Cx) {
        self.line.stop_receiving(cx);
        if self.is_open() {
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
        self.line.clear();
        self.cancel(cx);
    }

    fn reap(&mut self, cx: &Cx) -> u32 {
        let output = (!self.deaf).then_some(&mut self.line.output);
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
            return Ok(matches!(self.phase, Phase::Handshake(..)) && !self.line.leftover);
        }
        let (Phase::Transmission, Some(session)) = (&self.phase, &mut self.session) else {
            return Ok(false);
        };
        let before = *budget;
        let took = session.take(cx, &mut self.line.input, &mut self.line.output, budget)?;
        if before != *budget {
            self.requests += u64::from(before - *budget);
            let requests = &self.entry.status.requests;
            requests.store(self.requests, Ordering::Relaxed);
        }
        self.line.leftover = matches!(took, Took::Full | Took::Spent);
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
            self.line.leftover =
                *budget == 0 || self.line.output.head_bytes() > HANDSHAKE_REPLIES_MAX;
            if self.line.leftover {
                return Ok(false);
            }
            let mut step = Ok(Step::Hungry);
            let (input, exports) = (&mut self.line.input, &self.exports);
            self.line
                .output
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
                        self.line.output.put(|out| begin.accept(out));
                        let name = begin.claim.config.name.clone();
                        let _ = self.entry.status.export.set(name);
                        let pool = Rc::clone(&self.line.pool);
                        self.session = Some(Session::new(begin, channel, pool));
                        self.phase = Phase::Transmission;
                        return Ok(true);
                    }
                    Err(error) => {
                        let name = &begin.claim.config.name;
                        tracing::warn!(%error, export = %name, "nbd: can't open a channel");
                        let mut refused = Ok(());
                        self.line.output.put(|out| refused = begin.refuse(out));
                        refused?;
                    }
                },
            }
        }
    }

    /// Receives and uses what it gets, until there is no more, no room, or no budget.
    fn receive(&mut self, cx: &Cx, mut budget: u32) -> Result<u32, Fault> {
        let given = budget;
        let mut all_received = !self.line.is_due(cx);
        if all_received && !self.line.leftover {
            return Ok(0);
        }
        while self.digest(cx, &mut budget)? && !all_received && budget > 0 {
            budget -= 1;
            let payload = match &mut self.session {
                Some(session) => session.payload_room(),
                None => &mut [],
            };
            match self.line.receive(cx, payload)? {
                Received::Nothing => {
                    budget += 1;
                    break;
                }
                Received::End => return Err(Fault::End),
                Received::Some { payload, all } => {
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
        self.line.leftover && session.is_some_and(|s| s.is_full(&self.line.output))
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
        if (self.line.output.is_empty() || cx.now() >= until)
            && let Some(id) = self.own_id.take()
        {
            self.line.clear();
            cx.remove_poller(id);
        }
    }

    fn send(&mut self, cx: &Cx) -> u32 {
        match self.line.send() {
            Ok(sent) => sent.into(),
            Err(error) => {
                self.hang_up(cx, &Fault::Socket(error));
                1
            }
        }
    }
}

impl Poller for Connection {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        self.line.begin_round(cx);
        let mut handled = self.reap(cx);
        if self.is_ordered_to_stop() {
            self.cancel(cx);
        }
        if self.is_open() {
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
        if self.is_open() && self.line.watch_or_not(cx, self.is_full(), handled) {
            self.hang_up(cx, &Fault::End);
        }
        self.settle(cx);
        handled
    }

    fn wake(&self) -> Wake {
        self.line.before_sleep();
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
        self.line.wake(wake, self.is_full(), self.is_open())
    }
}
