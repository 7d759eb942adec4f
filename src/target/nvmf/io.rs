//! I/O commands: what they ask for, and whether that is possible.

use crate::bdev::BdevInfo;
use crate::units::ByteRange;
use crate::wire::nvme::{DsmRange, Fuse, Sqe, Status, io};

/// What a command asks a namespace for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Make durable what has completed.
    Flush,
    /// Send data.
    Read,
    /// Store data.
    Write,
    /// Compare stored data with the host's.
    Compare,
    /// Read, and send nothing.
    Verify,
    /// Store zeroes.
    Zeroes {
        /// Or deallocate.
        may_unmap: bool,
    },
    /// Deallocate so many ranges, which come with the command.
    Deallocate(usize),
    /// Nothing.
    Hint,
}

impl What {
    /// Whether it may change data.
    pub(super) fn writes(self) -> bool {
        matches!(
            self,
            Self::Write | Self::Zeroes { .. } | Self::Deallocate(_)
        )
    }

    /// Whether data come back, or could not be read.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Read | Self::Compare | Self::Verify)
    }
}

/// A command that is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) what: What,
    /// Empty for flushes, ranges and hints.
    pub(super) range: ByteRange,
    /// Only complete once it is on stable media.
    pub(super) fua: bool,
}

/// What the transport and the controller add to the rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Data of one command, in bytes.
    pub(super) io_bytes_max: u32,
    /// The host flushes, since it was told of a volatile cache.
    pub(super) host_flushes: bool,
}

/// What `sqe` asks of a namespace, if that is possible (spec section 6).
///
/// # Errors
/// The status to complete the command with.
pub(super) fn plan(sqe: &Sqe, info: &BdevInfo, rules: Rules) -> Result<Plan, Status> {
    match (sqe.fuse(), sqe.opcode) {
        (Fuse::Normal, _) | (Fuse::First, io::COMPARE) | (Fuse::Second, io::WRITE) => {}
        _ => return Err(Status::INVALID_FIELD),
    }
    // A host that was told that nothing is volatile sends no flush: then each write is durable at once.
    let fua = sqe.fua() || (info.volatile_cache && !rules.host_flushes);
    let plan = |what, range| Ok(Plan { what, range, fua });
    let writable = |what, range| match info.read_only {
        true => Err(Status::WRITE_PROTECTED),
        false => plan(what, range),
    };
    match sqe.opcode {
        io::FLUSH => plan(What::Flush, ByteRange::default()),
        io::READ => plan(What::Read, with_data(sqe, info, rules)?),
        io::COMPARE => plan(What::Compare, with_data(sqe, info, rules)?),
        io::WRITE => writable(What::Write, with_data(sqe, info, rules)?),
        io::VERIFY => plan(What::Verify, bounded(sqe, info, rules)?),
        io::WRITE_ZEROES => {
            let may_unmap = sqe.deallocate();
            writable(What::Zeroes { may_unmap }, blocks(sqe, info)?)
        }
        io::DATASET_MANAGEMENT => {
            let count = (sqe.cdw10.get() & 0xff) as usize + 1;
            if (sqe.sgl_len.get() as usize) < count * size_of::<DsmRange>() {
                return Err(Status::SGL_LENGTH_INVALID);
            }
            let deallocates = sqe.cdw11.get() & DsmRange::DEALLOCATE != 0;
            match deallocates && info.supports.discard {
                true => writable(What::Deallocate(count), ByteRange::default()),
                false => plan(What::Hint, ByteRange::default()),
            }
        }
        _ => Err(Status::INVALID_OPCODE),
    }
}

fn blocks(sqe: &Sqe, info: &BdevInfo) -> Result<ByteRange, Status> {
    let range = sqe.blocks().within(info.blocks, info.block_size);
    range.ok_or(Status::LBA_OUT_OF_RANGE)
}

/// No longer than one command may be.
fn bounded(sqe: &Sqe, info: &BdevInfo, rules: Rules) -> Result<ByteRange, Status> {
    let range = blocks(sqe, info)?;
    match range.len() > u64::from(rules.io_bytes_max) {
        true => Err(Status::INVALID_FIELD),
        false => Ok(range),
    }
}

/// And with enough data, or room for them.
fn with_data(sqe: &Sqe, info: &BdevInfo, rules: Rules) -> Result<ByteRange, Status> {
    let range = bounded(sqe, info, rules)?;
    match u64::from(sqe.sgl_len.get()) < range.len() {
        true => Err(Status::SGL_LENGTH_INVALID),
        false => Ok(range),
    }
}

