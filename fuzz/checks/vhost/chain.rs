//! A guest that puts anything into its memory and its ring.
//!
//! On a disk that is quick, all is foretold: after each run the whole memory, the disk and both
//! notifiers are what a second device (`machine.rs`) makes of the same bytes. On one whose I/Os stall
//! and fail, memory changes while they are under way, memory is shared anew and front ends come back:
//! then each request that was made available is used exactly once, unless the ring itself lies.

use super::guest::{AVAIL, DESC, Memory, REGIONS, USED, fresh, guest, user};
use super::machine::{DISK_BYTES, Machine, SEGMENTS_MAX, Shape};
use super::{Front, Target, code, disk, notifier, raw, u32s, u64s, was_rung};
use crate::checks::input::Input;
use pmcache::bdev::{Bdev, Data, ErrorBdev, ErrorIo, ErrorKind, Injection, IoBuf, Op, Request};
use pmcache::units::ByteRange;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

const OPS_MAX: usize = 300;
/// Where headers, tables and data of good requests are, in the second region.
const HEADERS: usize = 0x1000;
const TABLES: usize = 0x2000;
const DATA: usize = 0x4000;
/// Part of the address of the region with the rings.
const RINGS: [u8; 4] = 0x5a5a_1234_u32.to_le_bytes();
/// Features: version 1, protocol; then indirect and by index.
const FEATURES: u64 = 1 << 32 | 1 << 30;
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

struct Fixture {
    quick: (Target, Arc<dyn Bdev>),
    slow: (Target, Arc<ErrorBdev>),
    memory: Memory,
}

impl Fixture {
    fn new() -> Self {
        let blocks = (DISK_BYTES / 512) as u64;
        let quick = disk("disk", blocks);
        let slow = ErrorBdev::new(disk("base", blocks), None);
        let slow = Arc::new(slow.unwrap());
        Self {
            quick: (Target::new(Arc::clone(&quick)), quick),
            slow: (Target::new(Arc::clone(&slow) as Arc<dyn Bdev>), slow),
            memory: Memory::new("the memory of a fuzzed guest"),
        }
    }
}

thread_local! {
    static FIXTURE: std::cell::RefCell<Fixture> = std::cell::RefCell::new(Fixture::new());
}

/// The disk has nothing on it; returns what it had.
fn wipe(target: &mut Target, bdev: &dyn Bdev) -> Vec<u8> {
    let mut channel = bdev.open(target.reactor.cx()).unwrap();
    let range = ByteRange::new(0, DISK_BYTES as u64).unwrap();
    let read = Request {
        tag: 0,
        op: Op::Read,
        range,
        data: Data::Buf(IoBuf::zeroed(DISK_BYTES)),
    };
    let clear = Request {
        tag: 1,
        op: Op::WriteZeroes {
            may_unmap: true,
            fua: false,
        },
        range,
        data: Data::None,
    };
    channel.submit(target.reactor.cx(), read);
    channel.submit(target.reactor.cx(), clear);
    let mut done = Vec::new();
    channel.poll(target.reactor.cx(), &mut done);
    assert_eq!(done.len(), 2);
    done.swap_remove(0).data.into_buf().unwrap().to_vec()
}

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (flags, base) = (input.u8(), i16::from(input.u8().cast_signed()));
    let shape = Shape {
        entries: [4, 8, 16, 64][usize::from(flags >> 3 & 3)],
        event_idx: flags & 1 != 0,
        indirect: flags & 2 != 0,
        base: base.cast_unsigned(),
    };
    FIXTURE.with_borrow_mut(|fixture| {
        fixture.memory.reset();
        fixture.memory.put(AVAIL + 2, &shape.base.to_le_bytes());
        fixture.memory.put(USED + 2, &shape.base.to_le_bytes());
        match flags & 4 {
            0 => quick(fixture, shape, &mut input),
            _ => slow(fixture, shape, flags & 0x20 != 0, &mut input),
        }
        fixture.memory.check_canaries();
    });
}

/// A connected guest.
struct Guest<'a> {
    target: &'a mut Target,
    memory: &'a Memory,
    shape: Shape,
    front: Option<Front>,
    inflight: Option<(Vec<u8>, File)>,
    kick: OwnedFd,
    call: OwnedFd,
    err: OwnedFd,
    avail: u16,
    /// Something points, or may point, to the rings themselves, or the driver breaks its rules.
    lies: bool,
    /// Heads that are available and not used.
    offered: BTreeSet<u16>,
    used: u16,
}

