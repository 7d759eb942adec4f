//! The NBD protocol, fixed newstyle: what both ends say, as bytes and as structs.
//!
//! Everything is big-endian. Decoders take what has arrived so far and answer `None` while it is
//! not enough; no bytes make them panic.

mod chunk;
mod client;
mod handshake;
mod option;
mod reader;
mod reply;
mod request;

pub use chunk::{StatusExtent, WireErrno, put_block_status, put_error_chunk, put_none_chunk};
pub use chunk::{put_data_chunk_header, put_simple_reply};
pub use client::{ClientOption, Greeting, InfoAnswer, OptionReplyHeader, OptionVerdict};
pub use handshake::{ClientFlags, ExportSummary, OptionHeader, OptionReply};
pub use handshake::{put_export_name_reply, put_greeting};
pub use option::{InfoKind, InfoRequest, MetaRequest, NbdOption, OptionFault};
pub use reply::{ChunkKind, ReplyHeader, data_offset, error_code, hole};
pub use request::{Command, CommandFlags, RequestHeader};

/// The port that NBD is registered for.
pub const DEFAULT_PORT: u16 = 10809;

/// First word of the greeting: "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and first of each option: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of an option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The longest export name, description or context name, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// What an export can do: the transmission flags.
pub mod export_flags {
    /// Set always.
    pub const HAS_FLAGS: u16 = 1;
    /// Takes no writes.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Behaves like a spinning disk.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF works on READ; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the writes completed on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `FAST_ZERO` is understood on `WRITE_ZEROES`.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Why there is no going on with this peer: the stream is out of step, or never was NBD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// An option does not begin with its magic.
    #[error("an option begins with {0:#018x} instead of the option magic")]
    OptionMagic(u64),
    /// The client's flags have bits that the server did not offer.
    #[error("client flags {0:#x} have unknown bits")]
    ClientFlags(u32),
    /// The server's first words are not those of newstyle NBD.
    #[error("a greeting has {0:#018x} where newstyle NBD has its magic")]
    GreetingMagic(u64),
    /// The answer to an option does not begin with its magic.
    #[error("an option reply begins with {0:#018x} instead of its magic")]
    OptionReplyMagic(u64),
    /// The answer to a request begins with neither magic.
    #[error("a reply begins with {0:#010x} instead of a reply magic")]
    ReplyMagic(u32),
    /// A request does not begin with its magic.
    #[error("a request begins with {0:#010x} instead of the request magic")]
    RequestMagic(u32),
}
