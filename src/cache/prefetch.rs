//! Asks the CPU to fetch memory that will be wanted soon.
#![expect(unsafe_code, reason = "a hint to the CPU takes a raw pointer")]

/// Fetches the cache line of `value`. A hint: nothing else happens.
pub(super) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE; a prefetch accesses nothing that the program could see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
