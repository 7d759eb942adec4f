//! A medium's bytes in our address space.
//!
//! Ordinary mappings are memmap2's; it has no `MAP_SYNC`, so those come from rustix. A mapping keeps
//! its file, and with it the lock, until the last view of it is gone.
#![expect(
    unsafe_code,
    reason = "maps files and anonymous memory and copies through raw pointers"
)]

use super::persist::Persist;
use super::sigbus::Guarded;
use crate::bdev::{MemView, PmemError};
use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

/// What a huge page is on x86-64 and most others; where anonymous memory is aligned to.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Pages of which the kernel is asked at once.
const PAGES_ASKED: usize = 1 << 16;

/// What keeps the address range mapped, until it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "kept to be dropped")]
enum Owner {
    Memmap(MmapRaw),
    Sync(SyncMap),
}

/// Mapped through rustix.
#[derive(Debug)]
struct SyncMap {
    base: *mut c_void,
    bytes: usize,
}

impl Drop for SyncMap {
    fn drop(&mut self) {
        // SAFETY: mapped by `file_sync` with this base and length; every view holds an `Arc` around
        // the `Mapping`, so none is left. It can't fail for a range that is mapped.
        let _ = unsafe { rustix::mm::munmap(self.base, self.bytes) };
    }
}

/// Mapped memory, readable and writable, from a page boundary on.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    /// Before `owner`: the guard must go before the range is unmapped, and maybe somebody else's.
    guard: Guarded,
    #[expect(dead_code, reason = "kept to be dropped")]
    owner: Owner,
    file: Option<File>,
}

