//! The simulator finds nothing, says what it did, and does the same again.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use pmcache::sim::{Campaign, Profile, Totals};
use std::process::Command;
use std::time::SystemTime;

/// Seeds that once found a bug in the engine; `docs/testing.md` has their stories.
const FOUND: &[(Profile, u64)] = &[
    (Profile::Faults, 14),
    (Profile::Faults, 17),
    (Profile::Damage, 1026),
    (Profile::Damage, 1289),
];

fn run(profile: Profile, start: u64, seeds: u64, operations: u64) -> Totals {
    let campaign = Campaign {
        start,
        seeds,
        operations,
        profile,
        threads: 2,
        #[cfg(feature = "fault-injection")]
        inject: None,
        failures_max: 1,
    };
    campaign.run(|_| {}).unwrap()
}

fn assert_quiet(totals: &Totals, profile: Profile) {
    let Some(failure) = totals.failures.first() else {
        return;
    };
    panic!(
        "seed {} of profile {}: {}\n{}",
        failure.seed,
        profile.name(),
        failure.what,
        failure.trace.join("\n")
    );
}

#[test]
fn new_seeds_break_no_promise() {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let start =
        std::env::var("PMCACHE_SEED").map_or(now.as_secs() << 8, |seed| seed.parse().unwrap());
    println!("seeds from {start} on");
    let totals = run(Profile::Mixed, start, 16, 1500);
    assert_quiet(&totals, Profile::Mixed);
    assert!(totals.cuts > 50 && totals.replays > 50, "{totals:?}");
    assert!(
        totals.operations > 5000 && totals.checks > 100,
        "{totals:?}"
    );
    assert!(totals.audits > 0, "{totals:?}");
}

#[test]
fn a_small_run_may_be_cut_at_every_persist_point() {
    let totals = run(Profile::Exhaustive, 7, 1, 30);
    assert_quiet(&totals, Profile::Exhaustive);
    assert!(totals.cuts > 100, "{totals:?}");
}

#[test]
fn seeds_that_found_a_bug_find_it_no_more() {
    for &(profile, seed) in FOUND {
        assert_quiet(&run(profile, seed, 1, 1500), profile);
    }
}

#[test]
fn one_seed_is_one_run() {
    for profile in Profile::ALL {
        let once = run(profile, 3, 1, 60);
        let again = run(profile, 3, 1, 60);
        assert_eq!(once, again, "{}", profile.name());
        assert!(once.operations > 0, "{}", profile.name());
    }
}

#[test]
fn the_command_prints_numbers_and_refuses_what_it_does_not_know() {
    let pmcache = || Command::new(env!("CARGO_BIN_EXE_pmcache"));
    let done = pmcache()
        .args(["simulate", "--json", "--seeds", "2", "--ops", "60"])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let totals: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    for key in ["seeds", "cuts", "replays", "operations", "violations"] {
        assert!(totals[key].is_u64(), "{key}: {totals}");
    }
    assert_eq!(totals["seeds"], 2);
    assert_eq!(totals["violations"], 0);
    let refused = pmcache()
        .args(["simulate", "--profile", "calm"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("there is no profile \"calm\""), "{text}");
}
