//! vhost-user-blk when one side dies, changes its mind, or lies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod vhost_common;

use common::{EMPTY_CONFIG, Service, wait_until};
use reactors::SplitMix64;
use serde_json::json;
use std::path::PathBuf;
use vhost_common::controller;
use vhost_common::disk::{Disk, Op};
use vhost_common::raw::{BLOCK, ENTRIES, Guest, SLOTS};

/// Blocks of the disk: each slot has its own few.
const BLOCKS: usize = SLOTS * 4;

/// A disk on a file that outlives the service, slow enough for requests to be under way at any time.
fn slow_disk(service: &Service) -> PathBuf {
    let image = service.dir().join("image");
    if !image.exists() {
        std::fs::write(&image, vec![0; BLOCKS * BLOCK]).unwrap();
    }
    let params = json!({"name": "U0", "filename": image, "block_size": 512});
    service.call("bdev_uring_create", params);
    let params = json!({
        "name": "D0", "base_bdev_name": "U0", "avg_read_latency": 300, "p99_read_latency": 900,
        "avg_write_latency": 500, "p99_write_latency": 2000,
    });
    service.call("bdev_delay_create", params);
    controller(service, "D0")
}

/// The guest's work: what each block must hold, once all is answered.
struct Work {
    random: SplitMix64,
    stamps: Vec<u64>,
    next: u64,
}

fn block_of(stamp: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&stamp.wrapping_mul(i as u64 + 1).to_le_bytes());
    }
    bytes
}

impl Work {
    fn new(seed: u64) -> Self {
        Self {
            random: SplitMix64::new(seed),
            stamps: vec![0; BLOCKS],
            next: 1,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.draw() % bound as u64).unwrap()
    }

    /// Writes from every slot that has nothing under way.
    fn fill(&mut self, guest: &mut Guest) {
        for slot in 0..SLOTS {
            if !guest.pending.contains(&slot) {
                let block = slot * 4 + self.below(4);
                guest.write(slot, block, &block_of(self.next));
                self.stamps[block] = self.next;
                self.next += 1;
            }
        }
    }

    /// Has the cache emptied now and then, from a slot that writes nothing meanwhile.
    fn flush(&mut self, guest: &mut Guest) {
        let slot = self.below(SLOTS);
        if self.below(4) == 0 && !guest.pending.contains(&slot) {
            guest.flush(slot);
        }
    }

    /// Keeps all slots busy for `count` answers.
    fn run(&mut self, guest: &mut Guest, count: usize) {
        let mut answered = 0;
        wait_until("the requests are answered", || {
            self.flush(guest);
            self.fill(guest);
            answered += guest.answered().len();
            answered >= count
        });
    }

    /// Waits for all answers, then reads everything.
    fn verify(&self, guest: &mut Guest) {
        guest.settle();
        let (made, answered) = guest.counts();
        assert_eq!(made, answered, "a request has no answer, or two");
        for (block, stamp) in self.stamps.iter().enumerate() {
            guest.read(0, block);
            guest.settle();
            assert!(
                guest.data(0) == block_of(*stamp),
                "block {block}: not stamp {stamp}"
            );
        }
    }
}

/// Kills the service again and again while a guest keeps it busy, and brings it back with `disk`.
/// Returns what is then on the disk.
fn kill_under_load(seed: u64, rounds: usize, disk: fn(&Service) -> PathBuf) -> (Service, Work) {
    let mut work = Work::new(seed);
    let mut guest = Guest::new();
    let mut service = Service::start();
    guest.connect(&disk(&service));
    for _ in 0..6 {
        let count = 1 + work.below(rounds);
        work.run(&mut guest, count);
        work.fill(&mut guest);
        let dir = service.kill();
        guest.disconnect();
        service = Service::start_in(dir, &["--config", EMPTY_CONFIG]);
        // Its predecessor may have died between an answer and the call.
        guest.forget_calls();
        guest.connect(&disk(&service));
        guest.wait_call();
        guest.settle();
    }
    work.verify(&mut guest);
    (service, work)
}

