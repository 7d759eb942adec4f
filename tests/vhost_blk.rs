//! vhost-user-blk with a driver that is not ours.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod vhost_common;

use common::{Service, wait_until};
use reactors::SplitMix64;
use serde_json::{Value, json};
use std::path::Path;
use std::time::SystemTime;
use vhost_common::controller;
use vhost_common::disk::{Disk, Op};
use virtio_driver::VirtioBlkFeatureFlags as Feature;

const KIB: usize = 1024;
/// Of the disk, each user has this much to itself.
const AREA: usize = 64 * KIB;
const SECTOR: usize = 512;

fn service(users: usize, args: &[&str]) -> Service {
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec!["--config", common::EMPTY_CONFIG];
    all.extend(args);
    let service = Service::start_in(dir, &all);
    let blocks = users * AREA / SECTOR;
    let params = json!({"name": "M0", "block_size": SECTOR, "num_blocks": blocks});
    service.call("bdev_malloc_create", params);
    service
}

/// One user of the disk: does one request after the other in its own area, and knows what is there.
struct User {
    random: SplitMix64,
    area: Vec<u8>,
    op: Op,
    at: usize,
    len: usize,
    left: u32,
}

impl User {
    fn new(number: usize, requests: u32) -> Self {
        Self {
            random: SplitMix64::new(number as u64 + 1),
            area: vec![0; AREA],
            op: Op::Flush,
            at: 0,
            len: 0,
            left: requests,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.draw() % bound as u64).unwrap()
    }

    /// Chooses the next request.
    fn choose(&mut self) {
        self.op = match self.below(10) {
            0..5 => Op::Write,
            5..8 => Op::Read,
            8 => Op::WriteZeroes,
            _ => Op::Discard,
        };
        let sectors = AREA / SECTOR;
        let at = self.below(sectors);
        let len = 1 + self.below((sectors - at).min(32));
        (self.at, self.len) = (at * SECTOR, len * SECTOR);
        self.left -= 1;
        let range = self.at..self.at + self.len;
        match self.op {
            Op::Write => {
                let stamp = self.random.draw().to_le_bytes();
                for (i, byte) in self.area[range].iter_mut().enumerate() {
                    *byte = stamp[i % 8] ^ stamp[i / 8 % 8];
                }
            }
            // This disk's discarded blocks read as zeroes.
            Op::WriteZeroes | Op::Discard => self.area[range].fill(0),
            Op::Read | Op::Flush => {}
        }
    }

    /// Starts the chosen request, perhaps once more.
    fn start(&self, number: usize, disk: &mut Disk) {
        if self.op == Op::Write {
            disk.fill(number, &self.area[self.at..self.at + self.len]);
        }
        let at = (number * AREA + self.at) as u64;
        disk.start(number, self.op, at, self.len);
    }

    fn check(&self, number: usize, disk: &Disk) {
        if self.op == Op::Read {
            let expected = &self.area[self.at..self.at + self.len];
            assert!(
                disk.bytes(number, self.len) == expected,
                "user {number}: other bytes"
            );
        }
    }
}

/// Lets all users work until they have no requests left; breaks off after `breaks` completions.
/// Returns whether all are done.
fn work(disk: &mut Disk, users: &mut [User], busy: &mut [bool], breaks: Option<usize>) -> bool {
    let mut completed = 0;
    loop {
        for (number, user) in users.iter_mut().enumerate() {
            if !busy[number] && user.left > 0 {
                user.choose();
                user.start(number, disk);
                busy[number] = true;
            }
        }
        if busy.iter().all(|busy| !busy) {
            return true;
        }
        for (number, ret) in disk.wait() {
            assert_eq!(ret, 0, "user {number}: {:?}", users[number].op);
            users[number].check(number, disk);
            busy[number] = false;
            completed += 1;
        }
        if breaks.is_some_and(|breaks| completed >= breaks) {
            return false;
        }
    }
}

