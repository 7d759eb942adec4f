//! The NVMe/TCP initiator bdev on controllers that break the protocol, and on disks that fail.
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
use nvme_common::peer::Peer;
use pmcache::bdev::{BdevError, IoStatus, NvmeConfig, NvmeFault};
use pmcache::wire::nvme::{R2tPdu, Sqe, Status, flag, io};
use reactors::ManualClock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

/// What a bad controller says to a read of 4 KiB (identifier given), and the complaint that it gets:
/// kind and offset of a termination request, if it is a PDU that is wrong in itself.
type Case = (
    &'static str,
    fn(&mut Peer, u16) -> Vec<u8>,
    Option<(u8, u8)>,
);

fn r2t(peer: &Peer, cid: u16, at: u32, len: u32) -> Vec<u8> {
    let mut out = vec![];
    R2tPdu::new(cid, 1, at, len).put(peer.digests, &mut out);
    out
}

fn edited(mut pdu: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    pdu[at] = byte;
    pdu
}

const CASES: &[Case] = &[
    ("an unknown PDU", |_, _| vec![0x33; 24], Some((1, 0))),
    (
        "a host's PDU",
        |_, _| vec![4, 0, 72, 0, 72, 0, 0, 0],
        Some((1, 0)),
    ),
    (
        "a wrong header length",
        |peer, cid| edited(peer.completion(cid, Status::SUCCESS, 0), 2, 25),
        Some((1, 2)),
    ),
    (
        "a PDU shorter than its header",
        |peer, cid| edited(peer.completion(cid, Status::SUCCESS, 0), 4, 23),
        Some((1, 4)),
    ),
    (
        "a digest that was not agreed on",
        |peer, cid| edited(peer.completion(cid, Status::SUCCESS, 0), 1, 1),
        Some((1, 1)),
    ),
    (
        "data inside the header",
        |peer, cid| edited(peer.data(cid, 0, &[1; 512], 0), 3, 8),
        Some((1, 3)),
    ),
    (
        "a length that is not the PDU's",
        |peer, cid| edited(peer.data(cid, 0, &[1; 512], 0), 17, 1),
        Some((1, 16)),
    ),
    (
        "a completion in the middle of the data",
        |peer, cid| peer.data(cid, 0, &[1; 512], flag::SUCCESS),
        Some((1, 1)),
    ),
    (
        "a second hello",
        |_, _| {
            let mut out = vec![0; 128];
            (out[0], out[2], out[4]) = (1, 128, 128);
            out
        },
        Some((2, 0)),
    ),
    (
        "an answer to nothing",
        |peer, cid| peer.completion(cid ^ 1, Status::SUCCESS, 0),
        None,
    ),
    (
        "an answer to an earlier command",
        |peer, cid| peer.completion(cid ^ 1 << 12, Status::SUCCESS, 0),
        None,
    ),
    (
        "data for nothing",
        |peer, cid| peer.data(cid ^ 1 << 12, 0, &[1; 512], 0),
        None,
    ),
    (
        "data that begin late",
        |peer, cid| peer.data(cid, 512, &[1; 512], 0),
        None,
    ),
    (
        "the same data twice",
        |peer, cid| {
            [
                peer.data(cid, 0, &[1; 512], 0),
                peer.data(cid, 0, &[1; 512], 0),
            ]
            .concat()
        },
        None,
    ),
    (
        "too many data",
        |peer, cid| peer.data(cid, 0, &[1; 4608], 0),
        None,
    ),
    (
        "too few data",
        |peer, cid| {
            let data = peer.data(cid, 0, &[1; 3584], flag::LAST);
            [data, peer.completion(cid, Status::SUCCESS, 0)].concat()
        },
        None,
    ),
    (
        "no data",
        |peer, cid| peer.completion(cid, Status::SUCCESS, 0),
        None,
    ),
    (
        "a completion with too few data",
        |peer, cid| peer.data(cid, 0, &[1; 512], flag::LAST | flag::SUCCESS),
        None,
    ),
    (
        "a request for data of a read",
        |peer, cid| r2t(peer, cid, 0, 512),
        None,
    ),
    (
        "a termination request",
        |_, _| {
            let mut out = vec![0; 24];
            (out[0], out[2], out[4], out[8]) = (3, 24, 24, 2);
            out
        },
        None,
    ),
    (
        "a hang-up",
        |peer, _| {
            let _ = peer.stream.shutdown(std::net::Shutdown::Write);
            vec![]
        },
        None,
    ),
];

