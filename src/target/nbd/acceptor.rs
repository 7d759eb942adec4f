//! The poller that takes connections and hands them to reactors in turn.

use super::connection::Connection;
use super::export::NbdExports;
use super::socket::accept;
use super::status::ServerShared;
use crate::bdev::stream::Pace;
use reactors::{Cx, Message, Nanos, Poller, PollerId, ReactorHandle, Wake};
use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long to leave the listener alone when the system has no descriptors or memory left.
const PAUSE_NS: u64 = 100_000_000;

/// Says that the acceptor is gone, however it went.
#[derive(Debug)]
struct Presence(Arc<ServerShared>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.acceptor_gone.store(true, Ordering::Release);
    }
}

/// What the acceptor needs, before it is on its reactor.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: OwnedFd,
    exports: NbdExports,
    reactors: Vec<ReactorHandle>,
    connections_max: usize,
    presence: Presence,
}

impl Acceptor {
    pub(super) fn new(
        listener: OwnedFd,
        exports: NbdExports,
        shared: Arc<ServerShared>,
        reactors: Vec<ReactorHandle>,
        connections_max: usize,
    ) -> Self {
        Self {
            listener,
            exports,
            reactors,
            connections_max,
            presence: Presence(shared),
        }
    }

    /// Begins to accept, on the reactor of `cx`.
    pub(super) fn settle_on(self, cx: &Cx) {
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
        own_id.set(Some(cx.add_poller("nbd acceptor", Box::new(poller))));
    }
}

struct AcceptorPoller {
    acceptor: Acceptor,
    own_id: Rc<Cell<Option<PollerId>>>,
    /// Whose turn it is.
    next: usize,
    /// A connection whose reactor had no room in its inbox.
    homeless: Option<(usize, Message)>,
    /// Until when the listener is left alone.
    paused: Option<Nanos>,
    pace: Pace,
}

impl AcceptorPoller {
    fn shared(&self) -> &Arc<ServerShared> {
        &self.acceptor.presence.0
    }

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
                tracing::warn!(%error, "nbd: can't accept; the listener rests for 100 ms");
                // It stays readable, and would keep the reactor from sleeping.
                cx.unwatch(self.acceptor.listener.as_raw_fd());
                self.paused = Some(cx.now().after(PAUSE_NS));
                false
            }
        }
    }

    fn place(&mut self, socket: OwnedFd, peer: String) {
        let shared = Arc::clone(self.shared());
        let Some(entry) = shared.enter(peer.clone(), self.acceptor.connections_max) else {
            tracing::warn!(%peer, limit = self.acceptor.connections_max, "nbd: too many connections");
            return;
        };
        let exports = self.acceptor.exports.clone();
        let home = self.next % self.acceptor.reactors.len();
        self.next = home + 1;
        let message: Message =
            Box::new(move |cx| Connection::settle_on(cx, socket, entry, exports));
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

impl Poller for AcceptorPoller {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        if self.shared().is_stopping() {
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
        if self.shared().is_stopping() || self.homeless.is_some() {
            return Wake::Now;
        }
        self.paused.map_or(Wake::OnEvent, Wake::At)
    }
}
