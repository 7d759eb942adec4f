//! Requests to the NBD server and their replies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod nbd_common;

use nbd_common::{Client, Fixture, RamDisk, config, wait_until};
use pmcache::target::nbd::NbdOptions;
use pmcache::wire::nbd::{Command, CommandFlags};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

fn simple(fixture: &Fixture) -> Client {
    let mut client = fixture.connect();
    client.greet();
    client.go("vol");
    client
}

fn structured(fixture: &Fixture, contexts: &[&str]) -> Client {
    let mut client = fixture.connect();
    client.greet();
    client.go_structured("vol", contexts);
    client
}

#[test]
fn written_bytes_are_read_back_simple_and_structured() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = simple(&fixture);
    let data: Vec<u8> = (0..=250_u8).cycle().take(69_632).collect();
    let data = &data[..];
    client.write(7, 512, data);
    assert_eq!(client.simple_reply(), (0, 7));
    assert_eq!(client.read(8, 512, 69_632).unwrap(), data);
    client.request(Command::Flush, 9, 0, 0);
    assert_eq!(client.simple_reply(), (0, 9));
    assert_eq!(disk.switches.flushes.load(Ordering::SeqCst), 1);

    let mut other = structured(&fixture, &[]);
    other.request(Command::Read, 10, 512, 69_632);
    let chunk = other.chunk();
    assert_eq!((chunk.done, chunk.kind, chunk.cookie), (true, 1, 10));
    assert_eq!(chunk.data[..8], 512_u64.to_be_bytes());
    assert!(chunk.data[8..] == *data);
    other.write(11, 0, &[1; 512]);
    let chunk = other.chunk();
    // Only a READ needs chunks.
    assert_eq!((chunk.simple, chunk.cookie), (true, 11));
    for mut client in [client, other] {
        client.request(Command::Disconnect, 0, 0, 0);
        assert!(client.is_hung_up());
    }
}

