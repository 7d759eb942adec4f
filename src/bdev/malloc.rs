//! A disk in RAM, gone with the process.

use super::identity::{check_block_size, check_name};
use super::inline::{InlineChannel, InlineDevice, all_allocated};
use super::live_info::LiveInfo;
use super::shared_mem::SharedMem;
use super::{
    Bdev, BdevError, BdevInfo, Channel, Completion, Data, IoStatus, Op, Request, Supports,
};
use reactors::Cx;
use std::sync::Arc;
use uuid::Uuid;

/// How to make a [`MallocBdev`].
#[derive(Clone, Debug)]
pub struct MallocConfig {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// 512 or 4096 bytes.
    pub block_size: u32,
    /// Size in blocks, above 0.
    pub blocks: u64,
}

/// "Malloc disk": anonymous memory, in huge pages where possible, shared by all reactors without a
/// lock. I/Os that overlap in range and time may mix their bytes.
#[derive(Debug)]
pub struct MallocBdev {
    disk: Arc<Disk>,
}

#[derive(Debug)]
struct Disk {
    info: Arc<LiveInfo>,
    mem: SharedMem,
}

impl MallocBdev {
    /// Makes a disk full of zeroes. Memory is taken from the system as it is first written.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a bad name, block size or size; [`BdevError::Os`] without memory.
    pub fn new(config: MallocConfig) -> Result<Self, BdevError> {
        check_name(&config.name)?;
        check_block_size(config.block_size)?;
        let bytes = config
            .blocks
            .checked_mul(u64::from(config.block_size))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| {
                BdevError::Invalid(format!("{} blocks is no size in RAM", config.blocks))
            })?;
        let mem = SharedMem::new(bytes).map_err(|source| BdevError::Os {
            what: format!("mapping {bytes} bytes for {}", config.name),
            source,
        })?;
        let info = BdevInfo {
            name: config.name,
            product_name: "Malloc disk",
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
        let disk = Arc::new(Disk { info, mem });
        Ok(Self { disk })
    }

    /// Whether the kernel was willing to back it with huge pages.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.disk.mem.huge_pages()
    }
}

impl Bdev for MallocBdev {
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
        let mut at = request.range.start();
        match (request.op, &mut request.data) {
            (Op::Read, Data::Buf(buf)) => self.mem.read(at, buf),
            (Op::Write { .. }, Data::Buf(buf)) => self.mem.write(at, buf),
            (Op::Write { .. }, Data::Gather(views)) => {
                for view in views {
                    self.mem.write(at, view);
                    at += view.len() as u64;
                }
            }
            (Op::Read | Op::Write { .. }, _) if request.range.is_empty() => {}
            (Op::Read | Op::Write { .. }, _) => return request.complete(IoStatus::Invalid),
            (Op::Discard | Op::WriteZeroes { .. }, _) => {
                // The size of the disk fits `usize`, so each length in it does.
                let len = usize::try_from(request.range.len()).unwrap_or(usize::MAX);
                self.mem.zero(at, len);
            }
            (Op::Flush | Op::Prefetch, _) => {}
            (Op::Extents, data) => *data = all_allocated(request.range),
        }
        request.complete(IoStatus::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, gather, pattern, read, write};
    use super::*;
    use crate::bdev::Extent;
    use crate::units::ByteRange;

    fn disk(blocks: u64) -> MallocBdev {
        let config = MallocConfig {
            name: "Malloc0".into(),
            uuid: Uuid::nil(),
            block_size: 512,
            blocks,
        };
        MallocBdev::new(config).unwrap()
    }

    #[test]
    fn what_one_channel_writes_another_reads() {
        let bdev = disk(128);
        let mut rig = Rig::new();
        let (mut a, mut b) = (rig.open(&bdev), rig.open(&bdev));
        let bytes = pattern(1, 1024);
        assert!(rig.run(&mut *a, write(512, &bytes)).status.is_ok());
        let done = rig.run(&mut *b, read(0, 2048));
        let buf = done.data.into_buf().unwrap();
        assert_eq!(&buf[512..1536], &*bytes);
        assert!(buf[..512].iter().chain(&buf[1536..]).all(|b| *b == 0));
    }

