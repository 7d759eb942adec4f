//! A disk that keeps nothing: what the layers above it cost by themselves.

use super::identity::{check_block_size, check_name};
use super::inline::{InlineChannel, InlineDevice, all_allocated};
use super::live_info::LiveInfo;
use super::{
    Bdev, BdevError, BdevInfo, Channel, Completion, Data, IoStatus, Op, Request, Supports,
};
use reactors::Cx;
use std::sync::Arc;
use uuid::Uuid;

/// How to make a [`NullBdev`].
#[derive(Clone, Debug)]
pub struct NullConfig {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// 512 or 4096 bytes.
    pub block_size: u32,
    /// Size in blocks, above 0.
    pub blocks: u64,
}

/// "Null disk": writes vanish, reads give zeroes (not the buffer as it was: an exported one would
/// show one client another's bytes).
#[derive(Debug)]
pub struct NullBdev {
    disk: Arc<Disk>,
}

#[derive(Debug)]
struct Disk {
    info: Arc<LiveInfo>,
}

impl NullBdev {
    /// Makes one.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a bad name, block size or size.
    pub fn new(config: NullConfig) -> Result<Self, BdevError> {
        check_name(&config.name)?;
        check_block_size(config.block_size)?;
        let bytes = config.blocks.checked_mul(u64::from(config.block_size));
        if bytes.is_none_or(|bytes| bytes == 0) {
            return Err(BdevError::Invalid(format!(
                "{} blocks is no size",
                config.blocks
            )));
        }
        let info = BdevInfo {
            name: config.name,
            product_name: "Null disk",
            uuid: config.uuid,
            block_size: config.block_size,
            blocks: config.blocks,
            volatile_cache: false,
            read_only: false,
            supports: Supports {
                discard: true,
                discard_zeroes: true,
                write_zeroes: true,
                extents: false,
            },
        };
        let info = Arc::new(LiveInfo::new(info));
        let disk = Arc::new(Disk { info });
        Ok(Self { disk })
    }

    /// Gives it another size, for requests to come.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] if `bytes` are no blocks at all, or not whole ones.
    pub fn resize(&self, bytes: u64) -> Result<(), BdevError> {
        let block = u64::from(self.info().block_size);
        if bytes == 0 || !bytes.is_multiple_of(block) {
            return Err(BdevError::Invalid(format!(
                "{bytes} bytes are not whole blocks of {block}"
            )));
        }
        self.disk.info.set_blocks(bytes / block);
        Ok(())
    }
}

impl Bdev for NullBdev {
    fn info(&self) -> Arc<BdevInfo> {
        self.disk.info.get()
    }

    fn open(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(InlineChannel::new(self.disk.clone())))
    }
}

impl InlineDevice for Disk {
    fn info(&self) -> &Arc<LiveInfo> {
        &self.info
    }

    fn execute(&self, mut request: Request) -> Completion {
        match (request.op, &mut request.data) {
            (Op::Read, Data::Buf(buf)) => buf.fill(0),
            (Op::Extents, data) => *data = all_allocated(request.range),
            _ => {}
        }
        request.complete(IoStatus::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, pattern, read, write};
    use super::*;

    fn null(blocks: u64) -> Result<NullBdev, BdevError> {
        NullBdev::new(NullConfig {
            name: "Null0".into(),
            uuid: Uuid::nil(),
            block_size: 4096,
            blocks,
        })
    }

    #[test]
    fn writes_vanish_and_reads_clear_the_buffer() {
        let bdev = null(8).unwrap();
        let mut rig = Rig::new();
        let mut channel = rig.open(&bdev);
        let bytes = pattern(1, 4096);
        assert!(rig.run(&mut *channel, write(0, &bytes)).status.is_ok());
        let mut request = read(0, 4096);
        if let Data::Buf(buf) = &mut request.data {
            buf.fill(7);
        }
        let buf = rig.run(&mut *channel, request).data.into_buf().unwrap();
        assert!(buf.iter().all(|b| *b == 0));
    }

    #[test]
    fn the_end_of_the_disk_is_kept() {
        let bdev = null(8).unwrap();
        let mut rig = Rig::new();
        let mut channel = rig.open(&bdev);
        let done = rig.run(&mut *channel, read(8 * 4096, 4096));
        assert_eq!(done.status, IoStatus::OutOfRange);
        let done = rig.run(&mut *channel, write(512, &pattern(1, 512)));
        assert_eq!(done.status, IoStatus::Unaligned);
    }

    #[test]
    fn a_channel_learns_of_another_size() {
        let bdev = null(8).unwrap();
        let mut rig = Rig::new();
        let mut channel = rig.open(&bdev);
        let done = rig.run(&mut *channel, read(8 * 4096, 4096));
        assert_eq!(done.status, IoStatus::OutOfRange);
        assert!(bdev.resize(0).is_err() && bdev.resize(4097).is_err());
        bdev.resize(16 * 4096).unwrap();
        assert_eq!(bdev.info().blocks, 16);
        assert!(rig.run(&mut *channel, read(15 * 4096, 4096)).status.is_ok());
        let done = rig.run(&mut *channel, read(16 * 4096, 4096));
        assert_eq!(done.status, IoStatus::OutOfRange);
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        assert!(matches!(null(0), Err(BdevError::Invalid(_))));
        assert!(matches!(null(u64::MAX), Err(BdevError::Invalid(_))));
    }
}
