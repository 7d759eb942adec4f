//! The NVMe/TCP target's authentication, message by message: right ones, wrong ones, and those at the
//! wrong time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod auth_common;
mod nbd_common;
mod nvmf_common;

use auth_common::talk::{FAILURE_DELAY_NS, ROOM, Talk};
use auth_common::{demand, keys, named};
use nbd_common::{RamDisk, Stepped, wait_until};
use nvmf_common::{Fixture, HOST, NQN, Qpair};
use pmcache::target::nvmf::{AuthInfo, AuthStage, ChapGroup, ChapHash, TransportOptions};
use pmcache::wire::nvme::{
    AuthCommand, AuthMessage, AuthReason, ConnectData, DataPdu, Negotiate, Proof, PropertyCommand,
    Prover, Reply, Sqe, Status, Success1, admin, io, property,
};
use reactors::{Clock, ManualClock};
use std::sync::Arc;

/// A target by a clock that stands still, with a disk of 1 MiB.
fn target(host: usize, controller: Option<usize>) -> (Fixture, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let stepped = Stepped::with_clock(1, &(Arc::clone(&clock) as Arc<dyn Clock>));
    let fixture = Fixture::on(stepped, TransportOptions::default());
    fixture.add(&Arc::new(RamDisk::new("disk", 1 << 20)), None);
    demand(&fixture, host, controller);
    (fixture, clock)
}

fn success(hash: ChapHash) -> AuthMessage {
    AuthMessage::Success1(Success1 {
        transaction: 0x1234,
        hash_bytes: u8::try_from(hash.bytes()).unwrap(),
        response: None,
    })
}

fn infos(fixture: &Fixture) -> Vec<Option<AuthInfo>> {
    let qpairs = fixture.target.qpairs(NQN).unwrap();
    qpairs.iter().map(|qpair| qpair.auth).collect()
}

fn info(stage: AuthStage, agreed: Option<(ChapHash, ChapGroup)>) -> AuthInfo {
    AuthInfo {
        stage,
        hash: agreed.map(|(hash, _)| hash),
        group: agreed.map(|(_, group)| group),
    }
}

#[test]
fn nothing_is_done_for_a_host_before_it_has_proved_who_it_is() {
    let (fixture, _clock) = target(1, None);
    let mut talk = Talk::admin(&fixture);
    let stages = |talk: &mut Talk, stage, agreed| {
        assert_eq!(infos(&fixture), [Some(info(stage, agreed))]);
        let required = Status::AUTHENTICATION_REQUIRED;
        let cid = talk.qpair.next_cid();
        let set = PropertyCommand::set(cid, property::CC, 1);
        assert_eq!(talk.qpair.run(set, &[]).0.status, required);
        let again = talk.qpair.connect_to(NQN, 0, 31, ConnectData::ANY, 0);
        assert_eq!(again.status, required);
        let identify = talk.qpair.admin(admin::IDENTIFY, 0, 1, 4096);
        assert_eq!(talk.qpair.run(identify, &[]).0.status, required);
    };
    let agreed = Some((ChapHash::Sha512, ChapGroup::Null));
    stages(&mut talk, AuthStage::Negotiate, None);
    let negotiate = talk.negotiate(&[ChapGroup::Null]);
    talk.say(&AuthMessage::Negotiate(negotiate));
    stages(&mut talk, AuthStage::Challenge, agreed);
    let AuthMessage::Challenge(challenge) = talk.hear() else {
        panic!("no challenge");
    };
    stages(&mut talk, AuthStage::Reply, agreed);
    let reply = talk.reply(&challenge, 1, None);
    talk.say(&AuthMessage::Reply(reply));
    stages(&mut talk, AuthStage::Success1, agreed);
    assert_eq!(talk.hear(), success(ChapHash::Sha512));
    let completed = Some(info(AuthStage::Completed, agreed));
    assert_eq!(infos(&fixture), [completed]);
    talk.enable();
    talk.qpair.identify(1, 0);
    // Nobody is authenticated twice.
    let negotiate = AuthMessage::Negotiate(Negotiate::all(1)).encode();
    assert_eq!(talk.send(&negotiate), Status::SEQUENCE_ERROR);
    assert_eq!(talk.receive(ROOM).0.status, Status::SEQUENCE_ERROR);
    // Each qpair must prove it: nothing is asked for and nothing done for this one.
    let mut io = Talk::connect(&fixture, 1, talk.cntlid);
    let required = Status::AUTHENTICATION_REQUIRED;
    assert_eq!(io.qpair.read(0, 1).0, required);
    assert_eq!(io.qpair.write(0, &[1; 512]), required);
    let write = io.qpair.io(io::WRITE, 0, 32);
    let asks = io.qpair.run(write.with_transport_data(16384), &[]).0;
    assert_eq!(asks.status, required);
    assert_eq!(io.prove(1), success(ChapHash::Sha512));
    assert_eq!(io.qpair.read(0, 1), (Status::SUCCESS, vec![0; 512]));
    assert_eq!(io.qpair.write(0, &[1; 512]), Status::SUCCESS);
    assert_eq!(infos(&fixture), [completed; 2]);
}

