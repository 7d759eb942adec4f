//! The pools and caches of the service: who is loaded, and how each is brought up and down.

use super::bdevs::{Kind, no_such_device};
use super::config::Recipe;
use super::service::Service;
use super::shared::{Shared, poll_until};
use crate::bdev::{Bdev, Persistence, PmemError};
use crate::cache::{
    Cache, CacheError, CreateCache, Durability, LoadWish, Pool, PoolFormat, Runtime,
};
use rpc::Error;
use rustix::io::Errno;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long the parts of a cache may take to start.
const START_WAIT: Duration = Duration::from_secs(10);
/// How long a load waits for the backing, which it compares with what it was.
const SAMPLE_WAIT: Duration = Duration::from_secs(5);
/// How long a stop waits for what a dead backing may hold up, before it goes on without.
const CALM_STOP: Duration = Duration::from_millis(1500);
/// How long a stop may take in all.
const STOP_WAIT: Duration = Duration::from_millis(2500);

/// A loaded pool.
#[derive(Clone, Debug)]
pub(super) struct PoolEntry {
    /// Itself.
    pub(super) pool: Arc<Pool>,
    /// The pmem bdev that it is on.
    pub(super) bdev_name: String,
}

/// The loaded pools by name.
#[derive(Debug)]
pub(super) struct Caches {
    pools: Shared<BTreeMap<String, PoolEntry>>,
    /// Pools and caches that come up or go down just now: one at a time for each name.
    busy: Shared<Vec<String>>,
    run_dir: PathBuf,
}

/// What the engine said, as RPC clients see it: the object first, then strerror, then the detail.
pub(super) fn cache_error(object: &str, error: &CacheError) -> Error {
    let errno = match error {
        CacheError::Medium(PmemError::Unsettled { .. }) => Errno::BUSY,
        CacheError::Medium(_) => Errno::IO,
        CacheError::Bdev(inner) => {
            let inner = super::bdevs::bdev_error(inner);
            return Error::new(inner.code, format!("{object}: {}", inner.message));
        }
        CacheError::Superblock { .. } if error.is_no_pool() => Errno::NOENT,
        CacheError::Formatted | CacheError::Exists(_) => Errno::EXIST,
        CacheError::Foreign | CacheError::Busy(_) | CacheError::Dirty { .. } => Errno::BUSY,
        CacheError::Superblock { .. }
        | CacheError::TableLost { .. }
        | CacheError::MediumTooSmall { .. }
        | CacheError::Metadata { .. }
        | CacheError::Identity { .. }
        | CacheError::Impossible { .. }
        | CacheError::LogDamaged { .. } => Errno::UCLEAN,
        CacheError::DataDamaged { .. } => Errno::BADMSG,
        CacheError::NoSuchCache(_) => Errno::NODEV,
        CacheError::NoSegments { .. } => Errno::NOSPC,
        CacheError::Resizing { .. } | CacheError::Scrubbing => Errno::ALREADY,
        CacheError::BackingChanged { .. }
        | CacheError::BackingAltered { .. }
        | CacheError::BackingUnread { .. } => Errno::STALE,
        CacheError::PoolFailed | CacheError::PoolReadOnly | CacheError::Salvaged => Errno::ROFS,
        CacheError::NotSupported(_) => Errno::OPNOTSUPP,
        CacheError::Os { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        CacheError::TimedOut { .. } => Errno::TIMEDOUT,
        _ => Errno::INVAL,
    };
    let errno = errno.raw_os_error();
    let strerror = Error::errno(errno).message;
    Error::errno_with(errno, format!("{object}: {strerror}: {error}"))
}

fn busy(object: &str, why: &str) -> Error {
    let errno = Errno::BUSY.raw_os_error();
    let strerror = Error::errno(errno).message;
    Error::errno_with(errno, format!("{object}: {strerror}: {why}"))
}

/// How people call a pool and a cache.
pub(super) fn pool_object(name: &str) -> String {
    format!("pool '{name}'")
}

/// See [`pool_object`].
pub(super) fn cache_object(name: &str) -> String {
    format!("pmcache '{name}'")
}

/// The running kernel's boot id.
pub(super) fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Uuid::parse_str(text.trim()).map_or([0; 16], |id| *id.as_bytes())
}

