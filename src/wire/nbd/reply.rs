//! How a client reads the server's replies: simple ones, and chunks of structured ones.

use super::reader::Reader;
use super::{CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, WireError};

/// What a chunk carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Nothing.
    None,
    /// Data and where they belong.
    OffsetData,
    /// Zeroes, and where.
    OffsetHole,
    /// Runs of a context.
    BlockStatus,
    /// The request failed, in one of the ways of saying so.
    Error,
    /// Something newer than this client.
    Unknown(u16),
}

impl ChunkKind {
    pub(super) const NONE: u16 = 0;
    pub(super) const OFFSET_DATA: u16 = 1;
    pub(super) const OFFSET_HOLE: u16 = 2;
    pub(super) const BLOCK_STATUS: u16 = 5;
    pub(super) const ERROR: u16 = 0x8001;

    fn from_wire(kind: u16) -> Self {
        match kind {
            Self::NONE => Self::None,
            Self::OFFSET_DATA => Self::OffsetData,
            Self::OFFSET_HOLE => Self::OffsetHole,
            Self::BLOCK_STATUS => Self::BlockStatus,
            error if error >> 15 == 1 => Self::Error,
            other => Self::Unknown(other),
        }
    }
}

/// What every answer to a request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// All of the answer; the data of a READ that went well follow.
    Simple {
        /// 0 for success.
        error: u32,
        /// The request's.
        cookie: u64,
    },
    /// One chunk of a structured reply.
    Chunk {
        /// The last of its reply.
        done: bool,
        /// What it carries.
        kind: ChunkKind,
        /// The request's.
        cookie: u64,
        /// Bytes behind the header.
        len: u32,
    },
}

impl ReplyHeader {
    /// Bytes of a simple reply on the wire.
    pub const SIMPLE_BYTES: usize = 16;
    /// Bytes of a chunk's header on the wire.
    pub const CHUNK_BYTES: usize = 20;

    /// Decodes a header; `None` while it is not all there. A wrong magic is seen with 4 bytes.
    ///
    /// # Errors
    /// [`WireError::ReplyMagic`].
    pub fn decode(input: &[u8]) -> Result<Option<Self>, WireError> {
        let mut reader = Reader(input);
        match reader.u32() {
            None => Ok(None),
            Some(SIMPLE_REPLY_MAGIC) => Ok(Self::simple(&mut reader)),
            Some(CHUNK_MAGIC) => Ok(Self::chunk(&mut reader)),
            Some(magic) => Err(WireError::ReplyMagic(magic)),
        }
    }

    fn simple(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self::Simple {
            error: reader.u32()?,
            cookie: reader.u64()?,
        })
    }

    fn chunk(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self::Chunk {
            done: reader.u16()? & super::chunk::DONE != 0,
            kind: ChunkKind::from_wire(reader.u16()?),
            cookie: reader.u64()?,
            len: reader.u32()?,
        })
    }

    /// How many bytes it takes on the wire.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Simple { .. } => Self::SIMPLE_BYTES,
            Self::Chunk { .. } => Self::CHUNK_BYTES,
        }
    }
}

/// Where the data of an [`ChunkKind::OffsetData`] chunk belong: the first 8 bytes of its body.
#[must_use]
pub fn data_offset(body: &[u8]) -> Option<u64> {
    Reader(body).u64()
}

/// Offset and length of an [`ChunkKind::OffsetHole`] chunk, from its whole body.
#[must_use]
pub fn hole(body: &[u8]) -> Option<(u64, u32)> {
    let mut reader = Reader(body);
    let found = (reader.u64()?, reader.u32()?);
    reader.is_empty().then_some(found)
}

/// The error number of an [`ChunkKind::Error`] chunk, from its body.
#[must_use]
pub fn error_code(body: &[u8]) -> Option<u32> {
    Reader(body).u32()
}

#[cfg(test)]
mod tests {
    use super::super::{
        WireErrno, put_data_chunk_header, put_error_chunk, put_none_chunk, put_simple_reply,
    };
    use super::*;
    use proptest::prelude::*;

    fn decode(put: impl FnOnce(&mut Vec<u8>)) -> (ReplyHeader, Vec<u8>) {
        let mut out = vec![];
        put(&mut out);
        let header = ReplyHeader::decode(&out).unwrap().unwrap();
        for cut in 0..header.bytes() {
            assert_eq!(ReplyHeader::decode(&out[..cut]), Ok(None), "{cut} bytes");
        }
        let body = out.split_off(header.bytes());
        (header, body)
    }

    #[test]
    fn what_our_server_answers_is_understood() {
        let simple = ReplyHeader::Simple {
            error: 5,
            cookie: 9,
        };
        assert_eq!(
            decode(|out| put_simple_reply(9, 5, out)),
            (simple, Vec::new())
        );
        let chunk = |kind, len| ReplyHeader::Chunk {
            done: true,
            kind,
            cookie: 9,
            len,
        };
        let (header, body) = decode(|out| put_none_chunk(9, out));
        assert_eq!((header, body.len()), (chunk(ChunkKind::None, 0), 0));
        let (header, body) = decode(|out| put_data_chunk_header(9, 0x1000, 512, out));
        assert_eq!(header, chunk(ChunkKind::OffsetData, 520));
        assert_eq!(data_offset(&body), Some(0x1000));
        let (header, body) = decode(|out| put_error_chunk(9, WireErrno::Io, out));
        let len = u32::try_from(body.len()).unwrap();
        assert_eq!(header, chunk(ChunkKind::Error, len));
        assert_eq!(
            error_code(&body).and_then(WireErrno::from_code),
            Some(WireErrno::Io)
        );
    }

    #[test]
    fn a_hole_has_exactly_its_length() {
        let body = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0];
        assert_eq!(hole(&body), Some((512, 1024)));
        assert_eq!(hole(&body[..11]), None);
        assert_eq!(hole(&[0; 13]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..40), magic in 0..3) {
            if bytes.len() >= 4 && magic < 2 {
                let magic = [SIMPLE_REPLY_MAGIC, CHUNK_MAGIC][usize::try_from(magic).unwrap()];
                bytes[..4].copy_from_slice(&magic.to_be_bytes());
            }
            match ReplyHeader::decode(&bytes) {
                Ok(Some(header)) => prop_assert!(header.bytes() <= bytes.len()),
                Ok(None) => prop_assert!(bytes.len() < ReplyHeader::CHUNK_BYTES),
                Err(WireError::ReplyMagic(magic)) => prop_assert_eq!(&magic.to_be_bytes()[..], &bytes[..4]),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
