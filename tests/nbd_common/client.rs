//! A client that says and expects bytes, right or wrong.

use pmcache::wire::nbd::{Command, CommandFlags, RequestHeader};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const GO: u32 = 7;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A counted string.
pub(crate) fn named(name: &str) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data
}

/// The data of a context option.
pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = named(name);
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(named(query));
    }
    data
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

/// One structured reply chunk, or a simple reply where that will do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// It was a simple reply that says "done".
    pub(crate) simple: bool,
    pub(crate) done: bool,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) data: Vec<u8>,
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        let bound = Some(Duration::from_secs(20));
        stream.set_read_timeout(bound).unwrap();
        stream.set_write_timeout(bound).unwrap();
        Self { stream }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the server hangs up without another byte.
    pub(crate) fn is_hung_up(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes the greeting and sends the client's flags.
    pub(crate) fn greet(&mut self) {
        let greeting = self.receive(18);
        assert_eq!(hex(&greeting), "4e42444d4147494349484156454f50540003");
        self.send(&[0, 0, 0, 3]);
    }

    pub(crate) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    /// Sends an option; returns type and data of each reply, up to the acknowledgement or error.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&Self::option_bytes(option, data));
        self.option_replies(option)
    }

    pub(crate) fn option_replies(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = vec![];
        loop {
            let head = self.receive(20);
            assert_eq!(hex(&head[..8]), "0003e889045565a9");
            assert_eq!(u32::from_be_bytes(be(&head, 8)), option);
            let kind = u32::from_be_bytes(be(&head, 12));
            let len = u32::from_be_bytes(be(&head, 16));
            replies.push((kind, self.receive(len as usize)));
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    /// The type of the one reply to an option.
    pub(crate) fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.option(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].0
    }

    /// The whole handshake with GO. Returns the transmission flags.
    pub(crate) fn go(&mut self, name: &str) -> u16 {
        let mut data = named(name);
        data.extend_from_slice(&[0, 0]);
        let replies = self.option(GO, &data);
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
        let export = &replies[0].1;
        assert_eq!(export[..2], [0, 0]);
        u16::from_be_bytes(be(export, 10))
    }

    /// As [`Client::go`], with structured replies and these contexts.
    pub(crate) fn go_structured(&mut self, name: &str, contexts: &[&str]) -> u16 {
        assert_eq!(self.verdict(8, &[]), 1);
        if !contexts.is_empty() {
            let replies = self.option(10, &meta(name, contexts));
            assert_eq!(replies.len(), contexts.len() + 1);
        }
        self.go(name)
    }

    pub(crate) fn header(command: Command, cookie: u64, offset: u64, len: u32) -> RequestHeader {
        RequestHeader {
            flags: CommandFlags::default(),
            command,
            cookie,
            offset,
            len,
        }
    }

    pub(crate) fn request(&mut self, command: Command, cookie: u64, offset: u64, len: u32) {
        self.send(&Self::header(command, cookie, offset, len).encode());
    }

    pub(crate) fn request_with(
        &mut self,
        flags: CommandFlags,
        command: Command,
        cookie: u64,
        (offset, len): (u64, u32),
    ) {
        let header = RequestHeader {
            flags,
            ..Self::header(command, cookie, offset, len)
        };
        self.send(&header.encode());
    }

    pub(crate) fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.request(Command::Write, cookie, offset, len);
        self.send(data);
    }

    /// Error and cookie of a simple reply.
    pub(crate) fn simple_reply(&mut self) -> (u32, u64) {
        let reply = self.receive(16);
        assert_eq!(hex(&reply[..4]), "67446698");
        (
            u32::from_be_bytes(be(&reply, 4)),
            u64::from_be_bytes(be(&reply, 8)),
        )
    }

    pub(crate) fn chunk(&mut self) -> Chunk {
        let mut head = self.receive(16);
        if hex(&head[..4]) == "67446698" {
            assert_eq!(head[4..8], [0; 4], "a failure without words");
            return Chunk {
                simple: true,
                done: true,
                kind: 0,
                cookie: u64::from_be_bytes(be(&head, 8)),
                data: vec![],
            };
        }
        head.extend(self.receive(4));
        assert_eq!(hex(&head[..4]), "668e33ef");
        let flags = u16::from_be_bytes(be(&head, 4));
        assert!(flags <= 1);
        let len = u32::from_be_bytes(be(&head, 16));
        Chunk {
            simple: false,
            done: flags == 1,
            kind: u16::from_be_bytes(be(&head, 6)),
            cookie: u64::from_be_bytes(be(&head, 8)),
            data: self.receive(len as usize),
        }
    }

    /// A READ's whole answer, simple.
    pub(crate) fn read(&mut self, cookie: u64, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.request(Command::Read, cookie, offset, len);
        match self.simple_reply() {
            (0, got) => {
                assert_eq!(got, cookie);
                Ok(self.receive(len as usize))
            }
            (error, _) => Err(error),
        }
    }
}

impl Chunk {
    /// The error of an error chunk.
    pub(crate) fn error(&self) -> u32 {
        assert_eq!((self.done, self.kind), (true, 0x8001));
        let message = u16::from_be_bytes(be(&self.data, 4));
        assert_eq!(usize::from(message) + 6, self.data.len());
        u32::from_be_bytes(be(&self.data, 0))
    }

    /// Context and extents of a status chunk.
    pub(crate) fn status(&self) -> (u32, Vec<(u32, u32)>) {
        assert_eq!(self.kind, 5);
        let extents = self.data[4..].chunks_exact(8).map(|pair| {
            (
                u32::from_be_bytes(be(pair, 0)),
                u32::from_be_bytes(be(pair, 4)),
            )
        });
        (u32::from_be_bytes(be(&self.data, 0)), extents.collect())
    }
}
