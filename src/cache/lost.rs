//! What GC does about parts of the log that can't be read while the cache runs: on its own behalf, or
//! for writeback, which waits meanwhile.
//!
//! What such a part said is found out from what it did: its keys are those of the lanes' indexes that
//! no readable kset holds, and its references those that no readable kset accounts for. So all lanes
//! mark their keys; GC reads the log from the key tail to its end, counts, and has the marks of what it
//! meets taken away; then the lanes log again what is still marked, durably, or forget it where the
//! backing has the same. From then on nobody needs what could not be read: both tails pass it as if it
//! were a kset of which only the references are known.

use super::CacheError;
use super::bad::{Answers, Post, PostWish};
use super::cache::Cache;
use super::gc::{Gc, KSETS_A_ROUND, PERIOD_NS, State};
use super::geometry::SegIx;
use super::log_damage::is_damage;
use super::log_probe::load_readable;
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
use super::settle::{Boundary, Sweep};
use super::shared::{LogPos, SEALED, Shared};
use super::try_lock::TryLock;
use crate::bdev::PmemError;
use crate::media::{self, KSET_BYTES_MAX, LAST_BYTES, Parsed, SlotError, parse_kset};
use crate::units::{ByteRange, SegmentId};
use reactors::Cx;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Nobody waits for GC.
const NONE: u8 = 0;
/// Writeback can't read on.
const WANTED: u8 = 1;
/// GC has stopped: nobody will help.
const REFUSED: u8 = 2;

/// A stretch of the log that can't be read.
#[derive(Clone, Debug)]
pub(crate) struct LostStretch {
    /// The first sequence that is lost.
    pub(super) from: u64,
    /// A reader's mark behind it.
    pub(super) to: (LogPos, u64),
    /// What of its keys was current has been logged again up to this sequence.
    pub(super) settled: u64,
    /// References that its keys held, by segment.
    pub(super) references: Vec<(SegIx, u64)>,
    /// Log segments that whoever passes it leaves.
    pub(super) left: Vec<SegIx>,
}

impl LostStretch {
    pub(super) fn has(&self, sequence: u64) -> bool {
        self.from <= sequence && sequence < self.to.0.sequence
    }
}

/// How writeback and GC talk about lost stretches.
#[derive(Debug)]
pub(crate) struct LostBoard {
    asked: AtomicU8,
    /// Those that GC has yet to pass.
    ahead: AtomicU32,
    /// For writeback, which takes them out.
    settled: TryLock<Vec<LostStretch>>,
}

impl Default for LostBoard {
    fn default() -> Self {
        Self {
            asked: AtomicU8::new(NONE),
            ahead: AtomicU32::new(0),
            settled: TryLock::new(Vec::new()),
        }
    }
}

impl LostBoard {
    /// Writeback can't go on; false if nobody will help.
    pub(super) fn ask(&self) -> bool {
        let asked = (self.asked).compare_exchange(NONE, WANTED, Ordering::SeqCst, Ordering::SeqCst);
        asked != Err(REFUSED)
    }

    /// What writeback was waiting for; nothing before GC is done, and an error if it never will be.
    pub(super) fn answer(&self) -> Result<Option<Vec<LostStretch>>, ()> {
        match self.asked.load(Ordering::SeqCst) {
            NONE => Ok(self
                .settled
                .try_lock()
                .map(|mut settled| std::mem::take(&mut *settled))),
            WANTED => Ok(None),
            _ => Err(()),
        }
    }

    /// GC has stopped.
    pub(super) fn refuse(&self) {
        self.asked.store(REFUSED, Ordering::SeqCst);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.asked.load(Ordering::SeqCst) == WANTED
    }

    /// Whether GC has yet to pass one.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead.load(Ordering::SeqCst) > 0
    }
}

#[derive(Debug)]
enum Step {
    /// Lanes mark their keys.
    Mark,
    /// What they held then gets its place, with this number of [`Shared::close_all`].
    Close(u64),
    /// The log is read, once it is durable to the end.
    Walk,
    /// Lanes settle what is still marked.
    Settle,
    /// All is durable: the result becomes known.
    Publish,
}

