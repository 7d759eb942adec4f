//! What is said, and the commands that carry it.

use super::super::{Sqe, fctype};
use super::chap::ChapHash;
use super::group::ChapGroup;
use zerocopy::little_endian::U32;

/// Bytes that one message may have: a negotiation with 255 protocols.
pub const AUTH_BYTES_MAX: u32 = 8 + 255 * 64;

/// Messages that are about no protocol in particular, and those of DH-HMAC-CHAP.
const COMMON: u8 = 0;
const CHAP: u8 = 1;

const NEGOTIATE: u8 = 0x00;
const CHALLENGE: u8 = 0x01;
const REPLY: u8 = 0x02;
const SUCCESS1: u8 = 0x03;
const SUCCESS2: u8 = 0x04;
const FAILURE1: u8 = 0xf0;
const FAILURE2: u8 = 0xf1;

/// Bytes before what has no fixed length.
const HEAD_BYTES: usize = 16;
const NEGOTIATE_BYTES: usize = 8;
const DESCRIPTOR_BYTES: usize = 64;
const FAILURE_BYTES: usize = 8;
/// Identifiers that a descriptor has room for, of each kind.
const IDS_MAX: usize = 30;

/// Why it fails: what failure1 and failure2 say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthReason {
    /// The key is not the right one.
    #[error("authentication failed")]
    Failed,
    /// The protocol is not known.
    #[error("no usable protocol")]
    Protocol,
    /// A secure channel is wanted, or is not.
    #[error("secure channel concatenation mismatch")]
    Concatenation,
    /// No hash suits both.
    #[error("no usable hash")]
    Hash,
    /// No group suits both.
    #[error("no usable Diffie-Hellman group")]
    Group,
    /// A message is wrong.
    #[error("incorrect payload")]
    Payload,
    /// A message comes at the wrong time, or is none.
    #[error("incorrect message")]
    Message,
    /// Something else.
    #[error("reason {0}")]
    Other(u8),
}

impl AuthReason {
    fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Protocol => 2,
            Self::Concatenation => 3,
            Self::Hash => 4,
            Self::Group => 5,
            Self::Payload => 6,
            Self::Message => 7,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Failed,
            2 => Self::Protocol,
            3 => Self::Concatenation,
            4 => Self::Hash,
            5 => Self::Group,
            6 => Self::Payload,
            7 => Self::Message,
            other => Self::Other(other),
        }
    }
}

/// Authentication Send and Authentication Receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthCommand;

impl AuthCommand {
    /// SECP E9h, SPSP0 and SPSP1 1: bytes 43, 41 and 42 of the command.
    const PROTOCOL: u32 = 0xe9_01_01_00;

    /// Bytes that are sent, or that there is room for; nothing if another protocol is meant, or the
    /// data's length is another.
    #[must_use]
    pub fn len_of(sqe: &Sqe) -> Option<u32> {
        let len = sqe.cdw11.get();
        let is_ours = sqe.cdw10.get() & !0xff == Self::PROTOCOL;
        let is_possible = len > 0 && len <= AUTH_BYTES_MAX && len == sqe.sgl_len.get();
        (is_ours && is_possible).then_some(len)
    }

    fn of(fctype: u8, cid: u16, len: u32) -> Sqe {
        let mut sqe = Sqe::fabrics(fctype, cid);
        sqe.cdw10 = U32::new(Self::PROTOCOL);
        sqe.cdw11 = U32::new(len);
        sqe
    }

    /// Says a message of `len` bytes, which is in the capsule.
    #[must_use]
    pub fn send(cid: u16, len: u32) -> Sqe {
        Self::of(fctype::AUTH_SEND, cid, len).with_capsule_data(len)
    }

    /// Asks for a message of at most `len` bytes.
    #[must_use]
    pub fn receive(cid: u16, len: u32) -> Sqe {
        Self::of(fctype::AUTH_RECEIVE, cid, len).with_transport_data(len)
    }
}

