//! A cache over a backing whose requests end when the test lets them, in any mode.

use super::gate::GateDisk;
use super::{Rig, RigConfig, anonymous_pmem};
use pmcache::bdev::{Channel, Completion, Data, IoBuf, IoStatus, Op, Request};
use pmcache::cache::{CacheOptions, LaneFigures, Mode};
use pmcache::units::ByteRange;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const BLOCK: usize = 4096;
pub(crate) const WRITE: Op = Op::Write { fua: false };

/// A cache on a gate, one client, and what of its requests has ended.
pub(crate) struct Modes {
    pub(crate) rig: Rig,
    pub(crate) disk: GateDisk,
    pub(crate) channel: Option<Box<dyn Channel>>,
    pub(crate) ended: BTreeMap<u64, Completion>,
    pub(crate) next: u64,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn options(mode: Mode) -> CacheOptions {
    CacheOptions {
        mode,
        ..CacheOptions::default()
    }
}

pub(crate) fn block(number: u64) -> ByteRange {
    let len = BLOCK as u64;
    ByteRange::between(number * len, (number + 1) * len)
}

impl Modes {
    pub(crate) fn new(options: CacheOptions, volatile_cache: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = RigConfig {
            options,
            ..RigConfig::default()
        };
        let disk = GateDisk::new(16 << 20, volatile_cache);
        let pmem = anonymous_pmem("p0", 40 * config.segment_bytes);
        let rig = Rig::new(&config, pmem, Arc::new(disk.clone()), dir.path());
        let channel = Some(rig.open(0));
        disk.take_ended();
        Self {
            rig,
            disk,
            channel,
            ended: BTreeMap::new(),
            next: 1,
            dir,
        }
    }

    pub(crate) fn figures(&self) -> LaneFigures {
        self.rig.cache.as_ref().unwrap().figures()
    }

    pub(crate) fn dirty(&self) -> u64 {
        self.rig.cache.as_ref().unwrap().dirty_bytes()
    }

    pub(crate) fn set(&self, change: impl Fn(&mut CacheOptions)) {
        let cache = self.rig.cache.as_ref().unwrap();
        let mut options = cache.options();
        change(&mut options);
        cache.set_options(options).unwrap();
    }

    pub(crate) fn submit(&mut self, op: Op, range: ByteRange, byte: u8) -> u64 {
        let len = usize::try_from(range.len()).unwrap();
        let data = match op {
            Op::Write { .. } => Data::Buf(IoBuf::copy_of(&vec![byte; len])),
            Op::Read => Data::Buf(IoBuf::zeroed(len)),
            _ => Data::None,
        };
        let tag = self.next;
        self.next += 1;
        let request = Request {
            tag,
            op,
            range,
            data,
        };
        let channel = self.channel.as_mut().unwrap();
        channel.submit(self.rig.data[0].cx(), request);
        tag
    }

    /// Many rounds, in which whatever can happen does.
    pub(crate) fn settle(&mut self) {
        for _ in 0..300 {
            self.rig.step();
            let mut done = Vec::new();
            let channel = self.channel.as_mut().unwrap();
            channel.poll(self.rig.data[0].cx(), &mut done);
            for completion in done {
                self.ended.insert(completion.tag, completion);
            }
        }
    }

    pub(crate) fn has_ended(&mut self, tag: u64) -> bool {
        self.settle();
        self.ended.contains_key(&tag)
    }

    pub(crate) fn end(&mut self, tag: u64) -> Completion {
        for _ in 0..50 {
            if self.has_ended(tag) {
                return self.ended.remove(&tag).unwrap();
            }
        }
        let status = self.rig.cache.as_ref().map(|cache| cache.status());
        panic!("request {tag} does not end: {status:?}");
    }

    pub(crate) fn run(&mut self, op: Op, range: ByteRange, byte: u8) {
        let tag = self.submit(op, range, byte);
        assert_eq!(self.end(tag).status, IoStatus::Ok, "{op:?}");
    }

    pub(crate) fn write(&mut self, range: ByteRange, byte: u8) {
        self.run(WRITE, range, byte);
    }

    pub(crate) fn flush(&mut self) -> IoStatus {
        let tag = self.submit(Op::Flush, ByteRange::default(), 0);
        self.end(tag).status
    }

    pub(crate) fn read(&mut self, range: ByteRange) -> u8 {
        let tag = self.submit(Op::Read, range, 0);
        let done = self.end(tag);
        assert_eq!(done.status, IoStatus::Ok);
        let bytes = done.data.into_buf().unwrap();
        assert!(
            bytes.iter().all(|byte| *byte == bytes[0]),
            "all of one write"
        );
        bytes[0]
    }

    pub(crate) fn on_disk(&self, range: ByteRange) -> u8 {
        self.disk.bytes(range.start(), 1)[0]
    }

    /// Writes of the backing that have ended there since the last time.
    pub(crate) fn writes_to(&self, range: ByteRange) -> usize {
        let ended = self.disk.take_ended();
        let there = |(op, at): &&(Op, ByteRange)| op.modifies() && at.overlaps(range);
        ended.iter().filter(there).count()
    }

    pub(crate) fn restart(&mut self) {
        self.channel = None;
        self.rig.stop();
        self.rig.load();
        self.channel = Some(self.rig.open(0));
        self.disk.take_ended();
    }
}
