//! A pool: a formatted pmem bdev, its superblock, and which segments belong to whom.
//!
//! Everything here is done by control threads and may wait for barriers.

use super::CacheError;
use super::control_io::{PairState, load_superblock, store_superblock, wipe_pair};
use super::geometry::{
    PoolGeometry, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SUPERBLOCK_SECOND, SegmentItem, data_start,
};
use super::look_only::LookOnly;
use super::owners::disown;
use crate::bdev::{Pmem, PmemError};
use crate::media::{CACHES_MAX, CacheEntry, Generation, MAGIC, SegmentInfo, SlotKind, Superblock};
use crate::units::SegmentId;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use zerocopy::little_endian::{U32, U64};

/// How to format a pool.
#[derive(Clone, Debug)]
pub struct PoolFormat {
    /// Its name, 1 to 255 bytes.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Bytes of a segment: a power of two from 256 KiB to 64 MiB.
    pub segment_bytes: u64,
    /// Erase what is there.
    pub force: bool,
}

#[derive(Debug)]
struct Table {
    superblock: Superblock,
    /// The newer copy is the second one.
    newest_is_second: bool,
    /// The other copy can't be read: it may have been the newer one.
    other_is_lost: bool,
    /// Caches that are running.
    loaded: Vec<[u8; 16]>,
}

/// Whether a barrier of a pool's medium has failed, as all its caches see it. Final.
#[derive(Debug, Default)]
pub(crate) struct PoolFailure {
    /// On a line of its own: every write looks at it.
    failed: CachePadded<AtomicBool>,
}

impl PoolFailure {
    /// Notes a failed barrier; whether this is the first that is heard of it.
    pub(crate) fn note(&self, error: &dyn std::error::Error) -> bool {
        let first = !self.failed.swap(true, Ordering::SeqCst);
        if first {
            tracing::error!(%error, "the pool and all its caches are read-only from now on");
        }
        first
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// An open pool.
#[derive(Debug)]
pub struct Pool {
    pub(crate) failure: Arc<PoolFailure>,
    pub(crate) pmem: Arc<dyn Pmem>,
    pub(crate) geometry: PoolGeometry,
    uuid: [u8; 16],
    name: String,
    table: RwLock<Table>,
    /// Held while segments change hands.
    pub(super) changes: RwLock<()>,
    /// Nothing of it is ever changed.
    look_only: bool,
}

fn is_blank(pmem: &dyn Pmem) -> Result<bool, CacheError> {
    let mut page = [0_u8; 4096];
    pmem.load(0, &mut page)?;
    Ok(page.iter().all(|&b| b == 0))
}

/// Refuses a medium that holds a pool, or anything else.
fn refuse_used(pmem: &dyn Pmem) -> Result<(), CacheError> {
    if Pool::is_formatted(pmem)? {
        return Err(CacheError::Formatted);
    }
    if is_blank(pmem)? {
        Ok(())
    } else {
        Err(CacheError::Foreign)
    }
}

impl Pool {
    /// Whether `pmem` holds a pool, good or damaged.
    ///
    /// # Errors
    /// A medium that can't be read.
    pub fn is_formatted(pmem: &dyn Pmem) -> Result<bool, CacheError> {
        let mut magic = [0; 8];
        let mut lost = None;
        for at in [0, SUPERBLOCK_SECOND] {
            if pmem.bytes() < at + magic.len() as u64 {
                return Ok(false);
            }
            match pmem.load(at, &mut magic) {
                Err(error @ PmemError::Poison { .. }) => lost = Some(error),
                other => other?,
            }
            if magic == MAGIC {
                return Ok(true);
            }
            magic.fill(0);
        }
        lost.map_or(Ok(false), |error| Err(error.into()))
    }

    /// Formats `pmem` as a pool. Step by step: segments first, the superblock last, so that a format
    /// that was cut off leaves no pool.
    ///
    /// # Errors
    /// [`CacheError::Formatted`] or [`CacheError::Foreign`] without `force`; sizes that can't be.
    pub fn format(pmem: &dyn Pmem, format: &PoolFormat) -> Result<(), CacheError> {
        let bytes = format.segment_bytes;
        if !bytes.is_power_of_two() || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
            return Err(CacheError::Invalid(format!(
                "segment size {bytes} is not a power of two from {SEGMENT_BYTES_MIN} to \
                 {SEGMENT_BYTES_MAX}"
            )));
        }
        let start = data_start(bytes);
        let segments = pmem.bytes().saturating_sub(start) / bytes;
        let Some(segments) = u32::try_from(segments).ok().filter(|&n| n >= 1) else {
            return Err(CacheError::Invalid(format!(
                "{} bytes hold no segment of {bytes}",
                pmem.bytes()
            )));
        };
        if !format.force {
            refuse_used(pmem)?;
        }
        for at in [0, SUPERBLOCK_SECOND] {
            pmem.store(at, &[0; 4096])?;
        }
        pmem.barrier_wait()?;
        let geometry = PoolGeometry {
            segment_bytes: bytes,
            data_start: start,
            segments,
        };
        for id in (0..segments).map(SegmentId) {
            let control = geometry.segment_start(id);
            for item in [
                SegmentItem::Info,
                SegmentItem::Generation,
                SegmentItem::LogStart,
            ] {
                wipe_pair(pmem, control + item as u64)?;
            }
            disown(pmem, &geometry, id)?;
            let body = Generation {
                segment: U32::new(id.0),
                spare_before: U32::ZERO,
                generation: U64::new(1),
                spare: [0; 32],
            };
            PairState::fresh(control + SegmentItem::Generation as u64).store(
                pmem,
                SlotKind::Generation,
                &body,
            )?;
        }
        pmem.barrier_wait()?;
        let superblock = Superblock {
            seq: 1,
            uuid: format.uuid,
            name: format.name.clone(),
            segment_bytes: bytes,
            data_start: start,
            segments,
            caches: vec![CacheEntry::empty(); CACHES_MAX],
        };
        store_superblock(pmem, &superblock, false)?;
        pmem.barrier_wait()?;
        Ok(())
    }

    /// Opens a formatted pool.
    ///
    /// # Errors
    /// No good superblock, or one that does not fit the medium; a medium whose barrier fails.
    pub fn open(pmem: Arc<dyn Pmem>) -> Result<Arc<Self>, CacheError> {
        Self::open_as(pmem, false)
    }

    /// Opens a formatted pool to be looked at: nothing on its medium and in its staging file is changed.
    /// Its caches are loaded as for salvage.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn open_read_only(pmem: Arc<dyn Pmem>) -> Result<Arc<Self>, CacheError> {
        Self::open_as(Arc::new(LookOnly::new(pmem)), true)
    }

