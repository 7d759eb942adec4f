//! What hosts ask an NVMe/TCP controller: properties, pages, features, logs, events, life and death.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;
mod nvmf_common;

use nbd_common::{RamDisk, wait_until};
use nvmf_common::{Fixture, HOST, Host, NQN, Qpair};
use pmcache::bdev::Bdev;
use pmcache::target::nvmf::{
    AnaState, NamespaceConfig, NvmfError, NvmfTarget, SubsystemConfig, TransportOptions,
};
use pmcache::wire::nvme::{
    DISCOVERY_NQN, PropertyCommand, Sqe, Status, admin, cc, cns, connect_flag, csts, feature,
    log_id, property,
};
use reactors::{Clock, IdlePolicy, ManualClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[test]
fn properties_are_read_in_both_sizes_and_only_the_configuration_is_written() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut host = Host::connect(fixture.address, NQN);
    let cap = host.property(property::CAP, true);
    // 128 entries, contiguous queues, 15 s, the NVM command set.
    assert_eq!(cap, 127 | 1 << 16 | 30 << 24 | 1 << 37);
    assert_eq!(host.property(property::CAP, false), cap & 0xffff_ffff);
    assert_eq!(host.property(property::CAP + 4, false), cap >> 32);
    assert_eq!(host.property(property::VS, false), 0x1_0400);
    assert_eq!(host.property(property::CSTS, false), u64::from(csts::READY));
    let configured = u64::from(cc::ENABLE | cc::ENTRY_SIZES);
    assert_eq!(host.property(property::CC, false), configured);
    let mut odd_size = PropertyCommand::get(900, property::CAP, false);
    odd_size.cdw10 = 2.into();
    for sqe in [
        PropertyCommand::get(901, property::CC, true),
        PropertyCommand::get(902, 0x18, false),
        PropertyCommand::set(903, property::CSTS, 0),
        PropertyCommand::set(904, property::CC, cc::ENABLE | cc::MPS),
        PropertyCommand::set(905, property::CC, cc::ENABLE | cc::AMS),
        odd_size,
    ] {
        assert_eq!(host.admin.run(sqe, &[]).0.status, Status::INVALID_PARAMETER);
    }
    assert_eq!(host.property(property::CC, false), configured);
}

/// Hosts disable and shut down to be sure that no I/O is under way.
#[test]
fn a_controller_that_is_disabled_or_shut_down_has_no_io_qpairs() {
    let (fixture, disk) = Fixture::with_disk();
    let mut host = Host::connect(fixture.address, NQN);
    for config in [0, cc::ENABLE | cc::ENTRY_SIZES | cc::SHN_NORMAL] {
        host.configure(cc::ENABLE | cc::ENTRY_SIZES);
        let mut qpair = host.io(1, 0);
        assert_eq!(qpair.write(0, &[1; 512]), Status::SUCCESS);
        host.configure(config);
        assert_eq!(qpair.try_receive(), None);
        let done = if config == 0 {
            0
        } else {
            u64::from(csts::READY | csts::SHUTDOWN_COMPLETE)
        };
        wait_until("it has settled", || {
            host.property(property::CSTS, false) == done
        });
        assert_eq!(disk.switches.channels.load(Ordering::SeqCst), 0);
        host.configure(0);
    }
    // Nothing but properties while it is disabled.
    let sqe = host.admin.admin(admin::IDENTIFY, 0, 1, 4096);
    assert_eq!(host.admin.run(sqe, &[]).0.status, Status::SEQUENCE_ERROR);
}

