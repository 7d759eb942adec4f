//! A listening server, as the control plane holds it.

use super::NbdError;
use super::door::NbdDoor;
use super::export::NbdExports;
use super::socket::listen;
use super::status::ServerShared;
use crate::target::stream::{Acceptor, wake_all};
use crate::target::unix_socket::SocketFile;
use reactors::ReactorHandle;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// `unix:/path`.
    Unix(PathBuf),
    /// `ip:port`.
    Tcp(SocketAddr),
}

impl FromStr for NbdAddress {
    type Err = NbdError;

    fn from_str(text: &str) -> Result<Self, NbdError> {
        let bad = || NbdError::BadAddress(text.to_owned());
        match text.strip_prefix("unix:") {
            Some("") => Err(bad()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| bad()),
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct NbdOptions {
    /// Connections at a time; a further one is closed at once.
    pub max_connections: usize,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            max_connections: 256,
        }
    }
}

/// One connection, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// `ip:port`, or `unix:pid=…`.
    pub peer: String,
    /// The export's name; nothing during the handshake.
    pub export: Option<String>,
    /// Requests received so far.
    pub requests: u64,
}

/// A server that listens on one address. Stops when dropped.
#[derive(Debug)]
pub struct NbdServer {
    address: NbdAddress,
    shared: Arc<ServerShared>,
    reactors: Vec<ReactorHandle>,
    file: Option<SocketFile>,
}

impl NbdServer {
    /// Listens on `address` and serves `exports` on `reactors`: the first accepts, connections go
    /// to each in turn. Clients can connect when this returns.
    ///
    /// # Errors
    /// [`NbdError::AddressInUse`], [`NbdError::NotASocket`], [`NbdError::Listen`] or
    /// [`NbdError::NoReactor`].
    pub fn start(
        address: &NbdAddress,
        exports: &NbdExports,
        reactors: Vec<ReactorHandle>,
        options: NbdOptions,
    ) -> Result<Self, NbdError> {
        let first = reactors.first().ok_or(NbdError::NoReactor)?.clone();
        let listening = listen(address)?;
        exports.register(&reactors);
        let shared = Arc::new(ServerShared::default());
        let door = NbdDoor::new(
            exports.clone(),
            Arc::clone(&shared),
            options.max_connections,
        );
        let acceptor = Acceptor::new(listening.fd, door, reactors.clone());
        first
            .send(Box::new(move |cx| acceptor.settle_on(cx, "nbd acceptor")))
            .map_err(|_| NbdError::NoReactor)?;
        Ok(Self {
            address: listening.address,
            shared,
            reactors,
            file: listening.file,
        })
    }

    /// Where it listens; with the real port if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> &NbdAddress {
        &self.address
    }

    /// Who is connected now.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let connections = self.shared.connections();
        let lines = connections.iter().map(|status| ConnectionInfo {
            peer: status.peer.clone(),
            export: status.export.get().cloned(),
            requests: status.requests.load(Ordering::Relaxed),
        });
        lines.collect()
    }

    /// Stops accepting, removes the socket file, and lets every connection end: what waits is
    /// answered with "shutting down", what the devices have is finished first. Returns at once.
    pub fn stop(&mut self) {
        self.file = None;
        self.shared.stopping.store(true, Ordering::SeqCst);
        wake_all(&self.reactors);
    }

    /// Whether, after [`NbdServer::stop`], nothing of it is left on any reactor.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.acceptor_gone.load(Ordering::Acquire) && self.shared.connections().is_empty()
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop();
    }
}
