//! The NVMe/TCP initiator bdev on a controller that works: everything that a bdev does, against a model
//! too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nvme_common;

use nvme_common::driver::{Driver, config, reactor};
use nvme_common::fake::{Fake, Nature};
use nvme_common::pattern;
use pmcache::bdev::{
    Bdev, BdevError, Data, Extent, IoBuf, IoStatus, MemView, NvmeConfig, NvmeController, NvmeFault,
    Op,
};
use proptest::prelude::*;
use reactors::MonotonicClock;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

const ZERO: Op = Op::WriteZeroes {
    may_unmap: true,
    fua: false,
};

fn with_digests(fake: &Fake, both: bool) -> NvmeConfig {
    NvmeConfig {
        header_digest: both,
        data_digest: both,
        ..config(fake)
    }
}

#[test]
fn namespaces_become_bdevs_as_the_controller_tells_them() {
    let fake = Fake::new(Nature {
        namespaces: 2,
        ..Nature::default()
    });
    let reactor = reactor(Arc::new(MonotonicClock));
    let attach = |config| NvmeController::attach(config, &MonotonicClock, &reactor.handle());
    let controller = attach(config(&fake)).unwrap();
    let bdevs = controller.bdevs();
    let infos: Vec<_> = bdevs.iter().map(Bdev::info).collect();
    assert_eq!((&*infos[0].name, &*infos[1].name), ("Nvme0n1", "Nvme0n2"));
    assert_eq!((infos[0].block_size, infos[0].blocks), (512, 2048));
    assert_eq!(infos[0].product_name, "NVMe disk");
    assert_eq!(infos[0].uuid, Uuid::from_bytes([7; 16]));
    assert_ne!(infos[0].uuid, infos[1].uuid);
    assert!(infos[0].volatile_cache && !infos[0].read_only);
    assert!(infos[0].supports.discard && infos[0].supports.write_zeroes);
    let facts = controller.facts();
    assert_eq!((&*facts.serial, &*facts.model), ("SN1", "fake"));
    assert_eq!((facts.io_queues, facts.queue_entries), (4, 128));

    // Without a UUID it follows from the NGUID, else from the serial number.
    fake.change(|nature| nature.uuid = [0; 16]);
    let by_nguid = attach(config(&fake)).unwrap().bdevs()[0].info().uuid;
    fake.change(|nature| nature.nguid = [0; 16]);
    let by_serial = attach(config(&fake)).unwrap().bdevs()[0].info().uuid;
    let again = attach(config(&fake)).unwrap().bdevs()[0].info().uuid;
    assert_ne!(by_nguid, by_serial);
    assert_eq!(by_serial, again);

    // One namespace of several.
    let mut second = config(&fake);
    second.uri.nsid = Some(2);
    let bdevs = attach(second.clone()).unwrap().bdevs();
    assert_eq!((bdevs.len(), bdevs[0].nsid()), (1, 2));
    second.uri.nsid = Some(3);
    let error = attach(second).unwrap_err();
    let BdevError::Nvme { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source, NvmeFault::NoNamespace(3));
}

/// Everything a bdev does, on controllers that differ in how they say what they say.
#[test]
fn every_operation_reaches_the_disk_however_it_is_said() {
    let natures = [
        Nature::default(),
        Nature {
            split: 1,
            ..Nature::default()
        },
        Nature {
            split: 7,
            c2h_bytes: 1000,
            r2t_bytes: 3000,
            h2c_max: 4096,
            cpda: 5,
            capsule: 0,
            ..Nature::default()
        },
        Nature {
            success: true,
            c2h_bytes: 512,
            r2t_bytes: 4096,
            cpda: 31,
            capsule: 512,
            ..Nature::default()
        },
        Nature {
            optional: false,
            block_size: 4096,
            blocks: 256,
            ..Nature::default()
        },
    ];
    for nature in natures {
        for both in [false, true] {
            do_everything(&nature, both);
        }
    }
}

