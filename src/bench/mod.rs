//! The latency harness: keeps a number of requests under way on any bdev, on one reactor, and tells
//! how long each took.
//!
//! First form: 4 KiB and larger blocks, random or in sequence, one job on one reactor.

mod driver;
mod job_file;
mod report;
mod workload;

pub use driver::{Done, StartError, start};
pub use job_file::{
    JobDistribution, JobExtent, JobFile, JobFileError, JobNote, JobRw, JobSpec, JobSplit,
};
pub use report::{Percentiles, Report};
pub use workload::{Pattern, Workload, WorkloadError};
