//! What writeback notes on the medium: each note is durable before the next step. One that can't be
//! stored, or not durably, is the end.

use super::super::fault::{self, Fault};
use super::{PERIOD_NS, State, Writeback};
use crate::bdev::{BarrierTicket, PmemError};
use crate::media::{DurableMark, SlotKind};
use reactors::Cx;
use zerocopy::little_endian::U64;

impl Writeback {
    /// What writeback notes on the medium can't be stored there, or not durably: final.
    pub(super) fn medium_failed(&mut self, error: PmemError) {
        self.shared().fail(&error);
        self.halt(&error.into());
    }

    /// Something was stored: goes on in `state` when it is durable.
    pub(super) fn make_durable(
        &mut self,
        cx: &Cx,
        stored: Result<(), PmemError>,
        state: fn(BarrierTicket) -> State,
    ) {
        match stored {
            Ok(()) => self.state = state(self.barrier.submit(cx)),
            Err(error) => self.medium_failed(error),
        }
    }

    /// True when `ticket` is done; halts if the barrier failed.
    pub(super) fn barrier_done(&mut self, cx: &Cx, ticket: BarrierTicket) -> bool {
        match self.barrier.poll(cx) {
            Ok(done) => done >= ticket,
            Err(_) if fault::injected(Fault::FailedBarrierRetried) => true,
            Err(error) => {
                self.medium_failed(error);
                false
            }
        }
    }

    /// A quiet cache's last kset has no successor that proves it: says on media how far the log is
    /// durable, so that a load that ends below reports damage instead of an end.
    pub(super) fn note_durable(&mut self, cx: &Cx) {
        let sequence = self.shared().durable.mark();
        if sequence == self.noted {
            self.state = State::Idle(cx.now().after(PERIOD_NS));
            return;
        }
        self.noted = sequence;
        let mark = DurableMark {
            sequence: U64::new(sequence),
            spare: [0; 40],
        };
        let pmem = &*self.seed.shared.pmem;
        let stored = self
            .seed
            .mark_pair
            .store(pmem, SlotKind::DurableMark, &mark);
        self.make_durable(cx, stored, State::Note);
    }
}