/// What is under way; see the module.
#[derive(Debug)]
pub(super) struct Recount {
    step: Step,
    /// Writeback waits, at the dirty tail.
    asked: bool,
    /// The highest sequence given out when it began. Keys of later ksets may have come behind the marks,
    /// which take their time.
    begun_at: u64,
    dirty_from: u64,
    boundaries: Arc<[Boundary]>,
    /// [`Shared::added`] of the segments that were sealed.
    sealed: Vec<Option<u64>>,
    /// References to be found in readable ksets.
    found: Vec<u64>,
    /// Bytes of dirty keys from the dirty tail on up to the boundaries.
    dirty: u64,
    reader: LogReader,
    chain: Vec<SegIx>,
    /// A mark behind the last kset to be read.
    end: (LogPos, u64),
    lost: Vec<LostStretch>,
}

impl Recount {
    fn count(&mut self, shared: &Shared, view: &LogView, key: &media::Key, sequence: u64) -> Post {
        let ident = view.ident(key);
        let start = key.offset.get();
        if ident.has_data {
            self.found[ident.segment.index()] += 1;
        }
        let lane = shared.lane_of(start) as usize;
        let until = self.boundaries[lane].sequence.load(Ordering::SeqCst);
        let len = u64::from(key.len.get());
        if key.flags().is_dirty() && sequence >= self.dirty_from && sequence <= until {
            self.dirty += len;
        }
        let range = ByteRange::between(start, start + len);
        Post { range, ident }
    }

    /// Goes on behind what can't be read at the reader's place.
    fn leap(
        &mut self,
        shared: &Shared,
        view: &LogView,
        incarnations: &Incarnations,
    ) -> Result<(), CacheError> {
        let from = self.reader.mark();
        let place = self.chain.iter().position(|&s| s == from.0.segment);
        let rest = self.chain.get(place.unwrap_or(self.chain.len())..);
        let mut to = None;
        let mut left = Vec::new();
        for &segment in rest.unwrap_or_default() {
            let (offset, salt) = if segment == from.0.segment {
                (from.0.offset, Some(from.1))
            } else {
                let start = view.start_of(segment);
                let start = start.inspect_err(|error| suspect_where(shared, view, error));
                // The head's is known without it.
                let head = (segment == self.end.0.segment).then_some(self.end.1);
                (0, start.map_or(head, |start| Some(start.salt.get())))
            };
            let behind = LogPos {
                segment,
                offset,
                ..from.0
            };
            if let Some(salt) = salt {
                to = self.first_behind(view, incarnations, behind, salt)?;
            }
            if to.is_some() || segment == self.end.0.segment {
                break;
            }
            left.push(segment);
        }
        let to = to.unwrap_or(self.end);
        self.reader.return_to(to);
        self.lost.push(LostStretch {
            from: from.0.sequence,
            to,
            settled: 0,
            references: Vec::new(),
            left,
        });
        Ok(())
    }

    /// A mark at the first kset or LAST of this log in a segment, from `at` on, that is behind the lost
    /// one and no newer than the end.
    fn first_behind(
        &self,
        view: &LogView,
        incarnations: &Incarnations,
        at: LogPos,
        salt: u64,
    ) -> Result<Option<(LogPos, u64)>, CacheError> {
        let room = view.geometry.segment_data_bytes() - u64::from(at.offset);
        let mut bytes = vec![0; usize::try_from(room).unwrap_or(0)];
        load_readable(view, view.data_at(at.segment, at.offset), &mut bytes)?;
        for skipped in (0..bytes.len()).step_by(media::KSET_ALIGN) {
            let end = bytes.len().min(skipped + KSET_BYTES_MAX);
            let Some(rest) = bytes
                .get(skipped..end)
                .filter(|rest| rest.len() >= LAST_BYTES)
            else {
                break;
            };
            let header = match parse_kset(rest) {
                Ok(Parsed::Kset(kset)) => kset.header,
                Ok(Parsed::Last(header, _)) => header,
                Err(_) => continue,
            };
            let is_behind = header.sequence > at.sequence && header.sequence < self.end.0.sequence;
            if header.salt == salt && is_behind && incarnations.fit(&header) {
                let offset = at.offset + u32::try_from(skipped).unwrap_or(0);
                let sequence = header.sequence;
                let pos = LogPos {
                    offset,
                    sequence,
                    ..at
                };
                return Ok(Some((pos, salt)));
            }
        }
        Ok(None)
    }
}

