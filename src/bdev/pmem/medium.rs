//! The medium: a mapping, the way to store to it, and what its barrier is.

use super::barrier::{Failure, ImmediateBarrier, SyncBarrier};
use super::map::Mapping;
use super::persist::{self, FlushMethod, Persist};
use crate::bdev::{Barrier, BdevError, MemView, Persistence, Pmem, PmemError};
use crossbeam_queue::ArrayQueue;
use reactors::Cx;
use rustix::fs::{Advice, Mode, OFlags};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// How long a control thread waits for another one's turn before it looks again.
const TURN_POLL: Duration = Duration::from_millis(1);

/// A mapped medium.
#[derive(Debug)]
pub(super) struct Medium {
    mapping: Arc<Mapping>,
    persist: Persist,
    persistence: Persistence,
    failure: Arc<Failure>,
    /// The description that [`Pmem::barrier_wait`] syncs, taken out by the thread whose turn it is:
    /// a failed write-back is reported once per description, so nobody may return "good" from it
    /// between another one's error and its record. Empty for ever if nothing is to be synced.
    turn: ArrayQueue<File>,
}

/// A description of its own for the same open file.
fn reopen(fd: RawFd) -> Result<File, BdevError> {
    let path = format!("/proc/self/fd/{fd}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => Ok(File::from(file)),
        Err(errno) => Err(BdevError::Os {
            what: format!("open {path} once more"),
            source: errno.into(),
        }),
    }
}

impl Medium {
    /// A medium on `mapping`. `persist` must fit `persistence`.
    ///
    /// # Errors
    /// If the file of an msync medium can't be opened once more.
    pub(super) fn new(
        mapping: Mapping,
        persist: Persist,
        persistence: Persistence,
    ) -> Result<Self, BdevError> {
        let turn = ArrayQueue::new(1);
        if persistence == Persistence::Msync {
            // There is room: the queue is new.
            let _ = turn.push(Self::description_of(&mapping)?);
        }
        Ok(Self {
            mapping: Arc::new(mapping),
            persist,
            persistence,
            failure: Arc::default(),
            turn,
        })
    }

    fn description_of(mapping: &Mapping) -> Result<File, BdevError> {
        match mapping.file_ref() {
            Some(file) => reopen(file.as_raw_fd()),
            None => Err(BdevError::NotSupported(
                "anonymous memory has no file to sync".into(),
            )),
        }
    }

    /// Where it is mapped.
    pub(super) fn address(&self) -> usize {
        self.mapping.address()
    }

    /// How stores become durable.
    pub(super) fn flush_method(&self) -> FlushMethod {
        self.persist.flush_method()
    }

    /// fdatasync, when it is this thread's turn.
    fn sync_wait(&self) -> Result<(), PmemError> {
        let file = loop {
            match self.turn.pop() {
                Some(file) => break file,
                None => pause(TURN_POLL),
            }
        };
        if let Err(errno) = rustix::fs::fdatasync(&file) {
            self.failure.record(errno.raw_os_error());
        }
        // There is room: this thread has taken out the only one.
        let _ = self.turn.push(file);
        self.failure.check()
    }

    /// Drops the file's pages from memory, ours and the kernel's.
    fn forget_pages(&self) -> std::io::Result<()> {
        self.mapping.forget_pages()?;
        if let Some(file) = self.mapping.file_ref() {
            rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }
}

/// Sleeps. For control threads: nothing on a reactor's way calls it.
pub(super) fn pause(time: Duration) {
    let time = rustix::time::Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // An interrupted sleep is only a short one: callers look again in a loop.
    let _ = rustix::thread::nanosleep(&time);
}

impl Pmem for Medium {
    fn bytes(&self) -> u64 {
        self.mapping.bytes() as u64
    }

    fn persistence(&self) -> Persistence {
        self.persistence
    }

    fn store(&self, at: u64, src: &[u8]) {
        self.mapping.store(&self.persist, at, src);
    }

    fn store_crc(&self, at: u64, src: &[u8]) -> u32 {
        self.mapping.store_crc(&self.persist, at, src)
    }

    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        self.mapping.load(at, dst);
        Ok(())
    }

    fn view(&self, at: u64, len: usize) -> MemView {
        self.mapping.view(at, len)
    }

    fn write_back(&self, at: u64, len: u64) {
        // A length beyond any address leaves the medium, and is refused as such.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.mapping.write_back(&self.persist, at, len);
    }

    fn open_barrier(&self, cx: &Cx) -> Result<Box<dyn Barrier>, BdevError> {
        Ok(match self.persistence {
            Persistence::Dax => Box::new(ImmediateBarrier::new(true)),
            Persistence::Volatile => Box::new(ImmediateBarrier::new(false)),
            Persistence::Msync => {
                let file = Self::description_of(&self.mapping)?;
                let barrier = SyncBarrier::new(cx, file, Arc::clone(&self.failure));
                Box::new(barrier.map_err(|source| BdevError::Os {
                    what: "set up an io_uring for barriers".into(),
                    source,
                })?)
            }
        })
    }

    fn barrier_wait(&self) -> Result<(), PmemError> {
        match self.persistence {
            Persistence::Dax => persist::fence(),
            Persistence::Volatile => {}
            Persistence::Msync => self.sync_wait()?,
        }
        Ok(())
    }

    fn settle(&self) -> Result<(), PmemError> {
        self.barrier_wait()?;
        if self.persistence == Persistence::Msync
            && let Err(error) = self.forget_pages()
        {
            // What can't be dropped can't be told from the truth.
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.failure.record(errno);
            return self.failure.check();
        }
        Ok(())
    }
}
