//! Open ksets outlive the process: their keys stand in a file on tmpfs, which dies with the power and
//! with nothing less.
#![expect(
    unsafe_code,
    reason = "maps the staging file, which only this process opens"
)]

use super::CacheError;
use crate::media::{KEY_BYTES, KEYS_MAX, Key};
use memmap2::{MmapMut, MmapOptions};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, compiler_fence};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

/// Slots that a lane has: one open kset and those that wait to be stored.
pub(crate) const SLOTS: usize = 8;
const SLOT_HEADER: usize = 64;
const SLOT_BYTES: usize = SLOT_HEADER + KEYS_MAX * KEY_BYTES;
/// Behind a lane's slots: the last sequence that one of its ksets got.
const LAST_GIVEN: usize = SLOTS * SLOT_BYTES;
/// A lane's slots, in whole pages, so that each lane can map its own.
const LANE_BYTES: usize = (LAST_GIVEN + 8).next_multiple_of(4096);
const SECTION_HEADER: usize = 4096;
const LANES: usize = 128;
const SECTION_BYTES: u64 = (SECTION_HEADER + LANES * LANE_BYTES) as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"PMCSTAG2");

/// The staging file of a pool.
#[derive(Debug)]
pub(crate) struct StagingFile {
    /// None if there is none and only a copy is wanted.
    file: Option<File>,
    path: PathBuf,
    /// What is mapped is a copy: the file stays as it is.
    is_copy: bool,
}

/// What a section's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SectionHeader {
    pub(crate) cache: [u8; 16],
    pub(crate) incarnation: u32,
    pub(crate) lanes: u32,
    /// The boot of the machine in which it was written.
    pub(crate) boot_id: [u8; 16],
}

fn os(path: &Path, what: &str, source: std::io::Error) -> CacheError {
    CacheError::Os {
        what: format!("{what} {}", path.display()),
        source,
    }
}

impl StagingFile {
    fn path(run_dir: &Path, pool: [u8; 16]) -> PathBuf {
        run_dir.join(format!("{}.staging", Uuid::from_bytes(pool)))
    }

    /// Removes the file of a pool, if there is one: nothing that is wanted stands in it.
    pub(crate) fn remove(run_dir: &Path, pool: [u8; 16]) -> Result<(), CacheError> {
        let path = Self::path(run_dir, pool);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(os(&path, "remove", error))
            }
            _ => Ok(()),
        }
    }

    /// Opens or makes `<run_dir>/<pool>.staging`, for this user only.
    pub(crate) fn open(run_dir: &Path, pool: [u8; 16]) -> Result<Self, CacheError> {
        let path = Self::path(run_dir, pool);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| os(&path, "open", e))?;
        Ok(Self {
            file: Some(file),
            path,
            is_copy: false,
        })
    }

    /// As [`StagingFile::open`], but what is mapped is a copy, also of a file that is not there.
    pub(crate) fn copy_of(run_dir: &Path, pool: [u8; 16]) -> Result<Self, CacheError> {
        let path = Self::path(run_dir, pool);
        let file = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(os(&path, "open", error)),
        };
        let is_copy = true;
        Ok(Self {
            file,
            path,
            is_copy,
        })
    }

    /// Anonymous memory with what the file has there; zeroes behind its end.
    fn map_copy(&self, at: u64, len: usize) -> Result<MmapMut, CacheError> {
        let fail = |e| os(&self.path, "copy", e);
        let mut map = MmapMut::map_anon(len).map_err(fail)?;
        let mut done = 0;
        while let Some(file) = &self.file
            && done < len
        {
            match file
                .read_at(&mut map[done..], at + done as u64)
                .map_err(fail)?
            {
                0 => break,
                count => done += count,
            }
        }
        Ok(map)
    }

    fn map(&self, at: u64, len: usize) -> Result<MmapMut, CacheError> {
        let end = at + len as u64;
        let fail = |e| os(&self.path, "map", e);
        let Some(file) = self.file.as_ref().filter(|_| !self.is_copy) else {
            return self.map_copy(at, len);
        };
        if file.metadata().map_err(fail)?.len() < end {
            file.set_len(end).map_err(fail)?;
        }
        // A hole would be a SIGBUS when tmpfs is full: take the pages now.
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), at, len as u64)
            .map_err(|e| os(&self.path, "allocate", e.into()))?;
        // SAFETY: the file is this pool's alone (the pool's lock is held while it is mapped, and its
        // mode keeps other users out), so nobody else changes or truncates it.
        unsafe { MmapOptions::new().offset(at).len(len).map_mut(file) }.map_err(fail)
    }

    /// Maps the header of section `number` (the cache's place in the superblock's table).
    pub(crate) fn header(&self, number: usize) -> Result<Section, CacheError> {
        let at = number as u64 * SECTION_BYTES;
        Ok(Section {
            map: self.map(at, SECTION_HEADER)?,
        })
    }

    /// Maps the slots of one lane of section `number`.
    pub(crate) fn lane(&self, number: usize, lane: usize) -> Result<LaneStaging, CacheError> {
        let at = number as u64 * SECTION_BYTES + (SECTION_HEADER + lane * LANE_BYTES) as u64;
        Ok(LaneStaging {
            map: self.map(at, LANE_BYTES)?,
        })
    }
}

