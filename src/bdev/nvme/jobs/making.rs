//! How the next PDU is made.

use super::commands::PLACE_BITS;
use super::{Command, Job, Jobs, Piece, Terms};
use crate::bdev::IoStatus;
use crate::bdev::nvme::outbox::Outgoing;
use crate::bdev::nvme::plan::Verb;
use crate::bdev::nvme::shared::Namespace;
use crate::bdev::nvme::unflushed::Mark;
use crate::wire::nvme::{CapsuleCmdPdu, DataPdu, DsmRange, IoRange, RunningDigest, Sqe, flag, io};
use zerocopy::IntoBytes;

/// Deallocate, in CDW12 of Write Zeroes.
const DEAC: u32 = 1 << 25;

impl Jobs {
    /// Makes the next PDU, if there is one and room for it.
    pub(in crate::bdev::nvme) fn next(&mut self) -> Option<Outgoing> {
        let terms = self.terms?;
        if let Some(data) = self.next_data(&terms) {
            return Some(data);
        }
        loop {
            if self.commands.len() >= self.commands_max {
                return None;
            }
            let piece = self.next_piece()?;
            if let Some(made) = self.make(piece, &terms) {
                return Some(made);
            }
        }
    }

    /// The next data that an R2T asked for.
    fn next_data(&mut self, terms: &Terms) -> Option<Outgoing> {
        let window = self.windows.front_mut()?;
        let (number, tag, at) = (window.command, window.tag, window.next);
        let len = (window.end - at).min(terms.agreed.data_max);
        window.next += len;
        let is_last = window.next == window.end;
        if is_last {
            self.windows.pop_front();
        }
        let cid = self.commands.get(number)?.cid;
        let digests = terms.agreed.digests;
        let place = (at as usize, len as usize);
        let sum = digests.data.then(|| self.sum(number, place));
        self.scratch.clear();
        let flags = if is_last { flag::LAST } else { 0 };
        DataPdu::new(cid, tag, at, len).put_to_controller(
            flags,
            digests,
            terms.agreed.alignment,
            &mut self.scratch,
        );
        let mut outgoing = Outgoing::new(number, &self.scratch, sum);
        (outgoing.at, outgoing.len) = place;
        outgoing.is_last = is_last;
        self.commands.get_mut(number)?.to_go += 1;
        Some(outgoing)
    }

    fn sum(&self, command: u64, place: (usize, usize)) -> u32 {
        let mut sum = RunningDigest::default();
        self.bytes_of(command, place, &mut |bytes| {
            sum.update(bytes);
            true
        });
        sum.value()
    }

    fn next_piece(&mut self) -> Option<Piece> {
        if let Some(piece) = self.again.pop_front() {
            if let Some(job) = self.jobs.get_mut(piece.job) {
                job.to_repeat -= 1;
            }
            return Some(piece);
        }
        let id = *self.backlog.front()?;
        let job = self.jobs.get_mut(id)?;
        let len = (job.request.range.len() - job.issued).min(job.plan.step);
        let at = job.issued;
        if len > 0 {
            job.issued += len;
        } else {
            job.flush_due = false;
        }
        if job.is_issued() {
            self.backlog.pop_front();
        }
        self.order += 1;
        Some(Piece {
            job: id,
            verb: job.plan.verb,
            at,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            order: self.order,
            tries: 1,
        })
    }

