//! The bdevs of the service by name, and who uses them.
//!
//! A bdev has either one owner (a pool, a cache, another bdev: it alone writes there) or any number
//! of users (exports), never both; with either it can't be deleted.

use super::config::Recipe;
use super::notices::{Happening, Notices};
use super::shared::Shared;
use crate::bdev::pmem::PmemBdev;
use crate::bdev::{
    Bdev, BdevError, DelayBdev, ErrorBdev, MeteredBdev, NullBdev, NvmeBdev, UringBdev,
};
use crate::cache::Cache;
use rpc::Error;
use rustix::io::Errno;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Which method made a bdev, and what only that kind can do.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// `bdev_malloc_create`
    Malloc,
    /// `bdev_null_create`
    Null(Arc<NullBdev>),
    /// `bdev_uring_create`
    Uring(Arc<UringBdev>),
    /// `bdev_aio_create`
    Aio(Arc<UringBdev>),
    /// `bdev_nvme_attach_controller`
    Nvme(Arc<NvmeBdev>),
    /// `bdev_delay_create`
    Delay(Arc<DelayBdev>),
    /// `bdev_error_create`
    Error(Arc<ErrorBdev>),
    /// `bdev_passthru_create`
    Passthru,
    /// `bdev_virtio_attach_controller`
    Virtio,
    /// `bdev_pmem_create`
    Pmem(Arc<PmemBdev>),
    /// `bdev_pmcache_load`
    Cache(Arc<Cache>),
}

/// One bdev.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Itself, as all open it: behind its meter.
    pub(super) bdev: Arc<dyn Bdev>,
    /// The meter.
    pub(super) meter: Arc<MeteredBdev>,
    /// Its kind.
    pub(super) kind: Kind,
    /// What `bdev_get_bdevs` tells as `driver_specific`, as far as it never changes.
    pub(super) driver_specific: Value,
    /// The call that makes it again.
    pub(super) recipe: Recipe,
    /// The bdev below that it owns.
    pub(super) base: Option<String>,
    /// Who alone may write to it, for people: "pool 'p0'".
    pub(super) owner: Option<String>,
    /// Who else uses it: "nbd export 'e'".
    pub(super) users: Vec<String>,
}

impl Entry {
    fn refuse_if_used(&self, name: &str) -> Result<(), Error> {
        match self.owner.as_ref().or(self.users.first()) {
            None => Ok(()),
            Some(by) => Err(Error::errno_with(
                Errno::BUSY.raw_os_error(),
                format!("Device or resource busy: bdev '{name}' is in use by {by}"),
            )),
        }
    }
}

#[derive(Debug)]
enum Slot {
    /// Its creator is at it; the name is taken.
    Coming,
    Ready(Box<Entry>),
}

/// The table.
#[derive(Debug)]
pub(super) struct Bdevs {
    slots: Shared<BTreeMap<String, Slot>>,
    /// How many reactors there are that may open a bdev.
    reactors: usize,
    /// Who is told of each that comes or goes.
    notices: Arc<Notices>,
}

/// A name that its holder alone may fill; dropped unfilled, it is free again.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    bdevs: &'a Bdevs,
    name: String,
    filled: bool,
}

impl Reservation<'_> {
    /// Which name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Puts the bdev there for all to see.
    pub(super) fn fill(
        mut self,
        kind: Kind,
        bdev: Arc<dyn Bdev>,
        driver_specific: Value,
        base: Option<String>,
        recipe: Recipe,
    ) -> String {
        let meter = Arc::new(MeteredBdev::new(bdev, self.bdevs.reactors));
        let entry = Entry {
            bdev: meter.clone(),
            meter,
            kind,
            driver_specific,
            recipe,
            base,
            owner: None,
            users: Vec::new(),
        };
        self.filled = true;
        let name = std::mem::take(&mut self.name);
        self.bdevs.slots.with(|slots| {
            slots.insert(name.clone(), Slot::Ready(Box::new(entry)));
            // Under the lock: nobody is told of its end first.
            self.bdevs.notices.note(Happening::BdevRegister, &name);
        });
        name
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.bdevs.slots.with(|slots| slots.remove(&self.name));
        }
    }
}

/// "No such device", with the code that scripts match.
pub(super) fn no_such_device() -> Error {
    Error::errno(Errno::NODEV.raw_os_error())
}

/// What a bdev said while it was made or opened, as RPC clients see it.
pub(super) fn bdev_error(error: &BdevError) -> Error {
    let errno = match error {
        BdevError::Os { source, .. } => source.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        BdevError::Nbd { source, .. } => source.errno().raw_os_error(),
        BdevError::Nvme { source, .. } => source.errno().raw_os_error(),
        BdevError::Vhost { source, .. } => source.errno().raw_os_error(),
        BdevError::Invalid(_) => Errno::INVAL.raw_os_error(),
        BdevError::Busy(_) => Errno::BUSY.raw_os_error(),
        BdevError::NotSupported(_) => Errno::OPNOTSUPP.raw_os_error(),
    };
    let strerror = Error::errno(errno).message;
    Error::errno_with(errno, format!("{strerror}: {error}"))
}

