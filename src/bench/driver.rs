//! The poller that keeps a job's requests under way.
//!
//! All memory is allocated before the first request: each of the `depth` slots owns a buffer that
//! travels with its request and comes back with the completion. The clock is read just before a
//! submission and just after a completion was seen. With more than one request under way the
//! completion's reading also serves the request that takes its place, which so carries the cost of
//! the booking; one at a time has a reading of its own.

use super::outcome::Outcome;
use super::requests::Requests;
use super::rng::Rng;
use super::schedule::Schedule;
use super::verify::Verifier;
use super::{Load, Workload, WorkloadError};
use crate::bdev::{Bdev, BdevError, Channel, Completion, Data, IoBuf, Op, Request};
use crate::units::ByteRange;
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use std::cell::Cell;
use std::rc::Rc;

/// How long after its end an open loop may go on with the requests that wait, at least.
const DRAIN_NS: u64 = 1_000_000_000;

/// What a job calls at its end, on its reactor.
pub type Done = Box<dyn FnOnce(Outcome)>;

/// What a job calls once, on its reactor, just before the first request that counts. A closed loop
/// reads the clock again afterwards; an open one is behind by what it took.
pub type Counting = Box<dyn FnOnce()>;

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

/// Starts `workload` on `bdev`, on this reactor. `counting` is called when the warm-up is over, if
/// that ever is; `done` gets the outcome once the last request has completed and the channel is
/// closed.
///
/// # Errors
/// If the job doesn't fit the device, or the device gives no channel. Neither is called then.
pub fn start(
    cx: &Cx,
    bdev: &dyn Bdev,
    workload: &Workload,
    counting: Counting,
    done: Done,
) -> Result<(), StartError> {
    let info = bdev.info();
    let places = workload.places(&info)?;
    let mut contents = Rng::new(workload.seed ^ cx.random());
    let slots = (0..workload.depth).map(|_| Slot::new(&mut contents, workload.bytes_max()));
    let slots: Vec<Slot> = slots.collect();
    let mut driver = Driver {
        requests: Requests::new(workload, places),
        verifier: workload.verify.then(|| {
            let unit = u64::from(workload.unit());
            let start = workload.range.start();
            Verifier::new(cx.random(), start, unit, places, workload.depth)
        }),
        walk: Walk::new(workload, places),
        phase: if workload.verify {
            Phase::Write
        } else {
            Phase::Run
        },
        warmup_ns: workload.warmup_ns,
        arrivals: (workload.load, workload.seed),
        schedule: None,
        free: (0..slots.len()).rev().collect(),
        slots,
        depth: workload.depth,
        left: workload.requests_max.unwrap_or(u64::MAX),
        warmup_left: workload.warmup_requests_max.unwrap_or(u64::MAX),
        is_counting: false,
        counted_from: Nanos(0),
        counted_to: Nanos(u64::MAX),
        drained_by: Nanos(u64::MAX),
        run_ns: workload.run_ns,
        blocked_at: None,
        channel: None,
        completions: Vec::with_capacity(workload.depth as usize),
        interval: 0,
        interval_end: Nanos(u64::MAX),
        outcome: Outcome::new(workload.run_ns, workload.series_ns)?,
        own_id: Rc::new(Cell::new(None)),
        counting: Some(counting),
        done: Some(done),
    };
    driver.channel = Some(bdev.open(cx)?);
    driver.begin(cx.read_clock());
    let own_id = Rc::clone(&driver.own_id);
    own_id.set(Some(cx.add_poller("bench", Box::new(driver))));
    Ok(())
}

/// One request's memory, and what it was last used for.
#[derive(Debug)]
struct Slot {
    /// Away with its request while that is under way.
    buf: Option<IoBuf>,
    kind: Kind,
    range: ByteRange,
    /// When it was submitted, or should have been.
    started: Nanos,
    /// Whether it is one that counts.
    counts: bool,
    /// What the verifier calls it.
    version: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
}

