//! PDUs on their way in: cut, checked against their digests, data straight to where they belong.

use super::NvmeFault;
use crate::bdev::stream::{Input, Received};
use crate::wire::nvme::{
    Agreed, Alignment, CapsuleRespPdu, Cqe, DataPdu, Digests, Direction, Fault, FaultKind,
    HEADER_BYTES, Header, IcPdu, Kind, Limits, R2tPdu, RunningDigest, TermRequest, digest, flag,
};
use std::os::fd::AsFd;

/// System calls that one turn may spend.
const CALLS_MAX: usize = 16;
const DIGEST_BYTES: usize = 4;

/// The commands of a queue: what PDUs are about.
pub(super) trait Commands {
    /// Data begin to come. Returns a number for their command.
    fn data_begin(&mut self, pdu: &DataPdu) -> Result<u64, NvmeFault>;

    /// Where `len` bytes from `at` of a command's data belong; empty if there is no such place.
    fn place(&mut self, command: u64, at: usize, len: usize) -> &mut [u8];

    /// The data of a PDU are all there. `intact`: they match their digest. `success`: they are also the
    /// completion.
    fn data_end(&mut self, command: u64, intact: bool, success: bool) -> Result<(), NvmeFault>;

    /// A command has ended.
    fn completed(&mut self, cqe: &Cqe) -> Result<(), NvmeFault>;

    /// The controller is ready for data.
    fn wanted(&mut self, r2t: &R2tPdu) -> Result<(), NvmeFault>;
}

/// What the next received bytes are.
#[derive(Debug)]
enum Incoming {
    Header,
    Data {
        command: u64,
        at: usize,
        left: usize,
        flags: u8,
        /// A digest follows.
        summed: bool,
    },
    Digest {
        command: u64,
        flags: u8,
        sum: u32,
    },
}

/// Whether the socket had something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It was silent.
    Nothing,
    /// Something came.
    Something,
}

