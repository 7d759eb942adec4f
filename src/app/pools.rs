//! The pools of the service by name, and the steps by which caches come and go.
//!
//! A pool owns its pmem bdev, a cache its backing; a running cache is in the table of bdevs. Slow
//! steps (format, replay, stop) run without a lock: the names are reserved first.

use super::bdevs::{Bdevs, Kind, bdev_error, no_such_device};
use super::shared::{Shared, poll_until};
use crate::bdev::{Bdev, Persistence, Pmem};
use crate::cache::{Cache, CacheError, CreateCache, Durability, Pool, PoolFormat, Runtime};
use rpc::Error;
use rustix::io::Errno;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long the parts of a cache may take to start on their reactors.
const INSTALL_WAIT: Duration = Duration::from_secs(10);

/// How long a stop waits for a backing before it leaves that to the next load.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// How long a stop may take that waits for nobody.
const HURRY_WAIT: Duration = Duration::from_secs(1);

/// An open pool.
#[derive(Clone, Debug)]
pub(super) struct PoolEntry {
    /// Its name in this service.
    pub(super) name: String,
    /// Itself.
    pub(super) pool: Arc<Pool>,
    /// The pmem bdev that it owns.
    pub(super) bdev_name: String,
}

/// The table; `None` is a name whose pool is being opened.
#[derive(Debug, Default)]
pub(super) struct Pools(Shared<BTreeMap<String, Option<PoolEntry>>>);

