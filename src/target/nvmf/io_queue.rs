//! An I/O qpair's commands, and the bdevs that they are for.

use super::TransportOptions;
use super::controller::QpairEntry;
use super::io::{Plan, Rules, What, plan, ranges};
use super::io_status::nvme_status;
use super::namespaces::Namespaces;
use super::replies::Replies;
use super::slots::{Job, Locked, Slots, Stage};
use crate::bdev::{BdevInfo, BufPool, Completion, Data, IoBuf, IoStatus, Op, Request};
use crate::target::stream::Output;
use crate::units::ByteRange;
use crate::wire::nvme::{Sqe, Status};
use reactors::Cx;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub(super) struct IoQueue {
    pub(super) entry: QpairEntry,
    epoch: u32,
    pub(super) namespaces: Namespaces,
    done: Vec<Completion>,
    /// Commands whose ranges others hold, or that wait for others' writes there.
    waiting: Vec<Waiting>,
    /// Writes whose comparison has just succeeded.
    compared: Vec<Locked>,
}

/// A command that has asked for its range.
#[derive(Debug)]
struct Waiting {
    slot: u16,
    sqe: Sqe,
    buf: Option<IoBuf>,
    locked: Box<Locked>,
}

/// What became of a command.
#[derive(Debug)]
pub(super) enum Started {
    /// There is nothing to do.
    Nothing,
    /// Its bdev has it.
    Job(Job),
    /// It has asked for its range.
    Waits,
}

/// What every command is served with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Means<'a> {
    pub(super) options: &'a TransportOptions,
    pub(super) pool: &'a RefCell<BufPool>,
}

impl Means<'_> {
    fn give(&self, buf: Option<IoBuf>) {
        if let Some(buf) = buf {
            self.pool.borrow_mut().give(buf);
        }
    }
}

/// All bytes from the first of `ranges` to the last.
fn hull(ranges: &[ByteRange]) -> ByteRange {
    let start = ranges.iter().map(|range| range.start()).min();
    let end = ranges.iter().map(|range| range.end()).max();
    ByteRange::between(start.unwrap_or(0), end.unwrap_or(0))
}

