//! Caches that grow and shrink while they serve, beside each other in one pool.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::cache::{CacheError, check_pmem, data_start, segments_min};
use rig::anonymous_pmem;
use rig::rng::{SaySeed, seed};
use rig::world::{Mix, World, WorldConfig, backing, pool_bytes};

const SEGMENT: u64 = 256 << 10;

/// A world whose pool has `spare` free segments, and not the room that it has in other tests.
fn world(config: WorldConfig, spare: u64, dir: &std::path::Path) -> World {
    let bytes = pool_bytes(&config) - (4 << 20) + data_start(SEGMENT) + spare * SEGMENT;
    let pmem = anonymous_pmem("p0", bytes);
    let backings = (0..config.caches).map(|n| backing(&config, n)).collect();
    World::over(config, pmem, backings, dir.to_path_buf())
}

fn total(world: &World, volume: usize) -> u32 {
    world.cache(volume).status().segments_total
}

fn bytes(segments: u32) -> u64 {
    u64::from(segments) * SEGMENT
}

/// Resizes under load, to the end.
fn resize(world: &mut World, volume: usize, segments: u32, mix: &Mix) {
    let cache = world.cache(volume).clone();
    cache.resize_start(bytes(segments)).unwrap();
    let from = world.operations;
    while !cache.resize_step().unwrap() {
        world.run(mix, 1);
        assert!(world.operations - from < 20_000, "{}", world.describe());
    }
    assert_eq!(total(world, volume), segments);
    assert_eq!(cache.resize_status(), None);
}

/// Every segment of the pool is somebody's or nobody's, and the caches have what the table says.
fn check_pool(world: &World) {
    let report = check_pmem(&world.pmem).unwrap();
    assert!(report.is_clean(), "{:?}", report.damages);
    let pool = report.pool.unwrap();
    let owned: u32 = report.caches.iter().map(|cache| cache.segments.total).sum();
    assert_eq!(pool.segments_free + owned, pool.segments);
}

#[test]
fn caches_of_a_pool_grow_and_shrink_beside_each_other_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        caches: 3,
        lanes: 2,
        clients: 6,
        large_permille: 2,
        volume_bytes: (8 << 20) + 4096,
        ..WorldConfig::new(seed())
    };
    let _say = SaySeed(config.seed);
    let least = segments_min(config.lanes, SEGMENT);
    let mut world = world(config, 24, dir.path());
    for round in 0..6 {
        world.run(&Mix::ALL, 300);
        let volume = round % 3;
        resize(&mut world, volume, least + 24, &Mix::ALL);
        assert_eq!(world.pool.free_segments(), 0);
        world.run(&Mix::ALL, 300);
        resize(&mut world, volume, least + 10, &Mix::ALL);
        // What one gave back another one takes.
        let other = (volume + 1) % 3;
        resize(&mut world, other, least + 14, &Mix::ALL);
        world.run(&Mix::ALL, 300);
        resize(&mut world, other, least, &Mix::ALL);
        resize(&mut world, volume, least, &Mix::ALL);
    }
    world.drain();
    world.check_volumes();
    world.stop(20_000);
    check_pool(&world);
    world.restart();
    world.load();
    world.check_volumes();
    world.flush_all();
    world.check_backings();
}

#[test]
fn what_was_resized_is_found_after_death() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        caches: 2,
        ..WorldConfig::new(seed())
    };
    let _say = SaySeed(config.seed);
    let least = segments_min(config.lanes, SEGMENT);
    let mut world = world(config, 20, dir.path());
    for round in 0..4 {
        world.run(&Mix::WRITES, 200);
        resize(&mut world, round % 2, least + 20, &Mix::WRITES);
        world.run(&Mix::WRITES, 300);
        world.die(1 + u32::try_from(round).unwrap() % 3);
        world.load();
        assert_eq!(total(&world, round % 2), least + 20);
        world.settle(false);
        resize(&mut world, round % 2, least, &Mix::WRITES);
    }
    // A resize that was not done when the process died is forgotten.
    resize(&mut world, 0, least + 20, &Mix::WRITES);
    world.run(&Mix::WRITES, 500);
    world.cache(0).resize_start(bytes(least)).unwrap();
    world.run(&Mix::WRITES, 1);
    assert!(world.cache(0).resize_status().is_some());
    world.die(2);
    world.load();
    assert_eq!(total(&world, 0), least + 20);
    assert_eq!(world.cache(0).resize_status(), None);
    world.settle(false);
    resize(&mut world, 0, least, &Mix::WRITES);
    world.drain();
    world.check_volumes();
}

