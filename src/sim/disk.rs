//! A simulated backing: it ends requests in any order, later, or not at all; it may have a volatile
//! write cache, and it may fail.

use super::pages::Pages;
use super::plan::Plan;
use super::rng::{Rng, index};
use super::universe::{State, Universe};
use crate::bdev::{
    Bdev, BdevError, BdevInfo, Channel, Completion, Data, IoStatus, Op, Request, Supports,
};
use crate::units::ByteRange;
use reactors::{Cx, Wake};
use std::collections::BTreeMap;
use std::sync::Arc;

const SECTOR: usize = 512;
/// Longest time of a slow read, ns.
const SLOW_NS: u64 = 100_000_000;

/// What is wrong with a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// Reads, writes and flushes in a thousand that fail, and would not the next time.
    pub(super) read_permille: u64,
    pub(super) write_permille: u64,
    pub(super) flush_permille: u64,
    /// Reads that touch it fail.
    pub(super) bad: ByteRange,
    /// Nothing ends.
    pub(super) stalled: bool,
    /// Longest time that a request takes, ns.
    pub(super) delay_ns: u64,
    /// Reads in a thousand that take up to [`SLOW_NS`].
    pub(super) slow_read_permille: u64,
}

impl Faults {
    /// Nothing is wrong; it takes as long as `plan` says.
    pub(super) fn none(plan: &Plan) -> Self {
        Self {
            delay_ns: plan.disk_ns,
            slow_read_permille: plan.slow_read_permille,
            ..Self::default()
        }
    }

    /// Whether the disk may be blamed for a request that failed or did not end.
    pub(super) fn are_serious(&self) -> bool {
        self.stalled
            || self.read_permille + self.write_permille + self.flush_permille > 0
            || !self.bad.is_empty()
    }
}

/// The bytes of a disk, and which of them are safe.
#[derive(Clone, Debug)]
pub(super) struct DiskState {
    visible: Pages,
    durable: Pages,
    has_cache: bool,
    /// Written since the last flush, in order.
    cached: Vec<(u64, Vec<u8>)>,
    /// Writes under way, by number.
    under_way: BTreeMap<u64, (u64, Vec<u8>)>,
    next: u64,
    pub(super) faults: Faults,
}

impl DiskState {
    pub(super) fn new(bytes: u64, has_cache: bool) -> Self {
        Self {
            visible: Pages::zeroed(bytes),
            durable: Pages::zeroed(bytes),
            has_cache,
            cached: Vec::new(),
            under_way: BTreeMap::new(),
            next: 0,
            faults: Faults::default(),
        }
    }

    fn write(&mut self, at: u64, bytes: Vec<u8>) {
        self.visible.write(at, &bytes);
        if self.has_cache {
            self.cached.push((at, bytes));
        } else {
            self.durable.write(at, &bytes);
        }
    }

    /// A write that no power cut may lose once it has ended.
    fn write_durably(&mut self, at: u64, bytes: &[u8]) {
        let range = ByteRange::between(at, at + bytes.len() as u64);
        // What was written there before must not come behind it.
        for (at, older) in std::mem::take(&mut self.cached) {
            let of = ByteRange::between(at, at + older.len() as u64);
            if !of.overlaps(range) {
                self.cached.push((at, older));
                continue;
            }
            let head = index(range.start().saturating_sub(of.start()));
            let tail = index(of.end().saturating_sub(range.end()));
            if head > 0 {
                self.cached.push((at, older[..head].to_vec()));
            }
            if tail > 0 {
                self.cached
                    .push((range.end(), older[older.len() - tail..].to_vec()));
            }
        }
        self.visible.write(at, bytes);
        self.durable.write(at, bytes);
    }

    /// Some sectors of a write that did not end well.
    fn write_in_part(&mut self, at: u64, bytes: &[u8], rng: &mut Rng) {
        let chance = rng.pick(&[0, 500, 1000]);
        for (place, sector) in bytes.chunks(SECTOR).enumerate() {
            if rng.permille(chance) {
                self.write(at + (place * SECTOR) as u64, sector.to_vec());
            }
        }
    }

