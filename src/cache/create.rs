//! Creating and destroying caches in a pool.

use super::CacheError;
use super::backing_sample::SAMPLE_ITEMS;
use super::control_io::{store_both, wipe_pair};
use super::geometry::{CacheItem, LANES_MAX, SEGMENTS_MAX, log_reserve, segments_min};
use super::log_start::{salt_seed, store_start};
use super::options::CacheOptions;
use super::owners::Joined;
use super::pool::Pool;
use crate::bdev::{BdevInfo, PmemError};
use crate::media::{
    BackingFlush, Boot, CacheEntry, CleanStop, DurableMark, Incarnation, LogStart, SlotKind, Tail,
    WindowEnd,
};
use crate::units::SegmentId;
use std::sync::PoisonError;
use zerocopy::little_endian::{U32, U64};

/// A cache to be made.
#[derive(Clone, Debug)]
pub struct CreateCache {
    /// Unique in the pool: 1 to 255 bytes.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Bytes of pool space, rounded down to whole segments.
    pub bytes: u64,
    /// 1 to 128; fixed.
    pub lanes: u32,
    /// Logical block, bytes: 512 or 4096, at least the backing's; fixed.
    pub block_bytes: u32,
    /// The rest.
    pub options: CacheOptions,
    /// Seed of the first log segment's salt.
    pub seed: u64,
}

impl CreateCache {
    /// Checks the request against the pool's segment size and the backing, and says how many segments it takes.
    fn check(&self, segment_bytes: u64, backing: &BdevInfo) -> Result<u32, CacheError> {
        self.options.check()?;
        let invalid = |text: String| Err(CacheError::Invalid(text));
        if self.name.is_empty() || self.name.len() > crate::media::NAME_BYTES_MAX {
            return invalid(format!(
                "name of {} bytes is not within 1..=255",
                self.name.len()
            ));
        }
        if self.uuid == [0; 16] {
            return invalid("the UUID must not be zero".into());
        }
        if !(1..=LANES_MAX).contains(&self.lanes) {
            return invalid(format!(
                "{} lanes are not within 1..={LANES_MAX}",
                self.lanes
            ));
        }
        if ![512, 4096].contains(&self.block_bytes) || self.block_bytes < backing.block_size {
            return invalid(format!(
                "block size {} is not 512 or 4096, or below the backing's {}",
                self.block_bytes, backing.block_size
            ));
        }
        if backing.bytes() == 0 || !backing.bytes().is_multiple_of(self.block_bytes.into()) {
            return invalid(format!(
                "the backing's {} bytes are not whole blocks of {}",
                backing.bytes(),
                self.block_bytes
            ));
        }
        check_segments(self.bytes, self.lanes, segment_bytes)
    }
}

/// How many segments `bytes` of pool space are, for a cache with `lanes` lanes.
///
/// # Errors
/// [`CacheError::Invalid`], with the sum, if it can't have so few or so many.
pub(super) fn check_segments(
    bytes: u64,
    lanes: u32,
    segment_bytes: u64,
) -> Result<u32, CacheError> {
    let segments = bytes / segment_bytes;
    let least = segments_min(lanes, segment_bytes);
    let reserve = log_reserve(lanes, segment_bytes);
    match u32::try_from(segments) {
        Ok(segments) if segments >= least && segments <= SEGMENTS_MAX => Ok(segments),
        _ => Err(CacheError::Invalid(format!(
            "{segments} segments are not within {least}..={SEGMENTS_MAX}: {lanes} lanes want 10 \
             each, and log reserve {reserve} + 2 x {lanes} + 2"
        ))),
    }
}

fn fresh_tail(segment: SegmentId) -> Tail {
    Tail {
        segment: U32::new(segment.0),
        offset: U32::ZERO,
        sequence: U64::new(1),
        epoch: U64::ZERO,
        spare: [0; 24],
    }
}

