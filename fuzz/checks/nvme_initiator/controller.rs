//! A controller on a listening socket, driven by hand: it answers well when told to, and says what it is told
//! to say. What the host sends must be right, as long as nothing that was said allows otherwise.

use pmcache::wire::nvme::{
    Alignment, CapsuleCmdPdu, CapsuleRespPdu, ConnectCommand, ControllerPage, Cqe, DataPdu,
    Digests, Direction, HEADER_BYTES, Header, IcPdu, Kind, Limits, NamespacePage, PropertyCommand,
    R2tPdu, Sqe, Status, admin, cns, digest, fctype, flag, io, property, put_descriptors,
    put_namespace_list, put_nvm_controller, sgl,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

pub(crate) const SUBNQN: &str = "nqn.2026-11.fuzz:controller";
pub(crate) const BLOCK: u32 = 512;
const CAPSULE_BYTES: u32 = 1024;
const DATA_BYTES: u32 = 4096;
/// Bytes that one connection may be sent: no more than a socket takes that nobody reads.
const SENT_MAX: usize = 64 << 10;

/// What the host waits for.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Hello,
    Command(Sqe, Vec<u8>),
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: TcpStream,
    pub(crate) digests: Digests,
    alignment: Alignment,
    data_max: u32,
    received: Vec<u8>,
    sent: usize,
    /// What was said may have been anything: nothing is known of what comes.
    pub(crate) wild: bool,
    is_over: bool,
    pub(crate) wishes: VecDeque<Wish>,
    /// Writes that were asked for their data.
    asked: Vec<(Sqe, usize, Vec<u8>)>,
    pub(crate) listening: Option<u16>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            digests: Digests::default(),
            alignment: Alignment::default(),
            data_max: DATA_BYTES,
            received: vec![],
            sent: 0,
            wild: false,
            is_over: false,
            wishes: VecDeque::new(),
            asked: vec![],
            listening: None,
        }
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(SENT_MAX.saturating_sub(self.sent))];
        self.sent += bytes.len();
        if self.stream.write_all(bytes).is_err() {
            self.is_over = true;
        }
    }

    fn listen(&mut self) {
        let mut bytes = [0; 16 << 10];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break self.is_over = true,
                Ok(_) if self.wild => {}
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => break self.is_over = true,
            }
        }
        // What comes after bytes of any kind may be anything, too.
        while !self.wild && self.take() {}
    }

    fn take(&mut self) -> bool {
        let Some(first) = self.received.first_chunk::<HEADER_BYTES>() else {
            return false;
        };
        let limits = Limits {
            from: Direction::FromHost,
            digests: self.digests,
            alignment: self.alignment,
            capsule_data_max: 8192,
            data_max: self.data_max,
        };
        let header = Header::check(*first, &limits).expect("a PDU that a host may send");
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
        let body = &pdu[HEADER_BYTES..header.bytes()];
        match header.kind {
            Kind::IcReq => self.wishes.push_back(Wish::Hello),
            Kind::CapsuleCmd => {
                let CapsuleCmdPdu(sqe) = CapsuleCmdPdu::decode(body).unwrap();
                self.wishes
                    .push_back(Wish::Command(sqe, pdu[start..end].to_vec()));
            }
            Kind::H2cData => {
                let told = DataPdu::decode(body).unwrap();
                // Only what was asked well is looked at.
                let mut asked = self.asked.iter_mut();
                if let Some(one) = asked.find(|(sqe, ..)| sqe.cid == told.cid) {
                    one.2.extend_from_slice(&pdu[start..end]);
                }
            }
            Kind::H2cTerm => self.is_over = true,
            other => panic!("a host sends {other:?}"),
        }
        true
    }

    pub(crate) fn completion(&mut self, cid: u16, status: Status, result: u64) {
        let mut out = vec![];
        CapsuleRespPdu(Cqe::new(cid, status, result, 0)).put(self.digests, &mut out);
        self.say(&out);
    }

    /// Says that `data` are there, `damaged` or not.
    pub(crate) fn data(
        &mut self,
        cid: u16,
        offset: u32,
        data: &[u8],
        (flags, damaged): (u8, bool),
    ) {
        let mut out = vec![];
        let len = u32::try_from(data.len()).unwrap();
        let pdu = DataPdu::new(cid, 0, offset, len);
        pdu.put_to_host(flags, self.digests, Alignment::default(), &mut out);
        out.extend_from_slice(data);
        if self.digests.data {
            let sum = digest(data) ^ u32::from(damaged);
            out.extend_from_slice(&sum.to_le_bytes());
        }
        self.say(&out);
    }

    pub(crate) fn r2t(&mut self, cid: u16, tag: u16, offset: u32, len: u32) {
        let mut out = vec![];
        R2tPdu::new(cid, tag, offset, len).put(self.digests, &mut out);
        self.say(&out);
    }

    pub(crate) fn hello(&mut self, digests: Digests, alignment: u8, data_max: u32) {
        let mut out = vec![];
        IcPdu::new(alignment, digests, data_max).put_response(&mut out);
        self.say(&out);
        self.digests = digests;
        match Alignment::from_byte(alignment) {
            Some(alignment) => self.alignment = alignment,
            None => self.wild = true,
        }
        self.data_max = data_max;
    }

    /// The identifier of the command that waits at `at`, if one does.
    pub(crate) fn cid(&self, at: usize) -> Option<u16> {
        match self.wishes.get(at % self.wishes.len().max(1))? {
            Wish::Command(sqe, _) => Some(sqe.cid.get()),
            Wish::Hello => None,
        }
    }
}

