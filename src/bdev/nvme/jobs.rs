//! Requests under way, and the commands that they are cut into.

mod commands;
mod making;

use super::plan::{Outcome, Plan, Verb, ZEROES, outcome, plan};
use super::shared::Shared;
use super::unflushed::Mark;
use crate::bdev::in_flight::InFlight;
use crate::bdev::{BdevInfo, Completion, Data, IoStatus, Op, Request};
use crate::wire::nvme::{Agreed, DsmRange, Status};
use std::collections::VecDeque;
use std::sync::Arc;

/// How often a command is tried that fails for a reason that may pass, or whose data are damaged on
/// their way. A lost connection does not count.
const TRIES_MAX: u8 = 4;

/// The channel of requests whose channel is gone.
const NOBODY: u64 = u64::MAX;

#[derive(Debug)]
struct Job {
    request: Request,
    plan: Plan,
    /// The namespace, as an index.
    namespace: usize,
    channel: u64,
    /// Bytes of the range that commands have been made for.
    issued: u64,
    /// FLUSH is still to be sent.
    flush_due: bool,
    /// Commands that are not answered.
    under_way: u32,
    /// Pieces that are to be sent again.
    to_repeat: u32,
    status: IoStatus,
    given_up: bool,
}

impl Job {
    fn is_issued(&self) -> bool {
        self.issued == self.request.range.len() && !self.flush_due
    }
}

/// What a command does of its request.
#[derive(Clone, Copy, Debug)]
struct Piece {
    job: u64,
    verb: Verb,
    /// From this byte of the request's range.
    at: u64,
    len: u32,
    /// Its place among all: what is sent again keeps it.
    order: u64,
    tries: u8,
}

/// A command that is not answered, or not all sent.
#[derive(Debug)]
struct Command {
    piece: Piece,
    cid: u16,
    /// The capsule has been given to the socket.
    sent: bool,
    /// Its data went with it.
    in_capsule: bool,
    /// PDUs about it that are not gone.
    to_go: u32,
    /// Bytes of a read that have come.
    received: u32,
    /// Bytes of a write that were asked for.
    granted: u32,
    /// An R2T is not all answered.
    window: bool,
    /// All data matched their digests.
    intact: bool,
    /// How it ended, if PDUs about it are still to go.
    ended: Option<Status>,
    mark: Mark,
    ranges: [u8; size_of::<DsmRange>()],
}

/// Data that an R2T asked for, in bytes of the command's data.
#[derive(Clone, Copy, Debug)]
struct Window {
    command: u64,
    tag: u16,
    next: u32,
    end: u32,
}

/// A channel's share.
#[derive(Debug)]
struct Share {
    ready: Vec<Completion>,
    jobs: usize,
    /// How often writes may have been forgotten, as far as its user knows.
    knows: u64,
}

/// What holds on a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) epoch: u32,
    pub(super) agreed: Agreed,
}

/// All requests of a queue.
#[derive(Debug)]
pub(super) struct Jobs {
    shared: Arc<Shared>,
    terms: Option<Terms>,
    jobs: InFlight<Job>,
    commands: InFlight<Command>,
    commands_max: usize,
    /// Jobs with commands to be made, in order; a job stands here once, and until all are made.
    backlog: VecDeque<u64>,
    /// What is to be sent again, in order, before the backlog.
    again: VecDeque<Piece>,
    windows: VecDeque<Window>,
    channels: InFlight<Share>,
    serial: u16,
    order: u64,
    /// A command ended before all PDUs about it had gone.
    needless: bool,
    scratch: Vec<u8>,
}