#[test]
fn a_host_of_which_nothing_is_asked_need_not_authenticate() {
    let (fixture, _clock) = target(1, None);
    fixture.target.set_keys(NQN, HOST, None).unwrap();
    let mut qpair = Qpair::greeted(fixture.address);
    let done = qpair.connect_to(NQN, 0, 31, ConnectData::ANY, 0);
    assert_eq!((done.status, done.dw0 >> 16), (Status::SUCCESS, 0));
    assert_eq!(infos(&fixture), [None]);
    let negotiate = AuthMessage::Negotiate(Negotiate::all(1)).encode();
    let send = AuthCommand::send(qpair.next_cid(), 72);
    assert_eq!(qpair.run(send, &negotiate).0.status, Status::SEQUENCE_ERROR);
}

/// Even where any host may come, one that has a key must prove it.
#[test]
fn a_key_counts_where_any_host_may_come() {
    let (fixture, clock) = target(1, None);
    fixture.target.allow_any_host(NQN, true).unwrap();
    let mut talk = Talk::admin(&fixture);
    let challenge = talk.challenge(&[ChapGroup::Null]);
    let reply = talk.reply(&challenge, 2, None);
    talk.say(&AuthMessage::Reply(reply));
    talk.fails(&clock, AuthReason::Failed);
}

#[test]
fn the_wrong_key_is_told_of_late_and_only_once() {
    let (fixture, clock) = target(1, None);
    for group in [ChapGroup::Null, ChapGroup::Ffdhe2048] {
        let mut talk = Talk::admin(&fixture);
        let challenge = talk.challenge(&[group]);
        let mut reply = talk.reply(&challenge, 1, None);
        reply.response[0] ^= 1;
        talk.say(&AuthMessage::Reply(reply));
        if group != ChapGroup::Null {
            // It fails when that has been calculated; what follows is as above.
            drop(talk);
        } else {
            // As soon as it asks; the time counts from there.
            talk.fails(&clock, AuthReason::Failed);
        }
        wait_until("it is gone", || infos(&fixture).is_empty());
    }
}

#[test]
fn numbers_that_give_the_secret_away_are_not_used() {
    let (fixture, clock) = target(1, None);
    for last in [0, 1] {
        let mut talk = Talk::admin(&fixture);
        let challenge = talk.challenge(&[ChapGroup::Ffdhe2048]);
        let mut reply = talk.reply(&challenge, 1, None);
        reply.public = vec![0; 256];
        reply.public[255] = last;
        talk.say(&AuthMessage::Reply(reply));
        let sqe = AuthCommand::receive(talk.qpair.next_cid(), ROOM);
        let bytes = talk.qpair.capsule(sqe, &[]);
        talk.qpair.send(&bytes);
        let failed = Some(info(AuthStage::Failure1, None));
        wait_until("it has failed", || infos(&fixture) == [failed]);
        clock.advance(FAILURE_DELAY_NS);
        let data = talk.qpair.receive().data;
        let failure = AuthMessage::Failure1(0x1234, AuthReason::Payload);
        assert_eq!(AuthMessage::decode(&data), Ok((failure, 8)));
    }
}