#[test]
fn a_killed_service_loses_no_request_and_does_none_twice() {
    kill_under_load(11, 400, slow_disk);
}

/// A cache of which the log goes round while it is killed, on a backing file.
fn cached_disk(service: &Service) -> PathBuf {
    let image = service.dir().join("image");
    let is_new = !image.exists();
    if is_new {
        std::fs::write(&image, vec![0; BLOCKS * BLOCK]).unwrap();
    }
    let mut pmem = json!({"name": "pm0", "path": "pm0.pmem"});
    if is_new {
        pmem["create_file"] = json!(true);
        pmem["size"] = json!(16 << 20);
    }
    service.call("bdev_pmem_create", pmem);
    let params = json!({"name": "U0", "filename": image, "block_size": 512});
    service.call("bdev_uring_create", params);
    let mut cache = json!({"name": "C0", "pool": "p0", "backing_bdev": "U0"});
    if is_new {
        let pool = json!({"name": "p0", "bdev_name": "pm0", "segment_size": 256 << 10});
        service.call("pool_create", pool);
        cache["size"] = json!(12 << 20);
        cache["lanes"] = json!(2);
        service.call("bdev_pmcache_create", cache);
    } else {
        service.call("pool_load", json!({"bdev_name": "pm0"}));
        service.call("bdev_pmcache_load", cache);
    }
    controller(service, "C0")
}

#[test]
fn a_killed_cache_has_all_that_its_guest_was_answered_and_so_has_its_backing() {
    let (service, work) = kill_under_load(14, 4000, cached_disk);
    service.call("bdev_pmcache_flush_start", json!({"name": "C0"}));
    wait_until("all is written back", || {
        let status = service.call("bdev_pmcache_flush_status", json!({"name": "C0"}));
        status["in_progress"] == false
    });
    let dir = service.stop();
    let image = std::fs::read(dir.path().join("image")).unwrap();
    for (block, stamp) in work.stamps.iter().enumerate() {
        let bytes = &image[block * BLOCK..(block + 1) * BLOCK];
        assert!(
            bytes == block_of(*stamp),
            "block {block}: not stamp {stamp}"
        );
    }
}

#[test]
fn a_ring_is_called_when_it_starts() {
    let service = Service::start();
    let socket = slow_disk(&service);
    let mut guest = Guest::new();
    guest.connect(&socket);
    // Nothing was asked: a dead predecessor may have answered, and not called.
    guest.wait_call();
}

#[test]
fn a_front_end_that_comes_back_finds_all_its_requests_answered() {
    let service = Service::start();
    let socket = slow_disk(&service);
    let mut work = Work::new(12);
    let mut guest = Guest::new();
    for _ in 0..12 {
        guest.connect(&socket);
        let count = 1 + work.below(200);
        work.run(&mut guest, count);
        work.fill(&mut guest);
        guest.disconnect();
    }
    guest.connect(&socket);
    work.verify(&mut guest);
}

#[test]
fn memory_and_rings_change_under_load() {
    let service = Service::start();
    let socket = slow_disk(&service);
    let mut work = Work::new(13);
    let mut guest = Guest::new();
    guest.connect(&socket);
    for _ in 0..10 {
        work.run(&mut guest, 50);
        work.fill(&mut guest);
        guest.share_memory();
    }
    work.fill(&mut guest);
    // Everything that was taken is answered before the front end is told how far that was.
    let taken = guest.stop_ring();
    guest.answered();
    let (made, answered) = guest.counts();
    assert_eq!(taken, u32::from(answered));
    assert!(guest.pending.len() == usize::from(made.wrapping_sub(answered)));
    guest.disconnect();
    guest.connect(&socket);
    work.verify(&mut guest);
}

