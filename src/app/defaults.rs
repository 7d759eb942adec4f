//! What `serve` runs when no configuration says otherwise: a file-backed pool and disk in the data
//! directory, a cache between them, and NBD exports of it. Started again, it reopens what is there.

use super::bdevs::{Kind, bdev_error};
use super::caches;
use super::methods::{pmem_recipe, uring_recipe};
use super::service::Service;
use crate::bdev::pmem::{PmemBdev, PmemConfig};
use crate::bdev::{UringBdev, UringConfig, UringKind, derived_uuid};
use crate::cache::{CacheOptions, CreateCache, LoadWish, PoolFormat};
use crate::target::nbd::{ExportConfig, PAYLOAD_BYTES_MAX};
use rpc::Error;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

const PMEM: &str = "pmem0";
const POOL: &str = "pool0";
const POOL_BYTES: u64 = 256 << 20;
const SEGMENT_BYTES: u64 = 2 << 20;
const LANES: u32 = 4;
const DISK: &str = "disk0";
const DISK_BYTES: u64 = 1 << 30;
const CACHE: &str = "cache0";
const BLOCK_BYTES: u32 = 512;
/// NBD's registered port, on loopback.
const NBD_TCP: &str = "127.0.0.1:10809";

/// Brings it all up.
///
/// # Errors
/// What failed, and of which object.
pub(super) fn start(service: &Service) -> Result<(), Box<dyn StdError>> {
    let dir = service.data_dir().to_owned();
    open_pmem(service, &dir.join("pool.pmem"))?;
    let format = PoolFormat {
        name: POOL.to_owned(),
        uuid: *Uuid::new_v4().as_bytes(),
        segment_bytes: SEGMENT_BYTES,
        force: false,
    };
    let exists = i64::from(rustix::io::Errno::EXIST.raw_os_error());
    let pool = match caches::create_pool(service, PMEM, &format) {
        Err(error) if error.code == -exists => caches::load_pool(service, PMEM, false)?,
        other => other?,
    };
    // The disk's identity goes with the pool, so that both can be moved together.
    let disk_uuid = derived_uuid("disk", &[&pool.pool.uuid()]);
    open_disk(service, &dir.join("disk.img"), disk_uuid)?;
    let name = pool.pool.name().to_owned();
    if pool.pool.caches().iter().any(|entry| entry.name() == CACHE) {
        caches::load_cache(service, &name, CACHE, Some(DISK), LoadWish::default())?;
    } else {
        let geometry = pool.pool.geometry();
        let (seed, _) = Uuid::new_v4().as_u64_pair();
        let create = CreateCache {
            name: CACHE.to_owned(),
            uuid: *Uuid::new_v4().as_bytes(),
            bytes: u64::from(geometry.segments) * geometry.segment_bytes,
            lanes: LANES,
            block_bytes: BLOCK_BYTES,
            options: CacheOptions::default(),
            seed,
        };
        caches::create_cache(service, &name, DISK, &create)?;
    }
    export(service, &dir.join("nbd.sock"))
}

fn open_pmem(service: &Service, path: &Path) -> Result<(), Error> {
    let place = service.bdevs.reserve(PMEM)?;
    let mut config = PmemConfig::new(PMEM, path);
    if !path.exists() {
        config.size = Some(POOL_BYTES);
        config.create_file = true;
    }
    let recipe = pmem_recipe(&config);
    let bdev = PmemBdev::open(config).map_err(|error| bdev_error(&error))?;
    let specific = json!({"pmem": {"path": bdev.path(), "persistence": bdev.persistence()}});
    place.fill(Kind::Pmem(Arc::clone(&bdev)), bdev, specific, None, recipe);
    Ok(())
}

fn open_disk(service: &Service, path: &Path, uuid: Uuid) -> Result<(), Box<dyn StdError>> {
    if !path.exists() {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let said = |error: rustix::io::Errno| format!("create {}: {error}", path.display());
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(said)?;
        rustix::fs::ftruncate(&file, DISK_BYTES).map_err(said)?;
    }
    let place = service.bdevs.reserve(DISK)?;
    let mut config = UringConfig::new(DISK, path, UringKind::Uring);
    config.block_size = Some(BLOCK_BYTES);
    config.uuid = Some(uuid);
    let recipe = uring_recipe(&config);
    let bdev = UringBdev::open(config).map_err(|error| bdev_error(&error))?;
    let bdev = Arc::new(bdev);
    let specific = json!({"uring": {"filename": path}});
    let kind = Kind::Uring(Arc::clone(&bdev));
    place.fill(kind, bdev, specific, None, recipe);
    Ok(())
}

fn export(service: &Service, socket: &Path) -> Result<(), Box<dyn StdError>> {
    service
        .nbd
        .add(&service.bdevs, CACHE, |bdev| ExportConfig {
            name: CACHE.to_owned(),
            bdev,
            description: "the cache of the embedded default".to_owned(),
            read_only: false,
            max_payload: PAYLOAD_BYTES_MAX,
        })?;
    let reactors = service.reactors().data_handles();
    let unix = format!("unix:{}", socket.display());
    service.nbd.start(&unix, None, reactors)?;
    if let Err(error) = service.nbd.start(NBD_TCP, None, reactors) {
        tracing::warn!(%error, "no NBD on {NBD_TCP}; the Unix socket serves alone");
    }
    Ok(())
}
