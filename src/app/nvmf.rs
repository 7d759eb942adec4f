//! The NVMe-oF side of the service: what its one target offers, and which bdevs it uses for that.

use super::bdevs::Bdevs;
use super::notices::{Happening, Notices};
use super::shared::{Shared, poll_until};
use crate::bdev::{Bdev, HostKeys};
use crate::target::nvmf::{
    AnaState, ChapOffer, ControllerInfo, HostEvent, NamespaceConfig, NvmfError, NvmfTarget,
    QpairInfo, ReactorFigures, Referral, RemovedNamespace, SubsystemConfig, SubsystemInfo,
    TransportOptions,
};
use reactors::ReactorHandle;
use rpc::Error;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

/// How long hosts and devices may take to let go before the caller gets its answer.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Hosts that may come and go between two looks; of more than that nobody hears.
const EVENTS_MAX: usize = 1024;
/// As many subsystems as SPDK allows, unless told otherwise.
pub(super) const SUBSYSTEMS_MAX: u32 = 1024;

/// The target, and what was said of it.
#[derive(Debug)]
pub(super) struct Nvmf {
    target: NvmfTarget,
    /// Changes of the target are made under its lock: each sees what the one before has made.
    settings: Shared<Settings>,
    events: Shared<Receiver<HostEvent>>,
}

#[derive(Debug, Default)]
struct Settings {
    subsystems_max: Option<u32>,
    /// What administrators call subsystems.
    labels: BTreeMap<String, String>,
}

/// What the target refused, as RPC clients see it.
fn nvmf_error(error: &NvmfError) -> Error {
    match error {
        NvmfError::TransportExists | NvmfError::NoReactor => {
            Error::new(Error::INTERNAL_ERROR, error.to_string())
        }
        NvmfError::TransportInUse(_) => {
            let errno = Errno::BUSY.raw_os_error();
            let strerror = Error::errno(errno).message;
            Error::errno_with(errno, format!("{strerror}: {error}"))
        }
        NvmfError::NoSubsystem(_) => Error::invalid_params(error.to_string()),
        _ => Error::invalid_params(format!("Invalid parameters: {error}")),
    }
}

fn user_of(nqn: &str) -> String {
    format!("nvmf subsystem '{nqn}'")
}

/// A namespace that is going, and who says that it uses its bdev.
#[derive(Debug)]
struct Leaving {
    namespace: RemovedNamespace,
    user: String,
}

impl Leaving {
    fn of(nqn: &str, removed: Vec<RemovedNamespace>) -> impl Iterator<Item = Self> {
        let user = user_of(nqn);
        removed.into_iter().map(move |namespace| Self {
            namespace,
            user: user.clone(),
        })
    }

    fn leave(&self, bdevs: &Bdevs) {
        bdevs.leave(&self.namespace.bdev_name(), &self.user);
    }
}

impl Nvmf {
    /// A target that offers nothing yet; its qpairs will be spread over `reactors`.
    pub(super) fn new(reactors: Vec<ReactorHandle>) -> Self {
        let (ear, events) = sync_channel(EVENTS_MAX);
        Self {
            target: NvmfTarget::telling(reactors, ear),
            settings: Shared::default(),
            events: Shared::new(events),
        }
    }

    /// Makes the TCP transport.
    ///
    /// # Errors
    /// −32603 if there is one, −32602 for what is out of bounds.
    pub(super) fn create_transport(&self, options: TransportOptions) -> Result<(), Error> {
        let made = self
            .settings
            .with(|_| self.target.create_transport(options));
        made.map_err(|error| nvmf_error(&error))
    }

    /// Takes it away.
    ///
    /// # Errors
    /// −32602 if there is none, −16 while a subsystem listens.
    pub(super) fn delete_transport(&self) -> Result<(), Error> {
        let taken = self.settings.with(|_| self.target.delete_transport());
        taken.map_err(|error| nvmf_error(&error))
    }

