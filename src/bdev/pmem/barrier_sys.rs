//! An io_uring that does one thing: fdatasync of one file, one at a time.
#![expect(unsafe_code, reason = "pushes an entry that names a file descriptor")]

use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The ring and the file that it syncs.
pub(super) struct SyncRing {
    ring: IoUring,
    file: File,
}

impl std::fmt::Debug for SyncRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncRing")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl SyncRing {
    /// A ring for `file`.
    ///
    /// # Errors
    /// What `io_uring_setup` says.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let ring = IoUring::new(2)?;
        Ok(Self { ring, file })
    }

    /// Readable when a completion waits.
    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Starts an fdatasync. The caller has none under way. False: the kernel has no room now, try
    /// again; the sync has not begun.
    ///
    /// # Errors
    /// What `io_uring_enter` says.
    pub(super) fn start(&mut self) -> io::Result<bool> {
        // An entry that the kernel did not take the last time still lies in the queue.
        if self.ring.submission().is_empty() {
            let entry = opcode::Fsync::new(types::Fd(self.file.as_raw_fd()))
                .flags(types::FsyncFlags::DATASYNC)
                .build();
            // SAFETY: the entry refers to no memory, and its descriptor is open as long as `self`
            // lives; once taken, the kernel holds the file itself.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                return Ok(false);
            }
        }
        match self.ring.submit() {
            Ok(taken) => Ok(taken > 0),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// The result of the sync, if it has completed: 0 or a negative errno.
    pub(super) fn take(&mut self) -> Option<i32> {
        self.ring.completion().next().map(|entry| entry.result())
    }
}
