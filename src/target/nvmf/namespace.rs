//! A bdev as a namespace.

use super::range_lock::RangeLocks;
use crate::bdev::Bdev;
use crate::wire::nvme::NamespacePage;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// What to offer as a namespace.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// The device.
    pub bdev: Arc<dyn Bdev>,
    /// Its number; the lowest free one if none is given.
    pub nsid: Option<u32>,
    /// Its NGUID; the UUID's bytes if none is given.
    pub nguid: Option<[u8; 16]>,
    /// Its EUI-64; none if none is given.
    pub eui64: Option<[u8; 8]>,
    /// Its UUID; the bdev's if none is given.
    pub uuid: Option<uuid::Uuid>,
    /// Its ANA group; the one of its number if none is given.
    pub ana_group: Option<u32>,
}

/// A namespace, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its number.
    pub nsid: u32,
    /// The device's name.
    pub bdev_name: String,
    /// Its identities, as hosts see them.
    pub nguid: [u8; 16],
    /// All zero for none.
    pub eui64: [u8; 8],
    /// See [`NamespaceConfig::uuid`].
    pub uuid: uuid::Uuid,
    /// What was asked for, to be asked again.
    pub nguid_wish: Option<[u8; 16]>,
    /// See there.
    pub uuid_wish: Option<uuid::Uuid>,
    /// Its ANA group.
    pub ana_group: u32,
}

/// One namespace of one subsystem.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) nsid: u32,
    config: NamespaceConfig,
    uuid: uuid::Uuid,
    /// The device's, shared with other namespaces of the same device.
    pub(super) locks: Arc<RangeLocks>,
    ana_group: AtomicU32,
    /// Qpairs with a channel.
    users: AtomicUsize,
    removed: AtomicBool,
}

impl Namespace {
    pub(super) fn new(nsid: u32, config: NamespaceConfig, locks: Arc<RangeLocks>) -> Self {
        let uuid = config.uuid.unwrap_or_else(|| config.bdev.info().uuid);
        Self {
            nsid,
            ana_group: AtomicU32::new(config.ana_group.unwrap_or(nsid)),
            config,
            uuid,
            locks,
            users: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
        }
    }

    pub(super) fn bdev(&self) -> &Arc<dyn Bdev> {
        &self.config.bdev
    }

    /// Whether it is the same device.
    pub(super) fn is_of(&self, bdev: &Arc<dyn Bdev>) -> bool {
        Arc::ptr_eq(&self.config.bdev, bdev)
    }

    pub(super) fn ana_group(&self) -> u32 {
        self.ana_group.load(Ordering::Relaxed)
    }

    pub(super) fn set_ana_group(&self, group: u32) {
        self.ana_group.store(group, Ordering::Relaxed);
    }

    pub(super) fn uuid(&self) -> [u8; 16] {
        *self.uuid.as_bytes()
    }

    /// What a host is told; with its ANA group if `ana`.
    pub(super) fn page(&self, ana: bool) -> NamespacePage {
        let info = self.config.bdev.info();
        NamespacePage {
            blocks: info.blocks,
            block_size: info.block_size,
            preferred_bytes: info.block_size.max(4096),
            read_only: info.read_only,
            discard_zeroes: info.supports.discard_zeroes,
            nguid: self.config.nguid.unwrap_or_else(|| self.uuid()),
            eui64: self.config.eui64.unwrap_or_default(),
            ana_group: if ana { self.ana_group() } else { 0 },
        }
    }

    pub(super) fn info(&self) -> NamespaceInfo {
        let page = self.page(true);
        NamespaceInfo {
            nsid: self.nsid,
            bdev_name: self.config.bdev.info().name.clone(),
            nguid: page.nguid,
            eui64: page.eui64,
            uuid: self.uuid,
            nguid_wish: self.config.nguid,
            uuid_wish: self.config.uuid,
            ana_group: page.ana_group,
        }
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    pub(super) fn set_removed(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }
}

/// A qpair's use of a namespace.
#[derive(Debug)]
pub(super) struct NamespaceClaim(Arc<Namespace>);

impl NamespaceClaim {
    pub(super) fn new(namespace: &Arc<Namespace>) -> Self {
        namespace.users.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(namespace))
    }
}

impl std::ops::Deref for NamespaceClaim {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.0
    }
}

impl Drop for NamespaceClaim {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A namespace that is no longer offered; qpairs may still be finishing what the device has.
#[derive(Debug)]
pub struct RemovedNamespace(pub(super) Arc<Namespace>);

impl RemovedNamespace {
    /// Whether no qpair uses the device any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.users.load(Ordering::SeqCst) == 0
    }

    /// The device's name.
    #[must_use]
    pub fn bdev_name(&self) -> String {
        self.0.config.bdev.info().name.clone()
    }

    /// Its number.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.0.nsid
    }
}
