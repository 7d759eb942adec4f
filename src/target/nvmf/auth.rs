//! A qpair whose host must prove who it is: DH-HMAC-CHAP, the controller's side (spec section 10).
//!
//! The host says what it can do, is challenged, answers, and is told whether that was right; it may
//! challenge the controller in its turn. Whatever takes long is calculated aside, and meanwhile the host's
//! request for the next message waits. A failure is told only after a while, so that trying out keys is no
//! fun, and ends the connection.

use super::controller::QpairStatus;
use super::subsystem::Subsystem;
use crate::bdev::HostKeys;
use crate::bdev::calculator::{Calculator, Pending, Progress, random_bytes};
use crate::wire::nvme::{
    AuthMessage, AuthReason, Challenge, ChapGroup, ChapHash, DhSecret, Negotiate, Proof, Prover,
    Reply, Success1,
};
use reactors::{Cx, Nanos, ReactorHandle, Wake};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long a host waits until it is told that it has failed.
const FAILURE_DELAY_NS: u64 = 100_000_000;
/// How long a host may take for one step if it does without a keep-alive time.
const PATIENCE_NS: u64 = 120_000_000_000;

/// What hosts may choose from (`nvmf_set_config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapOffer {
    /// Hashes.
    pub hashes: Vec<ChapHash>,
    /// Groups.
    pub groups: Vec<ChapGroup>,
}

impl Default for ChapOffer {
    fn default() -> Self {
        Self {
            hashes: ChapHash::ALL.to_vec(),
            groups: ChapGroup::ALL.to_vec(),
        }
    }
}

impl ChapOffer {
    /// The strongest of what both sides can do.
    fn choose(&self, hashes: &[u8], groups: &[u8]) -> Result<(ChapHash, ChapGroup), AuthReason> {
        let hash = self
            .hashes
            .iter()
            .filter(|hash| hashes.contains(&hash.id()));
        let hash = hash.max().ok_or(AuthReason::Hash)?;
        let group = self
            .groups
            .iter()
            .filter(|group| groups.contains(&group.id()));
        let group = group.max().ok_or(AuthReason::Group)?;
        Ok((*hash, *group))
    }
}

/// How far a host has got, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthStage {
    /// It is to say what it can do.
    Negotiate,
    /// It is to ask for its challenge.
    Challenge,
    /// It is to answer.
    Reply,
    /// It is to ask how that was.
    Success1,
    /// It is to say what it thinks of the controller's answer.
    Success2,
    /// It is to be told that it has failed.
    Failure1,
    /// It is who it says it is.
    Completed,
    /// It has failed.
    Error,
}

impl AuthStage {
    const ALL: [Self; 8] = [
        Self::Negotiate,
        Self::Challenge,
        Self::Reply,
        Self::Success1,
        Self::Success2,
        Self::Failure1,
        Self::Completed,
        Self::Error,
    ];
}

/// How a qpair's authentication stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthInfo {
    /// How far the host has got.
    pub stage: AuthStage,
    /// The hash, once it is chosen.
    pub hash: Option<ChapHash>,
    /// The group, once it is chosen.
    pub group: Option<ChapGroup>,
}

impl AuthInfo {
    /// As one number, which is not 0.
    fn pack(self) -> u32 {
        let stage = AuthStage::ALL.iter().position(|stage| *stage == self.stage);
        let stage = stage.and_then(|at| u8::try_from(at).ok());
        let hash = self.hash.map_or(0, ChapHash::id);
        let group = self.group.map_or(0, |group| group.id() + 1);
        u32::from_le_bytes([stage.map_or(0, |at| at + 1), hash, group, 0])
    }

    fn unpack(packed: u32) -> Option<Self> {
        let [stage, hash, group, _] = packed.to_le_bytes();
        let stage = usize::from(stage).checked_sub(1)?;
        Some(Self {
            stage: *AuthStage::ALL.get(stage)?,
            hash: ChapHash::from_id(hash),
            group: group.checked_sub(1).and_then(ChapGroup::from_id),
        })
    }

    /// What a qpair's status says; nothing if its host need not prove anything.
    pub(super) fn of(status: &QpairStatus) -> Option<Self> {
        Self::unpack(status.auth.load(Ordering::Relaxed))
    }
}

/// What both sides have settled.
type Agreed = (ChapHash, ChapGroup);

/// A result that may have to be waited for.
#[derive(Debug)]
enum Outcome<T> {
    Pending(Pending<T>),
    Ready(T),
}

