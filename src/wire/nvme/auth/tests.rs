//! Values that Python computes, and messages byte by byte.

use super::*;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const HOST: &str = "nqn.2026-11.a:host";
const SUB: &str = "nqn.2026-11.a:sub";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The exponents `bytes((i * factor + first) % 256 for i in range(64))`.
fn secret(factor: u8, first: u8) -> DhSecret {
    let mut byte = first.wrapping_sub(factor);
    DhSecret::new(Zeroizing::new([0; DH_EXPONENT_BYTES].map(|_: u8| {
        byte = byte.wrapping_add(factor);
        byte
    })))
}

/// In Python, with `p` by the formula of `primes.rs`: `sha256` of `pow(2, a, p)`, and of
/// `pow(pow(2, b, p), a, p)`, as big-endian bytes of the prime's length.
const EXCHANGES: [(ChapGroup, &str, &str); 5] = [
    (
        ChapGroup::Ffdhe2048,
        "9b5308330ad26f2f2c47e9417410b91a0c9feb9bcbfd860510fa6f18fc88b1f5",
        "8d3884e2061d73daed98aa7fc0dee96365b02538f80801ea0d02216f8d733dc8",
    ),
    (
        ChapGroup::Ffdhe3072,
        "a89ff359181ce26b80ac5f7d396efb6f5d449898f7d9284ea81d81e4cf4be4ac",
        "0c1cd82184fc2a857e6fc3e96596dc9a587a954bb30d667ce879208ae74c07a2",
    ),
    (
        ChapGroup::Ffdhe4096,
        "7ba9ceb11fa0398438e5c13082ec5d5eb0f40352090308e2c05e630f318e7098",
        "57622328a2f2fbb48de825a55520657ebaa00f9022089911facdeb898102c027",
    ),
    (
        ChapGroup::Ffdhe6144,
        "f15e561a012e3cf71b1bc3942263e1fa1a844ca77e2479f4e35e32232294a6be",
        "df6beb6261a52ccbeb5c99e5b802c7dada30f91b76299ad4ad5482c48f352ccc",
    ),
    (
        ChapGroup::Ffdhe8192,
        "00d4c9b74b8b5fa92ae9897d9dc8d7d68ea25062c28bf2f3accf548fb522e7cf",
        "beef64127014633d07f000a568e4ac5f54f3b492e7235e44f76decdeb68d4303",
    ),
];

#[test]
fn exchanges_come_to_what_python_computes() {
    for (group, public, shared) in EXCHANGES {
        let (ours, theirs) = (secret(7, 3), secret(11, 5));
        let told = group.public(&ours);
        assert_eq!(told.len(), group.bytes());
        assert_eq!(hex(&Sha256::digest(&told)), public, "{group:?}");
        let here = group.shared(&ours, &group.public(&theirs)).unwrap();
        assert_eq!(hex(&Sha256::digest(here.bytes())), shared, "{group:?}");
        let there = group.shared(&theirs, &told).unwrap();
        assert_eq!(here.bytes(), there.bytes());
    }
}

#[test]
fn numbers_that_give_the_secret_away_are_refused() {
    let group = ChapGroup::Ffdhe2048;
    let ours = secret(7, 3);
    let short = |last: u8| {
        let mut bytes = vec![0; 256];
        bytes[255] = last;
        bytes
    };
    for last in [0, 1] {
        assert!(group.shared(&ours, &short(last)).is_none());
    }
    assert!(group.shared(&ours, &short(2)).is_some());
    // The prime less one, the prime, and more than it.
    let hex_digits = super::primes::FFDHE2048.as_bytes().chunks(2);
    let parse = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let mut prime: Vec<u8> = hex_digits.map(parse).collect();
    assert!(group.shared(&ours, &prime).is_none());
    prime[255] -= 1;
    assert!(group.shared(&ours, &prime).is_none());
    prime[255] -= 1;
    assert!(group.shared(&ours, &prime).is_some());
    assert!(group.shared(&ours, &[0xff; 256]).is_none());
    assert!(group.shared(&ours, &[2; 255]).is_none());
    assert!(group.shared(&ours, &[2; 257]).is_none());
    assert!(ChapGroup::Null.shared(&ours, &[]).is_none());
    assert!(ChapGroup::Null.public(&ours).is_empty());
}