/// While it lives nobody else brings the object up or down.
struct Turn<'a> {
    busy: &'a Shared<Vec<String>>,
    object: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy
            .with(|list| list.retain(|held| *held != self.object));
    }
}

impl Caches {
    /// Nothing is loaded; staging files go to `run_dir`.
    pub(super) fn new(run_dir: PathBuf) -> Self {
        Self {
            pools: Shared::default(),
            busy: Shared::default(),
            run_dir,
        }
    }

    fn turn(&self, object: String) -> Result<Turn<'_>, Error> {
        let taken = self.busy.with(|list| {
            let free = !list.contains(&object);
            if free {
                list.push(object.clone());
            }
            free
        });
        if taken {
            Ok(Turn {
                busy: &self.busy,
                object,
            })
        } else {
            Err(busy(&object, "it is being changed"))
        }
    }

    /// The loaded pool `name`.
    ///
    /// # Errors
    /// −19.
    pub(super) fn pool(&self, name: &str) -> Result<PoolEntry, Error> {
        self.pools
            .with(|pools| pools.get(name).cloned())
            .ok_or_else(no_such_device)
    }

    /// All loaded pools.
    pub(super) fn pools(&self) -> Vec<PoolEntry> {
        self.pools.with(|pools| pools.values().cloned().collect())
    }

    fn runtime(&self, service: &Service) -> Runtime {
        let (seed, _) = Uuid::new_v4().as_u64_pair();
        Runtime {
            data: service.reactors().data_handles().to_vec(),
            maintenance: service.reactors().maintenance_handles().to_vec(),
            quiescence: service.reactors().quiescence(),
            clock: service.clock(),
            run_dir: self.run_dir.clone(),
            boot_id: boot_id(),
            seed,
        }
    }
}

/// Formats the pmem bdev `bdev_name`, and loads the pool.
pub(super) fn create_pool(
    service: &Service,
    bdev_name: &str,
    format: &PoolFormat,
) -> Result<PoolEntry, Error> {
    let object = pool_object(&format.name);
    crate::bdev::check_name(&format.name).map_err(|e| super::bdevs::bdev_error(&e))?;
    if service.caches.pool(&format.name).is_ok() {
        return Err(cache_error(
            &object,
            &CacheError::Exists(format.name.clone()),
        ));
    }
    let _turn = service.caches.turn(object.clone())?;
    let entry = service.bdevs.claim(bdev_name, object.clone())?;
    let formatted = match entry.bdev.pmem() {
        Some(pmem) => Pool::format(&*pmem, format),
        None => Err(CacheError::Invalid(format!(
            "bdev '{bdev_name}' is no pmem bdev"
        ))),
    };
    service.bdevs.release(bdev_name);
    formatted.map_err(|error| cache_error(&object, &error))?;
    open_pool(service, bdev_name, false)
}

/// Loads the pool on the pmem bdev `bdev_name`, to be looked at only if `read_only`. One that is loaded so
/// is returned as it is.
pub(super) fn load_pool(
    service: &Service,
    bdev_name: &str,
    read_only: bool,
) -> Result<PoolEntry, Error> {
    if let Some(loaded) = service
        .caches
        .pools()
        .into_iter()
        .find(|p| p.bdev_name == bdev_name)
    {
        if loaded.pool.is_read_only() != read_only {
            let how = "it is loaded in another mode; unload it first";
            return Err(busy(&pool_object(loaded.pool.name()), how));
        }
        return Ok(loaded);
    }
    open_pool(service, bdev_name, read_only)
}

