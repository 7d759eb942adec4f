//! A front end that says anything, in any order, with any descriptors.
//!
//! Whatever it says: answers are well-formed and in order, the reactor goes on, requests are used at
//! most once, nothing outside the shared memory changes; and when it has left, its descriptors and
//! mappings are gone, and the next front end is served.

use super::guest::{AVAIL, DESC, Memory, REGIONS, USED, guest, user};
use super::{Front, Target, code, disk, notifier, u32s, u64s};
use crate::checks::input::Input;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

const MESSAGES_MAX: usize = 100;
/// Queues that are talked of; there are more.
const QUEUES: u32 = 3;
const ENTRIES: u16 = 16;
/// What the guest's memory is called.
const MEMORY: &str = "the memory of a fuzzed session";
const PROTOCOL: u64 = 1 << 3 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 | 1 << 5;

struct Fixture {
    target: Target,
    memory: Memory,
    notifiers: [OwnedFd; 3],
    /// Of the wrong kind.
    pipe: OwnedFd,
    short: File,
    socket: UnixStream,
    /// The target's end.
    _peer: UnixStream,
    checks: u32,
}

impl Fixture {
    fn new() -> Self {
        let (socket, peer) = UnixStream::pair().unwrap();
        let memfd = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let short = File::from(memfd);
        short.set_len(100).unwrap();
        Self {
            target: Target::new(disk("disk", 128)),
            memory: Memory::new(MEMORY),
            notifiers: [(); 3].map(|()| notifier()),
            pipe: OwnedFd::from(std::io::pipe().unwrap().0),
            short,
            socket,
            _peer: peer,
            checks: 0,
        }
    }

    /// Requests that are there already when the ring starts: reads and writes of a sector.
    fn fill_ring(&self) {
        self.memory.reset();
        let put = |at: usize, addr: u64, len: u32, flags: u16, next: u16| {
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            self.memory.put(at, &bytes);
        };
        for slot in 0..4_u16 {
            let header = 0x1000 + 64 * usize::from(slot);
            let kind = u32::from(slot % 2).to_le_bytes();
            self.memory.put(REGIONS[1].at + header, &kind);
            let first = DESC + 16 * usize::from(4 * slot);
            let data = 0x4000 + 512 * usize::from(slot);
            let flags = if slot % 2 == 0 { 3 } else { 1 };
            put(first, guest(header), 16, 1, 4 * slot + 1);
            put(first + 16, guest(data), 512, flags, 4 * slot + 2);
            put(first + 32, guest(header + 60), 1, 2, 0);
            let place = AVAIL + 4 + 2 * usize::from(slot);
            self.memory.put(place, &(4 * slot).to_le_bytes());
        }
        self.memory.put(AVAIL + 2, &4_u16.to_le_bytes());
    }

    fn fd(&self, kind: u8) -> RawFd {
        match kind {
            0..96 => self.notifiers[usize::from(kind % 3)].as_raw_fd(),
            96..192 => self.memory.fd(),
            192..208 => self.pipe.as_raw_fd(),
            208..224 => self.short.as_raw_fd(),
            _ => self.socket.as_raw_fd(),
        }
    }
}

thread_local! {
    static FIXTURE: std::cell::RefCell<Fixture> = std::cell::RefCell::new(Fixture::new());
}

/// A message to be.
struct Message {
    code: u32,
    body: Vec<u8>,
    fds: Vec<RawFd>,
}

fn number(input: &mut Input) -> u64 {
    match input.u8() {
        few @ 0..192 => u64::from(few % 4),
        192..224 => u64::from(input.u8()),
        224..240 => u64::MAX - u64::from(input.u8()),
        _ => input.u64(),
    }
}

/// A queue's index, mostly of one that there is.
fn index(input: &mut Input) -> u32 {
    match input.u8() {
        few @ 0..240 => u32::from(few) % QUEUES,
        other => u32::from(other) << 3,
    }
}

/// A region as a message has it, mostly a good one.
fn region(input: &mut Input) -> [u64; 4] {
    let which = input.u8();
    let mut words = REGIONS[usize::from(which % 4)].words();
    if which & 0xc0 == 0xc0 {
        words[usize::from(which >> 2 & 3)] = number(input).wrapping_mul(0x800);
    }
    words
}

