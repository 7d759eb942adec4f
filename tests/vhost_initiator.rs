//! The vhost-user-blk initiator bdev: on our own target, and on QEMU's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;
mod nbd_common;

use client_common::tool;
use common::{EMPTY_CONFIG, Service, wait_until};
use nbd_common::driver::Driver;
use pmcache::bdev::{
    Bdev, BdevError, Data, Extent, IoBuf, IoStatus, MemView, Op, VhostBdev, VhostConfig, VhostFault,
};
use reactors::{ManualClock, SplitMix64};
use rustix::process::Signal;
use serde_json::json;
use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const SECTOR: u64 = 512;
const DISK_BYTES: u64 = 8 << 20;
const WRITE: Op = Op::Write { fua: false };

fn connect_as(config: VhostConfig) -> Result<VhostBdev, BdevError> {
    VhostBdev::connect(config, |keeper| {
        let thread = std::thread::Builder::new();
        thread.spawn(move || keeper.run()).map(|_detached| ())
    })
}

fn connect(socket: &Path) -> VhostBdev {
    connect_as(VhostConfig::new("remote", socket)).unwrap()
}

/// Makes a RAM disk, and offers it; returns the socket.
fn ram_disk(service: &Service) -> PathBuf {
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": DISK_BYTES / SECTOR});
    service.call("bdev_malloc_create", params);
    offer(service, "M0")
}

/// Offers a file of `bytes`, which has a volatile cache; returns the socket.
fn file_disk(service: &Service, bytes: u64) -> PathBuf {
    let image = service.dir().join("image");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&image)
        .unwrap();
    file.set_len(bytes).unwrap();
    let params = json!({"name": "U0", "filename": image, "block_size": 512});
    service.call("bdev_uring_create", params);
    offer(service, "U0")
}

fn offer(service: &Service, bdev: &str) -> PathBuf {
    let params = json!({"ctrlr": "c0", "dev_name": bdev});
    service.call("vhost_create_blk_controller", params);
    service.data("c0")
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(seed);
    let words = (0..len.div_ceil(8)).flat_map(|_| random.draw().to_le_bytes());
    words.take(usize::try_from(len).unwrap()).collect()
}

fn zeroes(may_unmap: bool, fua: bool) -> Op {
    Op::WriteZeroes { may_unmap, fua }
}

/// What a disk must hold, and requests on it that do not overlap.
struct Model {
    random: SplitMix64,
    bytes: Vec<u8>,
    /// By tag: where the request is, and what a read must find.
    busy: HashMap<u64, (u64, u64, Option<Vec<u8>>)>,
    tag: u64,
}

impl Model {
    fn new(driver: &mut Driver) -> Self {
        let mut model = Self {
            random: SplitMix64::new(3),
            bytes: vec![0; usize::try_from(DISK_BYTES).unwrap()],
            busy: HashMap::new(),
            tag: 1 << 32,
        };
        assert_eq!(
            driver.run(zeroes(true, false), (0, DISK_BYTES)),
            IoStatus::Ok
        );
        model.verify(driver);
        model
    }