#[test]
fn pages_tell_of_controller_and_namespaces() {
    let (fixture, _disk) = Fixture::with_disk();
    let small = Arc::new(RamDisk::with_info("small", 8192, |info| {
        info.read_only = true;
        info.uuid = uuid::Uuid::from_u128(9);
    }));
    assert_eq!(fixture.add(&small, Some(7)), 7);
    let mut host = Host::connect(fixture.address, NQN);
    let admin = &mut host.admin;
    let page = admin.identify(cns::CONTROLLER, 0);
    assert_eq!(u16::from_le_bytes([page[78], page[79]]), host.cntlid);
    assert_eq!(page[525], 0b101, "a volatile cache, flushed per namespace");
    let page = admin.identify(cns::NAMESPACE, 1);
    assert_eq!(page[..8], 2048_u64.to_le_bytes());
    let page = admin.identify(cns::NAMESPACE, 7);
    assert_eq!((page[0], page[99], page[130]), (16, 1, 9));
    assert_eq!(page[104..120], *uuid::Uuid::from_u128(9).as_bytes());
    assert_eq!(admin.identify(cns::NAMESPACE, 2), vec![0; 4096], "inactive");
    let page = admin.identify(cns::ACTIVE_NAMESPACES, 0);
    assert_eq!(page[..12], [1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    let page = admin.identify(cns::ACTIVE_NAMESPACES, 1);
    assert_eq!(page[..8], [7, 0, 0, 0, 0, 0, 0, 0]);
    let page = admin.identify(cns::DESCRIPTORS, 7);
    assert_eq!(page[..4], [2, 16, 0, 0]);
    assert_eq!(page[20..24], [3, 16, 0, 0]);
    for cns in [
        cns::CSI_NAMESPACE,
        cns::CSI_CONTROLLER,
        cns::CSI_ACTIVE_NAMESPACES,
        cns::ANY_NAMESPACE,
        cns::COMMAND_SETS,
    ] {
        admin.identify(cns, 1);
    }
    let cases = [
        (cns::NAMESPACE, 0, 4096, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE, 33, 4096, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE, u32::MAX, 4096, Status::INVALID_NAMESPACE),
        (
            cns::ACTIVE_NAMESPACES,
            0xffff_fffe,
            4096,
            Status::INVALID_NAMESPACE,
        ),
        (cns::DESCRIPTORS, 2, 4096, Status::INVALID_NAMESPACE),
        (cns::CONTROLLER, 0, 4092, Status::INVALID_FIELD),
        (0x10, 0, 4096, Status::INVALID_FIELD),
    ];
    for (cns, nsid, len, status) in cases {
        let sqe = admin.admin(admin::IDENTIFY, nsid, cns.into(), len);
        let (done, data) = admin.run(sqe, &[]);
        assert_eq!((done.status, data.len()), (status, 0), "{cns} {nsid}");
    }
}

fn get_log(qpair: &mut Qpair, id: u8, len: u32, offset: u32) -> Result<Vec<u8>, Status> {
    let numd = len / 4 - 1;
    let sqe = qpair.admin(admin::GET_LOG_PAGE, 0, u32::from(id) | numd << 16, len);
    let sqe = Sqe {
        cdw12: offset.into(),
        ..sqe
    };
    let (done, data) = qpair.run(sqe, &[]);
    match done.status.is_ok() {
        true => Ok(data),
        false => Err(done.status),
    }
}

#[test]
fn features_are_kept_or_refused_with_the_reason() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut host = Host::connect(fixture.address, NQN);
    let _qpair = host.io(1, 0);
    let admin = &mut host.admin;
    let mut set = |id: u8, value: u32, nsid: u32| {
        let mut sqe = admin.admin(admin::SET_FEATURES, nsid, id.into(), 0);
        sqe.cdw11 = value.into();
        let done = admin.run(sqe, &[]).0;
        (done.status, done.dw0)
    };
    assert_eq!(set(feature::ASYNC_EVENTS, 0x100, 0), (Status::SUCCESS, 0));
    assert_eq!(set(feature::KEEP_ALIVE, 1500, 0), (Status::SUCCESS, 0));
    assert_eq!(set(feature::KEEP_ALIVE, 0, 0).0, Status::KEEP_ALIVE_INVALID);
    assert_eq!(
        set(feature::QUEUES, 1, 0).0,
        Status::SEQUENCE_ERROR,
        "a qpair is there"
    );
    assert_eq!(set(feature::QUEUES, 0xffff, 0).0, Status::INVALID_FIELD);
    assert_eq!(
        set(feature::WRITE_CACHE, 0, 0).0,
        Status::FEATURE_NOT_CHANGEABLE
    );
    assert_eq!(set(feature::WRITE_CACHE, 1, 0).0, Status::SUCCESS);
    assert_eq!(set(feature::HOST_ID, 0, 0).0, Status::SEQUENCE_ERROR);
    assert_eq!(
        set(feature::ARBITRATION, 0, 1).0,
        Status::FEATURE_NOT_NAMESPACE
    );
    assert_eq!(set(0xc0, 0, 0).0, Status::INVALID_FIELD);
    let mut get = |id: u8, len: u32| {
        let sqe = admin.admin(admin::GET_FEATURES, 0, id.into(), len);
        let (done, data) = admin.run(sqe, &[]);
        (done.status, done.dw0, data)
    };
    let known = |value| (Status::SUCCESS, value, vec![]);
    assert_eq!(get(feature::ASYNC_EVENTS, 0), known(0x100));
    assert_eq!(get(feature::KEEP_ALIVE, 0), known(2000));
    assert_eq!(get(feature::QUEUES, 0), known(126 | 126 << 16));
    assert_eq!(get(feature::WRITE_CACHE, 0), known(1));
    assert_eq!(get(feature::HOST_ID, 16), (Status::SUCCESS, 0, vec![7; 16]));
    assert_eq!(get(0xc0, 0).0, Status::INVALID_FIELD);
}

#[test]
fn logs_are_read_in_any_parts_and_unknown_ones_named() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    assert_eq!(qpair.write(0, &[1; 4096]), Status::SUCCESS);
    let admin = &mut host.admin;
    let smart = get_log(admin, log_id::SMART, 512, 0).unwrap();
    assert_eq!(
        (smart[48], smart[80]),
        (1, 1),
        "one write, of less than a data unit"
    );
    let effects = get_log(admin, log_id::EFFECTS, 4096, 0).unwrap();
    assert_eq!(effects[1024 + 4], 3);
    // Any part of it, zeroes behind its end, and nothing from there.
    assert_eq!(
        get_log(admin, log_id::EFFECTS, 8, 1024).unwrap(),
        effects[1024..1032]
    );
    let tail = get_log(admin, log_id::SMART, 512, 508).unwrap();
    assert_eq!((tail.len(), &tail[4..]), (512, &[0; 508][..]));
    assert_eq!(
        get_log(admin, log_id::SMART, 4, 512),
        Err(Status::INVALID_FIELD)
    );
    assert_eq!(
        get_log(admin, log_id::SMART, 4, 2),
        Err(Status::INVALID_FIELD)
    );
    assert_eq!(get_log(admin, 0x7f, 512, 0), Err(Status::INVALID_LOG_PAGE));
    assert_eq!(
        get_log(admin, log_id::DISCOVERY, 512, 0),
        Err(Status::INVALID_LOG_PAGE)
    );
    let unknown = admin.admin(0xc1, 0, 0, 0);
    assert_eq!(admin.run(unknown, &[]).0.status, Status::INVALID_OPCODE);
    let mut fused = admin.admin(admin::KEEP_ALIVE, 0, 0, 0);
    fused.flags |= 1;
    assert_eq!(admin.run(fused, &[]).0.status, Status::INVALID_FIELD);
}

