//! Which requests a random client makes.

/// Which requests [`World::submit_random`] makes: weights.
#[derive(Clone, Copy)]
pub(crate) struct Mix {
    pub(crate) write: u64,
    pub(crate) read: u64,
    pub(crate) flush: u64,
    pub(crate) zero: u64,
    pub(crate) discard: u64,
    pub(crate) prefetch: u64,
    pub(crate) extents: u64,
    /// Writes and zeroes in a thousand that carry FUA.
    pub(crate) fua_permille: u64,
}

impl Mix {
    pub(crate) const ALL: Self = Self {
        write: 45,
        read: 38,
        flush: 2,
        zero: 4,
        discard: 4,
        prefetch: 4,
        extents: 3,
        fua_permille: 80,
    };
    pub(crate) const WRITES: Self = Self {
        write: 90,
        read: 10,
        flush: 0,
        zero: 0,
        discard: 0,
        prefetch: 0,
        extents: 0,
        fua_permille: 10,
    };
    pub(crate) const ONLY_WRITES: Self = Self {
        read: 0,
        write: 100,
        ..Self::WRITES
    };
    pub(crate) const ALL_BUT_FLUSH: Self = Self {
        flush: 0,
        fua_permille: 0,
        ..Self::ALL
    };
    pub(crate) const READS: Self = Self {
        write: 0,
        read: 97,
        flush: 0,
        zero: 0,
        discard: 0,
        prefetch: 3,
        extents: 0,
        fua_permille: 0,
    };
}
