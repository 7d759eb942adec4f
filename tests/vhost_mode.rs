//! What may change of a vhost-user-blk device while it runs: the mode of its cache, and its size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod vhost_common;

use common::wait_until;
use pmcache::bdev::{
    Bdev, BdevError, BdevInfo, Channel, Completion, MallocBdev, MallocConfig, Op, Request,
};
use pmcache::target::vhost::{VhostConfig, VhostController};
use reactors::{Cx, IdlePolicy, MonotonicClock, Reactors, ReactorsConfig, Wake};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use vhost_common::raw::{BLOCK, CONFIG_WCE, Guest};

const SECTORS: u64 = 4096;

/// What was seen of the last write.
#[derive(Debug, Default)]
struct Seen {
    /// 1: may be lost until a flush; 2: durable when it completes.
    mode: AtomicU8,
    /// It has no volatile cache.
    is_durable: AtomicBool,
    /// The most requests that were submitted between two looks at what has completed.
    most: AtomicU64,
    /// The disk's size in sectors, up to [`SECTORS`].
    sectors: AtomicU64,
}

/// A disk with a volatile cache that tells how it is written, and has a size of its own.
#[derive(Debug)]
struct Disk {
    base: MallocBdev,
    seen: Arc<Seen>,
}

impl Bdev for Disk {
    fn info(&self) -> Arc<BdevInfo> {
        Arc::new(BdevInfo {
            volatile_cache: !self.seen.is_durable.load(Ordering::Relaxed),
            blocks: self.seen.sectors.load(Ordering::Relaxed),
            ..(*self.base.info()).clone()
        })
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(Watched {
            base: self.base.open(cx)?,
            seen: Arc::clone(&self.seen),
            submitted: 0,
        }))
    }
}

#[derive(Debug)]
struct Watched {
    base: Box<dyn Channel>,
    seen: Arc<Seen>,
    /// Since the last look.
    submitted: u64,
}

impl Channel for Watched {
    fn submit(&mut self, cx: &Cx, request: Request) {
        if let Op::Write { fua } = request.op {
            self.seen.mode.store(1 + u8::from(fua), Ordering::Relaxed);
        }
        self.submitted += 1;
        self.base.submit(cx, request);
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let submitted = std::mem::take(&mut self.submitted);
        self.seen.most.fetch_max(submitted, Ordering::Relaxed);
        self.base.poll(cx, done)
    }

    fn wake(&self) -> Wake {
        self.base.wake()
    }
}

fn reactors(cores: Vec<usize>) -> Reactors {
    let config = ReactorsConfig {
        cores,
        maintenance: Vec::new(),
        idle: IdlePolicy::Interrupt,
        seed: 1,
        clock: Arc::new(MonotonicClock),
    };
    Reactors::start(config).unwrap()
}

/// A controller in this process, that can be started anew as a service would be.
struct Target {
    controller: VhostController,
    reactors: Reactors,
    disk: Arc<Disk>,
    dir: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        let reactors = reactors(vec![0]);
        let (disk, dir) = (Self::disk(), tempfile::tempdir().unwrap());
        Self {
            controller: Self::listen(&reactors, &disk, dir.path(), "c0"),
            reactors,
            disk,
            dir,
        }
    }

    fn disk() -> Arc<Disk> {
        let seen = Arc::new(Seen::default());
        seen.sectors.store(SECTORS, Ordering::Relaxed);
        let config = MallocConfig {
            name: "disk".into(),
            uuid: uuid::Uuid::from_bytes([1; 16]),
            block_size: 512,
            blocks: SECTORS,
        };
        let base = MallocBdev::new(config).unwrap();
        Arc::new(Disk { base, seen })
    }

    fn listen(reactors: &Reactors, disk: &Arc<Disk>, dir: &Path, name: &str) -> VhostController {
        let config = VhostConfig {
            name: name.into(),
            dir: dir.to_owned(),
            bdev: Arc::clone(disk) as Arc<dyn Bdev>,
            read_only: false,
            reactors: reactors.data_handles().to_vec(),
        };
        let (controller, control) = VhostController::listen(config).unwrap();
        std::thread::spawn(move || control.run());
        controller
    }

    /// Another controller in its place, that knows nothing of the first.
    fn replace(&mut self) {
        self.controller.stop();
        wait_until("the controller stops", || self.controller.is_stopped());
        self.controller = Self::listen(&self.reactors, &self.disk, self.dir.path(), "c0");
    }

    fn connect(&self, guest: &mut Guest) {
        guest.connect(self.controller.path());
    }

    /// Whether a write of the guest's is durable when it completes.
    fn is_durable(&self, guest: &mut Guest) -> bool {
        guest.write(0, 0, &[1; BLOCK]);
        guest.settle();
        self.disk.seen.mode.swap(0, Ordering::Relaxed) == 2
    }
}

fn choosing_guest() -> Guest {
    let mut guest = Guest::new();
    guest.features |= CONFIG_WCE;
    guest
}

