//! Configurations: the same methods as over RPC, in order, in SPDK's layout (`file`).
//!
//! `subsystems` tells who has what to save; `save` puts the calls of the bdevs in order. `load` makes
//! the calls of a file, of a service that starts (`start`) or of one that runs (`client`, the command
//! `pmcache config`), and unmakes what they made if one fails. Objects whose device is absent when the
//! service starts are kept in a list (`unresolved`) and come up when it appears.

mod call;
mod client;
mod file;
mod load;
mod object;
mod save;
mod save_nvmf;
mod start;
mod subsystems;
mod unresolved;

pub(super) use call::{Call, Recipe};
pub(super) use client::{ConfigArgs, run};
pub(super) use object::{Object, Place};
pub(super) use start::{apply_file, watch};
pub(super) use subsystems::{Subsystem, subsystems};
pub(super) use unresolved::{MissingCache, Unresolved};
