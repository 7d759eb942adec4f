//! Keys whose data are not what was written or were given up as lost, and what later keys leave of
//! them.

use super::findings::Findings;
use super::report::FindingKind;
use crate::cache::log_reader::LogView;
use crate::media::{self, KeyFlags};
use crate::units::ByteRange;
use std::collections::BTreeMap;

/// Keys that are followed; more are reported with their whole range.
const FOLLOWED_MAX: usize = 256;
/// Lost ranges that are named.
const NAMED_MAX: usize = 1000;

/// One key with damaged data.
#[derive(Debug)]
struct BadKey {
    at: u64,
    what: String,
    /// Writeback still owes it to the backing.
    is_owed: bool,
    /// What of it can still be seen.
    visible: Vec<ByteRange>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct BadData {
    keys: Vec<BadKey>,
    /// What BAD keys cover: the end of each range by its start.
    lost: BTreeMap<u64, u64>,
}

fn range_of(key: &media::Key) -> ByteRange {
    let start = key.offset.get();
    ByteRange::between(start, start + u64::from(key.len.get()))
}

impl BadData {
    /// Compares the data of a live key with its CRC; false if they differ or can't be read.
    pub(super) fn verify(
        &mut self,
        view: &LogView,
        key: &media::Key,
        sequence: u64,
        is_owed: bool,
        findings: &mut Findings,
    ) -> bool {
        let at = view.data_at(view.ident(key).segment, key.segment_offset.get());
        let mut bytes = vec![0; key.len.get() as usize];
        let wrong = match view.pmem.load(at, &mut bytes) {
            Err(error) => error.to_string(),
            Ok(()) => {
                let (stored, computed) = (key.crc.get(), media::crc(&bytes));
                if stored == computed {
                    return true;
                }
                format!("CRC is {stored:#010x}, the bytes give {computed:#010x}")
            }
        };
        let range = range_of(key);
        let bad = BadKey {
            at,
            what: format!("data of {range}, kset {sequence}: {wrong}"),
            is_owed,
            visible: vec![range],
        };
        if self.keys.len() < FOLLOWED_MAX {
            self.keys.push(bad);
        } else {
            bad.report(findings);
        }
        false
    }

    /// A later key replaces what earlier ones have there.
    pub(super) fn replace(&mut self, key: &media::Key) {
        let newer = range_of(key);
        self.cut_lost(newer);
        for bad in &mut self.keys {
            if bad.visible.iter().any(|part| part.overlaps(newer)) {
                let parts = bad.visible.iter().flat_map(|part| {
                    let before = ByteRange::between(part.start(), part.end().min(newer.start()));
                    let behind = ByteRange::between(part.start().max(newer.end()), part.end());
                    [before, behind]
                });
                bad.visible = parts.filter(|part| !part.is_empty()).collect();
            }
        }
    }

    /// Takes a key without data, which replaces earlier ones; a BAD one's range is lost.
    pub(super) fn take_empty(&mut self, key: &media::Key) {
        self.replace(key);
        if key.flags().has(KeyFlags::BAD) {
            let range = range_of(key);
            self.lost.insert(range.start(), range.end());
        }
    }

    /// Bytes that are BAD.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost.iter().map(|(start, end)| end - start).sum()
    }

    fn cut_lost(&mut self, newer: ByteRange) {
        while let Some((&start, &end)) = self.lost.range(..newer.end()).next_back()
            && end > newer.start()
        {
            self.lost.remove(&start);
            if end > newer.end() {
                self.lost.insert(newer.end(), end);
            }
            if start < newer.start() {
                self.lost.insert(start, newer.start());
            }
        }
    }

    fn report_lost(&self, findings: &mut Findings) {
        let bytes = self.lost_bytes();
        if bytes == 0 {
            return;
        }
        let what = format!(
            "{bytes} bytes in {} ranges are BAD: reads of them fail until they are overwritten",
            self.lost.len()
        );
        let lost = format!("{bytes} bytes; the backing has older ones in their place");
        let ranges = self.lost.iter().take(NAMED_MAX);
        let ranges: Vec<ByteRange> = ranges
            .map(|(&start, &end)| ByteRange::between(start, end))
            .collect();
        findings.damage_of(FindingKind::Data, 0, what, lost, &ranges);
    }

    /// Reports them all.
    pub(super) fn finish(self, findings: &mut Findings) {
        self.report_lost(findings);
        for bad in self.keys {
            bad.report(findings);
        }
    }
}

impl BadKey {
    fn report(self, findings: &mut Findings) {
        let kind = FindingKind::Data;
        let bytes: u64 = self.visible.iter().map(|part| part.len()).sum();
        let lost = match (self.visible.is_empty(), self.is_owed) {
            (true, _) => {
                let what = format!("{}; later keys replace all of it", self.what);
                return findings.warn(kind, self.at, what);
            }
            (false, true) => format!("{bytes} dirty bytes that the backing lacks"),
            (false, false) => format!("the cached copy of {bytes} bytes; the backing has them"),
        };
        findings.damage_of(kind, self.at, self.what, lost, &self.visible);
    }
}
