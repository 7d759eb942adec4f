//! Many seeds, on all cores; a seed that fails is run again with a trace of the sector it is about.

use super::SimError;
use super::life;
use super::plan::Profile;
use super::trace::Trace;
use super::world::{Checked, Counts, Violation};
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

/// What to run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The first seed.
    pub start: u64,
    /// How many of them.
    pub seeds: u64,
    /// Requests of each seed, about.
    pub operations: u64,
    /// What to look for.
    pub profile: Profile,
    /// How many threads run seeds.
    pub threads: usize,
    /// What is wrong with the engine on purpose.
    #[cfg(feature = "fault-injection")]
    pub inject: Option<crate::cache::Fault>,
    /// The campaign ends after so many failures; at least 1.
    pub failures_max: u64,
}

/// What all seeds did together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Seeds that were run.
    pub seeds: u64,
    /// Power cuts and process deaths.
    pub cuts: u64,
    /// Loads of a cache.
    pub replays: u64,
    /// Requests that ended.
    pub operations: u64,
    /// Looks at a whole volume, backing, pool or cache.
    pub checks: u64,
    /// Caches at rest whose memory was compared with their log.
    pub audits: u64,
    /// Ksets that were damaged while their cache ran.
    pub lost_ksets: u64,
    /// Seeds that failed.
    pub violations: u64,
    /// Each of them.
    pub failures: Vec<Failure>,
}

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What must not be, with turn and persist point.
    pub what: String,
    /// What happened before to the sector that it is about, or to the machine.
    pub trace: Vec<String>,
}

/// Runs a seed. An assertion of the engine that fails is a violation too, where panics unwind.
fn run_seed(campaign: &Campaign, seed: u64, trace: Trace) -> (Counts, Vec<String>, Checked<()>) {
    #[cfg(feature = "fault-injection")]
    crate::cache::inject(campaign.inject);
    let run = || life::run(campaign.profile, seed, campaign.operations, trace);
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        let violation = Violation::new(format!("the engine panicked: {text}"));
        (Counts::default(), Vec::new(), Err(violation))
    })
}

fn explain(campaign: &Campaign, seed: u64, violation: Violation) -> Failure {
    let (volume, sector) = violation.place.unwrap_or((usize::MAX, 0));
    let (_, trace, again) = run_seed(campaign, seed, Trace::of(volume, sector));
    let what = match again {
        Err(again) if again.what == violation.what => violation.what,
        Err(again) => format!(
            "{}; run again, something else: {}",
            violation.what, again.what
        ),
        Ok(()) => format!("{}; run again, nothing", violation.what),
    };
    Failure { seed, what, trace }
}

impl Campaign {
    /// Runs the seeds. `progress` is told of each failure as it is found.
    ///
    /// # Errors
    /// If there are no threads to be had.
    pub fn run(&self, mut progress: impl FnMut(&Failure)) -> Result<Totals, SimError> {
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let (sender, results) = channel();
        let mut totals = Totals::default();
        std::thread::scope(|scope| {
            for number in 0..self.threads.max(1) {
                let (sender, next, stop) = (sender.clone(), &next, &stop);
                let run = move || {
                    while !stop.load(Ordering::Relaxed) {
                        let offset = next.fetch_add(1, Ordering::Relaxed);
                        if offset >= self.seeds {
                            break;
                        }
                        let seed = self.start.wrapping_add(offset);
                        let (counts, _, end) = run_seed(self, seed, Trace::default());
                        let failure = end.err().map(|violation| explain(self, seed, violation));
                        if sender.send((counts, failure)).is_err() {
                            break;
                        }
                    }
                };
                let builder = std::thread::Builder::new().name(format!("simulate_{number}"));
                builder
                    .spawn_scoped(scope, run)
                    .map_err(|e| SimError::Threads(e.to_string()))?;
            }
            drop(sender);
            for (counts, failure) in results {
                totals.add(&counts);
                if let Some(failure) = failure {
                    progress(&failure);
                    totals.violations += 1;
                    totals.failures.push(failure);
                }
                if totals.violations >= self.failures_max.max(1) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            Ok(totals)
        })
    }
}

impl Totals {
    fn add(&mut self, counts: &Counts) {
        self.seeds += 1;
        self.cuts += counts.cuts;
        self.replays += counts.replays;
        self.operations += counts.operations;
        self.checks += counts.checks;
        self.audits += counts.audits;
        self.lost_ksets += counts.lost_ksets;
    }
}
