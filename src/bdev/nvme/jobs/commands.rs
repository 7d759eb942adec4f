//! What PDUs of the controller mean for commands.

use super::{Command, Jobs, Window};
use crate::bdev::Data;
use crate::bdev::nvme::NvmeFault;
use crate::bdev::nvme::plan::Verb;
use crate::bdev::nvme::receive::Commands;
use crate::wire::nvme::{Cqe, DataPdu, R2tPdu, Status};

/// Bits of an identifier that say which command; those above tell a late answer to an earlier owner of
/// the place from one to this.
pub(super) const PLACE_BITS: u32 = 10;

impl Jobs {
    /// The number of the command with this identifier, whose answers may come.
    fn find(&self, cid: u16) -> Result<u64, NvmeFault> {
        let number = u64::from(cid & ((1 << PLACE_BITS) - 1));
        let command = self.commands.get(number);
        let unknown = NvmeFault::Cid(cid);
        let command = command.ok_or(unknown)?;
        if command.cid != cid || command.ended.is_some() {
            return Err(unknown);
        }
        match command.sent {
            true => Ok(number),
            false => Err(NvmeFault::TooEarly(cid)),
        }
    }

    fn find_mut(&mut self, cid: u16) -> Result<(u64, &mut Command), NvmeFault> {
        let number = self.find(cid)?;
        let command = self.commands.get_mut(number).ok_or(NvmeFault::Cid(cid))?;
        Ok((number, command))
    }

    fn completed_with(&mut self, cid: u16, status: Status) -> Result<(), NvmeFault> {
        let (number, command) = self.find_mut(cid)?;
        let piece = &command.piece;
        if status.is_ok() && piece.verb == Verb::Read && command.received < piece.len {
            return Err(NvmeFault::Incomplete {
                cid,
                wanted: piece.len,
                got: command.received,
            });
        }
        let wants_all = !command.in_capsule && matches!(piece.verb, Verb::Write | Verb::Deallocate);
        let data = match piece.verb {
            Verb::Deallocate => command.ranges.len(),
            _ => piece.len as usize,
        };
        let has_all = command.granted as usize >= data && !command.window;
        if status.is_ok() && wants_all && !has_all {
            return Err(NvmeFault::TooEarly(cid));
        }
        if command.to_go == 0 && !command.window {
            self.end(number, status);
            return Ok(());
        }
        // What was asked for and is not on its way any more is not needed.
        command.ended = Some(status);
        self.needless = true;
        self.windows.retain(|window| window.command != number);
        if command_is_idle(self.commands.get(number)) {
            self.end(number, status);
        }
        Ok(())
    }
}

fn command_is_idle(command: Option<&Command>) -> bool {
    command.is_some_and(|command| command.to_go == 0)
}

impl Commands for Jobs {
    fn data_begin(&mut self, pdu: &DataPdu) -> Result<u64, NvmeFault> {
        let cid = pdu.cid.get();
        let (number, command) = self.find_mut(cid)?;
        let (at, len) = (pdu.offset.get(), pdu.len.get());
        let left = command.piece.len - command.received;
        if command.piece.verb != Verb::Read || at != command.received || len > left {
            return Err(NvmeFault::Outside(cid));
        }
        command.received += len;
        Ok(number)
    }

    fn place(&mut self, command: u64, at: usize, len: usize) -> &mut [u8] {
        let Some(command) = self.commands.get(command) else {
            return &mut [];
        };
        let start = usize::try_from(command.piece.at).unwrap_or(usize::MAX) + at;
        let job = self.jobs.get_mut(command.piece.job);
        match job.map(|job| &mut job.request.data) {
            Some(Data::Buf(buf)) => buf.get_mut(start..start + len).unwrap_or_default(),
            _ => &mut [],
        }
    }

    fn data_end(&mut self, number: u64, intact: bool, success: bool) -> Result<(), NvmeFault> {
        let Some(command) = self.commands.get_mut(number) else {
            return Ok(());
        };
        command.intact &= intact;
        let cid = command.cid;
        match success {
            true => self.completed_with(cid, Status::SUCCESS),
            false => Ok(()),
        }
    }

    fn completed(&mut self, cqe: &Cqe) -> Result<(), NvmeFault> {
        self.completed_with(cqe.cid.get(), cqe.status())
    }

    fn wanted(&mut self, r2t: &R2tPdu) -> Result<(), NvmeFault> {
        let cid = r2t.cid.get();
        let (number, command) = self.find_mut(cid)?;
        let data = match command.piece.verb {
            Verb::Write => command.piece.len,
            Verb::Deallocate => u32::try_from(command.ranges.len()).unwrap_or(0),
            Verb::Read | Verb::Flush | Verb::WriteZeroes => 0,
        };
        let (at, len) = (r2t.offset.get(), r2t.len.get());
        let out_of_place = command.in_capsule || command.window || at != command.granted;
        if out_of_place || len == 0 || len > data - command.granted {
            return Err(NvmeFault::R2t(cid));
        }
        command.granted += len;
        command.window = true;
        self.windows.push_back(Window {
            command: number,
            tag: r2t.tag.get(),
            next: at,
            end: at + len,
        });
        Ok(())
    }
}
