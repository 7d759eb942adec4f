//! The flags of `pmcache bench`.

use super::stack::Device;
use crate::app::serve::RUN_DIR;
use crate::bench::Pattern;
use clap::{Args, ValueEnum};
use reactors::CoreSet;
use std::path::PathBuf;

/// Measures latencies in this process; every device with every pattern at every depth.
#[derive(Debug, Args)]
pub(in crate::app) struct BenchArgs {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Device::Null, Device::Malloc, Device::Cache])]
    pub(super) bdev: Vec<Device>,
    /// Which requests.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Rw::Randwrite, Rw::Randread])]
    pub(super) rw: Vec<Rw>,
    /// Requests under way.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    pub(super) depth: Vec<u32>,
    /// Bytes of each request.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    pub(super) block_size: u32,
    /// Size of each device in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub(super) size_mib: u64,
    /// Seconds to count.
    #[arg(long, default_value_t = 3.0)]
    pub(super) seconds: f64,
    /// Seconds to run before that.
    #[arg(long, default_value_t = 1.0)]
    pub(super) warmup: f64,
    /// The core to run on: the first of the set.
    #[arg(long, value_name = "MASK", default_value = "0x1")]
    pub(super) cpumask: CoreSet,
    /// Where the cache's staging file goes; on tmpfs.
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub(super) run_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Rw {
    Randread,
    Randwrite,
    Read,
    Write,
}

impl From<Rw> for Pattern {
    fn from(rw: Rw) -> Self {
        match rw {
            Rw::Randread => Self::RandRead,
            Rw::Randwrite => Self::RandWrite,
            Rw::Read => Self::SeqRead,
            Rw::Write => Self::SeqWrite,
        }
    }
}
