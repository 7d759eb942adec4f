//! PDUs out of received bytes, however these were cut.

use crate::bdev::stream::Input;
use crate::bdev::{BufPool, IoBuf};
use crate::wire::nvme::{
    CapsuleCmdPdu, DataPdu, Digests, Direction, Fault, FaultKind, HEADER_BYTES, HEADER_BYTES_MAX,
    Header, IcPdu, Kind, Limits, Sqe, digest, flag,
};
use std::cell::RefCell;
use std::rc::Rc;

const DIGEST_BYTES: usize = 4;

/// What has arrived.
#[derive(Debug)]
pub(super) enum Event {
    /// The host says hello.
    Hello(IcPdu),
    /// The host ends the connection; why (FES).
    Term(u16),
    /// A command.
    Command(Sqe, Option<Payload>),
    /// Data of a write begin: to be received into what [`Receiver::receive_into`] is given.
    DataHead(DataPdu),
    /// They have come.
    Data {
        /// Whose they are.
        slot: u16,
        /// The command's buffer.
        payload: Payload,
        /// Where in the buffer they end.
        end: usize,
        /// The host sends no more of them.
        is_last: bool,
    },
}

/// Received data.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) buf: IoBuf,
    /// Their digest, if there is one, is right.
    pub(super) intact: bool,
}

/// Whose data are being received.
#[derive(Debug)]
enum Owner {
    Command(Sqe),
    /// A slot, and whether no more comes.
    Slot(u16, bool),
}

#[derive(Debug)]
struct Body {
    owner: Owner,
    buf: IoBuf,
    /// Where the next bytes go.
    at: usize,
    /// Where the data begin, and end.
    start: usize,
    end: usize,
    has_digest: bool,
}

#[derive(Debug)]
enum Stage {
    Header,
    /// A header was handed out, whose data have no place yet.
    Placeless(Header),
    Body(Body),
    /// The reason of a termination, and what is left of it.
    Term(u16, usize),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Receiver {
    stage: Stage,
    pad_left: usize,
    pool: Rc<RefCell<BufPool>>,
    /// The latest header, for the answer to one that is wrong.
    head: [u8; HEADER_BYTES_MAX],
    head_len: usize,
    /// Whether the host has said hello.
    pub(super) is_open: bool,
}

impl Receiver {
    pub(super) fn new(pool: Rc<RefCell<BufPool>>) -> Self {
        Self {
            stage: Stage::Header,
            pad_left: 0,
            pool,
            head: [0; HEADER_BYTES_MAX],
            head_len: 0,
            is_open: false,
        }
    }

    /// What has been seen of the latest header.
    pub(super) fn head(&self) -> &[u8] {
        self.head.get(..self.head_len).unwrap_or_default()
    }

    /// Where the next received bytes go, past the input buffer; empty outside data.
    pub(super) fn room(&mut self) -> &mut [u8] {
        match &mut self.stage {
            Stage::Body(body) if self.pad_left == 0 => {
                body.buf.get_mut(body.at..body.end).unwrap_or_default()
            }
            _ => &mut [],
        }
    }

    /// Says that `count` bytes were received into [`Receiver::room`].
    pub(super) fn received(&mut self, count: usize) {
        if let Stage::Body(body) = &mut self.stage {
            body.at += count;
        }
    }

    /// The next event; nothing if more bytes are needed.
    ///
    /// # Errors
    /// What to end the connection with.
    pub(super) fn next(
        &mut self,
        input: &mut Input,
        limits: &Limits,
    ) -> Result<Option<Event>, Fault> {
        loop {
            self.pad_left -= input.skip(self.pad_left);
            if self.pad_left > 0 {
                return Ok(None);
            }
            match &mut self.stage {
                Stage::Header => match self.header(input, limits)? {
                    // What belongs to it comes next.
                    Some(None) => {}
                    Some(event) => return Ok(event),
                    None => return Ok(None),
                },
                Stage::Placeless(_) => return Err(Fault::of(FaultKind::Sequence)),
                Stage::Term(reason, left) => {
                    *left -= input.skip(*left);
                    return Ok((*left == 0).then_some(Event::Term(*reason)));
                }
                Stage::Body(body) => {
                    if let Some(room) = body.buf.get_mut(body.at..body.end) {
                        body.at += input.move_to(room);
                    }
                    let sum = match body.has_digest {
                        true => input.unread().first_chunk::<DIGEST_BYTES>().copied(),
                        false => Some([0; DIGEST_BYTES]),
                    };
                    let Some(sum) = sum.filter(|_| body.at == body.end) else {
                        return Ok(None);
                    };
                    return Ok(Some(self.body_done(input, sum)));
                }
            }
        }
    }