/// All connections, and what is behind them.
#[derive(Debug)]
pub(crate) struct Controller {
    listener: TcpListener,
    pub(crate) peers: Vec<Peer>,
    pub(crate) digests: Digests,
    pub(crate) disk: Vec<u8>,
    /// What it says of the namespace; the host goes by what it was told last.
    pub(crate) blocks: u64,
    pub(crate) read_only: bool,
    cntlid: u16,
    config: u32,
}

impl Controller {
    pub(crate) fn new(digests: Digests, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            listener,
            peers: vec![],
            digests,
            disk: vec![0; bytes],
            blocks: bytes as u64 / u64::from(BLOCK),
            read_only: false,
            cntlid: 0,
            config: 0,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Takes what has come.
    pub(crate) fn listen(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.peers.push(Peer::new(stream));
        }
        for peer in &mut self.peers {
            peer.listen();
        }
        self.peers.retain(|peer| !peer.is_over);
    }

    /// Answers everything, as a controller should.
    pub(crate) fn serve(&mut self) {
        self.listen();
        for at in 0..self.peers.len() {
            while self.answer(at) {}
        }
    }

    /// Answers the first wish of a connection well; whether there was one.
    pub(crate) fn answer(&mut self, at: usize) -> bool {
        self.finish_writes(at);
        let digests = self.digests;
        let Some(wish) = self.peers[at].wishes.pop_front() else {
            return false;
        };
        match wish {
            Wish::Hello => self.peers[at].hello(digests, 0, DATA_BYTES),
            Wish::Command(sqe, data) => self.command(at, &sqe, &data),
        }
        true
    }

    fn command(&mut self, at: usize, sqe: &Sqe, data: &[u8]) {
        let cid = sqe.cid.get();
        if sqe.opcode == admin::FABRICS {
            let result = self.fabrics(sqe);
            return self.peers[at].completion(cid, Status::SUCCESS, result);
        }
        // Opcodes of admin and I/O queues overlap: where they do, the data tell.
        match sqe.opcode {
            admin::ASYNC_EVENT_REQUEST => return self.peers[at].listening = Some(cid),
            admin::IDENTIFY => {
                let page = self.page(sqe);
                self.peers[at].data(cid, 0, &page, (flag::LAST, false));
            }
            admin::GET_LOG_PAGE if sqe.nsid.get() == u32::MAX => {
                self.peers[at].data(cid, 0, &[0; 4096], (flag::LAST, false));
            }
            admin::SET_FEATURES if sqe.cdw10.get() == 7 => {
                return self.peers[at].completion(cid, Status::SUCCESS, 1 << 16 | 1);
            }
            io::READ => {
                let range = self.range(sqe);
                let data = self.disk[range].to_vec();
                self.peers[at].data(cid, 0, &data, (flag::LAST, false));
            }
            io::WRITE | io::DATASET_MANAGEMENT if sqe.sgl_kind == sgl::TRANSPORT => {
                let (len, tag) = (sqe.sgl_len.get(), !cid);
                self.peers[at].asked.push((*sqe, len as usize, vec![]));
                return self.peers[at].r2t(cid, tag, 0, len);
            }
            _ => self.execute(sqe, data),
        }
        self.peers[at].completion(cid, Status::SUCCESS, 0);
    }

