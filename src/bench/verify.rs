//! Tagged sectors: every write leaves its number in each of them, and a read is held against the
//! writes that may be there.
//!
//! Time is a counter that every beginning and end of a request raises, and the number of a write is
//! its beginning. A write is *superseded* once another one, that began after it had ended, has
//! ended. A read may find in a sector any write that was not superseded before the read began, each
//! sector on its own: requests are not atomic, sectors are. Before the first write anything may be
//! there.

use std::collections::VecDeque;

/// Bytes that are atomic on every device.
const SECTOR: usize = 512;
/// Where a sector's parts begin: run, place, number, CRC of all the rest, filler.
const AT: usize = 8;
const VERSION: usize = 16;
const CRC: usize = 24;
const FILLER: usize = 32;
/// "Not yet", and "never".
const LATER: u64 = u64::MAX;
/// Marks the state of a unit that has a list of writes.
const LISTED: u64 = 1 << 63;
/// Ends such a list.
const END: u32 = u32::MAX;

/// A sector that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the sector at {at:#x} should have write {expected} (or an older one that may still be there), and has {found}"
)]
pub struct Mismatch {
    /// Where, in bytes.
    pub at: u64,
    /// The newest write that may be there.
    pub expected: u64,
    /// What is there.
    pub found: Found,
}

/// What a sector has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Found {
    /// Bytes that no job has written, or that were damaged.
    #[error("no tag: its CRC is {stored:#010x}, its bytes give {computed:#010x}")]
    NoTag {
        /// The CRC in the tag's place.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A whole sector of another job.
    #[error("a tag of another job, {run:#x}")]
    Foreign {
        /// Its mark.
        run: u64,
    },
    /// A whole sector of this job that belongs elsewhere.
    #[error("write {version} of the sector at {at:#x}")]
    Elsewhere {
        /// Where it belongs.
        at: u64,
        /// Of which write it is.
        version: u64,
    },
    /// An older write, or one that never was.
    #[error("write {version}")]
    Version {
        /// Which.
        version: u64,
    },
}

/// A write that may be in a unit.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// When it began; 0 for what was there before all writes.
    version: u64,
    ended: u64,
    superseded: u64,
    next: u32,
}

/// Tags the writes of one job and checks its reads. Nobody else may write there.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Marks this job's tags.
    run: u64,
    start: u64,
    unit: u64,
    now: u64,
    /// For each unit the only write that may be there, or the head of a list.
    units: Vec<u64>,
    nodes: Vec<Node>,
    free: u32,
    /// Beginnings of the reads under way, in order, and whether they have ended.
    reads: VecDeque<(u64, bool)>,
}

