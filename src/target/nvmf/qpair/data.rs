//! The data of a qpair's commands: memory for them, and their coming in.

use super::auth::is_auth;
use super::{HELD_BYTES_MAX, Qpair, Role};
use crate::bdev::IoBuf;
use crate::target::nvmf::receiver::Payload;
use crate::target::nvmf::slots::{Stage, Wants};
use crate::target::nvmf::transfer::Transfer;
use crate::target::stream::Output;
use crate::wire::nvme::{AuthCommand, DataPdu, Fault, FaultKind, Status, admin};
use reactors::Cx;

impl Qpair {
    /// Takes or asks for a command's data, and executes it once they are there.
    pub(super) fn move_data(
        &mut self,
        cx: &Cx,
        slot: u16,
        transfer: Transfer,
        output: &mut Output,
    ) {
        match transfer {
            Transfer::InCapsule(payload) => self.data_came(cx, slot, payload, output),
            Transfer::FromHost(len) => match self.refuses_data(slot, len) {
                Some(status) => self.complete(slot, status, 0, output),
                None => self.want_memory(cx, slot, len as usize, Wants::HostData, output),
            },
            Transfer::None => self.execute(cx, slot, None, output),
        }
    }

    /// Why not to ask for the data of a command that would be refused anyway.
    pub(super) fn refuses_data(&self, slot: u16, len: u32) -> Option<Status> {
        if len > self.side.options.io_bytes_max {
            return Some(Status::INVALID_FIELD);
        }
        let sqe = &self.slots.get(slot)?.sqe;
        if is_auth(sqe) {
            let is_possible = AuthCommand::len_of(sqe).is_some();
            return (!is_possible).then_some(Status::INVALID_FIELD);
        }
        match &self.role {
            Role::Io(io) if sqe.opcode != admin::FABRICS => io.plan(sqe, &self.side.options).err(),
            _ => None,
        }
    }

    /// Takes memory for a command, or parks it until there is some.
    pub(super) fn want_memory(
        &mut self,
        cx: &Cx,
        slot: u16,
        len: usize,
        wants: Wants,
        output: &mut Output,
    ) {
        if !self.parked.is_empty() || !self.has_memory(len, output) {
            self.slots
                .update(slot, |slot| slot.stage = Stage::Parked(len, wants));
            self.parked.push_back(slot);
            return;
        }
        self.use_memory(cx, slot, len, wants, output);
    }

    /// One command is always served, however long.
    fn has_memory(&self, len: usize, output: &Output) -> bool {
        let held = self.slots.all_bytes() + output.body_bytes();
        held == 0 || held + len <= HELD_BYTES_MAX
    }

    fn use_memory(&mut self, cx: &Cx, slot: u16, len: usize, wants: Wants, output: &mut Output) {
        let Some(cid) = self.slots.get(slot).map(|slot| slot.sqe.cid.get()) else {
            return;
        };
        let buf = self.pool.borrow_mut().take(len);
        self.slots.update(slot, |slot| slot.held_bytes = len);
        match wants {
            Wants::HostData => {
                self.slots
                    .update(slot, |slot| slot.stage = Stage::Receiving(Some(buf), 0));
                self.replies.ready(cid, slot, len, output);
            }
            Wants::BdevData => self.start_io(cx, slot, Some(buf), output),
        }
    }

    /// Goes on with commands that wait for memory.
    pub(super) fn unpark(&mut self, cx: &Cx, output: &mut Output) -> u32 {
        let mut count = 0;
        while let Some(&slot) = self.parked.front() {
            let stage = self.slots.get(slot).map(|slot| &slot.stage);
            let Some(&Stage::Parked(len, wants)) = stage else {
                self.parked.pop_front();
                continue;
            };
            if !self.has_memory(len, output) {
                break;
            }
            self.parked.pop_front();
            self.use_memory(cx, slot, len, wants, output);
            count += 1;
        }
        count
    }

    /// Data begin that a command waits for: the slot, its buffer, and where in it they go.
    ///
    /// # Errors
    /// Why the connection must end (spec section 2.4).
    pub(in crate::target::nvmf) fn data_begins(
        &mut self,
        pdu: &DataPdu,
    ) -> Result<(u16, IoBuf, usize), Fault> {
        const TAG_AT: u32 = 10;
        let tag = pdu.tag.get();
        let slot = self.slots.get(tag).ok_or(Fault::of(FaultKind::Sequence))?;
        if slot.sqe.cid.get() != pdu.cid.get() {
            return Err(Fault::of(FaultKind::Sequence));
        }
        let &Stage::Receiving(_, received) = &slot.stage else {
            return Err(Fault::field(TAG_AT));
        };
        let end = u64::from(pdu.offset.get()) + u64::from(pdu.len.get());
        if pdu.offset.get() as usize != received || end > slot.held_bytes as u64 {
            return Err(Fault::of(FaultKind::OutOfRange));
        }
        let buf = self.slots.update(tag, |slot| match &mut slot.stage {
            Stage::Receiving(buf, _) => buf.take(),
            _ => None,
        });
        let buf = buf.flatten().ok_or(Fault::of(FaultKind::Sequence))?;
        Ok((tag, buf, received))
    }

    /// They have come, up to `end`. `is_last`: the host says that there are no more.
    ///
    /// # Errors
    /// Why the connection must end.
    pub(in crate::target::nvmf) fn data_arrived(
        &mut self,
        cx: &Cx,
        slot: u16,
        payload: Payload,
        (end, is_last): (usize, bool),
        output: &mut Output,
    ) -> Result<(), Fault> {
        const FLAGS_AT: u32 = 1;
        let is_whole = end == payload.buf.len();
        if is_last != is_whole {
            return Err(Fault::field(FLAGS_AT));
        }
        // One damaged part spoils the command; the others are waited for all the same.
        let Payload { buf, intact } = payload;
        let spoilt = self.slots.update(slot, |slot| {
            slot.spoilt |= !intact;
            slot.spoilt
        });
        let intact = spoilt == Some(false);
        if is_whole {
            self.slots.update(slot, |slot| slot.stage = Stage::Waiting);
            self.data_came(cx, slot, Payload { buf, intact }, output);
        } else {
            self.slots
                .update(slot, |slot| slot.stage = Stage::Receiving(Some(buf), end));
        }
        Ok(())
    }

    /// All data of a command are there.
    pub(super) fn data_came(&mut self, cx: &Cx, slot: u16, payload: Payload, output: &mut Output) {
        if self.slots.get(slot).is_some_and(|s| s.partner.is_some()) {
            self.half_came(cx, slot, payload, output);
        } else if payload.intact {
            self.execute(cx, slot, Some(payload.buf), output);
        } else {
            self.pool.borrow_mut().give(payload.buf);
            self.complete(slot, Status::TRANSIENT_TRANSPORT, 0, output);
        }
    }

    pub(super) fn give(&self, data: Option<IoBuf>) {
        if let Some(buf) = data {
            self.pool.borrow_mut().give(buf);
        }
    }
}