#[test]
fn an_exchange_takes_place_aside() {
    let (fixture, _clock) = target(3, Some(2));
    let mut talk = Talk::admin(&fixture);
    let challenge = talk.challenge(&[ChapGroup::Null, ChapGroup::Ffdhe3072]);
    assert_eq!(challenge.group, ChapGroup::Ffdhe3072);
    let reply = talk.reply(&challenge, 3, None);
    talk.say(&AuthMessage::Reply(reply));
    assert_eq!(talk.hear(), success(ChapHash::Sha512));
}

/// What a host says first that can't be, and what it is told of that.
#[test]
fn negotiations_that_come_to_nothing_are_refused() {
    let (fixture, clock) = target(1, None);
    let good = |talk: &Talk| talk.negotiate(&[ChapGroup::Null]);
    type Spoil = fn(&mut Negotiate);
    let cases: [(Spoil, AuthReason); 6] = [
        (|n| n.secure_channel = 1, AuthReason::Concatenation),
        (|n| n.chap = None, AuthReason::Protocol),
        (|n| n.chap = Some((vec![], vec![0])), AuthReason::Hash),
        (|n| n.chap = Some((vec![4], vec![0])), AuthReason::Hash),
        (|n| n.chap = Some((vec![1], vec![])), AuthReason::Group),
        (|n| n.chap = Some((vec![1], vec![6])), AuthReason::Group),
    ];
    for (spoil, reason) in cases {
        let mut talk = Talk::admin(&fixture);
        let mut negotiate = good(&talk);
        spoil(&mut negotiate);
        talk.say(&AuthMessage::Negotiate(negotiate));
        talk.fails(&clock, reason);
    }
    let bytes = |talk: &Talk| AuthMessage::Negotiate(good(talk)).encode();
    type Bend = fn(&mut Vec<u8>);
    let cases: [(Bend, AuthReason); 7] = [
        (|b| b.push(0), AuthReason::Payload),
        (|b| b.truncate(71), AuthReason::Payload),
        (|b| b[7] = 2, AuthReason::Payload),
        (|b| b[10] = 31, AuthReason::Payload),
        (|b| b[11] = 31, AuthReason::Payload),
        (|b| b[0] = 2, AuthReason::Message),
        (|b| b[1] = 9, AuthReason::Message),
    ];
    for (bend, reason) in cases {
        let mut talk = Talk::admin(&fixture);
        let mut bytes = bytes(&talk);
        bend(&mut bytes);
        assert_eq!(talk.send(&bytes), Status::SUCCESS);
        talk.fails(&clock, reason);
    }
    let mut talk = Talk::admin(&fixture);
    talk.transaction = 0;
    assert_eq!(talk.send(&[0, 0, 0]), Status::SUCCESS);
    talk.fails(&clock, AuthReason::Payload);
}

#[test]
fn replies_that_can_not_be_are_refused() {
    let (fixture, clock) = target(1, None);
    type Spoil = fn(&mut Vec<u8>);
    // Of SHA-512: 16 bytes, and twice 64.
    let cases: [(Spoil, AuthReason); 9] = [
        (|b| b.push(0), AuthReason::Payload),
        (|b| b.truncate(143), AuthReason::Payload),
        (|b| b.truncate(5), AuthReason::Payload),
        (|b| b[4] ^= 1, AuthReason::Payload),
        (|b| b[6] = 32, AuthReason::Payload),
        (|b| b[8] = 2, AuthReason::Payload),
        (|b| b[8] = 1, AuthReason::Payload),
        (|b| b[10] = 1, AuthReason::Payload),
        // A challenge to a controller that has no key.
        (|b| (b[8], b[12]) = (1, 1), AuthReason::Failed),
    ];
    for (spoil, reason) in cases {
        let mut talk = Talk::admin(&fixture);
        let challenge = talk.challenge(&[ChapGroup::Null]);
        let reply = talk.reply(&challenge, 1, None);
        let mut bytes = AuthMessage::Reply(reply).encode();
        spoil(&mut bytes);
        assert_eq!(talk.send(&bytes), Status::SUCCESS);
        talk.fails(&clock, reason);
    }
    // Of another length, but of one piece.
    let mut talk = Talk::admin(&fixture);
    talk.challenge(&[ChapGroup::Null]);
    let reply = Reply {
        transaction: talk.transaction,
        response: vec![0; 32],
        challenge: None,
        public: vec![],
    };
    talk.say(&AuthMessage::Reply(reply));
    talk.fails(&clock, AuthReason::Payload);
    // With a number that nobody wants.
    let mut talk = Talk::admin(&fixture);
    let challenge = talk.challenge(&[ChapGroup::Null]);
    let reply = Reply {
        public: vec![1; 256],
        ..talk.reply(&challenge, 1, None)
    };
    talk.say(&AuthMessage::Reply(reply));
    talk.fails(&clock, AuthReason::Payload);
}

