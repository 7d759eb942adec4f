//! Collects findings, and reads slot pairs such that nothing odd goes unseen.

use super::report::{CheckReport, Finding, FindingKind, LostRange};
use crate::bdev::Pmem;
use crate::cache::control_io::SlotPair;
use crate::cache::geometry::{PAIR_DISTANCE, PoolGeometry};
use crate::media::{SlotBody, SlotKind};
use crate::units::ByteRange;

/// Findings of a kind that are listed; more are only counted.
const LISTED_MAX: usize = 1000;

/// Damages and warnings so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    damages: Vec<Finding>,
    damages_total: u64,
    warnings: Vec<Finding>,
    warnings_total: u64,
    /// Whose things are looked at now.
    pub(super) cache: Option<String>,
    pub(super) geometry: Option<PoolGeometry>,
}

/// Which pair is read, and what it means if it can't be.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairName {
    pub(super) kind: FindingKind,
    pub(super) item: &'static str,
    pub(super) lost: &'static str,
}

impl Findings {
    fn finding(&self, kind: FindingKind, at: u64, what: String, lost: String) -> Finding {
        let segment = self.geometry.and_then(|geometry| {
            let number = at.checked_sub(geometry.data_start)? / geometry.segment_bytes;
            u32::try_from(number)
                .ok()
                .filter(|&n| n < geometry.segments)
        });
        Finding {
            kind,
            cache: self.cache.clone(),
            at,
            segment,
            what,
            lost,
            ranges: Vec::new(),
        }
    }

    pub(super) fn damage(
        &mut self,
        kind: FindingKind,
        at: u64,
        what: impl Into<String>,
        lost: impl Into<String>,
    ) {
        self.damage_of(kind, at, what.into(), lost.into(), &[]);
    }

    /// Damage that loses these ranges of the logical device.
    pub(super) fn damage_of(
        &mut self,
        kind: FindingKind,
        at: u64,
        what: String,
        lost: String,
        ranges: &[ByteRange],
    ) {
        self.damages_total += 1;
        if self.damages.len() < LISTED_MAX {
            let mut finding = self.finding(kind, at, what, lost);
            let ranges = ranges.iter().map(|range| LostRange {
                offset: range.start(),
                len: range.len(),
            });
            finding.ranges = ranges.collect();
            self.damages.push(finding);
        }
    }

    pub(super) fn warn(&mut self, kind: FindingKind, at: u64, what: impl Into<String>) {
        self.warnings_total += 1;
        if self.warnings.len() < LISTED_MAX {
            let finding = self.finding(kind, at, what.into(), "nothing".into());
            self.warnings.push(finding);
        }
    }

    /// Whether something of this kind is odd.
    pub(super) fn has_warning(&self, kind: FindingKind) -> bool {
        self.warnings.iter().any(|finding| finding.kind == kind)
    }

    /// Reads the newer good slot of the pair at `at`. One bad slot of the two is a warning, unless it
    /// was never written; two are damage.
    pub(super) fn pair<B: SlotBody>(
        &mut self,
        pmem: &dyn Pmem,
        at: u64,
        slot: SlotKind,
        name: &PairName,
    ) -> Option<B> {
        let item = name.item;
        let pair = match SlotPair::<B>::read(pmem, at, slot) {
            Ok(pair) => pair,
            Err(error) => {
                self.damage(name.kind, at, format!("{item}: {error}"), name.lost);
                return None;
            }
        };
        let (seq, body, second) = match pair.newest() {
            Ok(newest) => newest,
            Err((first, other)) => {
                let what = format!("{item}: first slot: {first}; second slot: {other}");
                self.damage(name.kind, at, what, name.lost);
                return None;
            }
        };
        if let Some((other, error)) = pair.odd_slot(seq, second) {
            let (at, number) = [(at, "first"), (at + PAIR_DISTANCE, "second")][other];
            let what = format!(
                "{item}: {number} slot: {error}; the other one, number {seq}, counts and this one \
                 will be rewritten"
            );
            self.warn(name.kind, at, what);
        }
        Some(body)
    }

    /// Moves everything into `report`.
    pub(super) fn finish(self, report: &mut CheckReport) {
        report.damages = self.damages;
        report.damages_total = self.damages_total;
        report.warnings = self.warnings;
        report.warnings_total = self.warnings_total;
    }
}