#[test]
fn an_idle_cache_that_is_full_of_dirty_data_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        spare_segments: 60,
        ..WorldConfig::new(seed())
    };
    let _say = SaySeed(config.seed);
    let least = segments_min(config.lanes, SEGMENT);
    let mut world = world(config, 0, dir.path());
    world.run(&Mix::WRITES, 400);
    world.drain();
    let cache = world.cache(0).clone();
    cache.resize_start(bytes(least)).unwrap();
    world.until("a shrink", |_| cache.resize_step().unwrap());
    assert_eq!(total(&world, 0), least);
    assert_eq!(world.pool.free_segments(), 60);
    world.check_volumes();
    world.stop(20_000);
    check_pool(&world);
}

#[test]
fn sizes_that_cannot_be_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        spare_segments: 6,
        ..WorldConfig::new(seed())
    };
    let least = segments_min(config.lanes, SEGMENT);
    let mut world = world(config, 4, dir.path());
    let cache = world.cache(0).clone();
    let refused = |segments| cache.resize_start(bytes(segments)).unwrap_err();
    assert!(matches!(refused(least - 1), CacheError::Invalid(_)));
    let error = refused(least + 11);
    assert!(
        matches!(error, CacheError::NoSegments { wanted: 5, free: 4 }),
        "{error}"
    );
    assert_eq!(total(&world, 0), least + 6);
    // A part of a segment is none.
    let status = cache.resize_start(bytes(least + 6) + 1).unwrap();
    assert_eq!(
        (status.old_segments, status.new_segments),
        (least + 6, least + 6)
    );
    assert!(cache.resize_step().unwrap());
    drop(cache);
    world.stop(20_000);
    check_pool(&world);
}

#[test]
fn a_resize_can_be_called_off_and_another_one_begun() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        spare_segments: 30,
        ..WorldConfig::new(seed())
    };
    let _say = SaySeed(config.seed);
    let least = segments_min(config.lanes, SEGMENT);
    let mut world = world(config, 2, dir.path());
    for round in 0..8 {
        world.run(&Mix::WRITES, 150);
        let cache = world.cache(0).clone();
        cache.resize_start(bytes(least)).unwrap();
        let error = cache.resize_start(bytes(least + 5)).unwrap_err();
        assert!(
            matches!(error, CacheError::Resizing { target } if target == least),
            "{error}"
        );
        for _ in 0..round * 40 {
            world.turn();
        }
        // Also when all were drained just now, and not given back.
        cache.resize_start(bytes(least + 30)).unwrap();
        assert_eq!(cache.resize_status(), None);
        assert!(cache.resize_step().unwrap());
        if round % 2 == 0 {
            resize(&mut world, 0, least + 28, &Mix::WRITES);
            resize(&mut world, 0, least + 30, &Mix::WRITES);
        }
    }
    world.drain();
    let cache = world.cache(0).clone();
    world.until("what was kept back", |_| {
        cache.status().segments_leaving == 0
    });
    world.check_volumes();
    world.stop(20_000);
    check_pool(&world);
}

#[test]
fn a_cache_that_stops_calls_its_resize_off() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        spare_segments: 30,
        ..WorldConfig::new(seed())
    };
    let least = segments_min(config.lanes, SEGMENT);
    let mut world = world(config, 0, dir.path());
    world.run(&Mix::WRITES, 300);
    let cache = world.cache(0).clone();
    cache.resize_start(bytes(least)).unwrap();
    world.drain();
    world.stop(20_000);
    let error = cache.resize_step().unwrap_err();
    assert!(matches!(error, CacheError::Busy(_)), "{error}");
    assert_eq!(cache.resize_status(), None);
    let error = cache.resize_start(bytes(least)).unwrap_err();
    assert!(matches!(error, CacheError::Busy(_)), "{error}");
    check_pool(&world);
    world.restart();
    world.load();
    assert_eq!(total(&world, 0), least + 30);
    world.check_volumes();
}

#[test]
fn a_destroyed_cache_leaves_its_grown_segments_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig {
        caches: 2,
        ..WorldConfig::new(seed())
    };
    let least = segments_min(config.lanes, SEGMENT);
    let mut world = world(config, 8, dir.path());
    resize(&mut world, 1, least + 8, &Mix::WRITES);
    world.run(&Mix::ALL, 200);
    world.drain();
    world.flush_all();
    world.stop(20_000);
    world.pool.destroy_cache("c1", 0, 0, None).unwrap();
    assert_eq!(world.pool.free_segments(), least + 8);
    world.restart();
    world.volumes.truncate(1);
    world.load();
    resize(&mut world, 0, 2 * least + 8, &Mix::ALL);
    world.run(&Mix::ALL, 400);
    resize(&mut world, 0, least, &Mix::ALL);
    world.drain();
    world.check_volumes();
    world.stop(20_000);
    check_pool(&world);
}
