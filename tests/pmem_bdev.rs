//! The pmem bdev through its public face: what it opens, what it refuses, what it keeps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use pmcache::bdev::pmem::{FlushMethod, PersistenceWish, PmemBdev, PmemConfig, PmemKind};
use pmcache::bdev::{
    Bdev, BdevError, Channel, Completion, Data, IoBuf, IoStatus, MemView, Op, Persistence, Request,
};
use pmcache::units::ByteRange;
use reactors::{Clock, IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A directory on whatever disk the build is on: `/tmp` is RAM on many machines.
fn on_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn in_ram() -> Option<TempDir> {
    let dir = tempfile::tempdir_in("/dev/shm");
    if dir.is_err() {
        println!("skipped: no /dev/shm");
    }
    dir.ok()
}

fn config(path: &Path) -> PmemConfig {
    let mut config = PmemConfig::new("p0", path);
    config.lock_wait = Duration::ZERO;
    config
}

fn creating(path: &Path, size: u64) -> PmemConfig {
    let mut config = config(path);
    config.size = Some(size);
    config.create_file = true;
    config
}

fn refusal(config: PmemConfig) -> BdevError {
    PmemBdev::open(config).expect_err("should be refused")
}

#[test]
fn an_ordinary_file_is_msync_and_says_so() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let bdev = PmemBdev::open(creating(&path, 4 * MIB)).unwrap();
    if bdev.kind() != PmemKind::File {
        println!("skipped: the build is on {:?}", bdev.kind());
        return;
    }
    assert_eq!(bdev.persistence(), Persistence::Msync);
    assert_eq!(bdev.flush_method(), FlushMethod::Msync);
    assert!(bdev.info().volatile_cache);
    assert_eq!(bdev.page_size(), 4096);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 >= 4 * MIB, "sparse");
    let shown = serde_json::to_value(bdev.describe()).unwrap();
    assert_eq!(shown["kind"], "file");
    assert_eq!(shown["persistence"], "msync");
    assert_eq!(shown["flush_method"], "msync");
    assert_eq!(shown["size"], 4 * MIB);
}

#[test]
fn a_file_in_ram_is_volatile_and_says_so() {
    let Some(dir) = in_ram() else { return };
    let path = dir.path().join("pool.pmem");
    let bdev = PmemBdev::open(creating(&path, 4 * MIB)).unwrap();
    assert_eq!(bdev.kind(), PmemKind::Memory);
    assert_eq!(bdev.persistence(), Persistence::Volatile);
    assert_eq!(bdev.flush_method(), FlushMethod::None);
    drop(bdev);
    let mut synced = config(&path);
    synced.persistence = PersistenceWish::Msync;
    let bdev = PmemBdev::open(synced).unwrap();
    assert_eq!(bdev.persistence(), Persistence::Msync);
    drop(bdev);
    let mut dax = config(&path);
    dax.persistence = PersistenceWish::Dax;
    assert!(matches!(refusal(dax), BdevError::NotSupported(_)));
}

#[test]
fn anonymous_memory_needs_a_size_and_is_volatile() {
    let mut anonymous = PmemConfig::new("ram", "anon:");
    assert!(matches!(refusal(anonymous.clone()), BdevError::Invalid(_)));
    anonymous.size = Some(8 * MIB);
    let bdev = PmemBdev::open(anonymous.clone()).unwrap();
    assert_eq!(bdev.kind(), PmemKind::Memory);
    assert_eq!(bdev.persistence(), Persistence::Volatile);
    assert_eq!(bdev.info().bytes(), 8 * MIB);
    for wish in [PersistenceWish::Dax, PersistenceWish::Msync] {
        anonymous.persistence = wish;
        assert!(matches!(
            refusal(anonymous.clone()),
            BdevError::NotSupported(_)
        ));
    }
}

#[test]
fn dax_on_an_ordinary_file_is_refused_with_the_reason() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let bdev = PmemBdev::open(creating(&path, MIB)).unwrap();
    let kind = bdev.kind();
    drop(bdev);
    if kind != PmemKind::File {
        println!("skipped: the build is on {kind:?}");
        return;
    }
    let mut dax = config(&path);
    dax.persistence = PersistenceWish::Dax;
    let error = refusal(dax).to_string();
    assert!(
        error.contains("MAP_SYNC") && error.contains("pool.pmem"),
        "{error}"
    );
    let mut volatile = config(&path);
    volatile.persistence = PersistenceWish::Volatile;
    let bdev = PmemBdev::open(volatile).unwrap();
    assert_eq!(bdev.persistence(), Persistence::Volatile);
    assert_eq!(bdev.kind(), PmemKind::File);
}

#[test]
fn one_user_at_a_time_and_the_lock_lives_as_long_as_a_view() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let bdev = PmemBdev::open(creating(&path, MIB)).unwrap();
    assert!(matches!(refusal(config(&path)), BdevError::Busy(_)));
    let view = bdev.pmem().unwrap().view(0, 512).unwrap();
    drop(bdev);
    assert!(matches!(refusal(config(&path)), BdevError::Busy(_)));
    drop(view);
    PmemBdev::open(config(&path)).unwrap();
}

