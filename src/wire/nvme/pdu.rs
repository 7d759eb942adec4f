//! PDUs: what stands behind their headers (spec/nvmf-tcp.md, section 2.2).

use super::header::{
    Alignment, DIGEST_BYTES, Digests, Direction, Fault, HEADER_BYTES, HEADER_BYTES_MAX, Kind,
    digest, flag,
};
use super::{Cqe, Sqe};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The common header, as bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    kind: u8,
    flags: u8,
    hlen: u8,
    pdo: u8,
    plen: U32,
}

/// A PDU that has a header and perhaps data behind it.
trait Pdu: IntoBytes + Immutable {
    const KIND: Kind;
}

/// Appends a PDU's header for `data` bytes, with its digest and padding. The data, and their digest if
/// `digests` wants one, are the caller's to append.
fn put<P: Pdu>(
    pdu: &P,
    flags: u8,
    digests: Digests,
    align: Alignment,
    data: u32,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let hlen = P::KIND.header_bytes();
    let digests = match P::KIND.has_digests() {
        true => digests,
        false => Digests::default(),
    };
    let head = usize::from(hlen) + if digests.header { 4 } else { 0 };
    let mut flags = flags;
    let (mut pdo, mut tail) = (0, 0);
    if digests.header {
        flags |= flag::HEADER_DIGEST;
    }
    if data > 0 {
        pdo = head.next_multiple_of(align.bytes());
        if digests.data {
            flags |= flag::DATA_DIGEST;
            tail = DIGEST_BYTES;
        }
    }
    let before = u32::try_from(head.max(pdo)).unwrap_or(u32::MAX);
    let header = RawHeader {
        kind: P::KIND as u8,
        flags,
        hlen,
        // At most 132 + 124, of a header that has data: 72 + 4 + 124.
        pdo: u8::try_from(pdo).unwrap_or(u8::MAX),
        plen: U32::new(before.saturating_add(data).saturating_add(tail)),
    };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(pdu.as_bytes());
    if digests.header {
        let sum = digest(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&sum.to_le_bytes());
    }
    if pdo > head {
        out.resize(start + pdo, 0);
    }
}

/// [`Kind::IcReq`] and [`Kind::IcResp`] behind the common header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcPdu {
    /// The format of PDUs: 0.
    pub format: U16,
    /// HPDA or CPDA; see [`Alignment`].
    pub alignment: u8,
    /// DGST; see [`Digests`].
    pub digests: u8,
    /// From the host MAXR2T, 0-based; from the controller MAXH2CDATA in bytes.
    pub limit: U32,
    spare: [u8; 112],
}

impl IcPdu {
    /// One of format 0.
    #[must_use]
    pub fn new(alignment: u8, digests: Digests, limit: u32) -> Self {
        Self {
            format: U16::new(0),
            alignment,
            digests: digests.to_byte(),
            limit: U32::new(limit),
            spare: [0; 112],
        }
    }

    /// From the bytes behind the common header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(pdu, _)| pdu)
    }

    /// Checks what a host says.
    ///
    /// # Errors
    /// What to end the connection with.
    pub fn check_request(&self) -> Result<(Alignment, Digests), Fault> {
        if self.format.get() != 0 {
            return Err(Fault::field(8));
        }
        let alignment = Alignment::from_byte(self.alignment).ok_or(Fault::field(10))?;
        Ok((alignment, Digests::from_byte(self.digests)))
    }

    /// Appends it as the host's.
    pub fn put_request(&self, out: &mut Vec<u8>) {
        put_plain(Kind::IcReq, self.as_bytes(), out);
    }

    /// Appends it as the controller's.
    pub fn put_response(&self, out: &mut Vec<u8>) {
        put_plain(Kind::IcResp, self.as_bytes(), out);
    }
}

/// Appends a PDU that never has digests.
fn put_plain(kind: Kind, body: &[u8], out: &mut Vec<u8>) {
    let len = HEADER_BYTES + body.len();
    let header = RawHeader {
        kind: kind as u8,
        flags: 0,
        hlen: kind.header_bytes(),
        pdo: 0,
        plen: U32::new(u32::try_from(len).unwrap_or(u32::MAX)),
    };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(body);
}

/// Appends a termination request from the controller or the host, with the beginning of the header at fault.
pub fn put_term(from: Direction, fault: Fault, header: &[u8], out: &mut Vec<u8>) {
    let kind = match from {
        Direction::FromHost => Kind::H2cTerm,
        Direction::FromController => Kind::C2hTerm,
    };
    let mut body = [0; 16];
    body[..2].copy_from_slice(&(fault.kind as u16).to_le_bytes());
    body[2..6].copy_from_slice(&fault.offset.to_le_bytes());
    let copied = header.get(..header.len().min(HEADER_BYTES_MAX));
    let body = [&body, copied.unwrap_or_default()].concat();
    put_plain(kind, &body, out);
}