    /// Starts a request that overlaps none of those under way.
    fn start(&mut self, driver: &mut Driver) {
        let sectors = DISK_BYTES / SECTOR;
        let at = self.random.draw() % sectors;
        let most = match self.random.draw() % 8 {
            0 => 1024,
            1..4 => 64,
            _ => 8,
        };
        let len = 1 + self.random.draw() % (sectors - at).min(most);
        let (at, len) = (at * SECTOR, len * SECTOR);
        let meets =
            |(start, len_other, _): &(u64, u64, _)| at < start + len_other && *start < at + len;
        if self.busy.values().any(meets) {
            return;
        }
        self.tag += 1;
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        let fua = self.random.draw().is_multiple_of(16);
        let mut expected = None;
        match self.random.draw() % 8 {
            0..3 => {
                expected = Some(self.bytes[range].to_vec());
                driver.read(self.tag, at, len);
            }
            3 => {
                self.bytes[range].fill(0);
                driver.submit(self.tag, zeroes(fua, fua), (at, len), Data::None);
            }
            4 => {
                let bytes = pattern(self.random.draw(), len);
                self.bytes[range].copy_from_slice(&bytes);
                let (front, rest) = bytes.split_at(bytes.len() / 3);
                let views = [front, rest].map(|part| MemView::from_buf(IoBuf::copy_of(part)));
                let data = Data::Gather(views.to_vec());
                driver.submit(self.tag, WRITE, (at, len), data);
            }
            5 => driver.submit(self.tag, Op::Flush, (0, 0), Data::None),
            _ => {
                let bytes = pattern(self.random.draw(), len);
                self.bytes[range].copy_from_slice(&bytes);
                driver.write(self.tag, at, &bytes, fua);
            }
        }
        self.busy.insert(self.tag, (at, len, expected));
    }

    fn check(&mut self, driver: &mut Driver) {
        for done in driver.done.drain(..) {
            assert_eq!(done.status, IoStatus::Ok);
            let (at, _, expected) = self.busy.remove(&done.tag).expect("it was under way");
            if let Some(expected) = expected {
                let found = done.data.into_buf().unwrap();
                assert!(*found == *expected, "other bytes at {at}");
            }
        }
    }

    /// Does `count` requests, up to `depth` at a time.
    fn work(&mut self, driver: &mut Driver, depth: usize, count: usize) {
        let end = self.tag + count as u64;
        while self.tag < end {
            if self.busy.len() < depth {
                self.start(driver);
            } else {
                driver.step();
                self.check(driver);
            }
        }
        wait_until("all requests end", || {
            driver.step();
            self.check(driver);
            self.busy.is_empty()
        });
    }

    fn verify(&mut self, driver: &mut Driver) {
        let found = driver.bytes(0, DISK_BYTES);
        assert!(found == self.bytes, "the disk holds something else");
    }
}

fn model(bdev: &VhostBdev) {
    let mut driver = Driver::new(bdev);
    let mut model = Model::new(&mut driver);
    for (depth, count) in [(1, 200), (32, 2000), (300, 3000)] {
        model.work(&mut driver, depth, count);
        model.verify(&mut driver);
    }
    // The next one finds the disk, and a queue that has been used before.
    drop(driver.channel);
    driver.channel = bdev.open(driver.reactor.cx()).unwrap();
    model.work(&mut driver, 32, 500);
    model.verify(&mut driver);
}

#[test]
fn the_bdev_is_what_the_back_end_says() {
    let service = Service::start();
    let socket = file_disk(&service, DISK_BYTES);
    let bdev = connect(&socket);
    let info = bdev.info();
    assert_eq!((info.block_size, info.bytes()), (512, DISK_BYTES));
    assert_eq!(info.product_name, "VirtioBlk Disk");
    assert!(info.volatile_cache && !info.read_only);
    assert!(info.supports.discard && info.supports.write_zeroes);
    assert_eq!((bdev.path(), bdev.queues()), (&*socket, 4));
    drop(bdev);
    let again = connect_as(VhostConfig {
        read_only: true,
        queues: 1000,
        ..VhostConfig::new("remote", &socket)
    });
    let again = again.unwrap();
    assert_eq!((again.info().uuid, again.queues()), (info.uuid, 64));
    let mut driver = Driver::new(&again);
    driver.write(1, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::ReadOnly);
}

