//! Requests under way, and the commands that they are cut into.

use super::device::Device;
use crate::bdev::in_flight::InFlight;
use crate::bdev::inline::all_allocated;
use crate::bdev::{Completion, Data, IoStatus, Op, Request};
use crate::wire::nbd::{Command, CommandFlags, RequestHeader, export_flags};
use std::collections::VecDeque;

/// Commands that a connection has under way at most; more wait here.
const COMMANDS_MAX: usize = 256;
/// The longest range of a command without payload.
const RANGE_BYTES_MAX: u64 = 1 << 30;
/// Where servers have no `WRITE_ZEROES`, zeroes are sent from here.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// How a request is said in commands.
#[derive(Clone, Copy, Debug)]
struct Plan {
    command: Command,
    flags: CommandFlags,
    /// The longest range of one command, in bytes.
    step: u64,
    /// The payload is zeroes, not the request's data.
    zeroes: bool,
    /// A FLUSH is to follow, since the server has no FUA.
    flush_after: bool,
}

#[derive(Debug)]
struct Job {
    request: Request,
    plan: Plan,
    /// Bytes of the range that commands have been made for.
    issued: u64,
    /// FLUSH is still to be sent.
    flush_due: bool,
    /// Commands that are not answered.
    under_way: u32,
    status: IoStatus,
    given_up: bool,
}

impl Job {
    fn is_issued(&self) -> bool {
        self.issued == self.request.range.len() && !self.flush_due
    }
}

/// A command that is not answered.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) cookie: u64,
    pub(super) command: Command,
    /// Where, on the device.
    pub(super) offset: u64,
    pub(super) len: u32,
    /// All of it has been given to the socket.
    pub(super) sent: bool,
    /// Bytes of a READ that have come.
    pub(super) covered: u32,
    /// What chunks have said so far.
    pub(super) status: IoStatus,
    header: [u8; RequestHeader::BYTES],
    job: u64,
    /// Where its bytes are in the request's data.
    at: usize,
    zeroes: bool,
}

/// All of a connection's requests.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: InFlight<Job>,
    parts: InFlight<Part>,
    /// Jobs with commands to be made, in order; a job stands here once, and until all are made.
    backlog: VecDeque<u64>,
    serial: u32,
    ready: Vec<Completion>,
}

fn plan(device: &Device, op: Op) -> Plan {
    let offers = |flag| device.offers(flag);
    let block = u64::from(device.info.block_size);
    let payload = u64::from(device.agreed.payload_max) / block * block;
    let mut plan = Plan {
        command: Command::Flush,
        flags: CommandFlags::default(),
        step: RANGE_BYTES_MAX,
        zeroes: false,
        flush_after: false,
    };
    let mut durable = false;
    match op {
        Op::Read => (plan.command, plan.step) = (Command::Read, payload),
        Op::Write { fua } => {
            (plan.command, plan.step, durable) = (Command::Write, payload, fua);
        }
        Op::WriteZeroes { may_unmap, fua } => {
            durable = fua;
            if offers(export_flags::SEND_WRITE_ZEROES) {
                plan.command = Command::WriteZeroes;
                if !may_unmap {
                    plan.flags = CommandFlags::NO_HOLE;
                }
            } else {
                plan.command = Command::Write;
                plan.step = payload.min(ZEROES.len() as u64);
                plan.zeroes = true;
            }
        }
        Op::Discard => plan.command = Command::Trim,
        Op::Prefetch => (plan.command, plan.step) = (Command::Cache, payload),
        Op::Flush | Op::Extents => {}
    }
    if durable && offers(export_flags::SEND_FUA) {
        plan.flags = plan.flags.with(CommandFlags::FUA);
    } else if durable {
        plan.flush_after = offers(export_flags::SEND_FLUSH);
    }
    plan
}

