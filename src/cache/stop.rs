//! Stopping a cache, step by step, so that whoever drives it decides how long it may take.

use super::CacheError;
use super::backing_read::BackingRead;
use super::backing_sample::{SAMPLE_ITEMS, SamplePlan};
use super::cache::{Cache, GcPoller, send};
use super::control_io::PairState;
use super::gc::GcCell;
use super::group::{Group, GroupCell};
use super::log_reader::{Incarnations, LogView};
use super::scrub::Scrub;
use super::shared::{DRAIN_FREE, DRAIN_RESTED};
use crate::bdev::Pmem;
use crate::media::{BackingSample, CleanStop, SlotKind};
use reactors::{Cx, ReactorHandle};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use zerocopy::little_endian::{U32, U64};

/// How long finding out what is dirty may take, ns.
const SAMPLE_NS: u64 = 500_000_000;

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Running,
    /// Lanes close their ksets and wait until these are durable.
    Lanes,
    /// Writeback and GC come to rest.
    Maintenance,
    /// The parts leave their reactors.
    Leaving,
    /// The backing is read, so that the next load can see whether it was changed.
    Sampling,
    Stopped,
}

#[derive(Debug)]
pub(super) struct Shutdown {
    pub(super) step: Stop,
    pub(super) end: CleanEnd,
    sampling: Option<(SamplePlan, BackingRead)>,
    /// Parts that have been told to leave.
    pub(super) leave_sent: usize,
}

/// What the record of a clean stop needs.
#[derive(Debug)]
pub(crate) struct CleanEnd {
    pub(crate) view: LogView,
    pub(crate) incarnations: Incarnations,
    pub(crate) clean_stop: PairState,
    pub(crate) samples: [PairState; 3],
}

impl Shutdown {
    pub(super) fn new(end: CleanEnd) -> Self {
        Self {
            step: Stop::Running,
            end,
            sampling: None,
            leave_sent: 0,
        }
    }
}

impl Cache {
    /// Takes a stop one step on; true when the cache has stopped. All channels must be closed. Dirty
    /// data stay in the pool. With `hurry` a step that a dead backing holds up is left out: what it
    /// was about is done by the next load.
    ///
    /// # Errors
    /// A medium that fails at the last step; the data stay safe all the same, without a clean mark.
    pub fn stop_step(&self, hurry: bool) -> Result<bool, CacheError> {
        let mut shutdown = self
            .shutdown
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match shutdown.step {
            Stop::Running => {
                self.for_each_group(|group, cx| group.begin_stop(cx))?;
                shutdown.step = Stop::Lanes;
            }
            Stop::Lanes => {
                // Asked anew each time: a group answers when it is polled at rest.
                if self.started.at_rest.load(Ordering::SeqCst) < self.groups && !hurry {
                    self.ask_at_rest()?;
                } else {
                    self.shared.maintenance.stop.store(true, Ordering::SeqCst);
                    self.shared.ring_maintenance();
                    shutdown.step = Stop::Maintenance;
                }
            }
            Stop::Maintenance => {
                let rested = self.shared.maintenance.rested.load(Ordering::SeqCst);
                if rested >= self.expected - self.groups || hurry {
                    self.send_leave(&mut shutdown)?;
                    shutdown.step = Stop::Leaving;
                }
            }
            Stop::Leaving => {
                if self.started.left.load(Ordering::SeqCst) >= self.expected {
                    if !hurry {
                        shutdown.sampling = self.begin_sample(&shutdown.end);
                    }
                    shutdown.step = Stop::Sampling;
                }
            }
            Stop::Sampling => {
                let samples = match &shutdown.sampling {
                    // A dead backing is not waited for: then there is no sample.
                    Some((plan, read)) => match read.take() {
                        Some(read) => read.ok().map(|read| plan.samples(&read)),
                        None if hurry => None,
                        None => return Ok(false),
                    },
                    None => None,
                };
                shutdown.sampling = None;
                shutdown.step = Stop::Stopped;
                let stored = self.store_clean_stop(&mut shutdown.end, samples);
                self.pool.note_failure(&stored);
                // Not before: a load that began now would be told of a clean stop afterwards.
                self.free_once_drained();
                stored?;
            }
            Stop::Stopped => {}
        }
        Ok(shutdown.step == Stop::Stopped)
    }

    fn for_each_group(
        &self,
        act: impl Fn(&mut Group, &Cx) + Send + Clone + 'static,
    ) -> Result<(), CacheError> {
        let key = self.shared.instance;
        for handle in self.group_handles() {
            let act = act.clone();
            send(handle, move |cx| {
                if let Some(cell) = cx.local::<GroupCell>(key) {
                    act(&mut cell.0.borrow_mut(), cx);
                }
            })?;
        }
        Ok(())
    }

    fn group_handles(&self) -> &[ReactorHandle] {
        &self.shared.runtime.data[..self.groups as usize]
    }

