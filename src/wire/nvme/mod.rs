//! NVMe over Fabrics on TCP: PDUs, commands, completions, and the pages that controllers tell hosts.
//!
//! Little-endian throughout. "0-based" fields hold one less than they mean. Source: spec/nvmf-tcp.md, which
//! cites NVMe Base 2.0, NVMe/TCP Transport 1.0 and NVM Command Set 1.0.

mod auth;
mod command;
mod fabrics;
mod header;
mod host;
mod identify;
mod log;
mod nqn;
mod pdu;
mod status;

pub use auth::{
    AUTH_BYTES_MAX, AuthCommand, AuthMessage, AuthReason, Challenge, ChapGroup, ChapHash, ChapKey,
    DH_EXPONENT_BYTES, DhSecret, KeyFault, Negotiate, Proof, Prover, Reply, SharedSecret, Success1,
};
pub use command::{Cqe, Fuse, IoRange, Sqe, data_direction, sgl};
pub use command::{DataDirection, DsmRange, admin, fctype, feature, io};
pub use fabrics::{ConnectCommand, ConnectData, PropertyCommand, cc, connect_flag, csts, property};
pub use header::{
    Alignment, Digests, Direction, Fault, FaultKind, HEADER_BYTES, HEADER_BYTES_MAX, Header, Kind,
    Limits, digest, flag,
};
pub use host::{
    Agreed, Capabilities, ControllerTold, Identities, NamespaceTold, NvmControllerTold,
    RunningDigest, TermRequest, namespace_list,
};
pub use identify::{
    ControllerPage, NamespacePage, cns, put_descriptors, put_namespace_list, put_nvm_controller,
};
pub use log::{
    AnaGroup, DiscoveryEntry, EventInfo, SmartFigures, ana_log, async_event, discovery_log,
    effects_log, log_id, smart_log,
};
pub use nqn::{DISCOVERY_NQN, NQN_BYTES_MAX, NqnFault, check_nqn};
pub use pdu::{CapsuleCmdPdu, CapsuleRespPdu, DataPdu, IcPdu, R2tPdu, put_term};
pub use status::{Status, StatusType};

/// Bytes of an Identify page.
pub const IDENTIFY_BYTES: usize = 4096;

/// The port that NVMe/TCP is registered for.
pub const DEFAULT_PORT: u16 = 4420;
