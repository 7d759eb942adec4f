//! Replies whose bodies are somewhere in a large file that is mapped, as a pool is.

use super::exchange::{PIECES_MAX, Server};
use super::sys::{Mapped, Notices, allow_zero_copy, take_notices};
use reactors::Nanos;
use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::TcpStream;

/// How a body comes into the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Copied to a buffer, which is sent: what the cache and the targets do.
    Copied,
    /// Sent from the mapping by `sendmsg`, which copies before it returns.
    Mapped,
    /// Sent from the mapping with `MSG_ZEROCOPY`; the notices are taken from the error queue.
    ZeroCopy,
    /// By `sendfile`: pages of the file, which nobody on this side copies, on loopback either.
    File,
}

/// A command that asks for data.
pub(crate) const REQUEST: usize = 72;
/// Before each body.
pub(crate) const HEAD: usize = 24;
/// Large enough that its pages are in no cache of the CPU.
const FILE_BYTES: u64 = if cfg!(debug_assertions) { 4 } else { 512 } << 20;

struct Reply {
    /// Where the body is: in the file, or in the buffer of this number.
    at: usize,
    sent: usize,
}

/// Serves one connection.
pub(crate) struct Bodies {
    way: Way,
    socket: TcpStream,
    body: usize,
    file: Mapped,
    /// For those who copy, a buffer for each reply that may be under way.
    buffers: Vec<Vec<u8>>,
    next_buffer: usize,
    replies: VecDeque<Reply>,
    input: Vec<u8>,
    part: usize,
    state: u64,
    pub(crate) notices: Notices,
}

impl Bodies {
    pub(crate) fn new(way: Way, socket: TcpStream, body: usize, depth: usize) -> Self {
        socket.set_nonblocking(true).unwrap();
        if way == Way::ZeroCopy {
            allow_zero_copy(&socket).unwrap();
        }
        Self {
            way,
            socket,
            body,
            file: Mapped::new(FILE_BYTES),
            buffers: vec![vec![1; body]; depth],
            next_buffer: 0,
            replies: VecDeque::new(),
            input: vec![0; 32 << 10],
            part: 0,
            state: 1,
            notices: Notices::default(),
        }
    }

    /// A place in the file that nothing foresees.
    fn place(&mut self) -> usize {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let places = FILE_BYTES / self.body as u64;
        usize::try_from((self.state >> 33) % places).unwrap() * self.body
    }

    fn answer(&mut self) {
        let mut at = self.place();
        if self.way == Way::Copied {
            let from = &self.file.bytes()[at..at + self.body];
            at = self.next_buffer;
            self.buffers[at].copy_from_slice(from);
            self.next_buffer = (at + 1) % self.buffers.len();
        }
        self.replies.push_back(Reply { at, sent: 0 });
    }

    fn receive(&mut self) -> u32 {
        match rustix::io::read(&self.socket, &mut self.input[..]) {
            Ok(0) => panic!("the peer has left"),
            Ok(count) => {
                let bytes = self.part + count;
                self.part = bytes % REQUEST;
                (0..bytes / REQUEST).for_each(|_| self.answer());
                u32::try_from(bytes / REQUEST).unwrap()
            }
            Err(Errno::AGAIN) => 0,
            Err(error) => panic!("read: {error}"),
        }
    }

    fn send_memory(&self, flags: SendFlags) -> Result<usize, Errno> {
        let head = [2; HEAD];
        let mut parts = [IoSlice::new(&[]); PIECES_MAX];
        for (pair, reply) in parts.chunks_exact_mut(2).zip(&self.replies) {
            let body = match self.way {
                Way::Copied => &self.buffers[reply.at][..],
                _ => &self.file.bytes()[reply.at..reply.at + self.body],
            };
            pair[0] = IoSlice::new(&head[reply.sent.min(HEAD)..]);
            pair[1] = IoSlice::new(&body[reply.sent.saturating_sub(HEAD)..]);
        }
        let count = PIECES_MAX.min(2 * self.replies.len());
        let mut control = SendAncillaryBuffer::default();
        sendmsg(&self.socket, &parts[..count], &mut control, flags)
    }

    fn send_file(&self) -> Result<usize, Errno> {
        let Some(reply) = self.replies.front() else {
            return Ok(0);
        };
        if reply.sent < HEAD {
            let flags = SendFlags::NOSIGNAL | SendFlags::MORE;
            return rustix::net::send(&self.socket, &[2; HEAD][reply.sent..], flags);
        }
        let done = reply.sent - HEAD;
        let mut from = (reply.at + done) as u64;
        sendfile(
            &self.socket,
            self.file.file(),
            Some(&mut from),
            self.body - done,
        )
    }

    fn sent(&mut self, mut count: usize) {
        while let Some(reply) = self.replies.front_mut().filter(|_| count > 0) {
            let part = count.min(HEAD + self.body - reply.sent);
            reply.sent += part;
            count -= part;
            if reply.sent == HEAD + self.body {
                self.replies.pop_front();
            }
        }
        assert_eq!(count, 0);
    }

    fn send(&mut self) {
        // `MSG_ZEROCOPY`, for which rustix has no name.
        let zero_copy = SendFlags::from_bits_retain(0x0400_0000);
        while !self.replies.is_empty() {
            let sent = match self.way {
                Way::Copied | Way::Mapped => self.send_memory(SendFlags::NOSIGNAL),
                Way::ZeroCopy => self.send_memory(SendFlags::NOSIGNAL | zero_copy),
                Way::File => self.send_file(),
            };
            match sent {
                Ok(count) => self.sent(count),
                // Full; or too many notices wait, which the next round takes.
                Err(Errno::AGAIN | Errno::NOBUFS) => return,
                Err(error) => panic!("send: {error}"),
            }
        }
    }
}

impl Server for Bodies {
    fn round(&mut self, _now: Nanos) -> u32 {
        let requests = self.receive();
        let had_replies = !self.replies.is_empty();
        self.send();
        if self.way == Way::ZeroCopy && had_replies {
            take_notices(&self.socket, &mut self.notices);
        }
        requests
    }
}
