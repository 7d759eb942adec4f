//! Qualified names of subsystems and hosts.

/// The name under which every target lists what it has.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// The longest name in bytes.
pub const NQN_BYTES_MAX: usize = 223;
const NQN_BYTES_MIN: usize = 11;

/// Why a name is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnFault {
    /// Not 11 to 223 bytes.
    #[error("a name of {0} bytes: 11 to 223 are possible")]
    Length(usize),
    /// Neither `nqn.YYYY-MM.` with a reversed domain, nor the form with a UUID.
    #[error("neither nqn.YYYY-MM.reverse.domain:name nor nqn.2014-08.org.nvmexpress:uuid:UUID")]
    Form,
}

/// Checks the form of a qualified name (NVMe Base 2.0, 4.7).
///
/// # Errors
/// [`NqnFault`].
pub fn check_nqn(nqn: &str) -> Result<(), NqnFault> {
    if !(NQN_BYTES_MIN..=NQN_BYTES_MAX).contains(&nqn.len()) {
        return Err(NqnFault::Length(nqn.len()));
    }
    let rest = nqn.strip_prefix("nqn.").ok_or(NqnFault::Form)?;
    if let Some(uuid) = rest.strip_prefix("2014-08.org.nvmexpress:uuid:") {
        return match uuid::Uuid::try_parse(uuid) {
            Ok(_) if uuid.len() == 36 => Ok(()),
            _ => Err(NqnFault::Form),
        };
    }
    let (date, rest) = rest.split_at_checked(8).ok_or(NqnFault::Form)?;
    let is_date = date.bytes().zip(*b"0000-00.").all(|(is, like)| match like {
        b'0' => is.is_ascii_digit(),
        _ => is == like,
    });
    // The discovery name alone has no part behind a colon.
    let (domain, name) = rest.split_once(':').unwrap_or((rest, "x"));
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let has_colon = rest.contains(':') || nqn == DISCOVERY_NQN;
    let printable = name.chars().all(|c| !c.is_control());
    if is_date && has_colon && domain.split('.').all(is_label) && !name.is_empty() && printable {
        Ok(())
    } else {
        Err(NqnFault::Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_others() {
        for good in [
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-4333-8444-555555555555",
            DISCOVERY_NQN,
            "nqn.2026-11.x:y",
        ] {
            assert_eq!(check_nqn(good), Ok(()), "{good}");
        }
        for bad in [
            "nqn.2016-6.io.spdk:cnode1",
            "nqn.2016-06.io..spdk:cnode1",
            "nqn.2016-06.-io.spdk:cnode1",
            "nqn.2016-06.io.spdk",
            "nqn.2016-06.io.spdk:",
            "nqn.2016-06.io.spdk:a\nb",
            "nqn.2014-08.org.nvmexpress:uuid:1111",
            "iqn.2016-06.io.spdk:cnode1",
            "nqn.2016-0é.io.spdk:cnode1",
        ] {
            assert_eq!(check_nqn(bad), Err(NqnFault::Form), "{bad}");
        }
        assert_eq!(check_nqn("nqn.2016"), Err(NqnFault::Length(8)));
        let long = format!("nqn.2016-06.io.spdk:{}", "a".repeat(204));
        assert_eq!(check_nqn(&long), Err(NqnFault::Length(224)));
    }
}