impl Pool {
    /// Makes a cache in front of `backing`. The table names it last, so that a create that was cut
    /// off leaves the pool as it was.
    ///
    /// # Errors
    /// Names and UUIDs that are taken, sizes that can't be, too few free segments.
    pub fn create_cache(&self, create: &CreateCache, backing: &BdevInfo) -> Result<(), CacheError> {
        let _turn = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let segments = create.check(self.geometry.segment_bytes, backing)?;
        for entry in self.caches() {
            if entry.name() == create.name || entry.uuid == create.uuid {
                return Err(CacheError::Exists(create.name.clone()));
            }
        }
        self.refuse_lost_table()?;
        let joined = self.take_for_new(create.uuid, segments)?;
        let Some(&Joined { id: first, .. }) = joined.first() else {
            let (wanted, free) = (segments, 0);
            return Err(CacheError::NoSegments { wanted, free });
        };
        let generation = joined.iter().map(|joined| joined.generation).max();
        let generation = generation.unwrap_or(0);
        self.prepare_control(first, generation, create)?;
        self.barrier_wait()?;
        self.update(|caches| {
            let Some(place) = caches.iter_mut().find(|entry| entry.is_empty()) else {
                return Err(CacheError::Busy(
                    "the pool's table of caches is full".into(),
                ));
            };
            let mut entry = CacheEntry::empty();
            entry.uuid = create.uuid;
            entry.backing_uuid = *backing.uuid.as_bytes();
            entry.backing_bytes = U64::new(backing.bytes());
            entry.first_segment = U32::new(first.0);
            entry.segments = U32::new(segments);
            entry.lanes = U32::new(create.lanes);
            entry.block_bytes = U32::new(create.block_bytes);
            create.options.store(&mut entry);
            entry.set_name(&create.name);
            entry.set_backing_name(&backing.name);
            *place = entry;
            Ok(())
        })
    }

    /// Writes the control items of an empty cache whose log begins in its first segment.
    fn prepare_control(
        &self,
        first: SegmentId,
        generation: u64,
        create: &CreateCache,
    ) -> Result<(), PmemError> {
        let pmem = &*self.pmem;
        let control = self.geometry.segment_start(first);
        let at = |item: CacheItem| control + item as u64;
        let tail = fresh_tail(first);
        store_both(pmem, at(CacheItem::KeyTail), SlotKind::KeyTail, &tail)?;
        store_both(pmem, at(CacheItem::DirtyTail), SlotKind::DirtyTail, &tail)?;
        let incarnation = Incarnation {
            incarnation: U32::ZERO,
            spare_before: U32::ZERO,
            first_sequence: U64::new(1),
            clean_until: U64::ZERO,
            written_back_until: U64::ZERO,
            spare: [0; 16],
        };
        store_both(
            pmem,
            at(CacheItem::Incarnation),
            SlotKind::Incarnation,
            &incarnation,
        )?;
        let window = WindowEnd {
            sequence: U64::ZERO,
            spare: [0; 40],
        };
        store_both(pmem, at(CacheItem::WindowEnd), SlotKind::WindowEnd, &window)?;
        let clean = CleanStop {
            clean: U32::new(1),
            sampled: U32::ZERO,
            final_sequence: U64::ZERO,
            spare: [0; 32],
        };
        store_both(pmem, at(CacheItem::CleanStop), SlotKind::CleanStop, &clean)?;
        let durable = DurableMark {
            sequence: U64::ZERO,
            spare: [0; 40],
        };
        store_both(
            pmem,
            at(CacheItem::DurableMark),
            SlotKind::DurableMark,
            &durable,
        )?;
        let boot = Boot {
            boot_id: [0; 16],
            spare: [0; 32],
        };
        store_both(pmem, at(CacheItem::Boot), SlotKind::Boot, &boot)?;
        let flush = BackingFlush {
            failed: U32::ZERO,
            spare: [0; 44],
        };
        let place = at(CacheItem::BackingFlush);
        store_both(pmem, place, SlotKind::BackingFlush, &flush)?;
        for (item, ..) in SAMPLE_ITEMS {
            wipe_pair(pmem, at(item))?;
        }
        let salt = salt_seed(create.seed, &create.uuid, 0, generation);
        let start = LogStart {
            cache: create.uuid,
            segment: U32::new(first.0),
            incarnation: U32::ZERO,
            sequence: U64::new(1),
            salt: U64::new(salt),
            spare: [0; 8],
        };
        store_start(pmem, control, &start)
    }

    /// Takes a cache that does not run out of the table; its segments are free.
    ///
    /// # Errors
    /// [`CacheError::Dirty`] if bytes are dirty or BAD, unless `discard_dirty` repeats the number of
    /// dirty ones.
    pub fn destroy_cache(
        &self,
        name: &str,
        dirty_bytes: u64,
        bad_bytes: u64,
        discard_dirty: Option<u64>,
    ) -> Result<(), CacheError> {
        let _turn = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let (place, entry) = self.find(name)?;
        if dirty_bytes + bad_bytes > 0 && discard_dirty != Some(dirty_bytes) {
            return Err(CacheError::Dirty {
                dirty_bytes,
                bad_bytes,
            });
        }
        self.note_loaded(entry.uuid)?;
        let result = self.update(|caches| {
            if let Some(entry) = caches.get_mut(place) {
                *entry = CacheEntry::empty();
            }
            Ok(())
        });
        self.note_unloaded(entry.uuid);
        result
    }
}
