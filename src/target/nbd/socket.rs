//! Listening sockets: making them, and taking connections from them.

use super::{NbdAddress, NbdError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_nodelay, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The file of a Unix socket; removed when dropped, unless it has been replaced.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = rustix::fs::lstat(&self.path);
        if now.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

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
        NbdAddress::Tcp(at) => listen_tcp(*at).map_err(refused),
        NbdAddress::Unix(path) => {
            if let Ok(stat) = rustix::fs::lstat(path)
                && FileType::from_raw_mode(stat.st_mode) != FileType::Socket
            {
                return Err(NbdError::NotASocket(path.clone()));
            }
            listen_unix(path).map_err(refused)
        }
    }
}

fn listen_tcp(at: SocketAddr) -> io::Result<Listening> {
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let address = NbdAddress::Tcp(listener.local_addr()?);
    Ok(Listening {
        fd: listener.into(),
        address,
        file: None,
    })
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn listen_unix(path: &Path) -> io::Result<Listening> {
    let name = SocketAddrUnix::new(path)?;
    let fd = unix_socket()?;
    // Before the bind, so that there is no moment at which others may connect.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    match rustix::net::bind(&fd, &name) {
        Err(Errno::ADDRINUSE) if is_stale(&name) => {
            rustix::fs::unlink(path)?;
            rustix::net::bind(&fd, &name)?;
        }
        other => other?,
    }
    let stat = rustix::fs::lstat(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (stat.st_dev, stat.st_ino),
    };
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(Listening {
        fd,
        address: NbdAddress::Unix(path.to_owned()),
        file: Some(file),
    })
}

/// Whether nobody listens on the socket file any more.
fn is_stale(name: &SocketAddrUnix) -> bool {
    let Ok(probe) = unix_socket() else {
        return false;
    };
    rustix::net::connect(probe, name) == Err(Errno::CONNREFUSED)
}

/// Takes a waiting connection, if there is one, and says who it is.
pub(super) fn accept(listener: &OwnedFd) -> Result<Option<(OwnedFd, String)>, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = match rustix::net::accept_with(listener, flags) {
        Ok(fd) => fd,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Replies are gathered already: nothing is gained by waiting for more. No such thing on Unix
    // sockets, and no harm if it fails.
    let _ = set_tcp_nodelay(&fd, true);
    let name = rustix::net::getpeername(&fd).ok().flatten();
    let tcp = name.and_then(|name| SocketAddr::try_from(name).ok());
    let peer = match tcp {
        Some(address) => address.to_string(),
        None => match socket_peercred(&fd) {
            Ok(who) => format!("unix:pid={}", who.pid.as_raw_nonzero()),
            Err(_) => "unix".to_owned(),
        },
    };
    Ok(Some((fd, peer)))
}

/// Whether the peer has closed its side, even if there are bytes before the end. One system call.
pub(super) fn peer_has_left(socket: &OwnedFd) -> bool {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let polled = rustix::event::poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds.iter().any(|fd| fd.revents().intersects(gone))
}
