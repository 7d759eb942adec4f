//! The devices that `pmcache bench` builds for itself.

use super::device::{self, Device, NvmeWish, Wish};
use crate::app::caches::{boot_id, start_parts, stop_parts};
use crate::bdev::pmem::{PmemBdev, PmemConfig};
use crate::bdev::{
    Bdev, DelayBdev, DelayLatencies, MallocBdev, MallocConfig, NullBdev, NullConfig,
};
use crate::cache::{Cache, CacheOptions, CreateCache, Pool, PoolFormat, Runtime};
use clap::ValueEnum;
use reactors::{MonotonicClock, ReactorHandle, Reactors};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// What is behind a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Backing {
    /// A RAM disk.
    Malloc,
    /// Nothing: writes vanish, and reads give what the buffer held.
    Null,
}

/// The block of what is built here.
pub(super) const BLOCK_BYTES: u32 = 512;

/// What to build.
#[derive(Clone, Debug)]
pub(super) struct StackConfig {
    /// Which kind.
    pub(super) device: Device,
    /// Bytes of the device.
    pub(super) bytes: u64,
    /// Bytes of the cache's pool; at least 64 segments are made.
    pub(super) pool_bytes: u64,
    /// Bytes of a segment.
    pub(super) segment_bytes: u64,
    /// Lanes of the cache.
    pub(super) lanes: u32,
    /// Its options.
    pub(super) options: CacheOptions,
    /// What is behind it.
    pub(super) backing: Backing,
    /// What that takes longer, in microseconds.
    pub(super) backing_delay_us: u64,
    /// Whether an export may be written to; otherwise no write can get there.
    pub(super) writes: bool,
    /// How many jobs use it at a time.
    pub(super) users: u16,
    /// How it is attached, if it is behind NVMe/TCP.
    pub(super) nvme: NvmeWish,
}

/// A device and what is below it.
#[derive(Debug)]
pub(super) struct Stack {
    /// What to drive.
    pub(super) bdev: Arc<dyn Bdev>,
    /// The same, if it is a cache.
    pub(super) cache: Option<Arc<Cache>>,
}

impl Stack {
    /// Makes a new device. A cache has its lanes on `data`, and its staging file in `run_dir`.
    ///
    /// # Errors
    /// What could not be made.
    pub(super) fn build(
        config: &StackConfig,
        data: &[ReactorHandle],
        reactors: &Reactors,
        run_dir: &Path,
    ) -> Result<Self, Box<dyn Error>> {
        let bytes = config.bytes;
        let bdev: Arc<dyn Bdev> = match &config.device {
            Device::Export(export) => {
                let keeper = reactors.data_handles().first();
                let wish = Wish {
                    writes: config.writes,
                    users: config.users,
                    nvme: config.nvme,
                };
                device::connect(export, wish, keeper)?
            }
            Device::Null => null("null", bytes)?,
            Device::Malloc => malloc("malloc", bytes)?,
            Device::Pmem => memory("pmem", bytes)?,
            Device::Backing => backing(config)?,
            Device::Cache => {
                let cache = build_cache(config, data, reactors, run_dir)?;
                let (bdev, cache) = (Arc::clone(&cache) as Arc<dyn Bdev>, Some(cache));
                return Ok(Self { bdev, cache });
            }
        };
        Ok(Self { bdev, cache: None })
    }

    /// Takes it down; its channels must be closed.
    ///
    /// # Errors
    /// If a cache does not stop.
    pub(super) fn finish(self) -> Result<(), Box<dyn Error>> {
        match self.cache {
            Some(cache) => Ok(stop_parts(&cache)?),
            None => Ok(()),
        }
    }
}

fn null(name: &str, bytes: u64) -> Result<Arc<dyn Bdev>, Box<dyn Error>> {
    Ok(Arc::new(NullBdev::new(NullConfig {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        block_size: BLOCK_BYTES,
        blocks: bytes / u64::from(BLOCK_BYTES),
    })?))
}

fn malloc(name: &str, bytes: u64) -> Result<Arc<dyn Bdev>, Box<dyn Error>> {
    Ok(Arc::new(MallocBdev::new(MallocConfig {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        block_size: BLOCK_BYTES,
        blocks: bytes / u64::from(BLOCK_BYTES),
    })?))
}

fn memory(name: &str, bytes: u64) -> Result<Arc<PmemBdev>, Box<dyn Error>> {
    let mut config = PmemConfig::new(name, "anon:");
    config.size = Some(bytes);
    Ok(PmemBdev::open(config)?)
}

fn backing(config: &StackConfig) -> Result<Arc<dyn Bdev>, Box<dyn Error>> {
    let base = match config.backing {
        Backing::Malloc => malloc("backing", config.bytes)?,
        Backing::Null => null("backing", config.bytes)?,
    };
    let us = config.backing_delay_us;
    if us == 0 {
        return Ok(base);
    }
    let latencies = DelayLatencies {
        avg_read_us: us,
        p99_read_us: us,
        avg_write_us: us,
        p99_write_us: us,
    };
    let slow = DelayBdev::new("slow".to_owned(), base, latencies, None)?;
    Ok(Arc::new(slow))
}

/// Where a cache runs: its lanes on `data`, its staging file in `run_dir`.
pub(super) fn runtime(data: &[ReactorHandle], reactors: &Reactors, run_dir: &Path) -> Runtime {
    Runtime {
        data: data.to_vec(),
        maintenance: reactors.maintenance_handles().to_vec(),
        quiescence: reactors.quiescence(),
        clock: Arc::new(MonotonicClock),
        run_dir: run_dir.to_owned(),
        boot_id: boot_id(),
        seed: Uuid::new_v4().as_u64_pair().0,
    }
}

fn build_cache(
    config: &StackConfig,
    data: &[ReactorHandle],
    reactors: &Reactors,
    run_dir: &Path,
) -> Result<Arc<Cache>, Box<dyn Error>> {
    let segment_bytes = config.segment_bytes;
    let pool_bytes = config.pool_bytes.max(segment_bytes.saturating_mul(64));
    let medium = memory("pool", pool_bytes)?;
    let pmem = medium.pmem().ok_or("the pool's memory is no pmem")?;
    let format = PoolFormat {
        name: "bench".to_owned(),
        uuid: *Uuid::new_v4().as_bytes(),
        segment_bytes,
        force: false,
    };
    Pool::format(&*pmem, &format)?;
    let pool = Pool::open(pmem)?;
    let backing = backing(config)?;
    let create = CreateCache {
        name: "cache".to_owned(),
        uuid: *Uuid::new_v4().as_bytes(),
        bytes: u64::from(pool.geometry().segments) * segment_bytes,
        lanes: config.lanes,
        block_bytes: BLOCK_BYTES,
        options: config.options.clone(),
        seed: Uuid::new_v4().as_u64_pair().0,
    };
    pool.create_cache(&create, &backing.info())?;
    let runtime = runtime(data, reactors, run_dir);
    let cache = pool.load_cache(&create.name, backing, &runtime, false)?;
    start_parts(&cache)?;
    Ok(cache)
}
