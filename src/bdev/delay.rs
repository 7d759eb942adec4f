//! A filter that makes its base slow: what happens above when a disk is.

use super::identity::filter_info;
use super::in_flight::InFlight;
use super::inline::{take_all, wake_for};
use super::live_info::{Gate, LiveInfo};
use super::{Bdev, BdevError, BdevInfo, Channel, Completion, Op, Request};
use reactors::{Cx, Nanos, Wake};
use std::cmp::{Ordering as Order, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// One I/O in this many gets the p99 latency.
const P99_ONE_IN: u64 = 100;

/// Which of a delay bdev's latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayKind {
    /// Of 99 reads in 100.
    AvgRead,
    /// Of one read in 100.
    P99Read,
    /// Of 99 in 100 of all other I/Os.
    AvgWrite,
    /// Of one in 100 of all other I/Os.
    P99Write,
}

/// What is added to the time that the base takes, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelayLatencies {
    /// To 99 reads in 100.
    pub avg_read_us: u64,
    /// To one read in 100; at least the average when the bdev is made.
    pub p99_read_us: u64,
    /// To 99 in 100 of all other I/Os.
    pub avg_write_us: u64,
    /// To one in 100 of all other I/Os; at least the average when the bdev is made.
    pub p99_write_us: u64,
}

#[derive(Debug)]
struct Latencies {
    avg_read_us: AtomicU64,
    p99_read_us: AtomicU64,
    avg_write_us: AtomicU64,
    p99_write_us: AtomicU64,
}

impl Latencies {
    fn of(&self, kind: DelayKind) -> &AtomicU64 {
        match kind {
            DelayKind::AvgRead => &self.avg_read_us,
            DelayKind::P99Read => &self.p99_read_us,
            DelayKind::AvgWrite => &self.avg_write_us,
            DelayKind::P99Write => &self.p99_write_us,
        }
    }
}

/// "delay": completes each I/O a set time after its base has.
#[derive(Debug)]
pub struct DelayBdev {
    info: Arc<LiveInfo>,
    base: Arc<dyn Bdev>,
    latencies: Arc<Latencies>,
}

impl DelayBdev {
    /// A filter `name` over `base`. Without a `uuid`, one is derived from the base's.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a bad name, or an average above its p99.
    pub fn new(
        name: String,
        base: Arc<dyn Bdev>,
        latencies: DelayLatencies,
        uuid: Option<Uuid>,
    ) -> Result<Self, BdevError> {
        let info = filter_info(&*base, name, "delay", uuid)?;
        let info = Arc::new(LiveInfo::over(info, Arc::clone(&base)));
        for (what, avg, p99) in [
            ("read", latencies.avg_read_us, latencies.p99_read_us),
            ("write", latencies.avg_write_us, latencies.p99_write_us),
        ] {
            if avg > p99 {
                return Err(BdevError::Invalid(format!(
                    "average {what} latency {avg} us is above the p99 of {p99} us"
                )));
            }
        }
        let latencies = Arc::new(Latencies {
            avg_read_us: AtomicU64::new(latencies.avg_read_us),
            p99_read_us: AtomicU64::new(latencies.p99_read_us),
            avg_write_us: AtomicU64::new(latencies.avg_write_us),
            p99_write_us: AtomicU64::new(latencies.p99_write_us),
        });
        Ok(Self {
            info,
            base,
            latencies,
        })
    }

    /// The bdev below.
    #[must_use]
    pub fn base(&self) -> &Arc<dyn Bdev> {
        &self.base
    }

    /// Sets a latency, in microseconds, for I/Os whose delay has not begun. From any thread.
    pub fn set_latency_us(&self, kind: DelayKind, latency_us: u64) {
        self.latencies.of(kind).store(latency_us, Ordering::Relaxed);
    }

    /// The latencies now.
    #[must_use]
    pub fn latencies(&self) -> DelayLatencies {
        let get = |kind| self.latencies.of(kind).load(Ordering::Relaxed);
        DelayLatencies {
            avg_read_us: get(DelayKind::AvgRead),
            p99_read_us: get(DelayKind::P99Read),
            avg_write_us: get(DelayKind::AvgWrite),
            p99_write_us: get(DelayKind::P99Write),
        }
    }
}

