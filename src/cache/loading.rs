//! Loading a cache, step by step: first the backing is compared with its sample, which takes reactors
//! that run meanwhile, then the media are loaded.

use super::CacheError;
use super::backing_read::BackingRead;
use super::backing_sample::{SamplePlan, compare};
use super::cache::Cache;
use super::control::Control;
use super::load::load_and_start;
use super::look_only::LookOnly;
use super::plausible::check_shape;
use super::pool::Pool;
use super::replay::{ReplayWish, open_view};
use super::shared::Runtime;
use crate::bdev::Bdev;
use crate::media::{BackingSample, CacheEntry};
use reactors::ReactorHandle;
use std::sync::Arc;
use uuid::Uuid;

/// How to load a cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadWish {
    /// Take a backing of another identity, or one that was changed. What the cache holds only as a copy
    /// of it is not served.
    pub force: bool,
    /// For reading only, up to where the log is damaged. Nothing on media is changed.
    pub salvage: bool,
}

fn check_backing(entry: &CacheEntry, backing: &dyn Bdev, force: bool) -> Result<(), CacheError> {
    let info = backing.info();
    let changed = |what, found: String, recorded: String| {
        Err(CacheError::BackingChanged {
            name: info.name.clone(),
            what,
            found,
            recorded,
        })
    };
    let recorded = Uuid::from_bytes(entry.backing_uuid);
    if info.uuid != recorded && !force {
        return changed("identity", info.uuid.to_string(), recorded.to_string());
    }
    let bytes = entry.backing_bytes.get();
    // A smaller one is never taken. The volume has the size that is recorded until it is told of another.
    if info.bytes() < bytes {
        return changed("size", info.bytes().to_string(), bytes.to_string());
    }
    let block = entry.block_bytes.get();
    if info.block_size > block {
        return changed("block size", info.block_size.to_string(), block.to_string());
    }
    Ok(())
}

/// The comparison of a backing with what it was.
#[derive(Debug)]
struct Comparison {
    recorded: [BackingSample; 3],
    plan: SamplePlan,
    read: BackingRead,
}

/// A load that is under way. Dropped before its end, it has changed nothing.
#[derive(Debug)]
pub struct Loading {
    pool: Arc<Pool>,
    place: usize,
    entry: CacheEntry,
    backing: Arc<dyn Bdev>,
    runtime: Runtime,
    wish: LoadWish,
    compare: Option<Comparison>,
    /// What the cache holds only as a copy may be old.
    drop_clean: bool,
    /// The pool counts it as loaded.
    is_noted: bool,
}

impl Drop for Loading {
    fn drop(&mut self) {
        if self.is_noted {
            self.pool.note_unloaded(self.entry.uuid);
        }
    }
}

impl Pool {
    /// Begins to load the cache `name` (or UUID) in front of `backing`; [`Loading::step`] goes on. On
    /// control threads only.
    ///
    /// # Errors
    /// A backing that is not the recorded one (unless `wish` is to force it), metadata that are corrupt,
    /// a medium or system that fails.
    pub fn load_start(
        self: &Arc<Self>,
        name: &str,
        backing: Arc<dyn Bdev>,
        runtime: &Runtime,
        wish: LoadWish,
    ) -> Result<Loading, CacheError> {
        let mut loading = self.begin_load(name, backing, runtime, wish)?;
        loading.begin_comparison()?;
        Ok(loading)
    }

    /// Loads a cache without comparing the backing with its sample: for a backing that nobody else can
    /// have written to. The parts have started once [`Cache::is_installed`].
    ///
    /// # Errors
    /// As [`Pool::load_start`], and damage with its position. Dirty data are safe in any case.
    pub fn load_cache(
        self: &Arc<Self>,
        name: &str,
        backing: Arc<dyn Bdev>,
        runtime: &Runtime,
        force: bool,
    ) -> Result<Arc<Cache>, CacheError> {
        let salvage = false;
        self.begin_load(name, backing, runtime, LoadWish { force, salvage })?
            .load()
    }

