//! The guest's memory: what the front end has shared, and how its bytes are reached.
//!
//! The guest and the front end may write there at any time, so nothing of it is ever borrowed: bytes
//! are copied in or out, once. A page that is lost (the file was truncated) is an error of the access.

use crate::bdev::pmem::Guarded;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

/// The system's pages: where mappings may begin in a file. Bytes.
const PAGE_BYTES: u64 = 4096;

/// Why memory was not taken, or not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryFault {
    #[error("{len} bytes at offset {offset} can't be mapped: {source}")]
    Map {
        offset: u64,
        len: u64,
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    #[error("a file of {found} bytes where {needed} are needed")]
    Short { found: u64, needed: u64 },
    #[error("can't look at the file: {0}")]
    File(#[source] std::io::Error),
    #[error("{0} bytes are no length of memory")]
    Length(u64),
    #[error("no more mappings can be guarded: {0}")]
    Guard(#[source] std::io::Error),
    #[error("offset {0} in the file is not a multiple of the page")]
    Offset(u64),
    #[error("{len} bytes at {addr:#x} overlap another region")]
    Overlap { addr: u64, len: u64 },
    #[error("no region of {len} bytes at {addr:#x}")]
    NoRegion { addr: u64, len: u64 },
    #[error("{len} bytes at {addr:#x} are outside the memory")]
    Outside { addr: u64, len: u64 },
    #[error("the memory at {0:#x} is lost")]
    Lost(u64),
}

/// A shared mapping that survives the loss of its file's pages.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Before the map: its guard must be gone first.
    guard: Guarded,
    map: MmapRegion,
    /// The first byte that was asked for is so far into the map: maps begin where pages do.
    skip: usize,
    /// How many were asked for.
    len: usize,
}

/// Bytes of the pages of which a mapping of `file` must consist.
fn page_bytes(file: &File) -> Result<u64, MemoryFault> {
    const HUGETLBFS: i64 = 0x9584_58f6;
    let stat = rustix::fs::fstatfs(file).map_err(|error| MemoryFault::File(error.into()))?;
    let block = u64::try_from(stat.f_bsize).ok();
    let huge = block.filter(|_| stat.f_type == HUGETLBFS);
    Ok(huge
        .filter(|huge| *huge >= PAGE_BYTES)
        .unwrap_or(PAGE_BYTES))
}

impl Mapping {
    /// Maps `len` bytes at `offset` of `file`, which must have them.
    pub(super) fn new(file: File, offset: u64, len: u64) -> Result<Self, MemoryFault> {
        if !offset.is_multiple_of(PAGE_BYTES) {
            return Err(MemoryFault::Offset(offset));
        }
        let needed = offset.checked_add(len).ok_or(MemoryFault::Length(len))?;
        let file_info = file.metadata().map_err(MemoryFault::File)?;
        // A device has no length to look at.
        if file_info.is_file() && file_info.len() < needed {
            let found = file_info.len();
            return Err(MemoryFault::Short { found, needed });
        }
        let page = page_bytes(&file)?;
        Self::of_pages(file, (offset, len), page)
    }

    /// The same, of a file that can be mapped in whole pages of `page` bytes only.
    fn of_pages(file: File, (offset, len): (u64, u64), page: u64) -> Result<Self, MemoryFault> {
        let skip = offset % page;
        let whole = (skip + len).checked_next_multiple_of(page);
        let whole = whole.and_then(|whole| usize::try_from(whole).ok());
        let whole = whole.ok_or(MemoryFault::Length(len))?;
        let map = MmapRegionBuilder::new(whole)
            .with_file_offset(FileOffset::new(file, offset - skip))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|source| MemoryFault::Map {
                offset,
                len,
                source,
            })?;
        let unit = usize::try_from(page).unwrap_or(0);
        let guard = Guarded::new(map.as_ptr().addr(), whole, unit).map_err(MemoryFault::Guard)?;
        Ok(Self {
            guard,
            map,
            // Both are parts of what was mapped.
            skip: usize::try_from(skip).unwrap_or(usize::MAX),
            len: usize::try_from(len).unwrap_or(0),
        })
    }

    fn outside(&self, at: usize, len: usize) -> MemoryFault {
        MemoryFault::Outside {
            addr: at as u64,
            len: len as u64,
        }
    }

    fn check(&self, at: usize, len: usize) -> Result<(), MemoryFault> {
        let checked = self.guard.check(at as u64, len);
        checked.map_err(|_| MemoryFault::Lost(at as u64))
    }

    /// Where in the map `len` bytes at `at` are.
    fn place(&self, at: usize, len: usize) -> Result<usize, MemoryFault> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.skip + at),
            _ => Err(self.outside(at, len)),
        }
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<(), MemoryFault> {
        let place = self.place(at, into.len())?;
        let from = self.map.get_slice(place, into.len());
        from.map_err(|_| self.outside(at, into.len()))?
            .copy_to(into);
        self.check(place, into.len())
    }

    fn write(&self, at: usize, from: &[u8]) -> Result<(), MemoryFault> {
        let place = self.place(at, from.len())?;
        let into = self.map.get_slice(place, from.len());
        into.map_err(|_| self.outside(at, from.len()))?
            .copy_from(from);
        self.check(place, from.len())
    }
}