    /// Each group counts once, however often it was asked before it came to answer.
    fn ask_at_rest(&self) -> Result<(), CacheError> {
        let started = Arc::clone(&self.started);
        self.for_each_group(move |group, cx| {
            if group.comes_to_rest(cx) {
                started.at_rest.fetch_add(1, Ordering::SeqCst);
            }
        })
    }

    /// Sends every part away. When an inbox is full the next try goes on where this one ended: a part
    /// that was told twice would count twice, for one that has not left.
    fn send_leave(&self, shutdown: &mut Shutdown) -> Result<(), CacheError> {
        let key = self.shared.instance;
        let groups = self.group_handles();
        let maintenance = &self.shared.runtime.maintenance[..];
        let maintenance = if self.shared.read_only {
            &[]
        } else {
            maintenance
        };
        let maintenance = maintenance.first().into_iter().chain(maintenance.last());
        let handles = groups.iter().chain(maintenance).enumerate();
        for (number, handle) in handles.skip(shutdown.leave_sent) {
            let is_group = number < groups.len();
            let started = Arc::clone(&self.started);
            let pool = Arc::clone(&self.pool);
            send(handle, move |cx| {
                if is_group {
                    Group::leave(key, pool, cx);
                } else if let Some(poller) = cx.local::<GcPoller>(key) {
                    Scrub::leave(key, cx);
                    // Writeback goes by itself, when its last write has ended.
                    cx.remove_poller(poller.0);
                    cx.remove_local::<GcPoller>(key);
                    cx.remove_local::<GcCell>(key);
                }
                started.left.fetch_add(1, Ordering::SeqCst);
            })?;
            shutdown.leave_sent = number + 1;
        }
        Ok(())
    }

    /// Lets the cache be loaded again, once no backing write of this run is under way: one that
    /// completed late would put old data over new.
    fn free_once_drained(&self) {
        let drain = &self.shared.maintenance.drain;
        if drain.swap(DRAIN_FREE, Ordering::SeqCst) == DRAIN_RESTED
            && self.shared.bypassed.leave_gate()
        {
            self.pool.note_unloaded(self.shared.uuid);
        }
        self.shared.ring_maintenance();
    }

    /// Whether all that was acknowledged is in the log, and the log is durable.
    fn has_ended_clean(&self) -> bool {
        let final_sequence = self.shared.last_sequence.load(Ordering::SeqCst);
        let at_rest = self.started.at_rest.load(Ordering::SeqCst) == self.groups;
        let placed = self
            .shared
            .unplaced
            .iter()
            .all(|words| words.iter().all(|word| word.load(Ordering::SeqCst) == 0));
        !self.shared.read_only
            && !self.shared.has_failed()
            && at_rest
            && placed
            && !self.shared.bypassed.owes_flush()
            && self.shared.durable.mark() == final_sequence
    }

    /// Starts to read what the backing must still hold at the next load. Not while a write may change
    /// it.
    fn begin_sample(&self, end: &CleanEnd) -> Option<(SamplePlan, BackingRead)> {
        let shared = &self.shared;
        let drained = shared.maintenance.drain.load(Ordering::SeqCst) == DRAIN_RESTED;
        if !drained || !self.has_ended_clean() {
            return None;
        }
        let clock = &*shared.runtime.clock;
        let plan = SamplePlan::for_stop(
            &end.view,
            &end.incarnations,
            shared.dirty_tail(&end.view)?,
            shared.last_sequence.load(Ordering::SeqCst),
            clock,
            clock.now().after(SAMPLE_NS),
        )?;
        let reactor = shared.runtime.maintenance.first()?;
        let read = BackingRead::start(self.backing(), plan.ranges(), reactor).ok()?;
        Some((plan, read))
    }

    /// Says on media that all that was acknowledged is in the log, if it is, and what the backing held.
    fn store_clean_stop(
        &self,
        end: &mut CleanEnd,
        samples: Option<[BackingSample; 3]>,
    ) -> Result<(), CacheError> {
        if !self.has_ended_clean() {
            return Ok(());
        }
        let pmem: &dyn Pmem = &*self.shared.pmem;
        let mut sampled = false;
        if let Some(samples) = &samples {
            let mut items = end.samples.iter_mut().zip(samples).zip(SAMPLE_ITEMS);
            let stored =
                items.try_for_each(|((pair, sample), (_, kind, _))| pair.store(pmem, kind, sample));
            match stored {
                // The record vouches for them.
                Ok(()) => pmem.barrier_wait()?,
                Err(error) => {
                    let name = &self.shared.name;
                    tracing::warn!(cache = %name, %error, "no sample of the backing is kept");
                }
            }
            sampled = stored.is_ok();
        }
        let final_sequence = self.shared.last_sequence.load(Ordering::SeqCst);
        let clean = CleanStop {
            clean: U32::new(1),
            sampled: U32::new(sampled.into()),
            final_sequence: U64::new(final_sequence),
            spare: [0; 32],
        };
        end.clean_stop.store(pmem, SlotKind::CleanStop, &clean)?;
        pmem.barrier_wait()?;
        Ok(())
    }
}