// SAFETY: a mapping is only memory; it belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: it is accessed through raw pointers only; who may touch which part meanwhile is the
// business of the medium's users (`Pmem::view`, `Pmem::store`), as with any device.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Guards what has been mapped. `page`: bytes of its pages, 0 for the system's.
    fn guarded(
        base: *mut u8,
        bytes: usize,
        page: usize,
        owner: Owner,
        file: Option<File>,
    ) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            base,
            bytes,
            guard: Guarded::new(base.as_ptr() as usize, bytes, page)?,
            owner,
            file,
        })
    }

    /// Maps the first `bytes` of `file`, shared. `page`: bytes of its pages, 0 for the system's.
    ///
    /// # Errors
    /// What mmap says, or the SIGBUS guard.
    pub(super) fn file(file: File, bytes: usize, page: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(bytes).map_raw(&file)?;
        Self::guarded(
            map.as_mut_ptr(),
            bytes,
            page,
            Owner::Memmap(map),
            Some(file),
        )
    }

    /// Maps the first `bytes` of `file` for reading only: a store would end the process.
    ///
    /// # Errors
    /// As [`Mapping::file`].
    pub(super) fn file_to_read(file: File, bytes: usize, page: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(bytes).map_raw_read_only(&file)?;
        Self::guarded(
            map.as_mut_ptr(),
            bytes,
            page,
            Owner::Memmap(map),
            Some(file),
        )
    }

    /// Maps the first `bytes` of `file` such that a store that has left the CPU's caches is durable
    /// without a system call. Hands the file back with the reason if it can't be mapped so.
    ///
    /// # Errors
    /// What mmap says; `EOPNOTSUPP` or `EINVAL` where the file is not on a DAX file system.
    pub(super) fn file_sync(file: File, bytes: usize) -> Result<Self, (File, io::Error)> {
        let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses disturbs no other.
        let mapped =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, flags, &file, 0) };
        let base = match mapped {
            Ok(base) => base,
            Err(errno) => return Err((file, errno.into())),
        };
        let owner = Owner::Sync(SyncMap { base, bytes });
        match Self::guarded(base.cast(), bytes, 0, owner, None) {
            Ok(mapping) => Ok(Self {
                file: Some(file),
                ..mapping
            }),
            Err(error) => Err((file, error)),
        }
    }

    /// `bytes` of anonymous memory, zeroed, from a boundary of huge pages on.
    ///
    /// # Errors
    /// What mmap says.
    pub(super) fn anonymous(bytes: usize) -> io::Result<Self> {
        let with_slack = bytes.saturating_add(HUGE_PAGE);
        let map = MmapRaw::from(MmapOptions::new().len(with_slack).map_anon()?);
        let start = map.as_mut_ptr();
        let skew = (HUGE_PAGE - start as usize % HUGE_PAGE) % HUGE_PAGE;
        // SAFETY: `skew` is less than the slack.
        let base = unsafe { start.add(skew) };
        Self::guarded(base, bytes, 0, Owner::Memmap(map), None)
    }

    /// How many bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The file that is mapped, unless anonymous.
    pub(super) fn file_ref(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Unmaps and gives the same open file back, lock included.
    ///
    /// # Errors
    /// If the descriptor can't be duplicated.
    pub(super) fn into_file(self) -> io::Result<File> {
        match &self.file {
            Some(file) => file.try_clone(),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The address, as `/proc/self/smaps` shows it.
    pub(super) fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Asks for huge pages. The kernel may refuse, and nothing is lost but speed.
    pub(super) fn advise_huge(&self) {
        // SAFETY: a hint on our own mapping; changes no content.
        let _ = unsafe {
            rustix::mm::madvise(self.base.as_ptr().cast(), self.bytes, Advice::LinuxHugepage)
        };
    }

    /// Gives every page its memory and its page-table entry now rather than at its first store.
    ///
    /// # Errors
    /// `ENOMEM`, `EFAULT` or `EHWPOISON` of the memory; `EINVAL` of a kernel before 5.14.
    pub(super) fn populate(&self) -> io::Result<()> {
        // SAFETY: as if every page were written with what it holds already.
        unsafe {
            rustix::mm::madvise(
                self.base.as_ptr().cast(),
                self.bytes,
                Advice::LinuxPopulateWrite,
            )?;
        }
        Ok(())
    }

    /// Drops our page-table entries, so that the kernel can drop the file's clean pages. Reads
    /// fetch them again from the file.
    ///
    /// # Errors
    /// What madvise says. Refused (`EINVAL`) for anonymous memory, whose content would be lost.
    pub(super) fn forget_pages(&self) -> io::Result<()> {
        if self.file.is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the mapping is a shared one of a file: its pages, dirty ones included, stay in
        // the page cache and come back at the next access.
        unsafe {
            rustix::mm::madvise(self.base.as_ptr().cast(), self.bytes, Advice::LinuxDontNeed)?;
        }
        Ok(())
    }

    /// How many of the file's pages the kernel has in memory, as far as it tells.
    ///
    /// # Errors
    /// What mincore says.
    pub(super) fn pages_in_memory(&self) -> io::Result<u64> {
        // SAFETY: asks for a constant.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| io::ErrorKind::Unsupported)?;
        let mut seen = vec![0_u8; PAGES_ASKED];
        let mut count = 0;
        let mut at = 0;
        while at < self.bytes {
            let len = (self.bytes - at).min(PAGES_ASKED * page);
            let pages = len.div_ceil(page);
            // SAFETY: the range is inside our mapping, begins on a page, and `seen` has a byte for
            // each of its pages. Nothing is read or changed.
            let result = unsafe {
                libc::mincore(
                    self.base.as_ptr().add(at).cast(),
                    len,
                    seen.as_mut_ptr().cast(),
                )
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            let asked = seen.iter().take(pages);
            count += asked.filter(|&&state| state & 1 != 0).count() as u64;
            at += len;
        }
        Ok(count)
    }

    /// Where `len` bytes from `at` on begin. A range that leaves the medium is our own bug.
    fn at(&self, at: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(at)
            .ok()
            .filter(|at| at.checked_add(len).is_some_and(|end| end <= self.bytes));
        assert!(
            offset.is_some(),
            "{len} bytes at {at:#x} leave a medium of {:#x} bytes",
            self.bytes
        );
        // SAFETY: just checked to be inside the mapping, or at its end with nothing behind.
        unsafe { self.base.as_ptr().add(offset.unwrap_or(0)) }
    }

    /// Whether all that was accessed in a range until now was of the medium, and not the guard's
    /// replacement of a page that is lost.
    ///
    /// # Errors
    /// [`PmemError::Poison`] if not.
    pub(super) fn check(&self, at: u64, len: usize) -> Result<(), PmemError> {
        self.guard.check(at, len)
    }

    /// How many bytes are known to be lost.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.guard.lost_bytes()
    }

    /// Stores `src` at `at`.
    ///
    /// # Errors
    /// [`PmemError::Poison`].
    pub(super) fn store(&self, persist: &Persist, at: u64, src: &[u8]) -> Result<(), PmemError> {
        let dst = self.at(at, src.len());
        // SAFETY: `at` has checked the range; pages, and so lines, are mapped as a whole. `src` is
        // not of this mapping, of which no `&[u8]` exists where somebody may store (`MemView::new`).
        unsafe { persist.store(dst, src) };
        self.check(at, src.len())
    }

    /// Stores `src` at `at`, ordered by the next barrier only.
    ///
    /// # Errors
    /// [`PmemError::Poison`].
    pub(super) fn store_data(
        &self,
        persist: &Persist,
        at: u64,
        src: &[u8],
    ) -> Result<(), PmemError> {
        let dst = self.at(at, src.len());
        // SAFETY: as in `store`.
        unsafe { persist.store_data(dst, src) };
        self.check(at, src.len())
    }

    /// As [`Mapping::store_data`], and returns the CRC-32C.
    ///
    /// # Errors
    /// [`PmemError::Poison`].
    pub(super) fn store_data_crc(
        &self,
        persist: &Persist,
        at: u64,
        src: &[u8],
    ) -> Result<u32, PmemError> {
        let dst = self.at(at, src.len());
        // SAFETY: as in `store`.
        let crc = unsafe { persist.store_data_crc(dst, src) };
        self.check(at, src.len())?;
        Ok(crc)
    }

    /// Copies from `at` to `dst`.
    ///
    /// # Errors
    /// [`PmemError::Poison`].
    pub(super) fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        let src = self.at(at, dst.len());
        // SAFETY: `at` has checked the range; `dst` is exclusive memory of the caller.
        unsafe { std::ptr::copy_nonoverlapping(src, dst.as_mut_ptr(), dst.len()) };
        self.check(at, dst.len())
    }

    /// Writes back the lines of `len` bytes at `at`.
    pub(super) fn write_back(&self, persist: &Persist, at: u64, len: usize) {
        let start = self.at(at, len);
        // SAFETY: `at` has checked the range; lines are mapped as a whole.
        unsafe { persist.write_back(start, len) };
    }

    /// A view of `len` bytes at `at`, which keeps the mapping.
    ///
    /// # Errors
    /// [`PmemError::Poison`] if some are known to be lost.
    pub(super) fn view(self: &Arc<Self>, at: u64, len: usize) -> Result<MemView, PmemError> {
        let start = self.at(at, len);
        self.check(at, len)?;
        // SAFETY: an address inside a mapping is not null.
        let start = unsafe { NonNull::new_unchecked(start) };
        let owner = Arc::clone(self);
        // SAFETY: the bytes stay mapped as long as `owner` lives, and the caller of `Pmem::view`
        // sees to it that nobody stores there meanwhile. A page that is lost meanwhile becomes zero
        // when somebody reads it, which `check` tells: until then its bytes had no value to anybody.
        Ok(unsafe { MemView::new(start, len, owner) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::pmem::{CopyKernel, FlushMethod};

    fn persist() -> Persist {
        Persist::new(CopyKernel::detect(), FlushMethod::None)
    }

    #[test]
    fn anonymous_memory_starts_on_a_huge_page_and_keeps_what_is_stored() {
        let map = Mapping::anonymous(3 * HUGE_PAGE + 4096).unwrap();
        assert_eq!(map.address() % HUGE_PAGE, 0);
        let end = 3 * 2_097_152 + 4096 - 5;
        map.store(&persist(), end, b"hello").unwrap();
        let mut back = [0; 5];
        map.load(end, &mut back).unwrap();
        assert_eq!(&back, b"hello");
        assert!(map.forget_pages().is_err());
    }

    #[test]
    #[should_panic(expected = "leave a medium")]
    fn a_store_that_leaves_the_medium_is_a_bug() {
        let map = Mapping::anonymous(8192).unwrap();
        let _ = map.store(&persist(), 8190, b"abc");
    }

    #[test]
    #[should_panic(expected = "leave a medium")]
    fn a_range_that_overflows_is_a_bug() {
        let map = Mapping::anonymous(8192).unwrap();
        let _ = map.load(u64::MAX, &mut [0; 2]);
    }

    #[test]
    fn a_view_outlives_the_mapping_that_gave_it() {
        let map = Arc::new(Mapping::anonymous(8192).unwrap());
        map.store(&persist(), 100, b"still here").unwrap();
        let view = map.view(100, 10).unwrap();
        drop(map);
        assert_eq!(&*view, b"still here");
    }
}
