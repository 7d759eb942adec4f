//! What goes wrong with a server.

use crate::wire::nbd::WireError;
use rustix::io::Errno;

/// Why a connection to an NBD server can't begin or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NbdFault {
    /// Its bytes are out of step, or never were NBD.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It speaks only the handshake of before 2012.
    #[error("the server has no fixed newstyle handshake")]
    NotFixedNewstyle,
    /// It refuses the export.
    #[error("the server refuses the export: {}", refusal(*.0))]
    Refused(u32),
    /// It answers an option that was not sent, or with what does not belong there.
    #[error("the server answers option {option} out of place")]
    OutOfPlace {
        /// The option that it names.
        option: u32,
    },
    /// An answer to an option has no end.
    #[error("the server answers an option with {0} bytes or more")]
    LongAnswer(u32),
    /// It began without telling the size.
    #[error("the server did not tell the size of the export")]
    NoSize,
    /// The export is not what it was when the bdev was made.
    #[error("the export had {was} bytes and flags {was_flags:#x}, now {is} and {is_flags:#x}")]
    Changed {
        /// Its size in bytes when the bdev was made.
        was: u64,
        /// Its transmission flags when the bdev was made.
        was_flags: u16,
        /// Its size in bytes on this connection.
        is: u64,
        /// Its transmission flags on this connection.
        is_flags: u16,
    },
    /// It answers a request that was not made.
    #[error("an answer to an unknown request, cookie {0:#x}")]
    Cookie(u64),
    /// It answers a request of which it can't have all.
    #[error("an answer to a request that is not all sent, cookie {0:#x}")]
    TooEarly(u64),
    /// A simple reply to a READ after structured ones were agreed, or a chunk though they were not.
    #[error("an answer of the wrong kind, cookie {0:#x}")]
    ReplyKind(u64),
    /// A chunk that has no place in the answer to its request.
    #[error("a chunk that does not belong to its request, cookie {0:#x}")]
    Chunk(u64),
    /// A chunk of an impossible length.
    #[error("a chunk of {len} bytes, cookie {cookie:#x}")]
    ChunkLength {
        /// The request's.
        cookie: u64,
        /// What it says.
        len: u32,
    },
    /// Data outside the range of their READ, or more than it asked for.
    #[error("data outside the request, cookie {0:#x}")]
    Outside(u64),
    /// A READ ends well, but not all of its data came.
    #[error("{got} of {wanted} bytes, cookie {cookie:#x}")]
    Incomplete {
        /// The request's.
        cookie: u64,
        /// Bytes asked for.
        wanted: u32,
        /// Bytes that came.
        got: u32,
    },
    /// It hung up.
    #[error("the server has hung up")]
    End,
    /// The socket failed, or could not be made.
    #[error("the socket failed: {0}")]
    Socket(#[from] Errno),
    /// It does not get through the handshake.
    #[error("no handshake in time")]
    Timeout,
    /// It did not answer what its user has given up.
    #[error("given up by its user")]
    GivenUp,
}

impl NbdFault {
    /// The nearest number of the operating system.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Socket(errno) => *errno,
            Self::Refused(0x8000_0002) => Errno::ACCESS,
            Self::Refused(0x8000_0006) => Errno::NODEV,
            Self::Refused(_) => Errno::CONNREFUSED,
            Self::End => Errno::CONNRESET,
            Self::Timeout => Errno::TIMEDOUT,
            Self::GivenUp => Errno::CANCELED,
            Self::Changed { .. } => Errno::STALE,
            _ => Errno::PROTO,
        }
    }
}

/// The protocol's error replies to options.
fn refusal(code: u32) -> &'static str {
    match code & 0x7fff_ffff {
        1 => "option not supported",
        2 => "forbidden by policy",
        3 => "invalid option",
        4 => "not possible on this platform",
        5 => "it wants TLS",
        6 => "no such export",
        7 => "shutting down",
        8 => "it wants block sizes to be negotiated",
        9 => "too big",
        10 => "extended headers required",
        _ => "for a reason that is newer than this client",
    }
}
