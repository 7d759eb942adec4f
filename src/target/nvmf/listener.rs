//! A listening address, and who has come in there.

use super::NvmfError;
use super::connection::Connection;
use super::target::NvmfTarget;
use crate::target::stream::{Acceptor, Door, listen_tcp, wake_all};
use reactors::{Message, ReactorHandle};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Where a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// As it was asked for.
    pub listener: SocketAddr,
    /// As the host sees it: a listener may be on all addresses.
    pub local: SocketAddr,
}

/// What the parts of one listener share.
#[derive(Debug, Default)]
pub(super) struct ListenerShared {
    stopping: AtomicBool,
    acceptor_gone: AtomicBool,
    connections: AtomicUsize,
}

impl ListenerShared {
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// A connection's place in its listener's and its target's counts; given up when dropped.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) shared: Arc<ListenerShared>,
    pub(super) target: NvmfTarget,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::AcqRel);
        self.target.connections().fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct NvmfDoor {
    target: NvmfTarget,
    shared: Arc<ListenerShared>,
    address: SocketAddr,
}

impl NvmfDoor {
    fn enter(&self) -> Option<Presence> {
        let most = self.target.transport()?.connections_max;
        let all = self.target.connections();
        let taken = all.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < most).then_some(count + 1)
        });
        taken.ok()?;
        self.shared.connections.fetch_add(1, Ordering::AcqRel);
        Some(Presence {
            shared: Arc::clone(&self.shared),
            target: self.target.clone(),
        })
    }
}

impl Door for NvmfDoor {
    const NAME: &'static str = "nvmf";

    fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    fn welcome(&self, socket: OwnedFd, peer: String) -> Option<Message> {
        let local = rustix::net::getsockname(&socket).ok();
        let local = local.and_then(|name| SocketAddr::try_from(name).ok())?;
        // A host that has left already has no address.
        let peer = peer.parse().ok()?;
        let Some(presence) = self.enter() else {
            tracing::warn!(%peer, "nvmf: too many connections");
            return None;
        };
        let address = ListenAddress {
            listener: self.address,
            local,
        };
        Some(Box::new(move |cx| {
            Connection::settle_on(cx, socket, presence, address, peer);
        }))
    }
}

impl Drop for NvmfDoor {
    fn drop(&mut self) {
        self.shared.acceptor_gone.store(true, Ordering::Release);
    }
}

/// A listening address. Stops when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    shared: Arc<ListenerShared>,
    reactors: Vec<ReactorHandle>,
}

impl Listener {
    /// Listens; with the real port if 0 was asked for.
    pub(super) fn start(
        address: SocketAddr,
        target: NvmfTarget,
        reactors: Vec<ReactorHandle>,
    ) -> Result<Self, NvmfError> {
        let first = reactors.first().ok_or(NvmfError::NoReactor)?.clone();
        let listening = listen_tcp(address);
        let (socket, address) =
            listening.map_err(|source| NvmfError::Listen { address, source })?;
        let shared = Arc::new(ListenerShared::default());
        let door = NvmfDoor {
            target,
            shared: Arc::clone(&shared),
            address,
        };
        let acceptor = Acceptor::new(socket, door, reactors.clone());
        first
            .send(Box::new(move |cx| acceptor.settle_on(cx, "nvmf acceptor")))
            .map_err(|_| NvmfError::NoReactor)?;
        Ok(Self {
            address,
            shared,
            reactors,
        })
    }

    /// Stops accepting, and lets every connection end. Returns at once.
    pub(super) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        wake_all(&self.reactors);
    }

    /// Whether, after [`Listener::stop`], nothing of it is left on any reactor.
    pub(super) fn is_stopped(&self) -> bool {
        self.shared.acceptor_gone.load(Ordering::Acquire)
            && self.shared.connections.load(Ordering::Acquire) == 0
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}
