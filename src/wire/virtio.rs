//! virtio: descriptors of split virtqueues, and the block device's structs. All little-endian.

use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The unit of capacities and addresses, whatever the block size. Bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Feature bits.
pub mod feature {
    /// The configuration has `size_max`.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// The configuration has `seg_max`.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Takes no writes.
    pub const RO: u64 = 1 << 5;
    /// The configuration has `blk_size`.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Has a volatile cache, and FLUSH to empty it.
    pub const FLUSH: u64 = 1 << 9;
    /// The configuration has the topology.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver may choose whether the volatile cache is used.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// More than one queue.
    pub const MQ: u64 = 1 << 12;
    /// Takes DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// Takes `WRITE_ZEROES`.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Descriptors may point to tables of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are asked for by index.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: the protocol has features of its own.
    pub const VHOST_PROTOCOL: u64 = 1 << 30;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Flags of a descriptor.
pub mod desc_flag {
    /// `next` is valid.
    pub const NEXT: u16 = 1;
    /// The device writes there; without it, it reads.
    pub const WRITE: u16 = 2;
    /// A table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// `avail.flags`: the driver wants no interrupts. Without `EVENT_IDX` only.
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no notifications. Without `EVENT_IDX` only.
pub const USED_NO_NOTIFY: u16 = 1;

/// Types of block requests.
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Empty the volatile cache.
    pub const FLUSH: u32 = 4;
    /// Tell the serial number.
    pub const GET_ID: u32 = 8;
    /// The range is not wanted any more.
    pub const DISCARD: u32 = 11;
    /// The range reads as zeroes afterwards.
    pub const WRITE_ZEROES: u32 = 13;
}

/// The last byte of a request.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const IOERR: u8 = 1;
    /// Not known here.
    pub const UNSUPP: u8 = 2;
}

/// Bytes of the answer to `GET_ID`.
pub const ID_BYTES: usize = 20;

/// One entry of a descriptor table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Descriptor {
    /// Guest-physical.
    pub addr: U64,
    /// Bytes.
    pub len: U32,
    /// See [`desc_flag`].
    pub flags: U16,
    /// The next one's index in the same table.
    pub next: U16,
}

impl Descriptor {
    /// Bytes of one.
    pub const BYTES: usize = 16;
}
const _: () = assert!(size_of::<Descriptor>() == Descriptor::BYTES);

/// How a block request begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BlkHeader {
    /// See [`request`].
    pub kind: U32,
    /// Not used.
    pub reserved: U32,
    /// Where, for reads and writes.
    pub sector: U64,
}
const _: () = assert!(size_of::<BlkHeader>() == 16);

/// What DISCARD and `WRITE_ZEROES` are about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BlkRange {
    /// The first sector.
    pub sector: U64,
    /// How many.
    pub sectors: U32,
    /// Bit 0: the space may be given back (`WRITE_ZEROES` only).
    pub flags: U32,
}
const _: () = assert!(size_of::<BlkRange>() == 16);

/// The block device's configuration, as far as it is offered; zeroes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BlkConfig {
    /// Sectors.
    pub capacity: U64,
    /// The longest segment in bytes.
    pub size_max: U32,
    /// Segments of data in one request.
    pub seg_max: U32,
    /// Cylinders, heads, sectors: not offered.
    pub geometry: [u8; 4],
    /// Logical block in bytes.
    pub blk_size: U32,
    /// Logical blocks in a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// The first aligned logical block.
    pub alignment_offset: u8,
    /// Suggested, in logical blocks.
    pub min_io_size: U16,
    /// Suggested, in logical blocks; 0 for none.
    pub opt_io_size: U32,
    /// Whether the volatile cache is used; the driver may change it.
    pub wce: u8,
    /// Not used.
    pub spare: u8,
    /// How many there may be.
    pub num_queues: U16,
    /// In one range.
    pub max_discard_sectors: U32,
    /// Ranges in one request.
    pub max_discard_seg: U32,
    /// In sectors.
    pub discard_sector_alignment: U32,
    /// In one range.
    pub max_write_zeroes_sectors: U32,
    /// Ranges in one request.
    pub max_write_zeroes_seg: U32,
    /// Whether bit 0 of the flags has an effect.
    pub write_zeroes_may_unmap: u8,
    /// Not used.
    pub spare2: [u8; 3],
}
const _: () = assert!(size_of::<BlkConfig>() == 60);

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn configuration_lies_where_drivers_look() {
        assert_eq!(offset_of!(BlkConfig, seg_max), 12);
        assert_eq!(offset_of!(BlkConfig, blk_size), 20);
        assert_eq!(offset_of!(BlkConfig, min_io_size), 26);
        assert_eq!(offset_of!(BlkConfig, wce), 32);
        assert_eq!(offset_of!(BlkConfig, num_queues), 34);
        assert_eq!(offset_of!(BlkConfig, max_write_zeroes_sectors), 48);
        assert_eq!(offset_of!(BlkConfig, write_zeroes_may_unmap), 56);
    }
}