impl Bdev for DelayBdev {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.get()
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(DelayChannel {
            gate: Gate::new(&self.info),
            latencies: self.latencies.clone(),
            base: self.base.open(cx)?,
            in_flight: InFlight::default(),
            from_base: Vec::new(),
            delayed: BinaryHeap::new(),
            delayed_count: 0,
            ready: Vec::new(),
        }))
    }
}

/// A completion that waits for its time. Ordered by that, then by arrival.
#[derive(Debug)]
struct Delayed {
    due: Nanos,
    number: u64,
    completion: Completion,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for Delayed {}
impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> Order {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

#[derive(Debug)]
struct DelayChannel {
    gate: Gate,
    latencies: Arc<Latencies>,
    base: Box<dyn Channel>,
    /// The user's tag, and whether it is a read.
    in_flight: InFlight<(u64, bool)>,
    from_base: Vec<Completion>,
    delayed: BinaryHeap<Reverse<Delayed>>,
    /// How many have been delayed so far.
    delayed_count: u64,
    ready: Vec<Completion>,
}

impl DelayChannel {
    fn latency_ns(&self, cx: &Cx, is_read: bool) -> u64 {
        let kind = match (is_read, cx.random().is_multiple_of(P99_ONE_IN)) {
            (true, false) => DelayKind::AvgRead,
            (true, true) => DelayKind::P99Read,
            (false, false) => DelayKind::AvgWrite,
            (false, true) => DelayKind::P99Write,
        };
        let latency_us = self.latencies.of(kind).load(Ordering::Relaxed);
        latency_us.saturating_mul(1000)
    }

    fn delay(&mut self, cx: &Cx, mut completion: Completion) {
        let Some((tag, is_read)) = self.in_flight.remove(completion.tag) else {
            return;
        };
        completion.tag = tag;
        let due = cx.now().after(self.latency_ns(cx, is_read));
        self.delayed_count += 1;
        self.delayed.push(Reverse(Delayed {
            due,
            number: self.delayed_count,
            completion,
        }));
    }

    /// Moves what is due at `now` to `ready`.
    fn release(&mut self, now: Nanos) {
        while let Some(first) = self.delayed.peek_mut() {
            if first.0.due > now {
                break;
            }
            let Reverse(first) = std::collections::binary_heap::PeekMut::pop(first);
            self.ready.push(first.completion);
        }
    }
}

impl Channel for DelayChannel {
    fn submit(&mut self, cx: &Cx, mut request: Request) {
        if let Err(status) = self.gate.admit(&request) {
            self.ready.push(request.complete(status));
            return;
        }
        let is_read = request.op == Op::Read;
        request.tag = self.in_flight.insert((request.tag, is_read));
        self.base.submit(cx, request);
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let mut from_base = std::mem::take(&mut self.from_base);
        self.base.poll(cx, &mut from_base);
        for completion in from_base.drain(..) {
            self.delay(cx, completion);
        }
        self.from_base = from_base;
        self.release(cx.now());
        take_all(&mut self.ready, done)
    }

    fn wake(&self) -> Wake {
        let next = match self.delayed.peek() {
            Some(first) => Wake::At(first.0.due),
            None => Wake::OnEvent,
        };
        wake_for(&self.ready).sooner(next).sooner(self.base.wake())
    }

    /// What is only being delayed is done already, and completes at once.
    fn cancel(&mut self, cx: &Cx) {
        self.base.cancel(cx);
        self.release(Nanos(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, malloc, pattern, read, write};
    use super::*;
    use crate::bdev::IoStatus;
    use reactors::{Clock, ManualClock};

    fn delay(latencies: [u64; 4]) -> Result<DelayBdev, BdevError> {
        let [avg_read_us, p99_read_us, avg_write_us, p99_write_us] = latencies;
        let latencies = DelayLatencies {
            avg_read_us,
            p99_read_us,
            avg_write_us,
            p99_write_us,
        };
        DelayBdev::new("Delay0".into(), malloc(1024), latencies, None)
    }

    #[test]
    fn the_quicker_overtakes_and_nobody_is_early() {
        let bdev = delay([10, 10, 30, 30]).unwrap();
        let clock = Arc::new(ManualClock::default());
        let mut rig = Rig::with_clock(&clock);
        let mut channel = rig.open(&bdev);
        let bytes = pattern(1, 512);
        channel.submit(rig.cx(), write(0, &bytes));
        channel.submit(rig.cx(), read(0, 512));
        assert!(rig.poll(&mut *channel).is_empty());
        assert_eq!(channel.wake(), Wake::At(clock.now().after(10_000)));
        clock.advance(9_999);
        assert!(rig.poll(&mut *channel).is_empty());
        clock.advance(1);
        let first = rig.wait(&mut *channel, 1).pop().unwrap();
        assert_eq!(first.tag, read(0, 512).tag);
        assert_eq!(&*first.data.into_buf().unwrap(), bytes);
        assert_eq!(channel.wake(), Wake::At(clock.now().after(20_000)));
        clock.advance(20_000);
        rig.wait(&mut *channel, 1);
        assert_eq!(channel.wake(), Wake::OnEvent);
    }

    #[test]
    fn equal_delays_keep_their_order() {
        let bdev = delay([5; 4]).unwrap();
        let clock = Arc::new(ManualClock::default());
        let mut rig = Rig::with_clock(&clock);
        let mut channel = rig.open(&bdev);
        for i in 0..50 {
            channel.submit(rig.cx(), read(i * 512, 512));
        }
        assert!(rig.poll(&mut *channel).is_empty());
        clock.advance(5_000);
        let tags: Vec<u64> = rig.poll(&mut *channel).iter().map(|d| d.tag).collect();
        let expected: Vec<u64> = (0..50).map(|i| read(i * 512, 512).tag).collect();
        assert_eq!(tags, expected);
    }

    #[test]
    fn about_one_in_a_hundred_is_slow() {
        let bdev = delay([1, 1000, 1, 1000]).unwrap();
        let clock = Arc::new(ManualClock::default());
        let mut rig = Rig::with_clock(&clock);
        let mut channel = rig.open(&bdev);
        for i in 0..10_000 {
            channel.submit(rig.cx(), read(i % 1024 * 512, 512));
        }
        rig.poll(&mut *channel);
        clock.advance(1_000);
        let quick = rig.poll(&mut *channel).len();
        assert!((9_800..9_960).contains(&quick), "{quick} were quick");
        clock.advance(999_000);
        assert_eq!(rig.poll(&mut *channel).len(), 10_000 - quick);
    }

    #[test]
    fn latencies_change_at_run_time() {
        let bdev = delay([0; 4]).unwrap();
        let clock = Arc::new(ManualClock::default());
        let mut rig = Rig::with_clock(&clock);
        let mut channel = rig.open(&bdev);
        rig.run(&mut *channel, read(0, 512));
        bdev.set_latency_us(DelayKind::AvgRead, 7);
        bdev.set_latency_us(DelayKind::P99Read, 7);
        assert_eq!(bdev.latencies().avg_read_us, 7);
        channel.submit(rig.cx(), read(0, 512));
        channel.submit(rig.cx(), write(0, &[1; 512]));
        assert_eq!(rig.poll(&mut *channel).len(), 1);
        clock.advance(7_000);
        assert_eq!(rig.poll(&mut *channel).len(), 1);
    }

    #[test]
    fn cancel_ends_all_delays_and_refusals_have_none() {
        let bdev = delay([1000; 4]).unwrap();
        let clock = Arc::new(ManualClock::default());
        let mut rig = Rig::with_clock(&clock);
        let mut channel = rig.open(&bdev);
        let done = rig.run(&mut *channel, read(1, 512));
        assert_eq!(done.status, IoStatus::Unaligned);
        channel.submit(rig.cx(), read(0, 512));
        assert!(rig.poll(&mut *channel).is_empty());
        channel.cancel(rig.cx());
        assert_eq!(channel.wake(), Wake::Now);
        assert!(rig.poll(&mut *channel).pop().unwrap().status.is_ok());
    }

    #[test]
    fn an_average_above_its_p99_is_refused() {
        for bad in [[2, 1, 0, 0], [0, 0, 2, 1]] {
            assert!(matches!(delay(bad), Err(BdevError::Invalid(_))));
        }
    }
}