impl<T> Outcome<T> {
    /// Whether there is one; nothing if there will be none.
    fn look(&mut self) -> Option<bool> {
        if let Self::Pending(pending) = self {
            match pending.progress() {
                Progress::UnderWay => return Some(false),
                Progress::Done(result) => *self = Self::Ready(result),
                Progress::Lost => return None,
            }
        }
        Some(true)
    }
}

/// The exponent and what the host is told of it; nothing with the null group or without randomness.
type Exchange = Option<(DhSecret, Vec<u8>)>;
/// The controller's answer if one was asked for; or why the host has failed.
type Verdict = Result<Option<Vec<u8>>, AuthReason>;

#[derive(Debug)]
enum State {
    Negotiate,
    Challenge(Agreed, Outcome<Exchange>),
    Reply(Box<Asked>),
    Success1(Agreed, Outcome<Verdict>),
    Success2(Agreed),
    Failure1(AuthReason, Nanos),
    Completed(Agreed),
    Error,
}

impl State {
    fn info(&self) -> AuthInfo {
        let (stage, agreed) = match self {
            Self::Negotiate => (AuthStage::Negotiate, None),
            Self::Challenge(agreed, _) => (AuthStage::Challenge, Some(*agreed)),
            Self::Reply(asked) => (AuthStage::Reply, Some(asked.agreed)),
            Self::Success1(agreed, _) => (AuthStage::Success1, Some(*agreed)),
            Self::Success2(agreed) => (AuthStage::Success2, Some(*agreed)),
            Self::Failure1(..) => (AuthStage::Failure1, None),
            Self::Completed(agreed) => (AuthStage::Completed, Some(*agreed)),
            Self::Error => (AuthStage::Error, None),
        };
        AuthInfo {
            stage,
            hash: agreed.map(|(hash, _)| hash),
            group: agreed.map(|(_, group)| group),
        }
    }
}

/// A challenge that the host is to answer.
#[derive(Debug)]
struct Asked {
    agreed: Agreed,
    sequence: u32,
    value: Vec<u8>,
    secret: Option<DhSecret>,
}

/// All that is needed to judge a reply.
struct Judge {
    asked: Asked,
    reply: Reply,
    hostnqn: String,
    subnqn: String,
    keys: HostKeys,
}

impl Judge {
    fn verdict(&self) -> Verdict {
        let (hash, group) = self.asked.agreed;
        let shared = match &self.asked.secret {
            None => None,
            Some(secret) => {
                let shared = group.shared(secret, &self.reply.public);
                Some(shared.ok_or(AuthReason::Payload)?)
            }
        };
        let proof = Proof {
            hash,
            prover: Prover::Host,
            hostnqn: &self.hostnqn,
            subnqn: &self.subnqn,
            transaction: self.reply.transaction,
            sequence: self.asked.sequence,
            challenge: &self.asked.value,
            secret: shared.as_ref(),
        };
        if !proof.is_proved_by(&self.reply.response, &self.keys.host.key) {
            return Err(AuthReason::Failed);
        }
        let Some((sequence, challenge)) = &self.reply.challenge else {
            return Ok(None);
        };
        let key = self.keys.controller.as_ref().ok_or(AuthReason::Failed)?;
        let answer = Proof {
            prover: Prover::Controller,
            sequence: *sequence,
            challenge,
            ..proof
        };
        Ok(Some(answer.response(&key.key).to_vec()))
    }
}

/// What comes of a look at what was asked for.
#[derive(Debug)]
pub(super) enum Told {
    /// A message.
    Message(Vec<u8>),
    /// There is no room for the message.
    NoRoom,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Authentication {
    status: Arc<QpairStatus>,
    subsystem: Arc<Subsystem>,
    hostnqn: String,
    state: State,
    transaction: u16,
    /// A request for a message: its slot, and how many bytes there is room for.
    request: Option<(u16, usize)>,
    patience_ns: u64,
    deadline: Nanos,
}

impl Authentication {
    /// One that begins. `keep_alive_ms`: the time that the host may be silent; 0 if for ever.
    pub(super) fn new(
        status: Arc<QpairStatus>,
        subsystem: Arc<Subsystem>,
        hostnqn: &str,
        keep_alive_ms: u32,
        now: Nanos,
    ) -> Self {
        let patience_ns = match keep_alive_ms {
            0 => PATIENCE_NS,
            ms => u64::from(ms) * 1_000_000,
        };
        let auth = Self {
            status,
            subsystem,
            hostnqn: hostnqn.to_owned(),
            state: State::Negotiate,
            transaction: 0,
            request: None,
            patience_ns,
            deadline: now.after(patience_ns),
        };
        auth.note();
        auth
    }

    fn note(&self) {
        let packed = self.state.info().pack();
        self.status.auth.store(packed, Ordering::Relaxed);
    }

