//! What may be asked, and how it is refused.

use super::super::guest_mem::tests::region;
use super::super::guest_mem::{GuestMemory, Window};
use super::*;
use crate::bdev::Supports;
use crate::wire::virtio::{Descriptor, desc_flag};
use std::sync::Arc;
use uuid::Uuid;

const SECTORS: u64 = 2048;
/// The header; ranges and data follow.
const READABLE: u64 = 0x1000;
const WRITABLE: u64 = 0x8_0000;
const MEMORY: u64 = 0x200_0000;

fn info(block_size: u32) -> BdevInfo {
    BdevInfo {
        name: "a-bdev-with-a-long-name".into(),
        product_name: "test",
        uuid: Uuid::nil(),
        block_size,
        blocks: SECTORS * 512 / u64::from(block_size),
        volatile_cache: true,
        read_only: false,
        supports: Supports {
            discard: true,
            discard_zeroes: true,
            write_zeroes: true,
            extents: false,
        },
    }
}

struct Rig {
    memory: Arc<GuestMemory>,
    table: Window,
    rules: Rules,
}

impl Rig {
    fn new(info: &BdevInfo, read_only: bool, acked: u64) -> Self {
        let memory = GuestMemory::default().with(region(0, 0, MEMORY)).unwrap();
        Self {
            table: memory.window(0, 64).unwrap(),
            memory: Arc::new(memory),
            rules: Rules::new(info, read_only, acked, true),
        }
    }

