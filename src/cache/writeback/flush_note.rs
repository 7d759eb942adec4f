//! What writeback does about writes that bypassed the cache: its flushes cover them; and should one have
//! failed behind them, also one for a client, it says so on media until an operator has taken note. A
//! process that comes later could not tell.

use super::super::control_io::PairState;
use super::super::shared::Shared;
use super::{State, Writeback};
use crate::bdev::{BarrierTicket, IoStatus};
use crate::media::{BackingFlush, SlotKind};
use reactors::{Cx, Wake};
use zerocopy::little_endian::U32;

/// What media say of it, and what is on its way there.
#[derive(Debug)]
pub(crate) struct FlushNote {
    pair: PairState,
    /// What the newer slot says …
    failed: bool,
    /// … and whether the older one says the same.
    in_both: bool,
    /// The store that is not durable yet.
    storing: Option<BarrierTicket>,
    /// Bypassing writes that the flush under way covers.
    covered: u64,
}

impl FlushNote {
    /// As a load has found it.
    pub(crate) fn new((body, pair): (BackingFlush, PairState)) -> Self {
        Self {
            pair,
            failed: body.failed.get() == 1,
            in_both: true,
            storing: None,
            covered: 0,
        }
    }

    /// A flush of the backing is about to begin.
    pub(super) fn begin(&mut self, shared: &Shared) {
        self.covered = shared.bypassed.completed();
    }

    /// Whether what it stored is on its way.
    pub(super) fn is_storing(&self) -> bool {
        self.storing.is_some()
    }

    /// Whether media say something else than what is known.
    pub(super) fn is_behind(&self, shared: &Shared) -> bool {
        let differs = self.failed != shared.bypassed.has_failed();
        (differs || !self.in_both) && !shared.has_failed() && !shared.read_only
    }
}

impl Writeback {
    /// The flush of the backing has ended.
    pub(super) fn backing_flushed(&mut self, status: IoStatus) {
        if status != IoStatus::Aborted {
            let covered = self.seed.flush_note.covered;
            self.shared().bypassed.flush_ended(covered, status.is_ok());
        }
    }

    /// When [`Self::note_flush_state`] must be called again.
    pub(super) fn flush_note_wake(&self) -> Wake {
        let note = &self.seed.flush_note;
        if matches!(self.state, State::Halted | State::Rested) {
            Wake::OnEvent
        } else if note.storing.is_some() {
            self.barrier.wake()
        } else if note.is_behind(self.shared()) {
            Wake::Now
        } else {
            Wake::OnEvent
        }
    }

    /// Brings what media say up to date, one slot after the other.
    pub(super) fn note_flush_state(&mut self, cx: &Cx) {
        if let Some(ticket) = self.seed.flush_note.storing {
            if matches!(self.state, State::Halted) || !self.barrier_done(cx, ticket) {
                return;
            }
            self.seed.flush_note.storing = None;
        }
        if !self.seed.flush_note.is_behind(&self.seed.shared)
            || matches!(self.state, State::Halted | State::Rested)
        {
            return;
        }
        let failed = self.seed.shared.bypassed.has_failed();
        let note = &mut self.seed.flush_note;
        let body = BackingFlush {
            failed: U32::new(failed.into()),
            spare: [0; 44],
        };
        let pmem = &*self.seed.shared.pmem;
        if let Err(error) = note.pair.store(pmem, SlotKind::BackingFlush, &body) {
            self.medium_failed(error);
            return;
        }
        note.in_both = note.failed == failed;
        note.failed = failed;
        note.storing = Some(self.barrier.submit(cx));
    }
}