    /// Of a command to a namespace whose size may have been a lie: as far as there is something.
    fn range(&self, sqe: &Sqe) -> std::ops::Range<usize> {
        let blocks = sqe.blocks();
        let len = blocks.blocks as usize * BLOCK as usize;
        let last = self.disk.len().saturating_sub(len);
        let at = usize::try_from(blocks.lba).unwrap_or(usize::MAX);
        let at = at.saturating_mul(BLOCK as usize).min(last);
        at..at + len
    }

    fn execute(&mut self, sqe: &Sqe, data: &[u8]) {
        let range = self.range(sqe);
        match sqe.opcode {
            io::WRITE if data.len() == range.len() => self.disk[range].copy_from_slice(data),
            io::WRITE_ZEROES => self.disk[range].fill(0),
            _ => {}
        }
    }

    fn finish_writes(&mut self, at: usize) {
        let asked = std::mem::take(&mut self.peers[at].asked);
        for (sqe, len, got) in asked {
            if got.len() < len {
                self.peers[at].asked.push((sqe, len, got));
                continue;
            }
            self.execute(&sqe, &got);
            self.peers[at].completion(sqe.cid.get(), Status::SUCCESS, 0);
        }
    }

    fn fabrics(&mut self, sqe: &Sqe) -> u64 {
        if sqe.fctype() == fctype::CONNECT {
            if ConnectCommand::of(sqe).qid.get() == 0 {
                (self.cntlid, self.config) = (self.cntlid.wrapping_add(1), 0);
            }
            return self.cntlid.into();
        }
        let Some(command) = PropertyCommand::of(sqe) else {
            return 0;
        };
        match (sqe.fctype(), command.offset) {
            (fctype::PROPERTY_GET, property::CAP) => 15,
            (fctype::PROPERTY_GET, property::VS) => 0x0001_0400,
            (fctype::PROPERTY_GET, property::CSTS) => u64::from(self.config & 1),
            (fctype::PROPERTY_SET, property::CC) => {
                self.config = u32::try_from(command.value).unwrap();
                0
            }
            _ => 0,
        }
    }

    /// The page that an Identify wants.
    pub(crate) fn page(&self, sqe: &Sqe) -> Vec<u8> {
        let [page, ..] = sqe.cdw10.get().to_le_bytes();
        let namespace = NamespacePage {
            blocks: self.blocks,
            block_size: BLOCK,
            preferred_bytes: 4096,
            read_only: self.read_only,
            discard_zeroes: false,
            nguid: [9; 16],
            eui64: [0; 8],
            ana_group: 0,
        };
        let mut out = vec![];
        match page {
            cns::CONTROLLER => {
                let page = ControllerPage {
                    serial: "SN1",
                    model: "fuzz",
                    firmware: "1",
                    subnqn: SUBNQN,
                    cntlid: self.cntlid,
                    is_discovery: false,
                    version: 0x0001_0400,
                    mdts: 1,
                    keep_alive_unit: 1,
                    event_requests: 4,
                    commands_max: 16,
                    namespaces_max: 4,
                    volatile_cache: true,
                    capsule_data_max: CAPSULE_BYTES,
                    ana: false,
                };
                out = page.encode();
            }
            cns::CSI_CONTROLLER => put_nvm_controller(0, 1, 0, &mut out),
            cns::ACTIVE_NAMESPACES => put_namespace_list(1..=1, sqe.nsid.get(), &mut out),
            cns::NAMESPACE => out = namespace.encode(),
            cns::DESCRIPTORS => put_descriptors(&namespace, [7; 16], &mut out),
            _ => {}
        }
        out.resize(4096, 0);
        out
    }
}
