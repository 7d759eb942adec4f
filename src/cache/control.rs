//! The control items of a cache as a load finds them, and what they prove.

use super::CacheError;
use super::backing_sample::SAMPLE_ITEMS;
use super::control_io::{PairState, load_pair};
use super::geometry::{CacheItem, SegIx};
use super::load_report::Unwritable;
use super::log_reader::{Incarnations, LogView, tail_body};
use super::plausible::{COUNT_END, check_incarnation};
use super::shared::LogPos;
use crate::bdev::{Pmem, PmemError};
use crate::media::{
    self, BackingFlush, BackingSample, Boot, CleanStop, DurableMark, Incarnation, SlotBody,
    SlotError, SlotKind, Tail, WindowEnd,
};
use zerocopy::little_endian::U64;

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
    /// Whether the backing has lost what it had acknowledged.
    pub(crate) backing_flush: (BackingFlush, PairState),
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
            backing_flush: item(
                view,
                CacheItem::BackingFlush,
                SlotKind::BackingFlush,
                "backing flush",
            )?,
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
            let (sample, pair) = match item::<BackingSample>(view, place, kind, name) {
                Err(CacheError::Metadata { first, second, .. })
                    if [first, second].contains(&SlotError::Unreadable) =>
                {
                    tracing::warn!(item = name, "it can't be read: the backing is not compared");
                    return Ok(None);
                }
                other => other?,
            };
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
    pub(super) fn ends_before(&self, first: u64) -> bool {
        self.stopped_clean() && self.clean_stop.0.final_sequence.get() < first
    }

    /// Moves the tails on to `pos`: it is known that the real ones are there or beyond.
    pub(super) fn pass_to(&mut self, pos: LogPos) {
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
            // As good as lost, until it says so.
            self.window_end.1.lost = true;
        }
    }

    /// Makes durable until where the backing is between boundaries, if that was in doubt: before a slot
    /// of the dirty tail is stored, behind which nobody would know of a loss.
    ///
    /// # Errors
    /// The medium's.
    pub(super) fn repair_window_end(&mut self, pmem: &dyn Pmem) -> Result<(), PmemError> {
        let (sequence, pair) = &mut self.window_end;
        if !pair.lost {
            return Ok(());
        }
        let body = WindowEnd {
            sequence: U64::new(*sequence),
            spare: [0; 40],
        };
        pair.store(pmem, SlotKind::WindowEnd, &body)?;
        pmem.barrier_wait()
    }

    /// Stores what the load took for true in the slots that are lost: the other one, written when the item
    /// changed last, might be lost long before it changes again. Only in a run that has begun: until then
    /// a load must see that something is lost.
    ///
    /// # Errors
    /// The medium's.
    pub(super) fn repair(&mut self, view: &LogView) -> Result<(), PmemError> {
        let pmem = &*view.pmem;
        // A key tail never passes the durable dirty tail.
        for (kind, (pos, pair)) in [
            (SlotKind::DirtyTail, &mut self.dirty_tail),
            (SlotKind::KeyTail, &mut self.key_tail),
        ] {
            if pair.lost {
                pair.store(pmem, kind, &tail_body(view, pos))?;
                pmem.barrier_wait()?;
            }
        }
        let (sequence, pair) = &mut self.durable_mark;
        if pair.lost {
            let body = DurableMark {
                sequence: U64::new(*sequence),
                spare: [0; 40],
            };
            pair.store(pmem, SlotKind::DurableMark, &body)?;
            pmem.barrier_wait()?;
        }
        let (body, pair) = &mut self.backing_flush;
        if pair.lost {
            pair.store(pmem, SlotKind::BackingFlush, body)?;
            pmem.barrier_wait()?;
        }
        Ok(())
    }

    /// Tries to store in each slot that can't be read: a run has to.
    ///
    /// # Errors
    /// The medium's, but for poison: what that hits is told.
    pub(super) fn make_writable(
        &mut self,
        pmem: &dyn Pmem,
    ) -> Result<Option<Unwritable>, PmemError> {
        let mut pairs = [
            ("key tail", &mut self.key_tail.1),
            ("dirty tail", &mut self.dirty_tail.1),
            ("incarnation", &mut self.incarnation.1),
            ("window end", &mut self.window_end.1),
            ("clean stop", &mut self.clean_stop.1),
            ("durable mark", &mut self.durable_mark.1),
            ("boot id", &mut self.boot.1),
            ("backing flush", &mut self.backing_flush.1),
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
