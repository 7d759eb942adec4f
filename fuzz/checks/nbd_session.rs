//! A client of the NBD server that says anything: what it is answered is well-formed, in order, and
//! right; and when it has left, nothing of it stays.
//!
//! The first byte says how much of the handshake is done for the input: all of it, so that requests are
//! reached at once and every answer is foretold; or none, and then only the form is checked.

use super::input::Input;
use super::rig::reactors;
use pmcache::bdev::{Bdev, MallocBdev, MallocConfig};
use pmcache::target::nbd::{ExportConfig, NbdAddress, NbdExports, NbdOptions, NbdServer};
use pmcache::wire::nbd::{
    CHUNK_MAGIC, Command, CommandFlags, OPTION_REPLY_MAGIC, REQUEST_MAGIC, RequestHeader,
    SIMPLE_REPLY_MAGIC,
};
use reactors::{ManualClock, Reactor};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

const BLOCK: u64 = 512;
const DISK_BYTES: u64 = 64 << 10;
const PAYLOAD_MAX: u32 = 8192;
/// Turns of the reactor within which a client that has left is forgotten.
const TURNS_MAX: usize = 1000;
/// Bytes that an input may send: they and the answers fit into a socket's buffers.
const SENT_MAX: usize = 48 << 10;

thread_local! {
    static SERVER: std::cell::RefCell<Fixture> = std::cell::RefCell::new(Fixture::new());
}

struct Fixture {
    reactor: Reactor,
    server: NbdServer,
    path: PathBuf,
    _exports: NbdExports,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let (mut reactors, _) = reactors(1, &clock, 1);
        let reactor = reactors.pop().unwrap();
        let disk = MallocBdev::new(MallocConfig {
            name: "disk0".into(),
            uuid: uuid::Uuid::from_bytes([1; 16]),
            block_size: 512,
            blocks: DISK_BYTES / BLOCK,
        });
        let exports = NbdExports::new();
        let config = ExportConfig {
            name: "vol".into(),
            bdev: Arc::new(disk.unwrap()) as Arc<dyn Bdev>,
            description: "a disk".into(),
            read_only: false,
            max_payload: PAYLOAD_MAX,
        };
        exports.add(config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let address = NbdAddress::Unix(path.clone());
        let handles = vec![reactor.handle()];
        let server = NbdServer::start(&address, &exports, handles, NbdOptions::default());
        Self {
            reactor,
            server: server.unwrap(),
            path,
            _exports: exports,
            _dir: dir,
        }
    }

    /// As a reactor's thread does: it looks at its sockets before it would sleep.
    fn turn(&mut self) {
        if self.reactor.step() == 0 {
            let _ = self.reactor.wake();
        }
    }

    fn connect(&mut self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut client = Client {
            stream,
            received: Vec::new(),
            sent: 0,
        };
        self.exchange(&mut client);
        client
    }

    /// Lets the server work off what has been sent.
    fn exchange(&mut self, client: &mut Client) {
        for _ in 0..8 {
            self.turn();
            client.receive();
        }
    }

    /// The client has gone, and so does all that the server knew of it.
    fn forget(&mut self, client: Client) {
        drop(client);
        for _ in 0..TURNS_MAX {
            if self.server.connections().is_empty() {
                return;
            }
            self.turn();
        }
        panic!("a connection stays: {:?}", self.server.connections());
    }
}

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    sent: usize,
}

impl Client {
    /// Sends as much as may be sent; the server may have hung up.
    fn send(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(SENT_MAX - self.sent)];
        self.sent += bytes.len();
        let _ = self.stream.write_all(bytes);
    }

    fn receive(&mut self) {
        let mut bytes = [0; 16 << 10];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return,
            }
        }
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
        self.send(&bytes);
    }
}

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    SERVER.with_borrow_mut(|fixture| match input.u8() % 4 {
        0 => negotiate(fixture, &mut input),
        mode => transmit(fixture, mode > 1, mode > 2, &mut input),
    });
}

/// Takes from the front of what was received; it must be there.
struct Answers<'a>(&'a [u8]);

impl<'a> Answers<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        assert!(self.0.len() >= count, "{count} bytes of {:x?}", self.0);
        let (front, rest) = self.0.split_at(count);
        self.0 = rest;
        front
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }
}

