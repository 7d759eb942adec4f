//! Submission and completion queue entries (spec/nvmf-tcp.md, sections 3 to 6).

use super::Status;
use crate::units::ByteRange;
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Opcodes of the admin queue.
pub mod admin {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Fabrics commands, on all queues.
    pub const FABRICS: u8 = 0x7f;
}

/// Opcodes of I/O queues.
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0c;
}

/// Types of fabrics commands.
pub mod fctype {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTH_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTH_RECEIVE: u8 = 0x06;
}

/// Feature identifiers.
pub mod feature {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const QUEUES: u8 = 0x07;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENTS: u8 = 0x0b;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE: u8 = 0x0f;
    /// Host Identifier.
    pub const HOST_ID: u8 = 0x81;
}

/// SGL descriptor identifiers: type in bits 7:4, subtype in bits 3:0.
pub mod sgl {
    /// Data in the capsule, from an offset.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Data that the transport moves.
    pub const TRANSPORT: u8 = 0x5a;
}

/// Which way a command's data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirection {
    /// No data.
    None,
    /// From host to controller.
    ToController,
    /// From controller to host.
    ToHost,
    /// Both; no command that is known here.
    Both,
}

/// Which way the data of a command with this opcode go; of a fabrics command by its type.
#[must_use]
pub fn data_direction(opcode_or_fctype: u8) -> DataDirection {
    match opcode_or_fctype & 3 {
        0 => DataDirection::None,
        1 => DataDirection::ToController,
        2 => DataDirection::ToHost,
        _ => DataDirection::Both,
    }
}

/// Whether a command is half of a fused operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// It is not.
    Normal,
    /// It is the first.
    First,
    /// It is the second.
    Second,
    /// Reserved.
    Reserved,
}

/// A submission queue entry. `cdw10` to `cdw15` are the command's own.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// What to do.
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// The command's identifier: its completion has the same.
    pub cid: U16,
    /// The namespace; in fabrics commands byte 0 is their type.
    pub nsid: U32,
    /// Reserved, or the command's own.
    pub cdw2: [U32; 2],
    /// Metadata; none here.
    pub metadata: U64,
    /// SGL: where the data are, if in the capsule.
    pub sgl_address: U64,
    /// SGL: how many bytes.
    pub sgl_len: U32,
    /// SGL: reserved.
    pub sgl_spare: [u8; 3],
    /// SGL: its type; see [`sgl`].
    pub sgl_kind: u8,
    /// The command's own.
    pub cdw10: U32,
    /// The command's own.
    pub cdw11: U32,
    /// The command's own.
    pub cdw12: U32,
    /// The command's own.
    pub cdw13: U32,
    /// The command's own.
    pub cdw14: U32,
    /// The command's own.
    pub cdw15: U32,
}

/// FUA, in `cdw12` of I/O commands.
const FUA: u32 = 1 << 30;
/// Deallocate, in `cdw12` of Write Zeroes.
const DEAC: u32 = 1 << 25;
/// PSDT of commands on fabrics: an SGL.
const PSDT_SGL: u8 = 1 << 6;

/// The blocks of an I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRange {
    /// The first.
    pub lba: u64,
    /// How many, at least 1.
    pub blocks: u32,
}

impl IoRange {
    /// In bytes, if that is within `namespace_blocks`.
    #[must_use]
    pub fn within(self, namespace_blocks: u64, block_size: u32) -> Option<ByteRange> {
        let end = self.lba.checked_add(u64::from(self.blocks))?;
        if end > namespace_blocks {
            return None;
        }
        let size = u64::from(block_size);
        ByteRange::new(
            self.lba.checked_mul(size)?,
            u64::from(self.blocks).checked_mul(size)?,
        )
    }
}

impl Sqe {
    /// A command without data.
    #[must_use]
    pub fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        Self {
            opcode,
            flags: PSDT_SGL,
            cid: U16::new(cid),
            nsid: U32::new(nsid),
            sgl_kind: sgl::TRANSPORT,
            ..Self::default()
        }
    }

    /// A fabrics command without data.
    #[must_use]
    pub fn fabrics(fctype: u8, cid: u16) -> Self {
        Self::new(admin::FABRICS, cid, u32::from(fctype))
    }

    /// Says that `len` bytes of data are in the capsule.
    #[must_use]
    pub fn with_capsule_data(mut self, len: u32) -> Self {
        self.sgl_kind = sgl::IN_CAPSULE;
        self.sgl_len = U32::new(len);
        self
    }

    /// Says that the transport moves `len` bytes of data.
    #[must_use]
    pub fn with_transport_data(mut self, len: u32) -> Self {
        self.sgl_kind = sgl::TRANSPORT;
        self.sgl_len = U32::new(len);
        self
    }

    /// Sets the blocks of an I/O command; `blocks` is 1 to 65536.
    #[must_use]
    pub fn with_blocks(mut self, range: IoRange, fua: bool) -> Self {
        [self.cdw10, self.cdw11] = halves(range.lba);
        let count = range.blocks.saturating_sub(1).min(0xffff);
        self.cdw12 = U32::new(count | if fua { FUA } else { 0 });
        self
    }

    /// The type of a fabrics command.
    #[must_use]
    pub fn fctype(&self) -> u8 {
        let [fctype, ..] = self.nsid.to_bytes();
        fctype
    }

    /// Whether it is half of a fused operation.
    #[must_use]
    pub fn fuse(&self) -> Fuse {
        match self.flags & 3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Which way its data go.
    #[must_use]
    pub fn direction(&self) -> DataDirection {
        match self.opcode {
            admin::FABRICS => data_direction(self.fctype()),
            opcode => data_direction(opcode),
        }
    }

    /// The blocks of an I/O command.
    #[must_use]
    pub fn blocks(&self) -> IoRange {
        IoRange {
            lba: u64::from(self.cdw10.get()) | u64::from(self.cdw11.get()) << 32,
            blocks: (self.cdw12.get() & 0xffff) + 1,
        }
    }

    /// Whether an I/O command must be on stable media before it completes.
    #[must_use]
    pub fn fua(&self) -> bool {
        self.cdw12.get() & FUA != 0
    }

    /// Whether Write Zeroes shall deallocate.
    #[must_use]
    pub fn deallocate(&self) -> bool {
        self.cdw12.get() & DEAC != 0
    }
}

