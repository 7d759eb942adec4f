//! Requests under way, and the commands that they are cut into.

use super::device::Device;
use super::disk::Disk;
use super::ring::{Command, Place, Ring};
use crate::bdev::in_flight::InFlight;
use crate::bdev::inline::all_allocated;
use crate::bdev::{Completion, Data, IoStatus, Op, Request};
use std::collections::VecDeque;

/// Where disks have no `WRITE_ZEROES`, zeroes are sent from here.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// How a request is said in commands.
#[derive(Clone, Copy, Debug)]
struct Plan {
    command: Command,
    /// The longest range of one command, in bytes.
    step: u64,
    /// The payload is zeroes, not the request's data.
    zeroes: bool,
    /// A flush is to follow, since virtio has no FUA.
    flush_after: bool,
}

#[derive(Debug)]
struct Job {
    request: Request,
    plan: Plan,
    /// Bytes of the range that commands have been sent for.
    issued: u64,
    /// A flush is still to be sent.
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

    /// The next command: what to do, from which byte of the request, and how many.
    fn next(&self) -> (Command, u64, u64) {
        match self.request.range.len() - self.issued {
            0 => (Command::Flush, self.issued, 0),
            left => (self.plan.command, self.issued, left.min(self.plan.step)),
        }
    }
}

/// A command that is not answered.
#[derive(Debug)]
struct Part {
    job: u64,
    place: Place,
    /// Where the bytes of a read belong, in the request's data.
    at: usize,
    len: usize,
    reads: bool,
}

/// All of a channel's requests.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: InFlight<Job>,
    parts: InFlight<Part>,
    /// Jobs with commands to be sent, in order; a job stands here once, and until all are sent.
    backlog: VecDeque<u64>,
    ready: Vec<Completion>,
}

fn plan(disk: &Disk, op: Op) -> Plan {
    let mut plan = Plan {
        command: Command::Flush,
        step: disk.payload_max,
        zeroes: false,
        flush_after: false,
    };
    match op {
        Op::Read => plan.command = Command::Read,
        Op::Write { fua } => (plan.command, plan.flush_after) = (Command::Write, fua),
        Op::WriteZeroes { may_unmap, fua } => {
            plan.flush_after = fua;
            if disk.zeroes_max > 0 {
                let unmap = may_unmap && disk.zeroes_may_unmap;
                plan.command = Command::WriteZeroes { unmap };
                plan.step = disk.zeroes_max;
            } else {
                plan.command = Command::Write;
                plan.step = plan.step.min(ZEROES.len() as u64);
                plan.zeroes = true;
            }
        }
        Op::Discard => (plan.command, plan.step) = (Command::Discard, disk.discard_max),
        Op::Flush | Op::Prefetch | Op::Extents => {}
    }
    plan.flush_after &= disk.has_flush();
    plan
}

/// How a request ends that the back end need not hear of; nothing if it must.
fn at_once(device: &Device, request: &mut Request) -> Option<IoStatus> {
    if let Err(status) = device.info.admit(request) {
        return Some(status);
    }
    let sent = match request.op {
        Op::Flush => return (!device.disk.has_flush()).then_some(IoStatus::Ok),
        Op::Extents => {
            request.data = all_allocated(request.range);
            false
        }
        Op::Prefetch => false,
        Op::Discard => device.disk.discard_max > 0,
        Op::Read | Op::Write { .. } | Op::WriteZeroes { .. } => true,
    };
    (!sent || request.range.is_empty()).then_some(IoStatus::Ok)
}

/// Copies `len` bytes from `at` of what a write has to `place`.
fn load(ring: &Ring, place: &Place, data: &Data, (at, len): (usize, usize)) {
    match data {
        Data::Buf(buf) => ring.fill(place, 0, buf.get(at..at + len).unwrap_or(&[])),
        Data::Gather(views) => {
            let (mut skip, mut done) = (at, 0);
            for view in views {
                let from = skip.min(view.len());
                let count = (view.len() - from).min(len - done);
                ring.fill(place, done, view.get(from..from + count).unwrap_or(&[]));
                skip -= from;
                done += count;
            }
        }
        Data::None | Data::Extents(_) => {}
    }
}

