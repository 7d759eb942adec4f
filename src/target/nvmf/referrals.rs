//! Where else the discovery subsystem sends hosts (spec section 8).

use super::NvmfError;
use super::target::NvmfTarget;
use crate::wire::nvme::{DISCOVERY_NQN, check_nqn};
use std::fmt;
use std::net::SocketAddr;

/// A subsystem of another target, or of another port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referral {
    /// Where it is.
    pub address: SocketAddr,
    /// What it is called there: the discovery subsystem, or an NVM subsystem.
    pub nqn: String,
}

impl Referral {
    /// To the subsystem `nqn` at `address`; to the discovery subsystem if none is named.
    #[must_use]
    pub fn new(address: SocketAddr, nqn: Option<String>) -> Self {
        let nqn = nqn.unwrap_or_else(|| DISCOVERY_NQN.to_owned());
        Self { address, nqn }
    }

    /// Whether it is another discovery subsystem.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.nqn == DISCOVERY_NQN
    }

    fn check(&self) -> Result<(), NvmfError> {
        check_nqn(&self.nqn).map_err(|source| NvmfError::BadNqn {
            nqn: self.nqn.clone(),
            source,
        })?;
        let ip = self.address.ip();
        if ip.is_unspecified() || ip.is_multicast() || self.address.port() == 0 {
            return Err(NvmfError::BadReferral(self.address));
        }
        Ok(())
    }
}

impl fmt::Display for Referral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' at {}", self.nqn, self.address)
    }
}

impl NvmfTarget {
    /// Sends hosts there, too.
    ///
    /// # Errors
    /// [`NvmfError::BadNqn`], [`NvmfError::BadReferral`], [`NvmfError::ReferralExists`].
    pub fn add_referral(&self, referral: Referral) -> Result<(), NvmfError> {
        referral.check()?;
        self.change_referrals(|all| match all.contains(&referral) {
            true => Err(NvmfError::ReferralExists(referral)),
            false => {
                all.push(referral);
                Ok(())
            }
        })
    }

    /// Sends hosts there no more.
    ///
    /// # Errors
    /// [`NvmfError::NoReferral`].
    pub fn remove_referral(&self, referral: Referral) -> Result<(), NvmfError> {
        self.change_referrals(|all| {
            let at = all.iter().position(|known| *known == referral);
            let at = at.ok_or(NvmfError::NoReferral(referral))?;
            all.remove(at);
            Ok(())
        })
    }
}
