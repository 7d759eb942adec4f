//! The flags of `pmcache bench`.

use super::device::Device;
use super::plot::Format;
use super::row::Submit;
use super::stack::Backing;
use crate::app::serve::RUN_DIR;
use crate::bench::{Arrival, Order, Size};
use crate::cache::Durability;
use clap::{ArgAction, Args, Subcommand, ValueEnum};
use reactors::CoreSet;
use std::path::PathBuf;

/// Measures latencies in this process, without a service; every device with every pattern at every
/// depth, or the rows of a preset. `docs/bench.md` says what is measured, and how.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(in crate::app) struct BenchArgs {
    /// What to do with documents instead of measuring.
    #[command(subcommand)]
    pub(super) command: Option<SavedCommand>,
    /// Rows that belong together, instead of those that --bdev, --rw and --depth span.
    #[arg(long, value_enum, conflicts_with_all = ["bdev", "rw", "depth", "jobs", "rate", "count", "verify", "submit", "pool_mib", "job_file"])]
    pub(super) preset: Option<Preset>,
    /// Which rows of the preset bars; all if not given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) rows: Vec<String>,
    /// Rows from a job file as fio and bdevperf take them, instead of those that flags span.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bdev", "rw", "rwmixread", "distribution", "depth", "jobs", "block_size", "bssplit", "fua_every", "flush_every", "offset_mib", "working_set_mib", "seconds", "warmup", "count", "rate", "arrival", "verify"])]
    pub(super) job_file: Option<PathBuf>,
    /// What to measure: null, malloc, pmem, cache, backing, an NBD export, as nbd://HOST:PORT/NAME,
    /// nbd+unix:///NAME?socket=PATH or nbd:unix:PATH:NAME, an NVMe/TCP namespace, as
    /// nvme://HOST:PORT/SUBNQN/NSID, or the disk of a vhost-user-blk back end, as vhost:PATH of its socket.
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_values_t = [Device::Null, Device::Malloc, Device::Cache])]
    pub(super) bdev: Vec<Device>,
    /// Which requests.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Pattern::Randwrite, Pattern::Randread])]
    pub(super) rw: Vec<Pattern>,
    /// Reads among 100 requests of rw and randrw.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(super) rwmixread: u32,
    /// Which places random requests draw: uniform, zipf:THETA, or hot:SHARE/SPACE, where SHARE of
    /// the requests (0 to 1) go to the first SPACE of the range.
    #[arg(long, value_name = "KIND", default_value = "uniform", value_parser = parse_order)]
    pub(super) distribution: Order,
    /// Requests under way in each job.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    pub(super) depth: Vec<u32>,
    /// Jobs at once, spread over the cores.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) jobs: u32,
    /// Bytes of each request; 4k and 1m are understood.
    #[arg(long, alias = "bs", value_name = "BYTES", default_value = "4096", value_parser = parse_bytes)]
    pub(super) block_size: u32,
    /// Several sizes with their weights, like 4k/70:64k/30.
    #[arg(long, value_name = "SPLIT", value_parser = parse_split, conflicts_with = "block_size")]
    pub(super) bssplit: Option<Split>,
    /// One write in so many is FUA.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) fua_every: u32,
    /// A flush after so many writes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) flush_every: u32,
    /// Size of each device in MiB; an export has a size.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub(super) size_mib: u64,
    /// Where the part of the device begins that is used, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub(super) offset_mib: u64,
    /// Size of that part in MiB; the rest of the device if it is not given.
    #[arg(long, value_name = "MIB")]
    pub(super) working_set_mib: Option<u64>,
    /// Whether the device is written once before; true unless it is an export.
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    pub(super) prefill: Option<bool>,
    /// Write to exports too: what they hold is lost. Without it only reads are sent there.
    #[arg(long)]
    pub(super) allow_writes: bool,
    /// Seconds to count.
    #[arg(long, default_value_t = 3.0)]
    pub(super) seconds: f64,
    /// Seconds to run before that.
    #[arg(long, visible_alias = "ramp", default_value_t = 1.0)]
    pub(super) warmup: f64,
    /// End each job after so many requests, the warm-up's included.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// Requests a second that each job starts, whatever the device does (open loop): latencies
    /// count from when a request should have started.
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<f64>,
    /// How the requests of an open loop follow one another.
    #[arg(long, value_enum, default_value_t = ArrivalArg::Constant, requires = "rate")]
    pub(super) arrival: ArrivalArg,
    /// Where requests come from: the reactor that serves them, or another one through the rings.
    #[arg(long, value_enum, default_value_t = Submit::Local)]
    pub(super) submit: Submit,
    /// Tag every sector before, check all that is read, and read everything at the end. A sector
    /// that is wrong is told, and the exit code is 1.
    #[arg(long)]
    pub(super) verify: bool,
    /// Seed of places, sizes and arrivals.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Measure everything so many times, in turns, and report medians.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) repeat: u32,
    /// Milliseconds of the intervals of latencies over time; 0 for none.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub(super) series_ms: u64,
    /// Ask NVMe/TCP controllers for digests of headers and data.
    #[arg(long)]
    pub(super) nvme_digests: bool,
    /// Controllers to attach at an NVMe/TCP address; jobs take them in turn, each with a qpair of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) nvme_qpairs: u16,
    /// Write one percentile file for each row here, as HdrHistogram's plotter reads them.
    #[arg(long, value_name = "DIR")]
    pub(super) hgrm: Option<PathBuf>,
    /// Draw percentile curves and latencies over time of all rows here: .svg or .html.
    #[arg(long, value_name = "FILE", value_parser = parse_picture)]
    pub(super) plot: Option<PathBuf>,
    /// Whether to measure what the machine itself takes.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub(super) floors: bool,
    /// The cores to run on. With --submit ring the first serves, and the others submit.
    #[arg(long, value_name = "MASK", default_value = "0x1")]
    pub(super) cpumask: CoreSet,
    /// Where the cache's staging file goes; on tmpfs.
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub(super) run_dir: PathBuf,
    /// How the caches are made.
    #[command(flatten)]
    pub(super) cache: CacheArgs,
}

