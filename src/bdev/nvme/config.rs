//! What to attach, and how long to bear its absence.

use super::{NvmeAuth, NvmeUri};
use crate::bdev::{BdevError, check_name, derived_uuid};
use crate::wire::nvme::{Digests, check_nqn};
use std::sync::Arc;
use uuid::Uuid;

/// A second.
const SEC_NS: u64 = 1_000_000_000;

/// What happens while a controller can't be reached, as SPDK's parameters say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Seconds until the controller is given up for good; −1: never; 0: at once, without another
    /// attempt.
    pub ctrlr_loss_timeout_sec: i32,
    /// Seconds between two attempts to connect; the first comes at once.
    pub reconnect_delay_sec: u32,
    /// Seconds until requests fail instead of waiting; 0: they wait as long as the controller is not
    /// given up.
    pub fast_io_fail_timeout_sec: u32,
}

impl Default for Patience {
    /// For ever, an attempt each second: a cache over it holds what it has meanwhile.
    fn default() -> Self {
        Self {
            ctrlr_loss_timeout_sec: -1,
            reconnect_delay_sec: 1,
            fast_io_fail_timeout_sec: 0,
        }
    }
}

impl Patience {
    /// Checks SPDK's rules about the three.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] with the rule.
    pub fn check(&self) -> Result<(), BdevError> {
        let (delay, fast) = (self.reconnect_delay_sec, self.fast_io_fail_timeout_sec);
        let loss = u32::try_from(self.ctrlr_loss_timeout_sec).ok();
        let wrong = match (self.ctrlr_loss_timeout_sec, loss) {
            (..=-2, _) => Some("ctrlr_loss_timeout_sec is -1 or more"),
            (0, _) if delay != 0 || fast != 0 => Some(
                "without ctrlr_loss_timeout_sec there is neither reconnect_delay_sec nor \
                 fast_io_fail_timeout_sec",
            ),
            (0, _) => None,
            _ if delay == 0 => Some("ctrlr_loss_timeout_sec needs a reconnect_delay_sec"),
            (_, Some(loss)) if delay > loss => {
                Some("reconnect_delay_sec is not above ctrlr_loss_timeout_sec")
            }
            _ if fast != 0 && fast < delay => {
                Some("fast_io_fail_timeout_sec is not below reconnect_delay_sec")
            }
            (_, Some(loss)) if fast > loss => {
                Some("fast_io_fail_timeout_sec is not above ctrlr_loss_timeout_sec")
            }
            _ => None,
        };
        wrong.map_or(Ok(()), |rule| Err(BdevError::Invalid(rule.to_owned())))
    }

    /// Whether a lost connection is made again.
    pub(super) fn reconnects(&self) -> bool {
        self.ctrlr_loss_timeout_sec != 0
    }

    /// How long until the controller is given up, if ever.
    pub(super) fn loss_ns(&self) -> Option<u64> {
        let seconds = u64::try_from(self.ctrlr_loss_timeout_sec).ok()?;
        Some(seconds * SEC_NS)
    }

    /// Between two attempts.
    pub(super) fn delay_ns(&self) -> u64 {
        u64::from(self.reconnect_delay_sec) * SEC_NS
    }

    /// How long until requests fail, if ever.
    pub(super) fn fast_fail_ns(&self) -> Option<u64> {
        let seconds = u64::from(self.fast_io_fail_timeout_sec);
        (seconds > 0).then_some(seconds * SEC_NS)
    }
}

/// How to attach a controller.
#[derive(Clone, Debug)]
pub struct NvmeConfig {
    /// Its name; its bdevs are `<name>n<nsid>`.
    pub name: String,
    /// Which subsystem; with a namespace, only that.
    pub uri: NvmeUri,
    /// This host's qualified name.
    pub host_nqn: String,
    /// Whether headers have digests.
    pub header_digest: bool,
    /// Whether data have digests.
    pub data_digest: bool,
    /// I/O queues at most: one for each reactor that uses it.
    pub io_queues: u16,
    /// Entries of an I/O queue; the controller may grant fewer.
    pub queue_entries: u16,
    /// After so long without a sign of life each side gives the other up, in ms; 0: never.
    pub keep_alive_ms: u32,
    /// How long a connection may take to be set up, in µs.
    pub connect_timeout_us: u64,
    /// How long to bear its absence.
    pub patience: Patience,
    /// Refuse writes, even if the namespace takes them.
    pub read_only: bool,
    /// Ask the controller not to tell how far it has read its queue.
    pub no_flow_control: bool,
    /// How to prove who we are, and who the controller is, if it wants that.
    pub auth: Option<Arc<NvmeAuth>>,
}

