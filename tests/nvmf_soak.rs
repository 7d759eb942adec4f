//! Hosts of the NVMe/TCP target that come, work, damage their own PDUs, break off in the middle and come
//! again: no request is stuck, data are what was written, and memory stays.
//!
//! `PMCACHE_NVMF_SOAK` says for how many seconds (2 by default), `PMCACHE_NVMF_SEED` repeats the hosts' choices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;
mod nvmf_common;

use nbd_common::{RamDisk, wait_until};
use nvmf_common::{Fixture, Host, NQN, Qpair};
use pmcache::target::nvmf::TransportOptions;
use pmcache::wire::nvme::{DataPdu, Digests, Status, connect_flag, io};
use reactors::SplitMix64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Blocks that one host has for itself.
const BLOCKS: u64 = 512;
const HOSTS: u64 = 4;
/// Hosts that have come and gone until memory is looked at for the first time.
const WARM: u64 = 100;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// What has happened.
#[derive(Debug, Default)]
struct Counts {
    connects: AtomicU64,
    commands: AtomicU64,
    damaged: AtomicU64,
    broken_off: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One host, and what its blocks must hold; nothing where a write was broken off.
struct Worker {
    random: SplitMix64,
    first: u64,
    model: Vec<Option<u8>>,
    fixture: Arc<Fixture>,
    counts: Arc<Counts>,
}

impl Worker {
    fn below(&mut self, bound: u64) -> u64 {
        self.random.draw() % bound
    }

    /// A range of this host's blocks.
    fn place(&mut self, blocks_max: u64) -> (usize, u64) {
        let blocks = 1 + self.below(blocks_max);
        let at = self.below(BLOCKS - blocks + 1);
        (usize::try_from(at).unwrap(), blocks)
    }

    /// Connects, works for a while, and leaves, well or badly.
    fn live(&mut self) {
        let digests = Digests::from_byte(u8::try_from(self.below(4)).unwrap());
        let host = Host::connect_with(self.fixture.address, NQN, digests);
        let flags = match self.below(2) {
            0 => 0,
            _ => connect_flag::NO_FLOW_CONTROL,
        };
        let mut qpair = host.io(1, flags);
        count(&self.counts.connects);
        for _ in 0..self.below(60) {
            match self.below(24) {
                0 if digests.data => self.damage_data(&mut qpair),
                1 => return self.break_off(qpair),
                2 if digests.header => return self.damage_header(qpair),
                3 => {
                    let flush = qpair.io(io::FLUSH, 0, 1);
                    qpair.ok(flush);
                }
                choice if choice % 2 == 0 => self.write(&mut qpair),
                _ => self.read(&mut qpair),
            }
            count(&self.counts.commands);
        }
    }

    fn write(&mut self, qpair: &mut Qpair) {
        let (at, blocks) = self.place(64);
        let value = u8::try_from(self.below(256)).unwrap();
        let len = usize::try_from(blocks).unwrap();
        let data = vec![value; len * 512];
        let lba = self.first + at as u64;
        let status = match blocks <= 16 && self.below(2) == 0 {
            true => qpair.write(lba, &data),
            false => {
                let part = 512 * usize::try_from(1 + self.below(32)).unwrap();
                qpair.write_asked(lba, &data, part)
            }
        };
        assert_eq!(status, Status::SUCCESS);
        self.model[at..at + len].fill(Some(value));
    }

    fn read(&mut self, qpair: &mut Qpair) {
        let (at, blocks) = self.place(64);
        let blocks = u32::try_from(blocks).unwrap();
        let (status, data) = qpair.read(self.first + at as u64, blocks);
        assert_eq!(status, Status::SUCCESS);
        for (block, expected) in data.chunks(512).zip(&self.model[at..]) {
            let even = block.iter().all(|byte| *byte == block[0]);
            assert!(even && expected.is_none_or(|value| value == block[0]));
        }
    }

    /// A write whose data digest is wrong changes nothing.
    fn damage_data(&mut self, qpair: &mut Qpair) {
        let (at, _) = self.place(1);
        let lba = self.first + at as u64;
        let sqe = qpair.io(io::WRITE, lba, 1).with_capsule_data(512);
        let mut bytes = qpair.capsule(sqe, &[0xee; 512]);
        *bytes.last_mut().unwrap() ^= 0x80;
        qpair.send(&bytes);
        let status = qpair.receive().completion().status;
        assert_eq!(status, Status::TRANSIENT_TRANSPORT);
        count(&self.counts.damaged);
    }

