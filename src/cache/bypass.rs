//! Writes that go to the backing before they complete: write-through, write-around, pass-through, and
//! streams that are cut off.
//!
//! Before such a write reaches the backing, what the cache would replay for its range is durable and
//! agrees with it, in this order:
//!
//! 1. The durable dirty tail is past every older dirty key of the range. Else writeback would put older
//!    data over it, or, if INVALID came first, a crash would leave neither. Write-through waits for that;
//!    in the other modes the write is cached as a dirty one instead.
//! 2. INVALID is durable, or for write-through the data are, dirty.
//! 3. The backing is written.
//!
//! From 2 on the write is one of [`Bypasses`]: misses in flight keep nothing of its range, new reads go to
//! the backing and keep nothing, and overlapping writes wait.

use super::fault::{self, Fault};
use super::group::Env;
use super::in_log::Place;
use super::lane::{Job, Lane, LaneOp, Wait};
use super::marks::LastKset;
use super::options::{Mode, SeqCutoff};
use super::policy::Policy;
use super::shared::Shared;
use super::write::{LogRoom, Refused};
use crate::bdev::{Data, IoStatus, Op, Request};
use crate::media::KeyFlags;
use crate::units::ByteRange;
use reactors::Cx;
use slab::Slab;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// How far a bypassing write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// What the cache would replay stands in the kset of this order, which must be durable.
    Logged(u64),
    /// The backing is being written.
    Writing,
}

/// A write that is on its way past the cache.
#[derive(Debug)]
struct Bypass {
    job: Job,
    step: Step,
    /// The backing shall not lose it.
    fua: bool,
}

/// The bypassing writes of a lane, and who waits for what.
#[derive(Debug, Default)]
pub(crate) struct Bypasses {
    /// Writes may bypass this lane, or did so: each one looks here.
    is_alert: bool,
    under_way: Slab<Bypass>,
    /// They wait until the dirty tail is past what is older: dirty keys of their range in ksets up to
    /// that one.
    pub(super) for_tail: VecDeque<(Job, LastKset)>,
    /// They overlap one that is under way.
    blocked: VecDeque<Job>,
    /// Counted in [`Bypassed::tail_waiters`](super::bypassed::Bypassed) …
    tail_counted: bool,
    /// … and among those who want to hear of durable ksets.
    durable_counted: bool,
    /// What is appended now is written to the backing by us.
    is_through: bool,
}

impl Bypasses {
    /// Whether a write must look closer than at the policy.
    pub(crate) fn is_alert(&self) -> bool {
        self.is_alert
    }

    /// Whether nothing is under way and nobody waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.for_tail.is_empty() && self.blocked.is_empty()
    }

    /// Whether what is appended now is written to the backing by us.
    pub(crate) fn is_through(&self) -> bool {
        self.is_through
    }

    pub(crate) fn serves(&self, client: usize) -> bool {
        let for_tail = self.for_tail.iter().map(|(job, _)| job);
        let waiting = for_tail.chain(&self.blocked);
        let under_way = self.under_way.iter().map(|(_, bypass)| &bypass.job);
        waiting.chain(under_way).any(|job| job.client == client)
    }

    fn overlaps(&self, range: ByteRange) -> bool {
        let under_way = self.under_way.iter();
        under_way
            .map(|(_, bypass)| bypass.job.request.range)
            .any(|of| of.overlaps(range))
    }

    /// The parts of `gaps` over which writes are on their way to the backing: a read fetches them alone.
    pub(crate) fn take_out(&self, gaps: &mut Vec<ByteRange>) -> Vec<ByteRange> {
        let mut out = Vec::new();
        if fault::injected(Fault::BypassWithoutPlaceholder) {
            return out;
        }
        for (_, bypass) in &self.under_way {
            let over = bypass.job.request.range;
            let mut left = Vec::new();
            for gap in gaps.drain(..) {
                if !gap.overlaps(over) {
                    left.push(gap);
                    continue;
                }
                let (from, to) = (gap.start().max(over.start()), gap.end().min(over.end()));
                if gap.start() < from {
                    left.push(ByteRange::between(gap.start(), from));
                }
                out.push(ByteRange::between(from, to));
                if to < gap.end() {
                    left.push(ByteRange::between(to, gap.end()));
                }
            }
            *gaps = left;
        }
        out
    }
}

/// Which way a write goes.
#[derive(Debug)]
pub(crate) enum Way {
    /// Into the cache.
    Cached(Job),
    /// It is taken care of.
    Taken,
    /// It waits for room.
    Waits(Job, Wait),
}

