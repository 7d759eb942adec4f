//! What hosts do with namespaces over NVMe/TCP, byte by byte.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;
mod nvmf_common;

use nbd_common::{RamDisk, wait_until};
use nvmf_common::{Fixture, Host, NQN};
use pmcache::target::nvmf::TransportOptions;
use pmcache::wire::nvme::{DataPdu, Digests, DsmRange, Status, connect_flag, io};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

const ALL_DIGESTS: [u8; 4] = [0, 1, 2, 3];

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 251).unwrap() ^ seed)
        .collect()
}

#[test]
fn data_go_there_and_back_with_all_digests_and_ways() {
    let (fixture, disk) = Fixture::with_disk();
    for digests in ALL_DIGESTS {
        let host = Host::connect_with(fixture.address, NQN, Digests::from_byte(digests));
        for flags in [0, connect_flag::NO_FLOW_CONTROL] {
            let mut qpair = host.io(1 + u16::from(flags), flags);
            let small = pattern(4096, digests + flags);
            assert_eq!(qpair.write(8, &small), Status::SUCCESS);
            let large = pattern(128 << 10, digests + flags + 7);
            for part in [128 << 10, 40_000, 512] {
                assert_eq!(qpair.write_asked(64, &large, part), Status::SUCCESS);
            }
            assert_eq!(qpair.read(8, 8), (Status::SUCCESS, small.clone()));
            assert_eq!(qpair.read(64, 256), (Status::SUCCESS, large.clone()));
            assert_eq!(disk.content()[64 * 512..][..128 << 10], large);
        }
    }
}

/// TCP cuts where it likes: every PDU one byte at a time.
#[test]
fn pdus_may_come_byte_by_byte() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect_with(fixture.address, NQN, Digests::from_byte(3));
    let mut qpair = host.io(1, 0);
    let data = pattern(512, 3);
    let sqe = qpair.io(io::WRITE, 0, 1).with_capsule_data(512);
    for byte in qpair.capsule(sqe, &data) {
        qpair.stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(qpair.receive().completion().status, Status::SUCCESS);
    assert_eq!(disk.content()[..512], data);
}

#[test]
fn many_commands_complete_in_any_order_and_none_is_lost() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    disk.switches.hold.store(true, Ordering::SeqCst);
    disk.switches.reverse.store(true, Ordering::SeqCst);
    let mut cids = vec![];
    let mut bytes = vec![];
    for lba in 0..128_u64 {
        let data = pattern(512, u8::try_from(lba).unwrap());
        let sqe = qpair.io(io::WRITE, lba, 1).with_capsule_data(512);
        cids.push(sqe.cid.get());
        bytes.extend(qpair.capsule(sqe, &data));
    }
    qpair.send(&bytes);
    wait_until("all are submitted", || {
        disk.switches.submitted.load(Ordering::SeqCst) == 128
    });
    wait_until("they are counted", || {
        fixture.target.figures()[0].pending_bdev_io == 128
    });
    disk.switches.hold.store(false, Ordering::SeqCst);
    let mut got: Vec<u16> = (0..128).map(|_| qpair.receive().completion().cid).collect();
    assert_eq!(got.first(), cids.last(), "the newest completes first");
    got.sort_unstable();
    assert_eq!(got, cids);
    wait_until("none is left", || {
        fixture.target.figures()[0].pending_bdev_io == 0
    });
    let one = pattern(512, 77);
    assert_eq!(disk.content()[77 * 512..78 * 512], one);
}

#[test]
fn one_command_too_many_ends_the_connection() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    disk.switches.hold.store(true, Ordering::SeqCst);
    for _ in 0..129 {
        let sqe = qpair.io(io::FLUSH, 0, 1);
        let bytes = qpair.capsule(sqe, &[]);
        qpair.send(&bytes);
    }
    assert_eq!(qpair.receive().term().0, 2);
    disk.switches.hold.store(false, Ordering::SeqCst);
}