impl Gc {
    /// The log can't be read on, here or where writeback stands.
    pub(super) fn begin_recount(&mut self) {
        let shared = self.seed.shared.clone();
        shared.maintenance.degraded.store(true, Ordering::SeqCst);
        let boundaries = (0..shared.lanes).map(|_| Boundary::default());
        let boundaries: Arc<[Boundary]> = boundaries.collect();
        let answers = Answers::default();
        let mark = Sweep::Mark(Arc::clone(&boundaries));
        // Before anybody marks: keys of ksets that have a place are in the index already.
        let begun_at = shared.last_sequence.load(Ordering::SeqCst);
        self.outbox.ask_all(&shared, &mark, &answers);
        let asked = shared.maintenance.lost.is_wanted();
        self.recount = Some(Box::new(Recount {
            step: Step::Mark,
            asked,
            begun_at,
            dirty_from: shared.maintenance.dirty_sequence.load(Ordering::SeqCst),
            boundaries,
            sealed: Vec::new(),
            found: vec![0; shared.segments.places()],
            dirty: 0,
            reader: self.seed.reader.clone(),
            chain: Vec::new(),
            end: self.seed.reader.mark(),
            lost: Vec::new(),
        }));
        self.state = State::Relog(answers, None);
    }

    /// The lanes have answered.
    pub(super) fn recount_answered(&mut self) {
        let shared = self.seed.shared.clone();
        let Some(recount) = &mut self.recount else {
            return;
        };
        if matches!(recount.step, Step::Settle) {
            recount.step = Step::Publish;
        } else {
            // All keys for data in a sealed segment stand in ksets that are closed now.
            let sealed = shared.added.iter().map(|added| {
                let added = added.load(Ordering::SeqCst);
                (added & SEALED != 0).then_some(added & !SEALED)
            });
            recount.sealed = sealed.collect();
            recount.step = Step::Close(shared.close_all_ksets());
        }
        self.state = State::Recount;
    }

    pub(super) fn follow_recount(&mut self, cx: &Cx) -> u32 {
        let Some(mut recount) = self.recount.take() else {
            return 0;
        };
        let shared = self.seed.shared.clone();
        if shared.has_failed() {
            // Nothing becomes durable any more.
            self.halt(&CacheError::Busy("the pool is read-only".into()));
            return 0;
        }
        match recount.step {
            Step::Close(number) if shared.have_closed(number) => {
                if let Some(log) = shared.log.try_lock() {
                    let pos = LogPos {
                        segment: log.segment,
                        offset: log.offset,
                        sequence: log.next_sequence,
                        epoch: log.epoch,
                    };
                    recount.end = (pos, log.salt);
                    recount.chain = log.chain.iter().copied().collect();
                    recount.step = Step::Walk;
                }
            }
            Step::Walk if shared.durable.mark() + 1 >= recount.end.0.sequence => {
                match self.walk_on(&mut recount) {
                    Err(error) => {
                        self.halt(&error);
                        return 0;
                    }
                    Ok(false) => {}
                    Ok(true) => return self.walked(cx, recount),
                }
            }
            Step::Publish => {
                if self.publish_lost(cx, &mut recount) {
                    return 1;
                }
            }
            Step::Mark | Step::Close(_) | Step::Walk | Step::Settle => {}
        }
        self.recount = Some(recount);
        1
    }

