//! A queue whose controller wants to know who we are: DH-HMAC-CHAP, the host's side (spec/nvmf-tcp.md,
//! section 10). With a key of the controller it has to prove who it is, too.

use super::dialogue::Saying;
use super::{NvmeConfig, NvmeFault};
use crate::bdev::HostKeys;
use crate::bdev::calculator::{Calculator, Pending, Progress, random_bytes};
use crate::wire::nvme::{
    AuthCommand, AuthMessage, AuthReason, Challenge, ChapGroup, Cqe, DhSecret, IDENTIFY_BYTES,
    Negotiate, Proof, Prover, Reply,
};
use reactors::ReactorHandle;
use std::io;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Keys, and who calculates with them for all queues of a controller.
#[derive(Debug)]
pub struct NvmeAuth {
    /// The keys.
    pub keys: HostKeys,
    calculator: Calculator,
}

impl NvmeAuth {
    /// Starts the thread that calculates. For control threads.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn new(keys: HostKeys) -> io::Result<Self> {
        let calculator = Calculator::start()?;
        Ok(Self { keys, calculator })
    }
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Step {
    /// Say this.
    Say(Saying),
    /// Come again.
    Wait,
    /// Nothing: all has been said.
    Done,
}

/// What answers a challenge: the reply, and what the controller must answer to ours.
type Answer = Result<(AuthMessage, Option<Zeroizing<Vec<u8>>>), AuthReason>;

#[derive(Debug)]
enum State {
    Negotiate,
    AskForChallenge,
    Calculate(Pending<Answer>),
    Reply(AuthMessage, Option<Zeroizing<Vec<u8>>>),
    AskForSuccess(Option<Zeroizing<Vec<u8>>>),
    /// The controller is who it says it is.
    Success2,
    /// What it says is wrong: it is told so.
    Failure2(AuthReason),
    Done,
}

/// The conversation.
#[derive(Debug)]
pub(super) struct HostAuth {
    auth: Arc<NvmeAuth>,
    hostnqn: String,
    subnqn: String,
    transaction: u16,
    /// Who is to be told that a calculation is done; nobody if somebody looks all the time.
    waker: Option<ReactorHandle>,
    state: State,
}

fn say(message: &AuthMessage) -> Step {
    let data = message.encode();
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    Step::Say(Saying {
        sqe: AuthCommand::send(0, len),
        data,
        ..Saying::plain(AuthCommand::send(0, len))
    })
}

fn ask() -> Step {
    let len = u32::try_from(IDENTIFY_BYTES).unwrap_or_default();
    Step::Say(Saying::for_part(AuthCommand::receive(0, len)))
}

impl HostAuth {
    /// What must be said behind a Connect to a controller that `wants` to know who we are, or does not.
    ///
    /// # Errors
    /// If there is no key for one that wants it, or one that must prove who it is does not care.
    pub(super) fn behind_connect(
        config: &NvmeConfig,
        wants: bool,
        waker: Option<ReactorHandle>,
    ) -> Result<Option<Self>, NvmeFault> {
        let auth = match (&config.auth, wants) {
            (None, false) => return Ok(None),
            (None, true) => return Err(NvmeFault::KeyWanted),
            (Some(auth), false) if auth.keys.controller.is_some() => {
                return Err(NvmeFault::Untrusted);
            }
            (Some(_), false) => return Ok(None),
            (Some(auth), true) => Arc::clone(auth),
        };
        let transaction = random_bytes().ok_or(NvmeFault::NoCalculation)?;
        Ok(Some(Self {
            auth,
            hostnqn: config.host_nqn.clone(),
            subnqn: config.uri.subnqn.clone(),
            transaction: u16::from_le_bytes(*transaction),
            waker,
            state: State::Negotiate,
        }))
    }

    /// Whether the next thing to say is still being calculated.
    pub(super) fn is_calculating(&self) -> bool {
        matches!(self.state, State::Calculate(_))
    }

    /// What to do next; only while nothing is under way.
    ///
    /// # Errors
    /// Why there is no going on.
    pub(super) fn next(&mut self) -> Result<Step, NvmeFault> {
        if let State::Calculate(pending) = &self.state {
            match pending.progress() {
                Progress::UnderWay => return Ok(Step::Wait),
                Progress::Lost => return Err(NvmeFault::NoCalculation),
                Progress::Done(answer) => self.state = answered(answer),
            }
        }
        Ok(match &self.state {
            State::Negotiate => say(&AuthMessage::Negotiate(Negotiate::all(self.transaction))),
            State::AskForChallenge | State::AskForSuccess(_) => ask(),
            State::Calculate(_) => Step::Wait,
            State::Reply(reply, _) => say(reply),
            State::Success2 => say(&AuthMessage::Success2(self.transaction)),
            State::Failure2(reason) => say(&AuthMessage::Failure2(self.transaction, *reason)),
            State::Done => Step::Done,
        })
    }

