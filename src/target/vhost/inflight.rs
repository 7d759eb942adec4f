//! What is under way, in memory that the front end keeps: after our death the next process finds
//! there which requests to do again.
//!
//! Per queue, as the vhost-user protocol lays it out:
//!
//! ```text
//! features u64 | version u16 | desc_num u16 | last_batch_head u16 | used_idx u16
//! per descriptor: inflight u8 | pad | next u16 @6 | counter u64 @8
//! ```
//!
//! Behind the last queue is a block of our own: what the driver has chosen for the cache, which nobody
//! says again after our death.
//!
//! ```text
//! magic u32 | wce u8
//! ```
//!
//! The order of stores is the protocol: a head is marked before its request is started; answers are
//! linked into a batch, then written, then published, then unmarked, and then `used_idx` follows.
//! Whoever finds `used_idx` behind the used ring unmarks the batch itself.

use super::guest_mem::{Mapping, MemoryFault, Window};
use super::{QUEUES_MAX, RING_ENTRIES_MAX};
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
/// The only version there is.
const VERSION: u16 = 1;

/// Bytes of our own block, and how it begins: what other back ends have made has none.
const MODE_BYTES: u64 = 64;
const MODE_MAGIC: u32 = u32::from_le_bytes(*b"pmwc");
const AT_MODE: usize = 4;

/// Bytes of one queue's part.
fn queue_bytes(entries: u16) -> u64 {
    let bytes = HEADER_BYTES + ENTRY_BYTES * usize::from(entries);
    bytes.next_multiple_of(64) as u64
}

/// What a front end may not ask for.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflightFault {
    #[error("{queues} queues of {entries} entries")]
    Shape { queues: u16, entries: u16 },
    #[error("{found} bytes where {needed} are needed")]
    Short { found: u64, needed: u64 },
    #[error("no memory for it: {0}")]
    Os(#[from] rustix::io::Errno),
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    #[error("version {0} of the layout")]
    Version(u16),
    #[error("{found} descriptors where the ring has {entries}")]
    Entries { found: u16, entries: u16 },
}

fn bytes_for(queues: u16, entries: u16) -> Result<u64, InflightFault> {
    let fits = (1..=QUEUES_MAX).contains(&queues) && (1..=RING_ENTRIES_MAX).contains(&entries);
    match fits {
        true => Ok(u64::from(queues) * queue_bytes(entries)),
        false => Err(InflightFault::Shape { queues, entries }),
    }
}

/// Zeroed memory for `queues` queues, that nobody can make smaller; and how much it is.
pub(super) fn create(queues: u16, entries: u16) -> Result<(File, u64), InflightFault> {
    let bytes = bytes_for(queues, entries)? + MODE_BYTES;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("pmcache-vhost-inflight", flags)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok((File::from(fd), bytes))
}

/// The memory as the front end gave it, for all queues.
#[derive(Clone, Debug)]
pub(super) struct Inflight {
    mapping: Arc<Mapping>,
    queues: u16,
    entries: u16,
    /// Our own block, if there is room for one.
    mode: Option<Window>,
}

impl Inflight {
    /// Maps `bytes` at `offset` of what a front end has kept.
    pub(super) fn map(
        file: File,
        offset: u64,
        bytes: u64,
        queues: u16,
        entries: u16,
    ) -> Result<Self, InflightFault> {
        let needed = bytes_for(queues, entries)?;
        if bytes < needed {
            return Err(InflightFault::Short {
                found: bytes,
                needed,
            });
        }
        let has_mode = bytes >= needed + MODE_BYTES;
        let mapped = if has_mode {
            needed + MODE_BYTES
        } else {
            needed
        };
        let mapping = Arc::new(Mapping::new(file, offset, mapped)?);
        let mode = has_mode.then(|| Window::new(Arc::clone(&mapping), needed, MODE_BYTES));
        Ok(Self {
            mode: mode.transpose()?,
            mapping,
            queues,
            entries,
        })
    }

    /// Whether the driver wants the cache to write back, as far as somebody has noted it.
    pub(super) fn write_back(&self) -> Result<Option<bool>, MemoryFault> {
        let Some(mode) = &self.mode else {
            return Ok(None);
        };
        let magic: u32 = mode.load(0, Ordering::Acquire)?;
        let write_back: u8 = mode.load(AT_MODE, Ordering::Relaxed)?;
        Ok((u32::from_le(magic) == MODE_MAGIC).then_some(write_back == 1))
    }

