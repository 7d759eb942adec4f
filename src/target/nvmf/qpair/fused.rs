//! Fused Compare and Write: the two halves find each other, and both have their data, before
//! anything is done (spec section 6).

use super::{Qpair, Role};
use crate::bdev::IoBuf;
use crate::target::nvmf::io_queue::Means;
use crate::target::nvmf::receiver::Payload;
use crate::target::nvmf::slots::{Partner, Stage};
use crate::target::nvmf::transfer::Transfer;
use crate::target::stream::Output;
use crate::target::stream::wake_all;
use crate::wire::nvme::{Fuse, Status, io};
use reactors::Cx;

/// Data of each half, in bytes: as long as both always find memory.
const FUSED_BYTES_MAX: u64 = 1 << 20;

impl Qpair {
    /// A half has come.
    pub(super) fn fused(
        &mut self,
        cx: &Cx,
        slot: u16,
        fuse: Fuse,
        transfer: Transfer,
        output: &mut Output,
    ) {
        let opcode = self.slots.get(slot).map(|slot| slot.sqe.opcode);
        match (fuse, self.first.take()) {
            (Fuse::Second, None) => self.refuse(slot, transfer, Status::MISSING_FUSED, output),
            (Fuse::Second, Some(first)) => self.pair(cx, first, (slot, transfer), output),
            (_, first) => {
                self.first = first;
                self.give_up_first(output);
                if fuse == Fuse::First && opcode == Some(io::COMPARE) {
                    self.first = Some((slot, transfer));
                } else {
                    self.refuse(slot, transfer, Status::INVALID_FIELD, output);
                }
            }
        }
    }

    /// The second half did not come next.
    pub(super) fn give_up_first(&mut self, output: &mut Output) {
        if let Some((slot, transfer)) = self.first.take() {
            self.refuse(slot, transfer, Status::MISSING_FUSED, output);
        }
    }

    /// Completes a command whose data, if it has any, nobody has asked for.
    pub(super) fn refuse(
        &mut self,
        slot: u16,
        transfer: Transfer,
        status: Status,
        output: &mut Output,
    ) {
        if let Transfer::InCapsule(payload) = transfer {
            self.give(Some(payload.buf));
        }
        self.complete(slot, status, 0, output);
    }

    /// Both halves are there: their data may come, if they fit each other.
    fn pair(
        &mut self,
        cx: &Cx,
        first: (u16, Transfer),
        second: (u16, Transfer),
        output: &mut Output,
    ) {
        let verdict = match (self.flaw(&first), self.flaw(&second)) {
            (Some(status), _) => Some((status, Status::FAILED_FUSED)),
            (None, Some(status)) => Some((Status::FAILED_FUSED, status)),
            (None, None) => {
                let misfit = self.misfit(first.0, second.0);
                misfit.map(|status| (status, Status::FAILED_FUSED))
            }
        };
        if let Some((of_first, of_second)) = verdict {
            self.refuse(first.0, first.1, of_first, output);
            self.refuse(second.0, second.1, of_second, output);
            return;
        }
        for (slot, other, is_first) in [(first.0, second.0, false), (second.0, first.0, true)] {
            let partner = Partner {
                slot: other,
                is_first,
                has_failed: false,
            };
            self.slots.update(slot, |slot| slot.partner = Some(partner));
        }
        self.move_data(cx, first.0, first.1, output);
        self.move_data(cx, second.0, second.1, output);
    }

    /// Why a half is not possible.
    fn flaw(&self, (slot, transfer): &(u16, Transfer)) -> Option<Status> {
        let (Role::Io(queue), Some(slot_now)) = (&self.role, self.slots.get(*slot)) else {
            return Some(Status::INVALID_FIELD);
        };
        match transfer {
            Transfer::FromHost(len) => self.refuses_data(*slot, *len),
            _ => queue.plan(&slot_now.sqe, &self.side.options).err(),
        }
    }

    /// Why two halves do not fit each other.
    fn misfit(&self, first: u16, second: u16) -> Option<Status> {
        let Role::Io(queue) = &self.role else {
            return Some(Status::INVALID_FIELD);
        };
        let [first, second] = [first, second].map(|slot| {
            let sqe = &self.slots.get(slot)?.sqe;
            let (plan, _) = queue.plan(sqe, &self.side.options).ok()?;
            Some((sqe.nsid.get(), plan.range))
        });
        match first {
            Some((_, range)) if range.len() > FUSED_BYTES_MAX => Some(Status::ATOMIC_UNIT_EXCEEDED),
            _ => (first != second).then_some(Status::INVALID_FIELD),
        }
    }

    /// The data of a half have come.
    pub(super) fn half_came(&mut self, cx: &Cx, slot: u16, payload: Payload, output: &mut Output) {
        let Some(partner) = self.slots.get(slot).and_then(|slot| slot.partner) else {
            return;
        };
        let failure = match (partner.has_failed, payload.intact) {
            (true, _) => Some(Status::FAILED_FUSED),
            (false, false) => Some(Status::TRANSIENT_TRANSPORT),
            (false, true) => None,
        };
        if let Some(status) = failure {
            self.give(Some(payload.buf));
            self.complete(slot, status, 0, output);
            if !partner.has_failed {
                self.partner_failed(partner.slot, output);
            }
            return;
        }
        match self.take_paired(partner.slot) {
            Some(other) if partner.is_first => {
                self.start_pair(cx, (partner.slot, other), (slot, payload.buf), output);
            }
            Some(other) => {
                self.start_pair(cx, (slot, payload.buf), (partner.slot, other), output);
            }
            None => {
                let stage = Stage::Paired(payload.buf);
                self.slots.update(slot, |slot| slot.stage = stage);
            }
        }
    }

    /// The data of a half that waits for the other's.
    fn take_paired(&mut self, slot: u16) -> Option<IoBuf> {
        let taken = self.slots.update(slot, |slot| {
            match std::mem::replace(&mut slot.stage, Stage::Waiting) {
                Stage::Paired(buf) => Some(buf),
                other => {
                    slot.stage = other;
                    None
                }
            }
        });
        taken.flatten()
    }

    /// A half whose partner has failed ends as soon as the host sends no more for it.
    fn partner_failed(&mut self, slot: u16, output: &mut Output) {
        if let Some(buf) = self.take_paired(slot) {
            self.give(Some(buf));
            self.complete(slot, Status::FAILED_FUSED, 0, output);
            return;
        }
        self.slots.update(slot, |slot| {
            if let Some(partner) = &mut slot.partner {
                partner.has_failed = true;
            }
        });
    }

    fn start_pair(
        &mut self,
        cx: &Cx,
        (first, compared): (u16, IoBuf),
        (second, written): (u16, IoBuf),
        output: &mut Output,
    ) {
        let Some(sqe) = self.slots.get(first).map(|slot| slot.sqe) else {
            return;
        };
        let means = Means {
            options: &self.side.options,
            pool: &self.pool,
        };
        let Role::Io(queue) = &mut self.role else {
            return;
        };
        let data = (compared, written);
        match queue.start_fused(cx, (first, &sqe), second, data, means) {
            Ok(()) => self.wake_writers(),
            Err(status) => {
                self.complete(first, status, 0, output);
                self.complete(second, Status::FAILED_FUSED, 0, output);
            }
        }
    }

    /// Others may have to say whether they write where this qpair wants to be alone.
    pub(super) fn wake_writers(&self) {
        wake_all(self.side.target.reactors());
    }
}
