//! From the first key of a kset to its durability: open, close, place, store, done.
//!
//! A close waits for a barrier over the data (a), takes its place in the log (b), is stored (c), waits
//! for a barrier of its own (d), and counts once every kset before it is done too (e). On media
//! whose barrier completes at once all of this happens within one call.

use super::fault::{self, Fault};
use super::group::Env;
use super::lane::{Lane, LaneDone, Wait};
use super::log::{Place, Placed};
use super::shared::Shared;
use super::write::LogRoom;
use crate::bdev::{BarrierTicket, IoStatus, PmemError};
use crate::media::{
    KEYS_MAX, KSET_BYTES_MAX, Key, KsetHeader, encode_kset, encode_last, kset_bytes,
};
use reactors::{Cx, Nanos};
use std::sync::atomic::Ordering;

/// An open kset may hold what a waiting request needs: while there is one it gets no older than this.
pub(super) const PRESSED_NS: u64 = 1_000_000;

/// Why a kset is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Full,
    Age,
    Flush,
    Fua,
    Pressure,
}

/// The kset that a lane fills; its keys are in the staging slot.
#[derive(Debug)]
pub(crate) struct OpenKset {
    pub(crate) slot: usize,
    pub(crate) count: usize,
    pub(crate) opened: Nanos,
    pub(crate) order: u64,
    /// The epoch ends behind it.
    pub(crate) raise: bool,
    /// It has dirty keys whose data the backing gets by writeback only.
    pub(crate) cached: bool,
}

/// A closed kset without a place.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) slot: usize,
    pub(crate) count: usize,
    pub(crate) order: u64,
    pub(crate) raise: bool,
    pub(crate) cached: bool,
    /// The barrier over its data.
    pub(crate) data_barrier: BarrierTicket,
}

/// A stored kset that is not durable yet, or whose slot still holds it.
#[derive(Debug)]
pub(crate) struct PlacedKset {
    order: u64,
    sequence: u64,
    /// Sequence of the LAST that was stored along with it.
    last: Option<u64>,
    slot: Option<usize>,
    barrier: BarrierTicket,
    finished: bool,
}

fn header_at(shared: &Shared, place: &Place) -> KsetHeader {
    KsetHeader {
        incarnation: shared.incarnation,
        salt: place.salt,
        sequence: place.sequence,
        durable: shared.durable.mark(),
        epoch: place.epoch,
    }
}

/// Stores the LAST that leads to a kset, if it needed one.
fn store_last(shared: &Shared, placed: &Placed) -> Result<(), PmemError> {
    let Some((place, to)) = &placed.last else {
        return Ok(());
    };
    let bytes = encode_last(&header_at(shared, place), *to);
    let at = shared.data_at(place.segment, place.offset);
    shared.pmem.store(at, &bytes)
}

impl Lane {
    /// Opens a kset: a staging slot and the promise of log room.
    pub(crate) fn open_kset(&mut self, env: &mut Env, cx: &Cx, room: LogRoom) -> Result<(), Wait> {
        self.free_slots(env);
        let slot = self.staging.find_free();
        let Some(slot) = slot else {
            self.pump(env, cx);
            return Err(Wait::Moment);
        };
        if !self.promised {
            let Some(mut log) = env.shared.log.try_lock() else {
                return Err(Wait::Moment);
            };
            let promised = match room {
                LogRoom::Common => log.promise(),
                LogRoom::Reserved => log.promise_reserved(),
            };
            if !promised {
                return Err(Wait::Space);
            }
            self.promised = true;
        }
        self.promised = false;
        let order = self.next_order;
        self.next_order += 1;
        self.staging.open(slot, order);
        self.open = Some(OpenKset {
            slot,
            count: 0,
            opened: env.now,
            order,
            raise: false,
            cached: false,
        });
        Ok(())
    }

    /// Appends a key to the open kset; there is one with room (`reserve_key`).
    pub(crate) fn append_key(&mut self, env: &mut Env, cx: &Cx, key: &Key) {
        let Some(open) = &mut self.open else { return };
        if open.count == 0 {
            open.opened = env.now;
            env.mark_unplaced(self.number, true);
        }
        self.staging.append(open.slot, open.count, key);
        open.count += 1;
        let full = open.count == KEYS_MAX;
        let is_dirty = key.flags().is_dirty();
        open.cached |= is_dirty && !self.bypass.is_through();
        let order = open.order;
        if self.marks.is_kept() {
            self.mark_key(&env.shared, order, key);
        }
        let stats = self.stats(&env.shared);
        stats.keys.add(1);
        if is_dirty {
            stats.dirty_added.add(u64::from(key.len.get()));
        }
        if full {
            self.close(env, cx, Cause::Full);
        }
    }

