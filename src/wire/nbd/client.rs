//! The client's half of the handshake: what it says, and how it reads the server's answers.

use super::option::number;
use super::reader::Reader;
use super::{ClientFlags, GREETING_MAGIC, InfoKind, InfoRequest, OPTION_MAGIC, OPTION_REPLY_MAGIC};
use super::{STRING_BYTES_MAX, WireError};

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const ZEROES: usize = 124;

/// The server's first words, as a client reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Unknown options get an answer instead of a hang-up.
    pub fixed_newstyle: bool,
    /// The 124 zeroes may be left out.
    pub no_zeroes: bool,
}

impl Greeting {
    /// Bytes on the wire.
    pub const BYTES: usize = 18;

    /// Decodes the greeting; `None` while there are fewer than 18 bytes. A wrong magic is seen as
    /// soon as it is there.
    ///
    /// # Errors
    /// [`WireError::GreetingMagic`], also for the style of before 2011.
    pub fn decode(input: &[u8]) -> Result<Option<Self>, WireError> {
        let mut reader = Reader(input);
        for wanted in [GREETING_MAGIC, OPTION_MAGIC] {
            match reader.u64() {
                None => return Ok(None),
                Some(magic) if magic == wanted => {}
                Some(magic) => return Err(WireError::GreetingMagic(magic)),
            }
        }
        Ok(reader.u16().map(|flags| Self {
            fixed_newstyle: flags & FIXED_NEWSTYLE != 0,
            no_zeroes: flags & NO_ZEROES != 0,
        }))
    }
}

impl ClientFlags {
    /// Appends the flags; always with "fixed newstyle".
    pub fn put(self, out: &mut Vec<u8>) {
        let zeroes = if self.no_zeroes { NO_ZEROES } else { 0 };
        out.extend_from_slice(&u32::from(FIXED_NEWSTYLE | zeroes).to_be_bytes());
    }
}

/// What our clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientOption<'a> {
    /// Begin with this export; no answer if there is none.
    ExportName(&'a str),
    /// Goodbye.
    Abort,
    /// Use structured replies from here on.
    StructuredReply,
    /// Tell about an export and begin with it.
    Go(InfoRequest<'a>),
}

impl ClientOption<'_> {
    /// Its number on the wire.
    #[must_use]
    pub fn number(&self) -> u32 {
        match self {
            Self::ExportName(_) => number::EXPORT_NAME,
            Self::Abort => number::ABORT,
            Self::StructuredReply => number::STRUCTURED_REPLY,
            Self::Go(_) => number::GO,
        }
    }

    /// Appends the option with its header. A name has at most [`STRING_BYTES_MAX`] bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.number().to_be_bytes());
        let len_at = out.len();
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::ExportName(name) => out.extend_from_slice(name.as_bytes()),
            Self::Abort | Self::StructuredReply => {}
            Self::Go(InfoRequest { name, wants }) => {
                debug_assert!(name.len() <= STRING_BYTES_MAX);
                let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
                put_info_kinds(*wants, out);
            }
        }
        let len = u32::try_from(out.len() - len_at - 4).unwrap_or(u32::MAX);
        if let Some(field) = out.get_mut(len_at..len_at + 4) {
            field.copy_from_slice(&len.to_be_bytes());
        }
    }
}

fn put_info_kinds(wants: InfoKind, out: &mut Vec<u8>) {
    let kinds = [
        (wants.name, 1_u16),
        (wants.description, 2),
        (wants.block_size, 3),
    ];
    let wanted = kinds.iter().filter(|(wanted, _)| *wanted);
    let count = wanted.clone().count();
    out.extend_from_slice(&u16::try_from(count).unwrap_or(0).to_be_bytes());
    for (_, kind) in wanted {
        out.extend_from_slice(&kind.to_be_bytes());
    }
}

