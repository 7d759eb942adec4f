//! Replies on their way out: heads are gathered, data are sent from where the bdev put them.

use crate::bdev::{BufPool, IoBuf};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::AsFd;

/// Pieces that one system call takes.
const PIECES_MAX: usize = 64;
/// System calls that one poll may spend on one connection.
const CALLS_MAX: usize = 16;
/// How far a piece of heads may grow before the next is begun.
const HEADS_BYTES: usize = 16 << 10;
/// Emptied pieces of heads that are kept for the next replies.
const SPARES_MAX: usize = 16;

#[derive(Debug)]
enum Piece {
    Heads(Vec<u8>),
    Body(IoBuf),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heads(bytes) => bytes,
            Self::Body(buf) => buf,
        }
    }
}

/// What waits to be sent.
#[derive(Debug, Default)]
pub(in crate::target) struct Output {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are gone.
    sent: usize,
    head_bytes: usize,
    body_bytes: usize,
    spares: Vec<Vec<u8>>,
    blocked: bool,
}

impl Output {
    pub(in crate::target) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether the last send found the socket full.
    pub(in crate::target) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Bytes of waiting replies without their data.
    pub(in crate::target) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// Bytes of data that wait with their replies.
    pub(in crate::target) fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Appends what `put` writes, if anything.
    pub(in crate::target) fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        if let Some(Piece::Heads(bytes)) = self.pieces.back_mut()
            && bytes.len() < HEADS_BYTES
        {
            let before = bytes.len();
            put(bytes);
            self.head_bytes += bytes.len() - before;
            return;
        }
        let mut bytes = self.spares.pop().unwrap_or_default();
        put(&mut bytes);
        if bytes.is_empty() {
            self.spares.push(bytes);
        } else {
            self.head_bytes += bytes.len();
            self.pieces.push_back(Piece::Heads(bytes));
        }
    }

    /// Appends data, to be sent from where they are.
    pub(in crate::target) fn put_body(&mut self, body: IoBuf) {
        self.body_bytes += body.len();
        self.pieces.push_back(Piece::Body(body));
    }

    /// Forgets all that was not sent.
    pub(in crate::target) fn clear(&mut self, pool: &RefCell<BufPool>) {
        while let Some(piece) = self.pieces.pop_front() {
            self.retire(piece, pool);
        }
        self.sent = 0;
        self.blocked = false;
    }

    /// Sends as much as the socket takes. Returns how many bytes.
    pub(in crate::target) fn send(
        &mut self,
        fd: impl AsFd,
        pool: &RefCell<BufPool>,
    ) -> Result<usize, Errno> {
        let mut total = 0;
        self.blocked = false;
        for _ in 0..CALLS_MAX {
            if self.pieces.is_empty() {
                break;
            }
            match self.send_once(&fd) {
                Ok(count) => {
                    total += count;
                    self.advance(count, pool);
                }
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn send_once(&self, fd: impl AsFd) -> Result<usize, Errno> {
        let mut parts = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        for (part, piece) in parts.iter_mut().zip(&self.pieces) {
            let skip = if count == 0 { self.sent } else { 0 };
            *part = IoSlice::new(&piece.bytes()[skip..]);
            count += 1;
        }
        let mut control = SendAncillaryBuffer::default();
        sendmsg(fd, &parts[..count], &mut control, SendFlags::NOSIGNAL)
    }

    fn advance(&mut self, count: usize, pool: &RefCell<BufPool>) {
        self.sent += count;
        while let Some(piece) = self.pieces.pop_front() {
            let len = piece.bytes().len();
            if self.sent < len {
                self.pieces.push_front(piece);
                return;
            }
            self.sent -= len;
            self.retire(piece, pool);
        }
    }

    fn retire(&mut self, piece: Piece, pool: &RefCell<BufPool>) {
        match piece {
            Piece::Heads(mut bytes) => {
                self.head_bytes -= bytes.len();
                bytes.clear();
                // One that a long answer has swollen is not kept.
                if self.spares.len() < SPARES_MAX && bytes.capacity() <= 2 * HEADS_BYTES {
                    self.spares.push(bytes);
                }
            }
            Piece::Body(body) => {
                self.body_bytes -= body.len();
                pool.borrow_mut().give(body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn everything_arrives_in_order_through_a_small_socket() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let pool = RefCell::default();
        let mut output = Output::default();
        let mut want = vec![];
        for round in 0..100_u8 {
            let head = vec![round; 16 + usize::from(round)];
            output.put(|out| out.extend_from_slice(&head));
            want.extend_from_slice(&head);
            let body = vec![!round; 9000];
            output.put_body(IoBuf::copy_of(&body));
            want.extend_from_slice(&body);
        }
        assert_eq!(output.body_bytes(), 900_000);
        let mut got = vec![];
        let mut was_blocked = false;
        for _ in 0..10_000 {
            output.send(&server, &pool).unwrap();
            was_blocked |= output.is_blocked();
            let mut piece = [0; 7001];
            if let Ok(count) = client.read(&mut piece) {
                got.extend_from_slice(&piece[..count]);
            }
            if got.len() == want.len() {
                break;
            }
        }
        assert!(got == want && output.is_empty() && was_blocked);
        assert_eq!((output.head_bytes(), output.body_bytes()), (0, 0));
    }

    #[test]
    fn a_gone_peer_is_an_error_and_clear_forgets() {
        let (client, server) = UnixStream::pair().unwrap();
        drop(client);
        let pool = RefCell::default();
        let mut output = Output::default();
        output.put(|out| out.push(1));
        assert_eq!(output.send(&server, &pool), Err(Errno::PIPE));
        output.clear(&pool);
        assert!(output.is_empty());
        assert_eq!(output.head_bytes(), 0);
    }
}
