//! The step of a load that makes what was read true, and says on media that a new run begins.

use super::CacheError;
use super::control::Control;
use super::fault::{self, Fault};
use super::generations::Generations;
use super::log_damage::leave_damage;
use super::log_reader::LogView;
use super::replay::Replayed;
use super::shared::Runtime;
use super::staged::Staged;
use super::staging::SectionHeader;
use super::unreadable::repair_generations;
use crate::media::{Boot, CleanStop, Incarnation, SlotKind};
use zerocopy::little_endian::{U32, U64};

/// Which copies of the backing count no more, also for later loads.
fn copies_until(control: &Control, replayed: &Replayed) -> Incarnation {
    let old = control.incarnation.0;
    if !replayed.report.clean_dropped {
        return old;
    }
    Incarnation {
        clean_until: U64::new(replayed.end.sequence),
        written_back_until: U64::new(control.dirty_tail.0.sequence),
        ..old
    }
}

/// Makes what was read durable and says that a new run begins.
pub(super) fn begin_run(
    view: &LogView,
    control: &mut Control,
    replayed: &Replayed,
    generations: &mut Generations,
    staged: &mut Staged,
    runtime: &Runtime,
) -> Result<u32, CacheError> {
    let pmem = &*view.pmem;
    let first = replayed.end.sequence;
    staged.check_generations(view, &generations.now, first)?;
    repair_generations(view, generations)?;
    for kset in staged.unlogged(first) {
        for key in kset.keys.iter().filter(|key| view.check_key(key).is_ok()) {
            let ident = view.ident(key);
            if ident.has_data {
                let at = view.data_at(ident.segment, ident.segment_offset);
                pmem.write_back(at, key.len.get().into());
            }
        }
    }
    // (1) Process death can leave stores that are visible but not durable; to read them now and lose
    // them at the next power cut would show two values.
    if !fault::injected(Fault::LoadWithoutBarrier) {
        pmem.barrier_wait()?;
    }
    control.repair_window_end(pmem)?;
    if replayed.begins_at_dirty_tail || control.tails_moved {
        let references = staged.references(view, first);
        leave_damage(view, control, replayed, &references, &mut generations.now)?;
    }
    // Slots that are in the log are done with; the rest have no place any more. This must come before
    // the first kset of this run, which takes such a place: if this load is cut off behind it, the
    // next one could not tell the two apart.
    staged
        .lanes
        .iter_mut()
        .for_each(|lane| lane.take_over(first));
    // The slots belong to the new run before media say so, so that they are found if this is cut off.
    let incarnation = control.next_incarnation();
    let lanes = u32::try_from(staged.lanes.len()).unwrap_or(0);
    staged.section.write(&SectionHeader {
        cache: view.cache,
        incarnation,
        lanes,
        boot_id: runtime.boot_id,
    });
    // (2) Leftovers behind the end of the log must not fit behind the ksets of this run.
    let body = Incarnation {
        incarnation: U32::new(incarnation),
        spare_before: U32::ZERO,
        first_sequence: U64::new(first),
        ..copies_until(control, replayed)
    };
    // In both slots: should one be lost, what is left must not speak of the run before.
    let pair = &mut control.incarnation.1;
    pair.store(pmem, SlotKind::Incarnation, &body)?;
    pmem.barrier_wait()?;
    pair.store(pmem, SlotKind::Incarnation, &body)?;
    control.incarnation.0 = body;
    let boot = Boot {
        boot_id: runtime.boot_id,
        spare: [0; 32],
    };
    control.boot.1.store(pmem, SlotKind::Boot, &boot)?;
    // With it the sample of the backing is void, before anything is written there.
    let clean = CleanStop {
        clean: U32::ZERO,
        sampled: U32::ZERO,
        final_sequence: U64::ZERO,
        spare: [0; 32],
    };
    control
        .clean_stop
        .1
        .store(pmem, SlotKind::CleanStop, &clean)?;
    pmem.barrier_wait()?;
    control.repair(view)?;
    Ok(incarnation)
}