fn do_everything(nature: &Nature, both: bool) {
    let fake = Fake::new(nature.clone());
    let mut driver = Driver::new(with_digests(&fake, both));
    let bytes = pattern(1, 16384);
    driver.write(1, 4096, &bytes, true);
    assert_eq!(driver.status(), IoStatus::Ok, "{nature:?}");
    assert_eq!(fake.counts().fuas.load(Ordering::SeqCst), 1);
    assert_eq!(fake.disk()[4096..20480], bytes);
    assert_eq!(driver.bytes(0, 24576)[4096..20480], bytes);
    let (a, b) = (pattern(2, 3000), pattern(3, 1096));
    let views = [&a, &b].map(|piece| MemView::from_buf(IoBuf::copy_of(piece)));
    let data = Data::Gather(views.to_vec());
    driver.submit(2, Op::Write { fua: false }, (0, 4096), data);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert_eq!(driver.bytes(0, 4096), [a, b].concat());
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    assert_eq!(fake.counts().flushes.load(Ordering::SeqCst), 1);
    assert_eq!(driver.run(ZERO, (4096, 8192)), IoStatus::Ok);
    assert_eq!(driver.bytes(4096, 8192), vec![0; 8192]);
    assert_eq!(driver.run(Op::Discard, (8192, 4096)), IoStatus::Ok);
    let (zeroed, deallocated) = (&fake.counts().zeroed, &fake.counts().deallocated);
    let blocks = if nature.optional { 8 } else { 0 };
    assert_eq!(deallocated.load(Ordering::SeqCst), blocks);
    assert_eq!(zeroed.load(Ordering::SeqCst), usize::from(nature.optional));
    assert_eq!(driver.run(Op::Prefetch, (0, 4096)), IoStatus::Ok);
    driver.submit(3, Op::Extents, (0, 4096), Data::None);
    let Data::Extents(extents) = driver.wait(1).pop().unwrap().data else {
        panic!("no extents");
    };
    assert_eq!(extents, [Extent::allocated(4096)]);
    driver.read(4, 1 << 20, 4096);
    assert_eq!(driver.status(), IoStatus::OutOfRange);
    assert_eq!(driver.run(Op::Read, (0, 0)), IoStatus::Invalid);
}

