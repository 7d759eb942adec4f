//! One connection, seen from the controller.

use pmcache::wire::nvme::{
    Alignment, CapsuleCmdPdu, CapsuleRespPdu, Cqe, DataPdu, Digests, Direction, HEADER_BYTES,
    Header, IcPdu, Kind, Limits, Sqe, Status, digest,
};
use std::io::{Read, Write};
use std::net::TcpStream;

/// A PDU that came: what is behind its common header, and its data.
#[derive(Debug)]
pub(crate) struct Pdu {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) body: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn sqe(&self) -> Sqe {
        assert_eq!(self.kind, Kind::CapsuleCmd);
        CapsuleCmdPdu::decode(&self.body).unwrap().0
    }
}

pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    pub(crate) digests: Digests,
    /// What we align to; the host wants nothing.
    pub(crate) cpda: u8,
    /// Bytes of one write to the socket.
    pub(crate) split: usize,
    pub(crate) capsule_data_max: u32,
    pub(crate) data_max: u32,
}

impl Peer {
    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The next PDU, which must be right; nothing if the host has hung up.
    pub(crate) fn pdu(&mut self) -> Option<Pdu> {
        let first: [u8; HEADER_BYTES] = self.take(HEADER_BYTES)?.try_into().unwrap();
        let limits = Limits {
            from: Direction::FromHost,
            digests: self.digests,
            alignment: Alignment::from_byte(self.cpda).unwrap(),
            capsule_data_max: self.capsule_data_max,
            data_max: self.data_max,
        };
        let header = Header::check(first, &limits).unwrap_or_else(|fault| {
            panic!("the host sends {first:?}: {fault}");
        });
        let body = self.take(header.bytes() - HEADER_BYTES)?;
        if header.has_header_digest() {
            let whole = [&first[..], &body].concat();
            assert_eq!(self.take(4)?, digest(&whole).to_le_bytes());
        }
        assert!(self.take(header.pad)?.iter().all(|byte| *byte == 0));
        let data = self.take(header.data)?;
        if header.has_data_digest() {
            assert_eq!(self.take(4)?, digest(&data).to_le_bytes());
        }
        Some(Pdu {
            kind: header.kind,
            flags: header.flags,
            body,
            data,
        })
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.split) {
            // The host may have hung up already: that is its verdict.
            let _ = self.stream.write_all(piece);
        }
    }

    /// Says hello, with the digests that the host wants.
    pub(crate) fn greet(&mut self) -> Option<()> {
        let hello = self.pdu()?;
        assert_eq!(hello.kind, Kind::IcReq);
        let hello = IcPdu::decode(&hello.body).unwrap();
        let (_, digests) = hello.check_request().unwrap();
        let mut out = vec![];
        IcPdu::new(self.cpda, digests, self.data_max).put_response(&mut out);
        self.say(&out);
        self.digests = digests;
        Some(())
    }

    pub(crate) fn completion(&self, cid: u16, status: Status, result: u64) -> Vec<u8> {
        let mut out = vec![];
        CapsuleRespPdu(Cqe::new(cid, status, result, 0)).put(self.digests, &mut out);
        out
    }

    /// A PDU with `data` at `offset`.
    pub(crate) fn data(&self, cid: u16, offset: u32, data: &[u8], flags: u8) -> Vec<u8> {
        let len = u32::try_from(data.len()).unwrap();
        let mut out = vec![];
        let pdu = DataPdu::new(cid, 0, offset, len);
        pdu.put_to_host(flags, self.digests, Alignment::default(), &mut out);
        out.extend_from_slice(data);
        if self.digests.data {
            out.extend_from_slice(&digest(data).to_le_bytes());
        }
        out
    }

    /// The error that the host ends the connection for: kind and offset; nothing if it just hangs up.
    pub(crate) fn complaint(&mut self) -> Option<(u8, u8)> {
        loop {
            let first = self.take(HEADER_BYTES)?;
            let len = u32::from_le_bytes(first[4..8].try_into().unwrap()) as usize;
            let rest = self.take(len - HEADER_BYTES)?;
            if first[0] == Kind::H2cTerm as u8 {
                return Some((rest[0], rest[2]));
            }
        }
    }
}
