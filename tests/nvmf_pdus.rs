//! Conformance of the NVMe/TCP target to the tables of its specification: every PDU type with every field
//! wrong in turn (sections 2.3 and 2.4), and Connect with every field wrong (section 4.1).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;
mod nvmf_common;

use nvmf_common::{Fixture, HOST, Host, NQN, Qpair};
use pmcache::wire::nvme::{
    Alignment, CapsuleCmdPdu, ConnectCommand, ConnectData, DataPdu, Digests, IcPdu, Sqe, Status,
    admin, cc, io, sgl,
};
use zerocopy::IntoBytes;

const HEADER_FIELD: u16 = 1;
const SEQUENCE: u16 = 2;
const HEADER_DIGEST: u16 = 3;
const OUT_OF_RANGE: u16 = 4;
const LIMIT: u16 = 5;
const UNSUPPORTED: u16 = 6;

fn hello() -> Vec<u8> {
    let mut out = vec![];
    IcPdu::new(0, Digests::default(), 0).put_request(&mut out);
    out
}

#[test]
fn a_hello_with_a_wrong_field_is_answered_with_its_place() {
    let (fixture, _disk) = Fixture::with_disk();
    // Where, what, and the offset that is named.
    let cases: &[(usize, u8, u16, u32)] = &[
        (0, 1, HEADER_FIELD, 0),
        (0, 8, HEADER_FIELD, 0),
        (0, 0xff, HEADER_FIELD, 0),
        (1, 1, HEADER_FIELD, 1),
        (2, 127, HEADER_FIELD, 2),
        (2, 24, HEADER_FIELD, 2),
        (4, 129, HEADER_FIELD, 4),
        (5, 1, HEADER_FIELD, 4),
        (7, 0xff, HEADER_FIELD, 4),
        (8, 1, HEADER_FIELD, 8),
        (9, 1, HEADER_FIELD, 8),
        (10, 32, HEADER_FIELD, 10),
        (10, 255, HEADER_FIELD, 10),
    ];
    for &(at, value, reason, offset) in cases {
        let mut qpair = Qpair::connect(fixture.address);
        let mut bytes = hello();
        bytes[at] = value;
        qpair.send(&bytes);
        assert_eq!(qpair.expect_term(), (reason, offset), "{at} = {value}");
    }
    // Anything else in its place, and a second one.
    for kind in [2, 4, 6] {
        let mut qpair = Qpair::connect(fixture.address);
        let (hlen, len) = match kind {
            4 => (72, 72),
            2 => (24, 25),
            _ => (24, 28),
        };
        let mut bytes = vec![kind, 0, hlen, if kind == 6 { 24 } else { 0 }, len, 0, 0, 0];
        bytes.resize(len.into(), 0);
        qpair.send(&bytes);
        assert_eq!(qpair.expect_term().0, SEQUENCE, "{kind}");
    }
    let mut qpair = Qpair::greeted(fixture.address);
    qpair.send(&hello());
    assert_eq!(qpair.expect_term(), (SEQUENCE, 0));
}

