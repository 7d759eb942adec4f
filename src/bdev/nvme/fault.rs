//! What goes wrong with a controller.

use crate::wire::nvme::{AuthReason, Fault, Status, TermRequest};
use rustix::io::Errno;

/// Why a connection to an NVMe/TCP controller can't begin or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvmeFault {
    /// It sent a PDU that can't be, or not then.
    #[error("the controller's PDU is wrong: {0}")]
    Pdu(#[from] Fault),
    /// It ended the connection for an error of ours, as it sees it.
    #[error("the controller ends the connection: {0}")]
    Terminated(TermRequest),
    /// A command of the set-up failed.
    #[error("{what} failed with status {status:?}")]
    Refused {
        /// Which command.
        what: &'static str,
        /// How it ended.
        status: Status,
    },
    /// It answers a command that was not sent, or not any more.
    #[error("an answer to an unknown command, identifier {0:#x}")]
    Cid(u16),
    /// It answers a command of which it can't have all.
    #[error("an answer to a command that is not all sent, identifier {0:#x}")]
    TooEarly(u16),
    /// Data that no command asked for, or not there.
    #[error("data outside the command, identifier {0:#x}")]
    Outside(u16),
    /// It asks for data that the command has not, or not in order.
    #[error("a request for data that has no place, identifier {0:#x}")]
    R2t(u16),
    /// A command ends well, but not all of its data came.
    #[error("{got} of {wanted} bytes, identifier {cid:#x}")]
    Incomplete {
        /// The command's.
        cid: u16,
        /// Bytes asked for.
        wanted: u32,
        /// Bytes that came.
        got: u32,
    },
    /// Data of the set-up were damaged on their way.
    #[error("data of the set-up do not match their digest")]
    DataDigest,
    /// It has failed, as it says.
    #[error("the controller says that it has failed")]
    Fatal,
    /// It has another identifier than it said first.
    #[error("Connect says controller {connect:#x}, Identify {identify:#x}")]
    ControllerId {
        /// From the answer to Connect.
        connect: u16,
        /// From its page.
        identify: u16,
    },
    /// It is or wants something that this initiator can't do.
    #[error("the controller {0}")]
    Unusable(&'static str),
    /// It wants to know who we are.
    #[error("the controller wants the host to authenticate itself: it has no key")]
    KeyWanted,
    /// It does not take us for who we say we are.
    #[error("the controller does not let the host in: {0}")]
    Unauthenticated(AuthReason),
    /// It has not the key that it should have.
    #[error("the controller does not prove who it is")]
    Untrusted,
    /// What it says of authentication is wrong.
    #[error("the controller's authentication is wrong: {0}")]
    Authentication(AuthReason),
    /// There is nobody to calculate, or there are no random bytes.
    #[error("nothing to calculate the authentication with")]
    NoCalculation,
    /// A namespace is not what it was.
    #[error("namespace {nsid} has another {what} than before")]
    Changed {
        /// Which namespace.
        nsid: u32,
        /// What differs.
        what: &'static str,
    },
    /// It can do less than before.
    #[error("the controller has {0} than before")]
    Weaker(&'static str),
    /// It has not this namespace.
    #[error("the controller has no namespace {0}")]
    NoNamespace(u32),
    /// It gave no sign of life.
    #[error("no answer to Keep Alive in time")]
    Unanswered,
    /// The controller that the queue belongs to is gone.
    #[error("the association has ended")]
    AssociationEnded,
    /// It hung up.
    #[error("the controller has hung up")]
    End,
    /// The socket failed, or could not be made.
    #[error("the socket failed: {0}")]
    Socket(#[from] Errno),
    /// It does not get through the set-up.
    #[error("not set up in time")]
    Timeout,
    /// It did not answer what its user has given up.
    #[error("given up by its user")]
    GivenUp,
}

impl NvmeFault {
    /// The nearest number of the operating system.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            // What is said to one who has hung up: when is a matter of chance.
            Self::Socket(Errno::PIPE) => Errno::CONNRESET,
            Self::Socket(errno) => *errno,
            Self::Refused {
                what: "Connect",
                status,
            } if *status == Status::INVALID_HOST => Errno::ACCESS,
            Self::KeyWanted | Self::Unauthenticated(_) | Self::Untrusted => Errno::ACCESS,
            Self::NoCalculation => Errno::BUSY,
            Self::Refused {
                what: "Connect", ..
            } => Errno::CONNREFUSED,
            Self::Refused { .. } | Self::Fatal => Errno::IO,
            Self::NoNamespace(_) => Errno::NODEV,
            Self::Unusable(_) => Errno::OPNOTSUPP,
            Self::End | Self::AssociationEnded | Self::Terminated(_) => Errno::CONNRESET,
            Self::Timeout | Self::Unanswered => Errno::TIMEDOUT,
            Self::GivenUp => Errno::CANCELED,
            Self::Changed { .. } | Self::Weaker(_) => Errno::STALE,
            _ => Errno::PROTO,
        }
    }
}
