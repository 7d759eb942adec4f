#![expect(
    unsafe_code,
    reason = "the crate takes buffers by pointer, since the back end reads and writes them too"
)]
//! One virtqueue and the shared buffers that belong to it.

use crate::bdev::IoStatus;
use crate::bdev::eventfd::silence;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_driver::{EventFd, QueueNotifier, VirtioBlkQueue, VirtioBlkTransport};
use vm_memory::{MmapRegion, VolatileMemory};

/// Descriptors of a command: header, payload and status.
const DESCRIPTORS: u16 = 3;
/// Bytes of a small buffer: the usual request. They lie together, so that they stay in the CPU's
/// caches.
const SMALL_BYTES: usize = 4096;
/// Bytes of a large buffer: the longest payload of a command.
pub(super) const LARGE_BYTES: usize = 128 << 10;
/// Large buffers of a ring.
const LARGE_COUNT: usize = 32;

/// How many commands a ring of `entries` has under way at most.
fn commands_max(entries: u16) -> usize {
    usize::from(entries / DESCRIPTORS)
}

/// Bytes of shared buffers that a ring of `entries` needs.
pub(super) fn buffer_bytes(entries: u16) -> usize {
    commands_max(entries) * SMALL_BYTES + LARGE_COUNT * LARGE_BYTES
}

/// What the back end is to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Discard,
    WriteZeroes { unmap: bool },
    Flush,
}

/// A shared buffer, or none for commands without payload. It goes back by [`Ring::give`].
#[derive(Debug)]
pub(super) struct Place {
    at: Option<usize>,
    len: usize,
}

/// A virtqueue, and its part of the shared buffers. It is used on one reactor at a time.
pub(super) struct Ring {
    queue: VirtioBlkQueue<'static, u64>,
    notifier: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffers: Arc<MmapRegion>,
    /// Where in `buffers` those are that nobody uses. The one used last is taken first.
    small: Vec<usize>,
    large: Vec<usize>,
    /// Commands that there is room for.
    room: usize,
    /// The back end has not been told of the newest commands.
    unannounced: bool,
    /// The back end is asked to call.
    calls: bool,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Ring number `index` of the connection `transport`; its buffers are the `index`th part of
    /// `buffers`. The connection must outlive it.
    pub(super) fn new(
        (queue, index): (VirtioBlkQueue<'static, u64>, usize),
        entries: u16,
        transport: &VirtioBlkTransport,
        buffers: Arc<MmapRegion>,
    ) -> Self {
        let start = index * buffer_bytes(entries);
        let commands = commands_max(entries);
        let behind = start + commands * SMALL_BYTES;
        let mut small: Vec<usize> = (0..commands).map(|n| start + n * SMALL_BYTES).collect();
        let mut large: Vec<usize> = (0..LARGE_COUNT).map(|n| behind + n * LARGE_BYTES).collect();
        small.reverse();
        large.reverse();
        let mut ring = Self {
            queue,
            notifier: transport.get_submission_notifier(index),
            call: transport.get_completion_fd(index),
            buffers,
            small,
            large,
            room: commands,
            unannounced: false,
            calls: true,
        };
        ring.want_calls(false);
        ring
    }

    /// Whether a command with `len` bytes of payload could start now.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.room > 0
            && match len {
                0 => true,
                1..=SMALL_BYTES => !self.small.is_empty(),
                _ => !self.large.is_empty(),
            }
    }

    /// Takes what a command with `len` bytes of payload needs; none if it must wait. `len`: at most
    /// [`LARGE_BYTES`].
    pub(super) fn take(&mut self, len: usize) -> Option<Place> {
        if self.room == 0 {
            return None;
        }
        let at = match len {
            0 => None,
            1..=SMALL_BYTES => Some(self.small.pop()?),
            _ => Some(self.large.pop()?),
        };
        self.room -= 1;
        Some(Place { at, len })
    }

