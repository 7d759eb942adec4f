//! Which requests random clients make.

use super::rng::Rng;
use crate::bdev::Op;

/// Weights of the operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    pub(super) write: u64,
    pub(super) read: u64,
    pub(super) flush: u64,
    pub(super) zero: u64,
    pub(super) discard: u64,
    pub(super) prefetch: u64,
    pub(super) extents: u64,
    /// Writes and zeroes in a thousand that carry FUA.
    pub(super) fua_permille: u64,
}

impl Mix {
    /// A bit of everything.
    pub(super) const ALL: Self = Self {
        write: 45,
        read: 34,
        flush: 6,
        zero: 4,
        discard: 4,
        prefetch: 4,
        extents: 3,
        fua_permille: 80,
    };
    /// Keeps the pool full.
    pub(super) const WRITES: Self = Self {
        write: 88,
        read: 8,
        flush: 2,
        zero: 1,
        discard: 1,
        prefetch: 0,
        extents: 0,
        fua_permille: 30,
    };
    /// Many small epochs.
    pub(super) const FLUSHES: Self = Self {
        write: 60,
        read: 5,
        flush: 30,
        zero: 3,
        discard: 2,
        prefetch: 0,
        extents: 0,
        fua_permille: 50,
    };
    /// Ksets of one key each.
    pub(super) const FUAS: Self = Self {
        write: 100,
        read: 0,
        flush: 0,
        zero: 0,
        discard: 0,
        prefetch: 0,
        extents: 0,
        fua_permille: 1000,
    };
    /// Ksets of one key and of a few.
    pub(super) const SOME_FUAS: Self = Self {
        write: 92,
        read: 0,
        flush: 6,
        zero: 2,
        discard: 0,
        prefetch: 0,
        extents: 0,
        fua_permille: 250,
    };
    /// Full ksets.
    pub(super) const SMALL: Self = Self {
        write: 98,
        read: 1,
        flush: 1,
        zero: 0,
        discard: 0,
        prefetch: 0,
        extents: 0,
        fua_permille: 2,
    };
    /// Misses that race with writes.
    pub(super) const READS: Self = Self {
        write: 15,
        read: 75,
        flush: 1,
        zero: 3,
        discard: 3,
        prefetch: 3,
        extents: 0,
        fua_permille: 20,
    };

    /// One of these operations.
    pub(super) fn draw(&self, rng: &mut Rng) -> Op {
        let fua = rng.permille(self.fua_permille);
        let may_unmap = rng.permille(500);
        let weights = [
            (self.write, Op::Write { fua }),
            (self.read, Op::Read),
            (self.flush, Op::Flush),
            (self.zero, Op::WriteZeroes { may_unmap, fua }),
            (self.discard, Op::Discard),
            (self.prefetch, Op::Prefetch),
            (self.extents, Op::Extents),
        ];
        let sum = weights.iter().map(|(weight, _)| weight).sum();
        let mut at = rng.below(sum);
        for (weight, op) in weights {
            if at < weight {
                return op;
            }
            at -= weight;
        }
        Op::Read
    }
}
