//! A client of NBD servers as a bdev: fixed newstyle, on Unix sockets and TCP, polled on reactors.
//!
//! `uri` says where, `negotiation` speaks the handshake, and `opening` takes a socket through it
//! without ever waiting; making the bdev does the same on a control thread, to learn size and abilities.
//! A channel is one connection, its `link`: `jobs` cuts requests into commands, `outbox` sends them
//! many at a time, and `replies` puts the answers together again. A server that breaks the protocol
//! or goes away fails all that is under way, and its channel with it; nothing connects again, since
//! nobody knows what a server that came back has forgotten.

mod device;
mod fault;
mod jobs;
mod link;
mod negotiation;
mod opening;
mod outbox;
mod replies;
mod uri;

pub use device::{NbdBdev, NbdConfig};
pub use fault::NbdFault;
pub use uri::{NbdPlace, NbdUri};