fn open_pool(service: &Service, bdev_name: &str, read_only: bool) -> Result<PoolEntry, Error> {
    let object = format!("pool on '{bdev_name}'");
    let _turn = service.caches.turn(object.clone())?;
    let entry = service.bdevs.claim(bdev_name, object.clone())?;
    let opened = match entry.bdev.pmem() {
        Some(pmem) if read_only => Pool::open_read_only(pmem),
        Some(pmem) => Pool::open(pmem),
        None => Err(CacheError::Invalid(format!(
            "bdev '{bdev_name}' is no pmem bdev"
        ))),
    };
    let opened = opened.and_then(|pool| {
        let entry = PoolEntry {
            pool,
            bdev_name: bdev_name.to_owned(),
        };
        let name = entry.pool.name().to_owned();
        let added = service.caches.pools.with(|pools| {
            let free = !pools.contains_key(&name);
            if free {
                pools.insert(name.clone(), entry.clone());
            }
            free
        });
        if added {
            Ok(entry)
        } else {
            Err(CacheError::Exists(name))
        }
    });
    if opened.is_err() {
        service.bdevs.release(bdev_name);
    }
    opened.map_err(|error| cache_error(&object, &error))
}

/// Closes a pool none of whose caches runs.
pub(super) fn unload_pool(service: &Service, name: &str) -> Result<(), Error> {
    let object = pool_object(name);
    let _turn = service.caches.turn(object.clone())?;
    let entry = service.caches.pool(name)?;
    if entry.pool.has_loaded() {
        return Err(busy(&object, "a cache of it is loaded"));
    }
    if let Err(error) = entry.pool.forget_staging(&service.caches.run_dir) {
        tracing::warn!(pool = name, %error, "the staging file stays");
    }
    service.caches.pools.with(|pools| pools.remove(name));
    let bdev_name = entry.bdev_name.clone();
    drop(entry);
    service.bdevs.release(&bdev_name);
    Ok(())
}

/// Makes a cache in `pool` in front of `backing` and loads it.
pub(super) fn create_cache(
    service: &Service,
    pool: &str,
    backing: &str,
    create: &CreateCache,
) -> Result<Arc<Cache>, Error> {
    let object = cache_object(&create.name);
    crate::bdev::check_name(&create.name).map_err(|e| super::bdevs::bdev_error(&e))?;
    let entry = service.caches.pool(pool)?;
    let place = service.bdevs.reserve(&create.name)?;
    let below = service.bdevs.claim(backing, object.clone())?;
    let created = entry.pool.create_cache(create, &below.bdev.info());
    service.bdevs.release(backing);
    created.map_err(|error| cache_error(&object, &error))?;
    drop(place);
    load_cache(
        service,
        pool,
        &create.name,
        Some(backing),
        LoadWish::default(),
    )
    .inspect_err(|_| {
        // What never ran holds nothing: the pool is as before.
        if let Err(error) = entry.pool.destroy_cache(&create.name, 0, 0, None) {
            tracing::error!(%error, "{object} did not start, and stays in its pool");
        }
    })
}

/// Refuses a promise that memory without persistence can't keep, unless `force`.
pub(super) fn check_durability(
    object: &str,
    pool: &Pool,
    durability: Durability,
    force: bool,
) -> Result<(), Error> {
    let volatile = pool.pmem().persistence() == Persistence::Volatile;
    if volatile && durability == Durability::Write && !force {
        let text = "durability write is not to be had on volatile memory; force does without";
        return Err(cache_error(object, &CacheError::NotSupported(text.into())));
    }
    Ok(())
}

