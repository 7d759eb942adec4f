//! The target, as the control plane holds it.

use super::ana::AnaState;
use super::auth::ChapOffer;
use super::controller::{ControllerInfo, QpairInfo};
use super::listener::Listener;
use super::namespace::{NamespaceConfig, RemovedNamespace};
use super::referrals::Referral;
use super::stats::{ReactorCounters, ReactorFigures};
use super::subsystem::{RemovedSubsystem, Subsystem, SubsystemConfig, SubsystemInfo};
use super::{HostEvent, NvmfError, TransportOptions};
use crate::bdev::HostKeys;
use crate::bdev::calculator::Calculator;
use crate::target::stream::wake_all;
use crate::wire::nvme::DISCOVERY_NQN;
use reactors::{ReactorHandle, ReactorId};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Debug)]
struct Table {
    transport: RwLock<Option<TransportOptions>>,
    /// The first is the discovery subsystem.
    subsystems: RwLock<Vec<Arc<Subsystem>>>,
    referrals: RwLock<Vec<Referral>>,
    listeners: RwLock<Vec<Listener>>,
    /// Those that nobody wants any more, until they are gone.
    closing: RwLock<Vec<Listener>>,
    /// Where qpairs may be.
    reactors: Vec<ReactorHandle>,
    counters: Vec<Arc<ReactorCounters>>,
    connections: AtomicUsize,
    /// Of the discovery log.
    generation: AtomicU64,
    /// How hosts may prove who they are.
    chap: RwLock<ChapOffer>,
    /// Calculates what that takes; there as soon as a host must.
    calculator: OnceLock<Calculator>,
    /// Who hears of hosts that come and go.
    ear: Option<SyncSender<HostEvent>>,
}

