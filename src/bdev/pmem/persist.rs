//! How bytes reach a mapped medium: copy kernels, cache-line write-back and the store fence.
//!
//! What every kernel promises:
//! - a whole aligned 8-byte word of the target is stored by one instruction, never torn;
//! - whole cache lines of bulk data bypass the cache, so they need no write-back, only a fence;
//! - the lines that are touched by ordinary stores are written back where the medium wants it;
//! - when a `store` returns, it is ordered before whatever the thread stores next: non-temporal
//!   stores are weakly ordered, so a fence follows them at once;
//! - `store_data` has no fence: its bytes are seen by this thread at once, by others and by the
//!   medium behind the next barrier. So the write buffers drain while the thread does other things.
#![expect(
    unsafe_code,
    reason = "non-temporal stores and cache-line write-back on a raw mapping"
)]

use serde::Serialize;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Bytes of a cache line on every CPU whose write-back instructions we know.
pub(super) const LINE: usize = 64;
/// Whole lines from which bulk stores pay where lines must be written back anyway.
const BULK_LINES_FLUSHED: usize = 2;
/// Whole lines from which bulk stores pay on a medium that is happy with cached data.
const BULK_LINES_CACHED: usize = 8;
/// Bytes that are checksummed while the cache is hot, then stored.
const CRC_BLOCK: usize = 4096;

/// How stores to a medium become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlushMethod {
    /// Cache-line write-back that keeps the line.
    Clwb,
    /// Cache-line flush, weakly ordered.
    Clflushopt,
    /// Cache-line flush, the oldest kind.
    Clflush,
    /// fdatasync of the file.
    Msync,
    /// Not at all: the medium is volatile.
    None,
}

impl FlushMethod {
    /// The best cache-line instruction of this CPU, if we know one.
    pub(super) fn of_this_cpu() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            x86::flush_method()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            None
        }
    }
}

/// Which instructions copy bulk data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyKernel {
    /// 64-byte non-temporal stores.
    Avx512,
    /// 32-byte non-temporal stores.
    Avx2,
    /// 16-byte non-temporal stores; every x86-64 has them.
    Sse2,
    /// Ordinary 8-byte stores, on any CPU.
    Portable,
}

impl CopyKernel {
    /// Those that this CPU can run, the preferred one first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                kernels.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                kernels.push(Self::Avx2);
            }
            kernels.push(Self::Sse2);
        }
        kernels.push(Self::Portable);
        kernels
    }

    /// The preferred one of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().first().copied().unwrap_or(Self::Portable)
    }

    /// Copies whole lines past the cache; false if this kernel has no such stores.
    ///
    /// # Safety
    /// `dst` is a multiple of [`LINE`] and `src.len()` writable bytes, which don't overlap `src`;
    /// `src.len()` is a multiple of [`LINE`]; the CPU has the kernel's instructions.
    unsafe fn stream(self, dst: *mut u8, src: &[u8]) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: passed on from the caller.
            unsafe {
                match self {
                    Self::Avx512 => x86::stream_avx512(dst, src),
                    Self::Avx2 => x86::stream_avx2(dst, src),
                    Self::Sse2 => x86::stream_sse2(dst, src),
                    Self::Portable => return false,
                }
            }
            true
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (self, dst, src);
            false
        }
    }
}

/// Orders all stores of this thread, non-temporal ones and write-backs included, before what
/// follows. With [`FlushMethod::Clwb`] and its older kin this is the barrier itself.
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// The way to store to one medium, chosen once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Persist {
    kernel: CopyKernel,
    flush: FlushMethod,
    bulk_lines_min: usize,
}

impl Persist {
    /// `kernel` and the instructions of `flush` must exist on this CPU: take them from
    /// [`CopyKernel::available`] and [`FlushMethod::of_this_cpu`].
    pub(super) fn new(kernel: CopyKernel, flush: FlushMethod) -> Self {
        assert!(
            CopyKernel::available().contains(&kernel),
            "this CPU can't run {kernel:?}"
        );
        let bulk_lines_min = match flush {
            FlushMethod::Msync | FlushMethod::None => BULK_LINES_CACHED,
            FlushMethod::Clwb | FlushMethod::Clflushopt | FlushMethod::Clflush => {
                BULK_LINES_FLUSHED
            }
        };
        Self {
            kernel,
            flush,
            bulk_lines_min,
        }
    }