/// A message of the kind that the protocol has, mostly.
fn message(fixture: &Fixture, front: &Front, input: &mut Input) -> Message {
    match input.u8() % 25 {
        0 => plain(code::GET_FEATURES, Vec::new()),
        1 => {
            let most = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
            plain(code::SET_FEATURES, u64s(&[flipped(input, most, 64)]))
        }
        2 => plain(
            code::SET_PROTOCOL_FEATURES,
            u64s(&[flipped(input, PROTOCOL, 20)]),
        ),
        3 => memory_table(fixture, input),
        kind @ 4..=7 => ring(kind, input),
        kind @ 8..=11 => notifier_of_ring(kind, fixture, input),
        12 | 13 => {
            let on = [1, 1, 1, 0, 2][usize::from(input.u8() % 5)];
            plain(code::SET_VRING_ENABLE, u32s(&[index(input), on]))
        }
        14 => plain(code::GET_VRING_BASE, u32s(&[index(input), 0])),
        kind @ (15 | 16) => configuration(kind == 16, input),
        17 => {
            let queues = u16::try_from(1 + number(input) % 70).unwrap();
            plain(code::GET_INFLIGHT_FD, inflight(0, queues))
        }
        18 => kept_inflight(fixture, front, input),
        19 => plain(code::RESET_DEVICE, Vec::new()),
        kind @ (20 | 21) => one_region(kind == 20, fixture, input),
        22 => {
            let all = [
                code::GET_PROTOCOL_FEATURES,
                code::GET_QUEUE_NUM,
                code::GET_MAX_MEM_SLOTS,
                code::SET_OWNER,
            ];
            plain(all[usize::from(input.u8() % 4)], Vec::new())
        }
        23 => Message {
            code: code::SET_BACKEND_REQ_FD,
            body: Vec::new(),
            fds: vec![fixture.fd(input.u8() | 0x80)],
        },
        _ => noise(fixture, input),
    }
}

fn plain(code: u32, body: Vec<u8>) -> Message {
    let fds = Vec::new();
    Message { code, body, fds }
}

/// `bits`, of which one below `bound` may be wrong.
fn flipped(input: &mut Input, bits: u64, bound: u8) -> u64 {
    match input.u8() {
        0..48 => bits ^ 1 << (input.u8() % bound),
        _ => bits,
    }
}

fn memory_table(fixture: &Fixture, input: &mut Input) -> Message {
    let count = 4 - input.u8() % 4;
    let mut body = u32s(&[u32::from(count), 0]);
    body.extend((0..count).flat_map(|_| u64s(&region(input))));
    Message {
        code: code::SET_MEM_TABLE,
        body,
        fds: vec![fixture.memory.fd(); usize::from(count)],
    }
}

/// Size, base or address of a ring.
fn ring(kind: u8, input: &mut Input) -> Message {
    match kind {
        4 => {
            let num = [16, 16, 16, 8, 0, 3, 1024, 0xffff_ffff][usize::from(input.u8() % 8)];
            plain(code::SET_VRING_NUM, u32s(&[index(input), num]))
        }
        5 => {
            let base = u32::try_from(number(input) & 0xffff_ffff).unwrap();
            plain(code::SET_VRING_BASE, u32s(&[index(input), base]))
        }
        _ => {
            let mut body = u32s(&[index(input), 0]);
            let mut parts = [user(DESC), user(USED), user(AVAIL), 0];
            let which = usize::from(input.u8());
            if which >= 0xc0 {
                let by = number(input).wrapping_mul(0x7ff);
                parts[which % 4] = parts[which % 4].wrapping_add(by);
            }
            body.extend(u64s(&parts));
            plain(code::SET_VRING_ADDR, body)
        }
    }
}

/// A kick, call or error of a ring, with a descriptor or said to be without.
fn notifier_of_ring(kind: u8, fixture: &Fixture, input: &mut Input) -> Message {
    let named = [
        code::SET_VRING_KICK,
        code::SET_VRING_CALL,
        code::SET_VRING_ERR,
    ];
    let flags = input.u8();
    let without = u64::from(flags & 7 == 7) << 8;
    let mut fds = Vec::new();
    if without == 0 || flags & 8 != 0 {
        let mask = if flags & 16 == 0 { 3 } else { 0xff };
        fds.push(fixture.fd(input.u8() & mask));
    }
    Message {
        code: named[usize::from(kind - 8) % 3],
        body: u64s(&[u64::from(index(input)) | without]),
        fds,
    }
}

fn configuration(set: bool, input: &mut Input) -> Message {
    let size = [57, 60, 4, 1, 256, 0][usize::from(input.u8() % 6)];
    let offset = u32::try_from(number(input) & 0xffff).unwrap();
    let mut body = u32s(&[offset, size, 0]);
    body.resize(12 + size as usize, input.u8());
    if !set {
        return plain(code::GET_CONFIG, body);
    }
    // Only the mode of the cache can be written.
    if size > 1 {
        body[..8].copy_from_slice(&u32s(&[32, 1]));
        body.truncate(13);
    }
    plain(code::SET_CONFIG, body)
}

