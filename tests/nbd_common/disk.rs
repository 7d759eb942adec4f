//! A block device in memory whose completions the test commands.

use pmcache::bdev::{
    Bdev, BdevError, BdevInfo, Channel, Completion, Data, Extent, IoStatus, Op, Request, Supports,
};
use reactors::{Cx, Wake};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use uuid::Uuid;

/// What the test commands and sees.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    /// Nothing completes.
    pub(crate) hold: AtomicBool,
    /// What has gathered completes newest first.
    pub(crate) reverse: AtomicBool,
    /// Everything but FLUSH fails.
    pub(crate) fail: AtomicBool,
    pub(crate) refuse_open: AtomicBool,
    /// Requests that have been submitted.
    pub(crate) submitted: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) prefetched: AtomicU64,
    /// Requests that were to be durable by themselves.
    pub(crate) fuas: AtomicU64,
    pub(crate) aborted: AtomicU64,
    pub(crate) channels: AtomicU64,
    /// Bit n: a channel was opened on reactor n.
    pub(crate) homes: AtomicU64,
    /// A channel was dropped with I/O under way.
    pub(crate) dropped_early: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct RamDisk {
    info: Arc<BdevInfo>,
    content: Arc<RwLock<Vec<u8>>>,
    pub(crate) switches: Arc<Switches>,
}

impl RamDisk {
    pub(crate) fn new(name: &str, bytes: usize) -> Self {
        Self::with_info(name, bytes, |_| {})
    }

    pub(crate) fn with_info(name: &str, bytes: usize, change: impl FnOnce(&mut BdevInfo)) -> Self {
        let mut info = BdevInfo {
            name: name.to_owned(),
            product_name: "Test disk",
            uuid: Uuid::from_u128(1),
            block_size: 512,
            blocks: bytes as u64 / 512,
            volatile_cache: true,
            read_only: false,
            supports: Supports {
                discard: true,
                discard_zeroes: true,
                write_zeroes: true,
                extents: true,
            },
        };
        change(&mut info);
        Self {
            info: Arc::new(info),
            content: Arc::new(RwLock::new(vec![0; bytes])),
            switches: Arc::default(),
        }
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.content.read().unwrap().clone()
    }
}

impl Bdev for RamDisk {
    fn info(&self) -> Arc<BdevInfo> {
        Arc::clone(&self.info)
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        if self.switches.refuse_open.load(Ordering::SeqCst) {
            return Err(BdevError::Busy(self.info.name.clone()));
        }
        self.switches.channels.fetch_add(1, Ordering::SeqCst);
        let home = 1 << cx.id().0;
        self.switches.homes.fetch_or(home, Ordering::SeqCst);
        Ok(Box::new(RamChannel {
            info: Arc::clone(&self.info),
            content: Arc::clone(&self.content),
            switches: Arc::clone(&self.switches),
            waiting: vec![],
            aborted: vec![],
        }))
    }
}

#[derive(Debug)]
struct RamChannel {
    info: Arc<BdevInfo>,
    content: Arc<RwLock<Vec<u8>>>,
    switches: Arc<Switches>,
    waiting: Vec<Request>,
    aborted: Vec<Request>,
}

impl RamChannel {
    fn run(&self, mut request: Request) -> Completion {
        if let Err(status) = self.info.admit(&request) {
            return request.complete(status);
        }
        if self.switches.fail.load(Ordering::SeqCst) && request.op != Op::Flush {
            return request.complete(IoStatus::IoError);
        }
        let mut content = self.content.write().unwrap();
        let start = usize::try_from(request.range.start()).unwrap();
        let end = usize::try_from(request.range.end()).unwrap();
        let bytes = &mut content[start..end];
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::SeqCst);
        match (request.op, &mut request.data) {
            (Op::Read, Data::Buf(buf)) => buf.copy_from_slice(bytes),
            (Op::Write { fua }, Data::Buf(buf)) => {
                bytes.copy_from_slice(buf);
                if fua {
                    count(&self.switches.fuas);
                }
            }
            (Op::WriteZeroes { fua, .. }, _) => {
                bytes.fill(0);
                if fua {
                    count(&self.switches.fuas);
                }
            }
            (Op::Discard, _) => bytes.fill(0),
            (Op::Flush, _) => {
                count(&self.switches.flushes);
            }
            (Op::Prefetch, _) => {
                count(&self.switches.prefetched);
            }
            (Op::Extents, data) => *data = Data::Extents(extents(bytes)),
            (op, data) => panic!("{op:?} with {data:?}"),
        }
        request.complete(IoStatus::Ok)
    }
}

/// Blocks of zeroes are holes; a block that begins with 0xdd is dirty, every other is cached.
fn extents(bytes: &[u8]) -> Vec<Extent> {
    let blocks = bytes.chunks(512).map(|block| {
        let zero = block.iter().all(|b| *b == 0);
        Extent {
            len: block.len() as u64,
            hole: zero,
            zero,
            cached: !zero,
            dirty: block.first() == Some(&0xdd),
        }
    });
    blocks.collect()
}

impl Channel for RamChannel {
    fn submit(&mut self, _: &Cx, request: Request) {
        self.switches.submitted.fetch_add(1, Ordering::SeqCst);
        self.waiting.push(request);
    }

    fn poll(&mut self, _: &Cx, done: &mut Vec<Completion>) -> u32 {
        let before = done.len();
        for request in self.aborted.drain(..) {
            self.switches.aborted.fetch_add(1, Ordering::SeqCst);
            done.push(request.complete(IoStatus::Aborted));
        }
        if !self.switches.hold.load(Ordering::SeqCst) {
            let mut ready = std::mem::take(&mut self.waiting);
            if self.switches.reverse.load(Ordering::SeqCst) {
                ready.reverse();
            }
            done.extend(ready.into_iter().map(|request| self.run(request)));
        }
        u32::try_from(done.len() - before).unwrap()
    }

    fn wake(&self) -> Wake {
        let held = self.switches.hold.load(Ordering::SeqCst);
        if self.aborted.is_empty() && (held || self.waiting.is_empty()) {
            return Wake::OnEvent;
        }
        Wake::Now
    }

    fn cancel(&mut self, _: &Cx) {
        self.aborted.append(&mut self.waiting);
    }
}

impl Drop for RamChannel {
    fn drop(&mut self) {
        if !self.waiting.is_empty() || !self.aborted.is_empty() {
            self.switches.dropped_early.store(true, Ordering::SeqCst);
        }
        self.switches.channels.fetch_sub(1, Ordering::SeqCst);
    }
}