/// Memory that goes and comes back takes the rings with it for a while, and no request is lost.
#[test]
fn rings_come_back_with_their_memory() {
    let service = Service::start();
    let socket = slow_disk(&service);
    let mut work = Work::new(15);
    let mut guest = Guest::new();
    guest.connect(&socket);
    for _ in 0..3 {
        work.run(&mut guest, 20);
        work.fill(&mut guest);
        guest.hide_memory();
        guest.share_memory();
    }
    work.verify(&mut guest);
}

/// A device that stalls for long while memory changes fails nothing: what it has is done again.
#[test]
fn what_waits_while_memory_changes_is_not_failed() {
    let service = Service::start();
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": BLOCKS * BLOCK / 512});
    service.call("bdev_malloc_create", params);
    service.call("bdev_error_create", json!({"base_name": "M0"}));
    let socket = controller(&service, "EE_M0");
    for keeps_record in [false, true] {
        let mut guest = Guest::new();
        guest.keeps_record = keeps_record;
        guest.connect(&socket);
        let stall = json!({
            "name": "EE_M0", "io_type": "write", "error_type": "pending", "num": 2,
        });
        service.call("bdev_error_inject_error", stall);
        for slot in 0..4 {
            guest.write(slot, slot, &block_of(slot as u64 + 7));
        }
        wait_until("those that do not stall are answered", || {
            guest.answered();
            guest.pending.len() == 2
        });
        guest.share_memory();
        guest.settle();
        for slot in 0..4 {
            guest.read(slot, slot);
            guest.settle();
            assert!(guest.data(slot) == block_of(slot as u64 + 7));
        }
    }
}

/// Who begins anew has nothing under way: what the record says is of an earlier life.
#[test]
fn a_reset_ends_what_was_under_way_for_good() {
    let service = Service::start();
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": BLOCKS * BLOCK / 512});
    service.call("bdev_malloc_create", params);
    service.call("bdev_error_create", json!({"base_name": "M0"}));
    let socket = controller(&service, "EE_M0");
    let mut guest = Guest::new();
    guest.connect(&socket);
    let stall = json!({
        "name": "EE_M0", "io_type": "write", "error_type": "pending", "num": 2,
    });
    service.call("bdev_error_inject_error", stall);
    for slot in 3..6 {
        guest.write(slot, slot, &block_of(slot as u64 + 7));
    }
    wait_until("the one that does not stall is answered", || {
        guest.answered();
        guest.pending.len() == 2
    });
    guest.reset();
    // The first answers are those of its new requests, and there are no others.
    guest.write(9, 9, &block_of(1));
    guest.settle();
    for _ in 0..8 {
        guest.read(10, 9);
        guest.settle();
        assert!(guest.data(10) == block_of(1));
    }
    assert_eq!(guest.counts(), (9, 9));
}

/// More than one back end may have at a time: when the ring is stopped, most of it is not begun.
#[test]
fn a_ring_is_stopped_in_order_only_when_what_a_predecessor_took_is_answered() {
    let mut guest = Guest::new();
    let mut service = Service::start();
    let image = service.dir().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let slow = |service: &Service| {
        let params = json!({"name": "U0", "filename": image, "block_size": 512});
        service.call("bdev_uring_create", params);
        let params = json!({
            "name": "D0", "base_bdev_name": "U0", "avg_read_latency": 0, "p99_read_latency": 0,
            "avg_write_latency": 20_000, "p99_write_latency": 20_000,
        });
        service.call("bdev_delay_create", params);
        controller(service, "D0")
    };
    guest.connect(&slow(&service));
    for slot in 0..16 {
        guest.start_large_write(slot);
    }
    wait_until("some are answered, so all are taken", || {
        guest.answered();
        guest.pending.len() < 16
    });
    let dir = service.kill();
    guest.answered();
    let left = guest.pending.len();
    guest.disconnect();
    service = Service::start_in(dir, &["--config", EMPTY_CONFIG]);
    guest.connect(&slow(&service));
    let taken = guest.stop_ring();
    guest.answered();
    assert_eq!(guest.pending.len(), 0, "of {left}");
    assert_eq!(taken, 16);
}

