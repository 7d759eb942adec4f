//! What can be measured: devices that are built here, and exports of somebody's NBD server.

use crate::bdev::{BdevError, NbdBdev, NbdConfig, NbdUri};
use reactors::MonotonicClock;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// Does nothing: what the harness itself costs.
    Null,
    /// A RAM disk.
    Malloc,
    /// Volatile memory as a pmem bdev.
    Pmem,
    /// A cache on volatile memory, in front of the backing.
    Cache,
    /// The backing alone, with its delay.
    Backing,
    /// An export of an NBD server, over the network or a Unix socket.
    Nbd(NbdUri),
}

impl Device {
    /// Whose content is not ours to overwrite: the export's address.
    pub(super) fn export(&self) -> Option<&NbdUri> {
        match self {
            Self::Nbd(uri) => Some(uri),
            _ => None,
        }
    }

    /// Its name in rows. `exports`: the addresses of the command line, which are numbered from the
    /// second one on.
    pub(super) fn name(&self, exports: &[&NbdUri]) -> String {
        match self {
            Self::Nbd(uri) => match exports.iter().position(|known| *known == uri) {
                None | Some(0) => "nbd".to_owned(),
                Some(before) => format!("nbd{}", before + 1),
            },
            built => built.to_string(),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Malloc => f.write_str("malloc"),
            Self::Pmem => f.write_str("pmem"),
            Self::Cache => f.write_str("cache"),
            Self::Backing => f.write_str("backing"),
            Self::Nbd(uri) => uri.fmt(f),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "null" => Self::Null,
            "malloc" => Self::Malloc,
            "pmem" => Self::Pmem,
            "cache" => Self::Cache,
            "backing" => Self::Backing,
            address if address.starts_with("nbd") => {
                Self::Nbd(address.parse().map_err(|error| format!("{error}"))?)
            }
            other => {
                return Err(format!(
                    "{other:?} is not null, malloc, pmem, cache, backing or an NBD address"
                ));
            }
        })
    }
}

/// Connects to an export: its size and its abilities are known then. Without `writes` none is sent,
/// whatever the job does.
///
/// # Errors
/// Why it can't be used.
pub(super) fn connect(uri: &NbdUri, writes: bool) -> Result<Arc<NbdBdev>, BdevError> {
    let mut config = NbdConfig::new("nbd", uri.clone());
    config.read_only = !writes;
    NbdBdev::connect(config, &MonotonicClock).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_shown() {
        for text in ["null", "malloc", "pmem", "cache", "backing", "nbd://h:1/x"] {
            let device: Device = text.parse().unwrap();
            assert_eq!(device.to_string(), text);
        }
        let unix: Device = "nbd:unix:/s:vol".parse().unwrap();
        assert_eq!(unix.to_string(), "nbd+unix:///vol?socket=/s");
        for bad in ["", "Null", "disk", "nbd:", "nbds://h/x", "/dev/null"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn several_exports_are_numbered() {
        let [a, b]: [NbdUri; 2] = ["nbd://a", "nbd://b"].map(|text| text.parse().unwrap());
        let known = [&a, &b];
        assert_eq!(Device::Nbd(a.clone()).name(&known), "nbd");
        assert_eq!(Device::Nbd(b.clone()).name(&known), "nbd2");
        assert_eq!(Device::Cache.name(&known), "cache");
    }
}
