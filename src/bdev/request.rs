//! What travels through a channel.

use super::{IoBuf, MemView};
use crate::units::ByteRange;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer from the range.
    Read,
    /// Store the data.
    Write {
        /// Complete only once it is on stable media.
        fua: bool,
    },
    /// Make every write durable that completed before this was submitted. The range is ignored.
    Flush,
    /// The range's content is no longer wanted; what it reads as afterwards is up to the device.
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// The device may give the space back.
        may_unmap: bool,
        /// Complete only once it is on stable media.
        fua: bool,
    },
    /// Bring the range into a cache, if there is one. A hint.
    Prefetch,
    /// Tell what the range consists of: completes with [`Data::Extents`].
    Extents,
}

impl Op {
    /// Whether it changes what later reads return.
    #[must_use]
    pub fn modifies(self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard | Self::WriteZeroes { .. }
        )
    }
}

/// A run of blocks of one nature, as [`Op::Extents`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// The device holds no data for it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
    /// It is in the cache.
    pub cached: bool,
    /// It is newer in the cache than on the backing.
    pub dirty: bool,
}

impl Extent {
    /// Data of which nothing else is known.
    #[must_use]
    pub fn allocated(len: u64) -> Self {
        Self {
            len,
            hole: false,
            zero: false,
            cached: false,
            dirty: false,
        }
    }
}

/// The memory of a request.
#[derive(Debug, Default)]
pub enum Data {
    /// None: flush, discard, and so on.
    #[default]
    None,
    /// Memory that the request owns: source of a write, target of a read.
    Buf(IoBuf),
    /// Several pieces of memory that stay as they are meanwhile: source of a write.
    Gather(Vec<MemView>),
    /// What [`Op::Extents`] found, in order, covering exactly the range.
    Extents(Vec<Extent>),
}

impl Data {
    /// Bytes of payload.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::None | Self::Extents(_) => 0,
            Self::Buf(buf) => buf.len() as u64,
            Self::Gather(views) => views.iter().map(|v| v.len() as u64).sum(),
        }
    }

    /// Whether there is no payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer, if it is one.
    #[must_use]
    pub fn into_buf(self) -> Option<IoBuf> {
        match self {
            Self::Buf(buf) => Some(buf),
            _ => None,
        }
    }
}

/// One I/O.
#[derive(Debug)]
pub struct Request {
    /// The submitter's own number; comes back in the completion.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// Where, in bytes.
    pub range: ByteRange,
    /// Its memory; for reads and writes exactly as long as the range.
    pub data: Data,
}

impl Request {
    /// Ends it with `status`; the memory goes back.
    #[must_use]
    pub fn complete(self, status: IoStatus) -> Completion {
        Completion {
            tag: self.tag,
            status,
            data: self.data,
        }
    }
}

/// How an I/O ended. The detail was counted and logged where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoStatus {
    /// Done.
    Ok,
    /// The device or its medium failed.
    IoError,
    /// Stored data do not match their checksum and no other copy is right.
    Corrupt,
    /// The range leaves the device.
    OutOfRange,
    /// Offset or length is not a multiple of the block.
    Unaligned,
    /// The request contradicts itself.
    Invalid,
    /// The device takes no writes.
    ReadOnly,
    /// The device can't do this.
    NotSupported,
    /// No space; never said by a cache that can wait.
    NoSpace,
    /// Given up on request of the submitter, or because the device is being removed.
    Aborted,
}

impl IoStatus {
    /// How many there are; each as a number is below.
    pub(crate) const COUNT: usize = Self::Aborted as usize + 1;

    /// Whether it is [`IoStatus::Ok`].
    #[must_use]
    pub fn is_ok(self) -> bool {
        self == Self::Ok
    }

    /// The first failure of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self.is_ok() { other } else { self }
    }
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// How it ended.
    pub status: IoStatus,
    /// The request's memory; after a failed read its content is undefined.
    pub data: Data,
}
