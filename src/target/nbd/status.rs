//! What a server knows of its connections, for the control plane.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// One connection, as others see it.
#[derive(Debug)]
pub(super) struct ConnectionStatus {
    pub(super) peer: String,
    /// Set once the client has chosen.
    pub(super) export: OnceLock<String>,
    pub(super) requests: AtomicU64,
}

/// What the parts of one server share.
#[derive(Debug, Default)]
pub(super) struct ServerShared {
    pub(super) stopping: AtomicBool,
    pub(super) acceptor_gone: AtomicBool,
    connections: RwLock<Vec<Arc<ConnectionStatus>>>,
}

impl ServerShared {
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> Vec<Arc<ConnectionStatus>> {
        let connections = self.connections.read();
        connections.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Enters a connection, unless there are `connections_max` of them.
    pub(super) fn enter(self: &Arc<Self>, peer: String, connections_max: usize) -> Option<Entry> {
        let connections = self.connections.write();
        let mut connections = connections.unwrap_or_else(PoisonError::into_inner);
        if connections.len() >= connections_max {
            return None;
        }
        let status = Arc::new(ConnectionStatus {
            peer,
            export: OnceLock::new(),
            requests: AtomicU64::new(0),
        });
        connections.push(Arc::clone(&status));
        Some(Entry {
            shared: Arc::clone(self),
            status,
        })
    }
}

/// A connection's place in its server's list; given up when dropped.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shared: Arc<ServerShared>,
    pub(super) status: Arc<ConnectionStatus>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let connections = self.shared.connections.write();
        let mut connections = connections.unwrap_or_else(PoisonError::into_inner);
        connections.retain(|c| !Arc::ptr_eq(c, &self.status));
    }
}
