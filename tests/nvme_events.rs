//! What the NVMe/TCP initiator bdev does when its controller tells of changes: namespaces of our own target
//! that grow, go, come back and take no writes any more, under I/O; and controllers with odd habits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;
mod nvme_common;
mod nvmf_common;

use nbd_common::RamDisk;
use nvme_common::driver::{Driver, config};
use nvme_common::fake::{Fake, Nature};
use nvmf_common::{Fixture, HOST, NQN};
use pmcache::bdev::{
    Bdev, ControllerState, IoStatus, NullBdev, NullConfig, NvmeConfig, NvmeUri, Op,
};
use pmcache::target::nvmf::{NamespaceConfig, TransportOptions};
use reactors::{Clock, ManualClock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// What a controller answers when a namespace has changed.
const CHANGED: u32 = 0x04_0002;

fn to_target(fixture: &Fixture) -> NvmeConfig {
    let uri = NvmeUri {
        host: fixture.address.ip().to_string(),
        port: fixture.address.port(),
        subnqn: NQN.to_owned(),
        nsid: None,
    };
    NvmeConfig::new("Nvme0", uri, HOST.to_owned())
}

/// Writes a block and waits for how it ends.
fn write(driver: &mut Driver) -> IoStatus {
    driver.write(0, 0, &[1; 512], false);
    driver.status()
}

/// Writes until one ends with `status`.
fn write_until(driver: &mut Driver, status: IoStatus) {
    nvme_common::wait_until("the status", || write(driver) == status);
}

fn namespace(bdev: Arc<dyn Bdev>, nsid: u32) -> NamespaceConfig {
    NamespaceConfig {
        bdev,
        nsid: Some(nsid),
        nguid: None,
        eui64: None,
        uuid: None,
        ana_group: None,
    }
}

#[test]
fn a_namespace_that_grows_is_larger_for_channels_that_are_open() {
    let fixture = Fixture::new(1, TransportOptions::default());
    let null = Arc::new(
        NullBdev::new(NullConfig {
            name: "null".to_owned(),
            uuid: Uuid::from_u128(5),
            block_size: 512,
            blocks: 2048,
        })
        .unwrap(),
    );
    let shown = Arc::clone(&null) as Arc<dyn Bdev>;
    fixture
        .target
        .add_namespace(NQN, namespace(shown, 1))
        .unwrap();
    let mut driver = Driver::new(to_target(&fixture));
    // More than once: it listens again, and has read up on each.
    for mib in 2..6_u64 {
        let end = mib << 20;
        driver.write(0, end - 512, &[1; 512], false);
        assert_eq!(driver.status(), IoStatus::OutOfRange);
        null.resize(end).unwrap();
        let mut tag = 0;
        let mut written = 0;
        driver.wait_for("the new size", |driver| {
            driver.write(tag, 0, &[1; 4096], false);
            tag += 1;
            written += driver
                .done
                .drain(..)
                .filter(|one| one.status.is_ok())
                .count();
            driver.bdev.info().bytes() == end
        });
        let left = usize::try_from(tag).unwrap() - written;
        assert!(driver.wait(left).iter().all(|done| done.status.is_ok()));
        driver.write(0, end - 512, &[1; 512], false);
        assert_eq!(driver.status(), IoStatus::Ok);
    }
    assert_eq!(fixture.target.controllers(NQN).unwrap().len(), 1);
}

/// Its I/O fails; that of the others, and the association, go on.
#[test]
fn a_namespace_that_is_removed_fails_until_it_is_there_again() {
    let (fixture, disk) = Fixture::with_disk();
    let other = Arc::new(RamDisk::with_info("other", 1 << 20, |info| {
        info.uuid = Uuid::from_u128(2);
    }));
    fixture.add(&other, Some(2));
    let mut driver = Driver::new(to_target(&fixture));
    let beside = driver.bdev.controller().bdevs().remove(1);
    let mut beside = beside.open(driver.reactor.cx()).unwrap();
    let cntlid = driver.bdev.controller().facts().cntlid;
    for _ in 0..3 {
        // Not at once: the target may have it again before the initiator hears that it went.
        write_until(&mut driver, IoStatus::Ok);
        fixture.target.remove_namespace(NQN, 1).unwrap();
        write_until(&mut driver, IoStatus::IoError);
        std::mem::swap(&mut driver.channel, &mut beside);
        assert_eq!(write(&mut driver), IoStatus::Ok);
        std::mem::swap(&mut driver.channel, &mut beside);
        fixture.add(&disk, Some(1));
        write_until(&mut driver, IoStatus::Ok);
    }
    assert_eq!(driver.bdev.controller().facts().cntlid, cntlid);
    assert_eq!(driver.bdev.controller().state(), ControllerState::Enabled);
}

/// Tells of a change, as soon as the controller is asked.
fn tell(driver: &mut Driver, fake: &Fake) {
    driver.wait_for("an event request", |_| fake.tell(CHANGED));
}

/// By controllers that take every write, so that nothing but the initiator makes one fail.
#[test]
fn what_is_not_the_namespace_that_it_was_gets_nothing() {
    let fake = Fake::new(Nature::default());
    let mut driver = Driver::new(config(&fake));
    assert_eq!(write(&mut driver), IoStatus::Ok);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    let before = fake.disk();
    let changes: [fn(&mut Nature); 4] = [
        |nature| nature.namespaces = 0,
        |nature| nature.uuid = [8; 16],
        |nature| (nature.block_size, nature.blocks) = (4096, 2048),
        |nature| nature.blocks = 1024,
    ];
    for change in changes {
        fake.change(change);
        tell(&mut driver, &fake);
        driver.wait_for("a failure", |driver| {
            driver.read(0, 0, 512);
            driver.status() == IoStatus::IoError
        });
        for op in [Op::Flush, Op::Discard] {
            let range = if op == Op::Flush { (0, 0) } else { (0, 512) };
            assert_eq!(driver.run(op, range), IoStatus::IoError);
        }
        driver.write(0, 0, &[9; 512], false);
        assert_eq!(driver.status(), IoStatus::IoError);
        assert_eq!(driver.bdev.info().bytes(), 1 << 20);
        fake.change(|nature| *nature = Nature::default());
        tell(&mut driver, &fake);
        write_until(&mut driver, IoStatus::Ok);
    }
    assert_eq!(fake.disk(), before);
    assert_eq!(fake.counts().associations.load(Ordering::SeqCst), 1);
    assert_eq!(fake.counts().logs.load(Ordering::SeqCst), 8);
}

/// Of those that were not sent when it went.
#[test]
fn requests_that_wait_for_their_turn_end_when_the_namespace_goes() {
    let fake = Fake::new(Nature {
        queue_entries: 2,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    assert_eq!(write(&mut driver), IoStatus::Ok);
    let passes = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&passes);
    fake.intercept(move |_, _, _| {
        nvme_common::wait_until("leave to go on", || gate.load(Ordering::SeqCst));
        false
    });
    for tag in 0..4 {
        driver.write(tag, tag * 512, &[3; 512], false);
    }
    fake.change(|nature| nature.namespaces = 0);
    tell(&mut driver, &fake);
    // The first one has been sent, and the controller sits on it.
    driver.wait_for("the namespace to be gone", |driver| {
        driver.read(9, 0, 512);
        let gone = driver.done.iter().any(|one| one.tag == 9);
        driver.done.retain(|one| one.tag != 9);
        gone
    });
    assert!(driver.done.is_empty());
    passes.store(true, Ordering::SeqCst);
    driver.wait_for("the end of all", |driver| {
        let writes = driver.done.iter().filter(|one| one.tag != 9);
        writes.count() == 4
    });
    for one in driver.done.drain(..) {
        assert_eq!(one.status.is_ok(), one.tag == 0, "{}", one.tag);
    }
    assert_eq!(fake.disk()[..2048], [&[3; 512][..], &[0; 1536]].concat());
}

#[test]
fn a_namespace_may_stop_to_take_writes_and_take_them_again() {
    let fake = Fake::new(Nature::default());
    let mut driver = Driver::new(config(&fake));
    for read_only in [true, false, true, false] {
        fake.change(|nature| nature.read_only = read_only);
        tell(&mut driver, &fake);
        driver.wait_for("the change", |driver| {
            driver.bdev.info().read_only == read_only
        });
        // The controller takes them; an open channel learns that it may when it is refused, and that it
        // may not by the controller's own refusal.
        let mut fresh = driver.bdev.open(driver.reactor.cx()).unwrap();
        std::mem::swap(&mut driver.channel, &mut fresh);
        let expected = match read_only {
            true => IoStatus::ReadOnly,
            false => IoStatus::Ok,
        };
        assert_eq!(write(&mut driver), expected);
        if !read_only {
            std::mem::swap(&mut driver.channel, &mut fresh);
            assert_eq!(write(&mut driver), IoStatus::Ok);
        }
    }
}

/// Whoever takes a namespace away may have made it anew when it is there again.
#[test]
fn a_flush_does_not_cover_writes_to_a_namespace_that_was_gone() {
    let fake = Fake::new(Nature::default());
    let mut driver = Driver::new(config(&fake));
    assert_eq!(write(&mut driver), IoStatus::Ok);
    fake.change(|nature| nature.namespaces = 0);
    tell(&mut driver, &fake);
    write_until(&mut driver, IoStatus::IoError);
    fake.change(|nature| nature.namespaces = 1);
    tell(&mut driver, &fake);
    driver.wait_for("its return", |driver| {
        driver.read(0, 0, 512);
        driver.status() == IoStatus::Ok
    });
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::IoError);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    assert_eq!(fake.counts().flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn a_controller_that_refuses_event_requests_is_asked_once_in_an_association() {
    let fake = Fake::new(Nature {
        refuses_events: true,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    for association in 1..4 {
        for _ in 0..50 {
            assert_eq!(write(&mut driver), IoStatus::Ok);
        }
        let asked = fake.counts().event_requests.load(Ordering::SeqCst);
        assert_eq!(asked, association);
        fake.hang_up(|qid| qid == 0);
        driver.wait_for("another association", |_| {
            fake.counts().associations.load(Ordering::SeqCst) > association
        });
        driver.wait_for("another request", |_| {
            fake.counts().event_requests.load(Ordering::SeqCst) > association
        });
    }
}

/// Events of kinds that were not asked for change nothing, and do not end the listening.
#[test]
fn an_event_of_another_kind_is_no_reason_to_look() {
    let fake = Fake::new(Nature::default());
    let mut driver = Driver::new(config(&fake));
    for dw0 in [0x01_0000, 0x02_0101, 0x70_f002, 0x0c_0302, 0xffff_ffff] {
        driver.wait_for("an event request", |_| fake.tell(dw0));
    }
    tell(&mut driver, &fake);
    driver.wait_for("the look", |_| {
        fake.counts().logs.load(Ordering::SeqCst) == 1
    });
    assert_eq!(fake.counts().associations.load(Ordering::SeqCst), 1);
}

/// A controller that dies while it is asked what has changed is found dead all the same.
#[test]
fn a_look_that_is_not_answered_ends_the_association() {
    let fake = Fake::new(Nature::default());
    let clock = Arc::new(ManualClock::default());
    clock.advance(1_000_000_000);
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let mut driver = Driver::try_new(config(&fake), shared).unwrap();
    assert_eq!(write(&mut driver), IoStatus::Ok);
    fake.change(|nature| nature.is_dumb = true);
    tell(&mut driver, &fake);
    driver.wait_for("the look", |_| {
        fake.counts().logs.load(Ordering::SeqCst) == 1
    });
    driver.wait_for("the loss", |driver| {
        clock.advance(100_000_000);
        driver.bdev.controller().state() == ControllerState::Reconnecting
    });
    fake.change(|nature| *nature = Nature::default());
    driver.wait_for("another association", |driver| {
        clock.advance(100_000_000);
        driver.bdev.controller().state() == ControllerState::Enabled
    });
    assert_eq!(write(&mut driver), IoStatus::Ok);
}
