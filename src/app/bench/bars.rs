//! The preset `bars`: the rows whose figures the engine is held to.
//!
//! A cache is a log, so that a stream of writes always ends with writeback and GC at work. What a
//! write costs while they rest is measured on a pool that holds all writes of the row; the row ends
//! when that is nearly full. What it costs while they work is a row of its own, and one more at half
//! the rate that it reached: where they keep up, and nobody waits for room.

use super::device::Device;
use super::row::{Row, Submit};
use super::stack::StackConfig;
use crate::bench::Workload;
use crate::cache::{CacheOptions, Durability};
use crate::units::ByteRange;

/// Bytes of each request.
const PAGE: u32 = 4096;
/// How much larger than the device a pool is that holds all writes of a row.
const ROOMY: u64 = 8;
/// What a 4 KiB write takes of a pool at most: its data, its key, and a kset's head with it.
const WRITE_BYTES: u64 = 4096 + 256;
/// Requests under way where a backing is slow.
const SLOW_DEPTH: u32 = 32;
/// Microseconds that it takes longer.
const SLOW_US: u64 = 200;
/// Warm-up in which writeback and GC reach their steady state, at least.
const STEADY_NS: u64 = 500_000_000;

/// Size and times of the rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct BarsConfig {
    /// Bytes of each device.
    pub(super) bytes: u64,
    /// Nanoseconds to warm up.
    pub(super) warmup_ns: u64,
    /// Nanoseconds to count.
    pub(super) run_ns: u64,
    /// Nanoseconds of an interval of latencies over time.
    pub(super) series_ns: u64,
    /// Seed of all rows.
    pub(super) seed: u64,
    /// Whether there is a second core, to submit from.
    pub(super) has_ring: bool,
}

impl BarsConfig {
    /// The rows, in the order in which they run.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = vec![
            self.idle("write_qd1_local", |_| ()),
            self.idle("write_qd1_local_crc", |row| {
                row.stack.options.data_crc = true;
            }),
            self.idle("write_qd1_durable", |row| {
                row.stack.options.durability = Durability::Write;
            }),
            self.idle("write_qd1_durable_crc", |row| {
                row.stack.options.durability = Durability::Write;
                row.stack.options.data_crc = true;
            }),
            self.idle("write_qd32_local", |row| row.job.depth = 32),
            self.idle("read_hit_qd1_local", |row| {
                row.job.read_percent = 100;
                row.job.requests_max = None;
                row.job.warmup_requests_max = None;
            }),
            self.busy("write_qd1_gc_wb", 1),
            self.busy("write_qd32_gc_wb", 32),
            Row {
                half_rate_of: Some("write_qd1_gc_wb"),
                ..self.busy("write_qd1_gc_wb_paced", 1)
            },
            Row {
                half_rate_of: Some("write_qd1_gc_wb"),
                ..self.idle("write_qd1_idle_paced", |_| ())
            },
            self.slow("backing_slow_qd", Device::Backing),
            self.slow("write_full_pool", Device::Cache),
        ];
        if self.has_ring {
            for (name, data_crc) in [("write_qd1_ring", false), ("write_qd1_ring_crc", true)] {
                rows.push(self.idle(name, |row| {
                    row.submit = Submit::Ring;
                    row.stack.options.data_crc = data_crc;
                }));
            }
        }
        rows
    }

    fn row(&self, name: &str, stack: StackConfig) -> Row {
        Row {
            name: name.to_owned(),
            job: Workload {
                warmup_ns: self.warmup_ns,
                run_ns: self.run_ns,
                series_ns: self.series_ns,
                seed: self.seed,
                ..Workload::new(ByteRange::between(0, self.bytes), PAGE)
            },
            stack,
            jobs: 1,
            submit: Submit::Local,
            fill: true,
            half_rate_of: None,
        }
    }

    /// Writeback and GC rest: there is room for all that the row writes.
    fn idle(&self, name: &str, change: impl FnOnce(&mut Row)) -> Row {
        let mut stack = StackConfig::of(Device::Cache, self.bytes);
        stack.pool_bytes = (self.bytes * ROOMY).max(stack.segment_bytes * 64);
        stack.options = CacheOptions {
            data_crc: false,
            // Nothing is old enough to be written back, and no share of the pool is too large.
            writeback_delay_ms: u32::MAX,
            dirty_low_percent: 100,
            dirty_high_percent: 100,
            gc_percent: 90,
            ..CacheOptions::default()
        };
        // GC begins at 90 %; lanes hold segments that are not full.
        let room = stack.pool_bytes / 5 * 4 - (self.bytes + self.bytes / 16);
        let mut row = self.row(name, stack);
        let writes = room / WRITE_BYTES;
        row.job.requests_max = Some(writes);
        row.job.warmup_requests_max = Some(writes / 8);
        change(&mut row);
        row
    }

    /// Writeback and GC work: the pool holds the device twice, and is overwritten all the time.
    fn busy(&self, name: &str, depth: u32) -> Row {
        let mut stack = StackConfig::of(Device::Cache, self.bytes);
        stack.options.data_crc = false;
        let mut row = self.row(name, stack);
        row.job.depth = depth;
        row.job.warmup_ns = row.job.warmup_ns.max(STEADY_NS.min(self.run_ns));
        row
    }

    /// A backing that is slow, alone or behind a pool that is full.
    fn slow(&self, name: &str, device: Device) -> Row {
        let fill = device == Device::Cache;
        let bytes = 4 * self.bytes;
        let mut stack = StackConfig::of(device, bytes);
        stack.pool_bytes = self.bytes;
        stack.backing_delay_us = SLOW_US;
        // What an operator gives a backing that takes so many: the writes of a window end in a lull.
        stack.options.writeback_depth = 2 * SLOW_DEPTH;
        let mut row = self.row(name, stack);
        row.job.range = ByteRange::between(0, bytes);
        row.job.depth = SLOW_DEPTH;
        row.job.warmup_ns = row.job.warmup_ns.max(4 * STEADY_NS.min(self.run_ns));
        row.fill = fill;
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_names_of_their_own_and_a_second_core_adds_some() {
        let mut config = BarsConfig {
            bytes: 256 << 20,
            warmup_ns: 1,
            run_ns: 1,
            series_ns: 0,
            seed: 1,
            has_ring: false,
        };
        let one_core = config.rows();
        config.has_ring = true;
        let rows = config.rows();
        assert!(rows.len() > one_core.len());
        assert!(one_core.iter().all(|row| row.submit == Submit::Local));
        let mut names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
