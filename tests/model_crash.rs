//! Power cuts and deaths at any moment, on a medium whose barriers complete later: what a flush, a FUA
//! or the death of the process alone promised must be there, and a value is decided once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::cache::{CacheOptions, Durability, WritebackOrder};
use rig::disks::VolatileDisk;
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use rig::slow_pmem::SlowPmem;
use rig::world::{Mix, World, WorldConfig, pool_bytes};
use std::sync::Arc;

const CRASHING: Mix = Mix {
    write: 60,
    read: 15,
    flush: 6,
    zero: 4,
    discard: 3,
    prefetch: 2,
    extents: 0,
    fua_permille: 100,
};

const ONE_KEY_KSETS: Mix = Mix {
    fua_permille: 1000,
    ..Mix::ONLY_WRITES
};

fn random_config(rng: &mut Rng) -> WorldConfig {
    let options = CacheOptions {
        durability: rng.pick(&[Durability::Flush, Durability::Flush, Durability::Write]),
        writeback_order: rng.pick(&[
            WritebackOrder::Adaptive,
            WritebackOrder::Strict,
            WritebackOrder::Relaxed,
        ]),
        gc_percent: rng.pick(&[0, 30, 70]),
        kset_flush_ms: rng.pick(&[1, 20, 1000]),
        ..CacheOptions::default()
    };
    WorldConfig {
        reactors: rng.pick(&[1, 2, 3]),
        lanes: rng.pick(&[1, 2, 4]),
        spare_segments: rng.pick(&[0, 20]),
        volume_bytes: rng.pick(&[2 << 20, (4 << 20) + 65_536]),
        options,
        depth: rng.pick(&[2, 8, 24]),
        large_permille: 2,
        keeps_durable: true,
        ..WorldConfig::new(rng.next())
    }
}

/// Medium and disk lose what they may lose.
fn cut_power(
    world: &mut World,
    pmem: &mut SlowPmem,
    disk: &mut VolatileDisk,
    rng: &mut Rng,
    reactors: u32,
) {
    *pmem = pmem.cut_power(rng);
    *disk = disk.cut_power(rng);
    world.volumes[0].backing = Arc::new(disk.clone());
    world.lose_power(Arc::new(pmem.clone()), reactors);
}

/// A machine, and whether it is one that dies early.
fn random_machine(rng: &mut Rng) -> (WorldConfig, bool) {
    let mut config = random_config(rng);
    // Some machines die again and again with ksets of one key under way: what a crash cut off then
    // lies just where the next run goes on. (One reactor's barriers order its ksets, so it takes
    // two of them.) All of a small volume stays in the cache, so that the
    // look at it logs nothing there.
    let is_short_lived = rng.permille(400);
    if is_short_lived {
        config.volume_bytes = (4 << 20) + 65_536;
        config.lanes = 2;
        config.spare_segments = 40;
        config.options.gc_percent = 90;
        config.options.kset_flush_ms = 1000;
    }
    (config, is_short_lived)
}

/// One machine through several lives.
fn live(rng: &mut Rng, lives: u32) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (config, is_short_lived) = random_machine(rng);
    let polls_max = rng.pick(&[0, 3, 20]);
    let mut pmem = SlowPmem::new(pool_bytes(&config), polls_max, rng.next());
    let mut disk = VolatileDisk::new(config.volume_bytes, rng.next());
    let run_dir = dir.path().to_path_buf();
    let mut world = World::over(
        config,
        Arc::new(pmem.clone()),
        vec![Arc::new(disk.clone())],
        run_dir,
    );
    world.durable_writes = world.cache(0).options().durability == Durability::Write;
    let lives = if is_short_lived { 4 * lives } else { lives };
    for _ in 0..lives {
        if is_short_lived {
            world.run(&ONE_KEY_KSETS, 1 + rng.below(6));
        } else {
            world.run(&CRASHING, 1 + rng.below(300));
        }
        let reactors = rng.pick(&[1, 2, 2, 3]);
        if rng.permille(150) {
            // After a clean stop nothing is lost, whatever happens.
            world.drain();
            world.stop(100_000);
            cut_power(&mut world, &mut pmem, &mut disk, rng, reactors);
            world.load();
            world.settle(false);
            continue;
        }
        let power = rng.permille(600);
        if power {
            cut_power(&mut world, &mut pmem, &mut disk, rng, reactors);
        } else {
            world.die(reactors);
        }
        // A load that dies at some store, and is repeated.
        if rng.permille(500) {
            pmem.keep_before_store(1 + rng.below(300), dir.path());
            world.load();
            if let Some(kept) = pmem.return_to_kept() {
                pmem = kept;
                if rng.permille(300) {
                    cut_power(&mut world, &mut pmem, &mut disk, rng, reactors);
                    world.load();
                    world.settle(true);
                    continue;
                }
                world.continue_on(Arc::new(pmem.clone()));
                world.load();
            }
        } else {
            world.load();
        }
        world.settle(power);
        // What has been read once stays, also if the power goes right now.
        if rng.permille(300) {
            cut_power(&mut world, &mut pmem, &mut disk, rng, reactors);
            world.load();
            world.settle(true);
        }
    }
    world.drain();
    world.flush_all();
    world.check_backings();
    world.operations
}

#[test]
fn what_was_promised_survives_every_crash() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let goal = if is_full_run() { 80 } else { 25 };
    let mut operations = 0;
    for _ in 0..goal {
        operations += live(&mut rng, 8);
    }
    println!("{operations} operations in {} lives, seed {seed}", goal * 8);
}