/// What can be done with documents that `bench --json` has printed.
#[derive(Debug, Subcommand)]
pub(super) enum SavedCommand {
    /// Tell whether B differs from A by more than noise; wants --repeat 5 or more in both.
    Compare {
        /// The document before.
        a: PathBuf,
        /// The document after.
        b: PathBuf,
    },
    /// Draw the runs of documents in one picture.
    Plot {
        /// The documents.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Where: .svg or .html.
        #[arg(long, value_name = "FILE", value_parser = parse_picture)]
        out: PathBuf,
    },
}

/// Flags of a cache and what is behind it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cache")]
pub(super) struct CacheArgs {
    /// Lanes of the cache.
    #[arg(long, default_value_t = 4)]
    pub(super) lanes: u32,
    /// Size of its pool in MiB; twice the device's if it is not given.
    #[arg(long, value_name = "MIB")]
    pub(super) pool_mib: Option<u64>,
    /// Size of its segments in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2)]
    pub(super) segment_mib: u64,
    /// Whether data have a CRC.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub(super) data_crc: bool,
    /// Whether each hit is checked against it.
    #[arg(long, value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    pub(super) verify_reads: bool,
    /// When a completed write is durable.
    #[arg(long, value_enum, default_value_t = DurabilityArg::Flush)]
    pub(super) durability: DurabilityArg,
    /// What is behind it.
    #[arg(long, value_enum, default_value_t = Backing::Malloc)]
    pub(super) backing: Backing,
    /// Microseconds that each request to the backing takes longer.
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub(super) backing_delay_us: u64,
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// What the engine is held to: a cache beside the floors.
    Bars,
    /// How fast a load takes a log of keys of 512 bytes at random places: one for each such block of
    /// --size-mib, which 2048 makes 4 Mi keys.
    Replay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Pattern {
    Randread,
    Randwrite,
    Randrw,
    Read,
    Write,
    Rw,
}

impl Pattern {
    pub(super) fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite | Self::Randrw)
    }

    /// Reads among 100 requests; `mix`: of those that are mixed.
    pub(super) fn read_percent(self, mix: u32) -> u32 {
        match self {
            Self::Randread | Self::Read => 100,
            Self::Randwrite | Self::Write => 0,
            Self::Randrw | Self::Rw => mix,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ArrivalArg {
    Constant,
    Poisson,
}

impl From<ArrivalArg> for Arrival {
    fn from(arg: ArrivalArg) -> Self {
        match arg {
            ArrivalArg::Constant => Self::Constant,
            ArrivalArg::Poisson => Self::Poisson,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DurabilityArg {
    Flush,
    Write,
}

impl From<DurabilityArg> for Durability {
    fn from(arg: DurabilityArg) -> Self {
        match arg {
            DurabilityArg::Flush => Self::Flush,
            DurabilityArg::Write => Self::Write,
        }
    }
}

/// Sizes with their weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Split(pub(super) Vec<Size>);

/// `512`, `4k`, `1m`, in powers of 1024.
fn parse_bytes(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.to_ascii_lowercase().strip_suffix(['k', 'm']) {
        Some(digits) if text.ends_with(['k', 'K']) => (digits.to_owned(), 1 << 10),
        Some(digits) => (digits.to_owned(), 1 << 20),
        None => (text.to_owned(), 1),
    };
    let bytes: Option<u32> = digits.parse().ok();
    bytes
        .and_then(|bytes| bytes.checked_mul(unit))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text:?} is no number of bytes above 0, like 4096, 4k or 1m"))
}

/// A file that can be drawn: known before anything is measured.
fn parse_picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match Format::of(&path) {
        Some(_) => Ok(path),
        None => Err("it ends neither with .svg nor with .html".to_owned()),
    }
}

/// `4k/70:64k/30`.
fn parse_split(text: &str) -> Result<Split, String> {
    let size = |part: &str| {
        let (bytes, weight) = part
            .split_once('/')
            .ok_or_else(|| format!("{part:?} has no weight, as in 4k/70"))?;
        let weight = weight
            .parse()
            .map_err(|_| format!("{weight:?} is no weight, a whole number"))?;
        Ok(Size {
            bytes: parse_bytes(bytes)?,
            weight,
        })
    };
    let sizes: Result<Vec<Size>, String> = text.split(':').map(size).collect();
    Ok(Split(sizes?))
}

/// `uniform`, `zipf:1.1`, `hot:0.9/0.1`.
fn parse_order(text: &str) -> Result<Order, String> {
    let number = |text: &str| {
        let parsed: Result<f64, _> = text.parse();
        parsed.map_err(|_| format!("{text:?} is no number"))
    };
    let order = match text.split_once(':') {
        None if text == "uniform" => Order::Uniform,
        Some(("zipf", theta)) => Order::Zipf {
            theta: number(theta)?,
        },
        Some(("hot", shares)) => {
            let (requests, space) = shares
                .split_once('/')
                .ok_or_else(|| format!("{shares:?} is not SHARE/SPACE, as in 0.9/0.1"))?;
            Order::HotCold {
                requests: number(requests)?,
                space: number(space)?,
            }
        }
        _ => return Err("not uniform, zipf:THETA or hot:SHARE/SPACE".to_owned()),
    };
    if order.is_valid() {
        Ok(order)
    } else {
        Err(format!("{text:?} is out of bounds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_splits_and_distributions_are_read_or_refused() {
        assert_eq!(parse_bytes("4k"), Ok(4096));
        assert_eq!(parse_bytes("1M"), Ok(1 << 20));
        assert_eq!(parse_bytes("512"), Ok(512));
        for bad in ["", "k", "0", "4g", "-1", "4096k1", "9999999m"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        let Split(sizes) = parse_split("4k/70:64k/30").unwrap();
        assert_eq!((sizes[1].bytes, sizes[1].weight), (65536, 30));
        for bad in ["4k", "4k/", "4k/x", "/3", "4k/70:"] {
            assert!(parse_split(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_order("zipf:0.9"), Ok(Order::Zipf { theta: 0.9 }));
        for bad in [
            "",
            "zipf",
            "zipf:0",
            "zipf:x",
            "hot:0.9",
            "hot:0.9/1",
            "pareto:1",
        ] {
            assert!(parse_order(bad).is_err(), "{bad}");
        }
    }
}
