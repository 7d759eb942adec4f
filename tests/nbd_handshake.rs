//! The NBD handshake, with good and bad clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;

use nbd_common::{Client, Fixture, GO, RamDisk, config, meta, named};
use pmcache::target::nbd::{ExportConfig, NbdExports, NbdOptions, NbdServer};
use pmcache::wire::nbd::{Command, export_flags};
use proptest::prelude::*;
use reactors::{IdlePolicy, ManualClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const PLATFORM: u32 = 0x8000_0004;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

fn greeted(fixture: &Fixture) -> Client {
    let mut client = fixture.connect();
    client.greet();
    client
}

fn info(name: &str, wants: &[u16]) -> Vec<u8> {
    let mut data = named(name);
    data.extend_from_slice(&u16::try_from(wants.len()).unwrap().to_be_bytes());
    data.extend(wants.iter().flat_map(|want| want.to_be_bytes()));
    data
}

#[test]
fn a_handshake_in_single_bytes_works() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut client = fixture.connect();
    let greeting = client.receive(18);
    assert_eq!(&greeting[..8], b"NBDMAGIC");
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(Client::option_bytes(8, &[]));
    bytes.extend(Client::option_bytes(GO, &info("vol", &[3])));
    bytes.extend(Client::header(Command::Read, 5, 0, 512).encode());
    for byte in bytes {
        client.send(&[byte]);
    }
    assert_eq!(client.option_replies(8), [(ACK, vec![])]);
    let replies = client.option_replies(GO);
    let kinds: Vec<u32> = replies.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [INFO, INFO, ACK]);
    assert_eq!(replies[0].1[2..10], (1_u64 << 20).to_be_bytes());
    let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0];
    assert_eq!(replies[1].1, sizes);
    assert_eq!(client.chunk().cookie, 5);
}

#[test]
fn each_bad_option_is_refused_and_the_next_is_served() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = greeted(&fixture);
    let mut no_utf8 = info("v", &[]);
    no_utf8[4] = 0xff;
    let cases: &[(u32, Vec<u8>, u32)] = &[
        (3, vec![0], INVALID),
        (5, vec![], UNSUP),
        (5, vec![1], INVALID),
        (6, info("nobody", &[]), UNKNOWN),
        (6, vec![0, 0], INVALID),
        (6, named("vol"), INVALID),
        (GO, info("nobody", &[1]), UNKNOWN),
        (GO, no_utf8, INVALID),
        (GO, info(&"x".repeat(4097), &[]), TOO_BIG),
        (10, meta("vol", &["base:allocation"]), INVALID), // before structured replies
        (8, vec![0], INVALID),
        (8, vec![], ACK),
        (8, vec![], INVALID),
        (9, meta("nobody", &[]), UNKNOWN),
        (9, vec![0; 5], INVALID),
        (10, meta("nobody", &["base:allocation"]), UNKNOWN),
        (11, vec![], UNSUP),
        (4711, vec![1, 2, 3], UNSUP),
        (6, vec![0; 20_000], TOO_BIG),
        (99, vec![0; 1 << 20], TOO_BIG),
    ];
    for (option, data, want) in cases {
        let got = client.verdict(*option, data);
        assert_eq!(got, *want, "option {option} with {} bytes", data.len());
    }
    disk.switches.refuse_open.store(true, Ordering::SeqCst);
    assert_eq!(client.verdict(GO, &info("vol", &[])), PLATFORM);
    disk.switches.refuse_open.store(false, Ordering::SeqCst);
    client.go("vol");
    assert_eq!(fixture.exports.list()[0].connections, 1);
}

