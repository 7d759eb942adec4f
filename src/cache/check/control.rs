//! The control items of a cache, and the STARTs of its segments.

use super::findings::{Findings, PairName};
use super::report::{CacheCheck, FindingKind, OptionsCheck, SegmentFigures, TailCheck};
use crate::cache::backing_sample::SAMPLE_ITEMS;
use crate::cache::control::tail_pos;
use crate::cache::control_io::SlotPair;
use crate::cache::geometry::{CacheItem, SegIx, SegmentItem};
use crate::cache::log_reader::{Incarnations, LogView};
use crate::cache::plausible::check_incarnation;
use crate::cache::shared::LogPos;
use crate::media::{
    BackingFlush, BackingSample, Boot, CacheEntry, CleanStop, DurableMark, Incarnation, LogStart,
    SlotBody, SlotKind, Tail, WindowEnd,
};
use uuid::Uuid;

/// What the walk along the log needs.
#[derive(Debug)]
pub(super) struct ControlCheck {
    pub(super) key_tail: LogPos,
    /// Without one, all dirty keys count as not written back.
    pub(super) dirty_tail: Option<LogPos>,
    pub(super) incarnations: Incarnations,
    /// The sequence up to which the log is known to reach.
    pub(super) proven: u64,
}

/// What the table says of a cache.
pub(super) fn cache_of(entry: &CacheEntry) -> CacheCheck {
    CacheCheck {
        name: entry.name(),
        uuid: Uuid::from_bytes(entry.uuid),
        backing_name: entry.backing_name(),
        backing_uuid: Uuid::from_bytes(entry.backing_uuid),
        backing_bytes: entry.backing_bytes.get(),
        first_segment: entry.first_segment.get(),
        lanes: entry.lanes.get(),
        block_bytes: entry.block_bytes.get(),
        options: options_of(entry),
        incarnation: None,
        first_sequence: None,
        stopped_clean: None,
        durable_sequence: None,
        between_boundaries: None,
        backing_flush_failed: None,
        key_tail: None,
        dirty_tail: None,
        log: None,
        segments: SegmentFigures {
            total: entry.segments.get(),
            ..SegmentFigures::default()
        },
    }
}

fn options_of(entry: &CacheEntry) -> OptionsCheck {
    let word = |value: u32, words: &[&'static str]| {
        let index = usize::try_from(value).unwrap_or(usize::MAX);
        words.get(index).copied().unwrap_or("unknown")
    };
    OptionsCheck {
        mode: word(entry.mode.get(), &["wb", "wt", "wa", "wo", "pt"]),
        durability: word(entry.durability.get(), &["flush", "write"]),
        writeback_order: word(
            entry.writeback_order.get(),
            &["adaptive", "strict", "relaxed"],
        ),
        data_crc: entry.checks.get() & 1 != 0,
        verify_reads: entry.checks.get() & 2 != 0,
        gc_percent: entry.gc_percent.get(),
        kset_flush_ms: entry.kset_flush_ms.get(),
        writeback_depth: entry.writeback_depth.get(),
        writeback_rate_mbps: entry.writeback_rate_mbps.get(),
        writeback_delay_ms: entry.writeback_delay_ms.get(),
        writeback_lag_s: entry.writeback_lag_s.get(),
        dirty_low_percent: entry.dirty_low_percent.get(),
        dirty_high_percent: entry.dirty_high_percent.get(),
        no_space_timeout_s: entry.no_space_timeout_s.get(),
        seq_cutoff_policy: word(entry.seq_cutoff_policy.get(), &["never", "full", "always"]),
        seq_cutoff_kib: entry.seq_cutoff_kib.get(),
        admission: entry.admission.get(),
    }
}

fn item<B: SlotBody>(
    view: &LogView,
    findings: &mut Findings,
    place: CacheItem,
    slot: SlotKind,
    item: &'static str,
    lost: &'static str,
) -> Option<B> {
    let at = view.geometry.segment_start(view.segments.id(SegIx(0))) + place as u64;
    let name = PairName {
        kind: FindingKind::ControlItem,
        item,
        lost,
    };
    findings.pair(&*view.pmem, at, slot, &name)
}

