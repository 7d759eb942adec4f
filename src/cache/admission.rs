//! Which misses are kept: a block on its n-th miss.
//!
//! A table of fixed size counts; two blocks that share a place push each other out, so that a block
//! may have to be missed more often, never less.

use super::key_index::SUBTREE_BYTES;
use crate::units::ByteRange;

/// Bytes that are counted together.
const PAGE: u64 = 4096;
/// Places of the table: the last misses of about 128 MiB.
const PLACES: usize = 1 << 15;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// Page number << 8 | misses; empty until it is wanted.
    counts: Vec<u64>,
}

fn place_of(page: u64) -> usize {
    // Neighbours are spread: they are missed together.
    let mixed = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
    usize::try_from(mixed).unwrap_or(0) % PLACES
}

impl Admission {
    /// Counts a miss of `range`, and tells whether it is at least the `wanted`-th of all its pages.
    pub(crate) fn count(&mut self, range: ByteRange, wanted: u32) -> bool {
        if wanted <= 1 {
            return true;
        }
        debug_assert!(range.len() <= SUBTREE_BYTES, "of one subtree");
        self.counts.resize(PLACES, 0);
        let mut least = u64::MAX;
        for page in range.start() / PAGE..range.end().div_ceil(PAGE) {
            let place = &mut self.counts[place_of(page)];
            let misses = if *place >> 8 == page {
                *place & 0xff
            } else {
                0
            };
            let misses = (misses + 1).min(0xff);
            *place = page << 8 | misses;
            least = least.min(misses);
        }
        least >= u64::from(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_admitted_on_its_nth_miss_and_a_range_with_its_last_block() {
        let mut admission = Admission::default();
        let page = ByteRange::between(8192, 12_288);
        assert!(admission.count(page, 1));
        assert!(
            admission.counts.is_empty(),
            "nothing is counted for nothing"
        );
        assert!(!admission.count(page, 3));
        assert!(!admission.count(page, 3));
        assert!(!admission.count(ByteRange::between(8192, 16_384), 3));
        assert!(admission.count(page, 3));
        assert!(!admission.count(ByteRange::between(8192, 16_384), 3));
        assert!(admission.count(ByteRange::between(8192, 16_384), 3));
    }
}
