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

/// How long [`Pmem::settle`] waits between two attempts to drop the file's pages, and how many there
/// are: about 2 s.
const SETTLE_POLL: Duration = Duration::from_millis(4);
const SETTLE_TRIES: u32 = 500;
/// tmpfs and ramfs.
const RAM_FILE_SYSTEMS: [i128; 2] = [0x0102_1994, 0x8584_58f6];

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

    /// Bytes that are known to be lost.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.mapping.lost_bytes()
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

    /// Drops the file's pages from memory, ours and the kernel's; how many stay.
    fn forget_pages(&self) -> std::io::Result<u64> {
        self.mapping.forget_pages()?;
        let Some(file) = self.mapping.file_ref() else {
            return Ok(0);
        };
        rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
        if RAM_FILE_SYSTEMS.contains(&i128::from(rustix::fs::fstatfs(file)?.f_type)) {
            // There the pages are the medium.
            return Ok(0);
        }
        self.mapping.pages_in_memory()
    }

    /// Sees to it that no page of the file is in memory. The kernel keeps one that somebody holds for
    /// a moment, so it is told more than once, but not for ever.
    fn empty_memory(&self, tries: u32) -> Result<(), PmemError> {
        for turn in 1..=tries {
            match self.forget_pages() {
                Ok(0) => return Ok(()),
                Ok(pages) if turn == tries => return Err(PmemError::Unsettled { pages }),
                Ok(_) => pause(SETTLE_POLL),
                Err(error) => {
                    // What can't be dropped can't be told from the truth.
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    self.failure.record(errno);
                    return self.failure.check();
                }
            }
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

    fn store(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        self.mapping.store(&self.persist, at, src)
    }

    fn store_data(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        self.mapping.store_data(&self.persist, at, src)
    }

    fn store_data_crc(&self, at: u64, src: &[u8]) -> Result<u32, PmemError> {
        self.mapping.store_data_crc(&self.persist, at, src)
    }

    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        self.mapping.load(at, dst)
    }

    fn view(&self, at: u64, len: usize) -> Result<MemView, PmemError> {
        self.mapping.view(at, len)
    }

    fn check(&self, at: u64, len: usize) -> Result<(), PmemError> {
        self.mapping.check(at, len)
    }

    fn write_back(&self, at: u64, len: u64) {
        // A length beyond any address leaves the medium, and is refused as such.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.mapping.write_back(&self.persist, at, len);
    }

    fn open_barrier(&self, cx: &Cx) -> Result<Box<dyn Barrier>, BdevError> {
        Ok(match self.persistence {
            Persistence::Dax | Persistence::Volatile => Box::new(ImmediateBarrier::default()),
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
        persist::fence();
        match self.persistence {
            Persistence::Dax | Persistence::Volatile => Ok(()),
            Persistence::Msync => self.sync_wait(),
        }
    }

    fn settle(&self) -> Result<(), PmemError> {
        self.barrier_wait()?;
        match self.persistence {
            Persistence::Msync => self.empty_memory(SETTLE_TRIES),
            Persistence::Dax | Persistence::Volatile => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::pmem::CopyKernel;

    const BYTES: u64 = 1 << 20;

    fn medium(mapping: Mapping, flush: FlushMethod, persistence: Persistence) -> Medium {
        let persist = Persist::new(CopyKernel::detect(), flush);
        Medium::new(mapping, persist, persistence).unwrap()
    }

    fn synced(file: &File) -> Medium {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, BYTES).unwrap();
        let mapping = Mapping::file(file.try_clone().unwrap(), 1 << 20, 0).unwrap();
        medium(mapping, FlushMethod::Msync, Persistence::Msync)
    }

    #[test]
    fn a_dax_medium_stores_and_writes_back_at_any_offset() {
        let Some(flush) = FlushMethod::of_this_cpu() else {
            println!("skipped: no write-back instruction");
            return;
        };
        let mapping = Mapping::anonymous(1 << 20).unwrap();
        let medium = medium(mapping, flush, Persistence::Dax);
        for at in [0, 1, 63, 4095, BYTES - 5000] {
            let src: Vec<u8> = (0..=255).cycle().take(5000).collect();
            assert_eq!(medium.store_data_crc(at, &src), Ok(crc32c::crc32c(&src)));
            medium.write_back(at, 5000);
            medium.barrier_wait().unwrap();
            let mut back = vec![0; 5000];
            medium.load(at, &mut back).unwrap();
            assert_eq!(back, src);
            assert_eq!(&*medium.view(at, 5000).unwrap(), src);
        }
        medium.settle().unwrap();
    }

    #[test]
    fn a_failed_sync_on_a_control_thread_is_final_for_reactors_too() {
        let file = tempfile::tempfile().unwrap();
        let medium = synced(&file);
        medium.barrier_wait().unwrap();
        let (pipe, _) = std::io::pipe().unwrap();
        let good = medium.turn.pop().unwrap();
        medium
            .turn
            .push(File::from(std::os::fd::OwnedFd::from(pipe)))
            .unwrap();
        let failed = Err(PmemError::BarrierFailed(libc::EINVAL));
        assert_eq!(medium.barrier_wait(), failed);
        medium.turn.force_push(good);
        assert_eq!(medium.barrier_wait(), failed);
        assert_eq!(medium.settle(), failed);
        assert_eq!(medium.failure.check(), failed);
    }

    fn is_in_ram(file: &File) -> bool {
        let kind = rustix::fs::fstatfs(file).unwrap().f_type;
        RAM_FILE_SYSTEMS.contains(&i128::from(kind))
    }

    #[test]
    fn settle_makes_the_next_load_come_from_the_medium() {
        let file = tempfile::tempfile().unwrap();
        let medium = synced(&file);
        let bytes = vec![7; 100_000];
        medium.store(300_000, &bytes).unwrap();
        assert!(medium.mapping.pages_in_memory().unwrap() >= 24);
        medium.settle().unwrap();
        if !is_in_ram(&file) {
            assert_eq!(medium.mapping.pages_in_memory().unwrap(), 0);
        }
        let mut back = vec![0; 100_000];
        medium.load(300_000, &mut back).unwrap();
        assert!(back == bytes);
    }

    #[test]
    fn pages_that_somebody_holds_are_not_believed() {
        let file = tempfile::tempfile().unwrap();
        if is_in_ram(&file) {
            println!("skipped: a file in RAM");
            return;
        }
        let medium = synced(&file);
        medium.store(0, b"held").unwrap();
        // The kernel drops no page that is mapped.
        let other = Mapping::file(file.try_clone().unwrap(), 1 << 20, 0).unwrap();
        let mut held = [0; 4];
        other.load(0, &mut held).unwrap();
        let error = medium.empty_memory(3).unwrap_err();
        assert!(matches!(error, PmemError::Unsettled { pages: 1.. }));
        drop(other);
        medium.settle().unwrap();
    }

    #[test]
    fn threads_that_wait_for_barriers_take_turns() {
        let file = tempfile::tempfile().unwrap();
        let medium = synced(&file);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let medium = &medium;
                scope.spawn(move || {
                    for round in 0..5 {
                        medium.store(thread * 4096 + round, b"x").unwrap();
                        medium.barrier_wait().unwrap();
                    }
                });
            }
        });
        assert_eq!(medium.turn.len(), 1);
    }

    #[test]
    fn anonymous_memory_can_not_be_synced() {
        let mapping = Mapping::anonymous(4096).unwrap();
        let persist = Persist::new(CopyKernel::detect(), FlushMethod::Msync);
        let error = Medium::new(mapping, persist, Persistence::Msync).unwrap_err();
        assert!(matches!(error, BdevError::NotSupported(_)), "{error}");
    }
}
