//! Reactors on real threads: sleeping, waking, starting, stopping.
#![cfg(not(loom))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use reactors::ring::{Consumer, Producer, spsc};
use reactors::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long anything may take, on however busy a machine.
const BOUND: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = MonotonicClock.now();
    while !condition() {
        let waited = u128::from(MonotonicClock.now().since(start));
        assert!(waited < BOUND.as_nanos(), "in vain: {what}");
        std::thread::yield_now();
    }
}

/// Maintenance reactors only: they sleep at once, and need no core of their own.
fn start(count: usize) -> Reactors {
    start_on(Vec::new(), count, IdlePolicy::Interrupt)
}

fn start_on(cores: Vec<usize>, maintenance: usize, idle: IdlePolicy) -> Reactors {
    Reactors::start(ReactorsConfig {
        cores,
        maintenance: vec![None; maintenance],
        idle,
        seed: 1,
        clock: Arc::new(MonotonicClock),
    })
    .unwrap()
}

fn asleep(handle: &ReactorHandle) -> bool {
    handle.stats().asleep_since.is_some()
}

/// A core that the tests may pin to.
fn some_core() -> usize {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU)
        .find(|core| set.is_set(*core))
        .unwrap()
}

/// A poller made of a closure.
struct Closure<F>(F);

impl<F: FnMut(&Cx) -> u32> Poller for Closure<F> {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        (self.0)(cx)
    }
}

/// Adds a poller made on the reactor's own thread.
fn add(
    handle: &ReactorHandle,
    period_ns: Option<u64>,
    poll: impl FnMut(&Cx) -> u32 + Send + 'static,
) -> PollerId {
    let add = move |cx: &Cx| match period_ns {
        Some(period) => cx.add_timed_poller("test", period, Box::new(Closure(poll))),
        None => cx.add_poller("test", Box::new(Closure(poll))),
    };
    handle.call(BOUND, add).unwrap()
}

/// Waits for twenty ticks of a millisecond on a reactor of their own.
fn let_time_pass() {
    let other = start(1);
    let (sender, ticks) = mpsc::channel();
    add(&other.handles()[0], Some(1_000_000), move |_| {
        let _ = sender.send(());
        1
    });
    for _ in 0..20 {
        ticks.recv_timeout(BOUND).unwrap();
    }
}

/// Waits until the reactor sleeps through, and does nothing at all meanwhile. (A ring that came
/// while it was about to sleep may wake it once for nothing.)
fn until_at_rest(handle: &ReactorHandle) -> ReactorStats {
    let mut stats = handle.stats();
    until("the reactor is at rest", || {
        let before = stats;
        let_time_pass();
        stats = handle.stats();
        before == stats && stats.asleep_since.is_some()
    });
    stats
}

/// Passes the ball back, and tells once it has come `left` times.
struct PingPong {
    from_peer: Consumer<u64>,
    to_peer: Producer<u64>,
    peer: ReactorHandle,
    done: mpsc::Sender<u64>,
    last: u64,
}

impl Poller for PingPong {
    fn poll(&mut self, _cx: &Cx, _budget: u32) -> u32 {
        let Some(ball) = self.from_peer.pop() else {
            return 0;
        };
        if ball >= self.last {
            self.done.send(ball).unwrap();
        } else {
            self.to_peer.push(ball + 1).unwrap();
            self.peer.ring();
        }
        1
    }
}

#[test]
fn ring_ping_pong_between_sleepers_loses_no_wake_up() {
    let last = 20_000;
    let reactors = start(2);
    let (a, b) = (&reactors.handles()[0], &reactors.handles()[1]);
    let (mut to_a, from_b) = spsc(4);
    let (to_b, from_a) = spsc(4);
    let (done, finished) = mpsc::channel();
    to_a.push(0).unwrap();
    let side = |from_peer, to_peer, peer: &ReactorHandle| PingPong {
        from_peer,
        to_peer,
        peer: peer.clone(),
        done: done.clone(),
        last,
    };
    let (on_a, on_b) = (side(from_b, to_b, b), side(from_a, to_a, a));
    for (handle, poller) in [(b, on_b), (a, on_a)] {
        let add = move |cx: &Cx| cx.add_poller("ping_pong", Box::new(poller));
        handle.call(BOUND, add).unwrap();
    }
    assert_eq!(finished.recv_timeout(BOUND).unwrap(), last);
    assert!(a.stats().sleeps > 0 && b.stats().sleeps > 0);
    reactors.stop();
}

