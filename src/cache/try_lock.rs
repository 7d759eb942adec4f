//! A lock that nobody waits for: the loser comes back from its loop.
#![expect(
    clippy::disallowed_types,
    reason = "only `try_lock` is offered, so no reactor blocks"
)]

#[cfg(test)]
use std::cell::Cell;
use std::ops::DerefMut;
use std::sync::{Mutex, TryLockError};

#[cfg(test)]
thread_local! {
    /// How often this thread has asked for a lock.
    pub(crate) static ASKED: Cell<u64> = const { Cell::new(0) };
}

/// Something that several reactors change, each for a moment.
#[derive(Debug)]
pub(crate) struct TryLock<T>(Mutex<T>);

impl<T> TryLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// The value, unless somebody else has it just now.
    pub(crate) fn try_lock(&self) -> Option<impl DerefMut<Target = T> + '_> {
        #[cfg(test)]
        ASKED.set(ASKED.get() + 1);
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            // A panic under the lock is our own bug; release builds have aborted long before.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
