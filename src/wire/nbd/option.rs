//! What a client asks for in an option, and how it may be refused.

use super::STRING_BYTES_MAX;
use super::reader::Reader;

/// Something that a client may want to know of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InfoKind {
    /// The full name.
    pub name: bool,
    /// The description.
    pub description: bool,
    /// The sizes of I/O.
    pub block_size: bool,
}

/// The data of INFO and GO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// Which export; empty for the default one.
    pub name: &'a str,
    /// What to tell beyond size and flags.
    pub wants: InfoKind,
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaRequest<'a> {
    /// Which export; empty for the default one.
    pub name: &'a str,
    /// Names of contexts; in a listing a name that ends in `:` stands for its whole namespace.
    pub queries: Vec<&'a str>,
}

/// An option, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdOption<'a> {
    /// Begin with this export; has no error reply.
    ExportName(&'a str),
    /// Goodbye.
    Abort,
    /// Which exports are there?
    List,
    /// Encrypt from here on.
    StartTls,
    /// Tell about an export.
    Info(InfoRequest<'a>),
    /// Tell about an export and begin with it.
    Go(InfoRequest<'a>),
    /// Use structured replies from here on.
    StructuredReply,
    /// Which contexts are there?
    ListMetaContext(MetaRequest<'a>),
    /// Select these contexts.
    SetMetaContext(MetaRequest<'a>),
    /// Something newer than this server.
    Unknown,
}

/// Numbers of the options.
pub(super) mod number {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Why an option is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionFault {
    /// The server does not know the option.
    #[error("option not supported")]
    Unsupported,
    /// The lengths inside the data contradict each other.
    #[error("malformed option data")]
    Malformed,
    /// The option takes no data.
    #[error("this option takes no data")]
    UnexpectedData,
    /// A string is no UTF-8 or has a NUL.
    #[error("a string is not valid UTF-8")]
    BadString,
    /// Structured replies were negotiated before.
    #[error("structured replies are already negotiated")]
    AlreadyStructured,
    /// The option needs structured replies first.
    #[error("negotiate structured replies first")]
    NeedsStructured,
    /// There is no such export.
    #[error("no such export")]
    UnknownExport,
    /// The export is there but can't be opened now.
    #[error("the export can't be opened")]
    CannotOpen,
    /// The server or the export is going away.
    #[error("shutting down")]
    ShuttingDown,
    /// A string or the whole data are longer than the server takes.
    #[error("option data too long")]
    TooBig,
}

impl OptionFault {
    /// The type of the error reply.
    #[must_use]
    pub fn code(self) -> u32 {
        let number = match self {
            Self::Unsupported => 1,
            Self::Malformed
            | Self::UnexpectedData
            | Self::BadString
            | Self::AlreadyStructured
            | Self::NeedsStructured => 3,
            Self::CannotOpen => 4,
            Self::UnknownExport => 6,
            Self::ShuttingDown => 7,
            Self::TooBig => 9,
        };
        (1 << 31) | number
    }

    /// What to tell people.
    #[must_use]
    pub fn message(self) -> String {
        self.to_string()
    }
}

fn string(bytes: &[u8]) -> Result<&str, OptionFault> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(OptionFault::TooBig);
    }
    let text = str::from_utf8(bytes).map_err(|_| OptionFault::BadString)?;
    if text.contains('\0') {
        return Err(OptionFault::BadString);
    }
    Ok(text)
}

fn counted_string<'a>(reader: &mut Reader<'a>) -> Result<&'a str, OptionFault> {
    let len = reader.u32().ok_or(OptionFault::Malformed)?;
    let len = usize::try_from(len).map_err(|_| OptionFault::Malformed)?;
    string(reader.bytes(len).ok_or(OptionFault::Malformed)?)
}

fn info_request(data: &[u8]) -> Result<InfoRequest<'_>, OptionFault> {
    let mut reader = Reader(data);
    let name = counted_string(&mut reader)?;
    let count = reader.u16().ok_or(OptionFault::Malformed)?;
    let mut wants = InfoKind::default();
    for _ in 0..count {
        match reader.u16().ok_or(OptionFault::Malformed)? {
            1 => wants.name = true,
            2 => wants.description = true,
            3 => wants.block_size = true,
            _ => {}
        }
    }
    if !reader.is_empty() {
        return Err(OptionFault::Malformed);
    }
    Ok(InfoRequest { name, wants })
}

fn meta_request(data: &[u8]) -> Result<MetaRequest<'_>, OptionFault> {
    let mut reader = Reader(data);
    let name = counted_string(&mut reader)?;
    let count = reader.u32().ok_or(OptionFault::Malformed)?;
    let mut queries = vec![];
    for _ in 0..count {
        queries.push(counted_string(&mut reader)?);
    }
    if !reader.is_empty() {
        return Err(OptionFault::Malformed);
    }
    Ok(MetaRequest { name, queries })
}

