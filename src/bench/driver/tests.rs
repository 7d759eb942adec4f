use super::super::workload::{Arrival, Load};
use super::*;
use crate::bdev::{BdevInfo, IoStatus, MallocBdev, MallocConfig, NullBdev, NullConfig, Supports};
use reactors::{Clock, IdlePolicy, ManualClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use uuid::Uuid;

pub(super) struct Rig {
    clock: Arc<ManualClock>,
    reactor: Reactor,
}

impl Rig {
    pub(super) fn new() -> Self {
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
    pub(super) fn run(&mut self, bdev: &dyn Bdev, workload: &Workload, step_ns: u64) -> Outcome {
        let found = Rc::new(Cell::new(None));
        let put = Rc::clone(&found);
        let done: Done = Box::new(move |outcome| put.set(Some(outcome)));
        let counting = Box::new(|| {});
        start(self.reactor.cx(), bdev, workload, counting, done).unwrap();
        for _ in 0..1_000_000 {
            self.reactor.step();
            self.clock.advance(step_ns);
            if let Some(outcome) = found.take() {
                return outcome;
            }
        }
        panic!("the job never ends");
    }
}

pub(super) fn malloc(blocks: u64) -> MallocBdev {
    let config = MallocConfig {
        name: "m".to_owned(),
        uuid: Uuid::nil(),
        block_size: 512,
        blocks,
    };
    MallocBdev::new(config).unwrap()
}

pub(super) fn whole(blocks: u64) -> ByteRange {
    ByteRange::between(0, blocks * 512)
}

/// Completes what it gets a set time later; while it stalls, nothing completes.
#[derive(Debug)]
struct Slow {
    info: Arc<BdevInfo>,
    latency_ns: u64,
    /// From when to when.
    stall: (u64, u64),
    fails: Arc<AtomicBool>,
    flushes: Arc<AtomicU64>,
}

impl Slow {
    fn new(latency_ns: u64, stall: (u64, u64)) -> Self {
        let info = BdevInfo {
            name: "slow".to_owned(),
            product_name: "test",
            uuid: Uuid::nil(),
            block_size: 512,
            blocks: 1024,
            volatile_cache: true,
            read_only: false,
            supports: Supports::default(),
        };
        Self {
            info: Arc::new(info),
            latency_ns,
            stall,
            fails: Arc::default(),
            flushes: Arc::default(),
        }
    }
}

#[derive(Debug)]
struct SlowChannel {
    latency_ns: u64,
    stall: (u64, u64),
    fails: Arc<AtomicBool>,
    flushes: Arc<AtomicU64>,
    under_way: Vec<(Nanos, Request)>,
}

impl Bdev for Slow {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.clone()
    }

    fn open(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(SlowChannel {
            latency_ns: self.latency_ns,
            stall: self.stall,
            fails: self.fails.clone(),
            flushes: self.flushes.clone(),
            under_way: Vec::new(),
        }))
    }
}

impl Channel for SlowChannel {
    fn submit(&mut self, cx: &Cx, request: Request) {
        if request.op == Op::Flush {
            self.flushes.fetch_add(1, Ordering::SeqCst);
        }
        let due = cx.read_clock().after(self.latency_ns);
        self.under_way.push((due, request));
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let now = cx.read_clock();
        if (self.stall.0..self.stall.1).contains(&now.0) {
            return 0;
        }
        let status = match self.fails.load(Ordering::SeqCst) {
            true => IoStatus::IoError,
            false => IoStatus::Ok,
        };
        let ready: Vec<_> = self.under_way.extract_if(.., |io| io.0 <= now).collect();
        let count = ready.len();
        done.extend(
            ready
                .into_iter()
                .map(|(_, request)| request.complete(status)),
        );
        u32::try_from(count).unwrap()
    }

    fn wake(&self) -> Wake {
        Wake::Now
    }
}

#[test]
fn a_job_keeps_its_depth_counts_and_ends_in_time() {
    let mut rig = Rig::new();
    let workload = Workload {
        read_percent: 100,
        depth: 8,
        warmup_ns: 1_000,
        run_ns: 10_000,
        ..Workload::new(whole(1024), 4096)
    };
    let outcome = rig.run(&Slow::new(100, (0, 0)), &workload, 100);
    // 100 rounds of 8 requests, each seen one round later.
    assert!((780..=808).contains(&outcome.requests), "{outcome:?}");
    assert_eq!(outcome.errors, 0);
    assert_eq!((outcome.reads.min(), outcome.reads.max()), (100, 100));
    assert!(outcome.writes.is_empty());
    assert_eq!(outcome.bytes, outcome.requests * 4096);
    assert!((9_900..=10_100).contains(&outcome.elapsed_ns()));
}