    /// Takes the answer to what [`HostAuth::next`] said.
    ///
    /// # Errors
    /// Why this controller can't be used, or does not want us.
    pub(super) fn answered(
        &mut self,
        cqe: &Cqe,
        page: &[u8; IDENTIFY_BYTES],
    ) -> Result<(), NvmeFault> {
        let state = std::mem::replace(&mut self.state, State::Done);
        if let State::Failure2(reason) = state {
            // Whether it has heard it or not.
            return Err(match reason {
                AuthReason::Failed => NvmeFault::Untrusted,
                reason => NvmeFault::Authentication(reason),
            });
        }
        let asked = matches!(state, State::AskForChallenge | State::AskForSuccess(_));
        let what = match asked {
            true => "Authentication Receive",
            false => "Authentication Send",
        };
        let status = cqe.status();
        if !status.is_ok() {
            return Err(NvmeFault::Refused { what, status });
        }
        self.state = match state {
            State::Negotiate => State::AskForChallenge,
            State::AskForChallenge => match self.heard(page)? {
                Ok(AuthMessage::Challenge(challenge)) => self.calculate(challenge)?,
                Ok(_) => State::Failure2(AuthReason::Message),
                Err(reason) => State::Failure2(reason),
            },
            State::Reply(_, wanted) => State::AskForSuccess(wanted),
            State::AskForSuccess(wanted) => match (self.heard(page)?, wanted) {
                (Ok(AuthMessage::Success1(_)), None) => State::Done,
                (Ok(AuthMessage::Success1(success)), Some(wanted)) => {
                    let told = success.response.unwrap_or_default();
                    match bool::from(wanted.as_slice().ct_eq(&told)) {
                        true => State::Success2,
                        false => State::Failure2(AuthReason::Failed),
                    }
                }
                (Ok(_), _) => State::Failure2(AuthReason::Message),
                (Err(reason), _) => State::Failure2(reason),
            },
            State::Success2 | State::Calculate(_) | State::Failure2(_) | State::Done => State::Done,
        };
        Ok(())
    }

    /// What the controller has told.
    ///
    /// # Errors
    /// If that is that it does not want us.
    fn heard(
        &self,
        page: &[u8; IDENTIFY_BYTES],
    ) -> Result<Result<AuthMessage, AuthReason>, NvmeFault> {
        let message = match AuthMessage::decode(page) {
            Ok((message, _)) => message,
            Err(reason) => return Ok(Err(reason)),
        };
        if let AuthMessage::Failure1(_, reason) = message {
            return Err(NvmeFault::Unauthenticated(reason));
        }
        let is_ours = AuthMessage::transaction_of(page) == Some(self.transaction);
        Ok(is_ours.then_some(message).ok_or(AuthReason::Payload))
    }

    fn calculate(&self, challenge: Challenge) -> Result<State, NvmeFault> {
        let is_quick = challenge.group == ChapGroup::Null;
        let (auth, transaction) = (Arc::clone(&self.auth), self.transaction);
        let (hostnqn, subnqn) = (self.hostnqn.clone(), self.subnqn.clone());
        let calculate = move || answer(&auth.keys, (&hostnqn, &subnqn), transaction, &challenge);
        if is_quick {
            return Ok(answered(calculate()));
        }
        let pending = self.auth.calculator.begin(self.waker.clone(), calculate);
        pending
            .map(State::Calculate)
            .ok_or(NvmeFault::NoCalculation)
    }
}

fn answered(answer: Answer) -> State {
    match answer {
        Ok((reply, wanted)) => State::Reply(reply, wanted),
        Err(reason) => State::Failure2(reason),
    }
}

/// The reply to a challenge. Takes milliseconds with most groups.
fn answer(
    keys: &HostKeys,
    (hostnqn, subnqn): (&str, &str),
    transaction: u16,
    challenge: &Challenge,
) -> Answer {
    let (hash, group) = (challenge.hash, challenge.group);
    let (mut shared, mut public) = (None, vec![]);
    if group != ChapGroup::Null {
        let secret = DhSecret::new(random_bytes().ok_or(AuthReason::Failed)?);
        let both = group.shared(&secret, &challenge.public);
        shared = Some(both.ok_or(AuthReason::Payload)?);
        public = group.public(&secret);
    }
    let proof = Proof {
        hash,
        prover: Prover::Host,
        hostnqn,
        subnqn,
        transaction,
        sequence: challenge.sequence,
        challenge: &challenge.value,
        secret: shared.as_ref(),
    };
    let response = proof.response(&keys.host.key).to_vec();
    let (mut own, mut wanted) = (None, None);
    if let Some(controller) = &keys.controller {
        let value = random_bytes::<64>().ok_or(AuthReason::Failed)?;
        let value = value.get(..hash.bytes()).unwrap_or_default().to_vec();
        let sequence = random_bytes().ok_or(AuthReason::Failed)?;
        let sequence = u32::from_le_bytes(*sequence).max(1);
        let theirs = Proof {
            prover: Prover::Controller,
            sequence,
            challenge: &value,
            ..proof
        };
        wanted = Some(theirs.response(&controller.key));
        own = Some((sequence, value));
    }
    let reply = Reply {
        transaction,
        response,
        challenge: own,
        public,
    };
    Ok((AuthMessage::Reply(reply), wanted))
}
