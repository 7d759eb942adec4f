//! Where an export is, as people write it.

use crate::bdev::BdevError;
use crate::wire::nbd::{DEFAULT_PORT, STRING_BYTES_MAX};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdPlace {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

/// A server and the name of an export there.
///
/// The forms are `nbd://host[:port][/export]`, `nbd+unix:///[export]?socket=/path`, and QEMU's
/// `nbd:unix:/path` and `nbd:host:port`, which take `:export` or `:exportname=export` at their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where.
    pub place: NbdPlace,
    /// Which export; empty for the server's default.
    pub export: String,
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = escape(&self.export);
        match &self.place {
            NbdPlace::Unix(path) => {
                let path = escape(&path.to_string_lossy());
                write!(f, "nbd+unix:///{export}?socket={path}")
            }
            NbdPlace::Tcp { host, port } if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            NbdPlace::Tcp { host, port } => write!(f, "nbd://{host}:{port}/{export}"),
        }
    }
}

/// Percent-encodes what a URI can't hold as it is.
fn escape(text: &str) -> String {
    use fmt::Write;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        out.push(u8::try_from(value).ok()?);
    }
    let out = String::from_utf8(out).ok()?;
    (!out.contains('\0')).then_some(out)
}

/// Host and port of `text`; the default port if there is none.
fn tcp(text: &str) -> Option<NbdPlace> {
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
        None => DEFAULT_PORT,
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
    };
    let host = host.to_owned();
    (!host.is_empty()).then_some(NbdPlace::Tcp { host, port })
}

/// `nbd+unix:///export?socket=path`, behind its `nbd+unix://`.
fn unix_uri(rest: &str) -> Option<NbdUri> {
    let (path, query) = rest.split_once('?')?;
    let export = match path {
        "" => "",
        _ => path.strip_prefix('/')?,
    };
    let socket = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("socket="))?;
    let socket = unescape(socket).filter(|socket| !socket.is_empty())?;
    Some(NbdUri {
        place: NbdPlace::Unix(PathBuf::from(socket)),
        export: unescape(export)?,
    })
}

/// QEMU's own way, behind its `nbd:`.
fn qemu(rest: &str) -> Option<NbdUri> {
    let (place, tail) = match rest.strip_prefix("unix:") {
        Some(rest) => {
            let (path, tail) = rest.split_once(':').unwrap_or((rest, ""));
            if path.is_empty() {
                return None;
            }
            (NbdPlace::Unix(PathBuf::from(path)), tail)
        }
        None => {
            let brackets = rest.find(']').unwrap_or(0);
            let port = rest.get(brackets..)?.find(':')? + brackets + 1;
            let end = rest.get(port..)?.find(':').map(|at| at + port);
            let tail = end.and_then(|end| rest.get(end + 1..)).unwrap_or("");
            (tcp(rest.get(..end.unwrap_or(rest.len()))?)?, tail)
        }
    };
    let export = tail.strip_prefix("exportname=").unwrap_or(tail).to_owned();
    Some(NbdUri { place, export })
}

impl FromStr for NbdUri {
    type Err = BdevError;

    fn from_str(text: &str) -> Result<Self, BdevError> {
        let parsed = if let Some(rest) = text.strip_prefix("nbd://") {
            let (place, export) = rest.split_once('/').unwrap_or((rest, ""));
            tcp(place)
                .zip(unescape(export))
                .map(|(place, export)| Self { place, export })
        } else if let Some(rest) = text.strip_prefix("nbd+unix://") {
            unix_uri(rest)
        } else {
            text.strip_prefix("nbd:").and_then(qemu)
        };
        parsed
            .filter(|uri| uri.export.len() <= STRING_BYTES_MAX && !uri.export.contains('\0'))
            .ok_or_else(|| {
                BdevError::Invalid(format!(
                    "{text:?} is no NBD address: nbd://host:port/export, \
                     nbd+unix:///export?socket=/path or nbd:unix:/path:export"
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unix(path: &str, export: &str) -> NbdUri {
        NbdUri {
            place: NbdPlace::Unix(PathBuf::from(path)),
            export: export.to_owned(),
        }
    }

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri {
            place: NbdPlace::Tcp {
                host: host.to_owned(),
                port,
            },
            export: export.to_owned(),
        }
    }

    #[test]
    fn all_forms_are_read() {
        for (text, want) in [
            ("nbd:unix:/run/a.sock", unix("/run/a.sock", "")),
            ("nbd:unix:/run/a.sock:vol", unix("/run/a.sock", "vol")),
            ("nbd:unix:a:exportname=x:y", unix("a", "x:y")),
            ("nbd+unix:///vol?socket=/run/a", unix("/run/a", "vol")),
            ("nbd+unix://?socket=/run/a", unix("/run/a", "")),
            ("nbd+unix:///a%20b?x=1&socket=r%3f", unix("r?", "a b")),
            ("nbd://localhost", tcp("localhost", 10809, "")),
            ("nbd://10.0.0.1:99/vol/1", tcp("10.0.0.1", 99, "vol/1")),
            ("nbd://[::1]:99/", tcp("::1", 99, "")),
            ("nbd://[::1]", tcp("::1", 10809, "")),
            ("nbd:localhost:99", tcp("localhost", 99, "")),
            ("nbd:[::1]:99:exportname=vol", tcp("::1", 99, "vol")),
        ] {
            assert_eq!(text.parse::<NbdUri>().unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_is_none_of_them_is_refused() {
        for text in [
            "",
            "nbd",
            "nbds://host/x",
            "nbd://",
            "nbd://:99",
            "nbd://host:0",
            "nbd://host:65536",
            "nbd://host:port",
            "nbd://[::1",
            "nbd://[::1]99",
            "nbd:host",
            "nbd:unix:",
            "nbd:unix::vol",
            "nbd+unix:///vol",
            "nbd+unix:///vol?socket=",
            "nbd+unix://host/vol?socket=/a",
            "nbd+unix:///%zz?socket=/a",
            "nbd+unix:///%00?socket=/a",
            "nbd+unix:///%ff?socket=/a",
            "/run/nbd.sock",
        ] {
            assert!(text.parse::<NbdUri>().is_err(), "{text}");
        }
        let long = format!("nbd://host/{}", "x".repeat(STRING_BYTES_MAX + 1));
        assert!(long.parse::<NbdUri>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(path in "[^\0]{1,20}", export in "[^\0]{0,20}", port in 1_u16.., six: bool) {
            let host = if six { "fe80::1" } else { "host" };
            for uri in [unix(&path, &export), tcp(host, port, &export)] {
                prop_assert_eq!(uri.to_string().parse::<NbdUri>().unwrap(), uri);
            }
        }

        #[test]
        fn no_text_is_too_odd(prefix in 0..5_usize, rest in ".{0,30}") {
            let prefix = ["nbd:", "nbd://", "nbd+unix://", "nbd:unix:", ""][prefix];
            let _ = format!("{prefix}{rest}").parse::<NbdUri>();
        }
    }
}
