//! What a controller offers, whoever is connected.

use super::request;
use crate::bdev::{Bdev, BdevInfo};
use crate::wire::virtio::BlkConfig;
use reactors::ReactorHandle;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Where queue 0 goes, so that disks with one queue do not share a reactor.
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
        request::config(&self.info(), self.queues)
    }

    /// Where queue `index` runs.
    pub(super) fn reactor(&self, index: u16) -> Option<&ReactorHandle> {
        let count = self.reactors.len().max(1);
        self.reactors
            .get((self.first % count + usize::from(index)) % count)
    }

    pub(super) fn next_queue_id() -> u64 {
        QUEUES.fetch_add(1, Ordering::Relaxed)
    }
}
