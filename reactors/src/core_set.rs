//! Sets of CPU cores, written as SPDK writes them: `0x3`, `[0,1]`, `[0-2,5]`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// One more than the highest core that can be named: what the kernel's affinity calls take.
const CORES_MAX: usize = 1024;

/// Cores, by the operating system's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CoreSet(BTreeSet<usize>);

/// Why a text names no set of cores. Positions count bytes of the text from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreSetError {
    /// No core at all.
    #[error("the set names no core")]
    Empty,
    /// A character that does not belong there.
    #[error("unexpected character {found:?} at position {at}")]
    Unexpected {
        /// The character.
        found: char,
        /// Where it stands.
        at: usize,
    },
    /// The text ends too early.
    #[error("the text ends where a core number, or ']', is missing")]
    Truncated,
    /// A range whose end comes before its start.
    #[error("the range {first}-{last} runs backwards")]
    Backwards {
        /// Start of the range.
        first: usize,
        /// End of the range.
        last: usize,
    },
    /// A core number that no machine has.
    #[error("core {core} is too high: at most {max}")]
    TooHigh {
        /// The number, or the highest that can be told.
        core: usize,
        /// The highest allowed.
        max: usize,
    },
}

impl CoreSet {
    /// The cores in rising order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// True if there is none. A parsed set has at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `core` is one of them.
    #[must_use]
    pub fn contains(&self, core: usize) -> bool {
        self.0.contains(&core)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    fn insert(&mut self, core: usize) -> Result<(), CoreSetError> {
        if core >= CORES_MAX {
            let max = CORES_MAX - 1;
            return Err(CoreSetError::TooHigh { core, max });
        }
        self.0.insert(core);
        Ok(())
    }

    fn parse_mask(digits: &str, at: usize) -> Result<Self, CoreSetError> {
        let mut set = Self::default();
        if digits.is_empty() {
            return Err(CoreSetError::Truncated);
        }
        for (i, found) in digits.char_indices() {
            if !found.is_ascii_hexdigit() {
                return Err(CoreSetError::Unexpected { found, at: at + i });
            }
        }
        for (place, digit) in digits.chars().rev().enumerate() {
            let digit = digit.to_digit(16).unwrap_or(0);
            for bit in (0..4).filter(|bit| digit >> bit & 1 == 1) {
                set.insert(place * 4 + bit)?;
            }
        }
        Ok(set)
    }

    fn parse_list(text: &str) -> Result<Self, CoreSetError> {
        let mut set = Self::default();
        let mut rest = Rest { text, at: 1 };
        loop {
            let first = rest.number()?;
            let mut last = first;
            let mut next = rest.char()?;
            if next.0 == '-' {
                last = rest.number()?;
                next = rest.char()?;
            }
            if last < first {
                return Err(CoreSetError::Backwards { first, last });
            }
            // The end first: it bounds the loop.
            set.insert(last)?;
            for core in first..last {
                set.insert(core)?;
            }
            match next {
                (',', _) => {}
                (']', _) => break,
                (found, at) => return Err(CoreSetError::Unexpected { found, at }),
            }
        }
        match rest.peek() {
            Some((found, at)) => Err(CoreSetError::Unexpected { found, at }),
            None => Ok(set),
        }
    }
}

/// What is still to be parsed of a list; spaces do not count.
struct Rest<'a> {
    text: &'a str,
    at: usize,
}

impl Rest<'_> {
    fn peek(&mut self) -> Option<(char, usize)> {
        loop {
            let found = self.text.get(self.at..)?.chars().next()?;
            if found != ' ' {
                return Some((found, self.at));
            }
            self.at += 1;
        }
    }

    fn char(&mut self) -> Result<(char, usize), CoreSetError> {
        let (found, at) = self.peek().ok_or(CoreSetError::Truncated)?;
        self.at += found.len_utf8();
        Ok((found, at))
    }

    fn number(&mut self) -> Result<usize, CoreSetError> {
        let (found, at) = self.peek().ok_or(CoreSetError::Truncated)?;
        if !found.is_ascii_digit() {
            return Err(CoreSetError::Unexpected { found, at });
        }
        let mut number = 0_usize;
        while let Some(digit) = self
            .text
            .get(self.at..)
            .and_then(|rest| rest.chars().next()?.to_digit(10))
        {
            let digit = usize::try_from(digit).unwrap_or(usize::MAX);
            number = number.saturating_mul(10).saturating_add(digit);
            self.at += 1;
        }
        Ok(number)
    }
}