fn tail(
    view: &LogView,
    findings: &mut Findings,
    place: CacheItem,
    slot: SlotKind,
    name: &'static str,
    lost: &'static str,
) -> Option<(LogPos, TailCheck)> {
    let tail: Tail = item(view, findings, place, slot, name, lost)?;
    let shown = TailCheck {
        segment: tail.segment.get(),
        offset: tail.offset.get(),
        sequence: tail.sequence.get(),
        epoch: tail.epoch.get(),
    };
    match tail_pos(view, &tail, name) {
        Ok(pos) => Some((pos, shown)),
        Err(_) => {
            let at = view.geometry.segment_start(view.segments.id(SegIx(0))) + place as u64;
            let what = format!(
                "{name} leads to segment {}, offset {}, sequence {}, epoch {}, which can't be",
                shown.segment, shown.offset, shown.sequence, shown.epoch
            );
            findings.damage(FindingKind::Tail, at, what, lost);
            None
        }
    }
}

/// A key tail never passes the durable dirty tail: one that lies before it stands in the older slot, and
/// the newer one is lost.
fn not_gone_back(
    view: &LogView,
    key_tail: Option<(LogPos, TailCheck)>,
    dirty_tail: (LogPos, TailCheck),
    findings: &mut Findings,
) -> (LogPos, TailCheck) {
    let at = view.geometry.segment_start(view.segments.id(SegIx(0))) + CacheItem::DirtyTail as u64;
    let pair = SlotPair::<Tail>::read(&*view.pmem, at, SlotKind::DirtyTail);
    match key_tail {
        Some(key_tail)
            if dirty_tail.0.sequence < key_tail.0.sequence
                && pair.is_ok_and(|pair| pair.has_lost_one()) =>
        {
            let what = "dirty tail: it has gone back, to before the key tail, where it counts from";
            findings.warn(FindingKind::Tail, at, what);
            key_tail
        }
        _ => dirty_tail,
    }
}

fn read_incarnation(view: &LogView, findings: &mut Findings) -> Option<Incarnation> {
    let lost = "which ksets are leftovers: the cache can't be loaded";
    let (place, slot) = (CacheItem::Incarnation, SlotKind::Incarnation);
    let found: Incarnation = item(view, findings, place, slot, "incarnation", lost)?;
    let at = view.geometry.segment_start(view.segments.id(SegIx(0))) + place as u64;
    match check_incarnation(at, found.incarnation.get()) {
        Ok(()) => Some(found),
        Err(error) => {
            findings.damage(FindingKind::ControlItem, at, error.to_string(), lost);
            None
        }
    }
}

/// What the backing held at a clean stop; without a good record of it a load wants `force`.
fn check_samples(view: &LogView, clean: &CleanStop, findings: &mut Findings) {
    let lost = "whether the backing was changed since the stop: a load wants force";
    for (place, slot, name) in SAMPLE_ITEMS {
        let Some(sample) = item::<BackingSample>(view, findings, place, slot, name, lost) else {
            continue;
        };
        let (found, expected) = (sample.final_sequence.get(), clean.final_sequence.get());
        if found != expected {
            let at = view.geometry.segment_start(view.segments.id(SegIx(0))) + place as u64;
            let what = format!("{name}: of a stop at sequence {found}, not {expected}");
            findings.damage(FindingKind::ControlItem, at, what, lost);
        }
    }
}

