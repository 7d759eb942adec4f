//! The poller that keeps a job's requests under way.
//!
//! All memory is allocated before the first request: each of the `depth` slots owns a buffer that
//! travels with its request and comes back with the completion. The clock is read once per
//! submission and once per completion: latency is what is measured here.

use super::report::{Percentiles, Report, per_second};
use super::{Pattern, Workload, WorkloadError};
use crate::bdev::{Bdev, BdevError, Channel, Completion, Data, IoBuf, Op, Request};
use crate::units::ByteRange;
use hdrhistogram::Histogram;
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use std::cell::Cell;
use std::rc::Rc;

/// Latencies are told apart up to a minute; longer ones count as a minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// What a job calls at its end, on its reactor.
pub type Done = Box<dyn FnOnce(Report)>;

/// Why a job did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It doesn't fit the device.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The device gave no channel.
    #[error(transparent)]
    Bdev(#[from] BdevError),
    /// There is no histogram for it.
    #[error("no histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
}

/// Starts `workload` on `bdev`, on this reactor. `done` gets the report once the last request has
/// completed and the channel is closed.
///
/// # Errors
/// If the job doesn't fit the device, or the device gives no channel. `done` is not called then.
pub fn start(cx: &Cx, bdev: &dyn Bdev, workload: &Workload, done: Done) -> Result<(), StartError> {
    let info = bdev.info();
    let places = workload.places(&info)?;
    let channel = bdev.open(cx)?;
    let slots = (0..workload.depth).map(|_| Slot::new(cx, workload.block_bytes));
    let begun = cx.read_clock();
    let counted_from = begun.after(workload.warmup_ns);
    let own_id = Rc::new(Cell::new(None));
    let driver = Driver {
        bdev_name: info.name.clone(),
        workload: workload.clone(),
        places,
        next_place: 0,
        slots: slots.collect(),
        under_way: 0,
        channel: Some(channel),
        completions: Vec::with_capacity(workload.depth as usize),
        counted_from,
        counted_to: counted_from.after(workload.run_ns),
        last: counted_from,
        requests: 0,
        errors: 0,
        latencies: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
        own_id: Rc::clone(&own_id),
        done: Some(done),
    };
    own_id.set(Some(cx.add_poller("bench", Box::new(driver))));
    Ok(())
}

/// One request's memory, and when it was last submitted.
struct Slot {
    buf: Option<IoBuf>,
    submitted: Nanos,
}

impl Slot {
    fn new(cx: &Cx, bytes: u32) -> Self {
        let mut buf = IoBuf::zeroed(bytes as usize);
        for word in buf.chunks_mut(8) {
            let random = cx.random().to_le_bytes();
            word.copy_from_slice(random.get(..word.len()).unwrap_or_default());
        }
        Self {
            buf: Some(buf),
            submitted: Nanos(0),
        }
    }
}

struct Driver {
    bdev_name: String,
    workload: Workload,
    /// How many different places a request can have.
    places: u64,
    next_place: u64,
    slots: Vec<Slot>,
    under_way: u32,
    /// None once closed.
    channel: Option<Box<dyn Channel>>,
    completions: Vec<Completion>,
    counted_from: Nanos,
    counted_to: Nanos,
    /// When the last counted request completed.
    last: Nanos,
    requests: u64,
    errors: u64,
    latencies: Histogram<u64>,
    own_id: Rc<Cell<Option<PollerId>>>,
    done: Option<Done>,
}

impl Driver {
    fn next_range(&mut self, cx: &Cx) -> ByteRange {
        let place = if self.workload.pattern.is_random() {
            cx.random() % self.places
        } else {
            self.next_place
        };
        self.next_place = (place + 1) % self.places;
        let bytes = u64::from(self.workload.block_bytes);
        let start = self.workload.range.start() + place * bytes;
        ByteRange::between(start, start + bytes)
    }

    /// Submits the request of slot `index`, which must not be under way.
    fn submit(&mut self, cx: &Cx, index: usize) {
        let range = self.next_range(cx);
        let op = match self.workload.pattern {
            Pattern::RandRead | Pattern::SeqRead => Op::Read,
            Pattern::RandWrite | Pattern::SeqWrite => Op::Write { fua: false },
        };
        let (Some(slot), Some(channel)) = (self.slots.get_mut(index), &mut self.channel) else {
            return;
        };
        let Some(buf) = slot.buf.take() else {
            return;
        };
        self.under_way += 1;
        slot.submitted = cx.read_clock();
        let request = Request {
            tag: index as u64,
            op,
            range,
            data: Data::Buf(buf),
        };
        channel.submit(cx, request);
    }

    /// Books a completion and frees its slot. Returns the slot's index.
    fn book(&mut self, completion: Completion, now: Nanos) -> Option<usize> {
        let index = usize::try_from(completion.tag).ok()?;
        let slot = self.slots.get_mut(index)?;
        slot.buf = completion.data.into_buf();
        debug_assert!(slot.buf.is_some(), "a completion without its buffer");
        self.under_way = self.under_way.saturating_sub(1);
        if now >= self.counted_from && now < self.counted_to {
            self.requests += 1;
            self.last = now;
            if completion.status.is_ok() {
                self.latencies.saturating_record(now.since(slot.submitted));
            } else {
                self.errors += 1;
            }
        }
        Some(index)
    }

    fn finish(&mut self, cx: &Cx) {
        self.channel = None;
        if let Some(id) = self.own_id.get() {
            cx.remove_poller(id);
        }
        let elapsed_ns = self.last.since(self.counted_from);
        let report = Report {
            bdev: std::mem::take(&mut self.bdev_name),
            pattern: self.workload.pattern.name(),
            block_bytes: self.workload.block_bytes,
            depth: self.workload.depth,
            requests: self.requests,
            errors: self.errors,
            elapsed_ns,
            iops: per_second(self.requests, elapsed_ns),
            latency_ns: Percentiles::from(&self.latencies),
        };
        if let Some(done) = self.done.take() {
            done(report);
        }
    }
}

impl Poller for Driver {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let Some(channel) = &mut self.channel else {
            return 0;
        };
        let mut completions = std::mem::take(&mut self.completions);
        channel.poll(cx, &mut completions);
        let mut handled = 0;
        let mut running = cx.now() < self.counted_to;
        for completion in completions.drain(..) {
            let now = cx.read_clock();
            running &= now < self.counted_to;
            handled += 1;
            if let Some(index) = self.book(completion, now)
                && running
            {
                self.submit(cx, index);
            }
        }
        self.completions = completions;
        if running && self.under_way < self.workload.depth {
            for index in 0..self.slots.len() {
                self.submit(cx, index);
            }
        }
        if !running && self.under_way == 0 {
            self.finish(cx);
        }
        handled
    }

    fn wake(&self) -> Wake {
        Wake::Now
    }
}
