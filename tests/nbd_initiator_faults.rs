//! The NBD initiator bdev on servers that break the protocol, stall or know little.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;

use nbd_common::driver::{Driver, connect};
use nbd_common::fake::{EXPORT, Fake, Peer, Script};
use pmcache::bdev::{Bdev, BdevError, IoStatus, NbdFault, Op};
use pmcache::wire::nbd::{
    Command, CommandFlags, ExportSummary, OptionFault, OptionReply, WireErrno,
    put_data_chunk_header, put_error_chunk, put_none_chunk, put_simple_reply,
};
use reactors::ManualClock;
use std::sync::Arc;
use std::sync::mpsc;

fn chunk(flags: u16, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    let mut out = 0x668e_33ef_u32.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn data_chunk(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let body = [&offset.to_be_bytes()[..], data].concat();
    chunk(flags, 1, cookie, &body)
}

fn hole_chunk(flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let body = [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    chunk(flags, 2, cookie, &body)
}

fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut out = vec![];
    put_simple_reply(cookie, error, &mut out);
    out
}

/// What a bad server answers to a READ of 4 KiB at 8 KiB with this cookie.
type Answer = fn(u64) -> Vec<u8>;

/// A READ and a write are under way; the answer to the READ must fail both, and the channel.
fn fails_all(structured: bool, answers: &[(&str, Answer)]) {
    for (what, answer) in answers {
        let answer = *answer;
        let script: Script = Box::new(move |peer: &mut Peer| {
            let read = peer.request();
            assert_eq!((read.command, read.offset), (Command::Read, 8192));
            peer.request();
            peer.take(512);
            peer.say(&answer(read.cookie));
            assert!(peer.is_left(), "it stays");
        });
        let fake = Fake::exporting(EXPORT, vec![script]);
        let bdev = connect(&fake.socket, "", structured).unwrap();
        let mut driver = Driver::new(&bdev);
        driver.read(1, 8192, 4096);
        driver.write(2, 0, &[7; 512], false);
        for done in driver.wait(2) {
            assert_eq!(done.status, IoStatus::IoError, "{what}");
            let len = if done.tag == 1 { 4096 } else { 512 };
            assert_eq!(done.data.len(), len, "{what}: the memory comes back");
        }
        driver.read(3, 0, 512);
        assert_eq!(driver.status(), IoStatus::IoError, "{what}");
        fake.join();
    }
}

#[test]
fn answers_out_of_step_fail_the_channel() {
    fails_all(
        true,
        &[
            ("bad magic", |_| vec![0x67; 16]),
            ("another's cookie", |cookie| simple(cookie ^ 1 << 40, 0)),
            ("no such command", |cookie| simple(cookie | 99, 0)),
            ("a simple reply to a READ", |cookie| simple(cookie, 0)),
            ("data before the range", |cookie| {
                data_chunk(1, cookie, 8191, &[1; 512])
            }),
            ("data behind the range", |cookie| {
                data_chunk(1, cookie, 12288, &[1; 512])
            }),
            ("data across the end", |cookie| {
                data_chunk(1, cookie, 12287, &[1; 512])
            }),
            ("data at the end of the world", |cookie| {
                data_chunk(1, cookie, u64::MAX, &[1; 512])
            }),
            ("more data than asked for", |cookie| {
                data_chunk(1, cookie, 8192, &[1; 4097])
            }),
            ("the same data twice", |cookie| {
                let half = data_chunk(0, cookie, 8192, &[1; 4096]);
                [half.clone(), half].concat()
            }),
            ("too few data", |cookie| {
                data_chunk(1, cookie, 8192, &[1; 4095])
            }),
            ("no data at all", |cookie| {
                let mut out = vec![];
                put_none_chunk(cookie, &mut out);
                out
            }),
            ("a data chunk without data", |cookie| {
                data_chunk(1, cookie, 8192, &[])
            }),
            ("a hole behind the range", |cookie| {
                hole_chunk(1, cookie, 12288, 1)
            }),
            ("a hole that is too long", |cookie| {
                chunk(1, 2, cookie, &[0; 13])
            }),
            ("an endless error", |cookie| {
                chunk(1, 0x8001, cookie, &[0; 9000])
            }),
            ("an error that says nothing", |cookie| {
                chunk(1, 0x8001, cookie, &[0; 3])
            }),
            ("a nothing with something", |cookie| {
                chunk(1, 0, cookie, &[0; 4])
            }),
            ("a nothing that is not the end", |cookie| {
                chunk(0, 0, cookie, &[])
            }),
            ("a status that nobody asked for", |cookie| {
                chunk(1, 5, cookie, &[0; 12])
            }),
            ("an unknown chunk", |cookie| chunk(1, 77, cookie, &[0; 12])),
        ],
    );
}

#[test]
fn simple_answers_out_of_step_fail_the_channel() {
    fails_all(
        false,
        &[
            ("bad magic", |_| vec![0; 16]),
            ("another's cookie", |cookie| simple(cookie ^ 1 << 32, 5)),
            ("a chunk", |cookie| data_chunk(1, cookie, 8192, &[1; 4096])),
        ],
    );
}

#[test]
fn a_hang_up_in_the_middle_fails_what_is_under_way() {
    for cut in [0, 1, 15, 19, 27, 28, 1000, 4123] {
        let script: Script = Box::new(move |peer: &mut Peer| {
            let read = peer.request();
            let answer = data_chunk(1, read.cookie, 8192, &[1; 4096]);
            peer.say(&answer[..cut]);
        });
        let fake = Fake::exporting(EXPORT, vec![script]);
        let bdev = connect(&fake.socket, "", true).unwrap();
        let mut driver = Driver::new(&bdev);
        driver.read(1, 8192, 4096);
        assert_eq!(driver.status(), IoStatus::IoError, "after {cut} bytes");
        fake.join();
    }
}

#[test]
fn an_answer_before_the_request_is_all_sent_fails_the_channel() {
    let script: Script = Box::new(|peer: &mut Peer| {
        // A write that no socket buffer holds: its payload is never taken.
        let write = peer.request();
        let mut out = vec![];
        put_none_chunk(write.cookie, &mut out);
        peer.say(&out);
        while !peer.is_left() {}
    });
    let export = ExportSummary {
        bytes: 64 << 20,
        payload_max: 32 << 20,
        ..EXPORT
    };
    let fake = Fake::exporting(export, vec![script]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    let mut driver = Driver::new(&bdev);
    driver.write(1, 0, &vec![7; 32 << 20], false);
    assert_eq!(driver.status(), IoStatus::IoError);
    fake.join();
}

#[test]
fn pieces_holes_and_errors_come_in_any_order() {
    let script: Script = Box::new(|peer: &mut Peer| {
        let (a, b) = (peer.request(), peer.request());
        peer.say(&data_chunk(0, a.cookie, 8192 + 3000, &[3; 1096]));
        // Between the pieces of one, all of another.
        let mut failed = data_chunk(0, b.cookie, 0, &[9; 100]);
        failed.extend(chunk(
            0,
            0x8002,
            b.cookie,
            &[0, 0, 0, 28, 0, 2, b'n', b'o', 0, 0, 0, 0, 0, 0, 0, 50],
        ));
        put_none_chunk(b.cookie, &mut failed);
        for byte in failed {
            peer.say(&[byte]);
        }
        peer.say(&hole_chunk(0, a.cookie, 8192 + 1000, 2000));
        peer.say(&data_chunk(1, a.cookie, 8192, &[1; 1000]));
        // A simple reply to what is no READ is always right.
        let flush = peer.request();
        assert_eq!(flush.command, Command::Flush);
        peer.say(&simple(flush.cookie, 0));
        let trim = peer.request();
        let mut out = vec![];
        put_error_chunk(trim.cookie, WireErrno::NotSupported, &mut out);
        peer.say(&out);
        let write = peer.request();
        peer.take(512);
        peer.say(&simple(write.cookie, 4711));
    });
    let fake = Fake::exporting(EXPORT, vec![script]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    let mut driver = Driver::new(&bdev);
    driver.read(1, 8192, 4096);
    driver.read(2, 0, 512);
    for done in driver.wait(2) {
        if done.tag == 2 {
            assert_eq!(done.status, IoStatus::NoSpace);
            continue;
        }
        assert_eq!(done.status, IoStatus::Ok);
        let want = [&[1; 1000][..], &[0; 2000], &[3; 1096]].concat();
        assert!(*done.data.into_buf().unwrap() == want);
    }
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    assert_eq!(driver.run(Op::Discard, (0, 512)), IoStatus::NotSupported);
    driver.write(3, 0, &[1; 512], false);
    assert_eq!(driver.status(), IoStatus::IoError);
    fake.join();
}

#[test]
fn a_stalled_server_is_given_up_a_second_after_its_user_has() {
    let script: Script = Box::new(|peer: &mut Peer| {
        peer.request();
        assert!(peer.is_left());
    });
    let fake = Fake::exporting(EXPORT, vec![script]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    let clock = Arc::new(ManualClock::default());
    let mut driver = Driver::on(&bdev, clock.clone());
    driver.read(1, 0, 512);
    nbd_common::wait_until("it is sent", || {
        driver.step();
        driver.channel.wake() == reactors::Wake::OnEvent
    });
    driver.write(2, 0, &[1; 512], false);
    driver.channel.cancel(driver.reactor.cx());
    let done = driver.wait(1).pop().unwrap();
    assert_eq!((done.tag, done.status), (2, IoStatus::Aborted));
    clock.advance(999_000_000);
    driver.step();
    assert!(driver.done.is_empty());
    clock.advance(1_000_000);
    let done = driver.wait(1).pop().unwrap();
    assert_eq!((done.tag, done.status), (1, IoStatus::Aborted));
    fake.join();
}

#[test]
fn a_server_that_does_not_answer_the_handshake_is_left_in_time() {
    let (asked, was_asked) = mpsc::channel();
    let probe: Script = Box::new(|peer: &mut Peer| peer.shake_hands(EXPORT));
    let script: Script = Box::new(move |peer: &mut Peer| {
        peer.greet();
        peer.option();
        asked.send(()).unwrap();
        assert!(peer.is_left());
    });
    let fake = Fake::new(vec![probe, script]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    let clock = Arc::new(ManualClock::default());
    let mut driver = Driver::on(&bdev, clock.clone());
    driver.read(1, 0, 512);
    nbd_common::wait_until("it is asked", || {
        driver.step();
        was_asked.try_recv().is_ok()
    });
    clock.advance(9_999_999_999);
    driver.step();
    assert!(driver.done.is_empty());
    clock.advance(1);
    assert_eq!(driver.status(), IoStatus::IoError);
    fake.join();
}

#[test]
fn an_export_that_has_changed_is_not_taken_for_the_old_one() {
    let probe: Script = Box::new(|peer: &mut Peer| peer.shake_hands(EXPORT));
    let script: Script = Box::new(|peer: &mut Peer| {
        peer.shake_hands(ExportSummary {
            bytes: EXPORT.bytes / 2,
            ..EXPORT
        });
        assert!(peer.is_left());
    });
    let fake = Fake::new(vec![probe, script]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    let mut driver = Driver::new(&bdev);
    driver.read(1, 0, 512);
    assert_eq!(driver.status(), IoStatus::IoError);
    fake.join();
}

fn with_flags(flags: u16) -> ExportSummary<'static> {
    ExportSummary { flags, ..EXPORT }
}

#[test]
fn what_the_server_lacks_is_done_without() {
    // Only FLUSH: FUA becomes a write and a FLUSH, zeroes are sent, hints are dropped.
    let script: Script = Box::new(|peer: &mut Peer| {
        for round in 0..2 {
            let (offset, len) = if round == 0 {
                (0, 512)
            } else {
                (1024, 64 << 10)
            };
            let mut lens = vec![];
            while lens.iter().sum::<u32>() < len {
                let write = peer.request();
                assert_eq!(write.command, Command::Write);
                assert_eq!(write.flags, CommandFlags::default());
                assert_eq!(write.offset, offset + u64::from(lens.iter().sum::<u32>()));
                let data = peer.take(write.len as usize);
                assert!(data.iter().all(|byte| *byte == 7 - 7 * round));
                lens.push(write.len);
                peer.say(&simple(write.cookie, 0));
            }
            let flush = peer.request();
            assert_eq!(flush.command, Command::Flush);
            peer.say(&simple(flush.cookie, 0));
        }
        assert!(peer.is_left());
    });
    let fake = Fake::exporting(with_flags(0b101), vec![script]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    assert!(bdev.info().volatile_cache && !bdev.info().supports.discard);
    let mut driver = Driver::new(&bdev);
    driver.write(1, 0, &[7; 512], true);
    assert_eq!(driver.status(), IoStatus::Ok);
    let zero = Op::WriteZeroes {
        may_unmap: false,
        fua: true,
    };
    assert_eq!(driver.run(zero, (1024, 64 << 10)), IoStatus::Ok);
    for hint in [Op::Discard, Op::Prefetch] {
        assert_eq!(driver.run(hint, (0, 512)), IoStatus::Ok);
    }
    // A flush on one connection says nothing of the others.
    let reactor = &driver.reactor;
    let second = bdev.open(reactor.cx());
    assert!(matches!(second, Err(BdevError::NotSupported(_))));
    drop(driver);
    fake.join();
}

#[test]
fn a_server_without_a_cache_is_not_asked_to_flush() {
    let fake = Fake::exporting(with_flags(1), vec![Box::new(|_: &mut Peer| {})]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    assert!(!bdev.info().volatile_cache);
    let mut driver = Driver::new(&bdev);
    assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
    assert!(bdev.open(driver.reactor.cx()).is_ok());
    drop(driver);
    drop(bdev);
}

#[test]
fn handshakes_out_of_step_make_no_bdev() {
    let refused = |script: Script| {
        let fake = Fake::new(vec![script]);
        let error = connect(&fake.socket, "", true).unwrap_err();
        fake.join();
        match error {
            BdevError::Nbd { source, .. } => source,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(
        refused(Box::new(|peer| peer.say(b"SSH-2.0-OpenSSH_9.2p1\r\n"))),
        NbdFault::Wire(_)
    ));
    assert_eq!(refused(Box::new(|peer| peer.say(b"NBDMA"))), NbdFault::End);
    assert_eq!(
        refused(Box::new(|peer| {
            peer.greet();
            peer.option();
            peer.reply(8, &OptionReply::Error(OptionFault::Unsupported));
            peer.option();
            peer.reply(7, &OptionReply::Error(OptionFault::ShuttingDown));
        })),
        NbdFault::Refused(0x8000_0007)
    );
    assert_eq!(
        refused(Box::new(|peer| {
            peer.greet();
            peer.option();
            peer.reply(7, &OptionReply::Ack);
        })),
        NbdFault::OutOfPlace { option: 7 }
    );
}

#[test]
fn exports_that_no_bdev_can_be_are_refused() {
    for (bytes, block_min, payload_max) in [
        (511, 1, 4096),
        (1 << 20, 8192, 8192),
        (1 << 20, 3, 4096),
        (1 << 20, 512, 256),
        (2048, 1024, 4096),
    ] {
        let export = ExportSummary {
            bytes,
            block_min,
            payload_max,
            ..EXPORT
        };
        let fake = Fake::exporting(export, vec![]);
        let error = connect(&fake.socket, "", true).unwrap_err();
        assert!(
            matches!(error, BdevError::Invalid(_) | BdevError::NotSupported(_)),
            "{error}"
        );
        fake.join();
    }
    let export = ExportSummary {
        block_min: 1024,
        ..EXPORT
    };
    let fake = Fake::exporting(export, vec![]);
    let bdev = connect(&fake.socket, "", true).unwrap();
    assert_eq!(bdev.info().block_size, 4096);
    fake.join();
}

#[test]
fn our_own_heads_are_the_documented_ones() {
    let mut head = vec![];
    put_data_chunk_header(5, 8192, 512, &mut head);
    assert_eq!(head, data_chunk(1, 5, 8192, &[0; 512])[..28]);
}
