//! Which requests an export takes, and what they mean to the bdev.

use crate::bdev::{BdevInfo, IoStatus, Op};
use crate::units::ByteRange;
use crate::wire::nbd::{Command, CommandFlags, RequestHeader, WireErrno};

/// What is to be done when the I/O has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Send the data.
    Read,
    /// Say that it is done.
    Plain,
    /// Say that it is done; a behind-the-end error of it is "no space".
    Write,
    /// FLUSH: as `Plain`, and the range means nothing.
    Flush,
    /// TRIM or CACHE: as `Plain`, and a device that can't do it has done it.
    Hint,
    /// A hint that is to be durable: a flush comes next.
    TrimThenFlush,
    /// Send the extents.
    Status {
        /// Only the first.
        one: bool,
    },
}

impl Job {
    /// Whether offset and length mean something, so that length 0 has no effect.
    pub(super) fn needs_range(self) -> bool {
        self != Self::Flush
    }

    /// Whether its answer may carry a payload.
    pub(super) fn may_carry(self) -> bool {
        matches!(self, Self::Read | Self::Status { .. })
    }

    /// What the bdev's status means for this job.
    pub(super) fn judge(self, status: IoStatus) -> IoStatus {
        match (self, status) {
            // No extents to be had: then all that is known is that it may be data.
            (Self::Hint | Self::TrimThenFlush | Self::Status { .. }, IoStatus::NotSupported) => {
                IoStatus::Ok
            }
            _ => status,
        }
    }

    /// How a failure is told.
    pub(super) fn errno(self, status: IoStatus) -> Option<WireErrno> {
        Some(match status {
            IoStatus::Ok => return None,
            IoStatus::IoError | IoStatus::Corrupt => WireErrno::Io,
            IoStatus::OutOfRange if self == Self::Write => WireErrno::NoSpace,
            IoStatus::OutOfRange | IoStatus::Unaligned | IoStatus::Invalid => WireErrno::Invalid,
            IoStatus::ReadOnly => WireErrno::Perm,
            IoStatus::NotSupported => WireErrno::NotSupported,
            IoStatus::NoSpace => WireErrno::NoSpace,
            IoStatus::Aborted => WireErrno::Shutdown,
        })
    }
}

/// What does not change during a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    bytes: u64,
    block: u64,
    read_only: bool,
    discard: bool,
    fast_zero: bool,
    structured: bool,
    has_contexts: bool,
    /// The longest READ or WRITE in bytes.
    pub(super) payload_max: u32,
}

impl Rules {
    pub(super) fn new(
        info: &BdevInfo,
        read_only: bool,
        payload_max: u32,
        structured: bool,
        has_contexts: bool,
    ) -> Self {
        Self {
            bytes: info.bytes(),
            block: u64::from(info.block_size.max(1)),
            read_only: read_only || info.read_only,
            discard: info.supports.discard,
            fast_zero: info.supports.write_zeroes,
            structured,
            has_contexts,
            payload_max,
        }
    }

    /// What the request means to the bdev and what comes then, or how it is refused.
    pub(super) fn admit(&self, header: &RequestHeader) -> Result<(Op, Job), WireErrno> {
        let flags = header.flags;
        if !flags.fit(header.command) || (flags.has(CommandFlags::DF) && !self.structured) {
            return Err(WireErrno::Invalid);
        }
        let fua = flags.has(CommandFlags::FUA);
        let (op, job) = match header.command {
            Command::Read => (Op::Read, Job::Read),
            Command::Write => (Op::Write { fua }, Job::Write),
            Command::Flush => return Ok((Op::Flush, Job::Flush)),
            Command::Trim if !self.discard && !self.read_only => return Err(WireErrno::Invalid),
            Command::Trim if fua => (Op::Discard, Job::TrimThenFlush),
            Command::Trim => (Op::Discard, Job::Hint),
            Command::Cache => (Op::Prefetch, Job::Hint),
            Command::WriteZeroes => {
                let may_unmap = !flags.has(CommandFlags::NO_HOLE);
                (Op::WriteZeroes { may_unmap, fua }, Job::Write)
            }
            Command::BlockStatus if !self.has_contexts || header.len == 0 => {
                return Err(WireErrno::Invalid);
            }
            Command::BlockStatus => {
                let one = flags.has(CommandFlags::REQ_ONE);
                (Op::Extents, Job::Status { one })
            }
            Command::Disconnect | Command::Unknown(_) => return Err(WireErrno::Invalid),
        };
        if self.read_only && op.modifies() {
            return Err(WireErrno::Perm);
        }
        self.check_range(header, job)?;
        if flags.has(CommandFlags::FAST_ZERO) && !self.fast_zero {
            return Err(WireErrno::NotSupported);
        }
        Ok((op, job))
    }

    fn check_range(&self, header: &RequestHeader, job: Job) -> Result<(), WireErrno> {
        let has_payload = matches!(header.command, Command::Read | Command::Write);
        if has_payload && header.len > self.payload_max {
            return Err(WireErrno::Invalid);
        }
        let range = ByteRange::new(header.offset, u64::from(header.len));
        let Some(range) = range.filter(|range| range.end() <= self.bytes) else {
            return Err(match job {
                Job::Write => WireErrno::NoSpace,
                _ => WireErrno::Invalid,
            });
        };
        if range.is_aligned(self.block) {
            Ok(())
        } else {
            Err(WireErrno::Invalid)
        }
    }
}