/// In Python, for the key 00 01 … 1f with hash 01 and the challenge a0 a1 …, of which `c` is
/// `hmac.new(hashlib.new(name, shared).digest(), challenge, name).digest()` if there was an exchange:
/// `k = hmac.new(key, own + b"NVMe-over-Fabrics", "sha256").digest()`, then
/// `hmac.new(k, c + seq + transaction + b"\0" + role + own + b"\0" + other, name).hexdigest()[:64]`.
const RESPONSES: [(ChapHash, Prover, bool, &str); 12] = [
    (
        ChapHash::Sha256,
        Prover::Host,
        false,
        "f35c800a20eac129581ba995693d4294f7259a0c03f2eb4a21fc5392f07eaab4",
    ),
    (
        ChapHash::Sha256,
        Prover::Host,
        true,
        "b3f2797571d346fbb76362a745954ef6b8f43a6900ca5d750909b9038518ce02",
    ),
    (
        ChapHash::Sha256,
        Prover::Controller,
        false,
        "fa6dc8fadf51efd9716ff9a04d34b482176718f1fcb216934b906abbb0771ecd",
    ),
    (
        ChapHash::Sha256,
        Prover::Controller,
        true,
        "3df5158785ba0c6f214d65d09c193791dafc5d1f33cdca42b5eba1261c70fcda",
    ),
    (
        ChapHash::Sha384,
        Prover::Host,
        false,
        "950c7f200ea8f7458dbd49bca78565c57f7855c5515dca33a7ec391d17f7c4ae",
    ),
    (
        ChapHash::Sha384,
        Prover::Host,
        true,
        "256437deb33d667eeffa5ed2ec96097c5c89d2f48d3fa1282e91d0880ae758f2",
    ),
    (
        ChapHash::Sha384,
        Prover::Controller,
        false,
        "f0e6a9b115ff9ead77bfae7e0b81f7273bb7dbc8948a1728166c934db84d0190",
    ),
    (
        ChapHash::Sha384,
        Prover::Controller,
        true,
        "262450950367d19a2dfdb692af36f507436d8c7f0e9c28850a36a0d15291d4c5",
    ),
    (
        ChapHash::Sha512,
        Prover::Host,
        false,
        "fc521ad290e4dd97578d40e99679d5be1c88dc46b56bb0659c3a47a42d23a51a",
    ),
    (
        ChapHash::Sha512,
        Prover::Host,
        true,
        "75414c27163169c928320bcb34a24a5d5e44e8f0ae295faa41ffba8342ff7066",
    ),
    (
        ChapHash::Sha512,
        Prover::Controller,
        false,
        "bd7b3c0d3fddb5548b5ed4d4027d0e081e670e66f418a59876fb63b0ef055166",
    ),
    (
        ChapHash::Sha512,
        Prover::Controller,
        true,
        "d33e9f889451595d049ba4ce9a99728f16db437946c9122d8160052190b21c2a",
    ),
];

const KEY: &str = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";

#[test]
fn responses_are_what_python_computes() {
    let key = ChapKey::parse(KEY).unwrap();
    let group = ChapGroup::Ffdhe2048;
    let shared = group.shared(&secret(7, 3), &group.public(&secret(11, 5)));
    for (hash, prover, exchanged, wanted) in RESPONSES {
        let challenge: Vec<u8> = (0xa0..=0xff).take(hash.bytes()).collect();
        let proof = Proof {
            hash,
            prover,
            hostnqn: HOST,
            subnqn: SUB,
            transaction: 0x0506,
            sequence: 0x0102_0304,
            challenge: &challenge,
            secret: shared.as_ref().filter(|_| exchanged),
        };
        let response = proof.response(&key);
        assert_eq!(response.len(), hash.bytes());
        assert_eq!(hex(&response[..32]), wanted, "{proof:?} {exchanged}");
        assert!(proof.is_proved_by(&response, &key));
        let mut wrong = response.to_vec();
        wrong[31] ^= 1;
        assert!(!proof.is_proved_by(&wrong, &key));
        assert!(!proof.is_proved_by(&response[1..], &key));
        assert!(!proof.is_proved_by(&[], &key));
    }
}