fn is_fua(shared: &Shared, job: &Job) -> bool {
    let fua = match job.request.op {
        LaneOp::Write { fua } | LaneOp::Zero { fua, .. } => fua,
        _ => false,
    };
    fua || shared.options.durable_writes()
}

impl Lane {
    /// Begins to keep marks, or stops, as the policy wants.
    fn attend(&mut self, shared: &Shared, policy: Policy, job: &Job) {
        if policy.may_bypass() {
            if !self.bypass.is_alert {
                self.bypass.is_alert = true;
                let last = shared.last_sequence.load(Ordering::SeqCst);
                self.marks.keep(self.newest_order(), last);
                if fault::injected(Fault::ModeSwitchForgetsDirty) {
                    self.marks.forget_floor();
                }
            }
            return;
        }
        let mut jobs = std::iter::once(job).chain(&self.waiting);
        // What is stored in part goes on as it began.
        if self.bypass.is_alert && self.bypass.is_idle() && !jobs.any(|job| job.is_through) {
            self.bypass.is_alert = false;
            self.marks.give_up();
        }
    }

    /// Finds a write's way where not all simply go into the cache.
    #[inline(never)]
    pub(crate) fn find_way(&mut self, env: &mut Env, cx: &Cx, job: Job, policy: Policy) -> Way {
        self.attend(&env.shared, policy, &job);
        if job.progress > 0 {
            // It goes on as it began.
            return if job.is_through {
                self.write_through(env, cx, job)
            } else {
                Way::Cached(job)
            };
        }
        if self.bypass.overlaps(job.request.range) {
            self.stats(&env.shared).bypass_waits.add(1);
            self.bypass.blocked.push_back(job);
            return Way::Taken;
        }
        match policy.mode() {
            _ if job.request.cut && policy.cutoff() != SeqCutoff::Never => {
                self.stats(&env.shared).cut_offs.add(1);
                self.write_around(env, cx, job, policy)
            }
            Mode::Wt => self.write_through(env, cx, job),
            Mode::Wa | Mode::Pt => self.write_around(env, cx, job, policy),
            Mode::Wb | Mode::Wo => Way::Cached(job),
        }
    }

    /// Past the cache, which forgets what it has of the range; or into it, if that is not written back.
    fn write_around(&mut self, env: &mut Env, cx: &Cx, job: Job, policy: Policy) -> Way {
        let place = Place::of(&env.shared, job.request.range);
        let is_written_back = self.is_written_back(&env.shared, place)
            || fault::injected(Fault::InvalidBeforeDirtyTail);
        let is_bad = |key: &super::key::Key| !key.kind.is_placeholder() && key.kind.is_bad();
        let Place {
            subtree,
            start,
            end,
        } = place;
        // Should it fail, the loss of BAD bytes would be forgotten.
        if !is_written_back || self.index.any(subtree, start, end, is_bad) {
            if policy.mode() == Mode::Wt {
                // Its promise holds for streams that are cut off, too.
                return self.write_through(env, cx, job);
            }
            self.stats(&env.shared).bypass_cached.add(1);
            env.shared.kick_writeback();
            return Way::Cached(job);
        }
        let mut order = 0;
        if !self.is_invalid(place) {
            let invalid = self.wants_invalid(&env.shared, place);
            if invalid
                && let Err(wait) = self
                    .check_log(&env.shared)
                    .and_then(|()| self.reserve_key(env, cx, LogRoom::Common))
            {
                return Way::Waits(job, wait);
            }
            self.index.clear(subtree, start, end);
            self.show_bad(&env.shared);
            if invalid {
                let range = job.request.range;
                self.put_without_data(env, cx, range, KeyFlags::INVALID);
                order = self.next_order - 1;
            }
        }
        self.begin_bypass(env, cx, job, order);
        Way::Taken
    }

    /// Into the cache as a dirty write, and to the backing once that is durable.
    fn write_through(&mut self, env: &mut Env, cx: &Cx, job: Job) -> Way {
        let place = Place::of(&env.shared, job.request.range);
        let must_wait = job.progress == 0 && !self.is_written_back(&env.shared, place);
        if must_wait && !fault::injected(Fault::InvalidBeforeDirtyTail) {
            self.wait_for_tail(env, cx, job);
            return Way::Taken;
        }
        self.store_through(env, cx, job)
    }