impl<'a> NbdOption<'a> {
    /// Decodes the whole data of option `number`.
    ///
    /// # Errors
    /// How to refuse it. For `EXPORT_NAME`, which can't be refused, the connection must end.
    pub fn decode(number: u32, data: &'a [u8]) -> Result<Self, OptionFault> {
        let bare = |option| {
            if data.is_empty() {
                Ok(option)
            } else {
                Err(OptionFault::UnexpectedData)
            }
        };
        match number {
            number::EXPORT_NAME => string(data).map(Self::ExportName),
            // Whatever it carries, the client is leaving.
            number::ABORT => Ok(Self::Abort),
            number::LIST => bare(Self::List),
            number::STARTTLS => bare(Self::StartTls),
            number::INFO => info_request(data).map(Self::Info),
            number::GO => info_request(data).map(Self::Go),
            number::STRUCTURED_REPLY => bare(Self::StructuredReply),
            number::LIST_META_CONTEXT => meta_request(data).map(Self::ListMetaContext),
            number::SET_META_CONTEXT => meta_request(data).map(Self::SetMetaContext),
            _ => Ok(Self::Unknown),
        }
    }

    /// Whether option `number` has no error reply: its faults end the connection.
    #[must_use]
    pub fn is_export_name(number: u32) -> bool {
        number == number::EXPORT_NAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(name: &[u8]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data
    }

    #[test]
    fn go_tells_name_and_wishes() {
        let mut data = named(b"vol");
        data.extend_from_slice(&[0, 3, 0, 3, 0, 1, 0, 99]);
        let wants = InfoKind {
            name: true,
            description: false,
            block_size: true,
        };
        let want = NbdOption::Go(InfoRequest { name: "vol", wants });
        assert_eq!(NbdOption::decode(7, &data), Ok(want));
        for cut in 0..data.len() {
            assert_eq!(
                NbdOption::decode(7, &data[..cut]),
                Err(OptionFault::Malformed)
            );
        }
        data.push(0);
        assert_eq!(NbdOption::decode(7, &data), Err(OptionFault::Malformed));
    }

    #[test]
    fn meta_queries_come_out_in_order() {
        let mut data = named(b"");
        data.extend_from_slice(&[0, 0, 0, 2]);
        data.extend(named(b"base:allocation"));
        data.extend(named(b"x:"));
        let want = MetaRequest {
            name: "",
            queries: vec!["base:allocation", "x:"],
        };
        let got = NbdOption::decode(10, &data);
        assert_eq!(got, Ok(NbdOption::SetMetaContext(want)));
        // A count that the data can't hold is refused before anything of its size is allocated.
        data[4..8].copy_from_slice(&[0xff; 4]);
        assert_eq!(NbdOption::decode(10, &data), Err(OptionFault::Malformed));
    }

    #[test]
    fn strings_are_short_utf8() {
        assert_eq!(NbdOption::decode(1, &[0xff]), Err(OptionFault::BadString));
        assert_eq!(NbdOption::decode(1, b"a\0"), Err(OptionFault::BadString));
        let long = vec![b'x'; STRING_BYTES_MAX + 1];
        assert_eq!(NbdOption::decode(1, &long), Err(OptionFault::TooBig));
        assert!(NbdOption::decode(1, &long[1..]).is_ok());
    }

    #[test]
    fn options_without_data_refuse_data() {
        for number in [3, 5, 8] {
            assert!(NbdOption::decode(number, &[]).is_ok(), "option {number}");
            assert_eq!(
                NbdOption::decode(number, &[0]),
                Err(OptionFault::UnexpectedData)
            );
        }
        assert_eq!(NbdOption::decode(2, &[1, 2]), Ok(NbdOption::Abort));
        assert_eq!(NbdOption::decode(11, &[]), Ok(NbdOption::Unknown));
    }

    proptest! {
        /// A valid option with one byte changed or cut off is decoded or refused, never worse; what
        /// decodes takes its strings from the data.
        #[test]
        fn any_damage_is_decoded_or_refused(
            number in 0_u32..14, name in "[a-z]{0,12}", queries in prop::collection::vec("[a-z:]{0,9}", 0..4),
            at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0_usize..3,
        ) {
            let mut data = named(name.as_bytes());
            data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
            for query in &queries {
                data.extend(named(query.as_bytes()));
            }
            let clean = NbdOption::decode(9, &data);
            let want = MetaRequest { name: &name, queries: queries.iter().map(String::as_str).collect() };
            prop_assert_eq!(clean, Ok(NbdOption::ListMetaContext(want)));
            let at = at.index(data.len());
            data[at] = byte;
            data.truncate(data.len() - cut.min(data.len()));
            if let Ok(NbdOption::SetMetaContext(meta)) = NbdOption::decode(number, &data) {
                let strings: usize = meta.queries.iter().map(|q| q.len() + 4).sum();
                prop_assert_eq!(meta.name.len() + 8 + strings, data.len());
            }
        }
    }
}