    /// The TCP transport, if there is one.
    pub(super) fn transport(&self) -> Option<TransportOptions> {
        self.target.transport()
    }

    /// How many subsystems there may be, if that was said.
    pub(super) fn subsystems_max(&self) -> Option<u32> {
        self.settings.with(|settings| settings.subsystems_max)
    }

    /// Says how many there may be, the discovery subsystem not counted.
    pub(super) fn set_subsystems_max(&self, max: u32) {
        self.settings
            .with(|settings| settings.subsystems_max = Some(max));
    }

    /// Offers a subsystem, which administrators call `label`.
    ///
    /// # Errors
    /// −32603 with what is wrong with it.
    pub(super) fn create_subsystem(
        &self,
        config: SubsystemConfig,
        label: Option<String>,
    ) -> Result<(), Error> {
        let nqn = config.nqn.clone();
        let refused = |why: &dyn std::fmt::Display| {
            let message = format!("Unable to create subsystem {nqn}: {why}");
            Error::new(Error::INTERNAL_ERROR, message)
        };
        self.settings.with(|settings| {
            let max = settings.subsystems_max.unwrap_or(SUBSYSTEMS_MAX);
            // One of those that there are is the discovery subsystem.
            let count = self.target.subsystems().len().saturating_sub(1);
            if u32::try_from(count).is_ok_and(|count| count >= max) {
                return Err(refused(&format_args!("there may be no more than {max}")));
            }
            let made = self.target.create_subsystem(config);
            made.map_err(|error| refused(&error))?;
            if let Some(label) = label {
                settings.labels.insert(nqn.clone(), label);
            }
            Ok(())
        })
    }

    /// What administrators call the subsystem.
    pub(super) fn label(&self, nqn: &str) -> Option<String> {
        self.settings
            .with(|settings| settings.labels.get(nqn).cloned())
    }

    /// Ends a subsystem and its controllers, which may outlast this call if a device is slow: bdevs stay
    /// in use until they have gone.
    ///
    /// # Errors
    /// −32602 without such a subsystem, and for the discovery subsystem.
    pub(super) fn delete_subsystem(&self, bdevs: &Arc<Bdevs>, nqn: &str) -> Result<(), Error> {
        let removed = self.settings.with(|settings| {
            let removed = self.target.delete_subsystem(nqn)?;
            settings.labels.remove(nqn);
            Ok(removed)
        });
        let removed = removed.map_err(|error| nvmf_error(&error))?;
        self.let_go(bdevs, Leaving::of(nqn, removed.namespaces).collect())
    }

    /// All subsystems, the discovery subsystem first.
    pub(super) fn subsystems(&self) -> Vec<SubsystemInfo> {
        self.target.subsystems()
    }

    /// The one of this name.
    ///
    /// # Errors
    /// −32602 without such a subsystem.
    pub(super) fn subsystem(&self, nqn: &str) -> Result<SubsystemInfo, Error> {
        let mut all = self.target.subsystems().into_iter();
        let found = all.find(|subsystem| subsystem.config.nqn == nqn);
        found.ok_or_else(|| nvmf_error(&NvmfError::NoSubsystem(nqn.to_owned())))
    }

    /// Offers the bdev of that name as a namespace; returns the namespace's number.
    ///
    /// # Errors
    /// −32602 without such a subsystem or if the number or an identity is taken, −19 without such a bdev,
    /// −16 if it has an owner.
    pub(super) fn add_namespace(
        &self,
        bdevs: &Bdevs,
        nqn: &str,
        bdev_name: &str,
        config: impl FnOnce(Arc<dyn Bdev>) -> NamespaceConfig,
    ) -> Result<u32, Error> {
        let user = user_of(nqn);
        self.settings.with(|_| {
            let subsystem = self.subsystem(nqn)?;
            let config = config(bdevs.join(bdev_name, user.clone())?);
            let added = check_identities(&subsystem, &config).and_then(|()| {
                let added = self.target.add_namespace(nqn, config);
                added.map_err(|error| nvmf_error(&error))
            });
            if added.is_err() {
                bdevs.leave(bdev_name, &user);
            }
            added
        })
    }