#[test]
fn every_operation_reaches_the_disk() {
    let service = Service::start();
    let bdev = connect(&ram_disk(&service));
    assert!(!bdev.info().volatile_cache, "it is RAM");
    let mut driver = Driver::new(&bdev);
    // More than the back end takes at once, and more than it takes together.
    let bytes = pattern(1, 6 << 20);
    driver.write(1, SECTOR, &bytes, true);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert!(driver.bytes(SECTOR, 6 << 20) == bytes);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    let cleared = (4096, 1 << 20);
    assert_eq!(driver.run(zeroes(false, true), cleared), IoStatus::Ok);
    assert_eq!(driver.run(Op::Discard, (2 << 20, SECTOR)), IoStatus::Ok);
    assert!(driver.bytes(4096, 1 << 20).iter().all(|byte| *byte == 0));
    assert_eq!(driver.run(Op::Prefetch, (0, 512)), IoStatus::Ok);
    driver.submit(3, Op::Extents, (0, 1024), Data::None);
    let Data::Extents(extents) = driver.wait(1).pop().unwrap().data else {
        panic!("no extents");
    };
    assert_eq!(extents, [Extent::allocated(1024)]);
    driver.read(4, DISK_BYTES, 512);
    assert_eq!(driver.status(), IoStatus::OutOfRange);
    driver.read(5, 1, 512);
    assert_eq!(driver.status(), IoStatus::Unaligned);
}

