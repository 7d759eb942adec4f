//! The bdev: an open file, its identity, and what I/O has taught about it.

use super::channel::UringChannel;
use super::file::BackingFile;
use super::hub::Hub;
use crate::bdev::live_info::LiveInfo;
use crate::bdev::{Bdev, BdevError, BdevInfo, Channel, IoStatus, Request, check_name};
use reactors::Cx;
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Under which of SPDK's names it goes; both do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UringKind {
    /// "URING bdev".
    Uring,
    /// "AIO disk".
    Aio,
}

/// How to open a [`UringBdev`].
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// Its name.
    pub name: String,
    /// A file or a block device.
    pub path: PathBuf,
    /// Its name for SPDK's clients.
    pub kind: UringKind,
    /// 512 or 4096 bytes; otherwise what direct I/O needs at least.
    pub block_size: Option<u32>,
    /// Refuse writes.
    pub read_only: bool,
    /// Its identity; otherwise derived from the disk's serial number, or from path and inode.
    pub uuid: Option<Uuid>,
    /// How long to wait for another holder to go away.
    pub lock_wait: Duration,
}

impl UringConfig {
    /// `path` under `name`: writable, all else as found, waiting 5 s for the lock.
    #[must_use]
    pub fn new(name: &str, path: &Path, kind: UringKind) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            kind,
            block_size: None,
            read_only: false,
            uuid: None,
            lock_wait: Duration::from_secs(5),
        }
    }
}

/// A file or block device, locked for this process, through io_uring.
///
/// A failed flush loses what was written since the last good one: the kernel may already have given
/// those pages up, so whoever flushes writes them again.
#[derive(Debug)]
pub struct UringBdev {
    pub(super) device: Arc<Device>,
    path: PathBuf,
}

impl UringBdev {
    /// Opens and locks it: exclusively, or shared with other readers if `read_only`. May wait for
    /// `lock_wait`, so it is for control threads, never for a reactor.
    ///
    /// # Errors
    /// [`BdevError::Busy`] if somebody else holds it; [`BdevError::Invalid`] for a bad name or block
    /// size, or a size below one block; [`BdevError::NotSupported`] if it is neither file nor block
    /// device; [`BdevError::Os`] for what the system refuses.
    pub fn open(config: UringConfig) -> Result<Self, BdevError> {
        check_name(&config.name)?;
        let file = BackingFile::open(&config)?;
        let info = LiveInfo::new(BdevInfo {
            name: config.name,
            product_name: match config.kind {
                UringKind::Uring => "URING bdev",
                UringKind::Aio => "AIO disk",
            },
            uuid: file.uuid,
            block_size: file.block_size,
            blocks: file.blocks,
            volatile_cache: file.volatile_cache,
            read_only: config.read_only,
            supports: file.supports,
        });
        let device = Arc::new(Device {
            punches_holes: AtomicBool::new(file.supports.discard),
            zeroes_ranges: AtomicBool::new(true),
            errors: AtomicU64::new(0),
            block_size: file.block_size,
            name: info.get().name.clone(),
            info: Arc::new(info),
            file,
        });
        Ok(Self {
            device,
            path: config.path,
        })
    }

    /// What was opened, as it was named.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether I/O bypasses the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.device.file.direct
    }

    /// Whether it is a block device rather than a file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.device.file.is_block_device
    }

    /// The size that the file or device has now, in whole blocks; for a control thread.
    ///
    /// # Errors
    /// [`BdevError::Os`] for what the system refuses.
    pub fn blocks_now(&self) -> Result<u64, BdevError> {
        self.device.file.count_blocks(&self.path)
    }

    /// Takes it to have so many blocks, for requests to come.
    pub fn set_blocks(&self, blocks: u64) {
        self.device.info.set_blocks(blocks);
    }

    /// How many I/Os have failed in the kernel.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.device.errors.load(Ordering::Relaxed)
    }
}

impl Bdev for UringBdev {
    fn info(&self) -> Arc<BdevInfo> {
        self.device.info.get()
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let hub = Hub::attach(cx).map_err(|source| BdevError::Os {
            what: format!("setting up io_uring for {}", self.device.name),
            source,
        })?;
        Ok(Box::new(UringChannel::new(self.device.clone(), hub)))
    }
}

/// What all channels of a bdev share.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) info: Arc<LiveInfo>,
    pub(super) block_size: u32,
    name: String,
    pub(super) file: BackingFile,
    /// Cleared when the kernel says that it can't.
    pub(super) punches_holes: AtomicBool,
    /// Cleared when the kernel says that it can't.
    pub(super) zeroes_ranges: AtomicBool,
    errors: AtomicU64,
}

impl Device {
    /// Counts a failed I/O, and logs the 1st, 2nd, 4th, 8th …: a dead disk must not fill the log.
    pub(super) fn fail(&self, request: &Request, errno: Errno) -> IoStatus {
        let count = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(
                bdev = %self.name,
                op = ?request.op,
                range = %request.range,
                errno = errno.raw_os_error(),
                count,
                "I/O failed: {errno}"
            );
        }
        match errno {
            Errno::NOSPC | Errno::DQUOT => IoStatus::NoSpace,
            Errno::OPNOTSUPP => IoStatus::NotSupported,
            // What the block layer says when a protected block does not match its checksum.
            Errno::ILSEQ => IoStatus::Corrupt,
            _ => IoStatus::IoError,
        }
    }
}