    pub(super) fn flush_method(&self) -> FlushMethod {
        self.flush
    }

    /// Stores `src` at `dst`, as the head of this file promises.
    ///
    /// # Safety
    /// `dst` points to `src.len()` bytes of a mapping whose cache lines belong to it wholly, which
    /// stays mapped during the call and doesn't overlap `src`.
    pub(super) unsafe fn store(&self, dst: *mut u8, src: &[u8]) {
        // SAFETY: passed on from the caller.
        if unsafe { self.copy(dst, src) } {
            fence();
        }
    }

    /// As [`Persist::store`], without the fence.
    ///
    /// # Safety
    /// As [`Persist::store`].
    pub(super) unsafe fn store_data(&self, dst: *mut u8, src: &[u8]) {
        // SAFETY: passed on from the caller.
        unsafe { self.copy(dst, src) };
    }

    /// As [`Persist::store_data`]; returns the CRC-32C of `src`, computed block by block while the
    /// block is in the nearest cache.
    ///
    /// # Safety
    /// As [`Persist::store`].
    pub(super) unsafe fn store_data_crc(&self, dst: *mut u8, src: &[u8]) -> u32 {
        if src.len() <= CRC_BLOCK {
            let crc = crc_fast::crc32_iscsi(src);
            // SAFETY: passed on from the caller.
            unsafe { self.copy(dst, src) };
            return crc;
        }
        // The first block ends where a line of the target ends, so that no later block splits one.
        let first = (CRC_BLOCK - dst as usize % LINE).min(src.len());
        let (head, rest) = src.split_at(first);
        let mut at = dst;
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        for block in std::iter::once(head).chain(rest.chunks(CRC_BLOCK)) {
            crc.update(block);
            // SAFETY: the blocks follow one another in `src`, and their targets in `dst`.
            unsafe {
                self.copy(at, block);
                at = at.add(block.len());
            }
        }
        // 32 bits in a type for up to 64.
        u32::try_from(crc.finalize()).unwrap_or(0)
    }

