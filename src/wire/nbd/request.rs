//! What a client sends once it has chosen an export.

use super::reader::Reader;
use super::{REQUEST_MAGIC, WireError};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send data.
    Read,
    /// Take the data that follow the header.
    Write,
    /// Goodbye; has no reply.
    Disconnect,
    /// Make completed writes durable.
    Flush,
    /// The range is no longer wanted.
    Trim,
    /// The range will be wanted.
    Cache,
    /// Make the range zero.
    WriteZeroes,
    /// Tell what the range consists of.
    BlockStatus,
    /// Something newer than this server.
    Unknown(u16),
}

impl Command {
    fn from_wire(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(other) => other,
        }
    }
}

/// How to do it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// Complete only once it is on stable media; valid with every command.
    pub const FUA: Self = Self(1);
    /// `WRITE_ZEROES`: keep the space allocated.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// READ: one chunk of data, or none.
    pub const DF: Self = Self(1 << 2);
    /// `BLOCK_STATUS`: one extent, inside the range.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// `WRITE_ZEROES`: fail at once if it is no faster than writing.
    pub const FAST_ZERO: Self = Self(1 << 4);

    /// Whether all of `flags` are set.
    #[must_use]
    pub fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Both together.
    #[must_use]
    pub fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// Whether each flag means something with `command`.
    #[must_use]
    pub fn fit(self, command: Command) -> bool {
        let known = match command {
            Command::Read => Self::FUA.with(Self::DF),
            Command::WriteZeroes => Self::FUA.with(Self::NO_HOLE).with(Self::FAST_ZERO),
            Command::BlockStatus => Self::FUA.with(Self::REQ_ONE),
            _ => Self::FUA,
        };
        known.has(self)
    }
}

/// The 28 bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// How.
    pub flags: CommandFlags,
    /// What.
    pub command: Command,
    /// The client's number; comes back in the replies.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

impl RequestHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 28;

    /// Decodes a header; `None` while there are fewer than 28 bytes. A wrong magic is seen with 4.
    ///
    /// # Errors
    /// [`WireError::RequestMagic`].
    pub fn decode(input: &[u8]) -> Result<Option<Self>, WireError> {
        let mut reader = Reader(input);
        let Some(magic) = reader.u32() else {
            return Ok(None);
        };
        if magic != REQUEST_MAGIC {
            return Err(WireError::RequestMagic(magic));
        }
        Ok(Self::decode_fields(&mut reader))
    }

    fn decode_fields(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            flags: CommandFlags(reader.u16()?),
            command: Command::from_wire(reader.u16()?),
            cookie: reader.u64()?,
            offset: reader.u64()?,
            len: reader.u32()?,
        })
    }

    /// The bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.0.to_be_bytes(),
            &self.command.to_wire().to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.len.to_be_bytes(),
        ];
        for (byte, value) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *byte = *value;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_is_the_documented_bytes() {
        let header = RequestHeader {
            flags: CommandFlags::FUA,
            command: Command::Write,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            len: 512,
        };
        let want = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 2, 0,
        ];
        assert_eq!(header.encode(), want);
        for cut in 0..28 {
            assert_eq!(RequestHeader::decode(&want[..cut]), Ok(None));
        }
        assert_eq!(RequestHeader::decode(&want), Ok(Some(header)));
    }

    #[test]
    fn a_wrong_magic_is_seen_at_once() {
        assert_eq!(
            RequestHeader::decode(&[0x25, 0x60, 0x95, 0x14]),
            Err(WireError::RequestMagic(0x2560_9514))
        );
    }

    #[test]
    fn flags_fit_their_commands_only() {
        let fits = |flags: CommandFlags, command| flags.fit(command);
        assert!(fits(CommandFlags::FUA, Command::Flush));
        assert!(fits(CommandFlags::DF, Command::Read));
        assert!(!fits(CommandFlags::DF, Command::Write));
        assert!(fits(CommandFlags::REQ_ONE, Command::BlockStatus));
        assert!(!fits(CommandFlags::REQ_ONE, Command::Read));
        assert!(fits(CommandFlags(0b10011), Command::WriteZeroes));
        assert!(!fits(CommandFlags(1 << 5), Command::Write));
    }

    proptest! {
        #[test]
        fn every_header_comes_back(flags: u16, number: u16, cookie: u64, offset: u64, len: u32) {
            let header = RequestHeader {
                flags: CommandFlags(flags),
                command: Command::from_wire(number),
                cookie, offset, len,
            };
            prop_assert_eq!(RequestHeader::decode(&header.encode()), Ok(Some(header)));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..40), good: bool) {
            if good && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            }
            match RequestHeader::decode(&bytes) {
                Ok(Some(header)) => prop_assert_eq!(&header.encode()[..], &bytes[..28]),
                Ok(None) => prop_assert!(bytes.len() < 28),
                Err(_) => prop_assert!(bytes[..4] != REQUEST_MAGIC.to_be_bytes()),
            }
        }
    }
}
