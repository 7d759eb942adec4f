//! The NVMe/TCP initiator bdev on controllers that vanish, stall, and come back, perhaps as others.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nvme_common;

use nvme_common::driver::{Driver, config};
use nvme_common::fake::{Fake, Nature};
use nvme_common::pattern;
use pmcache::bdev::{Bdev, ControllerState, IoStatus, NvmeConfig, Op, Patience};
use reactors::{Clock, ManualClock};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

const SEC_NS: u64 = 1_000_000_000;

fn patient(fake: &Fake, loss: i32, fast: u32) -> NvmeConfig {
    NvmeConfig {
        patience: Patience {
            ctrlr_loss_timeout_sec: loss,
            reconnect_delay_sec: u32::from(loss != 0),
            fast_io_fail_timeout_sec: fast,
        },
        ..config(fake)
    }
}

/// By a clock that the test advances. What the controller does takes no time by it, so no bound that is
/// not the test's subject may end it.
fn with_clock(config: NvmeConfig) -> (Driver, Arc<ManualClock>) {
    let config = NvmeConfig {
        keep_alive_ms: 0,
        connect_timeout_us: 1_000_000_000_000,
        ..config
    };
    with_keep_alive(config)
}

fn with_keep_alive(config: NvmeConfig) -> (Driver, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    clock.advance(SEC_NS);
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let driver = Driver::try_new(config, shared).unwrap();
    (driver, clock)
}

/// Writes once, so that all is connected.
fn warm(driver: &mut Driver) {
    driver.write(0, 0, &[1; 512], true);
    assert_eq!(driver.status(), IoStatus::Ok);
}

fn until_down(driver: &mut Driver) {
    driver.wait_for("the loss", |driver| {
        driver.bdev.controller().state() == ControllerState::Reconnecting
    });
}

/// Advances time until `holds`, as fast as steps go.
fn pass_time(
    driver: &mut Driver,
    clock: &ManualClock,
    what: &str,
    mut holds: impl FnMut(&mut Driver) -> bool,
) {
    driver.wait_for(what, |driver| {
        clock.advance(SEC_NS / 100);
        holds(driver)
    });
}

#[test]
fn requests_wait_while_the_controller_is_away_and_none_is_lost() {
    let fake = Fake::new(Nature::default());
    let (mut driver, clock) = with_clock(config(&fake));
    warm(&mut driver);
    fake.kill();
    until_down(&mut driver);
    for tag in 0..200 {
        let tag8 = u8::try_from(tag).unwrap();
        driver.write(tag, tag * 512, &pattern(tag8, 512), false);
    }
    // For as long as that: it tries each second, and nothing fails.
    let before = fake.counts().connections.load(Ordering::SeqCst);
    pass_time(&mut driver, &clock, "attempts", |_| {
        fake.counts().connections.load(Ordering::SeqCst) >= before + 5
    });
    assert!(driver.done.is_empty());
    fake.revive();
    pass_time(&mut driver, &clock, "completions", |driver| {
        driver.done.len() == 200
    });
    assert!(driver.done.drain(..).all(|done| done.status.is_ok()));
    let disk = fake.disk();
    for tag in 0..200 {
        let at = usize::from(tag) * 512;
        assert_eq!(disk[at..at + 512], pattern(tag, 512));
    }
    assert_eq!(fake.counts().associations.load(Ordering::SeqCst), 2);
    assert_eq!(driver.bdev.controller().facts().cntlid, 2);
}

/// Those under way are sent again before any that came after them, in their old order.
#[test]
fn what_was_under_way_is_sent_again_in_order_and_first() {
    let fake = Fake::new(Nature::default());
    let mut driver = Driver::new(config(&fake));
    warm(&mut driver);
    let (tell, told) = mpsc::channel();
    fake.intercept(move |_, sqe, _| {
        tell.send(sqe.blocks().lba).unwrap();
        true
    });
    for tag in 0..8 {
        driver.write(tag, tag * 512, &[2; 512], false);
    }
    let mut seen = vec![];
    driver.wait_for("the first time", |_| {
        seen.extend(told.try_iter());
        seen.len() == 8
    });
    let (tell, told) = mpsc::channel();
    fake.intercept(move |_, sqe, _| {
        tell.send(sqe.blocks().lba).unwrap();
        false
    });
    for tag in 8..16 {
        driver.write(tag, tag * 512, &[2; 512], false);
    }
    fake.hang_up(|qid| qid > 0);
    driver.wait(16);
    let again: Vec<u64> = told.try_iter().collect();
    let expected: Vec<u64> = (0..16).collect();
    let last = &again[again.len() - 16..];
    assert_eq!(last, expected);
}