#[test]
fn messages_at_the_wrong_time_end_it() {
    let (fixture, clock) = target(1, None);
    let transaction = 0x1234;
    let reply = || {
        AuthMessage::Reply(Reply {
            transaction,
            response: vec![0; 64],
            challenge: None,
            public: vec![],
        })
    };
    let negotiate = || AuthMessage::Negotiate(Negotiate::all(transaction));
    let success2 = || AuthMessage::Success2(transaction);
    let failure2 = || AuthMessage::Failure2(transaction, AuthReason::Failed);
    // First of all.
    for message in [
        reply(),
        success2(),
        failure2(),
        success(ChapHash::Sha512),
        AuthMessage::Failure1(transaction, AuthReason::Failed),
    ] {
        let mut talk = Talk::admin(&fixture);
        talk.say(&message);
        talk.fails(&clock, AuthReason::Message);
    }
    // Before the challenge has been asked for.
    for message in [negotiate(), reply(), success2(), failure2()] {
        let mut talk = Talk::admin(&fixture);
        let first = talk.negotiate(&[ChapGroup::Null]);
        talk.say(&AuthMessage::Negotiate(first));
        talk.say(&message);
        talk.fails(&clock, AuthReason::Message);
    }
    // Instead of the reply.
    for message in [negotiate(), success2(), failure2()] {
        let mut talk = Talk::admin(&fixture);
        talk.challenge(&[ChapGroup::Null]);
        talk.say(&message);
        talk.fails(&clock, AuthReason::Message);
    }
    // A second reply.
    let mut talk = Talk::admin(&fixture);
    let challenge = talk.challenge(&[ChapGroup::Null]);
    let right = AuthMessage::Reply(talk.reply(&challenge, 1, None));
    talk.say(&right);
    talk.say(&right);
    talk.fails(&clock, AuthReason::Message);
    // Asked for, where there is nothing to tell.
    let mut talk = Talk::admin(&fixture);
    talk.transaction = 0;
    talk.fails(&clock, AuthReason::Message);
    let mut talk = Talk::admin(&fixture);
    talk.challenge(&[ChapGroup::Null]);
    talk.fails(&clock, AuthReason::Message);
    // What comes behind a failure changes nothing.
    let mut talk = Talk::admin(&fixture);
    let none = Negotiate {
        transaction,
        secure_channel: 0,
        chap: None,
    };
    talk.say(&AuthMessage::Negotiate(none));
    let good = talk.negotiate(&[ChapGroup::Null]);
    talk.say(&AuthMessage::Negotiate(good));
    talk.fails(&clock, AuthReason::Protocol);
}

