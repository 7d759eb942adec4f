//! Memory for I/O: owned buffers that can be split between lanes, and views of stable memory.
#![expect(
    unsafe_code,
    reason = "disjoint parts of one aligned allocation, shared by count"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every buffer: enough for `O_DIRECT` everywhere.
const ALIGN: usize = 4096;

struct Allocation {
    base: NonNull<u8>,
    layout: Layout,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this very layout, and the last `IoBuf` that
        // points into it is gone, since each holds the `Arc` around `self`.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

// SAFETY: an allocation is only memory; who may touch which part of it is decided by the `IoBuf`s,
// whose ranges are disjoint.
unsafe impl Send for Allocation {}
// SAFETY: as above; `Allocation` itself offers no access to the bytes.
unsafe impl Sync for Allocation {}

/// Memory that its holder alone may read and write. Page-aligned when made; can be split in two and
/// joined again, so that the lanes that serve parts of a request each own their part.
pub struct IoBuf {
    start: NonNull<u8>,
    len: usize,
    owner: Arc<Allocation>,
}

// SAFETY: an `IoBuf` is the only access to its bytes (construction and `split_off` keep ranges
// disjoint), so moving it to another thread moves the access.
unsafe impl Send for IoBuf {}
// SAFETY: `&IoBuf` gives `&[u8]` only.
unsafe impl Sync for IoBuf {}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl IoBuf {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let size = len.max(1).next_multiple_of(ALIGN);
        let Ok(layout) = Layout::from_size_align(size, ALIGN) else {
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout's size is at least `ALIGN`, never zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        Self {
            start: base,
            len,
            owner: Arc::new(Allocation { base, layout }),
        }
    }

    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Cuts it at `at`: `self` keeps the front, the rest is returned.
    ///
    /// # Panics
    /// If `at` is behind the end.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split at {at} of {}", self.len);
        // SAFETY: `at` is within the part that `self` owns, so the result points into (or just
        // behind) the same allocation.
        let start = unsafe { self.start.add(at) };
        let rest = Self {
            start,
            len: self.len - at,
            owner: Arc::clone(&self.owner),
        };
        self.len = at;
        rest
    }

    /// Undoes a split: `rest` must begin where `self` ends, in the same allocation.
    ///
    /// # Errors
    /// `rest` itself if it does not.
    pub fn join(&mut self, rest: Self) -> Result<(), Self> {
        // SAFETY: one past the end of the owned part is within or just behind the allocation.
        let end = unsafe { self.start.add(self.len) };
        if end != rest.start || !Arc::ptr_eq(&self.owner, &rest.owner) {
            return Err(rest);
        }
        self.len += rest.len;
        Ok(())
    }

    /// How many bytes could be held from the start of this buffer if it is the only part of its
    /// allocation; otherwise its length.
    #[must_use]
    pub fn capacity(&self) -> usize {
        if self.start == self.owner.base && Arc::strong_count(&self.owner) == 1 {
            self.owner.layout.size()
        } else {
            self.len
        }
    }

    /// Sets the length, within [`IoBuf::capacity`].
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "length {len} above capacity {}",
            self.capacity()
        );
        self.len = len;
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` is initialised memory of a live allocation that nobody else
        // accesses while `self` exists.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other view of this part.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Memory that stays mapped and unchanged while the view lives.
#[derive(Clone)]
pub struct MemView {
    start: NonNull<u8>,
    len: usize,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the maker promised (see `MemView::new`) that nobody writes there while the view lives, so
// any thread may read.
unsafe impl Send for MemView {}
// SAFETY: as above.
unsafe impl Sync for MemView {}

impl fmt::Debug for MemView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemView")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl MemView {
    /// A view of `len` bytes from `start`.
    ///
    /// # Safety
    /// The bytes are readable as long as `owner` lives, and nobody writes them while this view or a
    /// clone of it lives.
    #[must_use]
    pub unsafe fn new(start: NonNull<u8>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { start, len, owner }
    }

    /// A view of a buffer of its own.
    #[must_use]
    pub fn from_buf(buf: IoBuf) -> Self {
        let (start, len) = (buf.start, buf.len);
        Self {
            start,
            len,
            owner: Arc::new(buf),
        }
    }
}

impl Deref for MemView {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let _ = &self.owner;
        // SAFETY: promised by the maker of the view.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// Buffers that are used again, by size class: no allocation per I/O once warm. For one reactor.
#[derive(Debug, Default)]
pub struct BufPool {
    classes: [Vec<IoBuf>; CLASSES],
}

/// Classes of 4 KiB << n; larger buffers are not kept.
const CLASSES: usize = 11;
/// How many bytes of free buffers a class may keep.
const CLASS_BYTES_MAX: usize = 16 << 20;

impl BufPool {
    fn class_of(len: usize) -> usize {
        let pages = len.max(1).div_ceil(ALIGN).next_power_of_two();
        pages.trailing_zeros() as usize
    }

    /// A buffer of `len` bytes with undefined content.
    pub fn take(&mut self, len: usize) -> IoBuf {
        let class = Self::class_of(len);
        let mut buf = match self.classes.get_mut(class).and_then(Vec::pop) {
            Some(buf) => buf,
            None if class < CLASSES => IoBuf::zeroed(ALIGN << class),
            None => IoBuf::zeroed(len),
        };
        buf.set_len(len);
        buf
    }

    /// Takes a buffer back. One that is still split, or of no class, is freed instead.
    pub fn give(&mut self, mut buf: IoBuf) {
        let capacity = buf.capacity();
        let class = Self::class_of(capacity);
        if capacity < ALIGN || capacity != ALIGN << class.min(CLASSES) {
            return;
        }
        if let Some(free) = self.classes.get_mut(class)
            && (free.len() + 1) * capacity <= CLASS_BYTES_MAX.max(capacity)
        {
            buf.set_len(capacity);
            free.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_parts_join_again_in_order_only() {
        let mut front = IoBuf::copy_of(b"abcdef");
        let rest = front.split_off(2);
        assert_eq!((&*front, &*rest), (&b"ab"[..], &b"cdef"[..]));
        let other = IoBuf::copy_of(b"zz");
        let other = front.join(other).unwrap_err();
        assert_eq!(&*other, b"zz");
        front.join(rest).unwrap();
        assert_eq!(&*front, b"abcdef");
    }

    #[test]
    fn pool_gives_the_same_memory_again() {
        let mut pool = BufPool::default();
        let buf = pool.take(5000);
        let address = buf.as_ptr();
        pool.give(buf);
        let again = pool.take(8192);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again.len(), 8192);
    }
}