/// A range of one mapping, for a ring or a table.
#[derive(Clone, Debug)]
pub(super) struct Window {
    mapping: Arc<Mapping>,
    at: usize,
    len: usize,
}

impl Window {
    /// `len` bytes at `at` of `mapping`.
    pub(super) fn new(mapping: Arc<Mapping>, at: u64, len: u64) -> Result<Self, MemoryFault> {
        let outside = || MemoryFault::Outside { addr: at, len };
        let end = at.checked_add(len).ok_or_else(outside)?;
        if end > mapping.len as u64 {
            return Err(outside());
        }
        Ok(Self {
            at: usize::try_from(at).map_err(|_| outside())?,
            len: usize::try_from(len).map_err(|_| outside())?,
            mapping,
        })
    }

    /// Where `len` bytes at `at` of the window are in the mapping.
    fn place(&self, at: usize, len: usize) -> Result<usize, MemoryFault> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.at + at),
            _ => Err(self.mapping.outside(at, len)),
        }
    }

    pub(super) fn load<T: AtomicAccess>(
        &self,
        at: usize,
        order: Ordering,
    ) -> Result<T, MemoryFault> {
        let place = self
            .mapping
            .place(self.place(at, size_of::<T>())?, size_of::<T>())?;
        let slice = self.mapping.map.as_volatile_slice();
        let loaded = slice.load(place, order);
        let loaded = loaded.map_err(|_| self.mapping.outside(at, size_of::<T>()))?;
        self.mapping.check(place, size_of::<T>())?;
        Ok(loaded)
    }

    pub(super) fn store<T: AtomicAccess>(
        &self,
        at: usize,
        value: T,
        order: Ordering,
    ) -> Result<(), MemoryFault> {
        let place = self
            .mapping
            .place(self.place(at, size_of::<T>())?, size_of::<T>())?;
        let slice = self.mapping.map.as_volatile_slice();
        let stored = slice.store(value, place, order);
        stored.map_err(|_| self.mapping.outside(at, size_of::<T>()))?;
        self.mapping.check(place, size_of::<T>())
    }

    pub(super) fn read(&self, at: usize, into: &mut [u8]) -> Result<(), MemoryFault> {
        self.mapping.read(self.place(at, into.len())?, into)
    }

    pub(super) fn write(&self, at: usize, from: &[u8]) -> Result<(), MemoryFault> {
        self.mapping.write(self.place(at, from.len())?, from)
    }
}

/// One piece of the guest's memory.
#[derive(Clone, Debug)]
pub(super) struct Region {
    /// Where the guest sees it.
    pub(super) guest: u64,
    /// Where the front end sees it: rings are named so.
    pub(super) user: u64,
    pub(super) len: u64,
    pub(super) mapping: Arc<Mapping>,
}

