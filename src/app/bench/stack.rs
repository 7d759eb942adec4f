//! The devices that `pmcache bench` builds for itself.

use crate::app::caches::{boot_id, start_parts, stop_parts};
use crate::bdev::pmem::{PmemBdev, PmemConfig};
use crate::bdev::{Bdev, MallocBdev, MallocConfig, NullBdev, NullConfig};
use crate::cache::{Cache, CacheOptions, CreateCache, Pool, PoolFormat, Runtime};
use clap::ValueEnum;
use reactors::{MonotonicClock, Reactors};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Device {
    /// Does nothing: what the harness itself costs.
    Null,
    /// A RAM disk.
    Malloc,
    /// Volatile memory as a pmem bdev.
    Pmem,
    /// A cache on volatile memory, in front of a RAM disk.
    Cache,
}

const BLOCK_BYTES: u32 = 512;
const SEGMENT_BYTES: u64 = 2 << 20;
/// Lanes of the cache: as many as `serve` gives one data reactor.
const LANES: u32 = 4;

/// A device and what is below it.
#[derive(Debug)]
pub(super) struct Stack {
    /// What to drive.
    pub(super) bdev: Arc<dyn Bdev>,
    cache: Option<Arc<Cache>>,
}

impl Stack {
    /// Makes a new device of `bytes`; a cache gets a pool of twice that, so that nothing that was
    /// written ever leaves it. Staging files go to `run_dir`.
    ///
    /// # Errors
    /// What could not be made.
    pub(super) fn build(
        device: Device,
        bytes: u64,
        reactors: &Reactors,
        run_dir: &Path,
    ) -> Result<Self, Box<dyn Error>> {
        let bdev: Arc<dyn Bdev> = match device {
            Device::Null => Arc::new(NullBdev::new(NullConfig {
                name: "null".to_owned(),
                uuid: Uuid::new_v4(),
                block_size: BLOCK_BYTES,
                blocks: bytes / u64::from(BLOCK_BYTES),
            })?),
            Device::Malloc => malloc(bytes)?,
            Device::Pmem => memory("pmem", bytes)?,
            Device::Cache => {
                let cache = build_cache(bytes, reactors, run_dir)?;
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

fn malloc(bytes: u64) -> Result<Arc<MallocBdev>, Box<dyn Error>> {
    Ok(Arc::new(MallocBdev::new(MallocConfig {
        name: "malloc".to_owned(),
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

fn build_cache(
    bytes: u64,
    reactors: &Reactors,
    run_dir: &Path,
) -> Result<Arc<Cache>, Box<dyn Error>> {
    let medium = memory("pool", bytes.saturating_mul(2).max(64 * SEGMENT_BYTES))?;
    let pmem = medium.pmem().ok_or("the pool's memory is no pmem")?;
    let format = PoolFormat {
        name: "bench".to_owned(),
        uuid: *Uuid::new_v4().as_bytes(),
        segment_bytes: SEGMENT_BYTES,
        force: false,
    };
    Pool::format(&*pmem, &format)?;
    let pool = Pool::open(pmem)?;
    let backing = malloc(bytes)?;
    let create = CreateCache {
        name: "cache".to_owned(),
        uuid: *Uuid::new_v4().as_bytes(),
        bytes: u64::from(pool.geometry().segments) * SEGMENT_BYTES,
        lanes: LANES,
        block_bytes: BLOCK_BYTES,
        options: CacheOptions::default(),
        seed: Uuid::new_v4().as_u64_pair().0,
    };
    pool.create_cache(&create, &backing.info())?;
    let runtime = Runtime {
        data: reactors.data_handles().to_vec(),
        maintenance: reactors.maintenance_handles().to_vec(),
        quiescence: reactors.quiescence(),
        clock: Arc::new(MonotonicClock),
        run_dir: run_dir.to_owned(),
        boot_id: boot_id(),
        seed: Uuid::new_v4().as_u64_pair().0,
    };
    let cache = pool.load_cache(&create.name, backing, &runtime, false)?;
    start_parts(&cache)?;
    Ok(cache)
}
