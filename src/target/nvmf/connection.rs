//! One connection: a poller that receives PDUs, lets its qpair act on them, and sends the replies.

use super::listener::{ListenAddress, Presence};
use super::qpair::{Qpair, Side};
use super::receiver::{Event, Receiver};
use crate::bdev::stream::Received;
use crate::target::stream::Line;
use crate::wire::nvme::{Direction, Fault as WireFault, IcPdu, put_term};
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use rustix::io::Errno;
use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// How long a host may take until it has connected.
const CONNECT_NS: u64 = 30_000_000_000;
/// How long a host may take to read its last replies.
const GOODBYE_NS: u64 = 2_000_000_000;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Wire(#[from] WireFault),
    #[error("the host ended it: reason {0}")]
    Term(u16),
    #[error("the socket failed: {0}")]
    Socket(#[from] Errno),
    #[error("not connected in time")]
    ConnectTimeout,
    #[error("the host was not heard of for too long")]
    KeepAlive,
    #[error("closed by the host")]
    End,
}

#[derive(Debug)]
enum Phase {
    /// Until the qpair must be connected.
    Open(Nanos),
    /// Nothing is received any more. What is under way completes; then what waits is sent, until
    /// the time that is set when the last I/O has completed.
    Closing(Option<Nanos>),
}

#[derive(Debug)]
pub(super) struct Connection {
    own_id: Rc<Cell<Option<PollerId>>>,
    line: Line,
    presence: Presence,
    receiver: Receiver,
    /// Gone once nothing of it is under way.
    qpair: Option<Qpair>,
    phase: Phase,
    /// When the host was last heard of.
    heard_at: Nanos,
    /// The host is gone, or reads no more than why it must go.
    deaf: bool,
    /// The host is told why it must go: what it still sends is read and forgotten, since closing a socket
    /// with unread bytes could take the message back.
    draining: bool,
    cancelled: bool,
}

impl Connection {
    /// Takes the host in, on the reactor of `cx`.
    pub(super) fn settle_on(
        cx: &Cx,
        socket: OwnedFd,
        presence: Presence,
        address: ListenAddress,
        peer: SocketAddr,
    ) {
        let line = Line::new(cx, socket);
        let target = presence.target.clone();
        let side = Side {
            options: target.transport().unwrap_or_default(),
            counters: target.counters(cx.id()),
            target,
            address,
            peer,
        };
        let own_id = Rc::new(Cell::new(None));
        let connection = Self {
            own_id: Rc::clone(&own_id),
            receiver: Receiver::new(Rc::clone(&line.pool)),
            qpair: Some(Qpair::new(side, Rc::clone(&line.pool))),
            line,
            presence,
            phase: Phase::Open(cx.now().after(CONNECT_NS)),
            heard_at: cx.now(),
            deaf: false,
            draining: false,
            cancelled: false,
        };
        own_id.set(Some(cx.add_poller("nvmf connection", Box::new(connection))));
    }

    fn is_ordered_to_stop(&self) -> bool {
        let is_to_close = self.qpair.as_ref().is_some_and(Qpair::is_to_close);
        is_to_close || self.presence.shared.is_stopping()
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Stops receiving, and gives up what waits for space or a stalled device.
    fn close(&mut self, cx: &Cx) {
        self.line.stop_receiving(cx);
        if self.is_open() {
            self.phase = Phase::Closing(None);
        }
        if !self.cancelled {
            self.cancelled = true;
            if let Some(qpair) = &mut self.qpair {
                qpair.cancel(cx);
            }
        }
    }

    /// The host is gone, or talks nonsense: then it is told so, and nothing else.
    fn hang_up(&mut self, cx: &Cx, fault: &Fault) {
        let peer = self.qpair.as_ref().map(|qpair| qpair.side.peer);
        match fault {
            Fault::End => tracing::debug!(?peer, "nvmf: {fault}"),
            _ => tracing::info!(?peer, "nvmf: hanging up: {fault}"),
        }
        // Replies are whole PDUs, but of the first some bytes may be gone already.
        if let Fault::Wire(wire) = fault {
            let head = self.receiver.head();
            self.line
                .output
                .put(|out| put_term(Direction::FromController, *wire, head, out));
            self.draining = true;
        } else {
            self.line.clear();
        }
        self.deaf = true;
        self.close(cx);
    }

    fn reap(&mut self, cx: &Cx) -> u32 {
        let output = (!self.deaf).then_some(&mut self.line.output);
        match &mut self.qpair {
            Some(qpair) => qpair.reap(cx, output),
            None => 0,
        }
    }

    /// Uses what has been received. Returns whether more should be received now.
    fn digest(&mut self, cx: &Cx, budget: &mut u32) -> Result<bool, Fault> {
        let Some(qpair) = &mut self.qpair else {
            return Ok(false);
        };
        loop {
            self.line.leftover = *budget == 0 || qpair.is_full(&self.line.output);
            if self.line.leftover || qpair.is_lost {
                return Ok(false);
            }
            let Some(event) = self.receiver.next(&mut self.line.input, &qpair.limits())? else {
                return Ok(true);
            };
            *budget -= 1;
            match event {
                Event::Hello(hello) => {
                    let (alignment, digests) = hello.check_request()?;
                    qpair.agreed(digests, alignment);
                    self.receiver.is_open = true;
                    let answer = IcPdu::new(0, digests, qpair.limits().data_max);
                    self.line.output.put(|out| answer.put_response(out));
                }
                Event::Term(reason) => return Err(Fault::Term(reason)),
                Event::Command(sqe, payload) => {
                    qpair.command(cx, sqe, payload, &mut self.line.output)?;
                }
                Event::DataHead(pdu) => {
                    let (slot, buf, at) = qpair.data_begins(&pdu)?;
                    self.receiver.receive_into(slot, buf, at);
                }
                Event::Data {
                    slot,
                    payload,
                    end,
                    is_last,
                } => {
                    let place = (end, is_last);
                    qpair.data_arrived(cx, slot, payload, place, &mut self.line.output)?;
                }
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
            match self.line.receive(cx, self.receiver.room())? {
                Received::Nothing => {
                    budget += 1;
                    break;
                }
                Received::End => return Err(Fault::End),
                Received::Some { payload, all } => {
                    self.heard_at = cx.now();
                    all_received = all;
                    self.receiver.received(payload);
                }
            }
        }
        Ok(given - budget)
    }

    /// Whether received PDUs wait because too much is under way.
    fn is_full(&self) -> bool {
        let qpair = self.qpair.as_ref();
        self.line.leftover && qpair.is_some_and(|qpair| qpair.is_full(&self.line.output))
    }

    /// Until when the host must say something.
    fn deadline(&self) -> Option<Nanos> {
        let Phase::Open(until) = self.phase else {
            return None;
        };
        let qpair = self.qpair.as_ref()?;
        match qpair.is_connected() {
            false => Some(until),
            true => qpair.patience_ns().map(|ns| self.heard_at.after(ns)),
        }
    }

    /// Hangs up on a host that has said nothing for too long.
    fn enforce_deadline(&mut self, cx: &Cx) {
        if self.deadline().is_none_or(|until| cx.now() < until) {
            return;
        }
        let qpair = self.qpair.as_ref().filter(|qpair| qpair.is_connected());
        match qpair {
            None => self.hang_up(cx, &Fault::ConnectTimeout),
            Some(qpair) => {
                qpair.host_is_lost();
                self.hang_up(cx, &Fault::KeepAlive);
            }
        }
    }

    /// Ends the connection when nothing is left to do.
    fn settle(&mut self, cx: &Cx) {
        let Phase::Closing(until) = &mut self.phase else {
            return;
        };
        if self.qpair.as_ref().is_some_and(|qpair| !qpair.is_idle()) {
            return;
        }
        self.qpair = None;
        let until = *until.get_or_insert(cx.now().after(GOODBYE_NS));
        let is_done = self.line.output.is_empty() && !self.is_draining();
        if (is_done || cx.now() >= until)
            && let Some(id) = self.own_id.take()
        {
            self.line.clear();
            cx.remove_poller(id);
        }
    }

    /// Whether the host, told why it must go, has not gone yet.
    fn is_draining(&mut self) -> bool {
        if self.draining {
            self.draining = self.line.drain();
        }
        self.draining
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
            self.close(cx);
        }
        if self.is_open() {
            match self.receive(cx, budget) {
                Ok(0) => {}
                Ok(count) => handled += count + self.reap(cx),
                Err(fault) => self.hang_up(cx, &fault),
            }
        }
        if self.qpair.as_ref().is_some_and(|qpair| qpair.is_lost) {
            self.close(cx);
        }
        self.enforce_deadline(cx);
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
        let mut wake = self.qpair.as_ref().map_or(Wake::OnEvent, Qpair::wake);
        if let Some(until) = self.deadline() {
            wake = wake.sooner(Wake::At(until));
        }
        if let Phase::Closing(Some(until)) = self.phase {
            wake = wake.sooner(Wake::At(until));
        }
        if self.draining && self.line.output.is_empty() {
            wake = wake.sooner(self.line.look_again());
        }
        self.line.wake(wake, self.is_full(), self.is_open())
    }
}
