use super::*;
use crate::bdev::rig::{Rig, bare, gather, malloc, pattern, read, write};
use crate::units::ByteRange;

fn error() -> ErrorBdev {
    ErrorBdev::new(malloc(128), None).unwrap()
}

fn statuses(rig: &mut Rig, channel: &mut dyn Channel, ops: &[Op]) -> Vec<IoStatus> {
    let requests = ops.iter().map(|op| match op {
        Op::Read => read(0, 512),
        Op::Write { .. } => write(0, &[1; 512]),
        op => bare(*op, ByteRange::new(0, 512).unwrap()),
    });
    requests
        .map(|request| rig.run(channel, request).status)
        .collect()
}

const WRITE: Op = Op::Write { fua: false };

#[test]
fn it_passes_everything_on_until_told_otherwise() {
    let bdev = error();
    let info = bdev.info();
    assert_eq!(
        (&*info.name, info.product_name),
        ("EE_Malloc0", "Error disk")
    );
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let bytes = pattern(1, 2048);
    let request = gather(512, &[&bytes[..100], &bytes[100..]]);
    assert!(rig.run(&mut *channel, request).status.is_ok());
    assert_eq!(rig.bytes(&mut *channel, 512, 2048), bytes);
    let done = rig.run(&mut *channel, read(128 * 512, 512));
    assert_eq!(done.status, IoStatus::OutOfRange);
}

#[test]
fn the_kth_io_fails_for_every_k() {
    let mut rig = Rig::new();
    for k in 1..=10_u32 {
        let bdev = error();
        let mut channel = rig.open(&bdev);
        let injection = Injection {
            skip: k - 1,
            ..Injection::new(ErrorIo::All, ErrorKind::Failure, 1)
        };
        bdev.inject(&injection).unwrap();
        let ops = [Op::Read, WRITE, Op::Flush, Op::Discard, Op::Read].repeat(2);
        for (i, status) in statuses(&mut rig, &mut *channel, &ops).iter().enumerate() {
            assert_eq!(status.is_ok(), i + 1 != k as usize, "I/O {i}, k = {k}");
        }
    }
}

#[test]
fn a_number_of_ios_of_one_type_fails_on_all_channels_together() {
    let bdev = error();
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.open(&bdev), rig.open(&bdev));
    let injection = Injection::new(ErrorIo::Write, ErrorKind::NoMemory, 3);
    bdev.inject(&injection).unwrap();
    let (bad, ok) = (IoStatus::NoSpace, IoStatus::Ok);
    let ops = [Op::Read, WRITE, Op::Flush, WRITE, Op::Discard];
    assert_eq!(statuses(&mut rig, &mut *a, &ops), [ok, bad, ok, bad, ok]);
    assert_eq!(statuses(&mut rig, &mut *b, &[WRITE, WRITE]), [bad, ok]);
}

#[test]
fn each_type_has_its_own_injection_and_clear_ends_them() {
    let bdev = error();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let zeroes = Op::WriteZeroes {
        may_unmap: true,
        fua: false,
    };
    let ops = [
        Op::Read,
        WRITE,
        Op::Discard,
        zeroes,
        Op::Flush,
        Op::Prefetch,
    ];
    for (io, struck) in [
        (ErrorIo::Read, [true, false, false, false, false, false]),
        (ErrorIo::Unmap, [true, false, true, true, false, false]),
        (ErrorIo::Flush, [true, false, true, true, true, false]),
        (ErrorIo::All, [true, true, true, true, true, false]),
    ] {
        let injection = Injection::new(io, ErrorKind::Failure, u32::MAX);
        bdev.inject(&injection).unwrap();
        for (status, struck) in statuses(&mut rig, &mut *channel, &ops).iter().zip(struck) {
            assert_eq!(*status == IoStatus::IoError, struck, "{io:?}");
        }
    }
    bdev.clear();
    let all = statuses(&mut rig, &mut *channel, &ops);
    assert!(all.iter().all(|status| status.is_ok()));
}

#[test]
fn a_failed_write_leaves_the_base_as_it_was() {
    let bdev = error();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let injection = Injection::new(ErrorIo::Write, ErrorKind::Failure, 1);
    bdev.inject(&injection).unwrap();
    let done = rig.run(&mut *channel, write(0, &[9; 512]));
    assert_eq!((done.status, done.data.len()), (IoStatus::IoError, 512));
    assert_eq!(rig.bytes(&mut *channel, 0, 512), [0; 512]);
}

