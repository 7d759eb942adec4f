//! A medium whose barrier fails: final, said to everybody who waits for durability, and no lie survives
//! the next power cut.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{IoStatus, Op};
use pmcache::units::ByteRange;
use rig::disks::VolatileDisk;
use rig::rng::{Rng, SaySeed, seed};
use rig::slow_pmem::SlowPmem;
use rig::world::{Mix, World, WorldConfig, pool_bytes};
use std::sync::Arc;

fn fail_at(count: u64, rng: &mut Rng) {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        volume_bytes: (4 << 20) + 65_536,
        keeps_durable: true,
        large_permille: 1,
        ..WorldConfig::new(rng.next())
    };
    let pmem = SlowPmem::new(pool_bytes(&config), rng.pick(&[0, 10]), rng.next());
    let disk = VolatileDisk::new(config.volume_bytes, rng.next());
    let run_dir = dir.path().to_path_buf();
    let backing = Arc::new(disk.clone());
    let mut world = World::over(config, Arc::new(pmem.clone()), vec![backing], run_dir);
    world.errors_allowed = true;
    pmem.fail_barrier(count);
    world.until("the barrier fails", |world| {
        if world.under_way() < world.config.depth {
            world.submit_random(&Mix::ALL);
        }
        pmem.has_failed()
    });
    // Everybody gets an answer; what is asked now is refused, reads of cached data are not.
    world.drain();
    let refused = world.errors;
    let range = ByteRange::between(0, 4096);
    world.submit(0, Op::Flush, ByteRange::default());
    world.submit(0, Op::Write { fua: true }, range);
    world.submit(0, Op::Write { fua: false }, range);
    world.submit(1, Op::Discard, range);
    world.drain();
    assert_eq!(world.errors - refused, 4, "{:?}", world.error_statuses);
    let last = &world.error_statuses[world.error_statuses.len() - 4..];
    assert!(
        last.iter()
            .all(|status| matches!(status, IoStatus::IoError | IoStatus::ReadOnly))
    );
    assert_eq!(world.cache(0).status().state, "read_only");
    world.check_volumes();
    // A stop ends, in a hurry or not; the medium holds what was promised.
    if rng.permille(500) {
        world.stop(1000);
    }
    let pmem = pmem.cut_power(rng);
    world.volumes[0].backing = Arc::new(disk.cut_power(rng));
    world.lose_power(Arc::new(pmem), 2);
    world.load();
    world.settle(true);
    world.errors_allowed = false;
    world.run(&Mix::ALL, 200);
    world.drain();
    world.flush_all();
    world.check_backings();
}

#[test]
fn a_failed_barrier_is_final() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    for count in 1..30 {
        let count = if count < 15 { count } else { rng.below(600) };
        fail_at(count, &mut rng);
    }
}