    /// Notes it.
    pub(super) fn set_write_back(&self, write_back: bool) -> Result<(), MemoryFault> {
        let Some(mode) = &self.mode else {
            return Ok(());
        };
        mode.store(AT_MODE, u8::from(write_back), Ordering::Relaxed)?;
        mode.store(0, MODE_MAGIC.to_le(), Ordering::Release)
    }

    /// The part of queue `index`; none if it was made for fewer queues.
    pub(super) fn queue(&self, index: u16) -> Option<Window> {
        let bytes = queue_bytes(self.entries);
        let at = u64::from(index) * bytes;
        let inside = index < self.queues;
        inside.then(|| Window::new(Arc::clone(&self.mapping), at, bytes).ok())?
    }
}

/// One queue's part.
#[derive(Debug)]
pub(super) struct InflightQueue {
    window: Window,
    counter: u64,
    last_batch_head: u16,
    /// Written to the used ring, and not unmarked yet.
    batch: Vec<u16>,
}

const AT_VERSION: usize = 8;
const AT_DESC_NUM: usize = 10;
const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED_IDX: usize = 14;

fn entry(head: u16) -> usize {
    HEADER_BYTES + ENTRY_BYTES * usize::from(head)
}

impl InflightQueue {
    /// Begins or takes over the record of a ring with `entries` entries, whose used index is
    /// `used`. Returns also what was under way when it was left, in the order in which it began.
    pub(super) fn open(
        window: Window,
        entries: u16,
        used: u16,
    ) -> Result<(Self, Vec<u16>), InflightFault> {
        let mut this = Self {
            window,
            counter: 0,
            last_batch_head: 0,
            batch: Vec::with_capacity(usize::from(entries)),
        };
        let version: u16 = this.window.load(AT_VERSION, Ordering::Acquire)?;
        let found: u16 = this.window.load(AT_DESC_NUM, Ordering::Relaxed)?;
        match version {
            VERSION if found == 0 || found >= entries => {}
            VERSION => return Err(InflightFault::Entries { found, entries }),
            0 => {}
            other => return Err(InflightFault::Version(other)),
        }
        if version == 0 || found == 0 {
            this.window.store(AT_USED_IDX, used, Ordering::Relaxed)?;
            this.window.store(AT_DESC_NUM, entries, Ordering::Relaxed)?;
            this.window.store(AT_VERSION, VERSION, Ordering::Release)?;
        } else {
            this.finish_batch(entries, used)?;
        }
        let again = this.marked(entries)?;
        Ok((this, again))
    }

    /// Does what is left to do of a batch that was published and not unmarked.
    fn finish_batch(&mut self, entries: u16, used: u16) -> Result<(), MemoryFault> {
        let known: u16 = self.window.load(AT_USED_IDX, Ordering::Relaxed)?;
        self.last_batch_head = self.window.load(AT_LAST_BATCH_HEAD, Ordering::Relaxed)?;
        let mut head = self.last_batch_head;
        // Nobody can have published more than a ring at a time: another number is nonsense.
        let count = used.wrapping_sub(known).min(entries);
        for _ in 0..count {
            if head >= entries {
                break;
            }
            self.window.store(entry(head), 0_u8, Ordering::Release)?;
            head = self.window.load(entry(head) + 6, Ordering::Relaxed)?;
        }
        self.window.store(AT_USED_IDX, used, Ordering::Release)
    }

