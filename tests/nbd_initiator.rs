//! The NBD initiator bdev on our own server: everything that a bdev does, against a model too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;

use nbd_common::driver::{Driver, connect, uri};
use nbd_common::{Fixture, RamDisk, config, wait_until};
use pmcache::bdev::{
    Bdev, BdevError, Channel, Completion, Data, Extent, IoBuf, IoStatus, MemView, NbdBdev,
    NbdConfig, NbdFault, Op, Request,
};
use pmcache::target::nbd::{ExportConfig, NbdOptions};
use pmcache::units::ByteRange;
use reactors::{Cx, IdlePolicy, Message, MonotonicClock, Poller, Reactors, ReactorsConfig, Wake};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 512 * 7) % 251).unwrap() ^ seed)
        .collect()
}

const ZERO: Op = Op::WriteZeroes {
    may_unmap: true,
    fua: false,
};

#[test]
fn info_is_what_the_server_says() {
    let fixture = Fixture::new(1, NbdOptions::default());
    let disk = Arc::new(RamDisk::new("disk", 1 << 20));
    fixture.export("vol", &disk);
    let sealed = ExportConfig {
        read_only: true,
        ..config("sealed", &disk)
    };
    fixture.exports.add(sealed).unwrap();
    let bdev = connect(&fixture.socket, "vol", true).unwrap();
    let info = bdev.info();
    assert_eq!((info.block_size, info.bytes()), (512, 1 << 20));
    assert!(info.volatile_cache && !info.read_only);
    assert!(info.supports.discard && info.supports.write_zeroes);
    assert_eq!(bdev.uri(), &uri(&fixture.socket, "vol"));
    let again = connect(&fixture.socket, "vol", true).unwrap();
    assert_eq!(again.info().uuid, info.uuid);
    let sealed = connect(&fixture.socket, "sealed", true).unwrap();
    assert!(sealed.info().read_only);
    assert_ne!(sealed.info().uuid, info.uuid);
    let mut driver = Driver::new(&sealed);
    driver.write(1, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::ReadOnly);
    wait_until("the probes are gone", || {
        fixture.server().connections().len() == 1
    });
}

#[test]
fn what_is_not_there_is_said_at_once() {
    let (fixture, _disk) = Fixture::with_disk();
    let error = connect(&fixture.socket, "other", true).unwrap_err();
    let unknown = NbdFault::Refused(0x8000_0006);
    assert!(
        matches!(error, BdevError::Nbd { source, .. } if source == unknown),
        "{error}"
    );
    let error = connect(&fixture.dir.path().join("none"), "vol", true).unwrap_err();
    let BdevError::Nbd {
        source: NbdFault::Socket(_),
        ..
    } = error
    else {
        panic!("{error}");
    };
}

#[test]
fn every_operation_reaches_the_disk() {
    for structured in [true, false] {
        let (fixture, disk) = Fixture::with_disk();
        let bdev = connect(&fixture.socket, "vol", structured).unwrap();
        let mut driver = Driver::new(&bdev);
        let bytes = pattern(1, 8192);
        driver.write(1, 4096, &bytes, true);
        assert_eq!(driver.status(), IoStatus::Ok);
        assert_eq!(disk.switches.fuas.load(Ordering::SeqCst), 1);
        assert_eq!(driver.bytes(3584, 9216)[512..8704], bytes);
        let (a, b) = (pattern(2, 700), pattern(3, 324));
        let views = [&a, &b].map(|piece| MemView::from_buf(IoBuf::copy_of(piece)));
        let data = Data::Gather(views.to_vec());
        driver.submit(2, Op::Write { fua: false }, (512, 1024), data);
        assert_eq!(driver.status(), IoStatus::Ok);
        assert_eq!(driver.bytes(512, 1024), [a, b].concat());
        assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
        assert_eq!(disk.switches.flushes.load(Ordering::SeqCst), 1);
        assert_eq!(driver.run(ZERO, (4096, 4096)), IoStatus::Ok);
        assert_eq!(driver.run(Op::Discard, (8192, 512)), IoStatus::Ok);
        assert_eq!(driver.bytes(4096, 4608), vec![0; 4608]);
        assert_eq!(driver.run(Op::Prefetch, (0, 512)), IoStatus::Ok);
        assert_eq!(disk.switches.prefetched.load(Ordering::SeqCst), 1);
        driver.submit(3, Op::Extents, (0, 1024), Data::None);
        let Data::Extents(extents) = driver.wait(1).pop().unwrap().data else {
            panic!("no extents");
        };
        assert_eq!(extents, [Extent::allocated(1024)]);
        assert_eq!(driver.run(Op::Read, (0, 0)), IoStatus::Invalid);
        driver.read(4, 1 << 20, 512);
        assert_eq!(driver.status(), IoStatus::OutOfRange);
    }
}