impl Bdevs {
    /// An empty table, for channels on so many reactors; it tells `notices` of each bdev that comes or
    /// goes.
    pub(super) fn new(reactors: usize, notices: Arc<Notices>) -> Self {
        Self {
            slots: Shared::default(),
            reactors,
            notices,
        }
    }

    /// Takes `name` for a bdev to come.
    ///
    /// # Errors
    /// −17 if it is taken.
    pub(super) fn reserve(&self, name: &str) -> Result<Reservation<'_>, Error> {
        self.slots.with(|slots| {
            if slots.contains_key(name) {
                return Err(Error::errno(Errno::EXIST.raw_os_error()));
            }
            slots.insert(name.to_owned(), Slot::Coming);
            Ok(Reservation {
                bdevs: self,
                name: name.to_owned(),
                filled: false,
            })
        })
    }

    /// Takes the first free name `<prefix><n>`, n from 0.
    pub(super) fn reserve_numbered(&self, prefix: &str) -> Reservation<'_> {
        self.slots.with(|slots| {
            let mut number = 0_u64;
            let name = loop {
                let name = format!("{prefix}{number}");
                if !slots.contains_key(&name) {
                    break name;
                }
                number += 1;
            };
            slots.insert(name.clone(), Slot::Coming);
            Reservation {
                bdevs: self,
                name,
                filled: false,
            }
        })
    }

    fn with_entry<R>(
        &self,
        name: &str,
        f: impl FnOnce(&mut Entry) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.slots.with(|slots| match slots.get_mut(name) {
            Some(Slot::Ready(entry)) => f(entry),
            _ => Err(no_such_device()),
        })
    }

    /// Notes that a parameter that `name` was made with has been changed.
    pub(super) fn amend(&self, name: &str, key: &str, value: Value) {
        self.slots.with(|slots| {
            if let Some(Slot::Ready(entry)) = slots.get_mut(name) {
                entry.recipe.set(key, value);
            }
        });
    }

    /// A copy of the entry of `name`.
    ///
    /// # Errors
    /// −19.
    pub(super) fn get(&self, name: &str) -> Result<Entry, Error> {
        self.with_entry(name, |entry| Ok(entry.clone()))
    }

    /// As [`Bdevs::get`], but waits for it to appear.
    ///
    /// # Errors
    /// −19 if it doesn't within `timeout`.
    pub(super) fn wait(&self, name: &str, timeout: Duration) -> Result<Entry, Error> {
        let ready = |slots: &BTreeMap<String, Slot>| match slots.get(name) {
            Some(Slot::Ready(entry)) => Some((**entry).clone()),
            _ => None,
        };
        self.slots
            .wait_for(timeout, ready)
            .ok_or_else(no_such_device)
    }

    /// Copies of all entries, by name.
    pub(super) fn list(&self) -> Vec<Entry> {
        self.slots.with(|slots| {
            let ready = slots.values().filter_map(|slot| match slot {
                Slot::Ready(entry) => Some((**entry).clone()),
                Slot::Coming => None,
            });
            ready.collect()
        })
    }

    /// Makes `owner` the only one that may write to the bdev.
    ///
    /// # Errors
    /// −19 if there is none, −16 if somebody uses it.
    pub(super) fn claim(&self, name: &str, owner: String) -> Result<Entry, Error> {
        self.with_entry(name, |entry| {
            entry.refuse_if_used(name)?;
            entry.owner = Some(owner);
            Ok(entry.clone())
        })
    }

    /// Ends [`Bdevs::claim`].
    pub(super) fn release(&self, name: &str) {
        self.slots.with(|slots| {
            if let Some(Slot::Ready(entry)) = slots.get_mut(name) {
                entry.owner = None;
            }
        });
    }

    /// Adds `user` to those who use the bdev.
    ///
    /// # Errors
    /// −19 if there is none, −16 if it has an owner.
    pub(super) fn join(&self, name: &str, user: String) -> Result<Arc<dyn Bdev>, Error> {
        self.with_entry(name, |entry| {
            if entry.owner.is_some() {
                entry.refuse_if_used(name)?;
            }
            entry.users.push(user);
            Ok(Arc::clone(&entry.bdev))
        })
    }

    /// Ends [`Bdevs::join`].
    pub(super) fn leave(&self, name: &str, user: &str) {
        self.slots.with(|slots| {
            if let Some(Slot::Ready(entry)) = slots.get_mut(name)
                && let Some(at) = entry.users.iter().position(|found| found == user)
            {
                entry.users.remove(at);
            }
        });
    }

    /// Removes a bdev that nobody uses, if `is_kind` of it, and releases the one below.
    ///
    /// # Errors
    /// −19 if there is none of this kind, −16 if somebody uses it.
    pub(super) fn remove(&self, name: &str, is_kind: impl Fn(&Kind) -> bool) -> Result<(), Error> {
        let removed = self.slots.with(|slots| match slots.get(name) {
            Some(Slot::Ready(entry)) if is_kind(&entry.kind) => {
                entry.refuse_if_used(name)?;
                Ok(self.take(slots, name))
            }
            _ => Err(no_such_device()),
        })?;
        self.bury(removed);
        Ok(())
    }

    /// The bdevs of the NVMe controller called `name`.
    pub(super) fn nvme(&self, name: &str) -> impl Iterator<Item = Arc<NvmeBdev>> {
        let bdevs = self
            .list()
            .into_iter()
            .filter_map(|entry| match entry.kind {
                Kind::Nvme(bdev) if bdev.controller().config().name == name => Some(bdev),
                _ => None,
            });
        bdevs.collect::<Vec<_>>().into_iter()
    }

    /// Whether a controller is authenticated with the key that the keyring calls `name`.
    pub(super) fn uses_key(&self, name: &str) -> bool {
        self.list().iter().any(|entry| match &entry.kind {
            Kind::Nvme(bdev) => {
                let auth = bdev.controller().config().auth.as_ref();
                auth.is_some_and(|auth| auth.keys.has(name))
            }
            _ => false,
        })
    }

    /// Removes all bdevs of a kind that `is_kind` says, or none. They stand on nothing.
    ///
    /// # Errors
    /// −19 if there is none, −16 if somebody uses one of them.
    pub(super) fn remove_all(&self, is_kind: impl Fn(&Kind) -> bool) -> Result<(), Error> {
        let removed = self.slots.with(|slots| {
            let mut names = Vec::new();
            for (name, slot) in slots.iter() {
                if let Slot::Ready(entry) = slot
                    && is_kind(&entry.kind)
                {
                    entry.refuse_if_used(name)?;
                    names.push(name.clone());
                }
            }
            let removed = names.iter().map(|name| self.take(slots, name));
            Ok(removed.collect::<Vec<_>>())
        })?;
        match removed.is_empty() {
            true => Err(no_such_device()),
            false => {
                drop(removed);
                Ok(())
            }
        }
    }

    /// Removes a bdev that `owner` owns, and releases the one below.
    pub(super) fn remove_owned(&self, name: &str, owner: &str) {
        let removed = self.slots.with(|slots| match slots.get(name) {
            Some(Slot::Ready(entry)) if entry.owner.as_deref() == Some(owner) => {
                self.take(slots, name)
            }
            _ => None,
        });
        self.bury(removed);
    }

    /// Takes a bdev off the table, and tells of it while nobody can put another there.
    fn take(&self, slots: &mut BTreeMap<String, Slot>, name: &str) -> Option<Slot> {
        self.notices.note(Happening::BdevUnregister, name);
        slots.remove(name)
    }

    fn bury(&self, removed: Option<Slot>) {
        if let Some(Slot::Ready(entry)) = removed {
            // Dropped before the base is free: a file it holds is closed by then.
            let base = entry.base.clone();
            drop(entry);
            if let Some(base) = base {
                self.release(&base);
            }
        }
    }

    /// Removes all that nobody uses but caches, those above before those below.
    pub(super) fn remove_idle(&self) {
        let is_idle = |slot: &Slot| match slot {
            Slot::Ready(entry) => {
                let free = entry.owner.is_none() && entry.users.is_empty();
                free && !matches!(entry.kind, Kind::Cache(_))
            }
            Slot::Coming => false,
        };
        loop {
            let taken = self.slots.with(|slots| {
                let mut idle = slots.iter().filter(|(_, slot)| is_idle(slot));
                let name = idle.next().map(|(name, _)| name.clone());
                name.and_then(|name| self.take(slots, &name))
            });
            if taken.is_none() {
                return;
            }
            self.bury(taken);
        }
    }

    /// Removes all, those above before those below.
    pub(super) fn clear(&self) {
        loop {
            let taken = self.slots.with(|slots| {
                let bases: Vec<String> = slots
                    .values()
                    .filter_map(|slot| match slot {
                        Slot::Ready(entry) => entry.base.clone(),
                        Slot::Coming => None,
                    })
                    .collect();
                let top = slots.keys().find(|name| !bases.contains(name)).cloned();
                top.and_then(|name| self.take(slots, &name))
            });
            if taken.is_none() {
                return;
            }
        }
    }
}
