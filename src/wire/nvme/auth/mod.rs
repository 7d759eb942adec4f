//! In-band authentication: DH-HMAC-CHAP (spec/nvmf-tcp.md, section 10).
//!
//! `message` holds what is said, `key` the secret that two sides share, `chap` how one proves to the
//! other that it has it, and `group` the Diffie-Hellman exchange that keeps a listener from trying out
//! keys at home. Nothing here draws lots: whatever must be random is a parameter.

mod chap;
mod group;
mod key;
mod message;
mod primes;
#[cfg(test)]
mod tests;

pub use chap::{ChapHash, Proof, Prover};
pub use group::{ChapGroup, DH_EXPONENT_BYTES, DhSecret, SharedSecret};
pub use key::{ChapKey, KeyFault};
pub use message::{
    AUTH_BYTES_MAX, AuthCommand, AuthMessage, AuthReason, Challenge, Negotiate, Reply, Success1,
};
