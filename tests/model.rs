//! The whole engine against a model that knows for every sector which values it may hold.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::cache::{CacheOptions, Durability, WritebackOrder};
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use rig::world::{Mix, World, WorldConfig};

fn random_options(rng: &mut Rng) -> CacheOptions {
    CacheOptions {
        durability: rng.pick(&[Durability::Flush, Durability::Flush, Durability::Write]),
        writeback_order: rng.pick(&[
            WritebackOrder::Adaptive,
            WritebackOrder::Strict,
            WritebackOrder::Relaxed,
        ]),
        data_crc: rng.permille(700),
        gc_percent: rng.pick(&[0, 30, 70, 90]),
        kset_flush_ms: rng.pick(&[1, 20, 1000]),
        writeback_depth: rng.pick(&[1, 8, 64]),
        writeback_delay_ms: rng.pick(&[0, 0, 5]),
        dirty_low_percent: 10,
        dirty_high_percent: rng.pick(&[10, 60, 100]),
        ..CacheOptions::default()
    }
}

fn random_world(rng: &mut Rng, run_dir: &std::path::Path) -> World {
    let lanes = rng.pick(&[1, 2, 3, 4, 8]);
    let config = WorldConfig {
        reactors: rng.pick(&[1, 2, 3]),
        caches: rng.pick(&[1, 1, 2]),
        lanes,
        spare_segments: rng.pick(&[0, 0, 20, 60]),
        block_bytes: rng.pick(&[512, 512, 4096]),
        options: random_options(rng),
        depth: rng.pick(&[1, 8, 24, 64]),
        clients: rng.pick(&[1, 3, 5]),
        large_permille: rng.pick(&[1, 5]),
        ..WorldConfig::new(rng.next())
    };
    World::new(config, run_dir.to_path_buf())
}

/// One life of a machine: work, stops, deaths and changes of options, and a last look at the backing.
fn live(rng: &mut Rng, operations: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut world = random_world(rng, dir.path());
    while world.operations < operations {
        world.run(&Mix::ALL, 1 + rng.below(operations / 3));
        match rng.below(4) {
            0 => {
                world.drain();
                world.stop(20_000);
                world.config.reactors = rng.pick(&[1, 2, 3]);
                world.restart();
                world.load();
                world.check_volumes();
            }
            1 => {
                world.die(rng.pick(&[1, 2, 3]));
                world.load();
                world.settle(false);
            }
            2 => {
                let cache = world.cache(0).clone();
                let data_crc = cache.options().data_crc;
                let options = CacheOptions {
                    data_crc,
                    ..random_options(rng)
                };
                cache.set_options(options).unwrap();
            }
            _ => {
                world.drain();
                world.flush_all();
                world.check_backings();
            }
        }
    }
    world.drain();
    world.check_volumes();
    world.flush_all();
    world.check_backings();
    world.stop(20_000);
    world.operations
}

#[test]
fn random_requests_find_what_the_model_allows() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let goal = if is_full_run() { 1_000_000 } else { 250_000 };
    let mut operations = 0;
    let mut lives = 0;
    while operations < goal {
        operations += live(&mut rng, 25_000);
        lives += 1;
    }
    println!("{operations} operations in {lives} lives, seed {seed}");
}
