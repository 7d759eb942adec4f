//! A host of the NVMe/TCP target that says anything: whatever it is answered is a PDU, with right
//! digests, for a command that it has sent; data are those that were written; and when it has left, nothing
//! of it stays.
//!
//! The first byte says how much is done for the input: nothing, a hello, an admin qpair, or an I/O qpair; or an
//! admin qpair of a host that must prove who it is, of which the input says the messages: it has not the key, so
//! that nothing but messages is ever done for it.

use super::input::Input;
use super::rig::reactors;
use pmcache::bdev::{Bdev, ChapKey, HostKeys, MallocBdev, MallocConfig, NamedKey};
use pmcache::target::nvmf::{
    ChapGroup, ChapHash, ChapOffer, NamespaceConfig, NvmfTarget, SubsystemConfig, TransportOptions,
};
use pmcache::wire::nvme::{
    Alignment, AuthCommand, AuthMessage, AuthReason, CapsuleCmdPdu, CapsuleRespPdu, ConnectCommand,
    ConnectData, Cqe, DataPdu, Digests, Direction, HEADER_BYTES, Header, IcPdu, IoRange, Kind,
    Limits, Negotiate, PropertyCommand, R2tPdu, Reply, Sqe, Status, admin, cc, digest, flag, io,
    property,
};
use reactors::{ManualClock, Reactor};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use zerocopy::IntoBytes;

const NQN: &str = "nqn.2026-11.fuzz.pmcache:one";
const HOST: &str = "nqn.2026-11.fuzz.host:a";
/// One that must prove who it is.
const KEYED: &str = "nqn.2026-11.fuzz.host:b";
const BLOCKS: u64 = 128;
/// Turns of the reactor within which a host that has left is forgotten.
const TURNS_MAX: usize = 1000;
/// Bytes that an input may send: they and the answers fit into a socket's buffers.
const SENT_MAX: usize = 64 << 10;
const DATA_MAX: u32 = 8192;

thread_local! {
    static TARGET: std::cell::RefCell<Fixture> = std::cell::RefCell::new(Fixture::new());
}

struct Fixture {
    clock: Arc<ManualClock>,
    reactor: Reactor,
    target: NvmfTarget,
    address: SocketAddr,
}