#[test]
fn bad_requests_are_refused_and_the_next_is_served() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = simple(&fixture);
    let end = 1 << 20;
    let huge = 33 << 20;
    let fua_df = CommandFlags::FUA.with(CommandFlags::DF);
    let none = CommandFlags::default();
    use Command::*;
    let cases = [
        (Unknown(8), none, 0, 512, EINVAL),
        (Unknown(0xffff), none, 0, 0, EINVAL),
        (Read, CommandFlags(1 << 5), 0, 512, EINVAL),
        (Read, fua_df, 0, 512, EINVAL), // DF without structured replies
        (Read, CommandFlags::REQ_ONE, 0, 512, EINVAL),
        (Read, none, 1, 512, EINVAL),
        (Read, none, 0, 513, EINVAL),
        (Read, none, 0, huge, EINVAL),
        (Read, none, end, 512, EINVAL),
        (Read, none, u64::MAX, 512, EINVAL),
        (Read, none, u64::MAX - 511, 512, EINVAL),
        (Trim, none, end - 512, 1024, EINVAL),
        (Trim, none, 0, u32::MAX, EINVAL),
        (WriteZeroes, none, end - 512, 1024, ENOSPC),
        (Cache, none, 1, 512, EINVAL),
        (BlockStatus, none, 0, 512, EINVAL), // no context selected
        (Flush, CommandFlags::NO_HOLE, 0, 0, EINVAL),
    ];
    for (cookie, (command, flags, offset, len, want)) in (1_u64..).zip(cases) {
        client.request_with(flags, command, cookie, (offset, len));
        let got = client.simple_reply();
        assert_eq!(got, (want, cookie), "{command:?} {flags:?} {offset}+{len}");
    }
    let writes = [
        (none, 1, 512, EINVAL),
        (none, end, 512, ENOSPC),
        (none, end - 512, 1024, ENOSPC),
        (CommandFlags::DF, 0, 512, EINVAL),
    ];
    for (flags, offset, len, want) in writes {
        client.request_with(flags, Write, 99, (offset, len));
        client.send(&vec![1; len as usize]);
        assert_eq!(
            client.simple_reply(),
            (want, 99),
            "{flags:?} {offset}+{len}"
        );
    }
    // A payload above the limit is read and thrown away.
    client.request(Write, 100, 0, huge);
    client.send(&vec![1; huge as usize]);
    assert_eq!(client.simple_reply(), (EINVAL, 100));
    assert_eq!(disk.switches.submitted.load(Ordering::SeqCst), 0);
    assert_eq!(client.read(101, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn who_is_out_of_step_or_far_too_big_is_hung_up_on() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = simple(&fixture);
    client.request(Command::Write, 1, 0, (64 << 20) + 1);
    assert!(client.is_hung_up());
    let mut client = simple(&fixture);
    let mut bytes = Client::header(Command::Read, 1, 0, 512).encode();
    bytes[3] ^= 1;
    client.send(&bytes);
    assert!(client.is_hung_up());
    assert_eq!(disk.switches.submitted.load(Ordering::SeqCst), 0);
    assert_eq!(simple(&fixture).read(1, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn a_read_only_export_takes_no_change() {
    let fixture = Fixture::new(1, NbdOptions::default());
    let disk = Arc::new(RamDisk::with_info("ro", 1 << 20, |info| {
        info.read_only = true;
    }));
    fixture.export("vol", &disk);
    let mut client = simple(&fixture);
    client.write(1, 0, &[1; 512]);
    assert_eq!(client.simple_reply(), (EPERM, 1));
    for command in [Command::Trim, Command::WriteZeroes] {
        client.request(command, 2, 0, 512);
        assert_eq!(client.simple_reply(), (EPERM, 2), "{command:?}");
    }
    client.request(Command::Flush, 3, 0, 0);
    assert_eq!(client.simple_reply(), (0, 3));
}

#[test]
fn failing_reads_are_error_chunks_and_failing_writes_error_replies() {
    let (fixture, disk) = Fixture::with_disk();
    disk.switches.fail.store(true, Ordering::SeqCst);
    let mut client = structured(&fixture, &["base:allocation"]);
    client.request_with(CommandFlags::DF, Command::Read, 1, (0, 4096));
    let chunk = client.chunk();
    assert_eq!((chunk.cookie, chunk.error()), (1, EIO));
    client.request(Command::BlockStatus, 2, 0, 4096);
    assert_eq!(client.chunk().error(), EIO);
    client.write(3, 0, &[1; 512]);
    assert_eq!(client.chunk().error(), EIO);
    let mut client = simple(&fixture);
    client.write(4, 0, &[1; 512]);
    assert_eq!(client.simple_reply(), (EIO, 4));
    // A failed READ has no data behind its simple reply.
    assert_eq!(client.read(5, 0, 512), Err(EIO));
    disk.switches.fail.store(false, Ordering::SeqCst);
    assert_eq!(client.read(6, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn requests_of_no_length_succeed_without_effect() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = structured(&fixture, &["base:allocation"]);
    use Command::*;
    for command in [Read, Write, Trim, WriteZeroes, Cache] {
        client.request_with(CommandFlags::FUA, command, 1, (512, 0));
        let chunk = client.chunk();
        assert_eq!((chunk.done, chunk.kind), (true, 0), "{command:?}");
        assert_eq!(chunk.simple, command != Read, "{command:?}");
    }
    // An answer without extents would be against the protocol.
    client.request(BlockStatus, 2, 0, 0);
    assert_eq!(client.chunk().error(), EINVAL);
    assert_eq!(disk.switches.submitted.load(Ordering::SeqCst), 0);
}

#[test]
fn fua_reaches_the_device_with_every_change() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = simple(&fixture);
    client.write(0, 0, &[1; 8192]);
    assert_eq!(client.simple_reply(), (0, 0));
    let seen = |what: &std::sync::atomic::AtomicU64| what.load(Ordering::SeqCst);
    assert_eq!(seen(&disk.switches.fuas), 0);
    client.request_with(CommandFlags::FUA, Command::Write, 1, (0, 512));
    client.send(&[2; 512]);
    assert_eq!(client.simple_reply(), (0, 1));
    assert_eq!(seen(&disk.switches.fuas), 1);
    client.request_with(CommandFlags::FUA, Command::WriteZeroes, 2, (512, 512));
    assert_eq!(client.simple_reply(), (0, 2));
    assert_eq!(
        (seen(&disk.switches.fuas), seen(&disk.switches.flushes)),
        (2, 0)
    );
    // The bdev's discard has no FUA: a flush follows, and the reply waits for it.
    client.request_with(CommandFlags::FUA, Command::Trim, 3, (1024, 512));
    assert_eq!(client.simple_reply(), (0, 3));
    assert_eq!(seen(&disk.switches.flushes), 1);
    let mut want = vec![1; 8192];
    want[..512].fill(2);
    want[512..1536].fill(0);
    assert!(disk.content()[..8192] == want);
}

#[test]
fn hints_work_and_what_is_not_supported_is_said() {
    let fixture = Fixture::new(1, NbdOptions::default());
    let disk = Arc::new(RamDisk::with_info("plain", 1 << 20, |info| {
        info.supports.write_zeroes = false;
        info.supports.discard = false;
    }));
    fixture.export("vol", &disk);
    let mut client = simple(&fixture);
    client.request(Command::Cache, 1, 0, 4096);
    assert_eq!(client.simple_reply(), (0, 1));
    assert_eq!(disk.switches.prefetched.load(Ordering::SeqCst), 1);
    client.request_with(CommandFlags::FAST_ZERO, Command::WriteZeroes, 2, (0, 512));
    assert_eq!(client.simple_reply(), (ENOTSUP, 2));
    client.request_with(CommandFlags::NO_HOLE, Command::WriteZeroes, 3, (0, 512));
    assert_eq!(client.simple_reply(), (0, 3));
    client.request(Command::Trim, 4, 0, 512);
    assert_eq!(client.simple_reply(), (EINVAL, 4));
}

#[test]
fn block_status_answers_for_each_selected_context() {
    let (fixture, _disk) = Fixture::with_disk();
    let mut client = structured(&fixture, &["base:allocation", "pmcache:cache"]);
    client.write(1, 1024, &[7; 1024]);
    client.chunk();
    client.write(2, 2048, &[0xdd; 512]);
    client.chunk();
    client.request(Command::BlockStatus, 3, 512, 3072);
    let (first, second) = (client.chunk(), client.chunk());
    assert_eq!((first.done, first.cookie), (false, 3));
    assert_eq!(first.status(), (1, vec![(512, 3), (1536, 0), (1024, 3)]));
    assert_eq!((second.done, second.cookie), (true, 3));
    let cache = vec![(512, 0), (1024, 1), (512, 3), (1024, 0)];
    assert_eq!(second.status(), (2, cache));
    client.request_with(CommandFlags::REQ_ONE, Command::BlockStatus, 4, (1024, 4096));
    assert_eq!(client.chunk().status(), (1, vec![(1536, 0)]));
    assert_eq!(client.chunk().status(), (2, vec![(1024, 1)]));
}

#[test]
fn replies_come_in_any_order_and_a_cookie_may_be_used_twice() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = simple(&fixture);
    for block in 0..8_u8 {
        client.write(0, u64::from(block) * 512, &[block; 512]);
        assert_eq!(client.simple_reply(), (0, 0));
    }
    disk.switches.hold.store(true, Ordering::SeqCst);
    disk.switches.reverse.store(true, Ordering::SeqCst);
    for block in 0..8_u64 {
        client.request(Command::Read, 7 + block / 4, block * 512, 512);
    }
    wait_until("8 reads under way", || {
        disk.switches.submitted.load(Ordering::SeqCst) == 16
    });
    disk.switches.hold.store(false, Ordering::SeqCst);
    for block in (0..8_u8).rev() {
        assert_eq!(client.simple_reply(), (0, 7 + u64::from(block) / 4));
        assert_eq!(client.receive(512), [block; 512]);
    }
}

#[test]
fn at_most_256_requests_are_under_way_and_none_is_lost() {
    let (fixture, disk) = Fixture::with_disk();
    let mut client = simple(&fixture);
    disk.switches.hold.store(true, Ordering::SeqCst);
    let requests: Vec<u8> = (0..1000_u64)
        .flat_map(|cookie| Client::header(Command::Read, cookie, cookie * 512, 512).encode())
        .collect();
    client.send(&requests);
    let submitted = || disk.switches.submitted.load(Ordering::SeqCst);
    wait_until("the depth is used", || submitted() == 256);
    // Others are served meanwhile, which shows that the reactor has been round since.
    let other = Arc::new(RamDisk::new("other", 4096));
    fixture.export("other", &other);
    let mut witness = fixture.connect();
    witness.greet();
    witness.go("other");
    for round in 0..100 {
        assert_eq!(witness.read(round, 0, 512).unwrap(), [0; 512]);
    }
    assert_eq!(submitted(), 256);
    disk.switches.hold.store(false, Ordering::SeqCst);
    for cookie in 0..1000 {
        assert_eq!(client.simple_reply(), (0, cookie));
        client.receive(512);
    }
    assert_eq!(fixture.server().connections()[0].requests, 1000);
}

#[test]
fn a_client_that_reads_nothing_holds_a_bounded_amount_and_harms_nobody() {
    let fixture = Fixture::new(1, NbdOptions::default());
    let disk = Arc::new(RamDisk::new("disk", 32 << 20));
    fixture.export("vol", &disk);
    let mut greedy = simple(&fixture);
    for cookie in 0..20 {
        greedy.request(Command::Read, cookie, 0, 32 << 20);
    }
    let submitted = || disk.switches.submitted.load(Ordering::SeqCst);
    wait_until("the first reads", || submitted() >= 2);
    let mut client = simple(&fixture);
    for round in 0..50 {
        client.write(round, round * 512, &[3; 512]);
        assert_eq!(client.simple_reply(), (0, round));
    }
    assert_eq!(submitted(), 52, "64 MiB are two reads");
    for cookie in 0..20 {
        assert_eq!(greedy.simple_reply(), (0, cookie));
        greedy.receive(32 << 20);
    }
}

#[test]
fn a_flush_on_one_connection_covers_the_writes_of_another() {
    let (fixture, disk) = Fixture::with_disk();
    let (mut writer, mut flusher) = (simple(&fixture), simple(&fixture));
    writer.write(1, 0, &[9; 512]);
    assert_eq!(writer.simple_reply(), (0, 1));
    flusher.request(Command::Flush, 2, 0, 0);
    assert_eq!(flusher.simple_reply(), (0, 2));
    assert_eq!(disk.switches.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(flusher.read(3, 0, 512).unwrap(), [9; 512]);
}

#[derive(Clone, Debug)]
struct Step {
    command: u16,
    block: u64,
    blocks: u32,
    flags: u16,
    fill: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = prop_oneof![8 => Just(0_u16), 2 => Just(1_u16), 1 => 0_u16..64];
    let command = prop_oneof![8 => 0_u16..2, 4 => 3_u16..8, 1 => 8_u16..20];
    let step = (command, 0_u64..70, 0_u32..9, flags, 1_u8..).prop_map(
        |(command, block, blocks, flags, fill)| Step {
            command: if command == 2 { 3 } else { command },
            block,
            blocks,
            flags,
            fill,
        },
    );
    prop::collection::vec(step, 1..40)
}

fn command_of(number: u16) -> Command {
    let mut bytes = Client::header(Command::Read, 0, 0, 0).encode();
    bytes[6..8].copy_from_slice(&number.to_be_bytes());
    pmcache::wire::nbd::RequestHeader::decode(&bytes)
        .unwrap()
        .unwrap()
        .command
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests that are mostly valid, in pieces of any size, one after another: each has exactly
    /// one answer, and the reads agree with an array of bytes.
    #[test]
    fn any_requests_agree_with_an_array(steps in steps(), piece in 1_usize..2000) {
        const DISK: usize = 64 * 512;
        let fixture = Fixture::new(1, NbdOptions::default());
        let disk = Arc::new(RamDisk::new("disk", DISK));
        fixture.exports.add(config("vol", &disk)).unwrap();
        let mut client = structured(&fixture, &["base:allocation"]);
        let mut model = vec![0_u8; DISK];
        for (cookie, step) in (0_u64..).zip(&steps) {
            let command = command_of(step.command);
            let (offset, len) = (step.block * 512, step.blocks * 512);
            let header = pmcache::wire::nbd::RequestHeader {
                flags: CommandFlags(step.flags), command, cookie, offset, len,
            };
            let mut bytes = header.encode().to_vec();
            if command == Command::Write {
                bytes.resize(28 + len as usize, step.fill);
            }
            for piece in bytes.chunks(piece) {
                client.send(piece);
            }
            let chunk = client.chunk();
            prop_assert_eq!((chunk.done, chunk.cookie), (true, cookie));
            let start = usize::try_from(offset).unwrap();
            let end = start + len as usize;
            let bad_flags = !CommandFlags(step.flags).fit(command);
            let fails = bad_flags || matches!(command, Command::Unknown(_))
                || (command != Command::Flush && end > DISK)
                || (command == Command::BlockStatus && len == 0);
            if fails {
                let want = match command {
                    Command::Write | Command::WriteZeroes if !bad_flags => ENOSPC,
                    _ => EINVAL,
                };
                prop_assert_eq!(chunk.error(), want, "{:?}", step);
                continue;
            }
            let carries = matches!(command, Command::Read | Command::BlockStatus);
            prop_assert_eq!(chunk.simple, !carries);
            match command {
                Command::Read if len > 0 => prop_assert!(chunk.data[8..] == model[start..end]),
                Command::Write => model[start..end].fill(step.fill),
                Command::Trim | Command::WriteZeroes => model[start..end].fill(0),
                Command::BlockStatus => {
                    let covered: u32 = chunk.status().1.iter().map(|(len, _)| len).sum();
                    let one = CommandFlags(step.flags).has(CommandFlags::REQ_ONE);
                    prop_assert!(covered == len || (one && covered < len));
                }
                _ => prop_assert_eq!(chunk.kind, 0),
            }
        }
        prop_assert!(disk.content() == model);
    }

    /// Damaged streams of requests: the server answers or hangs up, and serves the next client.
    #[test]
    fn damaged_requests_harm_nobody_else(
        steps in steps(), at in any::<prop::sample::Index>(), value: u8, cut: bool,
    ) {
        let (fixture, _disk) = Fixture::with_disk();
        let mut bytes = vec![];
        for step in &steps {
            let command = command_of(step.command);
            let header = Client::header(command, 1, step.block * 512, step.blocks * 512);
            bytes.extend(header.encode());
            if command == Command::Write {
                bytes.resize(bytes.len() + step.blocks as usize * 512, step.fill);
            }
        }
        let at = at.index(bytes.len());
        bytes[at] = value;
        if cut {
            bytes.truncate(at);
        }
        let mut client = simple(&fixture);
        // The server may hang up in the middle of it.
        let _ = std::io::Write::write_all(&mut client.stream, &bytes);
        drop(client);
        let mut next = simple(&fixture);
        next.write(1, 0, &[5; 512]);
        prop_assert_eq!(next.simple_reply(), (0, 1));
        wait_until("the bad client is gone", || fixture.server().connections().len() == 1);
    }
}
