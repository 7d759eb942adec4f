//! Replay: reads the log of a cache from its key tail and rebuilds what lives in memory.

use super::CacheError;
use super::backing_sample::SAMPLE_ITEMS;
use super::control_io::{PairState, load_pair};
use super::error::LogDamage;
use super::fault::{self, Fault};
use super::geometry::{CacheItem, PoolGeometry, SegIx, SegmentItem};
use super::key::{Key, Kind};
use super::key_index::{BLOCK, KeyIndex, SUBTREE_BYTES};
use super::load_report::{LostClean, Missing, Unwritable};
use super::log::Place;
use super::log_damage::{Walked, is_damage, is_unreadable, lost_clean, missing};
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
use super::plausible::{COUNT_END, check_count, check_incarnation};
use super::pool::Pool;
use super::segment_map::SegmentMap;
use super::shared::LogPos;
use super::staged::Staged;
use crate::bdev::{Pmem, PmemError};
use crate::media::{
    self, BackingSample, Boot, CacheEntry, CleanStop, DurableMark, Generation, Incarnation,
    KeyFlags, SealedKset, SegmentInfo, SlotBody, SlotKind, Tail, WindowEnd,
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

/// The control items of a cache, with where their next version goes.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) key_tail: (LogPos, PairState),
    pub(crate) dirty_tail: (LogPos, PairState),
    pub(crate) incarnation: (Incarnation, PairState),
    pub(crate) window_end: (u64, PairState),
    pub(crate) clean_stop: (CleanStop, PairState),
    /// Where the next samples of the backing go.
    pub(crate) samples: [PairState; 3],
    pub(crate) durable_mark: (u64, PairState),
    pub(crate) boot: ([u8; 16], PairState),
    /// The tails in memory are beyond those on media, since these have gone back.
    pub(crate) tails_moved: bool,
}

fn item<B: SlotBody>(
    view: &LogView,
    place: CacheItem,
    kind: SlotKind,
    name: &'static str,
) -> Result<(B, PairState), CacheError> {
    load_pair(&*view.pmem, item_at(view, place), kind, name)
}