/// Reads all items. Nothing if the log can't be walked.
pub(super) fn read_control(
    view: &LogView,
    cache: &mut CacheCheck,
    findings: &mut Findings,
) -> Option<ControlCheck> {
    let lost = "where the log begins: the cache can't be loaded, and all its dirty data are lost";
    let key_tail = tail(
        view,
        findings,
        CacheItem::KeyTail,
        SlotKind::KeyTail,
        "key tail",
        lost,
    );
    let lost = "what has been written back: the cache can't be loaded";
    let dirty_tail = tail(
        view,
        findings,
        CacheItem::DirtyTail,
        SlotKind::DirtyTail,
        "dirty tail",
        lost,
    );
    let dirty_tail = dirty_tail.map(|found| not_gone_back(view, key_tail, found, findings));
    let incarnation = read_incarnation(view, findings);
    let lost = "whether the backing is between flush boundaries: the cache can't be loaded";
    let (place, slot) = (CacheItem::WindowEnd, SlotKind::WindowEnd);
    let window: Option<WindowEnd> = item(view, findings, place, slot, "window end", lost);
    let lost = "how the last run ended: the cache can't be loaded";
    let (place, slot) = (CacheItem::CleanStop, SlotKind::CleanStop);
    let clean: Option<CleanStop> = item(view, findings, place, slot, "clean stop", lost);
    let lost = "the proof of the log's end: the cache can't be loaded";
    let (place, slot) = (CacheItem::DurableMark, SlotKind::DurableMark);
    let mark: Option<DurableMark> = item(view, findings, place, slot, "durable mark", lost);
    let lost = "whether staged keys are of this boot: the cache can't be loaded";
    let (place, slot) = (CacheItem::Boot, SlotKind::Boot);
    let _: Option<Boot> = item(view, findings, place, slot, "boot id", lost);
    let lost = "whether the backing has lost what it had acknowledged: the cache can't be loaded";
    let (place, slot) = (CacheItem::BackingFlush, SlotKind::BackingFlush);
    let flush: Option<BackingFlush> = item(view, findings, place, slot, "backing flush", lost);

    if let Some(clean) = clean.filter(|clean| clean.clean.get() == 1 && clean.sampled.get() == 1) {
        check_samples(view, &clean, findings);
    }

    cache.key_tail = key_tail.map(|(_, shown)| shown);
    cache.dirty_tail = dirty_tail.map(|(_, shown)| shown);
    cache.incarnation = incarnation.map(|i| i.incarnation.get());
    cache.first_sequence = incarnation.map(|i| i.first_sequence.get());
    cache.stopped_clean = clean.map(|clean| clean.clean.get() == 1);
    cache.durable_sequence = mark.map(|mark| mark.sequence.get());
    cache.backing_flush_failed = flush.map(|flush| flush.failed.get() == 1);
    cache.between_boundaries = window
        .zip(dirty_tail)
        .map(|(window, (dirty, _))| window.sequence.get() > dirty.sequence);

    let (key_tail, incarnation) = (key_tail?.0, incarnation?);
    let dirty_tail = dirty_tail.map(|(pos, _)| pos);
    let before = |sequence: u64| sequence.saturating_sub(1);
    let proofs = [
        clean
            .filter(|clean| clean.clean.get() == 1)
            .map(|clean| clean.final_sequence.get()),
        mark.map(|mark| mark.sequence.get()),
        dirty_tail.map(|pos| before(pos.sequence)),
        Some(before(key_tail.sequence)),
        Some(before(incarnation.first_sequence.get())),
    ];
    Some(ControlCheck {
        key_tail,
        dirty_tail,
        incarnations: Incarnations {
            current: incarnation.incarnation.get(),
            first_sequence: incarnation.first_sequence.get(),
        },
        proven: proofs.into_iter().flatten().max().unwrap_or(0),
    })
}

/// The STARTs of all segments of the cache. A bad one counts only where the log goes through its
/// segment, which the walk sees.
pub(super) fn check_starts(view: &LogView, findings: &mut Findings) {
    for (_, id) in view.segments.iter() {
        let at = view.geometry.segment_start(id) + SegmentItem::LogStart as u64;
        let pair = SlotPair::<LogStart>::read(&*view.pmem, at, SlotKind::LogStart);
        let odd = match pair {
            Err(error) => Some(error.to_string()),
            Ok(pair) => match pair.newest() {
                Ok((_, start, _)) if start.segment.get() != id.0 => {
                    Some(format!("it is that of segment {}", start.segment.get()))
                }
                Ok((_, start, _)) if start.cache != view.cache => {
                    Some(format!("it is of cache {}", Uuid::from_bytes(start.cache)))
                }
                Ok((seq, _, second)) => pair.odd_slot(seq, second).map(|(_, e)| e.to_string()),
                Err(_) if pair.blank == [true; 2] => None,
                Err((first, other)) => Some(format!("first slot: {first}; second slot: {other}")),
            },
        };
        if let Some(odd) = odd {
            let what = format!("START: {odd}; it counts only if the log leads here");
            findings.warn(FindingKind::LogStart, at, what);
        }
    }
}