#[test]
fn without_a_volatile_cache_nothing_is_flushed() {
    let fake = Fake::new(Nature {
        volatile_cache: false,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    driver.write(1, 0, &[1; 512], true);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    assert_eq!(fake.counts().fuas.load(Ordering::SeqCst), 0);
    assert_eq!(fake.counts().flushes.load(Ordering::SeqCst), 0);
    assert!(!driver.bdev.info().volatile_cache);
}

#[test]
fn a_namespace_that_takes_no_writes_gets_none() {
    let fake = Fake::new(Nature {
        read_only: true,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    driver.write(1, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::ReadOnly);
}

/// The fake checks MDTS; here, that the parts meet again, and that the queue is never longer than said.
#[test]
fn what_is_too_long_or_too_much_is_cut_and_waits() {
    let fake = Fake::new(Nature {
        mdts: 1,
        wzsl: 2,
        queue_entries: 4,
        blocks: 8192,
        reverse: 3,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    let bytes = pattern(4, 3 << 20);
    // 384 commands of 8 KiB, in threes.
    driver.write(1, 4096, &bytes, false);
    assert_eq!(driver.status(), IoStatus::Ok);
    driver.read(2, 4096, 3 << 20);
    let done = driver.wait(1).pop().unwrap();
    assert!(done.data.into_buf().unwrap()[..] == bytes[..]);
    assert_eq!(driver.run(ZERO, (0, 48 << 10)), IoStatus::Ok);
    assert_eq!(fake.counts().zeroed.load(Ordering::SeqCst), 3);
    for tag in 0..300 {
        driver.read(tag, tag * 512, 512);
    }
    assert_eq!(driver.wait(300).len(), 300);
    // Four entries hold three commands: a full queue must not look empty.
    assert!(fake.counts().depth.load(Ordering::SeqCst) <= 3);
}

#[test]
fn channels_of_a_reactor_share_a_queue_and_get_their_own_answers() {
    let fake = Fake::new(Nature {
        namespaces: 2,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    let other = driver.bdev.controller().bdevs().remove(1);
    let mut second = other.open(driver.reactor.cx()).unwrap();
    driver.write(1, 0, &pattern(5, 512), false);
    let range = pmcache::units::ByteRange::new(0, 512).unwrap();
    let request = pmcache::bdev::Request {
        tag: 77,
        op: Op::Read,
        range,
        data: Data::Buf(IoBuf::zeroed(512)),
    };
    second.submit(driver.reactor.cx(), request);
    assert_eq!(driver.wait(1)[0].tag, 1);
    let mut done = vec![];
    driver.wait_for("the other's", |driver| {
        second.poll(driver.reactor.cx(), &mut done);
        !done.is_empty()
    });
    assert_eq!((done[0].tag, done[0].status), (77, IoStatus::Ok));
    // One admin queue, one I/O queue.
    assert_eq!(fake.counts().connections.load(Ordering::SeqCst), 2);
    drop(second);
    driver.write(2, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
}

#[test]
fn more_reactors_than_queues_are_refused_and_a_place_is_free_again() {
    let fake = Fake::new(Nature {
        io_queues: 1,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    let mut other = reactor(Arc::new(MonotonicClock));
    let refused = driver.bdev.open(other.cx());
    assert!(matches!(refused, Err(BdevError::NotSupported(_))));
    driver.write(1, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    let Driver {
        channel,
        bdev,
        mut reactor,
        ..
    } = driver;
    drop(channel);
    reactor.step();
    reactor.step();
    let mut channel = bdev.open(other.cx()).unwrap();
    let mut done = vec![];
    let range = pmcache::units::ByteRange::new(0, 512).unwrap();
    let request = pmcache::bdev::Request {
        tag: 1,
        op: Op::Read,
        range,
        data: Data::Buf(IoBuf::zeroed(512)),
    };
    channel.submit(other.cx(), request);
    nvme_common::wait_until("a read on the other reactor", || {
        reactor.step();
        other.step();
        channel.poll(other.cx(), &mut done);
        !done.is_empty()
    });
    assert_eq!(done[0].status, IoStatus::Ok);
}

#[test]
fn a_controller_that_nobody_wants_is_shut_down() {
    let fake = Fake::new(Nature::default());
    let driver = Driver::new(config(&fake));
    let Driver {
        channel,
        bdev,
        mut reactor,
        ..
    } = driver;
    reactor.step();
    drop((channel, bdev));
    nvme_common::wait_until("the shutdown", || {
        reactor.step();
        fake.counts().shutdowns.load(Ordering::SeqCst) == 1
    });
}

#[derive(Clone, Debug)]
enum Act {
    Write(u64, u64, u8),
    Read(u64, u64),
    Zero(u64, u64),
    Flush,
    HangUp,
}

fn act() -> impl Strategy<Value = Act> {
    let place = || (0..128_u64, 1..64_u64);
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|((at, len), seed)| Act::Write(at, len, seed)),
        3 => place().prop_map(|(at, len)| Act::Read(at, len)),
        1 => place().prop_map(|(at, len)| Act::Zero(at, len)),
        1 => Just(Act::Flush),
        1 => Just(Act::HangUp),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Requests one after the other, connections lost in between and under way: the content is that of
    /// an array. The controller itself stays, so flushes succeed.
    #[test]
    fn requests_do_what_they_do_to_an_array(
        acts in prop::collection::vec(act(), 1..60),
        both: bool,
        success: bool,
        split in prop_oneof![Just(usize::MAX), Just(13_usize)],
        capsule in prop_oneof![Just(0_u32), Just(8192)],
    ) {
        let fake = Fake::new(Nature {
            mdts: 2,
            success,
            split,
            capsule,
            c2h_bytes: 4096,
            r2t_bytes: 8192,
            h2c_max: 4096,
            ..Nature::default()
        });
        let mut driver = Driver::new(with_digests(&fake, both));
        let mut model = vec![0; 1 << 20];
        for act in &acts {
            match *act {
                Act::Write(at, len, seed) => {
                    let (at, len) = (at * 512, len * 512);
                    let bytes = pattern(seed, usize::try_from(len).unwrap());
                    driver.write(1, at, &bytes, seed & 1 == 0);
                    if seed & 7 == 7 {
                        driver.step();
                        fake.hang_up(|qid| qid > 0);
                    }
                    prop_assert_eq!(driver.status(), IoStatus::Ok);
                    let at = usize::try_from(at).unwrap();
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Act::Read(at, len) => {
                    let (at, len) = (at * 512, len * 512);
                    let got = driver.bytes(at, len);
                    let at = usize::try_from(at).unwrap();
                    prop_assert!(got[..] == model[at..at + got.len()]);
                }
                Act::Zero(at, len) => {
                    let (at, len) = (at * 512, len * 512);
                    prop_assert_eq!(driver.run(ZERO, (at, len)), IoStatus::Ok);
                    let (at, len) = (usize::try_from(at).unwrap(), usize::try_from(len).unwrap());
                    model[at..at + len].fill(0);
                }
                Act::Flush => prop_assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok),
                Act::HangUp => fake.hang_up(|qid| qid > 0),
            }
        }
        prop_assert!(fake.disk() == model);
        prop_assert_eq!(fake.counts().associations.load(Ordering::SeqCst), 1);
    }
}
