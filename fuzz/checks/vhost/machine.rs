//! A device that does by the specification, on a copy of the memory, what the real one must do.
//!
//! Its order is the target's: requests are begun one after the other, then those that went to the disk
//! are answered, then all answers are published. Chains that write over each other show it.

use super::guest::{AVAIL, DESC, REGIONS, Region, USED};

pub(super) const DISK_BYTES: usize = 64 << 10;
const SECTOR: u64 = 512;
/// After so many answers the driver sees them, though it is not called before the round's end.
const SHOWN_AFTER: u32 = 8;
/// Requests of one round; so much payload counts as one.
const ROUND: usize = 64;
const PAYLOAD_UNIT: usize = 64 << 10;
/// Descriptors that an indirect table may have in any case, and segments of a chain.
pub(super) const SEGMENTS_MAX: usize = 128;
const OK: u8 = 0;
const FAILED: u8 = 1;
const UNKNOWN: u8 = 2;

/// What a ring was set up with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) entries: u16,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    pub(super) base: u16,
}

#[derive(Clone, Debug)]
struct Segment {
    /// Where in the memory's image.
    places: Vec<Range>,
    len: usize,
    write: bool,
}

/// A request that went to the disk.
struct Begun {
    head: u16,
    chain: Vec<Segment>,
    /// What a read has found.
    found: Vec<u8>,
}

pub(super) struct Machine {
    pub(super) memory: Vec<u8>,
    pub(super) disk: Vec<u8>,
    shape: Shape,
    taken: u16,
    seen: u16,
    written: u16,
    told: Option<u16>,
    armed: bool,
    begun: Vec<Begun>,
    unpublished: bool,
    /// Answers that the driver can't see.
    unseen: u32,
    broken: bool,
    /// The ring's error must have been told.
    pub(super) complains: bool,
    /// The driver must have been called.
    pub(super) called: bool,
}

