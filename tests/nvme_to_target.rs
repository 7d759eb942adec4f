//! The NVMe/TCP initiator bdev on our own target: verified data, both digests, and a target that goes and
//! comes back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;
mod nvme_common;
mod nvmf_common;

use nvme_common::driver::Driver;
use nvme_common::pattern;
use nvmf_common::{Fixture, HOST, NQN};
use pmcache::bdev::{Bdev, ControllerState, Data, IoStatus, NvmeConfig, NvmeUri, Op};
use std::sync::atomic::Ordering;

fn config(fixture: &Fixture, digests: bool) -> NvmeConfig {
    let uri = NvmeUri {
        host: fixture.address.ip().to_string(),
        port: fixture.address.port(),
        subnqn: NQN.to_owned(),
        nsid: None,
    };
    NvmeConfig {
        header_digest: digests,
        data_digest: digests,
        ..NvmeConfig::new("Nvme0", uri, HOST.to_owned())
    }
}

const ZERO: Op = Op::WriteZeroes {
    may_unmap: true,
    fua: false,
};

#[test]
fn every_operation_reaches_the_disk_behind_the_target() {
    for digests in [false, true] {
        for no_flow_control in [false, true] {
            let (fixture, disk) = Fixture::with_disk();
            let mut driver = Driver::new(NvmeConfig {
                no_flow_control,
                ..config(&fixture, digests)
            });
            let info = driver.bdev.info();
            assert_eq!((info.block_size, info.bytes()), (512, 1 << 20));
            // In the capsule, by R2T, and cut into several commands.
            for (at, len) in [(512, 512), (4096, 4096), (65536, 65536), (131_072, 393_216)] {
                let bytes = pattern(u8::try_from(len % 251).unwrap(), len);
                driver.write(1, at, &bytes, true);
                assert_eq!(driver.status(), IoStatus::Ok);
                assert!(driver.bytes(at, len as u64) == bytes);
            }
            assert!(disk.switches.fuas.load(Ordering::SeqCst) >= 4);
            assert_eq!(driver.run(Op::Flush, (0, 0)), IoStatus::Ok);
            assert!(disk.switches.flushes.load(Ordering::SeqCst) >= 1);
            assert_eq!(driver.run(ZERO, (65536, 65536)), IoStatus::Ok);
            assert!(driver.bytes(65536, 65536) == vec![0; 65536]);
            assert_eq!(driver.run(Op::Discard, (0, 4096)), IoStatus::Ok);
            disk.switches.fail.store(true, Ordering::SeqCst);
            driver.read(1, 0, 4096);
            assert_eq!(driver.status(), IoStatus::IoError);
            disk.switches.fail.store(false, Ordering::SeqCst);
            driver.read(2, 0, 4096);
            assert_eq!(driver.status(), IoStatus::Ok);
        }
    }
}

#[test]
fn many_at_once_are_each_right() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut driver = Driver::new(config(&fixture, true));
    for tag in 0..256_u64 {
        let seed = u8::try_from(tag).unwrap();
        driver.write(tag, tag * 4096, &pattern(seed, 4096), false);
    }
    assert!(driver.wait(256).iter().all(|done| done.status.is_ok()));
    for tag in 0..256_u64 {
        driver.read(tag, tag * 4096, 4096);
    }
    for done in driver.wait(256) {
        let seed = u8::try_from(done.tag).unwrap();
        assert!(done.data.into_buf().unwrap()[..] == pattern(seed, 4096));
    }
}

/// The host is thrown out and let in again: nothing that was asked for is lost.
#[test]
fn a_target_that_throws_its_host_out_gets_everything_when_it_lets_it_in_again() {
    let (fixture, disk) = Fixture::with_disk();
    let mut driver = Driver::new(config(&fixture, false));
    driver.write(0, 0, &[1; 512], true);
    assert_eq!(driver.status(), IoStatus::Ok);
    fixture
        .target
        .remove_listener(NQN, fixture.address)
        .unwrap();
    let controllers = || fixture.target.controllers(NQN).unwrap().len();
    if controllers() > 0 {
        // A target may let those stay who are there: they are sent away by name.
        fixture.target.allow_any_host(NQN, false).unwrap();
        let _ = fixture.target.remove_host(NQN, HOST);
    }
    driver.wait_for("the loss", |driver| {
        driver.bdev.controller().state() == ControllerState::Reconnecting
    });
    for tag in 0..64_u64 {
        let seed = u8::try_from(tag).unwrap();
        driver.write(tag, tag * 4096, &pattern(seed, 4096), false);
    }
    driver.submit(99, Op::Flush, (0, 0), Data::None);
    fixture.target.allow_any_host(NQN, true).unwrap();
    fixture.target.add_listener(NQN, fixture.address).unwrap();
    let done = driver.wait(65);
    assert!(
        done.iter()
            .all(|done| done.tag == 99 || done.status.is_ok())
    );
    for tag in 0..64_u64 {
        let seed = u8::try_from(tag).unwrap();
        assert!(driver.bytes(tag * 4096, 4096) == pattern(seed, 4096));
    }
    let _ = disk;
}
