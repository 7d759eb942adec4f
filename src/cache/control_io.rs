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
    /// What the slot that is written next held is lost. It may have been the newer one.
    pub(crate) lost: bool,
    /// It can't be read, so perhaps not be written either.
    pub(crate) unreadable: bool,
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
            lost: false,
            unreadable: false,
        }
    }

    /// The place of the slot that is written next.
    pub(crate) fn next_at(&self) -> u64 {
        if self.next_is_second {
            self.at + PAIR_DISTANCE
        } else {
            self.at
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
        pmem.store(self.next_at(), &seal_slot(kind, self.next_seq, body))?;
        self.next_seq = self.next_seq.wrapping_add(1);
        self.next_is_second = !self.next_is_second;
        (self.lost, self.unreadable) = (false, false);
        Ok(())
    }
}

/// Stores a first body in both slots of a pair of which nothing is worth keeping: from then on the loss
/// of one leaves the other. Not durable before a barrier.
///
/// # Errors
/// The medium's.
pub(crate) fn store_both<B: SlotBody>(
    pmem: &dyn Pmem,
    at: u64,
    kind: SlotKind,
    body: &B,
) -> Result<(), PmemError> {
    let mut pair = PairState::fresh(at);
    pair.store(pmem, kind, body)?;
    pair.store(pmem, kind, body)
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
    /// Reads the pair at `at`. A slot that can't be read is a bad one.
    ///
    /// # Errors
    /// The medium's, but for poison.
    pub(crate) fn read(pmem: &dyn Pmem, at: u64, kind: SlotKind) -> Result<Self, PmemError> {
        let mut pair = Self {
            slots: [Err(SlotError::Unreadable); 2],
            blank: [false; 2],
        };
        for (number, at) in [at, at + PAIR_DISTANCE].into_iter().enumerate() {
            let mut bytes = [0; SLOT_BYTES];
            match pmem.load(at, &mut bytes) {
                Err(PmemError::Poison { .. }) => continue,
                other => other?,
            }
            pair.slots[number] = open_slot(kind, &bytes);
            pair.blank[number] = bytes == [0; SLOT_BYTES];
        }
        Ok(pair)
    }

    /// The bad slot of a pair whose other one counts, unless it was never written: the first update
    /// goes to the first slot, with number 1; the other one is blank then, and never again.
    pub(crate) fn odd_slot(&self, seq: u64, is_second: bool) -> Option<(usize, SlotError)> {
        let other = usize::from(!is_second);
        let never_written = self.blank[other] && seq == 1 && !is_second;
        let error = self.slots[other].as_ref().err()?;
        (!never_written).then_some((other, *error))
    }

    /// Whether one slot is lost, which may have been the newer.
    pub(crate) fn has_lost_one(&self) -> bool {
        match self.newest() {
            Ok((seq, _, is_second)) => self.odd_slot(seq, is_second).is_some(),
            Err(_) => false,
        }
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
    let odd = pair.odd_slot(seq, is_second);
    // What was read becomes truth, also if the earlier process never fenced it.
    pmem.write_back(at, SLOT_BYTES as u64);
    pmem.write_back(at + PAIR_DISTANCE, SLOT_BYTES as u64);
    let state = PairState {
        at,
        next_seq: seq.wrapping_add(1),
        next_is_second: !is_second,
        lost: odd.is_some(),
        unreadable: matches!(odd, Some((_, SlotError::Unreadable))),
    };
    Ok((body, state))
}

/// Reads the newer good superblock; also tells whether it is the second one, and whether the other one
/// can't be read: then it may have been newer.
///
/// # Errors
/// [`CacheError::Superblock`] if neither is good.
pub(crate) fn load_superblock(pmem: &dyn Pmem) -> Result<(Superblock, bool, bool), CacheError> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    if pmem.bytes() < SUPERBLOCK_SECOND + SUPERBLOCK_BYTES as u64 {
        let short = SuperblockError::Magic;
        return Err(CacheError::Superblock {
            first: short,
            second: short,
        });
    }
    let mut read = |at| match pmem.load(at, &mut bytes) {
        Err(PmemError::Poison { .. }) => Ok(Err(SuperblockError::Unreadable)),
        other => other.map(|()| decode_superblock(&bytes)),
    };
    let (first, second) = (read(0)?, read(SUPERBLOCK_SECOND)?);
    let unreadable = [&first, &second].contains(&&Err(SuperblockError::Unreadable));
    let found = match (first, second) {
        (Ok(a), Ok(b)) if is_newer(b.seq, a.seq) => (b, true, unreadable),
        (Ok(a), _) => (a, false, unreadable),
        (Err(_), Ok(b)) => (b, true, unreadable),
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
