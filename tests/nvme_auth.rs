//! The NVMe/TCP initiator bdev and our own target, which wants to know who it is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod auth_common;
mod nbd_common;
mod nvme_common;
mod nvmf_common;

use auth_common::{demand, keys};
use nvme_common::driver::Driver;
use nvmf_common::{Fixture, HOST, NQN};
use pmcache::bdev::{
    BdevError, ControllerState, HostKeys, IoStatus, NvmeAuth, NvmeConfig, NvmeFault, NvmeUri,
};
use pmcache::target::nvmf::{AuthStage, ChapGroup, ChapHash, ChapOffer};
use pmcache::wire::nvme::AuthReason;
use reactors::MonotonicClock;
use std::sync::Arc;

fn config(fixture: &Fixture, keys: Option<HostKeys>) -> NvmeConfig {
    let uri = NvmeUri {
        host: fixture.address.ip().to_string(),
        port: fixture.address.port(),
        subnqn: NQN.to_owned(),
        nsid: None,
    };
    NvmeConfig {
        auth: keys.map(|keys| Arc::new(NvmeAuth::new(keys).unwrap())),
        // Nobody waits that long: only a machine that does much else needs it.
        connect_timeout_us: 60_000_000,
        ..NvmeConfig::new("Nvme0", uri, HOST.to_owned())
    }
}