#[test]
fn the_disks_failures_come_through_and_the_channel_lives_on() {
    let service = Service::start();
    let blocks = DISK_BYTES / SECTOR;
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": blocks});
    service.call("bdev_malloc_create", params);
    service.call("bdev_error_create", json!({"base_name": "M0"}));
    let bdev = connect(&offer(&service, "EE_M0"));
    let fail = json!({
        "name": "EE_M0", "io_type": "all", "error_type": "failure", "num": 1,
    });
    service.call("bdev_error_inject_error", fail);
    let mut driver = Driver::new(&bdev);
    // Cut in pieces, of which one fails.
    driver.write(1, 0, &pattern(1, 1 << 20), false);
    assert_eq!(driver.status(), IoStatus::IoError);
    driver.write(2, 0, &[2; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert_eq!(driver.bytes(0, 512), [2; 512]);
}

#[test]
fn a_disk_behaves_like_an_array() {
    for args in [&[][..], &["--idle", "interrupt"], &["--idle", "poll"]] {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start_in(dir, &[&["--config", EMPTY_CONFIG], args].concat());
        model(&connect(&ram_disk(&service)));
    }
}

#[test]
fn a_small_ring_and_a_file_behave_like_an_array() {
    let service = Service::start();
    let bdev = connect_as(VhostConfig {
        entries: 16,
        ..VhostConfig::new("remote", &file_disk(&service, DISK_BYTES))
    });
    model(&bdev.unwrap());
}

#[test]
fn each_channel_has_a_queue_and_there_are_no_more() {
    let service = Service::start();
    let bdev = connect_as(VhostConfig {
        queues: 2,
        ..VhostConfig::new("remote", &ram_disk(&service))
    });
    let bdev = bdev.unwrap();
    let mut driver = Driver::new(&bdev);
    let mut other = bdev.open(driver.reactor.cx()).unwrap();
    let refused = bdev.open(driver.reactor.cx()).unwrap_err();
    assert!(matches!(refused, BdevError::NotSupported(_)), "{refused}");
    driver.write(1, 0, &[7; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    std::mem::swap(&mut driver.channel, &mut other);
    assert_eq!(driver.bytes(0, 512), [7; 512]);
    drop(other);
    let again = bdev.open(driver.reactor.cx()).unwrap();
    driver.channel = again;
    assert_eq!(driver.bytes(0, 512), [7; 512]);
}

/// Starts the service again, as it was.
fn restart(service: Service) -> Service {
    let service = Service::start_in(service.kill(), &["--config", EMPTY_CONFIG]);
    file_disk(&service, DISK_BYTES);
    service
}

#[test]
fn a_killed_back_end_fails_what_it_has_and_is_found_again() {
    let mut service = Service::start();
    let socket = file_disk(&service, DISK_BYTES);
    let bdev = connect(&socket);
    let mut driver = Driver::new(&bdev);
    let mut idle = Driver::new(&bdev);
    for round in 0..3_u8 {
        let bytes = pattern(u64::from(round), 4096);
        driver.write(1, 0, &bytes, true);
        assert_eq!(driver.status(), IoStatus::Ok);
        // It can't answer these.
        service.freeze();
        for tag in 0..64 {
            driver.read(tag, tag * 4096, 4096);
        }
        let stopped = std::mem::replace(&mut service, Service::start());
        service = restart(stopped);
        let statuses = driver.wait(64).into_iter().map(|done| done.status);
        let failed = statuses.filter(|status| *status == IoStatus::IoError);
        assert_eq!(failed.count(), 64);
        // What is written now waits for the back end, if it is not there yet.
        driver.write(2, 4096, &bytes, false);
        assert_eq!(driver.status(), IoStatus::Ok);
        // Of what was written before nobody knows; a flush says so, once, to each who asks.
        for one in [&mut driver, &mut idle] {
            assert_eq!(one.run(Op::Flush, (0, 0)), IoStatus::IoError);
            assert_eq!(one.run(Op::Flush, (0, 0)), IoStatus::Ok);
            assert_eq!(one.bytes(0, 8192), [&*bytes, &*bytes].concat());
        }
    }
    let mut late = Driver::new(&bdev);
    assert_eq!(late.run(Op::Flush, (0, 0)), IoStatus::Ok);
}

#[test]
fn a_death_that_nobody_was_told_of_fails_the_next_ones_flush() {
    let service = Service::start();
    let bdev = connect(&file_disk(&service, DISK_BYTES));
    let mut driver = Driver::new(&bdev);
    driver.write(1, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    drop(driver);
    let dir = service.kill();
    // The keeper has seen the death once requests wait.
    let clock = Arc::new(ManualClock::default());
    let mut driver = Driver::on(&bdev, clock.clone());
    driver.read(1, 0, 512);
    wait_until("the death is known", || {
        driver.step();
        let failed = !driver.done.is_empty();
        if failed {
            driver.done.clear();
            driver.read(1, 0, 512);
        }
        clock.advance(1_000_000_000);
        failed
    });
    drop(driver);
    let service = Service::start_in(dir, &["--config", EMPTY_CONFIG]);
    file_disk(&service, DISK_BYTES);
    let mut driver = Driver::new(&bdev);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::IoError);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
}

#[test]
fn a_disk_that_has_changed_is_not_taken_for_the_old_one() {
    let service = Service::start();
    let bdev = connect(&file_disk(&service, DISK_BYTES));
    let clock = Arc::new(ManualClock::default());
    let mut driver = Driver::on(&bdev, clock.clone());
    let dir = service.kill();
    let service = Service::start_in(dir, &["--config", EMPTY_CONFIG]);
    file_disk(&service, 2 * DISK_BYTES);
    // It waits its 10 s, by its clock, and fails; later ones fail at once.
    driver.read(1, 0, 512);
    wait_until("it fails", || {
        clock.advance(10_000_000);
        driver.step();
        !driver.done.is_empty()
    });
    assert_eq!(driver.status(), IoStatus::IoError);
    drop(driver);
    drop(bdev);
    // A new bdev is what there is now.
    let bdev = connect(&service.data("c0"));
    assert_eq!(bdev.info().bytes(), 2 * DISK_BYTES);
}

#[test]
fn a_stalled_back_end_is_given_up_a_second_after_its_user_has() {
    let service = Service::start();
    let bdev = connect(&ram_disk(&service));
    let clock = Arc::new(ManualClock::default());
    let mut driver = Driver::on(&bdev, clock.clone());
    driver.write(1, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    service.freeze();
    for tag in 0..200 {
        driver.read(tag, 0, 4096);
    }
    driver.step();
    driver.channel.cancel(driver.reactor.cx());
    // There is room for 170 of them.
    assert_eq!(driver.wait(30).len(), 30);
    clock.advance(999_999_999);
    driver.step();
    assert_eq!(driver.done.len(), 0);
    clock.advance(1);
    for done in driver.wait(170) {
        assert_eq!(done.status, IoStatus::Aborted);
    }
    service.signal(Signal::CONT);
    driver.read(1, 0, 512);
    wait_until("it is found again", || {
        clock.advance(1_000_000);
        driver.step();
        // Its clock runs fast: it may be too late for some.
        if driver.done.pop_if(|done| !done.status.is_ok()).is_some() {
            driver.read(1, 0, 512);
        }
        !driver.done.is_empty()
    });
    let found = driver.wait(1).pop().unwrap();
    assert_eq!(found.status, IoStatus::Ok);
    assert_eq!(*found.data.into_buf().unwrap(), [1; 512]);
}

#[test]
fn what_is_no_back_end_makes_no_bdev() {
    let dir = tempfile::tempdir().unwrap();
    let fault = |config: VhostConfig| match connect_as(config).unwrap_err() {
        BdevError::Vhost { source, .. } => source,
        other => panic!("{other}"),
    };
    let at = |name: &str| VhostConfig::new("remote", &dir.path().join(name));
    let errno = |fault: &VhostFault| fault.errno();
    assert_eq!(errno(&fault(at("none"))), rustix::io::Errno::NOENT);
    drop(UnixListener::bind(dir.path().join("dead")).unwrap());
    assert_eq!(errno(&fault(at("dead"))), rustix::io::Errno::NXIO);
    let mute = UnixListener::bind(dir.path().join("mute")).unwrap();
    let hasty = || VhostConfig {
        patience: Duration::from_millis(1),
        ..at("mute")
    };
    assert!(matches!(fault(hasty()), VhostFault::Timeout));
    // A further try is not one more connection.
    assert!(matches!(fault(at("mute")), VhostFault::Timeout));
    drop(mute.accept().unwrap());
    mute.set_nonblocking(true).unwrap();
    assert!(mute.accept().is_err());
    for bad in [
        VhostConfig {
            queues: 0,
            ..at("x")
        },
        VhostConfig {
            entries: 100,
            ..at("x")
        },
        VhostConfig {
            entries: 2048,
            ..at("x")
        },
        VhostConfig::new("a b", dir.path()),
    ] {
        let refused = connect_as(bad).unwrap_err();
        assert!(matches!(refused, BdevError::Invalid(_)), "{refused}");
    }
}

/// QEMU's back end: a server that is not ours.
struct Qemu {
    child: Child,
    socket: PathBuf,
}

impl Qemu {
    fn start(dir: &Path) -> Self {
        let (image, socket) = (dir.join("image"), dir.join("qemu.sock"));
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&image);
        file.unwrap().set_len(DISK_BYTES).unwrap();
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=f,filename={},discard=unmap",
                image.display()
            ))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=2,\
                 addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("QEMU listens", || socket.exists());
        Self { child, socket }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn qemus_disk_behaves_like_an_array_also_when_it_is_killed() {
    if !tool("qemu-storage-daemon") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut qemu = Qemu::start(dir.path());
    let bdev = connect(&qemu.socket);
    let info = bdev.info();
    assert_eq!((info.bytes(), info.volatile_cache), (DISK_BYTES, true));
    assert_eq!(bdev.queues(), 2, "it has no more");
    model(&bdev);
    let mut driver = Driver::new(&bdev);
    let bytes = pattern(9, 1 << 20);
    driver.write(1, 0, &bytes, false);
    assert_eq!(driver.status(), IoStatus::Ok);
    qemu.end();
    qemu = Qemu::start(dir.path());
    // The one that meets the death may fail, or wait.
    driver.read(2, 0, 512);
    driver.wait(1);
    assert!(driver.bytes(0, 1 << 20) == bytes);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::IoError);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    drop(qemu);
}
