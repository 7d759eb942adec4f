use super::device::{UringBdev, UringConfig, UringKind};
use super::hub::Hub;
use super::job::{Job, Next, Step};
use crate::bdev::rig::{Rig, bare, gather, pattern, read, write};
use crate::bdev::{Bdev, BdevError, BufPool, Channel, Data, IoBuf, IoStatus, MemView, Op, Request};
use crate::units::ByteRange;
use reactors::{
    Cx, IdlePolicy, MonotonicClock, Poller, Quiescence, Reactor, ReactorConfig, ReactorId, Wake,
};
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tempfile::NamedTempFile;

const BYTES: usize = 4 << 20;

fn file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(BYTES as u64).unwrap();
    file
}

fn config(path: &Path) -> UringConfig {
    UringConfig {
        block_size: Some(512),
        lock_wait: Duration::ZERO,
        ..UringConfig::new("Uring0", path, UringKind::Uring)
    }
}

fn open(path: &Path) -> UringBdev {
    UringBdev::open(config(path)).unwrap()
}

/// Opens what the kernel may hold a moment longer: it lets go of a file after it has posted the last
/// completion.
fn open_soon(path: &Path) -> UringBdev {
    let lock_wait = Duration::from_secs(20);
    let config = UringConfig {
        lock_wait,
        ..config(path)
    };
    UringBdev::open(config).unwrap()
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

/// The job that a request becomes first.
fn job(bdev: &UringBdev, request: Request) -> Job {
    match Job::start(&bdev.device, request, &mut BufPool::default()) {
        Next::Run(job) => job,
        Next::Done(done) => panic!("completed at once: {done:?}"),
    }
}

fn step_after(job: Job, result: i32) -> Job {
    match job.advance(result, &mut BufPool::default()) {
        Next::Run(job) => job,
        Next::Done(done) => panic!("completed: {done:?}"),
    }
}

fn status_after(job: Job, result: i32) -> IoStatus {
    match job.advance(result, &mut BufPool::default()) {
        Next::Run(job) => panic!("goes on: {job:?}"),
        Next::Done(done) => done.status,
    }
}

#[test]
fn what_is_written_is_in_the_file_and_read_by_another_channel() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.open(&bdev), rig.open(&bdev));
    let bytes = pattern(1, 64 << 10);
    assert!(rig.run(&mut *a, write(512, &bytes)).status.is_ok());
    assert_eq!(rig.bytes(&mut *b, 512, bytes.len()), bytes);
    let flush = bare(Op::Flush, ByteRange::default());
    assert!(rig.run(&mut *a, flush).status.is_ok());
    assert_eq!(
        &fs::read(file.path()).unwrap()[512..512 + bytes.len()],
        bytes
    );
}

#[test]
fn fua_and_gathered_writes_store_what_they_are_given() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let (a, b) = (pattern(1, 4096), pattern(2, 1024));
    let mut request = gather(1024, &[&a, &b]);
    request.op = Op::Write { fua: true };
    assert!(rig.run(&mut *channel, request).status.is_ok());
    assert_eq!(rig.bytes(&mut *channel, 1024, 5120), [a, b].concat());
}

#[test]
fn memory_that_is_not_aligned_takes_a_detour() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let bytes = pattern(5, 8192);
    let mut odd = IoBuf::zeroed(8193);
    let mut odd = odd.split_off(1);
    odd.copy_from_slice(&bytes);
    let mut request = write(4096, &bytes);
    request.data = Data::Buf(odd);
    let done = rig.run(&mut *channel, request);
    assert!(done.status.is_ok());
    let mut odd = done.data.into_buf().unwrap();
    odd.fill(0);
    let mut request = read(4096, 8192);
    request.data = Data::Buf(odd);
    let buf = rig.run(&mut *channel, request).data.into_buf().unwrap();
    assert_eq!(&*buf, bytes);

    let pieces = [100, 1000, 2996].map(|len| pattern(9, len));
    let views = pieces.iter().map(|p| MemView::from_buf(IoBuf::copy_of(p)));
    let mut request = write(0, &pattern(0, 4096));
    request.data = Data::Gather(views.collect());
    assert!(rig.run(&mut *channel, request).status.is_ok());
    assert_eq!(rig.bytes(&mut *channel, 0, 4096), pieces.concat());
}

