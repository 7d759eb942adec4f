//! Tests of the loop: by hand with a manual clock, and on a thread where sleep matters.

use crate::*;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Handles as many events as the cell says, and counts its turns.
struct Counting {
    turns: Rc<Cell<u32>>,
    handles: u32,
    wake: Wake,
}

impl Poller for Counting {
    fn poll(&mut self, _cx: &Cx, _budget: u32) -> u32 {
        self.turns.set(self.turns.get() + 1);
        self.handles
    }

    fn wake(&self) -> Wake {
        self.wake
    }
}

fn counting(handles: u32, wake: Wake) -> (Rc<Cell<u32>>, Box<Counting>) {
    let turns = Rc::new(Cell::new(0));
    let poller = Counting {
        turns: turns.clone(),
        handles,
        wake,
    };
    (turns, Box::new(poller))
}

fn by_hand() -> (Reactor, Arc<ManualClock>, Arc<Quiescence>) {
    let clock = Arc::new(ManualClock::default());
    let quiescence = Quiescence::new(1);
    let config = ReactorConfig {
        id: ReactorId(0),
        idle: IdlePolicy::Poll,
        seed: 1,
    };
    let reactor = Reactor::new(&config, clock.clone(), quiescence.clone()).unwrap();
    (reactor, clock, quiescence)
}

#[test]
fn pollers_run_each_round_until_they_are_removed() {
    let (mut reactor, _, _) = by_hand();
    let (turns, poller) = counting(2, Wake::OnEvent);
    let id = reactor.cx().add_poller("counting", poller);
    assert_eq!(reactor.step(), 2);
    assert_eq!(reactor.step(), 2);
    reactor.cx().remove_poller(id);
    assert_eq!(reactor.step(), 0);
    assert_eq!(turns.get(), 2);
    assert_eq!(Rc::strong_count(&turns), 1, "a removed poller is dropped");
}

#[test]
fn timed_pollers_run_when_due_and_bound_the_sleep() {
    let (mut reactor, clock, _) = by_hand();
    let (turns, poller) = counting(0, Wake::OnEvent);
    reactor.cx().add_timed_poller("timed", 100, poller);
    reactor.step();
    reactor.step();
    assert_eq!(turns.get(), 1);
    assert_eq!(reactor.wake(), Wake::At(Nanos(100)));
    clock.advance(99);
    reactor.step();
    assert_eq!(turns.get(), 1);
    clock.advance(1);
    reactor.step();
    assert_eq!(turns.get(), 2);
    assert_eq!(reactor.wake(), Wake::At(Nanos(200)));
}

#[test]
fn messages_that_messages_send_run_next_round() {
    let (mut reactor, _, _) = by_hand();
    reactor
        .handle()
        .send(Box::new(|cx| {
            cx.handle().send(Box::new(|_| {})).unwrap();
        }))
        .unwrap();
    assert_eq!(reactor.step(), 1);
    assert_eq!(reactor.step(), 1);
    assert_eq!(reactor.step(), 0);
}

#[test]
fn full_inbox_hands_the_message_back() {
    let (mut reactor, _, _) = by_hand();
    let handle = reactor.handle();
    let ran = Arc::new(AtomicU64::new(0));
    let message = || {
        let ran = ran.clone();
        Box::new(move |_: &Cx| {
            ran.fetch_add(1, Ordering::Relaxed);
        })
    };
    let mut sent = 0;
    let back = loop {
        match handle.send(message()) {
            Ok(()) => sent += 1,
            Err(InboxFull(back)) => break back,
        }
    };
    assert_eq!(
        handle.call(Duration::ZERO, |_| ()),
        Err(CallError::InboxFull(ReactorId(0)))
    );
    assert_eq!(u64::from(reactor.step()), sent);
    handle.send(back).unwrap();
    reactor.step();
    assert_eq!(ran.load(Ordering::Relaxed), sent + 1);
}

#[test]
fn stats_tell_busy_from_idle_and_count_polls() {
    let (mut reactor, clock, _) = by_hand();
    reactor.step();
    reactor.handle().send(Box::new(|_| {})).unwrap();
    clock.advance(10);
    reactor.step();
    clock.advance(5);
    reactor.step();
    let stats = reactor.handle().stats();
    assert_eq!((stats.busy_ns, stats.idle_ns, stats.rounds), (5, 10, 3));

    let (_, busy) = counting(1, Wake::OnEvent);
    let (_, idle) = counting(0, Wake::OnEvent);
    let busy = reactor.cx().add_poller("busy", busy);
    let idle = reactor.cx().add_timed_poller("idle", 7, idle);
    reactor.step();
    reactor.step();
    let counts = |id, name, period_ns, run_count, busy_count| PollerStats {
        id,
        name,
        period_ns,
        run_count,
        busy_count,
    };
    assert_eq!(
        reactor.cx().poller_stats(),
        vec![
            counts(busy, "busy", None, 2, 2),
            counts(idle, "idle", Some(7), 1, 0)
        ]
    );
}

#[test]
fn dropped_reactor_holds_nobody_up_and_drops_its_messages() {
    let (reactor, _, quiescence) = by_hand();
    let handle = reactor.handle();
    let ticket = quiescence.request();
    assert!(!quiescence.has_passed(ticket));
    let token = Arc::new(());
    let message = |token: Arc<()>| Box::new(move |_: &Cx| drop(token));
    handle.send(message(token.clone())).unwrap();
    drop(reactor);
    assert_eq!(Arc::strong_count(&token), 1);
    assert!(quiescence.has_passed(ticket));
    assert!(handle.is_stopped());
    handle.send(message(token.clone())).unwrap();
    assert_eq!(Arc::strong_count(&token), 1);
    let id = ReactorId(0);
    assert_eq!(
        handle.call(Duration::from_secs(60), |_| ()),
        Err(CallError::Dropped(id))
    );
}

#[test]
fn call_gives_up_after_its_time() {
    let (reactor, _, _) = by_hand();
    let timeout = Duration::from_millis(1);
    let reactor_id = ReactorId(0);
    assert_eq!(
        reactor.handle().call(timeout, |_| ()),
        Err(CallError::TimedOut {
            reactor: reactor_id,
            timeout
        })
    );
}
