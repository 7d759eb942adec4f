//! Block requests: what a chain asks for, and what may be asked.

use super::chain::{Chain, SEGMENTS_MAX};
use super::guest_mem::GuestMemory;
use crate::bdev::{BdevInfo, IoStatus, Op};
use crate::units::ByteRange;
use crate::wire::virtio::{
    BlkConfig, BlkHeader, BlkRange, ID_BYTES, SECTOR_BYTES, feature, request, status,
};
use std::mem::size_of;
use zerocopy::IntoBytes;

/// The longest segment, as the configuration says. Bytes.
const SEGMENT_BYTES_MAX: u32 = 128 << 10;
/// The longest READ or WRITE: a little more than all segments together. Bytes.
pub(super) const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// The longest DISCARD or `WRITE_ZEROES`, as the configuration says: 16 MiB.
const ERASE_SECTORS_MAX: u32 = 32768;
const HEADER_BYTES: u64 = size_of::<BlkHeader>() as u64;
/// `WRITE_ZEROES`: the space may be given back.
const UNMAP: u32 = 1;

/// What a chain asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// An I/O. Its payload is `range.len()` bytes for reads and writes.
    Io { op: Op, range: ByteRange },
    /// The serial number.
    Id,
}

/// Why it gets nothing but a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This status.
    Status(u8),
    /// Not even that: there is no place for it.
    NoStatus,
}

const FAILED: Refusal = Refusal::Status(status::IOERR);
const UNKNOWN: Refusal = Refusal::Status(status::UNSUPP);

/// What does not change while a queue runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    bytes: u64,
    block: u64,
    read_only: bool,
    discard: bool,
    /// The device has a volatile cache, and the driver knows no FLUSH or does not want to use it: each
    /// write goes through the cache.
    write_through: bool,
    /// What `GET_ID` answers.
    pub(super) id: [u8; ID_BYTES],
}

impl Rules {
    /// `acked`: the features that the driver has accepted. `write_back`: what it has chosen, if it may
    /// choose.
    pub(super) fn new(info: &BdevInfo, read_only: bool, acked: u64, write_back: bool) -> Self {
        let flushes = acked & feature::FLUSH != 0;
        let wants_through = acked & feature::CONFIG_WCE != 0 && !write_back;
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(info.name.bytes()) {
            *to = from;
        }
        Self {
            bytes: info.bytes(),
            block: u64::from(info.block_size.max(1)),
            read_only: read_only || info.read_only,
            discard: info.supports.discard,
            write_through: info.volatile_cache && (!flushes || wants_through),
            id,
        }
    }

    /// Reads the header, once, and says what is to be done.
    pub(super) fn admit(&self, memory: &GuestMemory, chain: &Chain) -> Result<Wish, Refusal> {
        if chain.writable.bytes() == 0 {
            return Err(Refusal::NoStatus);
        }
        let mut header = BlkHeader::default();
        let read = chain.readable.read(memory, 0, header.as_mut_bytes());
        read.map_err(|_| FAILED)?;
        let sector = header.sector.get();
        let fua = self.write_through;
        // What the device writes, but for the status.
        let space = chain.writable.bytes() - 1;
        let payload = chain.readable.bytes() - HEADER_BYTES;
        match header.kind.get() {
            request::IN => self.payload(Op::Read, sector, space),
            request::OUT if self.read_only => Err(FAILED),
            request::OUT => self.payload(Op::Write { fua }, sector, payload),
            request::FLUSH => Ok(Wish::Io {
                op: Op::Flush,
                range: ByteRange::default(),
            }),
            request::GET_ID if space > 0 => Ok(Wish::Id),
            request::GET_ID => Err(FAILED),
            request::DISCARD if !self.discard => Err(UNKNOWN),
            request::DISCARD => self.erase(memory, chain, |flags| match flags {
                0 => Some(Op::Discard),
                _ => None,
            }),
            request::WRITE_ZEROES => self.erase(memory, chain, |flags| {
                let may_unmap = flags & UNMAP != 0;
                (flags & !UNMAP == 0).then_some(Op::WriteZeroes { may_unmap, fua })
            }),
            _ => Err(UNKNOWN),
        }
    }

