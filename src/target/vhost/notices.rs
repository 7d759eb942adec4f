//! The back end's own channel to the front end (`BACKEND_REQ`): what it says without being asked.
//!
//! The `vhost` crate keeps the channel's socket to itself and can't say that the configuration has
//! changed. So the one message that hands the socket over is taken off the connection here.

use rustix::io::{Errno, IoSliceMut};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType,
};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Code, flags and size.
const HEADER_BYTES: usize = 12;
const SET_BACKEND_REQ_FD: u32 = 21;
const CONFIG_CHANGE_MSG: u32 = 2;
/// Flags: the version there is, a reply, a wish for one.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// Descriptors that are taken off the connection, to be closed if there are more than one.
const FDS_MAX: usize = 4;

fn words(header: [u8; HEADER_BYTES]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = header;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}

fn header(words: [u32; 3]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Why a channel was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoticeFault {
    #[error("{0} descriptors with a channel")]
    Descriptors(usize),
    #[error("a channel that is no stream on a Unix socket")]
    Kind,
    #[error(transparent)]
    Os(#[from] Errno),
}

/// The channel.
#[derive(Debug)]
pub(super) struct Notices(OwnedFd);

impl Notices {
    /// Whether the next message on the connection hands over a channel.
    pub(super) fn are_next(socket: &UnixStream) -> bool {
        let mut bytes = [0; HEADER_BYTES];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let count = rustix::net::recv(socket, &mut bytes[..], flags);
        let [code, flags, size] = words(bytes);
        count.is_ok_and(|(count, _)| count == HEADER_BYTES)
            && (code, size) == (SET_BACKEND_REQ_FD, 0)
            && flags & !NEED_REPLY == VERSION
    }

    /// Takes that message. It is answered if the front end wants it, and `answers` are agreed.
    pub(super) fn take(socket: &UnixStream, answers: bool) -> Result<Self, NoticeFault> {
        let mut bytes = [0; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let into = &mut [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(socket, into, &mut ancillary, flags)?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let count = fds.len();
        let (Some(fd), 1) = (fds.pop(), count) else {
            return Err(NoticeFault::Descriptors(count));
        };
        if socket_domain(&fd)? != AddressFamily::UNIX || socket_type(&fd)? != SocketType::STREAM {
            return Err(NoticeFault::Kind);
        }
        let [code, flags, _] = words(bytes);
        if answers && flags & NEED_REPLY != 0 {
            let mut answer = header([code, VERSION | REPLY, 8]);
            answer.extend(0_u64.to_ne_bytes());
            rustix::net::send(socket, &answer, SendFlags::NOSIGNAL)?;
        }
        Ok(Self(fd))
    }

    /// Tells the front end to read the configuration again. It may have left, or not read what it was
    /// told before: both come to the same.
    pub(super) fn config_changed(&self) {
        let message = header([CONFIG_CHANGE_MSG, VERSION, 0]);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(error) = rustix::net::send(&self.0, &message, flags) {
            tracing::debug!(%error, "vhost: a front end is not told of a change");
        }
    }
}
