//! The engine: a log-structured write-back cache on persistent memory in front of a block device.
//!
//! A [`Pool`] is a formatted pmem bdev; it holds caches. A [`Cache`] is a bdev on two others. Its
//! logical space belongs to *lanes*, which run on the data reactors and share nothing on a hit;
//! writeback and GC are pollers on the maintenance reactors. `docs/architecture.md` has the picture,
//! `docs/format.md` the media.

mod activity;
mod admission;
mod audit;
mod backing_flush;
mod backing_read;
mod backing_sample;
mod bad;
mod begin_run;
mod bulk_insert;
mod bypass;
mod bypassed;
#[expect(
    clippy::module_inception,
    reason = "the cache itself is one noun among the engine's"
)]
mod cache;
mod channel;
mod check;
mod close;
mod control;
mod control_io;
mod copies;
mod create;
mod damaged;
mod error;
mod fault;
mod flush_all;
mod gather;
mod gc;
mod generations;
mod geometry;
mod group;
#[cfg(test)]
mod hot_path_tests;
mod in_log;
mod key;
mod key_index;
mod lag;
mod lane;
mod latency;
mod live_options;
mod load;
mod load_report;
mod loading;
mod log;
mod log_damage;
mod log_probe;
mod log_reader;
mod log_start;
mod look_only;
mod lost;
mod marks;
mod modes;
mod options;
mod owners;
mod pace;
mod plausible;
mod policy;
mod pool;
mod prefetch;
mod read;
mod release;
mod relog;
mod replay;
mod resize;
mod rest;
mod scrub;
mod segment_alloc;
mod segment_map;
mod seq_tracker;
mod settle;
mod shared;
mod slow_io;
mod staged;
mod staging;
mod stats;
mod stats_base;
mod stop;
mod streams;
mod survey;
mod try_lock;
mod unreadable;
mod window;
mod write;
mod writeback;

pub use crate::media::CacheEntry;
pub use cache::{Cache, CacheStatus};
pub use check::{
    CacheCheck, CheckReport, DataFigures, Finding, FindingKind, LogFigures, LostRange,
    OptionsCheck, PoolCheck, SegmentFigures, TailCheck, check_pmem, check_pool,
};
pub use create::CreateCache;
pub use error::{CacheError, LogDamage};
#[cfg(feature = "fault-injection")]
pub use fault::inject;
pub use fault::{Fault, UnknownFault};
pub use geometry::{
    LANES_MAX, PoolGeometry, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_CONTROL_BYTES,
    SEGMENTS_MAX, data_start, log_reserve, segments_min,
};
pub use latency::{LatencyFigures, LatencySnapshot};
pub use load_report::{BadPlace, LostClean, Missing, Unwritable};
pub use loading::{LoadWish, Loading};
pub use options::{CacheOptions, Durability, Mode, SeqCutoff, WritebackOrder};
pub use pool::{Pool, PoolFormat};
pub use replay::ReplayReport;
pub use resize::ResizeStatus;
pub use scrub::{ScrubLevel, ScrubStatus};
pub use shared::Runtime;
pub use slow_io::SlowIo;
pub use stats::{GcFigures, LaneFigures, WritebackFigures};
pub use stats_base::StatsFigures;
pub(crate) use survey::{SurveyedData, SurveyedKset};