/// What a reply to an option is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionVerdict {
    /// Done; the last of the replies.
    Ack,
    /// INFO and GO: something about the export.
    Info,
    /// The server does not know the option.
    Unsupported,
    /// Refused for another reason: the number, and what it says.
    Refused(u32),
    /// Something that our options have no use for.
    Other(u32),
}

impl OptionVerdict {
    fn from_wire(kind: u32) -> Self {
        match kind {
            1 => Self::Ack,
            3 => Self::Info,
            0x8000_0001 => Self::Unsupported,
            error if error >> 31 == 1 => Self::Refused(error),
            other => Self::Other(other),
        }
    }
}

/// What stands before the data of an option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that it answers.
    pub option: u32,
    /// What it says.
    pub verdict: OptionVerdict,
    /// Bytes of data behind it.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 20;

    /// Decodes a header; `None` while there are fewer than 20 bytes. A wrong magic is seen with 8.
    ///
    /// # Errors
    /// [`WireError::OptionReplyMagic`].
    pub fn decode(input: &[u8]) -> Result<Option<Self>, WireError> {
        let mut reader = Reader(input);
        match reader.u64() {
            None => return Ok(None),
            Some(OPTION_REPLY_MAGIC) => {}
            Some(magic) => return Err(WireError::OptionReplyMagic(magic)),
        }
        Ok(match (reader.u32(), reader.u32(), reader.u32()) {
            (Some(option), Some(kind), Some(len)) => Some(Self {
                option,
                verdict: OptionVerdict::from_wire(kind),
                len,
            }),
            _ => None,
        })
    }
}

/// The data of an info reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoAnswer {
    /// Size in bytes and transmission flags.
    Export {
        /// Size in bytes.
        bytes: u64,
        /// Transmission flags.
        flags: u16,
    },
    /// The sizes of I/O.
    BlockSize {
        /// The smallest unit in bytes.
        min: u32,
        /// The longest READ or WRITE in bytes.
        payload_max: u32,
    },
    /// Names, descriptions, or something newer.
    Other,
}

