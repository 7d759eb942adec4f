//! Segments made ready for the log: each gets a salt and a START, durable long before the LAST that
//! leads to it.

use super::control_io::{PairState, load_pair};
use super::gc::Gc;
use super::geometry::{SegIx, SegmentItem};
use super::log::ReadySegment;
use super::shared::Shared;
use crate::bdev::{Pmem, PmemError};
use crate::media::{LogStart, SlotKind};
use std::sync::atomic::Ordering;
use zerocopy::little_endian::{U32, U64};

/// Where a generator of salts starts. The salts of two runs, or of two caches of a process, must
/// differ: segments go from one to the other, and a leftover would fit. A segment's generation, which
/// rises when a cache is created, tells caches apart that have the same UUID.
pub(crate) fn salt_seed(seed: u64, cache: &[u8; 16], incarnation: u32, generation: u64) -> u64 {
    let (a, b) = cache.split_at(8);
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let parts = [word(a), word(b), incarnation.into(), generation];
    parts.into_iter().fold(seed, |state, part| {
        let mut state = state ^ part;
        next_salt(&mut state)
    })
}

/// The next number of a SplitMix64 generator, never 0.
pub(crate) fn next_salt(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).max(1)
}

/// Stores the START of a log segment, whose control area begins at `control`, in both of its slots,
/// whatever is there: it means nothing before a LAST leads to it, and once the segment is log the loss of
/// one slot must not bring the START of an earlier life back. Not durable before a barrier.
///
/// # Errors
/// The medium's.
pub(crate) fn store_start(
    pmem: &dyn Pmem,
    control: u64,
    start: &LogStart,
) -> Result<(), PmemError> {
    let at = control + SegmentItem::LogStart as u64;
    let mut pair = load_pair::<LogStart>(pmem, at, SlotKind::LogStart, "START")
        .map_or_else(|_| PairState::fresh(at), |(_, pair)| pair);
    pair.store(pmem, SlotKind::LogStart, start)?;
    pair.store(pmem, SlotKind::LogStart, start)
}

fn store_start_of(shared: &Shared, segment: SegIx, salt: u64) -> Result<(), PmemError> {
    let id = shared.segments.id(segment);
    let start = LogStart {
        cache: shared.uuid,
        segment: U32::new(id.0),
        incarnation: U32::new(shared.incarnation),
        sequence: U64::new(shared.durable.mark()),
        salt: U64::new(salt),
        spare: [0; 8],
    };
    store_start(&*shared.pmem, shared.geometry.segment_start(id), &start)
}

impl Gc {
    /// Takes free segments for the log's reserve and writes their START.
    pub(super) fn write_starts(&mut self) -> Result<(), PmemError> {
        let shared = self.seed.shared.clone();
        while shared.log_deficit.load(Ordering::SeqCst) > 0 {
            let Some(mut alloc) = shared.alloc.try_lock() else {
                self.retry = true;
                return Ok(());
            };
            let Some(segment) = alloc.take_log() else {
                return Ok(());
            };
            shared.log_deficit.fetch_sub(1, Ordering::SeqCst);
            let free = u32::try_from(alloc.free_count()).unwrap_or(u32::MAX);
            shared.free_segments.store(free, Ordering::Relaxed);
            drop(alloc);
            let salt = next_salt(&mut self.seed.salt_state);
            store_start_of(&shared, segment, salt)?;
            self.seed.stats.starts.add(1);
            let pool_segment = shared.segments.id(segment).0;
            self.starting.push(ReadySegment {
                segment,
                pool_segment,
                salt,
            });
        }
        Ok(())
    }
}