impl NvmeConfig {
    /// The subsystem at `uri` as controller `name`, for the host called `host_nqn`.
    #[must_use]
    pub fn new(name: &str, uri: NvmeUri, host_nqn: String) -> Self {
        Self {
            name: name.to_owned(),
            uri,
            host_nqn,
            header_digest: false,
            data_digest: false,
            io_queues: 64,
            queue_entries: 128,
            keep_alive_ms: 10_000,
            connect_timeout_us: 10_000_000,
            patience: Patience::default(),
            read_only: false,
            no_flow_control: false,
            auth: None,
        }
    }

    /// The name of a host that has none: made of a UUID.
    #[must_use]
    pub fn host_nqn_of(uuid: Uuid) -> String {
        format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}")
    }

    /// Which digests to ask for.
    pub(super) fn digests(&self) -> Digests {
        Digests {
            header: self.header_digest,
            data: self.data_digest,
        }
    }

    /// The host's identifier: its UUID, if its name is one.
    pub(super) fn host_id(&self) -> [u8; 16] {
        let named = self.host_nqn.rsplit_once("uuid:");
        let named = named.and_then(|(_, uuid)| Uuid::try_parse(uuid).ok());
        let derived = || derived_uuid("nvme host", &[self.host_nqn.as_bytes()]);
        named.unwrap_or_else(derived).into_bytes()
    }

    /// Checks all that can be checked without a controller.
    pub(super) fn check(&self) -> Result<(), BdevError> {
        check_name(&self.name)?;
        let named = |what: &str, nqn: &str| {
            check_nqn(nqn).map_err(|fault| BdevError::Invalid(format!("{what} {nqn:?}: {fault}")))
        };
        named("subnqn", &self.uri.subnqn)?;
        named("hostnqn", &self.host_nqn)?;
        if self.io_queues == 0 {
            return Err(BdevError::Invalid("no I/O queue is not enough".to_owned()));
        }
        if self.queue_entries < 2 {
            let given = self.queue_entries;
            return Err(BdevError::Invalid(format!(
                "a queue of {given} entries: 2 to 65535 are possible"
            )));
        }
        self.patience.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_rules_of_spdk() {
        let check = |loss, delay, fast| {
            let patience = Patience {
                ctrlr_loss_timeout_sec: loss,
                reconnect_delay_sec: delay,
                fast_io_fail_timeout_sec: fast,
            };
            patience.check().is_ok()
        };
        for (loss, delay, fast) in [(0, 0, 0), (-1, 1, 0), (-1, 5, 5), (10, 10, 0), (10, 2, 5)] {
            assert!(check(loss, delay, fast), "{loss} {delay} {fast}");
        }
        for (loss, delay, fast) in [
            (-2, 1, 0),
            (0, 1, 0),
            (0, 0, 1),
            (-1, 0, 0),
            (10, 11, 0),
            (10, 5, 4),
            (10, 5, 11),
            (-1, 5, 4),
        ] {
            assert!(!check(loss, delay, fast), "{loss} {delay} {fast}");
        }
        assert!(Patience::default().check().is_ok());
    }

    #[test]
    fn a_host_is_who_its_name_says() {
        let uuid = Uuid::from_u128(7);
        let uri: NvmeUri = "nvme://h/nqn.2026-11.x:y".parse().unwrap();
        let config = NvmeConfig::new("n", uri.clone(), NvmeConfig::host_nqn_of(uuid));
        assert_eq!(config.host_id(), uuid.into_bytes());
        config.check().unwrap();
        let other = NvmeConfig::new("n", uri, "nqn.2026-11.x:host".to_owned());
        assert_ne!(other.host_id(), [0; 16]);
        other.check().unwrap();
        let bad = NvmeConfig {
            host_nqn: "me".to_owned(),
            ..other.clone()
        };
        assert!(matches!(bad.check(), Err(BdevError::Invalid(_))));
        let narrow = NvmeConfig {
            queue_entries: 1,
            ..other
        };
        assert!(matches!(narrow.check(), Err(BdevError::Invalid(_))));
    }
}