    /// Copies and writes back, without the fence; true if stores were made that need one.
    ///
    /// # Safety
    /// As [`Persist::store`].
    unsafe fn copy(&self, dst: *mut u8, src: &[u8]) -> bool {
        let head = ((LINE - dst as usize % LINE) % LINE).min(src.len());
        let body = (src.len() - head) / LINE * LINE;
        if body / LINE >= self.bulk_lines_min {
            let (head, rest) = src.split_at(head);
            let (body, tail) = rest.split_at(body);
            // SAFETY: the three parts follow one another in `src` and `dst`; the body's target
            // starts and ends on line boundaries.
            unsafe {
                let at_body = dst.add(head.len());
                if self.kernel.stream(at_body, body) {
                    self.copy_cached(dst, head);
                    self.copy_cached(at_body.add(body.len()), tail);
                    return true;
                }
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { self.copy_cached(dst, src) };
        false
    }

    /// Copies by ordinary stores and writes the touched lines back.
    ///
    /// # Safety
    /// As [`Persist::store`].
    unsafe fn copy_cached(&self, dst: *mut u8, src: &[u8]) {
        // SAFETY: passed on from the caller.
        unsafe {
            copy_words(dst, src);
            self.write_back(dst, src.len());
        }
    }

    /// Writes back the cache lines that `len` bytes from `start` touch; the next fence orders it.
    ///
    /// # Safety
    /// These lines are mapped.
    pub(super) unsafe fn write_back(&self, start: *const u8, len: usize) {
        if matches!(self.flush, FlushMethod::Msync | FlushMethod::None) || len == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        {
            let skew = start as usize % LINE;
            for offset in (0..skew + len).step_by(LINE) {
                // SAFETY: each address lies in a line that the range touches.
                unsafe {
                    let line = start.wrapping_sub(skew).wrapping_add(offset);
                    x86::write_back_line(self.flush, line);
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = start;
        }
    }
}

/// Ordinary stores: bytes up to an 8-byte boundary, whole words, the remaining bytes. Atomic, so
/// that the compiler neither tears a word nor stores one twice.
///
/// # Safety
/// `dst` points to `src.len()` writable bytes that don't overlap `src`.
unsafe fn copy_words(dst: *mut u8, src: &[u8]) {
    let head = ((8 - dst as usize % 8) % 8).min(src.len());
    let (head, rest) = src.split_at(head);
    let mut at = dst;
    let (words, tail) = rest.as_chunks::<8>();
    // SAFETY: `at` advances through `dst` as the parts do through `src`; the words start at a
    // multiple of 8.
    unsafe {
        for byte in head {
            AtomicU8::from_ptr(at).store(*byte, Ordering::Relaxed);
            at = at.add(1);
        }
        for word in words {
            let value = u64::from_ne_bytes(*word);
            AtomicU64::from_ptr(at.cast()).store(value, Ordering::Relaxed);
            at = at.add(8);
        }
        for byte in tail {
            AtomicU8::from_ptr(at).store(*byte, Ordering::Relaxed);
            at = at.add(1);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{FlushMethod, LINE};
    use std::arch::asm;
    use std::arch::x86_64::{
        __cpuid, __cpuid_count, __m128i, __m256i, __m512i, _mm_clflush, _mm_loadu_si128,
        _mm_stream_si128, _mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512,
        _mm512_stream_si512,
    };

    /// Asks the CPU; the standard library has no names for these features.
    pub(super) fn flush_method() -> Option<FlushMethod> {
        #[allow(
            unused_unsafe,
            reason = "became safe functions after our oldest compiler"
        )]
        // SAFETY: every x86-64 has cpuid, and leaf 0 tells the highest leaf.
        let (leaf1, leaf7) = unsafe {
            let highest = __cpuid(0).eax;
            let leaf7 = if highest >= 7 {
                __cpuid_count(7, 0).ebx
            } else {
                0
            };
            (__cpuid(1), leaf7)
        };
        let line_bytes = (leaf1.ebx >> 8 & 0xff) * 8;
        if usize::try_from(line_bytes) != Ok(LINE) {
            return None;
        }
        let has = |bits: u32, bit: u32| bits >> bit & 1 == 1;
        if has(leaf7, 24) {
            Some(FlushMethod::Clwb)
        } else if has(leaf7, 23) {
            Some(FlushMethod::Clflushopt)
        } else if has(leaf1.edx, 19) {
            Some(FlushMethod::Clflush)
        } else {
            None
        }
    }

    /// # Safety
    /// `line` is mapped, and the CPU has the instruction.
    pub(super) unsafe fn write_back_line(flush: FlushMethod, line: *const u8) {
        // SAFETY: promised by the caller; these change no register, flag or byte of memory.
        unsafe {
            match flush {
                FlushMethod::Clwb => {
                    asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
                }
                FlushMethod::Clflushopt => {
                    asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
                }
                FlushMethod::Clflush => _mm_clflush(line),
                FlushMethod::Msync | FlushMethod::None => {}
            }
        }
    }

    /// # Safety
    /// As [`super::CopyKernel::stream`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn stream_avx512(dst: *mut u8, src: &[u8]) {
        let (from, to) = (src.as_ptr().cast::<__m512i>(), dst.cast::<__m512i>());
        for line in 0..src.len() / LINE {
            // SAFETY: line `line` is inside both, and `to` is a multiple of 64.
            unsafe { _mm512_stream_si512(to.add(line), _mm512_loadu_si512(from.add(line))) };
        }
    }

    /// # Safety
    /// As [`super::CopyKernel::stream`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn stream_avx2(dst: *mut u8, src: &[u8]) {
        let (from, to) = (src.as_ptr().cast::<__m256i>(), dst.cast::<__m256i>());
        for half in (0..src.len() / (LINE / 2)).step_by(2) {
            // SAFETY: both halves of the line are inside both, and `to` is a multiple of 64.
            unsafe {
                let low = _mm256_loadu_si256(from.add(half));
                let high = _mm256_loadu_si256(from.add(half + 1));
                _mm256_stream_si256(to.add(half), low);
                _mm256_stream_si256(to.add(half + 1), high);
            }
        }
    }

    /// # Safety
    /// As [`super::CopyKernel::stream`].
    pub(super) unsafe fn stream_sse2(dst: *mut u8, src: &[u8]) {
        let (from, to) = (src.as_ptr().cast::<__m128i>(), dst.cast::<__m128i>());
        for quarter in (0..src.len() / (LINE / 4)).step_by(4) {
            // SAFETY: the line's four quarters are inside both, and `to` is a multiple of 64.
            unsafe {
                let a = _mm_loadu_si128(from.add(quarter));
                let b = _mm_loadu_si128(from.add(quarter + 1));
                let c = _mm_loadu_si128(from.add(quarter + 2));
                let d = _mm_loadu_si128(from.add(quarter + 3));
                // Nothing between them: another store could push out a line that is half full.
                _mm_stream_si128(to.add(quarter), a);
                _mm_stream_si128(to.add(quarter + 1), b);
                _mm_stream_si128(to.add(quarter + 2), c);
                _mm_stream_si128(to.add(quarter + 3), d);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::IoBuf;
    use proptest::prelude::*;

    /// Every kernel with every flush method that this CPU has.
    fn ways() -> Vec<Persist> {
        let mut flushes = vec![FlushMethod::None, FlushMethod::Msync];
        let ours = FlushMethod::of_this_cpu();
        flushes.extend(ours);
        if ours.is_some() {
            flushes.push(FlushMethod::Clflush);
        }
        if ours == Some(FlushMethod::Clwb) {
            flushes.push(FlushMethod::Clflushopt);
        }
        let kernels = CopyKernel::available();
        let pairs = kernels
            .iter()
            .flat_map(|k| flushes.iter().map(|f| Persist::new(*k, *f)));
        pairs.collect()
    }

    fn pattern(len: usize, seed: usize) -> Vec<u8> {
        let byte = |i: usize| u8::try_from((i * 37 + seed * 101 + i / 251) % 256).unwrap();
        (0..len).map(byte).collect()
    }

    fn check(way: &Persist, medium: &mut IoBuf, model: &mut [u8], at: usize, src: &[u8]) {
        // SAFETY: inside the buffer, which is page-aligned and a multiple of a page long.
        let crc = unsafe {
            let dst = medium.as_mut_ptr().add(at);
            assert!(at + src.len() <= medium.len());
            way.store(dst, &pattern(src.len(), 99));
            let crc = way.store_data_crc(dst, src);
            assert_eq!(std::slice::from_raw_parts(dst, src.len()), src);
            way.store_data(dst, &pattern(src.len(), 98));
            way.store(dst, src);
            crc
        };
        model[at..at + src.len()].copy_from_slice(src);
        assert_eq!(crc, crc32c::crc32c(src), "{way:?} {at}+{}", src.len());
        assert!(**medium == *model, "{way:?} {at}+{}", src.len());
    }

    #[test]
    fn every_kernel_stores_every_small_length_at_every_alignment() {
        for way in ways() {
            let mut medium = IoBuf::zeroed(4096);
            medium.set_len(512);
            let mut model = vec![0; 512];
            for at in 64..128 {
                for len in 0..=300 {
                    let src = pattern(len + 3, at + len);
                    check(&way, &mut medium, &mut model, at, &src[len % 4..][..len]);
                }
            }
        }
    }

    #[test]
    fn plain_store_alone_writes_exactly_its_range() {
        for way in ways() {
            for (at, len) in [
                (0, 8192),
                (3, 8000),
                (64, 640),
                (4090, 12),
                (63, 1),
                (8, 40),
            ] {
                let mut medium = IoBuf::zeroed(8192);
                let mut model = vec![0; 8192];
                let src = pattern(len, at);
                // SAFETY: inside the buffer.
                unsafe { way.store(medium.as_mut_ptr().add(at), &src) };
                model[at..at + len].copy_from_slice(&src);
                assert!(*medium == *model, "{way:?} {at}+{len}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bulk_stores_equal_a_plain_array(
            stores in prop::collection::vec((0_usize..60_000, 0_usize..20_000, 0_usize..64), 1..12)
        ) {
            for way in ways() {
                let mut medium = IoBuf::zeroed(81_920);
                let mut model = vec![0; 81_920];
                for (at, len, skew) in &stores {
                    let src = pattern(len + skew, at + len);
                    check(&way, &mut medium, &mut model, *at, &src[*skew..]);
                }
            }
        }
    }
}