impl Machine {
    pub(super) fn new(memory: Vec<u8>, shape: Shape) -> Self {
        Self {
            memory,
            disk: vec![0; DISK_BYTES],
            shape,
            taken: shape.base,
            seen: shape.base,
            written: shape.base,
            told: None,
            armed: true,
            begun: Vec::new(),
            unpublished: false,
            unseen: 0,
            broken: false,
            complains: false,
            called: false,
        }
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.memory[at], self.memory[at + 1]])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn place_in_ring(&self, index: u16) -> usize {
        usize::from(index % self.shape.entries)
    }

    /// Rounds until there is nothing to do, and then asks for kicks.
    pub(super) fn run(&mut self) {
        while self.round() {}
        if self.broken {
            return;
        }
        if self.shape.event_idx {
            let at = USED + 4 + 8 * usize::from(self.shape.entries);
            self.put(at, &self.taken.to_le_bytes());
        } else if !self.armed {
            self.put(USED, &[0, 0]);
        }
        self.armed = true;
    }

    fn round(&mut self) -> bool {
        let mut taken = 0;
        while taken < ROUND && !self.broken {
            if self.seen == self.taken && !self.look() {
                break;
            }
            if !self.broken {
                taken += self.take() / PAYLOAD_UNIT;
            }
            taken += 1;
        }
        for begun in std::mem::take(&mut self.begun) {
            self.store(&begun.chain, 0, &begun.found);
            self.answer(begun.head, &begun.chain, OK, begun.found.len());
        }
        if self.unpublished && !self.broken {
            self.publish();
        }
        taken > 0
    }

    fn give_up(&mut self) {
        self.broken = true;
        self.complains = true;
    }

    /// Whether there is something new; also if it is nonsense.
    fn look(&mut self) -> bool {
        let available = self.u16(AVAIL + 2);
        let count = available.wrapping_sub(self.taken);
        if count > self.shape.entries {
            self.give_up();
        } else if count > 0 {
            self.seen = available;
            if self.armed && !self.shape.event_idx {
                self.put(USED, &[1, 0]);
            }
            self.armed = false;
        }
        count > 0
    }

    /// Returns how much payload the request has.
    fn take(&mut self) -> usize {
        let head = self.u16(AVAIL + 4 + 2 * self.place_in_ring(self.taken));
        if head >= self.shape.entries {
            self.give_up();
            return 0;
        }
        self.taken = self.taken.wrapping_add(1);
        if self.begun.iter().any(|begun| begun.head == head) {
            self.give_up();
            return 0;
        }
        match self.chain(head) {
            Some(chain) if chain.iter().any(|s| s.write && s.len > 0) => self.begin(head, chain),
            _ => {
                self.use_up(head, 0);
                0
            }
        }
    }

    /// The chain at `head`, if it is one.
    fn chain(&self, head: u16) -> Option<Vec<Segment>> {
        let mut chain = Vec::new();
        let entries = usize::from(self.shape.entries);
        let Some((table, len, flags)) = self.table(DESC, entries, usize::from(head), &mut chain)?
        else {
            return Some(chain);
        };
        let count = usize::try_from(len / 16).unwrap();
        let fits = len % 16 == 0 && count > 0 && count <= entries.max(SEGMENTS_MAX);
        let plain = self.shape.indirect && flags & 1 == 0;
        if !plain || !fits {
            return None;
        }
        let bytes: Vec<u8> = places(table, len)?
            .into_iter()
            .flat_map(|range| self.memory[range].to_vec())
            .collect();
        let read = |index: usize| bytes[16 * index..16 * index + 16].try_into().unwrap();
        match follow(count, 0, read, &mut chain)? {
            None => Some(chain),
            Some(_) => None,
        }
    }

    fn table(&self, at: usize, count: usize, head: usize, chain: &mut Vec<Segment>) -> Walked {
        let read = |index: usize| {
            let at = at + 16 * index;
            self.memory[at..at + 16].try_into().unwrap()
        };
        follow(count, head, read, chain)
    }

    fn bytes(chain: &[Segment], write: bool) -> usize {
        let all = chain.iter().filter(|s| s.write == write);
        all.map(|s| s.len).sum()
    }

    /// The places of `len` bytes from `skip` on of what the device reads, or writes.
    fn places(chain: &[Segment], write: bool, mut skip: usize, mut len: usize) -> Vec<Range> {
        let mut found = Vec::new();
        let all = chain.iter().filter(|s| s.write == write);
        for range in all.flat_map(|s| &s.places) {
            let start = range.end.min(range.start + skip);
            let end = range.end.min(start + len);
            skip -= start - range.start;
            len -= end - start;
            found.push(start..end);
        }
        found
    }

    fn load(&self, chain: &[Segment], skip: usize, len: usize) -> Vec<u8> {
        let places = Self::places(chain, false, skip, len).into_iter();
        places
            .flat_map(|range| self.memory[range].to_vec())
            .collect()
    }

    fn store(&mut self, chain: &[Segment], skip: usize, bytes: &[u8]) {
        let mut left = bytes;
        for range in Self::places(chain, true, skip, bytes.len()) {
            let (front, rest) = left.split_at(range.len());
            self.memory[range].copy_from_slice(front);
            left = rest;
        }
    }

    fn begin(&mut self, head: u16, chain: Vec<Segment>) -> usize {
        let (readable, writable) = (Self::bytes(&chain, false), Self::bytes(&chain, true));
        if readable < 16 {
            return self.refuse(head, &chain, FAILED);
        }
        let header = self.load(&chain, 0, 16);
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let (mut found, mut payload) = (Vec::new(), 0);
        match kind {
            0 => match range(sector, writable as u64 - 1) {
                Some(range) => {
                    found = self.disk[range].to_vec();
                    payload = found.len();
                }
                None => return self.refuse(head, &chain, FAILED),
            },
            1 => match range(sector, readable as u64 - 16) {
                Some(range) => {
                    let bytes = self.load(&chain, 16, range.len());
                    self.disk[range].copy_from_slice(&bytes);
                    payload = bytes.len();
                }
                None => return self.refuse(head, &chain, FAILED),
            },
            4 => {}
            8 if writable > 1 => {
                let mut id = b"disk".to_vec();
                id.resize(20.min(writable - 1), 0);
                id.truncate(writable - 1);
                self.store(&chain, 0, &id);
                self.answer(head, &chain, OK, id.len());
                return 0;
            }
            8 => return self.refuse(head, &chain, FAILED),
            11 | 13 => match self.erased(kind, &chain, readable) {
                Ok(range) => self.disk[range].fill(0),
                Err(status) => return self.refuse(head, &chain, status),
            },
            _ => return self.refuse(head, &chain, UNKNOWN),
        }
        self.begun.push(Begun { head, chain, found });
        payload
    }

    fn erased(&self, kind: u32, chain: &[Segment], readable: usize) -> Result<Range, u8> {
        if readable != 32 {
            return Err(FAILED);
        }
        let asked = self.load(chain, 16, 16);
        let word = |at: usize| u32::from_le_bytes(asked[at..at + 4].try_into().unwrap());
        let (sectors, flags) = (word(8), word(12));
        let known = if kind == 11 { 0 } else { 1 };
        if flags & !known != 0 {
            return Err(UNKNOWN);
        }
        let sector = u64::from_le_bytes(asked[..8].try_into().unwrap());
        range(sector, u64::from(sectors) * SECTOR).ok_or(FAILED)
    }

    /// An answer without any payload, for whoever counts that.
    fn refuse(&mut self, head: u16, chain: &[Segment], status: u8) -> usize {
        self.answer(head, chain, status, 0);
        0
    }

    fn answer(&mut self, head: u16, chain: &[Segment], status: u8, bytes: usize) {
        let last = Self::bytes(chain, true) - 1;
        self.store(chain, last, &[status]);
        self.use_up(head, u32::try_from(bytes).unwrap() + 1);
    }

    fn use_up(&mut self, head: u16, bytes: u32) {
        let at = USED + 4 + 8 * self.place_in_ring(self.written);
        self.put(at, &u32::from(head).to_le_bytes());
        self.put(at + 4, &bytes.to_le_bytes());
        self.written = self.written.wrapping_add(1);
        self.unpublished = true;
        self.unseen += 1;
        if self.unseen >= SHOWN_AFTER && !self.broken {
            self.show();
        }
    }

    fn show(&mut self) {
        self.unseen = 0;
        self.put(USED + 2, &self.written.to_le_bytes());
    }

    fn publish(&mut self) {
        self.unpublished = false;
        self.show();
        let Some(told) = self.told.replace(self.written) else {
            self.called |= self.shape.event_idx || self.u16(AVAIL) & 1 == 0;
            return;
        };
        self.called |= match self.shape.event_idx {
            false => told != self.written && self.u16(AVAIL) & 1 == 0,
            true => {
                let event = self.u16(AVAIL + 4 + 2 * usize::from(self.shape.entries));
                let new = self.written.wrapping_sub(told);
                self.written.wrapping_sub(event).wrapping_sub(1) < new
            }
        };
    }
}