#[test]
fn what_completes_at_once_does_not_wait_for_the_next_round() {
    let mut rig = Rig::new();
    let bdev = NullBdev::new(NullConfig {
        name: "n".to_owned(),
        uuid: Uuid::nil(),
        block_size: 512,
        blocks: 1024,
    })
    .unwrap();
    let workload = Workload {
        run_ns: 1_000,
        ..Workload::new(whole(1024), 4096)
    };
    let outcome = rig.run(&bdev, &workload, 100);
    let median = outcome.writes.value_at_quantile(0.5);
    assert_eq!(median, 0, "no time passes within a round");
    assert!(outcome.requests > 11, "more than one a round");
}

#[test]
fn filling_writes_every_block_once_and_then_ends() {
    let mut rig = Rig::new();
    let bdev = malloc(64);
    let outcome = rig.run(&bdev, &Workload::fill(whole(64), 1024), 1);
    assert_eq!((outcome.requests, outcome.errors), (32, 0));
    let mut channel = bdev.open(rig.reactor.cx()).unwrap();
    let request = Request {
        tag: 0,
        op: Op::Read,
        range: whole(64),
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
    let workload = Workload::fill(whole(128), 512);
    let done: Done = Box::new(|_| panic!("it ran"));
    let counting = Box::new(|| panic!("it ran"));
    let error = start(rig.reactor.cx(), &bdev, &workload, counting, done).unwrap_err();
    assert!(matches!(
        error,
        StartError::Workload(WorkloadError::Range { .. })
    ));
}

#[test]
fn whoever_watches_is_told_when_counting_begins() {
    let mut rig = Rig::new();
    let slow = Slow::new(100, (0, 0));
    let workload = Workload {
        warmup_ns: 5_000,
        requests_max: Some(100),
        ..Workload::new(whole(1024), 512)
    };
    let (told, ended) = (Rc::new(Cell::new(None)), Rc::new(Cell::new(None)));
    let (tell, end) = (Rc::clone(&told), Rc::clone(&ended));
    let clock = rig.clock.clone();
    let counting = Box::new(move || {
        tell.set(Some(clock.now()));
        clock.advance(50_000);
    });
    let done: Done = Box::new(move |outcome| end.set(Some(outcome)));
    start(rig.reactor.cx(), &slow, &workload, counting, done).unwrap();
    while told.get().is_none() {
        rig.reactor.step();
        rig.clock.advance(100);
    }
    assert_eq!(told.get(), Some(Nanos(5_000)));
    for _ in 0..1_000 {
        rig.reactor.step();
        rig.clock.advance(100);
    }
    let outcome = ended.take().unwrap();
    assert!(
        outcome.begun >= Nanos(55_000),
        "the watch itself is not counted"
    );
    assert!(outcome.all().max() < 50_000);
}

#[test]
fn warm_up_is_not_counted_by_time_or_by_number() {
    let mut rig = Rig::new();
    let mut workload = Workload {
        warmup_ns: 5_000,
        requests_max: Some(100),
        ..Workload::new(whole(1024), 512)
    };
    let slow = Slow::new(100, (0, 0));
    let by_time = rig.run(&slow, &workload, 100).requests;
    assert!((45..=51).contains(&by_time), "{by_time}");
    workload.warmup_ns = u64::MAX;
    workload.warmup_requests_max = Some(20);
    assert_eq!(rig.run(&slow, &workload, 100).requests, 80);
}

#[test]
fn errors_are_counted_and_have_no_latency() {
    let mut rig = Rig::new();
    let slow = Slow::new(100, (0, 0));
    slow.fails.store(true, Ordering::SeqCst);
    let workload = Workload {
        requests_max: Some(10),
        ..Workload::new(whole(1024), 512)
    };
    let outcome = rig.run(&slow, &workload, 50);
    assert_eq!((outcome.requests, outcome.errors), (10, 10));
    assert!(outcome.writes.is_empty() && outcome.bytes == 0);
    assert!(!outcome.is_good());
}

#[test]
fn flushes_come_between_writes_and_are_booked_apart() {
    let mut rig = Rig::new();
    let slow = Slow::new(100, (0, 0));
    let workload = Workload {
        requests_max: Some(40),
        flush_every: 10,
        depth: 2,
        ..Workload::new(whole(1024), 512)
    };
    let outcome = rig.run(&slow, &workload, 50);
    let flushes = slow.flushes.load(Ordering::SeqCst);
    assert_eq!(outcome.requests, 40);
    assert!((3..=4).contains(&flushes), "{flushes}");
    assert_eq!(outcome.flushes.len(), flushes);
    assert_eq!(outcome.writes.len(), 40);
}

/// A device that takes 100 ns, and stands still for a while.
fn stalled(load: Load, depth: u32) -> Outcome {
    let mut rig = Rig::new();
    let workload = Workload {
        load,
        depth,
        run_ns: 1_000_000,
        series_ns: 100_000,
        ..Workload::new(whole(1024), 512)
    };
    rig.run(&Slow::new(100, (200_000, 400_000)), &workload, 50)
}

#[test]
fn a_stall_shows_in_every_request_that_should_have_started_during_it() {
    let open = |depth| {
        let load = Load::Open {
            rate: 1e6,
            arrival: Arrival::Constant,
        };
        stalled(load, depth)
    };
    for depth in [1, 4] {
        let outcome = open(depth);
        // One each microsecond, all of them.
        assert_eq!(outcome.requests, 1000);
        assert_eq!(outcome.abandoned, 0);
        // Some 200 should have started in 200 us of stall: half of them waited more than half.
        let long = outcome.writes.count_between(100_000, u64::MAX);
        assert!((95..=125).contains(&long), "depth {depth}: {long}");
        assert!((199_000..=201_000).contains(&outcome.writes.max()));
        let queued = outcome.queued;
        assert!((195..=260).contains(&queued), "depth {depth}: {queued}");
        assert!((195_000..=200_000).contains(&outcome.queue_wait_max_ns));
    }
    // The closed loop, which does not ask while it waits, sees one.
    let closed = stalled(Load::Closed, 1);
    assert_eq!(closed.writes.count_between(100_000, u64::MAX), 1);
    assert_eq!(closed.queued, 0);
}

#[test]
fn latencies_over_time_show_when_it_stalled() {
    let outcome = stalled(Load::Closed, 1);
    let counts: Vec<u64> = outcome.series.iter().map(|found| found.len()).collect();
    assert_eq!(counts.len(), 11);
    assert_eq!(counts.iter().sum::<u64>(), outcome.requests);
    assert!(counts[0] > 900 && counts[2] == 0 && counts[3] == 0);
    assert!(counts[4] > 900 && counts[9] > 900);
    assert!(outcome.series[4].max() >= 199_000);
    assert!(outcome.series[5].max() < 200);
}

#[test]
fn requests_that_a_slow_device_never_gets_to_are_given_up_and_counted() {
    let mut rig = Rig::new();
    let workload = Workload {
        load: Load::Open {
            rate: 1e6,
            arrival: Arrival::Poisson,
        },
        run_ns: 10_000_000,
        ..Workload::new(whole(1024), 512)
    };
    // A thousandth of the rate.
    let outcome = rig.run(&Slow::new(1_000_000, (0, 0)), &workload, 10_000);
    let sum = outcome.requests + outcome.abandoned;
    assert!((9_500..10_500).contains(&sum), "{sum}");
    assert!((1_000..1_020).contains(&outcome.requests));
    assert!(outcome.queued + 2 >= outcome.requests);
}

#[test]
fn outcomes_of_several_jobs_add_up() {
    let slow = Slow::new(100, (0, 0));
    let workload = Workload {
        requests_max: Some(10),
        series_ns: 1_000,
        run_ns: 1_000_000,
        ..Workload::new(whole(1024), 512)
    };
    let mut first = Rig::new().run(&slow, &workload, 100);
    let mut rig = Rig::new();
    rig.clock.advance(5_000);
    let second = rig.run(&slow, &workload, 100);
    first.merge(&second);
    assert_eq!((first.requests, first.writes.len()), (20, 20));
    assert_eq!(
        first.series.iter().map(|found| found.len()).sum::<u64>(),
        20
    );
    assert_eq!(first.begun, Nanos(0));
    assert_eq!(first.ended, second.ended);
}
