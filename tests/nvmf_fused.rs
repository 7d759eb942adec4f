//! Fused Compare and Write over NVMe/TCP: nothing comes between the two.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;
mod nvmf_common;

use nbd_common::{RamDisk, wait_until};
use nvmf_common::{Fixture, Host, NQN, Qpair};
use pmcache::target::nvmf::{SubsystemConfig, TransportOptions};
use pmcache::wire::nvme::{DataPdu, Digests, Sqe, Status, io};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const FIRST: u8 = 1;
const SECOND: u8 = 2;

fn block(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(64)
}

fn half(qpair: &mut Qpair, opcode: u8, fuse: u8, lba: u64, blocks: u32) -> Sqe {
    let mut sqe = qpair.io(opcode, lba, blocks);
    sqe = sqe.with_capsule_data(blocks * 512);
    sqe.flags |= fuse;
    sqe
}

/// The bytes of both capsules.
fn pair(qpair: &mut Qpair, lba: u64, expected: u64, new: u64) -> Vec<u8> {
    let first = half(qpair, io::COMPARE, FIRST, lba, 1);
    let mut bytes = qpair.capsule(first, &block(expected));
    let second = half(qpair, io::WRITE, SECOND, lba, 1);
    bytes.extend(qpair.capsule(second, &block(new)));
    bytes
}

/// The next two completions, which must be in order.
fn two(qpair: &mut Qpair) -> (Status, Status) {
    let [first, second] = [(); 2].map(|()| qpair.receive().completion());
    assert_eq!(second.cid, first.cid + 1);
    (first.status, second.status)
}

fn compare_and_write(qpair: &mut Qpair, lba: u64, expected: u64, new: u64) -> (Status, Status) {
    let bytes = pair(qpair, lba, expected, new);
    qpair.send(&bytes);
    two(qpair)
}

const DONE: (Status, Status) = (Status::SUCCESS, Status::SUCCESS);
const DIFFERS: (Status, Status) = (Status::COMPARE_FAILURE, Status::FAILED_FUSED);

#[test]
fn what_is_equal_is_replaced_and_nothing_else() {
    let (fixture, disk) = Fixture::with_disk();
    for digests in [0, 3] {
        let host = Host::connect_with(fixture.address, NQN, Digests::from_byte(digests));
        let mut qpair = host.io(1, 0);
        assert_eq!(qpair.write(9, &block(1)), Status::SUCCESS);
        assert_eq!(compare_and_write(&mut qpair, 9, 1, 2), DONE);
        assert_eq!(disk.content()[9 * 512..10 * 512], block(2));
        assert_eq!(compare_and_write(&mut qpair, 9, 1, 3), DIFFERS);
        assert_eq!(qpair.read(9, 1), (Status::SUCCESS, block(2)));
    }
    let mut host = Host::connect(fixture.address, NQN);
    assert_eq!(host.admin.identify(1, 0)[522], 1, "FUSES");
}

/// Opcode, first block and blocks of a half.
type Half = (u8, u64, u32);

/// First, second, and how they end; all blocks are zero.
const MISFITS: [(Half, Half, Status, Status); 7] = {
    let (invalid, range) = (Status::INVALID_FIELD, Status::LBA_OUT_OF_RANGE);
    let (failed, missing) = (Status::FAILED_FUSED, Status::MISSING_FUSED);
    let good = (io::COMPARE, 0, 1);
    [
        (good, (io::WRITE, 1, 1), invalid, failed),
        (good, (io::WRITE, 0, 2), invalid, failed),
        ((io::COMPARE, 2048, 1), (io::WRITE, 2048, 1), range, failed),
        (good, (io::WRITE, 2048, 1), failed, range),
        (good, good, failed, invalid),
        ((io::WRITE, 0, 1), (io::WRITE, 0, 1), invalid, missing),
        (good, (io::FLUSH, 0, 1), failed, invalid),
    ]
};

