//! What a run is made of: drawn from the seed, and from the profile.

use super::SimError;
use super::mix::Mix;
use super::pmem::MediumKind;
use super::rng::Rng;
use crate::cache::{CacheOptions, Durability, Mode, SeqCutoff, WritebackOrder, segments_min};
use crate::units::ByteRange;
use std::str::FromStr;

/// What a campaign looks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Everything, in turn: each seed draws one of the others, `exhaustive` excepted.
    #[default]
    Mixed,
    /// Random requests, crashes, stops, changes of options and faults of the backing.
    Lives,
    /// Short lives with one-key ksets on several reactors, cut off again and again.
    Short,
    /// Pools that are full all the time.
    Full,
    /// Slow misses, while what they fetch is overwritten, written back and evicted.
    Evict,
    /// Small keys in great numbers: the log goes from segment to segment, and is cut just there.
    Hops,
    /// `writeback_order = strict`, and the backing alone looked at all the time.
    Order,
    /// Barriers and flushes that fail, media and disks that lose what they were given.
    Faults,
    /// Media that decay: flipped bits and unreadable lines in data and log.
    Damage,
    /// Caches that grow and shrink, beside each other, and are cut while they do.
    Resize,
    /// Writes that bypass the cache, in all modes, while these change.
    Modes,
    /// Small runs that are cut at every persist point.
    Exhaustive,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Mixed,
        Self::Lives,
        Self::Short,
        Self::Full,
        Self::Evict,
        Self::Hops,
        Self::Order,
        Self::Faults,
        Self::Damage,
        Self::Resize,
        Self::Modes,
        Self::Exhaustive,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::Lives => "lives",
            Self::Short => "short",
            Self::Full => "full",
            Self::Evict => "evict",
            Self::Hops => "hops",
            Self::Order => "order",
            Self::Faults => "faults",
            Self::Damage => "damage",
            Self::Resize => "resize",
            Self::Modes => "modes",
            Self::Exhaustive => "exhaustive",
        }
    }
}

impl FromStr for Profile {
    type Err = SimError;

    fn from_str(name: &str) -> Result<Self, SimError> {
        Self::ALL
            .into_iter()
            .find(|profile| profile.name() == name)
            .ok_or_else(|| SimError::Profile {
                name: name.to_owned(),
            })
    }
}

/// How a simulated machine is built and treated.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) profile: Profile,
    pub(super) seed: u64,
    pub(super) reactors: u32,
    pub(super) caches: usize,
    pub(super) lanes: u32,
    pub(super) segment_bytes: u64,
    /// Segments of each cache above the fewest that are allowed.
    pub(super) spare_segments: u32,
    /// Bytes of each volume.
    pub(super) volume_bytes: u64,
    /// The part of it that is used; nothing for all.
    pub(super) span: ByteRange,
    pub(super) block_bytes: u32,
    pub(super) options: CacheOptions,
    /// Requests under way at most, over all clients.
    pub(super) depth: usize,
    pub(super) clients: usize,
    /// How many requests in a thousand may be up to 4 MiB, and up to 256 KiB.
    pub(super) large_permille: u64,
    pub(super) medium_permille: u64,
    /// All others are of one or two blocks.
    pub(super) small: bool,
    pub(super) medium: MediumKind,
    /// Longest time that a barrier takes, ns.
    pub(super) barrier_ns: u64,
    /// Longest time that the backing takes, ns.
    pub(super) disk_ns: u64,
    pub(super) disk_cache: bool,
    /// Reads in a thousand that take a thousand times as long.
    pub(super) slow_read_permille: u64,
    pub(super) mix: Mix,
    /// How often in a thousand a life ends when something rare has just happened.
    pub(super) hot_permille: u64,
    /// How often in a thousand a load is followed by another end before anything is read.
    pub(super) blind_permille: u64,
    /// Requests of a seed in hundredths of what was asked for.
    pub(super) operations_percent: u64,
    /// The scheduler starves somebody now and then.
    pub(super) unfair: bool,
    /// Writes may bypass the cache: mode, cut-off and admission are drawn, too.
    pub(super) modes: bool,
    /// Devices fail for a while.
    pub(super) trouble: bool,
    /// The backing alone is looked at all the time.
    pub(super) looks_at_backing: bool,
}

