//! The decoders of NVMe/TCP: a header that is admitted says nothing beyond the limits, what is understood
//! encodes to the same bytes, and no bytes make them panic.

use super::input::Input;
use pmcache::wire::nvme::{
    Alignment, AuthMessage, CapsuleCmdPdu, CapsuleRespPdu, ChapKey, ConnectCommand, ConnectData,
    DataPdu, Digests, Direction, DsmRange, HEADER_BYTES, Header, IcPdu, Kind, Limits,
    PropertyCommand, R2tPdu, check_nqn,
};
use zerocopy::IntoBytes;

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let digests = Digests::from_byte(input.u8());
    let alignment = Alignment::from_byte(input.u8() % 32).unwrap_or_default();
    for from in [Direction::FromHost, Direction::FromController] {
        let limits = Limits {
            from,
            digests,
            alignment,
            capsule_data_max: 8192,
            data_max: 131_072,
        };
        header(input.clone().rest(), &limits);
    }
    bodies(input.rest());
}

fn header(bytes: &[u8], limits: &Limits) {
    let Some(first) = bytes.first_chunk::<HEADER_BYTES>() else {
        return;
    };
    let Ok(header) = Header::check(*first, limits) else {
        return;
    };
    assert_eq!(header.kind.direction(), limits.from);
    let data_max = match header.kind {
        Kind::CapsuleCmd => 8192,
        Kind::H2cData | Kind::C2hData => 131_072,
        Kind::H2cTerm | Kind::C2hTerm => 128,
        _ => 0,
    };
    assert!(header.data <= data_max && header.pad <= 255, "{header:?}");
    // All that it says adds up to the length that it says.
    let digest = |on: bool| if on { 4 } else { 0 };
    let sum = header.bytes()
        + digest(header.has_header_digest())
        + header.pad
        + header.data
        + digest(header.has_data_digest());
    let [.., a, b, c, d] = *first;
    assert_eq!(sum, u32::from_le_bytes([a, b, c, d]) as usize, "{header:?}");
    if header.data > 0 && data_max > 128 {
        let start = sum - header.data - digest(header.has_data_digest());
        assert!(start.is_multiple_of(limits.alignment.bytes()), "{header:?}");
    }
}

fn bodies(bytes: &[u8]) {
    if let Ok((message, len)) = AuthMessage::decode(bytes) {
        assert!(len <= bytes.len());
        let again = message.encode();
        assert_eq!(AuthMessage::decode(&again), Ok((message, again.len())));
    }
    let _ = std::str::from_utf8(bytes).map(ChapKey::parse);
    if let Some(pdu) = IcPdu::decode(bytes) {
        if let Ok((alignment, _)) = pdu.check_request() {
            assert!(alignment.bytes() <= 128);
        }
        assert_eq!(pdu.as_bytes(), &bytes[..pdu.as_bytes().len()]);
    }
    if let Some(CapsuleCmdPdu(sqe)) = CapsuleCmdPdu::decode(bytes) {
        assert_eq!(sqe.as_bytes(), &bytes[..64]);
        let _ = (sqe.direction(), sqe.fuse(), PropertyCommand::of(&sqe));
        let range = sqe.blocks();
        assert!((1..=65_536).contains(&range.blocks));
        let size = if sqe.flags & 0x80 == 0 { 512 } else { 4096 };
        let namespace = sqe.cdw14.get().into();
        if let Some(within) = range.within(namespace, size) {
            assert!(within.end() <= namespace * u64::from(size));
        }
        let command = ConnectCommand::of(&sqe);
        assert_eq!(command.as_bytes(), &bytes[40..64]);
    }
    if let Some(CapsuleRespPdu(cqe)) = CapsuleRespPdu::decode(bytes) {
        let _ = (cqe.result(), format!("{:?}", cqe.status()));
    }
    let _ = (DataPdu::decode(bytes), R2tPdu::decode(bytes));
    if let Some(data) = ConnectData::decode(bytes) {
        for nqn in [data.subnqn(), data.hostnqn()].into_iter().flatten() {
            assert!(nqn.len() < 256 && !nqn.contains('\0'));
            let _ = check_nqn(nqn);
        }
    }
    let count = usize::from(bytes.first().copied().unwrap_or(0)) + 1;
    if let Some(ranges) = DsmRange::decode(bytes, count) {
        assert_eq!(ranges.len(), count);
        assert!(bytes.len() >= count * 16);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = check_nqn(text);
    }
}
