//! `check`: verifies every structure and every CRC of a pool that nobody uses, and changes nothing.
//!
//! It reads as a load does, with the same readers, and goes on where a load would refuse: a report
//! names all damages that it can find, where they are, and what each loses.

mod bad_data;
mod control;
mod findings;
mod generations;
mod report;
mod table;
mod walk;

pub use report::{
    CacheCheck, CheckReport, DataFigures, Finding, FindingKind, LogFigures, LostRange,
    OptionsCheck, PoolCheck, SegmentFigures, TailCheck,
};

use super::CacheError;
use super::geometry::{PoolGeometry, SegmentItem};
use super::plausible::check_count;
use super::replay::view_of;
use crate::bdev::Pmem;
use crate::bdev::pmem::ReadOnlyPmem;
use crate::media::{CacheEntry, Generation, SegmentInfo, SlotKind, Superblock};
use crate::units::SegmentId;
use control::{cache_of, read_control};
use findings::{Findings, PairName};
use std::path::Path;
use std::sync::Arc;
use walk::Walk;

/// Checks the pool in the file or DAX device `path`, which is opened for reading only and locked
/// meanwhile. Waits for the disk: for control threads.
///
/// # Errors
/// What is no pool, or one of a format that this code does not know; what can't be opened, or is in
/// use by another process. Damage is not an error but part of the report.
pub fn check_pool(path: &Path) -> Result<CheckReport, CacheError> {
    let pmem: Arc<dyn Pmem> = Arc::new(ReadOnlyPmem::open(path)?);
    check_pmem(&pmem)
}

/// As [`check_pool`], for a pool on a medium that is open already and that nobody uses.
///
/// # Errors
/// As [`check_pool`].
pub fn check_pmem(pmem: &Arc<dyn Pmem>) -> Result<CheckReport, CacheError> {
    let mut findings = Findings::default();
    let mut report = CheckReport {
        pool: None,
        caches: Vec::new(),
        damages: Vec::new(),
        damages_total: 0,
        warnings: Vec::new(),
        warnings_total: 0,
    };
    if let Some(superblock) = table::read_superblock(&**pmem, &mut findings)? {
        check_contents(pmem, &superblock, &mut findings, &mut report);
    }
    findings.finish(&mut report);
    Ok(report)
}

fn check_contents(
    pmem: &Arc<dyn Pmem>,
    superblock: &Superblock,
    findings: &mut Findings,
    report: &mut CheckReport,
) {
    let geometry = PoolGeometry {
        segment_bytes: superblock.segment_bytes,
        data_start: superblock.data_start,
        segments: superblock.segments,
    };
    let mut pool = table::pool_of(superblock, pmem.bytes());
    let entries: Vec<CacheEntry> = superblock
        .caches
        .iter()
        .filter(|entry| !entry.is_empty())
        .copied()
        .collect();
    report.caches = entries.iter().map(cache_of).collect();
    if !table::check_size(&geometry, pmem.bytes(), findings) {
        report.pool = Some(pool);
        return;
    }
    findings.geometry = Some(geometry);
    let infos = check_infos(&**pmem, &geometry, findings);
    let owned = |info: &&SegmentInfo| entries.iter().any(|entry| info.is_of(entry));
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    pool.segments_free = count(infos.len() - infos.iter().filter(owned).count());
    pool.segments_bad = count(infos.iter().filter(|i| i.is_bad()).count());
    report.pool = Some(pool);
    if findings.has_warning(FindingKind::Superblock) {
        table::check_owners(&geometry, &infos, &entries, findings);
    }
    for (entry, cache) in entries.iter().zip(&mut report.caches) {
        findings.cache = Some(entry.name());
        table::check_entry(entry, geometry.segment_bytes, findings);
        check_cache(pmem, &geometry, &infos, entry, cache, findings);
    }
    findings.cache = None;
    for info in infos.iter().filter(|info| !owned(info)) {
        check_generation(&**pmem, &geometry, SegmentId(info.segment.get()), findings);
    }
}

/// The info of each segment that has a good one.
fn check_infos(
    pmem: &dyn Pmem,
    geometry: &PoolGeometry,
    findings: &mut Findings,
) -> Vec<SegmentInfo> {
    let name = PairName {
        kind: FindingKind::SegmentInfo,
        item: "segment info",
        lost: "to whom the segment belongs: no cache of the pool can be loaded",
    };
    let mut infos = Vec::new();
    for id in 0..geometry.segments {
        let at = geometry.segment_start(SegmentId(id)) + SegmentItem::Info as u64;
        let info = findings.pair::<SegmentInfo>(pmem, at, SlotKind::SegmentInfo, &name);
        match info {
            Some(info) if info.segment.get() == id => infos.push(info),
            Some(info) => {
                let what = format!("segment info is that of segment {}", info.segment.get());
                findings.damage(name.kind, at, what, name.lost);
            }
            None => {}
        }
    }
    infos
}

fn check_generation(
    pmem: &dyn Pmem,
    geometry: &PoolGeometry,
    id: SegmentId,
    findings: &mut Findings,
) -> Option<u64> {
    let name = PairName {
        kind: FindingKind::Generation,
        item: "generation",
        lost: "which keys of the segment are still true: its cache can't be loaded",
    };
    let at = geometry.segment_start(id) + SegmentItem::Generation as u64;
    let body = findings.pair::<Generation>(pmem, at, SlotKind::Generation, &name)?;
    if body.segment.get() != id.0 {
        let what = format!("generation is that of segment {}", body.segment.get());
        findings.damage(name.kind, at, what, name.lost);
        return None;
    }
    let generation = body.generation.get();
    match check_count("generation", at, generation) {
        Ok(()) => Some(generation),
        Err(error) => {
            findings.damage(name.kind, at, error.to_string(), name.lost);
            None
        }
    }
}

fn check_cache(
    pmem: &Arc<dyn Pmem>,
    geometry: &PoolGeometry,
    infos: &[SegmentInfo],
    entry: &CacheEntry,
    cache: &mut CacheCheck,
    findings: &mut Findings,
) {
    let view = match view_of(pmem, *geometry, infos, entry) {
        Ok(view) => view,
        Err(error) => {
            let lost = "the whole cache: it can't be loaded without all its segments";
            findings.damage(FindingKind::SegmentInfo, 0, error.to_string(), lost);
            return;
        }
    };
    let mut generations = vec![None; view.segments.places()];
    for (segment, id) in view.segments.iter() {
        generations[segment.index()] = check_generation(&**pmem, geometry, id, findings);
    }
    control::check_starts(&view, findings);
    let control = read_control(&view, cache, findings);
    if let Some(control) = control {
        generations::learn(&view, &control, &mut generations, findings);
        let data_crc = entry.checks.get() & 1 != 0;
        Walk::run(&view, &generations, &control, data_crc, cache, findings);
    }
}
