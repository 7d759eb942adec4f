//! What writeback and GC are at, and when they last were at what: for whoever asks, afterwards, what
//! they did meanwhile.

use super::{gc, writeback};
use reactors::Nanos;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Most activities that are told apart.
const ACTIVITIES: usize = 8;

/// What one of them has been at; written by its poller alone.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    now: AtomicU8,
    /// When it was last at each, ns.
    last: [AtomicU64; ACTIVITIES],
}

/// A set of activities: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activities(pub(crate) u8);

impl Activity {
    /// It is at `activity` at this time.
    pub(super) fn show(&self, activity: u8, now: Nanos) {
        if let Some(last) = self.last.get(usize::from(activity)) {
            last.store(now.0, Ordering::Relaxed);
        }
        self.now.store(activity, Ordering::Relaxed);
    }

    /// What it has been at since `since`.
    pub(super) fn since(&self, since: Nanos) -> Activities {
        let mut bits = 1_u8
            .checked_shl(self.now.load(Ordering::Relaxed).into())
            .unwrap_or(0);
        for (activity, last) in (0_u32..).zip(&self.last) {
            let at = last.load(Ordering::Relaxed);
            if at > 0 && at >= since.0 {
                bits |= 1 << activity;
            }
        }
        Activities(bits)
    }
}

impl Activities {
    /// Their names; to be idle is none.
    pub(super) fn names(self, names: &[&'static str]) -> Vec<&'static str> {
        let named = (0_u32..).zip(names).skip(1);
        let among = named.filter(|(activity, _)| self.0 & (1 << activity) != 0);
        among.map(|(_, name)| *name).collect()
    }
}

/// What writeback can be at, by number.
pub(super) const WRITEBACK: [&str; 7] = [
    "idle", "write", "flush", "tail", "back_off", "damage", "halted",
];

/// What GC can be at, by number.
pub(super) const GC: [&str; 7] = [
    "idle", "pass", "retire", "quiesce", "hand_out", "damage", "halted",
];

impl writeback::State {
    /// Its number among [`WRITEBACK`].
    pub(super) fn activity(&self) -> u8 {
        match self {
            Self::Idle(_) | Self::Note(_) | Self::Rested => 0,
            Self::Write { .. } => 1,
            Self::Flush => 2,
            Self::Mark(_) | Self::Tail(_) => 3,
            Self::BackOff(_) => 4,
            Self::Bad(_) | Self::Lost => 5,
            Self::Halted => 6,
        }
    }
}

impl gc::State {
    /// Its number among [`GC`].
    pub(super) fn activity(&self) -> u8 {
        match self {
            Self::Idle(_) | Self::Rested => 0,
            Self::Tail(_) => 1,
            Self::Retire(_) => 2,
            Self::Quiesce(_) => 3,
            Self::HandOut => 4,
            Self::Relog(..) | Self::Recount => 5,
            Self::Halted => 6,
        }
    }
}

impl writeback::Writeback {
    /// Shows what it is at; before each round, since it may have slept, and after it.
    pub(super) fn show_activity(&self, now: Nanos) {
        let shown = &self.seed.shared.maintenance.writeback_activity;
        shown.show(self.state.activity(), now);
    }
}

impl gc::Gc {
    /// See [`writeback::Writeback::show_activity`].
    pub(super) fn show_activity(&self, now: Nanos) {
        let shown = &self.seed.shared.maintenance.gc_activity;
        shown.show(self.state.activity(), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_at_and_what_it_was_at_meanwhile_is_told() {
        let activity = Activity::default();
        let seen = |since| activity.since(Nanos(since)).names(&WRITEBACK);
        assert!(seen(0).is_empty());
        activity.show(1, Nanos(100));
        activity.show(2, Nanos(200));
        activity.show(0, Nanos(300));
        assert_eq!(seen(100), ["write", "flush"]);
        assert_eq!(seen(101), ["flush"]);
        assert!(seen(201).is_empty());
        activity.show(4, Nanos(400));
        assert_eq!(seen(1000), ["back_off"], "it still is");
    }
}
