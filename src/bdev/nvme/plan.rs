//! How requests are said in commands, and what the ends of commands mean.

use super::shared::{Namespace, Shared};
use crate::bdev::inline::all_allocated;
use crate::bdev::{BdevInfo, IoStatus, Op, Request};
use crate::wire::nvme::{Status, StatusType};

/// Where controllers have no Write Zeroes, zeroes are sent from here.
pub(super) static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Read,
    Write,
    Flush,
    WriteZeroes,
    /// Dataset Management.
    Deallocate,
}

/// How a request is said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) verb: Verb,
    /// The longest range of one command, in bytes.
    pub(super) step: u64,
    /// The payload is zeroes, not the request's data.
    pub(super) zeroes: bool,
    pub(super) fua: bool,
    /// Write Zeroes may deallocate.
    pub(super) deallocate: bool,
    pub(super) nsid: u32,
    pub(super) block_exponent: u32,
}

/// The plan for `op`, which is not done without.
pub(super) fn plan(shared: &Shared, namespace: &Namespace, info: &BdevInfo, op: Op) -> Plan {
    let block = info.block_size;
    let mut plan = Plan {
        verb: Verb::Flush,
        step: shared.transfer_bytes(block),
        zeroes: false,
        fua: false,
        deallocate: false,
        nsid: namespace.nsid,
        block_exponent: block.trailing_zeros(),
    };
    match op {
        Op::Read => plan.verb = Verb::Read,
        Op::Write { fua } => (plan.verb, plan.fua) = (Verb::Write, fua),
        Op::WriteZeroes { may_unmap, fua } => {
            plan.fua = fua;
            if info.supports.write_zeroes {
                plan.verb = Verb::WriteZeroes;
                plan.step = shared.zeroes_bytes(block);
                plan.deallocate = may_unmap && namespace.zeroes_deallocate;
            } else {
                plan.verb = Verb::Write;
                plan.step = plan.step.min(ZEROES.len() as u64);
                plan.zeroes = true;
            }
        }
        Op::Discard => {
            plan.verb = Verb::Deallocate;
            plan.step = shared.range_bytes(block);
        }
        Op::Flush | Op::Prefetch | Op::Extents => {}
    }
    // Without a volatile cache every write is durable as it is.
    plan.fua &= info.volatile_cache;
    plan
}

/// How an admitted request ends that the controller need not hear of; nothing if it must.
pub(super) fn at_once(info: &BdevInfo, request: &mut Request) -> Option<IoStatus> {
    let said = match request.op {
        Op::Flush => return (!info.volatile_cache).then_some(IoStatus::Ok),
        Op::Extents => {
            request.data = all_allocated(request.range);
            false
        }
        Op::Discard => info.supports.discard,
        Op::Prefetch => false,
        Op::Read | Op::Write { .. } | Op::WriteZeroes { .. } => true,
    };
    (!said || request.range.is_empty()).then_some(IoStatus::Ok)
}

/// What a command's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done, or has failed for good.
    Final(IoStatus),
    /// The same command may do better.
    Again,
}

/// What `status` means.
pub(super) fn outcome(status: Status) -> Outcome {
    const GENERIC: u8 = StatusType::Generic as u8;
    const COMMAND: u8 = StatusType::Command as u8;
    const MEDIA: u8 = StatusType::Media as u8;
    const PATH: u8 = StatusType::Path as u8;
    if status.is_ok() {
        return Outcome::Final(IoStatus::Ok);
    }
    let passing = match (status.kind(), status.code()) {
        // Data transfer error, aborted (power loss, queue deletion), interrupted, transport error.
        (GENERIC, 0x04 | 0x05 | 0x08 | 0x21 | 0x22) | (PATH, _) => true,
        _ => false,
    };
    if passing && !status.is_lasting() {
        return Outcome::Again;
    }
    Outcome::Final(match (status.kind(), status.code()) {
        (GENERIC, 0x01) => IoStatus::NotSupported,
        (GENERIC, 0x02) => IoStatus::Invalid,
        (GENERIC, 0x20) | (COMMAND, 0x82) => IoStatus::ReadOnly,
        (GENERIC, 0x80) => IoStatus::OutOfRange,
        (GENERIC, 0x81) => IoStatus::NoSpace,
        // Checks of guard, application tag and reference tag.
        (MEDIA, 0x82..=0x84) => IoStatus::Corrupt,
        _ => IoStatus::IoError,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_unless_told_otherwise() {
        assert_eq!(outcome(Status::TRANSIENT_TRANSPORT), Outcome::Again);
        assert_eq!(outcome(Status::ABORTED_QUEUE_DELETED), Outcome::Again);
        assert_eq!(outcome(Status::ANA_INACCESSIBLE), Outcome::Again);
        let lasting = Status::from_field((0x4000 | 0x22) << 1);
        assert_eq!(outcome(lasting), Outcome::Final(IoStatus::IoError));
        for (status, meant) in [
            (Status::SUCCESS, IoStatus::Ok),
            (Status::LBA_OUT_OF_RANGE, IoStatus::OutOfRange),
            (Status::WRITE_PROTECTED, IoStatus::ReadOnly),
            (Status::CAPACITY_EXCEEDED, IoStatus::NoSpace),
            (Status::INVALID_FIELD, IoStatus::Invalid),
            (Status::INVALID_OPCODE, IoStatus::NotSupported),
            (Status::UNRECOVERED_READ, IoStatus::IoError),
        ] {
            assert_eq!(outcome(status), Outcome::Final(meant), "{status:?}");
        }
    }
}
