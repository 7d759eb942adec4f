//! Block I/O on a medium: memory copies on the caller's reactor, barriers for flush and FUA.

use crate::bdev::{
    Barrier, BarrierTicket, BdevInfo, Channel, Completion, Data, Extent, IoStatus, Op, Pmem,
    PmemError, Request,
};
use reactors::{Cx, Wake};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that are copied before others get their turn.
const TURN_BYTES: u64 = 1 << 20;
/// What zeroes are written from.
static ZEROES: [u8; 4096] = [0; 4096];

/// A copy that is not finished.
#[derive(Debug)]
struct Work {
    request: Request,
    /// Bytes of it that are done.
    done: u64,
}

/// One user's way to a medium's blocks.
#[derive(Debug)]
pub(super) struct PmemChannel {
    info: Arc<BdevInfo>,
    medium: Arc<dyn Pmem>,
    barrier: Box<dyn Barrier>,
    /// Large copies, each in turns of [`TURN_BYTES`].
    work: VecDeque<Work>,
    /// Done but for this barrier, in the order of their tickets.
    waiting: VecDeque<(BarrierTicket, Completion)>,
    ready: Vec<Completion>,
}

impl PmemChannel {
    /// A channel to the blocks of `medium`, with a barrier object of its own.
    pub(super) fn new(
        info: Arc<BdevInfo>,
        medium: Arc<dyn Pmem>,
        barrier: Box<dyn Barrier>,
    ) -> Self {
        Self {
            info,
            medium,
            barrier,
            work: VecDeque::new(),
            waiting: VecDeque::new(),
            ready: Vec::new(),
        }
    }

    /// Ends `request` when all stores so far are durable.
    fn complete_after_barrier(&mut self, cx: &Cx, request: Request) {
        let ticket = self.barrier.submit(cx);
        let completion = request.complete(IoStatus::Ok);
        self.waiting.push_back((ticket, completion));
    }

    /// Copies one turn of `work`, and ends it or puts it back in the queue.
    fn copy_turn(&mut self, cx: &Cx, mut work: Work) {
        let range = work.request.range;
        let now = (range.len() - work.done).min(TURN_BYTES);
        let at = range.start() + work.done;
        if let Err(status) = copy(&*self.medium, &mut work.request, at, work.done, now) {
            self.ready.push(work.request.complete(status));
            return;
        }
        work.done += now;
        if work.done < range.len() {
            self.work.push_back(work);
            return;
        }
        match work.request.op {
            Op::Write { fua: true } | Op::WriteZeroes { fua: true, .. } => {
                self.complete_after_barrier(cx, work.request);
            }
            _ => self.ready.push(work.request.complete(IoStatus::Ok)),
        }
    }

    fn end_waiting(&mut self, cx: &Cx) {
        match self.barrier.poll(cx) {
            Ok(durable) => {
                while self.waiting.front().is_some_and(|(t, _)| *t <= durable) {
                    self.ready.extend(self.waiting.pop_front().map(|(_, c)| c));
                }
            }
            Err(error) => {
                if !self.waiting.is_empty() {
                    tracing::error!(bdev = self.info.name, %error, "flush failed");
                }
                for (_, mut completion) in self.waiting.drain(..) {
                    completion.status = IoStatus::IoError;
                    self.ready.push(completion);
                }
            }
        }
    }
}

impl Channel for PmemChannel {
    fn submit(&mut self, cx: &Cx, mut request: Request) {
        if let Err(status) = self.info.admit(&request) {
            self.ready.push(request.complete(status));
            return;
        }
        match request.op {
            Op::Flush => self.complete_after_barrier(cx, request),
            Op::Discard | Op::Prefetch => self.ready.push(request.complete(IoStatus::Ok)),
            Op::Extents => {
                let len = request.range.len();
                request.data = Data::Extents(vec![Extent::allocated(len)]);
                self.ready.push(request.complete(IoStatus::Ok));
            }
            Op::Read | Op::Write { .. } | Op::WriteZeroes { .. } => {
                self.copy_turn(cx, Work { request, done: 0 });
            }
        }
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        if let Some(work) = self.work.pop_front() {
            self.copy_turn(cx, work);
        }
        self.end_waiting(cx);
        let count = u32::try_from(self.ready.len()).unwrap_or(u32::MAX);
        done.append(&mut self.ready);
        count
    }

    fn wake(&self) -> Wake {
        if self.work.is_empty() && self.ready.is_empty() {
            self.barrier.wake()
        } else {
            Wake::Now
        }
    }
}

/// Copies `len` bytes at `at` of the medium, which are those from `done` on of the request.
fn copy(
    medium: &dyn Pmem,
    request: &mut Request,
    at: u64,
    done: u64,
    len: u64,
) -> Result<(), IoStatus> {
    let from = usize::try_from(done).map_err(|_| IoStatus::Invalid)?;
    let len = usize::try_from(len).map_err(|_| IoStatus::Invalid)?;
    match (request.op, &mut request.data) {
        (Op::WriteZeroes { .. }, _) => store_zeroes(medium, at, len).map_err(lost),
        (Op::Read, Data::Buf(buf)) => {
            let part = buf.get_mut(from..from + len).ok_or(IoStatus::Invalid)?;
            medium.load(at, part).map_err(lost)
        }
        (Op::Write { .. }, Data::Buf(buf)) => {
            let part = buf.get(from..from + len).ok_or(IoStatus::Invalid)?;
            medium.store(at, part).map_err(lost)
        }
        (Op::Write { .. }, Data::Gather(views)) => {
            store_gathered(medium, at, views.iter().map(|v| &**v), from, len).map_err(lost)
        }
        // A length of 0 needs no memory.
        _ if len == 0 => Ok(()),
        _ => Err(IoStatus::Invalid),
    }
}

fn lost(error: PmemError) -> IoStatus {
    tracing::error!(%error, "request failed");
    IoStatus::IoError
}

fn store_zeroes(medium: &dyn Pmem, at: u64, len: usize) -> Result<(), PmemError> {
    let mut offset = 0;
    while offset < len {
        let part = ZEROES.get(..len - offset).unwrap_or(&ZEROES);
        medium.store(at + offset as u64, part)?;
        offset += part.len();
    }
    Ok(())
}

/// Stores `len` bytes of the concatenated `parts`, without the first `skip`.
fn store_gathered<'a>(
    medium: &dyn Pmem,
    at: u64,
    parts: impl Iterator<Item = &'a [u8]>,
    mut skip: usize,
    len: usize,
) -> Result<(), PmemError> {
    let mut stored = 0;
    for part in parts {
        let Some(wanted) = part.get(skip..) else {
            skip -= part.len();
            continue;
        };
        skip = 0;
        let wanted = wanted.get(..len - stored).unwrap_or(wanted);
        medium.store(at + stored as u64, wanted)?;
        stored += wanted.len();
    }
    Ok(())
}
