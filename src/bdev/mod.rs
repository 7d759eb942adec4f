//! Block devices: the trait, what travels through it, and its kinds.
//!
//! A [`Bdev`] is shared by everybody; to do I/O, code that runs on a reactor opens a [`Channel`] of
//! its own, submits [`Request`]s and polls [`Completion`]s. A request owns its memory while it is
//! under way and hands it back with the completion.

mod buf;
pub(crate) mod calculator;
mod chap_keys;
mod delay;
mod error;
mod eventfd;
mod identity;
mod in_flight;
mod inline;
mod live_info;
mod malloc;
mod metered;
mod nbd;
mod null;
mod nvme;
mod passthru;
pub mod pmem;
mod pmem_api;
mod request;
#[cfg(test)]
mod rig;
mod shared_mem;
pub(crate) mod stream;
mod uring;
mod vhost;

pub use buf::{BufPool, IoBuf, MemView};
pub use chap_keys::{HostKeys, NamedKey};
pub use delay::{DelayBdev, DelayKind, DelayLatencies};
pub use error::{ErrorBdev, ErrorIo, ErrorKind, Injection};
pub use identity::{check_block_size, check_name, derived_uuid};
pub use malloc::{MallocBdev, MallocConfig};
pub use metered::{
    DepthFigures, HistogramCounts, HistogramIo, HistogramOptions, IoFigures, KindFigures,
    MeteredBdev, RateLimits, ResetFigures,
};
pub use nbd::{NbdBdev, NbdConfig, NbdFault, NbdPlace, NbdUri};
pub use null::{NullBdev, NullConfig};
pub use nvme::{
    ControllerFacts, ControllerState, NvmeAuth, NvmeBdev, NvmeConfig, NvmeController, NvmeFault,
    NvmeUri, Patience,
};
pub use passthru::PassthruBdev;
pub use pmem_api::{Barrier, BarrierTicket, Persistence, Pmem, PmemError};
pub use request::{Completion, Data, Extent, IoStatus, Op, Request};
pub use uring::{UringBdev, UringConfig, UringKind};
pub use vhost::{Keeper, VhostBdev, VhostConfig, VhostFault};

pub(crate) use eventfd::silence;

pub use crate::wire::nvme::ChapKey;

use reactors::{Cx, Wake};
use std::fmt::Debug;
use std::sync::Arc;
use uuid::Uuid;

/// What a bdev can do beyond reading and writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Supports {
    /// [`Op::Discard`] is more than a no-op.
    pub discard: bool,
    /// A discarded range reads as zeroes afterwards.
    pub discard_zeroes: bool,
    /// [`Op::WriteZeroes`] costs less than writing zeroes.
    pub write_zeroes: bool,
    /// [`Op::Extents`] tells more than "all allocated".
    pub extents: bool,
}

/// What does not change while a bdev lives.
#[derive(Clone, Debug)]
pub struct BdevInfo {
    /// Its name, unique in the service: 1 to 255 bytes of `[A-Za-z0-9_.:-]`.
    pub name: String,
    /// Which kind, as SPDK's clients know it: "Malloc disk", "URING bdev", "Pmcache volume" …
    pub product_name: &'static str,
    /// Stable identity; the same after a restart wherever the medium can keep it.
    pub uuid: Uuid,
    /// Logical block in bytes, 512 or 4096: every offset and length is a multiple.
    pub block_size: u32,
    /// Size in blocks.
    pub blocks: u64,
    /// A completed write may be lost at power failure until a flush.
    pub volatile_cache: bool,
    /// Writes are refused with [`IoStatus::ReadOnly`].
    pub read_only: bool,
    /// What else it can do.
    pub supports: Supports,
}

impl BdevInfo {
    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }

    /// Checks that `request` is inside the device, aligned, allowed, and that its memory has the
    /// length it says. Every channel calls it first.
    ///
    /// # Errors
    /// The status to complete the request with.
    pub fn admit(&self, request: &Request) -> Result<(), IoStatus> {
        let range = request.range;
        if request.op.modifies() && self.read_only {
            return Err(IoStatus::ReadOnly);
        }
        if matches!(request.op, Op::Flush) {
            return Ok(());
        }
        if range.end() > self.bytes() {
            return Err(IoStatus::OutOfRange);
        }
        if !range.is_aligned(u64::from(self.block_size)) {
            return Err(IoStatus::Unaligned);
        }
        if matches!(request.op, Op::Read | Op::Write { .. }) && request.data.len() != range.len() {
            return Err(IoStatus::Invalid);
        }
        if matches!(request.op, Op::Read) && !matches!(request.data, Data::Buf(_)) {
            return Err(IoStatus::Invalid);
        }
        Ok(())
    }
}

/// Why a bdev could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum BdevError {
    /// The operating system refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried, with the path.
        what: String,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// A parameter is out of bounds.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else holds it.
    #[error("{0} is in use by another process or bdev")]
    Busy(String),
    /// The NBD server at the other end of the address refused, or is none.
    #[error("{uri}: {source}")]
    Nbd {
        /// What was dialled.
        uri: String,
        /// What went wrong.
        #[source]
        source: NbdFault,
    },
    /// The NVMe/TCP controller at the other end of the address refused, or is none.
    #[error("{uri}: {source}")]
    Nvme {
        /// What was dialled.
        uri: String,
        /// What went wrong.
        #[source]
        source: NvmeFault,
    },
    /// The vhost-user back end at this socket can't be used.
    #[error("{path}: {source}")]
    Vhost {
        /// Its socket.
        path: String,
        /// What went wrong.
        #[source]
        source: VhostFault,
    },
    /// Not possible with this kind, here.
    #[error("{0}")]
    NotSupported(String),
}

/// A block device. Shared between threads; I/O goes through channels.
pub trait Bdev: Send + Sync + Debug {
    /// Its identity and geometry. May change only by an explicit resize.
    fn info(&self) -> Arc<BdevInfo>;

    /// Opens a channel for the code that runs on `cx`'s reactor. The channel stays there.
    ///
    /// # Errors
    /// When the operating system gives no resources.
    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError>;

    /// The byte-addressable medium below, if it is a pmem bdev.
    fn pmem(&self) -> Option<Arc<dyn Pmem>> {
        None
    }
}

/// One user's way to a bdev, on one reactor.
///
/// The user bounds how many requests it has under way; a channel parks what its own rings don't take
/// and never refuses for lack of room. Requests may complete in any order. To close, the user waits
/// until all that it submitted has completed, then drops the channel.
pub trait Channel: Debug {
    /// Starts `request`. Its completion comes out of a later [`Channel::poll`].
    fn submit(&mut self, cx: &Cx, request: Request);

    /// Makes progress and appends what has completed to `done`. Returns how much was appended.
    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32;

    /// When it must be polled again if nothing rings: [`Wake::Now`] while it has completions or
    /// progress that no doorbell announces.
    fn wake(&self) -> Wake;

    /// Gives up requests that wait for space or a stalled device, as far as that can be done: they
    /// complete with [`IoStatus::Aborted`]. I/O that a kernel has is not given up.
    fn cancel(&mut self, _cx: &Cx) {}
}
