//! The one document that a bench prints with `--json` (`docs/bench.md` has its schema).

use super::floors::Floors;
use crate::bdev::pmem::CopyKernel;
use crate::bench::RunReport;
use serde::Serialize;
use std::fmt;

/// Number of the schema.
const SCHEMA: u32 = 1;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    schema: u32,
    host: Host,
    /// Null if they were not wanted.
    floors: Option<Floors>,
    runs: Vec<RunReport>,
}

/// Where.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Host {
    cpu_model: String,
    cores: usize,
    /// The cores that were used, the one that served first.
    cores_used: Vec<usize>,
    page_bytes: Option<u64>,
    copy_kernel: String,
    crc_kernel: String,
    version: &'static str,
    /// Whether the compiler optimised: figures of a debug build say nothing.
    optimised: bool,
}

impl Host {
    /// This one. `page_bytes`: of the memory in which the floors were measured.
    pub(super) fn of(cores: &[usize], kernel: CopyKernel, page_bytes: Option<u64>) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown", |(_, model)| model.trim());
        Self {
            cpu_model: model.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cores_used: cores.to_vec(),
            page_bytes,
            copy_kernel: format!("{kernel:?}").to_ascii_lowercase(),
            crc_kernel: crc_fast::get_calculator_target(crc_fast::CrcAlgorithm::Crc32Iscsi),
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
        }
    }
}

impl Document {
    /// All of it.
    pub(super) fn new(host: Host, floors: Option<Floors>, runs: Vec<RunReport>) -> Self {
        Self {
            schema: SCHEMA,
            host,
            floors,
            runs,
        }
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(
            f,
            "{}, {} cores (used: {:?}), copies by {}, CRC by {}",
            host.cpu_model, host.cores, host.cores_used, host.copy_kernel, host.crc_kernel
        )?;
        if !host.optimised {
            writeln!(f, "this is a debug build: its figures say nothing")?;
        }
        if let Some(floors) = &self.floors {
            write!(f, "floors, ns:")?;
            for (name, value) in floors.values() {
                let name = name.trim_end_matches("_ns");
                match value {
                    Some(ns) => write!(f, " {name} {ns}")?,
                    None => write!(f, " {name} -")?,
                }
            }
            writeln!(f)?;
        }
        self.runs.iter().try_for_each(|run| writeln!(f, "{run}"))
    }
}