#[test]
fn hosts_are_told_when_namespaces_come_and_go() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut host = Host::connect(fixture.address, NQN);
    let admin = &mut host.admin;
    let mut aec = admin.admin(admin::SET_FEATURES, 0, feature::ASYNC_EVENTS.into(), 0);
    aec.cdw11 = 0x100.into();
    admin.ok(aec);
    for _ in 0..4 {
        let sqe = admin.admin(admin::ASYNC_EVENT_REQUEST, 0, 0, 0);
        let bytes = admin.capsule(sqe, &[]);
        admin.send(&bytes);
    }
    let one_too_many = admin.admin(admin::ASYNC_EVENT_REQUEST, 0, 0, 0);
    assert_eq!(admin.run(one_too_many, &[]).0.status, Status::AER_LIMIT);
    let other = Arc::new(RamDisk::new("other", 8192));
    assert_eq!(fixture.add(&other, None), 2);
    let told = admin.receive().completion();
    assert_eq!((told.status, told.dw0), (Status::SUCCESS, 0x04_0002));
    // Once, until the log is read.
    fixture.target.remove_namespace(NQN, 1).unwrap();
    admin.identify(cns::ACTIVE_NAMESPACES, 0);
    wait_until("the change is seen", || {
        let log = get_log(admin, log_id::CHANGED_NAMESPACES, 4096, 0).unwrap();
        log[..4] == [1, 0, 0, 0]
    });
    fixture.target.remove_namespace(NQN, 2).unwrap();
    assert_eq!(admin.receive().completion().dw0, 0x04_0002);
    // What waits can be given up; nothing else can.
    let waiting = one_too_many.cid.get() - 1;
    let abort = |admin: &mut Qpair, qid: u16, cid: u16| {
        let sqe = admin.admin(admin::ABORT, 0, u32::from(qid) | u32::from(cid) << 16, 0);
        let bytes = admin.capsule(sqe, &[]);
        admin.send(&bytes);
        admin.receive().completion()
    };
    assert_eq!(abort(admin, 0, waiting).status, Status::ABORTED);
    assert_eq!(admin.receive().completion().dw0, 0);
    assert_eq!(abort(admin, 0, waiting).dw0, 1);
    assert_eq!(abort(admin, 1, 1).dw0, 1);
}

