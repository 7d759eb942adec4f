//! Keys of the log that are copies of what the backing had.

use super::control::Control;
use super::replay::ReplayWish;
use crate::media::{self, KeyFlags};

/// Which keys say only what the backing has, or had when it was another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopiesUntil {
    /// CLEAN keys below this sequence do not count …
    clean: u64,
    /// … and below this one no data at all: they were written back.
    written_back: u64,
}

impl CopiesUntil {
    /// No key is one.
    pub(super) const NONE: Self = Self {
        clean: 0,
        written_back: 0,
    };

    /// By the incarnation's record, and what this load wants.
    pub(super) fn new(control: &Control, wish: ReplayWish) -> Self {
        let body = &control.incarnation.0;
        if wish.drop_clean {
            return Self {
                clean: u64::MAX,
                written_back: control.dirty_tail.0.sequence,
            };
        }
        Self {
            clean: body.clean_until.get(),
            written_back: body.written_back_until.get(),
        }
    }

    /// Whether `key` of the kset `sequence` is one of them.
    pub(super) fn is_old_copy(self, key: &media::Key, sequence: u64) -> bool {
        let flags = key.flags();
        let says_data = !flags.has(KeyFlags::BAD) && !flags.has(KeyFlags::INVALID);
        says_data && sequence < self.written_back
            || flags.has(KeyFlags::CLEAN) && sequence < self.clean
    }
}