#[test]
fn direct_io_bounces_only_what_it_must() {
    let file = file();
    let bdev = open(file.path());
    let whole = job(&bdev, gather(0, &[&[1; 512], &[2; 1024]]));
    assert!(whole.bounce.is_none());
    let odd = job(&bdev, gather(0, &[&[1; 100], &[2; 412]]));
    assert_eq!(odd.bounce.is_some(), bdev.is_direct());
    let many = vec![&[7_u8; 512][..]; 1025];
    let bounced = job(&bdev, gather(0, &many)).bounce.unwrap();
    assert!(bounced.len() == 1025 * 512 && bounced.iter().all(|b| *b == 7));
}

#[test]
fn each_way_of_zeroing_zeroes_its_range_only() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let all = pattern(3, BYTES);
    let (start, len) = (512, 1 << 20);
    for way in 0..4 {
        rig.run(&mut *channel, write(0, &all));
        let device = &bdev.device;
        device.punches_holes.store(way < 2, Ordering::Relaxed);
        device.zeroes_ranges.store(way == 2, Ordering::Relaxed);
        let op = match way {
            0 => Op::Discard,
            _ => Op::WriteZeroes {
                may_unmap: way == 1,
                fua: true,
            },
        };
        let done = rig.run_op(&mut *channel, op, range(start, len));
        assert!(done.status.is_ok());
        let mut expected = all.clone();
        if way > 0 || bdev.info().supports.discard_zeroes {
            expected[512..512 + (1 << 20)].fill(0);
            assert!(rig.bytes(&mut *channel, 0, BYTES) == expected, "way {way}");
        }
    }
    assert_eq!(bdev.errors(), 0);
}

#[test]
fn what_the_kernel_cannot_do_is_tried_once_and_done_otherwise() {
    let file = file();
    let bdev = open(file.path());
    bdev.device.punches_holes.store(true, Ordering::Relaxed);
    let op = Op::WriteZeroes {
        may_unmap: true,
        fua: true,
    };
    let first = job(&bdev, bare(op, range(0, 1 << 20)));
    assert_eq!(first.step, Step::PunchHole);
    let second = step_after(first, -libc::EOPNOTSUPP);
    assert_eq!(second.step, Step::ZeroRange);
    let mut last = step_after(second, -libc::EOPNOTSUPP);
    let zeroes = last.bounce.as_ref().unwrap().len();
    for written in 1..=(1 << 20) / zeroes {
        assert_eq!(last.step, Step::Fill);
        last = step_after(last, i32::try_from(zeroes).unwrap());
        assert!(last.done == (written * zeroes) as u64);
    }
    assert_eq!(last.step, Step::Datasync);
    assert_eq!(status_after(last, 0), IoStatus::Ok);
    assert_eq!(job(&bdev, bare(op, range(0, 512))).step, Step::Fill);
    bdev.device.punches_holes.store(true, Ordering::Relaxed);
    let discard = job(&bdev, bare(Op::Discard, range(0, 512)));
    assert_eq!(status_after(discard, -libc::EOPNOTSUPP), IoStatus::Ok);
    assert_eq!(bdev.errors(), 0);
}

#[test]
fn short_transfers_go_on_from_the_last_whole_block() {
    let file = file();
    let bdev = open(file.path());
    let first = job(&bdev, write(0, &[1; 4096]));
    let second = step_after(first, 1024 + 100);
    assert_eq!(second.done, 1024);
    let third = step_after(second, -libc::EINTR);
    assert_eq!(third.done, 1024);
    assert_eq!(status_after(third, 3072), IoStatus::Ok);
    let stuck = job(&bdev, read(0, 4096));
    assert_eq!(status_after(stuck, 511), IoStatus::IoError);
}

