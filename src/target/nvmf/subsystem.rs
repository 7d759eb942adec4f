//! A subsystem: namespaces, who may see them, and where.

use super::NvmfError;
use super::access::{Access, HostInfo};
use super::ana::{AnaState, AnaTable};
use super::controller::{Controller, ControllerInfo, QpairInfo};
use super::namespace::{Namespace, NamespaceConfig, NamespaceInfo, RemovedNamespace};
use super::range_lock::RangeLocks;
use crate::bdev::HostKeys;
use crate::bdev::calculator::random_bytes;
use crate::wire::nvme::{AnaGroup, DISCOVERY_NQN, check_nqn};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The highest possible controller identifier.
const CNTLID_MAX: u16 = 0xffef;
/// The highest possible `max_namespaces`.
const NAMESPACES_MAX: u32 = 1024;

/// What a subsystem is (`nvmf_create_subsystem`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: String,
    /// 1 to 20 printable ASCII characters.
    pub serial: String,
    /// 1 to 40 printable ASCII characters.
    pub model: String,
    /// The highest namespace number: 1 to 1024.
    pub namespaces_max: u32,
    /// Whether any host may connect.
    pub allow_any_host: bool,
    /// Whether hosts are told how good their way to each namespace is.
    pub ana_reporting: bool,
    /// The lowest controller identifier: 1 to 65519.
    pub cntlid_min: u16,
    /// The highest one.
    pub cntlid_max: u16,
}

impl SubsystemConfig {
    /// A subsystem of this name, with defaults.
    #[must_use]
    pub fn new(nqn: impl Into<String>) -> Self {
        Self {
            nqn: nqn.into(),
            serial: "00000000000000000000".to_owned(),
            model: "pmcache controller".to_owned(),
            namespaces_max: 32,
            allow_any_host: false,
            ana_reporting: false,
            cntlid_min: 1,
            cntlid_max: CNTLID_MAX,
        }
    }