    /// Takes a namespace away. What a slow device still has may outlast this call: its bdev stays in use
    /// until it is done.
    ///
    /// # Errors
    /// −32602 without such a subsystem or namespace.
    pub(super) fn remove_namespace(
        &self,
        bdevs: &Arc<Bdevs>,
        nqn: &str,
        nsid: u32,
    ) -> Result<(), Error> {
        let removed = self
            .settings
            .with(|_| self.target.remove_namespace(nqn, nsid));
        let removed = removed.map_err(|error| nvmf_error(&error))?;
        self.let_go(bdevs, Leaving::of(nqn, vec![removed]).collect())
    }

    /// Lets hosts reach the subsystem at `address`.
    ///
    /// # Errors
    /// −32602 without a transport or such a subsystem, if it listens there already, or nobody can.
    pub(super) fn add_listener(
        &self,
        nqn: &str,
        address: SocketAddr,
        state: AnaState,
    ) -> Result<(), Error> {
        // Listening takes no time.
        let added = self.settings.with(|_| {
            let address = self.target.add_listener(nqn, address)?;
            match state {
                AnaState::Optimized => Ok(()),
                state => self.target.set_ana_state(nqn, address, None, state),
            }
        });
        added.map_err(|error| nvmf_error(&error))
    }

    /// Says how good the way through a listener is.
    ///
    /// # Errors
    /// −32602 without such a subsystem, listener or group, or if it does not report how good its ways are.
    pub(super) fn set_ana_state(
        &self,
        nqn: &str,
        address: SocketAddr,
        group: Option<u32>,
        state: AnaState,
    ) -> Result<(), Error> {
        let set = self
            .settings
            .with(|_| self.target.set_ana_state(nqn, address, group, state));
        set.map_err(|error| nvmf_error(&error))
    }

    /// Moves a namespace to another ANA group.
    ///
    /// # Errors
    /// −32602 without such a subsystem, namespace or group, or if it does not report how good its ways are.
    pub(super) fn set_ana_group(&self, nqn: &str, nsid: u32, group: u32) -> Result<(), Error> {
        let set = self
            .settings
            .with(|_| self.target.set_ana_group(nqn, nsid, group));
        set.map_err(|error| nvmf_error(&error))
    }

    /// Each listener of a subsystem, with the state of each ANA group from 1 on.
    ///
    /// # Errors
    /// −32602 without such a subsystem.
    pub(super) fn ana_states(&self, nqn: &str) -> Result<Vec<(SocketAddr, Vec<AnaState>)>, Error> {
        let states = self.target.ana_states(nqn);
        states.map_err(|error| nvmf_error(&error))
    }

    /// Ends that, and the controllers that came in there.
    ///
    /// # Errors
    /// −32602 without such a subsystem, or if it does not listen there.
    pub(super) fn remove_listener(&self, nqn: &str, address: SocketAddr) -> Result<(), Error> {
        let removed = self
            .settings
            .with(|_| self.target.remove_listener(nqn, address));
        removed.map_err(|error| nvmf_error(&error))?;
        poll_until(CLOSE_WAIT, || !self.target.is_closing());
        Ok(())
    }

    /// Where else the discovery subsystem sends hosts.
    pub(super) fn referrals(&self) -> Vec<Referral> {
        self.target.referrals()
    }

    /// Sends hosts there, too.
    ///
    /// # Errors
    /// −32602 for what can't be one, or if it does already.
    pub(super) fn add_referral(&self, referral: Referral) -> Result<(), Error> {
        let added = self.settings.with(|_| self.target.add_referral(referral));
        added.map_err(|error| nvmf_error(&error))
    }