impl Slot {
    fn new(contents: &mut Rng, bytes: u32) -> Self {
        let mut buf = IoBuf::zeroed(bytes as usize);
        for word in buf.chunks_mut(8) {
            let random = contents.next().to_le_bytes();
            word.copy_from_slice(random.get(..word.len()).unwrap_or_default());
        }
        Self {
            buf: Some(buf),
            kind: Kind::Flush,
            range: ByteRange::default(),
            started: Nanos(0),
            counts: false,
            version: 0,
        }
    }
}

/// What a job is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// With verification: tags all places.
    Write,
    /// Its own requests.
    Run,
    /// With verification: reads all places.
    Read,
}

/// All places, one after the other.
#[derive(Debug)]
struct Walk {
    start: u64,
    bytes: u64,
    places: u64,
    next: u64,
}

impl Walk {
    fn new(workload: &Workload, places: u64) -> Self {
        Self {
            start: workload.range.start(),
            bytes: u64::from(workload.unit()),
            places,
            next: 0,
        }
    }

    fn next(&mut self) -> Option<ByteRange> {
        let start = self.start + self.next * self.bytes;
        let is_left = self.next < self.places;
        self.next += u64::from(is_left);
        is_left.then(|| ByteRange::between(start, start + self.bytes))
    }
}

struct Driver {
    requests: Requests,
    /// None: nothing is tagged.
    verifier: Option<Verifier>,
    walk: Walk,
    phase: Phase,
    warmup_ns: u64,
    /// What the schedule is made of, and its seed.
    arrivals: (Load, u64),
    /// None: a closed loop.
    schedule: Option<Schedule>,
    slots: Vec<Slot>,
    /// Indices of the slots that are not under way; the one that was used last is used next.
    free: Vec<usize>,
    depth: u32,
    /// How many may still be submitted.
    left: u64,
    /// How many before counting begins, if the time is not up before.
    warmup_left: u64,
    is_counting: bool,
    /// Requests count that start from here on …
    counted_from: Nanos,
    /// … and before this.
    counted_to: Nanos,
    /// When an open loop gives up what it is behind with.
    drained_by: Nanos,
    run_ns: u64,
    /// Until when all slots of an open loop were last under way.
    blocked_at: Option<Nanos>,
    /// None once closed.
    channel: Option<Box<dyn Channel>>,
    completions: Vec<Completion>,
    /// Place in the series, and when it ends.
    interval: usize,
    interval_end: Nanos,
    outcome: Outcome,
    own_id: Rc<Cell<Option<PollerId>>>,
    counting: Option<Counting>,
    done: Option<Done>,
}

impl Driver {
    /// The job's own requests begin now.
    fn begin(&mut self, now: Nanos) {
        self.counted_from = now.after(self.warmup_ns);
        self.schedule = Schedule::new(self.arrivals.0, now, self.arrivals.1);
    }

    /// When the next request starts, or should have started; None if not yet, or none is left.
    /// `now` is recent.
    fn next_start(&mut self, cx: &Cx, now: Nanos) -> Option<Nanos> {
        if self.left == 0 {
            return None;
        }
        let start = match &self.schedule {
            Some(schedule) => schedule.next(),
            None => now,
        };
        if start < self.counted_to && now >= self.drained_by {
            self.abandon();
            return None;
        }
        if start > now || start >= self.counted_to {
            return None;
        }
        if self.free.is_empty() {
            return None;
        }
        if let Some(schedule) = &mut self.schedule {
            if self.blocked_at.is_some_and(|blocked| start <= blocked) && self.is_counting {
                self.outcome.queued += 1;
                let waited = now.since(start);
                self.outcome.queue_wait_max_ns = self.outcome.queue_wait_max_ns.max(waited);
            }
            schedule.advance();
            return Some(start);
        }
        // See the head of the file.
        Some(if self.depth == 1 {
            cx.read_clock()
        } else {
            now
        })
    }