    /// Closes the open kset, if there is one, and takes it as far as it goes.
    pub(crate) fn close(&mut self, env: &mut Env, cx: &Cx, cause: Cause) {
        let Some(open) = self.open.take_if(|open| open.count > 0) else {
            return;
        };
        self.close_wanted = false;
        let stats = self.stats(&env.shared);
        match cause {
            Cause::Full => stats.closed_full.add(1),
            Cause::Age => stats.closed_age.add(1),
            Cause::Flush => stats.closed_flush.add(1),
            Cause::Fua => stats.closed_fua.add(1),
            Cause::Pressure => stats.closed_pressure.add(1),
        }
        let data_barrier = if fault::injected(Fault::MissingKsetFence) {
            BarrierTicket(0)
        } else {
            env.submit_barrier(cx)
        };
        let OpenKset {
            slot,
            count,
            order,
            raise,
            cached,
            ..
        } = open;
        self.closing.push_back(Closing {
            slot,
            count,
            order,
            raise,
            cached,
            data_barrier,
        });
        self.pump(env, cx);
    }

    /// Closes the open kset if it is old, for what is going on.
    pub(crate) fn close_if_due(&mut self, env: &mut Env, cx: &Cx) {
        let Some(open) = &self.open else { return };
        let age = env.now.since(open.opened);
        if age >= PRESSED_NS && env.shared.waiting_lanes.load(Ordering::Relaxed) > 0 {
            self.close(env, cx, Cause::Pressure);
        } else if age >= env.shared.options.kset_flush_ns() {
            self.close(env, cx, Cause::Age);
        }
    }

    /// Takes closing and placed ksets as far as barriers, locks and other lanes allow.
    pub(crate) fn pump(&mut self, env: &mut Env, cx: &Cx) {
        while let Some(closing) = self.closing.front() {
            if closing.data_barrier > env.barrier_done || env.shared.has_failed() {
                break;
            }
            if !self.place_front(env, cx) {
                env.retry = true;
                break;
            }
        }
        // Also if it failed just now, by a kset that could not be stored: that one must not count.
        if env.shared.has_failed() {
            self.fail_acks(env);
            return;
        }
        if self.close_wanted && self.closing.is_empty() {
            if self.has_unplaced() {
                self.close(env, cx, Cause::Fua);
                return;
            }
            self.close_wanted = false;
        }
        self.finish_placed(env);
        self.free_slots(env);
        self.complete_acks(env);
    }

    /// Gives the oldest closing kset its place and stores it; false if somebody has the log just now.
    fn place_front(&mut self, env: &mut Env, cx: &Cx) -> bool {
        let Some(closing) = self.closing.front() else {
            return true;
        };
        let shared = env.shared.clone();
        let Some(mut log) = shared.log.try_lock() else {
            return false;
        };
        let bytes = kset_bytes(closing.count);
        let placed = log.place(bytes, closing.raise);
        // In the slot before the kset is stored: replay must know which of the two it has.
        self.staging
            .set_sequence(closing.slot, placed.kset.sequence);
        if placed.promised_again {
            if self.promised {
                log.give_back();
            }
            self.promised = true;
        }
        shared
            .last_sequence
            .store(log.last_sequence(), Ordering::SeqCst);
        if closing.cached {
            let cached_until = &shared.bypassed.cached_until;
            cached_until.store(placed.kset.sequence, Ordering::SeqCst);
        }
        let head = shared.position_of(log.segment, log.offset);
        shared.head_position.store(head, Ordering::Relaxed);
        drop(log);
        let (slot, count, order) = (closing.slot, closing.count, closing.order);
        self.closing.pop_front();
        self.placed_order = order;
        self.note_boundary(placed.kset.sequence);
        if self.marks.is_kept() {
            self.mark_placed(&shared, (slot, count), order, placed.kset.sequence);
        }
        if !self.has_unplaced() {
            env.mark_unplaced(self.number, false);
        }
        let bytes = &mut *env.kset_bytes;
        let stored = self.store_placed(&shared, bytes, slot, count, &placed);
        let barrier = if fault::injected(Fault::MissingFlushFence) {
            BarrierTicket(0)
        } else {
            env.submit_barrier(cx)
        };
        let stored = if fault::injected(Fault::LastNotDurable) {
            stored.and_then(|()| store_last(&shared, &placed))
        } else {
            stored
        };
        if let Err(error) = stored {
            // Final, as a failed barrier: its slot keeps it for the next process.
            shared.fail(&error);
        }
        self.placed.push_back(PlacedKset {
            order,
            sequence: placed.kset.sequence,
            last: placed.last.map(|(place, _)| place.sequence),
            slot: Some(slot),
            barrier,
            finished: false,
        });
        true
    }