impl FromStr for CoreSet {
    type Err = CoreSetError;

    /// Reads a hexadecimal mask, with or without `0x`, or a list in brackets.
    fn from_str(text: &str) -> Result<Self, CoreSetError> {
        let text = text.trim();
        let set = if text.starts_with('[') {
            Self::parse_list(text)?
        } else if text.is_empty() {
            return Err(CoreSetError::Empty);
        } else if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            Self::parse_mask(digits, 2)?
        } else {
            Self::parse_mask(text, 0)?
        };
        if set.is_empty() {
            return Err(CoreSetError::Empty);
        }
        Ok(set)
    }
}

impl FromIterator<usize> for CoreSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cores: I) -> Self {
        Self(cores.into_iter().collect())
    }
}

/// The mask in hexadecimal without a prefix, as SPDK's thread methods print it.
impl fmt::LowerHex for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            f.write_str("0x")?;
        }
        let places = self.0.last().map_or(1, |last| last / 4 + 1);
        for place in (0..places).rev() {
            let digit = (0..4).fold(0_u8, |digit, bit| {
                digit | u8::from(self.contains(place * 4 + bit)) << bit
            });
            write!(f, "{digit:x}")?;
        }
        Ok(())
    }
}

/// The mask, `0x3`.
impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#x}")
    }
}

#[cfg(test)]
mod tests {
    use super::{CoreSet, CoreSetError};
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Vec<usize>, CoreSetError> {
        text.parse::<CoreSet>().map(|set| set.iter().collect())
    }

    #[test]
    fn masks_and_lists_name_cores() {
        assert_eq!(parse("0x3"), Ok(vec![0, 1]));
        assert_eq!(parse("8"), Ok(vec![3]));
        assert_eq!(parse("0XF0"), Ok(vec![4, 5, 6, 7]));
        assert_eq!(parse("[0,1]"), Ok(vec![0, 1]));
        assert_eq!(parse("[0-2]"), Ok(vec![0, 1, 2]));
        assert_eq!(parse(" [ 7, 0 - 2 , 1] "), Ok(vec![0, 1, 2, 7]));
        assert_eq!(parse("[1023]"), Ok(vec![1023]));
    }

    #[test]
    fn bad_texts_say_what_is_wrong_where() {
        assert_eq!(parse(""), Err(CoreSetError::Empty));
        assert_eq!(parse("0x0"), Err(CoreSetError::Empty));
        assert_eq!(parse("0x"), Err(CoreSetError::Truncated));
        assert_eq!(
            parse("0x3g"),
            Err(CoreSetError::Unexpected { found: 'g', at: 3 })
        );
        assert_eq!(
            parse("0xé"),
            Err(CoreSetError::Unexpected { found: 'é', at: 2 })
        );
        assert_eq!(
            parse("[]"),
            Err(CoreSetError::Unexpected { found: ']', at: 1 })
        );
        assert_eq!(parse("[0,1"), Err(CoreSetError::Truncated));
        assert_eq!(
            parse("[0,1]2"),
            Err(CoreSetError::Unexpected { found: '2', at: 5 })
        );
        assert_eq!(
            parse("[1é]"),
            Err(CoreSetError::Unexpected { found: 'é', at: 2 })
        );
        assert_eq!(
            parse("[3-1]"),
            Err(CoreSetError::Backwards { first: 3, last: 1 })
        );
        let max = 1023;
        assert_eq!(
            parse("[0-4000000000]"),
            Err(CoreSetError::TooHigh {
                core: 4_000_000_000,
                max
            })
        );
    }

    #[test]
    fn masks_print_as_spdk_prints_them() {
        let set: CoreSet = "[0,5]".parse().unwrap();
        assert_eq!(set.to_string(), "0x21");
        assert_eq!(format!("{set:x}"), "21");
        assert_eq!(CoreSet::default().to_string(), "0x0");
    }

    proptest! {
        #[test]
        fn printed_sets_parse_back(cores in prop::collection::btree_set(0_usize..1024, 1..40)) {
            let set: CoreSet = cores.iter().copied().collect();
            prop_assert_eq!(set.to_string().parse::<CoreSet>(), Ok(set));
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]0-9a-fx, é-]{0,12}") {
            let _ = text.parse::<CoreSet>();
        }
    }
}