/// Options as the input has them, whole or in pieces.
fn negotiate(fixture: &mut Fixture, input: &mut Input) {
    let mut client = fixture.connect();
    client.send(&[0, 0, 0, 3 & input.u8()]);
    let mut begun = false;
    while !input.is_empty() {
        let kind = input.u8();
        let number = u32::from(kind % 16);
        let len = usize::from(input.u8());
        match kind / 16 % 4 {
            0 => {
                let bytes = input.bytes(len);
                client.send(bytes);
                begun = true;
            }
            1 => {
                // A name, then whatever the input has.
                let mut data = vec![0, 0, 0, 3];
                data.extend_from_slice(b"vol");
                data.extend_from_slice(input.bytes(len));
                client.option(number, &data);
            }
            _ => client.option(number, input.bytes(len)),
        }
        begun |= matches!(number, 1 | 7);
        if kind & 64 != 0 {
            fixture.exchange(&mut client);
        }
    }
    fixture.exchange(&mut client);
    let received = std::mem::take(&mut client.received);
    let mut answers = Answers(&received);
    assert_eq!(answers.bytes(8), b"NBDMAGIC");
    assert_eq!(answers.bytes(8), b"IHAVEOPT");
    assert_eq!(answers.u16(), 3);
    // Once it may have chosen an export, other answers follow.
    while !begun && !answers.0.is_empty() {
        assert_eq!(answers.u64(), OPTION_REPLY_MAGIC);
        let (_, kind) = (answers.u32(), answers.u32());
        assert!((1..=4).contains(&kind) || kind >> 31 == 1);
        let len = answers.u32() as usize;
        answers.bytes(len);
    }
    fixture.forget(client);
}

/// What one request must be answered.
#[derive(Debug)]
enum Expected {
    Data(Vec<u8>),
    Done,
    /// Any error, or success without data where a hint is a hint.
    Other,
}

/// What the client knows of the export.
struct Model {
    disk: Vec<u8>,
    structured: bool,
    contexts: bool,
    /// By cookie: the server may answer in any order.
    expected: BTreeMap<u64, Expected>,
    /// The client has said goodbye, or worse.
    is_over: bool,
    /// The server may have found garbage, and then answers nothing more.
    is_broken: bool,
}

impl Model {
    fn part(&mut self, header: &RequestHeader) -> Option<&mut [u8]> {
        let end = header.offset.checked_add(header.len.into())?;
        let aligned = (header.offset | u64::from(header.len)).is_multiple_of(BLOCK);
        let at = usize::try_from(header.offset).ok()?;
        let end = usize::try_from(end).ok()?;
        self.disk.get_mut(at..end).filter(|_| aligned)
    }

    /// Notes what `header`, with `payload` behind it, must do and be answered.
    fn expect(&mut self, header: &RequestHeader, payload: &[u8]) {
        let flags = header.flags;
        let plain = flags.fit(header.command)
            && (self.structured || !flags.has(CommandFlags::DF))
            && header.len <= PAYLOAD_MAX;
        let is_write = header.command == Command::Write;
        let answer = match (header.command, self.part(header)) {
            (Command::Disconnect, _) => return self.is_over = true,
            (Command::Read, Some([])) if plain => Expected::Done,
            (Command::Read, Some(part)) if plain => Expected::Data(part.to_vec()),
            (Command::Write, Some(part)) if plain && part.len() == payload.len() => {
                part.copy_from_slice(payload);
                Expected::Done
            }
            (Command::WriteZeroes | Command::Trim, Some(part)) if flags.fit(header.command) => {
                part.fill(0);
                Expected::Done
            }
            (Command::Flush, _) if flags.fit(header.command) => Expected::Done,
            _ => Expected::Other,
        };
        // A payload that did not come whole swallows what follows.
        self.is_broken |= is_write && payload.len() != header.len as usize;
        self.is_over |= self.is_broken;
        if !self.is_over {
            self.expected.insert(header.cookie, answer);
        }
    }

    fn verify(mut self, received: &[u8]) {
        let mut answers = Answers(received);
        while !answers.0.is_empty() {
            if self.is_over && self.expected.is_empty() {
                break;
            }
            // What carries nothing may have a simple reply in any case.
            match self.structured && answers.0.starts_with(&CHUNK_MAGIC.to_be_bytes()) {
                true => self.chunk(&mut answers),
                false => self.simple(&mut answers),
            }
        }
        assert!(
            self.is_broken || self.expected.is_empty(),
            "no answer: {:?}",
            self.expected
        );
    }

