//! Generations of which one slot is lost: the log may prove what it held, as it does for a load.

use super::control::ControlCheck;
use super::findings::Findings;
use super::report::FindingKind;
use crate::cache::control_io::SlotPair;
use crate::cache::generations::Generations;
use crate::cache::geometry::{SegIx, SegmentItem};
use crate::cache::log_reader::{Entry, LogReader, LogView};
use crate::cache::shared::LogPos;
use crate::media::{Generation, SlotKind};

fn place(view: &LogView, segment: SegIx) -> u64 {
    view.geometry.segment_start(view.segments.id(segment)) + SegmentItem::Generation as u64
}

/// Whether a slot that was written once is bad.
fn is_doubtful(view: &LogView, segment: SegIx) -> bool {
    let at = place(view, segment);
    let pair = SlotPair::<Generation>::read(&*view.pmem, at, SlotKind::Generation);
    pair.is_ok_and(|pair| pair.has_lost_one())
}

fn learn_from(view: &LogView, control: &ControlCheck, from: LogPos, found: &mut Generations) {
    let Ok(mut reader) = LogReader::new(view, from) else {
        return;
    };
    let mut hops = 0;
    while hops <= view.segments.places() {
        match reader.next(view, &control.incarnations) {
            // What this does not explain, the walk that follows names.
            Ok(Entry::Kset(kset)) => _ = found.learn(view, kset.keys),
            Ok(Entry::Last { .. }) => hops += 1,
            Err(_) => return,
        }
    }
}

/// Corrects the generations of the cache's segments by what the keys of its log prove.
pub(super) fn learn(
    view: &LogView,
    control: &ControlCheck,
    generations: &mut [Option<u64>],
    findings: &mut Findings,
) {
    let mut doubtful = vec![false; generations.len()];
    for (segment, _) in view.segments.iter() {
        doubtful[segment.index()] = is_doubtful(view, segment);
    }
    if !doubtful.contains(&true) {
        return;
    }
    // No key is ahead of one that is not known.
    let known = generations.iter().map(|found| found.unwrap_or(u64::MAX));
    let mut found = Generations::new(known.collect(), doubtful);
    learn_from(view, control, control.key_tail, &mut found);
    if let Some(from) = control.dirty_tail {
        learn_from(view, control, from, &mut found);
    }
    for &segment in &found.raised {
        let number = found.now[segment.index()];
        generations[segment.index()] = Some(number);
        let what = format!("generation: the lost slot held {number}, as keys of the log prove");
        findings.warn(FindingKind::Generation, place(view, segment), what);
    }
}
