//! The exports of this process: what every server offers by name.

use super::NbdError;
use crate::bdev::{Bdev, BdevInfo};
use crate::target::stream::wake_all;
use crate::wire::nbd::{ExportSummary, STRING_BYTES_MAX, export_flags as flag};
use reactors::ReactorHandle;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The longest READ or WRITE that an export may take; also what clients expect. 32 MiB.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// The lowest limit that an export may set on READ and WRITE. 4 KiB.
pub const PAYLOAD_BYTES_MIN: u32 = 4096;

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// 1 to 4096 bytes.
    pub name: String,
    /// The device.
    pub bdev: Arc<dyn Bdev>,
    /// What it is, for people; may be empty.
    pub description: String,
    /// Refuse writes even if the device would take them.
    pub read_only: bool,
    /// The longest READ or WRITE in bytes: [`PAYLOAD_BYTES_MIN`] to [`PAYLOAD_BYTES_MAX`].
    pub max_payload: u32,
}

/// One line of [`NbdExports::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name.
    pub name: String,
    /// The device's name.
    pub bdev_name: String,
    /// What it is.
    pub description: String,
    /// Whether writes are refused, here or by the device.
    pub read_only: bool,
    /// Whether writes were to be refused here, whatever the device does.
    pub read_only_wish: bool,
    /// The longest READ or WRITE in bytes.
    pub max_payload: u32,
    /// Connections that use it now.
    pub connections: usize,
}

/// What to do with the clients of an export that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveMode {
    /// Refuse while there are any.
    Safe,
    /// Close their connections.
    Hard,
}

/// An export in use. Connections hold it through [`ExportClaim`]s.
#[derive(Debug)]
pub(super) struct Export {
    /// Unlike the name, never used again.
    pub(super) id: u64,
    pub(super) config: ExportConfig,
    connections: AtomicUsize,
    removed: AtomicBool,
}

impl Export {
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// What a client is told. `structured`: it negotiated structured replies.
    pub(super) fn summary<'a>(&'a self, info: &BdevInfo, structured: bool) -> ExportSummary<'a> {
        ExportSummary {
            name: &self.config.name,
            description: &self.config.description,
            bytes: info.bytes(),
            flags: transmission_flags(info, self.config.read_only, structured),
            block_min: info.block_size,
            block_preferred: info.block_size.max(4096),
            payload_max: self.config.max_payload,
        }
    }
}

/// A flush goes to the one bdev below all connections, so `CAN_MULTI_CONN` always holds. A device
/// without a volatile cache needs no flush, and the client's file system saves itself the trip.
fn transmission_flags(info: &BdevInfo, read_only: bool, structured: bool) -> u16 {
    let mut flags = flag::HAS_FLAGS | flag::CAN_MULTI_CONN | flag::SEND_CACHE | flag::SEND_FUA;
    if info.volatile_cache {
        flags |= flag::SEND_FLUSH;
    }
    if structured {
        flags |= flag::SEND_DF;
    }
    if read_only || info.read_only {
        return flags | flag::READ_ONLY;
    }
    if info.supports.discard {
        flags |= flag::SEND_TRIM;
    }
    flags | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
}

/// One connection's use of an export; keeps a `safe` removal away.
#[derive(Debug)]
pub(super) struct ExportClaim(Arc<Export>);

impl std::ops::Deref for ExportClaim {
    type Target = Export;
    fn deref(&self) -> &Export {
        &self.0
    }
}

impl Drop for ExportClaim {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An export that is no longer offered; its last connections may still be closing.
#[derive(Debug)]
pub struct RemovedExport(Arc<Export>);

impl RemovedExport {
    /// Whether no connection uses the device any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.connections.load(Ordering::Acquire) == 0
    }
}

#[derive(Debug, Default)]
struct Table {
    exports: RwLock<Vec<Arc<Export>>>,
    next_id: AtomicU64,
    /// Where connections may be, to be woken when an export goes away.
    reactors: RwLock<Vec<ReactorHandle>>,
}

/// The table of exports; clones share it. Never locked on the data path: connections look into it
/// during their handshake only.
#[derive(Clone, Debug, Default)]
pub struct NbdExports(Arc<Table>);

