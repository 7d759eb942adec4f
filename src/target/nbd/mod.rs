//! The NBD server: fixed newstyle, on Unix sockets and TCP, polled on reactors.
//!
//! [`NbdExports`] says what can be reached, each [`NbdServer`] where. An acceptor, itself a poller,
//! spreads connections over the reactors; a connection is a poller that goes through handshake,
//! transmission and closing, and stays on its reactor. It opens a channel of its own to the bdev,
//! and drops it only after all that it submitted has completed.

mod connection;
mod door;
mod export;
mod handshake;
mod server;
mod session;
mod session_rules;
mod session_status;
mod socket;
mod status;

pub use export::{ExportConfig, ExportInfo, NbdExports, RemoveMode, RemovedExport};
pub use export::{PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MIN};
pub use server::{ConnectionInfo, NbdAddress, NbdOptions, NbdServer};

use std::io;
use std::path::PathBuf;

/// Why the server or its table of exports refused.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Not `unix:/path` or `ip:port`.
    #[error("{0:?} is no address: unix:/path or ip:port")]
    BadAddress(String),
    /// Somebody listens there.
    #[error("{0} is in use")]
    AddressInUse(NbdAddress),
    /// There is something at the path, and it is no socket.
    #[error("{} exists and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// Where.
        address: NbdAddress,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// There is no reactor to run on, or its inbox is full.
    #[error("no reactor takes the server")]
    NoReactor,
    /// A name must be 1 to 4096 bytes without NUL, a description at most 4096.
    #[error("{0:?} can't be the name or description of an export")]
    BadName(String),
    /// The longest payload must be 4 KiB to 32 MiB and a multiple of the block size.
    #[error("a payload of at most {0} bytes is out of bounds")]
    BadPayload(u32),
    /// There is an export of this name.
    #[error("export {0:?} exists")]
    Exists(String),
    /// There is no export of this name.
    #[error("no export {0:?}")]
    NotFound(String),
    /// Clients are connected, and the removal was to be safe.
    #[error("export {name:?} has {connections} connections")]
    Busy {
        /// Which export.
        name: String,
        /// How many.
        connections: usize,
    },
}