impl Fixture {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let (mut reactors, _) = reactors(1, &clock, 1);
        let reactor = reactors.pop().unwrap();
        let target = NvmfTarget::new(vec![reactor.handle()]);
        let options = TransportOptions {
            io_bytes_max: DATA_MAX,
            ..TransportOptions::default()
        };
        target.create_transport(options).unwrap();
        let config = SubsystemConfig {
            allow_any_host: true,
            ..SubsystemConfig::new(NQN)
        };
        target.create_subsystem(config).unwrap();
        // Of 32 bytes, as Python made it.
        let key =
            ChapKey::parse("DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:").unwrap();
        let name = "key".to_owned();
        let host = NamedKey { name, key };
        let controller = Some(host.clone());
        let keys = HostKeys { host, controller };
        target.add_host(NQN, KEYED, Some(keys)).unwrap();
        // What is calculated aside is done when it is done: an input must always come to the same.
        target.set_chap_offer(ChapOffer {
            groups: vec![ChapGroup::Null],
            ..ChapOffer::default()
        });
        for nsid in 1..=2 {
            let disk = MallocBdev::new(MallocConfig {
                name: format!("disk{nsid}"),
                uuid: uuid::Uuid::from_bytes([nsid; 16]),
                block_size: 512,
                blocks: BLOCKS,
            });
            let namespace = NamespaceConfig {
                bdev: Arc::new(disk.unwrap()) as Arc<dyn Bdev>,
                nsid: Some(nsid.into()),
                nguid: None,
                eui64: None,
                uuid: None,
                ana_group: None,
            };
            target.add_namespace(NQN, namespace).unwrap();
        }
        let any = "127.0.0.1:0".parse().unwrap();
        let address = target.add_listener(NQN, any).unwrap();
        Self {
            clock,
            reactor,
            target,
            address,
        }
    }

    /// As a reactor's thread does: it looks at its sockets before it would sleep.
    fn turn(&mut self) {
        if self.reactor.step() == 0 {
            let _ = self.reactor.wake();
        }
    }

    /// Lets the target work off what has been sent.
    fn exchange(&mut self, qpair: &mut Qpair) {
        for _ in 0..4 {
            self.turn();
            qpair.receive();
        }
    }

    /// All hosts have gone, and so does all that the target knew of them.
    fn forget(&mut self) {
        for _ in 0..TURNS_MAX {
            let figures = self.target.figures();
            let qpairs = |f: &pmcache::target::nvmf::ReactorFigures| {
                f.current_admin_qpairs + f.current_io_qpairs + f.current_unassociated_qpairs
            };
            if figures.iter().map(qpairs).sum::<u64>() == 0 {
                assert!(self.target.controllers(NQN).unwrap().is_empty());
                return;
            }
            self.turn();
        }
        panic!("something stays: {:?}", self.target.figures());
    }

    /// A qpair that has said hello.
    fn greeted(&mut self, digests: Digests, alignment: u8) -> Qpair {
        let mut qpair = Qpair::connect(self.address);
        let mut hello = vec![];
        IcPdu::new(alignment, digests, 0).put_request(&mut hello);
        qpair.digests = digests;
        qpair.alignment = Alignment::from_byte(alignment).unwrap();
        qpair.send(&hello);
        self.exchange(&mut qpair);
        qpair
    }

    fn connected(
        &mut self,
        digests: Digests,
        alignment: u8,
        qid: u16,
        cntlid: u16,
    ) -> (Qpair, u16) {
        self.connected_as(HOST, digests, alignment, (qid, cntlid))
    }

    fn connected_as(
        &mut self,
        host: &str,
        digests: Digests,
        alignment: u8,
        (qid, cntlid): (u16, u16),
    ) -> (Qpair, u16) {
        let mut qpair = self.greeted(digests, alignment);
        let data = ConnectData::new([3; 16], cntlid, NQN, host);
        let sqe = ConnectCommand::new(qid, 31, 0, 0).to_sqe(1);
        qpair.capsule(&sqe, data.as_bytes());
        self.exchange(&mut qpair);
        let done = qpair.done.last().expect("Connect is answered");
        assert!(done.status().is_ok(), "{done:?}");
        let cntlid = u16::try_from(done.result() & 0xffff).unwrap();
        (qpair, cntlid)
    }
}

struct Qpair {
    stream: TcpStream,
    digests: Digests,
    alignment: Alignment,
    received: Vec<u8>,
    sent: usize,
    /// The latest PDU.
    last: Vec<u8>,
    /// How often each identifier was sent and not answered; while all that was sent was well-formed.
    open: Option<BTreeMap<u16, u32>>,
    done: Vec<Cqe>,
    asked: Vec<R2tPdu>,
    ended: bool,
}

