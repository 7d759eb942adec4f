//! The NVMe/TCP target: subsystems with bdevs as namespaces, polled on reactors.
//!
//! [`NvmfTarget`] says what can be reached and where. An acceptor for each listening address, itself a
//! poller, spreads connections over the reactors. A connection is one qpair and a poller; it stays on its
//! reactor. What the qpairs of one controller share, they share through atomics in [`controller`]; the
//! controller lives as long as its admin qpair. Each I/O qpair opens channels of its own to the
//! namespaces that it uses, and drops one only after all that it submitted has completed.
//! Source: spec/nvmf-tcp.md.

mod access;
mod admin;
mod ana;
mod auth;
mod connect;
mod connection;
mod controller;
mod discovery;
mod events;
mod features;
mod identify;
mod io;
mod io_queue;
mod io_status;
mod listener;
mod logs;
mod namespace;
mod namespaces;
mod options;
mod properties;
mod qpair;
mod range_lock;
mod receiver;
mod referrals;
mod replies;
mod slots;
mod stats;
mod subsystem;
mod target;
mod transfer;

pub use access::HostInfo;
pub use ana::AnaState;
pub use auth::{AuthInfo, AuthStage, ChapOffer};
pub use controller::{ControllerInfo, QpairInfo};
pub use listener::ListenAddress;
pub use namespace::{NamespaceConfig, NamespaceInfo, RemovedNamespace};
pub use options::TransportOptions;
pub use referrals::Referral;
pub use stats::ReactorFigures;
pub use subsystem::{HostEvent, RemovedSubsystem, SubsystemConfig, SubsystemInfo};
pub use target::NvmfTarget;

pub use crate::wire::nvme::{ChapGroup, ChapHash};

use crate::wire::nvme::NqnFault;
use std::io as std_io;
use std::net::SocketAddr;

/// Why the target refused.
#[derive(Debug, thiserror::Error)]
pub enum NvmfError {
    /// A name is none.
    #[error("{nqn:?} is no NQN: {source}")]
    BadNqn {
        /// What was given.
        nqn: String,
        /// Why not.
        #[source]
        source: NqnFault,
    },
    /// A parameter is out of bounds.
    #[error("{what}: {value} is not within {min} to {max}")]
    OutOfBounds {
        /// Which.
        what: &'static str,
        /// What was given.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A serial or model number must be 1 to 20 or 40 printable ASCII characters.
    #[error("{what} {value:?} must be 1 to {max} printable ASCII characters")]
    BadText {
        /// Which.
        what: &'static str,
        /// What was given.
        value: String,
        /// The most characters.
        max: usize,
    },
    /// There is a TCP transport.
    #[error("Transport type 'TCP' already exists")]
    TransportExists,
    /// There is no TCP transport yet.
    #[error("there is no TCP transport")]
    NoTransport,
    /// Somebody listens.
    #[error("the TCP transport listens on {0}")]
    TransportInUse(SocketAddr),
    /// There is a subsystem of this name.
    #[error("subsystem {0:?} exists")]
    SubsystemExists(String),
    /// There is none.
    #[error("Subsystem with NQN '{0}' not found")]
    NoSubsystem(String),
    /// The discovery subsystem has no namespaces, and can't be removed.
    #[error("the discovery subsystem does not take that")]
    Discovery,
    /// The namespace's number is taken, or all are.
    #[error("namespace {nsid} of {nqn:?} is taken, or above {max}")]
    NamespaceTaken {
        /// The subsystem.
        nqn: String,
        /// The number; 0 for any.
        nsid: u32,
        /// The highest possible.
        max: u32,
    },
    /// There is no such namespace.
    #[error("{nqn:?} has no namespace {nsid}")]
    NoNamespace {
        /// The subsystem.
        nqn: String,
        /// The number.
        nsid: u32,
    },
    /// The subsystem listens there already.
    #[error("the subsystem listens on {0} already")]
    ListenerExists(SocketAddr),
    /// The subsystem does not listen there.
    #[error("the subsystem does not listen on {0}")]
    NoListener(SocketAddr),
    /// An ANA group must be 1 to the highest namespace number.
    #[error("ANA group {0} is not within 1 to {1}")]
    BadAnaGroup(u32, u32),
    /// The subsystem does not report how good its ways are.
    #[error("{0:?} was made without ANA reporting")]
    NoAna(String),
    /// The host is allowed already.
    #[error("host {0:?} is allowed already")]
    HostExists(String),
    /// The host is not in the list.
    #[error("host {0:?} is not in the list")]
    NoHost(String),
    /// There is no thread to calculate what hosts prove.
    #[error("no thread for authentication: {0}")]
    NoCalculator(#[source] std_io::Error),
    /// The discovery subsystem refers there already.
    #[error("there is a referral to {0} already")]
    ReferralExists(Referral),
    /// It does not.
    #[error("there is no referral to {0}")]
    NoReferral(Referral),
    /// It can't be reached there.
    #[error("no host can connect to {0}")]
    BadReferral(SocketAddr),
    /// The operating system refused.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What it said.
        #[source]
        source: std_io::Error,
    },
    /// There is no reactor to run on, or its inbox is full.
    #[error("no reactor takes the listener")]
    NoReactor,
}