/// The host says what it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiate {
    /// Of the whole conversation.
    pub transaction: u16,
    /// What is to be made of it; 0 for nothing.
    pub secure_channel: u8,
    /// Identifiers of hashes and of groups; nothing without DH-HMAC-CHAP.
    pub chap: Option<(Vec<u8>, Vec<u8>)>,
}

/// The controller asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Of the whole conversation.
    pub transaction: u16,
    /// What it has chosen.
    pub hash: ChapHash,
    /// What it has chosen.
    pub group: ChapGroup,
    /// Of this challenge.
    pub sequence: u32,
    /// As many bytes as the hash has.
    pub value: Vec<u8>,
    /// Its part of the exchange.
    pub public: Vec<u8>,
}

/// The host answers, and may ask in its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of the whole conversation.
    pub transaction: u16,
    /// As many bytes as the hash has.
    pub response: Vec<u8>,
    /// The host's challenge and its sequence number, which is not 0.
    pub challenge: Option<(u32, Vec<u8>)>,
    /// Its part of the exchange.
    pub public: Vec<u8>,
}

/// The controller is content, and answers if it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Success1 {
    /// Of the whole conversation.
    pub transaction: u16,
    /// Bytes of the hash, whether there is an answer or not.
    pub hash_bytes: u8,
    /// The answer.
    pub response: Option<Vec<u8>>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthMessage {
    /// First.
    Negotiate(Negotiate),
    /// Second.
    Challenge(Challenge),
    /// Third.
    Reply(Reply),
    /// Fourth.
    Success1(Success1),
    /// The host is content with the controller's answer.
    Success2(u16),
    /// The controller ends it.
    Failure1(u16, AuthReason),
    /// The host ends it.
    Failure2(u16, AuthReason),
}

/// Takes what stands behind the head, piece by piece.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take(&mut self, len: usize) -> Result<Vec<u8>, AuthReason> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(AuthReason::Payload)?;
        self.0 = rest;
        Ok(taken.to_vec())
    }
}

fn u16_at(head: &[u8; HEAD_BYTES], low: usize) -> u16 {
    let byte = |at: usize| head.get(at).copied().unwrap_or_default();
    u16::from_le_bytes([byte(low), byte(low + 1)])
}

fn head(kind: u8, id: u8, transaction: u16) -> [u8; HEAD_BYTES] {
    let [t0, t1] = transaction.to_le_bytes();
    let mut head = [0; HEAD_BYTES];
    for (to, from) in head.iter_mut().zip([kind, id, 0, 0, t0, t1]) {
        *to = from;
    }
    head
}

/// The length of what has at most [`AUTH_BYTES_MAX`] bytes.
fn short(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes()
}

impl Negotiate {
    /// What a host can do that can do all of it.
    #[must_use]
    pub fn all(transaction: u16) -> Self {
        let hashes = ChapHash::ALL.map(ChapHash::id).to_vec();
        let groups = ChapGroup::ALL.map(ChapGroup::id).to_vec();
        Self {
            transaction,
            secure_channel: 0,
            chap: Some((hashes, groups)),
        }
    }

    fn decode(bytes: &[u8]) -> Result<(Self, usize), AuthReason> {
        let (head, rest) = bytes
            .split_first_chunk::<NEGOTIATE_BYTES>()
            .ok_or(AuthReason::Payload)?;
        let &[_, _, _, _, t0, t1, secure_channel, count] = head;
        let len = usize::from(count) * DESCRIPTOR_BYTES;
        let descriptors = rest.get(..len).ok_or(AuthReason::Payload)?;
        let mut all = descriptors.chunks_exact(DESCRIPTOR_BYTES);
        let ours = all.find(|descriptor| descriptor.first() == Some(&CHAP));
        let chap = ours.map(|descriptor| {
            let &[_, _, hashes, groups, ref ids @ ..] = descriptor else {
                return Err(AuthReason::Payload);
            };
            let (of_hashes, of_groups) = ids.split_at_checked(IDS_MAX).unwrap_or_default();
            let hashes = of_hashes.get(..hashes.into()).ok_or(AuthReason::Payload)?;
            let groups = of_groups.get(..groups.into()).ok_or(AuthReason::Payload)?;
            Ok((hashes.to_vec(), groups.to_vec()))
        });
        let negotiate = Self {
            transaction: u16::from_le_bytes([t0, t1]),
            secure_channel,
            chap: chap.transpose()?,
        };
        Ok((negotiate, NEGOTIATE_BYTES + len))
    }