/// Loads the cache `name` (or UUID) of `pool` in front of `backing`, or of the recorded bdev.
pub(super) fn load_cache(
    service: &Service,
    pool: &str,
    name: &str,
    backing: Option<&str>,
    wish: LoadWish,
) -> Result<Arc<Cache>, Error> {
    let pool = service.caches.pool(pool)?.pool;
    let wish = LoadWish {
        salvage: wish.salvage || pool.is_read_only(),
        ..wish
    };
    let found = pool.caches().into_iter().find(|entry| {
        entry.name() == name || Uuid::parse_str(name).is_ok_and(|u| u.as_bytes() == &entry.uuid)
    });
    let Some(found) = found else {
        return Err(no_such_device());
    };
    let name = found.name();
    let object = cache_object(&name);
    if let Ok(loaded) = find(service, &name)
        && loaded.uuid().as_bytes() == &found.uuid
    {
        let whole = loaded.replay_report().unwritable.is_some();
        if !whole && loaded.is_salvaged() != wish.salvage {
            let how = if wish.salvage {
                "it is loaded, not for salvage; unload it first"
            } else {
                "it is loaded for salvage; unload it first"
            };
            return Err(busy(&object, how));
        }
        return Ok(loaded);
    }
    let backing = backing.map_or_else(|| found.backing_name(), ToOwned::to_owned);
    let place = service.bdevs.reserve(&name)?;
    let below = service.bdevs.claim(&backing, object.clone())?;
    let runtime = service.caches.runtime(service);
    let loaded = load_by_steps(&pool, &name, below.bdev, &runtime, wish).and_then(|cache| {
        start_parts(&cache)?;
        Ok(cache)
    });
    match loaded {
        Ok(cache) => {
            let specific = json!({"pmcache": {"pool": pool.name(), "backing_bdev": backing}});
            let bdev: Arc<dyn Bdev> = Arc::clone(&cache) as Arc<dyn Bdev>;
            let recipe = json!({
                "pool": pool.name(),
                "name": name,
                "backing_bdev": backing,
                "salvage": wish.salvage.then_some(true),
            });
            let recipe = Recipe::new("bdev_pmcache_load", recipe);
            let kind = Kind::Cache(Arc::clone(&cache));
            place.fill(kind, bdev, specific, Some(backing), recipe);
            Ok(cache)
        }
        Err(error) => {
            service.bdevs.release(&backing);
            Err(cache_error(&object, &error))
        }
    }
}

/// Loads a cache, and waits for its backing's answer no longer than it may take.
fn load_by_steps(
    pool: &Arc<Pool>,
    name: &str,
    backing: Arc<dyn Bdev>,
    runtime: &Runtime,
    wish: LoadWish,
) -> Result<Arc<Cache>, CacheError> {
    let mut loading = pool.load_start(name, backing, runtime, wish)?;
    let mut loaded = None;
    poll_until(SAMPLE_WAIT, || {
        loaded = loading.step(false).transpose();
        loaded.is_some()
    });
    let unanswered = || CacheError::TimedOut {
        what: "the comparison of the backing",
        seconds: SAMPLE_WAIT.as_secs(),
    };
    match loaded {
        Some(loaded) => loaded,
        None => loading.step(true)?.ok_or_else(unanswered),
    }
}

