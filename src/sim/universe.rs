//! What outlives a simulated process: the medium, the disks and the files of the run directory; and
//! the snapshots that are taken of them at persist points.
//!
//! A *persist point* is a store, a barrier that completes, or a backing I/O that ends: between two of
//! them a crash makes no difference. Everything runs on one thread, so a snapshot is just a copy.

use super::disk::DiskState;
use super::pmem::Media;
use super::rng::Rng;
use reactors::{Clock, ManualClock};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Who stores or does I/O: the control thread, or reactor `n - 1`.
pub(super) type Actor = usize;

/// The control thread.
pub(super) const CONTROL: Actor = 0;

/// All that a crash leaves, just before some persist point.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) media: Media,
    pub(super) disks: Vec<DiskState>,
    /// The files of the run directory: names and contents.
    pub(super) files: Vec<(OsString, Vec<u8>)>,
    /// Number of the persist point.
    pub(super) point: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) actor: Actor,
    pub(super) media: Media,
    pub(super) disks: Vec<DiskState>,
    /// For what devices decide: delays, order, faults.
    pub(super) rng: Rng,
    clock: Arc<ManualClock>,
    /// Persist points so far.
    points: u64,
    /// The next point to keep, and the distance to the one after it; 0 for none.
    keep_at: Option<u64>,
    keep_every: u64,
    kept: Vec<Snapshot>,
    pub(super) run_dir: PathBuf,
    /// What a device saw that must not be.
    complaint: Option<String>,
    /// Where the bytes of each view came from, by its address in memory.
    pub(super) views: HashMap<usize, u64>,
}

impl State {
    pub(super) fn now(&self) -> u64 {
        self.clock.now().0
    }

    /// Counts a persist point, and keeps the state before it if that is wanted.
    pub(super) fn point(&mut self) {
        self.points += 1;
        if self.keep_at.is_none_or(|at| self.points < at) {
            return;
        }
        self.keep_at = (self.keep_every > 0).then_some(self.points + self.keep_every);
        let snapshot = self.snapshot();
        self.kept.push(snapshot);
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            media: self.media.clone(),
            disks: self.disks.clone(),
            files: self.files(),
            point: self.points,
        }
    }

    fn files(&self) -> Vec<(OsString, Vec<u8>)> {
        let Ok(entries) = std::fs::read_dir(&self.run_dir) else {
            return Vec::new();
        };
        let mut files: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name(), std::fs::read(entry.path()).ok()?)))
            .collect();
        files.sort();
        files
    }

    /// Notes what must not be; the first one counts.
    pub(super) fn complain(&mut self, what: String) {
        self.complaint.get_or_insert(what);
    }
}

/// A handle on the state; all devices of a simulated machine share it.
#[derive(Clone, Debug)]
pub(super) struct Universe(Arc<RwLock<State>>);

impl Universe {
    pub(super) fn new(
        media: Media,
        disks: Vec<DiskState>,
        clock: Arc<ManualClock>,
        run_dir: PathBuf,
        rng: Rng,
    ) -> Self {
        Self(Arc::new(RwLock::new(State {
            actor: CONTROL,
            media,
            disks,
            rng,
            clock,
            points: 0,
            keep_at: None,
            keep_every: 0,
            kept: Vec::new(),
            run_dir,
            complaint: None,
            views: HashMap::new(),
        })))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says on whose behalf this thread acts from now on.
    pub(super) fn act_as(&self, actor: Actor) {
        self.write().actor = actor;
    }

    /// Persist points so far.
    pub(super) fn points(&self) -> u64 {
        self.read().points
    }

    /// Keeps the state before the `count`-th persist point from now on, and with `every` above 0
    /// again so many points later, and so on.
    pub(super) fn keep_after(&self, count: u64, every: u64) {
        let mut state = self.write();
        state.keep_at = Some(state.points + count.max(1));
        state.keep_every = every;
        state.kept.clear();
    }

    /// Keeps nothing more.
    pub(super) fn keep_none(&self) {
        self.write().keep_at = None;
    }

    /// What was kept since the last time.
    pub(super) fn take_kept(&self) -> Vec<Snapshot> {
        let mut state = self.write();
        std::mem::take(&mut state.kept)
    }

    pub(super) fn take_complaint(&self) -> Option<String> {
        self.write().complaint.take()
    }
}
