//! A host that says and expects PDUs, right or wrong. Encoding is the library's; what is read is taken
//! apart here, byte by byte.

use super::HOST;
use pmcache::wire::nvme::{
    Alignment, CapsuleCmdPdu, ConnectCommand, ConnectData, DataPdu, Digests, IcPdu, IoRange,
    PropertyCommand, Sqe, Status, admin, cc, digest, flag, property,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use zerocopy::IntoBytes;

/// A received PDU.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pdu {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Behind the common header, without digest.
    pub(crate) head: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A received completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capsule {
    pub(crate) cid: u16,
    pub(crate) status: Status,
    pub(crate) dw0: u32,
    pub(crate) dw1: u32,
    pub(crate) sq_head: u16,
}

impl Pdu {
    pub(crate) fn completion(&self) -> Capsule {
        assert_eq!((self.kind, self.data.len()), (5, 0), "{self:?}");
        Capsule {
            dw0: le32(&self.head, 0),
            dw1: le32(&self.head, 4),
            sq_head: le16(&self.head, 8),
            cid: le16(&self.head, 12),
            status: Status::from_field(le16(&self.head, 14)),
        }
    }

    /// FES and FEI of a termination.
    pub(crate) fn term(&self) -> (u16, u32) {
        assert_eq!(self.kind, 3, "{self:?}");
        (le16(&self.head, 0), le32(&self.head, 2))
    }

    /// CCCID, offset and length of data or of an R2T; the tag of an R2T.
    pub(crate) fn extent(&self) -> (u16, u16, u32, u32) {
        let head = &self.head;
        (le16(head, 0), le16(head, 2), le32(head, 4), le32(head, 8))
    }
}

/// A connection, after or before the hello.
pub(crate) struct Qpair {
    pub(crate) stream: TcpStream,
    pub(crate) digests: Digests,
    /// How the host wants data of the controller aligned.
    pub(crate) hpda: u8,
    cid: u16,
}

impl Qpair {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        let bound = Some(Duration::from_secs(20));
        stream.set_read_timeout(bound).unwrap();
        stream.set_write_timeout(bound).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            digests: Digests::default(),
            hpda: 0,
            cid: 0,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Says hello, and hears it.
    pub(crate) fn greet(&mut self, digests: Digests, hpda: u8) {
        let mut hello = vec![];
        IcPdu::new(hpda, digests, 0).put_request(&mut hello);
        self.send(&hello);
        let mut answer = [0; 128];
        self.stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..8], [1, 0, 128, 0, 128, 0, 0, 0]);
        // PFV and CPDA are 0, the digests are those that were asked for.
        assert_eq!(answer[8..12], [0, 0, 0, digests.to_byte()]);
        let data_max = le32(&answer, 12);
        assert!(data_max >= 4096 && data_max.is_multiple_of(4));
        assert_eq!(answer[16..], [0; 112]);
        self.digests = digests;
        self.hpda = hpda;
    }

    pub(crate) fn greeted(address: SocketAddr) -> Self {
        let mut qpair = Self::connect(address);
        qpair.greet(Digests::default(), 0);
        qpair
    }

    pub(crate) fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    /// Bytes of a capsule with these data.
    pub(crate) fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        let len = u32::try_from(data.len()).unwrap();
        CapsuleCmdPdu(sqe).put(self.digests, Alignment::default(), len, &mut out);
        self.put_data(data, &mut out);
        out
    }

    fn put_data(&self, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(data);
        if self.digests.data && !data.is_empty() {
            out.extend_from_slice(&digest(data).to_le_bytes());
        }
    }

    /// Bytes of data that were asked for.
    pub(crate) fn data(&self, pdu: DataPdu, last: bool, data: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        let flags = if last { flag::LAST } else { 0 };
        pdu.put_to_controller(flags, self.digests, Alignment::default(), &mut out);
        self.put_data(data, &mut out);
        out
    }

    /// The next PDU, with its digests checked; nothing at the end.
    pub(crate) fn try_receive(&mut self) -> Option<Pdu> {
        let mut common = [0; 8];
        match self.stream.read_exact(&mut common) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                return None;
            }
            Err(e) => panic!("{e}"),
        }
        let [kind, flags, hlen, pdo, ..] = common;
        let len = le32(&common, 4) as usize;
        let mut rest = vec![0; len - 8];
        self.stream.read_exact(&mut rest).unwrap();
        let head_len = usize::from(hlen) - 8;
        let has_digests = !matches!(kind, 1 | 3);
        let mut at = head_len;
        assert_eq!(flags & 1 != 0, has_digests && self.digests.header);
        if flags & 1 != 0 {
            let whole = [&common[..], &rest[..head_len]].concat();
            assert_eq!(le32(&rest, at), digest(&whole), "header digest");
            at += 4;
        }
        if pdo > 0 {
            let align = (usize::from(self.hpda) + 1) * 4;
            assert!(usize::from(pdo).is_multiple_of(align), "{pdo} for {align}");
            assert!(rest[at..usize::from(pdo) - 8].iter().all(|b| *b == 0));
            at = usize::from(pdo) - 8;
        }
        let mut data = rest.split_off(at);
        if flags & 2 != 0 {
            let sum = data.split_off(data.len() - 4);
            assert_eq!(le32(&sum, 0), digest(&data), "data digest");
        }
        assert_eq!(flags & 2 != 0, kind == 7 && self.digests.data);
        rest.truncate(head_len);
        Some(Pdu {
            kind,
            flags,
            head: rest,
            data,
        })
    }

    pub(crate) fn receive(&mut self) -> Pdu {
        self.try_receive().expect("the target hung up")
    }

    /// The next is a termination, with nothing behind it.
    pub(crate) fn expect_term(&mut self) -> (u16, u32) {
        let term = self.receive().term();
        assert_eq!(self.try_receive(), None);
        term
    }

    /// Sends a command and waits for its end: its data, and its completion.
    pub(crate) fn run(&mut self, sqe: Sqe, capsule_data: &[u8]) -> (Capsule, Vec<u8>) {
        let bytes = self.capsule(sqe, capsule_data);
        self.send(&bytes);
        let mut data = vec![];
        loop {
            let pdu = self.receive();
            if pdu.kind == 7 {
                let (cid, _, offset, len) = pdu.extent();
                assert_eq!(cid, sqe.cid.get());
                assert_eq!(
                    (offset as usize, len as usize),
                    (data.len(), pdu.data.len())
                );
                data.extend_from_slice(&pdu.data);
                if pdu.flags & flag::SUCCESS != 0 {
                    let done = Capsule {
                        cid,
                        status: Status::SUCCESS,
                        dw0: 0,
                        dw1: 0,
                        sq_head: 0,
                    };
                    return (done, data);
                }
                continue;
            }
            let done = pdu.completion();
            assert_eq!(done.cid, sqe.cid.get());
            return (done, data);
        }
    }

    /// As `run`, for commands without data that go well; DW0 and DW1.
    pub(crate) fn ok(&mut self, sqe: Sqe) -> u64 {
        let (done, _) = self.run(sqe, &[]);
        assert_eq!(done.status, Status::SUCCESS, "{sqe:?}");
        u64::from(done.dw0) | u64::from(done.dw1) << 32
    }

    pub(crate) fn connect_to(
        &mut self,
        nqn: &str,
        qid: u16,
        queue_size: u16,
        cntlid: u16,
        flags: u8,
    ) -> Capsule {
        let keep_alive = if qid == 0 { 15_000 } else { 0 };
        let cid = self.next_cid();
        let command = ConnectCommand::new(qid, queue_size, flags, keep_alive);
        let data = ConnectData::new([7; 16], cntlid, nqn, HOST);
        self.run(command.to_sqe(cid), data.as_bytes()).0
    }

    /// An admin command with room for `len` bytes.
    pub(crate) fn admin(&mut self, opcode: u8, nsid: u32, cdw10: u32, len: u32) -> Sqe {
        let cid = self.next_cid();
        let mut sqe = Sqe::new(opcode, cid, nsid).with_transport_data(len);
        sqe.cdw10 = cdw10.into();
        sqe
    }

    /// Identify, which goes well.
    pub(crate) fn identify(&mut self, cns: u8, nsid: u32) -> Vec<u8> {
        let sqe = self.admin(admin::IDENTIFY, nsid, cns.into(), 4096);
        let (done, data) = self.run(sqe, &[]);
        assert_eq!((done.status, data.len()), (Status::SUCCESS, 4096));
        data
    }

    /// An I/O command on namespace 1.
    pub(crate) fn io(&mut self, opcode: u8, lba: u64, blocks: u32) -> Sqe {
        let cid = self.next_cid();
        Sqe::new(opcode, cid, 1).with_blocks(IoRange { lba, blocks }, false)
    }

    pub(crate) fn read(&mut self, lba: u64, blocks: u32) -> (Status, Vec<u8>) {
        let sqe = self.io(pmcache::wire::nvme::io::READ, lba, blocks);
        let (done, data) = self.run(sqe.with_transport_data(blocks * 512), &[]);
        (done.status, data)
    }

    /// In the capsule.
    pub(crate) fn write(&mut self, lba: u64, data: &[u8]) -> Status {
        let blocks = u32::try_from(data.len() / 512).unwrap();
        let sqe = self.io(pmcache::wire::nvme::io::WRITE, lba, blocks);
        let len = u32::try_from(data.len()).unwrap();
        self.run(sqe.with_capsule_data(len), data).0.status
    }

    /// By an R2T, in parts of `part` bytes.
    pub(crate) fn write_asked(&mut self, lba: u64, data: &[u8], part: usize) -> Status {
        let blocks = u32::try_from(data.len() / 512).unwrap();
        let sqe = self.io(pmcache::wire::nvme::io::WRITE, lba, blocks);
        let len = u32::try_from(data.len()).unwrap();
        let bytes = self.capsule(sqe.with_transport_data(len), &[]);
        self.send(&bytes);
        let r2t = self.receive();
        let (cid, tag, offset, wanted) = r2t.extent();
        assert_eq!((r2t.kind, cid, offset, wanted), (9, sqe.cid.get(), 0, len));
        let mut at = 0;
        for part in data.chunks(part) {
            let len = u32::try_from(part.len()).unwrap();
            let last = at as usize + part.len() == data.len();
            let bytes = self.data(DataPdu::new(cid, tag, at, len), last, part);
            self.send(&bytes);
            at += len;
        }
        self.receive().completion().status
    }
}