    /// Nothing older is dirty below `job`, or it has begun already.
    fn store_through(&mut self, env: &mut Env, cx: &Cx, mut job: Job) -> Way {
        job.is_through = true;
        self.bypass.is_through = true;
        let stored = self.store_modification(env, cx, &mut job);
        self.bypass.is_through = false;
        match stored {
            Ok(()) => {
                let order = self.next_order - 1;
                if matches!(job.request.op, LaneOp::Write { fua: true })
                    || matches!(job.request.op, LaneOp::Zero { fua: true, .. })
                {
                    self.end_epoch_behind_newest(env);
                }
                self.begin_bypass(env, cx, job, order);
                Way::Taken
            }
            Err(Refused::Wait(wait)) => {
                job.is_through = job.progress > 0;
                Way::Waits(job, wait)
            }
            Err(Refused::Medium(_)) => {
                env.reply(job.client, job.done(IoStatus::IoError));
                Way::Taken
            }
        }
    }

    /// A write waits until what is older is on the backing, durably.
    fn wait_for_tail(&mut self, env: &mut Env, cx: &Cx, job: Job) {
        self.stats(&env.shared).bypass_waits.add(1);
        let last = env.shared.last_sequence.load(Ordering::SeqCst);
        let older = LastKset::new(self.newest_order(), last);
        self.bypass.for_tail.push_back((job, older));
        self.count_tail(env);
        // It may stand in the open kset.
        self.close_soon(env, cx);
        env.shared.kick_writeback();
        // What came to pass before it was counted rang no bell.
        env.retry = true;
    }

    /// The range of `job` is kept free from now on; what kset `order` says of it must be durable first.
    fn begin_bypass(&mut self, env: &mut Env, cx: &Cx, job: Job, order: u64) {
        let fua = is_fua(&env.shared, &job);
        env.shared.bypassed.under_way.fetch_add(1, Ordering::SeqCst);
        let slot = self.bypass.under_way.insert(Bypass {
            job,
            step: Step::Logged(order),
            fua,
        });
        if order == 0 || fault::injected(Fault::BackingBeforeInvalidDurable) {
            self.write_backing(env, cx, slot);
        }
        if order > 0 {
            if !std::mem::replace(&mut self.bypass.durable_counted, true) {
                env.shared.durable_waiters.fetch_add(1, Ordering::SeqCst);
            }
            self.close_soon(env, cx);
            env.retry = true;
            self.write_logged(env, cx);
        }
    }

    fn write_backing(&mut self, env: &mut Env, cx: &Cx, slot: usize) {
        let Some(bypass) = self.bypass.under_way.get_mut(slot) else {
            return;
        };
        bypass.step = Step::Writing;
        let dirty_tail = env.shared.maintenance.dirty_sequence.load(Ordering::SeqCst);
        env.shared.bypassed.note_mixed(dirty_tail);
        let fua = bypass.fua
            && env.shared.bypassed.is_backing_volatile()
            && !fault::injected(Fault::DurableBypassWithoutFua);
        let request = &mut bypass.job.request;
        let op = match request.op {
            LaneOp::Zero { unmap, .. } => Op::WriteZeroes {
                may_unmap: unmap,
                fua,
            },
            _ => Op::Write { fua },
        };
        let request = Request {
            tag: env.bypass_tag(self.number, slot),
            op,
            range: request.range,
            data: std::mem::take(&mut request.data),
        };
        env.submit_backing(cx, request);
    }

    /// Takes bypassing writes as far as barriers and the dirty tail allow.
    pub(crate) fn drive_bypasses(&mut self, env: &mut Env, cx: &Cx) {
        if env.stopping || env.shared.has_failed() {
            self.give_up_bypasses(env, |_| true);
            return;
        }
        self.write_logged(env, cx);
        if self.bypass.for_tail.is_empty() {
            return;
        }
        for _ in 0..self.bypass.for_tail.len() {
            let Some((job, older)) = self.bypass.for_tail.pop_front() else {
                break;
            };
            let tail = env
                .shared
                .maintenance
                .dirty_sequence
                .load(Ordering::Acquire);
            if !older.is_before(self.placed_order, tail) {
                self.bypass.for_tail.push_back((job, older));
            } else if !self.waiting.is_empty() {
                self.take_up(env, cx, job);
            } else if self.bypass.overlaps(job.request.range) {
                self.bypass.blocked.push_back(job);
            } else if let Way::Waits(job, wait) = self.store_through(env, cx, job) {
                self.start_waiting(env, cx, job, wait);
            }
        }
        self.count_tail(env);
    }