impl Qpair {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            digests: Digests::default(),
            alignment: Alignment::default(),
            received: vec![],
            sent: 0,
            last: vec![],
            open: Some(BTreeMap::new()),
            done: vec![],
            asked: vec![],
            ended: false,
        }
    }

    /// Sends as much as may be sent; the target may have hung up.
    fn send(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(SENT_MAX - self.sent)];
        self.sent += bytes.len();
        self.last = bytes.to_vec();
        let _ = self.stream.write_all(bytes);
    }

    fn put_data(&self, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(data);
        if self.digests.data && !data.is_empty() {
            out.extend_from_slice(&digest(data).to_le_bytes());
        }
    }

    fn capsule(&mut self, sqe: &Sqe, data: &[u8]) {
        let mut out = vec![];
        let len = u32::try_from(data.len()).unwrap();
        CapsuleCmdPdu(*sqe).put(self.digests, Alignment::default(), len, &mut out);
        self.put_data(data, &mut out);
        if let Some(open) = &mut self.open {
            *open.entry(sqe.cid.get()).or_default() += 1;
        }
        self.send(&out);
    }

    fn data(&mut self, pdu: DataPdu, last: bool, data: &[u8]) {
        let mut out = vec![];
        let flags = if last { flag::LAST } else { 0 };
        pdu.put_to_controller(flags, self.digests, Alignment::default(), &mut out);
        self.put_data(data, &mut out);
        self.send(&out);
    }

    fn receive(&mut self) {
        let mut bytes = [0; 16 << 10];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break self.ended = true,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => break self.ended = true,
            }
        }
        while self.take() {}
    }

    /// Takes one PDU off what was received.
    fn take(&mut self) -> bool {
        let limits = Limits {
            from: Direction::FromController,
            digests: self.digests,
            alignment: self.alignment,
            capsule_data_max: 0,
            data_max: DATA_MAX,
        };
        let Some(first) = self.received.first_chunk::<HEADER_BYTES>() else {
            return false;
        };
        let header = Header::check(*first, &limits).expect("a PDU that a controller may send");
        let digest_bytes = |on: bool| if on { 4 } else { 0 };
        let head = header.bytes() + digest_bytes(header.has_header_digest());
        let start = head + header.pad;
        let end = start + header.data;
        let whole = end + digest_bytes(header.has_data_digest());
        if self.received.len() < whole {
            return false;
        }
        let rest = self.received.split_off(whole);
        let pdu = std::mem::replace(&mut self.received, rest);
        if header.has_header_digest() {
            let sum = digest(&pdu[..header.bytes()]).to_le_bytes();
            assert_eq!(pdu[header.bytes()..head], sum);
        }
        if header.has_data_digest() {
            assert_eq!(pdu[end..], digest(&pdu[start..end]).to_le_bytes());
        }
        self.took(header.kind, &pdu[HEADER_BYTES..header.bytes()]);
        if header.kind == Kind::C2hTerm {
            assert!(self.received.is_empty(), "something behind a termination");
        }
        true
    }

    fn took(&mut self, kind: Kind, body: &[u8]) {
        match kind {
            Kind::CapsuleResp => {
                let CapsuleRespPdu(cqe) = CapsuleRespPdu::decode(body).unwrap();
                if let Some(open) = &mut self.open {
                    let count = open
                        .get_mut(&cqe.cid.get())
                        .expect("a command that was sent");
                    *count = count.checked_sub(1).expect("one answer for each command");
                }
                self.done.push(cqe);
            }
            Kind::R2t => self.asked.push(R2tPdu::decode(body).unwrap()),
            _ => {}
        }
    }
}

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    TARGET.with_borrow_mut(|fixture| {
        let how = input.u8();
        let digests = Digests::from_byte(how >> 2);
        let alignment = if how & 0x10 == 0 { 0 } else { input.u8() % 32 };
        match how % 4 {
            _ if how & 0x80 != 0 => {
                let any = (0, ConnectData::ANY);
                let (mut qpair, _) = fixture.connected_as(KEYED, digests, alignment, any);
                qpair.done.clear();
                authenticate(fixture, &mut qpair, &mut input);
            }
            0 => {
                let mut qpair = Qpair::connect(fixture.address);
                qpair.open = None;
                talk(fixture, &mut qpair, &mut input);
            }
            1 => {
                let mut qpair = fixture.greeted(digests, alignment);
                talk(fixture, &mut qpair, &mut input);
            }
            level => {
                let (mut qpair, cntlid) =
                    fixture.connected(digests, alignment, 0, ConnectData::ANY);
                let enable = PropertyCommand::set(2, property::CC, cc::ENABLE | cc::ENTRY_SIZES);
                qpair.capsule(&enable, &[]);
                fixture.exchange(&mut qpair);
                if level == 2 {
                    talk(fixture, &mut qpair, &mut input);
                } else {
                    let (mut io, _) = fixture.connected(digests, alignment, 1, cntlid);
                    io_round_trip(fixture, &mut io);
                    talk(fixture, &mut io, &mut input);
                }
            }
        }
        fixture.forget();
    });
}