    /// A request with `readable` bytes behind the header, and `writable` in all.
    fn ask(&self, kind: u32, sector: u64, readable: u32, writable: u32) -> Result<Wish, Refusal> {
        let header = BlkHeader {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        self.memory.write(READABLE, header.as_bytes()).unwrap();
        let put = |index: usize, addr: u64, len: u32, flags: u16| {
            let descriptor = Descriptor {
                addr: addr.into(),
                len: len.into(),
                flags: flags.into(),
                next: 1.into(),
            };
            self.table.write(16 * index, descriptor.as_bytes()).unwrap();
        };
        let next = if writable > 0 { desc_flag::NEXT } else { 0 };
        put(0, READABLE, 16 + readable, next);
        put(1, WRITABLE, writable, desc_flag::WRITE);
        let mut chain = Chain::default();
        chain
            .follow(&self.table, 4, 0, &self.memory, false)
            .unwrap();
        self.rules.admit(&self.memory, &chain)
    }

    fn erase(&self, kind: u32, sector: u64, sectors: u32, flags: u32) -> Result<Wish, Refusal> {
        let range = BlkRange {
            sector: sector.into(),
            sectors: sectors.into(),
            flags: flags.into(),
        };
        self.memory.write(READABLE + 16, range.as_bytes()).unwrap();
        self.ask(kind, 0, 16, 1)
    }
}

fn io(op: Op, start: u64, len: u64) -> Result<Wish, Refusal> {
    let range = ByteRange::new(start, len).unwrap();
    Ok(Wish::Io { op, range })
}

#[test]
fn good_requests_mean_what_they_say() {
    let rig = Rig::new(&info(512), false, feature::FLUSH);
    let write = Op::Write { fua: false };
    assert_eq!(rig.ask(request::IN, 3, 0, 1025), io(Op::Read, 1536, 1024));
    assert_eq!(rig.ask(request::OUT, 3, 512, 1), io(write, 1536, 512));
    assert_eq!(rig.ask(request::FLUSH, 0, 0, 1), io(Op::Flush, 0, 0));
    assert_eq!(rig.ask(request::GET_ID, 0, 0, 21), Ok(Wish::Id));
    assert_eq!(&rig.rules.id, b"a-bdev-with-a-long-n");
    assert_eq!(
        rig.erase(request::DISCARD, 8, 16, 0),
        io(Op::Discard, 4096, 8192)
    );
    for (flags, may_unmap) in [(0, false), (1, true)] {
        let zeroes = Op::WriteZeroes {
            may_unmap,
            fua: false,
        };
        assert_eq!(
            rig.erase(request::WRITE_ZEROES, 8, 16, flags),
            io(zeroes, 4096, 8192)
        );
    }
}

#[test]
fn without_flush_every_write_is_durable() {
    let rig = Rig::new(&info(512), false, 0);
    assert_eq!(
        rig.ask(request::OUT, 0, 512, 1),
        io(Op::Write { fua: true }, 0, 512)
    );
    let zeroes = Op::WriteZeroes {
        may_unmap: false,
        fua: true,
    };
    assert_eq!(
        rig.erase(request::WRITE_ZEROES, 0, 1, 0),
        io(zeroes, 0, 512)
    );
}

#[test]
fn a_driver_that_chooses_write_through_gets_durable_writes() {
    let both = feature::FLUSH | feature::CONFIG_WCE;
    let mut info = info(512);
    for (volatile_cache, acked, write_back, fua) in [
        (true, both, false, true),
        (true, both, true, false),
        // It can't have chosen.
        (true, feature::FLUSH, false, false),
        (true, 0, true, true),
        (true, feature::CONFIG_WCE, true, true),
        (false, both, false, false),
    ] {
        info.volatile_cache = volatile_cache;
        let mut rig = Rig::new(&info, false, acked);
        rig.rules = Rules::new(&info, false, acked, write_back);
        let write = rig.ask(request::OUT, 0, 512, 1);
        assert_eq!(
            write,
            io(Op::Write { fua }, 0, 512),
            "{acked:x} {write_back}"
        );
    }
    info.volatile_cache = true;
    assert_eq!(config(&info, 1, true).wce, 1);
    assert_eq!(config(&info, 1, false).wce, 0);
}

#[test]
fn what_leaves_the_disk_or_its_blocks_fails() {
    let rig = Rig::new(&info(512), false, 0);
    let huge = u32::try_from(REQUEST_BYTES_MAX).unwrap() + 512;
    for refused in [
        rig.ask(request::IN, SECTORS, 0, 513),
        rig.ask(request::IN, SECTORS - 1, 0, 1025),
        rig.ask(request::IN, u64::MAX, 0, 513),
        rig.ask(request::IN, u64::MAX / 512, 0, 513),
        rig.ask(request::IN, 0, 0, 512),
        rig.ask(request::IN, 0, 0, 1),
        rig.ask(request::IN, 0, 0, huge + 1),
        rig.ask(request::OUT, 0, 0, 1),
        rig.ask(request::OUT, 0, 100, 1),
        rig.ask(request::GET_ID, 0, 0, 1),
        rig.ask(request::DISCARD, 0, 32, 1),
        rig.ask(request::DISCARD, 0, 0, 1),
        rig.erase(request::DISCARD, 0, 0, 0),
        rig.erase(request::DISCARD, u64::MAX, 1, 0),
        rig.erase(request::DISCARD, SECTORS, 1, 0),
        rig.erase(request::WRITE_ZEROES, 0, u32::MAX, 0),
    ] {
        assert_eq!(refused, Err(FAILED));
    }
    let rig = Rig::new(&info(4096), false, 0);
    assert_eq!(rig.ask(request::IN, 1, 0, 4097), Err(FAILED));
    assert_eq!(rig.ask(request::IN, 8, 0, 513), Err(FAILED));
    assert_eq!(rig.ask(request::IN, 8, 0, 4097), io(Op::Read, 4096, 4096));
}

#[test]
fn what_is_not_offered_is_unknown_and_what_has_no_status_gets_none() {
    let rig = Rig::new(&info(512), false, 0);
    assert_eq!(rig.ask(2, 0, 0, 1), Err(UNKNOWN));
    assert_eq!(rig.ask(u32::MAX, 0, 0, 1), Err(UNKNOWN));
    assert_eq!(rig.erase(request::DISCARD, 0, 1, 1), Err(UNKNOWN));
    assert_eq!(rig.erase(request::WRITE_ZEROES, 0, 1, 2), Err(UNKNOWN));
    assert_eq!(rig.ask(request::OUT, 0, 512, 0), Err(Refusal::NoStatus));
    let mut plain = info(512);
    plain.supports = Supports::default();
    let rig = Rig::new(&plain, false, 0);
    assert_eq!(rig.erase(request::DISCARD, 0, 1, 0), Err(UNKNOWN));
}

#[test]
fn a_read_only_disk_is_never_changed() {
    let rig = Rig::new(&info(512), true, 0);
    assert_eq!(rig.ask(request::OUT, 0, 512, 1), Err(FAILED));
    assert_eq!(rig.erase(request::DISCARD, 0, 1, 0), Err(FAILED));
    assert_eq!(rig.erase(request::WRITE_ZEROES, 0, 1, 0), Err(FAILED));
    assert_eq!(rig.ask(request::IN, 0, 0, 513), io(Op::Read, 0, 512));
    let offered = features(&info(512), true);
    assert_eq!(
        offered & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES),
        feature::RO
    );
}

#[test]
fn no_volatile_cache_no_flush() {
    let mut info = info(4096);
    assert_ne!(features(&info, false) & feature::FLUSH, 0);
    info.volatile_cache = false;
    let cache = feature::FLUSH | feature::CONFIG_WCE;
    assert_eq!(features(&info, false) & cache, 0);
    // Then nothing has to be written through either.
    let rig = Rig::new(&info, false, 0);
    assert_eq!(
        rig.ask(request::OUT, 0, 4096, 1),
        io(Op::Write { fua: false }, 0, 4096)
    );
    let config = config(&info, 5, true);
    assert_eq!(config.capacity.get(), SECTORS);
    assert_eq!(config.blk_size.get(), 4096);
    assert_eq!(config.num_queues.get(), 5);
    assert_eq!(config.discard_sector_alignment.get(), 8);
}
