//! How clients come in.

use super::connection::Connection;
use super::export::NbdExports;
use super::status::ServerShared;
use crate::target::stream::Door;
use reactors::Message;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The door of one server. Says that nobody listens any more, however that came.
#[derive(Debug)]
pub(super) struct NbdDoor {
    exports: NbdExports,
    shared: Arc<ServerShared>,
    connections_max: usize,
}

impl NbdDoor {
    pub(super) fn new(
        exports: NbdExports,
        shared: Arc<ServerShared>,
        connections_max: usize,
    ) -> Self {
        Self {
            exports,
            shared,
            connections_max,
        }
    }
}

impl Door for NbdDoor {
    const NAME: &'static str = "nbd";

    fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    fn welcome(&self, socket: OwnedFd, peer: String) -> Option<Message> {
        let Some(entry) = self.shared.enter(peer.clone(), self.connections_max) else {
            tracing::warn!(%peer, limit = self.connections_max, "nbd: too many connections");
            return None;
        };
        let exports = self.exports.clone();
        Some(Box::new(move |cx| {
            Connection::settle_on(cx, socket, entry, exports);
        }))
    }
}

impl Drop for NbdDoor {
    fn drop(&mut self) {
        self.shared.acceptor_gone.store(true, Ordering::Release);
    }
}
