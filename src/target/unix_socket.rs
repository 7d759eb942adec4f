//! Listening Unix sockets and their files.

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
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

fn unix_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A non-blocking socket that listens at `path`, with mode 0600. A socket file that nobody listens
/// on any more is replaced.
pub(super) fn listen_unix(path: &Path) -> io::Result<(OwnedFd, SocketFile)> {
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
    Ok((fd, file))
}

/// Whether nobody listens on the socket file any more.
fn is_stale(name: &SocketAddrUnix) -> bool {
    let Ok(probe) = unix_socket() else {
        return false;
    };
    rustix::net::connect(probe, name) == Err(Errno::CONNREFUSED)
}
