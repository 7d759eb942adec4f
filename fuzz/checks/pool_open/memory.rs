//! A medium and a backing in ordinary memory that are quickly made what they were before.

use super::super::rig::sectors::{SECTOR, fill};
use pmcache::bdev::{
    Barrier, BarrierTicket, Bdev, BdevError, BdevInfo, Channel, Completion, Data, IoBuf, IoStatus,
    MemView, Op, Persistence, Pmem, PmemError, Request, Supports,
};
use reactors::{Cx, Wake};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

const PAGE: usize = 4096;

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    /// Pages that may differ from what it was reset to.
    touched: BTreeSet<usize>,
}

impl Content {
    fn write(&mut self, at: usize, src: &[u8]) {
        let end = at + src.len();
        self.bytes[at..end].copy_from_slice(src);
        if !src.is_empty() {
            self.touched.extend(at / PAGE..=(end - 1) / PAGE);
        }
    }
}

/// A medium in memory.
#[derive(Debug)]
pub(super) struct MemPmem {
    content: RwLock<Content>,
    bytes: u64,
}

impl MemPmem {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: bytes.len() as u64,
            content: RwLock::new(Content {
                bytes,
                touched: BTreeSet::new(),
            }),
        }
    }

    pub(super) fn image(&self) -> Vec<u8> {
        self.content.read().unwrap().bytes.clone()
    }

    /// Makes it hold `image` again, which it was made of.
    pub(super) fn reset(&self, image: &[u8]) {
        let mut content = self.content.write().unwrap();
        for page in std::mem::take(&mut content.touched) {
            let at = page * PAGE;
            let end = image.len().min(at + PAGE);
            content.bytes[at..end].copy_from_slice(&image[at..end]);
        }
    }

    /// Where it may differ from what it was made of.
    pub(super) fn touched(&self) -> Vec<(usize, Vec<u8>)> {
        let content = self.content.read().unwrap();
        let pages = content.touched.iter().map(|page| page * PAGE);
        pages
            .map(|at| {
                (
                    at,
                    content.bytes[at..content.bytes.len().min(at + PAGE)].to_vec(),
                )
            })
            .collect()
    }

    pub(super) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        self.content.read().unwrap().bytes[at..at + len].to_vec()
    }

    pub(super) fn write(&self, at: usize, src: &[u8]) {
        self.content.write().unwrap().write(at, src);
    }
}

impl Pmem for MemPmem {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn persistence(&self) -> Persistence {
        Persistence::Volatile
    }

    fn store(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        self.write(index(at), src);
        Ok(())
    }

    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        let content = self.content.read().unwrap();
        dst.copy_from_slice(&content.bytes[index(at)..index(at) + dst.len()]);
        Ok(())
    }

    fn view(&self, at: u64, len: usize) -> Result<MemView, PmemError> {
        let bytes = self.read(index(at), len);
        Ok(MemView::from_buf(IoBuf::copy_of(&bytes)))
    }

    fn check(&self, _at: u64, _len: usize) -> Result<(), PmemError> {
        Ok(())
    }

    fn write_back(&self, at: u64, len: u64) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.bytes));
    }

    fn open_barrier(&self, _cx: &Cx) -> Result<Box<dyn Barrier>, BdevError> {
        Ok(Box::new(NoBarrier(0)))
    }

    fn barrier_wait(&self) -> Result<(), PmemError> {
        Ok(())
    }
}

#[derive(Debug)]
struct NoBarrier(u64);

impl Barrier for NoBarrier {
    fn submit(&mut self, _cx: &Cx) -> BarrierTicket {
        self.0 += 1;
        BarrierTicket(self.0)
    }

    fn poll(&mut self, _cx: &Cx) -> Result<BarrierTicket, PmemError> {
        Ok(BarrierTicket(self.0))
    }

    fn wake(&self) -> Wake {
        Wake::OnEvent
    }
}

/// The version that every sector of a fresh [`MemDisk`] holds.
pub(super) const DISK_VERSION: u32 = 0xd15c;

/// A backing whose sectors say who they are until they are written.
#[derive(Clone, Debug)]
pub(super) struct MemDisk {
    info: Arc<BdevInfo>,
    /// What it was copied with.
    before: Arc<BTreeMap<u64, Vec<u8>>>,
    written: Arc<RwLock<BTreeMap<u64, Vec<u8>>>>,
}

impl MemDisk {
    pub(super) fn new(bytes: u64) -> Self {
        let info = BdevInfo {
            name: "disk0".into(),
            product_name: "test disk",
            uuid: uuid::Uuid::from_bytes([9; 16]),
            block_size: 512,
            blocks: bytes / SECTOR,
            volatile_cache: true,
            read_only: false,
            supports: Supports::default(),
        };
        Self {
            info: Arc::new(info),
            before: Arc::default(),
            written: Arc::default(),
        }
    }

    /// One that holds the same now, and will not change with this one.
    pub(super) fn freeze(&self) -> Self {
        let mut before = BTreeMap::clone(&self.before);
        before.extend(self.written.read().unwrap().clone());
        Self {
            info: self.info.clone(),
            before: Arc::new(before),
            written: Arc::default(),
        }
    }

    /// A frozen one as it was.
    pub(super) fn fresh(&self) -> Self {
        Self {
            written: Arc::default(),
            ..self.clone()
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let mut written = self.written.write().unwrap();
        let sectors = bytes.chunks_exact(index(SECTOR));
        written.extend((at / SECTOR..).zip(sectors.map(<[u8]>::to_vec)));
    }

    fn read(&self, at: u64, bytes: &mut [u8]) {
        let written = self.written.read().unwrap();
        let sectors = bytes.chunks_exact_mut(index(SECTOR));
        for (number, sector) in (at / SECTOR..).zip(sectors) {
            match written.get(&number).or_else(|| self.before.get(&number)) {
                Some(bytes) => sector.copy_from_slice(bytes),
                None => fill(sector, number, DISK_VERSION),
            }
        }
    }
}

impl Bdev for MemDisk {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.clone()
    }

    fn open(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(MemChannel {
            disk: self.clone(),
            done: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct MemChannel {
    disk: MemDisk,
    done: Vec<Completion>,
}

impl Channel for MemChannel {
    fn submit(&mut self, _cx: &Cx, mut request: Request) {
        // Whoever stands on a bdev keeps to its rules, whatever its media say.
        assert_eq!(self.disk.info.admit(&request), Ok(()), "{request:?}");
        let (at, len) = (request.range.start(), index(request.range.len()));
        match (request.op, &mut request.data) {
            (Op::Read, Data::Buf(buf)) => self.disk.read(at, buf),
            (Op::Write { .. }, Data::Buf(buf)) => self.disk.write(at, buf),
            (Op::Write { .. }, Data::Gather(views)) => {
                let views: Vec<&[u8]> = views.iter().map(|view| &view[..]).collect();
                self.disk.write(at, &views.concat());
            }
            (Op::WriteZeroes { .. } | Op::Discard, _) => self.disk.write(at, &vec![0; len]),
            (Op::Flush, _) => {}
            (op, data) => panic!("{op:?} with {data:?}"),
        }
        self.done.push(request.complete(IoStatus::Ok));
    }

    fn poll(&mut self, _cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let count = self.done.len();
        done.append(&mut self.done);
        u32::try_from(count).unwrap()
    }

    fn wake(&self) -> Wake {
        if self.done.is_empty() {
            Wake::OnEvent
        } else {
            Wake::Now
        }
    }
}
