//! Replay: reads the log of a cache from its key tail and rebuilds what lives in memory.

use super::CacheError;
use super::bulk_insert::BulkInsert;
use super::control::Control;
use super::copies::CopiesUntil;
use super::error::LogDamage;
use super::fault::{self, Fault};
use super::generations::Generations;
use super::geometry::{PoolGeometry, SegIx};
use super::key::{Key, Kind};
use super::key_index::{BLOCK, KeyIndex, SUBTREE_BYTES};
use super::load_report::{LostClean, Missing, Unwritable};
use super::log::Place;
use super::log_damage::{Walked, is_damage, is_unreadable, lost_clean, missing};
use super::log_reader::{Entry, LogReader, LogView, Stop};
use super::pool::Pool;
use super::segment_map::SegmentMap;
use super::shared::LogPos;
use super::staged::Staged;
use crate::bdev::Pmem;
use crate::media::{self, CacheEntry, SealedKset, SegmentInfo};
use crate::units::SegmentId;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What a load found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Ksets in the log.
    pub ksets: u64,
    /// Keys in them.
    pub keys: u64,
    /// Keys whose segment has been released since.
    pub stale_keys: u64,
    /// Keys of open ksets that an earlier process left in the staging file.
    pub staged_keys: u64,
    /// Bytes that the backing lacks.
    pub dirty_bytes: u64,
    /// Bytes whose data are lost: reads of them fail.
    pub bad_bytes: u64,
    /// Microseconds that it took.
    pub elapsed_us: u64,
    /// The machine has not been rebooted and the stop was not clean, but the staging file is gone:
    /// acknowledged writes of the last `kset_flush_ms` may be lost.
    pub staging_missing: bool,
    /// The backing is another one, or was changed, and `force` took it: nothing that was only a copy
    /// of it was kept.
    pub clean_dropped: bool,
    /// The log was damaged, or given up, before the dirty tail, where it was written back.
    pub lost_clean: Option<LostClean>,
    /// Only with salvage: what of the log could not be taken, and what it wrote.
    pub missing: Option<Missing>,
    /// All is there, but a run would have to be written where the medium takes nothing: it is read-only.
    pub unwritable: Option<Unwritable>,
}

/// Finds a cache's segments and opens a view of its log.
pub(crate) fn open_view(pool: &Pool, entry: &CacheEntry) -> Result<LogView, CacheError> {
    view_of(&pool.pmem, pool.geometry, &pool.segment_infos()?, entry)
}

/// As [`open_view`], by the infos of the pool's segments.
pub(crate) fn view_of(
    pmem: &Arc<dyn Pmem>,
    geometry: PoolGeometry,
    infos: &[SegmentInfo],
    entry: &CacheEntry,
) -> Result<LogView, CacheError> {
    let mut owned: Vec<(u32, SegmentId, bool)> = infos
        .iter()
        .filter(|info| info.is_of(entry))
        .map(|info| {
            let id = SegmentId(info.segment.get());
            (info.place.get(), id, info.is_bad())
        })
        .collect();
    owned.sort_unstable();
    let expected = entry.segments.get();
    let ids: Vec<(SegmentId, bool)> = owned.iter().map(|&(_, id, bad)| (id, bad)).collect();
    let first = ids.first().map_or(u32::MAX, |(id, _)| id.0);
    if ids.is_empty() || ids.len() != expected as usize || first != entry.first_segment.get() {
        let found = ids.len() as u64;
        let item = "segments of the cache";
        return Err(CacheError::Identity {
            item,
            at: 0,
            found,
            expected: expected.into(),
        });
    }
    Ok(LogView {
        pmem: Arc::clone(pmem),
        geometry,
        segments: Arc::new(SegmentMap::new(&ids, &geometry)),
        cache: entry.uuid,
        volume_bytes: Arc::new(AtomicU64::new(entry.backing_bytes.get())),
    })
}