#[test]
fn a_termination_copies_the_header_at_fault() {
    let (fixture, _disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    let flush = qpair.io(io::FLUSH, 0, 1);
    let mut bytes = qpair.capsule(flush, &[]);
    bytes[2] = 71;
    qpair.send(&bytes);
    let pdu = qpair.receive();
    assert_eq!(pdu.term(), (HEADER_FIELD, 2));
    // Without a valid length, no more than the common header.
    assert_eq!(pdu.data, bytes[..8]);
    assert_eq!(pdu.head.len(), 16);
}

#[test]
fn a_capsule_with_a_wrong_header_ends_the_connection() {
    let (fixture, disk) = Fixture::with_disk();
    let cases: &[(usize, u8, u16, u32)] = &[
        (0, 5, HEADER_FIELD, 0),
        (0, 7, HEADER_FIELD, 0),
        (0, 9, HEADER_FIELD, 0),
        (0, 10, HEADER_FIELD, 0),
        (1, 1, HEADER_FIELD, 1),
        (1, 2, HEADER_FIELD, 1),
        (2, 64, HEADER_FIELD, 2),
        (3, 71, HEADER_FIELD, 3),
        (3, 74, HEADER_FIELD, 3),
        (5, 0, HEADER_FIELD, 4),
        (6, 1, LIMIT, 0),
        (7, 0xff, LIMIT, 0),
        // The SGL: an offset, a length that is not the data's, types that are not known.
        (32, 4, UNSUPPORTED, 32),
        (40, 4, HEADER_FIELD, 4),
        (47, sgl::TRANSPORT, HEADER_FIELD, 4),
        (47, 0x40, HEADER_FIELD, 4),
    ];
    for &(at, value, reason, offset) in cases {
        let host = Host::connect(fixture.address, NQN);
        let mut qpair = host.io(1, 0);
        let sqe = qpair.io(io::WRITE, 0, 1).with_capsule_data(512);
        let mut bytes = qpair.capsule(sqe, &[1; 512]);
        bytes[at] = value;
        qpair.send(&bytes);
        assert_eq!(qpair.expect_term(), (reason, offset), "{at} = {value}");
    }
    assert_eq!(disk.content()[..512], [0; 512]);
    // A type that is not known, without data in the capsule.
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    let mut keyed = qpair.io(io::READ, 0, 1).with_transport_data(512);
    keyed.sgl_kind = 0x40;
    let bytes = qpair.capsule(keyed, &[]);
    qpair.send(&bytes);
    assert_eq!(qpair.expect_term(), (UNSUPPORTED, 47));
}

#[test]
fn a_damaged_header_digest_ends_the_connection() {
    let (fixture, _disk) = Fixture::with_disk();
    for at in [9, 40, 71, 72, 75] {
        let host = Host::connect_with(fixture.address, NQN, Digests::from_byte(1));
        let mut qpair = host.io(1, 0);
        let flush = qpair.io(io::FLUSH, 0, 1);
        let mut bytes = qpair.capsule(flush, &[]);
        bytes[at] ^= 0x10;
        qpair.send(&bytes);
        let pdu = qpair.receive();
        assert_eq!(pdu.term().0, HEADER_DIGEST, "{at}");
        assert_eq!(pdu.data, bytes[..72]);
    }
    // What was agreed on may not be left out.
    for (agreed, said) in [(1, 0), (2, 0), (3, 1), (3, 2)] {
        let host = Host::connect_with(fixture.address, NQN, Digests::from_byte(agreed));
        let mut qpair = host.io(1, 0);
        qpair.digests = Digests::from_byte(said);
        let sqe = qpair.io(io::WRITE, 0, 1).with_capsule_data(512);
        let bytes = qpair.capsule(sqe, &[1; 512]);
        qpair.send(&bytes);
        // The answer has what was agreed on.
        qpair.digests = Digests::from_byte(agreed);
        let found = qpair.receive().term();
        assert_eq!(found, (HEADER_FIELD, 1), "{agreed} {said}");
    }
}

/// A write of 1024 bytes whose data were asked for: its qpair, and what the R2T said.
fn asked(fixture: &Fixture) -> (Host, Qpair, u16, u16) {
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    let sqe = qpair.io(io::WRITE, 0, 2).with_transport_data(1024);
    let bytes = qpair.capsule(sqe, &[]);
    qpair.send(&bytes);
    let r2t = qpair.receive();
    assert_eq!((r2t.kind, r2t.flags), (9, 0));
    let (cid, tag, ..) = r2t.extent();
    (host, qpair, cid, tag)
}

type Change = fn(u16, u16) -> (DataPdu, bool, usize);
/// Data that nobody asked for, and what the connection ends with.
const UNASKED: &[(&str, Change, (u16, u32))] = &[
    (
        "another tag",
        |cid, tag| (DataPdu::new(cid, tag + 1, 0, 512), false, 512),
        (SEQUENCE, 0),
    ),
    (
        "another command",
        |cid, tag| (DataPdu::new(cid + 1, tag, 0, 512), false, 512),
        (SEQUENCE, 0),
    ),
    (
        "a hole",
        |cid, tag| (DataPdu::new(cid, tag, 512, 512), true, 512),
        (OUT_OF_RANGE, 0),
    ),
    (
        "beyond the end",
        |cid, tag| (DataPdu::new(cid, tag, 0, 1028), true, 1028),
        (OUT_OF_RANGE, 0),
    ),
    (
        "an offset that wraps",
        |cid, tag| (DataPdu::new(cid, tag, u32::MAX, 512), true, 512),
        (OUT_OF_RANGE, 0),
    ),
    (
        "another length than the PDU's",
        |cid, tag| (DataPdu::new(cid, tag, 0, 512), false, 256),
        (HEADER_FIELD, 16),
    ),
    (
        "the last too early",
        |cid, tag| (DataPdu::new(cid, tag, 0, 512), true, 512),
        (HEADER_FIELD, 1),
    ),
    (
        "no last at the end",
        |cid, tag| (DataPdu::new(cid, tag, 0, 1024), false, 1024),
        (HEADER_FIELD, 1),
    ),
    (
        "more than was agreed on",
        |cid, tag| (DataPdu::new(cid, tag, 0, 131_076), true, 131_076),
        (LIMIT, 0),
    ),
];

#[test]
fn data_that_nobody_asked_for_end_the_connection() {
    let (fixture, disk) = Fixture::with_disk();
    for (name, change, expected) in UNASKED {
        let (_host, mut qpair, cid, tag) = asked(&fixture);
        let (pdu, last, len) = change(cid, tag);
        let mut bytes = qpair.data(pdu, last, &vec![7; len]);
        let plen = u32::try_from(bytes.len()).unwrap();
        bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        qpair.send(&bytes);
        assert_eq!(qpair.expect_term(), *expected, "{name}");
    }
    // The same again once all have come: the tag is free, or another command's.
    let (_host, mut qpair, cid, tag) = asked(&fixture);
    let bytes = qpair.data(DataPdu::new(cid, tag, 0, 1024), true, &[0; 1024]);
    qpair.send(&bytes);
    assert_eq!(qpair.receive().completion().status, Status::SUCCESS);
    qpair.send(&bytes);
    assert_eq!(qpair.expect_term().0, SEQUENCE);
    // For a command that waits for no data.
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    disk.switches
        .hold
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let flush = qpair.io(io::FLUSH, 0, 1);
    let bytes = qpair.capsule(flush, &[]);
    qpair.send(&bytes);
    let bytes = qpair.data(DataPdu::new(flush.cid.get(), 0, 0, 512), true, &[0; 512]);
    qpair.send(&bytes);
    assert_eq!(qpair.expect_term(), (HEADER_FIELD, 10));
    disk.switches
        .hold
        .store(false, std::sync::atomic::Ordering::SeqCst);
}

#[test]
fn data_of_a_host_are_padded_as_it_says_and_ours_as_it_wants() {
    let (fixture, _disk) = Fixture::with_disk();
    for hpda in [1, 7, 31] {
        let mut admin = Qpair::connect(fixture.address);
        admin.greet(Digests::from_byte(3), hpda);
        let done = admin.connect_to(NQN, 0, 31, ConnectData::ANY, 0);
        assert_eq!(done.status, Status::SUCCESS);
        let cid = admin.next_cid();
        let enable = pmcache::wire::nvme::PropertyCommand::set(cid, 0x14, cc::ENABLE);
        admin.ok(enable);
        // `receive` checks the padding and its place.
        assert_eq!(admin.identify(1, 0).len(), 4096);
        // Wider than asked for is a multiple all the same.
        let sqe = admin.admin(admin::KEEP_ALIVE, 0, 0, 0);
        let mut bytes = vec![];
        let wide = Alignment::from_byte(15).unwrap();
        CapsuleCmdPdu(sqe.with_capsule_data(64)).put(admin.digests, wide, 64, &mut bytes);
        bytes.extend_from_slice(&[5; 64]);
        bytes.extend_from_slice(&pmcache::wire::nvme::digest(&[5; 64]).to_le_bytes());
        admin.send(&bytes);
        assert_eq!(admin.receive().completion().status, Status::SUCCESS);
    }
}

#[test]
fn a_host_that_ends_the_connection_gets_no_answer() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut qpair = Qpair::greeted(fixture.address);
    let mut bytes = vec![2, 0, 24, 0, 32, 0, 0, 0, 1, 0, 4, 0, 0, 0];
    bytes.resize(32, 0);
    qpair.send(&bytes);
    assert_eq!(qpair.try_receive(), None);
}