/// A cache's section: its header.
#[derive(Debug)]
pub(crate) struct Section {
    map: MmapMut,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

impl Section {
    /// What the header says; nothing if it was never written.
    pub(crate) fn read(&self) -> Option<SectionHeader> {
        if word(&self.map, 0) != MAGIC {
            return None;
        }
        let numbers = word(&self.map, 24);
        Some(SectionHeader {
            cache: self.map[8..24].try_into().ok()?,
            incarnation: u32::try_from(numbers & 0xffff_ffff).ok()?,
            lanes: u32::try_from(numbers >> 32).ok()?,
            boot_id: self.map[32..48].try_into().ok()?,
        })
    }

    /// Writes the header. One of the same cache and boot changes in a single word: a process that dies
    /// here leaves the old header or the new one, and the slots are found with both.
    pub(crate) fn write(&mut self, header: &SectionHeader) {
        let numbers = u64::from(header.incarnation) | u64::from(header.lanes) << 32;
        let same = self.read().is_some_and(|old| {
            let incarnation = header.incarnation;
            let old = SectionHeader { incarnation, ..old };
            old == *header
        });
        if !same {
            self.map[..8].fill(0);
            compiler_fence(Ordering::SeqCst);
            self.map[8..24].copy_from_slice(&header.cache);
            self.map[32..48].copy_from_slice(&header.boot_id);
        }
        self.map[24..32].copy_from_slice(&numbers.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
        if !same {
            self.map[..8].copy_from_slice(&MAGIC.to_le_bytes());
        }
    }
}

/// The slots of one lane; only its owner touches them.
///
/// A slot: `order` u64 (0: free; rises in the order in which the lane filled them), `sequence` u64
/// (0: no place in the log yet), `count` u64, then the keys.
#[derive(Debug)]
pub(crate) struct LaneStaging {
    map: MmapMut,
}

/// A slot that an earlier process left.
#[derive(Clone, Debug)]
pub(crate) struct StagedKset {
    pub(crate) order: u64,
    pub(crate) sequence: u64,
    pub(crate) keys: Vec<Key>,
}

impl LaneStaging {
    fn put(&mut self, slot: usize, at: usize, value: u64) {
        let at = slot * SLOT_BYTES + at;
        // The process may be killed between any two stores; the compiler must keep their order (the
        // kernel sees them in program order once the process is dead).
        compiler_fence(Ordering::SeqCst);
        self.map[at..at + 8].copy_from_slice(&value.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
    }

    fn get(&self, slot: usize, at: usize) -> u64 {
        word(&self.map, slot * SLOT_BYTES + at)
    }

    /// A slot that holds nothing.
    pub(crate) fn find_free(&self) -> Option<usize> {
        (0..SLOTS).find(|&slot| self.get(slot, 0) == 0)
    }

    /// Starts a kset in `slot`.
    pub(crate) fn open(&mut self, slot: usize, order: u64) {
        self.put(slot, 16, 0);
        self.put(slot, 8, 0);
        self.put(slot, 0, order);
    }

    /// Appends a key: first the key, then the count.
    pub(crate) fn append(&mut self, slot: usize, count: usize, key: &Key) {
        let at = slot * SLOT_BYTES + SLOT_HEADER + count * KEY_BYTES;
        self.map[at..at + KEY_BYTES].copy_from_slice(key.as_bytes());
        self.put(slot, 16, count as u64 + 1);
    }

    /// The first `count` keys of `slot`.
    pub(crate) fn keys(&self, slot: usize, count: usize) -> &[Key] {
        let at = slot * SLOT_BYTES + SLOT_HEADER;
        let bytes = self
            .map
            .get(at..at + count.min(KEYS_MAX) * KEY_BYTES)
            .unwrap_or(&[]);
        <[Key]>::ref_from_bytes(bytes).unwrap_or(&[])
    }

    /// The kset in `slot` has its place in the log.
    pub(crate) fn set_sequence(&mut self, slot: usize, sequence: u64) {
        self.put(slot, 8, sequence);
        self.set_last_given(sequence);
    }

    /// No kset of this lane got a sequence above this one: it stays when the slots are free again.
    pub(crate) fn last_given(&self) -> u64 {
        word(&self.map, LAST_GIVEN)
    }

    /// Says that ksets of this lane got sequences up to this one.
    pub(crate) fn set_last_given(&mut self, sequence: u64) {
        compiler_fence(Ordering::SeqCst);
        self.map[LAST_GIVEN..LAST_GIVEN + 8].copy_from_slice(&sequence.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
    }

    /// `slot` holds nothing any more.
    pub(crate) fn free(&mut self, slot: usize) {
        self.put(slot, 0, 0);
    }

    /// What an earlier process left, in the order in which it was filled.
    pub(crate) fn left_over(&self) -> Vec<StagedKset> {
        let mut found: Vec<StagedKset> = (0..SLOTS)
            .filter(|&slot| self.get(slot, 0) != 0)
            .map(|slot| {
                let count = usize::try_from(self.get(slot, 16))
                    .unwrap_or(usize::MAX)
                    .min(KEYS_MAX);
                StagedKset {
                    order: self.get(slot, 0),
                    sequence: self.get(slot, 8),
                    keys: self.keys(slot, count).to_vec(),
                }
            })
            .collect();
        found.sort_by_key(|kset| kset.order);
        found
    }

    /// A new run takes the slots over: those below `first` are in the log and are freed; the others
    /// lose their place, which was cut off and will be given to other ksets.
    pub(crate) fn take_over(&mut self, first: u64) {
        for slot in 0..SLOTS {
            let sequence = self.get(slot, 8);
            if sequence != 0 && sequence < first {
                self.free(slot);
            } else if sequence != 0 {
                self.put(slot, 8, 0);
            }
        }
        self.set_last_given(first.saturating_sub(1));
    }

    /// Frees every slot, the oldest kset first: if the process dies here, what is left is applied
    /// again, and must not put an older kset behind a newer one.
    pub(crate) fn clear(&mut self) {
        let mut used: Vec<(u64, usize)> = (0..SLOTS)
            .map(|slot| (self.get(slot, 0), slot))
            .filter(|&(order, _)| order != 0)
            .collect();
        used.sort_unstable();
        for (_, slot) in used {
            self.free(slot);
        }
    }
}