/// All of the guest's memory at one time; changes make another.
///
/// Regions are sorted by guest address, and no two share a byte.
#[derive(Clone, Debug, Default)]
pub(super) struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    pub(super) fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// The same memory, and `region`.
    pub(super) fn with(&self, region: Region) -> Result<Self, MemoryFault> {
        let overlap = || MemoryFault::Overlap {
            addr: region.guest,
            len: region.len,
        };
        let end = region.guest.checked_add(region.len).ok_or_else(overlap)?;
        let clash = |r: &Region| region.guest < r.guest + r.len && r.guest < end;
        if self.regions.iter().any(clash) {
            return Err(overlap());
        }
        let mut regions = self.regions.clone();
        regions.push(region);
        regions.sort_by_key(|r| r.guest);
        Ok(Self { regions })
    }

    /// The same memory, without the region that lies there.
    pub(super) fn without(&self, guest: u64, user: u64, len: u64) -> Result<Self, MemoryFault> {
        let is_it = |r: &Region| (r.guest, r.user, r.len) == (guest, user, len);
        let mut regions = self.regions.clone();
        let at = regions.iter().position(is_it);
        regions.remove(at.ok_or(MemoryFault::NoRegion { addr: guest, len })?);
        Ok(Self { regions })
    }

    /// The region that holds `addr`, how far into it, and how many bytes of it follow.
    fn find(&self, addr: u64) -> Option<(&Region, usize, u64)> {
        let behind = self.regions.partition_point(|r| r.guest <= addr);
        let region = self.regions.get(behind.checked_sub(1)?)?;
        let at = addr - region.guest;
        let left = region.len.checked_sub(at).filter(|left| *left > 0)?;
        Some((region, usize::try_from(at).ok()?, left))
    }

    /// Cuts `len` bytes at `addr` where regions meet, and calls `f` with each piece: its mapping,
    /// where in it, and which of the bytes.
    fn pieces(
        &self,
        addr: u64,
        len: usize,
        mut f: impl FnMut(&Mapping, usize, std::ops::Range<usize>) -> Result<(), MemoryFault>,
    ) -> Result<(), MemoryFault> {
        let outside = || MemoryFault::Outside {
            addr,
            len: len as u64,
        };
        let mut done = 0_usize;
        while done < len {
            let from = addr.checked_add(done as u64).ok_or_else(outside)?;
            let (region, at, left) = self.find(from).ok_or_else(outside)?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(len - done);
            f(&region.mapping, at, done..done + count)?;
            done += count;
        }
        Ok(())
    }

    /// Copies from the guest.
    pub(super) fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        self.pieces(addr, into.len(), |mapping, at, part| {
            mapping.read(at, &mut into[part])
        })
    }

    /// Copies to the guest.
    pub(super) fn write(&self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        self.pieces(addr, from.len(), |mapping, at, part| {
            mapping.write(at, &from[part])
        })
    }

    /// Whether all of it is memory.
    pub(super) fn check(&self, addr: u64, len: usize) -> Result<(), MemoryFault> {
        self.pieces(addr, len, |_, _, _| Ok(()))
    }

    /// `len` bytes at the front end's address `user`, in one region.
    pub(super) fn window(&self, user: u64, len: u64) -> Result<Window, MemoryFault> {
        let holds = |r: &&Region| user >= r.user && user - r.user < r.len;
        let region = self.regions.iter().find(holds);
        let region = region.ok_or(MemoryFault::Outside { addr: user, len })?;
        Window::new(Arc::clone(&region.mapping), user - region.user, len)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;

    pub(in crate::target::vhost) fn shared_file(len: u64) -> File {
        let fd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        File::from(fd)
    }

    pub(in crate::target::vhost) fn region(guest: u64, user: u64, len: u64) -> Region {
        let mapping = Mapping::new(shared_file(len), 0, len).unwrap();
        Region {
            guest,
            user,
            len,
            mapping: Arc::new(mapping),
        }
    }

    #[test]
    fn bytes_cross_regions_that_touch_and_no_hole() {
        let memory = GuestMemory::default();
        let memory = memory.with(region(0x3000, 0x9000, 0x1000)).unwrap();
        let memory = memory.with(region(0x2000, 0x7000, 0x1000)).unwrap();
        memory.write(0x2ffe, b"abcd").unwrap();
        let mut bytes = [0; 4];
        memory.read(0x2ffe, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abcd");
        memory
            .window(0x9000, 2)
            .unwrap()
            .read(0, &mut bytes[..2])
            .unwrap();
        assert_eq!(&bytes[..2], b"cd");
        for (addr, len) in [(0x1fff, 2), (0x3fff, 2), (0x4000, 1), (u64::MAX, 4)] {
            let error = memory.check(addr, len).unwrap_err();
            assert!(matches!(error, MemoryFault::Outside { .. }), "{error}");
        }
        assert!(memory.window(0x9fff, 2).is_err());
        assert!(memory.window(u64::MAX, 2).is_err());
    }

    #[test]
    fn regions_do_not_overlap_and_go_by_their_whole_name() {
        let memory = GuestMemory::default()
            .with(region(0x2000, 0, 0x2000))
            .unwrap();
        assert!(memory.with(region(0x3000, 0, 0x1000)).is_err());
        assert!(memory.without(0x2000, 0, 0x1000).is_err());
        assert_eq!(memory.without(0x2000, 0, 0x2000).unwrap().region_count(), 0);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused_and_one_that_shrinks_is_an_error() {
        let file = shared_file(0x2000);
        let short = Mapping::new(file.try_clone().unwrap(), 0x1000, 0x2000);
        assert!(matches!(short, Err(MemoryFault::Short { .. })));
        assert!(matches!(
            Mapping::new(file.try_clone().unwrap(), 512, 0x1000),
            Err(MemoryFault::Offset(512))
        ));
        assert!(matches!(
            Mapping::new(file.try_clone().unwrap(), 0x1000, u64::MAX - 0xfff),
            Err(MemoryFault::Length(_))
        ));
        let mapping = Mapping::new(file.try_clone().unwrap(), 0, 0x2000).unwrap();
        mapping.write(0x1000, b"x").unwrap();
        file.set_len(0x1000).unwrap();
        assert!(matches!(
            mapping.read(0x1000, &mut [0]),
            Err(MemoryFault::Lost(0x1000))
        ));
        mapping.write(0, b"y").unwrap();
    }

    /// The same without huge pages, of which a machine may have none: what is written to the region is in its
    /// part of the file, whichever way it is reached.
    #[test]
    fn what_begins_in_the_middle_of_a_large_page_is_in_its_place() {
        use std::os::unix::fs::FileExt;
        const LARGE: u64 = 2 << 20;
        let file = shared_file(2 * LARGE);
        let place = (LARGE - 0x1000, 0x3000);
        let mapping = Mapping::of_pages(file.try_clone().unwrap(), place, LARGE).unwrap();
        let mapping = Arc::new(mapping);
        mapping.write(0xfff, b"abc").unwrap();
        let window = Window::new(Arc::clone(&mapping), 0x2000, 0x1000).unwrap();
        window.write(0xffd, b"def").unwrap();
        window.store(8, 0x1234_u16, Ordering::Relaxed).unwrap();
        let at = |at: u64| {
            let mut bytes = [0; 3];
            file.read_exact_at(&mut bytes, place.0 + at).unwrap();
            bytes
        };
        assert_eq!((&at(0xfff), &at(0x2ffd)), (b"abc", b"def"));
        assert_eq!(at(0x2008), [0x34, 0x12, 0]);
        let mut bytes = [0; 3];
        mapping.read(0x2ffd, &mut bytes).unwrap();
        assert_eq!(&bytes, b"def");
        assert_eq!(window.load::<u16>(8, Ordering::Relaxed).unwrap(), 0x1234);
        // The page goes on, the region does not.
        assert!(mapping.read(0x2ffe, &mut bytes).is_err());
        assert!(Window::new(mapping, 0, 0x3001).is_err());
    }

    /// Regions of a guest's memory begin anywhere in its file, mappings of huge pages do not.
    #[test]
    fn a_region_may_begin_in_the_middle_of_a_huge_page() {
        const HUGE: u64 = 2 << 20;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let Ok(fd) = rustix::fs::memfd_create("huge guest", flags) else {
            return;
        };
        rustix::fs::ftruncate(&fd, 2 * HUGE).unwrap();
        let file = File::from(fd);
        let len = 0x3000;
        let mapping = Mapping::new(file, HUGE - 0x1000, len).unwrap();
        assert!(Window::new(Arc::new(mapping), 0, len + 1).is_err());
    }
}