fn word(sector: &[u8], at: usize) -> u64 {
    let bytes = sector
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

fn crc_of(sector: &[u8]) -> u32 {
    let head = crc32c::crc32c(sector.get(..CRC).unwrap_or_default());
    crc32c::crc32c_append(head, sector.get(CRC + 4..).unwrap_or_default())
}

fn stored_crc(sector: &[u8]) -> u32 {
    let bytes = sector
        .get(CRC..CRC + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

impl Verifier {
    /// For requests between `start` and `start + units * unit` whose places and sizes are multiples
    /// of `unit`. `run` marks the job, `depth` requests are under way at most.
    pub(super) fn new(run: u64, start: u64, unit: u64, units: u64, depth: u32) -> Self {
        Self {
            run,
            start,
            unit,
            now: 0,
            units: vec![0; usize::try_from(units).unwrap_or(0)],
            nodes: Vec::with_capacity(4 * depth as usize),
            free: END,
            reads: VecDeque::with_capacity(2 * depth as usize),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// The units that `len` bytes at `at` cover.
    fn covered(&self, at: u64, len: u64) -> std::ops::Range<usize> {
        let first = (at - self.start) / self.unit;
        let end = first + len / self.unit;
        usize::try_from(first).unwrap_or(0)..usize::try_from(end).unwrap_or(0)
    }

    /// Begins a write of `buf` at `at`: tags it, and returns its number.
    pub(super) fn begin_write(&mut self, at: u64, buf: &mut [u8]) -> u64 {
        let version = self.tick();
        for unit in self.covered(at, buf.len() as u64) {
            let rest = self.list(unit);
            let node = self.add(Node {
                version,
                ended: LATER,
                superseded: LATER,
                next: rest,
            });
            self.set(unit, LISTED | u64::from(node));
        }
        let mut place = at;
        for sector in buf.chunks_exact_mut(SECTOR) {
            self.tag(sector, place, version);
            place += SECTOR as u64;
        }
        version
    }

    fn tag(&self, sector: &mut [u8], at: u64, version: u64) {
        let mut filler = (at ^ version.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for (number, word) in sector.chunks_exact_mut(8).enumerate() {
            let value = match number * 8 {
                0 => self.run,
                AT => at,
                VERSION => version,
                CRC => 0,
                _ => {
                    filler = filler.wrapping_add(0xbf58_476d_1ce4_e5b9);
                    filler ^ filler >> 29
                }
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
        debug_assert!(FILLER < sector.len());
        let crc = crc_of(sector);
        if let Some(place) = sector.get_mut(CRC..CRC + 4) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
    }

    /// Ends a write. One that failed may be there or not, and supersedes nothing.
    pub(super) fn end_write(&mut self, at: u64, len: u64, version: u64, is_ok: bool) {
        let now = self.tick();
        for unit in self.covered(at, len) {
            let mut index = self.list(unit);
            self.set(unit, LISTED | u64::from(index));
            while let Some(node) = self.nodes.get_mut(index as usize) {
                if node.version == version {
                    node.ended = now;
                } else if is_ok && node.ended < version && node.superseded == LATER {
                    node.superseded = now;
                }
                index = node.next;
            }
            self.tidy(unit);
        }
    }

    /// Begins a read and returns when.
    pub(super) fn begin_read(&mut self) -> u64 {
        let now = self.tick();
        self.reads.push_back((now, false));
        now
    }

    /// Ends the read that began at `begun`, and checks what it found at `at`, unless it failed.
    /// Returns how many sectors are wrong, and the first of them.
    pub(super) fn end_read(
        &mut self,
        at: u64,
        found: Option<&[u8]>,
        begun: u64,
    ) -> (u64, Option<Mismatch>) {
        let (mut wrong, mut first) = (0, None);
        let mut place = at;
        for sector in found.unwrap_or_default().chunks_exact(SECTOR) {
            if let Err(mismatch) = self.check(sector, place, begun) {
                wrong += 1;
                first = first.or(Some(mismatch));
            }
            place += SECTOR as u64;
        }
        if let Ok(index) = self.reads.binary_search_by_key(&begun, |read| read.0)
            && let Some(read) = self.reads.get_mut(index)
        {
            read.1 = true;
        }
        while self.reads.front().is_some_and(|read| read.1) {
            self.reads.pop_front();
        }
        (wrong, first)
    }

    fn check(&self, sector: &[u8], at: u64, begun: u64) -> Result<(), Mismatch> {
        let unit = usize::try_from((at - self.start) / self.unit).unwrap_or(0);
        let state = self.units.get(unit).copied().unwrap_or(0);
        let version = word(sector, VERSION);
        let (mut is_free, mut is_there, mut newest) = (state == 0, state == version, state);
        if state & LISTED != 0 {
            let mut index = low(state);
            newest = 0;
            while let Some(node) = self.nodes.get(index as usize) {
                if node.superseded > begun {
                    is_free |= node.version == 0;
                    is_there |= node.version == version;
                    newest = newest.max(node.version);
                }
                index = node.next;
            }
        }
        if is_free {
            return Ok(());
        }
        let (stored, computed) = (stored_crc(sector), crc_of(sector));
        let (run, belongs) = (word(sector, 0), word(sector, AT));
        let found = if stored != computed {
            Found::NoTag { stored, computed }
        } else if run != self.run {
            Found::Foreign { run }
        } else if belongs != at {
            Found::Elsewhere {
                at: belongs,
                version,
            }
        } else if !is_there {
            Found::Version { version }
        } else {
            return Ok(());
        };
        Err(Mismatch {
            at,
            expected: newest,
            found,
        })
    }

    /// The head of a unit's list; makes one if there is none.
    fn list(&mut self, unit: usize) -> u32 {
        let state = self.units.get(unit).copied().unwrap_or(0);
        if state & LISTED != 0 {
            return low(state);
        }
        self.add(Node {
            version: state,
            // It has ended before all that begins now.
            ended: self.now - 1,
            superseded: LATER,
            next: END,
        })
    }

    fn set(&mut self, unit: usize, state: u64) {
        if let Some(place) = self.units.get_mut(unit) {
            *place = state;
        }
    }

    fn add(&mut self, node: Node) -> u32 {
        if let Some(place) = self.nodes.get_mut(self.free as usize) {
            let index = std::mem::replace(&mut self.free, place.next);
            *place = node;
            return index;
        }
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).unwrap_or(END)
    }

    /// Forgets what no read under way may find any more. The newest write never is among that.
    fn tidy(&mut self, unit: usize) {
        let oldest_read = self.reads.front().map_or(LATER - 1, |read| read.0);
        let (mut kept, mut count, mut last) = (END, 0, 0);
        let mut index = self.list(unit);
        while let Some(node) = self.nodes.get_mut(index as usize) {
            let next = node.next;
            if node.superseded < oldest_read {
                node.next = std::mem::replace(&mut self.free, index);
            } else {
                node.next = std::mem::replace(&mut kept, index);
                count += 1;
                last = if node.ended == LATER {
                    LISTED
                } else {
                    node.version
                };
            }
            index = next;
        }
        if count == 1 && last != LISTED {
            if let Some(node) = self.nodes.get_mut(kept as usize) {
                node.next = std::mem::replace(&mut self.free, kept);
            }
            self.set(unit, last);
        } else {
            self.set(unit, LISTED | u64::from(kept));
        }
    }
}

/// The index in a state that is [`LISTED`].
fn low(state: u64) -> u32 {
    u32::try_from(state & u64::from(u32::MAX)).unwrap_or(END)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: usize = 1024;

    struct Disk {
        verifier: Verifier,
    }

    impl Disk {
        fn new() -> Self {
            Self {
                verifier: Verifier::new(77, 4096, UNIT as u64, 8, 4),
            }
        }

        /// Begins a write of one unit; what it writes, and its number.
        fn write(&mut self, at: u64) -> (Vec<u8>, u64) {
            let mut buf = vec![0; UNIT];
            let version = self.verifier.begin_write(at, &mut buf);
            (buf, version)
        }

        fn end(&mut self, at: u64, version: u64) {
            self.verifier.end_write(at, UNIT as u64, version, true);
        }

        fn whole(&mut self, at: u64) -> (Vec<u8>, u64) {
            let (buf, version) = self.write(at);
            self.end(at, version);
            (buf, version)
        }

        fn read(&mut self, at: u64, found: &[u8]) -> Option<Mismatch> {
            let begun = self.verifier.begin_read();
            self.verifier.end_read(at, Some(found), begun).1
        }
    }

    #[test]
    fn only_the_last_write_may_be_read() {
        let mut disk = Disk::new();
        assert_eq!(disk.read(4096, &[9; UNIT]), None, "nothing is known yet");
        let (old, old_version) = disk.whole(4096);
        assert_eq!(disk.read(4096, &old), None);
        let (new, new_version) = disk.whole(4096);
        assert_eq!(disk.read(4096, &new), None);
        let mismatch = disk.read(4096, &old).unwrap();
        let found = Found::Version {
            version: old_version,
        };
        assert_eq!((mismatch.at, mismatch.expected), (4096, new_version));
        assert_eq!(mismatch.found, found);
        let text = mismatch.to_string();
        assert!(
            text.contains("0x1000") && text.contains(&old_version.to_string()),
            "{text}"
        );
    }

    #[test]
    fn damage_wrong_places_and_foreign_tags_are_told_apart() {
        let mut disk = Disk::new();
        let (mut bytes, version) = disk.whole(4096);
        let (other, other_version) = disk.whole(4096 + UNIT as u64);
        let elsewhere = Found::Elsewhere {
            at: 4096 + UNIT as u64,
            version: other_version,
        };
        assert_eq!(disk.read(4096, &other).unwrap().found, elsewhere);
        let mut stranger = Verifier::new(78, 4096, UNIT as u64, 8, 4);
        let mut foreign = vec![0; UNIT];
        stranger.begin_write(4096, &mut foreign);
        let found = disk.read(4096, &foreign).unwrap().found;
        assert_eq!(found, Found::Foreign { run: 78 });
        bytes[SECTOR + 300] ^= 1;
        let mismatch = disk.read(4096, &bytes).unwrap();
        assert!(matches!(mismatch.found, Found::NoTag { .. }));
        assert_eq!((mismatch.at, mismatch.expected), (4096 + 512, version));
        let zeroes = disk.read(4096, &[0; UNIT]).unwrap();
        assert!(matches!(zeroes.found, Found::NoTag { .. }));
    }

    #[test]
    fn a_write_under_way_may_be_there_or_not_in_each_sector() {
        let mut disk = Disk::new();
        let (old, _) = disk.whole(4096);
        let (new, version) = disk.write(4096);
        let mut torn = old.clone();
        torn[SECTOR..].copy_from_slice(&new[SECTOR..]);
        for found in [&old, &new, &torn] {
            assert_eq!(disk.read(4096, found), None);
        }
        disk.end(4096, version);
        assert_eq!(disk.read(4096, &new), None);
        assert!(disk.read(4096, &torn).is_some());
    }

    #[test]
    fn a_read_may_find_what_was_there_when_it_began() {
        let mut disk = Disk::new();
        let (old, _) = disk.whole(4096);
        let begun = disk.verifier.begin_read();
        let (new, _) = disk.whole(4096);
        for found in [&old, &new] {
            let mut copy = disk.verifier.reads.clone();
            std::mem::swap(&mut copy, &mut disk.verifier.reads);
            let end = disk.verifier.end_read(4096, Some(found), begun);
            assert_eq!(end.1, None);
            std::mem::swap(&mut copy, &mut disk.verifier.reads);
        }
        disk.verifier.end_read(4096, None, begun);
        assert!(disk.read(4096, &old).is_some(), "a later read may not");
    }

    #[test]
    fn of_writes_that_overlap_in_time_either_may_win_until_a_later_one_ends() {
        let mut disk = Disk::new();
        let (a, a_version) = disk.write(4096);
        let (b, b_version) = disk.write(4096);
        disk.end(4096, b_version);
        // `a` began before `b` had ended: both may be there, now and after its end.
        let (c, c_version) = disk.write(4096);
        disk.end(4096, c_version);
        assert!(disk.read(4096, &b).is_some(), "superseded by `c`");
        assert_eq!(disk.read(4096, &a), None, "`a` is still under way");
        assert_eq!(disk.read(4096, &c), None);
        disk.end(4096, a_version);
        assert_eq!(disk.read(4096, &a), None);
        assert_eq!(disk.read(4096, &c), None);
        let (last, _) = disk.whole(4096);
        assert!(disk.read(4096, &a).is_some() && disk.read(4096, &c).is_some());
        assert_eq!(disk.read(4096, &last), None);
        assert_eq!(disk.verifier.units[0] & LISTED, 0, "no list is left");
    }

    #[test]
    fn a_write_that_failed_may_be_there_or_not() {
        let mut disk = Disk::new();
        let (old, _) = disk.whole(4096);
        let (failed, version) = disk.write(4096);
        disk.verifier.end_write(4096, UNIT as u64, version, false);
        assert_eq!(disk.read(4096, &old), None);
        assert_eq!(disk.read(4096, &failed), None);
        let (new, _) = disk.whole(4096);
        assert!(disk.read(4096, &old).is_some() && disk.read(4096, &failed).is_some());
        assert_eq!(disk.read(4096, &new), None);
    }

    #[test]
    fn lists_are_used_again() {
        let mut disk = Disk::new();
        for round in 0..1000 {
            let at = 4096 + round % 8 * UNIT as u64;
            let (_, first) = disk.write(at);
            let (_, second) = disk.write(at);
            disk.end(at, first);
            disk.end(at, second);
        }
        assert!(
            disk.verifier.nodes.len() < 64,
            "{}",
            disk.verifier.nodes.len()
        );
    }
}
