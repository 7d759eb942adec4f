//! How often to look at a silent socket.

use reactors::Nanos;
use std::cell::Cell;

/// The longest wait between two looks.
const WAIT_MAX_NS: u64 = 20_000;
/// A socket that has been silent for t is looked at again after t / 16: what this adds to the
/// client's own pause is at most 6 %, and a crowd of silent connections costs few system calls.
const WAIT_SHARE: u64 = 16;

/// Spares the system call that finds nothing.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    heard: Nanos,
    next: Nanos,
    /// The reactor may have slept and been woken by this very socket.
    may_have_slept: Cell<bool>,
}

impl Pace {
    /// Whether to look now.
    pub(crate) fn is_due(&self, now: Nanos) -> bool {
        now >= self.next || self.may_have_slept.get()
    }

    /// Something was there.
    pub(crate) fn heard(&mut self, now: Nanos) {
        self.heard = now;
        self.next = now;
    }

    /// Nothing was there.
    pub(crate) fn silent(&mut self, now: Nanos) {
        self.may_have_slept.set(false);
        let wait = (now.since(self.heard) / WAIT_SHARE).min(WAIT_MAX_NS);
        self.next = now.after(wait);
    }

    /// The reactor asks whether it may sleep: the next look is not to be spared.
    pub(crate) fn before_sleep(&self) {
        self.may_have_slept.set(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_get_rarer_with_silence_up_to_a_bound() {
        let mut pace = Pace::default();
        pace.heard(Nanos(1_000_000));
        pace.silent(Nanos(1_000_000));
        assert!(pace.is_due(Nanos(1_000_000)));
        pace.silent(Nanos(1_016_000));
        assert!(!pace.is_due(Nanos(1_016_999)));
        assert!(pace.is_due(Nanos(1_017_000)));
        pace.silent(Nanos(900_000_000));
        assert!(!pace.is_due(Nanos(900_019_999)));
        assert!(pace.is_due(Nanos(900_020_000)));
    }

    #[test]
    fn a_look_after_a_sleep_is_never_spared() {
        let mut pace = Pace::default();
        pace.silent(Nanos(900_000_000));
        assert!(!pace.is_due(Nanos(900_000_001)));
        pace.before_sleep();
        assert!(pace.is_due(Nanos(900_000_001)));
    }
}