    /// Sends hosts there no more.
    ///
    /// # Errors
    /// −32602 if it does not.
    pub(super) fn remove_referral(&self, referral: Referral) -> Result<(), Error> {
        let removed = self
            .settings
            .with(|_| self.target.remove_referral(referral));
        removed.map_err(|error| nvmf_error(&error))
    }

    /// Lets a host in.
    ///
    /// # Errors
    /// −32602 without such a subsystem, for what is no NQN, or if it is let in already.
    pub(super) fn add_host(
        &self,
        nqn: &str,
        host: &str,
        keys: Option<HostKeys>,
    ) -> Result<(), Error> {
        let added = self
            .settings
            .with(|_| self.target.add_host(nqn, host, keys));
        added.map_err(|error| nvmf_error(&error))
    }

    /// Says what a host must prove that connects from now on.
    ///
    /// # Errors
    /// −32602 without such a subsystem, or if the host is not in its list.
    pub(super) fn set_keys(
        &self,
        nqn: &str,
        host: &str,
        keys: Option<HostKeys>,
    ) -> Result<(), Error> {
        let set = self
            .settings
            .with(|_| self.target.set_keys(nqn, host, keys));
        set.map_err(|error| nvmf_error(&error))
    }

    /// How hosts may prove who they are.
    pub(super) fn chap_offer(&self) -> ChapOffer {
        self.target.chap_offer()
    }

    /// Says how.
    pub(super) fn set_chap_offer(&self, offer: ChapOffer) {
        self.target.set_chap_offer(offer);
    }

    /// Whether a host must prove to have the key that the keyring calls `name`, or is proved it.
    pub(super) fn uses_key(&self, name: &str) -> bool {
        let is_it = |key: &Option<String>| key.as_deref() == Some(name);
        self.subsystems().iter().any(|subsystem| {
            let mut hosts = subsystem.hosts.iter();
            hosts.any(|host| is_it(&host.dhchap_key) || is_it(&host.dhchap_ctrlr_key))
        })
    }

    /// Lets a host in no more, and waits for up to `patience` until its controllers are gone.
    ///
    /// # Errors
    /// −32602 without such a subsystem, or if the host is not in its list.
    pub(super) fn remove_host(
        &self,
        nqn: &str,
        host: &str,
        patience: Option<Duration>,
    ) -> Result<(), Error> {
        let removed = self.settings.with(|_| self.target.remove_host(nqn, host));
        removed.map_err(|error| nvmf_error(&error))?;
        self.wait_for_the_uninvited(nqn, patience.unwrap_or(CLOSE_WAIT));
        Ok(())
    }

    /// Lets any host in, or only those of the list.
    ///
    /// # Errors
    /// −32602 without such a subsystem.
    pub(super) fn allow_any_host(&self, nqn: &str, any: bool) -> Result<(), Error> {
        let set = self.settings.with(|_| self.target.allow_any_host(nqn, any));
        set.map_err(|error| nvmf_error(&error))?;
        self.wait_for_the_uninvited(nqn, CLOSE_WAIT);
        Ok(())
    }

    /// Waits until no controller is left of hosts that may not be there.
    fn wait_for_the_uninvited(&self, nqn: &str, patience: Duration) {
        poll_until(patience, || {
            let (Ok(subsystem), Ok(controllers)) =
                (self.subsystem(nqn), self.target.controllers(nqn))
            else {
                return true;
            };
            let may = |host: &String| subsystem.config.allow_any_host || subsystem.invites(host);
            controllers
                .iter()
                .all(|controller| may(&controller.hostnqn))
        });
    }

    /// The controllers of a subsystem.
    ///
    /// # Errors
    /// −32602 without such a subsystem.
    pub(super) fn controllers(&self, nqn: &str) -> Result<Vec<ControllerInfo>, Error> {
        let found = self.target.controllers(nqn);
        found.map_err(|error| nvmf_error(&error))
    }

