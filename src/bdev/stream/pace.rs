//! How often to look at a silent socket.

use reactors::Nanos;
use std::cell::Cell;

/// The longest wait between two looks at a connection.
const WAIT_MAX_NS: u64 = 20_000;
/// The longest wait between two looks at a listening socket: a client that connects waits for a
/// handshake anyway, and an `accept` that finds nothing costs a busy reactor 2 % if done every 20 µs.
const LISTENER_WAIT_MAX_NS: u64 = 500_000;
/// A socket that has been silent for t is looked at again after t / 16: what this adds to the
/// client's own pause is at most 6 %, and a crowd of silent connections costs few system calls.
const WAIT_SHARE: u64 = 16;

/// After such a silence a socket is looked at only when the reactor's set of watched descriptors names it,
/// where there is one that does.
const SILENT_NS: u64 = 20_000;

/// After so many looks that found something, with no longer silence in between, it is a stream.
const STREAM_LOOKS: u32 = 32;

/// Spares the system call that finds nothing.
#[derive(Debug)]
pub(crate) struct Pace {
    wait_max_ns: u64,
    heard: Nanos,
    next: Nanos,
    /// Looks that found something since the last silence or sleep.
    streak: Cell<u32>,
    /// The reactor may have slept and been woken by this very socket.
    may_have_slept: Cell<bool>,
}

impl Default for Pace {
    fn default() -> Self {
        Self::up_to(WAIT_MAX_NS)
    }
}

impl Pace {
    fn up_to(wait_max_ns: u64) -> Self {
        Self {
            wait_max_ns,
            heard: Nanos::default(),
            next: Nanos::default(),
            streak: Cell::new(0),
            may_have_slept: Cell::new(false),
        }
    }

    /// For a socket that others connect to.
    pub(crate) fn of_listener() -> Self {
        Self::up_to(LISTENER_WAIT_MAX_NS)
    }

    /// Whether to look now.
    pub(crate) fn is_due(&self, now: Nanos) -> bool {
        now >= self.next || self.may_have_slept.get()
    }

    /// Whether it has been silent for so long that one look at all such sockets should do.
    pub(crate) fn is_silent(&self, now: Nanos) -> bool {
        now.since(self.heard) >= SILENT_NS
    }

    /// Something was there.
    pub(crate) fn heard(&mut self, now: Nanos) {
        // Nobody need have looked during the silence.
        if now.since(self.heard) >= WAIT_MAX_NS {
            self.streak.set(0);
        }
        self.heard = now;
        self.next = now;
        self.streak.set(self.streak.get().saturating_add(1));
    }

    /// Whether so much comes that nobody need wake the reactor for it. While a descriptor is watched,
    /// each sender pays for the bell, also when nobody sleeps.
    pub(crate) fn is_stream(&self) -> bool {
        self.streak.get() > STREAM_LOOKS
    }

    /// Nothing was there.
    pub(crate) fn silent(&mut self, now: Nanos) {
        self.may_have_slept.set(false);
        if now.since(self.heard) >= WAIT_MAX_NS {
            self.streak.set(0);
        }
        let wait = (now.since(self.heard) / WAIT_SHARE).min(self.wait_max_ns);
        self.next = now.after(wait);
    }

    /// The reactor asks whether it may sleep: the next look is not to be spared, and the bell is
    /// needed.
    pub(crate) fn before_sleep(&self) {
        self.streak.set(0);
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
        let mut pace = Pace::of_listener();
        pace.silent(Nanos(900_000_000));
        assert!(!pace.is_due(Nanos(900_499_999)));
        assert!(pace.is_due(Nanos(900_500_000)));
    }

    #[test]
    fn silence_begins_after_a_bound() {
        let mut pace = Pace::default();
        pace.heard(Nanos(1_000_000));
        assert!(!pace.is_silent(Nanos(1_000_000 + SILENT_NS - 1)));
        assert!(pace.is_silent(Nanos(1_000_000 + SILENT_NS)));
    }

    #[test]
    fn a_look_after_a_sleep_is_never_spared() {
        let mut pace = Pace::default();
        pace.silent(Nanos(900_000_000));
        assert!(!pace.is_due(Nanos(900_000_001)));
        pace.before_sleep();
        assert!(pace.is_due(Nanos(900_000_001)));
    }

    #[test]
    fn a_stream_ends_with_silence_or_sleep() {
        let mut pace = Pace::default();
        let stream = |pace: &mut Pace, from: u64| {
            for at in 0..33 {
                assert!(!pace.is_stream());
                pace.heard(Nanos(from + at * 10_000));
                pace.silent(Nanos(from + at * 10_000 + 9000));
            }
            assert!(pace.is_stream());
            from + 32 * 10_000
        };
        let heard = stream(&mut pace, 1_000_000);
        pace.silent(Nanos(heard + 19_999));
        assert!(pace.is_stream());
        pace.silent(Nanos(heard + 20_000));
        assert!(!pace.is_stream());
        stream(&mut pace, 2_000_000);
        pace.before_sleep();
        assert!(!pace.is_stream());
        let heard = stream(&mut pace, 3_000_000);
        pace.heard(Nanos(heard + 20_000));
        assert!(!pace.is_stream());
    }
}
