//! Backings with faults that the kinds of the product do not have.

use super::rng::Rng;
use pmcache::bdev::{
    Bdev, BdevError, BdevInfo, Channel, Completion, Data, IoStatus, Op, Request, Supports,
};
use pmcache::units::ByteRange;
use reactors::{Cx, Wake};
use std::sync::{Arc, RwLock};

#[derive(Debug)]
struct State {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Completed since the last flush, in order.
    cached: Vec<(usize, Vec<u8>)>,
    rng: RngState,
    /// Reads that touch it fail.
    bad: ByteRange,
    /// Nothing ends.
    stalled: bool,
    /// How many flushes are to fail.
    flushes_to_fail: u32,
    /// Flushes that have failed.
    flushes_failed: u64,
}

/// What becomes of completed writes when a flush fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drops {
    /// Some are lost, and reads show what was there before.
    Seen,
    /// Some will never be durable unless they are written again, and reads show them all the same:
    /// so does a kernel that marks pages as clean which it could not write.
    Unseen,
}

#[derive(Debug)]
struct RngState(u64);

impl RngState {
    fn rng(&mut self) -> Rng {
        self.0 = Rng::new(self.0).next();
        Rng::new(self.0)
    }
}

/// A disk with a volatile write cache, which ends requests in any order. At a power cut it keeps of
/// what it has not flushed what it likes.
#[derive(Clone, Debug)]
pub(crate) struct VolatileDisk {
    info: Arc<BdevInfo>,
    state: Arc<RwLock<State>>,
}

impl VolatileDisk {
    pub(crate) fn new(bytes: u64, seed: u64) -> Self {
        Self::holding(vec![0; usize::try_from(bytes).unwrap()], seed)
    }

    fn holding(image: Vec<u8>, seed: u64) -> Self {
        let info = Arc::new(BdevInfo {
            name: "disk0".into(),
            product_name: "test disk",
            uuid: uuid::Uuid::from_bytes([9; 16]),
            block_size: 512,
            blocks: image.len() as u64 / 512,
            volatile_cache: true,
            read_only: false,
            supports: Supports::default(),
        });
        let state = State {
            visible: image.clone(),
            durable: image,
            cached: Vec::new(),
            rng: RngState(seed),
            bad: ByteRange::default(),
            stalled: false,
            flushes_to_fail: 0,
            flushes_failed: 0,
        };
        Self {
            info,
            state: Arc::new(RwLock::new(state)),
        }
    }

    /// The disk after a power cut now.
    pub(crate) fn cut_power(&self, rng: &mut Rng) -> Self {
        let state = self.state.read().unwrap();
        let mut image = state.durable.clone();
        let chance = rng.pick(&[0, 200, 800]);
        for (at, bytes) in &state.cached {
            for (place, sector) in bytes.chunks(512).enumerate() {
                if rng.permille(chance) {
                    let at = at + place * 512;
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Self::holding(image, rng.next())
    }

    /// What it would hold after a power cut now.
    pub(crate) fn image_after_cut(&self, rng: &mut Rng) -> Vec<u8> {
        let cut = self.cut_power(rng);
        let state = cut.state.read().unwrap();
        state.visible.clone()
    }

    /// Reads that touch `range` fail from now on.
    pub(crate) fn spoil(&self, range: ByteRange) {
        self.state.write().unwrap().bad = range;
    }

    /// The next `count` flushes fail.
    pub(crate) fn fail_flushes(&self, count: u32) {
        self.state.write().unwrap().flushes_to_fail = count;
    }

    /// How many flushes have failed.
    pub(crate) fn flushes_failed(&self) -> u64 {
        self.state.read().unwrap().flushes_failed
    }

    /// Nothing ends while it is stalled.
    pub(crate) fn stall(&self, stalled: bool) {
        self.state.write().unwrap().stalled = stalled;
    }
}

impl Bdev for VolatileDisk {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.clone()
    }

    fn open(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(VolatileChannel {
            disk: self.clone(),
            queue: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct VolatileChannel {
    disk: VolatileDisk,
    queue: Vec<Request>,
}

impl State {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.visible[at..at + bytes.len()].copy_from_slice(bytes);
        self.cached.push((at, bytes.to_vec()));
    }

    /// What has completed since the last flush is stored, or lost, sector by sector, as it comes.
    fn fail_flush(&mut self) {
        self.flushes_failed += 1;
        let mut rng = self.rng.rng();
        let drops = rng.pick(&[Drops::Seen, Drops::Unseen]);
        for (at, bytes) in std::mem::take(&mut self.cached) {
            for (place, sector) in bytes.chunks(512).enumerate() {
                let at = at + place * 512;
                let range = at..at + sector.len();
                if rng.permille(300) {
                    self.durable[range.clone()].copy_from_slice(sector);
                }
                if drops == Drops::Seen {
                    self.visible[range.clone()].copy_from_slice(&self.durable[range]);
                }
            }
        }
    }

    fn execute(&mut self, mut request: Request) -> Completion {
        let at = usize::try_from(request.range.start()).unwrap();
        let len = usize::try_from(request.range.len()).unwrap();
        match (request.op, &mut request.data) {
            (Op::Read, _) if request.range.overlaps(self.bad) => {
                return request.complete(IoStatus::IoError);
            }
            (Op::Read, Data::Buf(buf)) => buf.copy_from_slice(&self.visible[at..at + len]),
            (Op::Write { .. }, Data::Buf(buf)) => self.write(at, buf),
            (Op::Write { .. }, Data::Gather(views)) => {
                let bytes: Vec<u8> = views.iter().flat_map(|v| v.iter().copied()).collect();
                assert_eq!(bytes.len(), len);
                self.write(at, &bytes);
            }
            (Op::Discard | Op::WriteZeroes { .. }, _) => self.write(at, &vec![0; len]),
            (Op::Flush, _) if self.flushes_to_fail > 0 => {
                self.flushes_to_fail -= 1;
                self.fail_flush();
                return request.complete(IoStatus::IoError);
            }
            (Op::Flush, _) => {
                for (at, bytes) in self.cached.drain(..) {
                    self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            (op, data) => panic!("{op:?} with {data:?}"),
        }
        request.complete(IoStatus::Ok)
    }
}

impl Channel for VolatileChannel {
    fn submit(&mut self, _cx: &Cx, request: Request) {
        assert_eq!(self.disk.info.admit(&request), Ok(()));
        self.queue.push(request);
    }

    fn poll(&mut self, _cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let mut state = self.disk.state.write().unwrap();
        if state.stalled || self.queue.is_empty() {
            return 0;
        }
        let mut rng = state.rng.rng();
        let count = rng.index(self.queue.len() + 1);
        for _ in 0..count {
            let next = rng.index(self.queue.len());
            let request = self.queue.swap_remove(next);
            done.push(state.execute(request));
        }
        u32::try_from(count).unwrap()
    }

    fn wake(&self) -> Wake {
        if self.queue.is_empty() {
            Wake::OnEvent
        } else {
            Wake::Now
        }
    }
}