/// What the engine said about `object`, as RPC clients see it.
pub(super) fn cache_error(object: &str, error: &CacheError) -> Error {
    let errno = match error {
        CacheError::Medium(_) => Errno::IO,
        CacheError::Bdev(error) => {
            let error = bdev_error(error);
            return Error::new(error.code, format!("{object}: {}", error.message));
        }
        CacheError::Superblock { .. } if error.is_no_pool() => Errno::NOENT,
        CacheError::Superblock { .. }
        | CacheError::MediumTooSmall { .. }
        | CacheError::Metadata { .. }
        | CacheError::Identity { .. }
        | CacheError::LogDamaged { .. } => Errno::UCLEAN,
        CacheError::DataDamaged { .. } => Errno::BADMSG,
        CacheError::Formatted | CacheError::Foreign | CacheError::Exists(_) => Errno::EXIST,
        CacheError::Invalid(_) => Errno::INVAL,
        CacheError::NoSuchCache(_) => Errno::NODEV,
        CacheError::NoSegments { .. } => Errno::NOSPC,
        CacheError::BackingChanged { .. } => Errno::STALE,
        CacheError::Busy(_) | CacheError::Dirty { .. } => Errno::BUSY,
        CacheError::NotSupported(_) => Errno::OPNOTSUPP,
        CacheError::Os { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        CacheError::TimedOut { .. } => Errno::TIMEDOUT,
    };
    Error::errno_with(errno.raw_os_error(), format!("{object}: {error}"))
}

/// How a cache is called in messages.
pub(super) fn cache_object(name: &str) -> String {
    format!("pmcache '{name}'")
}

fn pool_object(name: &str) -> String {
    format!("pool '{name}'")
}

/// The medium of a bdev.
fn medium(bdev: &dyn Bdev) -> Result<Arc<dyn Pmem>, Error> {
    bdev.pmem().ok_or_else(|| {
        let name = &bdev.info().name;
        Error::errno_with(
            Errno::OPNOTSUPP.raw_os_error(),
            format!("Operation not supported: bdev '{name}' is no persistent memory"),
        )
    })
}

/// Refuses a promise that memory without persistence can't keep.
pub(super) fn check_durability(
    name: &str,
    pool: &Pool,
    durability: Durability,
    force: bool,
) -> Result<(), Error> {
    let volatile = pool.pmem().persistence() == Persistence::Volatile;
    if volatile && durability == Durability::Write && !force {
        return Err(Error::errno_with(
            Errno::OPNOTSUPP.raw_os_error(),
            format!(
                "{}: durability write is not to be had on volatile memory; force=true to do without",
                cache_object(name)
            ),
        ));
    }
    Ok(())
}

impl Pools {
    /// Opens the pool on `bdev_name` under `name`, formatting it first if `format` says how.
    ///
    /// # Errors
    /// −17 if the name is taken or the medium formatted, −19 without such a bdev, −16 if it has an
    /// owner, −95 if it is no pmem, −2 if it holds no pool, −117 if that is damaged.
    pub(super) fn open(
        &self,
        bdevs: &Bdevs,
        name: &str,
        bdev_name: &str,
        format: Option<&PoolFormat>,
    ) -> Result<PoolEntry, Error> {
        self.0.with(|pools| {
            if pools.contains_key(name) {
                return Err(Error::errno(Errno::EXIST.raw_os_error()));
            }
            pools.insert(name.to_owned(), None);
            Ok(())
        })?;
        let opened = self.open_reserved(bdevs, name, bdev_name, format);
        self.0.with(|pools| match &opened {
            Ok(entry) => pools.insert(name.to_owned(), Some(entry.clone())),
            Err(_) => pools.remove(name),
        });
        opened
    }

    fn open_reserved(
        &self,
        bdevs: &Bdevs,
        name: &str,
        bdev_name: &str,
        format: Option<&PoolFormat>,
    ) -> Result<PoolEntry, Error> {
        let object = pool_object(name);
        let claimed = bdevs.claim(bdev_name, object.clone())?;
        let open = || {
            let pmem = medium(&*claimed.bdev)?;
            if let Some(format) = format {
                Pool::format(&*pmem, format).map_err(|error| cache_error(&object, &error))?;
            }
            Pool::open(pmem).map_err(|error| cache_error(&object, &error))
        };
        match open() {
            Ok(pool) => Ok(PoolEntry {
                name: name.to_owned(),
                pool,
                bdev_name: bdev_name.to_owned(),
            }),
            Err(error) => {
                bdevs.release(bdev_name);
                Err(error)
            }
        }
    }

    /// Closes a pool none of whose caches runs.
    ///
    /// # Errors
    /// −19 without such a pool, −16 with a running cache.
    pub(super) fn close(&self, bdevs: &Bdevs, name: &str) -> Result<(), Error> {
        let closed = self.0.with(|pools| {
            let Some(Some(entry)) = pools.get(name) else {
                return Err(no_such_device());
            };
            if entry.pool.has_loaded() {
                return Err(Error::errno_with(
                    Errno::BUSY.raw_os_error(),
                    format!("{}: a cache of it runs", pool_object(name)),
                ));
            }
            let entry = entry.clone();
            pools.remove(name);
            Ok(entry)
        })?;
        let bdev_name = closed.bdev_name.clone();
        drop(closed);
        bdevs.release(&bdev_name);
        Ok(())
    }

    /// The pool of that name.
    ///
    /// # Errors
    /// −19.
    pub(super) fn get(&self, name: &str) -> Result<PoolEntry, Error> {
        let found = self.0.with(|pools| pools.get(name).cloned().flatten());
        found.ok_or_else(no_such_device)
    }

    /// All pools, by name.
    pub(super) fn list(&self) -> Vec<PoolEntry> {
        self.0
            .with(|pools| pools.values().flatten().cloned().collect())
    }

    /// Forgets all pools; at the end, when no cache runs.
    pub(super) fn clear(&self) {
        self.0.with(BTreeMap::clear);
    }
}

/// Makes a cache in `pool` in front of the bdev `backing`, and starts it. What was made is taken
/// back if it doesn't start.
///
/// # Errors
/// −17 for a name or uuid that is taken, −19 without such a backing, −16 if that has an owner, −28
/// without enough free segments, −22 for sizes that can't be.
pub(super) fn create_cache(
    bdevs: &Bdevs,
    runtime: &Runtime,
    pool: &Arc<Pool>,
    backing: &str,
    create: &CreateCache,
) -> Result<Arc<Cache>, Error> {
    let (name, object) = (&*create.name, cache_object(&create.name));
    bring_up(bdevs, name, backing, |device| {
        pool.create_cache(create, &device.info())
            .map_err(|error| cache_error(&object, &error))?;
        start(pool, name, device, runtime).inspect_err(|_| {
            if let Err(error) = pool.destroy_cache(name, 0, None) {
                tracing::error!(name, %error, "a cache that did not start stays in its pool");
            }
        })
    })
}

/// Starts a cache of `pool` that exists; `name` as it is in the pool.
///
/// # Errors
/// −17 if the name is taken, −19 without such a cache or backing, −16 if the backing has an owner,
/// −116 if it is not the recorded one, −117 and −74 for damage, with its place.
pub(super) fn load_cache(
    bdevs: &Bdevs,
    runtime: &Runtime,
    pool: &Arc<Pool>,
    name: &str,
    backing: &str,
) -> Result<Arc<Cache>, Error> {
    bring_up(bdevs, name, backing, |device| {
        start(pool, name, device, runtime)
    })
}

/// Reserves the name, claims the backing, makes the cache, and puts it among the bdevs.
fn bring_up(
    bdevs: &Bdevs,
    name: &str,
    backing: &str,
    make: impl FnOnce(Arc<dyn Bdev>) -> Result<Arc<Cache>, Error>,
) -> Result<Arc<Cache>, Error> {
    let place = bdevs.reserve(name)?;
    let claimed = bdevs.claim(backing, cache_object(name))?;
    match make(claimed.bdev) {
        Ok(cache) => {
            let kind = Kind::Pmcache(Arc::clone(&cache));
            let specific = json!({"pmcache": {"backing_bdev": backing}});
            place.fill(kind, cache.clone(), specific, Some(backing.to_owned()));
            Ok(cache)
        }
        Err(error) => {
            bdevs.release(backing);
            Err(error)
        }
    }
}

/// Loads a cache and waits until all its parts run.
pub(super) fn start(
    pool: &Arc<Pool>,
    name: &str,
    backing: Arc<dyn Bdev>,
    runtime: &Runtime,
) -> Result<Arc<Cache>, Error> {
    let object = cache_object(name);
    let cache = pool
        .load_cache(name, backing, runtime, false)
        .map_err(|error| cache_error(&object, &error))?;
    let mut failed = None;
    let installed = poll_until(INSTALL_WAIT, || match cache.is_installed() {
        Ok(done) => done,
        Err(error) => {
            failed = Some(cache_error(&object, &error));
            true
        }
    });
    if installed && failed.is_none() {
        return Ok(cache);
    }
    stop(&cache, Duration::ZERO);
    Err(failed.unwrap_or_else(|| {
        let errno = Errno::TIMEDOUT.raw_os_error();
        Error::errno_with(errno, format!("{object}: its parts don't start"))
    }))
}

/// Stops a cache whose channels are closed. A step that its backing holds up for longer than
/// `patience` is left to the next load. Dirty data stay in the pool. Returns whether it stopped.
fn stop(cache: &Cache, patience: Duration) -> bool {
    let mut complained = false;
    let mut step = |hurry| match cache.stop_step(hurry) {
        Ok(stopped) => stopped,
        Err(error) => {
            // The next step goes on where this one could not; what fails at the very end is the
            // clean mark, without which the next load looks closer.
            if !std::mem::replace(&mut complained, true) {
                tracing::warn!(cache = cache.name(), %error, "stopping");
            }
            false
        }
    };
    poll_until(patience, || step(false)) || poll_until(HURRY_WAIT, || step(true))
}

/// Stops the cache of that name if nobody uses it, and takes it out of the bdevs.
///
/// # Errors
/// −19 without such a cache, −16 if it is in use, −110 if it doesn't stop.
pub(super) fn unload_cache(bdevs: &Bdevs, name: &str) -> Result<(), Error> {
    let cache = bdevs.cache(name)?;
    let object = cache_object(name);
    // Its own claim keeps everybody else away while it stops.
    let owner = format!("{object}, which is stopping");
    bdevs.claim(name, owner.clone())?;
    let stopped = stop(&cache, STOP_WAIT);
    drop(cache);
    bdevs.remove_owned(name, &owner);
    if stopped {
        return Ok(());
    }
    let errno = Errno::TIMEDOUT.raw_os_error();
    Err(Error::errno_with(
        errno,
        format!("{object}: it doesn't stop"),
    ))
}

/// Stops all caches for good, waiting `patience` for a dead backing.
pub(super) fn stop_caches(bdevs: &Bdevs, patience: Duration) {
    for cache in bdevs.caches() {
        if !stop(&cache, patience) {
            tracing::warn!(cache = cache.name(), "it doesn't stop and is left behind");
        }
    }
}

/// A uuid as the engine keeps it.
pub(super) fn uuid_text(uuid: [u8; 16]) -> String {
    Uuid::from_bytes(uuid).to_string()
}