/// Reads all there is, and compares.
fn verify(disk: &mut Disk, users: &mut [User]) {
    for (number, user) in users.iter_mut().enumerate() {
        (user.op, user.at, user.len) = (Op::Read, 0, AREA);
        user.start(number, disk);
    }
    let mut left = users.len();
    while left > 0 {
        for (number, ret) in disk.wait() {
            assert_eq!(ret, 0);
            users[number].check(number, disk);
            left -= 1;
        }
    }
}

fn model(socket: &Path, queues: usize, depth: usize, requests: u32, event_idx: bool) {
    let mut disk = Disk::connect(socket, queues, depth, AREA, event_idx);
    let mut users: Vec<User> = (0..depth).map(|n| User::new(n, requests)).collect();
    let mut busy = vec![false; depth];
    assert!(work(&mut disk, &mut users, &mut busy, None));
    verify(&mut disk, &mut users);
}

#[test]
fn a_disk_is_described_as_it_is() {
    let service = service(1, &[]);
    let socket = controller(&service, "M0");
    let mut disk = Disk::connect(&socket, 1, 1, AREA, true);
    let config = disk.config();
    assert_eq!(u64::from(config.capacity), (AREA / SECTOR) as u64);
    assert_eq!(u32::from(config.blk_size), 512);
    assert_eq!(u16::from(config.num_queues), 64);
    let has = |feature: Feature| disk.features() & feature.bits() != 0;
    assert!(has(Feature::DISCARD) && has(Feature::WRITE_ZEROES) && has(Feature::MQ));
    assert!(!has(Feature::RO) && !has(Feature::CONFIG_WCE));
    assert!(!has(Feature::FLUSH), "RAM has no volatile cache to empty");
    // Nobody forbids to ask.
    assert_eq!(disk.run(Op::Flush, 0, 0), 0);
}

#[test]
fn one_request_at_a_time() {
    for args in [&[][..], &["--idle", "interrupt"], &["--idle", "poll"]] {
        let service = service(1, args);
        let socket = controller(&service, "M0");
        for event_idx in [false, true] {
            model(&socket, 1, 1, 400, event_idx);
            // Each connection finds what the one before has left.
            let mut disk = Disk::connect(&socket, 1, 1, AREA, event_idx);
            assert_eq!(disk.run(Op::WriteZeroes, 0, AREA), 0);
        }
    }
}

#[test]
fn many_queues_and_a_depth_of_128() {
    let service = service(128, &["--idle", "interrupt"]);
    let socket = controller(&service, "M0");
    for event_idx in [true, false] {
        model(&socket, 4, 128, 60, event_idx);
        let mut disk = Disk::connect(&socket, 1, 1, AREA, event_idx);
        for user in 0..128 {
            assert_eq!(disk.run(Op::WriteZeroes, (user * AREA) as u64, AREA), 0);
        }
    }
}

#[test]
fn front_ends_that_vanish_leave_a_disk_that_goes_on() {
    const DEPTH: usize = 32;
    let service = service(DEPTH, &[]);
    let socket = controller(&service, "M0");
    let mut users: Vec<User> = (0..DEPTH).map(|n| User::new(n, 100)).collect();
    let mut busy = vec![false; DEPTH];
    let mut random = SplitMix64::new(7);
    loop {
        let mut disk = Disk::connect(&socket, 2, DEPTH, AREA, true);
        // Nobody knows what became of these.
        for (number, user) in users.iter().enumerate().filter(|(n, _)| busy[*n]) {
            user.start(number, &mut disk);
        }
        let breaks = usize::try_from(random.draw() % 400).unwrap();
        if work(&mut disk, &mut users, &mut busy, Some(breaks)) {
            break;
        }
    }
    let mut disk = Disk::connect(&socket, 2, DEPTH, AREA, true);
    verify(&mut disk, &mut users);
}

#[test]
fn memory_comes_and_goes_under_load() {
    const DEPTH: usize = 16;
    let service = service(DEPTH, &[]);
    let socket = controller(&service, "M0");
    let mut disk = Disk::connect(&socket, 2, DEPTH, AREA, true);
    let mut users: Vec<User> = (0..DEPTH).map(|n| User::new(n, 60)).collect();
    let mut busy = vec![false; DEPTH];
    while !work(&mut disk, &mut users, &mut busy, Some(40)) {
        disk.plug_and_unplug();
    }
    verify(&mut disk, &mut users);
}