    /// Begins to count once the warm-up is over. Tells when a request that should start at `start`
    /// does.
    fn count_from(&mut self, cx: &Cx, start: Nanos) -> Nanos {
        if start < self.counted_from && self.warmup_left > 0 {
            self.warmup_left -= 1;
            return start;
        }
        if let Some(counting) = self.counting.take() {
            counting();
        }
        let start = match &self.schedule {
            Some(_) => start,
            None => cx.read_clock(),
        };
        self.is_counting = true;
        self.counted_from = start;
        self.counted_to = start.after(self.run_ns);
        self.drained_by = self.counted_to.after(self.run_ns.max(DRAIN_NS));
        (self.outcome.begun, self.outcome.ended) = (start, start);
        self.interval_end = start.after(self.outcome.series_ns);
        start
    }

    /// Submits what may start now.
    fn refill(&mut self, cx: &Cx, now: Nanos) {
        if self.phase != Phase::Run {
            return self.refill_walk(cx);
        }
        loop {
            if self.left > 0
                && !self.free.is_empty()
                && self.requests.take_flush()
                && let Some(index) = self.free.pop()
            {
                let start = cx.read_clock();
                self.submit(cx, index, Op::Flush, ByteRange::default(), start);
            }
            let Some(mut start) = self.next_start(cx, now) else {
                return;
            };
            if !self.is_counting {
                start = self.count_from(cx, start);
            }
            let Some(index) = self.free.pop() else {
                return;
            };
            self.left -= 1;
            let (op, range) = self.requests.next();
            self.submit(cx, index, op, range, start);
        }
    }

    /// Submits what is left of a walk over all places.
    fn refill_walk(&mut self, cx: &Cx) {
        let op = match self.phase {
            Phase::Read => Op::Read,
            Phase::Write | Phase::Run => Op::Write { fua: false },
        };
        while let Some(index) = self.free.pop() {
            let Some(range) = self.walk.next() else {
                self.free.push(index);
                return;
            };
            self.submit(cx, index, op, range, Nanos(0));
        }
    }

    fn submit(&mut self, cx: &Cx, index: usize, op: Op, range: ByteRange, start: Nanos) {
        let (Some(slot), Some(channel)) = (self.slots.get_mut(index), &mut self.channel) else {
            return;
        };
        slot.range = range;
        slot.counts = self.is_counting && self.phase == Phase::Run;
        slot.kind = match op {
            Op::Read => Kind::Read,
            Op::Flush => Kind::Flush,
            _ => Kind::Write,
        };
        let data = match slot.buf.take() {
            Some(mut buf) if slot.kind != Kind::Flush => {
                let bytes = usize::try_from(range.len()).unwrap_or(0);
                if buf.len() != bytes {
                    buf.set_len(bytes);
                }
                if let Some(verifier) = &mut self.verifier {
                    slot.version = match slot.kind {
                        Kind::Read => verifier.begin_read(),
                        _ => verifier.begin_write(range.start(), &mut buf),
                    };
                }
                Data::Buf(buf)
            }
            idle => {
                slot.buf = idle;
                Data::None
            }
        };
        slot.started = start;
        let request = Request {
            tag: index as u64,
            op,
            range,
            data,
        };
        channel.submit(cx, request);
    }

    /// Books a completion and frees its slot.
    fn book(&mut self, completion: Completion, now: Nanos) {
        let Ok(index) = usize::try_from(completion.tag) else {
            return;
        };
        let is_ok = completion.status.is_ok();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if slot.kind != Kind::Flush {
            slot.buf = completion.data.into_buf();
        }
        debug_assert!(slot.buf.is_some(), "a completion without its buffer");
        if let Some(verifier) = &mut self.verifier {
            let is_right = verify(verifier, slot, is_ok, &mut self.outcome);
            if !is_right {
                // One is enough.
                self.left = 0;
            }
        }
        if self.schedule.is_some() && self.free.is_empty() {
            self.blocked_at = Some(now);
        }
        let (kind, bytes, latency) = (slot.kind, slot.range.len(), now.since(slot.started));
        let counts = slot.counts;
        self.free.push(index);
        if counts {
            self.count(kind, bytes, latency, is_ok, now);
        } else if self.phase != Phase::Run {
            self.outcome.errors += u64::from(!is_ok);
        }
    }

