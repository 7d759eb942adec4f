//! What an earlier process acknowledged and could not log: found in the staging file, applied and
//! logged by the next load.

use super::CacheError;
use super::control::Control;
use super::fault::{self, Fault};
use super::geometry::{SegmentItem, largest_ksets};
use super::log::{LogHead, Place};
use super::log_reader::LogView;
use super::pool::Pool;
use super::replay::{ReplayWish, Replayed, open_view};
use super::shared::Runtime;
use super::staging::{LaneStaging, Section, StagedKset, StagingFile};
use crate::media::{
    self, CacheEntry, KSET_BYTES_MAX, KeyFlags, KsetHeader, encode_kset, encode_last, kset_bytes,
};
use crate::units::ByteRange;
use std::collections::BTreeSet;
use std::path::Path;
use zerocopy::little_endian::{U32, U64};

/// The staging slots of a cache, and what an earlier process left in them.
pub(crate) struct Staged {
    pub(crate) section: Section,
    pub(crate) lanes: Vec<LaneStaging>,
    left_over: Vec<Vec<StagedKset>>,
    /// The last sequence that the earlier process gave out, if the slots are its own.
    last_given: Option<u64>,
    pub(crate) missing: bool,
}

pub(crate) fn open_staging(
    pool: &Pool,
    place: usize,
    entry: &CacheEntry,
    control: &Control,
    runtime: &Runtime,
    wish: ReplayWish,
    look_only: bool,
) -> Result<Staged, CacheError> {
    let file = if look_only {
        StagingFile::copy_of(&runtime.run_dir, pool.uuid())?
    } else {
        StagingFile::open(&runtime.run_dir, pool.uuid())?
    };
    let section = file.header(place)?;
    let count = entry.lanes.get() as usize;
    let mut lanes = Vec::with_capacity(count);
    for lane in 0..count {
        lanes.push(file.lane(place, lane)?);
    }
    let incarnation = control.incarnation.0.incarnation.get();
    // A boot id that is lost tells nothing; the section has its own.
    let same_boot = control.boot.0 == runtime.boot_id || control.boot.1.lost;
    let stopped_clean = control.stopped_clean();
    // The next one is that of a load that was cut off after it took the slots over.
    let ours = section.read().is_some_and(|header| {
        header.cache == entry.uuid
            && header.lanes == entry.lanes.get()
            && header.boot_id == runtime.boot_id
            && (incarnation..=control.next_incarnation()).contains(&header.incarnation)
    });
    let ignored = fault::injected(Fault::StagingIgnored);
    let usable = ours && !stopped_clean && !ignored;
    let given = lanes.iter().map(LaneStaging::last_given).max();
    let last_given = given.filter(|_| usable);
    let left_over = if usable {
        let mut left_over: Vec<Vec<StagedKset>> =
            lanes.iter().map(LaneStaging::left_over).collect();
        let body = &control.incarnation.0;
        // Also of a load that dropped them and was cut off before it had emptied the slots.
        if wish.drop_clean || body.clean_until.get() == body.first_sequence.get() {
            for kset in left_over.iter_mut().flatten() {
                kset.keys.retain(|key| !key.flags().has(KeyFlags::CLEAN));
            }
        }
        left_over
    } else {
        lanes.iter_mut().for_each(LaneStaging::clear);
        vec![Vec::new(); count]
    };
    let missing = same_boot && !stopped_clean && !ours;
    Ok(Staged {
        section,
        lanes,
        left_over,
        last_given,
        missing,
    })
}

impl Staged {
    /// The ksets that are not in the log, which goes on with sequence `first`.
    pub(crate) fn unlogged(&self, first: u64) -> impl Iterator<Item = &StagedKset> {
        let ksets = self.left_over.iter().flatten();
        ksets.filter(move |kset| kset.sequence == 0 || kset.sequence >= first)
    }

    /// Whether nothing of a kset with sequence `first` or a later one is lost where the log is taken to
    /// end before it: none was given out, or all of them still stand here.
    pub(crate) fn has_all_from(&self, first: u64) -> bool {
        let Some(last) = self.last_given else {
            return false;
        };
        let here: BTreeSet<u64> = self.unlogged(first).map(|kset| kset.sequence).collect();
        (first..=last).all(|sequence| here.contains(&sequence))
    }

