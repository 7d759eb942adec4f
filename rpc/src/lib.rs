//! JSON-RPC 2.0 over a Unix socket, and over TCP on this machine, framed as SPDK's clients expect. Knows no storage.
//!
//! A [`Registry`] holds the methods, each with typed parameters; a [`Listener`] is the socket with
//! its lock file; a [`Server`] answers on it, one thread per connection, so that a slow method
//! delays only the connection that called it. [`Client`] is the other end.

mod client;
mod describe;
mod error;
mod frame;
mod method;
mod params;
mod request;
mod server;
mod socket;
mod stream;

pub use client::{Client, ClientError};
pub use describe::{Description, Param};
pub use error::Error;
pub use method::{Allowed, Method, Phase, Phased, Registry};
pub use params::Params;
pub use server::{Limits, Server};
pub use socket::{Listener, ListenerError};