impl<'a> Guest<'a> {
    fn new(target: &'a mut Target, memory: &'a Memory, shape: Shape) -> Self {
        Self {
            target,
            memory,
            shape,
            front: None,
            inflight: None,
            kick: notifier(),
            call: notifier(),
            err: notifier(),
            avail: shape.base,
            lies: false,
            offered: BTreeSet::new(),
            used: shape.base,
        }
    }

    /// Connects and starts the ring; with a record of what is under way if `recorded`.
    fn connect(&mut self, recorded: bool) {
        let mut front = self.target.connect();
        let mut features = FEATURES;
        features |= if self.shape.indirect { INDIRECT } else { 0 };
        features |= if self.shape.event_idx { EVENT_IDX } else { 0 };
        front.message(code::GET_FEATURES, &[], &[], true);
        let protocol = 1 << 3 | 1 << 9 | 1 << 12;
        front.message(code::SET_PROTOCOL_FEATURES, &u64s(&[protocol]), &[], true);
        front.message(code::SET_OWNER, &[], &[], true);
        front.message(code::SET_FEATURES, &u64s(&[features]), &[], true);
        if recorded {
            self.record(&mut front);
        }
        self.share(&mut front);
        let entries = u32::from(self.shape.entries);
        front.message(code::SET_VRING_NUM, &u32s(&[0, entries]), &[], true);
        let base = u32::from(self.shape.base);
        front.message(code::SET_VRING_BASE, &u32s(&[0, base]), &[], true);
        let mut addr = u32s(&[0, 0]);
        addr.extend(u64s(&[user(DESC), user(USED), user(AVAIL), 0]));
        front.message(code::SET_VRING_ADDR, &addr, &[], true);
        let [kick, call, err] = raw([&self.kick, &self.call, &self.err]);
        front.message(code::SET_VRING_CALL, &u64s(&[0]), &[call], true);
        front.message(code::SET_VRING_ERR, &u64s(&[0]), &[err], true);
        front.message(code::SET_VRING_KICK, &u64s(&[0]), &[kick], true);
        front.message(code::SET_VRING_ENABLE, &u32s(&[0, 1]), &[], true);
        self.target.settle(&mut front);
        assert!(!front.is_closed, "the target hangs up on a good front end");
        self.front = Some(front);
    }

    fn record(&mut self, front: &mut Front) {
        if self.inflight.is_none() {
            let mut asked = u64s(&[0, 0]);
            asked.extend(1_u16.to_ne_bytes());
            asked.extend(self.shape.entries.to_ne_bytes());
            asked.extend([0; 4]);
            front.message(code::GET_INFLIGHT_FD, &asked, &[], true);
            self.target.settle(front);
            let bytes = (16 + 16 * u64::from(self.shape.entries)).next_multiple_of(64);
            asked[..8].copy_from_slice(&bytes.to_ne_bytes());
            self.inflight = Some((asked, front.file.take().unwrap()));
        }
        let (shape, file) = self.inflight.as_ref().unwrap();
        front.message(code::SET_INFLIGHT_FD, shape, &[file.as_raw_fd()], true);
    }

    fn share(&self, front: &mut Front) {
        let mut table = u32s(&[4, 0]);
        table.extend(REGIONS.iter().flat_map(|region| u64s(&region.words())));
        front.message(code::SET_MEM_TABLE, &table, &[self.memory.fd(); 4], true);
    }

    fn leave(&mut self) {
        if let Some(front) = self.front.take() {
            self.target.forget(front);
        }
    }