    fn open_as(pmem: Arc<dyn Pmem>, look_only: bool) -> Result<Arc<Self>, CacheError> {
        // On an ordinary file what is in the page cache may not be what is on disk, if a barrier of
        // an earlier process failed: settle before anything is taken as truth.
        pmem.settle()?;
        let (superblock, newest_is_second, other_is_lost) = load_superblock(&*pmem)?;
        let geometry = PoolGeometry {
            segment_bytes: superblock.segment_bytes,
            data_start: superblock.data_start,
            segments: superblock.segments,
        };
        let needed = geometry.end().unwrap_or(u64::MAX);
        let available = pmem.bytes();
        if needed > available {
            return Err(CacheError::MediumTooSmall { needed, available });
        }
        let (uuid, name) = (superblock.uuid, superblock.name.clone());
        let table = RwLock::new(Table {
            superblock,
            newest_is_second,
            other_is_lost,
            loaded: Vec::new(),
        });
        Ok(Arc::new(Self {
            failure: Arc::default(),
            pmem,
            geometry,
            uuid,
            name,
            table,
            changes: RwLock::default(),
            look_only,
        }))
    }

    /// Its identity.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes and places.
    #[must_use]
    pub fn geometry(&self) -> PoolGeometry {
        self.geometry
    }

    /// The medium.
    #[must_use]
    pub fn pmem(&self) -> Arc<dyn Pmem> {
        Arc::clone(&self.pmem)
    }