    fn flush(&mut self) {
        for (at, bytes) in std::mem::take(&mut self.cached) {
            self.durable.write(at, &bytes);
        }
    }

    /// A flush that fails drops some of what it should have written, for good.
    fn fail_flush(&mut self, rng: &mut Rng) {
        let chance = rng.pick(&[200, 1000]);
        self.cached.retain(|_| !rng.permille(chance));
    }

    /// The process died: what the kernel has of it ends, in some order, before another one starts.
    pub(super) fn die(&mut self, rng: &mut Rng) {
        let mut left: Vec<_> = std::mem::take(&mut self.under_way).into_values().collect();
        while !left.is_empty() {
            let (at, bytes) = left.swap_remove(rng.index(left.len()));
            self.write(at, bytes);
        }
    }

    /// The power fails now.
    pub(super) fn cut(&mut self, rng: &mut Rng) {
        for (at, bytes) in std::mem::take(&mut self.under_way).into_values() {
            self.write_in_part(at, &bytes, rng);
        }
        let chance = rng.pick(&[0, 200, 800, 1000]);
        for (at, bytes) in std::mem::take(&mut self.cached) {
            for (place, sector) in bytes.chunks(SECTOR).enumerate() {
                if rng.permille(chance) {
                    self.durable.write(at + (place * SECTOR) as u64, sector);
                }
            }
        }
        self.visible = self.durable.clone();
    }

    /// All of it, as a reader sees it now.
    pub(super) fn image(&self) -> Vec<u8> {
        self.visible.get(0, self.visible.bytes())
    }

    /// Somebody else writes to the disk while no cache looks.
    pub(super) fn change(&mut self, at: u64, bytes: &[u8]) {
        self.visible.write(at, bytes);
        self.durable.write(at, bytes);
    }

    /// Bytes as a reader sees them now.
    pub(super) fn peek(&self, range: ByteRange) -> Vec<u8> {
        self.visible.get(range.start(), range.len())
    }
}

/// The disk as the engine sees it.
#[derive(Clone, Debug)]
pub(super) struct SimDisk {
    universe: Universe,
    number: usize,
    info: Arc<BdevInfo>,
}

impl SimDisk {
    /// Disk `number` of a universe.
    pub(super) fn new(universe: Universe, number: usize) -> Self {
        let state = universe.read();
        let disk = &state.disks[number];
        let tag = u8::try_from(number).unwrap_or(u8::MAX);
        let info = Arc::new(BdevInfo {
            name: format!("disk{number}"),
            product_name: "simulated disk",
            uuid: uuid::Uuid::from_bytes([9 + tag; 16]),
            block_size: 512,
            blocks: disk.visible.bytes() / SECTOR as u64,
            volatile_cache: disk.has_cache,
            read_only: false,
            supports: Supports::default(),
        });
        drop(state);
        Self {
            universe,
            number,
            info,
        }
    }
}

