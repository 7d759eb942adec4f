//! What exports bdevs to hosts, guests and tools. A target sees only the bdev trait.

pub mod nbd;
mod unix_socket;
pub mod vhost;