#[test]
fn commands_for_another_protocol_are_refused_and_end_nothing() {
    let (fixture, _clock) = target(1, None);
    let mut talk = Talk::admin(&fixture);
    let message = AuthMessage::Negotiate(talk.negotiate(&[ChapGroup::Null])).encode();
    let good = AuthCommand::send(0, 72);
    let mut odd = vec![];
    for bit in [8, 16, 24, 31] {
        let mut sqe = good;
        sqe.cdw10 = (good.cdw10.get() ^ 1 << bit).into();
        odd.push(sqe);
    }
    for len in [0, 71, 73] {
        let mut sqe = good;
        sqe.cdw11 = len.into();
        odd.push(sqe);
    }
    for mut sqe in odd {
        sqe.cid = talk.qpair.next_cid().into();
        let (done, _) = talk.qpair.run(sqe, &message);
        assert_eq!(done.status, Status::INVALID_FIELD, "{sqe:?}");
        // Nor are its data asked for.
        let asks = Sqe {
            cid: talk.qpair.next_cid().into(),
            ..sqe.with_transport_data(72)
        };
        let (done, _) = talk.qpair.run(asks, &[]);
        assert_eq!(done.status, Status::INVALID_FIELD, "{sqe:?}");
    }
    let mut short = AuthCommand::receive(talk.qpair.next_cid(), ROOM);
    short.cdw11 = (ROOM - 1).into();
    assert_eq!(talk.qpair.run(short, &[]).0.status, Status::INVALID_FIELD);
    let long = AuthCommand::receive(talk.qpair.next_cid(), 1 << 20);
    assert_eq!(talk.qpair.run(long, &[]).0.status, Status::INVALID_FIELD);
    assert_eq!(talk.prove(1), success(ChapHash::Sha512));
}

#[test]
fn a_message_may_be_asked_for() {
    let (fixture, _clock) = target(1, None);
    let mut talk = Talk::admin(&fixture);
    let message = AuthMessage::Negotiate(talk.negotiate(&[ChapGroup::Null])).encode();
    let cid = talk.qpair.next_cid();
    let sqe = AuthCommand::send(cid, 72).with_transport_data(72);
    let bytes = talk.qpair.capsule(sqe, &[]);
    talk.qpair.send(&bytes);
    let r2t = talk.qpair.receive();
    let (_, tag, offset, len) = r2t.extent();
    assert_eq!((r2t.kind, offset, len), (9, 0, 72));
    let bytes = talk
        .qpair
        .data(DataPdu::new(cid, tag, 0, 72), true, &message);
    talk.qpair.send(&bytes);
    assert_eq!(talk.qpair.receive().completion().status, Status::SUCCESS);
    assert!(matches!(talk.hear(), AuthMessage::Challenge(_)));
}

#[test]
fn a_message_that_there_is_no_room_for_ends_it() {
    let (fixture, _clock) = target(1, None);
    let mut talk = Talk::admin(&fixture);
    let negotiate = talk.negotiate(&[ChapGroup::Null]);
    talk.say(&AuthMessage::Negotiate(negotiate));
    // 16 bytes and 64.
    let (done, data) = talk.receive(79);
    assert_eq!((done.status, data.len()), (Status::INVALID_FIELD, 0));
    assert_eq!(talk.qpair.try_receive(), None);
    let mut talk = Talk::admin(&fixture);
    let negotiate = talk.negotiate(&[ChapGroup::Null]);
    talk.say(&AuthMessage::Negotiate(negotiate));
    let (done, data) = talk.receive(80);
    assert_eq!((done.status, data.len()), (Status::SUCCESS, 80));
}

/// Goes as far as a host's verdict on the controller's answer, which is right.
fn challenged(fixture: &Fixture) -> Talk {
    let mut talk = Talk::admin(fixture);
    let challenge = talk.challenge(&[ChapGroup::Null]);
    let own = (77, vec![0xc2; 64]);
    let reply = talk.reply(&challenge, 1, Some(own.clone()));
    talk.say(&AuthMessage::Reply(reply));
    let AuthMessage::Success1(success) = talk.hear() else {
        panic!("no success");
    };
    let wanted = Proof {
        sequence: own.0,
        challenge: &own.1,
        ..talk.proof(&challenge, Prover::Controller)
    };
    let response = wanted.response(&named(2).key).to_vec();
    assert_eq!(success.response, Some(response));
    talk
}