    /// All keys that are not in the log, which goes on with sequence `first`.
    pub(crate) fn keys(&self, first: u64) -> impl Iterator<Item = &media::Key> {
        self.unlogged(first).flat_map(|kset| &kset.keys)
    }

    /// Log segments that they can take at most.
    pub(crate) fn log_segments_needed(&self, first: u64, segment_data_bytes: u64) -> u32 {
        let ksets = u32::try_from(self.unlogged(first).count()).unwrap_or(u32::MAX);
        match ksets {
            0 => 0,
            _ => ksets.div_ceil(largest_ksets(segment_data_bytes).max(1)) + 1,
        }
    }

    /// Checks that their segments have not gone back to an earlier life.
    ///
    /// # Errors
    /// [`CacheError::Impossible`], naming the generation.
    pub(crate) fn check_generations(
        &self,
        view: &LogView,
        generations: &[u64],
        first: u64,
    ) -> Result<(), CacheError> {
        let keys = self.unlogged(first).flat_map(|kset| &kset.keys);
        let mut good = keys.filter(|key| view.check_key(key).is_ok());
        let Some(key) = good.find(|key| view.is_ahead(generations, key)) else {
            return Ok(());
        };
        let segment = view.ident(key).segment;
        let start = view.geometry.segment_start(view.segments.id(segment));
        Err(CacheError::Impossible {
            item: "generation",
            at: start + SegmentItem::Generation as u64,
            value: generations.get(segment.index()).copied().unwrap_or(0),
        })
    }

    /// References that their keys hold, so that the segments are not taken for free.
    pub(crate) fn references(&self, view: &LogView, first: u64) -> Vec<u64> {
        let mut references = vec![0; view.segments.places()];
        for key in self.unlogged(first).flat_map(|kset| &kset.keys) {
            if view.check_key(key).is_ok() && key.flags().has_data() {
                references[view.ident(key).segment.index()] += 1;
            }
        }
        references
    }
}

/// The key itself if its data are there, else a BAD key in its place, or none for a clean one. A process may have ended because a
/// barrier failed: then the medium may have lost what these keys speak of, and what stood there before
/// must not pass for it.
fn believed(
    view: &LogView,
    replayed: &mut Replayed,
    generations: &[u64],
    data_crc: bool,
    key: &media::Key,
) -> Option<media::Key> {
    let (ident, flags) = (view.ident(key), key.flags());
    if fault::injected(Fault::StagedDataBelieved) {
        return Some(*key);
    }
    let is_current = generations[ident.segment.index()] == ident.generation;
    if !ident.has_data || !is_current || !(data_crc || flags.has(KeyFlags::SUMMED)) {
        return Some(*key);
    }
    let mut bytes = vec![0; key.len.get() as usize];
    let at = view.data_at(ident.segment, ident.segment_offset);
    let loaded = view.pmem.load(at, &mut bytes);
    if loaded.is_ok() && media::crc(&bytes) == key.crc.get() {
        return Some(*key);
    }
    if flags.has(KeyFlags::CLEAN) {
        // The backing has them.
        return None;
    }
    let range = ByteRange::between(
        key.offset.get(),
        key.offset.get() + u64::from(key.len.get()),
    );
    tracing::error!(%range, "the medium has lost data of an earlier process: they become BAD");
    Some(media::Key {
        offset: key.offset,
        len: key.len,
        flags: U32::new(KeyFlags::BAD.0),
        segment: U32::ZERO,
        segment_offset: U32::ZERO,
        generation: U64::new(replayed.next_serial(key.offset.get())),
        crc: U32::ZERO,
        spare: U32::ZERO,
    })
}

