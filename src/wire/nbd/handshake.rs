//! The frame of the handshake: greeting, client flags, option headers and option replies.

use super::reader::Reader;
use super::{GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, WireError};

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const CLIENT_FLAGS_KNOWN: u32 = 3;

/// The server's first words.
pub fn put_greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
}

/// The client's first words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    /// It leaves out the 124 zeroes behind the answer to `EXPORT_NAME`.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Bytes on the wire.
    pub const BYTES: usize = 4;

    /// Decodes the flags; `None` while there are fewer than 4 bytes.
    ///
    /// # Errors
    /// [`WireError::ClientFlags`] with bits that were not offered.
    pub fn decode(input: &[u8]) -> Result<Option<Self>, WireError> {
        let Some(bits) = Reader(input).u32() else {
            return Ok(None);
        };
        if bits & !CLIENT_FLAGS_KNOWN != 0 {
            return Err(WireError::ClientFlags(bits));
        }
        Ok(Some(Self {
            no_zeroes: bits & u32::from(NO_ZEROES) != 0,
        }))
    }
}

/// What stands before the data of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: u32,
    /// Bytes of data behind the header.
    pub len: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 16;

    /// Decodes a header; `None` while there are fewer than 16 bytes. A wrong magic is seen with 8.
    ///
    /// # Errors
    /// [`WireError::OptionMagic`].
    pub fn decode(input: &[u8]) -> Result<Option<Self>, WireError> {
        let mut reader = Reader(input);
        let Some(magic) = reader.u64() else {
            return Ok(None);
        };
        if magic != OPTION_MAGIC {
            return Err(WireError::OptionMagic(magic));
        }
        Ok(match (reader.u32(), reader.u32()) {
            (Some(option), Some(len)) => Some(Self { option, len }),
            _ => None,
        })
    }
}

/// What the server knows of an export while a client chooses.
#[derive(Clone, Copy, Debug)]
pub struct ExportSummary<'a> {
    /// Its full name.
    pub name: &'a str,
    /// What it is, for people; may be empty.
    pub description: &'a str,
    /// Size in bytes.
    pub bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// The smallest unit of I/O in bytes.
    pub block_min: u32,
    /// The unit of I/O in bytes that suits it.
    pub block_preferred: u32,
    /// The longest READ or WRITE in bytes.
    pub payload_max: u32,
}

