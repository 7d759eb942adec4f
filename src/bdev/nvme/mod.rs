//! A host of NVMe/TCP controllers: their namespaces as bdevs, polled on reactors.
//!
//! A control thread attaches a `controller`: it takes a `dialogue` (one connection, one command at a
//! time) through the `setup` (and through `auth`, if it wants to know who we are), and leaves it to a
//! `keeper`, a poller that keeps it `live`, by signs of life and events that tell of namespaces, and
//! makes the association anew when it is lost. Each reactor that opens a bdev has one I/O queue, its
//! `link`: `jobs` cuts requests into commands, `outbox` sends them many at a time, and `receive` puts the
//! data where the requests want them. What was under way when a connection ended is sent again on the
//! next, in its old order and before anything newer. `unflushed` knows what a controller that came back
//! may have forgotten.

mod auth;
mod config;
mod controller;
mod dialogue;
mod fault;
mod jobs;
mod keeper;
mod link;
mod live;
mod outbox;
mod plan;
mod receive;
mod setup;
mod shared;
mod unflushed;
mod uri;
mod watch;

pub use auth::NvmeAuth;
pub use config::{NvmeConfig, Patience};
pub use controller::{ControllerFacts, ControllerState, NvmeBdev, NvmeController};
pub use fault::NvmeFault;
pub use uri::NvmeUri;