    fn encode(&self) -> Vec<u8> {
        let [t0, t1] = self.transaction.to_le_bytes();
        let count = u8::from(self.chap.is_some());
        let mut out = vec![COMMON, NEGOTIATE, 0, 0, t0, t1, self.secure_channel, count];
        if let Some((hashes, groups)) = &self.chap {
            let count = |ids: &[u8]| u8::try_from(ids.len().min(IDS_MAX)).unwrap_or_default();
            out.extend([CHAP, 0, count(hashes), count(groups)]);
            for ids in [hashes, groups] {
                let room = ids.iter().copied().chain(std::iter::repeat(0));
                out.extend(room.take(IDS_MAX));
            }
        }
        out
    }
}

impl AuthMessage {
    /// The first message in `bytes`, and how many of them it has.
    ///
    /// # Errors
    /// Why there is none.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), AuthReason> {
        let &[kind, id, _, _, t0, t1, ..] = bytes else {
            return Err(AuthReason::Payload);
        };
        let transaction = u16::from_le_bytes([t0, t1]);
        match (kind, id) {
            (COMMON, NEGOTIATE) => {
                let (negotiate, len) = Negotiate::decode(bytes)?;
                Ok((Self::Negotiate(negotiate), len))
            }
            // Linux up to 6.12 says them as if they were of DH-HMAC-CHAP.
            (COMMON | CHAP, FAILURE1 | FAILURE2) => {
                let failure = bytes.first_chunk::<FAILURE_BYTES>();
                let &[_, _, _, _, _, _, _, code] = failure.ok_or(AuthReason::Payload)?;
                let reason = AuthReason::from_code(code);
                let message = match id {
                    FAILURE1 => Self::Failure1(transaction, reason),
                    _ => Self::Failure2(transaction, reason),
                };
                Ok((message, FAILURE_BYTES))
            }
            (CHAP, CHALLENGE | REPLY | SUCCESS1 | SUCCESS2) => {
                let (head, rest) = bytes.split_first_chunk().ok_or(AuthReason::Payload)?;
                let mut rest = Rest(rest);
                let message = Self::decode_chap(id, transaction, head, &mut rest)?;
                Ok((message, bytes.len() - rest.0.len()))
            }
            _ => Err(AuthReason::Message),
        }
    }

    fn decode_chap(
        id: u8,
        transaction: u16,
        head: &[u8; HEAD_BYTES],
        rest: &mut Rest<'_>,
    ) -> Result<Self, AuthReason> {
        let &[
            _,
            _,
            _,
            _,
            _,
            _,
            hash_bytes,
            _,
            b8,
            b9,
            _,
            _,
            ref sequence @ ..,
        ] = head;
        let sequence = u32::from_le_bytes(*sequence);
        let hash_len = usize::from(hash_bytes);
        let public_len = usize::from(u16_at(head, 10));
        Ok(match id {
            CHALLENGE => {
                let hash = ChapHash::from_id(b8).ok_or(AuthReason::Hash)?;
                let group = ChapGroup::from_id(b9).ok_or(AuthReason::Group)?;
                if hash_len != hash.bytes() || public_len != group.bytes() {
                    return Err(AuthReason::Payload);
                }
                Self::Challenge(Challenge {
                    transaction,
                    hash,
                    group,
                    sequence,
                    value: rest.take(hash_len)?,
                    public: rest.take(public_len)?,
                })
            }
            REPLY => {
                let response = rest.take(hash_len)?;
                let challenge = rest.take(hash_len)?;
                Self::Reply(Reply {
                    transaction,
                    response,
                    challenge: match (b8, sequence) {
                        (0, _) => None,
                        (1, 1..) => Some((sequence, challenge)),
                        _ => return Err(AuthReason::Payload),
                    },
                    public: rest.take(public_len)?,
                })
            }
            SUCCESS1 => Self::Success1(Success1 {
                transaction,
                hash_bytes,
                response: match b8 {
                    0 => None,
                    1 => Some(rest.take(hash_len)?),
                    _ => return Err(AuthReason::Payload),
                },
            }),
            _ => Self::Success2(transaction),
        })
    }

    /// The conversation that a message is of, as far as that can be told.
    #[must_use]
    pub fn transaction_of(bytes: &[u8]) -> Option<u16> {
        match bytes {
            &[_, _, _, _, t0, t1, ..] => Some(u16::from_le_bytes([t0, t1])),
            _ => None,
        }
    }

    /// As it is said.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let hash_byte = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        match self {
            Self::Negotiate(negotiate) => negotiate.encode(),
            Self::Challenge(challenge) => {
                let mut head = head(CHAP, CHALLENGE, challenge.transaction);
                let [l0, l1] = short(challenge.public.len());
                let [s0, s1, s2, s3] = challenge.sequence.to_le_bytes();
                let (hash, group) = (challenge.hash.id(), challenge.group.id());
                let own = [
                    hash_byte(&challenge.value),
                    0,
                    hash,
                    group,
                    l0,
                    l1,
                    s0,
                    s1,
                    s2,
                    s3,
                ];
                put(&mut head, own);
                [&head[..], &challenge.value, &challenge.public].concat()
            }
            Self::Reply(reply) => {
                let mut head = head(CHAP, REPLY, reply.transaction);
                let [l0, l1] = short(reply.public.len());
                let none = (0, vec![0; reply.response.len()]);
                let (sequence, challenge) = reply.challenge.as_ref().unwrap_or(&none);
                let [s0, s1, s2, s3] = sequence.to_le_bytes();
                let valid = u8::from(reply.challenge.is_some());
                let own = [
                    hash_byte(&reply.response),
                    0,
                    valid,
                    0,
                    l0,
                    l1,
                    s0,
                    s1,
                    s2,
                    s3,
                ];
                put(&mut head, own);
                [&head[..], &reply.response, challenge, &reply.public].concat()
            }
            Self::Success1(success) => {
                let mut head = head(CHAP, SUCCESS1, success.transaction);
                let valid = u8::from(success.response.is_some());
                put(&mut head, [success.hash_bytes, 0, valid]);
                let response = success.response.as_deref().unwrap_or_default();
                [&head[..], response].concat()
            }
            Self::Success2(transaction) => head(CHAP, SUCCESS2, *transaction).to_vec(),
            Self::Failure1(transaction, reason) => failure(FAILURE1, *transaction, *reason),
            Self::Failure2(transaction, reason) => failure(FAILURE2, *transaction, *reason),
        }
    }
}

/// Fills a head from byte 6 on.
fn put<const N: usize>(head: &mut [u8; HEAD_BYTES], own: [u8; N]) {
    for (to, from) in head.iter_mut().skip(6).zip(own) {
        *to = from;
    }
}

fn failure(id: u8, transaction: u16, reason: AuthReason) -> Vec<u8> {
    let [t0, t1] = transaction.to_le_bytes();
    // The only reason code; the explanation says more.
    vec![COMMON, id, 0, 0, t0, t1, 1, reason.code()]
}
