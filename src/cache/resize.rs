//! A running cache gets more segments, or gives some up.
//!
//! *Growing*: a control thread gives it free segments of the pool, durably; then GC hands them out.
//!
//! *Shrinking*: which segments leave is not chosen. GC keeps back some of those that it frees, as if
//! somebody waited for space, until there are enough. Nothing refers to these any more, and every reader
//! has passed a quiescent point. Then GC makes the key tail stand in both slots behind all that ever
//! referred to them: with the loss of one, replay would come to keys of segments that are another's. A
//! control thread gives them to the pool, durably. The target is in memory only: a stop or a death
//! forgets it, and the cache has what it had.

use super::CacheError;
use super::cache::Cache;
use super::create::check_segments;
use super::fault::{self, Fault};
use super::gc::Gc;
use super::geometry::{SegIx, segments_needed};
use super::segment_alloc::SegmentAlloc;
use super::shared::{SEALED, Shared};
use super::stop::Stop;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// What control threads and GC tell each other. GC only tries the lock.
#[derive(Debug, Default)]
pub(crate) struct ResizeBoard {
    /// The cache's new segments, which GC has not handed out yet.
    joined: Vec<SegIx>,
    /// Segments that GC has kept back: in nobody's hands.
    kept: Vec<SegIx>,
    /// Counts what was asked for.
    number: u64,
}

/// See [`ResizeBoard`]: the parts that others look at, too.
#[derive(Debug, Default)]
pub(crate) struct Resize {
    pub(crate) board: RwLock<ResizeBoard>,
    /// How many segments shall leave.
    pub(crate) wanted: AtomicU32,
    /// How many GC has kept back.
    pub(crate) kept: AtomicU32,
    /// GC shall look at the board.
    pub(crate) news: AtomicBool,
    /// For which number of the board all are kept back, with the key tail behind all that referred to
    /// them in both slots.
    pub(crate) sealed: AtomicU64,
}

impl Resize {
    /// Segments that shall leave and are still in use.
    pub(crate) fn draining(&self) -> u32 {
        let wanted = self.wanted.load(Ordering::SeqCst);
        wanted.saturating_sub(self.kept.load(Ordering::SeqCst))
    }
}

/// For an audit.
impl ResizeBoard {
    /// Segments that are kept back; nothing if others are on their way.
    pub(crate) fn kept(&self) -> Option<&[SegIx]> {
        self.joined.is_empty().then_some(&self.kept)
    }
}

/// How far GC is with the key tail's second slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TailSeal {
    /// Nobody needs it.
    #[default]
    Unneeded,
    /// The next store does it.
    Wanted,
    /// It is being made durable.
    Stored,
}

/// What GC remembers of a resize.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// It counts among those who wait for space.
    waits: bool,
    /// For which number of the board.
    number: u64,
    /// Lanes go first this time.
    lanes_first: bool,
    pub(super) seal: TailSeal,
}

impl Gc {
    /// Hands out segments that joined and keeps back those that shall leave; whether it did anything.
    pub(super) fn follow_resize(&mut self) -> bool {
        let shared = self.seed.shared.clone();
        let resize = &shared.resize;
        let has_news = resize.news.load(Ordering::SeqCst);
        if !has_news && resize.draining() == 0 {
            return false;
        }
        let (Ok(mut board), Some(mut alloc)) = (resize.board.try_write(), shared.alloc.try_lock())
        else {
            // Again at once.
            resize.news.store(true, Ordering::SeqCst);
            return false;
        };
        resize.news.store(false, Ordering::SeqCst);
        let mut moved = board.joined.len();
        for segment in board.joined.drain(..) {
            self.dropped[segment.index()] = 0;
            alloc.release(segment);
        }
        let wanted = resize.wanted.load(Ordering::SeqCst) as usize;
        while board.kept.len() > wanted
            && let Some(segment) = board.kept.pop()
        {
            alloc.release(segment);
            moved += 1;
        }
        let before = board.kept.len();
        self.keep_back(&mut alloc, &mut board.kept, wanted);
        moved += board.kept.len() - before;
        let kept = u32::try_from(board.kept.len()).unwrap_or(u32::MAX);
        resize.kept.store(kept, Ordering::SeqCst);
        let free = u32::try_from(alloc.free_count()).unwrap_or(u32::MAX);
        shared.free_segments.store(free, Ordering::Relaxed);
        if self.drain.number != board.number {
            self.drain.number = board.number;
            self.drain.seal = TailSeal::Unneeded;
        }
        drop((board, alloc));
        if moved > 0 {
            shared.ring_waiting_lanes();
        }
        self.note_draining(has_news, wanted > 0 && wanted == kept as usize);
        moved > 0
    }

