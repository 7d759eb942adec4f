//! A small cache over a medium that can be damaged, with one client.

use super::rng::Rng;
use super::slow_pmem::SlowPmem;
use super::{Rig, RigConfig};
use pmcache::bdev::{Bdev, Channel, Data, IoBuf, IoStatus, MallocBdev, MallocConfig, Op, Request};
use pmcache::cache::{Cache, CacheOptions, Pool};
use pmcache::units::ByteRange;
use std::sync::Arc;

pub(crate) const VOLUME: u64 = 16 << 20;

pub(crate) struct Bench {
    pub(crate) rig: Rig,
    pub(crate) config: RigConfig,
    pub(crate) pmem: SlowPmem,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) channel: Option<Box<dyn Channel>>,
}

/// How data are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Flipped,
    Poisoned,
}

pub(crate) fn malloc() -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: "disk0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: VOLUME / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

/// Bytes that no other number gives, in any of their sectors.
pub(crate) fn pattern(number: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(number.wrapping_mul(0x9e37_79b9) + 1);
    (0..len / 8)
        .flat_map(|_| rng.next().to_le_bytes())
        .collect()
}

pub(crate) fn range(at: u64, len: u64) -> ByteRange {
    ByteRange::between(at, at + len)
}

impl Bench {
    pub(crate) fn new(config: RigConfig) -> Self {
        Self::over(config, malloc())
    }

    pub(crate) fn over(config: RigConfig, backing: Arc<dyn Bdev>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bytes = (config.segments + 10) * config.segment_bytes;
        let pmem = SlowPmem::new(bytes, 3, config.seed);
        let rig = Rig::new(&config, Arc::new(pmem.clone()), backing, dir.path());
        let mut bench = Self {
            rig,
            config,
            pmem,
            dir,
            channel: None,
        };
        bench.open();
        bench
    }

    pub(crate) fn open(&mut self) {
        self.channel = Some(self.rig.open(0));
    }

    pub(crate) fn cache(&self) -> Arc<Cache> {
        self.rig.cache.clone().unwrap()
    }

    pub(crate) fn run(&mut self, op: Op, range: ByteRange, data: Data) -> (IoStatus, Data) {
        let mut channel = self.channel.take().unwrap();
        let request = Request {
            tag: 1,
            op,
            range,
            data,
        };
        let done = self.rig.run(&mut *channel, 0, request);
        self.channel = Some(channel);
        (done.status, done.data)
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let data = Data::Buf(IoBuf::copy_of(bytes));
        let (status, _) = self.run(
            Op::Write { fua: false },
            range(at, bytes.len() as u64),
            data,
        );
        assert_eq!(status, IoStatus::Ok);
    }

    /// What is read, or the error.
    pub(crate) fn read(&mut self, at: u64, len: u64) -> Result<Vec<u8>, IoStatus> {
        let data = Data::Buf(IoBuf::zeroed(usize::try_from(len).unwrap()));
        match self.run(Op::Read, range(at, len), data) {
            (IoStatus::Ok, data) => Ok(data.into_buf().unwrap().to_vec()),
            (status, _) => Err(status),
        }
    }

    pub(crate) fn act(&mut self, op: Op, range: ByteRange) {
        assert_eq!(self.run(op, range, Data::None).0, IoStatus::Ok, "{op:?}");
    }

    pub(crate) fn flush(&mut self) {
        self.act(Op::Flush, ByteRange::default());
    }

    pub(crate) fn backing_channel(&mut self) -> Box<dyn Channel> {
        self.rig.backing.open(self.rig.data[0].cx()).unwrap()
    }

    pub(crate) fn write_backing(&mut self, at: u64, bytes: &[u8]) {
        let mut channel = self.backing_channel();
        self.rig.write(&mut *channel, at, bytes, false);
    }

    pub(crate) fn read_backing(&mut self, at: u64, len: usize) -> Vec<u8> {
        let mut channel = self.backing_channel();
        self.rig.read(&mut *channel, at, len)
    }

    /// Damages the data that begin with these bytes, wherever they stand.
    pub(crate) fn damage(&mut self, bytes: &[u8], how: How) {
        let places = self.pmem.find(bytes);
        assert_eq!(places.len(), 1, "the data stand in one place");
        match how {
            How::Flipped => self.pmem.flip(places[0] + 64, 8),
            How::Poisoned => self.pmem.refuse_loads(places[0]..places[0] + 256),
        }
    }

    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Cache) -> bool) {
        let cache = self.cache();
        for _ in 0..400_000 {
            if done(&cache) {
                return;
            }
            self.rig.step();
        }
        panic!("{what}: {:?} {:?}", cache.status(), cache.gc_figures());
    }

    /// Stops and loads again.
    pub(crate) fn restart(&mut self) {
        self.channel = None;
        self.rig.stop();
        self.rig.load();
        self.open();
    }

    /// The process dies, and another one loads.
    pub(crate) fn die(self) -> Self {
        let Self {
            rig,
            config,
            pmem,
            dir,
            channel,
        } = self;
        let (_, backing) = rig.die();
        drop(channel);
        let pool = Pool::open(Arc::new(pmem.clone())).unwrap();
        let mut rig = Rig::over(&config, pool, backing, dir.path());
        rig.load();
        let mut bench = Self {
            rig,
            config,
            pmem,
            dir,
            channel: None,
        };
        bench.open();
        bench
    }

    /// The power goes, and the medium keeps what it likes of what was not durable.
    pub(crate) fn lose_power(mut self, rng: &mut Rng) -> Self {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        self.pmem = self.pmem.cut_power(rng);
        self.die()
    }

    pub(crate) fn set_options(&mut self, change: impl FnOnce(&mut CacheOptions)) {
        let cache = self.cache();
        let mut options = cache.options();
        change(&mut options);
        cache.set_options(options).unwrap();
    }
}
