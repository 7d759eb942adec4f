//! Anonymous memory that several reactors read and write at once: the content of a RAM disk.
//!
//! No Rust reference to these bytes is ever made: they are copied in and out through raw pointers.
//! Two I/Os that overlap in range and time may mix their bytes, as on any disk; that is their
//! clients' business. It can do no more harm than that: the bytes come from `mmap`, the compiler
//! knows no object there and can assume nothing of their values, every bit pattern is a valid `u8`,
//! and nothing here decides anything by what it has read.
#![expect(
    unsafe_code,
    reason = "one anonymous mapping, copied in and out through raw pointers"
)]

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::ptr::{self, NonNull};

/// Size and alignment of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// A fixed number of bytes, zero at first, shared by all threads.
#[derive(Debug)]
pub(super) struct SharedMem {
    /// The first byte in use; aligned to `HUGE_PAGE`.
    base: NonNull<u8>,
    len: usize,
    /// What was mapped: `base..base + len` lies inside.
    map: NonNull<u8>,
    map_len: usize,
    huge_pages: bool,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is unmapped by `drop` only.
unsafe impl Send for SharedMem {}
// SAFETY: all access through `&self` is by raw copies; see the head of this file for what happens
// when they overlap.
unsafe impl Sync for SharedMem {}

impl SharedMem {
    /// Maps `len` zero bytes, in huge pages where the kernel gives them. Memory is taken from the
    /// system when a page is first written.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` if `len` is 0 or does not fit the address space.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let map_len = len
            .checked_next_multiple_of(HUGE_PAGE)
            .and_then(|whole| whole.checked_add(HUGE_PAGE))
            .filter(|_| len > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at a place that the kernel chooses disturbs nobody.
        let map = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let map = NonNull::new(map.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let skip = map.as_ptr().align_offset(HUGE_PAGE);
        assert!(
            skip < HUGE_PAGE,
            "aligning {map:?} would skip {skip:#x} bytes"
        );
        // SAFETY: `skip` is below `HUGE_PAGE`, by which the mapping is longer than what we use.
        let base = unsafe { map.add(skip) };
        // SAFETY: within the mapping; the advice changes no content.
        let advised = unsafe {
            madvise(
                base.as_ptr().cast(),
                map_len - HUGE_PAGE,
                Advice::LinuxHugepage,
            )
        };
        Ok(Self {
            base,
            len,
            map,
            map_len,
            huge_pages: advised.is_ok(),
        })
    }

    /// Whether the kernel was willing to use huge pages here.
    pub(super) fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// The address of `len` bytes at `at`, which must be inside: our callers have admitted the I/O.
    fn place(&self, at: u64, len: usize) -> *mut u8 {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {at:#x} leave a memory of {:#x}",
            self.len
        );
        // SAFETY: `at..at + len` is inside the mapping, as just checked.
        unsafe { self.base.add(at).as_ptr() }
    }

    /// Copies from `at` into `dst`.
    pub(super) fn read(&self, at: u64, dst: &mut [u8]) {
        let from = self.place(at, dst.len());
        // SAFETY: `place` has checked the bounds; the mapping lives as long as `self`; `dst` is
        // ordinary memory, so it does not overlap the mapping, of which no reference exists.
        unsafe { ptr::copy_nonoverlapping(from, dst.as_mut_ptr(), dst.len()) };
    }

    /// Copies `src` to `at`.
    pub(super) fn write(&self, at: u64, src: &[u8]) {
        let to = self.place(at, src.len());
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) };
    }

    /// Makes `len` bytes at `at` zero. Whole huge pages are given back to the system, which is
    /// cheaper than clearing them; nothing was reserved for them in the first place.
    pub(super) fn zero(&self, at: u64, len: usize) {
        let start = self.place(at, len);
        let head = start.align_offset(HUGE_PAGE).min(len);
        let whole = (len - head) / HUGE_PAGE * HUGE_PAGE;
        // SAFETY: `head <= len`, and `place` has checked `start..start + len`.
        let middle = unsafe { start.add(head) };
        // SAFETY: `middle..middle + whole` is page-aligned and inside the mapping, which is
        // anonymous and private: its pages read as zeroes afterwards.
        let dropped =
            whole > 0 && unsafe { madvise(middle.cast(), whole, Advice::LinuxDontNeed) }.is_ok();
        // SAFETY: both parts are inside `start..start + len`, as checked by `place`.
        unsafe {
            if dropped {
                ptr::write_bytes(start, 0, head);
                ptr::write_bytes(middle.add(whole), 0, len - head - whole);
            } else {
                ptr::write_bytes(start, 0, len);
            }
        }
    }
}

impl Drop for SharedMem {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and `&mut self` says that nobody copies from it any more. It
        // can't fail for a range that `mmap` returned.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_clears_head_whole_pages_and_tail_and_nothing_else() {
        let len = 4 * HUGE_PAGE;
        let mem = SharedMem::new(len).unwrap();
        mem.write(0, &vec![0xaa; len]);
        let (at, count) = (HUGE_PAGE - 512, 2 * HUGE_PAGE + 1024);
        mem.zero(at as u64, count);
        let mut all = vec![1; len];
        mem.read(0, &mut all);
        assert!(all[..at].iter().all(|b| *b == 0xaa));
        assert!(all[at..at + count].iter().all(|b| *b == 0));
        assert!(all[at + count..].iter().all(|b| *b == 0xaa));
    }

    #[test]
    #[should_panic(expected = "leave a memory")]
    fn access_behind_the_end_is_our_bug() {
        let mem = SharedMem::new(4096).unwrap();
        mem.write(4095, &[0, 0]);
    }

    #[test]
    fn no_memory_of_length_zero() {
        assert_eq!(
            SharedMem::new(0).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