impl Jobs {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let entries = usize::try_from(shared.queue_entries()).unwrap_or(2);
        Self {
            // A full queue and an empty one must not look alike.
            commands_max: entries - 1,
            shared,
            terms: None,
            jobs: InFlight::default(),
            commands: InFlight::default(),
            backlog: VecDeque::new(),
            again: VecDeque::new(),
            windows: VecDeque::new(),
            channels: InFlight::default(),
            serial: 0,
            order: 0,
            needless: false,
            scratch: vec![],
        }
    }

    /// Adds a channel; its number is for the other methods.
    pub(super) fn add_channel(&mut self) -> u64 {
        self.channels.insert(Share {
            ready: vec![],
            jobs: 0,
            knows: self.shared.unflushed.forgotten(),
        })
    }

    /// Drops a channel; what is under way of it is nobody's any more. Returns whether it was the last.
    pub(super) fn remove_channel(&mut self, channel: u64) -> bool {
        self.channels.remove(channel);
        for (_, job) in self.jobs.iter_mut() {
            if job.channel == channel {
                (job.channel, job.given_up) = (NOBODY, true);
            }
        }
        self.channels.len() == 0
    }

    /// A connection is there.
    pub(super) fn begin(&mut self, terms: Terms) {
        self.terms = Some(terms);
    }

    /// Takes a request to the namespace `index`; it waits until its commands are made.
    pub(super) fn submit(&mut self, channel: u64, index: usize, info: &BdevInfo, request: Request) {
        let Some(namespace) = self.shared.namespaces.get(index) else {
            self.refuse(channel, request, IoStatus::IoError);
            return;
        };
        if namespace.is_gone() {
            self.refuse(channel, request, IoStatus::IoError);
            return;
        }
        let is_flush = request.op == Op::Flush;
        let job = Job {
            plan: plan(&self.shared, namespace, info, request.op),
            namespace: index,
            channel,
            issued: if is_flush { request.range.len() } else { 0 },
            flush_due: is_flush,
            under_way: 0,
            to_repeat: 0,
            status: IoStatus::Ok,
            given_up: false,
            request,
        };
        if let Some(share) = self.channels.get_mut(channel) {
            share.jobs += 1;
        }
        let id = self.jobs.insert(job);
        self.backlog.push_back(id);
    }

    /// Ends a request that is not sent.
    pub(super) fn refuse(&mut self, channel: u64, request: Request, status: IoStatus) {
        if let Some(share) = self.channels.get_mut(channel) {
            share.ready.push(request.complete(status));
        }
    }

    /// Whether the controller owes nothing and is to be sent nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.len() == 0 && self.commands.len() == 0
    }

    /// Whether nothing of a channel is under way.
    pub(super) fn is_idle_for(&self, channel: u64) -> bool {
        self.channels
            .get(channel)
            .is_none_or(|share| share.jobs == 0)
    }

    /// Whether a PDU could be made now.
    pub(super) fn has_next(&self) -> bool {
        let has_piece = !self.again.is_empty() || !self.backlog.is_empty();
        !self.windows.is_empty()
            || self.needless
            || (has_piece && self.commands.len() < self.commands_max)
    }

    /// What has ended of a channel's and was not collected.
    pub(super) fn ready(&mut self, channel: u64) -> Option<&mut Vec<Completion>> {
        self.channels.get_mut(channel).map(|share| &mut share.ready)
    }

    /// Whether something of a channel's waits to be collected.
    pub(super) fn has_ready(&self, channel: u64) -> bool {
        let share = self.channels.get(channel);
        share.is_some_and(|share| !share.ready.is_empty())
    }

    /// Whether PDUs may be needless, once.
    pub(super) fn take_needless(&mut self) -> bool {
        std::mem::take(&mut self.needless)
    }

    /// Whether a command has ended, though PDUs about it are still to go.
    pub(super) fn has_ended(&self, command: u64) -> bool {
        let command = self.commands.get(command);
        command.is_none_or(|command| command.ended.is_some())
    }

    /// Shows `take` `len` bytes from `at` of a command's data, in order, until it has had enough.
    pub(super) fn bytes_of<'a>(
        &'a self,
        command: u64,
        (at, len): (usize, usize),
        take: &mut impl FnMut(&'a [u8]) -> bool,
    ) {
        let Some(command) = self.commands.get(command) else {
            return;
        };
        if command.piece.verb == Verb::Deallocate {
            take(command.ranges.get(at..at + len).unwrap_or_default());
            return;
        }
        let Some(job) = self.jobs.get(command.piece.job) else {
            return;
        };
        if job.plan.zeroes {
            take(ZEROES.get(..len).unwrap_or(&ZEROES));
            return;
        }
        let at = usize::try_from(command.piece.at).unwrap_or(usize::MAX) + at;
        match &job.request.data {
            Data::Buf(buf) => {
                take(buf.get(at..at + len).unwrap_or_default());
            }
            Data::Gather(views) => {
                let (mut skip, mut left) = (at, len);
                for view in views {
                    let from = skip.min(view.len());
                    let count = (view.len() - from).min(left);
                    skip -= from;
                    left -= count;
                    let piece = view.get(from..from + count).unwrap_or_default();
                    if count > 0 && !take(piece) {
                        return;
                    }
                }
            }
            Data::None | Data::Extents(_) => {}
        }
    }

    /// A PDU has gone, or is not needed any more.
    pub(super) fn gone(&mut self, outgoing: &super::outbox::Outgoing) {
        let Some(command) = self.commands.get_mut(outgoing.command) else {
            return;
        };
        command.to_go -= 1;
        command.sent |= outgoing.is_capsule;
        if outgoing.is_last {
            command.window = false;
        }
        if command.to_go == 0
            && let Some(status) = command.ended
        {
            self.end(outgoing.command, status);
        }
    }

    /// Ends a command, of which nothing is to go any more.
    fn end(&mut self, number: u64, status: Status) {
        let Some(command) = self.commands.remove(number) else {
            return;
        };
        let mut piece = command.piece;
        let outcome = match command.intact {
            true => outcome(status),
            false => Outcome::Again,
        };
        let is_durable = self.note_durability(&command, outcome);
        let Some(job) = self.jobs.get_mut(piece.job) else {
            return;
        };
        job.under_way -= 1;
        let uri = &self.shared.config.uri;
        match outcome {
            Outcome::Again if piece.tries < TRIES_MAX && !job.given_up => {
                tracing::debug!(%uri, ?status, intact = command.intact, "nvme: tried again");
                piece.tries += 1;
                job.to_repeat += 1;
                self.again.push_front(piece);
                return;
            }
            Outcome::Again => job.status = job.status.and(IoStatus::IoError),
            Outcome::Final(status) => job.status = job.status.and(status),
        }
        if !job.status.is_ok() {
            tracing::warn!(%uri, verb = ?piece.verb, ?status, is_durable, "nvme: I/O fails");
        }
        self.finish_if_done(piece.job);
    }

    /// Takes note of what a command's success means for flushes. Returns whether it needs none.
    fn note_durability(&self, command: &Command, outcome: Outcome) -> bool {
        let (Some(terms), Some(job)) = (&self.terms, self.jobs.get(command.piece.job)) else {
            return false;
        };
        if outcome != Outcome::Final(IoStatus::Ok) {
            return false;
        }
        match command.piece.verb {
            Verb::Flush => self.shared.unflushed.end_flush(command.mark),
            Verb::Write | Verb::WriteZeroes if self.is_volatile() && !job.plan.fua => {
                self.shared.unflushed.note_write(terms.epoch);
                return false;
            }
            Verb::Write | Verb::WriteZeroes | Verb::Read | Verb::Deallocate => {}
        }
        true
    }

    fn is_volatile(&self) -> bool {
        self.shared.found.controller.volatile_cache
    }

    fn finish_if_done(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if job.under_way > 0 {
            return;
        }
        if job.status.is_ok() && (job.to_repeat > 0 || !job.is_issued()) {
            return;
        }
        if job.to_repeat > 0 {
            self.again.retain(|piece| piece.job != id);
        }
        if !job.is_issued() {
            self.backlog.retain(|waiting| *waiting != id);
        }
        self.finish(id);
    }

    fn finish(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(id) else {
            return;
        };
        if let Some(share) = self.channels.get_mut(job.channel) {
            share.jobs -= 1;
            share.ready.push(job.request.complete(job.status));
        }
    }

    /// The connection has ended: what was under way is to be sent again.
    pub(super) fn rewind(&mut self) {
        self.terms = None;
        self.windows.clear();
        self.needless = false;
        let under_way: Vec<Command> = self.commands.drain().collect();
        for command in under_way {
            let Some(job) = self.jobs.get_mut(command.piece.job) else {
                continue;
            };
            job.under_way -= 1;
            if job.given_up {
                job.status = job.status.and(IoStatus::Aborted);
            } else {
                job.to_repeat += 1;
                self.again.push_back(command.piece);
            }
            self.finish_if_done(command.piece.job);
        }
        self.again
            .make_contiguous()
            .sort_unstable_by_key(|piece| piece.order);
    }

    /// Gives up a channel's requests: those of which nothing is under way, at once; the rest is marked.
    /// Returns whether some is.
    pub(super) fn give_up(&mut self, channel: u64) -> bool {
        let mut ended = Vec::new();
        let mut waits = false;
        for (id, job) in self.jobs.iter_mut() {
            if job.channel != channel {
                continue;
            }
            job.given_up = true;
            if job.under_way > 0 {
                waits = true;
                continue;
            }
            job.status = job.status.and(IoStatus::Aborted);
            ended.push(id);
        }
        for id in ended {
            self.finish_if_done(id);
        }
        waits
    }

    /// Whether something that was given up has still not ended.
    pub(super) fn has_given_up(&mut self) -> bool {
        self.jobs.iter_mut().any(|(_, job)| job.given_up)
    }

    /// Ends everything. Only without a connection.
    pub(super) fn fail_all(&mut self, status: IoStatus) {
        self.backlog.clear();
        self.again.clear();
        for job in self.jobs.drain() {
            let status = job.status.and(status);
            if let Some(share) = self.channels.get_mut(job.channel) {
                share.jobs -= 1;
                share.ready.push(job.request.complete(status));
            }
        }
    }
}
