//! Several NBD connections driven by one thread, so that it knows in which order things happened.

use pmcache::wire::nbd::{Command, CommandFlags, RequestHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A request.
#[derive(Clone, Debug)]
pub enum Io {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u32,
        trim: bool,
    },
    Flush,
}

/// A reply.
#[derive(Debug)]
pub struct Done {
    pub cookie: u64,
    /// 0, or NBD's error number.
    pub error: u32,
    /// What a read returned.
    pub data: Vec<u8>,
}

/// A connection ended.
#[derive(Debug)]
pub struct FleetError {
    /// Which.
    pub link: usize,
    /// Why.
    pub why: String,
}

#[derive(Debug)]
struct Link {
    stream: UnixStream,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    taken: usize,
    /// Bytes that each reply brings.
    waits: HashMap<u64, usize>,
    ended: Option<String>,
}

/// The connections.
#[derive(Debug)]
pub struct Fleet {
    links: Vec<Link>,
    cookie: u64,
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the length")
}

/// The handshake with GO.
fn connect(socket: &Path, export: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the server's socket");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    let name_len = u32::try_from(export.len()).unwrap();
    let mut hello = vec![0, 0, 0, 3];
    hello.extend_from_slice(b"IHAVEOPT");
    hello.extend_from_slice(&7_u32.to_be_bytes());
    hello.extend_from_slice(&(name_len + 6).to_be_bytes());
    hello.extend_from_slice(&name_len.to_be_bytes());
    hello.extend_from_slice(export.as_bytes());
    hello.extend_from_slice(&[0, 0]);
    stream.write_all(&hello).unwrap();
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head).unwrap();
        let kind = u32::from_be_bytes(be(&head, 12));
        let len = usize::try_from(u32::from_be_bytes(be(&head, 16))).unwrap();
        stream.read_exact(&mut vec![0; len]).unwrap();
        assert_eq!(kind >> 31, 0, "export {export:?} is refused: {kind:#x}");
        if kind == 1 {
            stream.set_nonblocking(true).unwrap();
            return stream;
        }
    }
}

impl Link {
    /// Moves bytes until the socket has no more to take or give.
    fn pump(&mut self) {
        if let Err(error) = self.send().and_then(|()| self.receive()) {
            self.ended = Some(error.to_string());
        }
    }

    fn send(&mut self) -> std::io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // What has arrived is still to be read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    fn receive(&mut self) -> std::io::Result<()> {
        let mut piece = [0; 65536];
        // A bound, so that one link does not keep the others waiting.
        for _ in 0..16 {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next whole reply.
    fn reply(&mut self) -> Option<Done> {
        let input = &self.input[self.taken..];
        if input.len() < 16 {
            self.input.drain(..self.taken);
            self.taken = 0;
            return None;
        }
        let magic = u32::from_be_bytes(be(input, 0));
        assert_eq!(magic, pmcache::wire::nbd::SIMPLE_REPLY_MAGIC);
        let error = u32::from_be_bytes(be(input, 4));
        let cookie = u64::from_be_bytes(be(input, 8));
        let wait = self.waits.get(&cookie).expect("a reply to a request");
        let len = if error == 0 { *wait } else { 0 };
        let data = input.get(16..16 + len)?.to_vec();
        self.taken += 16 + len;
        self.waits.remove(&cookie);
        Some(Done {
            cookie,
            error,
            data,
        })
    }
}

impl Fleet {
    /// `count` connections to `export`.
    pub fn connect(socket: &Path, export: &str, count: usize) -> Self {
        let link = |_| Link {
            stream: connect(socket, export),
            out: Vec::new(),
            sent: 0,
            input: Vec::new(),
            taken: 0,
            waits: HashMap::new(),
            ended: None,
        };
        Self {
            links: (0..count).map(link).collect(),
            cookie: 0,
        }
    }

    /// How many connections there are.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Requests of a connection without a reply.
    pub fn in_flight(&self, link: usize) -> usize {
        self.links[link].waits.len()
    }

    /// Requests of all without a reply.
    pub fn in_flight_total(&self) -> usize {
        self.links.iter().map(|link| link.waits.len()).sum()
    }

    /// Puts a request on its way; returns the cookie of its reply.
    pub fn submit(&mut self, link: usize, io: &Io) -> u64 {
        self.cookie += 1;
        let none = CommandFlags::default();
        let (command, flags, offset, len) = match io {
            Io::Read { offset, len } => (Command::Read, none, *offset, *len),
            Io::Write { offset, data, fua } => {
                let flags = if *fua { CommandFlags::FUA } else { none };
                (
                    Command::Write,
                    flags,
                    *offset,
                    u32::try_from(data.len()).unwrap(),
                )
            }
            Io::Zero { offset, len, trim } => {
                let command = if *trim {
                    Command::Trim
                } else {
                    Command::WriteZeroes
                };
                (command, none, *offset, *len)
            }
            Io::Flush => (Command::Flush, none, 0, 0),
        };
        let header = RequestHeader {
            flags,
            command,
            cookie: self.cookie,
            offset,
            len,
        };
        let link = &mut self.links[link];
        link.out.extend_from_slice(&header.encode());
        if let Io::Write { data, .. } = io {
            link.out.extend_from_slice(data);
        }
        let brings = match io {
            Io::Read { len, .. } => usize::try_from(*len).unwrap(),
            _ => 0,
        };
        link.waits.insert(self.cookie, brings);
        self.cookie
    }

    /// Moves bytes, waiting up to `wait` for a socket; returns the replies that came.
    ///
    /// # Errors
    /// A connection ended; only said once all replies that arrived have been returned.
    pub fn pump(&mut self, wait: Duration) -> Result<Vec<Done>, FleetError> {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for link in &self.links {
            let writes = if link.out.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            fds.push(PollFd::new(&link.stream, PollFlags::IN | writes));
        }
        let timeout = Timespec::try_from(wait).expect("a time-out");
        poll(&mut fds, Some(&timeout)).expect("poll");
        let mut done = Vec::new();
        for link in &mut self.links {
            if link.ended.is_none() {
                link.pump();
            }
            while let Some(reply) = link.reply() {
                done.push(reply);
            }
        }
        if !done.is_empty() {
            return Ok(done);
        }
        let ended = |(link, state): (usize, &Link)| {
            let why = state.ended.clone()?;
            Some(FleetError { link, why })
        };
        match self.links.iter().enumerate().find_map(ended) {
            Some(error) => Err(error),
            None => Ok(done),
        }
    }
}
