//! What the NBD server lets its reactor do while clients are silent: sleep.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;

use nbd_common::{Client, GO, RamDisk, config, named, wait_until};
use pmcache::target::nbd::{NbdAddress, NbdExports, NbdOptions, NbdServer};
use pmcache::wire::nbd::Command;
use reactors::{Clock, Wake};
use reactors::{IdlePolicy, ManualClock, Nanos, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A reactor in the test's own hands, with a server and one disk of 1 MiB.
struct Bench {
    reactor: Reactor,
    clock: Arc<ManualClock>,
    disk: Arc<RamDisk>,
    _server: NbdServer,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let config_of_reactor = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Interrupt,
            seed: 1,
        };
        let shared: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let reactor = Reactor::new(&config_of_reactor, shared, Quiescence::new(1)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let exports = NbdExports::new();
        let disk = Arc::new(RamDisk::new("disk", 1 << 20));
        exports.add(config("vol", &disk)).unwrap();
        let address = NbdAddress::Unix(path.clone());
        let reactors = vec![reactor.handle()];
        let server = NbdServer::start(&address, &exports, reactors, NbdOptions::default());
        Self {
            reactor,
            clock,
            disk,
            _server: server.unwrap(),
            client: Client::connect(&path),
            _dir: dir,
        }
    }

    /// Runs rounds until three in a row found nothing. Returns when the reactor must wake.
    fn settle(&mut self) -> Wake {
        let mut empty = 0;
        for _ in 0..10_000 {
            empty = if self.reactor.step() == 0 {
                empty + 1
            } else {
                0
            };
            // Asked each round, as before a sleep.
            let wake = self.reactor.wake();
            if empty >= 3 && wake != Wake::Now {
                return wake;
            }
        }
        panic!("the reactor never comes to rest");
    }

    fn handshake(&mut self) {
        self.settle();
        self.client.greet();
        let mut data = named("vol");
        data.extend_from_slice(&[0, 0]);
        self.client.send(&Client::option_bytes(GO, &data));
        self.settle();
        assert_eq!(self.client.option_replies(GO).last().unwrap().0, 1);
    }
}

#[test]
fn a_silent_client_lets_the_reactor_sleep_and_is_heard_afterwards() {
    let mut bench = Bench::new();
    let deadline = bench.clock.now().after(30_000_000_000);
    assert_eq!(bench.settle(), Wake::At(deadline));
    bench.client.receive(18);
    bench.client.send(&[0, 0, 0, 3]);
    bench.client.send(b"IHAVE");
    assert_eq!(bench.settle(), Wake::At(deadline));
    bench.client.send(&Client::option_bytes(8, &[])[5..]);
    assert_eq!(bench.settle(), Wake::At(deadline));
    assert_eq!(bench.client.option_replies(8), [(1, vec![])]);

    let mut bench = Bench::new();
    bench.handshake();
    assert_eq!(bench.settle(), Wake::OnEvent);
    bench.clock.advance(3_600_000_000_000);
    for cookie in 0..3 {
        assert_eq!(bench.settle(), Wake::OnEvent);
        bench.client.write(cookie, 0, &[7; 512]);
        assert_eq!(bench.settle(), Wake::OnEvent);
        assert_eq!(bench.client.simple_reply(), (0, cookie));
    }
    // Half a request, half a payload.
    let header = Client::header(Command::Write, 9, 0, 1024).encode();
    for part in [&header[..13], &header[13..], &[1; 512], &[1; 512]] {
        assert_eq!(bench.settle(), Wake::OnEvent);
        bench.client.send(part);
    }
    bench.settle();
    assert_eq!(bench.client.simple_reply(), (0, 9));
}

#[test]
fn a_reactor_waits_by_the_clock_for_a_client_that_reads_nothing() {
    let mut bench = Bench::new();
    bench.handshake();
    bench.client.request(Command::Read, 1, 0, 1 << 20);
    let soon = Nanos(bench.clock.now().0 + 200_000);
    assert_eq!(bench.settle(), Wake::At(soon));
    let mut got = 0;
    while got < 16 + (1 << 20) {
        let mut part = vec![0; 100_000];
        let count = std::io::Read::read(&mut bench.client.stream, &mut part).unwrap();
        got += count;
        bench.clock.advance(200_000);
        bench.settle();
    }
    assert_eq!(bench.settle(), Wake::OnEvent);
}

#[test]
fn a_client_that_waits_for_a_stalled_device_is_looked_after_by_the_clock() {
    let mut bench = Bench::new();
    bench.handshake();
    bench.disk.switches.hold.store(true, Ordering::SeqCst);
    let requests = (0..300).map(|cookie| Client::header(Command::Read, cookie, 0, 512).encode());
    bench.client.send(&requests.collect::<Vec<_>>().concat());
    // Long enough to see that nothing happens: then the socket is not watched any more.
    for _ in 0..200 {
        bench.settle();
    }
    let soon = Nanos(bench.clock.now().0 + 100_000_000);
    assert_eq!(bench.settle(), Wake::At(soon));
    assert_eq!(bench.disk.switches.submitted.load(Ordering::SeqCst), 256);
    bench.disk.switches.hold.store(false, Ordering::SeqCst);
    for cookie in 0..300 {
        // The socket holds only so many replies.
        bench.settle();
        assert_eq!(bench.client.simple_reply(), (0, cookie));
        bench.client.receive(512);
    }
    assert_eq!(bench.settle(), Wake::OnEvent);
}

/// While requests stream in, the socket is not watched; before the reactor sleeps it must be.
#[test]
fn a_client_that_has_streamed_still_wakes_the_reactor() {
    let mut bench = Bench::new();
    bench.handshake();
    // The clock stands still, and nobody asks to sleep: no silence in between.
    for cookie in 0..100 {
        bench.client.write(cookie, 0, &[7; 512]);
        while bench.disk.switches.submitted.load(Ordering::SeqCst) <= cookie {
            bench.reactor.step();
        }
        bench.reactor.step();
        assert_eq!(bench.client.simple_reply(), (0, cookie));
    }
    assert_eq!(bench.reactor.wake(), Wake::Now, "it must watch first");
    let stop = Arc::new(AtomicBool::new(false));
    let handle = bench.reactor.handle();
    let (mut client, end) = (bench.client, Arc::clone(&stop));
    let asking = std::thread::spawn(move || {
        wait_until("the reactor sleeps", || {
            handle.stats().asleep_since.is_some()
        });
        client.request(Command::Flush, 1000, 0, 0);
        let mut reply = [0; 16];
        let answered = std::io::Read::read_exact(&mut client.stream, &mut reply);
        end.store(true, Ordering::SeqCst);
        handle.ring();
        answered.expect("the reactor sleeps through a request");
    });
    bench.reactor.run(&stop);
    asking.join().unwrap();
}
