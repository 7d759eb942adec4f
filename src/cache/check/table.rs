//! The superblock and its table of caches.

use super::findings::Findings;
use super::report::{FindingKind, PoolCheck};
use crate::bdev::{BdevError, Pmem, PmemError};
use crate::cache::CacheError;
use crate::cache::control_io::is_newer;
use crate::cache::geometry::{PoolGeometry, SUPERBLOCK_SECOND};
use crate::cache::options::CacheOptions;
use crate::cache::plausible::check_shape;
use crate::media::{
    CacheEntry, FORMAT_VERSION, SUPERBLOCK_BYTES, SegmentInfo, Superblock, SuperblockError,
    decode_superblock,
};
use std::collections::BTreeMap;
use uuid::Uuid;

const KIND: FindingKind = FindingKind::Superblock;

/// What stands where a superblock should be.
enum Copy {
    Good(Superblock),
    /// The first page is zero, as format leaves the second copy.
    Blank,
    Bad(SuperblockError),
    Unreadable(PmemError),
}

impl Copy {
    fn read(pmem: &dyn Pmem, at: u64) -> Self {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        if let Err(error) = pmem.load(at, &mut bytes) {
            return Self::Unreadable(error);
        }
        match decode_superblock(&bytes) {
            Ok(superblock) => Self::Good(superblock),
            Err(_) if bytes.iter().take(4096).all(|&b| b == 0) => Self::Blank,
            Err(error) => Self::Bad(error),
        }
    }

    /// Whether it was a superblock once.
    fn is_damaged_pool(&self) -> bool {
        !matches!(
            self,
            Self::Blank
                | Self::Bad(SuperblockError::Magic | SuperblockError::Version(_))
                | Self::Unreadable(_)
        )
    }

    fn error(&self) -> String {
        match self {
            Self::Good(_) => "good".into(),
            Self::Blank => "blank".into(),
            Self::Bad(error) => error.to_string(),
            Self::Unreadable(error) => error.to_string(),
        }
    }
}

/// Reads the newer good superblock. Nothing if there was one once.
///
/// # Errors
/// What is no pool, or one of another format.
pub(super) fn read_superblock(
    pmem: &dyn Pmem,
    findings: &mut Findings,
) -> Result<Option<Superblock>, CacheError> {
    let first = Copy::read(pmem, 0);
    let second = Copy::read(pmem, SUPERBLOCK_SECOND);
    match (first, second) {
        (Copy::Good(a), Copy::Good(b)) => Ok(Some(if is_newer(b.seq, a.seq) { b } else { a })),
        // The first copy is written by format, the second by the first change of the table.
        (Copy::Good(a), Copy::Blank) if a.seq == 1 => Ok(Some(a)),
        (Copy::Good(good), bad) => {
            findings.warn(KIND, SUPERBLOCK_SECOND, one_left("second", &bad));
            Ok(Some(good))
        }
        (bad, Copy::Good(good)) => {
            findings.warn(KIND, 0, one_left("first", &bad));
            Ok(Some(good))
        }
        (first, second) if first.is_damaged_pool() || second.is_damaged_pool() => {
            let what = format!(
                "no good superblock: first {}; second {}",
                first.error(),
                second.error()
            );
            let lost = "the table of caches: none can be found, though their segments may be whole";
            findings.damage(KIND, 0, what, lost);
            Ok(None)
        }
        (first, second) => Err(no_pool(&first, &second)),
    }
}

fn one_left(number: &str, bad: &Copy) -> String {
    let error = bad.error();
    format!("{number} copy: {error}; the other one counts and this one will be rewritten")
}

fn no_pool(first: &Copy, second: &Copy) -> CacheError {
    let unknown = |copy: &Copy| match copy {
        Copy::Bad(SuperblockError::Version(version)) => Some(*version),
        _ => None,
    };
    if let Some(version) = unknown(first).or_else(|| unknown(second)) {
        let text = SuperblockError::Version(version).to_string();
        return CacheError::Bdev(BdevError::NotSupported(text));
    }
    CacheError::Invalid(format!("no pool here: {}", first.error()))
}

/// What the superblock says; who owns the segments is still open.
pub(super) fn pool_of(superblock: &Superblock, medium_bytes: u64) -> PoolCheck {
    PoolCheck {
        name: superblock.name.clone(),
        uuid: Uuid::from_bytes(superblock.uuid),
        format: FORMAT_VERSION,
        medium_bytes,
        segment_bytes: superblock.segment_bytes,
        data_start: superblock.data_start,
        segments: superblock.segments,
        segments_free: 0,
        segments_bad: 0,
    }
}

/// Segments whose owner the table does not name are free: its cache was destroyed, or its creation
/// was cut off. Not so if the newer copy of the table is the one that is damaged.
pub(super) fn check_owners(
    geometry: &PoolGeometry,
    infos: &[SegmentInfo],
    entries: &[CacheEntry],
    findings: &mut Findings,
) {
    let mut unknown: BTreeMap<[u8; 16], u32> = BTreeMap::new();
    for info in infos.iter().filter(|info| info.cache != [0; 16]) {
        if entries.iter().all(|entry| entry.uuid != info.cache) {
            *unknown.entry(info.cache).or_default() += 1;
        }
    }
    for (cache, count) in unknown {
        let cache = Uuid::from_bytes(cache);
        let what = format!(
            "{count} segments belong to cache {cache}, which the only good copy of the table does \
             not name"
        );
        let lost = "that cache, unless it has been destroyed: the newer copy of the table may be \
                    the damaged one";
        let at = geometry.data_start;
        findings.damage(FindingKind::SegmentInfo, at, what, lost);
    }
}

/// Whether the medium holds all of the pool.
pub(super) fn check_size(geometry: &PoolGeometry, available: u64, findings: &mut Findings) -> bool {
    let needed = geometry.end().unwrap_or(u64::MAX);
    if needed <= available {
        return true;
    }
    let whole = available.saturating_sub(geometry.data_start) / geometry.segment_bytes;
    let what = format!("the pool needs {needed} bytes, its medium has {available}");
    let lost = format!(
        "segments {whole} to {}, and with them every cache that owns one",
        geometry.segments.saturating_sub(1)
    );
    findings.damage(FindingKind::Medium, available, what, lost);
    false
}

/// Checks a cache's place in the table for values that this code does not write.
pub(super) fn check_entry(entry: &CacheEntry, segment_bytes: u64, findings: &mut Findings) {
    let lost = "nothing yet, but the cache can't be loaded";
    if let Err(error) = CacheOptions::load(entry) {
        findings.damage(KIND, 0, error.to_string(), lost);
    }
    if let Err(error) = check_shape(entry, segment_bytes) {
        findings.damage(KIND, 0, error.to_string(), lost);
    }
}
