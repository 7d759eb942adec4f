//! What goes over a connection: requests and replies of fixed sizes, whose bytes nobody reads.

use reactors::Nanos;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::io::IoSlice;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

/// As much as a target receives at once (`src/bdev/stream/input.rs`).
pub(crate) const INPUT_BYTES: usize = 32 << 10;
/// Pieces that a target sends at once (`src/target/stream/output.rs`).
pub(crate) const PIECES_MAX: usize = 64;
/// Bodies that replies are sent from, in turn.
const BODIES: u64 = 32;

/// Sizes of a request and its reply, as in NVMe/TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) request: usize,
    /// Of the reply, before its body.
    pub(crate) head: usize,
    pub(crate) body: usize,
}

/// A command of 72 bytes; its data with 24 bytes before them, which are the completion too.
pub(crate) const READ: Shape = Shape {
    name: "read 4 KiB",
    request: 72,
    head: 24,
    body: 4096,
};

/// A command with its data, and a completion of 24 bytes.
pub(crate) const WRITE: Shape = Shape {
    name: "write 4 KiB",
    request: 72 + 4096,
    head: 24,
    body: 0,
};

impl Shape {
    pub(crate) fn reply(&self) -> usize {
        self.head + self.body
    }
}

/// The server's side of a conversation: where in the two streams it stands.
#[derive(Debug)]
pub(crate) struct Traffic {
    shape: Shape,
    /// Bytes of a request that is not complete.
    part: usize,
    /// Bytes of replies that are due, since the beginning, and of them those that were sent.
    due: u64,
    sent: u64,
}

impl Traffic {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape,
            part: 0,
            due: 0,
            sent: 0,
        }
    }

    /// Takes `count` received bytes; returns how many requests they complete.
    pub(crate) fn received(&mut self, count: usize) -> u32 {
        let bytes = self.part + count;
        self.part = bytes % self.shape.request;
        let requests = bytes / self.shape.request;
        self.due += (requests * self.shape.reply()) as u64;
        u32::try_from(requests).unwrap()
    }

    pub(crate) fn sent(&mut self, count: usize) {
        self.sent += count as u64;
        assert!(self.sent <= self.due);
    }

    pub(crate) fn has_replies(&self) -> bool {
        self.sent < self.due
    }

    /// Points `parts` to what is to be sent next; returns how many of them.
    pub(crate) fn pieces<'a>(
        &self,
        bodies: &'a [u8],
        parts: &mut [IoSlice<'a>; PIECES_MAX],
    ) -> usize {
        let reply = self.shape.reply() as u64;
        let (mut at, mut count) = (self.sent, 0);
        while at < self.due && count < PIECES_MAX {
            let within = usize::try_from(at % reply).unwrap();
            let (from, to) = match within.checked_sub(self.shape.head) {
                None => (within, self.shape.head),
                Some(done) => {
                    let body = usize::try_from(at / reply % BODIES).unwrap() * self.shape.body;
                    (body + done, body + self.shape.body)
                }
            };
            parts[count] = IoSlice::new(&bodies[from..to]);
            count += 1;
            at += (to - from) as u64;
        }
        count
    }

    /// Sends what the socket takes, as the targets do.
    pub(crate) fn send(&mut self, socket: impl AsFd, bodies: &[u8]) {
        while self.has_replies() {
            let mut parts = [IoSlice::new(&[]); PIECES_MAX];
            let count = self.pieces(bodies, &mut parts);
            let mut control = SendAncillaryBuffer::default();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&socket, &parts[..count], &mut control, flags) {
                Ok(count) => self.sent(count),
                Err(Errno::AGAIN) => return,
                Err(error) => panic!("sendmsg: {error}"),
            }
        }
    }
}

/// What replies of this shape are sent from.
pub(crate) fn bodies(shape: Shape) -> Vec<u8> {
    let count = usize::try_from(BODIES).unwrap();
    vec![0x5a; shape.head + count * shape.body]
}

/// One side of many conversations.
pub(crate) trait Server {
    /// Looks for requests and answers them; returns how many there were.
    fn round(&mut self, now: Nanos) -> u32;
}

/// Connected pairs on loopback: the server's ends, and the peer's.
pub(crate) fn pairs(count: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let connect = |_| {
        let peer = TcpStream::connect(at).unwrap();
        let (server, _) = listener.accept().unwrap();
        for socket in [&peer, &server] {
            socket.set_nodelay(true).unwrap();
        }
        (server, peer)
    };
    (0..count).map(connect).unzip()
}