#[test]
fn failures_of_the_disk_come_through_and_the_channel_lives_on() {
    for structured in [true, false] {
        let (fixture, disk) = Fixture::with_disk();
        let bdev = connect(&fixture.socket, "vol", structured).unwrap();
        let mut driver = Driver::new(&bdev);
        disk.switches.fail.store(true, Ordering::SeqCst);
        driver.read(1, 0, 4096);
        driver.write(2, 0, &[1; 512], false);
        for done in driver.wait(2) {
            assert_eq!(done.status, IoStatus::IoError, "request {}", done.tag);
        }
        disk.switches.fail.store(false, Ordering::SeqCst);
        driver.write(3, 0, &[1; 512], false);
        assert_eq!(driver.status(), IoStatus::Ok);
    }
}

#[test]
fn more_than_the_server_takes_at_once_is_cut_and_put_together() {
    let fixture = Fixture::new(1, NbdOptions::default());
    let disk = Arc::new(RamDisk::new("disk", 4 << 20));
    let small = ExportConfig {
        max_payload: 64 << 10,
        ..config("vol", &disk)
    };
    fixture.exports.add(small).unwrap();
    for structured in [true, false] {
        let bdev = connect(&fixture.socket, "vol", structured).unwrap();
        let mut driver = Driver::new(&bdev);
        let bytes = pattern(4, (3 << 20) + 512);
        let cuts = [0, 100, 70_000, 1 << 20, bytes.len()];
        let views = cuts
            .windows(2)
            .map(|w| MemView::from_buf(IoBuf::copy_of(&bytes[w[0]..w[1]])));
        let data = Data::Gather(views.collect());
        let range = (512, bytes.len() as u64);
        driver.submit(1, Op::Write { fua: false }, range, data);
        assert_eq!(driver.status(), IoStatus::Ok);
        assert!(disk.content()[512..512 + bytes.len()] == bytes);
        disk.switches.reverse.store(true, Ordering::SeqCst);
        assert!(driver.bytes(512, bytes.len() as u64) == bytes);
        // With more of them than commands may be under way, and behind each other.
        for tag in 0..300 {
            driver.read(tag, tag * 4096, 200 << 10);
        }
        for done in driver.wait(300) {
            assert_eq!(done.status, IoStatus::Ok);
            let at = usize::try_from(done.tag * 4096).unwrap();
            let got = done.data.into_buf().unwrap();
            assert!(*got == disk.content()[at..at + (200 << 10)], "{}", done.tag);
        }
        disk.switches.reverse.store(false, Ordering::SeqCst);
    }
}

#[test]
fn requests_before_the_connection_stands_wait_for_it() {
    let (fixture, _disk) = Fixture::with_disk();
    let bdev = connect(&fixture.socket, "vol", true).unwrap();
    let mut driver = Driver::new(&bdev);
    for tag in 0..400 {
        driver.write(tag, tag * 512, &pattern(1, 512), false);
    }
    let mut tags: Vec<_> = driver.wait(400).iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..400));
}

#[test]
fn a_server_that_stops_fails_what_is_under_way_and_a_new_channel_is_refused() {
    let (mut fixture, disk) = Fixture::with_disk();
    let bdev = connect(&fixture.socket, "vol", true).unwrap();
    let (mut busy, mut idle) = (Driver::new(&bdev), Driver::new(&bdev));
    for driver in [&mut busy, &mut idle] {
        driver.write(0, 0, &[1; 512], false);
        assert_eq!(driver.status(), IoStatus::Ok);
    }
    disk.switches.hold.store(true, Ordering::SeqCst);
    for tag in 0..10 {
        busy.read(tag, 0, 512);
    }
    busy.step();
    fixture.server.take().unwrap().stop();
    let failed = busy.wait(10);
    assert!(failed.iter().all(|done| !done.status.is_ok()));
    // An idle channel notices too, so that its reactor can sleep.
    wait_until("the idle channel notices", || {
        idle.step();
        idle.read(1, 0, 512);
        idle.status() == IoStatus::IoError
    });
    assert_eq!(idle.channel.wake(), Wake::OnEvent);
    busy.write(1, 0, &[1; 512], false);
    assert_eq!(busy.status(), IoStatus::IoError);
    let mut late = Driver::new(&bdev);
    late.read(1, 0, 512);
    assert_eq!(late.status(), IoStatus::IoError);
}

