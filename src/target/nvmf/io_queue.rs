//! An I/O qpair's commands, and the bdevs that they are for.

use super::TransportOptions;
use super::controller::QpairEntry;
use super::io::{Plan, Rules, What, plan, ranges};
use super::io_status::nvme_status;
use super::namespaces::Namespaces;
use super::replies::Replies;
use super::slots::{Job, Slots, Stage};
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

    /// Hands a command to its device. `buf`: the host's data, or room for the device's. Nothing if there
    /// is nothing to do.
    ///
    /// # Errors
    /// The status to complete it with.
    pub(super) fn start(
        &mut self,
        cx: &Cx,
        slot: u16,
        sqe: &Sqe,
        buf: Option<IoBuf>,
        options: &TransportOptions,
        pool: &RefCell<BufPool>,
    ) -> Result<Option<Job>, Status> {
        let mut buf = buf;
        let started = self.submit(cx, slot, sqe, &mut buf, options, pool);
        if let Some(unused) = buf {
            pool.borrow_mut().give(unused);
        }
        started
    }

    fn submit(
        &mut self,
        cx: &Cx,
        slot: u16,
        sqe: &Sqe,
        buf: &mut Option<IoBuf>,
        options: &TransportOptions,
        pool: &RefCell<BufPool>,
    ) -> Result<Option<Job>, Status> {
        // Again, since it may have waited: a namespace may have gone meanwhile.
        let (Plan { what, range, fua }, info) = self.plan(sqe, options)?;
        let place = self.namespaces.channel(cx, sqe.nsid.get())?;
        let mut job = Job {
            what,
            parts_left: 1,
            status: IoStatus::Ok,
            host: None,
        };
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let mut fitting = || {
            let mut buf = buf.take().filter(|buf| buf.len() >= len);
            if let Some(buf) = &mut buf {
                buf.set_len(len);
            }
            buf.ok_or(Status::INVALID_FIELD)
        };
        let (op, data) = match what {
            What::Hint => return Ok(None),
            What::Flush => (Op::Flush, Data::None),
            What::Read | What::Verify => (Op::Read, Data::Buf(fitting()?)),
            What::Write => (Op::Write { fua }, Data::Buf(fitting()?)),
            What::Compare => {
                job.host = Some(fitting()?);
                (Op::Read, Data::Buf(pool.borrow_mut().take(len)))
            }
            What::Zeroes { may_unmap } => (Op::WriteZeroes { may_unmap, fua }, Data::None),
            What::Deallocate(count) => {
                let ranges = ranges(buf.as_deref().unwrap_or_default(), count, &info)?;
                job.parts_left = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
                for range in &ranges {
                    self.send(cx, place, slot, Op::Discard, *range, Data::None);
                }
                return Ok(Some(job).filter(|_| !ranges.is_empty()));
            }
        };
        self.send(cx, place, slot, op, range, data);
        Ok(Some(job))
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
        pool: &RefCell<BufPool>,
        slots: &mut Slots,
        mut replies: Option<(&Replies, &mut Output)>,
    ) -> u32 {
        self.namespaces.refresh(cx);
        if self.namespaces.under_way() == 0 {
            return 0;
        }
        let mut done = std::mem::take(&mut self.done);
        let mut is_leaving = false;
        let count = self.namespaces.poll(cx, &mut done, &mut is_leaving);
        for completion in done.drain(..) {
            let replies = replies
                .as_mut()
                .map(|(replies, output)| (*replies, &mut **output));
            self.finish(completion, pool, slots, is_leaving, replies);
        }
        self.done = done;
        count
    }

    fn finish(
        &self,
        completion: Completion,
        pool: &RefCell<BufPool>,
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
        let give = |buf: Option<IoBuf>| {
            if let Some(buf) = buf {
                pool.borrow_mut().give(buf);
            }
        };
        if ended == Some(false) {
            return give(data);
        }
        let Some(slot) = slots.remove(index) else {
            unreachable!("the bdev completed slot {index}, which is free");
        };
        let Stage::Io(mut job) = slot.stage else {
            return give(data);
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
        }
        give(data);
        give(job.host.take());
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