    /// Reads a few ksets; true at the end.
    fn walk_on(&mut self, recount: &mut Recount) -> Result<bool, CacheError> {
        let shared = self.seed.shared.clone();
        let view = &self.seed.view;
        let mut posts = Vec::new();
        let mut keys: Vec<media::Key> = Vec::new();
        for _ in 0..KSETS_A_ROUND {
            let sequence = recount.reader.pos.sequence;
            if !self.outbox.is_empty() || sequence >= recount.end.0.sequence {
                break;
            }
            if let Some(known) = self.lost.iter().find(|lost| lost.has(sequence)) {
                recount.reader.return_to(known.to);
                continue;
            }
            let before = recount.reader.mark();
            keys.clear();
            let error = match recount.reader.next(view, &self.seed.incarnations) {
                Ok(Entry::Last { .. }) => None,
                Ok(Entry::Kset(kset)) => {
                    keys.extend_from_slice(kset.keys);
                    None
                }
                Err(Stop::NotThere(damage)) => Some(view.damaged(&before.0, damage)),
                Err(Stop::Error(error)) => Some(error),
            };
            if let Some(error) = error {
                recount.reader.return_to(before);
                if !is_damage(&error) {
                    return Err(error);
                }
                note_unreadable(&shared, view, &before.0, &error);
                recount.leap(&shared, view, &self.seed.incarnations)?;
            }
            let keys = keys.iter();
            posts.extend(keys.map(|key| recount.count(&shared, view, key, sequence)));
        }
        self.outbox.send_as(&shared, posts, || PostWish::Unmark);
        self.outbox.pump(&shared);
        Ok(recount.reader.pos.sequence >= recount.end.0.sequence)
    }

    /// The whole log has been read: what is missing is what can't be read.
    fn walked(&mut self, cx: &Cx, mut recount: Box<Recount>) -> u32 {
        let shared = self.seed.shared.clone();
        let newest = recount.lost.last().map(|lost| lost.to.0.sequence - 1);
        if newest > Some(recount.begun_at) {
            // It may hold keys that came when their part of the index had been marked: once more.
            self.begin_recount();
            return 1;
        }
        let dirty_tail = shared.maintenance.dirty_sequence.load(Ordering::SeqCst);
        let unwritten = |lost: &LostStretch| lost.to.0.sequence > dirty_tail;
        if !recount.asked && recount.lost.iter().any(unwritten) {
            // Writeback will come there and ask.
            self.stuck_at = Some(dirty_tail);
            shared.kick_writeback();
            self.state = State::Idle(cx.now().after(PERIOD_NS));
            return 1;
        }
        let references = self.missing(&recount);
        if let Some(last) = recount.lost.last_mut() {
            last.references = references;
        }
        let answers = Answers::default();
        let settle = Sweep::Settle {
            dirty: recount.asked,
        };
        self.outbox.ask_all(&shared, &settle, &answers);
        recount.step = Step::Settle;
        self.recount = Some(recount);
        self.state = State::Relog(answers, None);
        1
    }

    /// References that no readable kset accounts for.
    fn missing(&self, recount: &Recount) -> Vec<(SegIx, u64)> {
        let mut known = vec![0; self.dropped.len()];
        for &(segment, count) in self.lost.iter().flat_map(|lost| &lost.references) {
            known[segment.index()] += count;
        }
        let missing = recount
            .sealed
            .iter()
            .enumerate()
            .filter_map(|(at, sealed)| {
                let accounted = self.dropped[at] + recount.found[at] + known[at];
                let missing = (*sealed)?.checked_sub(accounted);
                debug_assert!(missing.is_some(), "segment {at} has too many references");
                missing
                    .filter(|count| *count > 0)
                    .map(|count| (SegIx::of(at), count))
            });
        missing.collect()
    }