    /// Takes back what a command had.
    pub(super) fn give(&mut self, place: &Place) {
        self.room += 1;
        if let Some(at) = place.at {
            match place.len {
                ..=SMALL_BYTES => self.small.push(at),
                _ => self.large.push(at),
            }
        }
    }

    /// Copies `bytes` to `offset` of `place`.
    pub(super) fn fill(&self, place: &Place, offset: usize, bytes: &[u8]) {
        debug_assert!(offset + bytes.len() <= place.len, "beyond the buffer");
        if let Some(at) = place.at
            && let Ok(slice) = self.buffers.get_slice(at + offset, bytes.len())
        {
            slice.copy_from(bytes);
        }
    }

    /// Copies what the back end has put into `place`.
    pub(super) fn fetch(&self, place: &Place, into: &mut [u8]) {
        debug_assert!(into.len() <= place.len, "beyond the buffer");
        if let Some(at) = place.at
            && let Ok(slice) = self.buffers.get_slice(at, into.len())
        {
            slice.copy_to(into);
        }
    }

    /// Starts a command on `len` bytes from `offset` of the disk; `tag` comes back with its answer.
    /// The back end learns of it by [`Ring::announce`].
    ///
    /// # Errors
    /// If the range is none that can be said. Nothing is started then.
    pub(super) fn start(
        &mut self,
        command: Command,
        (offset, len): (u64, u64),
        place: &Place,
        tag: u64,
    ) -> io::Result<()> {
        let at = place.at.unwrap_or(0);
        let buffer = self.buffers.as_ptr().wrapping_add(at);
        match command {
            Command::Read => {
                // SAFETY: `place` is a buffer in the mapping of `self.buffers`, at least as long as
                // the payload, and nobody else uses it until it is given back, which is after the
                // answer. It is accessed by volatile copies only. When the ring is dropped before
                // the answer, the memory is unmapped here, and nobody looks there any more.
                unsafe { self.queue.read_raw(offset, buffer, place.len, tag)? };
            }
            Command::Write => {
                // SAFETY: as above.
                unsafe { self.queue.write_raw(offset, buffer, place.len, tag)? };
            }
            Command::Discard => self.queue.discard(offset, len, tag)?,
            Command::WriteZeroes { unmap } => self.queue.write_zeroes(offset, len, unmap, tag)?,
            Command::Flush => self.queue.flush(tag)?,
        }
        self.unannounced = true;
        Ok(())
    }

    /// Tells the back end of new commands, if it wants to be told.
    ///
    /// # Errors
    /// If the eventfd is of no use any more.
    pub(super) fn announce(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.unannounced) {
            return Ok(());
        }
        // The index before the flag: the back end sets the flag, and then looks at the index.
        fence(Ordering::SeqCst);
        if self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        Ok(())
    }

    /// The next answer: the command's tag, and how it ended.
    pub(super) fn answer(&mut self) -> Option<(u64, IoStatus)> {
        let done = self.queue.completions().next()?;
        let status = match -done.ret {
            0 => IoStatus::Ok,
            libc::ENOTSUP => IoStatus::NotSupported,
            _ => IoStatus::IoError,
        };
        Some((done.context, status))
    }

    /// Asks the back end to call for answers, or not to.
    pub(super) fn want_calls(&mut self, wanted: bool) {
        if self.calls != wanted {
            self.calls = wanted;
            self.queue.set_used_notif_enabled(wanted);
        }
    }

    /// Forgets past calls, asks for new ones, and returns whether there are answers that no call
    /// will announce.
    pub(super) fn arm(&mut self) -> bool {
        self.forget_calls();
        self.want_calls(true);
        // The wish before the index: the back end advances the index, and then looks at the wish.
        fence(Ordering::SeqCst);
        self.queue.completions().has_next()
    }

    /// Takes all calls so far.
    pub(super) fn forget_calls(&self) {
        // A failure has nothing to say: the worst is a reactor that wakes for nothing.
        let _ = silence(&*self.call);
    }

    /// What the back end calls.
    pub(super) fn call_fd(&self) -> RawFd {
        self.call.as_raw_fd()
    }
}
