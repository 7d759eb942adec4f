//! NBD connections, exports and servers that end while others go on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;

use nbd_common::{Client, Fixture, RamDisk, config, wait_until};
use pmcache::target::nbd::{
    ExportConfig, NbdAddress, NbdError, NbdExports, NbdOptions, NbdServer, RemoveMode,
};
use pmcache::wire::nbd::Command;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ESHUTDOWN: u32 = 108;

fn simple(fixture: &Fixture) -> Client {
    let mut client = fixture.connect();
    client.greet();
    client.go("vol");
    client
}

/// A client with `count` writes under way that do not complete.
fn stalled(fixture: &Fixture, disk: &RamDisk, count: u64) -> Client {
    let mut client = simple(fixture);
    disk.switches.hold.store(true, Ordering::SeqCst);
    for cookie in 0..count {
        client.write(cookie, cookie * 512, &[1; 512]);
    }
    let depth = count.min(256);
    wait_until("the writes are under way", || {
        disk.switches.submitted.load(Ordering::SeqCst) == depth
    });
    client
}

#[test]
fn writes_of_a_client_that_left_are_given_up_before_the_channel_is_dropped() {
    let (fixture, disk) = Fixture::with_disk();
    let client = stalled(&fixture, &disk, 5);
    drop(client);
    wait_until("the connection is gone", || {
        fixture.server().connections().is_empty()
    });
    assert_eq!(disk.switches.aborted.load(Ordering::SeqCst), 5);
    assert_eq!(disk.switches.channels.load(Ordering::SeqCst), 0);
    assert!(!disk.switches.dropped_early.load(Ordering::SeqCst));
    disk.switches.hold.store(false, Ordering::SeqCst);
    assert_eq!(simple(&fixture).read(1, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn a_client_with_too_much_under_way_is_missed_when_it_leaves() {
    let (fixture, disk) = Fixture::with_disk();
    let client = stalled(&fixture, &disk, 300);
    drop(client);
    wait_until("the connection is gone", || {
        fixture.server().connections().is_empty()
    });
    assert_eq!(disk.switches.aborted.load(Ordering::SeqCst), 256);
}

#[test]
fn a_goodbye_lets_what_is_under_way_complete() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = stalled(&fixture, &disk, 3);
    client.request(Command::Disconnect, 9, 0, 0);
    client.send(b"nobody listens any more");
    assert_eq!(fixture.server().connections().len(), 1);
    disk.switches.hold.store(false, Ordering::SeqCst);
    for cookie in 0..3 {
        assert_eq!(client.simple_reply(), (0, cookie));
    }
    assert!(client.is_hung_up());
    assert!(disk.content()[..1536] == [1; 1536]);
    assert_eq!(disk.switches.aborted.load(Ordering::SeqCst), 0);
}

#[test]
fn a_safe_removal_waits_for_the_clients_and_a_hard_one_ends_them() {
    let (fixture, disk) = Fixture::with_disk();
    let other = Arc::new(RamDisk::new("other", 4096));
    fixture.export("other", &other);
    let mut witness = fixture.connect();
    witness.greet();
    witness.go("other");
    let mut client = stalled(&fixture, &disk, 3);
    let busy = fixture.exports.remove("vol", RemoveMode::Safe);
    assert!(matches!(busy, Err(NbdError::Busy { connections: 1, .. })));
    let removed = fixture.exports.remove("vol", RemoveMode::Hard).unwrap();
    for cookie in 0..3 {
        assert_eq!(client.simple_reply(), (ESHUTDOWN, cookie));
    }
    assert!(client.is_hung_up());
    wait_until("the device is free", || removed.is_closed());
    assert_eq!(disk.switches.channels.load(Ordering::SeqCst), 0);
    assert_eq!(witness.read(1, 0, 512).unwrap(), [0; 512]);
    let names = |exports: &NbdExports| -> Vec<String> {
        exports
            .list()
            .into_iter()
            .map(|export| export.name)
            .collect()
    };
    assert_eq!(names(&fixture.exports), ["other"]);
    let gone = fixture.exports.remove("vol", RemoveMode::Safe);
    assert!(matches!(gone, Err(NbdError::NotFound(_))));
    drop(witness);
    wait_until("the last client is gone", || {
        fixture.exports.list()[0].connections == 0
    });
    let removed = fixture.exports.remove("other", RemoveMode::Safe).unwrap();
    assert!(removed.is_closed());
}

#[test]
fn stop_ends_clients_with_stalled_writes() {
    let (mut fixture, disk) = Fixture::with_disk();
    let mut client = stalled(&fixture, &disk, 2);
    let mut greeting = fixture.connect();
    greeting.greet();
    let mut server = fixture.server.take().unwrap();
    assert!(!server.is_stopped());
    server.stop();
    wait_until("the server stops", || server.is_stopped());
    assert!(!fixture.socket.exists());
    assert_eq!(client.simple_reply(), (ESHUTDOWN, 0));
    assert_eq!(client.simple_reply(), (ESHUTDOWN, 1));
    assert!(client.is_hung_up() && greeting.is_hung_up());
    assert!(!disk.switches.dropped_early.load(Ordering::SeqCst));
}

#[test]
fn exports_are_checked_when_added() {
    let (fixture, disk) = Fixture::with_disk();
    let add = |change: &dyn Fn(&mut ExportConfig)| {
        let mut config = config("new", &disk);
        change(&mut config);
        fixture.exports.add(config)
    };
    let exists = add(&|c| c.name = "vol".to_owned());
    assert!(matches!(exists, Err(NbdError::Exists(_))));
    for name in [String::new(), "a\0b".to_owned(), "x".repeat(4097)] {
        let bad = add(&|c| c.name.clone_from(&name));
        assert!(matches!(bad, Err(NbdError::BadName(_))), "{name:?}");
    }
    let bad = add(&|c| c.description = "x".repeat(4097));
    assert!(matches!(bad, Err(NbdError::BadName(_))));
    for payload in [0, 4095, 4097, (32 << 20) + 512] {
        let bad = add(&|c| c.max_payload = payload);
        assert!(matches!(bad, Err(NbdError::BadPayload(_))), "{payload}");
    }
    add(&|c| c.max_payload = 4096).unwrap();
    let mut client = fixture.connect();
    client.greet();
    client.go("new");
    assert_eq!(client.read(1, 0, 4096).unwrap(), [0; 4096]);
    assert_eq!(client.read(2, 0, 4608), Err(22));
}

#[test]
fn one_connection_too_many_is_closed_and_a_place_is_free_again_later() {
    let fixture = Fixture::new(1, NbdOptions { max_connections: 2 });
    let disk = Arc::new(RamDisk::new("disk", 4096));
    fixture.export("vol", &disk);
    let (mut first, _second) = (simple(&fixture), simple(&fixture));
    assert!(fixture.connect().is_hung_up());
    first.request(Command::Disconnect, 0, 0, 0);
    assert!(first.is_hung_up());
    wait_until("a place is free", || {
        fixture.server().connections().len() == 1
    });
    assert_eq!(simple(&fixture).read(1, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn connections_are_spread_over_the_reactors_and_listed() {
    let fixture = Fixture::new(2, NbdOptions::default());
    let disk = Arc::new(RamDisk::new("disk", 4096));
    fixture.export("vol", &disk);
    let mut first = simple(&fixture);
    assert_eq!(disk.switches.homes.load(Ordering::SeqCst).count_ones(), 1);
    let _second = simple(&fixture);
    assert_eq!(disk.switches.homes.load(Ordering::SeqCst), 0b11);
    first.read(1, 0, 512).unwrap();
    let listed = fixture.server().connections();
    let peer = format!("unix:pid={}", std::process::id());
    assert_eq!((listed.len(), &listed[0].peer), (2, &peer));
    assert_eq!(listed[0].export.as_deref(), Some("vol"));
    assert_eq!((listed[0].requests, listed[1].requests), (1, 0));
}

#[test]
fn the_socket_file_is_private_and_only_a_dead_one_is_replaced() {
    let (fixture, _disk) = Fixture::with_disk();
    let mode = std::fs::metadata(&fixture.socket).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let start = |path: &std::path::Path| {
        let address = NbdAddress::Unix(path.to_owned());
        let reactors = fixture.reactors.clone();
        NbdServer::start(&address, &fixture.exports, reactors, NbdOptions::default())
    };
    let taken = start(&fixture.socket);
    assert!(matches!(taken, Err(NbdError::AddressInUse(_))));
    let file = fixture.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(start(&file), Err(NbdError::NotASocket(_))));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let nowhere = start(&fixture.dir.path().join("no/such/dir"));
    assert!(matches!(nowhere, Err(NbdError::Listen { .. })));

    let stale = fixture.dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let mut server = start(&stale).unwrap();
    Client::connect(&stale).greet();
    server.stop();
    wait_until("the server stops", || server.is_stopped());
    assert!(!stale.exists());
}

#[test]
fn tcp_serves_the_same_exports() {
    let (fixture, _disk) = Fixture::with_disk();
    let address: NbdAddress = "127.0.0.1:0".parse().unwrap();
    let reactors = fixture.reactors.clone();
    let mut server =
        NbdServer::start(&address, &fixture.exports, reactors, NbdOptions::default()).unwrap();
    let address = server.address().to_string();
    assert!(!address.ends_with(":0"));
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    let local = stream.local_addr().unwrap().to_string();
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    assert_eq!(&greeting[..8], b"NBDMAGIC");
    assert_eq!(server.connections()[0].peer, local);
    server.stop();
    wait_until("the server stops", || server.is_stopped());
}

#[test]
fn addresses_are_parsed_and_printed() {
    for text in ["unix:/run/x.sock", "127.0.0.1:10809", "[::1]:1"] {
        let address: NbdAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
    }
    for text in ["", "unix:", "localhost:1", "127.0.0.1", "/run/x"] {
        let bad: Result<NbdAddress, NbdError> = text.parse();
        assert!(matches!(bad, Err(NbdError::BadAddress(_))), "{text}");
    }
}
