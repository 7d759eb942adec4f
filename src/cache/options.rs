//! What an operator chooses about a cache.

use super::CacheError;
use crate::media::CacheEntry;
use zerocopy::little_endian::U32;

/// When a write that completed survives power loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After the next FLUSH, or within `kset_flush_ms`.
    #[default]
    Flush,
    /// At once.
    Write,
}

/// What the backing alone is worth if the pmem is lost (design, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WritebackOrder {
    /// Strict while it keeps up; under pressure windows span epochs.
    #[default]
    Adaptive,
    /// A flush boundary plus any subset of one epoch.
    Strict,
    /// No promise.
    Relaxed,
}

/// How requests pass the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Write-back.
    #[default]
    Wb,
    /// Write-through.
    Wt,
    /// Write-around.
    Wa,
    /// Write-only.
    Wo,
    /// Pass-through.
    Pt,
}

impl Mode {
    /// Whether writes go to the backing before they complete, as far as they can: what was flushed is
    /// there, too, once nothing is dirty that was written in another mode.
    #[must_use]
    pub fn bypasses(self) -> bool {
        matches!(self, Self::Wt | Self::Wa | Self::Pt)
    }

    /// Whether what a read had to fetch is kept.
    #[must_use]
    pub fn fills(self) -> bool {
        !matches!(self, Self::Wo | Self::Pt)
    }
}

/// When a long sequential stream of reads or writes bypasses the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SeqCutoff {
    /// Never.
    #[default]
    Never,
    /// While GC has to make room.
    Full,
    /// Always.
    Always,
}

/// Options of a cache; kept on media.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// How requests pass.
    pub mode: Mode,
    /// When a completed write is durable.
    pub durability: Durability,
    /// What the backing alone is worth.
    pub writeback_order: WritebackOrder,
    /// Whether keys carry a CRC of their data. Fixed at creation.
    pub data_crc: bool,
    /// Check the CRC on every hit. Wants `data_crc`.
    pub verify_reads: bool,
    /// GC works while more than this share of the allocatable segments is used; 0 to 90.
    pub gc_percent: u32,
    /// An open kset older than this is closed; ms, 1 to 60 000.
    pub kset_flush_ms: u32,
    /// Requests that writeback keeps under way; 1 to 256.
    pub writeback_depth: u32,
    /// Limit of writeback, MiB/s; 0 for none.
    pub writeback_rate_mbps: u32,
    /// Keys younger than this wait, to absorb overwrites; ms.
    pub writeback_delay_ms: u32,
    /// Adaptive order gives way above this lag; s.
    pub writeback_lag_s: u32,
    /// Percent of the data space that is dirty from which writeback runs, paced.
    pub dirty_low_percent: u32,
    /// … and from which it runs as fast as it can.
    pub dirty_high_percent: u32,
    /// A request that waits longer for space fails; s, 0 for never.
    pub no_space_timeout_s: u32,
    /// Which streams bypass the cache …
    pub seq_cutoff_policy: SeqCutoff,
    /// … once they are so long; KiB, 1 to 4 194 304.
    pub seq_cutoff_kib: u32,
    /// On which miss a block is kept; 1 to 100.
    pub admission: u32,
}

/// Longest stream that can be let in.
const SEQ_CUTOFF_KIB_MAX: u32 = 4 << 20;
/// Highest number of the miss that admits a block.
const ADMISSION_MAX: u32 = 100;

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            mode: Mode::Wb,
            durability: Durability::Flush,
            writeback_order: WritebackOrder::Adaptive,
            data_crc: true,
            verify_reads: false,
            gc_percent: 70,
            kset_flush_ms: 1000,
            writeback_depth: 32,
            writeback_rate_mbps: 0,
            writeback_delay_ms: 0,
            writeback_lag_s: 30,
            dirty_low_percent: 10,
            dirty_high_percent: 60,
            no_space_timeout_s: 0,
            seq_cutoff_policy: SeqCutoff::Never,
            seq_cutoff_kib: 1024,
            admission: 1,
        }
    }
}

impl CacheOptions {
    /// Checks that every value is within its bounds.
    ///
    /// # Errors
    /// [`CacheError::Invalid`], naming the option.
    pub fn check(&self) -> Result<(), CacheError> {
        let invalid = |text: String| Err(CacheError::Invalid(text));
        if self.verify_reads && !self.data_crc {
            return invalid(
                "verify_reads wants data_crc: without it there is nothing to check".into(),
            );
        }
        if self.gc_percent > 90 {
            return invalid(format!(
                "gc_percent {} is not within 0..=90",
                self.gc_percent
            ));
        }
        if !(1..=60_000).contains(&self.kset_flush_ms) {
            return invalid(format!(
                "kset_flush_ms {} is not within 1..=60000",
                self.kset_flush_ms
            ));
        }
        if !(1..=256).contains(&self.writeback_depth) {
            return invalid(format!(
                "writeback_depth {} is not within 1..=256",
                self.writeback_depth
            ));
        }
        if self.dirty_high_percent > 100 || self.dirty_low_percent > self.dirty_high_percent {
            return invalid(format!(
                "dirty_low_percent {} and dirty_high_percent {} must rise and stay within 100",
                self.dirty_low_percent, self.dirty_high_percent
            ));
        }
        if !(1..=SEQ_CUTOFF_KIB_MAX).contains(&self.seq_cutoff_kib) {
            return invalid(format!(
                "seq_cutoff_kib {} is not within 1..={SEQ_CUTOFF_KIB_MAX}",
                self.seq_cutoff_kib
            ));
        }
        if !(1..=ADMISSION_MAX).contains(&self.admission) {
            return invalid(format!(
                "admission {} is not within 1..={ADMISSION_MAX}",
                self.admission
            ));
        }
        Ok(())
    }