/// How requests pass the cache.
fn random_modes(rng: &mut Rng, options: CacheOptions) -> CacheOptions {
    CacheOptions {
        mode: rng.pick(&[
            Mode::Wb,
            Mode::Wt,
            Mode::Wt,
            Mode::Wa,
            Mode::Wa,
            Mode::Wo,
            Mode::Pt,
            Mode::Pt,
        ]),
        seq_cutoff_policy: rng.pick(&[SeqCutoff::Never, SeqCutoff::Full, SeqCutoff::Always]),
        seq_cutoff_kib: rng.pick(&[1, 8, 64]),
        admission: rng.pick(&[1, 1, 2]),
        ..options
    }
}

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

impl Plan {
    /// The plan of a seed.
    pub(super) fn draw(profile: Profile, seed: u64) -> (Self, Rng) {
        let mut rng = Rng::new(seed);
        let profile = match profile {
            Profile::Mixed => rng.pick(&[
                Profile::Lives,
                Profile::Lives,
                Profile::Lives,
                Profile::Short,
                Profile::Short,
                Profile::Full,
                Profile::Evict,
                Profile::Hops,
                Profile::Order,
                Profile::Faults,
                Profile::Damage,
                Profile::Resize,
                Profile::Modes,
                Profile::Modes,
            ]),
            other => other,
        };
        let mut plan = Self::lives(profile, seed, &mut rng);
        match profile {
            Profile::Mixed | Profile::Lives => {}
            Profile::Short => plan.shorten(&mut rng),
            Profile::Full => plan.fill(&mut rng),
            Profile::Evict => plan.evict(&mut rng),
            Profile::Hops => plan.hop(&mut rng),
            Profile::Order => plan.order(&mut rng),
            Profile::Faults => {
                plan.caches = 1;
                plan.trouble = true;
            }
            Profile::Modes => plan.bypass(&mut rng),
            Profile::Damage => {
                plan.caches = 1;
                plan.options.data_crc = true;
                plan.options.verify_reads = true;
                plan.spare_segments = rng.pick(&[8, 20]);
            }
            Profile::Resize => plan.resize(&mut rng),
            Profile::Exhaustive => plan.make_small(&mut rng),
        }
        (plan, rng)
    }

    fn lives(profile: Profile, seed: u64, rng: &mut Rng) -> Self {
        let medium = rng.pick(&[
            MediumKind::Dax,
            MediumKind::Dax,
            MediumKind::Eadr,
            MediumKind::Msync,
            MediumKind::Msync,
        ]);
        let barrier_ns = match medium {
            MediumKind::Msync => rng.pick(&[0, 30_000, 400_000]),
            // A fence is over at once; that of a model with one reactor's fences late finds more.
            MediumKind::Dax => rng.pick(&[0, 0, 30_000]),
            MediumKind::Eadr => 0,
        };
        Self {
            profile,
            seed,
            reactors: rng.pick(&[1, 2, 3]),
            caches: rng.pick(&[1, 1, 1, 2]),
            lanes: rng.pick(&[1, 2, 2, 4]),
            segment_bytes: 256 << 10,
            spare_segments: rng.pick(&[0, 0, 20]),
            volume_bytes: rng.pick(&[2 << 20, (4 << 20) + 65_536, (8 << 20) + 4096 * 7]),
            span: ByteRange::default(),
            block_bytes: rng.pick(&[512, 512, 512, 4096]),
            options: random_options(rng),
            depth: rng.pick(&[1, 4, 16, 32]),
            clients: rng.pick(&[1, 2, 4]),
            large_permille: rng.pick(&[0, 0, 5]),
            medium_permille: rng.pick(&[20, 100]),
            small: false,
            medium,
            barrier_ns,
            disk_ns: rng.pick(&[0, 20_000, 300_000]),
            disk_cache: rng.permille(700),
            slow_read_permille: 0,
            mix: rng.pick(&[Mix::ALL, Mix::ALL, Mix::WRITES, Mix::FLUSHES, Mix::READS]),
            blind_permille: 250,
            hot_permille: rng.pick(&[0, 100]),
            operations_percent: 100,
            unfair: rng.permille(400),
            modes: false,
            trouble: false,
            looks_at_backing: profile == Profile::Order,
        }
    }

