//! The ring itself, and the jobs that the kernel works on.
//!
//! Memory that an entry points to belongs to a [`Job`] in a slot of this file. It stays there, out
//! of everybody's reach, until the kernel has posted the completion of that entry.
#![expect(
    unsafe_code,
    reason = "entries point to memory that the slots of this file own until the kernel is done"
)]

use super::hub::Replies;
use super::job::{Job, Step};
use crate::bdev::Data;
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

/// Entries that can wait for one system call.
const SUBMISSIONS: u32 = 256;
/// Jobs that the kernel may have; as many completions fit without overflow.
const IN_FLIGHT_MAX: u32 = 1024;
/// The most bytes of one read or write.
const TRANSFER_BYTES_MAX: usize = 1 << 30;
/// How often, and how long each time, a ring that is dropped waits for its last jobs.
const DROP_WAITS: u32 = 20;
const DROP_WAIT_NS: u32 = 100_000_000;

/// A job that the kernel has, or had.
struct Held {
    job: Job,
    reply: Rc<Replies>,
}

/// Room for one job. `iovecs` is kept to be used again.
#[derive(Default)]
struct Slot {
    held: Option<Held>,
    iovecs: Vec<libc::iovec>,
}

/// A job that the kernel is done with.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) job: Job,
    pub(super) reply: Rc<Replies>,
    /// A count, or an error number below 0.
    pub(super) result: i32,
}