impl InfoAnswer {
    /// Decodes the whole data of a reply; `None` if its length is wrong.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        let mut reader = Reader(data);
        let answer = match reader.u16()? {
            0 => Self::Export {
                bytes: reader.u64()?,
                flags: reader.u16()?,
            },
            3 => {
                let (min, _preferred) = (reader.u32()?, reader.u32()?);
                let payload_max = reader.u32()?;
                Self::BlockSize { min, payload_max }
            }
            _ => return Some(Self::Other),
        };
        reader.is_empty().then_some(answer)
    }

    /// Decodes the answer to [`ClientOption::ExportName`], and says how many bytes it took; `None`
    /// while they are not there.
    #[must_use]
    pub fn decode_export_name(input: &[u8], no_zeroes: bool) -> Option<(Self, usize)> {
        let mut reader = Reader(input);
        let (bytes, flags) = (reader.u64()?, reader.u16()?);
        let zeroes = if no_zeroes { 0 } else { ZEROES };
        reader.bytes(zeroes)?;
        Some((Self::Export { bytes, flags }, 10 + zeroes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::nbd::{
        ExportSummary, NbdOption, OptionFault, OptionHeader, OptionReply, put_export_name_reply,
        put_greeting,
    };
    use proptest::prelude::*;

    fn export(block_min: u32) -> ExportSummary<'static> {
        ExportSummary {
            name: "vol",
            description: "",
            bytes: 1 << 40,
            flags: 0x0d6f,
            block_min,
            block_preferred: 4096,
            payload_max: 1 << 25,
        }
    }

    #[test]
    fn a_client_reads_what_our_server_says_and_not_a_byte_too_early() {
        let mut out = vec![];
        put_greeting(&mut out);
        let greeting = Greeting {
            fixed_newstyle: true,
            no_zeroes: true,
        };
        assert_eq!(Greeting::decode(&out), Ok(Some(greeting)));
        for cut in 0..out.len() {
            assert_eq!(Greeting::decode(&out[..cut]), Ok(None));
        }
        for no_zeroes in [false, true] {
            let mut out = vec![];
            put_export_name_reply(&export(1), no_zeroes, &mut out);
            let answer = InfoAnswer::Export {
                bytes: 1 << 40,
                flags: 0x0d6f,
            };
            let decoded = InfoAnswer::decode_export_name(&out, no_zeroes);
            assert_eq!(decoded, Some((answer, out.len())));
            let short = &out[..out.len() - 1];
            assert_eq!(InfoAnswer::decode_export_name(short, no_zeroes), None);
        }
    }

    #[test]
    fn wrong_magics_are_refused_at_once() {
        let error = Greeting::decode(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53");
        assert_eq!(error, Err(WireError::GreetingMagic(0x0000_4202_8186_1253)));
        assert!(matches!(
            Greeting::decode(b"SSH-2.0-"),
            Err(WireError::GreetingMagic(_))
        ));
        let error = OptionReplyHeader::decode(&[1; 8]);
        assert_eq!(
            error,
            Err(WireError::OptionReplyMagic(0x0101_0101_0101_0101))
        );
    }

    #[test]
    fn every_reply_of_our_server_is_understood() {
        let cases = [
            (OptionReply::Ack, OptionVerdict::Ack, None),
            (
                OptionReply::InfoExport(export(1)),
                OptionVerdict::Info,
                Some(InfoAnswer::Export {
                    bytes: 1 << 40,
                    flags: 0x0d6f,
                }),
            ),
            (
                OptionReply::InfoBlockSize(export(512)),
                OptionVerdict::Info,
                Some(InfoAnswer::BlockSize {
                    min: 512,
                    payload_max: 1 << 25,
                }),
            ),
            (
                OptionReply::InfoName("vol"),
                OptionVerdict::Info,
                Some(InfoAnswer::Other),
            ),
            (
                OptionReply::Error(OptionFault::Unsupported),
                OptionVerdict::Unsupported,
                None,
            ),
            (
                OptionReply::Error(OptionFault::UnknownExport),
                OptionVerdict::Refused(0x8000_0006),
                None,
            ),
        ];
        for (reply, verdict, answer) in cases {
            let mut out = vec![];
            reply.put(7, &mut out);
            let header = OptionReplyHeader::decode(&out).unwrap().unwrap();
            let data = &out[OptionReplyHeader::BYTES..];
            assert_eq!((header.option, header.verdict), (7, verdict));
            assert_eq!(header.len as usize, data.len());
            for cut in 0..OptionReplyHeader::BYTES {
                assert_eq!(OptionReplyHeader::decode(&out[..cut]), Ok(None));
            }
            if answer.is_some() {
                assert_eq!(InfoAnswer::decode(data), answer);
            }
        }
        assert_eq!(InfoAnswer::decode(&[0, 0, 1]), None);
    }

    proptest! {
        /// Our server's decoder finds what our client asked for.
        #[test]
        fn options_come_back(name in "[a-z]{0,40}", a: bool, b: bool, c: bool) {
            let wants = InfoKind { name: a, description: b, block_size: c };
            let info = InfoRequest { name: &name, wants };
            for (option, want) in [
                (ClientOption::ExportName(&name), NbdOption::ExportName(&name)),
                (ClientOption::Abort, NbdOption::Abort),
                (ClientOption::StructuredReply, NbdOption::StructuredReply),
                (ClientOption::Go(info), NbdOption::Go(info)),
            ] {
                let mut out = vec![];
                option.put(&mut out);
                let header = OptionHeader::decode(&out).unwrap().unwrap();
                let data = &out[OptionHeader::BYTES..];
                prop_assert_eq!(header.len as usize, data.len());
                prop_assert_eq!(NbdOption::decode(header.option, data), Ok(want));
            }
            let mut out = vec![];
            ClientFlags { no_zeroes: a }.put(&mut out);
            prop_assert_eq!(ClientFlags::decode(&out), Ok(Some(ClientFlags { no_zeroes: a })));
        }
    }
}