/// [`Kind::CapsuleCmd`] behind the common header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmdPdu(pub Sqe);

/// [`Kind::CapsuleResp`] behind the common header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleRespPdu(pub Cqe);

/// [`Kind::H2cData`] and [`Kind::C2hData`] behind the common header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataPdu {
    /// The command's identifier.
    pub cid: U16,
    /// The tag of the R2T; reserved from the controller.
    pub tag: U16,
    /// Where in the command's data, in bytes.
    pub offset: U32,
    /// How many bytes.
    pub len: U32,
    spare: U32,
}

/// [`Kind::R2t`] behind the common header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct R2tPdu {
    /// The command's identifier.
    pub cid: U16,
    /// To be named by the data.
    pub tag: U16,
    /// From where in the command's data, in bytes.
    pub offset: U32,
    /// How many bytes.
    pub len: U32,
    spare: U32,
}

impl Pdu for CapsuleCmdPdu {
    const KIND: Kind = Kind::CapsuleCmd;
}

impl Pdu for CapsuleRespPdu {
    const KIND: Kind = Kind::CapsuleResp;
}

impl Pdu for R2tPdu {
    const KIND: Kind = Kind::R2t;
}

#[derive(IntoBytes, Immutable)]
#[repr(transparent)]
struct ToHost(DataPdu);

impl Pdu for ToHost {
    const KIND: Kind = Kind::C2hData;
}

#[derive(IntoBytes, Immutable)]
#[repr(transparent)]
struct ToController(DataPdu);

impl Pdu for ToController {
    const KIND: Kind = Kind::H2cData;
}

impl CapsuleCmdPdu {
    /// From the bytes behind the common header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(pdu, _)| pdu)
    }

    /// Appends it, for `data` bytes that the caller appends (and their digest).
    pub fn put(&self, digests: Digests, align: Alignment, data: u32, out: &mut Vec<u8>) {
        put(self, 0, digests, align, data, out);
    }
}

impl CapsuleRespPdu {
    /// From the bytes behind the common header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(pdu, _)| pdu)
    }

    /// Appends it.
    pub fn put(&self, digests: Digests, out: &mut Vec<u8>) {
        put(self, 0, digests, Alignment::default(), 0, out);
    }
}

impl R2tPdu {
    /// Asks for `len` bytes from `offset` of command `cid`, under `tag`.
    #[must_use]
    pub fn new(cid: u16, tag: u16, offset: u32, len: u32) -> Self {
        Self {
            cid: U16::new(cid),
            tag: U16::new(tag),
            offset: U32::new(offset),
            len: U32::new(len),
            spare: U32::new(0),
        }
    }

    /// From the bytes behind the common header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(pdu, _)| pdu)
    }

    /// Appends it.
    pub fn put(&self, digests: Digests, out: &mut Vec<u8>) {
        put(self, 0, digests, Alignment::default(), 0, out);
    }
}

impl DataPdu {
    /// `len` bytes from `offset` of the data of command `cid`; `tag` only from the host.
    #[must_use]
    pub fn new(cid: u16, tag: u16, offset: u32, len: u32) -> Self {
        Self {
            cid: U16::new(cid),
            tag: U16::new(tag),
            offset: U32::new(offset),
            len: U32::new(len),
            spare: U32::new(0),
        }
    }

    /// From the bytes behind the common header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(pdu, _)| pdu)
    }

    /// Appends it as the controller's, for data that the caller appends (and their digest). `flags`:
    /// [`flag::LAST`] and [`flag::SUCCESS`].
    pub fn put_to_host(&self, flags: u8, digests: Digests, align: Alignment, out: &mut Vec<u8>) {
        put(&ToHost(*self), flags, digests, align, self.len.get(), out);
    }

    /// Appends it as the host's; see [`DataPdu::put_to_host`].
    pub fn put_to_controller(
        &self,
        flags: u8,
        digests: Digests,
        align: Alignment,
        out: &mut Vec<u8>,
    ) {
        put(
            &ToController(*self),
            flags,
            digests,
            align,
            self.len.get(),
            out,
        );
    }
}

const _: () = {
    assert!(size_of::<IcPdu>() + HEADER_BYTES == 128);
    assert!(size_of::<CapsuleCmdPdu>() + HEADER_BYTES == 72);
    assert!(size_of::<CapsuleRespPdu>() + HEADER_BYTES == 24);
    assert!(size_of::<DataPdu>() + HEADER_BYTES == 24);
    assert!(size_of::<R2tPdu>() + HEADER_BYTES == 24);
};

#[cfg(test)]
mod tests;