    fn begin_load(
        self: &Arc<Self>,
        name: &str,
        backing: Arc<dyn Bdev>,
        runtime: &Runtime,
        wish: LoadWish,
    ) -> Result<Loading, CacheError> {
        self.refuse_failed()?;
        let wish = LoadWish {
            salvage: wish.salvage || self.is_read_only(),
            ..wish
        };
        let (place, entry) = self.find(name)?;
        check_shape(&entry, self.geometry.segment_bytes)?;
        check_backing(&entry, &*backing, wish.force)?;
        self.note_loaded(entry.uuid)?;
        Ok(Loading {
            pool: Arc::clone(self),
            place,
            drop_clean: backing.info().uuid != Uuid::from_bytes(entry.backing_uuid),
            entry,
            backing,
            runtime: runtime.clone(),
            wish,
            compare: None,
            is_noted: true,
        })
    }
}

impl Loading {
    fn begin_comparison(&mut self) -> Result<(), CacheError> {
        let mut view = open_view(&self.pool, &self.entry)?;
        view.pmem = Arc::new(LookOnly::new(view.pmem));
        let recorded = match Control::load(&view)?.recorded_samples(&view) {
            Err(error) if self.wish.force => {
                tracing::warn!(cache = %self.entry.name(), %error, "done without, as asked");
                self.drop_clean = true;
                return Ok(());
            }
            other => other?,
        };
        let Some(recorded) = recorded else {
            return Ok(());
        };
        let plan = SamplePlan::for_load(&recorded, self.entry.backing_bytes.get());
        let Some(reactor) = self.runtime.maintenance.first() else {
            return Ok(());
        };
        let read = BackingRead::start(Arc::clone(&self.backing), plan.ranges(), reactor)?;
        self.compare = Some(Comparison {
            recorded,
            plan,
            read,
        });
        Ok(())
    }

    /// Takes the load one step on. Nothing while the backing is being read. With `hurry` that is not
    /// waited for any longer.
    ///
    /// # Errors
    /// A backing that was changed, or that can't be read (unless it is forced); damage with its
    /// position; a medium or system that fails. Dirty data are safe in any case.
    pub fn step(&mut self, hurry: bool) -> Result<Option<Arc<Cache>>, CacheError> {
        if let Some(comparison) = &self.compare {
            let compared = match comparison.read.take() {
                Some(Ok(read)) => {
                    let found = comparison.plan.samples(&read);
                    compare(&self.backing.info().name, &comparison.recorded, &found)
                }
                Some(Err(why)) => Err(self.unread(why)),
                None if hurry => Err(self.unread("it does not answer")),
                None => return Ok(None),
            };
            self.compare = None;
            self.drop_clean = compared.is_err();
            match compared {
                Err(error) if self.wish.force => {
                    tracing::warn!(cache = %self.entry.name(), %error, "taken as it is, as asked");
                }
                other => other?,
            }
        }
        self.load().map(Some)
    }

    fn unread(&self, why: &'static str) -> CacheError {
        CacheError::BackingUnread {
            name: self.backing.info().name.clone(),
            why,
        }
    }

    fn load(&mut self) -> Result<Arc<Cache>, CacheError> {
        let wish = ReplayWish {
            salvage: self.wish.salvage,
            drop_clean: self.drop_clean,
        };
        let backing = Arc::clone(&self.backing);
        let (pool, place) = (&self.pool, self.place);
        let cache = load_and_start(pool, place, &self.entry, backing, &self.runtime, wish);
        self.pool.note_failure(&cache);
        if self.pool.has_failed() {
            self.runtime.data.iter().for_each(ReactorHandle::ring);
        }
        // From here on the cache itself says when it has gone.
        self.is_noted = cache.is_err();
        cache
    }
}
