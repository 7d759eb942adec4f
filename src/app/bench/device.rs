//! What can be measured: devices that are built here, and disks that somebody's server offers.

use crate::app::vhost_client;
use crate::bdev::{
    Bdev, BdevError, BdevInfo, Channel, NbdBdev, NbdConfig, NbdUri, NvmeConfig, NvmeController,
    NvmeUri, Patience, VhostConfig,
};
use reactors::{Cx, MonotonicClock, ReactorHandle};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use uuid::Uuid;

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
    /// What a server offers.
    Export(Export),
}

/// A disk that somebody's server offers, by its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Export {
    /// An export of an NBD server, over the network or a Unix socket.
    Nbd(NbdUri),
    /// A namespace of an NVMe/TCP controller.
    Nvme(NvmeUri),
    /// The disk of a vhost-user-blk back end, by its socket.
    Vhost(PathBuf),
}

/// How the address of a vhost-user back end begins; its socket's path follows.
const VHOST: &str = "vhost:";

impl Export {
    /// Which kind, for names of rows.
    fn kind(&self) -> &'static str {
        match self {
            Self::Nbd(_) => "nbd",
            Self::Nvme(_) => "nvme",
            Self::Vhost(_) => "vhost",
        }
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd(uri) => uri.fmt(f),
            Self::Nvme(uri) => uri.fmt(f),
            Self::Vhost(path) => write!(f, "{VHOST}{}", path.display()),
        }
    }
}

impl Device {
    /// Whose content is not ours to overwrite: the export's address.
    pub(super) fn export(&self) -> Option<&Export> {
        match self {
            Self::Export(export) => Some(export),
            _ => None,
        }
    }

    /// Its name in rows. `exports`: the addresses of the command line, which are numbered from the
    /// second one of a kind on.
    pub(super) fn name(&self, exports: &[&Export]) -> String {
        match self {
            Self::Export(export) => {
                let kind = export.kind();
                let mut alike = exports.iter().filter(|known| known.kind() == kind);
                match alike.position(|known| *known == export) {
                    None | Some(0) => kind.to_owned(),
                    Some(before) => format!("{kind}{}", before + 1),
                }
            }
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
            Self::Export(export) => export.fmt(f),
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
                let uri = address.parse().map_err(|error| format!("{error}"))?;
                Self::Export(Export::Nbd(uri))
            }
            address if address.starts_with("nvme") => {
                let uri = address.parse().map_err(|error| format!("{error}"))?;
                Self::Export(Export::Nvme(uri))
            }
            address if address.strip_prefix(VHOST).is_some_and(|p| !p.is_empty()) => {
                let (_, path) = address.split_at(VHOST.len());
                Self::Export(Export::Vhost(PathBuf::from(path)))
            }
            other => {
                return Err(format!(
                    "{other:?} is not null, malloc, pmem, cache, backing, an NBD or NVMe/TCP \
                     address or {VHOST}PATH"
                ));
            }
        })
    }
}

/// What is wanted of an export.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// Without it none is sent, whatever the job does.
    pub(super) writes: bool,
    /// How many use it at a time.
    pub(super) users: u16,
    /// For one behind NVMe/TCP.
    pub(super) nvme: NvmeWish,
}

/// How a namespace behind NVMe/TCP is attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct NvmeWish {
    /// With digests of headers and data.
    pub(super) digests: bool,
    /// So many times: each has an I/O qpair on each reactor that uses it.
    pub(super) qpairs: u16,
}

impl Default for NvmeWish {
    fn default() -> Self {
        Self {
            digests: false,
            qpairs: 1,
        }
    }
}

/// Connects to an export: its size and its abilities are known then.
/// `keeper` is the reactor that gives signs of life, if it has to last; without one it can tell of
/// itself, and perhaps no more.
///
/// # Errors
/// Why it can't be used.
pub(super) fn connect(
    export: &Export,
    wish: Wish,
    keeper: Option<&ReactorHandle>,
) -> Result<Arc<dyn Bdev>, BdevError> {
    match export {
        Export::Nbd(uri) => {
            let mut config = NbdConfig::new("nbd", uri.clone());
            config.read_only = !wish.writes;
            Ok(Arc::new(NbdBdev::connect(config, &MonotonicClock)?))
        }
        Export::Nvme(uri) if wish.nvme.qpairs > 1 => {
            let all = (0..wish.nvme.qpairs).map(|_| attach(uri, wish, keeper));
            let all: Vec<_> = all.collect::<Result<_, _>>()?;
            Ok(Arc::new(InTurn {
                all,
                next: AtomicUsize::new(0),
            }))
        }
        Export::Nvme(uri) => attach(uri, wish, keeper),
        Export::Vhost(path) => {
            let mut config = VhostConfig::new("vhost", path);
            config.read_only = !wish.writes;
            config.queues = wish.users;
            Ok(Arc::new(vhost_client::connect(config)?))
        }
    }
}