#[test]
fn a_controller_proves_who_it_is_to_a_host_that_asks() {
    let (fixture, clock) = target(1, Some(2));
    let mut talk = challenged(&fixture);
    // Not before the host is content.
    let identify = talk.qpair.admin(admin::IDENTIFY, 0, 1, 4096);
    let required = Status::AUTHENTICATION_REQUIRED;
    assert_eq!(talk.qpair.run(identify, &[]).0.status, required);
    talk.say(&AuthMessage::Success2(0x1234));
    talk.enable();
    // One that is not content leaves.
    let mut talk = challenged(&fixture);
    talk.say(&AuthMessage::Failure2(0x1234, AuthReason::Failed));
    assert_eq!(talk.qpair.try_receive(), None);
    // One that says so wrongly is told so.
    for (at, byte) in [(4, 0x35), (1, 9)] {
        let mut talk = challenged(&fixture);
        let mut bytes = AuthMessage::Success2(0x1234).encode();
        bytes[at] = byte;
        assert_eq!(talk.send(&bytes), Status::SUCCESS);
        let reason = match at {
            4 => AuthReason::Payload,
            _ => AuthReason::Message,
        };
        talk.fails(&clock, reason);
    }
    let talk = challenged(&fixture);
    talk.fails(&clock, AuthReason::Message);
}

#[test]
fn keys_that_change_count_for_the_next_reply() {
    let (fixture, clock) = target(1, None);
    let mut there = Talk::admin(&fixture);
    there.prove(1);
    let keys_of = |host| Some(keys(host, None));
    let mut talk = Talk::admin(&fixture);
    let challenge = talk.challenge(&[ChapGroup::Null]);
    fixture.target.set_keys(NQN, HOST, keys_of(2)).unwrap();
    let reply = talk.reply(&challenge, 1, None);
    talk.say(&AuthMessage::Reply(reply));
    talk.fails(&clock, AuthReason::Failed);
    let mut talk = Talk::admin(&fixture);
    assert_eq!(talk.prove(2), success(ChapHash::Sha512));
    // Taken away meanwhile: there is nothing that could be proved.
    let mut talk = Talk::admin(&fixture);
    let challenge = talk.challenge(&[ChapGroup::Null]);
    fixture.target.set_keys(NQN, HOST, None).unwrap();
    let reply = talk.reply(&challenge, 2, None);
    talk.say(&AuthMessage::Reply(reply));
    talk.fails(&clock, AuthReason::Failed);
    // Who was there is there.
    there.enable();
    let unknown = fixture
        .target
        .set_keys(NQN, "nqn.2026-11.test:nobody", None);
    assert!(unknown.is_err());
}

/// With a keep-alive time of 15 s each step may take as long; and the admin qpair's ends its controller.
#[test]
fn a_host_that_takes_too_long_is_hung_up_on() {
    let (fixture, clock) = target(1, None);
    let patience_ns = 15_000_000_000;
    let mut talk = Talk::admin(&fixture);
    clock.advance(patience_ns - 1);
    let negotiate = talk.negotiate(&[ChapGroup::Null]);
    talk.say(&AuthMessage::Negotiate(negotiate));
    clock.advance(patience_ns - 1);
    talk.hear();
    clock.advance(patience_ns);
    assert_eq!(talk.qpair.try_receive(), None);
    wait_until("it is gone", || infos(&fixture).is_empty());
    // An I/O qpair has no keep-alive time of its own.
    let mut admin = Talk::admin(&fixture);
    admin.prove(1);
    admin.enable();
    let mut io = Talk::connect(&fixture, 1, admin.cntlid);
    io.challenge(&[ChapGroup::Null]);
    clock.advance(patience_ns - 1);
    admin.qpair.identify(1, 0);
    clock.advance(1);
    assert_eq!(io.qpair.try_receive(), None);
    admin.qpair.identify(1, 0);
}

/// A calculation that nobody waits for any more does no harm.
#[test]
fn a_host_may_leave_at_any_time() {
    let (fixture, _clock) = target(1, None);
    for steps in 0..3 {
        let mut talk = Talk::admin(&fixture);
        let negotiate = talk.negotiate(&[ChapGroup::Ffdhe2048]);
        talk.say(&AuthMessage::Negotiate(negotiate));
        if steps > 0 {
            let sqe = AuthCommand::receive(talk.qpair.next_cid(), ROOM);
            let bytes = talk.qpair.capsule(sqe, &[]);
            talk.qpair.send(&bytes);
        }
        if steps > 1 {
            talk.qpair.receive();
        }
        drop(talk);
        wait_until("it is gone", || infos(&fixture).is_empty());
    }
}
