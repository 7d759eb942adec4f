//! A guest by hand: a ring of its own, whose every byte a test may set. It keeps the record of what
//! is under way over the back end's death, as QEMU does.

use crate::common::wait_until;
use rustix::fs::MemfdFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Requests at a time; each has four descriptors to itself.
pub const SLOTS: usize = 64;
pub const ENTRIES: u16 = 256;
/// Bytes of a request's payload.
pub const BLOCK: usize = 4096;
const MEMORY: usize = 0x20_0000;
const AVAIL: usize = 0x2000;
const USED: usize = 0x4000;
const HEADERS: usize = 0x8000;
const STATUS: usize = 0xc000;
const DATA: usize = 0x10_0000;
/// Where the guest sees its memory.
const GUEST: u64 = 0x4000_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 9;
/// The driver chooses whether the cache writes back.
pub const CONFIG_WCE: u64 = 1 << 11;
/// Where in the configuration that is.
const AT_WCE: u32 = 32;

pub struct Guest {
    memory: MmapRegion,
    memory_fd: File,
    kick: EventFd,
    call: EventFd,
    pub err: EventFd,
    inflight: Option<(VhostUserInflight, File)>,
    front: Option<Frontend>,
    /// Whether it keeps a record of what is under way.
    pub keeps_record: bool,
    /// What the driver accepts, if it is offered.
    pub features: u64,
    /// What it has accepted at first, and accepts ever after, as QEMU does.
    pub accepted: Option<u64>,
    avail: u16,
    used: u16,
    /// Slots whose requests are not answered.
    pub pending: BTreeSet<usize>,
}

