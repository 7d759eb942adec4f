//! How the end of a bdev's request is told to a host.

use crate::bdev::IoStatus;
use crate::wire::nvme::Status;

/// The status of a command whose request ended with `status`. `is_read`: it was to bring data.
pub(super) fn nvme_status(status: IoStatus, is_read: bool, is_leaving: bool) -> Status {
    match status {
        IoStatus::Ok => Status::SUCCESS,
        IoStatus::IoError if is_read => Status::UNRECOVERED_READ,
        IoStatus::IoError => Status::WRITE_FAULT,
        IoStatus::Corrupt => Status::UNRECOVERED_READ,
        IoStatus::OutOfRange => Status::LBA_OUT_OF_RANGE,
        IoStatus::Unaligned | IoStatus::Invalid => Status::INVALID_FIELD,
        IoStatus::ReadOnly => Status::WRITE_PROTECTED,
        IoStatus::NotSupported => Status::INVALID_OPCODE,
        IoStatus::NoSpace => Status::CAPACITY_EXCEEDED,
        IoStatus::Aborted if is_leaving => Status::INVALID_NAMESPACE,
        // Another path, or the same one later, may do better.
        IoStatus::Aborted => Status::PATH_ERROR,
    }
}
