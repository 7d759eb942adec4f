//! Replay: reads the log of a cache from its key tail and rebuilds what lives in memory.

use super::CacheError;
use super::control_io::{PairState, load_pair};
use super::error::LogDamage;
use super::geometry::{CacheItem, PoolGeometry, SegIx, SegmentItem};
use super::key::{Key, Kind};
use super::key_index::{BLOCK, KeyIndex, SUBTREE_BYTES};
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
use super::plausible::{COUNT_END, check_count, check_incarnation};
use super::pool::Pool;
use super::segment_map::SegmentMap;
use super::shared::LogPos;
use crate::bdev::Pmem;
use crate::media::{
    self, Boot, CacheEntry, CleanStop, DurableMark, Generation, Incarnation, SegmentInfo, SlotBody,
    SlotKind, Tail, WindowEnd,
};
use crate::units::SegmentId;
use std::sync::Arc;

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
    /// Microseconds that it took.
    pub elapsed_us: u64,
    /// The machine has not been rebooted and the stop was not clean, but the staging file is gone:
    /// acknowledged writes of the last `kset_flush_ms` may be lost.
    pub staging_missing: bool,
}

/// The control items of a cache, with where their next version goes.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) key_tail: (LogPos, PairState),
    pub(crate) dirty_tail: (LogPos, PairState),
    pub(crate) incarnation: (Incarnation, PairState),
    pub(crate) window_end: (u64, PairState),
    pub(crate) clean_stop: (CleanStop, PairState),
    pub(crate) durable_mark: (u64, PairState),
    pub(crate) boot: ([u8; 16], PairState),
}

fn item<B: SlotBody>(
    view: &LogView,
    place: CacheItem,
    kind: SlotKind,
    name: &'static str,
) -> Result<(B, PairState), CacheError> {
    let at = view.geometry.segment_start(view.segments.id(SegIx(0))) + place as u64;
    load_pair(&*view.pmem, at, kind, name)
}

pub(crate) fn tail_pos(
    view: &LogView,
    tail: &Tail,
    item: &'static str,
) -> Result<LogPos, CacheError> {
    let segment = view.segments.find(tail.segment.get());
    let offset = tail.offset.get();
    let fits = u64::from(offset) <= view.geometry.segment_data_bytes()
        && (offset as usize).is_multiple_of(media::KSET_ALIGN)
        && (1..COUNT_END).contains(&tail.sequence.get())
        && tail.epoch.get() < COUNT_END;
    let at = view.geometry.segment_start(view.segments.id(SegIx(0)));
    match segment.filter(|_| fits) {
        Some(segment) => Ok(LogPos {
            segment,
            offset,
            sequence: tail.sequence.get(),
            epoch: tail.epoch.get(),
        }),
        None => {
            let found = u64::from(tail.segment.get());
            Err(CacheError::Identity {
                item,
                at,
                found,
                expected: 0,
            })
        }
    }
}

impl Control {
    /// Reads all items.
    pub(crate) fn load(view: &LogView) -> Result<Self, CacheError> {
        let (key, key_pair) =
            item::<Tail>(view, CacheItem::KeyTail, SlotKind::KeyTail, "key tail")?;
        let (dirty, dirty_pair) = item::<Tail>(
            view,
            CacheItem::DirtyTail,
            SlotKind::DirtyTail,
            "dirty tail",
        )?;
        let (window, window_pair) = item::<WindowEnd>(
            view,
            CacheItem::WindowEnd,
            SlotKind::WindowEnd,
            "window end",
        )?;
        let (mark, mark_pair) = item::<DurableMark>(
            view,
            CacheItem::DurableMark,
            SlotKind::DurableMark,
            "durable mark",
        )?;
        let (place, slot) = (CacheItem::Incarnation, SlotKind::Incarnation);
        let incarnation = item::<Incarnation>(view, place, slot, "incarnation")?;
        let at = view.geometry.segment_start(view.segments.id(SegIx(0))) + place as u64;
        check_incarnation(at, incarnation.0.incarnation.get())?;
        let (boot, boot_pair) = item::<Boot>(view, CacheItem::Boot, SlotKind::Boot, "boot id")?;
        Ok(Self {
            key_tail: (tail_pos(view, &key, "key tail")?, key_pair),
            dirty_tail: (tail_pos(view, &dirty, "dirty tail")?, dirty_pair),
            incarnation,
            window_end: (window.sequence.get(), window_pair),
            clean_stop: item(
                view,
                CacheItem::CleanStop,
                SlotKind::CleanStop,
                "clean stop",
            )?,
            durable_mark: (mark.sequence.get(), mark_pair),
            boot: (boot.boot_id, boot_pair),
        })
    }

    /// The sequence up to which the log is known to reach.
    fn proven_sequence(&self) -> u64 {
        let clean = &self.clean_stop.0;
        let final_sequence = if clean.clean.get() == 1 {
            clean.final_sequence.get()
        } else {
            0
        };
        // A load makes what it replays durable before it begins a run behind it.
        let first_sequence = self.incarnation.0.first_sequence.get();
        final_sequence
            .max(self.durable_mark.0)
            .max(first_sequence.saturating_sub(1))
            .max(self.dirty_tail.0.sequence.saturating_sub(1))
            .max(self.key_tail.0.sequence.saturating_sub(1))
    }