/// What replay rebuilds.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) indexes: Vec<KeyIndex>,
    /// What the walk along the log has not inserted into them yet.
    late: BulkInsert,
    /// Highest serial of a key without data, for each lane.
    pub(crate) serials: Vec<u64>,
    /// Keys of the log whose data lie in a segment, stale ones included.
    pub(crate) references: Vec<u64>,
    /// Dirty bytes of each lane.
    pub(crate) dirty: Vec<u64>,
    /// Log segments from key tail to head, in order.
    pub(crate) log_segments: Vec<SegIx>,
    /// The end of the log, and the salt there.
    pub(crate) end: LogPos,
    pub(crate) end_salt: u64,
    pub(crate) report: ReplayReport,
    /// The log is damaged before the dirty tail: this begins there, and so must the key tail.
    pub(crate) begins_at_dirty_tail: bool,
    /// The place where it ends can't be read, though nothing is lost there.
    pub(crate) end_unreadable: bool,
}

/// What a load wants of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReplayWish {
    /// What stands before damage is enough.
    pub(crate) salvage: bool,
    /// The backing was changed: what only repeats it must not be served.
    pub(crate) drop_clean: bool,
}

/// Index of the lane of the bytes at `offset`, and of the subtree within it.
fn lane_and_subtree(offset: u64, lanes: usize) -> (usize, usize) {
    let subtree = usize::try_from(offset / SUBTREE_BYTES).unwrap_or(usize::MAX);
    (subtree % lanes, subtree / lanes)
}

fn block_count(bytes: u64) -> u16 {
    u16::try_from(bytes / BLOCK).unwrap_or(u16::MAX)
}

impl Replayed {
    pub(crate) fn new(view: &LogView, lanes: usize, at: &LogReader) -> Self {
        Self {
            indexes: (0..lanes).map(|_| KeyIndex::default()).collect(),
            late: BulkInsert::default(),
            serials: vec![0; lanes],
            references: vec![0; view.segments.places()],
            dirty: vec![0; lanes],
            log_segments: vec![at.pos.segment],
            end: at.pos,
            end_salt: at.salt(),
            report: ReplayReport::default(),
            begins_at_dirty_tail: false,
            end_unreadable: false,
        }
    }

    /// Takes over a key that only says what the backing had until it was changed: it refers to its
    /// data, and what was there before it is over.
    fn supersede(&mut self, view: &LogView, generations: &[u64], key: &media::Key) {
        if let Some((lane, subtree, admitted)) = self.admit(view, generations, key) {
            self.late.settle(&mut self.indexes, lane, subtree);
            self.indexes[lane].insert(subtree, admitted);
            let start = block_count(key.offset.get() % SUBTREE_BYTES);
            let end = start.saturating_add(block_count(key.len.get().into()));
            self.indexes[lane].remove_exact(subtree, start, end, &view.ident(key));
        }
    }

    /// Takes a key over that is not written back: counts its reference, and inserts it if its segment is
    /// still what it was. Tells which.
    pub(crate) fn apply(&mut self, view: &LogView, generations: &[u64], key: &media::Key) -> bool {
        let admitted = self.admit(view, generations, key);
        if let Some((lane, subtree, key)) = admitted {
            self.late.settle(&mut self.indexes, lane, subtree);
            self.indexes[lane].insert(subtree, key);
        }
        admitted.is_some()
    }

    /// Counts the reference of a key. What belongs into the index: lane, subtree of it, and key; nothing
    /// if its segment is no longer what it was.
    fn admit(
        &mut self,
        view: &LogView,
        generations: &[u64],
        key: &media::Key,
    ) -> Option<(usize, usize, Key)> {
        let ident = view.ident(key);
        let flags = key.flags();
        let offset = key.offset.get();
        let (lane, subtree) = lane_and_subtree(offset, self.indexes.len());
        if ident.has_data {
            let is_current = generations[ident.segment.index()] == ident.generation;
            if is_current || !fault::injected(Fault::ReferenceDroppedOnOverwrite) {
                self.references[ident.segment.index()] += 1;
            }
            if !is_current {
                self.report.stale_keys += 1;
                return None;
            }
        } else {
            self.serials[lane] = self.serials[lane].max(ident.generation);
        }
        let len = block_count(key.len.get().into());
        let key = Key {
            start: block_count(offset % SUBTREE_BYTES),
            len,
            trim: 0,
            whole: len,
            segment: ident.segment,
            segment_offset: ident.segment_offset,
            generation: ident.generation,
            crc: key.crc.get(),
            kind: Kind::of(flags),
        };
        Some((lane, subtree, key))
    }