impl NbdExports {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Export>>> {
        self.0
            .exports
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Export>>> {
        self.0
            .exports
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a device from now on.
    ///
    /// # Errors
    /// [`NbdError::BadName`], [`NbdError::BadPayload`] or [`NbdError::Exists`].
    pub fn add(&self, config: ExportConfig) -> Result<(), NbdError> {
        let name = &config.name;
        if name.is_empty() || name.len() > STRING_BYTES_MAX || name.contains('\0') {
            return Err(NbdError::BadName(config.name));
        }
        if config.description.len() > STRING_BYTES_MAX {
            return Err(NbdError::BadName(config.description));
        }
        let payload = config.max_payload;
        let blocks_fit = payload.is_multiple_of(config.bdev.info().block_size.max(1));
        if !(PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&payload) || !blocks_fit {
            return Err(NbdError::BadPayload(payload));
        }
        let mut exports = self.write();
        if exports.iter().any(|e| e.config.name == config.name) {
            return Err(NbdError::Exists(config.name));
        }
        exports.push(Arc::new(Export {
            id: self.0.next_id.fetch_add(1, Ordering::Relaxed),
            config,
            connections: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
        }));
        Ok(())
    }

    /// Stops offering `name`. With [`RemoveMode::Hard`] its connections answer what waits with
    /// "shutting down" and close; the result tells when they have.
    ///
    /// # Errors
    /// [`NbdError::NotFound`]; [`NbdError::Busy`] with connections and [`RemoveMode::Safe`].
    pub fn remove(&self, name: &str, mode: RemoveMode) -> Result<RemovedExport, NbdError> {
        let mut exports = self.write();
        let Some(at) = exports.iter().position(|e| e.config.name == name) else {
            return Err(NbdError::NotFound(name.to_owned()));
        };
        // Claims are made under the read lock, so that none comes up behind this look.
        if let (RemoveMode::Safe, Some(export)) = (mode, exports.get(at)) {
            let connections = export.connections.load(Ordering::Acquire);
            if connections > 0 {
                return Err(NbdError::Busy {
                    name: name.to_owned(),
                    connections,
                });
            }
        }
        let export = exports.remove(at);
        drop(exports);
        export.removed.store(true, Ordering::SeqCst);
        let reactors = self.0.reactors.read();
        wake_all(&reactors.unwrap_or_else(PoisonError::into_inner));
        Ok(RemovedExport(export))
    }

    /// What is offered, in the order in which it was added.
    #[must_use]
    pub fn list(&self) -> Vec<ExportInfo> {
        let exports = self.read();
        let lines = exports.iter().map(|export| {
            let info = export.config.bdev.info();
            ExportInfo {
                name: export.config.name.clone(),
                bdev_name: info.name.clone(),
                description: export.config.description.clone(),
                read_only: export.config.read_only || info.read_only,
                read_only_wish: export.config.read_only,
                max_payload: export.config.max_payload,
                connections: export.connections.load(Ordering::Relaxed),
            }
        });
        lines.collect()
    }

    /// Names and descriptions, for LIST.
    pub(super) fn all(&self) -> Vec<Arc<Export>> {
        self.read().clone()
    }

    /// The export of this name; with an empty name the only one.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Export>> {
        Self::find_in(&self.read(), name)
    }

    /// As `find`, and counts the caller as its user.
    pub(super) fn claim(&self, name: &str) -> Option<ExportClaim> {
        let exports = self.read();
        let export = Self::find_in(&exports, name)?;
        export.connections.fetch_add(1, Ordering::AcqRel);
        Some(ExportClaim(export))
    }

    fn find_in(exports: &[Arc<Export>], name: &str) -> Option<Arc<Export>> {
        match exports {
            [only] if name.is_empty() => Some(Arc::clone(only)),
            _ => exports.iter().find(|e| e.config.name == name).cloned(),
        }
    }

    /// Says that connections may run on these reactors.
    pub(super) fn register(&self, reactors: &[ReactorHandle]) {
        let known = self.0.reactors.write();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        for reactor in reactors {
            if !known.iter().any(|k| k.id() == reactor.id()) {
                known.push(reactor.clone());
            }
        }
    }
}