    /// All modes, and what may go wrong in each: misses that race with writes, devices that fail, a
    /// backing that is all that is left.
    fn bypass(&mut self, rng: &mut Rng) {
        match rng.below(5) {
            0 => {}
            1 | 2 => {
                self.evict(rng);
                self.mix = rng.pick(&[Mix::ALL, Mix::READS, Mix::READS, Mix::FLUSHES]);
                self.options.gc_percent = rng.pick(&[0, 0, 70]);
            }
            3 => {
                self.caches = 1;
                self.trouble = true;
                self.span = rng.pick(&[ByteRange::default(), ByteRange::between(0, 131_072)]);
            }
            _ => {
                let order = self.options.writeback_order;
                self.order(rng);
                self.options.writeback_order = order;
                self.looks_at_backing = true;
            }
        }
        self.modes = true;
        self.options = random_modes(rng, self.options.clone());
    }

    /// What a crash cut off lies just where the next run goes on; all of a small volume stays in
    /// the cache, so that the look at it logs nothing there.
    fn shorten(&mut self, rng: &mut Rng) {
        self.reactors = rng.pick(&[1, 2, 2, 3]);
        self.caches = 1;
        self.lanes = rng.pick(&[2, 2, 3]);
        self.volume_bytes = (4 << 20) + 65_536;
        self.span = ByteRange::between((4 << 20) - 16_384, (4 << 20) + 16_384);
        self.spare_segments = 6;
        self.options.gc_percent = 90;
        self.options.kset_flush_ms = 1000;
        self.options.durability = Durability::Flush;
        self.small = true;
        self.mix = rng.pick(&[Mix::FUAS, Mix::SOME_FUAS, Mix::SOME_FUAS, Mix::FLUSHES]);
        // Ksets of two reactors that are under way at once leave gaps.
        self.medium = rng.pick(&[MediumKind::Dax, MediumKind::Dax, MediumKind::Msync]);
        self.barrier_ns = rng.pick(&[30_000, 100_000]);
        self.operations_percent = 50;
        self.blind_permille = 500;
        self.large_permille = 0;
        self.medium_permille = 0;
        self.depth = rng.pick(&[4, 8, 16]);
        self.clients = 3;
    }

    fn fill(&mut self, rng: &mut Rng) {
        self.spare_segments = rng.pick(&[0, 0, 3]);
        self.volume_bytes = (8 << 20) + 4096 * 7;
        self.mix = rng.pick(&[Mix::WRITES, Mix::WRITES, Mix::ALL, Mix::READS]);
        self.large_permille = rng.pick(&[2, 10]);
        self.medium_permille = 150;
        self.depth = rng.pick(&[8, 24, 64]);
        self.clients = rng.pick(&[2, 4]);
    }

    fn evict(&mut self, rng: &mut Rng) {
        self.caches = 1;
        self.span = ByteRange::between(0, 65_536);
        self.mix = Mix::READS;
        self.large_permille = 0;
        self.medium_permille = 0;
        self.options.gc_percent = 0;
        self.options.kset_flush_ms = 1;
        self.options.dirty_low_percent = 0;
        self.options.dirty_high_percent = rng.pick(&[0, 10]);
        self.options.writeback_delay_ms = 0;
        self.disk_ns = rng.pick(&[0, 20_000]);
        self.slow_read_permille = 200;
        self.depth = rng.pick(&[4, 8]);
    }