fn add(counter: &AtomicU64, count: u64) {
    // Only this reactor writes.
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

impl IoQueue {
    pub(super) fn new(entry: QpairEntry) -> Self {
        let controller = &entry.controller;
        Self {
            epoch: controller.epoch(),
            namespaces: Namespaces::new(Arc::clone(&controller.subsystem), controller.listener),
            done: vec![],
            waiting: vec![],
            compared: vec![],
            entry,
        }
    }

    /// Whether the controller has ended, or was disabled since.
    pub(super) fn is_to_close(&self) -> bool {
        let controller = &self.entry.controller;
        controller.has_ended() || controller.epoch() != self.epoch
    }

    /// What a command asks for, and of which device.
    ///
    /// # Errors
    /// The status to complete it with.
    pub(super) fn plan(
        &self,
        sqe: &Sqe,
        options: &TransportOptions,
    ) -> Result<(Plan, Arc<BdevInfo>), Status> {
        let info = self.namespaces.info(sqe.nsid.get())?;
        let rules = Rules {
            io_bytes_max: options.io_bytes_max,
            host_flushes: self.entry.controller.host_flushes(),
        };
        Ok((plan(sqe, &info, rules)?, info))
    }

    /// Hands a command to its device. `buf`: the host's data, or room for the device's.
    ///
    /// # Errors
    /// The status to complete it with.
    pub(super) fn start(
        &mut self,
        cx: &Cx,
        slot: u16,
        sqe: &Sqe,
        buf: Option<IoBuf>,
        means: Means<'_>,
    ) -> Result<Started, Status> {
        let (mut buf, mut locked) = (buf, None);
        let started = self.submit(cx, slot, sqe, &mut buf, &mut locked, means);
        means.give(buf);
        started
    }

    /// Asks for the range of a fused operation; its commands, which have the same range, and their data:
    /// what to compare and what to write.
    ///
    /// # Errors
    /// The status to complete the first one with.
    pub(super) fn start_fused(
        &mut self,
        cx: &Cx,
        (first, compare): (u16, &Sqe),
        second: u16,
        data: (IoBuf, IoBuf),
        means: Means<'_>,
    ) -> Result<(), Status> {
        let (compared, written) = data;
        let planned = self.plan(compare, means.options).and_then(|(plan, _)| {
            let place = self.namespaces.channel(cx, compare.nsid.get())?;
            let hold = self.namespaces.hold(place, plan.range, true);
            hold.ok_or(Status::INVALID_NAMESPACE)
        });
        let hold = match planned {
            Ok(hold) => hold,
            Err(status) => {
                means.give(Some(compared));
                means.give(Some(written));
                return Err(status);
            }
        };
        let write = Some((second, written));
        self.wait(first, compare, Some(compared), Locked { hold, write });
        Ok(())
    }

    fn wait(&mut self, slot: u16, sqe: &Sqe, buf: Option<IoBuf>, locked: Locked) {
        self.waiting.push(Waiting {
            slot,
            sqe: *sqe,
            buf,
            locked: Box::new(locked),
        });
    }

    /// Whether a command waits for its range.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes `buf` and `locked` if it uses them.
    fn submit(
        &mut self,
        cx: &Cx,
        slot: u16,
        sqe: &Sqe,
        buf: &mut Option<IoBuf>,
        locked: &mut Option<Box<Locked>>,
        means: Means<'_>,
    ) -> Result<Started, Status> {
        // Again, since it may have waited: a namespace may have gone meanwhile.
        let (Plan { what, range, fua }, info) = self.plan(sqe, means.options)?;
        let place = self.namespaces.channel(cx, sqe.nsid.get())?;
        let discards = match what {
            What::Deallocate(count) => ranges(buf.as_deref().unwrap_or_default(), count, &info)?,
            _ => vec![],
        };
        let mut job = Job {
            what,
            parts_left: 1,
            status: IoStatus::Ok,
            host: None,
            range: if discards.is_empty() {
                range
            } else {
                hull(&discards)
            },
            mark: None,
            locked: None,
        };
        if what.writes() && locked.is_none() {
            job.mark = self.namespaces.begin_write(place, job.range);
            if job.mark.is_none() {
                let hold = self.namespaces.hold(place, job.range, false);
                let hold = hold.ok_or(Status::INVALID_NAMESPACE)?;
                self.wait(slot, sqe, buf.take(), Locked { hold, write: None });
                return Ok(Started::Waits);
            }
        }
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let mut fitting = || {
            let mut buf = buf.take().filter(|buf| buf.len() >= len);
            if let Some(buf) = &mut buf {
                buf.set_len(len);
            }
            buf.ok_or(Status::INVALID_FIELD)
        };
        let (op, data) = match what {
            What::Hint => return Ok(Started::Nothing),
            What::Flush => (Op::Flush, Data::None),
            What::Read | What::Verify => (Op::Read, Data::Buf(fitting()?)),
            What::Write => (Op::Write { fua }, Data::Buf(fitting()?)),
            What::Compare => {
                job.host = Some(fitting()?);
                (Op::Read, Data::Buf(means.pool.borrow_mut().take(len)))
            }
            What::Zeroes { may_unmap } => (Op::WriteZeroes { may_unmap, fua }, Data::None),
            What::Deallocate(_) if discards.is_empty() => return Ok(Started::Nothing),
            What::Deallocate(_) => {
                job.parts_left = u32::try_from(discards.len()).unwrap_or(u32::MAX);
                (Op::Discard, Data::None)
            }
        };
        job.locked = locked.take();
        match discards.split_last() {
            None => self.send(cx, place, slot, op, range, data),
            Some(_) => {
                for range in &discards {
                    self.send(cx, place, slot, op, *range, Data::None);
                }
            }
        }
        Ok(Started::Job(job))
    }

    fn send(&mut self, cx: &Cx, place: usize, slot: u16, op: Op, range: ByteRange, data: Data) {
        let request = Request {
            tag: slot.into(),
            op,
            range,
            data,
        };
        self.namespaces.submit(cx, place, request);
    }

    /// Collects what has completed, and says so; without `replies`, nobody is there to hear it.
    pub(super) fn reap(
        &mut self,
        cx: &Cx,
        means: Means<'_>,
        slots: &mut Slots,
        mut replies: Option<(&Replies, &mut Output)>,
    ) -> u32 {
        self.namespaces.refresh(cx);
        let mut count = 0;
        if self.namespaces.under_way() > 0 {
            let mut done = std::mem::take(&mut self.done);
            let mut is_leaving = false;
            count = self.namespaces.poll(cx, &mut done, &mut is_leaving);
            for completion in done.drain(..) {
                let replies = replies
                    .as_mut()
                    .map(|(replies, output)| (*replies, &mut **output));
                self.finish(completion, means, slots, is_leaving, replies);
            }
            self.done = done;
        }
        self.namespaces.attend(slots);
        match replies {
            Some(replies) => count += self.go_on(cx, means, slots, replies),
            // What nobody waits for is not begun; its ranges are given back.
            None => {
                self.waiting.clear();
                self.compared.clear();
            }
        }
        count
    }

    /// Goes on with what has its range now.
    fn go_on(
        &mut self,
        cx: &Cx,
        means: Means<'_>,
        slots: &mut Slots,
        (replies, output): (&Replies, &mut Output),
    ) -> u32 {
        let mut ready: Vec<Waiting> = vec![];
        for mut locked in self.compared.drain(..) {
            let Some((slot, data)) = locked.write.take() else {
                continue;
            };
            let Some(sqe) = slots.get(slot).map(|slot| slot.sqe) else {
                continue;
            };
            let buf = Some(data);
            ready.push(Waiting {
                slot,
                sqe,
                buf,
                locked: Box::new(locked),
            });
        }
        let granted = self
            .waiting
            .extract_if(.., |waiting| waiting.locked.hold.is_granted());
        ready.extend(granted);
        let count = u32::try_from(ready.len()).unwrap_or(u32::MAX);
        for Waiting {
            slot,
            sqe,
            buf,
            locked,
        } in ready
        {
            let (mut buf, mut locked) = (buf, Some(locked));
            let started = self.submit(cx, slot, &sqe, &mut buf, &mut locked, means);
            means.give(buf);
            let status = match started {
                Ok(Started::Job(job)) => {
                    slots.update(slot, |slot| slot.stage = Stage::Io(job));
                    continue;
                }
                Ok(Started::Waits | Started::Nothing) => Status::SUCCESS,
                Err(status) => status,
            };
            let mut end = |slot, status| {
                if let Some(slot) = slots.remove(slot) {
                    replies.complete(slot.sqe.cid.get(), status, 0, output);
                }
            };
            end(slot, status);
            if let Some((second, data)) = locked.and_then(|locked| locked.write) {
                end(second, Status::FAILED_FUSED);
                means.give(Some(data));
            }
        }
        count
    }

    fn finish(
        &mut self,
        completion: Completion,
        means: Means<'_>,
        slots: &mut Slots,
        is_leaving: bool,
        replies: Option<(&Replies, &mut Output)>,
    ) {
        let Completion { tag, status, data } = completion;
        let index = u16::try_from(tag).unwrap_or(u16::MAX);
        let ended = slots.update(index, |slot| match &mut slot.stage {
            Stage::Io(job) => {
                job.parts_left -= 1;
                job.status = job.status.and(status);
                job.parts_left == 0
            }
            _ => unreachable!("the bdev completed slot {index}, which it does not have"),
        });
        let mut data = data.into_buf();
        if ended == Some(false) {
            return means.give(data);
        }
        let Some(slot) = slots.remove(index) else {
            unreachable!("the bdev completed slot {index}, which is free");
        };
        let Stage::Io(mut job) = slot.stage else {
            return means.give(data);
        };
        let bytes = u64::from(slot.sqe.blocks().blocks);
        let mut status = nvme_status(job.status, job.what.reads(), is_leaving);
        if status.is_ok() && job.what == What::Compare && job.host.as_deref() != data.as_deref() {
            status = Status::COMPARE_FAILURE;
        }
        self.count(
            job.what,
            status,
            data.as_deref().map_or(bytes, |d| d.len() as u64),
        );
        if let Some((replies, output)) = replies {
            let cid = slot.sqe.cid.get();
            match data.take_if(|_| status.is_ok() && job.what == What::Read) {
                Some(read) => replies.data(cid, read, output),
                None => replies.complete(cid, status, 0, output),
            }
            if let Some(locked) = job.locked.take_if(|locked| locked.write.is_some()) {
                self.compared_with(status, *locked, means, slots, (replies, output));
            }
        }
        means.give(data);
        means.give(job.host.take());
    }

    /// The first half of a fused operation has ended: the other one is to follow, or not.
    fn compared_with(
        &mut self,
        status: Status,
        mut locked: Locked,
        means: Means<'_>,
        slots: &mut Slots,
        (replies, output): (&Replies, &mut Output),
    ) {
        if status.is_ok() {
            self.compared.push(locked);
        } else if let Some((second, data)) = locked.write.take() {
            means.give(Some(data));
            if let Some(slot) = slots.remove(second) {
                replies.complete(slot.sqe.cid.get(), Status::FAILED_FUSED, 0, output);
            }
        }
    }

    fn count(&self, what: What, status: Status, bytes: u64) {
        let figures = &self.entry.status;
        let failed = u64::from(status == Status::UNRECOVERED_READ || status == Status::WRITE_FAULT);
        add(&figures.media_errors, failed);
        match what {
            What::Read => {
                add(&figures.reads, 1);
                add(&figures.bytes_read, bytes);
            }
            What::Write => {
                add(&figures.writes, 1);
                add(&figures.bytes_written, bytes);
            }
            _ => {}
        }
    }
}