#[test]
fn a_volatile_cache_has_flush_and_files_keep_what_was_written() {
    let service = service(1, &[]);
    let image = service.dir().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let params = json!({"name": "U0", "filename": image, "block_size": 512});
    service.call("bdev_uring_create", params);
    let socket = controller(&service, "U0");
    let mut disk = Disk::connect(&socket, 1, 1, AREA, true);
    assert_ne!(disk.features() & Feature::FLUSH.bits(), 0);
    disk.fill(0, &[0xa5; AREA]);
    assert_eq!(disk.run(Op::Write, 4096, AREA), 0);
    assert_eq!(disk.run(Op::Flush, 0, 0), 0);
    let stored = std::fs::read(&image).unwrap();
    assert!(stored[4096..4096 + AREA].iter().all(|byte| *byte == 0xa5));
    assert!(stored[..4096].iter().all(|byte| *byte == 0));
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let service = service(1, &[]);
    let params = json!({"ctrlr": "c0", "dev_name": "M0", "readonly": true});
    service.call("vhost_create_blk_controller", params);
    let mut disk = Disk::connect(&service.data("c0"), 1, 1, AREA, true);
    assert_ne!(disk.features() & Feature::RO.bits(), 0);
    disk.fill(0, &[1; 512]);
    assert_eq!(disk.run(Op::Write, 0, 512), -libc::EIO);
    assert_eq!(disk.run(Op::WriteZeroes, 0, 512), -libc::EIO);
    assert_eq!(disk.run(Op::Read, 0, 512), 0);
    assert_eq!(disk.bytes(0, 512), [0; 512]);
}

#[test]
fn controllers_are_made_told_and_deleted() {
    let service = service(1, &[]);
    let socket = controller(&service, "M0");
    let told = service.call("vhost_get_controllers", json!({"name": "c0"}));
    let path = told[0]["socket"].as_str().unwrap().to_owned();
    assert_eq!(
        Path::new(&path).canonicalize().unwrap(),
        socket.canonicalize().unwrap()
    );
    assert_eq!(
        told,
        json!([{
            "ctrlr": "c0", "cpumask": "0x1", "delay_base_us": 0, "iops_threshold": 60000,
            "socket": path, "sessions": [],
            "backend_specific": {
                "block": {"readonly": false, "bdev": "M0", "transport": "vhost_user_blk"},
            },
        }])
    );
    let mut disk = Disk::connect(&socket, 2, 1, AREA, true);
    assert_eq!(disk.run(Op::Read, 0, 512), 0);
    let session = &service.call("vhost_get_controllers", Value::Null)[0]["sessions"][0];
    assert_eq!(session["started"], true);
    assert_eq!(session["max_queues"], 2);
    assert_eq!(session["inflight_task_cnt"], 0);

    let (code, message) = service.refused("bdev_malloc_delete", json!({"name": "M0"}));
    assert_eq!(code, -16);
    assert!(message.contains("vhost controller 'c0'"), "{message}");
    let delete = json!({"ctrlr": "c0"});
    assert_eq!(
        service.call("vhost_delete_controller", delete.clone()),
        true
    );
    assert!(!socket.exists());
    assert_eq!(
        service.call("vhost_get_controllers", Value::Null),
        json!([])
    );
    let refused = service.refused("vhost_delete_controller", delete);
    assert_eq!(refused, (-32602, "No such device".to_owned()));
    // Nobody uses the bdev any more.
    service.call("bdev_malloc_delete", json!({"name": "M0"}));
}

#[test]
fn a_front_end_that_leaves_ends_its_session() {
    let service = service(1, &[]);
    let socket = controller(&service, "M0");
    drop(Disk::connect(&socket, 1, 1, AREA, true));
    wait_until("the session ends", || {
        service.call("vhost_get_controllers", Value::Null)[0]["sessions"] == json!([])
    });
}