    fn hop(&mut self, rng: &mut Rng) {
        self.caches = 1;
        self.lanes = rng.pick(&[1, 2]);
        self.volume_bytes = rng.pick(&[1 << 20, (4 << 20) + 65_536]);
        self.block_bytes = 512;
        self.options.durability = Durability::Flush;
        self.mix = rng.pick(&[Mix::FUAS, Mix::SOME_FUAS, Mix::SMALL]);
        self.large_permille = 0;
        self.medium_permille = 0;
        self.small = true;
        self.depth = rng.pick(&[16, 64]);
        self.operations_percent = 600;
        self.hot_permille = 400;
    }

    fn order(&mut self, rng: &mut Rng) {
        self.options.writeback_order = WritebackOrder::Strict;
        self.options.durability = Durability::Flush;
        self.options.kset_flush_ms = rng.pick(&[1, 1000]);
        self.mix = rng.pick(&[Mix::FLUSHES, Mix::FLUSHES, Mix::ALL]);
        self.caches = 1;
        self.volume_bytes = rng.pick(&[256 << 10, (4 << 20) + 65_536]);
        self.large_permille = 0;
        self.medium_permille = 20;
        self.disk_cache = true;
        self.depth = rng.pick(&[1, 1, 4, 12]);
    }

    fn resize(&mut self, rng: &mut Rng) {
        self.caches = rng.pick(&[1, 2, 2, 3]);
        self.lanes = rng.pick(&[1, 1, 2]);
        self.spare_segments = rng.pick(&[0, 4, 20]);
        self.volume_bytes = rng.pick(&[2 << 20, (4 << 20) + 65_536]);
        self.mix = rng.pick(&[Mix::ALL, Mix::WRITES, Mix::WRITES, Mix::READS]);
        self.medium_permille = 200;
        self.clients = 4;
    }

    fn make_small(&mut self, rng: &mut Rng) {
        self.caches = 1;
        self.lanes = rng.pick(&[1, 2]);
        self.spare_segments = 0;
        self.volume_bytes = rng.pick(&[512 << 10, (4 << 20) + 65_536]);
        self.depth = rng.pick(&[2, 6]);
        self.clients = 2;
        self.large_permille = 0;
        self.medium_permille = rng.pick(&[20, 200]);
        self.options.kset_flush_ms = rng.pick(&[1, 20]);
        self.options.gc_percent = rng.pick(&[0, 30]);
        self.mix = rng.pick(&[Mix::ALL, Mix::FLUSHES, Mix::FUAS, Mix::WRITES]);
        if rng.permille(500) {
            self.modes = true;
            self.options = random_modes(rng, self.options.clone());
        }
    }

    /// Options for a change at run time.
    pub(super) fn other_options(&self, rng: &mut Rng) -> CacheOptions {
        let options = CacheOptions {
            data_crc: self.options.data_crc,
            writeback_order: self.options.writeback_order,
            durability: self.options.durability,
            verify_reads: self.options.verify_reads,
            ..random_options(rng)
        };
        if self.modes {
            random_modes(rng, options)
        } else {
            options
        }
    }

    /// Segments of each cache.
    pub(super) fn segments(&self) -> u32 {
        segments_min(self.lanes, self.segment_bytes) + self.spare_segments
    }

    /// The part of each volume that is used.
    pub(super) fn used(&self) -> ByteRange {
        if self.span.is_empty() {
            ByteRange::between(0, self.volume_bytes)
        } else {
            self.span
        }
    }

    /// Bytes that the pool needs.
    pub(super) fn pool_bytes(&self) -> u64 {
        (4 << 20) + u64::from(self.segments()) * self.caches as u64 * self.segment_bytes
    }
}