#[test]
fn a_gathered_write_goes_on_in_the_middle_of_a_piece() {
    let file = file();
    let bdev = open(file.path());
    let all = pattern(6, 4096);
    let first = job(
        &bdev,
        gather(0, &[&all[..512], &all[512..2048], &all[2048..]]),
    );
    let rest = step_after(first, 1024);
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let hub = Hub::attach(rig.cx()).unwrap();
    let replies = Rc::default();
    hub.push(rest, &replies);
    // The hub is shared: whoever polls it brings everybody's jobs back.
    let mut rounds = 0;
    while replies.borrow().is_empty() {
        rig.poll(&mut *channel);
        std::thread::yield_now();
        rounds += 1;
        assert!(rounds < 10_000_000, "the hub still waits: {hub:?}");
    }
    let (rest, result) = replies.borrow_mut().pop_front().unwrap();
    assert_eq!((status_after(rest, result), result), (IoStatus::Ok, 3072));
    let mut expected = all;
    expected[..1024].fill(0);
    assert_eq!(rig.bytes(&mut *channel, 0, 4096), expected);
}

#[test]
fn error_numbers_become_statuses_and_are_counted() {
    let file = file();
    let bdev = open(file.path());
    for (errno, status) in [
        (libc::EIO, IoStatus::IoError),
        (libc::ENOSPC, IoStatus::NoSpace),
        (libc::EOPNOTSUPP, IoStatus::NotSupported),
        (libc::EILSEQ, IoStatus::Corrupt),
    ] {
        assert_eq!(status_after(job(&bdev, read(0, 512)), -errno), status);
    }
    assert_eq!(bdev.errors(), 4);
    let mut again = job(&bdev, read(0, 512));
    for _ in 0..1000 {
        again = step_after(again, -libc::EAGAIN);
    }
    assert_eq!(status_after(again, -libc::EAGAIN), IoStatus::IoError);
}

#[test]
fn a_file_that_was_cut_short_fails_reads() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    file.as_file().set_len(4096).unwrap();
    let done = rig.run(&mut *channel, read(8192, 4096));
    assert_eq!(done.status, IoStatus::IoError);
    assert_eq!(done.data.len(), 4096);
    assert_eq!(bdev.errors(), 1);
}

#[test]
fn more_than_the_ring_holds_waits_its_turn() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let all = pattern(4, BYTES);
    rig.run(&mut *channel, write(0, &all));
    for i in 0..3000_u64 {
        let mut request = read(i * 512, 512);
        request.tag = i;
        channel.submit(rig.cx(), request);
    }
    assert_eq!(channel.wake(), Wake::Now);
    let mut done = rig.wait(&mut *channel, 3000);
    done.sort_by_key(|done| done.tag);
    for (i, done) in done.into_iter().enumerate() {
        assert_eq!((done.tag, done.status), (i as u64, IoStatus::Ok));
        assert_eq!(&*done.data.into_buf().unwrap(), &all[i * 512..][..512]);
    }
    assert_eq!(channel.wake(), Wake::OnEvent);
}

#[test]
fn cancel_gives_up_what_the_kernel_does_not_have() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    for i in 0..3000_u64 {
        channel.submit(rig.cx(), read(i * 512, 512));
    }
    channel.cancel(rig.cx());
    let done = rig.wait(&mut *channel, 3000);
    let aborted = done.iter().filter(|d| d.status == IoStatus::Aborted);
    assert_eq!(aborted.count(), 3000 - 1024);
}

#[test]
fn channels_of_a_reactor_share_a_ring_that_goes_with_the_last() {
    let (file, other) = (file(), file());
    let (bdev, other) = (open(file.path()), open(other.path()));
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.open(&bdev), rig.open(&other));
    let (x, y) = (pattern(1, 4096), pattern(2, 4096));
    a.submit(rig.cx(), write(0, &x));
    b.submit(rig.cx(), write(0, &y));
    rig.wait(&mut *b, 1);
    rig.wait(&mut *a, 1);
    assert_eq!(rig.bytes(&mut *a, 0, 4096), x);
    assert_eq!(rig.bytes(&mut *b, 0, 4096), y);
    let hub = rig.cx().local::<Hub>(0).unwrap();
    drop(a);
    rig.step();
    assert!(rig.cx().local::<Hub>(0).is_some());
    drop(b);
    rig.step();
    assert!(rig.cx().local::<Hub>(0).is_none());
    assert_eq!(Rc::strong_count(&hub), 1);
    let mut again = rig.open(&bdev);
    assert_eq!(rig.bytes(&mut *again, 0, 4096), x);
}

