//! One row of a report: a device built anew, filled, and driven by jobs on its reactors.

use super::jobs::run_jobs;
use super::stack::{Stack, StackConfig};
use crate::app::service::maintenance_reactors;
use crate::bench::{RunHead, RunReport, Workload};
use crate::units::ByteRange;
use clap::ValueEnum;
use reactors::{IdlePolicy, MonotonicClock, ReactorHandle, Reactors, ReactorsConfig};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

/// Bytes of the requests that fill a device before it is measured.
const FILL_BYTES: u32 = 64 << 10;
/// Far apart on the generators' common sequence.
const SEED_STEP: u64 = 0xd6e8_feb8_6659_fd93;

/// Where requests come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Submit {
    /// The reactor that serves them.
    Local,
    /// Another reactor, through the rings.
    Ring,
}

impl Submit {
    /// As flags and reports spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Ring => "ring",
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its name in the report; also that of its percentile file.
    pub(super) name: String,
    /// The device.
    pub(super) stack: StackConfig,
    /// What each job does.
    pub(super) job: Workload,
    /// How many jobs at once.
    pub(super) jobs: u32,
    /// Where they run.
    pub(super) submit: Submit,
    /// Whether the device is written once before; of an export, the range that is used.
    pub(super) fill: bool,
    /// Makes it an open loop, at half of what this row has reached in the same turn.
    pub(super) half_rate_of: Option<&'static str>,
}

/// Starts data reactors on `cores`, and maintenance reactors where they leave room.
///
/// # Errors
/// If a core is not to be had.
pub(super) fn start_reactors(cores: &[usize], seed: u64) -> Result<Reactors, Box<dyn Error>> {
    Ok(Reactors::start(ReactorsConfig {
        cores: cores.to_vec(),
        maintenance: maintenance_reactors(&cores.iter().copied().collect(), None),
        idle: IdlePolicy::Poll,
        seed,
        clock: Arc::new(MonotonicClock),
    })?)
}

impl Row {
    /// Builds the device on `cores`, runs the jobs, and takes it down.
    ///
    /// # Errors
    /// What could not be built, or why a job did not start or end.
    pub(super) fn run(&self, cores: &[usize], run_dir: &Path) -> Result<RunReport, Box<dyn Error>> {
        let cores = match self.submit {
            Submit::Local => cores,
            Submit::Ring if cores.len() > 1 => cores,
            Submit::Ring => return Err("--submit ring wants two cores in --cpumask".into()),
        };
        let reactors = start_reactors(cores, self.job.seed)?;
        let handles = reactors.data_handles();
        let (data, drivers) = match (self.submit, handles) {
            (Submit::Ring, [first, others @ ..]) => (std::slice::from_ref(first), others),
            _ => (handles, handles),
        };
        let stack = Stack::build(&self.stack, data, &reactors, run_dir)?;
        let measured = self.measure(&stack, drivers);
        stack.finish()?;
        reactors.stop();
        measured
    }

    fn measure(
        &self,
        stack: &Stack,
        drivers: &[ReactorHandle],
    ) -> Result<RunReport, Box<dyn Error>> {
        // Verification fills the device with tags of its own.
        if self.fill && !self.job.verify {
            let range = match self.stack.device.export() {
                // What is beside the part that is used stays as it is.
                Some(_) => self.job.range,
                None => ByteRange::between(0, stack.bdev.info().bytes()),
            };
            let block = u32::try_from(range.len()).map_or(FILL_BYTES, |all| all.min(FILL_BYTES));
            let fill = Workload::fill(range, block);
            let (first, _) = drivers.split_at(drivers.len().min(1));
            let filled = run_jobs(first, stack, std::slice::from_ref(&fill))?;
            let errors = filled.outcome.errors;
            if errors > 0 {
                return Err(format!("{errors} of the writes that fill it failed").into());
            }
        }
        let jobs: Vec<Workload> = (0..self.jobs).map(|number| self.job_of(number)).collect();
        let run = run_jobs(drivers, stack, &jobs)?;
        let head = RunHead {
            name: self.name.clone(),
            bdev: match self.stack.device.export() {
                Some(export) => export.to_string(),
                None => stack.bdev.info().name.clone(),
            },
            submit: self.submit.name(),
            jobs: self.jobs,
        };
        let mut report = RunReport::new(head, &self.job, &run.outcome);
        if let Some((before, after)) = run.cache {
            before.note_difference(&after, &mut report);
        }
        Ok(report)
    }

    /// Jobs differ by their seeds, and sequences by where they begin.
    fn job_of(&self, number: u32) -> Workload {
        let mut job = self.job.clone();
        job.seed = job
            .seed
            .wrapping_add(u64::from(number).wrapping_mul(SEED_STEP));
        let jobs = u64::from(self.jobs.max(1));
        let number = u64::from(number);
        if job.verify {
            // Each knows what it has written itself: nobody else may write there.
            let share = job.range.len() / jobs / u64::from(job.unit().max(1));
            let start = job.range.start() + number * share * u64::from(job.unit());
            job.range = ByteRange::between(start, start + share * u64::from(job.unit()));
            job.first = 0;
        } else {
            job.first = job.range.len() / jobs * number;
        }
        job
    }
}
