//! pmcache: a user-space, polled-mode persistent-memory write-back cache for block devices.
//!
//! `docs/architecture.md` says how the modules fit together; imports point down only, and
//! `tests/layers.rs` enforces it.

pub mod app;
pub mod bdev;
pub mod bench;
pub mod cache;
pub mod media;
pub mod sim;
pub mod target;
pub mod units;
pub mod wire;