#[test]
fn another_namespace_in_its_place_gets_nothing() {
    let fake = Fake::new(Nature::default());
    let (mut driver, clock) = with_clock(config(&fake));
    warm(&mut driver);
    for change in [
        (|nature| nature.uuid = [8; 16]) as fn(&mut Nature),
        |nature| nature.nguid = [8; 16],
        |nature| nature.blocks = 1024,
        |nature| nature.mdts = 1,
        |nature| nature.io_queues = 1,
    ] {
        let before = fake.counts().associations.load(Ordering::SeqCst);
        fake.change(change);
        fake.hang_up(|_| true);
        driver.write(1, 512, &[3; 512], false);
        pass_time(&mut driver, &clock, "attempts", |_| {
            fake.counts().associations.load(Ordering::SeqCst) >= before + 3
        });
        assert!(driver.done.is_empty());
        assert_ne!(driver.bdev.controller().state(), ControllerState::Enabled);
        fake.change(|nature| *nature = Nature::default());
        pass_time(&mut driver, &clock, "the write", |driver| {
            !driver.done.is_empty()
        });
        assert_eq!(driver.status(), IoStatus::Ok);
    }
}

#[test]
fn a_namespace_that_has_grown_is_used_to_its_new_end() {
    let fake = Fake::new(Nature {
        blocks: 4096,
        ..Nature::default()
    });
    fake.change(|nature| nature.blocks = 2048);
    let (mut driver, clock) = with_clock(config(&fake));
    warm(&mut driver);
    driver.read(1, 2048 * 512, 512);
    assert_eq!(driver.status(), IoStatus::OutOfRange);
    fake.change(|nature| nature.blocks = 4096);
    fake.hang_up(|_| true);
    pass_time(&mut driver, &clock, "the new size", |driver| {
        driver.bdev.info().blocks == 4096
    });
    driver.read(2, 2048 * 512, 512);
    pass_time(&mut driver, &clock, "the read", |driver| {
        !driver.done.is_empty()
    });
    assert_eq!(driver.status(), IoStatus::Ok);
}

#[test]
fn requests_fail_after_the_fast_timeout_and_work_again_when_it_is_back() {
    let fake = Fake::new(Nature::default());
    let (mut driver, clock) = with_clock(patient(&fake, -1, 5));
    warm(&mut driver);
    fake.kill();
    until_down(&mut driver);
    let lost = clock.now();
    driver.read(1, 0, 512);
    pass_time(&mut driver, &clock, "the failure", |driver| {
        !driver.done.is_empty()
    });
    assert!(clock.now().since(lost) >= 4 * SEC_NS);
    assert_eq!(driver.status(), IoStatus::IoError);
    driver.read(2, 0, 512);
    assert_eq!(driver.status(), IoStatus::IoError, "at once");
    fake.revive();
    pass_time(&mut driver, &clock, "the return", |driver| {
        driver.read(3, 0, 512);
        driver.wait(1)[0].status.is_ok()
    });
}

#[test]
fn a_controller_is_given_up_after_the_loss_timeout() {
    for loss in [0, 5] {
        let fake = Fake::new(Nature::default());
        let (mut driver, clock) = with_clock(patient(&fake, loss, 0));
        warm(&mut driver);
        fake.kill();
        driver.read(1, 0, 512);
        pass_time(&mut driver, &clock, "the end", |driver| {
            driver.bdev.controller().state() == ControllerState::Failed
        });
        assert_eq!(driver.status(), IoStatus::IoError);
        fake.revive();
        driver.read(2, 0, 512);
        assert_eq!(driver.status(), IoStatus::IoError, "for good");
    }
}

