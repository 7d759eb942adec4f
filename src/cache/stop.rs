//! Stopping a cache, step by step, so that whoever drives it decides how long it may take.

use super::CacheError;
use super::cache::{Cache, GcPoller, send};
use super::control_io::PairState;
use super::gc::GcCell;
use super::group::{Group, GroupCell};
use super::shared::{DRAIN_FREE, DRAIN_RESTED};
use crate::bdev::Pmem;
use crate::media::{CleanStop, SlotKind};
use reactors::{Cx, ReactorHandle};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use zerocopy::little_endian::{U32, U64};

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
    Stopped,
}

#[derive(Debug)]
pub(super) struct Shutdown {
    pub(super) step: Stop,
    pub(super) clean_stop_pair: PairState,
    /// Parts that have been told to leave.
    pub(super) leave_sent: usize,
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
        let groups = self.expected - 2;
        match shutdown.step {
            Stop::Running => {
                self.for_each_group(|group, cx| group.begin_stop(cx))?;
                shutdown.step = Stop::Lanes;
            }
            Stop::Lanes => {
                // Asked anew each time: a group answers when it is polled at rest.
                if self.started.at_rest.load(Ordering::SeqCst) < groups && !hurry {
                    self.ask_at_rest()?;
                } else {
                    self.shared.maintenance.stop.store(true, Ordering::SeqCst);
                    self.shared.ring_maintenance();
                    shutdown.step = Stop::Maintenance;
                }
            }
            Stop::Maintenance => {
                if self.shared.maintenance.rested.load(Ordering::SeqCst) >= 2 || hurry {
                    self.send_leave(&mut shutdown)?;
                    shutdown.step = Stop::Leaving;
                }
            }
            Stop::Leaving => {
                if self.started.left.load(Ordering::SeqCst) >= self.expected {
                    shutdown.step = Stop::Stopped;
                    let stored = self.store_clean_stop(&mut shutdown);
                    // Not before: a load that began now would be told of a clean stop afterwards.
                    self.free_once_drained();
                    stored?;
                }
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
        let groups = (self.expected - 2) as usize;
        &self.shared.runtime.data[..groups]
    }

    /// Each group counts once, however often it was asked before it came to answer.
    fn ask_at_rest(&self) -> Result<(), CacheError> {
        let started = Arc::clone(&self.started);
        self.for_each_group(move |group, _| {
            if group.comes_to_rest() {
                started.at_rest.fetch_add(1, Ordering::SeqCst);
            }
        })
    }

    /// Sends every part away. When an inbox is full the next try goes on where this one ended: a part
    /// that was told twice would count twice, for one that has not left.
    fn send_leave(&self, shutdown: &mut Shutdown) -> Result<(), CacheError> {
        let key = self.shared.instance;
        let groups = self.group_handles();
        let maintenance = &self.shared.runtime.maintenance;
        let maintenance = maintenance.first().into_iter().chain(maintenance.last());
        let handles = groups.iter().chain(maintenance).enumerate();
        for (number, handle) in handles.skip(shutdown.leave_sent) {
            let is_group = number < groups.len();
            let started = Arc::clone(&self.started);
            send(handle, move |cx| {
                if is_group {
                    Group::uninstall(key, cx);
                } else if let Some(poller) = cx.local::<GcPoller>(key) {
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
        if drain.swap(DRAIN_FREE, Ordering::SeqCst) == DRAIN_RESTED {
            self.pool.note_unloaded(self.shared.uuid);
        }
        self.shared.ring_maintenance();
    }

    /// Says on media that all that was acknowledged is in the log, if it is.
    fn store_clean_stop(&self, shutdown: &mut Shutdown) -> Result<(), CacheError> {
        let final_sequence = self.shared.last_sequence.load(Ordering::SeqCst);
        let at_rest = self.started.at_rest.load(Ordering::SeqCst) == self.expected - 2;
        let placed = self
            .shared
            .unplaced
            .iter()
            .all(|words| words.iter().all(|word| word.load(Ordering::SeqCst) == 0));
        if self.shared.has_failed()
            || !at_rest
            || !placed
            || self.shared.durable.mark() != final_sequence
        {
            return Ok(());
        }
        let pmem: &dyn Pmem = &*self.shared.pmem;
        let clean = CleanStop {
            clean: U32::new(1),
            spare_before: U32::ZERO,
            final_sequence: U64::new(final_sequence),
            spare: [0; 32],
        };
        shutdown
            .clean_stop_pair
            .store(pmem, SlotKind::CleanStop, &clean)?;
        pmem.barrier_wait()?;
        Ok(())
    }
}