/// Sends itself to and fro as a message.
fn bounce(from: &ReactorHandle, to: &ReactorHandle, left: u32, done: mpsc::Sender<()>) {
    let (here, there) = (from.clone(), to.clone());
    let message = move |_: &Cx| {
        if left == 0 {
            done.send(()).unwrap();
        } else {
            bounce(&there, &here, left - 1, done);
        }
    };
    to.send(Box::new(message)).unwrap();
}

#[test]
fn message_ping_pong_between_sleepers_loses_no_wake_up() {
    let reactors = start(2);
    let (done, finished) = mpsc::channel();
    for _ in 0..2 {
        let (a, b) = (&reactors.handles()[0], &reactors.handles()[1]);
        bounce(a, b, 10_000, done.clone());
    }
    finished.recv_timeout(BOUND).unwrap();
    finished.recv_timeout(BOUND).unwrap();
    reactors.stop();
}

#[test]
fn many_senders_each_get_every_answer() {
    let reactors = start(1);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let handle = reactors.handles()[0].clone();
            scope.spawn(move || {
                for n in 0..3_000_u32 {
                    assert_eq!(handle.call(BOUND, move |_| n), Ok(n));
                }
            });
        }
    });
    let stats = reactors.handles()[0].stats();
    assert!(stats.wakeups > 0 && stats.wakeups <= stats.sleeps);
    reactors.stop();
}

#[test]
fn adaptive_reactor_sleeps_when_idle_and_spins_no_more() {
    let idle = IdlePolicy::Adaptive { idle_us: 50 };
    let reactors = start_on(vec![some_core()], 0, idle);
    let handle = &reactors.handles()[0];
    let before = until_at_rest(handle);
    assert_eq!(handle.call(BOUND, |cx| cx.id()), Ok(ReactorId(0)));
    until("it sleeps again", || handle.stats().sleeps > before.sleeps);
    let spun = handle.stats().rounds - before.rounds;
    assert!(spun > 2, "it spins for a while before it sleeps: {spun}");
    reactors.stop();
}

#[test]
fn idle_policy_changes_at_run_time() {
    let reactors = start_on(vec![some_core()], 1, IdlePolicy::Interrupt);
    let handle = &reactors.handles()[0];
    until("interrupt sleeps", || asleep(handle));
    reactors.set_idle(IdlePolicy::Poll);
    assert_eq!(handle.idle(), IdlePolicy::Poll);
    assert_eq!(reactors.handles()[1].idle(), IdlePolicy::Interrupt);
    until("poll wakes", || !asleep(handle));
    let before = handle.stats();
    until("poll spins", || {
        handle.stats().rounds > before.rounds + 1000
    });
    assert_eq!(handle.stats().sleeps, before.sleeps);
    handle.set_idle(IdlePolicy::Adaptive { idle_us: 0 });
    until("adaptive sleeps", || asleep(handle));
    reactors.stop();
}

#[test]
fn timed_poller_and_wake_at_end_the_sleep() {
    /// Asks to be woken 2 ms after its last turn, and never handles anything.
    struct Alarm {
        next: Nanos,
        rings: mpsc::Sender<Nanos>,
    }
    impl Poller for Alarm {
        fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
            if cx.now() >= self.next {
                let _ = self.rings.send(cx.now());
                self.next = cx.now().after(2_000_000);
            }
            0
        }
        fn wake(&self) -> Wake {
            Wake::At(self.next)
        }
    }
    let reactors = start(2);
    let (sender, rings) = mpsc::channel();
    let alarm = move |cx: &Cx| {
        let next = cx.now();
        let rings = sender;
        cx.add_poller("alarm", Box::new(Alarm { next, rings }))
    };
    reactors.handles()[0].call(BOUND, alarm).unwrap();
    let (sender, ticks) = mpsc::channel();
    add(&reactors.handles()[1], Some(2_000_000), move |cx| {
        let _ = sender.send(cx.now());
        1
    });
    for times in [rings, ticks] {
        let mut last = times.recv_timeout(BOUND).unwrap();
        for _ in 0..10 {
            let next = times.recv_timeout(BOUND).unwrap();
            assert!(next.since(last) >= 2_000_000);
            last = next;
        }
    }
    for handle in reactors.handles() {
        let stats = handle.stats();
        assert!(stats.sleeps >= 10, "it slept in between: {stats:?}");
        assert!(stats.rounds < 500, "and did not spin: {stats:?}");
    }
    reactors.stop();
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap()
}

