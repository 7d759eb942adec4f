//! Options as the running parts read them: changed by the control thread at any time.

use super::options::{CacheOptions, Durability, WritebackOrder};
use super::policy::Policy;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The options that can change while I/O runs.
#[derive(Debug, Default)]
pub(crate) struct LiveOptions {
    durable_writes: AtomicBool,
    order: AtomicU8,
    gc_percent: AtomicU32,
    kset_flush_ns: AtomicU64,
    writeback_depth: AtomicU32,
    writeback_rate_mbps: AtomicU32,
    writeback_delay_ns: AtomicU64,
    writeback_lag_ns: AtomicU64,
    dirty_low_percent: AtomicU32,
    dirty_high_percent: AtomicU32,
    no_space_timeout_ns: AtomicU64,
    verify_reads: AtomicBool,
    policy: AtomicU32,
    seq_cutoff_bytes: AtomicU64,
}

const RELAXED: Ordering = Ordering::Relaxed;

impl LiveOptions {
    pub(crate) fn new(options: &CacheOptions) -> Self {
        let live = Self::default();
        live.set(options);
        live
    }

    pub(crate) fn set(&self, options: &CacheOptions) {
        self.durable_writes
            .store(options.durability == Durability::Write, RELAXED);
        self.verify_reads.store(options.verify_reads, RELAXED);
        self.order.store(
            match options.writeback_order {
                WritebackOrder::Adaptive => 0,
                WritebackOrder::Strict => 1,
                WritebackOrder::Relaxed => 2,
            },
            RELAXED,
        );
        self.gc_percent.store(options.gc_percent, RELAXED);
        self.kset_flush_ns
            .store(u64::from(options.kset_flush_ms) * 1_000_000, RELAXED);
        self.writeback_depth.store(options.writeback_depth, RELAXED);
        self.writeback_rate_mbps
            .store(options.writeback_rate_mbps, RELAXED);
        self.writeback_delay_ns
            .store(u64::from(options.writeback_delay_ms) * 1_000_000, RELAXED);
        self.writeback_lag_ns
            .store(u64::from(options.writeback_lag_s) * 1_000_000_000, RELAXED);
        self.dirty_low_percent
            .store(options.dirty_low_percent, RELAXED);
        self.dirty_high_percent
            .store(options.dirty_high_percent, RELAXED);
        self.no_space_timeout_ns.store(
            u64::from(options.no_space_timeout_s) * 1_000_000_000,
            RELAXED,
        );
        self.seq_cutoff_bytes
            .store(u64::from(options.seq_cutoff_kib) << 10, RELAXED);
        self.policy.store(Policy::of(options).word(), RELAXED);
    }

    pub(crate) fn durable_writes(&self) -> bool {
        self.durable_writes.load(RELAXED)
    }

    pub(crate) fn verify_reads(&self) -> bool {
        self.verify_reads.load(RELAXED)
    }

    pub(crate) fn order(&self) -> WritebackOrder {
        match self.order.load(RELAXED) {
            0 => WritebackOrder::Adaptive,
            1 => WritebackOrder::Strict,
            _ => WritebackOrder::Relaxed,
        }
    }

    pub(crate) fn gc_percent(&self) -> u32 {
        self.gc_percent.load(RELAXED)
    }

    pub(crate) fn kset_flush_ns(&self) -> u64 {
        self.kset_flush_ns.load(RELAXED)
    }

    pub(crate) fn writeback_depth(&self) -> usize {
        self.writeback_depth.load(RELAXED) as usize
    }

    pub(crate) fn writeback_rate_mbps(&self) -> u32 {
        self.writeback_rate_mbps.load(RELAXED)
    }

    pub(crate) fn writeback_delay_ns(&self) -> u64 {
        self.writeback_delay_ns.load(RELAXED)
    }

    pub(crate) fn writeback_lag_ns(&self) -> u64 {
        self.writeback_lag_ns.load(RELAXED)
    }

    pub(crate) fn dirty_low_percent(&self) -> u32 {
        self.dirty_low_percent.load(RELAXED)
    }

    pub(crate) fn dirty_high_percent(&self) -> u32 {
        self.dirty_high_percent.load(RELAXED)
    }

    /// 0 for never.
    pub(crate) fn no_space_timeout_ns(&self) -> u64 {
        self.no_space_timeout_ns.load(RELAXED)
    }

    /// How requests pass.
    pub(crate) fn policy(&self) -> Policy {
        Policy::from_word(self.policy.load(RELAXED))
    }

    /// A stream of so many bytes is cut off.
    pub(crate) fn seq_cutoff_bytes(&self) -> u64 {
        self.seq_cutoff_bytes.load(RELAXED)
    }
}