/// Answers the first `opcode` with `answer` and tells what the host says to that.
fn spoil_first(
    fake: &Fake,
    opcode: u8,
    answer: impl Fn(&mut Peer, &Sqe) -> Vec<u8> + Send + Sync + 'static,
) -> mpsc::Receiver<Option<(u8, u8)>> {
    let (tell, told) = mpsc::channel();
    let count = AtomicUsize::new(0);
    fake.intercept(move |peer, sqe, _| {
        if sqe.opcode != opcode || count.fetch_add(1, Ordering::SeqCst) > 0 {
            return false;
        }
        let out = answer(peer, sqe);
        peer.say(&out);
        tell.send(peer.complaint()).unwrap();
        true
    });
    told
}

#[test]
fn a_controller_out_of_step_loses_its_connection_and_nothing_else() {
    for (what, answer, complaint) in CASES {
        let answer = *answer;
        for split in [usize::MAX, 1] {
            let fake = Fake::new(Nature {
                split,
                ..Nature::default()
            });
            let mut driver = Driver::new(config(&fake));
            driver.write(1, 8192, &pattern(1, 4096), false);
            assert_eq!(driver.status(), IoStatus::Ok);
            let told = spoil_first(&fake, io::READ, move |peer, sqe| {
                answer(peer, sqe.cid.get())
            });
            driver.read(2, 8192, 4096);
            driver.write(3, 0, &[7; 512], false);
            for done in driver.wait(2) {
                assert_eq!(done.status, IoStatus::Ok, "{what}");
                if let (2, Some(buf)) = (done.tag, done.data.into_buf()) {
                    assert!(buf[..] == pattern(1, 4096), "{what}");
                }
            }
            assert_eq!(told.recv().unwrap(), *complaint, "{what}");
            assert_eq!(fake.disk()[..512], [7; 512]);
            assert_eq!(
                fake.counts().associations.load(Ordering::SeqCst),
                1,
                "{what}"
            );
        }
    }
}