    /// The caches in its table.
    #[must_use]
    pub fn caches(&self) -> Vec<CacheEntry> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table
            .superblock
            .caches
            .iter()
            .filter(|entry| !entry.is_empty())
            .copied()
            .collect()
    }

    /// Segments that belong to no cache.
    #[must_use]
    pub fn free_segments(&self) -> u32 {
        let caches = self.caches();
        let used = caches.iter().map(|entry| entry.segments.get());
        used.fold(self.geometry.segments, u32::saturating_sub)
    }

    /// The cache with this name or UUID, and its place in the table.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub(crate) fn find(&self, name: &str) -> Result<(usize, CacheEntry), CacheError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let uuid = uuid::Uuid::parse_str(name).ok();
        let found = table
            .superblock
            .caches
            .iter()
            .enumerate()
            .find(|(_, entry)| {
                !entry.is_empty()
                    && (entry.name() == name || uuid.is_some_and(|u| u.as_bytes() == &entry.uuid))
            });
        found
            .map(|(place, entry)| (place, *entry))
            .ok_or_else(|| CacheError::NoSuchCache(name.to_owned()))
    }

    /// The cache with this UUID, and its place in the table.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub(super) fn find_uuid(&self, uuid: [u8; 16]) -> Result<(usize, CacheEntry), CacheError> {
        self.find(&uuid::Uuid::from_bytes(uuid).to_string())
    }

    /// Writes the changed table: the older copy first becomes the newer one, durably.
    pub(crate) fn update(
        &self,
        change: impl FnOnce(&mut [CacheEntry]) -> Result<(), CacheError>,
    ) -> Result<(), CacheError> {
        self.refuse_changes()?;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = table.superblock.clone();
        change(&mut changed.caches)?;
        changed.seq = changed.seq.wrapping_add(1);
        let second = !table.newest_is_second;
        store_superblock(&*self.pmem, &changed, second)?;
        self.barrier_wait()?;
        table.superblock = changed;
        table.newest_is_second = second;
        table.other_is_lost = false;
        Ok(())
    }

    /// Whether a barrier of its medium has failed: it is read-only then, with all its caches.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failure.has_failed()
    }

    /// Whether it is only looked at.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.look_only
    }

    /// # Errors
    /// [`CacheError::PoolFailed`] after a barrier that failed, [`CacheError::PoolReadOnly`] if it is only
    /// looked at.
    pub(crate) fn refuse_changes(&self) -> Result<(), CacheError> {
        if self.look_only {
            return Err(CacheError::PoolReadOnly);
        }
        self.refuse_failed()
    }

    /// # Errors
    /// [`CacheError::PoolFailed`] after a barrier that failed.
    pub(crate) fn refuse_failed(&self) -> Result<(), CacheError> {
        if self.has_failed() {
            return Err(CacheError::PoolFailed);
        }
        Ok(())
    }

    /// Segments that the table gives to nobody are free, unless a newer table is lost that did.
    ///
    /// # Errors
    /// [`CacheError::TableLost`], naming such a segment.
    pub(crate) fn refuse_lost_table(&self) -> Result<(), CacheError> {
        let lost = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            table.other_is_lost
        };
        let owners: Vec<[u8; 16]> = self.caches().iter().map(|entry| entry.uuid).collect();
        let infos = if lost {
            self.segment_infos()?
        } else {
            Vec::new()
        };
        let mut infos = infos.iter();
        let is_foreign =
            |info: &&SegmentInfo| info.cache != [0; 16] && !owners.contains(&info.cache);
        infos.find(is_foreign).map_or(Ok(()), |info| {
            let segment = SegmentId(info.segment.get());
            Err(CacheError::TableLost { segment })
        })
    }

    /// Waits for a barrier; one that fails is final for the whole pool.
    pub(crate) fn barrier_wait(&self) -> Result<(), CacheError> {
        let result = self.pmem.barrier_wait().map_err(CacheError::from);
        self.note_failure(&result);
        result
    }

    /// Makes a failed barrier known to all caches of the pool.
    pub(crate) fn note_failure<T>(&self, result: &Result<T, CacheError>) {
        if let Err(CacheError::Medium(error @ PmemError::BarrierFailed(_))) = result {
            self.failure.note(error);
        }
    }

    /// Notes that a cache runs; it can do so only once.
    pub(crate) fn note_loaded(&self, uuid: [u8; 16]) -> Result<(), CacheError> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.loaded.contains(&uuid) {
            return Err(CacheError::Busy("the cache is loaded already".into()));
        }
        table.loaded.push(uuid);
        Ok(())
    }

    /// Undoes [`Pool::note_loaded`].
    pub(crate) fn note_unloaded(&self, uuid: [u8; 16]) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.loaded.retain(|loaded| *loaded != uuid);
    }

    /// Whether some cache of it runs.
    #[must_use]
    pub fn has_loaded(&self) -> bool {
        !self
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .loaded
            .is_empty()
    }
}