    /// `Some(None)` if there is nothing to tell of it yet.
    #[expect(clippy::option_option, reason = "hungry, or silent, or an event")]
    fn header(
        &mut self,
        input: &mut Input,
        limits: &Limits,
    ) -> Result<Option<Option<Event>>, Fault> {
        let Some(first) = input.unread().first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        self.keep(first);
        let expected = match self.is_open {
            true => *limits,
            // Before the hello nothing has been agreed on.
            false => Limits {
                digests: Digests::default(),
                ..*limits
            },
        };
        let header = Header::check(*first, &expected);
        if matches!(header, Ok(header) if self.is_open == (header.kind == Kind::IcReq)) {
            return Err(Fault::of(FaultKind::Sequence));
        }
        let header = header?;
        let digest_bytes = if header.has_header_digest() {
            DIGEST_BYTES
        } else {
            0
        };
        let Some(bytes) = input.unread().get(..header.bytes() + digest_bytes) else {
            return Ok(None);
        };
        let (head, sum) = bytes.split_at(header.bytes());
        let intact = sum.is_empty() || *sum == digest(head).to_le_bytes();
        let len = head.len().min(HEADER_BYTES_MAX);
        self.head_len = len;
        if let (Some(to), Some(from)) = (self.head.get_mut(..len), head.get(..len)) {
            to.copy_from_slice(from);
        }
        input.skip(header.bytes() + digest_bytes);
        if !intact {
            return Err(Fault::of(FaultKind::HeaderDigest));
        }
        self.pad_left = header.pad;
        self.begin(header).map(Some)
    }

    fn keep(&mut self, first: &[u8]) {
        self.head_len = first.len();
        if let Some(to) = self.head.get_mut(..first.len()) {
            to.copy_from_slice(first);
        }
    }

    /// A whole header has come.
    fn begin(&mut self, header: Header) -> Result<Option<Event>, Fault> {
        let rest = self
            .head
            .get(HEADER_BYTES..self.head_len)
            .unwrap_or_default();
        // The header's length has been checked: these decoders get all that they need.
        let short = Fault::field(2);
        match header.kind {
            Kind::IcReq => Ok(Some(Event::Hello(IcPdu::decode(rest).ok_or(short)?))),
            Kind::CapsuleCmd => {
                let CapsuleCmdPdu(sqe) = CapsuleCmdPdu::decode(rest).ok_or(short)?;
                if header.data == 0 {
                    return Ok(Some(Event::Command(sqe, None)));
                }
                let buf = self.pool.borrow_mut().take(header.data);
                self.stage = Stage::Body(Body {
                    owner: Owner::Command(sqe),
                    end: buf.len(),
                    buf,
                    at: 0,
                    start: 0,
                    has_digest: header.has_data_digest(),
                });
                Ok(None)
            }
            Kind::H2cData => {
                let pdu = DataPdu::decode(rest).ok_or(short)?;
                if pdu.len.get() as usize != header.data {
                    return Err(Fault::field(16));
                }
                self.stage = Stage::Placeless(header);
                Ok(Some(Event::DataHead(pdu)))
            }
            _ => {
                let reason = rest.first_chunk().copied().unwrap_or_default();
                self.stage = Stage::Term(u16::from_le_bytes(reason), header.data);
                Ok(None)
            }
        }
    }

    /// Says where the data go whose header has come: into `buf` from `at`; for `slot`.
    pub(super) fn receive_into(&mut self, slot: u16, buf: IoBuf, at: usize) {
        if let Stage::Placeless(header) = self.stage {
            self.stage = Stage::Body(Body {
                owner: Owner::Slot(slot, header.flags & flag::LAST != 0),
                buf,
                at,
                start: at,
                end: at.saturating_add(header.data),
                has_digest: header.has_data_digest(),
            });
        }
    }

    fn body_done(&mut self, input: &mut Input, sum: [u8; DIGEST_BYTES]) -> Event {
        let Stage::Body(body) = std::mem::replace(&mut self.stage, Stage::Header) else {
            unreachable!("called with a body only");
        };
        let mut intact = true;
        if body.has_digest {
            input.skip(DIGEST_BYTES);
            let data = body.buf.get(body.start..body.end).unwrap_or_default();
            intact = digest(data).to_le_bytes() == sum;
        }
        let payload = Payload {
            buf: body.buf,
            intact,
        };
        match body.owner {
            Owner::Command(sqe) => Event::Command(sqe, Some(payload)),
            Owner::Slot(slot, is_last) => Event::Data {
                slot,
                payload,
                end: body.end,
                is_last,
            },
        }
    }

    /// The side that sends what is received here.
    pub(super) const FROM: Direction = Direction::FromHost;
}