    /// Puts bytes into the memory.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.lies |= bytes.windows(4).any(|window| window == RINGS);
        self.memory.put(at, bytes);
    }

    fn descriptor(&mut self, at: usize, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(at, &bytes);
    }

    fn offer(&mut self, head: u16) {
        self.lies |= head >= self.shape.entries || !self.offered.insert(head);
        let place = usize::from(self.avail % self.shape.entries);
        self.memory.put(AVAIL + 4 + 2 * place, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.memory.put(AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Runs until there is nothing to do.
    fn run(&mut self) {
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
        self.target
            .turn_until("a rest", |target| target.turn() == 0);
    }

    /// Looks at what was used: each entry is of a request that waits for it.
    fn collect(&mut self) {
        if self.lies {
            return;
        }
        let index = self.memory.u16(USED + 2);
        while self.used != index {
            let place = usize::from(self.used % self.shape.entries);
            let head = self.memory.u16(USED + 4 + 8 * place);
            assert!(self.offered.remove(&head), "head {head} was not waiting");
            self.used = self.used.wrapping_add(1);
        }
        assert!(!was_rung(&self.err), "a ring that is good is given up");
    }
}

/// An address, mostly a good one; of the rings only if it is `plain`.
fn address(input: &mut Input, plain: bool) -> u64 {
    let (kind, at) = (input.u8(), u64::from(input.u8()));
    let end = |region: usize| REGIONS[region].guest + REGIONS[region].len as u64;
    match kind {
        0..64 => guest(DATA) + u64::from(kind) * 512 + at,
        64..128 => guest(usize::from(kind - 64) * 0x100) + at,
        128..144 => end(1).wrapping_sub(at),
        144..160 => end(2).wrapping_sub(at),
        160..176 => end(3).wrapping_sub(at),
        176..192 => REGIONS[1].guest.wrapping_sub(at),
        192..208 => REGIONS[3].guest.wrapping_sub(at),
        208..224 if plain => REGIONS[0].guest + at * 16,
        224..240 if plain => REGIONS[0].guest + (USED - DESC) as u64 + at,
        240..248 => u64::MAX - at,
        _ => input.u64(),
    }
}

fn length(input: &mut Input) -> u32 {
    let (kind, len) = (input.u8(), u32::from(input.u8()));
    match kind {
        0..64 => 512 * (len % 9),
        64..128 => len,
        128..160 => 16 + 512 * (len % 4),
        160..192 => 1 + 512 * (len % 4),
        192..208 => 16 * len,
        208..224 => 0x1_0000 + len,
        224..240 => u32::MAX - len,
        _ => input.u32(),
    }
}

/// What both kinds of guests do. False if it is something else.
fn prepare(guest: &mut Guest<'_>, kind: u8, plain: bool, input: &mut Input) -> bool {
    let entries = guest.shape.entries;
    match kind {
        0 | 1 => {
            let index = usize::from(input.u8());
            let at = match kind {
                0 => DESC + 16 * (index % usize::from(entries)),
                _ => REGIONS[1].at + TABLES + 16 * index,
            };
            let (addr, len) = (address(input, plain), length(input));
            let (flags, next) = (input.u8(), u16::from(input.u8()));
            let next = if flags & 0x80 == 0 {
                next % entries
            } else {
                next
            };
            guest.descriptor(at, addr, len, u16::from(flags & 7), next);
        }
        2 | 3 => request(guest, kind == 3, input),
        4 => {
            let space = REGIONS[1].len - 64;
            let at = usize::from(input.u16()) % space;
            let count = usize::from(input.u8() % 64);
            let bytes = input.bytes(count);
            guest.put(REGIONS[1].at + at, bytes);
        }
        5 => {
            let head = u16::from(input.u8());
            guest.offer(if head < 0xf0 { head % entries } else { head });
        }
        6 => {
            let flags = input.u16();
            guest.memory.put(AVAIL, &flags.to_le_bytes());
        }
        7 => {
            let event = AVAIL + 4 + 2 * usize::from(entries);
            let index = guest.used.wrapping_add(u16::from(input.u8()));
            guest.memory.put(event, &index.to_le_bytes());
        }
        8 if input.u8() < 16 => {
            guest.avail = input.u16();
            guest.memory.put(AVAIL + 2, &guest.avail.to_le_bytes());
            guest.lies = true;
        }
        _ => return false,
    }
    true
}

/// A good request, but for what its bytes say; of three or more descriptors.
fn request(guest_: &mut Guest<'_>, indirect: bool, input: &mut Input) {
    let entries = guest_.shape.entries;
    let (slot, kind, sector) = (u16::from(input.u8() % 16), input.u8(), input.u8());
    let (count, fill) = (u32::from(input.u8()), input.u8());
    let header = HEADERS + 64 * usize::from(slot);
    let mut bytes = [0_u32, 1, 4, 8, 11, 13][usize::from(kind % 6)]
        .to_le_bytes()
        .to_vec();
    bytes.extend([0; 4]);
    bytes.extend(u64::from(sector).to_le_bytes());
    bytes.extend(u64::from(sector).to_le_bytes());
    bytes.extend((count % 32).to_le_bytes());
    bytes.extend(u32::from(kind & 0x80 != 0).to_le_bytes());
    guest_.put(REGIONS[1].at + header, &bytes);
    let data = DATA + 2048 * usize::from(slot % 8);
    guest_.put(REGIONS[1].at + data, &[fill; 64]);
    let (data_len, write) = match kind % 6 {
        0 => (512 * (count % 5), 2),
        1 => (512 * (count % 5), 0),
        3 => (20, 2),
        4 | 5 => (16, 0),
        _ => (0, 0),
    };
    // An erase has its range behind the header.
    let data = if kind % 6 > 3 { header + 16 } else { data };
    let first = slot % entries;
    let table = TABLES + 256 * usize::from(slot);
    let mut put = |number: u16, addr: usize, len: u32, flags: u16| {
        let at = match indirect {
            true => REGIONS[1].at + table + 16 * usize::from(number),
            false => DESC + 16 * usize::from((first + number) % entries),
        };
        let next = if indirect {
            number + 1
        } else {
            (first + number + 1) % entries
        };
        guest_.descriptor(at, guest(addr), len, flags, next);
    };
    put(0, header, 16, 1);
    put(1, data, data_len, 1 | write);
    put(2, header + 60, 1, 2);
    if indirect {
        let at = DESC + 16 * usize::from(first);
        guest_.descriptor(at, guest(table), 48, 4, 0);
    }
    guest_.offer(first);
}

fn quick(fixture: &mut Fixture, shape: Shape, input: &mut Input) {
    let (target, bdev) = &mut fixture.quick;
    let mut guest = Guest::new(target, &fixture.memory, shape);
    guest.connect(false);
    assert!(was_rung(&guest.call), "a ring that starts is called");
    let mut image = fresh();
    image[AVAIL + 2..AVAIL + 4].copy_from_slice(&shape.base.to_le_bytes());
    image[USED + 2..USED + 4].copy_from_slice(&shape.base.to_le_bytes());
    let mut machine = Machine::new(image, shape);
    machine.run();
    for _ in 0..OPS_MAX {
        let kind = input.u8() % 12;
        let is_over = input.is_empty();
        if !is_over && prepare(&mut guest, kind, true, input) {
            continue;
        }
        machine.memory = guest.memory.image();
        machine.run();
        guest.run();
        let image = guest.memory.image();
        let wrong = image.iter().zip(&machine.memory).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "the memory, from this byte on");
        assert_eq!(was_rung(&guest.err), std::mem::take(&mut machine.complains));
        let called = std::mem::take(&mut machine.called);
        assert_eq!(was_rung(&guest.call), called, "the driver is called");
        // What the driver has seen, so that it asks for calls of what comes.
        guest.used = guest.memory.u16(USED + 2);
        guest.offered.clear();
        if is_over {
            break;
        }
    }
    guest.leave();
    assert!(wipe(target, &**bdev) == machine.disk, "the disk");
}

fn slow(fixture: &mut Fixture, shape: Shape, recorded: bool, input: &mut Input) {
    let (target, bdev) = &mut fixture.slow;
    bdev.clear();
    let mut guest = Guest::new(target, &fixture.memory, shape);
    guest.connect(recorded);
    for _ in 0..OPS_MAX {
        if input.is_empty() {
            break;
        }
        let kind = input.u8() % 16;
        match kind {
            12 => {
                let (which, count) = (input.u8(), u32::from(input.u8() % 8));
                let how = if which & 1 == 0 {
                    ErrorKind::Pending
                } else {
                    ErrorKind::Failure
                };
                bdev.inject(&Injection::new(ErrorIo::All, how, count))
                    .unwrap();
            }
            13 => bdev.resume_pending(),
            14 if recorded => {
                guest.leave();
                guest.connect(true);
            }
            15 => {
                // What is under way is waited for.
                bdev.clear();
                let mut front = guest.front.take().unwrap();
                guest.share(&mut front);
                guest.target.settle(&mut front);
                guest.front = Some(front);
            }
            kind => {
                if !prepare(&mut guest, kind, false, input) {
                    guest.run();
                    guest.collect();
                }
            }
        }
    }
    bdev.clear();
    guest.run();
    guest.collect();
    assert!(
        guest.lies || guest.offered.is_empty(),
        "{:?}",
        guest.offered
    );
    guest.leave();
}

/// The longest chains are as long as the model says.
const _: () = assert!(SEGMENTS_MAX == 128);
