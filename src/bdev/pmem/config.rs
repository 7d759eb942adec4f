//! What a pmem bdev is made from, and what it says about itself.

use super::persist::{CopyKernel, FlushMethod};
use crate::bdev::Persistence;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The path that means anonymous memory.
const ANONYMOUS: &str = "anon:";
/// How long an open waits for the lock unless told otherwise.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Which persistence the operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PersistenceWish {
    /// The best that the medium really has.
    #[default]
    Auto,
    /// [`Persistence::Dax`], or an error.
    Dax,
    /// [`Persistence::Msync`], or an error. On a file in RAM the syncs do nothing.
    Msync,
    /// [`Persistence::Volatile`]: barriers do nothing, on whatever medium.
    Volatile,
}

/// What the medium is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PmemKind {
    /// A DAX character device.
    Devdax,
    /// A file on a DAX file system.
    Fsdax,
    /// A file on any other file system.
    File,
    /// Anonymous memory, or a file on tmpfs or hugetlbfs.
    Memory,
}

/// How to make a [`super::PmemBdev`].
#[derive(Clone, Debug)]
pub struct PmemConfig {
    /// The bdev's name.
    pub name: String,
    /// A DAX device, a file, or `anon:` for anonymous memory.
    pub path: PathBuf,
    /// Bytes: of a file to be created or of anonymous memory; of what exists it must be the size.
    pub size: Option<u64>,
    /// Create the file if it does not exist (mode 0600), and give it its size if it is empty.
    pub create_file: bool,
    /// 512 or 4096.
    pub block_size: u32,
    /// What barriers shall mean.
    pub persistence: PersistenceWish,
    /// Its identity; if none, one that follows from its absolute path.
    pub uuid: Option<Uuid>,
    /// How long to wait for the lock: a killed process keeps it as long as its last I/O takes.
    pub lock_wait: Duration,
    /// Which instructions copy; if none, the best of this CPU.
    pub kernel: Option<CopyKernel>,
}

impl PmemConfig {
    /// What exists at `path`, 512-byte blocks, the best persistence, 5 s for the lock.
    #[must_use]
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            size: None,
            create_file: false,
            block_size: 512,
            persistence: PersistenceWish::Auto,
            uuid: None,
            lock_wait: LOCK_WAIT,
            kernel: None,
        }
    }

    /// Whether it is memory that ends with the bdev.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.path == Path::new(ANONYMOUS)
    }

    /// The identity that was given, or one that the same medium has again after a restart: made of
    /// the absolute path, or of the name if there is no path.
    pub(super) fn identity(&self) -> Uuid {
        if let Some(uuid) = self.uuid {
            return uuid;
        }
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let place = if self.is_anonymous() {
            self.name.as_bytes()
        } else {
            path.as_os_str().as_encoded_bytes()
        };
        // FNV-1a, 128 bits.
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for byte in b"pmcache pmem ".iter().chain(place) {
            hash ^= u128::from(*byte);
            hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        uuid::Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid()
    }
}

/// What `bdev_pmem_get_devices` shows.
#[derive(Clone, Debug, Serialize)]
pub struct PmemDescription {
    /// The bdev's name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: PmemKind,
    /// Bytes.
    pub size: u64,
    /// What its barrier means.
    pub persistence: Persistence,
    /// How stores become durable.
    pub flush_method: FlushMethod,
    /// Bytes of most of the pages that are mapped now: 4096, or 2 MiB and above if huge.
    pub page_size: u64,
    /// Bytes of pages that can't be accessed any more, as far as somebody wanted them.
    pub lost_bytes: u64,
    /// Its identity.
    pub uuid: Uuid,
}