#[test]
fn flush_fua_zeroes_deallocate_compare_and_verify() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    let data = pattern(4096, 1);
    assert_eq!(qpair.write(0, &data), Status::SUCCESS);
    assert_eq!(disk.switches.fuas.load(Ordering::SeqCst), 0);
    let mut fua = qpair.io(io::WRITE, 0, 8).with_capsule_data(4096);
    fua.cdw12 = (7 | 1 << 30).into();
    assert_eq!(qpair.run(fua, &data).0.status, Status::SUCCESS);
    assert_eq!(disk.switches.fuas.load(Ordering::SeqCst), 1);
    let flush = qpair.io(io::FLUSH, 0, 1);
    qpair.ok(flush);
    assert_eq!(disk.switches.flushes.load(Ordering::SeqCst), 1);

    let compare = |qpair: &mut nvmf_common::Qpair, with: &[u8]| {
        let sqe = qpair.io(io::COMPARE, 0, 8).with_capsule_data(4096);
        qpair.run(sqe, with).0.status
    };
    assert_eq!(compare(&mut qpair, &data), Status::SUCCESS);
    assert_eq!(
        compare(&mut qpair, &pattern(4096, 2)),
        Status::COMPARE_FAILURE
    );
    let verify = qpair.io(io::VERIFY, 0, 8);
    qpair.ok(verify);

    let zeroes = qpair.io(io::WRITE_ZEROES, 0, 2);
    qpair.ok(zeroes);
    assert_eq!(qpair.read(0, 2), (Status::SUCCESS, vec![0; 1024]));
    assert_eq!(qpair.read(2, 6), (Status::SUCCESS, data[1024..].to_vec()));

    // Linux always sends 4096 bytes, whatever the number of ranges.
    let range = |lba: u64, blocks: u32| DsmRange {
        attributes: 0.into(),
        blocks: blocks.into(),
        lba: lba.into(),
    };
    let mut ranges = [range(2, 1), range(4, 2)].as_bytes().to_vec();
    ranges.resize(4096, 0);
    let mut dsm = qpair
        .io(io::DATASET_MANAGEMENT, 0, 1)
        .with_capsule_data(4096);
    dsm.cdw10 = 1.into();
    dsm.cdw11 = DsmRange::DEALLOCATE.into();
    dsm.cdw12 = 0.into();
    assert_eq!(qpair.run(dsm, &ranges).0.status, Status::SUCCESS);
    let content = disk.content();
    assert_eq!(content[1024..1536], [0; 512]);
    assert_eq!(content[1536..2048], data[1536..2048]);
    assert_eq!(content[2048..3072], [0; 1024]);
    // One range beyond the end: none is done.
    let bad = [range(3, 1), range(2048, 1)].as_bytes().to_vec();
    let mut sqe = dsm;
    sqe.cid = qpair.next_cid().into();
    sqe.sgl_len = 32.into();
    assert_eq!(qpair.run(sqe, &bad).0.status, Status::LBA_OUT_OF_RANGE);
    assert_eq!(disk.content()[1536..2048], data[1536..2048]);
}

#[test]
fn what_fails_has_its_status_and_brings_no_data() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    assert_eq!(qpair.read(2048, 1), (Status::LBA_OUT_OF_RANGE, vec![]));
    let mut other = qpair.io(io::READ, 0, 1).with_transport_data(512);
    other.nsid = 2.into();
    assert_eq!(qpair.run(other, &[]).0.status, Status::INVALID_NAMESPACE);
    let long = qpair.io(io::READ, 0, 257).with_transport_data(257 * 512);
    assert_eq!(qpair.run(long, &[]).0.status, Status::INVALID_FIELD);
    // A write that would be refused is refused before its data are asked for.
    let beyond = qpair.io(io::WRITE, 2047, 2).with_transport_data(1024);
    assert_eq!(qpair.run(beyond, &[]).0.status, Status::LBA_OUT_OF_RANGE);
    disk.switches.fail.store(true, Ordering::SeqCst);
    assert_eq!(qpair.read(0, 1), (Status::UNRECOVERED_READ, vec![]));
    assert_eq!(qpair.write(0, &[1; 512]), Status::WRITE_FAULT);
    disk.switches.fail.store(false, Ordering::SeqCst);
    assert_eq!(qpair.read(0, 1).0, Status::SUCCESS);
}