#[test]
fn a_dropped_channel_says_goodbye() {
    let (fixture, _disk) = Fixture::with_disk();
    let bdev = connect(&fixture.socket, "vol", true).unwrap();
    let mut driver = Driver::new(&bdev);
    driver.write(0, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert_eq!(fixture.server().connections().len(), 1);
    let Driver {
        mut reactor,
        channel,
        ..
    } = driver;
    drop(channel);
    assert_eq!(reactor.wake(), Wake::Now);
    reactor.step();
    assert_eq!(reactor.wake(), Wake::OnEvent);
    wait_until("the server sees it go", || {
        fixture.server().connections().is_empty()
    });
}

#[test]
fn it_works_over_tcp_too() {
    use pmcache::target::nbd::{NbdAddress, NbdServer};
    let (fixture, _disk) = Fixture::with_disk();
    let address = NbdAddress::Tcp("127.0.0.1:0".parse().unwrap());
    let mut server = NbdServer::start(
        &address,
        &fixture.exports,
        fixture.reactors.clone(),
        NbdOptions::default(),
    )
    .unwrap();
    let NbdAddress::Tcp(at) = server.address() else {
        panic!("not TCP");
    };
    let text = format!("nbd://localhost:{}/vol", at.port());
    let config = NbdConfig::new("remote", text.parse().unwrap());
    let bdev = NbdBdev::connect(config, &MonotonicClock).unwrap();
    let mut driver = Driver::new(&bdev);
    let bytes = pattern(5, 256 << 10);
    driver.write(1, 0, &bytes, false);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert!(driver.bytes(0, 256 << 10) == bytes);
    drop(driver);
    server.stop();
    wait_until("the server stops", || server.is_stopped());
}

/// Reads one block after the other, and says when it has read enough.
struct Reader {
    channel: Box<dyn Channel>,
    left: u64,
    done: Vec<Completion>,
    end: mpsc::Sender<IoStatus>,
}

impl Reader {
    fn read(&mut self, cx: &Cx) {
        let range = ByteRange::new(self.left % 64 * 512, 512).unwrap();
        let data = Data::Buf(IoBuf::zeroed(512));
        let (tag, op) = (self.left, Op::Read);
        let request = Request {
            tag,
            op,
            range,
            data,
        };
        self.channel.submit(cx, request);
    }
}

impl Poller for Reader {
    fn poll(&mut self, cx: &Cx, _: u32) -> u32 {
        let count = self.channel.poll(cx, &mut self.done);
        for done in std::mem::take(&mut self.done) {
            self.left -= 1;
            if self.left == 0 || !done.status.is_ok() {
                self.end.send(done.status).unwrap();
            } else {
                self.read(cx);
            }
        }
        count
    }

    fn wake(&self) -> Wake {
        self.channel.wake()
    }
}

#[test]
fn a_reactor_that_sleeps_between_answers_misses_none() {
    let (fixture, _disk) = Fixture::with_disk();
    let bdev = connect(&fixture.socket, "vol", true).unwrap();
    let reactors = Reactors::start(ReactorsConfig {
        cores: vec![0],
        maintenance: vec![],
        idle: IdlePolicy::Interrupt,
        seed: 1,
        clock: Arc::new(MonotonicClock),
    })
    .unwrap();
    let (end, ended) = mpsc::channel();
    let start: Message = Box::new(move |cx| {
        let mut reader = Reader {
            channel: bdev.open(cx).unwrap(),
            left: 500,
            done: vec![],
            end,
        };
        reader.read(cx);
        cx.add_poller("reader", Box::new(reader));
    });
    assert!(reactors.data_handles()[0].send(start).is_ok());
    let status = ended.recv_timeout(Duration::from_secs(60));
    assert_eq!(status, Ok(IoStatus::Ok));
    reactors.stop();
}

/// A generator whose runs can be told apart by their seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

const MODEL_BLOCKS: u64 = 2048;

/// Random batches, up to 64 requests each, on ranges that do not overlap within a batch, against a
/// plain array of bytes.
fn follow_the_model(driver: &mut Driver, seed: u64, rounds: u32) {
    let mut random = Random(seed);
    let len = usize::try_from(MODEL_BLOCKS * 512).unwrap();
    let mut model = vec![0_u8; len];
    driver.run(ZERO, (0, MODEL_BLOCKS * 512));
    for round in 0..rounds {
        let mut at = random.below(64);
        let mut expected = std::collections::HashMap::new();
        let mut count = 0;
        while at < MODEL_BLOCKS && count < 64 {
            let blocks = (1 + random.below(40)).min(MODEL_BLOCKS - at);
            let range = (at * 512, blocks * 512);
            let bytes =
                usize::try_from(at * 512).unwrap()..usize::try_from((at + blocks) * 512).unwrap();
            match random.below(8) {
                0..=3 => {
                    let seed = u8::try_from(random.below(256)).unwrap();
                    let data = pattern(seed, bytes.len());
                    model[bytes].copy_from_slice(&data);
                    driver.write(at, range.0, &data, seed.is_multiple_of(4));
                }
                4 => {
                    model[bytes].fill(0);
                    let may_unmap = random.below(2) == 0;
                    let fua = random.below(4) == 0;
                    let op = Op::WriteZeroes { may_unmap, fua };
                    driver.submit(at, op, range, Data::None);
                }
                5 => driver.submit(at, Op::Flush, (0, 0), Data::None),
                _ => {
                    expected.insert(at, model[bytes].to_vec());
                    driver.read(at, range.0, range.1);
                }
            }
            count += 1;
            at += blocks + random.below(30);
        }
        for done in driver.wait(count) {
            assert_eq!(done.status, IoStatus::Ok, "seed {seed}, round {round}");
            if let Some(expected) = expected.remove(&done.tag) {
                let got = done.data.into_buf().unwrap();
                let at = done.tag;
                assert!(*got == expected, "seed {seed}, round {round}, block {at}");
            }
        }
    }
    assert!(driver.bytes(0, MODEL_BLOCKS * 512) == model, "seed {seed}");
}

#[test]
fn random_requests_follow_the_model() {
    for (seed, structured) in [(1, true), (2, false), (3, true)] {
        let fixture = Fixture::new(2, NbdOptions::default());
        let disk = Arc::new(RamDisk::new("disk", 1 << 20));
        disk.switches.reverse.store(seed == 3, Ordering::SeqCst);
        let odd = ExportConfig {
            max_payload: 8 << 10,
            ..config("vol", &disk)
        };
        fixture.exports.add(odd).unwrap();
        let bdev = connect(&fixture.socket, "vol", structured).unwrap();
        follow_the_model(&mut Driver::new(&bdev), seed, 60);
    }
}

/// Starts a server of others on a Unix socket, if it is installed, and follows the model on it.
fn on_a_server_of_others(tool: &str, args: impl FnOnce(&str, &std::path::Path) -> Vec<String>) {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    if !found {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!ci, "{tool} is missing, and CI is to run everything");
        eprintln!("skipped: no {tool}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let mut child = std::process::Command::new(tool)
        .args(args(socket.to_str().unwrap(), dir.path()))
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it listens", || socket.exists());
    let mut connected = None;
    wait_until("it answers", || {
        connected = connect(&socket, "", true).ok();
        connected.is_some()
    });
    for structured in [true, false] {
        let bdev = connect(&socket, "", structured).unwrap();
        assert_eq!(bdev.info().bytes(), MODEL_BLOCKS * 512);
        follow_the_model(&mut Driver::new(&bdev), 7, 40);
    }
    drop(connected);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn random_requests_follow_the_model_on_nbdkit() {
    on_a_server_of_others("nbdkit", |socket, _| {
        let size = (MODEL_BLOCKS * 512).to_string();
        ["-f", "-U", socket, "memory", &size]
            .map(str::to_owned)
            .to_vec()
    });
}

#[test]
fn random_requests_follow_the_model_on_qemu_nbd() {
    on_a_server_of_others("qemu-nbd", |socket, dir| {
        let image = dir.join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(MODEL_BLOCKS * 512).unwrap();
        let image = image.to_str().unwrap();
        ["-t", "-k", socket, "-f", "raw", "--discard=unmap", image]
            .map(str::to_owned)
            .to_vec()
    });
}
