//! Byte-addressable memory as a bdev: DAX devices, files on DAX file systems, ordinary files, RAM.
//!
//! [`PmemBdev::open`] finds out what a path is, locks and maps it. The engine takes the medium
//! ([`crate::bdev::Pmem`]) from it; anybody else can read and write its blocks through a channel.
//! What its barrier means is stated as it is, never better.

mod barrier;
mod barrier_sys;
mod channel;
mod config;
mod device;
mod map;
mod medium;
mod open;
mod page_size;
mod persist;
mod read_only;
mod sigbus;

pub use config::{PersistenceWish, PmemConfig, PmemDescription, PmemKind};
pub use device::PmemBdev;
pub use persist::{CopyKernel, FlushMethod};
pub use read_only::ReadOnlyPmem;
pub(crate) use sigbus::Guarded;