    /// The command for `piece`; nothing if its request has ended meanwhile.
    fn make(&mut self, piece: Piece, terms: &Terms) -> Option<Outgoing> {
        if self.is_gone(piece.job) {
            let job = self.jobs.get_mut(piece.job)?;
            job.status = job.status.and(IoStatus::IoError);
            self.finish_if_done(piece.job);
            return None;
        }
        let mark = match piece.verb {
            Verb::Flush => self.begin_flush(piece.job, terms)?,
            _ => Mark::default(),
        };
        let job = self.jobs.get_mut(piece.job)?;
        job.under_way += 1;
        let number = self.commands.insert(Command {
            piece,
            cid: 0,
            sent: false,
            in_capsule: false,
            to_go: 1,
            received: 0,
            granted: 0,
            window: false,
            intact: true,
            ended: None,
            mark,
            ranges: [0; size_of::<DsmRange>()],
        });
        self.serial = self.serial.wrapping_add(1);
        let command = self.commands.get_mut(number)?;
        command.cid = self.serial << PLACE_BITS | u16::try_from(number).unwrap_or(u16::MAX);
        let (sqe, data) = say(command, job);
        let is_small = data <= self.shared.found.controller.capsule_data_max;
        command.in_capsule = is_small && data > 0;
        let in_capsule = command.in_capsule;
        let sqe = match (in_capsule, data, piece.verb) {
            (true, ..) => sqe.with_capsule_data(data),
            (_, _, Verb::Read) => sqe.with_transport_data(piece.len),
            _ => sqe.with_transport_data(data),
        };
        let len = if in_capsule { data } else { 0 };
        let agreed = terms.agreed;
        let place = (0, len as usize);
        let sum = (agreed.digests.data && in_capsule).then(|| self.sum(number, place));
        self.scratch.clear();
        let pdu = CapsuleCmdPdu(sqe);
        pdu.put(agreed.digests, agreed.alignment, len, &mut self.scratch);
        let mut outgoing = Outgoing::new(number, &self.scratch, sum);
        (outgoing.at, outgoing.len) = place;
        outgoing.is_capsule = true;
        Some(outgoing)
    }

    /// Whether the namespace that a job is for was taken away since.
    fn is_gone(&self, job: u64) -> bool {
        let job = self.jobs.get(job);
        let namespace = job.and_then(|job| self.shared.namespaces.get(job.namespace));
        namespace.is_some_and(Namespace::is_gone)
    }

    /// Begins a flush; ends its request instead if writes may have been forgotten that its channel was
    /// told of.
    fn begin_flush(&mut self, id: u64, terms: &Terms) -> Option<Mark> {
        let mark = self.shared.unflushed.begin_flush(terms.epoch);
        let job = self.jobs.get_mut(id)?;
        let forgotten = self.shared.unflushed.forgotten();
        let share = self.channels.get_mut(job.channel)?;
        if share.knows == forgotten {
            return Some(mark);
        }
        share.knows = forgotten;
        job.status = job.status.and(IoStatus::IoError);
        let uri = &self.shared.config.uri;
        tracing::warn!(
            %uri,
            "nvme: a flush fails: the controller was away, and may have forgotten writes that \
             were not flushed"
        );
        self.finish_if_done(id);
        None
    }
}

/// The entry for `command`, and how many bytes of data it takes along.
fn say(command: &mut Command, job: &Job) -> (Sqe, u32) {
    let (piece, plan) = (command.piece, &job.plan);
    let opcode = match piece.verb {
        Verb::Read => io::READ,
        Verb::Write => io::WRITE,
        Verb::Flush => io::FLUSH,
        Verb::WriteZeroes => io::WRITE_ZEROES,
        Verb::Deallocate => io::DATASET_MANAGEMENT,
    };
    let mut sqe = Sqe::new(opcode, command.cid, plan.nsid);
    let range = IoRange {
        lba: (job.request.range.start() + piece.at) >> plan.block_exponent,
        blocks: piece.len >> plan.block_exponent,
    };
    match piece.verb {
        Verb::Flush => (sqe, 0),
        Verb::Read => (sqe.with_blocks(range, false), 0),
        Verb::Write => (sqe.with_blocks(range, plan.fua), piece.len),
        Verb::WriteZeroes => {
            sqe = sqe.with_blocks(range, plan.fua);
            if plan.deallocate {
                sqe.cdw12 = (sqe.cdw12.get() | DEAC).into();
            }
            (sqe, 0)
        }
        Verb::Deallocate => {
            let one = DsmRange {
                attributes: 0.into(),
                blocks: range.blocks.into(),
                lba: range.lba.into(),
            };
            command.ranges.copy_from_slice(one.as_bytes());
            // Of one range, 0-based: nothing to set in CDW10.
            sqe.cdw11 = DsmRange::DEALLOCATE.into();
            (sqe, u32::try_from(command.ranges.len()).unwrap_or(0))
        }
    }
}
