//! A medium whose barrier fails: final, said to everybody who waits for durability, and no lie survives
//! the next power cut.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{Bdev, IoStatus, Op};
use pmcache::cache::CacheError;
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

/// The medium is that of all caches: the others learn of it at once, and not at their own next barrier.
#[test]
fn a_failed_barrier_stops_every_cache_of_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        caches: 2,
        clients: 2,
        ..WorldConfig::new(seed())
    };
    let pmem = SlowPmem::new(pool_bytes(&config), 0, 1);
    let disks: Vec<Arc<dyn Bdev>> = (0..2)
        .map(|n| Arc::new(VolatileDisk::new(config.volume_bytes, n)) as Arc<dyn Bdev>)
        .collect();
    let run_dir = dir.path().to_path_buf();
    let mut world = World::over(config, Arc::new(pmem.clone()), disks, run_dir);
    world.jumps = false;
    let range = ByteRange::between(0, 4096);
    // The second has acknowledged, and waits for nothing.
    world.submit(1, Op::Write { fua: true }, range);
    world.drain();
    world.errors_allowed = true;
    pmem.fail_barrier(1);
    world.submit(0, Op::Write { fua: true }, range);
    world.until("the first has noticed", |world| {
        world.cache(0).status().state == "read_only"
    });
    assert_eq!(world.cache(1).status().state, "read_only");
    world.drain();
    world.submit(1, Op::Write { fua: false }, range);
    world.drain();
    assert_eq!(world.error_statuses.last(), Some(&IoStatus::ReadOnly));
    // Neither the table changes any more, nor is another cache of it loaded.
    assert!(world.pool.has_failed());
    let options = world.cache(1).options();
    let refused = world.cache(1).set_options(options);
    assert!(matches!(refused, Err(CacheError::PoolFailed)));
    world.stop(1000);
    assert!(
        world
            .try_load(0)
            .is_err_and(|e| matches!(e, CacheError::PoolFailed))
    );
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
