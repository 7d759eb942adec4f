use super::super::header::{FaultKind, Header, Limits};
use super::*;

fn limits(digests: Digests) -> Limits {
    Limits {
        from: Direction::FromHost,
        digests,
        alignment: Alignment::default(),
        capsule_data_max: 8192,
        data_max: 131_072,
    }
}

fn first(bytes: &[u8]) -> [u8; HEADER_BYTES] {
    bytes[..HEADER_BYTES].try_into().unwrap()
}

const ALL: [Digests; 4] = [
    Digests {
        header: false,
        data: false,
    },
    Digests {
        header: true,
        data: false,
    },
    Digests {
        header: false,
        data: true,
    },
    Digests {
        header: true,
        data: true,
    },
];

#[test]
fn the_check_vector_of_the_digest() {
    assert_eq!(digest(b"123456789"), 0xe306_9283);
}

#[test]
fn what_is_put_is_admitted_with_its_digests_and_padding() {
    for digests in ALL {
        for align in 0..=31 {
            let align = Alignment::from_byte(align).unwrap();
            let mut out = vec![];
            CapsuleCmdPdu(Sqe::default()).put(digests, align, 512, &mut out);
            let mut limits = limits(digests);
            limits.alignment = align;
            let header = Header::check(first(&out), &limits).unwrap();
            assert_eq!((header.kind, header.data), (Kind::CapsuleCmd, 512));
            let head = 72 + if digests.header { 4 } else { 0 };
            assert_eq!(out.len(), head + header.pad);
            assert!(out.len().is_multiple_of(align.bytes()));
            let plen = u32::from_le_bytes(out[4..8].try_into().unwrap()) as usize;
            assert_eq!(plen, out.len() + 512 + if digests.data { 4 } else { 0 });
            if digests.header {
                assert_eq!(digest(&out[..72]).to_le_bytes(), out[72..76]);
            }
        }
        let mut out = vec![];
        CapsuleCmdPdu(Sqe::default()).put(digests, Alignment::default(), 0, &mut out);
        let header = Header::check(first(&out), &limits(digests)).unwrap();
        assert_eq!((header.data, header.pad), (0, 0));
    }
}

/// Every field of the common header, wrong in turn, is named by the byte where it stands.
#[test]
fn each_wrong_field_is_named() {
    let none = limits(Digests::default());
    let mut command = vec![];
    CapsuleCmdPdu(Sqe::default()).put(none.digests, none.alignment, 512, &mut command);
    let mut empty = vec![];
    CapsuleCmdPdu(Sqe::default()).put(none.digests, none.alignment, 0, &mut empty);
    let mut data = vec![];
    DataPdu::new(1, 2, 0, 4096).put_to_controller(0, none.digests, none.alignment, &mut data);
    let mut hello = vec![];
    IcPdu::new(0, Digests::default(), 0).put_request(&mut hello);
    let cases: &[(&[u8], usize, u8, u32)] = &[
        (&command, 0, 8, 0),
        (&command, 0, 5, 0),
        (&command, 0, 0xff, 0),
        (&command, 1, flag::HEADER_DIGEST, 1),
        (&command, 1, flag::DATA_DIGEST, 1),
        (&command, 2, 71, 2),
        (&command, 2, 0, 2),
        (&command, 3, 0, 3),
        (&command, 3, 71, 3),
        (&command, 3, 73, 3),
        (&empty, 4, 71, 4),
        (&empty, 4, 73, 3),
        (&data, 2, 72, 2),
        (&data, 3, 22, 3),
        (&data, 3, 255, 3),
        (&data, 5, 0, 4),
        (&hello, 2, 24, 2),
        (&hello, 4, 127, 4),
        (&hello, 5, 1, 4),
        (&hello, 1, flag::HEADER_DIGEST, 1),
        (&hello, 1, flag::DATA_DIGEST, 1),
    ];
    for &(pdu, at, value, offset) in cases {
        let mut bytes = first(pdu);
        bytes[at] = value;
        let found = Header::check(bytes, &none);
        assert_eq!(found, Err(Fault::field(offset)), "{at} = {value}");
    }
    // With digests agreed on, none may be left out.
    for digests in &ALL[1..] {
        let found = Header::check(first(&command), &limits(*digests));
        assert_eq!(found, Err(Fault::field(1)));
    }
}

#[test]
fn more_data_than_agreed_on_is_a_limit_and_no_allocation() {
    for (kind, most) in [(4_u8, 8192_u32), (6, 131_072)] {
        let head = if kind == 4 { 72 } else { 24 };
        let len = |data: u32| (head + data).to_le_bytes();
        let bytes = |data: u32| {
            let l = len(data);
            let head = u8::try_from(head).unwrap();
            [kind, 0, head, head, l[0], l[1], l[2], l[3]]
        };
        let limits = limits(Digests::default());
        assert!(Header::check(bytes(most), &limits).is_ok());
        let limit = Err(Fault::of(FaultKind::Limit));
        assert_eq!(Header::check(bytes(most + 1), &limits), limit);
        assert_eq!(Header::check(bytes(u32::MAX - head), &limits), limit);
    }
}

#[test]
fn a_termination_names_the_fault_and_copies_the_header() {
    let mut out = vec![];
    let fault = Fault::field(10);
    put_term(Direction::FromController, fault, &[7; 200], &mut out);
    assert_eq!(out.len(), 152);
    assert_eq!(out[..12], [3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 10, 0]);
    let mut limits = limits(Digests::default());
    limits.from = Direction::FromController;
    let header = Header::check(first(&out), &limits).unwrap();
    assert_eq!((header.kind, header.data), (Kind::C2hTerm, 128));
}

#[test]
fn a_hello_is_checked() {
    let digests = Digests::from_byte(3);
    let hello = IcPdu::new(31, digests, 4);
    assert_eq!(
        hello.check_request(),
        Ok((Alignment::from_byte(31).unwrap(), digests))
    );
    let far = IcPdu::new(32, digests, 4);
    assert_eq!(far.check_request(), Err(Fault::field(10)));
    let mut newer = hello;
    newer.format = U16::new(1);
    assert_eq!(newer.check_request(), Err(Fault::field(8)));
}