    /// A command whose header digest is wrong ends the connection.
    fn damage_header(&mut self, mut qpair: Qpair) {
        let flush = qpair.io(io::FLUSH, 0, 1);
        let mut bytes = qpair.capsule(flush, &[]);
        bytes[9] ^= 1;
        qpair.send(&bytes);
        assert_eq!(qpair.expect_term().0, 3);
        count(&self.counts.damaged);
    }

    /// Leaves in the middle of a write, with reads under way.
    fn break_off(&mut self, mut qpair: Qpair) {
        let mut bytes = vec![];
        for _ in 0..self.below(20) {
            let sqe = qpair
                .io(io::READ, self.first, 256)
                .with_transport_data(256 * 512);
            bytes.extend(qpair.capsule(sqe, &[]));
        }
        let (at, blocks) = self.place(64);
        let count_of = u32::try_from(blocks).unwrap();
        let lba = self.first + at as u64;
        let len = count_of * 512;
        let sqe = qpair.io(io::WRITE, lba, count_of).with_transport_data(len);
        bytes.extend(qpair.capsule(sqe, &[]));
        // Data for a tag that may be this command's.
        let tag = u16::try_from(self.below(24)).unwrap();
        let data = vec![0xcc; len as usize];
        bytes.extend(qpair.data(DataPdu::new(sqe.cid.get(), tag, 0, len), true, &data));
        bytes.truncate(usize::try_from(self.below(bytes.len() as u64 + 1)).unwrap());
        // It may have hung up already, if the tag was none.
        let _ = std::io::Write::write_all(&mut qpair.stream, &bytes);
        let end = at + usize::try_from(blocks).unwrap();
        self.model[at..end].fill(None);
        count(&self.counts.broken_off);
    }
}

/// This process's resident memory, in KiB.
fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn hosts_that_come_and_break_off_leave_nothing_behind() {
    let seconds = setting("PMCACHE_NVMF_SOAK").unwrap_or(2);
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = setting("PMCACHE_NVMF_SEED").unwrap_or(since.as_secs());
    eprintln!("PMCACHE_NVMF_SEED={seed} PMCACHE_NVMF_SOAK={seconds}");
    let options = TransportOptions {
        queue_depth_max: 1024,
        ..TransportOptions::default()
    };
    let fixture = Arc::new(Fixture::new(2, options));
    let bytes = usize::try_from(BLOCKS * HOSTS * 512).unwrap();
    let disk = Arc::new(RamDisk::new("disk", bytes));
    fixture.add(&disk, None);
    let counts = Arc::new(Counts::default());
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..HOSTS)
        .map(|host| {
            let mut worker = Worker {
                random: SplitMix64::new(seed.wrapping_mul(HOSTS).wrapping_add(host)),
                first: host * BLOCKS,
                model: vec![Some(0); usize::try_from(BLOCKS).unwrap()],
                fixture: Arc::clone(&fixture),
                counts: Arc::clone(&counts),
            };
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    worker.live();
                }
            })
        })
        .collect();
    let alive = |what: &str| assert!(!workers.iter().any(|w| w.is_finished()), "{what}");
    wait_until("hosts have come and gone", || {
        alive("while it warms up");
        counts.connects.load(Ordering::Relaxed) > WARM
    });
    let early = rss_kib();
    let end = now + Duration::from_secs(seconds);
    while SystemTime::now() < end {
        alive("while it soaks");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let late = rss_kib();
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().unwrap();
    }
    eprintln!("{counts:?}, RSS {early} KiB early and {late} late");
    wait_until("all of them are gone", || {
        fixture.target.controllers(NQN).unwrap().is_empty()
            && disk.switches.channels.load(Ordering::SeqCst) == 0
    });
    let figures = fixture.target.figures();
    assert!(
        figures
            .iter()
            .all(|f| f.current_io_qpairs == 0 && f.pending_bdev_io == 0)
    );
    assert!(!disk.switches.dropped_early.load(Ordering::SeqCst));
    // Two reactors may each hold a few more buffers of 128 KiB than at first.
    assert!(
        late < early + 16 * 1024,
        "RSS {early} KiB early and {late} late"
    );
}
