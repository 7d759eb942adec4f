//! The latency harness: drives any bdev from a reactor and tells how long each request took.
//!
//! A [`Workload`] says what a job does, [`start`] runs it, an [`Outcome`] is what it found, and a
//! [`RunReport`] what people and scripts get of it. [`floor`] measures what the machine itself
//! takes. A job allocates nothing and takes no lock from its first request to its last.

mod driver;
pub mod floor;
mod hgrm;
mod job_file;
mod outcome;
mod places;
mod report;
mod requests;
mod rng;
mod schedule;
mod verify;
mod workload;

pub use driver::{Counting, Done, StartError, start};
pub use hgrm::write_hgrm;
pub use job_file::{
    JobDistribution, JobExtent, JobFile, JobFileError, JobNote, JobRw, JobSpec, JobSplit,
};
pub use outcome::Outcome;
pub use places::Order;
pub use report::{
    Interval, Part, Percentiles, Ratios, RunHead, RunReport, Sample, Stage, Verified,
};
pub use verify::{Found, Mismatch};
pub use workload::{Arrival, Load, Size, Workload, WorkloadError};