#[test]
fn clients_that_are_out_of_step_are_hung_up_on() {
    let (fixture, _disk) = Fixture::with_disk();
    let option = |number: u32, len: u32| {
        let mut bytes = Client::option_bytes(number, &[]);
        bytes[12..].copy_from_slice(&len.to_be_bytes());
        bytes
    };
    let cases: &[(&str, Vec<u8>)] = &[
        ("unknown client flags", vec![0, 0, 0, 4]),
        ("wrong magic", [&[0, 0, 0, 3], &b"IHAVEOPX"[..]].concat()),
        (
            "endless option",
            [&[0, 0, 0, 3], &option(6, u32::MAX)[..]].concat(),
        ),
        (
            "unknown EXPORT_NAME",
            [&[0, 0, 0, 3], &Client::option_bytes(1, b"nobody")[..]].concat(),
        ),
        (
            "long EXPORT_NAME",
            [&[0, 0, 0, 3], &option(1, 20_000)[..]].concat(),
        ),
    ];
    for (what, bytes) in cases {
        let mut client = fixture.connect();
        client.receive(18);
        client.send(bytes);
        assert!(client.is_hung_up(), "{what}");
    }
    let mut client = greeted(&fixture);
    for _ in 0..128 {
        assert_eq!(client.verdict(11, &[]), UNSUP);
    }
    client.send(&Client::option_bytes(11, &[]));
    assert!(client.is_hung_up(), "129 options");
    greeted(&fixture).go("vol");
}

#[test]
fn abort_is_acknowledged_before_the_end() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut client = greeted(&fixture);
    assert_eq!(client.verdict(2, &[]), ACK);
    assert!(client.is_hung_up());
}

#[test]
fn export_name_begins_at_once_with_zeroes_for_who_wants_them() {
    let (fixture, _disk) = Fixture::with_disk();
    for (flags, zeroes) in [(3, 0), (1, 124)] {
        let mut client = fixture.connect();
        client.receive(18);
        client.send(&[0, 0, 0, flags]);
        client.send(&Client::option_bytes(1, b"vol"));
        let answer = client.receive(10 + zeroes);
        assert_eq!(answer[..8], (1_u64 << 20).to_be_bytes());
        assert!(answer[10..].iter().all(|b| *b == 0));
        assert_eq!(client.read(1, 0, 512).unwrap(), [0; 512]);
    }
}

#[test]
fn the_empty_name_means_the_only_export() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = greeted(&fixture);
    let replies = client.option(6, &info("", &[1, 2]));
    assert_eq!(replies[1], (INFO, b"\0\x01vol".to_vec()));
    let second = ExportConfig {
        description: "the second".to_owned(),
        ..config("vol2", &disk)
    };
    fixture.exports.add(second).unwrap();
    assert_eq!(client.verdict(6, &info("", &[])), UNKNOWN);
    let replies = client.option(6, &info("vol2", &[2]));
    assert_eq!(replies[1], (INFO, b"\0\x02the second".to_vec()));
    let first = (SERVER, b"\0\0\0\x03vol".to_vec());
    let second = (SERVER, b"\0\0\0\x04vol2the second".to_vec());
    assert_eq!(client.option(3, &[]), [first, second, (ACK, vec![])]);
}

#[test]
fn contexts_are_listed_by_name_namespace_or_all() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut client = greeted(&fixture);
    let base = (META_CONTEXT, b"\0\0\0\0base:allocation".to_vec());
    let cache = (META_CONTEXT, b"\0\0\0\0pmcache:cache".to_vec());
    let ack = (ACK, vec![]);
    let mut list = |queries: &[&str]| client.option(9, &meta("vol", queries));
    assert_eq!(list(&[]), [base.clone(), cache.clone(), ack.clone()]);
    assert_eq!(list(&["base:"]), [base.clone(), ack.clone()]);
    assert_eq!(list(&["pmcache:cache", "x:"]), [cache, ack.clone()]);
    assert_eq!(list(&["base"]), [ack]);
}

#[test]
fn a_selection_of_contexts_replaces_the_one_before_and_holds_for_its_export() {
    let (fixture, disk) = Fixture::with_disk();
    fixture.export("other", &disk);
    for (chosen, kept) in [("vol", true), ("other", false)] {
        let mut client = greeted(&fixture);
        assert_eq!(client.verdict(8, &[]), ACK);
        client.option(10, &meta("vol", &["base:allocation"]));
        let replies = client.option(10, &meta("vol", &["pmcache:cache", "base:"]));
        let cache = (META_CONTEXT, b"\0\0\0\x02pmcache:cache".to_vec());
        assert_eq!(replies, [cache, (ACK, vec![])]);
        client.go(chosen);
        client.request(Command::BlockStatus, 1, 0, 512);
        let chunk = client.chunk();
        match kept {
            true => assert_eq!(chunk.status(), (2, vec![(512, 0)])),
            false => assert_eq!(chunk.error(), 22),
        }
    }
}

