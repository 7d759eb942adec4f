//! The bdev itself.

use super::channel::PmemChannel;
use super::config::{PmemConfig, PmemDescription, PmemKind};
use super::medium::Medium;
use super::open;
use super::persist::FlushMethod;
use crate::bdev::{Bdev, BdevError, BdevInfo, Channel, Persistence, Pmem, Supports};
use reactors::Cx;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A byte-addressable medium as a block device.
#[derive(Debug)]
pub struct PmemBdev {
    info: Arc<BdevInfo>,
    path: PathBuf,
    kind: PmemKind,
    page_size: u64,
    medium: Arc<Medium>,
}

impl PmemBdev {
    /// Opens what `config` names, or creates it. Holds an exclusive lock on the file until the bdev,
    /// its medium and all views of it are gone. Waits for disks and locks: for control threads.
    ///
    /// # Errors
    /// `Invalid` for a size or block size that does not fit, `Busy` if the lock is not to be had,
    /// `NotSupported` for a kind of file or a persistence that the medium can't give, `Os` for what
    /// the operating system says. An existing file keeps its size and content.
    pub fn open(config: PmemConfig) -> Result<Arc<Self>, BdevError> {
        if !matches!(config.block_size, 512 | 4096) {
            return Err(BdevError::Invalid(format!(
                "{}: the block size is {}, not 512 or 4096",
                config.name, config.block_size
            )));
        }
        let opened = open::open(&config)?;
        let medium = Arc::new(opened.medium);
        let info = BdevInfo {
            uuid: config.identity(),
            name: config.name,
            product_name: "Pmem region",
            block_size: config.block_size,
            blocks: medium.bytes() / u64::from(config.block_size),
            // On dax a completed write is durable, and on a volatile medium a flush changes nothing.
            volatile_cache: medium.persistence() == Persistence::Msync,
            read_only: false,
            supports: Supports::default(),
        };
        Ok(Arc::new(Self {
            info: Arc::new(info),
            path: config.path,
            kind: opened.kind,
            page_size: opened.page_size,
            medium,
        }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> PmemKind {
        self.kind
    }

    /// What its barrier means.
    #[must_use]
    pub fn persistence(&self) -> Persistence {
        self.medium.persistence()
    }

    /// How stores become durable.
    #[must_use]
    pub fn flush_method(&self) -> FlushMethod {
        self.medium.flush_method()
    }

    /// Bytes of most of its pages, when it was opened.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// All of that, to be shown.
    #[must_use]
    pub fn describe(&self) -> PmemDescription {
        PmemDescription {
            name: self.info.name.clone(),
            path: self.path.clone(),
            kind: self.kind,
            size: self.medium.bytes(),
            persistence: self.persistence(),
            flush_method: self.flush_method(),
            page_size: self.page_size,
            lost_bytes: self.medium.lost_bytes(),
            uuid: self.info.uuid,
        }
    }
}

impl Bdev for PmemBdev {
    fn info(&self) -> Arc<BdevInfo> {
        Arc::clone(&self.info)
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let barrier = self.medium.open_barrier(cx)?;
        let medium = Arc::clone(&self.medium);
        let channel = PmemChannel::new(Arc::clone(&self.info), medium, barrier);
        Ok(Box::new(channel))
    }

    fn pmem(&self) -> Option<Arc<dyn Pmem>> {
        Some(Arc::clone(&self.medium) as Arc<dyn Pmem>)
    }
}