/// One connection's PDUs.
#[derive(Debug)]
pub(super) struct Receiver {
    input: Input,
    incoming: Incoming,
    /// Of the data that are coming, if a digest follows them.
    sum: RunningDigest,
    limits: Limits,
    /// The header of the last PDU, for the controller if it is wrong.
    last: [u8; HEADER_BYTES],
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            input: Input::new(),
            incoming: Incoming::Header,
            sum: RunningDigest::default(),
            limits: Limits {
                from: Direction::FromController,
                digests: Digests::default(),
                // HPDA 0 is what we say.
                alignment: Alignment::default(),
                capsule_data_max: 0,
                data_max: u32::MAX,
            },
            last: [0; HEADER_BYTES],
        }
    }

    /// The common header of the PDU that was looked at last.
    pub(super) fn last_header(&self) -> &[u8] {
        &self.last
    }

    /// Receives the controller's hello, which answers a request for `digests`; nothing if it is not all
    /// there.
    pub(super) fn hello(
        &mut self,
        socket: impl AsFd,
        digests: Digests,
    ) -> Result<Option<Agreed>, NvmeFault> {
        loop {
            if let Some(first) = self.input.unread().first_chunk::<HEADER_BYTES>() {
                self.last = *first;
                let header = Header::check(*first, &self.limits)?;
                let whole = header.bytes() + header.data;
                if let Some(pdu) = self.input.unread().get(HEADER_BYTES..whole) {
                    let pdu = match header.kind {
                        Kind::IcResp => IcPdu::decode(pdu).ok_or(Fault::field(4))?,
                        Kind::C2hTerm => return Err(terminated(pdu)),
                        _ => return Err(Fault::of(FaultKind::Sequence).into()),
                    };
                    let agreed = pdu.check_response(digests)?;
                    self.input.skip(whole);
                    self.limits.digests = agreed.digests;
                    return Ok(Some(agreed));
                }
            }
            match self.input.receive(&socket, &mut [])? {
                Received::Nothing => return Ok(None),
                Received::End => return Err(NvmeFault::End),
                Received::Some { .. } => {}
            }
        }
    }

    /// Receives and uses what there is, up to a bound.
    ///
    /// # Errors
    /// Why there is no going on with this connection.
    pub(super) fn receive(
        &mut self,
        socket: impl AsFd,
        commands: &mut impl Commands,
    ) -> Result<Heard, NvmeFault> {
        // What came with the hello.
        self.digest(commands)?;
        let mut heard = Heard::Nothing;
        for _ in 0..CALLS_MAX {
            let payload = match self.incoming {
                Incoming::Data {
                    command, at, left, ..
                } => commands.place(command, at, left),
                Incoming::Header | Incoming::Digest { .. } => &mut [],
            };
            match self.input.receive(&socket, payload)? {
                Received::Nothing => break,
                Received::End => return Err(NvmeFault::End),
                Received::Some { payload, all } => {
                    heard = Heard::Something;
                    self.data_came(payload, commands);
                    self.digest(commands)?;
                    if all {
                        break;
                    }
                }
            }
        }
        Ok(heard)
    }

    /// `count` bytes of data are in their place.
    fn data_came(&mut self, count: usize, commands: &mut impl Commands) {
        if let Incoming::Data {
            command,
            at,
            left,
            summed,
            ..
        } = &mut self.incoming
        {
            if *summed {
                self.sum.update(commands.place(*command, *at, count));
            }
            *at += count;
            *left -= count;
        }
    }

    /// Uses received bytes until more are needed.
    fn digest(&mut self, commands: &mut impl Commands) -> Result<(), NvmeFault> {
        loop {
            if let Incoming::Data {
                command, at, left, ..
            } = self.incoming
            {
                let moved = self.input.move_to(commands.place(command, at, left));
                self.data_came(moved, commands);
            }
            match &self.incoming {
                Incoming::Data { left, .. } if *left > 0 => return Ok(()),
                Incoming::Data {
                    command,
                    flags,
                    summed,
                    ..
                } => {
                    let (command, flags, summed) = (*command, *flags, *summed);
                    self.incoming = match summed {
                        true => Incoming::Digest {
                            command,
                            flags,
                            sum: self.sum.value(),
                        },
                        false => Incoming::Header,
                    };
                    if !summed {
                        commands.data_end(command, true, flags & flag::SUCCESS != 0)?;
                    }
                }
                Incoming::Digest {
                    command,
                    flags,
                    sum,
                } => {
                    let Some(told) = self.input.unread().first_chunk::<DIGEST_BYTES>() else {
                        return Ok(());
                    };
                    let intact = u32::from_le_bytes(*told) == *sum;
                    let (command, success) = (*command, flags & flag::SUCCESS != 0);
                    self.input.skip(DIGEST_BYTES);
                    self.incoming = Incoming::Header;
                    commands.data_end(command, intact, success)?;
                }
                Incoming::Header => {
                    if !self.header(commands)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Uses a header with what belongs to it; false if that is not all there.
    fn header(&mut self, commands: &mut impl Commands) -> Result<bool, NvmeFault> {
        let unread = self.input.unread();
        let Some(first) = unread.first_chunk::<HEADER_BYTES>() else {
            return Ok(false);
        };
        self.last = *first;
        let header = Header::check(*first, &self.limits)?;
        let bytes = header.bytes();
        let summed = match header.has_header_digest() {
            true => bytes + DIGEST_BYTES,
            false => bytes,
        };
        let whole = match header.kind {
            // What it copies of our PDU is of no use here.
            Kind::C2hTerm => summed + header.data,
            _ => summed + header.pad,
        };
        let Some(pdu) = unread.get(..whole) else {
            return Ok(false);
        };
        let (head, behind) = pdu.split_at(bytes);
        if let Some(told) = behind.first_chunk::<DIGEST_BYTES>()
            && header.has_header_digest()
            && u32::from_le_bytes(*told) != digest(head)
        {
            return Err(Fault::of(FaultKind::HeaderDigest).into());
        }
        let body = head.get(HEADER_BYTES..).unwrap_or_default();
        let short = Fault::field(4);
        match header.kind {
            Kind::C2hTerm => return Err(terminated(body)),
            Kind::CapsuleResp => {
                let CapsuleRespPdu(cqe) = CapsuleRespPdu::decode(body).ok_or(short)?;
                commands.completed(&cqe)?;
            }
            Kind::R2t => commands.wanted(&R2tPdu::decode(body).ok_or(short)?)?,
            Kind::C2hData => {
                let pdu = DataPdu::decode(body).ok_or(short)?;
                let last = header.flags & flag::LAST != 0;
                if header.flags & flag::SUCCESS != 0 && !last {
                    return Err(Fault::field(1).into());
                }
                if pdu.len.get() as usize != header.data {
                    return Err(Fault::field(16).into());
                }
                self.sum = RunningDigest::default();
                self.incoming = Incoming::Data {
                    command: commands.data_begin(&pdu)?,
                    at: pdu.offset.get() as usize,
                    left: header.data,
                    flags: header.flags,
                    summed: header.has_data_digest(),
                };
            }
            _ => return Err(Fault::of(FaultKind::Sequence).into()),
        }
        self.input.skip(whole);
        Ok(true)
    }
}

fn terminated(body: &[u8]) -> NvmeFault {
    match TermRequest::decode(body) {
        Some(request) => NvmeFault::Terminated(request),
        None => Fault::field(4).into(),
    }
}
