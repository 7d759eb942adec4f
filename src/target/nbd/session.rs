//! The transmission phase: requests in, bdev I/O, replies out.

use super::export::ExportClaim;
use super::handshake::{Begin, Contexts};
use super::session_rules::{Job, Rules};
use super::session_status::put_extents;
use crate::bdev::stream::Input;
use crate::bdev::{BufPool, Channel, Completion, Data, IoBuf, IoStatus, Op, Request};
use crate::target::stream::Output;
use crate::units::ByteRange;
use crate::wire::nbd::{
    Command, RequestHeader, WireErrno, WireError, put_data_chunk_header, put_error_chunk,
    put_none_chunk, put_simple_reply,
};
use reactors::{Cx, Wake};
use std::cell::RefCell;
use std::rc::Rc;

/// Requests that one connection may have under way.
const DEPTH_MAX: usize = 256;
/// Payload in bytes that one connection may hold, under way or waiting to be sent.
const PAYLOAD_HELD_MAX: usize = 64 << 20;
/// Replies without their data that may wait to be sent, in bytes.
const HEADS_HELD_MAX: usize = 256 << 10;
/// The longest payload of a refused WRITE that is read and thrown away.
const DRAIN_BYTES_MAX: u32 = 64 << 20;

/// Why the server hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionFault {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("a WRITE of {0} bytes")]
    HugeWrite(u32),
}

/// What became of the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// More are needed.
    Hungry,
    /// There is no room for more requests now.
    Full,
    /// The budget is used up.
    Spent,
    /// The client has said goodbye.
    Bye,
}

/// A request under way; its index is the tag of its I/O.
#[derive(Clone, Copy, Debug)]
struct Slot {
    cookie: u64,
    range: ByteRange,
    job: Job,
    /// Bytes of its buffer.
    held_bytes: usize,
}

/// What the next received bytes are.
#[derive(Debug)]
enum Incoming {
    Header,
    /// The payload of a WRITE, of which `filled` bytes have come.
    Payload {
        header: RequestHeader,
        buf: IoBuf,
        filled: usize,
    },
    /// The payload of a refused WRITE.
    Drain {
        cookie: u64,
        errno: WireErrno,
        left: usize,
    },
}

/// One connection's requests on one export.
#[derive(Debug)]
pub(super) struct Session {
    claim: ExportClaim,
    channel: Box<dyn Channel>,
    rules: Rules,
    pool: Rc<RefCell<BufPool>>,
    incoming: Incoming,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Bytes of buffers that the bdev has, or that are being received.
    held_bytes: usize,
    done: Vec<Completion>,
    contexts: Contexts,
    structured: bool,
    cancelled: bool,
}

impl Session {
    pub(super) fn new(begin: Begin, channel: Box<dyn Channel>, pool: Rc<RefCell<BufPool>>) -> Self {
        let config = &begin.claim.config;
        let rules = Rules::new(
            &config.bdev.info(),
            config.read_only,
            config.max_payload,
            begin.structured,
            !begin.contexts.is_empty(),
        );
        Self {
            rules,
            claim: begin.claim,
            channel,
            pool,
            incoming: Incoming::Header,
            slots: vec![],
            free: vec![],
            held_bytes: 0,
            done: vec![],
            contexts: begin.contexts,
            structured: begin.structured,
            cancelled: false,
        }
    }

    pub(super) fn export_is_removed(&self) -> bool {
        self.claim.is_removed()
    }