    /// Stores a kset, and the LAST before it. What is not stored never counts as stored or durable.
    fn store_placed(
        &self,
        shared: &Shared,
        bytes: &mut [u8; KSET_BYTES_MAX],
        slot: usize,
        count: usize,
        placed: &Placed,
    ) -> Result<(), PmemError> {
        if !fault::injected(Fault::LastNotDurable) {
            store_last(shared, placed)?;
        }
        if placed.last.is_some() {
            shared.log_deficit.fetch_add(1, Ordering::SeqCst);
            shared
                .maintenance
                .log_segments
                .fetch_add(1, Ordering::SeqCst);
            shared.kick_gc();
        }
        let keys = self.staging.keys(slot, count);
        let len = encode_kset(&header_at(shared, &placed.kset), keys, bytes);
        let at = shared.data_at(placed.kset.segment, placed.kset.offset);
        shared.pmem.store(at, &bytes[..len])?;
        // Writeback shall not find a full pool when its period ends. The sum over all lanes is taken
        // now and then only.
        if placed.kset.sequence.is_multiple_of(8)
            && shared.is_dirty_above(shared.options.dirty_low_percent())
        {
            shared.kick_writeback();
        }
        Ok(())
    }

    /// Reports what its barrier has made durable.
    fn finish_placed(&mut self, env: &mut Env) {
        for placed in &mut self.placed {
            if placed.finished {
                continue;
            }
            if placed.barrier > env.barrier_done {
                break;
            }
            placed.finished = true;
            if let Some(last) = placed.last {
                env.shared.finish_durable(last);
            }
            env.shared.finish_durable(placed.sequence);
        }
    }

    /// A slot is free once every kset up to its own is durable. Another lane's may be missing below it,
    /// and replay would stop there; and a barrier that fails may lose ksets that were stored, of which
    /// the next process then finds the keys here.
    fn free_slots(&mut self, env: &Env) {
        let durable = env.shared.durable.mark();
        for placed in &mut self.placed {
            if placed.sequence > durable {
                break;
            }
            if let Some(slot) = placed.slot.take() {
                self.staging.free(slot);
            }
        }
        while let Some(front) = self.placed.front() {
            if !front.finished || front.sequence > durable || front.slot.is_some() {
                break;
            }
            self.durable_order = front.order;
            self.placed.pop_front();
        }
    }

    fn complete_acks(&mut self, env: &mut Env) {
        if self.acks.is_empty() || !env.raise_if_wanted() {
            return;
        }
        let reached = if fault::injected(Fault::AckBeforeDurableSequence) {
            let finished = self.placed.iter().take_while(|placed| placed.finished);
            finished.last().map_or(self.durable_order, |it| it.order)
        } else {
            self.durable_order
        };
        while let Some((order, ..)) = self.acks.front() {
            if *order > reached {
                return;
            }
            if let Some((_, client, done)) = self.acks.pop_front() {
                env.reply(client, done);
            }
        }
        self.forget_acks(env);
    }

    /// None of its requests waits for durability any more.
    fn forget_acks(&mut self, env: &Env) {
        if std::mem::take(&mut self.acks_counted) {
            env.shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The medium failed: what waits for durability is not acknowledged.
    fn fail_acks(&mut self, env: &mut Env) {
        if self.acks.is_empty() {
            return;
        }
        for (_, client, done) in std::mem::take(&mut self.acks) {
            env.reply(
                client,
                LaneDone {
                    status: IoStatus::IoError,
                    ..done
                },
            );
        }
        self.forget_acks(env);
    }

    /// Whether nothing of it is on its way to the log.
    pub(crate) fn is_at_rest(&self) -> bool {
        !self.has_unplaced() && self.placed.is_empty()
    }
}
