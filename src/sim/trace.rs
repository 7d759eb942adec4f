//! What happened to one sector: written down when a failing seed is run again.

use crate::units::ByteRange;
use std::collections::VecDeque;

/// Lines that are kept: the last ones tell the story.
const LINES_MAX: usize = 200;

/// Which sector a run is to be told about, if any.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    focus: Option<(usize, u64)>,
    lines: VecDeque<String>,
    turn: u64,
}

impl Trace {
    /// Writes down what concerns sector `sector` of `volume`.
    pub(super) fn of(volume: usize, sector: u64) -> Self {
        Self {
            focus: Some((volume, sector)),
            ..Self::default()
        }
    }

    pub(super) fn at_turn(&mut self, turn: u64) {
        self.turn = turn;
    }

    fn push(&mut self, line: String) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        let turn = self.turn;
        self.lines.push_back(format!("turn {turn}: {line}"));
    }

    /// Notes what concerns everybody.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.focus.is_some() {
            self.push(line());
        }
    }

    /// Notes what concerns `range` of `volume`, if the sector is in it.
    pub(super) fn about(&mut self, volume: usize, range: ByteRange, line: impl FnOnce() -> String) {
        let hit = self.focus.is_some_and(|(of, sector)| {
            of == volume && range.overlaps(ByteRange::between(sector * 512, sector * 512 + 512))
        });
        if hit {
            self.push(line());
        }
    }

    /// The sector, if there is one.
    pub(super) fn focus(&self) -> Option<(usize, u64)> {
        self.focus
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
