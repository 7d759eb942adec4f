//! A client of vhost-user-blk back ends as a bdev: its virtqueues are polled on reactors.
//!
//! The protocol and the rings are those of the `virtio-driver` crate. A back end serves one front end
//! at a time, so all channels of a bdev share one `connection`, and each has one of its queues, a
//! `ring`, to itself. The crate blocks while it talks to the back end; so that is done by a thread that
//! the caller provides, the `keeper`: it connects, looks whether the back end is still there, and
//! connects again if it is not. A channel is a `link`: `jobs` cuts requests into commands.
//!
//! The back end sees only what is shared with it: the rings, and buffers beside them. Payload is copied
//! between these and the memory of requests, which is ordinary memory.

mod connection;
mod device;
mod disk;
mod fault;
mod jobs;
mod keeper;
mod link;
mod ring;

pub use device::{VhostBdev, VhostConfig};
pub use fault::VhostFault;
pub use keeper::Keeper;