/// How a request ends that the server need not hear of; nothing if it must.
fn at_once(device: &Device, request: &mut Request) -> Option<IoStatus> {
    let offers = |flag| device.offers(flag);
    if let Err(status) = device.info.admit(request) {
        return Some(status);
    }
    let sent = match request.op {
        Op::Flush => return (!offers(export_flags::SEND_FLUSH)).then_some(IoStatus::Ok),
        Op::Extents => {
            request.data = all_allocated(request.range);
            false
        }
        Op::Discard => offers(export_flags::SEND_TRIM),
        Op::Prefetch => offers(export_flags::SEND_CACHE),
        Op::Read | Op::Write { .. } | Op::WriteZeroes { .. } => true,
    };
    (!sent || request.range.is_empty()).then_some(IoStatus::Ok)
}

impl Jobs {
    /// Takes a request; it waits until its commands are made.
    pub(super) fn submit(&mut self, device: &Device, mut request: Request) {
        if let Some(status) = at_once(device, &mut request) {
            self.ready.push(request.complete(status));
            return;
        }
        let is_flush = request.op == Op::Flush;
        let job = Job {
            plan: plan(device, request.op),
            issued: if is_flush { request.range.len() } else { 0 },
            flush_due: is_flush,
            under_way: 0,
            status: IoStatus::Ok,
            given_up: false,
            request,
        };
        let id = self.jobs.insert(job);
        self.backlog.push_back(id);
    }

    /// Ends a request that can't be sent.
    pub(super) fn refuse(&mut self, request: Request, status: IoStatus) {
        self.ready.push(request.complete(status));
    }