/// An enabled controller: its admin qpair.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Qpair,
    pub(crate) cntlid: u16,
    nqn: String,
}

impl Host {
    pub(crate) fn connect(address: SocketAddr, nqn: &str) -> Self {
        Self::connect_with(address, nqn, Digests::default())
    }

    pub(crate) fn connect_with(address: SocketAddr, nqn: &str, digests: Digests) -> Self {
        let mut admin = Qpair::connect(address);
        admin.greet(digests, 0);
        let done = admin.connect_to(nqn, 0, 31, ConnectData::ANY, 0);
        assert_eq!(done.status, Status::SUCCESS);
        let mut host = Self {
            address,
            admin,
            cntlid: u16::try_from(done.dw0 & 0xffff).unwrap(),
            nqn: nqn.to_owned(),
        };
        host.configure(cc::ENABLE | cc::ENTRY_SIZES);
        // As hosts do: so that the controller knows that it may rely on flushes.
        host.admin.identify(1, 0);
        host
    }

    pub(crate) fn configure(&mut self, value: u32) {
        let cid = self.admin.next_cid();
        self.admin
            .ok(PropertyCommand::set(cid, property::CC, value));
    }

    pub(crate) fn property(&mut self, offset: u32, is_long: bool) -> u64 {
        let cid = self.admin.next_cid();
        self.admin.ok(PropertyCommand::get(cid, offset, is_long))
    }

    /// An I/O qpair, with the admin qpair's digests.
    pub(crate) fn io(&self, qid: u16, flags: u8) -> Qpair {
        let mut qpair = Qpair::connect(self.address);
        qpair.greet(self.admin.digests, self.admin.hpda);
        let done = qpair.connect_to(&self.nqn, qid, 127, self.cntlid, flags);
        assert_eq!(done.status, Status::SUCCESS);
        qpair
    }
}