    /// Lets both tails pass what is lost; false if a lock was taken.
    fn publish_lost(&mut self, cx: &Cx, recount: &mut Recount) -> bool {
        let shared = self.seed.shared.clone();
        let board = &shared.maintenance.lost;
        let Some(mut settled) = board.settled.try_lock() else {
            return false;
        };
        let last = shared.last_sequence.load(Ordering::SeqCst);
        let mut ksets = 0;
        for lost in &mut recount.lost {
            lost.settled = last;
            ksets += lost.to.0.sequence - lost.from;
        }
        self.seed.stats.lost_ksets.add(ksets);
        if recount.asked {
            let boundaries = recount.boundaries.iter();
            let added: u64 = boundaries.map(|b| b.dirty.load(Ordering::SeqCst)).sum();
            let passed = &shared.maintenance.dirty_passed;
            // What of it is still wanted has been logged again, and counts there.
            let here = recount.dirty + passed.load(Ordering::SeqCst);
            passed.fetch_add(added.saturating_sub(here), Ordering::SeqCst);
            settled.extend(recount.lost.iter().cloned());
        }
        drop(settled);
        self.lost.append(&mut recount.lost);
        self.lost.sort_by_key(|lost| lost.from);
        self.note_lost_ahead();
        shared.maintenance.degraded.store(false, Ordering::SeqCst);
        if recount.asked {
            board.asked.store(NONE, Ordering::SeqCst);
            shared.ring_maintenance();
        }
        tracing::warn!(
            cache = %shared.name, ksets,
            "{}", "a part of the log that can't be read was settled: what it held is logged again"
        );
        self.state = State::Idle(cx.now());
        true
    }

    /// Passes the lost stretch at the key tail, if one is there and lies before `limit`.
    pub(super) fn pass_lost(&mut self, limit: u64) -> bool {
        let begin = self.seed.reader.pos.sequence;
        let mut to = None;
        let mut sequence = begin;
        while let Some(lost) = self.lost.iter().find(|lost| lost.has(sequence)) {
            sequence = lost.to.0.sequence;
            to = Some(lost.to);
        }
        let Some(to) = to.filter(|_| sequence <= limit) else {
            return false;
        };
        self.seed.reader.return_to(to);
        self.lap.note(false);
        // Others of which it has passed the beginning, too.
        let passed = self.lost.partition_point(|lost| lost.from < sequence);
        let passed: Vec<LostStretch> = self.lost.drain(..passed).collect();
        for lost in passed {
            for &(segment, count) in &lost.references {
                self.drop_references(segment, count);
            }
            let new = lost.left.into_iter().filter(|s| !self.left.contains(s));
            let new: Vec<SegIx> = new.collect();
            self.left.extend(new);
        }
        true
    }

    /// The key tail is durable, or something was settled: says what it has yet to pass.
    pub(super) fn note_lost_ahead(&self) {
        let ahead = u32::try_from(self.lost.len()).unwrap_or(u32::MAX);
        let board = &self.shared().maintenance.lost;
        board.ahead.store(ahead, Ordering::SeqCst);
    }

    /// Whether the key tail stands at a lost stretch, or before one, that the dirty tail has passed: it
    /// goes there by itself, for the next load would end there.
    pub(super) fn has_lost_behind(&self, limit: u64) -> bool {
        self.lost.iter().any(|lost| lost.to.0.sequence <= limit)
    }
}

impl Cache {
    /// Whether a part of the log is known to be unreadable, and needed by the next load.
    #[must_use]
    pub fn is_log_lost(&self) -> bool {
        let board = &self.shared.maintenance.lost;
        board.is_ahead() || board.is_wanted()
    }
}

fn note_unreadable(shared: &Shared, view: &LogView, pos: &LogPos, error: &CacheError) {
    let segment = view.segments.id(pos.segment).0;
    tracing::warn!(
        cache = %shared.name, segment, offset = pos.offset, sequence = pos.sequence, %error,
        "the log can't be read here"
    );
    suspect_where(shared, view, error);
}

/// Where the medium can't be read, if that is what the error says.
fn unreadable_at(error: &CacheError) -> Option<u64> {
    match error {
        CacheError::Medium(PmemError::Poison { at, .. }) => Some(*at),
        CacheError::Metadata {
            at, first, second, ..
        } if [first, second].contains(&&SlotError::Unreadable) => Some(*at),
        _ => None,
    }
}

/// The segment that could not be read is not used again.
pub(super) fn suspect_where(shared: &Shared, view: &LogView, error: &CacheError) {
    let Some(at) = unreadable_at(error) else {
        return;
    };
    let holds = |id: SegmentId| {
        let start = view.geometry.segment_start(id);
        (start..start + view.geometry.segment_bytes).contains(&at)
    };
    if let Some((segment, _)) = view.segments.iter().find(|&(_, id)| holds(id)) {
        shared.suspect(segment);
    }
}
