//! What the server answers to requests.

use super::{CHUNK_MAGIC, ChunkKind, SIMPLE_REPLY_MAGIC};

pub(super) const DONE: u16 = 1;

/// An error number as NBD knows it; the same on every operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireErrno {
    /// Not permitted: a write to a read-only export.
    Perm,
    /// The device failed.
    Io,
    /// The request makes no sense here.
    Invalid,
    /// A write behind the end, or no room.
    NoSpace,
    /// Not possible, or not possible fast.
    NotSupported,
    /// The server or the export is going away.
    Shutdown,
}

impl WireErrno {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }

    /// What a number on the wire means; nothing if NBD has none such.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        [
            Self::Perm,
            Self::Io,
            Self::Invalid,
            Self::NoSpace,
            Self::NotSupported,
            Self::Shutdown,
        ]
        .into_iter()
        .find(|errno| errno.code() == code)
    }

    /// What to tell people, where the protocol has room for it.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Perm => "the export is read-only",
            Self::Io => "I/O error",
            Self::Invalid => "unknown, unaligned or out of range",
            Self::NoSpace => "behind the end of the export",
            Self::NotSupported => "not supported",
            Self::Shutdown => "shutting down",
        }
    }
}

/// A run in the answer to `BLOCK_STATUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes.
    pub len: u32,
    /// What the context says of it.
    pub flags: u32,
}

/// A simple reply; the data of a READ follow it. `error`: 0 for success.
pub fn put_simple_reply(cookie: u64, error: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

fn put_chunk_header(cookie: u64, flags: u16, kind: u16, len: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// The final chunk of a success without data.
pub fn put_none_chunk(cookie: u64, out: &mut Vec<u8>) {
    put_chunk_header(cookie, DONE, ChunkKind::NONE, 0, out);
}

/// The head of the only chunk of a READ; `len` bytes of data from `offset` follow it.
///
/// `len`: 1 to 2^32 − 9.
pub fn put_data_chunk_header(cookie: u64, offset: u64, len: u32, out: &mut Vec<u8>) {
    put_chunk_header(
        cookie,
        DONE,
        ChunkKind::OFFSET_DATA,
        len.saturating_add(8),
        out,
    );
    out.extend_from_slice(&offset.to_be_bytes());
}

/// The only chunk of a failed request.
pub fn put_error_chunk(cookie: u64, errno: WireErrno, out: &mut Vec<u8>) {
    let message = errno.message();
    let message_len = u16::try_from(message.len()).unwrap_or(0);
    let len = u32::from(message_len) + 6;
    put_chunk_header(cookie, DONE, ChunkKind::ERROR, len, out);
    out.extend_from_slice(&errno.code().to_be_bytes());
    out.extend_from_slice(&message_len.to_be_bytes());
    out.extend_from_slice(message.as_bytes());
}

/// One context's answer to `BLOCK_STATUS`; `done` on that of the last context.
///
/// `extents`: at least one, at most 2^28.
pub fn put_block_status(
    cookie: u64,
    done: bool,
    context: u32,
    extents: &[StatusExtent],
    out: &mut Vec<u8>,
) {
    let len = u32::try_from(extents.len() * 8 + 4).unwrap_or(u32::MAX);
    let flags = if done { DONE } else { 0 };
    put_chunk_header(cookie, flags, ChunkKind::BLOCK_STATUS, len, out);
    out.extend_from_slice(&context.to_be_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.len.to_be_bytes());
        out.extend_from_slice(&extent.flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = vec![];
        put(&mut out);
        out.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn replies_are_the_documented_bytes() {
        assert_eq!(
            hex(|out| put_simple_reply(0xa1, 22, out)),
            "674466980000001600000000000000a1"
        );
        assert_eq!(
            hex(|out| put_none_chunk(0xa1, out)),
            "668e33ef0001000000000000000000a100000000"
        );
        assert_eq!(
            hex(|out| put_data_chunk_header(0xa1, 0x1000, 512, out)),
            "668e33ef0001000100000000000000a1000002080000000000001000"
        );
        assert_eq!(
            hex(|out| put_error_chunk(0xa1, WireErrno::Io, out)),
            "668e33ef0001800100000000000000a10000000f000000050009492f4f206572726f72"
        );
    }

    #[test]
    fn only_the_last_status_chunk_is_done() {
        let extents = [
            StatusExtent { len: 512, flags: 3 },
            StatusExtent {
                len: 1024,
                flags: 0,
            },
        ];
        assert_eq!(
            hex(|out| put_block_status(2, false, 1, &extents, out)),
            "668e33ef00000005000000000000000200000014000000010000020000000003\
             0000040000000000"
        );
        let last = hex(|out| put_block_status(2, true, 2, &extents[..1], out));
        assert!(last.starts_with("668e33ef00010005"), "{last}");
    }
}
