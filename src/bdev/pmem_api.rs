//! Byte-addressable persistent memory as the engine sees it, real or simulated.

use super::{BdevError, MemView};
use reactors::{Cx, Wake};
use std::fmt::Debug;

/// What a barrier on a medium means (`docs/operations.md`, durability).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Persistence {
    /// Cache-line write-back and fence reach the persistence domain: devdax, or `MAP_SYNC`.
    Dax,
    /// An ordinary file: fdatasync of what was stored.
    Msync,
    /// RAM or tmpfs: outlives the process at best, never the power.
    Volatile,
}

/// Why a medium failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PmemError {
    /// The barrier failed; what was stored since the last good one may be lost. Final.
    #[error("the medium's barrier failed (errno {0}); stores since the last one may be lost")]
    BarrierFailed(i32),
    /// The operating system keeps pages of the medium in memory, which can't be told from the truth.
    #[error("{pages} pages of the medium's file stay in memory, so its content can't be believed")]
    Unsettled {
        /// How many.
        pages: u64,
    },
    /// These bytes are lost: the medium no longer takes or gives them.
    #[error("{len} bytes at {at:#x} of the medium can't be read or written")]
    Poison {
        /// Where.
        at: u64,
        /// How many.
        len: u64,
    },
}

/// Numbers the barriers of one [`Barrier`]; a later one has a higher number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BarrierTicket(pub u64);

/// One reactor's barriers. A barrier covers the stores that this reactor made before it was
/// submitted, and may complete later: a reactor never blocks. Behind `submit` other threads see
/// these stores before any later one, on every medium.
pub trait Barrier: Debug {
    /// Starts a barrier for all that this reactor has stored so far.
    fn submit(&mut self, cx: &Cx) -> BarrierTicket;

    /// The highest ticket such that it and all before it have completed.
    ///
    /// # Errors
    /// [`PmemError::BarrierFailed`], for good: a failed barrier is never retried.
    fn poll(&mut self, cx: &Cx) -> Result<BarrierTicket, PmemError>;

    /// When to poll again if nothing rings.
    fn wake(&self) -> Wake;
}

/// A byte-addressable medium. Offsets that leave it are our own bugs: the methods assert.
pub trait Pmem: Send + Sync + Debug {
    /// Size in bytes.
    fn bytes(&self) -> u64;

    /// What its barrier means.
    fn persistence(&self) -> Persistence;

    /// Stores `src` at `at`: visible at once, durable after a barrier. Stores of whole aligned
    /// 8-byte words are never torn.
    ///
    /// # Errors
    /// [`PmemError::Poison`] if some of these bytes can't be stored; others may have been.
    fn store(&self, at: u64, src: &[u8]) -> Result<(), PmemError>;

    /// As [`Pmem::store`], for data that nobody but this thread reads before this thread's next
    /// barrier: until then they may reach the medium and other threads behind what it stores later.
    /// In return nothing waits for the write buffers.
    ///
    /// # Errors
    /// As [`Pmem::store`].
    fn store_data(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        self.store(at, src)
    }

    /// As [`Pmem::store_data`], and returns the CRC-32C of `src`.
    ///
    /// # Errors
    /// As [`Pmem::store`].
    fn store_data_crc(&self, at: u64, src: &[u8]) -> Result<u32, PmemError> {
        self.store_data(at, src)?;
        Ok(crc_fast::crc32_iscsi(src))
    }

    /// Reads into `dst`, whose content is anything after an error.
    ///
    /// # Errors
    /// [`PmemError::Poison`] if some of these bytes can't be read.
    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError>;

    /// A view for a device to write from, without a copy. The caller sees to it that nobody stores
    /// there while the view lives (references, section 7 of the engine's specification). What the
    /// device has read counts only if [`Pmem::check`] finds nothing afterwards.
    ///
    /// # Errors
    /// [`PmemError::Poison`] if some of these bytes are known to be lost.
    fn view(&self, at: u64, len: usize) -> Result<MemView, PmemError>;

    /// Whether all that was read from a view of these bytes until now was what the medium holds.
    /// Accesses nothing.
    ///
    /// # Errors
    /// [`PmemError::Poison`] if some of these bytes turned out to be lost.
    fn check(&self, at: u64, len: usize) -> Result<(), PmemError>;

    /// Writes the lines of a range back that an earlier process may have left in CPU caches; the
    /// next barrier covers them.
    fn write_back(&self, at: u64, len: u64);

    /// A barrier object for the code that runs on `cx`'s reactor.
    ///
    /// # Errors
    /// When the operating system gives no resources.
    fn open_barrier(&self, cx: &Cx) -> Result<Box<dyn Barrier>, BdevError>;

    /// Waits for a barrier over all stores of this thread: for control threads, never on a reactor.
    ///
    /// # Errors
    /// [`PmemError::BarrierFailed`], for good.
    fn barrier_wait(&self) -> Result<(), PmemError>;

    /// Makes what [`Pmem::load`] returns from now on the truth about the medium: a barrier, and
    /// where the operating system keeps pages of the medium in memory, it reads them again. After
    /// the failed barrier of an earlier process such pages may be newer than the medium, for ever
    /// unwritten. For control threads, before anything of the medium is believed; nobody stores or
    /// holds a view meanwhile.
    ///
    /// # Errors
    /// [`PmemError::BarrierFailed`], for good. [`PmemError::Unsettled`] if pages stay in memory, since
    /// somebody else holds them.
    fn settle(&self) -> Result<(), PmemError> {
        self.barrier_wait()
    }
}