    /// Puts a request that counts into the outcome.
    fn count(&mut self, kind: Kind, bytes: u64, latency: u64, is_ok: bool, now: Nanos) {
        let outcome = &mut self.outcome;
        outcome.ended = now;
        outcome.errors += u64::from(!is_ok);
        if kind == Kind::Flush {
            if is_ok {
                outcome.flushes.saturating_record(latency);
            }
            return;
        }
        outcome.requests += 1;
        if !is_ok {
            return;
        }
        outcome.bytes += bytes;
        match kind {
            Kind::Read => outcome.reads.saturating_record(latency),
            _ => outcome.writes.saturating_record(latency),
        }
        while now >= self.interval_end && self.interval + 1 < outcome.series.len() {
            self.interval += 1;
            self.interval_end = self.interval_end.after(outcome.series_ns);
        }
        if let Some(interval) = outcome.series.get_mut(self.interval) {
            interval.saturating_record(latency);
        }
    }

    /// Goes on to what comes after a phase that is over. True once that is nothing.
    fn is_through(&mut self, now: Nanos) -> bool {
        let failed = self.outcome.mismatches > 0;
        match self.phase {
            Phase::Write if self.walk.next >= self.walk.places || failed => {
                self.phase = Phase::Run;
                self.begin(now);
                failed
            }
            Phase::Run if self.is_over(now) => {
                self.phase = Phase::Read;
                self.walk.next = 0;
                self.verifier.is_none() || failed
            }
            Phase::Read => self.walk.next >= self.walk.places || failed,
            Phase::Write | Phase::Run => false,
        }
    }

    /// Whether nothing more will be submitted.
    fn is_over(&self, now: Nanos) -> bool {
        let next = self.schedule.as_ref().map_or(now, Schedule::next);
        self.left == 0 || next >= self.counted_to
    }

    /// Gives up what an open loop did not catch up with.
    fn abandon(&mut self) {
        let Some(schedule) = &mut self.schedule else {
            return;
        };
        while schedule.next() < self.counted_to && self.left > 0 {
            schedule.advance();
            self.left -= 1;
            self.outcome.abandoned += 1;
        }
    }

    fn finish(&mut self, cx: &Cx) {
        self.channel = None;
        if let Some(id) = self.own_id.get() {
            cx.remove_poller(id);
        }
        if let Some(done) = self.done.take() {
            done(self.outcome.clone());
        }
    }
}

/// Tells the verifier that a slot's request has ended. False if it has found what must not be.
fn verify(verifier: &mut Verifier, slot: &Slot, is_ok: bool, outcome: &mut Outcome) -> bool {
    let (at, len) = (slot.range.start(), slot.range.len());
    match slot.kind {
        Kind::Flush => true,
        Kind::Write => {
            verifier.end_write(at, len, slot.version, is_ok);
            true
        }
        Kind::Read => {
            let found = slot.buf.as_deref().filter(|_| is_ok);
            outcome.verified += found.map_or(0, |bytes| bytes.len() as u64 / 512);
            let (wrong, first) = verifier.end_read(at, found, slot.version);
            outcome.mismatches += wrong;
            outcome.first_mismatch = outcome.first_mismatch.or(first);
            wrong == 0
        }
    }
}

impl Poller for Driver {
    fn poll(&mut self, cx: &Cx, budget: u32) -> u32 {
        let mut completions = std::mem::take(&mut self.completions);
        let mut handled = 0;
        // What completes at once is seen at once, as whoever polls a queue sees it.
        while let Some(channel) = &mut self.channel
            && handled < budget
            && channel.poll(cx, &mut completions) > 0
        {
            for completion in completions.drain(..) {
                let now = cx.read_clock();
                handled += 1;
                self.book(completion, now);
                self.refill(cx, now);
            }
        }
        self.completions = completions;
        if self.free.is_empty() || self.channel.is_none() {
            return handled;
        }
        // An open loop starts requests when it is time, and a job its first ones.
        let now = cx.read_clock();
        self.refill(cx, now);
        if self.free.len() == self.slots.len() && self.is_through(now) {
            self.finish(cx);
        }
        handled
    }

    fn wake(&self) -> Wake {
        Wake::Now
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod verify_tests;
