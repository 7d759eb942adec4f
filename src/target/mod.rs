//! What exports bdevs to hosts, guests and tools. A target sees only the bdev trait.

pub mod nbd;
pub mod nvmf;
mod stream;
mod unix_socket;
pub mod vhost;