/// One io_uring and what it works on.
pub(super) struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Sets a ring up.
    ///
    /// # Errors
    /// What the kernel says: io_uring may be switched off, or locked memory used up.
    pub(super) fn new() -> io::Result<Self> {
        // No interrupt of the polling thread for a completion: it looks at a flag (5.19).
        let ring = IoUring::builder()
            .setup_cqsize(IN_FLIGHT_MAX)
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(SUBMISSIONS)
            .or_else(|_| {
                IoUring::builder()
                    .setup_cqsize(IN_FLIGHT_MAX)
                    .build(SUBMISSIONS)
            })?;
        let mut slots = Vec::new();
        slots.resize_with(IN_FLIGHT_MAX as usize, Slot::default);
        Ok(Self {
            ring,
            slots,
            free: (0..IN_FLIGHT_MAX).rev().collect(),
        })
    }

    /// Readable when completions wait.
    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// How many jobs are in slots.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another job fits.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Queues the job's step; [`Ring::submit`] tells the kernel. Hands the job back if no room is
    /// left.
    pub(super) fn push(&mut self, job: Job, reply: Rc<Replies>) -> Result<(), (Job, Rc<Replies>)> {
        if !self.has_room() {
            return Err((job, reply));
        }
        if self.ring.submission().is_full() {
            // What the kernel does not take now stays queued, and this job is handed back below.
            let _ = self.ring.submit();
        }
        if self.ring.submission().is_full() {
            return Err((job, reply));
        }
        let Some(index) = self.free.pop() else {
            return Err((job, reply));
        };
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Err((job, reply));
        };
        let held = slot.held.insert(Held { job, reply });
        let entry = entry_for(&mut held.job, &mut slot.iovecs).user_data(u64::from(index));
        // SAFETY: `entry` points to memory of `slot.held` and to `slot.iovecs`, and names a file
        // that `slot.held` keeps open. Neither is touched until `reap` or `drop` has seen this
        // entry's completion; both live on the heap, wherever the slot itself moves.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue had room a moment ago");
        Ok(())
    }

    /// Entries that the kernel has not been told of.
    pub(super) fn unsubmitted(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Tells the kernel of queued entries, and lets it post what it has put off. No system call if
    /// there is nothing to say.
    ///
    /// # Errors
    /// What the kernel says; the entries stay queued.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let queue = self.ring.submission();
        let needed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if needed {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Takes what the kernel has completed.
    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) {
        for entry in self.ring.completion() {
            let Ok(index) = u32::try_from(entry.user_data()) else {
                continue;
            };
            let slot = self.slots.get_mut(index as usize);
            // The kernel is done with the memory: the job may leave its slot.
            if let Some(Held { job, reply }) = slot.and_then(|slot| slot.held.take()) {
                self.free.push(index);
                finished.push(Finished {
                    job,
                    reply,
                    result: entry.result(),
                });
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut finished = Vec::new();
        let pause = types::Timespec::new().nsec(DROP_WAIT_NS);
        for _ in 0..DROP_WAITS {
            self.reap(&mut finished);
            if self.in_flight() == 0 {
                return;
            }
            let args = types::SubmitArgs::new().timespec(&pause);
            // A time-out is as good as their completions: look again.
            let _ = self
                .ring
                .submitter()
                .submit_with_args(self.in_flight(), &args);
        }
        self.reap(&mut finished);
        // The device does not answer. The kernel may still write to this memory after the ring is
        // closed, so it is given up for good.
        std::mem::forget(std::mem::take(&mut self.slots));
        self.free.clear();
    }
}

/// The entry for the job's step. Its pointers are into memory that the job owns, and to `iovecs`.
fn entry_for(job: &mut Job, iovecs: &mut Vec<libc::iovec>) -> Entry {
    let fd = types::Fd(job.device.file.fd.as_raw_fd());
    let range = job.request.range;
    let offset = range.start() + job.done;
    let done = usize::try_from(job.done).unwrap_or(usize::MAX);
    match job.step {
        Step::Read => {
            let memory: &mut [u8] = match (&mut job.bounce, &mut job.request.data) {
                (Some(bounce), _) => bounce,
                (None, Data::Buf(buf)) => buf,
                _ => &mut [],
            };
            let memory = memory.get_mut(done..).unwrap_or_default();
            let len = transfer_len(memory.len());
            opcode::Read::new(fd, memory.as_mut_ptr(), len)
                .offset(offset)
                .build()
        }
        Step::Write { dsync } => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            let memory: &[u8] = match (&job.bounce, &job.request.data) {
                (Some(bounce), _) => bounce,
                (None, Data::Buf(buf)) => buf,
                (None, Data::Gather(_)) => {
                    fill_iovecs(&job.request.data, done, iovecs);
                    let count = u32::try_from(iovecs.len()).unwrap_or(u32::MAX);
                    return opcode::Writev::new(fd, iovecs.as_ptr(), count)
                        .offset(offset)
                        .rw_flags(flags)
                        .build();
                }
                _ => &[],
            };
            let memory = memory.get(done..).unwrap_or_default();
            opcode::Write::new(fd, memory.as_ptr(), transfer_len(memory.len()))
                .offset(offset)
                .rw_flags(flags)
                .build()
        }
        Step::Fill => {
            let zeroes: &[u8] = job.bounce.as_deref().unwrap_or_default();
            let left = usize::try_from(range.len() - job.done).unwrap_or(usize::MAX);
            opcode::Write::new(fd, zeroes.as_ptr(), transfer_len(left.min(zeroes.len())))
                .offset(offset)
                .build()
        }
        Step::Datasync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Step::PunchHole => fallocate(job, libc::FALLOC_FL_PUNCH_HOLE),
        Step::ZeroRange => fallocate(job, libc::FALLOC_FL_ZERO_RANGE),
    }
}

fn fallocate(job: &Job, mode: i32) -> Entry {
    let fd = types::Fd(job.device.file.fd.as_raw_fd());
    let range = job.request.range;
    opcode::Fallocate::new(fd, range.len())
        .offset(range.start())
        .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
        .build()
}

fn transfer_len(len: usize) -> u32 {
    u32::try_from(len.min(TRANSFER_BYTES_MAX)).unwrap_or(0)
}

/// Points `iovecs` to the pieces of `data`, without the first `skip` bytes.
fn fill_iovecs(data: &Data, mut skip: usize, iovecs: &mut Vec<libc::iovec>) {
    iovecs.clear();
    let Data::Gather(views) = data else {
        return;
    };
    for view in views {
        let rest = view.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(view.len());
        if !rest.is_empty() {
            iovecs.push(libc::iovec {
                // The kernel only reads what a write points to.
                iov_base: rest.as_ptr().cast_mut().cast(),
                iov_len: rest.len(),
            });
        }
    }
}