impl Jobs {
    /// Takes a request; it waits until its commands are sent.
    pub(super) fn submit(&mut self, device: &Device, mut request: Request) {
        if let Some(status) = at_once(device, &mut request) {
            self.ready.push(request.complete(status));
            return;
        }
        let is_flush = request.op == Op::Flush;
        let job = Job {
            plan: plan(&device.disk, request.op),
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

    /// Whether the back end owes nothing and is to be sent nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.len() == 0
    }

    /// Whether a command could be sent now.
    pub(super) fn has_next(&self, ring: &Ring) -> bool {
        let next = self.backlog.front().and_then(|id| self.jobs.get(*id));
        next.is_some_and(|job| ring.has_room(payload(job.next())))
    }

    /// Sends commands as far as there is room. Returns how many.
    pub(super) fn send(&mut self, disk: &Disk, ring: &mut Ring) -> u32 {
        debug_assert!(disk.payload_max > 0, "nothing would ever be sent");
        let mut sent = 0;
        while let Some(id) = self.backlog.front().copied() {
            let Some(job) = self.jobs.get_mut(id) else {
                self.backlog.pop_front();
                continue;
            };
            let (command, from, len) = job.next();
            let bytes = payload((command, from, len));
            let Some(place) = ring.take(bytes) else {
                break;
            };
            let at = usize::try_from(from).unwrap_or(usize::MAX);
            if command == Command::Write {
                match job.plan.zeroes {
                    true => ring.fill(&place, 0, ZEROES.get(..bytes).unwrap_or(&ZEROES)),
                    false => load(ring, &place, &job.request.data, (at, bytes)),
                }
            }
            let offset = job.request.range.start() + from;
            match command {
                Command::Flush => job.flush_due = false,
                _ => job.issued += len,
            }
            job.under_way += 1;
            if job.is_issued() {
                self.backlog.pop_front();
            }
            let tag = self.parts.insert(Part {
                job: id,
                place,
                at,
                len: bytes,
                reads: command == Command::Read,
            });
            let placed = self.parts.get(tag).map(|part| &part.place);
            let started = placed.map(|place| ring.start(command, (offset, len), place, tag));
            if !matches!(started, Some(Ok(()))) {
                // Neither ranges nor room can be the reason: both were looked at.
                self.end(ring, tag, IoStatus::IoError);
            }
            sent += 1;
        }
        sent
    }

    /// Ends a command, and its request if it was the last.
    pub(super) fn end(&mut self, ring: &mut Ring, tag: u64, status: IoStatus) {
        let Some(part) = self.parts.remove(tag) else {
            return;
        };
        if let Some(job) = self.jobs.get_mut(part.job)
            && part.reads
            && status.is_ok()
            && let Data::Buf(buf) = &mut job.request.data
            && let Some(into) = buf.get_mut(part.at..part.at + part.len)
        {
            ring.fetch(&part.place, into);
        }
        ring.give(&part.place);
        let Some(job) = self.jobs.get_mut(part.job) else {
            return;
        };
        job.under_way -= 1;
        job.status = job.status.and(status);
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

    /// Ends requests of which `is_one` says so.
    fn finish_if(&mut self, status: IoStatus, is_one: impl Fn(&Job) -> bool) -> usize {
        let mut ended = Vec::new();
        for (id, job) in self.jobs.iter_mut() {
            if is_one(job) {
                job.status = job.status.and(status);
                ended.push(id);
            }
        }
        self.backlog.retain(|id| !ended.contains(id));
        for id in &ended {
            self.finish(*id);
        }
        ended.len()
    }

    /// Gives up what is not sent at all, at once; the rest is marked. Returns whether some is.
    pub(super) fn give_up(&mut self) -> bool {
        for (_, job) in self.jobs.iter_mut() {
            job.given_up = true;
        }
        self.finish_if(IoStatus::Aborted, |job| job.under_way == 0);
        !self.is_idle()
    }

    /// Whether something that was given up has still not ended.
    pub(super) fn has_given_up(&mut self) -> bool {
        self.jobs.iter_mut().any(|(_, job)| job.given_up)
    }

    /// The ring is lost: ends every request of which the back end has had a part, and flushes, since
    /// what they are for may be lost too. Returns how many.
    pub(super) fn fail_sent(&mut self, status: IoStatus) -> usize {
        drop(self.parts.drain());
        self.finish_if(status, |job| {
            let is_flush = job.request.op == Op::Flush;
            is_flush || job.under_way > 0 || job.issued > 0 || job.given_up
        })
    }

    /// Ends everything.
    pub(super) fn fail_all(&mut self, status: IoStatus) {
        drop(self.parts.drain());
        self.finish_if(status, |_| true);
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

/// Bytes of payload of a command.
fn payload((command, _, len): (Command, u64, u64)) -> usize {
    match command {
        Command::Read | Command::Write => usize::try_from(len).unwrap_or(usize::MAX),
        Command::Discard | Command::WriteZeroes { .. } | Command::Flush => 0,
    }
}