impl Guest {
    pub fn new() -> Self {
        let fd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, MEMORY as u64).unwrap();
        let memory_fd = File::from(fd);
        let offset = FileOffset::new(memory_fd.try_clone().unwrap(), 0);
        let memory = MmapRegion::from_file(offset, MEMORY).unwrap();
        Self {
            memory,
            memory_fd,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            err: EventFd::new(EFD_NONBLOCK).unwrap(),
            inflight: None,
            front: None,
            keeps_record: true,
            features: FEATURES,
            accepted: None,
            avail: 0,
            used: 0,
            pending: BTreeSet::new(),
        }
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.memory
            .get_slice(at, bytes.len())
            .unwrap()
            .copy_from(bytes);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.get_slice(at, N).unwrap().copy_to(&mut bytes);
        bytes
    }

    /// Tells the back end of all memory: at the start, and whenever it changes.
    pub fn share_memory(&self) {
        self.share_at(self.memory.as_ptr().addr() as u64);
    }

    /// The same memory, but where nobody looks for it: the rings have no place.
    pub fn hide_memory(&self) {
        self.share_at(0x1000);
    }

    fn share_at(&self, userspace_addr: u64) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: MEMORY as u64,
            userspace_addr,
            mmap_offset: 0,
            mmap_handle: self.memory_fd.as_raw_fd(),
        };
        let front = self.front.as_ref().unwrap();
        front.set_mem_table(&[region]).unwrap();
    }

    /// The used ring's memory is no more.
    pub fn lose_used_ring(&self) {
        self.memory_fd.set_len(USED as u64).unwrap();
    }

    /// Connects, and goes on with the ring as it is. With a record the base is 0, since nobody can say how
    /// far a dead back end has got.
    pub fn connect(&mut self, socket: &Path) {
        let mut front = Frontend::connect(socket, 1).unwrap();
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        let protocol = front.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        assert!(protocol.contains(wanted));
        front.set_protocol_features(wanted).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let accepted = *self.accepted.get_or_insert(offered & self.features);
        front.set_features(accepted).unwrap();
        if self.keeps_record {
            let (inflight, file) = self.inflight.get_or_insert_with(|| {
                let asked = VhostUserInflight::new(0, 0, 1, ENTRIES);
                front.get_inflight_fd(&asked).unwrap()
            });
            front.set_inflight_fd(inflight, file.as_raw_fd()).unwrap();
        }
        self.front = Some(front);
        self.share_memory();
        let base = if self.keeps_record { 0 } else { self.used };
        self.set_up_ring(base);
    }

    /// Has the device reset, and begins anew with an empty ring, on the same connection. The record is not
    /// handed over again.
    pub fn reset(&mut self) {
        let front = self.front.as_mut().unwrap();
        front.reset_owner().unwrap();
        front.set_owner().unwrap();
        front.set_features(self.accepted.unwrap()).unwrap();
        self.put(AVAIL, &[0; 4]);
        self.put(USED, &[0; 4]);
        (self.avail, self.used) = (0, 0);
        self.pending.clear();
        self.set_up_ring(0);
    }

    fn set_up_ring(&mut self, taken: u16) {
        let base = self.memory.as_ptr().addr() as u64;
        let addresses = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: base,
            used_ring_addr: base + USED as u64,
            avail_ring_addr: base + AVAIL as u64,
            log_addr: None,
        };
        let front = self.front.as_mut().unwrap();
        front.set_vring_num(0, ENTRIES).unwrap();
        front.set_vring_base(0, taken).unwrap();
        front.set_vring_addr(0, &addresses).unwrap();
        front.set_vring_call(0, &self.call).unwrap();
        front.set_vring_err(0, &self.err).unwrap();
        front.set_vring_kick(0, &self.kick).unwrap();
        front.set_vring_enable(0, true).unwrap();
    }

    /// Reads the configuration's capacity, in sectors.
    pub fn capacity(&mut self) -> u64 {
        u64::from_le_bytes(self.config(0))
    }

    /// Reads whether the cache writes back.
    pub fn write_back(&mut self) -> u8 {
        let [write_back] = self.config(AT_WCE);
        write_back
    }

    fn config<const N: usize>(&mut self, offset: u32) -> [u8; N] {
        let size = u32::try_from(N).unwrap();
        let front = self.front.as_mut().unwrap();
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, bytes) = front.get_config(offset, size, flags, &[0; N]).unwrap();
        bytes.try_into().unwrap()
    }

    /// Stores a byte of the configuration; whether that was allowed.
    pub fn set_config(&mut self, offset: u32, byte: u8) -> bool {
        let front = self.front.as_mut().unwrap();
        let flags = VhostUserConfigFlags::WRITABLE;
        front.set_config(offset, flags, &[byte]).is_ok()
    }

    /// Says whether the cache writes back.
    pub fn set_write_back(&mut self, write_back: u8) -> bool {
        self.set_config(AT_WCE, write_back)
    }

    /// Hands over a channel for what the back end says without being asked; whether it was taken.
    pub fn set_back_channel(&mut self, channel: &dyn AsRawFd) -> bool {
        let front = self.front.as_mut().unwrap();
        front.set_backend_request_fd(channel).is_ok()
    }

    /// Lets the connection go.
    pub fn disconnect(&mut self) {
        self.front = None;
    }

    /// Stops the ring, and returns how far its requests have been taken.
    pub fn stop_ring(&mut self) -> u32 {
        self.front.as_mut().unwrap().get_vring_base(0).unwrap()
    }

    pub fn descriptor(&self, index: usize, addr: u64, len: u32, flags: u16, next: usize) {
        let next = u16::try_from(next).unwrap();
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(16 * index, &bytes);
    }

    pub fn request(&self, slot: usize, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(HEADERS + 16 * slot, &header);
        self.put(STATUS + slot, &[0xff]);
        let at = |offset: usize| GUEST + offset as u64;
        let first = 4 * slot;
        let data_flags = if kind == 0 { NEXT | WRITE } else { NEXT };
        let bytes = u32::try_from(BLOCK).unwrap();
        self.descriptor(first, at(HEADERS + 16 * slot), 16, NEXT, first + 1);
        self.descriptor(
            first + 1,
            at(DATA + BLOCK * slot),
            bytes,
            data_flags,
            first + 2,
        );
        self.descriptor(first + 2, at(STATUS + slot), 1, WRITE, 0);
    }

    /// The chain of `slot` writes all the memory behind [`DATA`], to the front of the disk.
    pub fn large_write(&self, slot: usize) {
        self.request(slot, 1, 0);
        let (first, addr) = (4 * slot, GUEST + DATA as u64);
        let len = u32::try_from(MEMORY - DATA).unwrap();
        self.descriptor(first + 1, addr, len, NEXT, first + 2);
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let place = AVAIL + 4 + 2 * usize::from(self.avail % ENTRIES);
        self.put(place, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.set_avail(self.avail);
        self.kick.write(1).unwrap();
    }

    /// Makes the chain at `head` available twice, at once.
    pub fn offer_twice(&mut self, head: u16) {
        self.offer_all(&[head, head]);
    }

    /// Makes all these chains available at once.
    pub fn offer_all(&mut self, heads: &[u16]) {
        for head in heads {
            let place = AVAIL + 4 + 2 * usize::from(self.avail % ENTRIES);
            self.put(place, &head.to_le_bytes());
            self.avail = self.avail.wrapping_add(1);
        }
        self.set_avail(self.avail);
    }

    pub fn forget_calls(&self) {
        // The only failure is that there were none.
        let _ = self.call.read();
    }

    /// Waits until the back end calls, and forgets that it did.
    pub fn wait_call(&self) {
        wait_until("the back end calls", || self.call.read().is_ok());
    }

    /// Stores the index of the available ring, right or wrong.
    pub fn set_avail(&self, index: u16) {
        let slice = self.memory.as_volatile_slice();
        slice
            .store(index.to_le(), AVAIL + 2, Ordering::SeqCst)
            .unwrap();
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    fn start(&mut self, slot: usize, kind: u32, block: usize) {
        self.request(slot, kind, (block * BLOCK / 512) as u64);
        assert!(self.pending.insert(slot));
        self.offer(u16::try_from(4 * slot).unwrap());
    }

    /// Starts to write `bytes`, a block.
    pub fn write(&mut self, slot: usize, block: usize, bytes: &[u8; BLOCK]) {
        self.put(DATA + BLOCK * slot, bytes);
        self.start(slot, 1, block);
    }

    /// Starts a [`Guest::large_write`].
    pub fn start_large_write(&mut self, slot: usize) {
        self.large_write(slot);
        assert!(self.pending.insert(slot));
        self.offer(u16::try_from(4 * slot).unwrap());
    }

    /// Starts to read a block.
    pub fn read(&mut self, slot: usize, block: usize) {
        self.start(slot, 0, block);
    }

    /// Starts a flush.
    pub fn flush(&mut self, slot: usize) {
        self.start(slot, 4, 0);
    }

    pub fn data(&self, slot: usize) -> [u8; BLOCK] {
        self.get(DATA + BLOCK * slot)
    }

    /// The next answer: its head, and how many bytes were written.
    pub fn answer(&mut self) -> Option<(u16, u32)> {
        let slice = self.memory.as_volatile_slice();
        let index: u16 = slice.load(USED + 2, Ordering::SeqCst).unwrap();
        if u16::from_le(index) == self.used {
            return None;
        }
        let place = USED + 4 + 8 * usize::from(self.used % ENTRIES);
        self.used = self.used.wrapping_add(1);
        let [a, b, _, _, rest @ ..] = self.get::<8>(place);
        Some((u16::from_le_bytes([a, b]), u32::from_le_bytes(rest)))
    }

    /// Waits for an answer to anything.
    pub fn wait_answer(&mut self) -> (u16, u32) {
        let mut found = None;
        wait_until("an answer comes", || {
            found = self.answer();
            found.is_some()
        });
        found.unwrap()
    }

    /// The slots that were answered since the last look: each was waiting, and did well.
    pub fn answered(&mut self) -> Vec<usize> {
        let mut slots = Vec::new();
        while let Some((head, _)) = self.answer() {
            let slot = usize::from(head) / 4;
            assert!(self.pending.remove(&slot), "slot {slot} is answered twice");
            let [status] = self.get(STATUS + slot);
            assert_eq!(status, 0, "slot {slot}");
            slots.push(slot);
        }
        slots
    }

    /// Waits until nothing is pending.
    pub fn settle(&mut self) {
        wait_until("all requests are answered", || {
            self.answered();
            self.pending.is_empty()
        });
    }

    /// How many requests were made, and answered.
    pub fn counts(&self) -> (u16, u16) {
        (self.avail, self.used)
    }
}
