//! Reads and writes slot pairs and superblocks on a medium.

use super::CacheError;
use super::geometry::{PAIR_DISTANCE, SUPERBLOCK_SECOND};
use crate::bdev::{Pmem, PmemError};
use crate::media::{
    SLOT_BYTES, SUPERBLOCK_BYTES, SlotBody, SlotError, SlotKind, Superblock, SuperblockError,
    decode_superblock, encode_superblock, open_slot, seal_slot,
};

/// Which slot of a pair is written next, and with which `seq`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairState {
    at: u64,
    next_seq: u64,
    next_is_second: bool,
}

/// A sequence number is newer than another, over wrap-around too.
pub(crate) fn is_newer(a: u64, b: u64) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 63
}

impl PairState {
    /// A pair of which nothing is worth keeping.
    pub(crate) fn fresh(at: u64) -> Self {
        Self {
            at,
            next_seq: 1,
            next_is_second: false,
        }
    }

    /// Stores `body` in the older slot. It counts for certain after a barrier.
    ///
    /// # Errors
    /// The medium's; the newer slot is as it was, and the older one is tried again next time.
    pub(crate) fn store<B: SlotBody>(
        &mut self,
        pmem: &dyn Pmem,
        kind: SlotKind,
        body: &B,
    ) -> Result<(), PmemError> {
        let at = if self.next_is_second {
            self.at + PAIR_DISTANCE
        } else {
            self.at
        };
        pmem.store(at, &seal_slot(kind, self.next_seq, body))?;
        self.next_seq = self.next_seq.wrapping_add(1);
        self.next_is_second = !self.next_is_second;
        Ok(())
    }
}

/// Erases both slots of a pair: a valid one of an earlier owner must not outlive a create.
///
/// # Errors
/// The medium's.
pub(crate) fn wipe_pair(pmem: &dyn Pmem, at: u64) -> Result<(), PmemError> {
    pmem.store(at, &[0; SLOT_BYTES])?;
    pmem.store(at + PAIR_DISTANCE, &[0; SLOT_BYTES])
}

/// Both slots of a pair, as they stand.
#[derive(Debug)]
pub(crate) struct SlotPair<B> {
    pub(crate) slots: [Result<(u64, B), SlotError>; 2],
    /// All zero: never written, or wiped.
    pub(crate) blank: [bool; 2],
}

impl<B: SlotBody> SlotPair<B> {
    /// Reads the pair at `at`.
    ///
    /// # Errors
    /// The medium's.
    pub(crate) fn read(pmem: &dyn Pmem, at: u64, kind: SlotKind) -> Result<Self, PmemError> {
        let mut bytes = [[0; SLOT_BYTES]; 2];
        pmem.load(at, &mut bytes[0])?;
        pmem.load(at + PAIR_DISTANCE, &mut bytes[1])?;
        Ok(Self {
            slots: bytes.map(|slot| open_slot(kind, &slot)),
            blank: bytes.map(|slot| slot == [0; SLOT_BYTES]),
        })
    }

    /// The newer good slot: its `seq`, its body, and whether it is the second one.
    ///
    /// # Errors
    /// What is wrong with the first and with the second, if neither is good.
    pub(crate) fn newest(&self) -> Result<(u64, B, bool), (SlotError, SlotError)> {
        match self.slots {
            [Ok((a, _)), Ok((b, body))] if is_newer(b, a) => Ok((b, body, true)),
            [Ok((seq, body)), _] => Ok((seq, body, false)),
            [Err(_), Ok((seq, body))] => Ok((seq, body, true)),
            [Err(first), Err(second)] => Err((first, second)),
        }
    }
}

/// Reads the newer good slot of the pair at `at`.
///
/// # Errors
/// [`CacheError::Metadata`] if neither is good, or the medium's error.
pub(crate) fn load_pair<B: SlotBody>(
    pmem: &dyn Pmem,
    at: u64,
    kind: SlotKind,
    item: &'static str,
) -> Result<(B, PairState), CacheError> {
    let pair = SlotPair::<B>::read(pmem, at, kind)?;
    let newest = pair
        .newest()
        .map_err(|(first, second)| CacheError::Metadata {
            item,
            at,
            first,
            second,
        });
    let (seq, body, is_second) = newest?;
    // What was read becomes truth, also if the earlier process never fenced it.
    pmem.write_back(at, SLOT_BYTES as u64);
    pmem.write_back(at + PAIR_DISTANCE, SLOT_BYTES as u64);
    let state = PairState {
        at,
        next_seq: seq.wrapping_add(1),
        next_is_second: !is_second,
    };
    Ok((body, state))
}

/// Reads the newer good superblock; also tells whether it is the second one.
///
/// # Errors
/// [`CacheError::Superblock`] if neither is good.
pub(crate) fn load_superblock(pmem: &dyn Pmem) -> Result<(Superblock, bool), CacheError> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    if pmem.bytes() < SUPERBLOCK_SECOND + SUPERBLOCK_BYTES as u64 {
        let short = SuperblockError::Magic;
        return Err(CacheError::Superblock {
            first: short,
            second: short,
        });
    }
    pmem.load(0, &mut bytes)?;
    let first = decode_superblock(&bytes);
    pmem.load(SUPERBLOCK_SECOND, &mut bytes)?;
    let second = decode_superblock(&bytes);
    let found = match (first, second) {
        (Ok(a), Ok(b)) if is_newer(b.seq, a.seq) => (b, true),
        (Ok(a), _) => (a, false),
        (Err(_), Ok(b)) => (b, true),
        (Err(first), Err(second)) => return Err(CacheError::Superblock { first, second }),
    };
    pmem.write_back(0, SUPERBLOCK_BYTES as u64);
    pmem.write_back(SUPERBLOCK_SECOND, SUPERBLOCK_BYTES as u64);
    Ok(found)
}

/// Stores a superblock in one of its two places.
///
/// # Errors
/// The medium's.
pub(crate) fn store_superblock(
    pmem: &dyn Pmem,
    superblock: &Superblock,
    second: bool,
) -> Result<(), PmemError> {
    let at = if second { SUPERBLOCK_SECOND } else { 0 };
    pmem.store(at, &encode_superblock(superblock))
}