#[test]
fn an_open_waits_for_the_lock_of_a_process_that_is_dying() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let holder = PmemBdev::open(creating(&path, MIB)).unwrap();
    let mut patient = config(&path);
    patient.lock_wait = Duration::from_secs(30);
    let waiter = std::thread::spawn(move || PmemBdev::open(patient));
    assert!(matches!(refusal(config(&path)), BdevError::Busy(_)));
    drop(holder);
    waiter.join().unwrap().unwrap();
}

#[test]
fn an_existing_file_keeps_its_size_and_content() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    fs::write(&path, vec![7; 64 * 1024]).unwrap();
    for size in [32 * 1024, 128 * 1024] {
        assert!(matches!(
            refusal(creating(&path, size)),
            BdevError::Invalid(_)
        ));
        let mut given = config(&path);
        given.size = Some(size);
        assert!(matches!(refusal(given), BdevError::Invalid(_)));
    }
    assert_eq!(fs::read(&path).unwrap(), vec![7; 64 * 1024]);
    let bdev = PmemBdev::open(creating(&path, 64 * 1024)).unwrap();
    let mut back = vec![0; 64 * 1024];
    bdev.pmem().unwrap().load(0, &mut back).unwrap();
    assert_eq!(back, vec![7; 64 * 1024]);
}

#[test]
fn holes_are_filled_when_a_file_is_opened_again() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let file = fs::File::create(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 < 4 * MIB);
    PmemBdev::open(config(&path)).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 >= 4 * MIB);
}

#[test]
fn what_can_not_be_a_medium_is_refused_and_leaves_no_file() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let error = refusal(config(&path));
    assert!(
        matches!(&error, BdevError::Os { source, .. } if source.kind() == std::io::ErrorKind::NotFound),
        "{error}"
    );
    let mut no_size = creating(&path, MIB);
    no_size.size = None;
    assert!(matches!(refusal(no_size), BdevError::Invalid(_)));
    let mut block = creating(&path, MIB);
    block.block_size = 1024;
    assert!(matches!(refusal(block), BdevError::Invalid(_)));
    assert!(matches!(
        refusal(creating(&path, 1000)),
        BdevError::Invalid(_)
    ));
    let mut too_large = creating(&path, 1 << 60);
    too_large.persistence = PersistenceWish::Msync;
    assert!(matches!(refusal(too_large), BdevError::Os { .. }));
    assert!(!path.exists());
    let directory = refusal(config(dir.path()));
    assert!(
        matches!(directory, BdevError::NotSupported(_)),
        "{directory}"
    );
    let device = refusal(config(Path::new("/dev/null")));
    assert!(matches!(device, BdevError::NotSupported(_)), "{device}");
}

#[test]
fn an_empty_file_left_by_a_crashed_create_gets_its_size() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    fs::write(&path, b"").unwrap();
    assert!(matches!(refusal(config(&path)), BdevError::Invalid(_)));
    let bdev = PmemBdev::open(creating(&path, MIB)).unwrap();
    assert_eq!(bdev.info().bytes(), MIB);
}

#[test]
fn identity_follows_the_path_and_the_operator() {
    let dir = on_disk();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let first = PmemBdev::open(creating(&a, MIB)).unwrap().info().uuid;
    let again = PmemBdev::open(config(&a)).unwrap().info().uuid;
    let other = PmemBdev::open(creating(&b, MIB)).unwrap().info().uuid;
    assert_eq!(first, again);
    assert_ne!(first, other);
    let mut given = config(&a);
    given.uuid = Some(other);
    assert_eq!(PmemBdev::open(given).unwrap().info().uuid, other);
}

struct Rig {
    reactor: Reactor,
    channel: Box<dyn Channel>,
}

impl Rig {
    fn new(bdev: &Arc<PmemBdev>) -> Self {
        let config = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Poll,
            seed: 1,
        };
        let reactor = Reactor::new(&config, Arc::new(MonotonicClock), Quiescence::new(1)).unwrap();
        let channel = bdev.as_ref().open(reactor.cx()).unwrap();
        Self { reactor, channel }
    }

    fn run(&mut self, op: Op, start: u64, len: u64, data: Data) -> Completion {
        let range = ByteRange::new(start, len).unwrap();
        let request = Request {
            tag: 42,
            op,
            range,
            data,
        };
        self.channel.submit(self.reactor.cx(), request);
        let deadline = MonotonicClock.now().after(30_000_000_000);
        let mut done = Vec::new();
        while done.is_empty() {
            assert!(MonotonicClock.now() < deadline, "{op:?} does not complete");
            self.channel.poll(self.reactor.cx(), &mut done);
        }
        assert_eq!((done.len(), done[0].tag), (1, 42));
        done.remove(0)
    }

    fn read(&mut self, start: u64, len: usize) -> Vec<u8> {
        let data = Data::Buf(IoBuf::zeroed(len));
        let done = self.run(Op::Read, start, len as u64, data);
        assert_eq!(done.status, IoStatus::Ok);
        done.data.into_buf().unwrap().to_vec()
    }
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        bytes.push(state.to_be_bytes()[0]);
    }
    bytes
}

