//! Rate limits on a clock that the tests move: what passes in any second, who waits, who is woken.

use super::*;
use crate::bdev::rig::{Rig, bare, read, write};
use crate::bdev::{Data, IoBuf, MeteredBdev, NullBdev, NullConfig, RateLimits};
use crate::units::ByteRange;
use proptest::prelude::*;
use reactors::{Clock, ManualClock};

const SECOND_NS: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

/// Who keeps how much under way, on which reactor.
#[derive(Clone, Copy, Debug)]
struct Client {
    reactor: usize,
    is_read: bool,
    bytes: u64,
    depth: usize,
}

/// What passed: when, for whom.
#[derive(Clone, Copy, Debug)]
struct Passed {
    at: u64,
    client: usize,
    is_read: bool,
    bytes: u64,
}

struct World {
    clock: Arc<ManualClock>,
    rigs: Vec<Rig>,
    bdev: MeteredBdev,
    clients: Vec<(Client, Box<dyn Channel>, Vec<IoBuf>)>,
    passed: Vec<Passed>,
}

impl World {
    fn new(limits: RateLimits, clients: &[Client]) -> Self {
        let config = NullConfig {
            name: "Null0".into(),
            uuid: uuid::Uuid::nil(),
            block_size: 512,
            blocks: 1 << 20,
        };
        let reactors = 1 + clients.iter().map(|c| c.reactor).max().unwrap();
        let bdev = MeteredBdev::new(Arc::new(NullBdev::new(config).unwrap()), reactors);
        bdev.change_limits(|_| limits).unwrap();
        let clock = Arc::new(ManualClock::default());
        clock.advance(SECOND_NS);
        let rig = |id| Rig::numbered(u32::try_from(id).unwrap(), clock.clone());
        let rigs: Vec<Rig> = (0..reactors).map(rig).collect();
        let open = |client: &Client| {
            let len = usize::try_from(client.bytes).unwrap();
            let bufs = (0..client.depth).map(|_| IoBuf::zeroed(len)).collect();
            (*client, rigs[client.reactor].open(&bdev), bufs)
        };
        Self {
            clients: clients.iter().map(open).collect(),
            clock,
            rigs,
            bdev,
            passed: Vec::new(),
        }
    }

    /// Every reactor goes round every `tick_ns`, for `ns`; each client keeps its depth under way.
    fn run(&mut self, ns: u64, tick_ns: u64) {
        let end = self.clock.now().after(ns);
        let mut done = Vec::new();
        while self.clock.now() < end {
            self.clock.advance(tick_ns);
            self.rigs.iter_mut().for_each(Rig::step);
            for (number, (client, channel, bufs)) in self.clients.iter_mut().enumerate() {
                let cx = self.rigs[client.reactor].cx();
                while let Some(buf) = bufs.pop() {
                    let op = match client.is_read {
                        true => Op::Read,
                        false => Op::Write { fua: false },
                    };
                    let range = ByteRange::new(0, client.bytes).unwrap();
                    let data = Data::Buf(buf);
                    channel.submit(
                        cx,
                        Request {
                            tag: 7,
                            op,
                            range,
                            data,
                        },
                    );
                }
                channel.poll(cx, &mut done);
                for completion in done.drain(..) {
                    assert_eq!((completion.tag, completion.status), (7, IoStatus::Ok));
                    bufs.extend(completion.data.into_buf());
                    self.passed.push(Passed {
                        at: cx.now().0,
                        client: number,
                        is_read: client.is_read,
                        bytes: client.bytes,
                    });
                }
            }
        }
    }

    /// The most that `units` of what passed add up to in any second, and in all.
    fn most(&self, units: impl Fn(&Passed) -> u64) -> (u64, u64) {
        let (mut first, mut within, mut most, mut all) = (0, 0, 0, 0);
        for passed in &self.passed {
            all += units(passed);
            within += units(passed);
            while self.passed[first].at + SECOND_NS <= passed.at {
                within -= units(&self.passed[first]);
                first += 1;
            }
            most = most.max(within);
        }
        (most, all)
    }
}

/// What a request counts for a limit.
type Units = fn(&Passed) -> u64;

