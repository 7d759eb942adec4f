//! The engine end to end, single-threaded: what is written is read, whatever lies between.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{Bdev, MallocBdev, MallocConfig, Op};
use pmcache::units::ByteRange;
use rig::{Rig, RigConfig, anonymous_pmem};
use std::sync::Arc;

fn malloc(bytes: u64) -> Arc<dyn Bdev> {
    let config = MallocConfig {
        name: "disk0".into(),
        uuid: uuid::Uuid::from_bytes([9; 16]),
        block_size: 512,
        blocks: bytes / 512,
    };
    Arc::new(MallocBdev::new(config).unwrap())
}

#[test]
fn what_is_written_is_read_again_before_and_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let config = RigConfig::default();
    let pmem = anonymous_pmem("p0", 40 * config.segment_bytes);
    let mut rig = Rig::new(&config, pmem, malloc(64 << 20), dir.path());
    let mut channel = rig.open(0);
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|i| (i % 251) as u8)
        .take(299_520)
        .collect();
    rig.write(&mut *channel, (4 << 20) - 5120, &bytes, false);
    assert_eq!(
        rig.read(&mut *channel, (4 << 20) - 5120, bytes.len()),
        bytes
    );
    rig.act(&mut *channel, Op::Flush, ByteRange::default());
    drop(channel);
    rig.stop();
    rig.load();
    let report = rig.cache.as_ref().unwrap().replay_report();
    assert_eq!(report.dirty_bytes, bytes.len() as u64);
    let mut channel = rig.open(1);
    drop(std::mem::replace(&mut channel, rig.open(0)));
    assert_eq!(
        rig.read(&mut *channel, (4 << 20) - 5120, bytes.len()),
        bytes
    );
    rig.flush_all();
    drop(channel);
    rig.stop();
    let mut direct = rig.backing.open(rig.data[0].cx()).unwrap();
    assert_eq!(rig.read(&mut *direct, (4 << 20) - 5120, bytes.len()), bytes);
}