/// The low and the high half.
fn halves(value: u64) -> [U32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]].map(U32::from_bytes)
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// The command's own, low half.
    pub dw0: U32,
    /// The command's own, high half.
    pub dw1: U32,
    /// How far the submission queue has been read.
    pub sq_head: U16,
    spare: U16,
    /// Whose completion it is.
    pub cid: U16,
    status: U16,
}

impl Cqe {
    /// The completion of command `cid`; `result` is DW0 and DW1.
    #[must_use]
    pub fn new(cid: u16, status: Status, result: u64, sq_head: u16) -> Self {
        let [dw0, dw1] = halves(result);
        Self {
            dw0,
            dw1,
            sq_head: U16::new(sq_head),
            spare: U16::new(0),
            cid: U16::new(cid),
            status: U16::new(status.to_field()),
        }
    }

    /// How the command ended.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_field(self.status.get())
    }

    /// DW0 and DW1.
    #[must_use]
    pub fn result(&self) -> u64 {
        u64::from(self.dw0.get()) | u64::from(self.dw1.get()) << 32
    }
}

/// One range of Dataset Management.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DsmRange {
    /// Hints; ignored.
    pub attributes: U32,
    /// How many blocks.
    pub blocks: U32,
    /// The first.
    pub lba: U64,
}

impl DsmRange {
    /// The most ranges of one command.
    pub const COUNT_MAX: usize = 256;
    /// Deallocate, in `cdw11`.
    pub const DEALLOCATE: u32 = 1 << 2;

    /// The first `count` ranges in `bytes`, if they are there.
    #[must_use]
    pub fn decode(bytes: &[u8], count: usize) -> Option<&[Self]> {
        let ranges = <[Self]>::ref_from_prefix_with_elems(bytes, count);
        ranges.ok().map(|(ranges, _)| ranges)
    }
}

const _: () = {
    assert!(size_of::<Sqe>() == 64);
    assert!(size_of::<Cqe>() == 16);
    assert!(size_of::<DsmRange>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_says() {
        let range = IoRange {
            lba: 0x1_0203_0405,
            blocks: 8,
        };
        let sqe = Sqe::new(io::WRITE, 0x1234, 7)
            .with_capsule_data(4096)
            .with_blocks(range, true);
        let bytes = sqe.as_bytes();
        assert_eq!(bytes[..8], [1, 0x40, 0x34, 0x12, 7, 0, 0, 0]);
        assert_eq!(bytes[32..40], [0, 16, 0, 0, 0, 0, 0, 1]);
        assert_eq!(bytes[40..52], [5, 4, 3, 2, 1, 0, 0, 0, 7, 0, 0, 0x40]);
        assert_eq!((sqe.blocks(), sqe.fua()), (range, true));
        let cqe = Cqe::new(9, Status::ABORTED, 0x1_0000_0002, 5);
        let bytes = cqe.as_bytes();
        assert_eq!(
            bytes,
            [2, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0x0e, 0x80]
        );
        assert_eq!(
            (cqe.status(), cqe.result()),
            (Status::ABORTED, 0x1_0000_0002)
        );
    }

    #[test]
    fn ranges_that_leave_the_namespace_are_none() {
        let range = |lba, blocks| IoRange { lba, blocks }.within(100, 512);
        assert_eq!(range(92, 8), ByteRange::new(92 * 512, 8 * 512));
        assert_eq!(range(93, 8), None);
        assert_eq!(range(u64::MAX, 1), None);
        assert_eq!(
            IoRange {
                lba: u64::MAX - 1,
                blocks: 1
            }
            .within(u64::MAX, 4096),
            None
        );
    }

    #[test]
    fn ranges_of_dataset_management_are_counted() {
        let mut bytes = vec![0; 40];
        bytes[4] = 3;
        bytes[8] = 9;
        let ranges = DsmRange::decode(&bytes, 2).unwrap();
        assert_eq!((ranges[0].blocks.get(), ranges[0].lba.get()), (3, 9));
        assert!(DsmRange::decode(&bytes, 3).is_none());
    }
}