    #[test]
    fn gathered_pieces_land_one_behind_the_other() {
        let bdev = disk(128);
        let mut rig = Rig::new();
        let mut channel = rig.open(&bdev);
        let (a, b) = (pattern(1, 100), pattern(2, 924));
        let request = gather(512, &[&a, &b]);
        assert!(rig.run(&mut *channel, request).status.is_ok());
        let buf = rig.run(&mut *channel, read(512, 1024)).data.into_buf();
        assert_eq!(&*buf.unwrap(), [a, b].concat());
    }

    #[test]
    fn discarded_and_zeroed_ranges_read_as_zeroes() {
        let bdev = disk(16384);
        let mut rig = Rig::new();
        let mut channel = rig.open(&bdev);
        for op in [
            Op::Discard,
            Op::WriteZeroes {
                may_unmap: false,
                fua: true,
            },
        ] {
            let all = pattern(3, 8 << 20);
            rig.run(&mut *channel, write(0, &all));
            let range = ByteRange::new(512, (8 << 20) - 1024).unwrap();
            let done = rig.run_op(&mut *channel, op, range);
            assert!(done.status.is_ok());
            let buf = rig.run(&mut *channel, read(0, 8 << 20)).data.into_buf();
            let buf = buf.unwrap();
            let end = buf.len() - 512;
            assert_eq!(&buf[..512], &all[..512]);
            assert!(buf[512..end].iter().all(|b| *b == 0));
            assert_eq!(&buf[end..], &all[end..]);
        }
    }

    #[test]
    fn refused_requests_complete_with_the_reason_and_their_memory() {
        let bdev = disk(128);
        let mut rig = Rig::new();
        let mut channel = rig.open(&bdev);
        let done = rig.run(&mut *channel, read(128 * 512, 512));
        assert_eq!(done.status, IoStatus::OutOfRange);
        assert_eq!(done.data.len(), 512);
        let done = rig.run(&mut *channel, read(100, 512));
        assert_eq!(done.status, IoStatus::Unaligned);
        let mut short = read(0, 512);
        short.range = ByteRange::new(0, 1024).unwrap();
        let done = rig.run(&mut *channel, short);
        assert_eq!(done.status, IoStatus::Invalid);
    }

    #[test]
    fn waits_for_nobody_and_says_so() {
        use reactors::Wake;
        let bdev = disk(128);
        let rig = Rig::new();
        let mut channel = rig.open(&bdev);
        assert_eq!(channel.wake(), Wake::OnEvent);
        channel.submit(rig.cx(), read(0, 512));
        assert_eq!(channel.wake(), Wake::Now);
        let mut done = Vec::new();
        assert_eq!(channel.poll(rig.cx(), &mut done), 1);
        assert_eq!(channel.wake(), Wake::OnEvent);
    }

    #[test]
    fn all_is_one_allocated_extent() {
        let bdev = disk(128);
        let mut rig = Rig::new();
        let mut channel = rig.open(&bdev);
        let range = ByteRange::new(512, 4096).unwrap();
        let done = rig.run_op(&mut *channel, Op::Extents, range);
        let Data::Extents(extents) = done.data else {
            panic!("no extents");
        };
        assert_eq!(extents, [Extent::allocated(4096)]);
    }

    #[test]
    fn a_disk_without_blocks_or_with_odd_ones_is_refused() {
        for (block_size, blocks) in [(512, 0), (513, 8), (4096, u64::MAX)] {
            let config = MallocConfig {
                name: "Malloc0".into(),
                uuid: Uuid::nil(),
                block_size,
                blocks,
            };
            let error = MallocBdev::new(config).unwrap_err();
            assert!(matches!(error, BdevError::Invalid(_)), "{error}");
        }
    }
}
