//! What each reactor has done for NVMe hosts.

use reactors::ReactorId;
use std::sync::atomic::{AtomicU64, Ordering};

/// Figures of one reactor (`nvmf_get_stats`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReactorFigures {
    /// Which.
    pub reactor: ReactorId,
    /// Admin qpairs that have ever been connected.
    pub admin_qpairs: u64,
    /// I/O qpairs that have ever been connected.
    pub io_qpairs: u64,
    /// Admin qpairs now.
    pub current_admin_qpairs: u64,
    /// I/O qpairs now.
    pub current_io_qpairs: u64,
    /// Connections without Connect so far.
    pub current_unassociated_qpairs: u64,
    /// I/O requests that bdevs have now.
    pub pending_bdev_io: u64,
    /// I/O commands that have completed.
    pub completed_nvme_io: u64,
}

/// The counters behind the figures; only their reactor writes.
#[derive(Debug)]
pub(super) struct ReactorCounters {
    pub(super) reactor: ReactorId,
    pub(super) admin_qpairs: AtomicU64,
    pub(super) io_qpairs: AtomicU64,
    pub(super) current_admin: AtomicU64,
    pub(super) current_io: AtomicU64,
    pub(super) unassociated: AtomicU64,
    pub(super) pending: AtomicU64,
    pub(super) completed: AtomicU64,
}

impl ReactorCounters {
    pub(super) fn new(reactor: ReactorId) -> Self {
        Self {
            reactor,
            admin_qpairs: AtomicU64::new(0),
            io_qpairs: AtomicU64::new(0),
            current_admin: AtomicU64::new(0),
            current_io: AtomicU64::new(0),
            unassociated: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            completed: AtomicU64::new(0),
        }
    }

    pub(super) fn figures(&self) -> ReactorFigures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReactorFigures {
            reactor: self.reactor,
            admin_qpairs: get(&self.admin_qpairs),
            io_qpairs: get(&self.io_qpairs),
            current_admin_qpairs: get(&self.current_admin),
            current_io_qpairs: get(&self.current_io),
            current_unassociated_qpairs: get(&self.unassociated),
            pending_bdev_io: get(&self.pending),
            completed_nvme_io: get(&self.completed),
        }
    }
}
