//! A request on its way through the kernel: which steps it takes, and what each result means.

use super::device::Device;
use crate::bdev::inline::all_allocated;
use crate::bdev::{BufPool, Completion, Data, IoBuf, IoStatus, Op, Request};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The most pieces that one vectored write may have.
const PIECES_MAX: usize = 1024;
/// Zeroes that are written at a time where the kernel has no better way.
const ZEROES_BYTES: u64 = 256 << 10;
/// How often the kernel may say "not now" to one step.
const RETRIES_MAX: u32 = 1000;

/// What the kernel does for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Fill memory from the range, from `done` on.
    Read,
    /// Write memory to the range, from `done` on; each write durable when it completes if `dsync`.
    Write {
        /// Whether it must be durable.
        dsync: bool,
    },
    /// Write zeroes from the bounce buffer, again and again.
    Fill,
    /// Make all that was written durable.
    Datasync,
    /// Take the range's space away; it reads as zeroes.
    PunchHole,
    /// Make the range read as zeroes, space kept.
    ZeroRange,
}

/// A request and how far it is. Owns all memory that the kernel touches for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) device: Arc<Device>,
    pub(super) request: Request,
    /// Aligned memory in place of the request's own.
    pub(super) bounce: Option<IoBuf>,
    pub(super) step: Step,
    /// Bytes of the range that are done.
    pub(super) done: u64,
    retries: u32,
}

/// What comes after a step.
#[derive(Debug)]
pub(super) enum Next {
    /// Give it to the kernel (again).
    Run(Job),
    /// It is over.
    Done(Completion),
}

impl Job {
    /// The first step of an admitted request.
    pub(super) fn start(device: &Arc<Device>, mut request: Request, pool: &mut BufPool) -> Next {
        let nothing = request.range.is_empty();
        let step = match request.op {
            Op::Flush => Step::Datasync,
            Op::Read if !nothing => Step::Read,
            Op::Write { fua } if !nothing => Step::Write { dsync: fua },
            Op::Discard if !nothing && device.punches_holes.load(Ordering::Relaxed) => {
                Step::PunchHole
            }
            Op::WriteZeroes { may_unmap, .. } if !nothing => first_zeroing(device, may_unmap),
            Op::Extents => {
                request.data = all_allocated(request.range);
                return Next::Done(request.complete(IoStatus::Ok));
            }
            _ => return Next::Done(request.complete(IoStatus::Ok)),
        };
        let mut job = Self {
            device: device.clone(),
            request,
            bounce: None,
            step,
            done: 0,
            retries: 0,
        };
        job.bounce_if_needed(pool);
        Next::Run(job)
    }

    /// Gives the step memory that the kernel can use.
    fn bounce_if_needed(&mut self, pool: &mut BufPool) {
        match self.step {
            Step::Read if !self.memory_fits() => {
                self.bounce = Some(pool.take(self.range_len()));
            }
            Step::Write { .. } if !self.memory_fits() => {
                let mut bounce = pool.take(self.range_len());
                gather(&self.request.data, &mut bounce);
                self.bounce = Some(bounce);
            }
            Step::Fill => {
                let len = self.request.range.len().min(ZEROES_BYTES);
                let mut zeroes = pool.take(usize::try_from(len).unwrap_or(usize::MAX));
                zeroes.fill(0);
                self.bounce = Some(zeroes);
            }
            _ => {}
        }
    }

    /// Bytes of the range, where it is as long as the request's memory.
    fn range_len(&self) -> usize {
        usize::try_from(self.request.range.len()).unwrap_or(usize::MAX)
    }

    /// Whether the kernel can read or write the request's own memory.
    fn memory_fits(&self) -> bool {
        let file = &self.device.file;
        let aligned = |bytes: &[u8]| bytes.as_ptr().addr() & (file.mem_align - 1) == 0;
        match &self.request.data {
            Data::Buf(buf) => aligned(buf),
            Data::Gather(views) => {
                let block = file.block_size as usize;
                let whole = |len: usize| !file.direct || len.is_multiple_of(block);
                views.len() <= PIECES_MAX && views.iter().all(|v| aligned(v) && whole(v.len()))
            }
            Data::None | Data::Extents(_) => false,
        }
    }

