//! Jobs side by side on reactors, and what a cache did meanwhile.
//!
//! The jobs themselves look at the cache's statistics: whoever waits for them may get its turn on
//! a core only after they have ended.

use super::stack::Stack;
use super::stages::CacheFigures;
use crate::bdev::Bdev;
use crate::bench::{self, Outcome, Workload};
use crate::cache::Cache;
use reactors::{Cx, ReactorHandle};
use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a job may take beyond the time that it was given, or at all if it is bounded otherwise.
const PATIENCE: Duration = Duration::from_secs(600);

/// What jobs found together.
#[derive(Debug)]
pub(super) struct Run {
    /// Their sum.
    pub(super) outcome: Outcome,
    /// A cache's statistics when the first job began to count, and when it ended.
    pub(super) cache: Option<(CacheFigures, CacheFigures)>,
}

/// Runs `jobs`, each on the next of `drivers`, and waits for their end.
///
/// # Errors
/// Why one could not be started, or that it does not end.
pub(super) fn run_jobs(
    drivers: &[ReactorHandle],
    stack: &Stack,
    jobs: &[Workload],
) -> Result<Run, Box<dyn Error>> {
    let (sender, receiver) = mpsc::sync_channel(jobs.len());
    let mut patience = PATIENCE;
    // The first one watches.
    let mut cache = stack.cache.clone();
    for (job, driver) in jobs.iter().zip(drivers.iter().cycle()) {
        if job.run_ns < u64::MAX {
            let drain = Duration::from_nanos(job.run_ns);
            let warmup = Duration::from_nanos(job.warmup_ns);
            patience = patience.saturating_add(warmup).saturating_add(2 * drain);
        }
        let watch = Watch {
            cache: cache.take(),
            before: None,
        };
        let (bdev, job, sender) = (Arc::clone(&stack.bdev), job.clone(), sender.clone());
        let message = move |cx: &Cx| start_job(cx, &*bdev, &job, watch, sender);
        let sent = driver.send(Box::new(message));
        sent.map_err(|_full| "a reactor's inbox is full")?;
    }
    drop(sender);
    let mut sum: Option<Run> = None;
    for number in 0..jobs.len() {
        let found = receiver.recv_timeout(patience);
        let found = found.map_err(|_| format!("job {number} of {} does not end", jobs.len()))??;
        match &mut sum {
            Some(sum) => {
                sum.outcome.merge(&found.outcome);
                sum.cache = sum.cache.take().or(found.cache);
            }
            None => sum = Some(found),
        }
    }
    sum.ok_or_else(|| "no jobs".into())
}

/// A cache whose statistics a job looks at.
struct Watch {
    /// None if another job does.
    cache: Option<Arc<Cache>>,
    before: Option<CacheFigures>,
}

impl Watch {
    fn begin(&mut self) {
        self.before = self.cache.as_deref().map(CacheFigures::now);
    }

    /// Leaves nothing of the cache behind, since it is taken down as soon as the job's end is known.
    fn end(&mut self) -> Option<(CacheFigures, CacheFigures)> {
        let cache = self.cache.take()?;
        let before = self.before.take();
        // A job that never came to count has nothing to show.
        let before = before.unwrap_or_else(|| CacheFigures::now(&cache));
        Some((before, CacheFigures::now(&cache)))
    }
}

fn start_job(
    cx: &Cx,
    bdev: &dyn Bdev,
    job: &Workload,
    watch: Watch,
    sender: mpsc::SyncSender<Result<Run, String>>,
) {
    let watch = Rc::new(RefCell::new(watch));
    let (at_begin, at_end) = (Rc::clone(&watch), Rc::clone(&watch));
    let counting = Box::new(move || at_begin.borrow_mut().begin());
    let answer = sender.clone();
    let done = Box::new(move |outcome| {
        let cache = at_end.borrow_mut().end();
        // There is room for one answer of each job, so sending never waits; who has given up is
        // gone.
        let _ = answer.try_send(Ok(Run { outcome, cache }));
    });
    if let Err(error) = bench::start(cx, bdev, job, counting, done) {
        watch.borrow_mut().cache = None;
        let _ = sender.try_send(Err(error.to_string()));
    }
}
