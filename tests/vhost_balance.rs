//! Where the queues of vhost-user-blk run. Alone in its process: all controllers of one count together.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;
mod vhost_common;

use common::wait_until;
use pmcache::bdev::{Bdev, MallocBdev, MallocConfig};
use pmcache::target::vhost::{VhostConfig, VhostController};
use reactors::{Cx, IdlePolicy, MonotonicClock, PollerStats, Reactors, ReactorsConfig};
use std::path::Path;
use std::sync::Arc;
use vhost_common::raw::{BLOCK, Guest};

fn listen(reactors: &Reactors, disk: &Arc<dyn Bdev>, dir: &Path, name: &str) -> VhostController {
    let config = VhostConfig {
        name: name.into(),
        dir: dir.to_owned(),
        bdev: Arc::clone(disk),
        read_only: false,
        reactors: reactors.data_handles().to_vec(),
    };
    let (controller, control) = VhostController::listen(config).unwrap();
    std::thread::spawn(move || control.run());
    controller
}

/// Queues on each reactor.
fn queues(reactors: &Reactors) -> Vec<usize> {
    let handles = reactors.data_handles().iter();
    let count = handles.map(|reactor| {
        let stats = reactor.call(common::PATIENCE, Cx::poller_stats).unwrap();
        let of_queues = |stats: &&PollerStats| stats.name == "vhost queue";
        stats.iter().filter(of_queues).count()
    });
    count.collect()
}

/// Of four disks the two on one reactor leave: one of the others takes their place, and goes on.
#[test]
fn queues_spread_over_reactors_again_when_others_have_left() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return;
    }
    let config = ReactorsConfig {
        cores: vec![0, 1],
        maintenance: Vec::new(),
        idle: IdlePolicy::Interrupt,
        seed: 1,
        clock: Arc::new(MonotonicClock),
    };
    let reactors = Reactors::start(config).unwrap();
    let config = MallocConfig {
        name: "disk".into(),
        uuid: uuid::Uuid::from_bytes([1; 16]),
        block_size: 512,
        blocks: 4096,
    };
    let disk: Arc<dyn Bdev> = Arc::new(MallocBdev::new(config).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let names = ["c0", "c1", "c2", "c3"];
    let controllers = names.map(|name| listen(&reactors, &disk, dir.path(), name));
    let mut guests = Vec::new();
    let mut places = Vec::new();
    for controller in &controllers {
        let mut guest = Guest::new();
        let before = queues(&reactors);
        guest.connect(controller.path());
        places.push(usize::from(queues(&reactors)[0] == before[0]));
        guests.push(guest);
    }
    assert_eq!(queues(&reactors), [2, 2]);
    let mut stay = Vec::new();
    for (mut guest, place) in guests.into_iter().zip(places) {
        match place {
            0 => stay.push(guest),
            _ => guest.disconnect(),
        }
    }
    wait_until("the queues are even again", || {
        for guest in &mut stay {
            guest.write(3, 3, &[5; BLOCK]);
            guest.settle();
        }
        queues(&reactors) == [1, 1]
    });
}
