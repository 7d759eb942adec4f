//! Who may connect to a subsystem, and what they must prove.

use super::NvmfError;
use crate::bdev::HostKeys;
use crate::wire::nvme::check_nqn;

/// A host that may connect, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// Its name.
    pub nqn: String,
    /// The name of the key that it must prove to have, if any.
    pub dhchap_key: Option<String>,
    /// The name of the key that controllers prove to have if it asks.
    pub dhchap_ctrlr_key: Option<String>,
}

/// A host that may connect, and what it must prove.
#[derive(Clone, Debug)]
struct Invited {
    nqn: String,
    keys: Option<HostKeys>,
}

impl Invited {
    fn info(&self) -> HostInfo {
        let host = self.keys.as_ref().map(|keys| &keys.host);
        let controller = self.keys.as_ref().and_then(|keys| keys.controller.as_ref());
        HostInfo {
            nqn: self.nqn.clone(),
            dhchap_key: host.map(|key| key.name.clone()),
            dhchap_ctrlr_key: controller.map(|key| key.name.clone()),
        }
    }
}

/// Who may connect.
#[derive(Clone, Debug, Default)]
pub(super) struct Access {
    /// Anybody.
    pub(super) any: bool,
    hosts: Vec<Invited>,
}

impl Access {
    pub(super) fn new(any: bool) -> Self {
        Self { any, hosts: vec![] }
    }

    fn find(&self, host: &str) -> Option<&Invited> {
        self.hosts.iter().find(|known| known.nqn == host)
    }

    pub(super) fn admits(&self, host: &str) -> bool {
        self.any || self.find(host).is_some()
    }

    pub(super) fn keys_of(&self, host: &str) -> Option<HostKeys> {
        self.find(host).and_then(|known| known.keys.clone())
    }

    pub(super) fn set_keys(&mut self, host: &str, keys: Option<HostKeys>) -> Result<(), NvmfError> {
        let mut hosts = self.hosts.iter_mut();
        let found = hosts.find(|known| known.nqn == host);
        let known = found.ok_or_else(|| NvmfError::NoHost(host.to_owned()))?;
        known.keys = keys;
        Ok(())
    }

    pub(super) fn add(&mut self, host: &str, keys: Option<HostKeys>) -> Result<(), NvmfError> {
        check_nqn(host).map_err(|source| NvmfError::BadNqn {
            nqn: host.to_owned(),
            source,
        })?;
        if self.find(host).is_some() {
            return Err(NvmfError::HostExists(host.to_owned()));
        }
        let nqn = host.to_owned();
        self.hosts.push(Invited { nqn, keys });
        Ok(())
    }

    pub(super) fn remove(&mut self, host: &str) -> Result<(), NvmfError> {
        let before = self.hosts.len();
        self.hosts.retain(|known| known.nqn != host);
        match self.hosts.len() < before {
            true => Ok(()),
            false => Err(NvmfError::NoHost(host.to_owned())),
        }
    }

    pub(super) fn infos(&self) -> Vec<HostInfo> {
        self.hosts.iter().map(Invited::info).collect()
    }
}
