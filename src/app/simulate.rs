//! `pmcache simulate`: runs the engine on simulated devices and looks for what must not be.

use super::cli::{UNUSABLE, fail};
use crate::sim::{Campaign, Failure, Profile, Totals};
use clap::Args;
use std::process::ExitCode;

/// Runs the engine on a simulated machine whose power fails, and checks every promise. Exit code 0:
/// none was broken; 1: one was; 2: unusable arguments.
#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// How many seeds to run. With `--seed` one.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// Run this seed only.
    #[arg(long, conflicts_with_all = ["start", "seeds"])]
    seed: Option<u64>,
    /// Requests of each seed, about.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(3..=1_000_000))]
    ops: u64,
    /// mixed, lives, short, full, evict, hops, order, faults, damage, resize, modes or exhaustive.
    #[arg(long, default_value = "mixed")]
    profile: Profile,
    /// Threads that run seeds; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Break the engine on purpose; `list` names the ways.
    #[cfg(feature = "fault-injection")]
    #[arg(long)]
    inject: Option<String>,
    /// End after so many seeds that failed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    failures: u64,
}

/// Runs the command.
pub(super) fn run(args: &SimulateArgs, json: bool) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let campaign = Campaign {
        start: args.seed.unwrap_or(args.start),
        seeds: args.seed.map_or(args.seeds, |_| 1),
        operations: args.ops,
        profile: args.profile,
        threads: if args.threads == 0 {
            cores
        } else {
            args.threads
        },
        #[cfg(feature = "fault-injection")]
        inject: match fault(args) {
            Ok(fault) => fault,
            Err(code) => return code,
        },
        failures_max: args.failures,
    };
    let totals = match campaign.run(|failure| eprint_failure(&campaign, failure)) {
        Ok(totals) => totals,
        Err(error) => return fail(UNUSABLE, json, error),
    };
    if json {
        match serde_json::to_string_pretty(&totals) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(UNUSABLE, json, error),
        }
    } else {
        print_totals(&totals);
    }
    ExitCode::from(u8::from(totals.violations > 0))
}

/// The fault that is asked for; an exit code if there is nothing to run.
#[cfg(feature = "fault-injection")]
fn fault(args: &SimulateArgs) -> Result<Option<crate::cache::Fault>, ExitCode> {
    match args.inject.as_deref() {
        None => Ok(None),
        Some("list") => {
            for fault in crate::cache::Fault::ALL {
                println!("{fault}");
            }
            Err(ExitCode::SUCCESS)
        }
        Some(name) => match name.parse() {
            Ok(fault) => Ok(Some(fault)),
            Err(error) => Err(fail(UNUSABLE, false, error)),
        },
    }
}

fn print_totals(totals: &Totals) {
    println!(
        "{} seeds, {} cuts, {} replays, {} operations, {} checks, {} audits, {} violations",
        totals.seeds,
        totals.cuts,
        totals.replays,
        totals.operations,
        totals.checks,
        totals.audits,
        totals.violations
    );
}

fn eprint_failure(campaign: &Campaign, failure: &Failure) {
    eprintln!("seed {}: {}", failure.seed, failure.what);
    for line in &failure.trace {
        eprintln!("  {line}");
    }
    eprintln!(
        "to see it again: pmcache simulate --profile {} --ops {} --seed {}",
        campaign.profile.name(),
        campaign.operations,
        failure.seed
    );
}