/// What was written is read, whatever hosts before this one did.
fn io_round_trip(fixture: &mut Fixture, qpair: &mut Qpair) {
    let range = IoRange { lba: 3, blocks: 2 };
    let write = Sqe::new(io::WRITE, 5, 1).with_blocks(range, true);
    qpair.capsule(&write.with_capsule_data(1024), &[0x5a; 1024]);
    fixture.exchange(qpair);
    let compare = Sqe::new(io::COMPARE, 6, 1).with_blocks(range, false);
    qpair.capsule(&compare.with_capsule_data(1024), &[0x5a; 1024]);
    fixture.exchange(qpair);
    let done: Vec<_> = qpair.done.iter().map(|cqe| cqe.status().is_ok()).collect();
    assert_eq!(done, [true; 3], "Connect, Write and Compare go well");
}

const OPCODES: [u8; 16] = [
    io::FLUSH,
    io::WRITE,
    io::READ,
    io::COMPARE,
    io::WRITE_ZEROES,
    io::DATASET_MANAGEMENT,
    io::VERIFY,
    admin::IDENTIFY,
    admin::GET_LOG_PAGE,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT_REQUEST,
    admin::KEEP_ALIVE,
    admin::ABORT,
    admin::FABRICS,
    0xc0,
];

/// A command that is well-formed, and perhaps possible.
fn command(qpair: &mut Qpair, input: &mut Input) {
    let opcode = OPCODES[usize::from(input.u8() % 16)];
    let shape = input.u8();
    let mut sqe = Sqe::new(opcode, input.u8().into(), (shape % 4).into());
    if opcode == admin::FABRICS {
        sqe.nsid = u32::from(input.u8() % 9).into();
    }
    if shape & 4 == 0 {
        let range = IoRange {
            lba: u64::from(input.u8()) % (BLOCKS + 8),
            blocks: u32::from(input.u8() % 20) + 1,
        };
        sqe = sqe.with_blocks(range, shape & 8 != 0);
    } else {
        sqe.cdw10 = input.u32().into();
        sqe.cdw11 = input.u32().into();
        sqe.cdw12 = input.u32().into();
        sqe.cdw13 = u32::from(input.u8()).into();
    }
    let len = u32::from(input.u8()) * 64;
    if shape & 0x10 == 0 {
        qpair.capsule(&sqe.with_transport_data(len), &[]);
    } else {
        let len = len.min(DATA_MAX);
        let data = vec![input.u8(); len as usize];
        qpair.capsule(&sqe.with_capsule_data(len), &data);
    }
}

/// Data for an R2T, as it wants them or not.
fn answer(qpair: &mut Qpair, input: &mut Input) {
    let Some(r2t) = qpair.asked.pop() else {
        return;
    };
    let odd = input.u8();
    let len = if odd & 1 == 0 {
        r2t.len.get()
    } else {
        r2t.len.get() / 2 + 1
    };
    let offset = if odd & 2 == 0 { 0 } else { input.u32() };
    let cid = r2t.cid.get().wrapping_add(u16::from(odd & 4 != 0));
    let tag = r2t.tag.get().wrapping_add(u16::from(odd & 8 != 0));
    let data = vec![odd; len as usize];
    qpair.data(DataPdu::new(cid, tag, offset, len), odd & 16 == 0, &data);
}

