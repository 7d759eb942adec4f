//! Listening on TCP, and taking connections.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::net::sockopt::{set_tcp_nodelay, socket_peercred};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

/// Listens on `at`; says where that is, with the real port.
pub(in crate::target) fn listen_tcp(at: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener.into(), address))
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