#[test]
fn a_used_ring_whose_memory_is_lost_is_given_up() {
    let service = Service::start();
    let socket = slow_disk(&service);
    let mut guest = Guest::new();
    guest.connect(&socket);
    guest.write(0, 0, &block_of(1));
    guest.settle();
    guest.lose_used_ring();
    guest.kick();
    wait_until("the back end complains", || guest.err.read().is_ok());
}

#[test]
fn bad_chains_are_answered_and_the_next_request_works() {
    let service = Service::start();
    let socket = slow_disk(&service);
    let mut guest = Guest::new();
    guest.connect(&socket);
    let (next, write) = (1, 2);
    for (addr, len, flags) in [
        (0, 16, 0),
        (u64::MAX, u32::MAX, write),
        (0x4000_0000, 16, next),
        (0x4000_0000, 17, 4),
        (0x4000_0000, 16, 4 | next),
        (0x401f_ffff, 2, write),
    ] {
        // The successor is the descriptor itself.
        guest.descriptor(252, addr, len, flags, 252);
        guest.offer(252);
        assert_eq!(guest.wait_answer(), (252, 0), "{addr:#x} {len} {flags}");
    }
    guest.write(1, 1, &block_of(5));
    guest.settle();
    guest.read(2, 1);
    guest.settle();
    assert!(guest.data(2) == block_of(5));
}

#[test]
fn a_ring_that_lies_stands_still_and_others_go_on() {
    let service = Service::start();
    let socket = slow_disk(&service);
    let params = json!({"name": "M0", "block_size": 512, "num_blocks": 2048});
    service.call("bdev_malloc_create", params);
    let params = json!({"ctrlr": "c1", "dev_name": "M0"});
    service.call("vhost_create_blk_controller", params);
    let mut other = Disk::connect(&service.data("c1"), 1, 1, BLOCK, true);
    for lie in 0..3 {
        let mut guest = Guest::new();
        guest.connect(&socket);
        guest.write(0, 0, &block_of(1));
        guest.settle();
        match lie {
            0 => guest.set_avail(2 + ENTRIES),
            1 => guest.offer(ENTRIES),
            // Slow, and there again before it is answered.
            _ => {
                guest.request(3, 1, 24);
                guest.offer_twice(12);
            }
        }
        guest.kick();
        wait_until("the back end complains", || guest.err.read().is_ok());
        other.fill(0, &[7; BLOCK]);
        assert_eq!(other.run(Op::Write, 0, BLOCK), 0);
        guest.disconnect();
    }
    // The controller serves the next one.
    let mut guest = Guest::new();
    guest.connect(&socket);
    guest.write(0, 0, &block_of(3));
    guest.settle();
}

#[test]
fn nonsense_on_the_socket_ends_the_session_only() {
    use std::io::{Read, Write};
    let service = Service::start();
    let socket = slow_disk(&service);
    let mut random = SplitMix64::new(17);
    for round in 0..40_u8 {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        // A good header but for one field, with a body of noise.
        let mut message = u32::from(round % 45).to_le_bytes().to_vec();
        message.extend([1_u32, 9, 5, 0][usize::from(round % 4)].to_le_bytes());
        message.extend([8_u32, 40, 0xffff, 3][usize::from(round / 4 % 4)].to_le_bytes());
        for _ in 0..40 {
            message.extend(random.draw().to_le_bytes());
        }
        // It may hang up before it has all.
        let _ = stream.write_all(&message);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
    }
    let mut guest = Guest::new();
    guest.connect(&socket);
    guest.write(0, 0, &block_of(3));
    guest.settle();
}