/// What a bad controller says to a write of 16 KiB that waits for its R2T.
type WriteCase = (&'static str, fn(&Peer, u16) -> Vec<u8>);

const WRITE_CASES: &[WriteCase] = &[
    ("an R2T that begins late", |peer, cid| {
        r2t(peer, cid, 512, 512)
    }),
    ("an R2T for nothing", |peer, cid| r2t(peer, cid, 0, 0)),
    ("an R2T beyond the end", |peer, cid| {
        r2t(peer, cid, 0, 16385)
    }),
    ("an R2T for another", |peer, cid| {
        r2t(peer, cid ^ 1 << 11, 0, 512)
    }),
    ("a second R2T at once", |peer, cid| {
        [r2t(peer, cid, 0, 16384), r2t(peer, cid, 0, 16384)].concat()
    }),
    ("success without the data", |peer, cid| {
        peer.completion(cid, Status::SUCCESS, 0)
    }),
    ("data of a write", |peer, cid| {
        peer.data(cid, 0, &[1; 512], 0)
    }),
];

#[test]
fn requests_for_data_must_have_a_place() {
    for (what, answer) in WRITE_CASES {
        let answer = *answer;
        let fake = Fake::new(Nature::default());
        let mut driver = Driver::new(config(&fake));
        let told = spoil_first(&fake, io::WRITE, move |peer, sqe| {
            answer(peer, sqe.cid.get())
        });
        driver.write(1, 4096, &pattern(2, 16384), false);
        assert_eq!(driver.status(), IoStatus::Ok, "{what}");
        assert_eq!(told.recv().unwrap(), None, "{what}");
        assert_eq!(fake.disk()[4096..20480], pattern(2, 16384), "{what}");
    }
}

#[test]
fn a_write_that_fails_before_its_data_went_sends_no_more_of_them() {
    let fake = Fake::new(Nature {
        h2c_max: 4096,
        ..Nature::default()
    });
    let mut driver = Driver::new(config(&fake));
    let count = AtomicUsize::new(0);
    fake.intercept(move |peer, sqe, _| {
        if sqe.opcode != io::WRITE || count.fetch_add(1, Ordering::SeqCst) > 0 {
            return false;
        }
        let out = peer.completion(sqe.cid.get(), Status::CAPACITY_EXCEEDED, 0);
        peer.say(&out);
        true
    });
    driver.write(1, 0, &[1; 65536], false);
    assert_eq!(driver.status(), IoStatus::NoSpace);
    driver.write(2, 0, &[2; 65536], false);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert_eq!(fake.counts().connections.load(Ordering::SeqCst), 2);
}

fn digested(fake: &Fake) -> NvmeConfig {
    NvmeConfig {
        header_digest: true,
        data_digest: true,
        ..config(fake)
    }
}

#[test]
fn damaged_data_are_asked_for_again_and_the_connection_stays() {
    for (times, expected) in [(1, IoStatus::Ok), (3, IoStatus::Ok), (4, IoStatus::IoError)] {
        let fake = Fake::new(Nature::default());
        let mut driver = Driver::new(digested(&fake));
        let count = AtomicUsize::new(0);
        fake.intercept(move |peer, sqe, _| {
            if sqe.opcode != io::READ || count.fetch_add(1, Ordering::SeqCst) >= times {
                return false;
            }
            let cid = sqe.cid.get();
            let mut out = peer.data(cid, 0, &[0xaa; 4096], flag::LAST);
            let last = out.len() - 1;
            out[last] ^= 1;
            out.extend(peer.completion(cid, Status::SUCCESS, 0));
            peer.say(&out);
            true
        });
        driver.read(1, 0, 4096);
        let done = driver.wait(1).pop().unwrap();
        assert_eq!(done.status, expected, "damaged {times} times");
        if expected.is_ok() {
            assert!(done.data.into_buf().unwrap()[..] == [0; 4096]);
        }
        driver.write(2, 0, &[1; 512], false);
        assert_eq!(driver.status(), IoStatus::Ok);
        assert_eq!(fake.counts().connections.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn a_damaged_header_ends_the_connection() {
    let fake = Fake::new(Nature::default());
    let mut driver = Driver::new(digested(&fake));
    let told = spoil_first(&fake, io::READ, |peer, sqe| {
        let out = peer.completion(sqe.cid.get(), Status::SUCCESS, 0);
        edited(out, 9, 1)
    });
    driver.read(1, 0, 4096);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert_eq!(told.recv().unwrap(), Some((3, 0)));
    assert_eq!(fake.counts().connections.load(Ordering::SeqCst), 3);
}

#[test]
fn failures_of_the_disk_come_through_and_what_may_pass_is_tried_again() {
    let fake = Fake::new(Nature::default());
    let mut driver = Driver::new(config(&fake));
    for (status, expected, tries) in [
        (Status::UNRECOVERED_READ, IoStatus::IoError, 1),
        (Status::LBA_OUT_OF_RANGE, IoStatus::OutOfRange, 1),
        (Status::INVALID_FIELD, IoStatus::Invalid, 1),
        (Status::PATH_ERROR, IoStatus::IoError, 4),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        fake.intercept(move |peer, sqe, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            let out = peer.completion(sqe.cid.get(), status, 0);
            peer.say(&out);
            true
        });
        driver.read(1, 0, 4096);
        assert_eq!(driver.status(), expected, "{status:?}");
        assert_eq!(count.load(Ordering::SeqCst), tries, "{status:?}");
    }
}

fn refused(fake: &Fake) -> NvmeFault {
    let clock = Arc::new(ManualClock::default());
    match Driver::try_new(config(fake), clock).map(|_| ()) {
        Err(BdevError::Nvme { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_controller_is_said_at_once() {
    let fake = Fake::new(Nature {
        h2c_max: 2048,
        ..Nature::default()
    });
    let fault = refused(&fake).to_string();
    assert!(
        fault.contains("invalid PDU header field at offset 12"),
        "{fault}"
    );
    let fake = Fake::new(Nature::default());
    fake.kill();
    assert!(matches!(
        refused(&fake),
        NvmeFault::End | NvmeFault::Socket(_)
    ));
    let fake = Fake::new(Nature {
        block_size: 1024,
        ..Nature::default()
    });
    let clock = Arc::new(ManualClock::default());
    let odd = Driver::try_new(config(&fake), clock);
    assert!(matches!(odd, Err(BdevError::NotSupported(_))));
}
