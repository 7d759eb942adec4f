//! The one binary: its commands, the service that `serve` runs, and the RPC methods.
//!
//! Only this module knows everybody. Its state lives on control threads, which may wait for each
//! other (`shared`); reactors are reached by messages only.

mod announce;
mod bdevs;
mod bench;
mod caches;
mod check;
mod cli;
mod config;
mod defaults;
mod grown;
mod keyring;
mod log;
mod methods;
mod nbd;
mod notices;
mod nvmf;
mod observer;
mod reference;
mod resizes;
mod rpc_client;
mod serve;
mod service;
mod shared;
mod simulate;
mod vhost;
mod vhost_client;

pub use cli::main;