#[test]
fn halves_that_do_not_fit_each_other_change_nothing() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    let zeroes = block(0);
    for ((opcode, lba, blocks), second, of_first, of_second) in MISFITS {
        let first = half(&mut qpair, opcode, FIRST, lba, blocks);
        let mut bytes = qpair.capsule(first, &zeroes.repeat(blocks as usize));
        let (opcode, lba, blocks) = second;
        let second = half(&mut qpair, opcode, SECOND, lba, blocks);
        bytes.extend(qpair.capsule(second, &block(1).repeat(blocks as usize)));
        qpair.send(&bytes);
        assert_eq!(
            two(&mut qpair),
            (of_first, of_second),
            "{first:?} {second:?}"
        );
    }
    let reserved = half(&mut qpair, io::WRITE, FIRST | SECOND, 0, 1);
    assert_eq!(
        qpair.run(reserved, &block(1)).0.status,
        Status::INVALID_FIELD
    );
    let alone = half(&mut qpair, io::WRITE, SECOND, 0, 1);
    assert_eq!(qpair.run(alone, &block(1)).0.status, Status::MISSING_FUSED);
    assert!(disk.content().iter().all(|byte| *byte == 0));
}

#[test]
fn a_first_half_without_its_second_is_given_up_at_the_next_command() {
    let (fixture, disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    for by_other_first in [false, true] {
        let first = half(&mut qpair, io::COMPARE, FIRST, 0, 1);
        // Its data would have to be asked for, which nobody does before its second is there.
        let bytes = qpair.capsule(first.with_transport_data(512), &[]);
        qpair.send(&bytes);
        if by_other_first {
            let bytes = pair(&mut qpair, 0, 0, 7);
            qpair.send(&bytes);
            let given_up = qpair.receive().completion();
            assert_eq!(
                (given_up.cid, given_up.status),
                (first.cid.get(), Status::MISSING_FUSED)
            );
            assert_eq!(two(&mut qpair), DONE);
        } else {
            let flush = qpair.io(io::FLUSH, 0, 1);
            let bytes = qpair.capsule(flush, &[]);
            qpair.send(&bytes);
            assert_eq!(two(&mut qpair), (Status::MISSING_FUSED, Status::SUCCESS));
        }
    }
    assert_eq!(disk.content()[..512], block(7));
}

/// Both halves' data by R2T; then the first's, or the second's, damaged.
#[test]
fn data_may_be_asked_for_and_damaged_ones_fail_both_halves() {
    let (fixture, disk) = Fixture::with_disk();
    let digests = Digests::from_byte(2);
    let host = Host::connect_with(fixture.address, NQN, digests);
    let mut qpair = host.io(1, 0);
    let damaged = Status::TRANSIENT_TRANSPORT;
    let failed = Status::FAILED_FUSED;
    for (bad, reversed, expected) in [
        (None, false, DONE),
        (None, true, DONE),
        (Some(0), false, (damaged, failed)),
        (Some(0), true, (damaged, failed)),
        (Some(1), false, (failed, damaged)),
        (Some(1), true, (failed, damaged)),
    ] {
        let now = u64::from_le_bytes(disk.content()[..8].try_into().unwrap());
        let halves = [(io::COMPARE, FIRST, now), (io::WRITE, SECOND, now + 1)];
        let cids = halves.map(|(opcode, fuse, _)| {
            let sqe = half(&mut qpair, opcode, fuse, 0, 1).with_transport_data(512);
            let bytes = qpair.capsule(sqe, &[]);
            qpair.send(&bytes);
            sqe.cid.get()
        });
        let asked = cids.map(|cid| {
            let (of, tag, ..) = qpair.receive().extent();
            assert_eq!(of, cid);
            tag
        });
        let order = if reversed { [1, 0] } else { [0, 1] };
        for at in order {
            let pdu = DataPdu::new(cids[at], asked[at], 0, 512);
            let mut bytes = qpair.data(pdu, true, &block(halves[at].2));
            if bad == Some(at) {
                *bytes.last_mut().unwrap() ^= 1;
            }
            qpair.send(&bytes);
        }
        let mut done = [(); 2].map(|()| qpair.receive().completion());
        done.sort_by_key(|done| done.cid);
        assert_eq!(done.map(|done| done.cid), cids);
        assert_eq!(
            (done[0].status, done[1].status),
            expected,
            "{bad:?} {reversed}"
        );
        let after = if bad.is_none() { now + 1 } else { now };
        assert_eq!(disk.content()[..512], block(after));
    }
}

fn submitted(disk: &RamDisk) -> u64 {
    disk.switches.submitted.load(Ordering::SeqCst)
}

fn hold(disk: &RamDisk, on: bool) {
    disk.switches.hold.store(on, Ordering::SeqCst);
}

fn put(qpair: &mut Qpair, lba: u64, value: u64) {
    let sqe = qpair.io(io::WRITE, lba, 1).with_capsule_data(512);
    let bytes = qpair.capsule(sqe, &block(value));
    qpair.send(&bytes);
}

/// Two hosts on two reactors, each way round; the second comes by another subsystem.
#[test]
fn a_write_of_another_qpair_waits_for_a_fused_one_and_the_other_way_round() {
    const OTHER: &str = "nqn.2026-11.test.pmcache:two";
    let fixture = Fixture::new(2, TransportOptions::default());
    let disk = Arc::new(RamDisk::new("disk", 1 << 20));
    fixture.add(&disk, None);
    let config = SubsystemConfig {
        allow_any_host: true,
        ..SubsystemConfig::new(OTHER)
    };
    fixture.target.create_subsystem(config).unwrap();
    let listener = "127.0.0.1:0".parse().unwrap();
    let address = fixture.target.add_listener(OTHER, listener).unwrap();
    fixture.add_as(OTHER, &disk, None);
    let hosts = [
        Host::connect(fixture.address, NQN),
        Host::connect(address, OTHER),
    ];
    let [mut fuser, mut writer] = hosts.each_ref().map(|host| host.io(1, 0));
    // So that both have their channels.
    put(&mut fuser, 100, 0);
    put(&mut writer, 100, 0);
    for qpair in [&mut fuser, &mut writer] {
        assert_eq!(qpair.receive().completion().status, Status::SUCCESS);
    }

    // The comparison is with the disk; a write there waits, one elsewhere does not.
    let before = submitted(&disk);
    hold(&disk, true);
    let bytes = pair(&mut fuser, 5, 0, 1);
    fuser.send(&bytes);
    wait_until("the comparison is submitted", || {
        submitted(&disk) == before + 1
    });
    put(&mut writer, 5, 2);
    put(&mut writer, 6, 2);
    wait_until("a write elsewhere is submitted", || {
        submitted(&disk) == before + 2
    });
    hold(&disk, false);
    assert_eq!(two(&mut fuser), DONE);
    for _ in 0..2 {
        assert_eq!(writer.receive().completion().status, Status::SUCCESS);
    }
    assert_eq!(
        disk.content()[5 * 512..6 * 512],
        block(2),
        "the write came last"
    );

    // A write is with the disk; a comparison there waits for it, and sees it.
    let before = submitted(&disk);
    hold(&disk, true);
    put(&mut writer, 5, 3);
    wait_until("the write is submitted", || submitted(&disk) == before + 1);
    let bytes = pair(&mut fuser, 5, 2, 4);
    fuser.send(&bytes);
    put(&mut fuser, 6, 4);
    wait_until("a write elsewhere is submitted", || {
        submitted(&disk) == before + 2
    });
    hold(&disk, false);
    let mut ends: Vec<_> = (0..3).map(|_| fuser.receive().completion()).collect();
    ends.sort_by_key(|done| done.cid);
    let ends: Vec<_> = ends.iter().map(|done| done.status).collect();
    assert_eq!(ends, [DIFFERS.0, DIFFERS.1, Status::SUCCESS]);
    assert_eq!(disk.content()[5 * 512..6 * 512], block(3));
    assert_eq!(writer.receive().completion().status, Status::SUCCESS);
}

#[test]
fn a_host_that_goes_away_holds_nothing_any_more() {
    let (fixture, disk) = Fixture::with_disk();
    let hosts = [(); 2].map(|()| Host::connect(fixture.address, NQN));
    let [mut gone, mut writer] = hosts.each_ref().map(|host| host.io(1, 0));
    hold(&disk, true);
    let bytes = pair(&mut gone, 5, 0, 1);
    gone.send(&bytes);
    wait_until("the comparison is submitted", || submitted(&disk) == 1);
    // This one waits for the first; so it is given up before it has begun.
    let bytes = pair(&mut gone, 5, 1, 2);
    gone.send(&bytes);
    put(&mut writer, 5, 9);
    put(&mut writer, 6, 9);
    wait_until("a write elsewhere is submitted", || submitted(&disk) == 2);
    drop(gone);
    hold(&disk, false);
    for _ in 0..2 {
        assert_eq!(writer.receive().completion().status, Status::SUCCESS);
    }
    assert_eq!(disk.content()[5 * 512..6 * 512], block(9));
}

#[test]
fn a_namespace_that_goes_away_ends_what_waits_for_its_ranges() {
    let (fixture, disk) = Fixture::with_disk();
    let hosts = [(); 2].map(|()| Host::connect(fixture.address, NQN));
    let [mut fuser, mut writer] = hosts.each_ref().map(|host| host.io(1, 0));
    hold(&disk, true);
    let bytes = pair(&mut fuser, 5, 0, 1);
    fuser.send(&bytes);
    wait_until("the comparison is submitted", || submitted(&disk) == 1);
    let bytes = pair(&mut writer, 5, 0, 2);
    writer.send(&bytes);
    put(&mut writer, 6, 9);
    wait_until("a write elsewhere is submitted", || submitted(&disk) == 2);
    let removed = fixture.target.remove_namespace(NQN, 1).unwrap();
    let gone = (Status::INVALID_NAMESPACE, Status::FAILED_FUSED);
    assert_eq!(two(&mut fuser), gone);
    let mut ends: Vec<_> = (0..3).map(|_| writer.receive().completion()).collect();
    ends.sort_by_key(|done| done.cid);
    let ends: Vec<_> = ends.iter().map(|done| done.status).collect();
    assert_eq!(ends, [gone.0, gone.1, Status::INVALID_NAMESPACE]);
    wait_until("nobody uses it", || removed.is_closed());
    assert!(disk.content().iter().all(|byte| *byte == 0));
}

/// Several hosts on two reactors replace one block's unique values, by fused operations and by plain
/// writes: no value is replaced by two fused ones.
#[test]
fn of_many_hosts_only_one_replaces_a_value() {
    const HOSTS: u64 = 4;
    const ROUNDS: u64 = 300;
    let fixture = Fixture::new(2, TransportOptions::default());
    let disk = Arc::new(RamDisk::new("disk", 1 << 20));
    fixture.add(&disk, None);
    let run = |number: u64| {
        let address = fixture.address;
        move || {
            let host = Host::connect(address, NQN);
            let mut qpair = host.io(1, 0);
            let mut replaced = vec![];
            for round in 0..ROUNDS {
                let new = number << 32 | (round + 1);
                let (status, now) = qpair.read(3, 1);
                assert_eq!(status, Status::SUCCESS);
                let value = u64::from_le_bytes(now[..8].try_into().unwrap());
                assert_eq!(now, block(value), "a torn block");
                if round % 16 == number {
                    assert_eq!(qpair.write(3, &block(new)), Status::SUCCESS);
                    continue;
                }
                match compare_and_write(&mut qpair, 3, value, new) {
                    DONE => replaced.push(value),
                    ends => assert_eq!(ends, DIFFERS),
                }
            }
            replaced
        }
    };
    let threads: Vec<_> = (0..HOSTS).map(|n| std::thread::spawn(run(n))).collect();
    let replaced: Vec<u64> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    let different: BTreeSet<u64> = replaced.iter().copied().collect();
    assert_eq!(
        different.len(),
        replaced.len(),
        "a value was replaced twice"
    );
    assert!(replaced.len() as u64 >= ROUNDS / 2, "{}", replaced.len());
}
