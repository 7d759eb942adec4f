//! Files and block devices through io_uring, under both of SPDK's names: "URING bdev", "AIO disk".
//!
//! All channels of a reactor share one ring, its `hub`. A request becomes a `job`, which takes one
//! or more steps in the kernel; `sys` alone touches what the kernel touches.

mod channel;
mod device;
mod file;
mod hub;
mod job;
mod sys;
mod sysfs;
#[cfg(test)]
mod tests;

pub use device::{UringBdev, UringConfig, UringKind};