/// Attaches a controller of which one namespace is used.
fn attach(
    uri: &NvmeUri,
    wish: Wish,
    keeper: Option<&ReactorHandle>,
) -> Result<Arc<dyn Bdev>, BdevError> {
    let config = nvme_config(uri, wish);
    let controller = match keeper {
        Some(keeper) => NvmeController::attach(config, &MonotonicClock, keeper)?,
        None => NvmeController::probe(config, &MonotonicClock)?,
    };
    let first = controller.bdevs().into_iter().next();
    let first = first.ok_or_else(|| BdevError::Invalid(format!("{uri}: no namespaces")))?;
    Ok(Arc::new(first))
}

fn nvme_config(uri: &NvmeUri, wish: Wish) -> NvmeConfig {
    let host = NvmeConfig::host_nqn_of(Uuid::new_v4());
    let mut config = NvmeConfig::new("nvme", uri.clone(), host);
    config.read_only = !wish.writes;
    config.header_digest = wish.nvme.digests;
    config.data_digest = wish.nvme.digests;
    // What is measured must not go on with another life of the controller.
    config.patience = Patience {
        ctrlr_loss_timeout_sec: 0,
        reconnect_delay_sec: 0,
        fast_io_fail_timeout_sec: 0,
    };
    config
}

/// One namespace that was attached several times: who opens it gets the next.
#[derive(Debug)]
struct InTurn {
    /// At least one.
    all: Vec<Arc<dyn Bdev>>,
    next: AtomicUsize,
}

impl InTurn {
    fn at(&self, number: usize) -> &dyn Bdev {
        &*self.all[number % self.all.len()]
    }
}

impl Bdev for InTurn {
    fn info(&self) -> Arc<BdevInfo> {
        self.at(0).info()
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        self.at(self.next.fetch_add(1, Ordering::Relaxed)).open(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_shown() {
        let nvme = "nvme://h:1/nqn.2026-11.x:y/2";
        for text in [
            "null",
            "malloc",
            "pmem",
            "cache",
            "backing",
            "nbd://h:1/x",
            nvme,
            "vhost:/run/x.sock",
        ] {
            let device: Device = text.parse().unwrap();
            assert_eq!(device.to_string(), text);
        }
        let unix: Device = "nbd:unix:/s:vol".parse().unwrap();
        assert_eq!(unix.to_string(), "nbd+unix:///vol?socket=/s");
        for bad in [
            "",
            "Null",
            "disk",
            "nbd:",
            "nbds://h/x",
            "nvme://h",
            "/dev/null",
            "vhost:",
        ] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_are_asked_for_when_they_are_wanted() {
        let uri: NvmeUri = "nvme://h:1/nqn.2026-11.x:y".parse().unwrap();
        for digests in [false, true] {
            let nvme = NvmeWish { digests, qpairs: 1 };
            let wish = Wish {
                writes: false,
                users: 1,
                nvme,
            };
            let config = nvme_config(&uri, wish);
            assert_eq!(
                (config.header_digest, config.data_digest),
                (digests, digests)
            );
            assert!(config.read_only);
        }
    }

    #[test]
    fn several_exports_are_numbered() {
        let texts = [
            "nbd://a",
            "vhost:/a",
            "nbd://b",
            "vhost:/b",
            "nvme://a/nqn.2026-11.x:y",
        ];
        let devices = texts.map(|text| text.parse::<Device>().unwrap());
        let known: Vec<&Export> = devices.iter().filter_map(Device::export).collect();
        let names = devices.each_ref().map(|device| device.name(&known));
        assert_eq!(names, ["nbd", "vhost", "nbd2", "vhost2", "nvme"]);
        assert_eq!(Device::Cache.name(&known), "cache");
    }
}
