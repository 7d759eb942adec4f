//! From an address to a connection on which requests may be sent, without waiting.

use super::NbdFault;
use super::negotiation::{Agreed, Negotiation, Step};
use crate::bdev::stream::{Input, Received};
use reactors::Interest;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_nodelay, socket_error};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// Where to connect to, found out already.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A connection that is ready.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) socket: OwnedFd,
    /// What has been received already: nothing, from a server that knows its place.
    pub(super) input: Input,
    pub(super) agreed: Agreed,
}

#[derive(Debug)]
enum Stage {
    /// To be dialled, or dialled again: the server's queue of connections was full.
    Dial,
    Connecting,
    Talking,
}

/// A connection in the making.
#[derive(Debug)]
pub(super) struct Opening {
    address: Address,
    stage: Stage,
    socket: Option<OwnedFd>,
    input: Input,
    out: Vec<u8>,
    sent: usize,
    negotiation: Negotiation,
}

impl Opening {
    pub(super) fn new(address: Address, export: &str, wants_structured: bool) -> Self {
        Self {
            address,
            stage: Stage::Dial,
            socket: None,
            input: Input::new(),
            out: vec![],
            sent: 0,
            negotiation: Negotiation::new(export.to_owned(), wants_structured),
        }
    }

    /// What must happen before there is a point in going on; nothing if only time helps.
    pub(super) fn waits_for(&self) -> Option<(RawFd, Interest)> {
        let interest = match self.stage {
            Stage::Dial => return None,
            Stage::Connecting => Interest::Write,
            Stage::Talking if self.sent < self.out.len() => Interest::ReadWrite,
            Stage::Talking => Interest::Read,
        };
        Some((self.socket.as_ref()?.as_raw_fd(), interest))
    }

    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Goes as far as it can. The connection once it is ready.
    ///
    /// # Errors
    /// Why there will be none.
    pub(super) fn turn(&mut self) -> Result<Option<Opened>, NbdFault> {
        if matches!(self.stage, Stage::Dial) {
            self.dial()?;
        }
        if matches!(self.stage, Stage::Connecting) {
            self.look_whether_connected()?;
        }
        match self.stage {
            Stage::Talking => self.talk(),
            Stage::Dial | Stage::Connecting => Ok(None),
        }
    }

    fn dial(&mut self) -> Result<(), Errno> {
        let family = match &self.address {
            Address::Unix(_) => AddressFamily::UNIX,
            Address::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            Address::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let connected = match &self.address {
            Address::Unix(path) => rustix::net::connect(&socket, &SocketAddrUnix::new(path)?),
            Address::Tcp(at) => {
                // Requests are gathered already: nothing is gained by waiting for more.
                set_tcp_nodelay(&socket, true)?;
                rustix::net::connect(&socket, at)
            }
        };
        self.stage = match connected {
            Ok(()) => Stage::Talking,
            Err(Errno::INPROGRESS | Errno::INTR) => Stage::Connecting,
            // A Unix socket whose backlog is full: nothing tells when there is room.
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.socket = Some(socket);
        Ok(())
    }

    fn look_whether_connected(&mut self) -> Result<(), Errno> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let mut fds = [PollFd::new(socket, PollFlags::OUT)];
        if rustix::event::poll(&mut fds, Some(&Timespec::default()))? > 0 {
            socket_error(socket)??;
            self.stage = Stage::Talking;
        }
        Ok(())
    }

    fn talk(&mut self) -> Result<Option<Opened>, NbdFault> {
        loop {
            match self.negotiation.step(&mut self.input, &mut self.out)? {
                Step::Again => {}
                Step::Ready(agreed) => {
                    let input = std::mem::replace(&mut self.input, Input::new());
                    return Ok(self.socket.take().map(|socket| Opened {
                        socket,
                        input,
                        agreed,
                    }));
                }
                Step::Hungry => {
                    let Some(socket) = &self.socket else {
                        return Ok(None);
                    };
                    send(socket, &self.out, &mut self.sent)?;
                    match self.input.receive(socket, &mut [])? {
                        Received::Nothing => return Ok(None),
                        Received::End => return Err(NbdFault::End),
                        Received::Some { .. } => {}
                    }
                }
            }
        }
    }
}

/// Sends what of `out` is not `sent` yet, as far as the socket takes it.
fn send(socket: impl AsFd, out: &[u8], sent: &mut usize) -> Result<(), Errno> {
    while let Some(rest) = out.get(*sent..).filter(|rest| !rest.is_empty()) {
        match rustix::net::send(&socket, rest, SendFlags::NOSIGNAL) {
            Ok(count) => *sent += count,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