    /// What follows from the kernel's `result`: a count, or an error number below 0.
    pub(super) fn advance(mut self, result: i32, pool: &mut BufPool) -> Next {
        match u32::try_from(result) {
            Ok(count) => {
                self.retries = 0;
                self.succeed(count, pool)
            }
            Err(_) => {
                let errno = Errno::from_raw_os_error(result.wrapping_neg());
                self.refused(errno, pool)
            }
        }
    }

    fn succeed(mut self, count: u32, pool: &mut BufPool) -> Next {
        match self.step {
            Step::Read | Step::Write { .. } | Step::Fill => {
                let before = self.done;
                // Direct I/O can go on at a block's start only.
                let block = u64::from(self.device.block_size);
                self.done = (before + u64::from(count)) / block * block;
                if self.done <= before {
                    // The file has become shorter, or the device ends early.
                    let status = self.device.fail(&self.request, Errno::IO);
                    return self.finish(status, pool);
                }
                if self.done < self.request.range.len() {
                    return Next::Run(self);
                }
                if self.step == Step::Fill {
                    return self.zeroed(pool);
                }
                self.finish(IoStatus::Ok, pool)
            }
            Step::PunchHole | Step::ZeroRange => self.zeroed(pool),
            Step::Datasync => self.finish(IoStatus::Ok, pool),
        }
    }

    /// The range is zero (or discarded); now make that durable if it was asked for.
    fn zeroed(mut self, pool: &mut BufPool) -> Next {
        if matches!(self.request.op, Op::WriteZeroes { fua: true, .. }) {
            self.step = Step::Datasync;
            return Next::Run(self);
        }
        self.finish(IoStatus::Ok, pool)
    }

    fn refused(mut self, errno: Errno, pool: &mut BufPool) -> Next {
        let again = matches!(errno, Errno::INTR | Errno::AGAIN);
        if again && self.retries < RETRIES_MAX {
            self.retries += 1;
            return Next::Run(self);
        }
        let cannot = matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS);
        match self.step {
            Step::PunchHole if cannot => {
                self.device.punches_holes.store(false, Ordering::Relaxed);
            }
            Step::ZeroRange if cannot => {
                self.device.zeroes_ranges.store(false, Ordering::Relaxed);
            }
            _ => {
                let status = self.device.fail(&self.request, errno);
                return self.finish(status, pool);
            }
        }
        if self.request.op == Op::Discard {
            // A hint that can't be followed is still done.
            return self.finish(IoStatus::Ok, pool);
        }
        self.step = first_zeroing(&self.device, false);
        self.bounce_if_needed(pool);
        Next::Run(self)
    }

    /// Ends it and gives the bounce buffer back.
    fn finish(mut self, status: IoStatus, pool: &mut BufPool) -> Next {
        if let Some(bounce) = self.bounce.take() {
            if let (Step::Read, IoStatus::Ok, Data::Buf(buf)) =
                (self.step, status, &mut self.request.data)
            {
                buf.copy_from_slice(&bounce);
            }
            pool.give(bounce);
        }
        Next::Done(self.request.complete(status))
    }
}

/// The best way to zero a range that the device has not yet refused.
fn first_zeroing(device: &Device, may_unmap: bool) -> Step {
    if may_unmap && device.punches_holes.load(Ordering::Relaxed) {
        Step::PunchHole
    } else if device.zeroes_ranges.load(Ordering::Relaxed) {
        Step::ZeroRange
    } else {
        Step::Fill
    }
}

/// Copies what is to be written to one place.
fn gather(data: &Data, mut to: &mut [u8]) {
    let mut put = |bytes: &[u8]| {
        let len = bytes.len().min(to.len());
        let (now, rest) = std::mem::take(&mut to).split_at_mut(len);
        now.copy_from_slice(bytes.get(..len).unwrap_or_default());
        to = rest;
    };
    match data {
        Data::Buf(buf) => put(buf),
        Data::Gather(views) => views.iter().for_each(|view| put(view)),
        Data::None | Data::Extents(_) => {}
    }
}