#[test]
fn watched_pipe_wakes_the_reactor() {
    let reactors = start(1);
    let handle = &reactors.handles()[0];
    let (reader, writer) = pipe();
    let fd = reader.as_raw_fd();
    let (sender, bytes) = mpsc::channel();
    add(handle, None, move |_| {
        let mut byte = [0_u8];
        if rustix::io::read(&reader, &mut byte).is_ok_and(|n| n == 1) {
            sender.send(byte[0]).unwrap();
            return 1;
        }
        0
    });
    handle.call(BOUND, move |cx| cx.watch(fd)).unwrap();
    for byte in 0..200 {
        until("the reactor sleeps", || asleep(handle));
        rustix::io::write(&writer, &[byte]).unwrap();
        assert_eq!(bytes.recv_timeout(BOUND), Ok(byte));
    }
    reactors.stop();
}

#[test]
fn watching_is_level_triggered_and_ends_with_unwatch() {
    let reactors = start(1);
    let handle = &reactors.handles()[0];
    let (reader, writer) = pipe();
    let fds = (reader.as_raw_fd(), writer.as_raw_fd());
    rustix::io::write(&writer, &[1]).unwrap();
    handle.call(BOUND, move |cx| cx.watch(fds.0)).unwrap();
    let before = handle.stats().wakeups;
    until("nobody reads, so it wakes again and again", || {
        handle.stats().wakeups > before + 100
    });
    handle.call(BOUND, move |cx| cx.unwatch(fds.0)).unwrap();
    until_at_rest(handle);
    // An empty pipe is writable: nothing to read, but that is what is asked for now.
    let watch = move |cx: &Cx| {
        cx.watch_for(fds.1, Interest::Read);
        cx.watch_for(fds.1, Interest::ReadWrite);
    };
    handle.call(BOUND, watch).unwrap();
    let before = handle.stats().wakeups;
    until("it is writable", || handle.stats().wakeups > before + 100);
    reactors.stop();
}

#[test]
fn descriptor_that_cannot_be_watched_is_looked_after_by_time() {
    let reactors = start(1);
    let handle = &reactors.handles()[0];
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let fd = file.as_raw_fd();
    handle.call(BOUND, move |cx| cx.watch(fd)).unwrap();
    let before = handle.stats().rounds;
    until("it wakes by itself", || handle.stats().rounds > before + 10);
    handle.call(BOUND, move |cx| cx.unwatch(fd)).unwrap();
    until_at_rest(handle);
    reactors.stop();
}

#[test]
fn poller_with_work_of_its_own_keeps_the_reactor_awake() {
    struct Restless(Arc<AtomicBool>);
    impl Poller for Restless {
        fn poll(&mut self, _cx: &Cx, _budget: u32) -> u32 {
            0
        }
        fn wake(&self) -> Wake {
            if self.0.load(Ordering::Relaxed) {
                Wake::Now
            } else {
                Wake::OnEvent
            }
        }
    }
    let reactors = start(1);
    let handle = &reactors.handles()[0];
    let restless = Arc::new(AtomicBool::new(true));
    let poller = Restless(restless.clone());
    let add = move |cx: &Cx| cx.add_poller("restless", Box::new(poller));
    handle.call(BOUND, add).unwrap();
    let before = handle.stats();
    until("it spins", || handle.stats().rounds > before.rounds + 1000);
    // It may have been on its way into one sleep when the poller came.
    assert!(handle.stats().sleeps <= before.sleeps + 1);
    restless.store(false, Ordering::Relaxed);
    until("it sleeps", || asleep(handle));
    reactors.stop();
}

