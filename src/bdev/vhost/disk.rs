//! What a back end says of its disk.

use super::VhostFault;
use crate::bdev::Supports;
use crate::wire::virtio::{SECTOR_BYTES, feature};
use virtio_driver::VirtioBlkConfig;

/// The features that are taken if they are offered.
pub(super) const WANTED: u64 = feature::SIZE_MAX
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::RING_EVENT_IDX
    | feature::VERSION_1;

/// A disk. Equal ones can stand for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) features: u64,
    /// Size in sectors of 512 bytes.
    pub(super) sectors: u64,
    /// Bytes of the bdev's block.
    pub(super) block_bytes: u32,
    /// The longest piece of payload, in bytes; a multiple of the block.
    pub(super) payload_max: u64,
    /// The longest range of a DISCARD, in bytes; 0 if there is none.
    pub(super) discard_max: u64,
    /// The longest range of a `WRITE_ZEROES`, in bytes; 0 if there is none.
    pub(super) zeroes_max: u64,
    /// A `WRITE_ZEROES` may give space back.
    pub(super) zeroes_may_unmap: bool,
}

impl Disk {
    /// What `config` says, with the negotiated `features`. `payload_max`: bytes that the client can
    /// share at a time.
    pub(super) fn new(
        features: u64,
        config: &VirtioBlkConfig,
        payload_max: u64,
    ) -> Result<Self, VhostFault> {
        let has = |bit: u64| features & bit != 0;
        if !has(feature::VERSION_1) {
            return Err(VhostFault::Legacy);
        }
        let sectors = u64::from(config.capacity);
        let said = match has(feature::BLK_SIZE) {
            true => u32::from(config.blk_size),
            false => 512,
        };
        let geometry = VhostFault::Geometry {
            block_bytes: said,
            sectors,
        };
        let block_bytes: u32 = match said {
            512 => 512,
            1024 | 2048 | 4096 => 4096,
            _ => return Err(geometry),
        };
        let block = u64::from(block_bytes);
        let in_blocks = |bytes: u64| bytes / block * block;
        // QEMU offers the feature, and has no limit.
        let size_max = match u32::from(config.size_max) {
            limit @ 1.. if has(feature::SIZE_MAX) => u64::from(limit),
            _ => payload_max,
        };
        let payload_max = in_blocks(size_max.min(payload_max));
        let bytes = sectors.checked_mul(SECTOR_BYTES);
        if payload_max == 0 || bytes.is_none_or(|bytes| bytes < block) {
            return Err(geometry);
        }
        let range = |bit: u64, sectors: u32| match has(bit) {
            true => in_blocks(u64::from(sectors) * SECTOR_BYTES),
            false => 0,
        };
        Ok(Self {
            features,
            sectors,
            block_bytes,
            payload_max,
            discard_max: range(feature::DISCARD, config.max_discard_sectors.into()),
            zeroes_max: range(
                feature::WRITE_ZEROES,
                config.max_write_zeroes_sectors.into(),
            ),
            zeroes_may_unmap: config.write_zeroes_may_unmap != 0,
        })
    }

    /// Size in blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.sectors / (u64::from(self.block_bytes) / SECTOR_BYTES)
    }

    pub(super) fn has_flush(&self) -> bool {
        self.features & feature::FLUSH != 0
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.features & feature::RO != 0
    }

    pub(super) fn supports(&self) -> Supports {
        Supports {
            discard: self.discard_max > 0,
            discard_zeroes: false,
            write_zeroes: self.zeroes_max > 0,
            extents: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(sectors: u64, block: u32) -> VirtioBlkConfig {
        let mut config = VirtioBlkConfig::default();
        config.capacity = sectors.into();
        config.blk_size = block.into();
        config.size_max = 10_000.into();
        config.max_discard_sectors = 100.into();
        config.max_write_zeroes_sectors = 7.into();
        config
    }

    #[test]
    fn limits_are_whole_blocks_and_only_of_what_is_offered() {
        let disk = Disk::new(WANTED, &config(17, 4096), 1 << 17).unwrap();
        assert_eq!((disk.blocks(), disk.block_bytes), (2, 4096));
        assert_eq!((disk.payload_max, disk.discard_max), (8192, 49_152));
        assert_eq!((disk.zeroes_max, disk.supports().write_zeroes), (0, false));
        let plain = Disk::new(feature::VERSION_1, &config(17, 4096), 1 << 17).unwrap();
        assert_eq!((plain.blocks(), plain.block_bytes), (17, 512));
        assert_eq!((plain.payload_max, plain.discard_max), (1 << 17, 0));
        assert!(!plain.has_flush() && !plain.is_read_only());
        let mut config = config(17, 512);
        config.size_max = 0.into();
        let no_limit = Disk::new(WANTED, &config, 1 << 17).unwrap();
        assert_eq!(no_limit.payload_max, 1 << 17);
    }

    #[test]
    fn disks_that_no_bdev_can_be_are_refused() {
        for (features, sectors, block) in [
            (WANTED & !feature::VERSION_1, 64, 512),
            (WANTED, 64, 0),
            (WANTED, 64, 513),
            (WANTED, 64, 8192),
            (WANTED, 7, 4096),
            (WANTED, 0, 512),
            (WANTED, u64::MAX, 512),
        ] {
            let refused = Disk::new(features, &config(sectors, block), 1 << 17);
            assert!(refused.is_err(), "{features:#x} {sectors} {block}");
        }
        let mut tiny = config(64, 512);
        tiny.size_max = 511.into();
        assert!(Disk::new(WANTED, &tiny, 1 << 17).is_err());
    }
}
