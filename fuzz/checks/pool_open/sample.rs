//! The pool that inputs change: small, well used, and known sector by sector.

use super::super::rig::sectors::{SECTOR, fill};
use super::super::rig::{Rig, RigConfig};
use super::memory::{MemDisk, MemPmem};
use pmcache::bdev::{Channel, IoBuf, Op};
use pmcache::cache::{CacheOptions, segments_min};
use pmcache::media::{
    KSET_ALIGN, LAST_BYTES, Parsed, SUPERBLOCK_BYTES, crc, kset_bytes, parse_kset,
};
use pmcache::units::ByteRange;
use std::collections::BTreeSet;
use std::path::PathBuf;

pub(super) const SEGMENT: usize = 256 << 10;
const LANES: u32 = 2;
/// The volume: two subtrees, one for each lane.
const VOLUME_BYTES: u64 = 8 << 20;
/// Where all is written: the first of these bytes of each subtree.
pub(super) const USED_BYTES: u64 = 128 << 10;
pub(super) const SUBTREE_BYTES: u64 = 4 << 20;
/// Offset of a cache's own control items in its first segment, and their length.
const ITEMS: std::ops::Range<usize> = 256..896;

/// A place that has a checksum: where it begins, where its CRC is, and what that covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub(super) at: usize,
    crc_at: usize,
    pub(super) len: usize,
}

impl Sealed {
    fn computed(self, bytes: &[u8]) -> [u8; 4] {
        crc(&bytes[self.crc_at + 4..]).to_le_bytes()
    }

    /// Makes the checksum of `bytes`, which stand here, right.
    pub(super) fn seal(self, bytes: &mut [u8]) {
        let crc = self.computed(bytes);
        bytes[self.crc_at..][..4].copy_from_slice(&crc);
    }

    pub(super) fn is_good(self, bytes: &[u8]) -> bool {
        bytes[self.crc_at..][..4] == self.computed(bytes)
    }
}

/// The sealed places of a sample, by kind.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) superblocks: Vec<Sealed>,
    /// The cache's own control slots.
    pub(super) items: Vec<Sealed>,
    /// Info, generation and START of each segment.
    pub(super) slots: Vec<Sealed>,
    /// Ksets and LASTs, in order of their sequence.
    pub(super) ksets: Vec<Sealed>,
}

/// See the module.
pub(super) struct Sample {
    pub(super) image: Vec<u8>,
    pub(super) pmem: std::sync::Arc<MemPmem>,
    pub(super) disk: MemDisk,
    pub(super) places: Places,
    /// What a sector may hold: its number and a version; version 0 for zeroes.
    pub(super) written: BTreeSet<(u64, u32)>,
    /// Where the staging file stands, and what was in it.
    pub(super) staging: PathBuf,
    pub(super) staged: Vec<u8>,
    pub(super) dir: tempfile::TempDir,
}

pub(super) fn rig_config() -> RigConfig {
    RigConfig {
        reactors: 1,
        lanes: LANES,
        segment_bytes: SEGMENT as u64,
        segments: segments_min(LANES, SEGMENT as u64).into(),
        ..RigConfig::default()
    }
}

/// Fills a cache with versions.
struct Writer {
    rig: Rig,
    channel: Box<dyn Channel>,
    written: BTreeSet<(u64, u32)>,
    version: u32,
}

impl Writer {
    fn write(&mut self, at: u64, len: u64, fua: bool) {
        self.version += 1;
        let mut bytes = IoBuf::zeroed(usize::try_from(len).unwrap());
        let sectors = bytes.chunks_exact_mut(512);
        for (number, sector) in (at / SECTOR..).zip(sectors) {
            fill(sector, number, self.version);
            self.written.insert((number, self.version));
        }
        self.rig.write(&mut *self.channel, at, &bytes, fua);
    }

    fn zero(&mut self, at: u64, len: u64) {
        let sectors = at / SECTOR..(at + len) / SECTOR;
        self.written.extend(sectors.map(|number| (number, 0)));
        let op = Op::WriteZeroes {
            may_unmap: true,
            fua: false,
        };
        self.rig
            .act(&mut *self.channel, op, ByteRange::between(at, at + len));
    }

    /// More than the pool holds, so that segments are released and used again.
    fn go_round(&mut self) {
        for round in 0..60 {
            let at = (round % 3) * (32 << 10);
            self.write(at, 64 << 10, round % 3 == 0);
            self.write(SUBTREE_BYTES + at, 32 << 10, false);
        }
        self.rig.flush_all();
    }

    fn set_gc_percent(&self, gc_percent: u32) {
        let cache = self.rig.cache.as_ref().unwrap();
        let options = CacheOptions {
            gc_percent,
            ..cache.options()
        };
        cache.set_options(options).unwrap();
    }

