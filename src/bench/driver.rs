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
        left: workload.requests_max.unwrap_or(u64::MAX),
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
    /// How many may still be submitted.
    left: u64,
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

    /// Submits the request of slot `index` if it is not under way and requests are left.
    fn submit(&mut self, cx: &Cx, index: usize) {
        let is_free = self.slots.get(index).is_some_and(|slot| slot.buf.is_some());
        if !is_free || self.left == 0 {
            return;
        }
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
        self.left -= 1;
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
        if running && self.left > 0 && self.under_way < self.workload.depth {
            for index in 0..self.slots.len() {
                self.submit(cx, index);
            }
        }
        if self.under_way == 0 && (!running || self.left == 0) {
            self.finish(cx);
        }
        handled
    }

    fn wake(&self) -> Wake {
        Wake::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::{MallocBdev, MallocConfig, NullBdev, NullConfig};
    use reactors::{IdlePolicy, ManualClock, Quiescence, Reactor, ReactorConfig, ReactorId};
    use std::sync::Arc;
    use uuid::Uuid;

    struct Rig {
        clock: Arc<ManualClock>,
        reactor: Reactor,
    }

    impl Rig {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::default());
            let config = ReactorConfig {
                id: ReactorId(0),
                idle: IdlePolicy::Poll,
                seed: 1,
            };
            let reactor = Reactor::new(&config, clock.clone(), Quiescence::new(1)).unwrap();
            Self { clock, reactor }
        }

        /// Runs a job, `step_ns` passing in each round.
        fn run(&mut self, bdev: &dyn Bdev, workload: &Workload, step_ns: u64) -> Report {
            let found = Rc::new(Cell::new(None));
            let put = Rc::clone(&found);
            let done: Done = Box::new(move |report| put.set(Some(report)));
            start(self.reactor.cx(), bdev, workload, done).unwrap();
            for _ in 0..100_000 {
                self.reactor.step();
                self.clock.advance(step_ns);
                if let Some(report) = found.take() {
                    return report;
                }
            }
            panic!("the job never ends");
        }
    }

    fn malloc(blocks: u64) -> MallocBdev {
        let config = MallocConfig {
            name: "m".to_owned(),
            uuid: Uuid::nil(),
            block_size: 512,
            blocks,
        };
        MallocBdev::new(config).unwrap()
    }

    #[test]
    fn a_job_keeps_its_depth_counts_and_ends_in_time() {
        let mut rig = Rig::new();
        let bdev = NullBdev::new(NullConfig {
            name: "n".to_owned(),
            uuid: Uuid::nil(),
            block_size: 512,
            blocks: 1024,
        })
        .unwrap();
        let workload = Workload {
            pattern: Pattern::RandRead,
            block_bytes: 4096,
            depth: 8,
            range: ByteRange::between(0, 1024 * 512),
            warmup_ns: 1_000,
            run_ns: 10_000,
            requests_max: None,
        };
        let report = rig.run(&bdev, &workload, 100);
        // 100 rounds of 8 requests, each seen one round later.
        assert!((780..=808).contains(&report.requests), "{report:?}");
        assert_eq!((report.errors, report.latency_ns.p50), (0, 100));
        assert!(report.elapsed_ns <= 10_000);
    }

    #[test]
    fn filling_writes_every_block_once_and_then_ends() {
        let mut rig = Rig::new();
        let bdev = malloc(64);
        let whole = ByteRange::between(0, 64 * 512);
        let report = rig.run(&bdev, &Workload::fill(whole, 1024), 1);
        assert_eq!((report.requests, report.errors), (32, 0));
        let mut channel = bdev.open(rig.reactor.cx()).unwrap();
        let request = Request {
            tag: 0,
            op: Op::Read,
            range: whole,
            data: Data::Buf(IoBuf::zeroed(64 * 512)),
        };
        channel.submit(rig.reactor.cx(), request);
        let mut done = Vec::new();
        channel.poll(rig.reactor.cx(), &mut done);
        let buf = done.pop().unwrap().data.into_buf().unwrap();
        assert!(
            buf.chunks(512)
                .all(|block| block.iter().any(|byte| *byte != 0))
        );
    }

    #[test]
    fn a_job_that_does_not_fit_does_not_start() {
        let rig = Rig::new();
        let bdev = malloc(64);
        let workload = Workload::fill(ByteRange::between(0, 128 * 512), 512);
        let done: Done = Box::new(|_| panic!("it ran"));
        let error = start(rig.reactor.cx(), &bdev, &workload, done).unwrap_err();
        assert!(matches!(
            error,
            StartError::Workload(WorkloadError::Range { .. })
        ));
    }
}