fn exercise(bdev: &Arc<PmemBdev>) {
    let mut rig = Rig::new(bdev);
    // More than one turn of copying, and not a multiple of it.
    let large = noise(5 * 512 * 1024 + 512, 1);
    let len = large.len() as u64;
    let write = Op::Write { fua: false };
    let done = rig.run(write, 512, len, Data::Buf(IoBuf::copy_of(&large)));
    assert_eq!(done.status, IoStatus::Ok);
    assert_eq!(&*done.data.into_buf().unwrap(), large);
    assert_eq!(rig.read(512, large.len()), large);

    let views: Vec<MemView> = [&large[..100], &large[100..1_500_000], &large[1_500_000..]]
        .iter()
        .map(|part| MemView::from_buf(IoBuf::copy_of(part)))
        .collect();
    let fua = Op::Write { fua: true };
    let done = rig.run(fua, 1024, len, Data::Gather(views));
    assert_eq!(done.status, IoStatus::Ok);
    assert_eq!(rig.read(1024, large.len()), large);

    let zero = Op::WriteZeroes {
        may_unmap: false,
        fua: true,
    };
    assert_eq!(
        rig.run(zero, 4096, 2 << 20, Data::None).status,
        IoStatus::Ok
    );
    let mut model = large.clone();
    model[4096 - 1024..][..2 << 20].fill(0);
    assert_eq!(rig.read(1024, large.len()), model);

    assert_eq!(rig.run(Op::Flush, 0, 0, Data::None).status, IoStatus::Ok);
    assert_eq!(
        rig.run(Op::Discard, 0, 4096, Data::None).status,
        IoStatus::Ok
    );
    let extents = rig.run(Op::Extents, 0, 8192, Data::None);
    assert!(matches!(extents.data, Data::Extents(found) if found[0].len == 8192));

    let past_end = rig.run(Op::Read, 8 * MIB, 512, Data::Buf(IoBuf::zeroed(512)));
    assert_eq!(past_end.status, IoStatus::OutOfRange);
    let odd = rig.run(Op::Read, 100, 512, Data::Buf(IoBuf::zeroed(512)));
    assert_eq!(odd.status, IoStatus::Unaligned);
}

#[test]
fn blocks_of_anonymous_memory_read_back() {
    let mut anonymous = PmemConfig::new("ram", "anon:");
    anonymous.size = Some(8 * MIB);
    exercise(&PmemBdev::open(anonymous).unwrap());
}

#[test]
fn blocks_of_a_file_read_back_and_survive_reopening() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let bdev = PmemBdev::open(creating(&path, 8 * MIB)).unwrap();
    exercise(&bdev);
    let before = Rig::new(&bdev).read(0, 8 << 20);
    assert!(before.iter().any(|byte| *byte != 0));
    drop(bdev);
    let bdev = PmemBdev::open(config(&path)).unwrap();
    bdev.pmem().unwrap().settle().unwrap();
    assert!(Rig::new(&bdev).read(0, 8 << 20) == before);
    drop(bdev);
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn a_file_that_shrinks_fails_what_wants_its_end_and_nothing_else() {
    let dir = on_disk();
    let path = dir.path().join("pool.pmem");
    let bdev = PmemBdev::open(creating(&path, 8 * MIB)).unwrap();
    let mut rig = Rig::new(&bdev);
    let content = noise(8 << 20, 2);
    let write = Op::Write { fua: false };
    let all = Data::Buf(IoBuf::copy_of(&content));
    assert_eq!(rig.run(write, 0, 8 * MIB, all).status, IoStatus::Ok);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    for _ in 0..2 {
        assert!(rig.read(0, 4 << 20) == content[..4 << 20]);
        let beyond = Data::Buf(IoBuf::zeroed(8192));
        let done = rig.run(Op::Read, 4 * MIB - 4096, 8192, beyond);
        assert_eq!(done.status, IoStatus::IoError);
        let beyond = Data::Buf(IoBuf::zeroed(8192));
        let done = rig.run(write, 6 * MIB, 8192, beyond);
        assert_eq!(done.status, IoStatus::IoError);
        let views = vec![MemView::from_buf(IoBuf::zeroed(512)); 2];
        let done = rig.run(write, 7 * MIB, 1024, Data::Gather(views));
        assert_eq!(done.status, IoStatus::IoError);
        let zero = Op::WriteZeroes {
            may_unmap: false,
            fua: true,
        };
        let done = rig.run(zero, 5 * MIB, MIB, Data::None);
        assert_eq!(done.status, IoStatus::IoError);
        assert_eq!(rig.run(Op::Flush, 0, 0, Data::None).status, IoStatus::Ok);
    }
    assert_eq!(bdev.describe().lost_bytes % 4096, 0);
    assert!(bdev.describe().lost_bytes >= 4 * 4096);
    // The rest is written as ever, and nothing behind the end.
    let start = Data::Buf(IoBuf::copy_of(&content[..512]));
    assert_eq!(rig.run(write, 512, 512, start).status, IoStatus::Ok);
    assert!(rig.read(512, 512) == content[..512]);
    drop((rig, bdev));
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 * MIB);
}