    /// The qpairs of a subsystem.
    ///
    /// # Errors
    /// −32602 without such a subsystem.
    pub(super) fn qpairs(&self, nqn: &str) -> Result<Vec<QpairInfo>, Error> {
        let found = self.target.qpairs(nqn);
        found.map_err(|error| nvmf_error(&error))
    }

    /// What each reactor has done.
    pub(super) fn figures(&self) -> Vec<ReactorFigures> {
        self.target.figures()
    }

    /// Notes which hosts have come and gone since the last look.
    pub(super) fn look(&self, notices: &Notices) {
        self.events.with(|events| {
            for event in events.try_iter().take(EVENTS_MAX) {
                let happening = match event.connected {
                    true => Happening::NvmfHostConnect,
                    false => Happening::NvmfHostDisconnect,
                };
                notices.note(happening, format!("{} {}", event.subnqn, event.hostnqn));
            }
        });
    }

    /// Ends all connections and subsystems, as far as that is possible in [`CLOSE_WAIT`].
    pub(super) fn stop_all(&self, bdevs: &Arc<Bdevs>) {
        self.target.stop();
        let mut leaving = Vec::new();
        for subsystem in self.target.subsystems() {
            let nqn = &subsystem.config.nqn;
            // The discovery subsystem stays, and has no namespaces.
            if let Ok(removed) = self.target.delete_subsystem(nqn) {
                leaving.extend(Leaving::of(nqn, removed.namespaces));
            }
        }
        poll_until(CLOSE_WAIT, || self.target.is_stopped());
        if let Err(error) = self.let_go(bdevs, leaving) {
            tracing::warn!(%error, "an nvmf namespace stays");
        }
    }

    /// Waits until no qpair uses the namespaces any more and who listened for them has gone, and frees
    /// their bdevs; if that takes too long, later.
    fn let_go(&self, bdevs: &Arc<Bdevs>, leaving: Vec<Leaving>) -> Result<(), Error> {
        let is_closed = |leaving: &Leaving| leaving.namespace.is_closed();
        poll_until(CLOSE_WAIT, || {
            leaving.iter().all(is_closed) && !self.target.is_closing()
        });
        let (closed, open): (Vec<_>, Vec<_>) = leaving.into_iter().partition(is_closed);
        closed.iter().for_each(|leaving| leaving.leave(bdevs));
        if open.is_empty() {
            return Ok(());
        }
        let later = leave_later(open, Arc::clone(bdevs));
        later.map_err(|error| Error::os("nvmf namespace", &error))
    }
}

/// Hosts take two namespaces of one subsystem with the same identity for one, or for a mistake.
fn check_identities(subsystem: &SubsystemInfo, config: &NamespaceConfig) -> Result<(), Error> {
    let uuid = config.uuid.unwrap_or_else(|| config.bdev.info().uuid);
    let nguid = config.nguid.unwrap_or(uuid.into_bytes());
    let eui64 = config.eui64.unwrap_or_default();
    for other in &subsystem.namespaces {
        let same = [
            ("UUID", other.uuid == uuid),
            ("NGUID", other.nguid == nguid && nguid != [0; 16]),
            ("EUI-64", other.eui64 == eui64 && eui64 != [0; 8]),
        ];
        if let Some((which, _)) = same.iter().find(|(_, same)| *same) {
            return Err(Error::invalid_params(format!(
                "Invalid parameters: namespace {} has the same {which}",
                other.nsid
            )));
        }
    }
    Ok(())
}

/// Frees each bdev once no qpair uses it any more.
fn leave_later(mut open: Vec<Leaving>, bdevs: Arc<Bdevs>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("nvmf-closing".to_owned());
    thread.spawn(move || {
        while !open.is_empty() {
            let any_closed = || open.iter().any(|leaving| leaving.namespace.is_closed());
            poll_until(Duration::from_secs(3600), any_closed);
            open.retain(|leaving| {
                let closed = leaving.namespace.is_closed();
                if closed {
                    leaving.leave(&bdevs);
                }
                !closed
            });
        }
    })?;
    Ok(())
}