#[test]
fn a_controller_that_gives_no_sign_of_life_is_left() {
    let fake = Fake::new(Nature::default());
    let (mut driver, clock) = with_keep_alive(config(&fake));
    warm(&mut driver);
    let alive = || fake.counts().keep_alives.load(Ordering::SeqCst);
    let steps = |driver: &mut Driver| (0..1000).for_each(|_| driver.step());
    // Half of 10 s, and again.
    clock.advance(49 * SEC_NS / 10);
    steps(&mut driver);
    assert_eq!(alive(), 0);
    for count in 1..=3 {
        clock.advance(51 * SEC_NS / 10);
        driver.wait_for("a sign of life", |_| alive() == count);
    }
    fake.change(|nature| nature.is_dumb = true);
    clock.advance(51 * SEC_NS / 10);
    driver.wait_for("the next", |_| alive() == 4);
    assert_eq!(driver.bdev.controller().state(), ControllerState::Enabled);
    clock.advance(101 * SEC_NS / 10);
    until_down(&mut driver);
    // What is old may still be at work for as long: nothing is begun anew before.
    fake.change(|nature| nature.is_dumb = false);
    clock.advance(9 * SEC_NS);
    steps(&mut driver);
    assert_eq!(fake.counts().associations.load(Ordering::SeqCst), 1);
    clock.advance(2 * SEC_NS);
    driver.wait_for("the return", |driver| {
        driver.bdev.controller().state() == ControllerState::Enabled
    });
}

/// A flush means something only for writes that the controller has not forgotten.
#[test]
fn a_flush_fails_once_if_writes_may_have_been_forgotten() {
    let fake = Fake::new(Nature::default());
    let (mut driver, clock) = with_clock(config(&fake));
    let flush = |driver: &mut Driver| {
        driver.submit(9, Op::Flush, (0, 0), pmcache::bdev::Data::None);
        pass_time(driver, &clock, "a flush", |driver| !driver.done.is_empty());
        driver.status()
    };
    let lose = |driver: &mut Driver| {
        let before = fake.counts().associations.load(Ordering::SeqCst);
        fake.hang_up(|_| true);
        pass_time(driver, &clock, "the return", |_| {
            fake.counts().associations.load(Ordering::SeqCst) > before
        });
    };
    warm(&mut driver);
    assert_eq!(flush(&mut driver), IoStatus::Ok);
    lose(&mut driver);
    assert_eq!(flush(&mut driver), IoStatus::Ok, "nothing was in doubt");
    driver.write(1, 0, &[2; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    lose(&mut driver);
    assert_eq!(flush(&mut driver), IoStatus::IoError);
    assert_eq!(flush(&mut driver), IoStatus::Ok, "its user knows");
    // A queue alone that is lost loses nothing.
    driver.write(2, 0, &[3; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    fake.hang_up(|qid| qid > 0);
    assert_eq!(flush(&mut driver), IoStatus::Ok);
    // A flush under way does not count.
    driver.write(3, 0, &[4; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    let (tell, told) = mpsc::channel();
    fake.intercept(move |_, _, _| {
        let _ = tell.send(());
        true
    });
    driver.submit(9, Op::Flush, (0, 0), pmcache::bdev::Data::None);
    driver.wait_for("the flush", |_| told.try_recv().is_ok());
    fake.intercept(|_, _, _| false);
    lose(&mut driver);
    pass_time(&mut driver, &clock, "its end", |driver| {
        !driver.done.is_empty()
    });
    assert_eq!(driver.status(), IoStatus::IoError);
}

#[test]
fn what_is_cancelled_ends_and_the_rest_goes_on() {
    let fake = Fake::new(Nature::default());
    let (mut driver, clock) = with_clock(config(&fake));
    warm(&mut driver);
    fake.kill();
    until_down(&mut driver);
    driver.read(1, 0, 512);
    let cx = driver.reactor.cx();
    driver.channel.cancel(cx);
    assert_eq!(
        driver.status(),
        IoStatus::Aborted,
        "at once: nothing was sent"
    );
    fake.revive();
    pass_time(&mut driver, &clock, "the return", |driver| {
        driver.bdev.controller().state() == ControllerState::Enabled
    });
    driver.write(2, 0, &[5; 512], false);
    pass_time(&mut driver, &clock, "a write", |driver| {
        !driver.done.is_empty()
    });
    assert_eq!(driver.status(), IoStatus::Ok);
    // One that the controller has, and does not answer.
    let (tell, told) = mpsc::channel();
    fake.intercept(move |_, _, _| {
        let _ = tell.send(());
        true
    });
    driver.read(3, 0, 512);
    driver.wait_for("the read", |_| told.try_recv().is_ok());
    let cx = driver.reactor.cx();
    driver.channel.cancel(cx);
    pass_time(&mut driver, &clock, "the end", |driver| {
        !driver.done.is_empty()
    });
    assert_eq!(driver.status(), IoStatus::Aborted);
    fake.intercept(|_, _, _| false);
    driver.read(4, 0, 512);
    pass_time(&mut driver, &clock, "another", |driver| {
        !driver.done.is_empty()
    });
    assert_eq!(driver.status(), IoStatus::Ok);
}