    /// Writes to the backing what the log says durably.
    fn write_logged(&mut self, env: &mut Env, cx: &Cx) {
        let mut logged = false;
        for slot in 0..self.bypass.under_way.capacity() {
            let Some(bypass) = self.bypass.under_way.get(slot) else {
                continue;
            };
            match bypass.step {
                Step::Logged(order) if order <= self.durable_order => {
                    self.write_backing(env, cx, slot);
                }
                Step::Logged(_) => logged = true,
                Step::Writing => {}
            }
        }
        if !logged && std::mem::take(&mut self.bypass.durable_counted) {
            env.shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The lane is counted while some of its writes wait for the dirty tail.
    fn count_tail(&mut self, env: &Env) {
        let waits = !self.bypass.for_tail.is_empty();
        let waiters = &env.shared.bypassed.tail_waiters;
        match (
            std::mem::replace(&mut self.bypass.tail_counted, waits),
            waits,
        ) {
            (false, true) => {
                waiters.fetch_add(1, Ordering::SeqCst);
            }
            (true, false) => {
                waiters.fetch_sub(1, Ordering::SeqCst);
            }
            _ => {}
        }
    }

    /// The backing write of a bypassing write has ended.
    pub(crate) fn bypass_done(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        slot: usize,
        status: IoStatus,
        data: Data,
    ) {
        let Some(bypass) = self.bypass.under_way.try_remove(slot) else {
            return;
        };
        let Bypass { mut job, fua, .. } = bypass;
        job.request.data = data;
        let shared = env.shared.clone();
        let bypassed = &shared.bypassed;
        // Also one that failed: what of it is there may go again.
        if bypassed.is_backing_volatile() && !(fua && status.is_ok()) {
            let number = bypassed.complete();
            let (subtree, ..) = Self::locate(&shared, job.request.range);
            self.marks.note_bypassed(subtree, number);
        }
        bypassed.under_way.fetch_sub(1, Ordering::SeqCst);
        let stats = self.stats(&shared);
        let len = job.request.range.len();
        match job.request.op {
            LaneOp::Zero { .. } => {
                stats.zeroes.add(1);
                stats.zero_bytes.add(len);
            }
            _ => {
                stats.writes.add(1);
                stats.write_bytes.add(len);
            }
        }
        if job.is_through {
            stats.writes_through.add(1);
        } else {
            stats.writes_around.add(1);
        }
        stats.bypass_bytes.add(len);
        if !status.is_ok() {
            stats.bypass_errors.add(1);
            tracing::warn!(
                cache = %shared.name, range = %job.request.range, ?status,
                "a write past the cache failed"
            );
        }
        env.reply(job.client, job.done(status));
        for job in std::mem::take(&mut self.bypass.blocked) {
            self.take_up(env, cx, job);
        }
    }

    /// Gives up what waits for something else than the backing.
    pub(crate) fn give_up_bypasses(&mut self, env: &mut Env, wanted: impl Fn(&Job) -> bool) {
        if self.bypass.is_idle() {
            return;
        }
        let status = if env.shared.has_failed() {
            IoStatus::IoError
        } else {
            IoStatus::Aborted
        };
        let blocked = std::mem::take(&mut self.bypass.blocked);
        let for_tail = std::mem::take(&mut self.bypass.for_tail);
        for job in blocked {
            if wanted(&job) {
                env.reply(job.client, job.done(status));
            } else {
                self.bypass.blocked.push_back(job);
            }
        }
        for (job, older) in for_tail {
            if wanted(&job) {
                env.reply(job.client, job.done(status));
            } else {
                self.bypass.for_tail.push_back((job, older));
            }
        }
        self.count_tail(env);
        if !env.stopping && !env.shared.has_failed() {
            // The log says of the others what they have not done yet: they go on.
            return;
        }
        let under_way = std::mem::take(&mut self.bypass.under_way);
        let mut writing = Vec::new();
        for (slot, bypass) in under_way {
            if bypass.step == Step::Writing {
                writing.push((slot, bypass));
                continue;
            }
            env.shared.bypassed.under_way.fetch_sub(1, Ordering::SeqCst);
            env.reply(bypass.job.client, bypass.job.done(status));
        }
        self.bypass.under_way = writing.into_iter().collect();
        if std::mem::take(&mut self.bypass.durable_counted) {
            env.shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