/// The ranges to deallocate, in bytes, without empty ones.
///
/// # Errors
/// The status to complete the command with.
pub(super) fn ranges(
    bytes: &[u8],
    count: usize,
    info: &BdevInfo,
) -> Result<Vec<ByteRange>, Status> {
    let ranges = DsmRange::decode(bytes, count).ok_or(Status::SGL_LENGTH_INVALID)?;
    let mut found = Vec::with_capacity(count);
    for range in ranges {
        let (lba, blocks) = (range.lba.get(), range.blocks.get());
        let end = lba.checked_add(blocks.into());
        if end.is_none_or(|end| end > info.blocks) {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        let size = u64::from(info.block_size);
        let bytes = ByteRange::new(lba.saturating_mul(size), u64::from(blocks) * size);
        found.extend(bytes.filter(|bytes| !bytes.is_empty()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::{Bdev, MallocBdev, MallocConfig};
    use crate::wire::nvme::IoRange;
    use zerocopy::IntoBytes;

    fn info() -> BdevInfo {
        let bdev = MallocBdev::new(MallocConfig {
            name: "m".to_owned(),
            uuid: uuid::Uuid::nil(),
            block_size: 512,
            blocks: 1000,
        });
        (*bdev.unwrap().info()).clone()
    }

    const RULES: Rules = Rules {
        io_bytes_max: 8192,
        host_flushes: true,
    };

    fn command(opcode: u8, lba: u64, blocks: u32, data: u32) -> Sqe {
        Sqe::new(opcode, 1, 1)
            .with_transport_data(data)
            .with_blocks(IoRange { lba, blocks }, false)
    }

    #[test]
    fn what_is_impossible_has_its_own_status() {
        let mut info = info();
        let cases = [
            (command(io::READ, 999, 2, 1024), Status::LBA_OUT_OF_RANGE),
            (
                command(io::READ, u64::MAX, 2, 1024),
                Status::LBA_OUT_OF_RANGE,
            ),
            (command(io::WRITE, 0, 17, 8704), Status::INVALID_FIELD),
            (command(io::COMPARE, 0, 2, 1023), Status::SGL_LENGTH_INVALID),
            (
                command(io::WRITE_ZEROES, 1000, 1, 0),
                Status::LBA_OUT_OF_RANGE,
            ),
            (
                command(io::DATASET_MANAGEMENT, 0, 1, 15),
                Status::SGL_LENGTH_INVALID,
            ),
            (command(0x04, 0, 1, 0), Status::INVALID_OPCODE),
        ];
        for (sqe, status) in cases {
            assert_eq!(plan(&sqe, &info, RULES), Err(status), "{sqe:?}");
        }
        for (opcode, fuse, is_possible) in [
            (io::COMPARE, 1, true),
            (io::COMPARE, 2, false),
            (io::COMPARE, 3, false),
            (io::WRITE, 1, false),
            (io::WRITE, 2, true),
            (io::READ, 1, false),
        ] {
            let mut fused = command(opcode, 0, 1, 512);
            fused.flags |= fuse;
            let planned = plan(&fused, &info, RULES);
            assert_eq!(planned.is_ok(), is_possible, "{opcode} {fuse}");
            assert!(is_possible || planned == Err(Status::INVALID_FIELD));
        }
        info.read_only = true;
        for opcode in [io::WRITE, io::WRITE_ZEROES] {
            let sqe = command(opcode, 0, 1, 512);
            assert_eq!(plan(&sqe, &info, RULES), Err(Status::WRITE_PROTECTED));
        }
        assert!(plan(&command(io::READ, 0, 1, 512), &info, RULES).is_ok());
    }

    #[test]
    fn who_was_told_of_no_cache_gets_each_write_durable() {
        let mut info = info();
        let mut rules = RULES;
        for (volatile, flushes, fua) in [
            (true, true, false),
            (true, false, true),
            (false, false, false),
        ] {
            info.volatile_cache = volatile;
            rules.host_flushes = flushes;
            let planned = plan(&command(io::WRITE, 0, 1, 512), &info, rules).unwrap();
            assert_eq!(planned.fua, fua);
        }
    }

    #[test]
    fn ranges_are_checked_one_by_one() {
        let info = info();
        let range = |lba: u64, blocks: u32| DsmRange {
            attributes: 0.into(),
            blocks: blocks.into(),
            lba: lba.into(),
        };
        let good = [range(0, 8), range(5, 0), range(999, 1)];
        let found = ranges(good.as_bytes(), 3, &info).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].start(), found[1].len()), (999 * 512, 512));
        for bad in [range(999, 2), range(u64::MAX, 1)] {
            let ranges = ranges([good[0], bad].as_bytes(), 2, &info);
            assert_eq!(ranges, Err(Status::LBA_OUT_OF_RANGE));
        }
    }
}