    /// Whether the server owes nothing and is to be sent nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.len() == 0
    }

    /// Whether a command could be made now.
    pub(super) fn has_next(&self) -> bool {
        !self.backlog.is_empty() && self.parts.len() < COMMANDS_MAX
    }

    /// Makes the next command; its number is for [`Jobs::part`].
    pub(super) fn next(&mut self) -> Option<u64> {
        if self.parts.len() >= COMMANDS_MAX {
            return None;
        }
        let id = *self.backlog.front()?;
        let job = self.jobs.get_mut(id)?;
        let range = job.request.range;
        let left = range.len() - job.issued;
        let (command, flags, offset, len) = if left > 0 {
            let len = left.min(job.plan.step);
            let offset = range.start() + job.issued;
            (job.plan.command, job.plan.flags, offset, len)
        } else {
            job.flush_due = false;
            (Command::Flush, CommandFlags::default(), 0, 0)
        };
        let at = usize::try_from(job.issued).unwrap_or(usize::MAX);
        let len32 = u32::try_from(len).unwrap_or(u32::MAX);
        job.issued += len;
        job.under_way += 1;
        let zeroes = job.plan.zeroes;
        if job.is_issued() {
            self.backlog.pop_front();
        }
        self.serial = self.serial.wrapping_add(1);
        let part = self.parts.insert(Part {
            cookie: 0,
            command,
            offset,
            len: len32,
            sent: false,
            covered: 0,
            status: IoStatus::Ok,
            header: [0; RequestHeader::BYTES],
            job: id,
            at,
            zeroes,
        });
        // The serial tells a late answer to an earlier owner of the number from one to this.
        let cookie = (u64::from(self.serial) << 32) | part;
        if let Some(new) = self.parts.get_mut(part) {
            new.cookie = cookie;
            new.header = RequestHeader {
                flags,
                command,
                cookie,
                offset,
                len: len32,
            }
            .encode();
        }
        Some(part)
    }

    /// A command by its number.
    pub(super) fn part(&self, part: u64) -> Option<&Part> {
        self.parts.get(part)
    }

    /// The same, to be changed.
    pub(super) fn part_mut(&mut self, part: u64) -> Option<&mut Part> {
        self.parts.get_mut(part)
    }

    /// The number of the command with this cookie, if there is one.
    pub(super) fn find(&self, cookie: u64) -> Option<u64> {
        let part = cookie & u64::from(u32::MAX);
        let found = self.parts.get(part)?;
        (found.cookie == cookie).then_some(part)
    }

    /// Shows `take` the bytes of a command, in order, until it has had enough.
    pub(super) fn bytes_of<'a>(&'a self, part: u64, take: &mut impl FnMut(&'a [u8]) -> bool) {
        let Some(part) = self.parts.get(part) else {
            return;
        };
        if !take(&part.header) || part.command != Command::Write {
            return;
        }
        let len = part.len as usize;
        if part.zeroes {
            take(ZEROES.get(..len).unwrap_or(&ZEROES));
            return;
        }
        match self.jobs.get(part.job).map(|job| &job.request.data) {
            Some(Data::Buf(buf)) => {
                take(buf.get(part.at..part.at + len).unwrap_or(&[]));
            }
            Some(Data::Gather(views)) => {
                let (mut skip, mut left) = (part.at, len);
                for view in views {
                    let from = skip.min(view.len());
                    let count = (view.len() - from).min(left);
                    skip -= from;
                    left -= count;
                    if count > 0 && !take(&view[from..from + count]) {
                        return;
                    }
                }
            }
            _ => {}
        }
    }

    /// How many bytes a command has on the wire.
    pub(super) fn wire_bytes(&self, part: u64) -> usize {
        match self.parts.get(part) {
            Some(part) if part.command == Command::Write => {
                RequestHeader::BYTES + part.len as usize
            }
            Some(_) => RequestHeader::BYTES,
            None => 0,
        }
    }

    /// Where `len` bytes of a READ's data from `offset` of its range belong; empty if there is no
    /// such place.
    pub(super) fn target(&mut self, part: u64, offset: usize, len: usize) -> &mut [u8] {
        let Some(part) = self.parts.get(part) else {
            return &mut [];
        };
        let start = part.at + offset;
        match self.jobs.get_mut(part.job).map(|job| &mut job.request.data) {
            Some(Data::Buf(buf)) => buf.get_mut(start..start + len).unwrap_or(&mut []),
            _ => &mut [],
        }
    }

    /// Ends a command, and its request if it was the last.
    pub(super) fn end(&mut self, part: u64, status: IoStatus) {
        let Some(part) = self.parts.remove(part) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(part.job) else {
            return;
        };
        job.under_way -= 1;
        job.status = job.status.and(part.status).and(status);
        if job.under_way > 0 {
            return;
        }
        if !job.status.is_ok() {
            if !job.is_issued() {
                self.backlog.retain(|id| *id != part.job);
            }
            self.finish(part.job);
        } else if job.is_issued() {
            if std::mem::take(&mut job.plan.flush_after) {
                job.flush_due = true;
                self.backlog.push_back(part.job);
            } else {
                self.finish(part.job);
            }
        }
    }

    fn finish(&mut self, id: u64) {
        if let Some(job) = self.jobs.remove(id) {
            self.ready.push(job.request.complete(job.status));
        }
    }

    /// Gives up what is not sent at all, at once; the rest is marked. Returns whether some is.
    pub(super) fn give_up(&mut self) -> bool {
        let mut unsent = Vec::new();
        for (id, job) in self.jobs.iter_mut() {
            job.given_up = true;
            if job.under_way == 0 {
                job.status = job.status.and(IoStatus::Aborted);
                unsent.push(id);
            }
        }
        self.backlog.retain(|id| !unsent.contains(id));
        for id in unsent {
            self.finish(id);
        }
        !self.is_idle()
    }

    /// Whether something that was given up has still not ended.
    pub(super) fn has_given_up(&mut self) -> bool {
        self.jobs.iter_mut().any(|(_, job)| job.given_up)
    }

    /// Ends everything.
    pub(super) fn fail_all(&mut self, status: IoStatus) {
        self.backlog.clear();
        drop(self.parts.drain());
        for job in self.jobs.drain() {
            let status = job.status.and(status);
            self.ready.push(job.request.complete(status));
        }
    }

    /// What has ended and was not collected.
    pub(super) fn ready(&mut self) -> &mut Vec<Completion> {
        &mut self.ready
    }

    /// Whether something waits to be collected.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}
