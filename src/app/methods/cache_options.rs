//! The options of a cache as parameters: the same names when it is created and later.

use crate::cache::{CacheOptions, Durability, Mode, WritebackOrder};
use rpc::Error;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeName {
    Wb,
    Wt,
    Wa,
    Wo,
    Pt,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Wb => Self::Wb,
            ModeName::Wt => Self::Wt,
            ModeName::Wa => Self::Wa,
            ModeName::Wo => Self::Wo,
            ModeName::Pt => Self::Pt,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DurabilityName {
    Flush,
    Write,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OrderName {
    Adaptive,
    Strict,
    Relaxed,
}

/// Options to be changed; what is absent stays. Sizes of time as in the names, rates in MiB/s.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) durability: Option<DurabilityName>,
    pub(super) writeback_order: Option<OrderName>,
    pub(super) verify_reads: Option<bool>,
    pub(super) gc_percent: Option<u32>,
    pub(super) kset_flush_ms: Option<u32>,
    pub(super) writeback_depth: Option<u32>,
    pub(super) writeback_rate_mbps: Option<u32>,
    pub(super) writeback_delay_ms: Option<u32>,
    pub(super) writeback_lag_s: Option<u32>,
    pub(super) dirty_low_percent: Option<u32>,
    pub(super) dirty_high_percent: Option<u32>,
    pub(super) no_space_timeout_s: Option<u32>,
}

impl Changes {
    /// Makes them in `options`.
    pub(super) fn apply(&self, options: &mut CacheOptions) {
        fn set<T: Copy>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let durability = self.durability.map(|name| match name {
            DurabilityName::Flush => Durability::Flush,
            DurabilityName::Write => Durability::Write,
        });
        let order = self.writeback_order.map(|name| match name {
            OrderName::Adaptive => WritebackOrder::Adaptive,
            OrderName::Strict => WritebackOrder::Strict,
            OrderName::Relaxed => WritebackOrder::Relaxed,
        });
        set(&mut options.durability, durability);
        set(&mut options.writeback_order, order);
        set(&mut options.verify_reads, self.verify_reads);
        set(&mut options.gc_percent, self.gc_percent);
        set(&mut options.kset_flush_ms, self.kset_flush_ms);
        set(&mut options.writeback_depth, self.writeback_depth);
        set(&mut options.writeback_rate_mbps, self.writeback_rate_mbps);
        set(&mut options.writeback_delay_ms, self.writeback_delay_ms);
        set(&mut options.writeback_lag_s, self.writeback_lag_s);
        set(&mut options.dirty_low_percent, self.dirty_low_percent);
        set(&mut options.dirty_high_percent, self.dirty_high_percent);
        set(&mut options.no_space_timeout_s, self.no_space_timeout_s);
    }
}

/// The options, by the names of their parameters.
pub(super) fn describe(options: &CacheOptions) -> Map<String, Value> {
    let value = json!({
        "mode": match options.mode {
            Mode::Wb => "wb",
            Mode::Wt => "wt",
            Mode::Wa => "wa",
            Mode::Wo => "wo",
            Mode::Pt => "pt",
        },
        "durability": match options.durability {
            Durability::Flush => "flush",
            Durability::Write => "write",
        },
        "writeback_order": match options.writeback_order {
            WritebackOrder::Adaptive => "adaptive",
            WritebackOrder::Strict => "strict",
            WritebackOrder::Relaxed => "relaxed",
        },
        "data_crc": options.data_crc,
        "verify_reads": options.verify_reads,
        "gc_percent": options.gc_percent,
        "kset_flush_ms": options.kset_flush_ms,
        "writeback_depth": options.writeback_depth,
        "writeback_rate_mbps": options.writeback_rate_mbps,
        "writeback_delay_ms": options.writeback_delay_ms,
        "writeback_lag_s": options.writeback_lag_s,
        "dirty_low_percent": options.dirty_low_percent,
        "dirty_high_percent": options.dirty_high_percent,
        "no_space_timeout_s": options.no_space_timeout_s,
    });
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// Refuses options of a later version that were asked for.
pub(super) fn refuse_later(option: &str, is_given: bool) -> Result<(), Error> {
    if is_given {
        let message = format!("Operation not supported: option {option}");
        return Err(Error::errno_with(
            rustix::io::Errno::OPNOTSUPP.raw_os_error(),
            message,
        ));
    }
    Ok(())
}