    /// Takes the keys of a kset over. Those before `dirty_from` are written back.
    pub(crate) fn take(
        &mut self,
        view: &LogView,
        generations: &[u64],
        kset: &SealedKset,
        copies: CopiesUntil,
        dirty_from: u64,
    ) {
        self.report.ksets += 1;
        self.report.keys += kset.keys.len() as u64;
        for key in kset.keys {
            if copies.is_old_copy(key, kset.header.sequence) {
                self.supersede(view, generations, key);
            } else if let Some((lane, subtree, mut key)) = self.admit(view, generations, key) {
                // Else a read that finds its data lost could not ask the backing while others are dirty.
                if kset.header.sequence < dirty_from {
                    key.kind = key.kind.written_back();
                }
                self.late.push(&mut self.indexes, lane, subtree, key);
            }
            if kset.header.sequence >= dirty_from {
                self.count_dirty(key);
            }
        }
    }

    /// Inserts what was put off: behind the last [`Self::take`].
    pub(crate) fn insert_late(&mut self) {
        self.late.finish(&mut self.indexes);
    }

    /// Where the log goes on, in an epoch of its own: a flush that ended the last one may have been
    /// acknowledged before the death.
    pub(crate) fn log_place(&self) -> Place {
        Place {
            segment: self.end.segment,
            offset: self.end.offset,
            salt: self.end_salt,
            sequence: self.end.sequence,
            epoch: self.end.epoch + 1,
        }
    }

    /// Takes note of the serials of keys that will be applied later, so that none is given out twice.
    pub(crate) fn note_serials<'a>(&mut self, keys: impl Iterator<Item = &'a media::Key>) {
        for key in keys.filter(|key| !key.flags().has_data()) {
            let (lane, _) = lane_and_subtree(key.offset.get(), self.serials.len());
            self.serials[lane] = self.serials[lane].max(key.generation.get());
        }
    }

    /// A serial that the lane of the bytes at `offset` has not used.
    pub(crate) fn next_serial(&self, offset: u64) -> u64 {
        let (lane, _) = lane_and_subtree(offset, self.serials.len());
        self.serials[lane] + 1
    }

    /// Counts a dirty key that is not written back yet.
    pub(crate) fn count_dirty(&mut self, key: &media::Key) {
        if key.flags().is_dirty() {
            let (lane, _) = lane_and_subtree(key.offset.get(), self.dirty.len());
            self.dirty[lane] += u64::from(key.len.get());
            self.report.dirty_bytes += u64::from(key.len.get());
        }
    }
}

fn begin_at(view: &LogView, from: LogPos) -> Result<LogReader, CacheError> {
    let mut reader = LogReader::new(view, from)?;
    if fault::injected(Fault::TailWithoutSequence) {
        reader.expect_what_stands_here(view);
    }
    Ok(reader)
}