    fn payload(&self, op: Op, sector: u64, len: u64) -> Result<Wish, Refusal> {
        if len == 0 || len > REQUEST_BYTES_MAX {
            return Err(FAILED);
        }
        let range = self.range(sector, len)?;
        Ok(Wish::Io { op, range })
    }

    /// One range: more are not offered.
    fn erase(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
        op: impl FnOnce(u32) -> Option<Op>,
    ) -> Result<Wish, Refusal> {
        let mut asked = BlkRange::default();
        if chain.readable.bytes() != HEADER_BYTES + size_of::<BlkRange>() as u64 {
            return Err(FAILED);
        }
        let read = chain
            .readable
            .read(memory, HEADER_BYTES, asked.as_mut_bytes());
        read.map_err(|_| FAILED)?;
        let op = op(asked.flags.get()).ok_or(UNKNOWN)?;
        let sectors = asked.sectors.get();
        if self.read_only || sectors == 0 || sectors > ERASE_SECTORS_MAX {
            return Err(FAILED);
        }
        let range = self.range(asked.sector.get(), u64::from(sectors) * SECTOR_BYTES)?;
        Ok(Wish::Io { op, range })
    }

    /// The bytes, if they are whole blocks of the device.
    fn range(&self, sector: u64, len: u64) -> Result<ByteRange, Refusal> {
        let start = sector.checked_mul(SECTOR_BYTES).ok_or(FAILED)?;
        let range = ByteRange::new(start, len).ok_or(FAILED)?;
        if range.end() > self.bytes || !range.is_aligned(self.block) {
            return Err(FAILED);
        }
        Ok(range)
    }
}

/// How the bdev's word is told to the guest.
pub(super) fn status_byte(said: IoStatus) -> u8 {
    match said {
        IoStatus::Ok => status::OK,
        IoStatus::NotSupported => status::UNSUPP,
        _ => status::IOERR,
    }
}

/// Which features a disk on this bdev has, those of the ring included.
pub(super) fn features(info: &BdevInfo, read_only: bool) -> u64 {
    let mut offered = feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::MQ
        | feature::RING_INDIRECT_DESC
        | feature::RING_EVENT_IDX
        | feature::VHOST_PROTOCOL
        | feature::VERSION_1;
    // A device without a volatile cache needs no flush, and the guest saves itself the trip.
    if info.volatile_cache {
        offered |= feature::FLUSH | feature::CONFIG_WCE;
    }
    if read_only || info.read_only {
        return offered | feature::RO;
    }
    if info.supports.discard {
        offered |= feature::DISCARD;
    }
    offered | feature::WRITE_ZEROES
}

/// The configuration of a disk on this bdev.
pub(super) fn config(info: &BdevInfo, queues: u16, write_back: bool) -> BlkConfig {
    let block = info.block_size.max(512);
    BlkConfig {
        capacity: (info.bytes() / SECTOR_BYTES).into(),
        size_max: SEGMENT_BYTES_MAX.into(),
        seg_max: SEGMENTS_MAX.into(),
        blk_size: block.into(),
        // Physical blocks of 4 KiB: what is best for what lies below.
        physical_block_exp: if block < 4096 { 3 } else { 0 },
        min_io_size: 1.into(),
        wce: u8::from(info.volatile_cache && write_back),
        num_queues: queues.into(),
        max_discard_sectors: ERASE_SECTORS_MAX.into(),
        max_discard_seg: 1.into(),
        discard_sector_alignment: (block / 512).into(),
        max_write_zeroes_sectors: ERASE_SECTORS_MAX.into(),
        max_write_zeroes_seg: 1.into(),
        write_zeroes_may_unmap: u8::from(info.supports.discard),
        ..BlkConfig::default()
    }
}

#[cfg(test)]
mod tests;