#[test]
fn secrets_are_not_shown() {
    let group = ChapGroup::Ffdhe2048;
    let ours = secret(7, 3);
    let shared = group.shared(&ours, &group.public(&ours)).unwrap();
    let shown = format!("{ours:?} {shared:?}");
    assert_eq!(shown, "DhSecret SharedSecret");
}

/// What comes before one side is content.
fn questions() -> Vec<(AuthMessage, Vec<u8>)> {
    let negotiate = [
        &[0, 0, 0, 0, 0x34, 0x12, 0, 1, 1, 0, 3, 6, 1, 2, 3][..],
        &[0; 27],
        &[0, 1, 2, 3, 4, 5],
        &[0; 24],
    ];
    let challenge = [
        &[1, 1, 0, 0, 0x34, 0x12, 32, 0, 1, 1, 0, 1, 4, 3, 2, 1][..],
        &[0xc0; 32],
        &[0xd0; 256],
    ];
    let reply = [
        &[1, 2, 0, 0, 0x34, 0x12, 48, 0, 1, 0, 0, 2, 8, 7, 6, 5][..],
        &[0xe0; 48],
        &[0xe1; 48],
        &[0xd1; 512],
    ];
    let silent = [
        &[1, 2, 0, 0, 0x34, 0x12, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[0xe0; 32],
        &[0; 32],
    ];
    let transaction = 0x1234;
    vec![
        (
            AuthMessage::Negotiate(Negotiate::all(transaction)),
            negotiate.concat(),
        ),
        (
            AuthMessage::Challenge(Challenge {
                transaction,
                hash: ChapHash::Sha256,
                group: ChapGroup::Ffdhe2048,
                sequence: 0x0102_0304,
                value: vec![0xc0; 32],
                public: vec![0xd0; 256],
            }),
            challenge.concat(),
        ),
        (
            AuthMessage::Reply(Reply {
                transaction,
                response: vec![0xe0; 48],
                challenge: Some((0x0506_0708, vec![0xe1; 48])),
                public: vec![0xd1; 512],
            }),
            reply.concat(),
        ),
        (
            AuthMessage::Reply(Reply {
                transaction,
                response: vec![0xe0; 32],
                challenge: None,
                public: vec![],
            }),
            silent.concat(),
        ),
    ]
}

/// And what comes then, or if it is not.
fn ends() -> Vec<(AuthMessage, Vec<u8>)> {
    let success1 = [
        &[1, 3, 0, 0, 0x34, 0x12, 64, 0, 1, 0, 0, 0, 0, 0, 0, 0][..],
        &[0xf0; 64],
    ];
    let transaction = 0x1234;
    vec![
        (
            AuthMessage::Success1(Success1 {
                transaction,
                hash_bytes: 64,
                response: Some(vec![0xf0; 64]),
            }),
            success1.concat(),
        ),
        (
            AuthMessage::Success1(Success1 {
                transaction,
                hash_bytes: 32,
                response: None,
            }),
            vec![1, 3, 0, 0, 0x34, 0x12, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            AuthMessage::Success2(transaction),
            vec![1, 4, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            AuthMessage::Failure1(transaction, AuthReason::Hash),
            vec![0, 0xf0, 0, 0, 0x34, 0x12, 1, 4],
        ),
        (
            AuthMessage::Failure2(transaction, AuthReason::Failed),
            vec![0, 0xf1, 0, 0, 0x34, 0x12, 1, 1],
        ),
    ]
}

fn messages() -> Vec<(AuthMessage, Vec<u8>)> {
    [questions(), ends()].concat()
}

#[test]
fn messages_go_there_and_back() {
    for (message, bytes) in messages() {
        assert_eq!(message.encode(), bytes, "{message:?}");
        let len = bytes.len();
        assert_eq!(AuthMessage::decode(&bytes), Ok((message.clone(), len)));
        // What has room behind it is the same message.
        let padded = [&bytes[..], &[0; 40]].concat();
        assert_eq!(AuthMessage::decode(&padded), Ok((message, len)));
        assert_eq!(AuthMessage::transaction_of(&bytes), Some(0x1234));
    }
}

#[test]
fn what_is_cut_short_is_no_message() {
    for (message, bytes) in messages() {
        for len in 0..bytes.len() {
            let cut = AuthMessage::decode(&bytes[..len]);
            assert_eq!(cut, Err(AuthReason::Payload), "{message:?} of {len}");
        }
    }
}

#[test]
fn messages_that_contradict_themselves_are_none() {
    let all = messages();
    let with = |index: usize, at: usize, byte: u8| {
        let mut bytes = all[index].1.clone();
        bytes[at] = byte;
        AuthMessage::decode(&bytes).unwrap_err()
    };
    // More identifiers than there is room for.
    assert_eq!(with(0, 10, 31), AuthReason::Payload);
    assert_eq!(with(0, 11, 31), AuthReason::Payload);
    // More descriptors than came.
    assert_eq!(with(0, 7, 2), AuthReason::Payload);
    // Kinds that are none.
    assert_eq!(with(0, 1, 2), AuthReason::Message);
    assert_eq!(with(0, 0, 2), AuthReason::Message);
    assert_eq!(with(1, 1, 5), AuthReason::Message);
    assert_eq!(with(1, 6, 48), AuthReason::Payload);
    assert_eq!(with(1, 8, 4), AuthReason::Hash);
    assert_eq!(with(1, 9, 6), AuthReason::Group);
    assert_eq!(with(1, 9, 0), AuthReason::Payload);
    assert_eq!(with(1, 11, 0), AuthReason::Payload);
    assert_eq!(with(2, 8, 2), AuthReason::Payload);
    assert_eq!(with(3, 8, 1), AuthReason::Payload);
    assert_eq!(with(4, 8, 2), AuthReason::Payload);
    // Linux says failures so.
    let of_linux = [1, 0xf1, 0, 0, 0x34, 0x12, 1, 1];
    let failure = AuthMessage::Failure2(0x1234, AuthReason::Failed);
    assert_eq!(AuthMessage::decode(&of_linux), Ok((failure, 8)));
    let mut other = all[0].1.clone();
    other[8] = 2;
    let none = Negotiate {
        transaction: 0x1234,
        secure_channel: 0,
        chap: None,
    };
    let got = AuthMessage::decode(&other);
    assert_eq!(got, Ok((AuthMessage::Negotiate(none), 72)));
}

#[test]
fn the_commands_name_the_protocol() {
    use zerocopy::IntoBytes;
    let send = AuthCommand::send(7, 72);
    let bytes = send.as_bytes();
    assert_eq!((bytes[0], bytes[4]), (0x7f, 5));
    assert_eq!(bytes[40..48], [0, 1, 1, 0xe9, 72, 0, 0, 0]);
    assert_eq!(AuthCommand::len_of(&send), Some(72));
    let receive = AuthCommand::receive(7, 4096);
    assert_eq!((receive.as_bytes()[4], receive.as_bytes()[39]), (6, 0x5a));
    assert_eq!(AuthCommand::len_of(&receive), Some(4096));
    for bit in [1 << 8, 1 << 16, 1 << 24] {
        let mut other = send;
        other.cdw10 = (send.cdw10.get() ^ bit).into();
        assert_eq!(AuthCommand::len_of(&other), None);
    }
    let mut longer = send;
    longer.cdw11 = 73.into();
    assert_eq!(AuthCommand::len_of(&longer), None);
    assert_eq!(AuthCommand::len_of(&AuthCommand::send(7, 0)), None);
    let most = AUTH_BYTES_MAX;
    assert_eq!(AuthCommand::len_of(&AuthCommand::send(7, most)), Some(most));
    assert_eq!(AuthCommand::len_of(&AuthCommand::send(7, most + 1)), None);
}