/// Salvage: shows what an earlier process acknowledged and could not log, as far as it fits. Where ksets
/// behind a bad place can still be read and are not shown, it does not: what these keys stood on is
/// missing. Else they are the newest that there is for their ranges.
pub(crate) fn take_staged(
    view: &LogView,
    staged: &Staged,
    replayed: &mut Replayed,
    generations: &[u64],
    data_crc: bool,
) {
    let first = replayed.end.sequence;
    let keys = staged.unlogged(first).flat_map(|kset| &kset.keys);
    let keys = keys.filter(|key| view.check_key(key).is_ok());
    if let Some(missing) = &mut replayed.report.missing
        && missing.ksets > 0
    {
        missing.add_staged(keys);
        return;
    }
    let keys: Vec<&media::Key> = keys.collect();
    replayed.note_serials(keys.iter().copied());
    for key in keys {
        let Some(key) = believed(view, replayed, generations, data_crc, key) else {
            continue;
        };
        if replayed.apply(view, generations, &key) {
            replayed.count_dirty(&key);
            replayed.report.staged_keys += 1;
        }
    }
}

/// (3) Applies what an earlier process acknowledged and could not log, and closes it as ksets of this
/// run. The slots are emptied once these are durable.
pub(crate) fn close_staged(
    view: &LogView,
    staged: &mut Staged,
    replayed: &mut Replayed,
    generations: &[u64],
    log: &mut LogHead,
    incarnation: u32,
    data_crc: bool,
) -> Result<(), CacheError> {
    let first = replayed.end.sequence;
    let durable = first - 1;
    let header = |place: &Place| KsetHeader {
        incarnation,
        salt: place.salt,
        sequence: place.sequence,
        durable,
        epoch: place.epoch,
    };
    let keys = staged.unlogged(first).flat_map(|kset| &kset.keys);
    replayed.note_serials(keys.filter(|key| view.check_key(key).is_ok()));
    for kset in staged.unlogged(first) {
        let mut keys: Vec<media::Key> = Vec::with_capacity(kset.keys.len());
        for key in kset.keys.iter().filter(|key| view.check_key(key).is_ok()) {
            let Some(key) = believed(view, replayed, generations, data_crc, key) else {
                continue;
            };
            if replayed.apply(view, generations, &key) {
                replayed.count_dirty(&key);
                replayed.report.staged_keys += 1;
                keys.push(key);
            }
        }
        if keys.is_empty() {
            continue;
        }
        if !log.promise_reserved() {
            // More was made ready than they can take (`Staged::log_segments_needed`).
            let wanted = staged.log_segments_needed(first, view.geometry.segment_data_bytes());
            return Err(CacheError::NoSegments { wanted, free: 0 });
        }
        let placed = log.place(kset_bytes(keys.len()), false);
        if placed.promised_again {
            log.give_back();
        }
        if let Some((place, last)) = placed.last {
            let at = view.data_at(place.segment, place.offset);
            view.pmem.store(at, &encode_last(&header(&place), last))?;
            replayed.log_segments.push(placed.kset.segment);
        }
        let mut bytes = [0; KSET_BYTES_MAX];
        let len = encode_kset(&header(&placed.kset), &keys, &mut bytes);
        view.pmem.store(
            view.data_at(placed.kset.segment, placed.kset.offset),
            &bytes[..len],
        )?;
    }
    view.pmem.barrier_wait()?;
    // Only once the slots are empty their keys are nowhere but in these ksets.
    if let Some(lane) = staged.lanes.first_mut() {
        lane.set_last_given(log.last_sequence());
    }
    staged.lanes.iter_mut().for_each(LaneStaging::clear);
    Ok(())
}

impl Pool {
    /// Removes the staging file from `run_dir` if every cache of the pool was stopped cleanly, so that
    /// memory is not held for nothing. No cache of it may be loaded.
    ///
    /// # Errors
    /// Corrupt metadata, or a file that can't be removed.
    pub fn forget_staging(&self, run_dir: &Path) -> Result<(), CacheError> {
        if self.is_read_only() {
            return Ok(());
        }
        for entry in self.caches() {
            let control = Control::load(&open_view(self, &entry)?)?;
            if !control.stopped_clean() {
                return Ok(());
            }
        }
        StagingFile::remove(run_dir, self.uuid())
    }
}
