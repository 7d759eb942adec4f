//! Where a subsystem is, as people write it.

use crate::bdev::BdevError;
use crate::wire::nvme::{DEFAULT_PORT, check_nqn};
use std::fmt;
use std::str::FromStr;

/// A subsystem behind an address, and perhaps one of its namespaces:
/// `nvme://host[:port]/subnqn[/nsid]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeUri {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The subsystem's qualified name.
    pub subnqn: String,
    /// Which namespace; the first there is if none is named.
    pub nsid: Option<u32>,
}

impl NvmeUri {
    /// The port if none is given.
    pub const PORT: u16 = DEFAULT_PORT;
}

impl fmt::Display for NvmeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        match host.contains(':') {
            true => write!(f, "nvme://[{host}]:{port}/{}", self.subnqn)?,
            false => write!(f, "nvme://{host}:{port}/{}", self.subnqn)?,
        }
        match self.nsid {
            Some(nsid) => write!(f, "/{nsid}"),
            None => Ok(()),
        }
    }
}

/// Host and port of `text`; the default port if there is none.
fn place(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']')?;
            match behind {
                "" => (host, None),
                _ => (host, Some(behind.strip_prefix(':')?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => NvmeUri::PORT,
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn parse(text: &str) -> Option<NvmeUri> {
    let (at, name) = text.strip_prefix("nvme://")?.split_once('/')?;
    let (host, port) = place(at)?;
    // A qualified name may have slashes: only a number behind the last one is a namespace.
    let nsid = name.rsplit_once('/').and_then(|(subnqn, nsid)| {
        let nsid: u32 = nsid.parse().ok()?;
        (1..u32::MAX).contains(&nsid).then_some((subnqn, nsid))
    });
    let (subnqn, nsid) = match nsid {
        Some((subnqn, nsid)) => (subnqn, Some(nsid)),
        None => (name, None),
    };
    check_nqn(subnqn).ok()?;
    Some(NvmeUri {
        host,
        port,
        subnqn: subnqn.to_owned(),
        nsid,
    })
}

impl FromStr for NvmeUri {
    type Err = BdevError;

    fn from_str(text: &str) -> Result<Self, BdevError> {
        parse(text).ok_or_else(|| {
            BdevError::Invalid(format!(
                "{text:?} is no NVMe/TCP address: nvme://host:port/subnqn or \
                 nvme://host:port/subnqn/nsid"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(host: &str, port: u16, nsid: Option<u32>) -> NvmeUri {
        NvmeUri {
            host: host.to_owned(),
            port,
            subnqn: "nqn.2026-11.x:a/b".to_owned(),
            nsid,
        }
    }

    #[test]
    fn all_forms_are_read_and_shown_again() {
        for (text, want) in [
            ("nvme://h/nqn.2026-11.x:a/b", uri("h", 4420, None)),
            ("nvme://h:99/nqn.2026-11.x:a/b/7", uri("h", 99, Some(7))),
            (
                "nvme://[::1]/nqn.2026-11.x:a/b/7",
                uri("::1", 4420, Some(7)),
            ),
            ("nvme://[::1]:9/nqn.2026-11.x:a/b", uri("::1", 9, None)),
        ] {
            assert_eq!(text.parse::<NvmeUri>().unwrap(), want, "{text}");
            assert_eq!(want.to_string().parse::<NvmeUri>().unwrap(), want);
        }
    }

    #[test]
    fn what_is_none_of_them_is_refused() {
        for text in [
            "",
            "nvme:",
            "nvme://",
            "nvme://h",
            "nvme://h/",
            "nvme://h/x",
            "nvme://:1/nqn.2026-11.x:y",
            "nvme://h:0/nqn.2026-11.x:y",
            "nvme://h:65536/nqn.2026-11.x:y",
            "nvme://[::1/nqn.2026-11.x:y",
            "nvme://[::1]9/nqn.2026-11.x:y",
            "nvme://h/nqn.2026-11.x",
            "nbd://h/nqn.2026-11.x:y",
        ] {
            assert!(text.parse::<NvmeUri>().is_err(), "{text}");
        }
    }
}
