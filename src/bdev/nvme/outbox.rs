//! PDUs on their way out, many in one system call, data from where they are.

use super::jobs::Jobs;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::AsFd;

/// Pieces that one system call takes.
const PIECES_MAX: usize = 64;
/// System calls that one turn may spend.
const CALLS_MAX: usize = 16;
/// The longest header with digest and padding: 76 bytes, padded to less than as much again.
const HEAD_BYTES_MAX: usize = 152;
const DIGEST_BYTES: usize = 4;

/// A PDU to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The command that it is about.
    pub(super) command: u64,
    /// It is the command itself, not data for it.
    pub(super) is_capsule: bool,
    /// It is the last that an R2T asked for.
    pub(super) is_last: bool,
    /// Its data: from this byte of the command's, so many.
    pub(super) at: usize,
    pub(super) len: usize,
    head: [u8; HEAD_BYTES_MAX],
    head_len: usize,
    tail: Option<[u8; DIGEST_BYTES]>,
}

impl Outgoing {
    /// One that begins with `head` and ends with the digest of its data, if there is one.
    pub(super) fn new(command: u64, head: &[u8], digest: Option<u32>) -> Self {
        let mut kept = [0; HEAD_BYTES_MAX];
        let head_len = head.len().min(HEAD_BYTES_MAX);
        for (to, from) in kept.iter_mut().zip(head) {
            *to = *from;
        }
        Self {
            command,
            is_capsule: false,
            is_last: false,
            at: 0,
            len: 0,
            head: kept,
            head_len,
            tail: digest.map(u32::to_le_bytes),
        }
    }

    fn bytes(&self) -> usize {
        let tail = if self.tail.is_some() { DIGEST_BYTES } else { 0 };
        self.head_len + self.len + tail
    }

    /// Shows `take` its bytes, in order, until it has had enough.
    fn show<'a>(&'a self, jobs: &'a Jobs, take: &mut impl FnMut(&'a [u8]) -> bool) {
        let head = self.head.get(..self.head_len).unwrap_or_default();
        if !take(head) {
            return;
        }
        let mut more = true;
        if self.len > 0 {
            jobs.bytes_of(self.command, (self.at, self.len), &mut |bytes| {
                more = take(bytes);
                more
            });
        }
        if let (Some(tail), true) = (&self.tail, more) {
            take(tail);
        }
    }
}

/// PDUs that are not all sent, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Outgoing>,
    /// Bytes of the first that are gone.
    sent: usize,
    blocked: bool,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the last send found the socket full.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Forgets everything: the connection has ended.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        (self.sent, self.blocked) = (0, false);
    }

    /// Sends what there is and what `jobs` makes, as much as the socket takes. Returns how many PDUs
    /// are gone.
    pub(super) fn send(&mut self, socket: impl AsFd, jobs: &mut Jobs) -> Result<u32, Errno> {
        let mut gone = 0;
        self.blocked = false;
        self.drop_needless(jobs);
        for _ in 0..CALLS_MAX {
            while let Some(outgoing) = jobs.next() {
                self.waiting.push_back(outgoing);
            }
            if self.waiting.is_empty() {
                break;
            }
            match self.send_once(&socket, jobs) {
                Ok(count) => gone += self.advance(count, jobs),
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    /// Drops data of commands that have ended, but for a PDU that has begun to go.
    fn drop_needless(&mut self, jobs: &mut Jobs) {
        if !jobs.take_needless() {
            return;
        }
        let begun = self.sent > 0;
        let mut first = true;
        self.waiting.retain(|outgoing| {
            let keeps = std::mem::take(&mut first) && begun;
            if keeps || !jobs.has_ended(outgoing.command) {
                return true;
            }
            jobs.gone(outgoing);
            false
        });
    }

    fn send_once(&self, socket: impl AsFd, jobs: &Jobs) -> Result<usize, Errno> {
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let (mut count, mut skip) = (0, self.sent);
        for outgoing in &self.waiting {
            outgoing.show(jobs, &mut |bytes| {
                let from = skip.min(bytes.len());
                skip -= from;
                let rest = bytes.get(from..).unwrap_or_default();
                if let (Some(piece), false) = (pieces.get_mut(count), rest.is_empty()) {
                    *piece = IoSlice::new(rest);
                    count += 1;
                }
                count < PIECES_MAX
            });
            if count == PIECES_MAX {
                break;
            }
        }
        let mut control = SendAncillaryBuffer::default();
        let pieces = pieces.get(..count).unwrap_or_default();
        sendmsg(socket, pieces, &mut control, SendFlags::NOSIGNAL)
    }

    fn advance(&mut self, count: usize, jobs: &mut Jobs) -> u32 {
        let mut gone = 0;
        self.sent += count;
        while let Some(bytes) = self.waiting.front().map(Outgoing::bytes) {
            if self.sent < bytes {
                break;
            }
            self.sent -= bytes;
            if let Some(outgoing) = self.waiting.pop_front() {
                jobs.gone(&outgoing);
            }
            gone += 1;
        }
        gone
    }
}