#[test]
fn flags_follow_the_device_and_the_export() {
    use export_flags as flag;
    let fixture = Fixture::new(1, NbdOptions::default());
    let always = flag::HAS_FLAGS | flag::CAN_MULTI_CONN | flag::SEND_CACHE | flag::SEND_FUA;
    let zeroes = flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    let full = Arc::new(RamDisk::new("full", 4096));
    let plain = Arc::new(RamDisk::with_info("plain", 4096, |info| {
        info.supports.discard = false;
        info.volatile_cache = false;
    }));
    fixture.export("full", &full);
    fixture.export("plain", &plain);
    let ro = ExportConfig {
        read_only: true,
        ..config("ro", &full)
    };
    fixture.exports.add(ro).unwrap();
    let all = always | zeroes | flag::SEND_FLUSH | flag::SEND_TRIM;
    let ro = always | flag::SEND_FLUSH | flag::READ_ONLY;
    let cases = [("full", all), ("plain", always | zeroes), ("ro", ro)];
    for (name, want) in cases {
        assert_eq!(greeted(&fixture).go(name), want, "{name}");
        let structured = greeted(&fixture).go_structured(name, &[]);
        assert_eq!(structured, want | flag::SEND_DF, "{name}");
    }
}

#[test]
fn a_client_that_does_not_choose_in_30_seconds_is_hung_up_on() {
    let clock = Arc::new(ManualClock::default());
    let config = ReactorConfig {
        id: ReactorId(0),
        idle: IdlePolicy::Poll,
        seed: 1,
    };
    let domain = Quiescence::new(1);
    let mut reactor = Reactor::new(&config, Arc::clone(&clock) as Arc<_>, domain).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let reactors = vec![reactor.handle()];
    let exports = NbdExports::new();
    let server = NbdServer::start(&address, &exports, reactors, NbdOptions::default()).unwrap();
    let _client = std::net::TcpStream::connect(server.address().to_string()).unwrap();
    let mut ten_rounds = || {
        for _ in 0..10 {
            reactor.step();
        }
    };
    ten_rounds();
    assert_eq!(server.connections().len(), 1);
    assert_eq!(server.connections()[0].export, None);
    clock.advance(29_999_999_999);
    ten_rounds();
    assert_eq!(server.connections().len(), 1);
    clock.advance(1);
    ten_rounds();
    assert_eq!(server.connections().len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Option streams that are mostly right, in pieces of any size: every option gets its
    /// acknowledgement or error, in order, or the server hangs up; another client is served.
    #[test]
    fn any_options_are_answered_in_order_or_hung_up_on(
        options in prop::collection::vec((0_u32..13, "[a-z]{0,3}|vol", prop::option::weighted(0.1, any::<(u8, u8)>())), 1..12),
        piece in 1_usize..40,
    ) {
        let (fixture, _disk) = Fixture::with_disk();
        let mut client = greeted(&fixture);
        let mut bytes = vec![];
        for (number, name, damage) in &options {
            // GO, EXPORT_NAME and ABORT would end the handshake.
            let number = if [1, 2, GO].contains(number) { 6 } else { *number };
            let mut data = match number {
                9 | 10 => meta(name, &["base:allocation"]),
                6 => info(name, &[1, 3]),
                _ => vec![],
            };
            if let (Some((at, value)), false) = (damage, data.is_empty()) {
                let at = usize::from(*at) % data.len();
                data[at] = *value;
            }
            bytes.extend(Client::option_bytes(number, &data));
        }
        for piece in bytes.chunks(piece) {
            client.send(piece);
        }
        for (number, ..) in &options {
            let number = if [1, 2, GO].contains(number) { 6 } else { *number };
            let replies = client.option_replies(number);
            prop_assert!(!replies.is_empty());
        }
        greeted(&fixture).go("vol");
    }
}
