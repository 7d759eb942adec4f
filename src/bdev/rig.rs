//! A reactor driven by hand, to test one channel at a time.

use super::{
    Bdev, Channel, Completion, Data, IoBuf, MallocBdev, MallocConfig, MemView, Op, Request,
};
use crate::units::ByteRange;
use reactors::{
    Clock, Cx, IdlePolicy, ManualClock, MonotonicClock, Quiescence, Reactor, ReactorConfig,
    ReactorId,
};
use std::sync::Arc;

/// How long a test waits for a completion, in nanoseconds.
const PATIENCE_NS: u64 = 20_000_000_000;

/// The reactor.
pub(super) struct Rig {
    reactor: Reactor,
}

impl Rig {
    /// On the real clock.
    pub(super) fn new() -> Self {
        Self::on(Arc::new(MonotonicClock))
    }

    /// On a clock that the test moves.
    pub(super) fn with_clock(clock: &Arc<ManualClock>) -> Self {
        Self::on(clock.clone())
    }

    fn on(clock: Arc<dyn Clock>) -> Self {
        Self::numbered(0, clock)
    }

    /// One of several.
    pub(super) fn numbered(id: u32, clock: Arc<dyn Clock>) -> Self {
        let config = ReactorConfig {
            id: ReactorId(id),
            idle: IdlePolicy::Poll,
            seed: 1,
        };
        let domain = Quiescence::new(id as usize + 1);
        let reactor = Reactor::new(&config, clock, domain).unwrap();
        Self { reactor }
    }

    pub(super) fn cx(&self) -> &Cx {
        self.reactor.cx()
    }

    pub(super) fn step(&mut self) {
        self.reactor.step();
    }

    pub(super) fn open(&self, bdev: &dyn Bdev) -> Box<dyn Channel> {
        bdev.open(self.cx()).unwrap()
    }

    /// Polls once and returns what came out.
    pub(super) fn poll(&mut self, channel: &mut dyn Channel) -> Vec<Completion> {
        self.step();
        let mut done = Vec::new();
        let count = channel.poll(self.cx(), &mut done);
        assert_eq!(count as usize, done.len());
        done
    }

    /// Polls until `count` requests have completed.
    pub(super) fn wait(&mut self, channel: &mut dyn Channel, count: usize) -> Vec<Completion> {
        let start = MonotonicClock.now();
        let mut done = Vec::new();
        while done.len() < count {
            let new = self.poll(channel);
            if new.is_empty() {
                std::thread::yield_now();
            }
            done.extend(new);
            let waited = MonotonicClock.now().since(start);
            assert!(waited < PATIENCE_NS, "{} of {count} completed", done.len());
        }
        assert_eq!(done.len(), count);
        done
    }

    /// Submits `request` and waits for its completion.
    pub(super) fn run(&mut self, channel: &mut dyn Channel, request: Request) -> Completion {
        let tag = request.tag;
        channel.submit(self.cx(), request);
        let completion = self.wait(channel, 1).pop().unwrap();
        assert_eq!(completion.tag, tag);
        completion
    }

    /// As [`Rig::run`], for a request without memory.
    pub(super) fn run_op(
        &mut self,
        channel: &mut dyn Channel,
        op: Op,
        range: ByteRange,
    ) -> Completion {
        self.run(channel, bare(op, range))
    }

    /// Reads and returns the bytes.
    pub(super) fn bytes(&mut self, channel: &mut dyn Channel, at: u64, len: usize) -> Vec<u8> {
        let done = self.run(channel, read(at, len));
        assert!(done.status.is_ok(), "{:?}", done.status);
        done.data.into_buf().unwrap().to_vec()
    }
}

fn request(op: Op, at: u64, len: u64, data: Data) -> Request {
    Request {
        tag: at ^ 0xdead_beef,
        op,
        range: ByteRange::new(at, len).unwrap(),
        data,
    }
}

/// A request without memory.
pub(super) fn bare(op: Op, range: ByteRange) -> Request {
    request(op, range.start(), range.len(), Data::None)
}

pub(super) fn read(at: u64, len: usize) -> Request {
    let data = Data::Buf(IoBuf::zeroed(len));
    request(Op::Read, at, len as u64, data)
}

pub(super) fn write(at: u64, bytes: &[u8]) -> Request {
    let data = Data::Buf(IoBuf::copy_of(bytes));
    request(Op::Write { fua: false }, at, bytes.len() as u64, data)
}

/// A write from several pieces, each at the start of a page.
pub(super) fn gather(at: u64, pieces: &[&[u8]]) -> Request {
    let views: Vec<MemView> = pieces
        .iter()
        .map(|piece| MemView::from_buf(IoBuf::copy_of(piece)))
        .collect();
    let len = pieces.iter().map(|p| p.len() as u64).sum();
    request(Op::Write { fua: false }, at, len, Data::Gather(views))
}

/// `len` bytes that differ by place and by `seed`.
pub(super) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 512 * 7) % 251).unwrap() ^ seed)
        .collect()
}

/// A RAM disk "Malloc0" of `blocks` blocks of 512 bytes, to put filters on.
pub(super) fn malloc(blocks: u64) -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: "Malloc0".into(),
        uuid: uuid::Uuid::from_u128(1),
        block_size: 512,
        blocks,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}
