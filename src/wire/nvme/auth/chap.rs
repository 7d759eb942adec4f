//! Hashes, and the proof that somebody has a key.

use super::group::SharedSecret;
use super::key::ChapKey;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A hash that two sides may agree on; from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChapHash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl ChapHash {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// Its identifier in messages.
    #[must_use]
    pub fn id(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha384 => 2,
            Self::Sha512 => 3,
        }
    }

    /// The one with this identifier.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.id() == id)
    }

    /// Bytes of its values.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    fn of(self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        })
    }
}

fn mac<M: KeyInit + Mac>(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else {
        unreachable!("an HMAC takes a key of any length");
    };
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

/// The HMAC of `parts`, one behind the other.
pub(super) fn hmac(hash: ChapHash, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    match hash {
        ChapHash::Sha256 => mac::<Hmac<Sha256>>(key, parts),
        ChapHash::Sha384 => mac::<Hmac<Sha384>>(key, parts),
        ChapHash::Sha512 => mac::<Hmac<Sha512>>(key, parts),
    }
}

/// Who proves that it has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prover {
    /// The host.
    Host,
    /// The controller.
    Controller,
}

/// All that a proof is about, without the key.
#[derive(Clone, Copy)]
pub struct Proof<'a> {
    /// The hash that was agreed on.
    pub hash: ChapHash,
    /// Whose it is.
    pub prover: Prover,
    /// The host's name.
    pub hostnqn: &'a str,
    /// The subsystem's.
    pub subnqn: &'a str,
    /// Of the whole conversation.
    pub transaction: u16,
    /// Of the challenge.
    pub sequence: u32,
    /// What the other side asked.
    pub challenge: &'a [u8],
    /// What the exchange came to; nothing with the null group.
    pub secret: Option<&'a SharedSecret>,
}

impl fmt::Debug for Proof<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hash, prover, .. } = self;
        write!(f, "Proof({hash:?}, {prover:?})")
    }
}

impl Proof<'_> {
    /// The answer of one who has `key`.
    #[must_use]
    pub fn response(&self, key: &ChapKey) -> Zeroizing<Vec<u8>> {
        let (role, own, other): (&[u8], _, _) = match self.prover {
            Prover::Host => (b"HostHost", self.hostnqn, self.subnqn),
            Prover::Controller => (b"Controller", self.subnqn, self.hostnqn),
        };
        let augmented = self.secret.map(|secret| {
            let session = self.hash.of(secret.bytes());
            hmac(self.hash, &session, &[self.challenge])
        });
        let challenge = augmented.as_deref().map_or(self.challenge, Vec::as_slice);
        let parts: [&[u8]; 8] = [
            challenge,
            &self.sequence.to_le_bytes(),
            &self.transaction.to_le_bytes(),
            // SC_C: no secure channel is made of it.
            &[0],
            role,
            own.as_bytes(),
            &[0],
            other.as_bytes(),
        ];
        hmac(self.hash, &key.of(own), &parts)
    }

    /// Whether `response` is the answer of one who has `key`. How long this takes tells nothing of where
    /// they differ.
    #[must_use]
    pub fn is_proved_by(&self, response: &[u8], key: &ChapKey) -> bool {
        self.response(key).as_slice().ct_eq(response).into()
    }
}