fn item_at(view: &LogView, place: CacheItem) -> u64 {
    view.geometry.segment_start(view.segments.id(SegIx(0))) + place as u64
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
        let key_tail = tail_pos(view, &key, "key tail")?;
        let mut dirty_tail = tail_pos(view, &dirty, "dirty tail")?;
        if dirty_pair.lost && dirty_tail.sequence < key_tail.sequence {
            // It has gone back: a key tail never passes the durable dirty tail.
            dirty_tail = key_tail;
        }
        Ok(Self {
            key_tail: (key_tail, key_pair),
            dirty_tail: (dirty_tail, dirty_pair),
            tails_moved: false,
            incarnation,
            window_end: (window.sequence.get(), window_pair),
            clean_stop: item(
                view,
                CacheItem::CleanStop,
                SlotKind::CleanStop,
                "clean stop",
            )?,
            samples: SAMPLE_ITEMS.map(|(place, kind, name)| {
                // They count with a clean stop only, and are written anew as a whole.
                item::<BackingSample>(view, place, kind, name)
                    .map_or_else(|_| PairState::fresh(item_at(view, place)), |(_, pair)| pair)
            }),
            durable_mark: (mark.sequence.get(), mark_pair),
            boot: (boot.boot_id, boot_pair),
        })
    }

    /// The samples of the backing that were taken when it was stopped, if they count.
    pub(super) fn recorded_samples(
        &self,
        view: &LogView,
    ) -> Result<Option<[BackingSample; 3]>, CacheError> {
        let clean = &self.clean_stop.0;
        if !self.stopped_clean() || clean.sampled.get() != 1 {
            return Ok(None);
        }
        let mut samples = Vec::new();
        for (place, kind, name) in SAMPLE_ITEMS {
            let (sample, pair) = item::<BackingSample>(view, place, kind, name)?;
            let (found, expected) = (sample.final_sequence.get(), clean.final_sequence.get());
            if found != expected && pair.unreadable {
                tracing::warn!(item = name, "it can't be read: the backing is not compared");
                return Ok(None);
            }
            if found != expected {
                return Err(CacheError::Identity {
                    item: name,
                    at: item_at(view, place),
                    found,
                    expected,
                });
            }
            samples.push(sample);
        }
        Ok(samples.try_into().ok())
    }

    /// Whether the last run is known to have ended cleanly. If a slot of the record is lost, it may be
    /// the one that says that another run has begun.
    pub(super) fn stopped_clean(&self) -> bool {
        self.clean_stop.0.clean.get() == 1 && !self.clean_stop.1.lost
    }

    /// The number of the next run. If a slot is lost, a run may have been that is not known.
    pub(super) fn next_incarnation(&self) -> u32 {
        let (body, pair) = &self.incarnation;
        body.incarnation.get() + 1 + u32::from(pair.lost)
    }

    /// Whether it is known that no sequence from `first` on was given out.
    fn ends_before(&self, first: u64) -> bool {
        self.stopped_clean() && self.clean_stop.0.final_sequence.get() < first
    }

    /// Moves the tails on to `pos`: it is known that the real ones are there or beyond.
    fn pass_to(&mut self, pos: LogPos) {
        self.tails_moved = true;
        self.key_tail.0 = pos;
        if self.dirty_tail.0.sequence < pos.sequence {
            self.dirty_tail.0 = pos;
        }
    }

    /// What a lost slot may have said of the state of the backing: with the log's end, which is `end`, the
    /// backing is between boundaries until all is written back.
    pub(super) fn doubt_boundaries(&mut self, end: u64) {
        if self.window_end.1.unreadable || self.dirty_tail.1.unreadable {
            self.window_end.0 = self.window_end.0.max(end);
        }
    }

    /// Tries to store in each slot that can't be read: a run has to.
    ///
    /// # Errors
    /// The medium's, but for poison: what that hits is told.
    pub(super) fn make_writable(
        &mut self,
        pmem: &dyn Pmem,
    ) -> Result<Option<Unwritable>, PmemError> {
        let mut pairs = vec![
            ("key tail", &mut self.key_tail.1),
            ("dirty tail", &mut self.dirty_tail.1),
            ("incarnation", &mut self.incarnation.1),
            ("window end", &mut self.window_end.1),
            ("clean stop", &mut self.clean_stop.1),
            ("durable mark", &mut self.durable_mark.1),
            ("boot id", &mut self.boot.1),
        ];
        for (item, pair) in pairs.iter_mut().filter(|(_, pair)| pair.unreadable) {
            let at = pair.next_at();
            // Not zero: it must not look as if it had never been written.
            match pmem.store(at, &[0xff; media::SLOT_BYTES]) {
                Err(PmemError::Poison { .. }) => return Ok(Some(Unwritable { item, at })),
                other => other?,
            }
            pair.unreadable = false;
        }
        Ok(None)
    }

    /// The sequence up to which the log is known to reach.
    pub(super) fn proven_sequence(&self) -> u64 {
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
    let mut owned: Vec<(u32, SegmentId, bool)> = infos
        .iter()
        .filter(|info| info.cache == entry.uuid)
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
        segments: Arc::new(SegmentMap::new(ids, &geometry)),
        cache: entry.uuid,
        backing_bytes: entry.backing_bytes.get(),
    })
}

/// The generations of the segments of a cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generations {
    pub(crate) now: Vec<u64>,
    /// A slot is lost: it may have held the next one.
    doubtful: Vec<bool>,
    /// Which were found to be one above what their good slots say.
    pub(crate) raised: Vec<SegIx>,
}

impl Generations {
    /// Looks at keys that are of a later life than their segments. One is durable before keys carry it:
    /// where a slot is lost, they prove that it held the next one. Whether that explains all of them.
    pub(super) fn learn(&mut self, view: &LogView, keys: &[media::Key]) -> bool {
        for key in keys {
            if view.check_key(key).is_err() || !view.is_ahead(&self.now, key) {
                continue;
            }
            let ident = view.ident(key);
            let place = ident.segment.index();
            if !self.doubtful[place] || ident.generation != self.now[place] + 1 {
                return false;
            }
            self.doubtful[place] = false;
            self.now[place] += 1;
            self.raised.push(ident.segment);
        }
        true
    }
}