#[test]
fn discovery_lists_what_a_host_may_see_and_tells_of_changes() {
    let (fixture, _disk) = Fixture::with_disk();
    let secret = SubsystemConfig::new("nqn.2026-11.test.pmcache:secret");
    fixture.target.create_subsystem(secret.clone()).unwrap();
    fixture
        .target
        .add_listener(&secret.nqn, fixture.address)
        .unwrap();
    let mut host = Host::connect(fixture.address, DISCOVERY_NQN);
    let admin = &mut host.admin;
    let page = admin.identify(cns::CONTROLLER, 0);
    assert_eq!((page[111], page[516]), (2, 0));
    let log = get_log(admin, log_id::DISCOVERY, 3072, 0).unwrap();
    assert_eq!(log[8..16], 1_u64.to_le_bytes());
    assert!(log[1280..].starts_with(format!("{NQN}\0").as_bytes()));
    assert!(log[1056..].starts_with(fixture.address.port().to_string().as_bytes()));
    assert!(log[1536..].starts_with(b"127.0.0.1   "));
    let mut aec = admin.admin(admin::SET_FEATURES, 0, feature::ASYNC_EVENTS.into(), 0);
    aec.cdw11 = (1 << 31).into();
    admin.ok(aec);
    let sqe = admin.admin(admin::ASYNC_EVENT_REQUEST, 0, 0, 0);
    let bytes = admin.capsule(sqe, &[]);
    admin.send(&bytes);
    fixture.target.add_host(&secret.nqn, HOST, None).unwrap();
    assert_eq!(admin.receive().completion().dw0, 0x70_f002);
    let again = get_log(admin, log_id::DISCOVERY, 3072, 0).unwrap();
    assert_eq!(again[8..16], 2_u64.to_le_bytes());
    assert!(again[..8] > log[..8], "the generation rises");
    let mut io = Qpair::greeted(fixture.address);
    let done = io.connect_to(DISCOVERY_NQN, 1, 31, host.cntlid, 0);
    assert_eq!((done.status, done.dw0), (Status::INVALID_PARAMETER, 42));
}

