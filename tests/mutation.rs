//! The simulator can fail: each fault that is built into the engine on purpose is caught.
#![cfg(feature = "fault-injection")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use pmcache::cache::Fault;
use pmcache::sim::{Campaign, Profile};

/// Which profile catches a fault, and within how many seeds.
const CAUGHT: &[(Fault, Profile, u64)] = &[
    (Fault::MissingKsetFence, Profile::Mixed, 60),
    (Fault::MissingFlushFence, Profile::Mixed, 30),
    (Fault::SequenceUnchecked, Profile::Short, 400),
    (Fault::GenerationNotDurable, Profile::Mixed, 60),
    (Fault::DirtyTailBeforeFlush, Profile::Mixed, 30),
    (Fault::KeyTailPastDirtyTail, Profile::Mixed, 30),
    (Fault::FillOverWrite, Profile::Mixed, 30),
    (Fault::LastNotDurable, Profile::Hops, 300),
    (Fault::EpochsIgnored, Profile::Order, 60),
    (Fault::ReferenceDroppedOnOverwrite, Profile::Mixed, 30),
    (Fault::StagingIgnored, Profile::Mixed, 30),
    (Fault::TailWithoutSequence, Profile::Short, 800),
    (Fault::IncarnationUnchecked, Profile::Short, 400),
    (Fault::FlushSkipsClosing, Profile::Mixed, 60),
    (Fault::AckBeforeDurableSequence, Profile::Short, 100),
    (Fault::EpochRaisedEarly, Profile::Order, 60),
    (Fault::ExtentHeldWhileWaiting, Profile::Mixed, 30),
    (Fault::FillByAnotherMiss, Profile::Evict, 60),
    (Fault::LoadWithoutBarrier, Profile::Short, 800),
    (Fault::FailedBarrierRetried, Profile::Faults, 60),
    (Fault::StagedDataBelieved, Profile::Faults, 500),
    (Fault::GivenBackUndrained, Profile::Resize, 60),
    (Fault::GrownBeforeDurable, Profile::Resize, 60),
    (Fault::LeavingMarkKept, Profile::Resize, 200),
    (Fault::InvalidBeforeDirtyTail, Profile::Modes, 30),
    (Fault::BackingBeforeInvalidDurable, Profile::Modes, 200),
    (Fault::BypassWithoutPlaceholder, Profile::Modes, 30),
    (Fault::FillDespiteBypass, Profile::Modes, 60),
    (Fault::AdmitBeforeFlush, Profile::Modes, 60),
    (Fault::FlushSkipsBacking, Profile::Modes, 30),
    (Fault::DurableBypassWithoutFua, Profile::Modes, 60),
    (Fault::FailedBypassFlushForgotten, Profile::Modes, 600),
    (Fault::OwedFlushForgotten, Profile::Modes, 300),
    (Fault::ModeSwitchForgetsDirty, Profile::Modes, 100),
];

/// Seeds until the fault was caught, and by what; nothing if it was not.
fn seeds_until_caught(fault: Fault, profile: Profile, seeds: u64) -> Option<(u64, String)> {
    let campaign = Campaign {
        start: 1,
        seeds,
        operations: 1500,
        profile,
        threads: 2,
        inject: Some(fault),
        failures_max: 1,
    };
    let totals = campaign.run(|_| {}).unwrap();
    let failure = totals.failures.first()?;
    let whole = Campaign {
        start: failure.seed,
        seeds: 1,
        inject: None,
        ..campaign
    };
    let quiet = whole.run(|_| {}).unwrap();
    assert_eq!(quiet.violations, 0, "without {fault}: {quiet:?}");
    Some((totals.seeds, failure.what.clone()))
}

#[test]
fn every_fault_is_caught() {
    let mut missed = Vec::new();
    for fault in Fault::ALL {
        let &(_, profile, seeds) = CAUGHT.iter().find(|(of, ..)| *of == fault).unwrap();
        match seeds_until_caught(fault, profile, seeds) {
            Some((seeds, what)) => {
                let what: String = what.chars().take(100).collect();
                println!("{fault}: {} {seeds}: {what}", profile.name());
            }
            None => missed.push(fault),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
