//! Listening sockets.

use super::{NbdAddress, NbdError};
use crate::target::stream::listen_tcp;
use crate::target::unix_socket::{SocketFile, listen_unix};
use rustix::fs::FileType;
use std::io;
use std::os::fd::OwnedFd;

/// A non-blocking listening socket, and where it really is.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) fd: OwnedFd,
    pub(super) address: NbdAddress,
    pub(super) file: Option<SocketFile>,
}

pub(super) fn listen(address: &NbdAddress) -> Result<Listening, NbdError> {
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => NbdError::AddressInUse(address.clone()),
        _ => NbdError::Listen {
            address: address.clone(),
            source,
        },
    };
    match address {
        NbdAddress::Tcp(at) => {
            let (fd, at) = listen_tcp(*at).map_err(refused)?;
            Ok(Listening {
                fd,
                address: NbdAddress::Tcp(at),
                file: None,
            })
        }
        NbdAddress::Unix(path) => {
            if let Ok(stat) = rustix::fs::lstat(path)
                && FileType::from_raw_mode(stat.st_mode) != FileType::Socket
            {
                return Err(NbdError::NotASocket(path.clone()));
            }
            let (fd, file) = listen_unix(path).map_err(refused)?;
            Ok(Listening {
                fd,
                address: address.clone(),
                file: Some(file),
            })
        }
    }
}
