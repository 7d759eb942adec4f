//! What a load does about places of a pool that can't be read though nothing of them is lost: they stand
//! twice, or nothing stood there. A run must still be able to store there.

use super::CacheError;
use super::control::Control;
use super::control_io::load_pair;
use super::generations::Generations;
use super::geometry::{PAIR_DISTANCE, SEGMENT_ITEMS_BYTES, SegIx, SegmentItem};
use super::load_report::Unwritable;
use super::log_reader::LogView;
use super::replay::Replayed;
use crate::bdev::PmemError;
use crate::media::{Generation, KSET_ALIGN, KSET_BYTES_MAX, SlotKind};
use zerocopy::little_endian::U64;

/// Stores generations of which the newer slot was lost, where the medium takes them; elsewhere the
/// segment is bad, and gets no other life.
pub(super) fn repair_generations(
    view: &LogView,
    generations: &Generations,
) -> Result<(), CacheError> {
    for &segment in &generations.raised {
        let at = segment_item_at(view, segment, SegmentItem::Generation);
        let (body, mut pair) =
            load_pair::<Generation>(&*view.pmem, at, SlotKind::Generation, "generation")?;
        let generation = U64::new(generations.now[segment.index()]);
        let body = Generation { generation, ..body };
        match pair.store(&*view.pmem, SlotKind::Generation, &body) {
            Err(PmemError::Poison { .. }) => {}
            other => other?,
        }
    }
    Ok(())
}

fn segment_item_at(view: &LogView, segment: SegIx, item: SegmentItem) -> u64 {
    view.geometry.segment_start(view.segments.id(segment)) + item as u64
}

/// Takes segments of whose own metadata something can't be read for bad ones: they are read, and not
/// used again.
pub(super) fn leave_unreadable(view: &LogView) -> Result<(), CacheError> {
    for (segment, _) in view.segments.iter() {
        let at = segment_item_at(view, segment, SegmentItem::Info);
        let mut bytes = [0; SEGMENT_ITEMS_BYTES];
        for at in [at, at + PAIR_DISTANCE] {
            match view.pmem.load(at, &mut bytes) {
                Err(PmemError::Poison { .. }) => view.segments.mark_bad(segment),
                other => other?,
            }
        }
    }
    Ok(())
}

/// Whether a run can be begun: it stores in control items, and at the log's end.
pub(super) fn find_unwritable(
    view: &LogView,
    control: &mut Control,
    replayed: &Replayed,
) -> Result<Option<Unwritable>, CacheError> {
    let found = control.make_writable(&*view.pmem)?;
    if found.is_some() || !replayed.end_unreadable {
        return Ok(found);
    }
    let room = view.geometry.segment_data_bytes() - u64::from(replayed.end.offset);
    let at = view.data_at(replayed.end.segment, replayed.end.offset);
    let end = at + room.min(KSET_BYTES_MAX as u64);
    let mut line = [0; KSET_ALIGN];
    for at in (at..end).step_by(KSET_ALIGN) {
        if view.pmem.load(at, &mut line).is_ok() {
            continue;
        }
        match view.pmem.store(at, &[0; KSET_ALIGN]) {
            Err(PmemError::Poison { .. }) => {
                let item = "next kset of the log";
                return Ok(Some(Unwritable { item, at }));
            }
            other => other?,
        }
    }
    Ok(None)
}