#[test]
fn a_host_that_is_let_in_no_more_is_put_out() {
    let (fixture, _disk) = Fixture::with_disk();
    fixture.target.add_host(NQN, HOST, None).unwrap();
    fixture.target.allow_any_host(NQN, false).unwrap();
    let mut host = Host::connect(fixture.address, NQN);
    let mut qpair = host.io(1, 0);
    fixture.target.remove_host(NQN, HOST).unwrap();
    assert_eq!(qpair.try_receive(), None);
    assert_eq!(host.admin.try_receive(), None);
    fixture.target.allow_any_host(NQN, true).unwrap();
    let mut host = Host::connect(fixture.address, NQN);
    let removed = fixture.target.delete_subsystem(NQN).unwrap();
    assert_eq!(host.admin.try_receive(), None);
    wait_until("its device is free", || {
        removed.namespaces.iter().all(|n| n.is_closed())
    });
    wait_until("its listener is gone", || !fixture.target.is_closing());
}

#[test]
fn sq_heads_are_counted_or_left_alone_as_the_host_wants() {
    let (fixture, _disk) = Fixture::with_disk();
    let host = Host::connect(fixture.address, NQN);
    let mut qpair = Qpair::greeted(fixture.address);
    let done = qpair.connect_to(NQN, 1, 3, host.cntlid, 0);
    assert_eq!(done.sq_head, 1);
    for expected in [2, 3, 0, 1] {
        let flush = qpair.io(0, 0, 1);
        assert_eq!(qpair.run(flush, &[]).0.sq_head, expected);
    }
    let mut qpair = Qpair::greeted(fixture.address);
    let done = qpair.connect_to(NQN, 2, 3, host.cntlid, connect_flag::NO_FLOW_CONTROL);
    assert_eq!(done.sq_head, 0xffff);
    // Data are their own completion then.
    let sqe = qpair
        .io(pmcache::wire::nvme::io::READ, 0, 1)
        .with_transport_data(512);
    let bytes = qpair.capsule(sqe, &[]);
    qpair.send(&bytes);
    let data = qpair.receive();
    assert_eq!((data.kind, data.flags), (7, 0b1100));
}

/// Two ways to a namespace, one of which is closed: hosts are told, and go the other way.
#[test]
fn hosts_are_told_which_way_to_take() {
    let (fixture, disk) = Fixture::with_disk();
    let config = SubsystemConfig {
        allow_any_host: true,
        ana_reporting: true,
        ..SubsystemConfig::new("nqn.2026-11.test.pmcache:ways")
    };
    let nqn = config.nqn.clone();
    fixture.target.create_subsystem(config).unwrap();
    let other_way = fixture
        .target
        .add_listener(&nqn, "127.0.0.1:0".parse().unwrap());
    let ways = [fixture.address, other_way.unwrap()];
    fixture.target.add_listener(&nqn, fixture.address).unwrap();
    let namespace = NamespaceConfig {
        bdev: Arc::clone(&disk) as Arc<dyn Bdev>,
        nsid: None,
        nguid: None,
        eui64: None,
        uuid: None,
        ana_group: Some(5),
    };
    fixture.target.add_namespace(&nqn, namespace).unwrap();
    let mut hosts = ways.map(|way| Host::connect(way, &nqn));
    let mut qpairs = [hosts[0].io(1, 0), hosts[1].io(1, 0)];
    assert_ne!(hosts[0].cntlid, hosts[1].cntlid);
    let admin = &mut hosts[0].admin;
    let page = admin.identify(cns::CONTROLLER, 0);
    assert_eq!((page[76], page[343]), (0b1011, 0x47));
    assert_eq!(admin.identify(cns::NAMESPACE, 1)[92], 5);
    let mut aec = admin.admin(admin::SET_FEATURES, 0, feature::ASYNC_EVENTS.into(), 0);
    aec.cdw11 = (1 << 11).into();
    admin.ok(aec);
    let sqe = admin.admin(admin::ASYNC_EVENT_REQUEST, 0, 0, 0);
    let bytes = admin.capsule(sqe, &[]);
    admin.send(&bytes);
    let target = &fixture.target;
    let close = |state| target.set_ana_state(&nqn, ways[0], Some(5), state).unwrap();
    close(AnaState::Inaccessible);
    assert_eq!(admin.receive().completion().dw0, 0x0c_0302);
    let log = get_log(admin, log_id::ANA, 64, 0).unwrap();
    assert_eq!(
        (log[8], log[16], log[20], log[32], log[48]),
        (1, 5, 1, 3, 1)
    );
    let read = |qpair: &mut Qpair| qpair.read(0, 1).0;
    assert_eq!(read(&mut qpairs[0]), Status::ANA_INACCESSIBLE);
    assert_eq!(read(&mut qpairs[1]), Status::SUCCESS);
    close(AnaState::NonOptimized);
    assert_eq!(read(&mut qpairs[0]), Status::SUCCESS);
    target.set_ana_group(&nqn, 1, 6).unwrap();
    let log = get_log(&mut hosts[0].admin, log_id::ANA, 64, 0).unwrap();
    assert_eq!((log[16], log[32]), (6, 1));
    // Nobody is told of ways where that was not wanted.
    let refused = target.set_ana_state(NQN, ways[0], None, AnaState::Optimized);
    assert!(matches!(refused, Err(NvmfError::NoAna(_))));
    let refused = target.set_ana_group(&nqn, 1, 33);
    assert!(matches!(refused, Err(NvmfError::BadAnaGroup(33, 32))));
    let mut plain = Host::connect(fixture.address, NQN);
    let log = get_log(&mut plain.admin, log_id::ANA, 64, 0);
    assert_eq!(log, Err(Status::INVALID_LOG_PAGE));
}