#[test]
fn a_channel_dropped_early_leaves_its_memory_to_the_kernel() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    for i in 0..1500_u64 {
        channel.submit(rig.cx(), read(i * 512, 512));
    }
    drop(channel);
    let hub = rig.cx().local::<Hub>(0).unwrap();
    drop(bdev);
    let mut rounds = 0;
    while rig.cx().local::<Hub>(0).is_some() {
        rig.step();
        std::thread::yield_now();
        rounds += 1;
        assert!(rounds < 10_000_000, "the hub still waits: {hub:?}");
    }
    // With the last job went the last hold on the file.
    drop(open_soon(file.path()));
}

#[test]
fn a_reactor_that_ends_with_io_under_way_waits_for_it() {
    let file = file();
    let bdev = open(file.path());
    let rig = Rig::new();
    let mut channel = rig.open(&bdev);
    for i in 0..500_u64 {
        channel.submit(rig.cx(), write(i * 512, &[5; 512]));
    }
    drop((channel, bdev));
    drop(rig);
    drop(open_soon(file.path()));
}

#[test]
fn a_file_has_one_holder() {
    let file = file();
    let first = open(file.path());
    let refused = UringBdev::open(config(file.path()));
    assert!(matches!(refused, Err(BdevError::Busy(_))), "{refused:?}");
    let reader = UringConfig {
        read_only: true,
        ..config(file.path())
    };
    let refused = UringBdev::open(reader.clone());
    assert!(matches!(refused, Err(BdevError::Busy(_))), "{refused:?}");
    let dropper = std::thread::spawn(move || drop(first));
    let waiting = UringConfig {
        lock_wait: Duration::from_secs(20),
        ..reader.clone()
    };
    let one = UringBdev::open(waiting).unwrap();
    let two = UringBdev::open(reader).unwrap();
    assert_eq!(one.info().uuid, two.info().uuid);
    dropper.join().unwrap();
}

#[test]
fn identity_survives_reopening_and_tells_files_apart() {
    let (file, other) = (file(), file());
    let first = open(file.path()).info();
    let again = UringConfig {
        name: "Aio0".into(),
        kind: UringKind::Aio,
        ..config(file.path())
    };
    let again = UringBdev::open(again).unwrap().info();
    assert_eq!(first.uuid, again.uuid);
    assert_eq!(first.product_name, "URING bdev");
    assert_eq!(again.product_name, "AIO disk");
    assert_ne!(first.uuid, open(other.path()).info().uuid);
    let given = uuid::Uuid::from_u128(7);
    let named = UringConfig {
        uuid: Some(given),
        ..config(file.path())
    };
    assert_eq!(UringBdev::open(named).unwrap().info().uuid, given);
}

#[test]
fn geometry_comes_from_the_file() {
    let file = file();
    file.as_file().set_len(BYTES as u64 + 700).unwrap();
    let info = open(file.path()).info();
    assert_eq!(
        (info.block_size, info.blocks),
        (512, BYTES as u64 / 512 + 1)
    );
    assert!(info.volatile_cache);
    let large = UringConfig {
        block_size: Some(4096),
        ..config(file.path())
    };
    let info = UringBdev::open(large).unwrap().info();
    assert_eq!((info.block_size, info.blocks), (4096, BYTES as u64 / 4096));
}

