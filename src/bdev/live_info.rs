//! What a bdev says of itself where its size, or whether it takes writes, may change, and how its
//! channels learn of that.

use super::{Bdev, BdevInfo, IoStatus, Request};
use std::sync::{Arc, PoisonError, RwLock};

/// The info of a bdev, of which only the size and `read_only` ever change. A filter has its base's size.
#[derive(Debug)]
pub(super) struct LiveInfo {
    now: RwLock<Arc<BdevInfo>>,
    base: Option<Arc<dyn Bdev>>,
}

impl LiveInfo {
    /// Of a device.
    pub(super) fn new(info: BdevInfo) -> Self {
        Self {
            now: RwLock::new(Arc::new(info)),
            base: None,
        }
    }

    /// Of a filter over `base`.
    pub(super) fn over(info: Arc<BdevInfo>, base: Arc<dyn Bdev>) -> Self {
        Self {
            now: RwLock::new(info),
            base: Some(base),
        }
    }

    /// As it is now.
    pub(super) fn get(&self) -> Arc<BdevInfo> {
        if let Some(base) = &self.base {
            self.set_blocks(base.info().blocks);
        }
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The device has so many blocks from now on.
    pub(super) fn set_blocks(&self, blocks: u64) {
        let now = Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner));
        self.set(blocks, now.read_only);
    }

    /// The device has so many blocks from now on, and takes writes or not.
    pub(super) fn set(&self, blocks: u64, read_only: bool) {
        let is = |info: &BdevInfo| (info.blocks, info.read_only) == (blocks, read_only);
        if is(&self.now.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(BdevInfo {
            blocks,
            read_only,
            ..(**now).clone()
        });
    }
}

/// What a channel checks requests with. It looks for another info only when it meets a request that the
/// one it knows forbids.
#[derive(Debug)]
pub(super) struct Gate {
    seen: Arc<BdevInfo>,
    live: Arc<LiveInfo>,
}

impl Gate {
    pub(super) fn new(live: &Arc<LiveInfo>) -> Self {
        Self {
            seen: live.get(),
            live: Arc::clone(live),
        }
    }

    /// See [`BdevInfo::admit`].
    pub(super) fn admit(&mut self, request: &Request) -> Result<(), IoStatus> {
        match self.seen.admit(request) {
            Err(IoStatus::OutOfRange | IoStatus::ReadOnly) => {
                self.seen = self.live.get();
                self.seen.admit(request)
            }
            other => other,
        }
    }
}