/// Each limit with what counts for it.
fn lines(limits: RateLimits) -> [(u64, Units); 4] {
    [
        (limits.rw_ios_per_sec, |_| 1),
        (limits.rw_mbytes_per_sec * MIB, |p| p.bytes),
        (limits.r_mbytes_per_sec * MIB, |p| {
            if p.is_read { p.bytes } else { 0 }
        }),
        (limits.w_mbytes_per_sec * MIB, |p| {
            if p.is_read { 0 } else { p.bytes }
        }),
    ]
}

fn any_client() -> impl Strategy<Value = Client> {
    let bytes = prop_oneof![Just(512_u64), Just(4096), Just(65_536), Just(262_144)];
    (0..3_usize, any::<bool>(), bytes, 1..40_usize).prop_map(|(reactor, is_read, bytes, depth)| {
        Client {
            reactor,
            is_read,
            bytes,
            depth,
        }
    })
}

fn any_limits() -> impl Strategy<Value = RateLimits> {
    let ios = prop_oneof![Just(0_u64), 1..30_u64].prop_map(|thousands| thousands * 1000);
    let mbytes = || prop_oneof![2 => Just(0_u64), 3 => 1..60_u64];
    (ios, mbytes(), mbytes(), mbytes()).prop_map(|(ios, rw, r, w)| RateLimits {
        rw_ios_per_sec: ios,
        rw_mbytes_per_sec: rw,
        r_mbytes_per_sec: r,
        w_mbytes_per_sec: w,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_second_has_more_than_its_share_and_the_tightest_limit_is_used_up(
        clients in prop::collection::vec(any_client(), 1..6),
        limits in any_limits(),
        tick_us in 50..2000_u64,
    ) {
        // Without any, a closed loop is bound by the ticks alone.
        prop_assume!(limits != RateLimits::default());
        let mut world = World::new(limits, &clients);
        world.run(3 * SECOND_NS, tick_us * 1000);
        let largest = clients.iter().map(|c| c.bytes).max().unwrap();
        let mut tight = false;
        for (rate, units) in lines(limits) {
            if rate == 0 {
                continue;
            }
            let (most, all) = world.most(units);
            // One part in twenty, and the requests that can't be cut.
            let piece = if rate == limits.rw_ios_per_sec { 1 } else { largest };
            let slack = piece * clients.len() as u64;
            prop_assert!(most <= rate + rate / 20 + slack, "{most} of {rate}");
            tight |= all + all / 20 + slack >= 3 * rate;
        }
        // What a client can do is bound by its depth and the ticks as well.
        let by_depth = clients.iter().enumerate().any(|(number, client)| {
            let own = world.passed.iter().filter(|p| p.client == number).count() as u64;
            own + own / 20 + 2 * client.depth as u64 >= 3_000_000 / tick_us * client.depth as u64
        });
        prop_assert!(tight || by_depth, "less than any limit: {}", world.passed.len());
    }
}

fn ios(per_second: u64) -> RateLimits {
    RateLimits {
        rw_ios_per_sec: per_second,
        ..RateLimits::default()
    }
}

fn reader(reactor: usize, depth: usize) -> Client {
    Client {
        reactor,
        is_read: true,
        bytes: 4096,
        depth,
    }
}

#[test]
fn channels_share_alike_whatever_their_depth_and_reactor() {
    let clients = [reader(0, 1), reader(0, 128), reader(1, 4), reader(1, 32)];
    let mut world = World::new(ios(10_000), &clients);
    world.run(2 * SECOND_NS, 50_000);
    for number in 0..clients.len() {
        let own = world.passed.iter().filter(|p| p.client == number).count();
        assert!((4500..5600).contains(&own), "client {number}: {own}");
    }
}

#[test]
fn limits_change_under_load_and_go() {
    let mut world = World::new(ios(1000), &[reader(0, 64), reader(1, 64)]);
    let count = |world: &mut World| {
        world.passed.clear();
        world.run(SECOND_NS, 1_000_000);
        world.passed.len()
    };
    assert!((950..=1050).contains(&count(&mut world)));
    world.bdev.change_limits(|_| ios(5000)).unwrap();
    let raised = count(&mut world);
    assert!((4750..=5250).contains(&raised), "{raised}");
    world.bdev.change_limits(|_| ios(2000)).unwrap();
    let lowered = count(&mut world);
    assert!((1900..=2100).contains(&lowered), "{lowered}");
    world.bdev.change_limits(|_| RateLimits::default()).unwrap();
    // The depth of both, in every round.
    let free = count(&mut world);
    assert!(free > 100_000, "{free}");
}

fn held(limits: RateLimits) -> (MeteredBdev, Arc<ManualClock>, Rig, Box<dyn Channel>) {
    let mut world = World::new(limits, &[reader(0, 0)]);
    let (_, channel, _) = world.clients.pop().unwrap();
    let rig = world.rigs.pop().unwrap();
    (world.bdev, world.clock, rig, channel)
}

#[test]
fn what_is_held_passes_in_order_at_its_time_and_is_not_forgotten_by_a_sleeper() {
    let (bdev, clock, mut rig, mut channel) = held(ios(1000));
    for at in 0..13 {
        channel.submit(rig.cx(), read(at * 512, 512));
    }
    let first: Vec<u64> = rig.poll(&mut *channel).iter().map(|c| c.tag).collect();
    assert_eq!(
        first.len(),
        11,
        "ten milliseconds are saved, and the one now"
    );
    // Flushes pass.
    let range = ByteRange::new(0, 0).unwrap();
    let flush = rig.run(&mut *channel, bare(Op::Flush, range));
    assert!(flush.status.is_ok());
    let due = clock.now().after(1_000_000);
    assert_eq!(channel.wake(), Wake::At(due));
    clock.advance(999_999);
    assert!(rig.poll(&mut *channel).is_empty());
    clock.advance(1);
    let next = rig.poll(&mut *channel);
    assert_eq!(next[0].tag, read(11 * 512, 512).tag);
    assert_eq!(channel.wake(), Wake::At(due.after(1_000_000)));
    bdev.change_limits(|_| RateLimits::default()).unwrap();
    assert_eq!(channel.wake(), Wake::Now);
    assert_eq!(rig.poll(&mut *channel).len(), 1);
    assert_eq!(channel.wake(), Wake::OnEvent);
    let longest = bdev.figures(crate::bdev::ResetFigures::Nothing)[0]
        .1
        .read
        .longest_ns;
    assert_eq!(longest, Some(1_000_000), "waiting is part of the latency");
}

#[test]
fn cancel_gives_up_what_is_held_and_those_behind_go_on() {
    let (bdev, clock, mut rig, mut channel) = held(ios(1000));
    for at in 0..20 {
        channel.submit(rig.cx(), write(at * 512, &[1; 512]));
    }
    assert_eq!(rig.poll(&mut *channel).len(), 11);
    channel.cancel(rig.cx());
    assert_eq!(channel.wake(), Wake::Now);
    let given_up = rig.poll(&mut *channel);
    assert_eq!(given_up.len(), 9);
    assert!(given_up.iter().all(|c| c.status == IoStatus::Aborted));
    assert_eq!(channel.wake(), Wake::OnEvent);
    channel.submit(rig.cx(), read(0, 512));
    assert!(rig.poll(&mut *channel).is_empty());
    clock.advance(3_000_000);
    assert_eq!(rig.poll(&mut *channel).len(), 1);
    let figures = bdev.figures(crate::bdev::ResetFigures::Nothing);
    assert_eq!(figures[0].1.failed(IoStatus::Aborted), 9);
}

#[test]
fn what_the_base_refuses_costs_nothing() {
    let (_bdev, _clock, mut rig, mut channel) = held(RateLimits {
        r_mbytes_per_sec: 1,
        ..RateLimits::default()
    });
    for _ in 0..100 {
        let mut far = read(0, 512);
        far.range = ByteRange::new(1 << 40, 1 << 40).unwrap();
        let done = rig.run(&mut *channel, far);
        assert_eq!(done.status, IoStatus::OutOfRange);
    }
    assert!(rig.run(&mut *channel, read(0, 512)).status.is_ok());
}