#[test]
fn another_command_than_connect_ends_the_connection() {
    let (fixture, _disk) = Fixture::with_disk();
    for sqe in [
        Sqe::new(admin::IDENTIFY, 1, 0).with_transport_data(4096),
        Sqe::new(io::FLUSH, 1, 1),
        pmcache::wire::nvme::PropertyCommand::get(1, 0x1c, false),
    ] {
        let mut qpair = Qpair::greeted(fixture.address);
        let (done, _) = qpair.run(sqe, &[]);
        assert_eq!(done.status, Status::SEQUENCE_ERROR);
        assert_eq!(qpair.try_receive(), None);
    }
}

/// Section 4.1, row by row.
#[test]
fn a_connect_with_a_wrong_field_is_refused_with_its_place() {
    const IN_DATA: u32 = 1 << 16;
    let (fixture, _disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let cntlid = host.cntlid;
    let plain = |qid, size| ConnectCommand::new(qid, size, 0, 0);
    let data = |cntlid| ConnectData::new([7; 16], cntlid, NQN, HOST);
    let refused = |command: ConnectCommand, data: &[u8]| {
        let mut qpair = Qpair::greeted(fixture.address);
        let len = u32::try_from(data.len()).unwrap();
        let mut sqe = command.to_sqe(1);
        sqe.sgl_len = len.into();
        let (done, _) = qpair.run(sqe, data);
        (done.status, done.dw0)
    };
    let any = data(ConnectData::ANY);
    let good = any.as_bytes();
    let mut odd_format = plain(0, 31);
    odd_format.format = 1.into();
    assert_eq!(refused(odd_format, good), (Status::INCOMPATIBLE_FORMAT, 0));
    assert_eq!(
        refused(plain(0, 31), &good[..1020]),
        (Status::INVALID_FIELD, 0)
    );
    for size in [0, 128, 0xffff] {
        let found = refused(plain(0, size), good);
        assert_eq!(found, (Status::INVALID_PARAMETER, 44), "{size}");
    }
    let mut endless = good.to_vec();
    endless[256..512].fill(b'x');
    let found = refused(plain(0, 31), &endless);
    assert_eq!(found, (Status::INVALID_PARAMETER, IN_DATA | 256));
    let mut endless = good.to_vec();
    endless[512..768].fill(b'x');
    let found = refused(plain(0, 31), &endless);
    assert_eq!(found, (Status::INVALID_PARAMETER, IN_DATA | 512));
    let unknown = ConnectData::new([7; 16], ConnectData::ANY, "nqn.2026-11.test:no", HOST);
    let found = refused(plain(0, 31), unknown.as_bytes());
    assert_eq!(found, (Status::INVALID_PARAMETER, IN_DATA | 256));
    let found = refused(plain(0, 31), data(3).as_bytes());
    assert_eq!(found, (Status::INVALID_PARAMETER, IN_DATA | 16));
    let found = refused(plain(1, 31), data(cntlid + 1).as_bytes());
    assert_eq!(found, (Status::INVALID_PARAMETER, IN_DATA | 16));
    let other = ConnectData::new([7; 16], cntlid, NQN, "nqn.2026-11.test.host:b");
    let found = refused(plain(1, 31), other.as_bytes());
    assert_eq!(found, (Status::INVALID_PARAMETER, IN_DATA | 512));
    assert_eq!(
        refused(plain(128, 31), data(cntlid).as_bytes()),
        (Status::INVALID_QUEUE, 0)
    );
    // A number that is taken, until its holder goes.
    let first = host.io(1, 0);
    let taken = refused(plain(1, 31), data(cntlid).as_bytes());
    assert_eq!(taken, (Status::INVALID_QUEUE, 0));
    let mut again = Qpair::greeted(fixture.address);
    let bytes = again.capsule(plain(1, 31).to_sqe(1), data(cntlid).as_bytes());
    again.send(&bytes);
    drop(first);
    assert_eq!(again.receive().completion().status, Status::SUCCESS);
    // A second Connect on a queue.
    let done = again.connect_to(NQN, 1, 31, cntlid, 0);
    assert_eq!(done.status, Status::SEQUENCE_ERROR);
    // Hosts that may not, and listeners that are not the subsystem's.
    fixture.target.allow_any_host(NQN, false).unwrap();
    assert_eq!(refused(plain(0, 31), good), (Status::INVALID_HOST, 0));
    fixture.target.add_host(NQN, HOST, None).unwrap();
    assert_eq!(refused(plain(0, 31), good).0, Status::SUCCESS);
    let elsewhere = "127.0.0.1:0".parse().unwrap();
    let elsewhere = fixture
        .target
        .add_listener(pmcache::wire::nvme::DISCOVERY_NQN, elsewhere);
    let mut qpair = Qpair::greeted(elsewhere.unwrap());
    let done = qpair.connect_to(NQN, 0, 31, ConnectData::ANY, 0);
    assert_eq!(done.status, Status::INVALID_HOST);
}

#[test]
fn io_qpairs_join_an_enabled_controller_only() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut host = Host::connect(fixture.address, NQN);
    let refused = |host: &Host| {
        let mut qpair = Qpair::greeted(fixture.address);
        let done = qpair.connect_to(NQN, 1, 31, host.cntlid, 0);
        (done.status, done.dw0)
    };
    for config in [0, cc::ENABLE, cc::ENABLE | 6 << 16, cc::ENABLE | 4 << 20] {
        host.configure(config);
        assert_eq!(
            refused(&host),
            (Status::INVALID_PARAMETER, 42),
            "{config:x}"
        );
    }
    host.configure(cc::ENABLE | cc::ENTRY_SIZES);
    assert_eq!(refused(&host).0, Status::SUCCESS);
}
