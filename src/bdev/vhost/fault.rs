//! What goes wrong with a back end.

use rustix::io::Errno;
use std::io;

/// Why a vhost-user back end can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VhostFault {
    /// It can't be reached, hung up, or does not speak the protocol as it must.
    #[error("{0}")]
    Handshake(#[source] io::Error),
    /// It does not get through the handshake. It may serve another front end.
    #[error("the back end does not answer; does it serve another front end?")]
    Timeout,
    /// A device from before virtio 1.
    #[error("the device does not offer VERSION_1")]
    Legacy,
    /// Its blocks are none that a bdev can have.
    #[error("blocks of {block_bytes} bytes on a disk of {sectors} sectors")]
    Geometry {
        /// Bytes of a block.
        block_bytes: u32,
        /// Size in sectors of 512 bytes.
        sectors: u64,
    },
    /// No memory to share with it.
    #[error("memory to share: {0}")]
    Memory(#[source] io::Error),
    /// The disk is not what it was when the bdev was made.
    #[error("the disk had {was} sectors, now it has {is}, or it offers other features")]
    Changed {
        /// Its size in sectors when the bdev was made.
        was: u64,
        /// Its size in sectors now.
        is: u64,
    },
    /// The caller has no thread for the keeper.
    #[error("no thread: {0}")]
    Thread(#[source] io::Error),
}

impl VhostFault {
    /// The nearest number of the operating system.
    #[must_use]
    pub fn errno(&self) -> Errno {
        let of = |error: &io::Error, otherwise| Errno::from_io_error(error).unwrap_or(otherwise);
        match self {
            // Only the socket is left of whoever listened there.
            Self::Handshake(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Errno::NXIO
            }
            Self::Handshake(error) => of(error, Errno::PROTO),
            Self::Timeout => Errno::TIMEDOUT,
            Self::Legacy | Self::Geometry { .. } => Errno::OPNOTSUPP,
            Self::Memory(error) => of(error, Errno::NOMEM),
            Self::Changed { .. } => Errno::STALE,
            Self::Thread(error) => of(error, Errno::AGAIN),
        }
    }
}
