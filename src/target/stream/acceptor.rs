//! The poller that takes connections and hands them to reactors in turn.

use super::socket::accept;
use crate::bdev::stream::Pace;
use reactors::{Cx, Message, Nanos, Poller, PollerId, ReactorHandle, Wake};
use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

/// How long to leave the listener alone when the system has no descriptors or memory left.
const PAUSE_NS: u64 = 100_000_000;

/// What a listening socket belongs to. Dropped when nobody listens there any more.
pub(in crate::target) trait Door: Send + 'static {
    /// What it is called in logs and listings.
    const NAME: &'static str;

    /// Whether to stop listening.
    fn is_stopping(&self) -> bool;

    /// Takes a connection in; the message settles it on a reactor. Nothing if there are too many.
    fn welcome(&self, socket: OwnedFd, peer: String) -> Option<Message>;
}

/// What the acceptor needs, before it is on its reactor.
#[derive(Debug)]
pub(in crate::target) struct Acceptor<D> {
    listener: OwnedFd,
    door: D,
    reactors: Vec<ReactorHandle>,
}

impl<D: Door> Acceptor<D> {
    /// Hands what connects to `listener` to `reactors` in turn; there is at least one.
    pub(in crate::target) fn new(listener: OwnedFd, door: D, reactors: Vec<ReactorHandle>) -> Self {
        Self {
            listener,
            door,
            reactors,
        }
    }

    /// Begins to accept, on the reactor of `cx`.
    pub(in crate::target) fn settle_on(self, cx: &Cx, name: &'static str) {
        cx.watch(self.listener.as_raw_fd());
        let own_id = Rc::new(Cell::new(None));
        let poller = AcceptorPoller {
            acceptor: self,
            own_id: Rc::clone(&own_id),
            next: 0,
            homeless: None,
            paused: None,
            pace: Pace::of_listener(),
        };
        own_id.set(Some(cx.add_poller(name, Box::new(poller))));
    }
}

struct AcceptorPoller<D> {
    acceptor: Acceptor<D>,
    own_id: Rc<Cell<Option<PollerId>>>,
    /// Whose turn it is.
    next: usize,
    /// A connection whose reactor had no room in its inbox.
    homeless: Option<(usize, Message)>,
    /// Until when the listener is left alone.
    paused: Option<Nanos>,
    pace: Pace,
}

impl<D: Door> AcceptorPoller<D> {
    fn retire(&mut self, cx: &Cx) {
        if let Some(id) = self.own_id.take() {
            if self.paused.is_none() {
                cx.unwatch(self.acceptor.listener.as_raw_fd());
            }
            self.homeless = None;
            cx.remove_poller(id);
        }
    }

    /// Takes one connection; returns whether there was one.
    fn accept_one(&mut self, cx: &Cx) -> bool {
        match accept(&self.acceptor.listener) {
            Ok(Some((socket, peer))) => {
                self.place(socket, peer);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "{}: can't accept; the listener rests for 100 ms", D::NAME);
                // It stays readable, and would keep the reactor from sleeping.
                cx.unwatch(self.acceptor.listener.as_raw_fd());
                self.paused = Some(cx.now().after(PAUSE_NS));
                false
            }
        }
    }

    fn place(&mut self, socket: OwnedFd, peer: String) {
        let Some(message) = self.acceptor.door.welcome(socket, peer) else {
            return;
        };
        let home = self.next % self.acceptor.reactors.len();
        self.next = home + 1;
        self.homeless = Some((home, message));
        self.send_home();
    }

    fn send_home(&mut self) {
        if let Some((home, message)) = self.homeless.take()
            && let Err(full) = self.acceptor.reactors[home].send(message)
        {
            self.homeless = Some((home, full.0));
        }
    }

    fn end_pause(&mut self, cx: &Cx) {
        if self.paused.is_some_and(|until| cx.now() >= until) {
            self.paused = None;
            cx.watch(self.acceptor.listener.as_raw_fd());
        }
    }
}

impl<D: Door> Poller for AcceptorPoller<D> {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        if self.acceptor.door.is_stopping() {
            self.retire(cx);
            return 1;
        }
        self.end_pause(cx);
        self.send_home();
        if self.paused.is_some() || !self.pace.is_due(cx.now()) {
            return 0;
        }
        let mut count = 0;
        while count < budget && self.homeless.is_none() && self.accept_one(cx) {
            count += 1;
        }
        match count {
            0 => self.pace.silent(cx.now()),
            _ => self.pace.heard(cx.now()),
        }
        count
    }

    fn wake(&self) -> Wake {
        self.pace.before_sleep();
        if self.acceptor.door.is_stopping() || self.homeless.is_some() {
            return Wake::Now;
        }
        self.paused.map_or(Wake::OnEvent, Wake::At)
    }
}
