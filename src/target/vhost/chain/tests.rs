//! Chains that a driver may make, and those that only an enemy makes.

use super::super::guest_mem::tests::region;
use super::*;

const COUNT: u16 = 8;
/// The ring's table is at the start of the first region, data anywhere in it.
const GUEST: u64 = 0x10_0000;
const LEN: u64 = 0x1_0000;
const USER: u64 = 0x7000_0000;

struct Rig {
    memory: GuestMemory,
    table: Window,
    chain: Chain,
}

impl Rig {
    fn new() -> Self {
        let memory = GuestMemory::default();
        let memory = memory.with(region(GUEST, USER, LEN)).unwrap();
        let table = memory.window(USER, 16 * u64::from(COUNT)).unwrap();
        Self {
            memory,
            table,
            chain: Chain::default(),
        }
    }

    fn put_at(&self, at: u64, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor {
            addr: addr.into(),
            len: len.into(),
            flags: flags.into(),
            next: next.into(),
        };
        let place = at + 16 * index;
        self.memory.write(place, descriptor.as_bytes()).unwrap();
    }

    fn put(&self, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.put_at(GUEST, index, addr, len, flags, next);
    }

    fn follow(&mut self, head: u16) -> Result<(), ChainFault> {
        self.chain
            .follow(&self.table, COUNT, head, &self.memory, true)
    }
}

const NEXT: u16 = desc_flag::NEXT;
const WRITE: u16 = desc_flag::WRITE;
const INDIRECT: u16 = desc_flag::INDIRECT;
const DATA: u64 = GUEST + 0x1000;

#[test]
fn segments_come_in_order_and_bytes_are_found_across_them() {
    let mut rig = Rig::new();
    rig.put(5, DATA, 3, NEXT, 2);
    rig.put(2, DATA + 100, 0, NEXT, 7);
    rig.put(7, DATA + 50, 4, NEXT, 0);
    rig.put(0, DATA + 200, 5, WRITE, 0);
    rig.memory.write(DATA, b"abc").unwrap();
    rig.memory.write(DATA + 50, b"defg").unwrap();
    rig.follow(5).unwrap();
    assert_eq!(rig.chain.readable.bytes(), 7);
    assert_eq!(rig.chain.writable.bytes(), 5);
    let mut bytes = [0; 4];
    rig.chain.readable.read(&rig.memory, 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"cdef");
    assert!(rig.chain.readable.read(&rig.memory, 4, &mut bytes).is_err());
    rig.chain.writable.write(&rig.memory, 4, b"x").unwrap();
    assert!(rig.chain.writable.write(&rig.memory, 4, b"xy").is_err());
    rig.memory.read(DATA + 200, &mut bytes).unwrap();
    assert_eq!(&bytes, &[0; 4]);
}

#[test]
fn a_loop_ends_and_an_index_outside_is_refused() {
    let mut rig = Rig::new();
    rig.put(0, DATA, 1, NEXT, 1);
    rig.put(1, DATA, 1, NEXT, 0);
    assert!(matches!(rig.follow(0), Err(ChainFault::TooLong(8))));
    rig.put(1, DATA, 1, NEXT, 1);
    assert!(matches!(rig.follow(0), Err(ChainFault::TooLong(8))));
    rig.put(1, DATA, 1, NEXT, COUNT);
    let fault = rig.follow(0).unwrap_err();
    assert!(matches!(fault, ChainFault::Index { index: 8, count: 8 }));
    assert!(rig.follow(COUNT).is_err());
}

#[test]
fn memory_outside_is_refused_wherever_it_is_named() {
    let mut rig = Rig::new();
    for (addr, len) in [
        (0, 1),
        (GUEST - 1, 2),
        (GUEST + LEN - 1, 2),
        (GUEST, u32::MAX),
        (u64::MAX, 2),
        (u64::MAX - 15, 16),
    ] {
        rig.put(0, addr, len, 0, 0);
        assert!(
            matches!(rig.follow(0), Err(ChainFault::Memory(_))),
            "{addr:#x}"
        );
        rig.put(0, addr, len.max(16) & !15, INDIRECT, 0);
        assert!(rig.follow(0).is_err(), "{addr:#x}");
    }
}

#[test]
fn what_is_read_stands_before_what_is_written() {
    let mut rig = Rig::new();
    rig.put(0, DATA, 1, WRITE | NEXT, 1);
    rig.put(1, DATA, 1, 0, 0);
    assert!(matches!(rig.follow(0), Err(ChainFault::Order)));
}