#[test]
fn what_can_not_be_made_is_refused_with_the_words_of_strerror() {
    let service = service(1, &[]);
    controller(&service, "M0");
    let with = |key: &str, value: Value| {
        let mut params = json!({"ctrlr": "c1", "dev_name": "M0"});
        params[key] = value;
        params
    };
    for (params, expected) in [
        (with("ctrlr", json!("c0")), "File exists"),
        (with("ctrlr", json!("../c1")), "Invalid argument"),
        (with("dev_name", json!("M9")), "No such device"),
        (
            with("cpumask", json!("0x4000000000000000")),
            "Invalid argument",
        ),
        (with("cpumask", json!("x")), "Invalid argument"),
        (with("packed_ring", json!(true)), "Operation not supported"),
        (
            with("transport", json!("vfio_user")),
            "Operation not supported",
        ),
    ] {
        let refused = service.refused("vhost_create_blk_controller", params.clone());
        assert_eq!(refused, (-32602, expected.to_owned()), "{params}");
    }
    let refused = service.refused("vhost_get_controllers", json!({"name": "c1"}));
    assert_eq!(refused, (-32602, "No such device".to_owned()));
    // What was refused holds nothing.
    service.call("vhost_delete_controller", json!({"ctrlr": "c0"}));
    service.call("bdev_malloc_delete", json!({"name": "M0"}));
}

#[test]
fn calls_of_a_busy_queue_wait_if_that_is_wanted() {
    const REQUESTS: usize = 4000;
    const DEPTH: usize = 8;
    let service = service(1, &[]);
    let socket = controller(&service, "M0");
    let set = "vhost_controller_set_coalescing";
    let wanted = |name: &str, delay: u32, threshold: u32| json!({"ctrlr": name, "delay_base_us": delay, "iops_threshold": threshold});
    for (params, expected) in [
        (wanted("c9", 20, 1000), "No such device"),
        (wanted("c0", 20, 99), "Invalid argument"),
    ] {
        let refused = service.refused(set, params);
        assert_eq!(refused, (-32602, expected.to_owned()));
    }
    assert_eq!(service.refused(set, json!({"ctrlr": "c0"})).0, -32602);
    assert_eq!(service.call(set, wanted("c0", 10_000, 100)), true);
    let told = service.call("vhost_get_controllers", Value::Null)[0].take();
    let told = [&told["delay_base_us"], &told["iops_threshold"]];
    assert_eq!(told, [&json!(10_000), &json!(100)]);

    // Without EVENT_IDX a driver that polls is called all the same.
    let mut disk = Disk::connect(&socket, 1, DEPTH, AREA, false);
    (0..DEPTH).for_each(|user| disk.start(user, Op::Read, 0, 512));
    let drive = |disk: &mut Disk| {
        let mut done = 0;
        while done < REQUESTS {
            for (user, result) in disk.wait() {
                assert_eq!(result, 0);
                done += 1;
                disk.start(user, Op::Read, 0, 512);
            }
        }
    };
    let ten_ms = |begun: SystemTime| {
        let ms = begun.elapsed().unwrap_or_default().as_millis();
        u64::try_from(ms).unwrap() / 10
    };
    // Its rate is known after 10 ms.
    let begun = SystemTime::now();
    while ten_ms(begun) < 3 {
        drive(&mut disk);
    }
    let (begun, before) = (SystemTime::now(), disk.calls());
    drive(&mut disk);
    let (calls, periods) = (disk.calls() - before, ten_ms(begun));
    // One in 10 ms; two where the rate was low.
    assert!(calls <= 2 * periods + 4, "{calls} calls in {periods}");
    // A call that waits comes also when nothing follows.
    let mut left = DEPTH;
    while left > 0 {
        left -= disk.wait().len();
    }
}

#[test]
fn sockets_go_where_they_are_told_to() {
    let service = service(1, &["--vhost-dir", "guests"]);
    let params = json!({"ctrlr": "c0", "dev_name": "M0"});
    service.call("vhost_create_blk_controller", params);
    model(&service.dir().join("guests/c0"), 1, 1, 20, true);
}