#[test]
fn a_damaged_payload_fails_its_command_only() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect_with(fixture.address, NQN, Digests::from_byte(2));
    let mut qpair = host.io(1, 0);
    let sqe = qpair.io(io::WRITE, 0, 1).with_capsule_data(512);
    let mut bytes = qpair.capsule(sqe, &[9; 512]);
    *bytes.last_mut().unwrap() ^= 1;
    qpair.send(&bytes);
    assert_eq!(
        qpair.receive().completion().status,
        Status::TRANSIENT_TRANSPORT
    );
    // The same in the first of two parts that were asked for.
    let sqe = qpair.io(io::WRITE, 0, 2).with_transport_data(1024);
    let bytes = qpair.capsule(sqe, &[]);
    qpair.send(&bytes);
    let (cid, tag, ..) = qpair.receive().extent();
    let mut first = qpair.data(DataPdu::new(cid, tag, 0, 512), false, &[9; 512]);
    first[24] ^= 1;
    let second = qpair.data(DataPdu::new(cid, tag, 512, 512), true, &[9; 512]);
    qpair.send(&first);
    qpair.send(&second);
    assert_eq!(
        qpair.receive().completion().status,
        Status::TRANSIENT_TRANSPORT
    );
    assert_eq!(disk.content()[..1024], [0; 1024]);
    assert_eq!(qpair.write(0, &[9; 512]), Status::SUCCESS);
}

/// A host with little memory of ours: more reads than may hold memory, and a host that does not read.
#[test]
fn reads_beyond_the_memory_of_a_qpair_wait_their_turn() {
    let options = TransportOptions {
        queue_depth_max: 1024,
        io_bytes_max: 1 << 20,
        ..TransportOptions::default()
    };
    let fixture = Fixture::new(1, options);
    let disk = Arc::new(RamDisk::new("disk", 1 << 20));
    fixture.add(&disk, None);
    let mut host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    let whole = pattern(1 << 20, 5);
    assert_eq!(qpair.write_asked(0, &whole, 1 << 20), Status::SUCCESS);
    let mut bytes = vec![];
    for _ in 0..100 {
        let sqe = qpair.io(io::READ, 0, 2048).with_transport_data(1 << 20);
        bytes.extend(qpair.capsule(sqe, &[]));
    }
    disk.switches.hold.store(true, Ordering::SeqCst);
    let before = disk.switches.submitted.load(Ordering::SeqCst);
    let begun = || disk.switches.submitted.load(Ordering::SeqCst) - before;
    qpair.send(&bytes);
    wait_until("as many have begun as 16 MiB allow", || begun() >= 16);
    // Rounds of the one reactor, in which no other begins.
    for _ in 0..3 {
        host.admin.identify(1, 0);
    }
    assert_eq!(begun(), 16);
    disk.switches.hold.store(false, Ordering::SeqCst);
    for _ in 0..100 {
        let data = qpair.receive();
        assert!(data.data == whole);
        assert_eq!(qpair.receive().completion().status, Status::SUCCESS);
    }
    // And writes: their R2Ts come as memory allows.
    let mut bytes = vec![];
    for _ in 0..40 {
        let sqe = qpair.io(io::WRITE, 0, 2048).with_transport_data(1 << 20);
        bytes.extend(qpair.capsule(sqe, &[]));
    }
    qpair.send(&bytes);
    let mut done = 0;
    while done < 40 {
        let pdu = qpair.receive();
        if pdu.kind == 5 {
            assert_eq!(pdu.completion().status, Status::SUCCESS);
            done += 1;
            continue;
        }
        let (cid, tag, _, len) = pdu.extent();
        let bytes = qpair.data(DataPdu::new(cid, tag, 0, len), true, &whole);
        qpair.send(&bytes);
    }
}