    /// Keeps back free segments, but none that the log's reserve lacks. While lanes wait they and the
    /// resize go first in turn.
    fn keep_back(&mut self, alloc: &mut SegmentAlloc, kept: &mut Vec<SegIx>, wanted: usize) {
        let shared = &self.seed.shared;
        if fault::injected(Fault::GivenBackUndrained) && kept.len() < wanted {
            let in_use =
                |place: &SegIx| shared.added[place.index()].load(Ordering::SeqCst) > SEALED;
            let mut places = (1..shared.segments.places()).map(SegIx::of);
            kept.extend(places.find(|place| in_use(place) && !kept.contains(place)));
        }
        let mut spared = shared.log_deficit.load(Ordering::SeqCst) as usize;
        if kept.len() < wanted && alloc.waiting_count() > 0 {
            self.drain.lanes_first = !self.drain.lanes_first;
            if self.drain.lanes_first {
                spared += alloc.waiting_count();
            }
        }
        while kept.len() < wanted
            && alloc.free_count() > spared
            // The first segment has the control items, and bad ones are of no use to the pool.
            && let Some(segment) = alloc.take_where(|s| s != SegIx(0) && !shared.is_suspect(s))
        {
            kept.push(segment);
        }
    }

    fn note_draining(&mut self, has_news: bool, is_drained: bool) {
        let shared = self.seed.shared.clone();
        let waits = shared.resize.draining() > 0;
        if waits && !self.drain.waits {
            shared.waiting_lanes.fetch_add(1, Ordering::SeqCst);
        } else if !waits && self.drain.waits {
            shared.waiting_lanes.fetch_sub(1, Ordering::SeqCst);
        }
        self.drain.waits = waits;
        if waits && has_news {
            shared.make_room();
        }
        let sealed = shared.resize.sealed.load(Ordering::SeqCst) == self.drain.number;
        self.drain.seal = match self.drain.seal {
            _ if !is_drained || sealed => TailSeal::Unneeded,
            TailSeal::Unneeded => TailSeal::Wanted,
            going_on => going_on,
        };
    }

    /// The key tail has been made durable where it stands.
    pub(super) fn note_tail_durable(&mut self) {
        if self.drain.seal == TailSeal::Stored {
            self.drain.seal = TailSeal::Unneeded;
            let number = self.drain.number;
            self.shared().resize.sealed.store(number, Ordering::SeqCst);
        }
    }
}

/// How a resize stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeStatus {
    /// Segments before it.
    pub old_segments: u32,
    /// Segments behind it.
    pub new_segments: u32,
    /// How many of those that shall leave are still in use.
    pub draining: u32,
}

/// What a cache knows of its resize.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    /// Old and new segments, and the board's number, while it is under way.
    target: Option<(u32, u32, u64)>,
    /// One failed half-way: none is begun any more by this run.
    is_refused: bool,
}

impl Shared {
    /// Segments that joined get their places.
    fn take_in(&self, joined: &[super::owners::Joined]) -> Vec<SegIx> {
        let vacant: Vec<SegIx> = self.segments.vacant().take(joined.len()).collect();
        for (&segment, joined) in vacant.iter().zip(joined) {
            let index = segment.index();
            self.generations[index].store(joined.generation, Ordering::SeqCst);
            self.added[index].store(0, Ordering::SeqCst);
            self.segments.put(segment, joined.id);
        }
        vacant
    }

    /// Tells GC to look.
    fn ring_resize(&self) {
        self.resize.news.store(true, Ordering::SeqCst);
        self.kick_gc();
    }

    /// So many segments shall leave; gives the board's number for it.
    fn ask_to_leave(&self, segments: u32) -> u64 {
        let board = self.resize.board.write();
        let mut board = board.unwrap_or_else(PoisonError::into_inner);
        board.number += 1;
        let number = board.number;
        self.resize.wanted.store(segments, Ordering::SeqCst);
        drop(board);
        self.ring_resize();
        number
    }
}

impl Cache {
    /// Begins to give the cache `bytes` of pool space, rounded down to whole segments. Growing is done
    /// when this returns; shrinking goes on with [`Cache::resize_step`]. Asked for the present size, it
    /// calls off one that is under way. On control threads only.
    ///
    /// # Errors
    /// Sizes that can't be, too few free segments, another resize under way, a cache that is read-only
    /// or stops, a medium that fails. The cache has what it had.
    pub fn resize_start(&self, bytes: u64) -> Result<ResizeStatus, CacheError> {
        let shutdown = self.shutdown.read().unwrap_or_else(PoisonError::into_inner);
        self.refuse_resize(shutdown.step)?;
        let mut resizing = self
            .resizing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let shared = &self.shared;
        let now = shared.segment_count();
        let wanted = check_segments(bytes, shared.lanes, shared.geometry.segment_bytes)?;
        let status = ResizeStatus {
            old_segments: now,
            new_segments: wanted,
            draining: now.saturating_sub(wanted),
        };
        match resizing.target {
            Some(_) if wanted == now => {
                resizing.target = None;
                shared.ask_to_leave(0);
                return Ok(status);
            }
            Some((_, target, _)) => return Err(CacheError::Resizing { target }),
            None if resizing.is_refused => {
                let why = "a resize of it failed half-way; load it anew first";
                return Err(CacheError::Busy(why.into()));
            }
            None => {}
        }
        if wanted > now {
            self.grow(wanted - now)?;
        } else if wanted < now {
            self.check_good(wanted)?;
            let number = shared.ask_to_leave(now - wanted);
            resizing.target = Some((now, wanted, number));
        }
        Ok(status)
    }

