//! What each fuzz target does with its bytes, and what must then be true.
//!
//! The targets in `fuzz/fuzz_targets` hand them new inputs, `tests/fuzz_corpus.rs` the committed ones.
//! They assert invariants only, so that an input stays good when a format changes.
#![allow(dead_code, reason = "each target uses its part")]

mod input;
pub(crate) mod media;
pub(crate) mod nbd_session;
pub(crate) mod nbd_wire;
pub(crate) mod nvmf_session;
pub(crate) mod nvmf_wire;
pub(crate) mod pool_open;
pub(crate) mod rpc;
pub(crate) mod vhost;

#[path = "../../tests/rig/mod.rs"]
mod rig;