    pub(crate) fn incarnations(&self) -> Incarnations {
        Incarnations {
            current: self.incarnation.0.incarnation.get(),
            first_sequence: self.incarnation.0.first_sequence.get(),
        }
    }
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
    let mut owned: Vec<(u32, SegmentId)> = infos
        .iter()
        .filter(|info| info.cache == entry.uuid)
        .map(|info| (info.place.get(), SegmentId(info.segment.get())))
        .collect();
    owned.sort_unstable();
    let expected = entry.segments.get();
    let ids: Vec<SegmentId> = owned.iter().map(|&(_, id)| id).collect();
    let first = ids.first().map_or(u32::MAX, |id| id.0);
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
        segments: Arc::new(SegmentMap::new(ids, &geometry)),
        cache: entry.uuid,
        backing_bytes: entry.backing_bytes.get(),
    })
}

/// Reads the generation of every segment of the cache.
pub(crate) fn load_generations(view: &LogView) -> Result<Vec<u64>, CacheError> {
    let mut generations = Vec::with_capacity(view.segments.len());
    for id in view.segments.ids() {
        let at = view.geometry.segment_start(*id) + SegmentItem::Generation as u64;
        let (body, _) =
            load_pair::<Generation>(&*view.pmem, at, SlotKind::Generation, "generation")?;
        if body.segment.get() != id.0 {
            let (found, expected) = (body.segment.get().into(), id.0.into());
            return Err(CacheError::Identity {
                item: "generation",
                at,
                found,
                expected,
            });
        }
        check_count("generation", at, body.generation.get())?;
        generations.push(body.generation.get());
    }
    Ok(generations)
}

/// What replay rebuilds.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) indexes: Vec<KeyIndex>,
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
}

/// Index of the lane of the bytes at `offset`, and of the subtree within it.
fn lane_and_subtree(offset: u64, lanes: usize) -> (usize, usize) {
    let subtree = usize::try_from(offset / SUBTREE_BYTES).unwrap_or(usize::MAX);
    (subtree % lanes, subtree / lanes)
}

impl Replayed {
    fn new(view: &LogView, lanes: usize, at: &LogReader) -> Self {
        Self {
            indexes: (0..lanes).map(|_| KeyIndex::default()).collect(),
            serials: vec![0; lanes],
            references: vec![0; view.segments.len()],
            dirty: vec![0; lanes],
            log_segments: vec![at.pos.segment],
            end: at.pos,
            end_salt: at.salt(),
            report: ReplayReport::default(),
        }
    }

    /// Takes a key over: counts its reference, and inserts it if its segment is still what it was.
    pub(crate) fn apply(&mut self, view: &LogView, generations: &[u64], key: &media::Key) -> bool {
        let ident = view.ident(key);
        let flags = key.flags();
        let offset = key.offset.get();
        let (lane, subtree) = lane_and_subtree(offset, self.indexes.len());
        if ident.has_data {
            self.references[ident.segment.index()] += 1;
            if generations[ident.segment.index()] != ident.generation {
                self.report.stale_keys += 1;
                return false;
            }
        } else {
            self.serials[lane] = self.serials[lane].max(ident.generation);
        }
        let blocks = |bytes: u64| u16::try_from(bytes / BLOCK).unwrap_or(u16::MAX);
        let len = blocks(key.len.get().into());
        let key = Key {
            start: blocks(offset % SUBTREE_BYTES),
            len,
            trim: 0,
            whole: len,
            segment: ident.segment,
            segment_offset: ident.segment_offset,
            generation: ident.generation,
            crc: key.crc.get(),
            kind: Kind::of(flags),
        };
        self.indexes[lane].insert(subtree, key);
        true
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

/// Replays the log.
///
/// # Errors
/// Damage, with its position: a kset that must be there and is not, or one that says what can't be.
pub(crate) fn replay(
    view: &LogView,
    control: &Control,
    generations: &[u64],
    lanes: usize,
) -> Result<Replayed, CacheError> {
    let incarnations = control.incarnations();
    let mut reader = LogReader::new(view, control.key_tail.0)?;
    let mut replayed = Replayed::new(view, lanes, &reader);
    let dirty_from = control.dirty_tail.0.sequence;
    loop {
        let before = reader.pos;
        match reader.next(view, &incarnations) {
            Ok(Entry::Kset(kset)) => {
                let bytes = media::kset_bytes(kset.keys.len()) as u64;
                view.pmem
                    .write_back(view.data_at(before.segment, before.offset), bytes);
                replayed.report.ksets += 1;
                replayed.report.keys += kset.keys.len() as u64;
                let sequence = kset.header.sequence;
                for (index, key) in kset.keys.iter().enumerate() {
                    if view.is_ahead(generations, key) {
                        let damage = LogDamage::Key {
                            sequence,
                            index: u32::try_from(index).unwrap_or(u32::MAX),
                            field: "generation",
                            value: key.generation.get(),
                        };
                        return Err(view.damaged(&before, damage));
                    }
                    replayed.apply(view, generations, key);
                    if sequence >= dirty_from {
                        replayed.count_dirty(key);
                    }
                }
            }
            Ok(Entry::Last { .. }) => {
                let at = view.data_at(before.segment, before.offset);
                view.pmem.write_back(at, media::LAST_BYTES as u64);
                replayed.log_segments.push(reader.pos.segment);
                if replayed.log_segments.len() > view.segments.len() {
                    let damage = LogDamage::Last {
                        next: view.segments.id(reader.pos.segment).0,
                    };
                    return Err(view.damaged(&before, damage));
                }
            }
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::NotThere(_)) => break,
        }
    }
    let expected = reader.pos.sequence;
    let proof = match reader.probe_hole(view)? {
        Some(durable) => durable,
        None => control.proven_sequence(),
    };
    if proof >= expected {
        return Err(view.damaged(&reader.pos, LogDamage::Hole { expected, proof }));
    }
    replayed.end = reader.pos;
    replayed.end_salt = reader.salt();
    Ok(replayed)
}