/// Walks the log from `from` to its end, or to where it is damaged.
fn walk(
    view: &LogView,
    control: &Control,
    generations: &mut Generations,
    (lanes, staged): (usize, &Staged),
    from: LogPos,
    copies: CopiesUntil,
) -> Result<Walked, CacheError> {
    let incarnations = control.incarnations();
    let reader = match begin_at(view, from) {
        Ok(reader) => reader,
        Err(error) if is_damage(&error) => {
            let reader = LogReader::without_start(from);
            let replayed = Replayed::new(view, lanes, &reader);
            return Ok(Walked::new(replayed, reader).broken(error));
        }
        Err(error) => return Err(error),
    };
    let mut walked = Walked::new(Replayed::new(view, lanes, &reader), reader);
    let dirty_from = control.dirty_tail.0.sequence;
    let stop = loop {
        let before = walked.reader.mark();
        let replayed = &mut walked.replayed;
        match walked.reader.next(view, &incarnations) {
            Ok(Entry::Kset(kset)) => {
                if let Some(damage) = view.life_ahead(&generations.now, &kset) {
                    walked.learned = generations.learn(view, kset.keys);
                    walked.reader.return_to(before);
                    break Stop::Error(view.damaged(&before.0, damage));
                }
                let bytes = media::kset_bytes(kset.keys.len()) as u64;
                view.pmem
                    .write_back(view.data_at(before.0.segment, before.0.offset), bytes);
                kset.keys.iter().for_each(|key| walked.seen.note(key));
                let stale = replayed.report.stale_keys;
                replayed.take(view, &generations.now, &kset, copies, dirty_from);
                if replayed.report.stale_keys > stale {
                    walked.passed = Some(walked.reader.pos);
                }
            }
            Ok(Entry::Last { .. }) => {
                let at = view.data_at(before.0.segment, before.0.offset);
                view.pmem.write_back(at, media::LAST_BYTES as u64);
                walked.hops.push(walked.reader.pos);
                replayed.log_segments.push(walked.reader.pos.segment);
                if replayed.log_segments.len() > view.segments.count() {
                    let damage = LogDamage::Last {
                        next: view.segments.id(walked.reader.pos.segment).0,
                    };
                    walked.reader.return_to(before);
                    break Stop::Error(view.damaged(&before.0, damage));
                }
            }
            Err(stop) => {
                walked.reader.return_to(before);
                break stop;
            }
        }
    };
    walked.replayed.insert_late();
    walked.replayed.end = walked.reader.pos;
    walked.replayed.end_salt = walked.reader.salt();
    match stop {
        Stop::NotThere(_) => walked.at_end(view, control, staged, false),
        Stop::Error(error) if is_unreadable(&error) => walked.at_end(view, control, staged, true),
        Stop::Error(error) if is_damage(&error) => Ok(walked.broken(error)),
        Stop::Error(error) => Err(error),
    }
}

/// Replays the log. Damage that lies before the dirty tail as a whole loses only what the backing
/// has: then this begins at the dirty tail.
///
/// # Errors
/// Damage behind it, with its position, unless `wish` is to salvage: a kset that must be there and is
/// not, or one that says what can't be.
pub(crate) fn replay(
    view: &LogView,
    control: &mut Control,
    generations: &mut Generations,
    lanes: usize,
    wish: ReplayWish,
    staged: &Staged,
) -> Result<Replayed, CacheError> {
    let mut walked = loop {
        let copies = CopiesUntil::new(control, wish);
        let from = control.key_tail.0;
        let walked = walk(view, control, generations, (lanes, staged), from, copies)?;
        if walked.learned {
            continue;
        }
        match walked.real_tail(control, staged, view) {
            Some(pos) => control.pass_to(pos),
            None => break walked,
        }
    };
    let mut lost = None;
    let dirty = control.dirty_tail.0;
    if let Some(damage) = &walked.damage
        && walked.reader.pos.sequence < dirty.sequence
    {
        tracing::error!(%damage, "the log is damaged, but there the backing has all of it");
        lost = Some(lost_clean(view, control, &walked, damage)?);
        walked = loop {
            let copies = CopiesUntil::new(control, wish);
            let walked = walk(view, control, generations, (lanes, staged), dirty, copies)?;
            if !walked.learned {
                break walked;
            }
        };
        walked.replayed.begins_at_dirty_tail = true;
    }
    walked.replayed.report.lost_clean = lost;
    walked.replayed.report.clean_dropped = wish.drop_clean;
    match walked.damage.take() {
        None => Ok(walked.replayed),
        Some(damage) if wish.salvage => {
            walked.replayed.report.missing = Some(missing(view, control, &walked, &damage)?);
            Ok(walked.replayed)
        }
        Some(damage) => Err(damage),
    }
}