    fn enter(&mut self, state: State, now: Nanos) {
        self.state = state;
        self.deadline = now.after(self.patience_ns);
        self.note();
    }

    fn fail(&mut self, reason: AuthReason, now: Nanos) {
        tracing::warn!(
            peer = %self.status.peer, qid = self.status.qid, host = self.hostnqn,
            subsystem = self.subsystem.nqn(), "nvmf: {reason}"
        );
        self.enter(State::Failure1(reason, now.after(FAILURE_DELAY_NS)), now);
    }

    /// Whether the host is who it says it is.
    pub(super) fn is_completed(&self) -> bool {
        matches!(self.state, State::Completed(_))
    }

    /// Whether nothing more can come of it.
    pub(super) fn has_ended(&self, now: Nanos) -> bool {
        matches!(self.state, State::Error) || (!self.is_completed() && now >= self.deadline)
    }

    /// The host says something. It is told what comes of it when it asks.
    pub(super) fn said(
        &mut self,
        cx: &Cx,
        offer: &ChapOffer,
        aside: Option<&Calculator>,
        bytes: &[u8],
    ) {
        let now = cx.now();
        let is_first = matches!(self.state, State::Negotiate);
        if let Some(transaction) = AuthMessage::transaction_of(bytes).filter(|_| is_first) {
            self.transaction = transaction;
        }
        if let Err(reason) = self.understand(cx, offer, aside, bytes)
            && !matches!(self.state, State::Failure1(..) | State::Error)
        {
            self.fail(reason, now);
        }
    }

    fn understand(
        &mut self,
        cx: &Cx,
        offer: &ChapOffer,
        aside: Option<&Calculator>,
        bytes: &[u8],
    ) -> Result<(), AuthReason> {
        let (message, len) = AuthMessage::decode(bytes)?;
        let is_of_ours = AuthMessage::transaction_of(bytes) == Some(self.transaction);
        let fits = len == bytes.len() && is_of_ours;
        let state = std::mem::replace(&mut self.state, State::Negotiate);
        let next = match (state, message) {
            (State::Negotiate, AuthMessage::Negotiate(negotiate)) if fits => {
                begin(cx, offer, aside, &negotiate)
            }
            (State::Reply(asked), AuthMessage::Reply(reply)) if fits => {
                self.judge(cx, aside, *asked, reply)
            }
            (State::Success2(agreed), AuthMessage::Success2(_)) if fits => {
                Ok(State::Completed(agreed))
            }
            (State::Success2(_), AuthMessage::Failure2(_, reason)) if fits => {
                tracing::warn!(
                    host = self.hostnqn,
                    "nvmf: the host does not trust us: {reason}"
                );
                Ok(State::Error)
            }
            (
                state @ (State::Negotiate | State::Reply(_) | State::Success2(_)),
                AuthMessage::Negotiate(_)
                | AuthMessage::Reply(_)
                | AuthMessage::Success2(_)
                | AuthMessage::Failure2(..),
            ) if !fits => {
                self.state = state;
                Err(AuthReason::Payload)
            }
            (state, _) => {
                self.state = state;
                Err(AuthReason::Message)
            }
        };
        self.enter(next?, cx.now());
        Ok(())
    }

    /// Begins to judge a reply.
    fn judge(
        &self,
        cx: &Cx,
        aside: Option<&Calculator>,
        asked: Asked,
        reply: Reply,
    ) -> Result<State, AuthReason> {
        let (hash, group) = asked.agreed;
        if reply.response.len() != hash.bytes() || reply.public.len() != group.bytes() {
            return Err(AuthReason::Payload);
        }
        let keys = self.subsystem.keys_of(&self.hostnqn);
        let agreed = asked.agreed;
        let judge = Judge {
            asked,
            reply,
            hostnqn: self.hostnqn.clone(),
            subnqn: self.subsystem.nqn().to_owned(),
            keys: keys.ok_or(AuthReason::Failed)?,
        };
        let calculate = move || judge.verdict();
        let outcome = calculated(cx, aside, group, calculate)?;
        Ok(State::Success1(agreed, outcome))
    }

    /// The host asks for a message; it has room for `len` bytes. Whether it may: it waits already for
    /// another.
    pub(super) fn asks(&mut self, slot: u16, len: usize) -> bool {
        let is_free = self.request.is_none();
        if is_free {
            self.request = Some((slot, len));
        }
        is_free
    }

    /// What the host is told, if it has asked and there is something: the slot of its request.
    pub(super) fn tell(&mut self, now: Nanos) -> Option<(u16, Told)> {
        let (slot, len) = self.request?;
        let message = self.next_message(now)?;
        self.request = None;
        let mut bytes = message.encode();
        if bytes.len() > len {
            self.enter(State::Error, now);
            return Some((slot, Told::NoRoom));
        }
        // A host counts the bytes that it has asked for.
        bytes.resize(len, 0);
        Some((slot, Told::Message(bytes)))
    }

