//! How requests pass the cache, in one word: the hot path compares it with zero and goes on.

use super::options::{CacheOptions, Mode, SeqCutoff};

/// Mode, cut-off and admission. Zero is write-back with everything admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy(u32);

/// Where the cut-off begins in the word, and where the admission.
const CUTOFF: u32 = 3;
const ADMISSION: u32 = 8;

impl Policy {
    pub(crate) fn of(options: &CacheOptions) -> Self {
        let mode = match options.mode {
            Mode::Wb => 0,
            Mode::Wt => 1,
            Mode::Wa => 2,
            Mode::Wo => 3,
            Mode::Pt => 4,
        };
        let cutoff = match options.seq_cutoff_policy {
            SeqCutoff::Never => 0,
            SeqCutoff::Full => 1,
            SeqCutoff::Always => 2,
        };
        Self(mode | cutoff << CUTOFF | options.admission.saturating_sub(1) << ADMISSION)
    }

    pub(crate) fn word(self) -> u32 {
        self.0
    }

    pub(crate) fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// Write-back for all requests, and all misses are kept.
    pub(crate) fn is_plain(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn mode(self) -> Mode {
        match self.0 & 7 {
            0 => Mode::Wb,
            1 => Mode::Wt,
            2 => Mode::Wa,
            3 => Mode::Wo,
            _ => Mode::Pt,
        }
    }

    pub(crate) fn cutoff(self) -> SeqCutoff {
        match self.0 >> CUTOFF & 3 {
            0 => SeqCutoff::Never,
            1 => SeqCutoff::Full,
            _ => SeqCutoff::Always,
        }
    }

    /// On which miss a block is kept.
    pub(crate) fn admission(self) -> u32 {
        (self.0 >> ADMISSION) + 1
    }

    /// Whether writes may reach the backing past the log.
    pub(crate) fn may_bypass(self) -> bool {
        self.mode().bypasses() || self.cutoff() != SeqCutoff::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_it_was_made_of_and_the_default_is_plain() {
        assert!(Policy::of(&CacheOptions::default()).is_plain());
        for mode in [Mode::Wb, Mode::Wt, Mode::Wa, Mode::Wo, Mode::Pt] {
            for cutoff in [SeqCutoff::Never, SeqCutoff::Full, SeqCutoff::Always] {
                for admission in [1, 2, 100] {
                    let options = CacheOptions {
                        mode,
                        seq_cutoff_policy: cutoff,
                        admission,
                        ..CacheOptions::default()
                    };
                    let policy = Policy::from_word(Policy::of(&options).word());
                    let found = (policy.mode(), policy.cutoff(), policy.admission());
                    assert_eq!(found, (mode, cutoff, admission));
                    assert_eq!(policy.may_bypass(), options.may_bypass());
                    assert_eq!(policy.is_plain(), found == (Mode::Wb, SeqCutoff::Never, 1));
                }
            }
        }
    }
}