/// Hosts that say nothing: before Connect, and for longer than they said they would.
#[test]
fn silent_hosts_are_hung_up_on() {
    let clock = Arc::new(ManualClock::default());
    let config = ReactorConfig {
        id: ReactorId(0),
        idle: IdlePolicy::Poll,
        seed: 1,
    };
    let shared: Arc<dyn Clock> = Arc::clone(&clock) as _;
    let mut reactor = Reactor::new(&config, shared, Quiescence::new(1)).unwrap();
    let target = NvmfTarget::new(vec![reactor.handle()]);
    target
        .create_transport(TransportOptions::default())
        .unwrap();
    let config = SubsystemConfig {
        allow_any_host: true,
        ..SubsystemConfig::new(NQN)
    };
    target.create_subsystem(config).unwrap();
    let address = target
        .add_listener(NQN, "127.0.0.1:0".parse().unwrap())
        .unwrap();
    let mut run = |what: &str, condition: &mut dyn FnMut() -> bool| {
        wait_until(what, || {
            reactor.step();
            // As before a sleep: the next look at a socket is not spared.
            let _ = reactor.wake();
            condition()
        });
    };
    let host = std::thread::spawn(move || {
        let silent = Qpair::connect(address);
        (silent, Host::connect(address, NQN))
    });
    run("both are there", &mut || host.is_finished());
    let (mut silent, mut host) = host.join().unwrap();
    let alive = |target: &NvmfTarget| !target.controllers(NQN).unwrap().is_empty();
    clock.advance(10_000_000_000);
    run("a round", &mut || true);
    let keep_alive = std::thread::spawn(move || {
        let cid = host.admin.next_cid();
        host.admin.ok(Sqe::new(admin::KEEP_ALIVE, cid, 0));
        host
    });
    run("it is answered", &mut || keep_alive.is_finished());
    let mut host = keep_alive.join().unwrap();
    clock.advance(14_900_000_000);
    run("a round", &mut || true);
    assert!(alive(&target), "15 s from its last word");
    clock.advance(200_000_000);
    run("it is gone", &mut || !alive(&target));
    clock.advance(5_000_000_000);
    run("rounds", &mut || {
        target.figures()[0].current_unassociated_qpairs == 0
    });
    assert_eq!(host.admin.try_receive(), None);
    assert_eq!(silent.try_receive(), None);
    target.stop();
    run("it stops", &mut || target.is_stopped());
}