type Range = std::ops::Range<usize>;
/// A chain's end, or the indirect descriptor that goes on: address, length, flags.
type Walked = Option<Option<(u64, u64, u16)>>;

/// Where `len` bytes of the guest are in the image, if all are memory.
fn places(mut addr: u64, mut len: u64) -> Option<Vec<Range>> {
    let mut found = Vec::new();
    while len > 0 {
        let inside = |r: &&Region| addr >= r.guest && addr - r.guest < r.len as u64;
        let region = REGIONS.iter().find(inside)?;
        let into = addr - region.guest;
        let count = len.min(region.len as u64 - into);
        let start = region.at + usize::try_from(into).unwrap();
        found.push(start..start + usize::try_from(count).unwrap());
        len -= count;
        // Behind the last address there is nothing.
        addr = addr.checked_add(count).unwrap();
    }
    Some(found)
}

/// Follows a table of `count` descriptors from `index` on.
fn follow(
    count: usize,
    mut index: usize,
    read: impl Fn(usize) -> [u8; 16],
    chain: &mut Vec<Segment>,
) -> Walked {
    for _ in 0..count {
        if index >= count {
            return None;
        }
        let found = read(index);
        let addr = u64::from_le_bytes(found[..8].try_into().unwrap());
        let len = u64::from(u32::from_le_bytes(found[8..12].try_into().unwrap()));
        let flags = u16::from_le_bytes(found[12..14].try_into().unwrap());
        if flags & 4 != 0 {
            return Some(Some((addr, len, flags)));
        }
        let write = flags & 2 != 0;
        let ordered = write || chain.iter().all(|s| !s.write);
        let places = places(addr, len)?;
        if !ordered || chain.len() == SEGMENTS_MAX {
            return None;
        }
        let len = usize::try_from(len).unwrap();
        chain.push(Segment { places, len, write });
        if flags & 1 == 0 {
            return Some(None);
        }
        index = usize::from(u16::from_le_bytes(found[14..].try_into().unwrap()));
    }
    None
}

/// The part of the disk, if it is one, and no longer than a request may be.
fn range(sector: u64, len: u64) -> Option<Range> {
    let start = usize::try_from(sector.checked_mul(SECTOR)?).ok()?;
    let len = usize::try_from(len).ok()?;
    let end = start.checked_add(len)?;
    let fits = len > 0 && len.is_multiple_of(512) && end <= DISK_BYTES;
    fits.then_some(start..end)
}