/// A message, which is right in itself or nearly so.
fn message(input: &mut Input) -> Vec<u8> {
    let transaction = u16::from(input.u8() % 2);
    let shape = input.u8();
    let hash = ChapHash::ALL[usize::from(shape % 3)];
    let message = match input.u8() % 8 {
        0 | 1 => AuthMessage::Negotiate(Negotiate::all(transaction)),
        2 => AuthMessage::Negotiate(Negotiate {
            transaction,
            secure_channel: shape & 1,
            chap: Some((input.bytes(3).to_vec(), input.bytes(6).to_vec())),
        }),
        3 | 4 => AuthMessage::Reply(Reply {
            transaction,
            response: vec![shape; hash.bytes()],
            challenge: (shape & 8 != 0).then(|| (7, vec![shape; hash.bytes()])),
            public: vec![shape; usize::from(shape & 16)],
        }),
        5 => AuthMessage::Success2(transaction),
        6 => AuthMessage::Failure2(transaction, AuthReason::Failed),
        _ => return input.bytes(shape.into()).to_vec(),
    };
    let mut bytes = message.encode();
    match shape >> 5 {
        0 => bytes.push(shape),
        1 => bytes.truncate(usize::from(input.u8())),
        2 => {
            let at = usize::from(input.u8()) % bytes.len().max(1);
            bytes[at] ^= input.u8();
        }
        _ => {}
    }
    bytes
}

/// Says and asks for messages, and tries commands: none of these is done.
fn authenticate(fixture: &mut Fixture, qpair: &mut Qpair, input: &mut Input) {
    while !input.is_empty() && !qpair.ended {
        let cid = u16::from(input.u8());
        match input.u8() % 8 {
            0..=2 => {
                let bytes = message(input);
                let len = u32::try_from(bytes.len()).unwrap();
                qpair.capsule(&AuthCommand::send(cid, len), &bytes);
            }
            3..=5 => {
                let len = 4096 >> (input.u8() % 10);
                qpair.capsule(&AuthCommand::receive(cid, len), &[]);
            }
            6 => {
                qpair.done.clear();
                let set = PropertyCommand::set(cid, property::CC, 1);
                qpair.capsule(&set, &[]);
                fixture.exchange(qpair);
                let refused = Status::AUTHENTICATION_REQUIRED;
                let done = qpair.done.iter().find(|done| done.cid.get() == cid);
                assert!(
                    done.is_none_or(|done| !done.status().is_ok()),
                    "{refused:?}"
                );
                continue;
            }
            _ => fixture.exchange(qpair),
        }
    }
    fixture.exchange(qpair);
    // 100 ms go by: what has failed is told so.
    fixture.clock.advance(100_000_000);
    fixture.exchange(qpair);
    let qpairs = fixture.target.qpairs(NQN).unwrap();
    let stages = qpairs.iter().filter_map(|qpair| qpair.auth);
    for auth in stages {
        let unproved = pmcache::target::nvmf::AuthStage::Completed;
        assert_ne!(auth.stage, unproved, "without the key");
    }
}

fn talk(fixture: &mut Fixture, qpair: &mut Qpair, input: &mut Input) {
    while !input.is_empty() && !qpair.ended {
        match input.u8() % 8 {
            0 => {
                qpair.open = None;
                let len = usize::from(input.u8());
                let bytes = input.bytes(len).to_vec();
                qpair.send(&bytes);
            }
            // The latest PDU again, with one byte changed.
            1 => {
                qpair.open = None;
                let mut bytes = qpair.last.clone();
                let at = usize::from(input.u16()) % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= input.u8();
                }
                qpair.send(&bytes);
            }
            2 | 3 => command(qpair, input),
            4 => answer(qpair, input),
            5 => {
                let (cid, tag) = (input.u8().into(), (input.u8() % 34).into());
                let pdu = DataPdu::new(cid, tag, input.u32(), 64);
                qpair.data(pdu, input.u8() & 1 != 0, &[7; 64]);
            }
            6 => {
                let offset = u32::from(input.u8() % 0x30);
                let cid = u16::from(input.u8());
                let sqe = match input.u8() % 3 {
                    0 => PropertyCommand::get(cid, offset, false),
                    1 => PropertyCommand::get(cid, offset, true),
                    _ => PropertyCommand::set(cid, property::CC, input.u32()),
                };
                qpair.capsule(&sqe, &[]);
            }
            _ => fixture.exchange(qpair),
        }
    }
    fixture.exchange(qpair);
}
