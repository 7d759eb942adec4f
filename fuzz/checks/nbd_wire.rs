//! The decoders of NBD: they take what has arrived so far, and what they understand encodes to the same
//! bytes. Replies say the length that they have.

use super::input::Input;
use pmcache::wire::nbd::{
    ClientFlags, ExportSummary, Greeting, InfoAnswer, InfoRequest, MetaRequest, NbdOption,
    OptionHeader, OptionReply, OptionReplyHeader, ReplyHeader, RequestHeader, StatusExtent,
    WireErrno, data_offset, error_code, hole, put_block_status, put_error_chunk,
    put_export_name_reply,
};

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 8 {
        0 => client_flags(input.rest()),
        1 => option_header(input.rest()),
        2 => request_header(input.rest()),
        3 => replies(&mut input),
        7 => for_clients(input.rest()),
        _ => option(u32::from(input.u8() % 16), input.rest()),
    }
}

/// Whatever is understood with all bytes is understood with as many as it needs, not with fewer, and
/// what is refused is never understood.
fn arrives_bit_by_bit<T: PartialEq + std::fmt::Debug, E: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    needed: usize,
    decode: impl Fn(&[u8]) -> Result<Option<T>, E>,
) -> Option<T> {
    let whole = decode(bytes);
    for len in 0..bytes.len().min(needed + 1) {
        let part = decode(&bytes[..len]);
        if len < needed {
            assert!(part == Ok(None) || part == whole, "{part:?} of {whole:?}");
            assert!(
                !matches!(part, Ok(Some(_))),
                "{len} of {needed} bytes are too few"
            );
        } else {
            assert_eq!(part, whole, "bytes behind the end count");
        }
    }
    whole.ok().flatten()
}

fn client_flags(bytes: &[u8]) {
    let flags = arrives_bit_by_bit(bytes, ClientFlags::BYTES, ClientFlags::decode);
    if let Some(flags) = flags {
        assert_eq!(flags.no_zeroes, bytes[3] & 2 != 0);
        assert!(bytes[..3] == [0; 3] && bytes[3] < 4);
    }
}

fn option_header(bytes: &[u8]) {
    let header = arrives_bit_by_bit(bytes, OptionHeader::BYTES, OptionHeader::decode);
    if let Some(header) = header {
        let mut again = b"IHAVEOPT".to_vec();
        again.extend_from_slice(&header.option.to_be_bytes());
        again.extend_from_slice(&header.len.to_be_bytes());
        assert_eq!(again, bytes[..OptionHeader::BYTES]);
    }
}

fn request_header(bytes: &[u8]) {
    let header = arrives_bit_by_bit(bytes, RequestHeader::BYTES, RequestHeader::decode);
    if let Some(header) = header {
        assert_eq!(header.encode(), bytes[..RequestHeader::BYTES]);
        let _ = header.flags.fit(header.command);
    }
}

/// What a client decodes of a server's bytes.
fn for_clients(bytes: &[u8]) {
    arrives_bit_by_bit(bytes, Greeting::BYTES, Greeting::decode);
    arrives_bit_by_bit(bytes, OptionReplyHeader::BYTES, OptionReplyHeader::decode);
    let reply = ReplyHeader::decode(bytes);
    let needed = reply.ok().flatten().map_or(usize::MAX - 1, |r| r.bytes());
    arrives_bit_by_bit(bytes, needed, ReplyHeader::decode);
    let _ = (
        InfoAnswer::decode(bytes),
        data_offset(bytes),
        error_code(bytes),
    );
    assert!(hole(bytes).is_none() || bytes.len() == 12);
    for no_zeroes in [false, true] {
        let answer = InfoAnswer::decode_export_name(bytes, no_zeroes);
        assert!(answer.is_none_or(|(_, taken)| taken <= bytes.len()));
    }
}

fn put_string(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn option(number: u32, data: &[u8]) {
    let option = match NbdOption::decode(number, data) {
        Ok(option) => option,
        Err(fault) => {
            assert!(fault.code() >> 31 == 1 && !fault.message().is_empty());
            return;
        }
    };
    match option {
        NbdOption::ExportName(name) => {
            assert!(NbdOption::is_export_name(number));
            assert_eq!(name.as_bytes(), data);
        }
        NbdOption::Info(info) | NbdOption::Go(info) => info_data(&info, data),
        NbdOption::ListMetaContext(meta) | NbdOption::SetMetaContext(meta) => {
            assert_eq!(meta_data(&meta), data);
        }
        NbdOption::List | NbdOption::StartTls | NbdOption::StructuredReply => {
            assert!(data.is_empty());
        }
        NbdOption::Abort | NbdOption::Unknown => {}
    }
}

/// The data ask for what was understood, and perhaps for things that this server does not know.
fn info_data(info: &InfoRequest<'_>, data: &[u8]) {
    let mut again = Vec::new();
    put_string(info.name, &mut again);
    let wishes = data.strip_prefix(&again[..]);
    let wishes = wishes.and_then(|rest| rest.get(2..)).unwrap_or(&[0]);
    assert!(wishes.len() % 2 == 0);
    let asks = |kind: u8| wishes.chunks(2).any(|wish| wish == [0, kind]);
    let wants = info.wants;
    assert_eq!(
        [wants.name, wants.description, wants.block_size],
        [asks(1), asks(2), asks(3)]
    );
}

fn meta_data(meta: &MetaRequest<'_>) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(meta.name, &mut data);
    data.extend_from_slice(&u32::try_from(meta.queries.len()).unwrap_or(0).to_be_bytes());
    for query in &meta.queries {
        put_string(query, &mut data);
    }
    data
}

/// The length that stands in the last four bytes of a header of `header` bytes is that of the rest.
fn says_its_length(reply: &[u8], header: usize) {
    let len = u32::from_be_bytes(reply[header - 4..header].try_into().unwrap());
    assert_eq!(len as usize, reply.len() - header);
}

fn replies(input: &mut Input) {
    let (cookie, kind, flags) = (input.u64(), input.u8(), input.u16());
    let bytes = input.u64();
    let text = String::from_utf8_lossy(input.rest());
    let export = ExportSummary {
        name: &text,
        description: &text,
        bytes,
        flags,
        block_min: 512,
        block_preferred: 4096,
        payload_max: 1 << 20,
    };
    let mut out = Vec::new();
    let reply = match kind % 8 {
        0 => OptionReply::Ack,
        1 => OptionReply::Server {
            name: &text,
            description: &text,
        },
        2 => OptionReply::InfoExport(export),
        3 => OptionReply::InfoBlockSize(export),
        4 => OptionReply::MetaContext { id: 1, name: &text },
        5 => {
            put_export_name_reply(&export, flags & 1 != 0, &mut out);
            assert_eq!(out.len(), if flags & 1 != 0 { 10 } else { 134 });
            return;
        }
        6 => {
            put_error_chunk(cookie, WireErrno::Invalid, &mut out);
            return says_its_length(&out, 20);
        }
        _ => {
            let extents: Vec<StatusExtent> = text
                .bytes()
                .map(|byte| StatusExtent {
                    len: u32::from(byte),
                    flags: u32::from(flags),
                })
                .collect();
            put_block_status(cookie, true, 1, &extents, &mut out);
            return says_its_length(&out, 20);
        }
    };
    reply.put(u32::from(kind), &mut out);
    says_its_length(&out, 20);
}
