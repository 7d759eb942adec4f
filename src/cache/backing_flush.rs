//! Flushes of the backing for writes that have bypassed the cache: for FLUSH, before a stop, and so that
//! what such writes left can be cached. One at a time, all by the first group, so that one that fails is
//! known before the next one begins.

use super::group::{Env, Group};
use super::lane::LaneDone;
use super::latency::{Stamp, Timed};
use crate::bdev::{Data, IoStatus, Op, Request};
use crate::units::ByteRange;
use reactors::{Cx, Nanos, Wake};

/// Tag of a flush among the requests of a group.
pub(super) const FLUSH_TAG: u64 = u64::MAX;

/// Tries of a flush before a stop.
const TRIES: u32 = 3;

/// A client's FLUSH that waits for the backing.
#[derive(Debug)]
struct Waiter {
    client: usize,
    tag: u64,
    /// How many bypassing writes it covers.
    writes: u64,
}

/// The flush that is under way, and who waits for it or the next.
#[derive(Debug, Default)]
pub(crate) struct BackingFlush {
    /// Writes that it covers.
    under_way: Option<u64>,
    waiters: Vec<Waiter>,
    /// Not earlier for a fill that was left out.
    next_at: Nanos,
    /// How often it was tried for a stop.
    tries: u32,
}

impl BackingFlush {
    pub(super) fn serves(&self, client: usize) -> bool {
        self.waiters.iter().any(|waiter| waiter.client == client)
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }
}

fn answer(env: &mut Env, waiter: &Waiter, status: IoStatus) {
    let stamp = Stamp::new(Timed::Other, env.now, env.now);
    let done = LaneDone {
        tag: waiter.tag,
        stamp,
        status,
        data: Data::None,
    };
    env.reply(waiter.client, done);
}

impl Group {
    /// A client's FLUSH wants the backing to be flushed.
    pub(super) fn flush_backing_for(&mut self, cx: &Cx, client: usize, tag: u64) {
        let writes = self.env.shared.bypassed.completed();
        self.flush.waiters.push(Waiter {
            client,
            tag,
            writes,
        });
        self.start_backing_flush(cx);
    }

    /// Begins a flush, unless one is under way.
    pub(super) fn start_backing_flush(&mut self, cx: &Cx) {
        if self.flush.under_way.is_some() {
            return;
        }
        self.flush.under_way = Some(self.env.shared.bypassed.completed());
        let request = Request {
            tag: FLUSH_TAG,
            op: Op::Flush,
            range: ByteRange::default(),
            data: Data::None,
        };
        self.env.submit_backing(cx, request);
    }

    pub(super) fn backing_flush_done(&mut self, cx: &Cx, status: IoStatus) {
        let Some(covered) = self.flush.under_way.take() else {
            return;
        };
        let shared = self.env.shared.clone();
        let bypassed = &shared.bypassed;
        // One that was given up says nothing.
        if status != IoStatus::Aborted {
            bypassed.flush_ended(covered, status.is_ok());
        }
        if !status.is_ok() {
            tracing::error!(
                cache = %shared.name, ?status, failed = bypassed.has_failed(),
                "a flush of the backing failed behind writes that had bypassed the cache"
            );
            shared.kick_writeback();
        }
        let status = if status.is_ok() && bypassed.has_failed() {
            IoStatus::IoError
        } else {
            status
        };
        for waiter in std::mem::take(&mut self.flush.waiters) {
            if waiter.writes <= covered || !status.is_ok() {
                answer(&mut self.env, &waiter, status);
            } else {
                self.flush.waiters.push(waiter);
            }
        }
        if !self.flush.waiters.is_empty() {
            self.start_backing_flush(cx);
        }
    }

    /// Whether it is the one that flushes the backing.
    pub(super) fn flushes_backing(&self) -> bool {
        self.env.reactor() == 0
    }

    /// Flushes the backing for fills that were left out, now and then.
    pub(super) fn flush_for_fills(&mut self, cx: &Cx) {
        let shared = self.env.shared.clone();
        let wanted = &shared.bypassed.flush_wanted;
        if !self.flushes_backing()
            || !wanted.load(std::sync::atomic::Ordering::Relaxed)
            || self.env.now < self.flush.next_at
        {
            return;
        }
        self.flush.next_at = self.env.now.after(shared.options.kset_flush_ns());
        wanted.store(false, std::sync::atomic::Ordering::SeqCst);
        if shared.bypassed.owes_flush() && !shared.bypassed.has_failed() && !self.env.stopping {
            self.start_backing_flush(cx);
        }
    }

    /// When [`Group::flush_for_fills`] must be called again.
    pub(super) fn flush_wake(&self) -> Wake {
        let wanted = &self.env.shared.bypassed.flush_wanted;
        if self.flushes_backing() && wanted.load(std::sync::atomic::Ordering::SeqCst) {
            Wake::At(self.flush.next_at)
        } else {
            Wake::OnEvent
        }
    }

    /// Before a stop: true once no bypassing write is under way and the backing has flushed all, or it is
    /// known that it can't.
    pub(super) fn has_flushed_backing(&mut self, cx: &Cx) -> bool {
        let shared = self.env.shared.clone();
        let bypassed = &shared.bypassed;
        if !self.flushes_backing() || bypassed.has_failed() || !bypassed.is_backing_volatile() {
            return true;
        }
        if bypassed.under_way.load(std::sync::atomic::Ordering::SeqCst) > 0 {
            return false;
        }
        if bypassed.owes_flush() && !self.flush.is_under_way() && self.flush.tries < TRIES {
            self.flush.tries += 1;
            self.start_backing_flush(cx);
        }
        !self.flush.is_under_way()
    }
}
