use super::*;
use crate::bdev::rig::{Rig, gather, malloc, read, write};
use crate::bdev::{
    ErrorBdev, ErrorIo, ErrorKind, HistogramIo, HistogramOptions, Injection, IoFigures,
    MeteredBdev, ResetFigures,
};
use crate::units::ByteRange;
use reactors::{Clock, ManualClock};

fn metered() -> MeteredBdev {
    MeteredBdev::new(malloc(1024), 2)
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

fn total(bdev: &MeteredBdev, reset: ResetFigures) -> IoFigures {
    let mut sum = IoFigures::default();
    for (_, figures) in bdev.figures(reset) {
        sum.add(&figures);
    }
    sum
}

#[test]
fn it_is_its_base_and_counts_what_moves_data() {
    let bdev = metered();
    assert_eq!(bdev.info().name, "Malloc0");
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    assert!(bdev.pmem().is_none());
    rig.run(&mut *channel, write(0, &[7; 1024]));
    rig.run(&mut *channel, gather(4096, &[&[1; 512], &[2; 512]]));
    let zeroes = Op::WriteZeroes {
        may_unmap: true,
        fua: false,
    };
    rig.run_op(&mut *channel, zeroes, range(512, 512));
    rig.run_op(&mut *channel, Op::Discard, range(0, 2048));
    rig.run_op(&mut *channel, Op::Flush, range(0, 0));
    assert_eq!(rig.bytes(&mut *channel, 4096, 512), [1; 512]);
    let figures = total(&bdev, ResetFigures::Nothing);
    assert_eq!((figures.write.ops, figures.write.bytes), (3, 2560));
    assert_eq!((figures.unmap.ops, figures.unmap.bytes), (1, 2048));
    assert_eq!((figures.read.ops, figures.read.bytes), (1, 512));
}

#[test]
fn each_reactor_has_its_own_and_totals_outlive_channels() {
    let bdev = metered();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let mut rigs = [0, 1].map(|id| Rig::numbered(id, clock.clone()));
    assert!(bdev.figures(ResetFigures::Nothing).is_empty());
    for ((rig, count), place) in rigs.iter_mut().zip([1, 2]).zip(0..) {
        let mut channel = rig.open(&bdev);
        let other = rig.open(&bdev);
        let id = reactors::ReactorId(place);
        assert_eq!(bdev.channels_open(), [(id, 2)]);
        drop(other);
        assert_eq!(bdev.channels_open(), [(id, 1)]);
        for _ in 0..count {
            rig.run(&mut *channel, read(0, 512));
        }
    }
    let figures = bdev.figures(ResetFigures::Nothing);
    let ops: Vec<_> = figures.iter().map(|(id, f)| (id.0, f.read.ops)).collect();
    assert_eq!(ops, [(0, 1), (1, 2)]);
    let stranger = Rig::numbered(2, clock);
    assert!(bdev.open(stranger.cx()).is_err());
}

#[test]
fn latency_is_counted_in_rounds_and_sampled_within_one() {
    let bdev = MeteredBdev::new(slow_base(5), 1);
    let clock = Arc::new(ManualClock::default());
    let mut rig = Rig::with_clock(&clock);
    let mut channel = rig.open(&bdev);
    for wait_us in [5, 20] {
        channel.submit(rig.cx(), read(0, 512));
        clock.advance(wait_us * 1000);
        // The delay begins when the base's end is seen.
        rig.poll(&mut *channel);
        clock.advance(5_000);
        assert_eq!(rig.poll(&mut *channel).len(), 1);
    }
    let read_of = |figures: IoFigures| figures.read;
    let figures = read_of(total(&bdev, ResetFigures::Nothing));
    assert_eq!(figures.latency_ns, 10_000 + 25_000);
    assert_eq!(figures.longest_ns, Some(25_000));
    assert_eq!(figures.shortest_ns, Some(10_000));

    let bdev = metered();
    let mut channel = rig.open(&bdev);
    rig.step();
    clock.advance(300);
    for _ in 0..17 {
        channel.submit(rig.cx(), read(0, 512));
        assert_eq!(channel.poll(rig.cx(), &mut Vec::new()), 1);
    }
    let figures = read_of(total(&bdev, ResetFigures::Nothing));
    assert_eq!((figures.ops, figures.latency_ns), (17, 17 * 300));
}

fn slow_base(us: u64) -> Arc<dyn Bdev> {
    let latencies = crate::bdev::DelayLatencies {
        avg_read_us: us,
        p99_read_us: us,
        avg_write_us: us,
        p99_write_us: us,
    };
    let bdev = crate::bdev::DelayBdev::new("D".into(), malloc(1024), latencies, None);
    Arc::new(bdev.unwrap())
}

#[test]
fn a_reset_begins_what_it_says_anew() {
    let errors = Arc::new(ErrorBdev::new(malloc(1024), None).unwrap());
    let bdev = MeteredBdev::new(errors.clone(), 1);
    let clock = Arc::new(ManualClock::default());
    let mut rig = Rig::with_clock(&clock);
    let mut channel = rig.open(&bdev);
    let mut one_of_each = |rig: &mut Rig| {
        let injection = Injection {
            io: ErrorIo::Write,
            kind: ErrorKind::Failure,
            skip: 0,
            count: 1,
            queue_depth: 0,
        };
        errors.inject(&injection).unwrap();
        channel.submit(rig.cx(), write(0, &[1; 512]));
        channel.submit(rig.cx(), read(0, 512));
        clock.advance(1000);
        rig.wait(&mut *channel, 2);
    };
    let seen = |figures: &IoFigures| {
        (
            figures.read.ops,
            figures.read.longest_ns,
            figures.failed(IoStatus::IoError),
        )
    };
    one_of_each(&mut rig);
    let first = total(&bdev, ResetFigures::Extremes);
    assert_eq!(seen(&first), (1, Some(1000), 1));
    assert_eq!(first.write.ops, 0, "what fails moves nothing");
    let second = total(&bdev, ResetFigures::Errors);
    assert_eq!(seen(&second), (1, None, 1));
    one_of_each(&mut rig);
    let third = total(&bdev, ResetFigures::All);
    assert_eq!(seen(&third), (2, Some(1000), 1));
    let fourth = total(&bdev, ResetFigures::Nothing);
    assert_eq!(fourth, IoFigures::default());
    one_of_each(&mut rig);
    assert_eq!(
        seen(&total(&bdev, ResetFigures::Nothing)),
        (1, Some(1000), 1)
    );
}

#[test]
fn a_histogram_has_each_request_of_its_kind() {
    let bdev = metered();
    let clock = Arc::new(ManualClock::default());
    let mut rig = Rig::with_clock(&clock);
    let mut channel = rig.open(&bdev);
    rig.run(&mut *channel, read(0, 512));
    assert!(bdev.histogram().is_none());
    let options = HistogramOptions {
        io: Some(HistogramIo::Read),
        ..HistogramOptions::default()
    };
    bdev.set_histogram(Some(options)).unwrap();
    assert_eq!(bdev.histogram_options(), Some(options));
    for at in 0..10 {
        channel.submit(rig.cx(), read(at * 512, 512));
        channel.submit(rig.cx(), write(at * 512, &[1; 512]));
        clock.advance(at * 100);
        assert_eq!(channel.poll(rig.cx(), &mut Vec::new()), 2);
        rig.step();
    }
    let counts = bdev.histogram().unwrap();
    assert_eq!(counts.total(), 10);
    assert_eq!((counts.up_to(99), counts.up_to(450)), (1, 5));
    bdev.set_histogram(Some(options)).unwrap();
    assert_eq!(bdev.histogram().unwrap().total(), 0);
    bdev.set_histogram(None).unwrap();
    rig.run(&mut *channel, read(0, 512));
    assert!(bdev.histogram().is_none());
}

#[test]
fn the_queue_depth_is_seen_at_regular_times() {
    let bdev = MeteredBdev::new(slow_base(1000), 1);
    let clock = Arc::new(ManualClock::default());
    let mut rig = Rig::with_clock(&clock);
    let mut channel = rig.open(&bdev);
    assert_eq!(bdev.depth(), None);
    bdev.sample_depth(rig.cx(), 10);
    for at in 0..3 {
        channel.submit(rig.cx(), read(at * 512, 512));
    }
    assert!(rig.poll(&mut *channel).is_empty());
    let look = |rig: &mut Rig, times: u64| {
        for _ in 0..times {
            clock.advance(10_000);
            rig.step();
        }
        bdev.depth().unwrap()
    };
    // It is due at once, and then after each period.
    rig.step();
    let before = look(&mut rig, 0);
    let busy = look(&mut rig, 4);
    assert_eq!((busy.period_us, busy.depth), (10, 3));
    assert_eq!(busy.busy_us - before.busy_us, 40);
    assert_eq!(busy.weighted_us - before.weighted_us, 120);
    channel.cancel(rig.cx());
    rig.wait(&mut *channel, 3);
    let after_end = look(&mut rig, 1);
    assert_eq!(after_end.depth, 0);
    let idle = look(&mut rig, 4);
    assert_eq!(idle.busy_us, after_end.busy_us);
    bdev.sample_depth(rig.cx(), 0);
    assert_eq!(bdev.depth(), None);
}

#[test]
fn a_bdev_that_is_gone_is_not_sampled_any_more() {
    let bdev = metered();
    let mut rig = Rig::new();
    bdev.sample_depth(rig.cx(), 1);
    rig.step();
    assert_eq!(rig.cx().poller_stats().len(), 1);
    drop(bdev);
    while !rig.cx().poller_stats().is_empty() {
        rig.step();
    }
}

#[test]
fn nothing_is_allocated_once_it_runs() {
    let bdev = metered();
    bdev.set_histogram(Some(HistogramOptions::default()))
        .unwrap();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let mut done = Vec::with_capacity(4);
    let mut request = Some(write(0, &[1; 512]));
    let mut round = |rig: &Rig| {
        channel.submit(rig.cx(), request.take().unwrap());
        channel.poll(rig.cx(), &mut done);
        let data = done.pop().unwrap().data;
        request = Some(Request {
            data,
            tag: 1,
            op: Op::Write { fua: false },
            range: range(0, 512),
        });
    };
    round(&rig);
    let counted = allocation_counter::measure(|| (0..1000).for_each(|_| round(&rig)));
    assert_eq!(counted.count_total, 0, "{counted:?}");
    rig.step();
}