#[test]
fn what_the_driver_chooses_for_the_cache_holds_until_it_chooses_again() {
    let mut target = Target::new();
    let mut guest = choosing_guest();
    target.connect(&mut guest);
    assert_eq!(guest.write_back(), 1);
    assert!(!target.is_durable(&mut guest));
    assert!(guest.set_write_back(0));
    assert_eq!(guest.write_back(), 0);
    assert!(target.is_durable(&mut guest));
    // A front end that comes back does not say it again, and not what it was to one that has died.
    guest.disconnect();
    target.connect(&mut guest);
    assert!(target.is_durable(&mut guest));
    guest.disconnect();
    target.replace();
    target.connect(&mut guest);
    assert!(target.is_durable(&mut guest));
    assert_eq!(guest.write_back(), 0);
    assert!(guest.set_write_back(1));
    assert!(!target.is_durable(&mut guest));
    guest.disconnect();
    target.replace();
    target.connect(&mut guest);
    assert!(!target.is_durable(&mut guest));
}

#[test]
fn a_front_end_that_does_not_know_the_mode_gets_durable_writes() {
    let mut target = Target::new();
    let mut guest = choosing_guest();
    guest.keeps_record = false;
    target.connect(&mut guest);
    // Its driver may have been told anything by our predecessor.
    assert!(target.is_durable(&mut guest));
    assert_eq!(guest.write_back(), 1);
    assert!(!target.is_durable(&mut guest));
    target.replace();
    guest.disconnect();
    target.connect(&mut guest);
    assert!(target.is_durable(&mut guest));
    // One that can't choose relies on its flushes.
    guest.disconnect();
    guest.features &= !CONFIG_WCE;
    guest.accepted = None;
    target.connect(&mut guest);
    assert!(!target.is_durable(&mut guest));
}

/// As with a cache whose `durability` became `write` meanwhile.
#[test]
fn a_driver_keeps_its_flush_when_the_volatile_cache_goes() {
    let mut target = Target::new();
    let mut guest = choosing_guest();
    target.connect(&mut guest);
    guest.disconnect();
    target.replace();
    target.disk.seen.is_durable.store(true, Ordering::Relaxed);
    target.connect(&mut guest);
    assert!(!target.is_durable(&mut guest), "it is so by itself");
    guest.flush(1);
    guest.settle();
    assert!(guest.set_write_back(0));
}

#[test]
fn nothing_else_of_the_configuration_can_be_written() {
    let target = Target::new();
    let mut guest = choosing_guest();
    target.connect(&mut guest);
    assert!(!guest.set_write_back(2));
    assert!(!guest.set_config(0, 0));
    assert!(!guest.set_config(33, 0));
    assert_eq!(guest.write_back(), 1);
    assert!(!target.is_durable(&mut guest));
}

#[test]
fn a_guest_is_told_of_another_size_and_can_use_it() {
    let target = Target::new();
    target.disk.seen.sectors.store(8, Ordering::Relaxed);
    let mut guest = Guest::new();
    target.connect(&mut guest);
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert!(guest.set_back_channel(&theirs));
    assert_eq!(guest.capacity(), 8);
    // Behind the end.
    guest.request(1, 1, 8);
    guest.offer(4);
    assert_eq!(guest.wait_answer(), (4, 1));
    target.disk.seen.sectors.store(SECTORS, Ordering::Relaxed);
    ours.set_nonblocking(true).unwrap();
    let mut message = [0; 13];
    wait_until("the guest is told", || {
        rustix::net::recv(&ours, &mut message[..], rustix::net::RecvFlags::empty()).is_ok()
    });
    // `CONFIG_CHANGE_MSG`, version 1, no body; and that once.
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.capacity(), SECTORS);
    guest.write(1, 1, &[3; BLOCK]);
    guest.settle();
    guest.read(2, 1);
    guest.settle();
    assert!(guest.data(2) == [3; BLOCK]);
}

#[test]
fn a_channel_that_is_none_ends_the_session_only() {
    let target = Target::new();
    let file = tempfile::tempfile().unwrap();
    let mut guest = Guest::new();
    target.connect(&mut guest);
    assert!(!guest.set_back_channel(&file));
    let mut guest = Guest::new();
    target.connect(&mut guest);
    assert!(guest.set_back_channel(&UnixStream::pair().unwrap().0));
    assert!(!target.is_durable(&mut guest));
}

/// Twelve requests of a megabyte do not keep the reactor for one round.
#[test]
fn large_requests_are_taken_a_few_at_a_time() {
    let target = Target::new();
    let mut guest = Guest::new();
    target.connect(&mut guest);
    let heads: Vec<u16> = (0..12).map(|slot| 4 * slot).collect();
    for head in &heads {
        guest.large_write(usize::from(*head) / 4);
    }
    guest.offer_all(&heads);
    guest.kick();
    for head in heads {
        assert_eq!(guest.wait_answer(), (head, 1));
    }
    let most = target.disk.seen.most.load(Ordering::Relaxed);
    assert!((2..=4).contains(&most), "{most} in a round");
}
