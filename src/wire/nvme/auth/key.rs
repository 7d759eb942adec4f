//! A key, as people hand it on: `DHHC-1:hh:base64(key ‖ CRC-32):`.

use super::chap::{ChapHash, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, checksum};
use std::fmt;
use zeroize::Zeroizing;

/// Bytes of the sum behind the key.
const SUM_BYTES: usize = 4;

/// What is wrong with a key's text. Says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// It has not this form.
    #[error("it is not of the form DHHC-1:hh:base64:")]
    Form,
    /// `hh` is none of 00 to 03.
    #[error("its hash is not 00, 01, 02 or 03")]
    Hash,
    /// What should be base64 is not.
    #[error("its middle is not base64")]
    Base64,
    /// Keys have other lengths.
    #[error("it has {0} bytes: 32, 48 and 64 are possible")]
    Length(usize),
    /// It is made for a hash of another length.
    #[error("it has {got} bytes, but its hash {wanted}")]
    HashLength {
        /// The key's.
        got: usize,
        /// The hash's.
        wanted: usize,
    },
    /// Something was mistyped.
    #[error("its sum is wrong")]
    Sum,
}

/// A secret that a host or a controller proves to have. Forgotten thoroughly when dropped, and never
/// shown.
#[derive(Clone)]
pub struct ChapKey {
    /// With which each name gets a key of its own made of this one; without, it is used as it is.
    hash: Option<ChapHash>,
    bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for ChapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChapKey")
    }
}

impl ChapKey {
    /// Reads a key's text; white space around it does not count.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let mut parts = text.trim_ascii().split(':');
        let (Some("DHHC-1"), Some(hash), Some(middle), Some(""), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(KeyFault::Form);
        };
        let hash = match hash {
            "00" => None,
            "01" => Some(ChapHash::Sha256),
            "02" => Some(ChapHash::Sha384),
            "03" => Some(ChapHash::Sha512),
            _ => return Err(KeyFault::Hash),
        };
        let decoded = STANDARD.decode(middle).map_err(|_no| KeyFault::Base64)?;
        let mut bytes = Zeroizing::new(decoded);
        let len = bytes.len().saturating_sub(SUM_BYTES);
        if !matches!(len, 32 | 48 | 64) {
            return Err(KeyFault::Length(len));
        }
        if let Some(wanted) = hash.map(ChapHash::bytes).filter(|wanted| *wanted != len) {
            return Err(KeyFault::HashLength { got: len, wanted });
        }
        let (key, sum) = bytes.split_at(len);
        let wanted = checksum(CrcAlgorithm::Crc32IsoHdlc, key).to_le_bytes();
        if wanted.get(..SUM_BYTES) != Some(sum) {
            return Err(KeyFault::Sum);
        }
        bytes.truncate(len);
        Ok(Self { hash, bytes })
    }

    /// The key that whoever is called `nqn` proves to have.
    pub(super) fn of(&self, nqn: &str) -> Zeroizing<Vec<u8>> {
        match self.hash {
            None => self.bytes.clone(),
            Some(hash) => hmac(hash, &self.bytes, &[nqn.as_bytes(), b"NVMe-over-Fabrics"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys 00 01 02 …; the texts are made by Python:
    /// `base64.b64encode(key + zlib.crc32(key).to_bytes(4, "little"))`.
    const TEXTS: [&str; 4] = [
        "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
        "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
        "DHHC-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:",
        "DHHC-1:03:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P4zODhA=:",
    ];

    #[test]
    fn keys_are_read() {
        for (text, len) in TEXTS.iter().zip([32, 32, 48, 64]) {
            let key = ChapKey::parse(&format!("{text}\n")).unwrap();
            let wanted: Vec<u8> = (0..len).collect();
            assert_eq!(*key.bytes, wanted);
            assert_eq!(format!("{key:?}"), "ChapKey");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let [plain, of_256, of_384, _] = TEXTS;
        let fault = |text: &str| ChapKey::parse(text).err();
        for text in [
            "",
            "DHHC-1",
            "DHHC-2:00:AA:",
            "DHHC-1:00:AA",
            "DHHC-1:00:AA::",
        ] {
            assert_eq!(fault(text), Some(KeyFault::Form), "{text}");
        }
        let with = |from, to| fault(&plain.replacen(from, to, 1));
        assert_eq!(with(":00:", ":04:"), Some(KeyFault::Hash));
        assert_eq!(with("AAEC", "AA*C"), Some(KeyFault::Base64));
        assert_eq!(with("AAEC", "AAED"), Some(KeyFault::Sum));
        assert_eq!(with("AAECAwQF", "AAEC"), Some(KeyFault::Length(29)));
        assert_eq!(fault("DHHC-1:00::"), Some(KeyFault::Length(0)));
        let wrong = |text: &str, from, to| fault(&text.replacen(from, to, 1));
        let lengths = |got, wanted| Some(KeyFault::HashLength { got, wanted });
        assert_eq!(wrong(of_256, ":01:", ":03:"), lengths(32, 64));
        assert_eq!(wrong(of_384, ":02:", ":01:"), lengths(48, 32));
    }

    /// Python: `hmac.new(key, b"nqn.2026-11.a:host" + b"NVMe-over-Fabrics", "sha256").hexdigest()`.
    #[test]
    fn a_name_has_a_key_of_its_own() {
        let [plain, of_256, ..] = TEXTS.map(|text| ChapKey::parse(text).unwrap());
        let nqn = "nqn.2026-11.a:host";
        assert_eq!(plain.of(nqn), plain.bytes);
        let hex: String = of_256.of(nqn).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "5cc210ffd5de55f981e1f1fa233c7bb1634d7627dd41dd8b652f64e847112fda"
        );
    }
}