/// Reads the generation of every segment of the cache.
pub(crate) fn load_generations(view: &LogView) -> Result<Generations, CacheError> {
    let mut generations = Generations::default();
    for id in view.segments.ids() {
        let at = view.geometry.segment_start(*id) + SegmentItem::Generation as u64;
        let (body, pair) =
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
        generations.now.push(body.generation.get());
        generations.doubtful.push(pair.lost);
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
            serials: vec![0; lanes],
            references: vec![0; view.segments.len()],
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
        if self.apply(view, generations, key) {
            let (lane, subtree) = lane_and_subtree(key.offset.get(), self.indexes.len());
            let start = block_count(key.offset.get() % SUBTREE_BYTES);
            let end = start.saturating_add(block_count(key.len.get().into()));
            self.indexes[lane].remove_exact(subtree, start, end, &view.ident(key));
        }
    }

    /// Takes a key over: counts its reference, and inserts it if its segment is still what it was.
    pub(crate) fn apply(&mut self, view: &LogView, generations: &[u64], key: &media::Key) -> bool {
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
                return false;
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
        self.indexes[lane].insert(subtree, key);
        true
    }

    /// Takes the keys of a kset over.
    fn take(
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
            } else {
                self.apply(view, generations, key);
            }
            if kset.header.sequence >= dirty_from {
                self.count_dirty(key);
            }
        }
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

/// Which keys say only what the backing has, or had when it was another one.
#[derive(Clone, Copy, Debug)]
struct CopiesUntil {
    /// CLEAN keys below this sequence do not count …
    clean: u64,
    /// … and below this one no data at all: they were written back.
    written_back: u64,
}

impl CopiesUntil {
    fn new(control: &Control, wish: ReplayWish) -> Self {
        let body = &control.incarnation.0;
        if wish.drop_clean {
            return Self {
                clean: u64::MAX,
                written_back: control.dirty_tail.0.sequence,
            };
        }
        Self {
            clean: body.clean_until.get(),
            written_back: body.written_back_until.get(),
        }
    }

    fn is_old_copy(self, key: &media::Key, sequence: u64) -> bool {
        let flags = key.flags();
        let says_data = !flags.has(KeyFlags::BAD) && !flags.has(KeyFlags::INVALID);
        says_data && sequence < self.written_back
            || flags.has(KeyFlags::CLEAN) && sequence < self.clean
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
                if replayed.log_segments.len() > view.segments.len() {
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
    walked.replayed.end = walked.reader.pos;
    walked.replayed.end_salt = walked.reader.salt();
    match stop {
        Stop::NotThere(_) => walked.at_end(view, control, staged, false),
        Stop::Error(error) if is_unreadable(&error) => walked.at_end(view, control, staged, true),
        Stop::Error(error) if is_damage(&error) => Ok(walked.broken(error)),
        Stop::Error(error) => Err(error),
    }
}

impl Walked {
    /// No kset continues the log here, or it can't be told (`unreadable`): this is its end, unless
    /// something proves that it goes on, or, if it can't be told, nothing proves that it does not.
    fn at_end(
        mut self,
        view: &LogView,
        control: &Control,
        staged: &Staged,
        unreadable: bool,
    ) -> Result<Self, CacheError> {
        let (pos, expected) = (self.reader.pos, self.reader.pos.sequence);
        let found = self.reader.probe_hole(view)?;
        let proof = found.unwrap_or_else(|| control.proven_sequence());
        if proof >= expected {
            let hole = LogDamage::Hole { expected, proof };
            return Ok(self.broken(view.damaged(&pos, hole)));
        }
        if !unreadable || control.ends_before(expected) || staged.has_all_from(expected) {
            self.replayed.end_unreadable = unreadable;
            return Ok(self);
        }
        Ok(self.broken(view.damaged(&pos, LogDamage::Unreadable { expected })))
    }

    /// Where the key tail is at least, if the walk began at one that has gone back: a segment is released
    /// only when the key tail is past all keys that refer to it, and past all of it that is log.
    fn real_tail(&self, control: &Control, staged: &Staged, view: &LogView) -> Option<LogPos> {
        let ((key_tail, key_pair), (dirty_tail, dirty_pair)) =
            (&control.key_tail, &control.dirty_tail);
        if !key_pair.lost {
            return None;
        }
        let references = staged.references(view, self.replayed.end.sequence);
        let is_data = |segment: &SegIx| {
            self.replayed.references[segment.index()] + references[segment.index()] > 0
        };
        let hops = self.replayed.log_segments.iter().zip(&self.hops);
        let reused = hops
            .filter(|(segment, _)| is_data(segment))
            .map(|(_, pos)| *pos);
        reused
            .chain(self.passed)
            .filter(|pos| pos.sequence > key_tail.sequence)
            .filter(|pos| pos.sequence <= dirty_tail.sequence || dirty_pair.lost)
            .max_by_key(|pos| pos.sequence)
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
