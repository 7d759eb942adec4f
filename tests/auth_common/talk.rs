//! A host that says and hears messages, one by one.

use super::named;
use crate::nvmf_common::{Capsule, Fixture, HOST, NQN, Qpair};
use pmcache::target::nvmf::{ChapGroup, ChapHash};
use pmcache::wire::nvme::{
    AuthCommand, AuthMessage, AuthReason, Challenge, ConnectData, DhSecret, Negotiate, Proof,
    PropertyCommand, Prover, Reply, SharedSecret, Status, cc, property,
};
use reactors::ManualClock;
use zeroize::Zeroizing;

/// Bytes that it has room for.
pub(crate) const ROOM: u32 = 4096;
/// How long it waits until it is told of a failure.
pub(crate) const FAILURE_DELAY_NS: u64 = 100_000_000;

/// The host's side of a conversation.
pub(crate) struct Talk {
    pub(crate) qpair: Qpair,
    pub(crate) cntlid: u16,
    pub(crate) transaction: u16,
    secret: Option<SharedSecret>,
}

impl Talk {
    pub(crate) fn connect(fixture: &Fixture, qid: u16, cntlid: u16) -> Self {
        let mut qpair = Qpair::greeted(fixture.address);
        let done = qpair.connect_to(NQN, qid, 31, cntlid, 0);
        assert_eq!(done.status, Status::SUCCESS);
        // ATR, and no ASCR.
        assert_eq!(done.dw0 >> 16, 0b10);
        Self {
            qpair,
            cntlid: u16::try_from(done.dw0 & 0xffff).unwrap(),
            transaction: 0x1234,
            secret: None,
        }
    }

    pub(crate) fn admin(fixture: &Fixture) -> Self {
        Self::connect(fixture, 0, ConnectData::ANY)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Status {
        let len = u32::try_from(bytes.len()).unwrap();
        let sqe = AuthCommand::send(self.qpair.next_cid(), len);
        self.qpair.run(sqe, bytes).0.status
    }

    pub(crate) fn say(&mut self, message: &AuthMessage) {
        assert_eq!(self.send(&message.encode()), Status::SUCCESS);
    }

    pub(crate) fn receive(&mut self, room: u32) -> (Capsule, Vec<u8>) {
        let sqe = AuthCommand::receive(self.qpair.next_cid(), room);
        self.qpair.run(sqe, &[])
    }

    /// The next message; all behind it is 0.
    pub(crate) fn hear(&mut self) -> AuthMessage {
        let (done, data) = self.receive(ROOM);
        assert_eq!((done.status, data.len()), (Status::SUCCESS, 4096));
        let (message, len) = AuthMessage::decode(&data).unwrap();
        assert!(data[len..].iter().all(|byte| *byte == 0));
        message
    }

    pub(crate) fn negotiate(&self, groups: &[ChapGroup]) -> Negotiate {
        let hashes = ChapHash::ALL.map(ChapHash::id).to_vec();
        let groups = groups.iter().map(|group| group.id()).collect();
        Negotiate {
            transaction: self.transaction,
            secure_channel: 0,
            chap: Some((hashes, groups)),
        }
    }

    pub(crate) fn challenge(&mut self, groups: &[ChapGroup]) -> Challenge {
        let negotiate = self.negotiate(groups);
        self.say(&AuthMessage::Negotiate(negotiate));
        let AuthMessage::Challenge(challenge) = self.hear() else {
            panic!("no challenge");
        };
        assert_eq!(challenge.transaction, self.transaction);
        assert_ne!(challenge.sequence, 0);
        challenge
    }

    pub(crate) fn proof<'a>(&'a self, challenge: &'a Challenge, prover: Prover) -> Proof<'a> {
        Proof {
            hash: challenge.hash,
            prover,
            hostnqn: HOST,
            subnqn: NQN,
            transaction: self.transaction,
            sequence: challenge.sequence,
            challenge: &challenge.value,
            secret: self.secret.as_ref(),
        }
    }

    /// What one with the key `which` replies, who may have a challenge of its own.
    pub(crate) fn reply(
        &mut self,
        challenge: &Challenge,
        which: usize,
        own: Option<(u32, Vec<u8>)>,
    ) -> Reply {
        let mut public = vec![];
        if challenge.group != ChapGroup::Null {
            let secret = DhSecret::new(Zeroizing::new([0x5a; 64]));
            public = challenge.group.public(&secret);
            self.secret = challenge.group.shared(&secret, &challenge.public);
        }
        let proof = self.proof(challenge, Prover::Host);
        Reply {
            transaction: self.transaction,
            response: proof.response(&named(which).key).to_vec(),
            challenge: own,
            public,
        }
    }

    /// Proves to have the key `which`.
    pub(crate) fn prove(&mut self, which: usize) -> AuthMessage {
        let challenge = self.challenge(&[ChapGroup::Null]);
        let reply = self.reply(&challenge, which, None);
        self.say(&AuthMessage::Reply(reply));
        self.hear()
    }

    /// It is told why it has failed, after a while, and that was it.
    pub(crate) fn fails(mut self, clock: &ManualClock, reason: AuthReason) {
        let sqe = AuthCommand::receive(self.qpair.next_cid(), ROOM);
        let bytes = self.qpair.capsule(sqe, &[]);
        self.qpair.send(&bytes);
        // Whatever comes in between is answered at once, so that this one is known to wait.
        let (done, _) = self.receive(ROOM);
        assert_eq!(done.status, Status::SEQUENCE_ERROR);
        clock.advance(FAILURE_DELAY_NS - 1);
        let (done, _) = self.receive(ROOM);
        assert_eq!(done.status, Status::SEQUENCE_ERROR);
        clock.advance(1);
        let pdu = self.qpair.receive();
        let failure = AuthMessage::Failure1(self.transaction, reason);
        assert_eq!(AuthMessage::decode(&pdu.data), Ok((failure, 8)));
        assert_eq!(self.qpair.receive().completion().status, Status::SUCCESS);
        assert_eq!(self.qpair.try_receive(), None);
    }

    pub(crate) fn enable(&mut self) {
        let cid = self.qpair.next_cid();
        let value = cc::ENABLE | cc::ENTRY_SIZES;
        self.qpair
            .ok(PropertyCommand::set(cid, property::CC, value));
    }
}