    fn next_message(&mut self, now: Nanos) -> Option<AuthMessage> {
        let found = match &mut self.state {
            State::Challenge(_, exchange) => exchange.look(),
            State::Success1(_, verdict) => verdict.look(),
            State::Failure1(_, at) => Some(now >= *at),
            State::Completed(_) => Some(false),
            State::Negotiate | State::Reply(_) | State::Success2(_) | State::Error => {
                self.fail(AuthReason::Message, now);
                return None;
            }
        };
        match found {
            Some(true) => {}
            Some(false) => return None,
            None => {
                self.fail(AuthReason::Failed, now);
                return None;
            }
        }
        let transaction = self.transaction;
        let (message, next) = match std::mem::replace(&mut self.state, State::Error) {
            State::Challenge(agreed, Outcome::Ready(exchange)) => {
                match self.challenge(agreed, exchange) {
                    Some((challenge, asked)) => (challenge, State::Reply(Box::new(asked))),
                    None => {
                        self.fail(AuthReason::Failed, now);
                        return None;
                    }
                }
            }
            State::Success1(agreed, Outcome::Ready(Ok(response))) => {
                let next = match response {
                    None => State::Completed(agreed),
                    Some(_) => State::Success2(agreed),
                };
                let success = Success1 {
                    transaction,
                    hash_bytes: u8::try_from(agreed.0.bytes()).unwrap_or_default(),
                    response,
                };
                (AuthMessage::Success1(success), next)
            }
            State::Success1(_, Outcome::Ready(Err(reason))) => {
                self.fail(reason, now);
                return None;
            }
            State::Failure1(reason, _) => {
                (AuthMessage::Failure1(transaction, reason), State::Error)
            }
            _ => return None,
        };
        self.enter(next, now);
        Some(message)
    }

    fn challenge(&self, agreed: Agreed, exchange: Exchange) -> Option<(AuthMessage, Asked)> {
        let (hash, group) = agreed;
        let value = random_bytes::<64>()?.get(..hash.bytes())?.to_vec();
        let (secret, public) = match exchange {
            Some((secret, public)) => (Some(secret), public),
            None if group == ChapGroup::Null => (None, vec![]),
            None => return None,
        };
        let sequence = self.subsystem.next_auth_sequence();
        let challenge = Challenge {
            transaction: self.transaction,
            hash,
            group,
            sequence,
            value: value.clone(),
            public,
        };
        let asked = Asked {
            agreed,
            sequence,
            value,
            secret,
        };
        Some((AuthMessage::Challenge(challenge), asked))
    }

    /// When to look again.
    pub(super) fn wake(&self) -> Wake {
        let wake = match &self.state {
            State::Completed(_) => return Wake::OnEvent,
            State::Error => return Wake::Now,
            State::Failure1(_, at) if self.request.is_some() => Wake::At(*at),
            _ => Wake::OnEvent,
        };
        wake.sooner(Wake::At(self.deadline))
    }
}

/// What the host can do is known: chooses, and begins the exchange.
fn begin(
    cx: &Cx,
    offer: &ChapOffer,
    aside: Option<&Calculator>,
    negotiate: &Negotiate,
) -> Result<State, AuthReason> {
    if negotiate.secure_channel != 0 {
        return Err(AuthReason::Concatenation);
    }
    let (hashes, groups) = negotiate.chap.as_ref().ok_or(AuthReason::Protocol)?;
    let (hash, group) = offer.choose(hashes, groups)?;
    let calculate = move || {
        let secret = DhSecret::new(random_bytes()?);
        let public = group.public(&secret);
        Some((secret, public))
    };
    let exchange = match group {
        ChapGroup::Null => Outcome::Ready(None),
        _ => calculated(cx, aside, group, calculate)?,
    };
    Ok(State::Challenge((hash, group), exchange))
}

/// Has something calculated: at once if it is quick, else aside.
fn calculated<T: Send + 'static>(
    cx: &Cx,
    aside: Option<&Calculator>,
    group: ChapGroup,
    calculate: impl FnOnce() -> T + Send + 'static,
) -> Result<Outcome<T>, AuthReason> {
    if group == ChapGroup::Null {
        return Ok(Outcome::Ready(calculate()));
    }
    let waker: ReactorHandle = cx.handle();
    let pending = aside.and_then(|aside| aside.begin(Some(waker), calculate));
    pending.map(Outcome::Pending).ok_or(AuthReason::Failed)
}