#[test]
fn an_indirect_table_continues_the_chain_and_ends_it() {
    let mut rig = Rig::new();
    let table = GUEST + 0x2000;
    rig.put(0, DATA, 16, NEXT, 1);
    rig.put(1, table, 48, INDIRECT, 0);
    rig.put_at(table, 0, DATA + 32, 8, NEXT, 2);
    rig.put_at(table, 2, DATA + 64, 9, WRITE, 0);
    rig.follow(0).unwrap();
    assert_eq!(rig.chain.readable.bytes(), 24);
    assert_eq!(rig.chain.writable.bytes(), 9);
    // Not negotiated.
    let refused = rig.chain.follow(&rig.table, COUNT, 0, &rig.memory, false);
    assert!(matches!(refused, Err(ChainFault::Indirect)));
    // One in another, one with a successor, and loops.
    rig.put_at(table, 2, table, 48, INDIRECT, 0);
    assert!(matches!(rig.follow(0), Err(ChainFault::Indirect)));
    rig.put_at(table, 2, DATA, 9, NEXT, 0);
    assert!(matches!(rig.follow(0), Err(ChainFault::TooLong(3))));
    rig.put_at(table, 2, DATA, 9, NEXT, 3);
    assert!(matches!(rig.follow(0), Err(ChainFault::Index { .. })));
    rig.put(1, table, 48, INDIRECT | NEXT, 2);
    assert!(matches!(rig.follow(0), Err(ChainFault::Indirect)));
}

#[test]
fn an_indirect_table_has_whole_entries_and_not_too_many() {
    let mut rig = Rig::new();
    let table = GUEST + 0x2000;
    let most = 16 * CHAIN_MAX;
    for len in [0, 8, 17, most + 16, u32::MAX] {
        rig.put(0, table, len, INDIRECT, 0);
        let fault = rig.follow(0).unwrap_err();
        assert!(
            matches!(fault, ChainFault::TableLength(_)),
            "{len}: {fault}"
        );
    }
    // More than the ring has, as drivers make them.
    for index in 0..u64::from(CHAIN_MAX) {
        let next = u16::try_from(index + 1).unwrap();
        let flags = if index + 1 == u64::from(CHAIN_MAX) {
            0
        } else {
            NEXT
        };
        rig.put_at(table, index, DATA, 1, flags, next);
    }
    rig.put(0, table, most, INDIRECT, 0);
    rig.follow(0).unwrap();
    assert_eq!(rig.chain.readable.bytes(), u64::from(CHAIN_MAX));
}

#[test]
fn segments_are_bounded_in_all() {
    let mut rig = Rig::new();
    let table = GUEST + 0x2000;
    for index in 0..u64::from(CHAIN_MAX) {
        let next = u16::try_from(index + 1).unwrap();
        let flags = if index + 1 == u64::from(CHAIN_MAX) {
            0
        } else {
            NEXT
        };
        rig.put_at(table, index, DATA, 0, flags, next);
    }
    rig.put(0, DATA, 1, NEXT, 1);
    rig.put(1, table, 16 * CHAIN_MAX, INDIRECT, 0);
    assert!(matches!(rig.follow(0), Err(ChainFault::Segments)));
    rig.follow(1).unwrap();
}

#[test]
fn what_changes_behind_our_back_is_not_looked_at_again() {
    let mut rig = Rig::new();
    rig.put(0, DATA, 8, NEXT, 1);
    rig.put(1, DATA + 64, 1, WRITE, 0);
    rig.follow(0).unwrap();
    rig.put(0, 0, u32::MAX, 0, 0);
    rig.put(1, 0, u32::MAX, WRITE, 0);
    let mut bytes = [0; 8];
    rig.chain.readable.read(&rig.memory, 0, &mut bytes).unwrap();
    rig.chain.writable.write(&rig.memory, 0, b"s").unwrap();
}

/// Tables of noise: whatever comes out lies in memory, and each table ends.
#[test]
fn noise_never_leads_out_of_memory() {
    let mut rig = Rig::new();
    let mut random = reactors::SplitMix64::new(0x7e57);
    let mut good = 0;
    for _ in 0..20_000 {
        for index in 0..u64::from(COUNT) {
            let draw = random.draw();
            let addr = match draw & 7 {
                0 => random.draw(),
                1 => GUEST + LEN - (draw >> 8) % 64,
                _ => GUEST + (draw >> 8) % (LEN - 4096),
            };
            let len = u32::try_from(random.draw() % 512).unwrap();
            let [flags, next, ..] = random.draw().to_le_bytes();
            let next = u16::from(next) % (COUNT + 1);
            rig.put(index, addr, len, u16::from(flags % 8), next);
        }
        if rig.follow(0).is_ok() {
            good += 1;
            let bytes = usize::try_from(rig.chain.readable.bytes()).unwrap();
            let mut into = vec![0; bytes];
            rig.chain.readable.read(&rig.memory, 0, &mut into).unwrap();
        }
    }
    assert!(good > 1000, "{good} chains were followed");
}