/// Waits until all parts of a cache run; takes it down again if one does not.
pub(super) fn start_parts(cache: &Cache) -> Result<(), CacheError> {
    let mut failed = None;
    let started = poll_until(START_WAIT, || match cache.is_installed() {
        Ok(installed) => installed,
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    match failed {
        None if started => Ok(()),
        failed => {
            stop_parts(cache)?;
            let seconds = START_WAIT.as_secs();
            Err(failed.unwrap_or(CacheError::TimedOut {
                what: "the start of the cache",
                seconds,
            }))
        }
    }
}

/// Takes the parts of a cache off their reactors; dirty data stay in the pool.
pub(super) fn stop_parts(cache: &Cache) -> Result<(), CacheError> {
    let mut failed = None;
    let mut step = |hurry| match cache.stop_step(hurry) {
        Ok(stopped) => stopped,
        // An inbox was full: the next try may find room.
        Err(CacheError::Busy(_)) => false,
        Err(error) => {
            failed = Some(error);
            true
        }
    };
    if !poll_until(CALM_STOP, || step(false)) && !poll_until(STOP_WAIT, || step(true)) {
        let seconds = (CALM_STOP + STOP_WAIT).as_secs();
        return Err(CacheError::TimedOut {
            what: "the stop of the cache",
            seconds,
        });
    }
    failed.map_or(Ok(()), Err)
}

/// The running cache `name`.
///
/// # Errors
/// −19.
pub(super) fn find(service: &Service, name: &str) -> Result<Arc<Cache>, Error> {
    match service.bdevs.get(name)?.kind {
        Kind::Cache(cache) => Ok(cache),
        _ => Err(no_such_device()),
    }
}

/// All running caches, by name.
pub(super) fn all(service: &Service) -> Vec<Arc<Cache>> {
    let entries = service.bdevs.list().into_iter();
    let caches = entries.filter_map(|entry| match entry.kind {
        Kind::Cache(cache) => Some(cache),
        _ => None,
    });
    caches.collect()
}

/// Refuses to take a cache away whose backing alone is not complete.
fn refuse_incomplete(object: &str, cache: &Cache) -> Result<(), Error> {
    if cache.is_flushing() {
        return Err(busy(object, "its flush is not done"));
    }
    if cache.dirty_bytes() > 0 {
        return Err(busy(object, "it holds dirty data; flush it first"));
    }
    match cache.bad_bytes() {
        0 => Ok(()),
        bad => Err(busy(
            object,
            &format!("{bad} bytes are lost, and the backing has an older value of them"),
        )),
    }
}

/// Stops a cache that nobody uses and takes it off the list. With `clean`, only if the backing alone is
/// complete.
pub(super) fn unload_cache(service: &Service, name: &str, clean: bool) -> Result<(), Error> {
    let object = cache_object(name);
    let cache = find(service, name)?;
    let _turn = service.caches.turn(object.clone())?;
    // From here on nobody opens it any more; who has it open keeps it from being claimed.
    let owner = format!("the unload of {object}");
    service.bdevs.claim(name, owner.clone())?;
    if clean && let Err(error) = refuse_incomplete(&object, &cache) {
        service.bdevs.release(name);
        return Err(error);
    }
    let stopped = stop_parts(&cache);
    drop(cache);
    // Stopped or not, it takes no I/O any more.
    service.bdevs.remove_owned(name, &owner);
    stopped.map_err(|error| cache_error(&object, &error))
}

/// Unloads a cache and frees its segments; dirty bytes must be repeated back.
pub(super) fn destroy_cache(
    service: &Service,
    name: &str,
    discard_dirty: Option<u64>,
) -> Result<(u64, u64), Error> {
    let object = cache_object(name);
    let cache = find(service, name)?;
    let (pool, dirty, bad) = (cache.pool(), cache.dirty_bytes(), cache.bad_bytes());
    if pool.is_read_only() {
        return Err(cache_error(&object, &CacheError::PoolReadOnly));
    }
    // What a damaged one lacks can't be counted: it wants to be told, also of no dirty bytes.
    let lacks = cache.replay_report().missing.is_some();
    if (dirty + bad > 0 || lacks) && discard_dirty != Some(dirty) {
        let error = CacheError::Dirty {
            dirty_bytes: dirty,
            bad_bytes: bad,
        };
        return Err(cache_error(&object, &error));
    }
    drop(cache);
    unload_cache(service, name, false)?;
    pool.destroy_cache(name, dirty, bad, discard_dirty)
        .map_err(|error| cache_error(&object, &error))?;
    Ok((dirty, bad))
}

/// Takes everything down: caches, then pools. Nothing uses them any more.
pub(super) fn close_all(service: &Service) {
    let mut left = usize::MAX;
    loop {
        // What stands on a cache goes before it, and then it may be another one's turn.
        service.bdevs.remove_idle();
        let caches = all(service);
        let last = caches.len() >= left;
        left = caches.len();
        if left == 0 {
            break;
        }
        for cache in caches {
            let unloaded = unload_cache(service, cache.name(), false);
            if let (true, Err(error)) = (last, unloaded) {
                tracing::error!(cache = cache.name(), %error, "does not stop; its data are safe");
            }
        }
        if last {
            break;
        }
    }
    for entry in service.caches.pools() {
        if let Err(error) = unload_pool(service, entry.pool.name()) {
            tracing::error!(pool = entry.pool.name(), %error, "is not closed");
        }
    }
}