impl Bdev for SimDisk {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.clone()
    }

    fn open(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(SimChannel {
            disk: self.clone(),
            queue: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct Queued {
    request: Request,
    /// Number of the write under way.
    write: Option<u64>,
    /// What a read found when it came in; else it finds what is there when it ends.
    early: Option<Vec<u8>>,
    due: u64,
}

#[derive(Debug)]
struct SimChannel {
    disk: SimDisk,
    queue: Vec<Queued>,
}

/// What a request would write.
fn payload(request: &Request) -> Option<Vec<u8>> {
    match (request.op, &request.data) {
        (Op::Write { .. }, Data::Buf(buf)) => Some(buf.to_vec()),
        (Op::Write { .. }, Data::Gather(views)) => {
            Some(views.iter().flat_map(|view| view.iter().copied()).collect())
        }
        (Op::Discard | Op::WriteZeroes { .. }, _) => Some(vec![0; index(request.range.len())]),
        _ => None,
    }
}

impl State {
    /// A device reads its source at any time until the write has ended: it must not have changed.
    fn check_sources(&mut self, request: &Request) {
        let Data::Gather(views) = &request.data else {
            return;
        };
        for view in views {
            let Some(&at) = self.views.get(&view.as_ptr().addr()) else {
                continue;
            };
            if self.media.peek(at, view.len() as u64) != **view {
                let range = request.range;
                self.complain(format!(
                    "the source of the backing write {range}, {} bytes at {at:#x} of the medium, \
                     changed while it was under way",
                    view.len()
                ));
            }
        }
    }

    /// Ends a request of disk `number`.
    fn execute(&mut self, number: usize, queued: Queued) -> Completion {
        let Queued {
            mut request,
            write,
            early,
            ..
        } = queued;
        self.point();
        self.check_sources(&request);
        let mut rng = self.rng.fork();
        let disk = &mut self.disks[number];
        let faults = disk.faults.clone();
        let payload = write.and_then(|write| disk.under_way.remove(&write));
        if let Some((at, bytes)) = payload {
            if rng.permille(faults.write_permille) {
                disk.write_in_part(at, &bytes, &mut rng);
                return request.complete(IoStatus::IoError);
            }
            if matches!(
                request.op,
                Op::Write { fua: true } | Op::WriteZeroes { fua: true, .. }
            ) {
                disk.write_durably(at, &bytes);
            } else {
                disk.write(at, bytes);
            }
            return request.complete(IoStatus::Ok);
        }
        match (request.op, &mut request.data) {
            (Op::Read, Data::Buf(buf)) => {
                if request.range.overlaps(faults.bad) || rng.permille(faults.read_permille) {
                    buf.fill(0xbd);
                    return request.complete(IoStatus::IoError);
                }
                match early {
                    Some(bytes) => buf.copy_from_slice(&bytes),
                    None => disk.visible.read(request.range.start(), buf),
                }
            }
            (Op::Flush, _) => {
                if rng.permille(faults.flush_permille) {
                    disk.fail_flush(&mut rng);
                    return request.complete(IoStatus::IoError);
                }
                disk.flush();
            }
            _ => {}
        }
        request.complete(IoStatus::Ok)
    }
}

impl Channel for SimChannel {
    fn submit(&mut self, _cx: &Cx, request: Request) {
        let mut state = self.disk.universe.write();
        if let Err(status) = self.disk.info.admit(&request) {
            let (op, range) = (request.op, request.range);
            state.complain(format!("{op:?} of {range} at the backing: {status:?}"));
        }
        let due = state.now();
        let faults = &state.disks[self.disk.number].faults;
        let (usual, slow) = (faults.delay_ns, faults.slow_read_permille);
        let is_slow = request.op == Op::Read && state.rng.permille(slow);
        let longest = if is_slow { SLOW_NS } else { usual };
        let due = due + state.rng.below(longest + 1);
        let is_early = request.op == Op::Read && state.rng.permille(500);
        let disk = &mut state.disks[self.disk.number];
        let early = is_early.then(|| disk.peek(request.range));
        let write = payload(&request).map(|bytes| {
            disk.next += 1;
            let at = request.range.start();
            disk.under_way.insert(disk.next, (at, bytes));
            disk.next
        });
        self.queue.push(Queued {
            request,
            write,
            early,
            due,
        });
    }

    fn poll(&mut self, _cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        if self.queue.is_empty() {
            return 0;
        }
        let mut state = self.disk.universe.write();
        if state.disks[self.disk.number].faults.stalled {
            return 0;
        }
        let now = state.now();
        let mut ended = 0;
        let tries = state.rng.index(self.queue.len() + 1);
        for _ in 0..tries {
            let next = state.rng.index(self.queue.len());
            if self.queue[next].due <= now {
                let queued = self.queue.swap_remove(next);
                let completion = state.execute(self.disk.number, queued);
                done.push(completion);
                ended += 1;
            }
        }
        ended
    }

    fn wake(&self) -> Wake {
        if self.queue.is_empty() {
            Wake::OnEvent
        } else {
            Wake::Now
        }
    }
}
