//! The Diffie-Hellman groups of RFC 7919.

use super::primes::{FFDHE2048, FFDHE3072, FFDHE4096, FFDHE6144, FFDHE8192};
use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd, Resize};
use std::fmt;
use zeroize::Zeroizing;

/// Bytes of an exponent. RFC 7919 recommends from 225 bits (ffdhe2048) to 400 (ffdhe8192); more cost time
/// and win nothing.
pub const DH_EXPONENT_BYTES: usize = 64;
const EXPONENT_BITS: u32 = 512;

/// A group that two sides may agree on; from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChapGroup {
    /// No exchange.
    Null,
    /// 2048 bits.
    Ffdhe2048,
    /// 3072 bits.
    Ffdhe3072,
    /// 4096 bits.
    Ffdhe4096,
    /// 6144 bits.
    Ffdhe6144,
    /// 8192 bits.
    Ffdhe8192,
}

/// An exponent. Forgotten thoroughly when dropped, and never shown.
pub struct DhSecret(Zeroizing<[u8; DH_EXPONENT_BYTES]>);

impl DhSecret {
    /// Of bytes that nobody can guess.
    #[must_use]
    pub fn new(random: Zeroizing<[u8; DH_EXPONENT_BYTES]>) -> Self {
        Self(random)
    }
}

impl fmt::Debug for DhSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DhSecret")
    }
}

/// What only the two sides of an exchange know. Forgotten thoroughly when dropped, and never shown.
pub struct SharedSecret(Zeroizing<Vec<u8>>);

impl SharedSecret {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret")
    }
}

/// A number that leaves nothing behind.
type Hidden = Zeroizing<BoxedUint>;

impl ChapGroup {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Null,
        Self::Ffdhe2048,
        Self::Ffdhe3072,
        Self::Ffdhe4096,
        Self::Ffdhe6144,
        Self::Ffdhe8192,
    ];

    /// Its identifier in messages.
    #[must_use]
    pub fn id(self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 1,
            Self::Ffdhe3072 => 2,
            Self::Ffdhe4096 => 3,
            Self::Ffdhe6144 => 4,
            Self::Ffdhe8192 => 5,
        }
    }

    /// The one with this identifier.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.id() == id)
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ffdhe2048 => "ffdhe2048",
            Self::Ffdhe3072 => "ffdhe3072",
            Self::Ffdhe4096 => "ffdhe4096",
            Self::Ffdhe6144 => "ffdhe6144",
            Self::Ffdhe8192 => "ffdhe8192",
        }
    }

    /// Bytes of its numbers; none in the null group.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.prime().map_or(0, |(_, bits)| bits as usize / 8)
    }

    fn prime(self) -> Option<(&'static str, u32)> {
        Some(match self {
            Self::Null => return None,
            Self::Ffdhe2048 => (FFDHE2048, 2048),
            Self::Ffdhe3072 => (FFDHE3072, 3072),
            Self::Ffdhe4096 => (FFDHE4096, 4096),
            Self::Ffdhe6144 => (FFDHE6144, 6144),
            Self::Ffdhe8192 => (FFDHE8192, 8192),
        })
    }

    fn modulus(self) -> Option<(Odd<BoxedUint>, u32)> {
        let (hex, bits) = self.prime()?;
        let prime = BoxedUint::from_be_hex(hex, bits).into_option()?;
        Some((prime.into_odd().into_option()?, bits))
    }

    /// `base` to the power of the secret, in a time that does not depend on the secret.
    fn power(modulus: Odd<BoxedUint>, base: BoxedUint, secret: &DhSecret) -> Option<Hidden> {
        let exponent = BoxedUint::from_be_slice(secret.0.as_slice(), EXPONENT_BITS).ok()?;
        let exponent = Zeroizing::new(exponent);
        let params = BoxedMontyParams::new_vartime(modulus);
        let base = BoxedMontyForm::new(base, &params);
        let power = Zeroizing::new(base.pow_bounded_exp(&exponent, EXPONENT_BITS));
        Some(Zeroizing::new(power.retrieve()))
    }

    /// What the other side is told, big-endian; empty in the null group. Takes milliseconds: not for
    /// reactors.
    #[must_use]
    pub fn public(self, secret: &DhSecret) -> Vec<u8> {
        let public = || {
            let (modulus, bits) = self.modulus()?;
            let two = BoxedUint::from(2_u8).resize(bits);
            Some(Self::power(modulus, two, secret)?.to_be_bytes().into_vec())
        };
        public().unwrap_or_default()
    }

    /// What both sides come to, of what the other side has told; nothing if that is none of the group's
    /// numbers, or gives the secret away. Takes milliseconds: not for reactors.
    #[must_use]
    pub fn shared(self, secret: &DhSecret, told: &[u8]) -> Option<SharedSecret> {
        let (modulus, bits) = self.modulus()?;
        if told.len() != self.bytes() {
            return None;
        }
        let told = BoxedUint::from_be_slice(told, bits).ok()?;
        // 0, 1 and p − 1 are fixed whatever the exponent is.
        let one = BoxedUint::one_with_precision(bits);
        let last = modulus.as_ref().wrapping_sub(&one);
        if told <= one || told >= last {
            return None;
        }
        let shared = Self::power(modulus, told, secret)?;
        let bytes = shared.to_be_bytes().into_vec();
        Some(SharedSecret(Zeroizing::new(bytes)))
    }
}
