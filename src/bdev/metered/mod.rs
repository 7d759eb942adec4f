//! What stands between every bdev of the service and whoever opens it: counts what passes, and keeps
//! it within its rate limits.
//!
//! A channel counts in its reactor's place, with plain stores; no two reactors write the same line.
//! The places belong to the bdev, so that totals outlive channels.

mod bdev;
mod channel;
mod counters;
mod depth;
mod histogram;
mod limits;
mod meter;

pub use bdev::MeteredBdev;
pub use counters::{IoFigures, KindFigures, ResetFigures};
pub use depth::DepthFigures;
pub use histogram::{HistogramCounts, HistogramIo, HistogramOptions};
pub use limits::RateLimits;
