//! Descriptor chains: from a head to checked lists of segments.

use super::guest_mem::{GuestMemory, MemoryFault, Window};
use crate::wire::virtio::{Descriptor, desc_flag};
use zerocopy::IntoBytes;

/// Data segments of one request, as the configuration says.
pub(super) const SEGMENTS_MAX: u32 = 126;
/// Segments of a chain, header and status included: what a request of the longest kind needs. So many
/// may be in an indirect table whatever the size of the ring. It bounds the time that a chain takes, and
/// the memory that each request under way keeps.
const CHAIN_MAX: u32 = SEGMENTS_MAX + 2;

/// Why a chain is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainFault {
    #[error("descriptor {index} of a table of {count}")]
    Index { index: u32, count: u32 },
    #[error("more than {0} descriptors")]
    TooLong(u32),
    #[error("more than {CHAIN_MAX} segments")]
    Segments,
    #[error("an indirect table of {0} bytes")]
    TableLength(u32),
    #[error("an indirect table where there may be none")]
    Indirect,
    #[error("memory to read behind memory to write")]
    Order,
    #[error(transparent)]
    Memory(#[from] MemoryFault),
}

/// Guest memory of one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) addr: u64,
    pub(super) len: u32,
}

/// Segments one behind the other. All are memory.
#[derive(Debug, Default)]
pub(super) struct Segments {
    list: Vec<Segment>,
    bytes: u64,
}

impl Segments {
    fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    fn push(&mut self, segment: Segment) {
        self.list.push(segment);
        self.bytes += u64::from(segment.len);
    }

    /// How many there are.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Calls `f` for each run of the `len` bytes from `skip`: its address, and which of the bytes.
    fn runs(
        &self,
        mut skip: u64,
        len: usize,
        mut f: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), MemoryFault>,
    ) -> Result<(), MemoryFault> {
        let mut done = 0;
        for segment in &self.list {
            let own = u64::from(segment.len);
            if skip >= own {
                skip -= own;
                continue;
            }
            let left = usize::try_from(own - skip).unwrap_or(usize::MAX);
            let count = left.min(len - done);
            // Checked when it was pushed, so the address does not overflow.
            f(segment.addr + skip, done..done + count)?;
            skip = 0;
            done += count;
            if done == len {
                return Ok(());
            }
        }
        match done == len {
            true => Ok(()),
            false => Err(MemoryFault::Outside {
                addr: self.bytes,
                len: len as u64,
            }),
        }
    }

    /// Copies the bytes from `skip` on, which there must be.
    pub(super) fn read(
        &self,
        memory: &GuestMemory,
        skip: u64,
        into: &mut [u8],
    ) -> Result<(), MemoryFault> {
        self.runs(skip, into.len(), |addr, part| {
            memory.read(addr, &mut into[part])
        })
    }

    /// Stores `from` over the bytes from `skip` on, which there must be.
    pub(super) fn write(
        &self,
        memory: &GuestMemory,
        skip: u64,
        from: &[u8],
    ) -> Result<(), MemoryFault> {
        self.runs(skip, from.len(), |addr, part| {
            memory.write(addr, &from[part])
        })
    }
}

/// Where descriptors are read from.
enum Table<'a> {
    Ring(&'a Window),
    Indirect(&'a GuestMemory, u64),
}

impl Table<'_> {
    fn read(&self, index: u32) -> Result<Descriptor, MemoryFault> {
        let mut found = Descriptor::default();
        let into = found.as_mut_bytes();
        match self {
            Self::Ring(window) => window.read(index as usize * Descriptor::BYTES, into)?,
            // The table was checked as a whole, so the address does not overflow.
            Self::Indirect(memory, at) => memory.read(at + u64::from(index) * 16, into)?,
        }
        Ok(found)
    }
}

/// What a chain consists of. Used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// What the device reads.
    pub(super) readable: Segments,
    /// What it writes.
    pub(super) writable: Segments,
}

impl Chain {
    /// Follows the chain that starts at `head` of a ring with `count` descriptors. Each is read
    /// once; what is in `self` afterwards does not change any more.
    ///
    /// # Errors
    /// Then `self` holds nothing of use.
    pub(super) fn follow(
        &mut self,
        table: &Window,
        count: u16,
        head: u16,
        memory: &GuestMemory,
        indirect: bool,
    ) -> Result<(), ChainFault> {
        self.readable.clear();
        self.writable.clear();
        let ring = Table::Ring(table);
        let count = u32::from(count);
        let Some(found) = self.walk(&ring, count, u32::from(head), memory)? else {
            return Ok(());
        };
        let len = found.len.get();
        let entries = len / 16;
        if !indirect || found.flags.get() & desc_flag::NEXT != 0 {
            return Err(ChainFault::Indirect);
        }
        if !len.is_multiple_of(16) || entries == 0 || entries > count.max(CHAIN_MAX) {
            return Err(ChainFault::TableLength(len));
        }
        let at = found.addr.get();
        memory.check(at, len as usize)?;
        match self.walk(&Table::Indirect(memory, at), entries, 0, memory)? {
            None => Ok(()),
            Some(_) => Err(ChainFault::Indirect),
        }
    }

    /// Follows one table to the end of the chain, or to an indirect descriptor.
    fn walk(
        &mut self,
        table: &Table<'_>,
        count: u32,
        head: u32,
        memory: &GuestMemory,
    ) -> Result<Option<Descriptor>, ChainFault> {
        let mut index = head;
        // A chain has each descriptor once at most: whoever needs more goes round in circles.
        for _ in 0..count {
            if index >= count {
                return Err(ChainFault::Index { index, count });
            }
            let found = table.read(index)?;
            let flags = found.flags.get();
            if flags & desc_flag::INDIRECT != 0 {
                return Ok(Some(found));
            }
            self.add(&found, memory)?;
            if flags & desc_flag::NEXT == 0 {
                return Ok(None);
            }
            index = u32::from(found.next.get());
        }
        Err(ChainFault::TooLong(count))
    }

    fn add(&mut self, found: &Descriptor, memory: &GuestMemory) -> Result<(), ChainFault> {
        let segment = Segment {
            addr: found.addr.get(),
            len: found.len.get(),
        };
        memory.check(segment.addr, segment.len as usize)?;
        if self.readable.list.len() + self.writable.list.len() >= CHAIN_MAX as usize {
            return Err(ChainFault::Segments);
        }
        if found.flags.get() & desc_flag::WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.list.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(ChainFault::Order);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