    /// Takes a resize one step on; whether none is under way any more.
    ///
    /// # Errors
    /// A medium that fails, or a stop: then it is called off.
    pub fn resize_step(&self) -> Result<bool, CacheError> {
        let shutdown = self.shutdown.read().unwrap_or_else(PoisonError::into_inner);
        let mut resizing = self
            .resizing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let Some((_, _, number)) = resizing.target else {
            return Ok(true);
        };
        if let Err(error) = self.refuse_resize(shutdown.step) {
            resizing.target = None;
            self.shared.ask_to_leave(0);
            return Err(error);
        }
        if self.shared.resize.sealed.load(Ordering::SeqCst) != number {
            return Ok(false);
        }
        resizing.target = None;
        let given = self.give_back();
        // What is still kept back goes back to work.
        self.shared.ask_to_leave(0);
        resizing.is_refused = given.is_err();
        self.pool.note_failure(&given);
        given.map(|()| true)
    }

    /// The resize that is under way.
    #[must_use]
    pub fn resize_status(&self) -> Option<ResizeStatus> {
        let resizing = self.resizing.read().unwrap_or_else(PoisonError::into_inner);
        let (old_segments, new_segments, _) = resizing.target?;
        Some(ResizeStatus {
            old_segments,
            new_segments,
            draining: self.shared.resize.draining(),
        })
    }

    /// Gives the volume the size that its backing has grown to, durably, in whole blocks; true if that is
    /// another one. Channels that are open go on with the one that they know. On control threads only.
    ///
    /// # Errors
    /// A backing that is smaller than the volume, a cache that is read-only or stops, a medium that fails.
    pub fn follow_backing(&self) -> Result<bool, CacheError> {
        let shutdown = self.shutdown.read().unwrap_or_else(PoisonError::into_inner);
        let info = self.backing().info();
        let block = u64::from(self.shared.block_bytes);
        let (found, now) = (
            info.bytes() / block * block,
            shutdown.end.view.backing_bytes(),
        );
        if found < now {
            return Err(CacheError::BackingChanged {
                name: info.name.clone(),
                what: "size",
                found: info.bytes().to_string(),
                recorded: now.to_string(),
            });
        }
        if found == now {
            return Ok(false);
        }
        self.refuse_resize(shutdown.step)?;
        // Before a key of the log says anything of the new part.
        let recorded = self.pool.record_backing_bytes(self.shared.uuid, found);
        self.pool.note_failure(&recorded);
        recorded?;
        shutdown
            .end
            .view
            .volume_bytes
            .store(found, Ordering::Release);
        self.set_blocks(found / block);
        Ok(true)
    }

    fn refuse_resize(&self, step: Stop) -> Result<(), CacheError> {
        if step != Stop::Running {
            return Err(CacheError::Busy("the cache is being stopped".into()));
        }
        if self.shared.read_only {
            return Err(CacheError::Salvaged);
        }
        if self.shared.has_failed() {
            return Err(CacheError::PoolFailed);
        }
        Ok(())
    }

    /// Bad segments stay, and are of no use.
    fn check_good(&self, segments: u32) -> Result<(), CacheError> {
        let shared = &self.shared;
        let bad = shared.suspect_count.load(Ordering::SeqCst);
        let needed = segments_needed(shared.lanes, shared.log_reserve);
        if segments.saturating_sub(bad) < needed {
            return Err(CacheError::Invalid(format!(
                "of {segments} segments {bad} would be bad ones; {needed} good ones are needed"
            )));
        }
        Ok(())
    }

    fn grow(&self, more: u32) -> Result<(), CacheError> {
        let shared = &self.shared;
        // Stale keys of the index name places: none of them may come true with a new segment there.
        let lives = shared.segments.vacant();
        let lives = lives.map(|at| shared.generations[at.index()].load(Ordering::SeqCst));
        let above = lives.max().unwrap_or(0);
        let joined = self.pool.grow_cache(shared.uuid, more, above);
        self.pool.note_failure(&joined);
        let joined = joined?;
        let places = shared.take_in(&joined);
        shared.segment_count.fetch_add(more, Ordering::SeqCst);
        let mut board = shared
            .resize
            .board
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        board.joined.extend(places);
        drop(board);
        shared.ring_resize();
        Ok(())
    }

    /// Gives what is drained to the pool.
    fn give_back(&self) -> Result<(), CacheError> {
        let shared = &self.shared;
        let mut board = shared
            .resize
            .board
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<_> = board
            .kept
            .iter()
            .map(|&at| shared.segments.id(at))
            .collect();
        self.pool.give_back(shared.uuid, &ids)?;
        for segment in board.kept.drain(..) {
            shared.segments.vacate(segment);
        }
        let gone = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        shared.segment_count.fetch_sub(gone, Ordering::SeqCst);
        shared.resize.wanted.store(0, Ordering::SeqCst);
        shared.resize.kept.store(0, Ordering::SeqCst);
        Ok(())
    }
}