    /// Checks names and bounds.
    ///
    /// # Errors
    /// [`NvmfError::BadNqn`], [`NvmfError::BadText`] or [`NvmfError::OutOfBounds`].
    pub(super) fn check(&self) -> Result<(), NvmfError> {
        check_nqn(&self.nqn).map_err(|source| NvmfError::BadNqn {
            nqn: self.nqn.clone(),
            source,
        })?;
        for (what, text, max) in [
            ("serial number", &self.serial, 20),
            ("model number", &self.model, 40),
        ] {
            let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if text.is_empty() || text.len() > max || !printable {
                let value = text.clone();
                return Err(NvmfError::BadText { what, value, max });
            }
        }
        let bounds = [
            ("max_namespaces", self.namespaces_max, 1, NAMESPACES_MAX),
            ("min_cntlid", self.cntlid_min.into(), 1, CNTLID_MAX.into()),
            (
                "max_cntlid",
                self.cntlid_max.into(),
                self.cntlid_min.into(),
                CNTLID_MAX.into(),
            ),
        ];
        for (what, value, min, max) in bounds {
            if !(min..=max).contains(&value) {
                let [value, min, max] = [value, min, max].map(u64::from);
                return Err(NvmfError::OutOfBounds {
                    what,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

/// A subsystem, for people.
#[derive(Clone, Debug)]
pub struct SubsystemInfo {
    /// What it is; `allow_any_host` as it is now.
    pub config: SubsystemConfig,
    /// It lists the others, and has no namespaces.
    pub is_discovery: bool,
    /// Hosts in its list.
    pub hosts: Vec<HostInfo>,
    /// Where it listens.
    pub listeners: Vec<SocketAddr>,
    /// Its namespaces, by number.
    pub namespaces: Vec<NamespaceInfo>,
}

impl SubsystemInfo {
    /// Whether a host is in its list.
    #[must_use]
    pub fn invites(&self, host: &str) -> bool {
        self.hosts.iter().any(|known| known.nqn == host)
    }
}

/// A host has come to a subsystem, or has left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEvent {
    /// It has come.
    pub connected: bool,
    /// The subsystem.
    pub subnqn: String,
    /// The host.
    pub hostnqn: String,
}

/// The namespaces at one time, by number.
pub(super) type NamespaceTable = Vec<Arc<Namespace>>;

/// One subsystem. Its locks are held for moments only, by control threads and by connections that come
/// or go; qpairs keep a table of the namespaces, and look for a newer one when its version has changed.
#[derive(Debug)]
pub(super) struct Subsystem {
    pub(super) config: SubsystemConfig,
    pub(super) is_discovery: bool,
    access: RwLock<Access>,
    listeners: RwLock<Vec<SocketAddr>>,
    namespaces: RwLock<Arc<NamespaceTable>>,
    version: AtomicU64,
    ana: RwLock<AnaTable>,
    ana_changes: AtomicU64,
    controllers: RwLock<Vec<Arc<Controller>>>,
    removed: AtomicBool,
    /// Of the last challenge to a host.
    auth_sequence: AtomicU32,
    /// Who hears of hosts that come and go.
    ear: Option<SyncSender<HostEvent>>,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Subsystem {
    pub(super) fn new(config: SubsystemConfig, ear: Option<SyncSender<HostEvent>>) -> Self {
        let access = Access::new(config.allow_any_host);
        Self {
            is_discovery: config.nqn == DISCOVERY_NQN,
            config,
            access: RwLock::new(access),
            listeners: RwLock::default(),
            namespaces: RwLock::default(),
            version: AtomicU64::new(0),
            ana: RwLock::default(),
            ana_changes: AtomicU64::new(1),
            controllers: RwLock::default(),
            removed: AtomicBool::new(false),
            // Begins anywhere; the challenges are what must not be guessed.
            auth_sequence: AtomicU32::new(
                random_bytes().map_or(0, |bytes| u32::from_le_bytes(*bytes)),
            ),
            ear,
        }
    }

    /// Tells whoever wants to hear that a host has come or gone. One who has no room is not waited for.
    fn tell(&self, connected: bool, controller: &Controller) {
        if let Some(ear) = &self.ear {
            let event = HostEvent {
                connected,
                subnqn: self.config.nqn.clone(),
                hostnqn: controller.host.nqn.clone(),
            };
            if ear.try_send(event).is_err() {
                tracing::debug!(host = controller.host.nqn, "nvmf: nobody hears of a host");
            }
        }
    }

    pub(super) fn nqn(&self) -> &str {
        &self.config.nqn
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    // Who may connect.

    pub(super) fn admits(&self, host: &str) -> bool {
        read(&self.access).admits(host)
    }

    /// What a host must prove; nothing if it need not.
    pub(super) fn keys_of(&self, host: &str) -> Option<HostKeys> {
        read(&self.access).keys_of(host)
    }

    /// Says what a host must prove that connects from now on.
    pub(super) fn set_keys(&self, host: &str, keys: Option<HostKeys>) -> Result<(), NvmfError> {
        write(&self.access).set_keys(host, keys)
    }

    /// The number of a new challenge; not 0.
    pub(super) fn next_auth_sequence(&self) -> u32 {
        let next = || self.auth_sequence.fetch_add(1, Ordering::Relaxed);
        match next() {
            0 => next(),
            sequence => sequence,
        }
    }

    pub(super) fn allow_any_host(&self, any: bool) {
        write(&self.access).any = any;
        self.drop_hosts_not_admitted();
    }

    pub(super) fn add_host(&self, host: &str, keys: Option<HostKeys>) -> Result<(), NvmfError> {
        write(&self.access).add(host, keys)
    }

    pub(super) fn remove_host(&self, host: &str) -> Result<(), NvmfError> {
        write(&self.access).remove(host)?;
        self.drop_hosts_not_admitted();
        Ok(())
    }

    /// Ends the controllers of hosts that may not be here any more.
    fn drop_hosts_not_admitted(&self) {
        for controller in read(&self.controllers).iter() {
            if !self.admits(&controller.host.nqn) {
                controller.end();
            }
        }
    }

    // Where it listens.

    pub(super) fn listens_on(&self, address: SocketAddr) -> bool {
        read(&self.listeners).contains(&address)
    }

    pub(super) fn listeners(&self) -> Vec<SocketAddr> {
        read(&self.listeners).clone()
    }

    pub(super) fn add_listener(&self, address: SocketAddr) -> Result<(), NvmfError> {
        let mut listeners = write(&self.listeners);
        if listeners.contains(&address) {
            return Err(NvmfError::ListenerExists(address));
        }
        listeners.push(address);
        Ok(())
    }

    /// Stops listening there; its controllers that came that way are ended.
    pub(super) fn remove_listener(&self, address: SocketAddr) -> Result<(), NvmfError> {
        let mut listeners = write(&self.listeners);
        let before = listeners.len();
        listeners.retain(|known| *known != address);
        if listeners.len() == before {
            return Err(NvmfError::NoListener(address));
        }
        drop(listeners);
        write(&self.ana).forget(address);
        for controller in read(&self.controllers).iter() {
            if controller.listener == address {
                controller.end();
            }
        }
        Ok(())
    }

    // Namespaces.

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn namespaces(&self) -> Arc<NamespaceTable> {
        Arc::clone(&read(&self.namespaces))
    }

    fn set_namespaces(&self, now: &mut Arc<NamespaceTable>, table: NamespaceTable) {
        *now = Arc::new(table);
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn add_namespace(
        &self,
        config: NamespaceConfig,
        locks: Arc<RangeLocks>,
    ) -> Result<u32, NvmfError> {
        if self.is_discovery {
            return Err(NvmfError::Discovery);
        }
        let mut now = write(&self.namespaces);
        let is_free = |nsid: &u32| now.iter().all(|namespace| namespace.nsid != *nsid);
        let max = self.config.namespaces_max;
        let chosen = match config.nsid {
            None | Some(0) => (1..=max).find(is_free),
            Some(nsid) => Some(nsid).filter(is_free).filter(|nsid| *nsid <= max),
        };
        let nsid = chosen.ok_or_else(|| NvmfError::NamespaceTaken {
            nqn: self.config.nqn.clone(),
            nsid: config.nsid.unwrap_or(0),
            max,
        })?;
        if let Some(group) = config.ana_group {
            self.check_ana_group(group)?;
        }
        let mut table = (**now).clone();
        table.push(Arc::new(Namespace::new(nsid, config, locks)));
        table.sort_by_key(|namespace| namespace.nsid);
        self.set_namespaces(&mut now, table);
        Ok(nsid)
    }

    pub(super) fn remove_namespace(&self, nsid: u32) -> Result<RemovedNamespace, NvmfError> {
        let mut now = write(&self.namespaces);
        let found = now.iter().find(|namespace| namespace.nsid == nsid);
        let namespace = found.cloned().ok_or_else(|| NvmfError::NoNamespace {
            nqn: self.config.nqn.clone(),
            nsid,
        })?;
        let table = now.iter().filter(|other| other.nsid != nsid);
        let table = table.cloned().collect();
        namespace.set_removed();
        self.set_namespaces(&mut now, table);
        Ok(RemovedNamespace(namespace))
    }

    // Ways to namespaces.

    fn check_ana_group(&self, group: u32) -> Result<(), NvmfError> {
        let max = self.config.namespaces_max;
        match (1..=max).contains(&group) {
            true => Ok(()),
            false => Err(NvmfError::BadAnaGroup(group, max)),
        }
    }

    fn needs_ana(&self) -> Result<(), NvmfError> {
        match self.config.ana_reporting {
            true => Ok(()),
            false => Err(NvmfError::NoAna(self.config.nqn.clone())),
        }
    }

    /// The ways have changed: qpairs and admin qpairs shall look.
    fn ana_changed(&self) {
        self.ana_changes.fetch_add(1, Ordering::Release);
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn ana_changes(&self) -> u64 {
        self.ana_changes.load(Ordering::Acquire)
    }

    /// Says how good the way through `listener` is to group `group`, or to all.
    pub(super) fn set_ana_state(
        &self,
        listener: SocketAddr,
        group: Option<u32>,
        state: AnaState,
    ) -> Result<(), NvmfError> {
        self.needs_ana()?;
        if !self.listens_on(listener) {
            return Err(NvmfError::NoListener(listener));
        }
        let groups = match group {
            Some(group) => {
                self.check_ana_group(group)?;
                group..=group
            }
            None => 1..=self.config.namespaces_max,
        };
        write(&self.ana).set(listener, groups, state);
        self.ana_changed();
        Ok(())
    }

    /// Moves a namespace to another group.
    pub(super) fn set_ana_group(&self, nsid: u32, group: u32) -> Result<(), NvmfError> {
        self.needs_ana()?;
        self.check_ana_group(group)?;
        let table = self.namespaces();
        let found = table.iter().find(|namespace| namespace.nsid == nsid);
        let namespace = found.ok_or_else(|| NvmfError::NoNamespace {
            nqn: self.config.nqn.clone(),
            nsid,
        })?;
        namespace.set_ana_group(group);
        self.ana_changed();
        Ok(())
    }

    /// The state of each possible group through each listener.
    pub(super) fn ana_states(&self) -> Vec<(SocketAddr, Vec<AnaState>)> {
        let ana = read(&self.ana);
        let of = |listener| {
            let groups = 1..=self.config.namespaces_max;
            groups.map(|group| ana.state(listener, group)).collect()
        };
        let listeners = self.listeners().into_iter();
        listeners.map(|listener| (listener, of(listener))).collect()
    }

    /// Namespaces that can't be reached through `listener` now.
    pub(super) fn inaccessible(&self, listener: SocketAddr) -> Vec<u32> {
        let (ana, table) = (read(&self.ana), self.namespaces());
        let is_out =
            |n: &&Arc<Namespace>| ana.state(listener, n.ana_group()) == AnaState::Inaccessible;
        table.iter().filter(is_out).map(|n| n.nsid).collect()
    }

    /// The groups that have namespaces, as a host sees them that came in at `listener`; and how often
    /// they have changed.
    pub(super) fn ana_groups(&self, listener: SocketAddr) -> (u64, Vec<AnaGroup>) {
        // Before the look: a change meanwhile is told of once more.
        let changes = self.ana_changes();
        let (ana, table) = (read(&self.ana), self.namespaces());
        let mut groups = BTreeMap::<u32, Vec<u32>>::new();
        for namespace in table.iter() {
            let group = groups.entry(namespace.ana_group()).or_default();
            group.push(namespace.nsid);
        }
        let groups = groups.into_iter().map(|(id, nsids)| AnaGroup {
            id,
            state: ana.state(listener, id).code(),
            nsids,
        });
        (changes, groups.collect())
    }

    // Controllers.

    /// Makes a controller; nothing if no identifier is free, or the subsystem is going away.
    pub(super) fn new_controller(
        &self,
        make: impl FnOnce(u16) -> Controller,
    ) -> Option<Arc<Controller>> {
        let mut controllers = write(&self.controllers);
        if self.is_removed() {
            return None;
        }
        let ids = self.config.cntlid_min..=self.config.cntlid_max;
        // Behind the newest: one that a host has just lost is not given to another at once.
        let newest = controllers.last().map_or(0, |controller| controller.cntlid);
        let is_free = |id: &u16| controllers.iter().all(|other| other.cntlid != *id);
        let behind = ids.clone().filter(|id| *id > newest).find(is_free);
        let id = behind.or_else(|| ids.clone().find(is_free))?;
        let controller = Arc::new(make(id));
        controllers.push(Arc::clone(&controller));
        Some(controller)
    }

    pub(super) fn controller(&self, cntlid: u16) -> Option<Arc<Controller>> {
        let controllers = read(&self.controllers);
        let found = controllers.iter().find(|known| known.cntlid == cntlid);
        found.cloned()
    }

    /// The controller's host is who it says it is, as far as it must be: tells of it, once.
    pub(super) fn welcome(&self, controller: &Controller) {
        if !controller.welcomed.swap(true, Ordering::Relaxed) {
            self.tell(true, controller);
        }
    }

    /// Forgets a controller that has ended.
    pub(super) fn forget(&self, controller: &Arc<Controller>) {
        write(&self.controllers).retain(|known| !Arc::ptr_eq(known, controller));
        if controller.welcomed.load(Ordering::Relaxed) {
            self.tell(false, controller);
        }
    }

    pub(super) fn controllers(&self) -> Vec<ControllerInfo> {
        read(&self.controllers).iter().map(|c| c.info()).collect()
    }

    pub(super) fn qpairs(&self) -> Vec<QpairInfo> {
        let controllers = read(&self.controllers);
        controllers.iter().flat_map(|c| c.qpair_infos()).collect()
    }

    pub(super) fn info(&self) -> SubsystemInfo {
        let access = read(&self.access).clone();
        SubsystemInfo {
            config: SubsystemConfig {
                allow_any_host: access.any,
                ..self.config.clone()
            },
            is_discovery: self.is_discovery,
            hosts: access.infos(),
            listeners: self.listeners(),
            namespaces: self.namespaces().iter().map(|n| n.info()).collect(),
        }
    }

    /// Ends all: no host comes in any more, and controllers go. The listeners are forgotten.
    pub(super) fn remove(self: &Arc<Self>) -> RemovedSubsystem {
        self.removed.store(true, Ordering::SeqCst);
        write(&self.listeners).clear();
        let mut now = write(&self.namespaces);
        let removed = std::mem::take(&mut *now);
        self.set_namespaces(&mut now, NamespaceTable::new());
        drop(now);
        for namespace in removed.iter() {
            namespace.set_removed();
        }
        for controller in read(&self.controllers).iter() {
            controller.end();
        }
        let namespaces = removed.iter().cloned().map(RemovedNamespace).collect();
        RemovedSubsystem { namespaces }
    }
}

/// A subsystem that is no longer offered.
#[derive(Debug)]
pub struct RemovedSubsystem {
    /// What it offered.
    pub namespaces: Vec<RemovedNamespace>,
}