#[test]
fn stalled_ios_go_on_when_resumed() {
    let bdev = error();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let injection = Injection::new(ErrorIo::Write, ErrorKind::Pending, u32::MAX);
    bdev.inject(&injection).unwrap();
    channel.submit(rig.cx(), write(0, &[1; 512]));
    assert_eq!(channel.wake(), Wake::OnEvent);
    assert!(rig.poll(&mut *channel).is_empty());
    assert_eq!(rig.bytes(&mut *channel, 0, 512), [0; 512]);
    bdev.resume_pending();
    assert_eq!(channel.wake(), Wake::Now);
    channel.submit(rig.cx(), write(512, &[2; 512]));
    let done = rig.poll(&mut *channel);
    assert_eq!(done.len(), 1, "the second stalls after the resume");
    assert!(done.iter().all(|done| done.status.is_ok()));
    assert_eq!(rig.bytes(&mut *channel, 0, 512), [1; 512]);
    bdev.clear();
    assert_eq!(rig.poll(&mut *channel).len(), 1);
    assert_eq!(rig.bytes(&mut *channel, 512, 512), [2; 512]);
}

#[test]
fn cancel_aborts_what_is_stalled() {
    let bdev = error();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let injection = Injection::new(ErrorIo::All, ErrorKind::Pending, 2);
    bdev.inject(&injection).unwrap();
    channel.submit(rig.cx(), write(0, &[1; 512]));
    channel.submit(rig.cx(), read(0, 512));
    assert!(rig.poll(&mut *channel).is_empty());
    channel.cancel(rig.cx());
    assert_eq!(channel.wake(), Wake::Now);
    let done = rig.poll(&mut *channel);
    assert_eq!(done.len(), 2);
    assert!(
        done.iter()
            .all(|d| d.status == IoStatus::Aborted && d.data.len() == 512)
    );
    bdev.resume_pending();
    assert_eq!(rig.bytes(&mut *channel, 0, 512), [0; 512]);
}

#[test]
fn one_byte_is_corrupted_on_its_way() {
    let bdev = error();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let bytes = pattern(1, 1024);
    let mut spoiled = bytes.clone();
    spoiled[700] ^= 0x40;
    let kind = ErrorKind::Corrupt {
        offset: 700,
        xor: 0x40,
    };

    let injection = Injection::new(ErrorIo::Read, kind, 1);
    bdev.inject(&injection).unwrap();
    rig.run(&mut *channel, write(0, &bytes));
    assert_eq!(rig.bytes(&mut *channel, 0, 1024), spoiled);
    assert_eq!(rig.bytes(&mut *channel, 0, 1024), bytes);

    let injection = Injection::new(ErrorIo::All, kind, 2);
    bdev.inject(&injection).unwrap();
    rig.run_op(&mut *channel, Op::Flush, ByteRange::default());
    let done = rig.run(&mut *channel, write(0, &bytes));
    let own = done.data.into_buf().unwrap();
    assert_eq!(&*own, bytes, "the submitter's memory is not touched");
    let done = rig.run(&mut *channel, gather(4096, &[&bytes[..512], &bytes[512..]]));
    assert!(matches!(done.data, Data::Gather(views) if views.len() == 2));
    assert_eq!(rig.bytes(&mut *channel, 0, 1024), spoiled);
    assert_eq!(rig.bytes(&mut *channel, 4096, 1024), spoiled);
}

#[test]
fn a_queue_depth_spares_a_quiet_channel() {
    let bdev = error();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let injection = Injection {
        queue_depth: 2,
        ..Injection::new(ErrorIo::Read, ErrorKind::Failure, u32::MAX)
    };
    bdev.inject(&injection).unwrap();
    assert!(rig.run(&mut *channel, read(0, 512)).status.is_ok());
    for _ in 0..4 {
        channel.submit(rig.cx(), read(0, 512));
    }
    let done = rig.wait(&mut *channel, 4);
    assert_eq!(done.iter().filter(|done| done.status.is_ok()).count(), 2);
}

#[test]
fn a_corruption_that_changes_nothing_is_refused() {
    let bdev = error();
    for (io, xor) in [(ErrorIo::Read, 0), (ErrorIo::Flush, 1), (ErrorIo::Unmap, 1)] {
        let kind = ErrorKind::Corrupt { offset: 0, xor };
        let refused = bdev.inject(&Injection::new(io, kind, 1));
        assert!(matches!(refused, Err(BdevError::Invalid(_))));
    }
}