fn inflight(bytes: u64, queues: u16) -> Vec<u8> {
    let mut body = u64s(&[bytes, 0]);
    body.extend(queues.to_ne_bytes());
    body.extend(ENTRIES.to_ne_bytes());
    body.extend([0; 4]);
    body
}

/// The record that was got, or what is none in its place; with room for our own block or without.
fn kept_inflight(fixture: &Fixture, front: &Front, input: &mut Input) -> Message {
    let (queues, flags) = (1 + number(input) % 3, input.u8());
    let bytes = queues * 320 + if flags & 2 == 0 { 64 } else { 0 };
    let kept = front.file.as_ref().filter(|_| flags & 1 == 0);
    Message {
        code: code::SET_INFLIGHT_FD,
        body: inflight(bytes, u16::try_from(queues).unwrap()),
        fds: vec![kept.map_or(fixture.fd(flags | 0xc0), AsRawFd::as_raw_fd)],
    }
}

fn one_region(add: bool, fixture: &Fixture, input: &mut Input) -> Message {
    let mut body = u64s(&[0]);
    body.extend(u64s(&region(input)));
    match add {
        true => Message {
            code: code::ADD_MEM_REG,
            body,
            fds: vec![fixture.fd(96 + input.u8() / 2)],
        },
        false => plain(code::REM_MEM_REG, body),
    }
}

fn noise(fixture: &Fixture, input: &mut Input) -> Message {
    let code = u32::from(input.u8() % 48);
    let len = usize::from(input.u8() % 64);
    let count = input.u8() % 4;
    let fds = (0..count).map(|_| fixture.fd(input.u8())).collect();
    let body = input.bytes(len).to_vec();
    Message { code, body, fds }
}

pub(crate) fn check(data: &[u8]) {
    FIXTURE.with_borrow_mut(|fixture| run(fixture, &mut Input::new(data)));
}

fn run(fixture: &mut Fixture, input: &mut Input) {
    fixture.fill_ring();
    let mut front = fixture.target.connect();
    // Most of the way, or none.
    if input.u8() < 192 {
        let features = 1 << 32 | 1 << 30 | 1 << 28;
        front.message(code::GET_FEATURES, &[], &[], true);
        front.message(code::SET_PROTOCOL_FEATURES, &u64s(&[PROTOCOL]), &[], true);
        front.message(code::SET_FEATURES, &u64s(&[features]), &[], true);
    }
    for _ in 0..MESSAGES_MAX {
        if input.is_empty() || front.is_closed {
            break;
        }
        let Message { code, body, fds } = message(fixture, &front, input);
        front.message(code, &body, &fds, true);
        if input.u8() < 200 {
            barrier(fixture, &mut front);
        }
    }
    barrier(fixture, &mut front);
    end(fixture, front, input);
    used_once(&fixture.memory);
    fixture.memory.check_canaries();
    fixture.checks += 1;
    if fixture.checks % 16 == 1 {
        let gone = |_: &mut Target| open_files() == 1 && mappings() == 0;
        fixture.target.turn_until("the memory's end", gone);
    }
}

/// Waits until all that was sent has been dealt with.
fn barrier(fixture: &mut Fixture, front: &mut Front) {
    front.message(code::GET_FEATURES, &[], &[], true);
    fixture.target.settle(front);
    for _ in 0..4 {
        fixture.target.turn();
    }
}

/// Leaves, perhaps in the middle of a message.
fn end(fixture: &mut Fixture, mut front: Front, input: &mut Input) {
    let len = usize::from(input.u8() % 40);
    front.send(input.bytes(len), &[]);
    fixture.target.forget(front);
}

/// Each of the requests that were there is used once at most, whatever ring it was a part of.
fn used_once(memory: &Memory) {
    let used = memory.u16(USED + 2);
    // A base of the front end's own choice makes old ones new.
    if used > 4 {
        return;
    }
    let heads: BTreeSet<u16> = (0..used)
        .map(|place| memory.u16(USED + 4 + 8 * usize::from(place)))
        .collect();
    let offered = BTreeSet::from([0, 4, 8, 12]);
    assert!(heads.is_subset(&offered), "{heads:?} were used");
}

/// Descriptors of the guest's memory, in this process.
fn open_files() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains(MEMORY))
        .count()
}

/// Of the guest's memory, in this process.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(MEMORY)).count()
}