/// The answer to an option, or one of several.
#[derive(Clone, Copy, Debug)]
pub enum OptionReply<'a> {
    /// Done; the last of the replies.
    Ack,
    /// LIST: one export.
    Server {
        /// Its name.
        name: &'a str,
        /// What it is; left out when empty.
        description: &'a str,
    },
    /// INFO and GO: size and flags.
    InfoExport(ExportSummary<'a>),
    /// INFO and GO: the full name.
    InfoName(&'a str),
    /// INFO and GO: what it is.
    InfoDescription(&'a str),
    /// INFO and GO: the sizes of I/O.
    InfoBlockSize(ExportSummary<'a>),
    /// A context, and the number by which replies will name it.
    MetaContext {
        /// Its number; 0 in a listing.
        id: u32,
        /// Its name.
        name: &'a str,
    },
    /// Refused.
    Error(super::OptionFault),
}

impl OptionReply<'_> {
    fn kind(&self) -> u32 {
        match self {
            Self::Ack => 1,
            Self::Server { .. } => 2,
            Self::InfoExport(_)
            | Self::InfoName(_)
            | Self::InfoDescription(_)
            | Self::InfoBlockSize(_) => 3,
            Self::MetaContext { .. } => 4,
            Self::Error(fault) => fault.code(),
        }
    }

    fn put_data(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                out.extend_from_slice(&len_u32(name).to_be_bytes());
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(description.as_bytes());
            }
            Self::InfoExport(export) => {
                out.extend_from_slice(&0_u16.to_be_bytes());
                out.extend_from_slice(&export.bytes.to_be_bytes());
                out.extend_from_slice(&export.flags.to_be_bytes());
            }
            Self::InfoName(name) => {
                out.extend_from_slice(&1_u16.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Self::InfoDescription(description) => {
                out.extend_from_slice(&2_u16.to_be_bytes());
                out.extend_from_slice(description.as_bytes());
            }
            Self::InfoBlockSize(export) => {
                out.extend_from_slice(&3_u16.to_be_bytes());
                out.extend_from_slice(&export.block_min.to_be_bytes());
                out.extend_from_slice(&export.block_preferred.to_be_bytes());
                out.extend_from_slice(&export.payload_max.to_be_bytes());
            }
            Self::MetaContext { id, name } => {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Self::Error(fault) => out.extend_from_slice(fault.message().as_bytes()),
        }
    }

    /// Appends the reply to `option`.
    pub fn put(&self, option: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&self.kind().to_be_bytes());
        let len_at = out.len();
        out.extend_from_slice(&[0; 4]);
        self.put_data(out);
        let len = u32::try_from(out.len() - len_at - 4).unwrap_or(u32::MAX);
        if let Some(field) = out.get_mut(len_at..len_at + 4) {
            field.copy_from_slice(&len.to_be_bytes());
        }
    }
}

/// Names are at most 4096 bytes; the server checks that when an export is added.
fn len_u32(name: &str) -> u32 {
    u32::try_from(name.len()).unwrap_or(u32::MAX)
}

/// The answer to `EXPORT_NAME`, which has no reply header.
pub fn put_export_name_reply(export: &ExportSummary<'_>, no_zeroes: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(&export.bytes.to_be_bytes());
    out.extend_from_slice(&export.flags.to_be_bytes());
    if !no_zeroes {
        out.extend_from_slice(&[0; 124]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::nbd::OptionFault;

    const EXPORT: ExportSummary<'_> = ExportSummary {
        name: "vol",
        description: "",
        bytes: 0x0102_0304,
        flags: 0x0d6f,
        block_min: 512,
        block_preferred: 4096,
        payload_max: 1 << 25,
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn greeting_is_the_documented_bytes() {
        let mut out = vec![];
        put_greeting(&mut out);
        assert_eq!(hex(&out), "4e42444d4147494349484156454f50540003");
    }

    #[test]
    fn option_replies_are_the_documented_bytes() {
        let cases: &[(OptionReply<'_>, &str)] = &[
            (OptionReply::Ack, "0000000100000000"),
            (
                OptionReply::Server {
                    name: "a",
                    description: "bc",
                },
                "00000002000000070000000161", /* a */
            ),
            (
                OptionReply::InfoExport(EXPORT),
                "000000030000000c000000000000010203040d6f",
            ),
            (OptionReply::InfoName("vol"), "00000003000000050001766f6c"),
            (OptionReply::InfoDescription("d"), "0000000300000003000264"),
            (
                OptionReply::InfoBlockSize(EXPORT),
                "000000030000000e0003000002000000100002000000",
            ),
            (
                OptionReply::MetaContext { id: 1, name: "x:y" },
                "000000040000000700000001783a79",
            ),
            (OptionReply::Error(OptionFault::UnknownExport), "80000006"),
        ];
        for (reply, want) in cases {
            let mut out = vec![];
            reply.put(7, &mut out);
            let head = "0003e889045565a900000007";
            let got = hex(&out);
            assert!(
                got.starts_with(&format!("{head}{want}")),
                "{reply:?}: {got}"
            );
        }
    }

    #[test]
    fn export_name_reply_has_zeroes_unless_both_leave_them_out() {
        let (mut with, mut without) = (vec![], vec![]);
        put_export_name_reply(&EXPORT, false, &mut with);
        put_export_name_reply(&EXPORT, true, &mut without);
        assert_eq!(hex(&without), "00000000010203040d6f");
        assert_eq!(with.len(), 134);
        assert!(with.starts_with(&without) && with.iter().skip(10).all(|b| *b == 0));
    }

    #[test]
    fn headers_decode_when_the_last_byte_is_there() {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 7, 0, 0, 1, 0]);
        for cut in 0..16 {
            assert_eq!(OptionHeader::decode(&bytes[..cut]), Ok(None), "{cut} bytes");
        }
        let header = OptionHeader {
            option: 7,
            len: 256,
        };
        assert_eq!(OptionHeader::decode(&bytes), Ok(Some(header)));
        bytes[3] ^= 1;
        let Err(WireError::OptionMagic(_)) = OptionHeader::decode(&bytes[..8]) else {
            panic!("a wrong magic passed");
        };
    }

    #[test]
    fn client_flags_with_unknown_bits_are_refused() {
        assert_eq!(ClientFlags::decode(&[0, 0, 0]), Ok(None));
        assert_eq!(
            ClientFlags::decode(&[0, 0, 0, 3]),
            Ok(Some(ClientFlags { no_zeroes: true }))
        );
        assert_eq!(
            ClientFlags::decode(&[0, 0, 0, 1]),
            Ok(Some(ClientFlags { no_zeroes: false }))
        );
        assert_eq!(
            ClientFlags::decode(&[0, 0, 0, 7]),
            Err(WireError::ClientFlags(7))
        );
    }
}