    /// Whether all that was submitted has completed.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn wake(&self) -> Wake {
        if self.is_idle() {
            Wake::OnEvent
        } else {
            self.channel.wake()
        }
    }

    /// Gives up what waits for space or a stalled device.
    pub(super) fn cancel(&mut self, cx: &Cx) {
        self.cancelled = true;
        self.channel.cancel(cx);
    }

    /// Whether there is no room for another request.
    pub(super) fn is_full(&self, output: &Output) -> bool {
        let under_way = self.slots.len() - self.free.len();
        let longest = self.rules.payload_max as usize;
        under_way >= DEPTH_MAX
            || self.held_bytes + output.body_bytes() > PAYLOAD_HELD_MAX - longest
            || output.head_bytes() > HEADS_HELD_MAX
    }

    /// Where the next received bytes go, past the input buffer; empty between payloads.
    pub(super) fn payload_room(&mut self) -> &mut [u8] {
        match &mut self.incoming {
            Incoming::Payload { buf, filled, .. } => &mut buf[*filled..],
            _ => &mut [],
        }
    }

    /// Says that `count` bytes were received into [`Session::payload_room`].
    pub(super) fn payload_received(&mut self, count: usize) {
        if let Incoming::Payload { filled, .. } = &mut self.incoming {
            *filled += count;
        }
    }

    /// Takes requests from `input` until one of the limits; each lowers `budget` by one.
    ///
    /// # Errors
    /// Why the connection must end.
    pub(super) fn take(
        &mut self,
        cx: &Cx,
        input: &mut Input,
        output: &mut Output,
        budget: &mut u32,
    ) -> Result<Took, SessionFault> {
        loop {
            match &mut self.incoming {
                Incoming::Payload { buf, filled, .. } => {
                    *filled += input.move_to(&mut buf[*filled..]);
                    if *filled < buf.len() {
                        return Ok(Took::Hungry);
                    }
                    self.write_arrived(cx);
                }
                Incoming::Drain {
                    cookie,
                    errno,
                    left,
                } => {
                    *left -= input.skip(*left);
                    if *left > 0 {
                        return Ok(Took::Hungry);
                    }
                    let (cookie, errno) = (*cookie, *errno);
                    self.incoming = Incoming::Header;
                    self.reply_error(output, cookie, errno);
                }
                Incoming::Header => {
                    if self.is_full(output) {
                        return Ok(Took::Full);
                    }
                    if *budget == 0 {
                        return Ok(Took::Spent);
                    }
                    let Some(header) = RequestHeader::decode(input.unread())? else {
                        return Ok(Took::Hungry);
                    };
                    input.skip(RequestHeader::BYTES);
                    *budget -= 1;
                    if header.command == Command::Disconnect {
                        return Ok(Took::Bye);
                    }
                    self.header_arrived(cx, header, output)?;
                }
            }
        }
    }

    fn header_arrived(
        &mut self,
        cx: &Cx,
        header: RequestHeader,
        output: &mut Output,
    ) -> Result<(), SessionFault> {
        let cookie = header.cookie;
        let admitted = self.rules.admit(&header);
        if header.command == Command::Write {
            if header.len > DRAIN_BYTES_MAX {
                return Err(SessionFault::HugeWrite(header.len));
            }
            let len = header.len as usize;
            match admitted {
                Err(errno) => {
                    self.incoming = Incoming::Drain {
                        cookie,
                        errno,
                        left: len,
                    };
                }
                Ok((_, job)) if len == 0 => self.reply_ok(output, cookie, job),
                Ok(_) => {
                    self.held_bytes += len;
                    self.incoming = Incoming::Payload {
                        header,
                        buf: self.pool.borrow_mut().take(len),
                        filled: 0,
                    };
                }
            }
            return Ok(());
        }
        match admitted {
            Err(errno) => self.reply_error(output, cookie, errno),
            Ok((op, job)) if job.needs_range() && header.len == 0 => {
                debug_assert!(op != Op::Flush);
                self.reply_ok(output, cookie, job);
            }
            Ok((op, job)) => {
                let data = if op == Op::Read {
                    let len = header.len as usize;
                    self.held_bytes += len;
                    Data::Buf(self.pool.borrow_mut().take(len))
                } else {
                    Data::None
                };
                self.submit(cx, &header, op, job, data);
            }
        }
        Ok(())
    }

    fn write_arrived(&mut self, cx: &Cx) {
        let incoming = std::mem::replace(&mut self.incoming, Incoming::Header);
        if let Incoming::Payload { header, buf, .. } = incoming
            && let Ok((op, job)) = self.rules.admit(&header)
        {
            self.submit(cx, &header, op, job, Data::Buf(buf));
        }
    }

    fn submit(&mut self, cx: &Cx, header: &RequestHeader, op: Op, job: Job, data: Data) {
        let range = match job.needs_range() {
            true => ByteRange::new(header.offset, u64::from(header.len)).unwrap_or_default(),
            false => ByteRange::default(),
        };
        let slot = Slot {
            cookie: header.cookie,
            range,
            job,
            held_bytes: usize::try_from(data.len()).unwrap_or(usize::MAX),
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(slot);
                index
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() - 1
            }
        };
        self.channel.submit(
            cx,
            Request {
                tag: index as u64,
                op,
                range,
                data,
            },
        );
    }

    /// Collects completions and puts their replies into `output`; without `output`, nobody is there
    /// to read them. Returns how many there were.
    pub(super) fn reap(&mut self, cx: &Cx, mut output: Option<&mut Output>) -> u32 {
        if self.is_idle() {
            return 0;
        }
        let mut done = std::mem::take(&mut self.done);
        let count = self.channel.poll(cx, &mut done);
        for completion in done.drain(..) {
            self.finish(cx, completion, output.as_deref_mut());
        }
        self.done = done;
        count
    }

    fn finish(&mut self, cx: &Cx, completion: Completion, output: Option<&mut Output>) {
        let Completion { tag, status, data } = completion;
        let index = usize::try_from(tag).unwrap_or(usize::MAX);
        let slot = self.slots.get_mut(index).and_then(Option::take);
        let Some(slot) = slot else {
            unreachable!("the bdev completed tag {tag}, which is not under way");
        };
        let mut status = slot.job.judge(status);
        if slot.job == Job::TrimThenFlush && status.is_ok() {
            if !self.cancelled {
                return self.flush_after(cx, index, slot);
            }
            status = IoStatus::Aborted;
        }
        self.free.push(index);
        self.held_bytes -= slot.held_bytes;
        match output {
            Some(output) => self.answer(&slot, status, data, output),
            None => self.give(data),
        }
    }

    /// Goes on with a durable TRIM under the same tag.
    fn flush_after(&mut self, cx: &Cx, index: usize, slot: Slot) {
        self.slots[index] = Some(Slot {
            job: Job::Plain,
            ..slot
        });
        let flush = Request {
            tag: index as u64,
            op: Op::Flush,
            range: ByteRange::default(),
            data: Data::None,
        };
        self.channel.submit(cx, flush);
    }

    fn give(&self, data: Data) {
        if let Data::Buf(buf) = data {
            self.pool.borrow_mut().give(buf);
        }
    }

    fn answer(&self, slot: &Slot, status: IoStatus, data: Data, output: &mut Output) {
        if let Some(errno) = slot.job.errno(status) {
            self.give(data);
            return self.reply_error(output, slot.cookie, errno);
        }
        match (slot.job, data) {
            (Job::Read, Data::Buf(buf)) => {
                self.reply_data(output, slot, buf);
            }
            (Job::Status { one }, data) => {
                let extents = match &data {
                    Data::Extents(extents) => extents.as_slice(),
                    _ => &[],
                };
                let asked = u32::try_from(slot.range.len()).unwrap_or(u32::MAX);
                output.put(|out| put_extents(slot.cookie, self.contexts, extents, asked, one, out));
            }
            (_, data) => {
                self.give(data);
                self.reply_ok(output, slot.cookie, slot.job);
            }
        }
    }

    fn reply_data(&self, output: &mut Output, slot: &Slot, buf: IoBuf) {
        let len = u32::try_from(buf.len()).unwrap_or(u32::MAX);
        output.put(|out| {
            if self.structured {
                put_data_chunk_header(slot.cookie, slot.range.start(), len, out);
            } else {
                put_simple_reply(slot.cookie, 0, out);
            }
        });
        output.put_body(buf);
    }

    /// Says that it is done. Only what may carry a payload must be answered in chunks; for all else
    /// clients need one read less for a simple reply.
    fn reply_ok(&self, output: &mut Output, cookie: u64, job: Job) {
        output.put(|out| {
            if self.structured && job.may_carry() {
                put_none_chunk(cookie, out);
            } else {
                put_simple_reply(cookie, 0, out);
            }
        });
    }

    fn reply_error(&self, output: &mut Output, cookie: u64, errno: WireErrno) {
        output.put(|out| {
            if self.structured {
                put_error_chunk(cookie, errno, out);
            } else {
                put_simple_reply(cookie, errno.code(), out);
            }
        });
    }
}