/// Why a controller is not attached, and the system's number for that.
fn refused(config: NvmeConfig) -> (NvmeFault, rustix::io::Errno) {
    match Driver::try_new(config, Arc::new(MonotonicClock)) {
        Err(BdevError::Nvme { source, .. }) => (source, source.errno()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is let in"),
    }
}

fn works(driver: &mut Driver) {
    driver.write(1, 4096, &[0x5a; 4096], true);
    assert_eq!(driver.status(), IoStatus::Ok);
    assert!(driver.bytes(4096, 4096) == [0x5a; 4096]);
}

/// Of the admin qpair and the I/O qpair: each has proved who it is, in the way that was offered.
fn assert_both_have_proved(fixture: &Fixture, hash: ChapHash, group: ChapGroup) {
    let qpairs = fixture.target.qpairs(NQN).unwrap();
    assert_eq!(qpairs.len(), 2);
    for qpair in qpairs {
        let auth = qpair.auth.unwrap();
        assert_eq!(auth.stage, AuthStage::Completed);
        assert_eq!((auth.hash, auth.group), (Some(hash), Some(group)));
    }
}

fn with_each_hash(group: ChapGroup) {
    for hash in ChapHash::ALL {
        let (fixture, _disk) = Fixture::with_disk();
        fixture.target.set_chap_offer(ChapOffer {
            hashes: vec![hash],
            groups: vec![group],
        });
        demand(&fixture, 1, Some(2));
        let mut driver = Driver::new(config(&fixture, Some(keys(1, Some(2)))));
        works(&mut driver);
        assert_both_have_proved(&fixture, hash, group);
    }
}

#[test]
fn every_hash_will_do_without_an_exchange() {
    with_each_hash(ChapGroup::Null);
}

#[test]
fn every_hash_will_do_with_ffdhe2048() {
    with_each_hash(ChapGroup::Ffdhe2048);
}

#[test]
fn every_hash_will_do_with_ffdhe3072() {
    with_each_hash(ChapGroup::Ffdhe3072);
}

#[test]
fn every_hash_will_do_with_ffdhe4096() {
    with_each_hash(ChapGroup::Ffdhe4096);
}

#[test]
fn every_hash_will_do_with_ffdhe6144() {
    with_each_hash(ChapGroup::Ffdhe6144);
}

/// And without being told to, the strongest are chosen.
#[test]
fn every_hash_will_do_with_ffdhe8192() {
    with_each_hash(ChapGroup::Ffdhe8192);
    let (fixture, _disk) = Fixture::with_disk();
    demand(&fixture, 0, None);
    let mut driver = Driver::new(config(&fixture, Some(keys(0, None))));
    works(&mut driver);
    assert_both_have_proved(&fixture, ChapHash::Sha512, ChapGroup::Ffdhe8192);
}

/// What is offered is a matter of the null group from here on: the others take time.
fn quick(host: usize, controller: Option<usize>) -> (Fixture, Arc<nbd_common::RamDisk>) {
    let (fixture, disk) = Fixture::with_disk();
    fixture.target.set_chap_offer(ChapOffer {
        groups: vec![ChapGroup::Null],
        ..ChapOffer::default()
    });
    demand(&fixture, host, controller);
    (fixture, disk)
}

#[test]
fn every_kind_of_key_will_do() {
    for which in 0..4 {
        let (fixture, _disk) = quick(which, Some(3 - which));
        let keys = keys(which, Some(3 - which));
        works(&mut Driver::new(config(&fixture, Some(keys))));
    }
}

#[test]
fn a_host_without_the_right_key_is_not_let_in() {
    let (fixture, _disk) = quick(1, Some(2));
    let failed = NvmeFault::Unauthenticated(AuthReason::Failed);
    let access = rustix::io::Errno::ACCESS;
    // Key 0 has the same bytes, and is used in another way.
    for wrong in [0, 2, 3] {
        let keys = keys(wrong, Some(2));
        assert_eq!(refused(config(&fixture, Some(keys))), (failed, access));
    }
    let without = config(&fixture, None);
    assert_eq!(refused(without), (NvmeFault::KeyWanted, access));
    works(&mut Driver::new(config(&fixture, Some(keys(1, Some(2))))));
}

#[test]
fn a_controller_without_the_right_key_is_not_trusted() {
    let access = rustix::io::Errno::ACCESS;
    let (fixture, _disk) = quick(1, Some(2));
    let other = config(&fixture, Some(keys(1, Some(3))));
    assert_eq!(refused(other), (NvmeFault::Untrusted, access));
    // It has no key: then it can't answer.
    let (fixture, _disk) = quick(1, None);
    let two = config(&fixture, Some(keys(1, Some(2))));
    let failed = NvmeFault::Unauthenticated(AuthReason::Failed);
    assert_eq!(refused(two), (failed, access));
    // It does not want to know who we are: so it does not say who it is.
    let (fixture, _disk) = Fixture::with_disk();
    let two = config(&fixture, Some(keys(1, Some(2))));
    assert_eq!(refused(two), (NvmeFault::Untrusted, access));
    // One who does not care is let in.
    works(&mut Driver::new(config(&fixture, Some(keys(1, None)))));
}

#[test]
fn a_host_without_a_common_way_is_not_let_in() {
    let (fixture, _disk) = quick(1, None);
    for (hashes, groups, reason) in [
        (vec![], vec![ChapGroup::Null], AuthReason::Hash),
        (vec![ChapHash::Sha256], vec![], AuthReason::Group),
    ] {
        fixture.target.set_chap_offer(ChapOffer { hashes, groups });
        let (fault, _) = refused(config(&fixture, Some(keys(1, None))));
        assert_eq!(fault, NvmeFault::Unauthenticated(reason));
    }
}

/// The controller goes away: who comes back proves again who it is, on both queues, by the keys of now.
#[test]
fn a_host_that_comes_back_proves_again_who_it_is() {
    let (fixture, _disk) = quick(1, None);
    let keys_of = |host| Some(keys(host, None));
    let mut driver = Driver::new(config(&fixture, keys_of(1)));
    works(&mut driver);
    let target = &fixture.target;
    // Who is there stays, whatever the keys are from now on.
    target.set_keys(NQN, HOST, keys_of(2)).unwrap();
    works(&mut driver);
    target.remove_host(NQN, HOST).unwrap();
    driver.wait_for("the loss", |driver| {
        driver.bdev.controller().state() == ControllerState::Reconnecting
    });
    driver.write(7, 0, &[7; 512], false);
    target.add_host(NQN, HOST, keys_of(1)).unwrap();
    assert_eq!(driver.status(), IoStatus::Ok);
    works(&mut driver);
    assert_both_have_proved(&fixture, ChapHash::Sha512, ChapGroup::Null);
}
