//! What has been received and not yet used.

use rustix::io::Errno;
use std::io::IoSliceMut;
use std::os::fd::AsFd;

/// Room for many small requests in one receive; a larger payload goes past it.
const INPUT_BYTES: usize = 32 << 10;

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing is there now.
    Nothing,
    /// The peer has closed its side.
    End,
    /// Something came.
    Some {
        /// Bytes that went into the payload.
        payload: usize,
        /// All that was there has been taken.
        all: bool,
    },
}

/// Received bytes, in order. Invariant: `start <= end <= bytes.len()`.
#[derive(Debug)]
pub(crate) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; INPUT_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops up to `count` bytes off the front; returns how many there were.
    pub(crate) fn skip(&mut self, count: usize) -> usize {
        let count = count.min(self.end - self.start);
        self.start += count;
        count
    }

    /// Moves bytes off the front into `target`; returns how many.
    pub(crate) fn move_to(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.end - self.start);
        let from = &self.bytes[self.start..self.start + count];
        target[..count].copy_from_slice(from);
        self.start += count;
        count
    }

    /// Receives into `payload`, and what comes behind it into the buffer.
    ///
    /// `payload` must be empty if there are unread bytes.
    pub(crate) fn receive(&mut self, fd: impl AsFd, payload: &mut [u8]) -> Result<Received, Errno> {
        assert!(payload.is_empty() || self.start == self.end);
        // Between requests little is left over, so moving it to the front costs nothing.
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let wanted = payload.len();
        let room = self.bytes.len() - self.end;
        let mut parts = [
            IoSliceMut::new(payload),
            IoSliceMut::new(&mut self.bytes[self.end..]),
        ];
        let parts = if wanted == 0 {
            &mut parts[1..]
        } else {
            &mut parts[..]
        };
        let count = match rustix::io::readv(fd, parts) {
            Ok(0) if wanted + room > 0 => return Ok(Received::End),
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(error) => return Err(error),
        };
        let payload = count.min(wanted);
        self.end += count - payload;
        Ok(Received::Some {
            payload,
            all: count < wanted + room,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn payload_comes_first_and_the_rest_stays_in_order() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut input = Input::new();
        assert_eq!(input.receive(&server, &mut []), Ok(Received::Nothing));
        client.write_all(b"abcdefgh").unwrap();
        let mut payload = [0; 3];
        let got = input.receive(&server, &mut payload);
        let some = |payload, all| Ok(Received::Some { payload, all });
        assert_eq!((got, &payload), (some(3, true), b"abc"));
        assert_eq!(input.unread(), b"defgh");
        assert_eq!(input.skip(1), 1);
        client.write_all(b"ij").unwrap();
        assert_eq!(input.receive(&server, &mut []), some(0, true));
        assert_eq!(input.unread(), b"efghij");
        let mut two = [0; 2];
        assert_eq!((input.move_to(&mut two), &two), (2, b"ef"));
        assert_eq!(input.skip(100), 4);
        drop(client);
        assert_eq!(input.receive(&server, &mut []), Ok(Received::End));
    }
}