#[test]
fn a_namespace_can_be_taken_away_under_its_hosts() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    disk.switches.hold.store(true, Ordering::SeqCst);
    let sqe = qpair.io(io::READ, 0, 1).with_transport_data(512);
    let bytes = qpair.capsule(sqe, &[]);
    qpair.send(&bytes);
    wait_until("it is submitted", || {
        disk.switches.submitted.load(Ordering::SeqCst) == 1
    });
    let removed = fixture.target.remove_namespace(NQN, 1).unwrap();
    assert_eq!(
        qpair.receive().completion().status,
        Status::INVALID_NAMESPACE
    );
    wait_until("nobody uses it", || removed.is_closed());
    assert_eq!(disk.switches.channels.load(Ordering::SeqCst), 0);
    assert!(!disk.switches.dropped_early.load(Ordering::SeqCst));
    assert_eq!(qpair.read(0, 1).0, Status::INVALID_NAMESPACE);
    // Another takes its number.
    let other = Arc::new(RamDisk::new("other", 1 << 20));
    assert_eq!(fixture.add(&other, Some(1)), 1);
    assert_eq!(qpair.read(0, 1).0, Status::SUCCESS);
}

/// Dead hosts take nothing with them, and what they had under way is finished.
#[test]
fn a_host_that_dies_leaves_no_channel() {
    let (fixture, disk) = Fixture::with_disk();
    for cut in [0, 1, 40, 76, 300] {
        let host = Host::connect(fixture.address, NQN);
        let mut qpair = host.io(1, 0);
        disk.switches.hold.store(true, Ordering::SeqCst);
        let before = disk.switches.submitted.load(Ordering::SeqCst);
        let sqe = qpair.io(io::READ, 0, 1).with_transport_data(512);
        let read = qpair.capsule(sqe, &[]);
        qpair.send(&read);
        wait_until("it is submitted", || {
            disk.switches.submitted.load(Ordering::SeqCst) > before
        });
        let sqe = qpair.io(io::WRITE, 0, 1).with_capsule_data(512);
        let write = qpair.capsule(sqe, &[1; 512]);
        qpair.send(&write[..cut]);
        drop(qpair);
        drop(host);
        wait_until("its channel is closed", || {
            disk.switches.channels.load(Ordering::SeqCst) == 0
        });
        disk.switches.hold.store(false, Ordering::SeqCst);
        wait_until("its controller is gone", || {
            fixture.target.controllers(NQN).unwrap().is_empty()
        });
    }
    assert!(!disk.switches.dropped_early.load(Ordering::SeqCst));
}

#[test]
fn qpairs_are_spread_over_reactors() {
    let fixture = Fixture::new(2, TransportOptions::default());
    let disk = Arc::new(RamDisk::new("disk", 1 << 20));
    fixture.add(&disk, None);
    let host = Host::connect(fixture.address, NQN);
    let mut qpairs: Vec<_> = (1..=4).map(|qid| host.io(qid, 0)).collect();
    for qpair in &mut qpairs {
        assert_eq!(qpair.write(0, &[3; 512]), Status::SUCCESS);
    }
    assert_eq!(disk.switches.homes.load(Ordering::SeqCst), 0b11);
    let infos = fixture.target.qpairs(NQN).unwrap();
    let mut qids: Vec<u16> = infos.iter().map(|info| info.qid).collect();
    qids.sort_unstable();
    assert_eq!(qids, [0, 1, 2, 3, 4]);
    let done: u64 = fixture
        .target
        .figures()
        .iter()
        .map(|f| f.completed_nvme_io)
        .sum();
    assert_eq!(done, 4);
}
