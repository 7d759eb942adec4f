//! State that control threads share. The one place where a thread may wait for a lock: never on a
//! reactor, and never while something slow is done (reserve, do it unlocked, then commit).
#![expect(
    clippy::disallowed_types,
    reason = "control threads may wait for each other; reactors never come here"
)]

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A value that one control thread at a time may touch.
#[derive(Debug, Default)]
pub(super) struct Shared<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Shared<T> {
    /// Shares `value`.
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Condvar::new(),
        }
    }

    /// Runs `f` with the value; short, since others wait.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // A thread that panicked here left a value that was whole before each single change.
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut value);
        drop(value);
        self.changed.notify_all();
        result
    }

    /// Runs `f` now and after each change until it finds something, for at most `timeout`.
    pub(super) fn wait_for<R>(
        &self,
        timeout: Duration,
        mut f: impl FnMut(&T) -> Option<R>,
    ) -> Option<R> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        let waited = self.changed.wait_timeout_while(value, timeout, |value| {
            found = f(value);
            found.is_none()
        });
        drop(waited);
        found
    }
}

/// Looks every millisecond until `condition` holds, for at most about `patience`. Returns whether it
/// does. For what happens on reactors, which tell control threads nothing of their own accord.
pub(super) fn poll_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    const PAUSE: Duration = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    while !condition() {
        if waited >= patience {
            return false;
        }
        std::thread::park_timeout(PAUSE);
        waited += PAUSE;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn waits_until_somebody_changes_it_or_time_is_up() {
        let shared = Arc::new(Shared::<i32>::default());
        assert_eq!(
            shared.wait_for(Duration::ZERO, |v| (*v > 0).then_some(())),
            None
        );
        let other = Arc::clone(&shared);
        let thread = std::thread::spawn(move || other.with(|v| *v = 7));
        let found = shared.wait_for(Duration::from_secs(30), |v| (*v > 0).then_some(*v));
        assert_eq!(found, Some(7));
        thread.join().unwrap();
    }
}
