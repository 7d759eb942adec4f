//! What the backing alone is worth when the pmem is lost: with `writeback_order = strict` a flush
//! boundary plus any subset of the one epoch behind it, at any moment and across crashes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::Op;
use pmcache::cache::{CacheOptions, WritebackOrder};
use pmcache::units::ByteRange;
use rig::disks::VolatileDisk;
use rig::rng::{Rng, SaySeed, is_full_run, seed};
use rig::sectors::{Version, parse};
use rig::slow_pmem::SlowPmem;
use rig::world::{World, WorldConfig, pool_bytes};
use std::sync::Arc;

const SECTORS: u64 = 512;

/// For each sector the writes that it saw, with their epoch.
struct Written {
    of_sector: Vec<Vec<(Version, u32)>>,
    epoch: u32,
    version: Version,
}

impl Written {
    fn write(&mut self, start: u64, len: u64) {
        self.version += 1;
        for number in start..start + len {
            let sector = &mut self.of_sector[usize::try_from(number).unwrap()];
            sector.push((self.version, self.epoch));
        }
    }

    /// The epoch of `version` in a sector; zeroes are older than all.
    fn epoch_of(&self, number: usize, version: Version) -> u32 {
        let mut found = self.of_sector[number].iter();
        found
            .find(|(v, _)| *v == version)
            .map_or(0, |(_, epoch)| *epoch)
    }

    /// Every epoch before the newest one that can be seen is there as a whole.
    fn check(&self, image: &[u8]) {
        let seen: Vec<Version> = image
            .chunks_exact(512)
            .map(|sector| parse(sector).expect("no torn sector").1)
            .collect();
        let newest = seen.iter().enumerate();
        let newest = newest
            .map(|(number, version)| self.epoch_of(number, *version))
            .max()
            .unwrap_or(0);
        for (number, version) in seen.iter().enumerate() {
            let due = self.of_sector[number]
                .iter()
                .rev()
                .find(|(_, epoch)| *epoch < newest);
            let due = due.map_or(0, |(version, _)| *version);
            assert!(
                *version >= due,
                "epoch {newest} has begun, but sector {number} holds version {version}, not {due}"
            );
        }
    }

    /// What a crash has lost is as if it had never been written. Nobody flushed, so the epoch goes on.
    fn forget_lost(&mut self, image: &[u8]) {
        for (number, sector) in image.chunks_exact(512).enumerate() {
            let (_, version) = parse(sector).expect("no torn sector");
            self.of_sector[number].retain(|(v, _)| *v <= version);
        }
    }
}

fn random_config(rng: &mut Rng, total: u64) -> WorldConfig {
    WorldConfig {
        volume_bytes: total * 512,
        lanes: 2,
        clients: 1,
        reactors: rng.pick(&[1, 2]),
        keeps_durable: true,
        options: CacheOptions {
            writeback_order: WritebackOrder::Strict,
            kset_flush_ms: rng.pick(&[1, 1000]),
            gc_percent: rng.pick(&[0, 70]),
            ..CacheOptions::default()
        },
        ..WorldConfig::new(rng.next())
    }
}

fn live(rng: &mut Rng, steps: u32) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    // Half of the lives work across the border between two lanes.
    let base = rng.pick(&[0, (4 << 20) / 512 - SECTORS / 2]);
    let total = base + SECTORS;
    let config = random_config(rng, total);
    let mut pmem = SlowPmem::new(pool_bytes(&config), rng.pick(&[0, 5]), rng.next());
    let mut disk = VolatileDisk::new(config.volume_bytes, rng.next());
    let mut world = World::over(
        config,
        Arc::new(pmem.clone()),
        vec![Arc::new(disk.clone())],
        dir.path().to_path_buf(),
    );
    let mut written = Written {
        of_sector: vec![Vec::new(); usize::try_from(total).unwrap()],
        epoch: 1,
        version: 0,
    };
    let mut checks = 0;
    for _ in 0..steps {
        match rng.below(20) {
            0 => {
                let reactors = rng.pick(&[1, 2]);
                if rng.permille(500) {
                    pmem = pmem.cut_power(rng);
                    disk = disk.cut_power(rng);
                    world.volumes[0].backing = Arc::new(disk.clone());
                    world.lose_power(Arc::new(pmem.clone()), reactors);
                } else {
                    world.die(reactors);
                }
                world.load();
                world.settle(true);
                let cache = world.cache(0).clone();
                let image = world.read_all(&*cache);
                written.forget_lost(&image);
            }
            1..=4 => {
                world.submit(0, Op::Flush, ByteRange::default());
                world.drain();
                written.epoch += 1;
            }
            _ => {
                let len = 1 + rng.below(40);
                let start = base + rng.below(SECTORS - len);
                let range = ByteRange::between(start * 512, (start + len) * 512);
                written.write(start, len);
                world.submit(0, Op::Write { fua: false }, range);
                world.drain();
            }
        }
        for _ in 0..rng.below(40) {
            world.turn();
        }
        if base == 0 || rng.permille(50) {
            written.check(&disk.image_after_cut(rng));
            checks += 1;
        }
    }
    checks
}

#[test]
fn the_backing_alone_is_at_a_flush_boundary() {
    let seed = seed();
    let _say = SaySeed(seed);
    let mut rng = Rng::new(seed);
    let lives = if is_full_run() { 60 } else { 15 };
    let checks: u32 = (0..lives).map(|_| live(&mut rng, 300)).sum();
    println!("{checks} moments checked, seed {seed}");
}
