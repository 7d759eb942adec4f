//! What `serve` sets up without a configuration: one cache on one pool, exported by NBD.
//!
//! The same methods as over RPC. What is in the data directory already is opened; nothing is
//! formatted but a pool file that holds no pool.

use super::service::Service;
use rpc::{Error, Params, Registry};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The pmem bdev, and its file in the data directory.
const PMEM: &str = "pmem0";
const POOL_FILE: &str = "pool.pmem";
const POOL_BYTES: u64 = 256 << 20;
const SEGMENT_BYTES: u64 = 2 << 20;
/// The pool.
const POOL: &str = "pool0";
/// The backing, and its file.
const DISK: &str = "disk0";
const DISK_FILE: &str = "disk.img";
const DISK_BYTES: u64 = 1 << 30;
/// The cache, and the export of it.
const CACHE: &str = "cache0";
const LANES: u32 = 4;
const BLOCK_BYTES: u32 = 512;
/// The NBD socket in the data directory, and the TCP address.
const NBD_SOCKET: &str = "nbd.sock";
const NBD_TCP: &str = "127.0.0.1:10809";

/// Why the default can't be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    /// A call failed.
    #[error("{method}: {error}")]
    Call {
        /// The method.
        method: &'static str,
        /// What it answered.
        error: Error,
    },
    /// The disk's file can't be made.
    #[error("{path}: {source}")]
    Disk {
        /// Which file.
        path: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

/// Sets everything up.
///
/// # Errors
/// The step that failed. Only a busy TCP port is no failure: the Unix socket is enough.
pub(super) fn apply(registry: &Registry<Service>, service: &Service) -> Result<(), SetupError> {
    let dir = service.data_dir().to_owned();
    let call = |method: &'static str, params: Value| call(registry, service, method, &params);
    make_disk(&dir.join(DISK_FILE))?;
    call(
        "bdev_pmem_create",
        json!({"name": PMEM, "path": dir.join(POOL_FILE), "size": POOL_BYTES, "create_file": true}),
    )?;
    call(
        "bdev_uring_create",
        json!({"name": DISK, "filename": dir.join(DISK_FILE), "block_size": BLOCK_BYTES}),
    )?;
    let devices = call("bdev_pmem_get_devices", json!({"name": PMEM}))?;
    if devices.get(0).and_then(|device| device.get("formatted")) == Some(&true.into()) {
        call("pool_load", json!({"bdev_name": PMEM, "name": POOL}))?;
    } else {
        call(
            "pool_create",
            json!({"name": POOL, "bdev_name": PMEM, "segment_size": SEGMENT_BYTES}),
        )?;
    }
    let pool = service.pools.get(POOL).map_err(|error| SetupError::Call {
        method: "pool_get",
        error,
    })?;
    // A process that died between the two left a pool without its cache.
    if pool.pool.caches().is_empty() {
        let size = u64::from(pool.pool.free_segments()) * SEGMENT_BYTES;
        call(
            "bdev_pmcache_create",
            json!({
                "name": CACHE, "pool": POOL, "backing_bdev": DISK, "size": size,
                "lanes": LANES, "block_size": BLOCK_BYTES,
            }),
        )?;
    } else {
        call("bdev_pmcache_load", json!({"name": CACHE, "pool": POOL}))?;
    }
    call("nbd_export_add", json!({"bdev_name": CACHE}))?;
    let socket = format!("unix:{}", dir.join(NBD_SOCKET).display());
    call("nbd_server_start", json!({"address": socket}))?;
    if let Err(error) = call("nbd_server_start", json!({"address": NBD_TCP})) {
        tracing::warn!(%error, "no NBD over TCP, only on {socket}");
    }
    Ok(())
}

fn call(
    registry: &Registry<Service>,
    service: &Service,
    method: &'static str,
    params: &Value,
) -> Result<Value, SetupError> {
    let failed = |error| SetupError::Call { method, error };
    let internal =
        |error: serde_json::Error| failed(Error::new(Error::INTERNAL_ERROR, error.to_string()));
    let raw: Box<RawValue> = to_raw_value(params).map_err(internal)?;
    let result = registry.call(service, method, Params::new(Some(&raw)));
    serde_json::from_str(result.map_err(failed)?.get()).map_err(internal)
}

/// Makes the disk's file if there is none; only its size, no blocks.
fn make_disk(path: &Path) -> Result<(), SetupError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let made = match options.open(path) {
        Ok(file) => file.set_len(DISK_BYTES),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    made.map_err(|source| SetupError::Disk {
        path: path.display().to_string(),
        source,
    })
}