    fn marked(&mut self, entries: u16) -> Result<Vec<u16>, MemoryFault> {
        let mut found = Vec::new();
        for head in 0..entries {
            let mark: u8 = self.window.load(entry(head), Ordering::Relaxed)?;
            if mark != 0 {
                let counter: u64 = self.window.load(entry(head) + 8, Ordering::Relaxed)?;
                self.counter = self.counter.max(counter);
                found.push((counter, head));
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, head)| head).collect())
    }

    /// Before the request of `head` is started.
    pub(super) fn begin(&mut self, head: u16) -> Result<(), MemoryFault> {
        self.counter = self.counter.wrapping_add(1);
        let at = entry(head);
        self.window.store(at + 8, self.counter, Ordering::Relaxed)?;
        self.window.store(at, 1_u8, Ordering::Release)
    }

    /// Before its answer is written to the used ring.
    pub(super) fn answer(&mut self, head: u16) -> Result<(), MemoryFault> {
        let next = self.last_batch_head;
        self.window
            .store(entry(head) + 6, next, Ordering::Relaxed)?;
        self.last_batch_head = head;
        self.batch.push(head);
        let window = &self.window;
        window.store(AT_LAST_BATCH_HEAD, head, Ordering::Release)
    }

    /// After the used ring's index became `used`.
    pub(super) fn published(&mut self, used: u16) -> Result<(), MemoryFault> {
        for head in self.batch.drain(..) {
            self.window.store(entry(head), 0_u8, Ordering::Release)?;
        }
        self.window.store(AT_USED_IDX, used, Ordering::Release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: u16 = 8;

    fn shared() -> Inflight {
        let (file, bytes) = create(2, ENTRIES).unwrap();
        Inflight::map(file, 0, bytes, 2, ENTRIES).unwrap()
    }

    fn open(shared: &Inflight, used: u16) -> (InflightQueue, Vec<u16>) {
        InflightQueue::open(shared.queue(1).unwrap(), ENTRIES, used).unwrap()
    }

    #[test]
    fn what_was_begun_and_not_answered_is_found_in_order() {
        let shared = shared();
        let (mut first, again) = open(&shared, 40);
        assert!(again.is_empty());
        for head in [5, 1, 7, 2] {
            first.begin(head).unwrap();
        }
        first.answer(1).unwrap();
        first.published(41).unwrap();
        let (mut second, again) = open(&shared, 41);
        assert_eq!(again, [5, 7, 2]);
        // It goes on behind the counters of its predecessor.
        second.begin(0).unwrap();
        assert_eq!(open(&shared, 41).1, [5, 7, 2, 0]);
    }

    #[test]
    fn death_at_each_step_of_a_batch_neither_loses_nor_repeats() {
        // Died before the index was published: all again. After it: the batch is done.
        for (published, expected) in [(false, vec![3, 4, 6]), (true, vec![6])] {
            let shared = shared();
            let (mut first, _) = open(&shared, 65535);
            for head in [3, 4, 6] {
                first.begin(head).unwrap();
            }
            first.answer(4).unwrap();
            first.answer(3).unwrap();
            let used = if published { 1 } else { 65535 };
            assert_eq!(open(&shared, used).1, expected);
            assert_eq!(open(&shared, used).1, expected);
        }
    }

    #[test]
    fn the_mode_of_the_cache_is_kept_where_there_is_room() {
        let (file, bytes) = create(2, ENTRIES).unwrap();
        let map = |bytes| Inflight::map(file.try_clone().unwrap(), 0, bytes, 2, ENTRIES).unwrap();
        assert_eq!(map(bytes).write_back().unwrap(), None);
        for write_back in [false, true] {
            map(bytes).set_write_back(write_back).unwrap();
            assert_eq!(map(bytes).write_back().unwrap(), Some(write_back));
        }
        // As another back end would have made it.
        let other = map(bytes - MODE_BYTES);
        other.set_write_back(false).unwrap();
        assert_eq!(other.write_back().unwrap(), None);
        assert!(other.queue(1).is_some());
        assert_eq!(map(bytes).write_back().unwrap(), Some(true));
    }

    #[test]
    fn nonsense_is_refused_or_ends() {
        assert!(create(0, 8).is_err());
        assert!(create(1, 1025).is_err());
        let (file, bytes) = create(1, 8).unwrap();
        let short = bytes - MODE_BYTES - 64;
        let short = Inflight::map(file.try_clone().unwrap(), 0, short, 1, 8);
        assert!(matches!(short, Err(InflightFault::Short { .. })));
        let shared = Inflight::map(file, 0, bytes, 1, 8).unwrap();
        assert!(shared.queue(1).is_none());
        let window = shared.queue(0).unwrap();
        let bigger = InflightQueue::open(window.clone(), 8, 0);
        assert!(bigger.is_ok());
        assert!(matches!(
            InflightQueue::open(window.clone(), 16, 0),
            Err(InflightFault::Entries { .. })
        ));
        // A list that leads nowhere, and one that never ends.
        window
            .store(AT_LAST_BATCH_HEAD, 999_u16, Ordering::Relaxed)
            .unwrap();
        assert!(InflightQueue::open(window.clone(), 8, 30_000).is_ok());
        window.store(AT_VERSION, 7_u16, Ordering::Relaxed).unwrap();
        assert!(matches!(
            InflightQueue::open(window, 8, 0),
            Err(InflightFault::Version(7))
        ));
    }
}