    /// Whether writes may reach the backing past the log.
    pub(crate) fn may_bypass(&self) -> bool {
        self.mode.bypasses() || self.seq_cutoff_policy != SeqCutoff::Never
    }

    /// Puts the options into a cache's place in the superblock.
    pub(crate) fn store(&self, entry: &mut CacheEntry) {
        entry.mode = U32::new(match self.mode {
            Mode::Wb => 0,
            Mode::Wt => 1,
            Mode::Wa => 2,
            Mode::Wo => 3,
            Mode::Pt => 4,
        });
        entry.durability = U32::new(u32::from(self.durability == Durability::Write));
        entry.writeback_order = U32::new(match self.writeback_order {
            WritebackOrder::Adaptive => 0,
            WritebackOrder::Strict => 1,
            WritebackOrder::Relaxed => 2,
        });
        entry.checks = U32::new(u32::from(self.data_crc) | u32::from(self.verify_reads) << 1);
        entry.gc_percent = U32::new(self.gc_percent);
        entry.kset_flush_ms = U32::new(self.kset_flush_ms);
        entry.writeback_depth = U32::new(self.writeback_depth);
        entry.writeback_rate_mbps = U32::new(self.writeback_rate_mbps);
        entry.writeback_delay_ms = U32::new(self.writeback_delay_ms);
        entry.writeback_lag_s = U32::new(self.writeback_lag_s);
        entry.dirty_low_percent = U32::new(self.dirty_low_percent);
        entry.dirty_high_percent = U32::new(self.dirty_high_percent);
        entry.no_space_timeout_s = U32::new(self.no_space_timeout_s);
        entry.seq_cutoff_policy = U32::new(match self.seq_cutoff_policy {
            SeqCutoff::Never => 0,
            SeqCutoff::Full => 1,
            SeqCutoff::Always => 2,
        });
        entry.seq_cutoff_kib = U32::new(self.seq_cutoff_kib);
        entry.admission = U32::new(self.admission);
        if self.may_bypass() {
            // It stays: nobody knows when the last of these writes was flushed by the backing.
            entry.bypassed = U32::new(1);
        }
    }

    /// Reads the options of a cache from its place in the superblock.
    ///
    /// # Errors
    /// [`CacheError::Invalid`] for a value that this code does not write.
    pub(crate) fn load(entry: &CacheEntry) -> Result<Self, CacheError> {
        let unknown = |what: &str, value: u32| {
            CacheError::Invalid(format!("superblock: {what} has the unknown value {value}"))
        };
        let mode = match entry.mode.get() {
            0 => Mode::Wb,
            1 => Mode::Wt,
            2 => Mode::Wa,
            3 => Mode::Wo,
            4 => Mode::Pt,
            other => return Err(unknown("mode", other)),
        };
        let writeback_order = match entry.writeback_order.get() {
            0 => WritebackOrder::Adaptive,
            1 => WritebackOrder::Strict,
            2 => WritebackOrder::Relaxed,
            other => return Err(unknown("writeback_order", other)),
        };
        let durability = match entry.durability.get() {
            0 => Durability::Flush,
            1 => Durability::Write,
            other => return Err(unknown("durability", other)),
        };
        let seq_cutoff_policy = match entry.seq_cutoff_policy.get() {
            0 => SeqCutoff::Never,
            1 => SeqCutoff::Full,
            2 => SeqCutoff::Always,
            other => return Err(unknown("seq_cutoff_policy", other)),
        };
        let options = Self {
            mode,
            durability,
            writeback_order,
            data_crc: entry.checks.get() & 1 != 0,
            verify_reads: entry.checks.get() & 2 != 0,
            gc_percent: entry.gc_percent.get(),
            kset_flush_ms: entry.kset_flush_ms.get(),
            writeback_depth: entry.writeback_depth.get(),
            writeback_rate_mbps: entry.writeback_rate_mbps.get(),
            writeback_delay_ms: entry.writeback_delay_ms.get(),
            writeback_lag_s: entry.writeback_lag_s.get(),
            dirty_low_percent: entry.dirty_low_percent.get(),
            dirty_high_percent: entry.dirty_high_percent.get(),
            no_space_timeout_s: entry.no_space_timeout_s.get(),
            seq_cutoff_policy,
            seq_cutoff_kib: entry.seq_cutoff_kib.get(),
            admission: entry.admission.get(),
        };
        options.check()?;
        Ok(options)
    }
}
