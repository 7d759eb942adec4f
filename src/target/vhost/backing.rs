//! What a controller offers, whoever is connected.

use super::calls::SharedCoalescing;
use super::{balance, request};
use crate::bdev::{Bdev, BdevInfo};
use crate::wire::virtio::BlkConfig;
use reactors::ReactorHandle;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Queues since the start of the process: no two have the same number.
static QUEUES: AtomicU64 = AtomicU64::new(1);

/// The device behind a controller, and who runs its queues.
#[derive(Debug)]
pub(super) struct Backing {
    /// The controller's.
    pub(super) name: String,
    pub(super) bdev: Arc<dyn Bdev>,
    pub(super) read_only: bool,
    pub(super) queues: u16,
    /// At least one.
    pub(super) reactors: Vec<ReactorHandle>,
    /// What a driver that may choose has chosen last: it outlives sessions, since a front end that
    /// comes back does not say it again.
    pub(super) write_back: AtomicBool,
    /// Whether calls may wait.
    pub(super) coalescing: Arc<SharedCoalescing>,
    /// Where queue 0 goes if all are equal, so that disks with one queue do not share a reactor.
    pub(super) first: usize,
}

impl Backing {
    pub(super) fn info(&self) -> Arc<BdevInfo> {
        self.bdev.info()
    }

    pub(super) fn features(&self) -> u64 {
        request::features(&self.info(), self.read_only)
    }

    pub(super) fn config(&self) -> BlkConfig {
        request::config(&self.info(), self.queues, self.writes_back())
    }

    pub(super) fn writes_back(&self) -> bool {
        self.write_back.load(Ordering::Relaxed)
    }

    pub(super) fn set_writes_back(&self, write_back: bool) {
        self.write_back.store(write_back, Ordering::Relaxed);
    }

    /// Where queue `index` is to run.
    pub(super) fn reactor(&self, index: u16) -> Option<&ReactorHandle> {
        let start = self.first.wrapping_add(usize::from(index));
        balance::emptiest(&self.reactors, start)
    }

    pub(super) fn next_queue_id() -> u64 {
        QUEUES.fetch_add(1, Ordering::Relaxed)
    }
}