#[test]
fn quiescent_points_are_passed_awake_and_asleep() {
    let reactors = start_on(vec![some_core()], 1, IdlePolicy::Poll);
    let quiescence = reactors.quiescence();
    until("the maintenance reactor sleeps", || {
        asleep(&reactors.handles()[1])
    });
    for _ in 0..100 {
        let ticket = quiescence.request();
        until("both pass", || quiescence.has_passed(ticket));
    }
    let (entered, inside) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let hold = move |_: &Cx| {
        entered.send(()).unwrap();
        let _ = left.recv_timeout(BOUND);
    };
    reactors.handles()[0].send(Box::new(hold)).unwrap();
    inside.recv_timeout(BOUND).unwrap();
    let ticket = quiescence.request();
    let_time_pass();
    assert!(!quiescence.has_passed(ticket), "one is in the middle of it");
    leave.send(()).unwrap();
    until("it passes", || quiescence.has_passed(ticket));
    reactors.stop();
}

#[test]
fn threads_are_named_and_pinned_and_drop_their_pollers_themselves() {
    struct Tell(mpsc::Sender<Option<String>>);
    impl Drop for Tell {
        fn drop(&mut self) {
            let name = std::thread::current().name().map(str::to_owned);
            let _ = self.0.send(name);
        }
    }
    let core = some_core();
    let reactors = start_on(vec![core], 2, IdlePolicy::default());
    let names: Vec<_> = reactors.infos().iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["reactor_0", "maintenance_0", "maintenance_1"]);
    assert_eq!(reactors.infos()[0].kind, ReactorKind::Data { core });
    assert_eq!(reactors.data_handles().len(), 1);
    assert_eq!(reactors.maintenance_handles().len(), 2);
    for (index, info) in reactors.infos().iter().enumerate() {
        assert_eq!(info.handle.id().index(), index);
        let cores = info.handle.call(BOUND, |_| {
            let set = rustix::thread::sched_getaffinity(None).unwrap();
            let cores = 0..rustix::thread::CpuSet::MAX_CPU;
            cores.filter(|core| set.is_set(*core)).collect::<CoreSet>()
        });
        assert_eq!(cores, Ok(info.cores.clone()));
        assert!(info.handle.thread_id().is_some());
    }
    let (sender, dropped) = mpsc::channel();
    for handle in reactors.handles() {
        let tell = Tell(sender.clone());
        add(handle, None, move |_| {
            let _keep = &tell;
            0
        });
    }
    reactors.stop();
    let mut names: Vec<_> = dropped.try_iter().map(Option::unwrap).collect();
    names.sort();
    assert_eq!(names, ["maintenance_0", "maintenance_1", "reactor_0"]);
}

#[test]
fn start_refuses_cores_that_are_not_there_or_named_twice() {
    let config = |cores, maintenance| ReactorsConfig {
        cores,
        maintenance,
        idle: IdlePolicy::default(),
        seed: 1,
        clock: Arc::new(MonotonicClock),
    };
    let core = some_core();
    let error = Reactors::start(config(vec![core, core], vec![])).unwrap_err();
    assert!(matches!(error, StartError::CoreTwice { core: c } if c == core));
    let far = Some([1023].into_iter().collect());
    let error = Reactors::start(config(vec![core], vec![far])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "maintenance_0: core 1023 is not available to this process"
    );
}

#[test]
fn replies_come_later_or_not_at_all_and_never_to_oneself() {
    let reactors = start(1);
    let handle = &reactors.handles()[0];
    let later = handle.call_with_reply(BOUND, |cx, reply: Reply<u32>| {
        let next = move |_: &Cx| reply.send(7);
        cx.handle().send(Box::new(next)).unwrap();
    });
    assert_eq!(later, Ok(7));
    let never: Result<u32, _> = handle.call_with_reply(BOUND, |_, reply| drop(reply));
    assert_eq!(never, Err(CallError::Dropped(ReactorId(0))));
    let own = handle.call(BOUND, |cx| cx.handle().call(BOUND, |_| ()));
    assert_eq!(own, Ok(Err(CallError::OwnThread(ReactorId(0)))));
    reactors.stop();
}

#[test]
fn panicking_reactor_is_reported_by_stop() {
    let reactors = start(1);
    let ran = Arc::new(AtomicU64::new(0));
    let flag = ran.clone();
    let message = move |_: &Cx| {
        flag.store(1, Ordering::SeqCst);
        panic!("on purpose");
    };
    reactors.handles()[0].send(Box::new(message)).unwrap();
    until("the reactor is gone", || reactors.handles()[0].is_stopped());
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reactors.stop()));
    assert!(stopped.is_err());
    assert_eq!(ran.load(Ordering::SeqCst), 1);
}