#[test]
fn what_cannot_be_a_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = UringBdev::open(config(dir.path()));
    assert!(matches!(refused, Err(BdevError::NotSupported(_))));
    let refused = UringBdev::open(config(&dir.path().join("missing")));
    assert!(matches!(refused, Err(BdevError::Os { .. })));
    let small = dir.path().join("small");
    fs::write(&small, [0; 511]).unwrap();
    let refused = UringBdev::open(config(&small));
    assert!(matches!(refused, Err(BdevError::Invalid(_))));
    let file = file();
    for bad in [
        UringConfig {
            block_size: Some(1000),
            ..config(file.path())
        },
        UringConfig {
            name: "a/b".into(),
            ..config(file.path())
        },
    ] {
        let refused = UringBdev::open(bad);
        assert!(matches!(refused, Err(BdevError::Invalid(_))));
    }
}

#[test]
fn a_read_only_device_takes_no_writes() {
    let file = file();
    let reader = UringConfig {
        read_only: true,
        ..config(file.path())
    };
    let bdev = UringBdev::open(reader).unwrap();
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    for request in [write(0, &[1; 512]), bare(Op::Discard, range(0, 512))] {
        let done = rig.run(&mut *channel, request);
        assert_eq!(done.status, IoStatus::ReadOnly);
    }
    assert_eq!(rig.bytes(&mut *channel, 0, 512), [0; 512]);
    let flush = bare(Op::Flush, ByteRange::default());
    assert!(rig.run(&mut *channel, flush).status.is_ok());
    let done = rig.run(&mut *channel, read(BYTES as u64, 512));
    assert_eq!(done.status, IoStatus::OutOfRange);
}

#[test]
fn hints_and_extents_need_no_kernel() {
    let file = file();
    let bdev = open(file.path());
    let mut rig = Rig::new();
    let mut channel = rig.open(&bdev);
    let done = rig.run_op(&mut *channel, Op::Prefetch, range(0, 4096));
    assert!(done.status.is_ok());
    let done = rig.run_op(&mut *channel, Op::Extents, range(512, 4096));
    let Data::Extents(extents) = done.data else {
        panic!("no extents");
    };
    assert_eq!(extents, [crate::bdev::Extent::allocated(4096)]);
    let done = rig.run_op(&mut *channel, Op::Discard, range(0, 0));
    assert!(done.status.is_ok());
}

/// Writes and flushes one after the other, and tells how each ended.
struct Writer {
    channel: Box<dyn Channel>,
    statuses: mpsc::Sender<IoStatus>,
    left: u64,
}

impl Writer {
    fn start_next(&mut self, cx: &Cx) {
        let Some(left) = self.left.checked_sub(1) else {
            return;
        };
        self.left = left;
        let request = match left % 2 {
            0 => bare(Op::Flush, ByteRange::default()),
            _ => write(left * 4096, &[7; 4096]),
        };
        self.channel.submit(cx, request);
    }
}

impl Poller for Writer {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let mut done = Vec::new();
        let count = self.channel.poll(cx, &mut done);
        for completion in done {
            self.statuses.send(completion.status).unwrap();
            self.start_next(cx);
        }
        count
    }

    fn wake(&self) -> Wake {
        self.channel.wake()
    }
}

#[test]
fn completions_wake_a_reactor_that_sleeps() {
    const COUNT: u64 = 100;
    let file = file();
    let bdev = open(file.path());
    let (handles, handle) = mpsc::channel();
    let (statuses, ended) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        let config = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Interrupt,
            seed: 1,
        };
        let clock = Arc::new(MonotonicClock);
        let mut reactor = Reactor::new(&config, clock, Quiescence::new(1)).unwrap();
        handles.send(reactor.handle()).unwrap();
        reactor.run(&stopped);
    });
    let handle = handle.recv().unwrap();
    let start = move |cx: &Cx| {
        let mut writer = Writer {
            channel: Bdev::open(&bdev, cx).unwrap(),
            statuses,
            left: COUNT,
        };
        writer.start_next(cx);
        cx.add_poller("writer", Box::new(writer));
    };
    handle.send(Box::new(start)).unwrap();
    for _ in 0..COUNT {
        let status = ended.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(status.is_ok());
    }
    stop.store(true, Ordering::Release);
    handle.ring();
    thread.join().unwrap();
}