    fn take(&mut self, cookie: u64, is_last: bool) -> Expected {
        let expected = match is_last {
            true => self.expected.remove(&cookie),
            false => self.expected.get(&cookie).map(|_| Expected::Other),
        };
        assert!(expected.is_some() || self.is_over, "nobody asked {cookie}");
        expected.unwrap_or(Expected::Other)
    }

    fn chunk(&mut self, answers: &mut Answers) {
        assert_eq!(answers.u32(), CHUNK_MAGIC);
        let (flags, kind, cookie) = (answers.u16(), answers.u16(), answers.u64());
        let len = answers.u32() as usize;
        let mut data = Answers(answers.bytes(len));
        match self.take(cookie, flags & 1 == 1) {
            Expected::Data(bytes) => {
                assert_eq!(kind, 1, "{cookie}");
                data.u64();
                assert_eq!(data.0, bytes);
            }
            Expected::Done => assert_eq!((kind, len), (0, 0), "{cookie}"),
            Expected::Other => {
                assert!(matches!(kind, 0 | 0x8001) || (kind == 5 && self.contexts));
            }
        }
    }

    fn simple(&mut self, answers: &mut Answers) {
        assert_eq!(answers.u32(), SIMPLE_REPLY_MAGIC);
        let (error, cookie) = (answers.u32(), answers.u64());
        match self.take(cookie, true) {
            Expected::Data(bytes) => {
                assert_eq!((error, self.structured), (0, false), "{cookie}");
                assert_eq!(answers.bytes(bytes.len()), bytes);
            }
            Expected::Done => assert_eq!(error, 0, "{cookie}"),
            Expected::Other => {}
        }
    }
}

/// Requests as the input has them, after a good handshake.
fn transmit(fixture: &mut Fixture, structured: bool, contexts: bool, input: &mut Input) {
    let mut client = fixture.connect();
    client.send(&[0, 0, 0, 3]);
    if structured {
        client.option(8, &[]);
    }
    if contexts {
        let query = b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation";
        client.option(10, query);
    }
    client.option(7, b"\0\0\0\x03vol\0\0");
    // What an earlier client has written is not known.
    let clear = RequestHeader {
        flags: CommandFlags::default(),
        command: Command::WriteZeroes,
        cookie: 0,
        offset: 0,
        len: u32::try_from(DISK_BYTES).unwrap(),
    };
    fixture.exchange(&mut client);
    client.received.clear();
    let mut model = Model {
        disk: vec![0; usize::try_from(DISK_BYTES).unwrap()],
        structured,
        contexts,
        expected: BTreeMap::from([(0, Expected::Done)]),
        is_over: false,
        is_broken: false,
    };
    client.send(&clear.encode());
    let mut cookie = 1;
    while !input.is_empty() && client.sent < SENT_MAX / 2 && !model.is_over {
        request(&mut client, &mut model, cookie, input);
        cookie += 1;
        if cookie % 4 == 0 {
            fixture.exchange(&mut client);
        }
    }
    for _ in 0..10 {
        fixture.exchange(&mut client);
    }
    model.verify(&client.received);
    fixture.forget(client);
}

/// Sends one request, mostly a good one.
fn request(client: &mut Client, model: &mut Model, cookie: u64, input: &mut Input) {
    let (kind, flags) = (input.u8(), u16::from(input.u8()));
    let mut header = RequestHeader {
        flags: CommandFlags(if kind & 128 == 0 { flags & 1 } else { flags }),
        command: Command::Flush,
        cookie,
        offset: u64::from(input.u8()) * BLOCK,
        len: u32::from(input.u8() % 20) * 512,
    };
    if kind & 64 != 0 {
        header.offset = input.u64();
        header.len = input.u32();
    }
    let mut bytes = header.encode();
    bytes[6..8].copy_from_slice(&u16::from(kind % 10).to_be_bytes());
    let Ok(Some(header)) = RequestHeader::decode(&bytes) else {
        panic!("{REQUEST_MAGIC:x} is the magic");
    };
    client.send(&bytes);
    let mut payload = Vec::new();
    if header.command == Command::Write {
        // A refused payload is read and thrown away; one that is too long for us never ends.
        payload.resize((header.len as usize).min(16 << 10), input.u8());
        client.send(&payload);
    }
    model.expect(&header, &payload);
    if kind & 32 != 0 && input.u8() == 0 {
        client.send(input.bytes(30));
        (model.is_over, model.is_broken) = (true, true);
    }
}
