//! The simulator: the engine itself, unchanged, on a simulated clock, scheduler, medium and disks, all
//! on one thread. One seed is one run, on any machine.
//!
//! `docs/testing.md` says what it does to the engine and what must hold; [`Campaign`] runs it.

mod campaign;
mod clients;
mod damage;
mod decay;
mod disk;
mod life;
mod lives;
mod mix;
mod pages;
mod plan;
mod pmem;
mod resizes;
mod rng;
mod sectors;
mod trace;
mod universe;
mod world;

pub use campaign::{Campaign, Failure, Totals};
pub use plan::Profile;

/// Why a campaign can't be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// There is no such profile.
    #[error("there is no profile {name:?}")]
    Profile {
        /// What was asked for.
        name: String,
    },
    /// No thread to run on.
    #[error("threads: {0}")]
    Threads(String),
}