/// The one target: what it offers, and where. Clones share it. Never locked on the data path:
/// connections look into it when they connect.
#[derive(Clone, Debug)]
pub struct NvmfTarget(Arc<Table>);

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl NvmfTarget {
    /// A target without transport, and with the discovery subsystem only. Qpairs will be spread over
    /// `reactors`; the first accepts.
    #[must_use]
    pub fn new(reactors: Vec<ReactorHandle>) -> Self {
        Self::with_ear(reactors, None)
    }

    /// As [`NvmfTarget::new`]; `ear` is told of hosts that come and go, as long as it has room.
    #[must_use]
    pub fn telling(reactors: Vec<ReactorHandle>, ear: SyncSender<HostEvent>) -> Self {
        Self::with_ear(reactors, Some(ear))
    }

    fn with_ear(reactors: Vec<ReactorHandle>, ear: Option<SyncSender<HostEvent>>) -> Self {
        let discovery = SubsystemConfig {
            allow_any_host: true,
            ..SubsystemConfig::new(DISCOVERY_NQN)
        };
        let counters = reactors
            .iter()
            .map(|reactor| Arc::new(ReactorCounters::new(reactor.id())));
        Self(Arc::new(Table {
            transport: RwLock::new(None),
            subsystems: RwLock::new(vec![Arc::new(Subsystem::new(discovery, None))]),
            referrals: RwLock::default(),
            listeners: RwLock::default(),
            closing: RwLock::default(),
            counters: counters.collect(),
            reactors,
            connections: AtomicUsize::new(0),
            generation: AtomicU64::new(1),
            chap: RwLock::default(),
            calculator: OnceLock::new(),
            ear,
        }))
    }

    /// Makes the TCP transport.
    ///
    /// # Errors
    /// [`NvmfError::TransportExists`] or [`NvmfError::OutOfBounds`].
    pub fn create_transport(&self, options: TransportOptions) -> Result<(), NvmfError> {
        options.check()?;
        let mut transport = write(&self.0.transport);
        if transport.is_some() {
            return Err(NvmfError::TransportExists);
        }
        *transport = Some(options);
        Ok(())
    }

    /// The TCP transport's limits, if there is one.
    #[must_use]
    pub fn transport(&self) -> Option<TransportOptions> {
        *read(&self.0.transport)
    }

    /// Takes the TCP transport away.
    ///
    /// # Errors
    /// [`NvmfError::NoTransport`], or [`NvmfError::TransportInUse`] while anybody listens.
    pub fn delete_transport(&self) -> Result<(), NvmfError> {
        let listeners = read(&self.0.listeners);
        if let Some(listener) = listeners.first() {
            return Err(NvmfError::TransportInUse(listener.address));
        }
        let taken = write(&self.0.transport).take();
        taken.map(drop).ok_or(NvmfError::NoTransport)
    }

    /// Offers a subsystem.
    ///
    /// # Errors
    /// [`NvmfError::SubsystemExists`], or what is wrong with `config`.
    pub fn create_subsystem(&self, config: SubsystemConfig) -> Result<(), NvmfError> {
        config.check()?;
        let mut subsystems = write(&self.0.subsystems);
        if subsystems.iter().any(|known| known.nqn() == config.nqn) {
            return Err(NvmfError::SubsystemExists(config.nqn));
        }
        let ear = self.0.ear.clone();
        subsystems.push(Arc::new(Subsystem::new(config, ear)));
        Ok(())
    }

    /// Stops offering a subsystem, and ends its controllers.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::Discovery`].
    pub fn delete_subsystem(&self, nqn: &str) -> Result<RemovedSubsystem, NvmfError> {
        let subsystem = self.find(nqn)?;
        if subsystem.is_discovery {
            return Err(NvmfError::Discovery);
        }
        write(&self.0.subsystems).retain(|known| !Arc::ptr_eq(known, &subsystem));
        let removed = subsystem.remove();
        self.close_unused_listeners();
        self.changed();
        Ok(removed)
    }

    /// Adds a namespace; returns its number.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::Discovery`], [`NvmfError::NamespaceTaken`].
    pub fn add_namespace(&self, nqn: &str, config: NamespaceConfig) -> Result<u32, NvmfError> {
        let subsystem = self.find(nqn)?;
        // Nobody else adds the same device meanwhile.
        let all = write(&self.0.subsystems);
        let mut known = all
            .iter()
            .flat_map(|s| s.namespaces().iter().cloned().collect::<Vec<_>>());
        let known = known.find(|namespace| namespace.is_of(&config.bdev));
        let locks = known.map(|namespace| Arc::clone(&namespace.locks));
        let nsid = subsystem.add_namespace(config, locks.unwrap_or_default())?;
        drop(all);
        wake_all(&self.0.reactors);
        Ok(nsid)
    }

    /// Takes a namespace away; what waits for its device is given up.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::NoNamespace`].
    pub fn remove_namespace(&self, nqn: &str, nsid: u32) -> Result<RemovedNamespace, NvmfError> {
        let removed = self.find(nqn)?.remove_namespace(nsid)?;
        wake_all(&self.0.reactors);
        Ok(removed)
    }

    /// Lets hosts reach the subsystem at `address`; returns where that is, with the real port.
    ///
    /// # Errors
    /// [`NvmfError::NoTransport`], [`NvmfError::NoSubsystem`], [`NvmfError::ListenerExists`],
    /// [`NvmfError::Listen`], [`NvmfError::NoReactor`].
    pub fn add_listener(&self, nqn: &str, address: SocketAddr) -> Result<SocketAddr, NvmfError> {
        self.transport().ok_or(NvmfError::NoTransport)?;
        let subsystem = self.find(nqn)?;
        let mut listeners = write(&self.0.listeners);
        if subsystem.listens_on(address) {
            return Err(NvmfError::ListenerExists(address));
        }
        let address = match listeners.iter().any(|known| known.address == address) {
            true => address,
            false => {
                let listener = Listener::start(address, self.clone(), self.0.reactors.clone())?;
                let address = listener.address;
                listeners.push(listener);
                address
            }
        };
        subsystem.add_listener(address)?;
        drop(listeners);
        self.changed();
        Ok(address)
    }

    /// Stops that; controllers that came in there are ended.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::NoListener`].
    pub fn remove_listener(&self, nqn: &str, address: SocketAddr) -> Result<(), NvmfError> {
        self.find(nqn)?.remove_listener(address)?;
        self.close_unused_listeners();
        self.changed();
        Ok(())
    }

    /// Stops listening where no subsystem wants it.
    fn close_unused_listeners(&self) {
        let mut listeners = write(&self.0.listeners);
        let subsystems = self.all();
        let (used, unused): (Vec<_>, Vec<_>) = std::mem::take(&mut *listeners)
            .into_iter()
            .partition(|listener| subsystems.iter().any(|s| s.listens_on(listener.address)));
        *listeners = used;
        let mut closing = write(&self.0.closing);
        for listener in unused {
            listener.stop();
            closing.push(listener);
        }
    }

    /// Whether listeners that were removed, and those who came in there, have not gone yet.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        let mut closing = write(&self.0.closing);
        closing.retain(|listener| !listener.is_stopped());
        !closing.is_empty()
    }

    /// Says how good the way through `address` is to the namespaces of `group`, or to all.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::NoAna`], [`NvmfError::NoListener`],
    /// [`NvmfError::BadAnaGroup`].
    pub fn set_ana_state(
        &self,
        nqn: &str,
        address: SocketAddr,
        group: Option<u32>,
        state: AnaState,
    ) -> Result<(), NvmfError> {
        self.find(nqn)?.set_ana_state(address, group, state)?;
        wake_all(&self.0.reactors);
        Ok(())
    }

    /// Moves a namespace to another ANA group.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::NoAna`], [`NvmfError::NoNamespace`],
    /// [`NvmfError::BadAnaGroup`].
    pub fn set_ana_group(&self, nqn: &str, nsid: u32, group: u32) -> Result<(), NvmfError> {
        self.find(nqn)?.set_ana_group(nsid, group)?;
        wake_all(&self.0.reactors);
        Ok(())
    }

    /// Each listener of a subsystem, with the state of each ANA group from 1 on.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`].
    pub fn ana_states(&self, nqn: &str) -> Result<Vec<(SocketAddr, Vec<AnaState>)>, NvmfError> {
        Ok(self.find(nqn)?.ana_states())
    }

    /// Lets a host in; with `keys` only if it proves to have its key.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::BadNqn`], [`NvmfError::HostExists`],
    /// [`NvmfError::NoCalculator`].
    pub fn add_host(&self, nqn: &str, host: &str, keys: Option<HostKeys>) -> Result<(), NvmfError> {
        let subsystem = self.find(nqn)?;
        self.prepare_for(keys.as_ref())?;
        subsystem.add_host(host, keys)?;
        self.changed();
        Ok(())
    }

    /// Says what a host must prove that connects from now on; those that are there stay.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::NoHost`], [`NvmfError::NoCalculator`].
    pub fn set_keys(&self, nqn: &str, host: &str, keys: Option<HostKeys>) -> Result<(), NvmfError> {
        let subsystem = self.find(nqn)?;
        self.prepare_for(keys.as_ref())?;
        subsystem.set_keys(host, keys)
    }

    /// Starts what calculates for hosts that must prove who they are.
    fn prepare_for(&self, keys: Option<&HostKeys>) -> Result<(), NvmfError> {
        if keys.is_some() && self.0.calculator.get().is_none() {
            let calculator = Calculator::start().map_err(NvmfError::NoCalculator)?;
            // Another that was faster will do.
            let _ = self.0.calculator.set(calculator);
        }
        Ok(())
    }

    /// How hosts may prove who they are.
    #[must_use]
    pub fn chap_offer(&self) -> ChapOffer {
        read(&self.0.chap).clone()
    }

    /// Says how hosts that connect from now on may prove who they are.
    pub fn set_chap_offer(&self, offer: ChapOffer) {
        *write(&self.0.chap) = offer;
    }

    /// Lets a host in no more, and ends its controllers.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`], [`NvmfError::NoHost`].
    pub fn remove_host(&self, nqn: &str, host: &str) -> Result<(), NvmfError> {
        self.find(nqn)?.remove_host(host)?;
        self.changed();
        Ok(())
    }

    /// Lets any host in, or only those of the list.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`].
    pub fn allow_any_host(&self, nqn: &str, any: bool) -> Result<(), NvmfError> {
        self.find(nqn)?.allow_any_host(any);
        self.changed();
        Ok(())
    }

    /// All subsystems, the discovery subsystem first.
    #[must_use]
    pub fn subsystems(&self) -> Vec<SubsystemInfo> {
        read(&self.0.subsystems).iter().map(|s| s.info()).collect()
    }

    /// The controllers of a subsystem.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`].
    pub fn controllers(&self, nqn: &str) -> Result<Vec<ControllerInfo>, NvmfError> {
        Ok(self.find(nqn)?.controllers())
    }

    /// The qpairs of a subsystem.
    ///
    /// # Errors
    /// [`NvmfError::NoSubsystem`].
    pub fn qpairs(&self, nqn: &str) -> Result<Vec<QpairInfo>, NvmfError> {
        Ok(self.find(nqn)?.qpairs())
    }

    /// What each reactor has done.
    #[must_use]
    pub fn figures(&self) -> Vec<ReactorFigures> {
        self.0.counters.iter().map(|c| c.figures()).collect()
    }

    /// Stops listening and ends all connections. Returns at once.
    pub fn stop(&self) {
        for listener in read(&self.0.listeners).iter() {
            listener.stop();
        }
    }

    /// Whether, after [`NvmfTarget::stop`], nothing of it is left on any reactor.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        read(&self.0.listeners).iter().all(Listener::is_stopped)
            && !self.is_closing()
            && self.0.connections.load(Ordering::Acquire) == 0
    }

    // For connections.

    pub(super) fn find(&self, nqn: &str) -> Result<Arc<Subsystem>, NvmfError> {
        let subsystems = read(&self.0.subsystems);
        let found = subsystems.iter().find(|known| known.nqn() == nqn);
        let missing = || NvmfError::NoSubsystem(nqn.to_owned());
        found.cloned().ok_or_else(missing)
    }

    /// All subsystems, the discovery subsystem first.
    pub(super) fn all(&self) -> Vec<Arc<Subsystem>> {
        read(&self.0.subsystems).clone()
    }

    pub(super) fn calculator(&self) -> Option<&Calculator> {
        self.0.calculator.get()
    }

    pub(super) fn reactors(&self) -> &[ReactorHandle] {
        &self.0.reactors
    }

    pub(super) fn counters(&self, reactor: ReactorId) -> Arc<ReactorCounters> {
        let found = self.0.counters.iter().find(|c| c.reactor == reactor);
        match found {
            Some(counters) => Arc::clone(counters),
            None => Arc::new(ReactorCounters::new(reactor)),
        }
    }

    pub(super) fn connections(&self) -> &AtomicUsize {
        &self.0.connections
    }

    /// Of the discovery log: rises with whatever changes it.
    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Where else hosts are sent.
    #[must_use]
    pub fn referrals(&self) -> Vec<Referral> {
        read(&self.0.referrals).clone()
    }

    pub(super) fn change_referrals(
        &self,
        change: impl FnOnce(&mut Vec<Referral>) -> Result<(), NvmfError>,
    ) -> Result<(), NvmfError> {
        change(&mut write(&self.0.referrals))?;
        self.changed();
        Ok(())
    }

    fn changed(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        wake_all(&self.0.reactors);
    }
}
