//! Protocol bytes and the structs they mean, shared by targets and initiators. No I/O.

pub mod nbd;
pub mod nvme;
pub mod virtio;