    /// One-key ksets until little of the log's segment is left, and all that forgotten: a long log
    /// makes each input slow.
    fn come_near_the_end(&mut self) {
        self.set_gc_percent(0);
        let segment = |rig: &Rig| rig.cache.as_ref().unwrap().status().key_head.0;
        let before = segment(&self.rig);
        while segment(&self.rig) == before {
            self.write(0, 512, true);
        }
        for round in 0..1940 {
            self.write((round % 40) * 1024, 512, true);
        }
        self.rig.flush_all();
        for _ in 0..1500 {
            self.rig.step();
        }
        self.set_gc_percent(70);
    }

    /// One-key ksets until the log has gone on to another segment, then keys of all kinds.
    fn fill_log(&mut self, clean_stop: bool) {
        for round in 0..30 {
            self.write((round % 10) * 1024, 512, true);
        }
        self.rig.flush_all();
        for round in 0..40 {
            self.write((round % 30) * 1536, 512, true);
        }
        self.zero(8192, 12 << 10);
        self.zero(SUBTREE_BYTES - (32 << 10), 32 << 10);
        for at in [USED_BYTES - 4096, SUBTREE_BYTES + USED_BYTES - 8192] {
            self.rig.read(&mut *self.channel, at, 4096);
        }
        for round in 0..30 {
            self.write(round * 4096 + 512, 1024, false);
            self.write(SUBTREE_BYTES + round * 2048, 4096, false);
        }
        self.rig
            .act(&mut *self.channel, Op::Flush, ByteRange::default());
        if !clean_stop {
            self.write(0, 4096, false);
            self.write(SUBTREE_BYTES + 512, 1536, false);
        }
    }
}

impl Sample {
    /// A cache that was stopped cleanly, or died with keys that only the staging file has.
    pub(super) fn build(clean_stop: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = rig_config();
        let bytes = usize::try_from(config.segments + 1).unwrap() * SEGMENT;
        let pmem = std::sync::Arc::new(MemPmem::new(vec![0; bytes]));
        let disk = MemDisk::new(VOLUME_BYTES);
        let backing = std::sync::Arc::new(disk.clone());
        let rig = Rig::new(&config, pmem.clone(), backing, dir.path());
        let mut writer = Writer {
            channel: rig.open(0),
            rig,
            written: BTreeSet::new(),
            version: 0,
        };
        writer.go_round();
        writer.come_near_the_end();
        writer.fill_log(clean_stop);
        let Writer {
            mut rig,
            channel,
            written,
            ..
        } = writer;
        drop(channel);
        if clean_stop {
            rig.stop();
        }
        let staging = std::fs::read_dir(dir.path()).unwrap();
        let staging = staging.map(|entry| entry.unwrap().path()).next().unwrap();
        let staged = std::fs::read(&staging).unwrap();
        drop(rig);
        let image = pmem.image();
        Self {
            places: Places::find(&image),
            pmem: std::sync::Arc::new(MemPmem::new(image.clone())),
            image,
            disk: disk.freeze(),
            written,
            staging,
            staged,
            dir,
        }
    }
}

impl Places {
    fn find(image: &[u8]) -> Self {
        let sealed = |at, crc_at, len| Sealed { at, crc_at, len };
        let mut places = Self {
            superblocks: [0, 2 * SUPERBLOCK_BYTES]
                .map(|at| sealed(at, 8, SUPERBLOCK_BYTES))
                .to_vec(),
            ..Self::default()
        };
        let mut ksets = Vec::new();
        for segment in (SEGMENT..image.len()).step_by(SEGMENT) {
            let pairs = (0..192).step_by(64).chain(ITEMS.step_by(64));
            for at in pairs.flat_map(|item| [segment + item, segment + item + 4096]) {
                let kind = match at - segment {
                    256..4096 | 4352.. if segment == SEGMENT => &mut places.items,
                    256..4096 | 4352.. => continue,
                    _ => &mut places.slots,
                };
                kind.push(sealed(at, 0, 64));
            }
            for at in (segment + 8192..segment + SEGMENT).step_by(KSET_ALIGN) {
                let (sequence, len) = match parse_kset(&image[at..]) {
                    Ok(Parsed::Kset(kset)) => (kset.header.sequence, kset_bytes(kset.keys.len())),
                    Ok(Parsed::Last(header, _)) => (header.sequence, LAST_BYTES),
                    Err(_) => continue,
                };
                ksets.push((sequence, sealed(at, 0, len)));
            }
        }
        ksets.sort_by_key(|(sequence, _)| *sequence);
        places.ksets = ksets.into_iter().map(|(_, place)| place).collect();
        places
    }
}
