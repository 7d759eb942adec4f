//! What a reactor does when there is nothing to do.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a reactor does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Spin.
    Poll,
    /// Spin for this many microseconds since there last was work, then sleep until a doorbell.
    Adaptive {
        /// How long to spin.
        idle_us: u32,
    },
    /// Sleep at once.
    Interrupt,
}

impl Default for IdlePolicy {
    fn default() -> Self {
        Self::Adaptive { idle_us: 50 }
    }
}

impl IdlePolicy {
    /// How long to spin before sleeping, in nanoseconds; `None`: for ever.
    #[must_use]
    pub fn spin_ns(self) -> Option<u64> {
        match self {
            Self::Poll => None,
            Self::Adaptive { idle_us } => Some(u64::from(idle_us) * 1000),
            Self::Interrupt => Some(0),
        }
    }
}

/// An [`IdlePolicy`] that any thread may change.
#[derive(Debug)]
pub(crate) struct SharedIdlePolicy(AtomicU64);

/// Codes beyond any `idle_us`.
const POLL: u64 = u64::MAX;
const INTERRUPT: u64 = u64::MAX - 1;

impl SharedIdlePolicy {
    pub(crate) fn new(policy: IdlePolicy) -> Self {
        let shared = Self(AtomicU64::new(0));
        shared.set(policy);
        shared
    }

    pub(crate) fn set(&self, policy: IdlePolicy) {
        let code = match policy {
            IdlePolicy::Poll => POLL,
            IdlePolicy::Adaptive { idle_us } => u64::from(idle_us),
            IdlePolicy::Interrupt => INTERRUPT,
        };
        self.0.store(code, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> IdlePolicy {
        match self.0.load(Ordering::Relaxed) {
            POLL => IdlePolicy::Poll,
            INTERRUPT => IdlePolicy::Interrupt,
            idle_us => IdlePolicy::Adaptive {
                idle_us: u32::try_from(idle_us).unwrap_or(u32::MAX),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{IdlePolicy, SharedIdlePolicy};

    #[test]
    fn shared_policy_keeps_every_kind() {
        let shared = SharedIdlePolicy::new(IdlePolicy::Poll);
        for policy in [
            IdlePolicy::Poll,
            IdlePolicy::Adaptive { idle_us: 0 },
            IdlePolicy::Adaptive { idle_us: u32::MAX },
            IdlePolicy::Interrupt,
        ] {
            shared.set(policy);
            assert_eq!(shared.get(), policy);
        }
    }
}
