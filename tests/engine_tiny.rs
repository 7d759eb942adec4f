//! The smallest pools that are allowed: log, writeback and GC go round and round, and requests wait
//! instead of failing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::cache::CacheOptions;
use rig::rng::{SaySeed, is_full_run, seed};
use rig::world::{Mix, World, WorldConfig, pool_bytes};

/// Writes `times` the capacity of the smallest cache with this many lanes.
fn write_round_and_round(lanes: u32, reactors: u32, times: u64, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        lanes,
        reactors,
        volume_bytes: (16 << 20) + 512,
        depth: 12,
        large_permille: 300,
        ..WorldConfig::new(seed)
    };
    let goal = times * pool_bytes(&config);
    let mut world = World::new(config, dir.path().to_path_buf());
    while world.cache(0).figures().write_bytes < goal {
        // Large requests wrap the data space, small ones the log.
        world.config.large_permille = 300;
        world.run(&Mix::WRITES, 50);
        world.config.large_permille = 0;
        world.run(&Mix::WRITES, 300);
    }
    world.drain();
    let figures = world.cache(0).figures();
    println!(
        "{lanes} lanes, {reactors} reactors: {} MiB written, {} waits of {} us",
        figures.write_bytes >> 20,
        figures.space_waits,
        figures.space_wait_ns / 1000 / figures.space_waits.max(1),
    );
    assert!(figures.space_waits > 0, "the pool was never full");
    let gc = world.cache(0).gc_figures();
    assert!(gc.log_segments > 0 && gc.data_segments > 0, "{gc:?}");
    world.check_volumes();
    world.flush_all();
    world.check_backings();
}

#[test]
fn a_tiny_pool_takes_a_hundred_times_its_capacity() {
    let seed = seed();
    let _say = SaySeed(seed);
    let times = if is_full_run() { 100 } else { 20 };
    for (lanes, reactors) in [(1, 1), (3, 2), (8, 3)] {
        write_round_and_round(lanes, reactors, times, seed);
    }
}

/// Requests that wait for space are served while the caches work, not when a timer ends: a wait takes
/// as many turns as there is work to do, far fewer than the turns in the age limit of a kset.
#[test]
fn nobody_waits_for_a_timer() {
    let seed = seed();
    let _say = SaySeed(seed);
    for (lanes, reactors) in [(1, 1), (4, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let config = WorldConfig {
            lanes,
            reactors,
            depth: 6,
            large_permille: 300,
            options: CacheOptions {
                // Half an hour of turns: whoever waited for it would be found stuck.
                kset_flush_ms: 60_000,
                ..CacheOptions::default()
            },
            ..WorldConfig::new(seed)
        };
        let mut world = World::new(config, dir.path().to_path_buf());
        world.turns_max = 100_000;
        world.jumps = false;
        world.run(&Mix::WRITES, 1500);
        world.drain();
        assert!(world.cache(0).figures().space_waits > 0);
        world.check_volumes();
    }
}

/// A cache that holds clean data only goes on taking in new data.
#[test]
fn a_tiny_cache_of_clean_data_goes_on_filling() {
    let seed = seed();
    let _say = SaySeed(seed);
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        lanes: 2,
        large_permille: 0,
        volume_bytes: 48 << 20,
        ..WorldConfig::new(seed)
    };
    let capacity = pool_bytes(&config);
    let mut world = World::new(config, dir.path().to_path_buf());
    let mut fills = 0;
    for round in 0..10 {
        let goal = (round + 1) * capacity;
        while world.cache(0).figures().read_bytes < goal {
            world.run(&Mix::READS, 100);
        }
        let now = world.cache(0).figures();
        assert!(now.fills > fills + 50, "round {round}: {now:?}");
        fills = now.fills;
    }
    world.drain();
    let figures = world.cache(0).figures();
    assert!(figures.hits > figures.reads / 10, "{figures:?}");
    assert_eq!(world.cache(0).dirty_bytes(), 0);
    println!("{figures:?} {:?}", world.cache(0).gc_figures());
}
