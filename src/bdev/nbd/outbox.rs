//! Commands on their way out, many in one system call, data from where they are.

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

/// Commands that are not all sent, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    parts: VecDeque<u64>,
    /// Bytes of the first that are gone.
    sent: usize,
    blocked: bool,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether the last send found the socket full.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what there is and what `jobs` makes, as much as the socket takes. Returns how many
    /// commands are gone.
    pub(super) fn send(&mut self, socket: impl AsFd, jobs: &mut Jobs) -> Result<u32, Errno> {
        let mut gone = 0;
        self.blocked = false;
        for _ in 0..CALLS_MAX {
            while let Some(part) = jobs.next() {
                self.parts.push_back(part);
            }
            if self.parts.is_empty() {
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

    fn send_once(&self, socket: impl AsFd, jobs: &Jobs) -> Result<usize, Errno> {
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let (mut count, mut skip) = (0, self.sent);
        for part in &self.parts {
            jobs.bytes_of(*part, &mut |bytes| {
                let from = skip.min(bytes.len());
                skip -= from;
                if from < bytes.len()
                    && let Some(piece) = pieces.get_mut(count)
                {
                    *piece = IoSlice::new(&bytes[from..]);
                    count += 1;
                }
                count < PIECES_MAX
            });
            if count == PIECES_MAX {
                break;
            }
        }
        let mut control = SendAncillaryBuffer::default();
        sendmsg(socket, &pieces[..count], &mut control, SendFlags::NOSIGNAL)
    }

    fn advance(&mut self, count: usize, jobs: &mut Jobs) -> u32 {
        let mut gone = 0;
        self.sent += count;
        while let Some(part) = self.parts.front() {
            let bytes = jobs.wire_bytes(*part);
            if self.sent < bytes {
                break;
            }
            self.sent -= bytes;
            if let Some(part) = jobs.part_mut(*part) {
                part.sent = true;
            }
            self.parts.pop_front();
            gone += 1;
        }
        gone
    }
}
