//! Recomputes from the log what a running cache keeps in memory, and compares: for the simulator, on a
//! cache that is at rest.

use super::cache::Cache;
use super::control_io::SlotPair;
use super::copies::CopiesUntil;
use super::gc::GcCell;
use super::geometry::{SegIx, SegmentItem};
use super::group::GroupCell;
use super::key_index::{BLOCK, KeyIndex, SUBTREE_BLOCKS, SUBTREE_BYTES};
use super::lane::Lane;
use super::log_reader::{Entry, LogView};
use super::replay::Replayed;
use super::shared::{SEALED, Shared};
use crate::media::{Generation, KeyFlags, SlotKind};
use reactors::Cx;
use std::sync::atomic::Ordering;

/// What a cache's memory and its log disagree about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuditError {
    /// A part of the cache is not where it should run.
    #[error("a part of the cache is missing")]
    Missing,
    /// The log does not go on to where it should.
    #[error("the log ends at sequence {at}, not behind {last}")]
    LogEnds { at: u64, last: u64 },
    /// References of a segment.
    #[error("segment {segment}: {counted} references are counted, the log has {found}")]
    References {
        segment: usize,
        counted: u64,
        found: u64,
    },
    /// A segment is two things at once.
    #[error("segment {segment} is both {first} and {second}")]
    Twice {
        segment: usize,
        first: &'static str,
        second: &'static str,
    },
    /// A segment is nothing.
    #[error("segment {segment} is neither free nor used: leaked")]
    Leaked { segment: usize },
    /// Generations.
    #[error("segment {segment}: generation {in_memory} in memory, {on_media:?} on media")]
    Generation {
        segment: usize,
        in_memory: u64,
        on_media: Option<u64>,
    },
    /// The key index.
    #[error("byte {offset}: the index has {in_memory}, the log {in_log}")]
    Index {
        offset: u64,
        in_memory: String,
        in_log: String,
    },
}

/// What covers a block: where its data are, or which key without data, and with which flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cover {
    segment: SegIx,
    at: u32,
    generation: u64,
    flags: KeyFlags,
}

impl Cover {
    /// Whether the log says the same. A lane does not follow the dirty tail: what it takes for dirty may
    /// have been written back, but not the other way round.
    fn agrees(self, log: Self) -> bool {
        let written_back = Self {
            flags: self.flags.with(KeyFlags::CLEAN),
            ..self
        };
        self == log || self.flags.is_dirty() && self.flags.has_data() && written_back == log
    }
}

fn covers(shared: &Shared, index: &KeyIndex, subtree: usize) -> Vec<Option<Cover>> {
    let mut blocks = vec![None; usize::from(SUBTREE_BLOCKS)];
    index.walk(subtree, 0, SUBTREE_BLOCKS, |piece| {
        let Some(key) = piece.key else { return };
        let flags = key.kind.flags();
        let has_data = flags.has_data() && !key.kind.is_placeholder();
        if has_data && !shared.is_current(key.segment, key.generation) {
            return;
        }
        // Where the backing is newer a lane may forget that it is so: it asks the backing all the same.
        if flags.has(KeyFlags::INVALID) {
            return;
        }
        for block in piece.start..piece.end {
            let skipped = u32::from(key.trim + (block - key.start));
            let block_bytes = u32::try_from(BLOCK).unwrap_or(512);
            let (segment, at) = if has_data {
                (key.segment, key.segment_offset + skipped * block_bytes)
            } else {
                (SegIx(0), 0)
            };
            blocks[usize::from(block)] = Some(Cover {
                segment,
                at,
                generation: key.generation,
                flags,
            });
        }
    });
    blocks
}

/// What each segment is: one thing only.
struct Roles(Vec<Option<&'static str>>);

impl Roles {
    fn put(&mut self, segment: SegIx, role: &'static str) -> Result<(), AuditError> {
        match self.0[segment.index()].replace(role) {
            Some(first) => Err(AuditError::Twice {
                segment: segment.index(),
                first,
                second: role,
            }),
            None => Ok(()),
        }
    }
}

fn check_index(shared: &Shared, lane: &Lane, log: &KeyIndex, bytes: u64) -> Result<(), AuditError> {
    let lanes = u64::from(shared.lanes);
    let subtrees = bytes.div_ceil(SUBTREE_BYTES);
    for subtree in (u64::from(lane.number)..subtrees).step_by(shared.lanes as usize) {
        let within = usize::try_from(subtree / lanes).unwrap_or(usize::MAX);
        let in_memory = covers(shared, &lane.index, within);
        let in_log = covers(shared, log, within);
        let differs = in_memory.iter().zip(&in_log).position(|both| match both {
            (Some(in_memory), Some(in_log)) => !in_memory.agrees(*in_log),
            (in_memory, in_log) => in_memory != in_log,
        });
        if let Some(block) = differs {
            return Err(AuditError::Index {
                offset: subtree * SUBTREE_BYTES + block as u64 * BLOCK,
                in_memory: format!("{:?}", in_memory[block]),
                in_log: format!("{:?}", in_log[block]),
            });
        }
    }
    Ok(())
}

fn check_generations(shared: &Shared, view: &LogView) -> Result<(), AuditError> {
    for (segment, id) in view.segments.iter() {
        let index = segment.index();
        let at = view.geometry.segment_start(id) + SegmentItem::Generation as u64;
        let pair = SlotPair::<Generation>::read(&*view.pmem, at, SlotKind::Generation).ok();
        let newest = pair.and_then(|pair| pair.newest().ok());
        let on_media = newest.map(|(_, body, _)| body.generation.get());
        let in_memory = shared.generations[index].load(Ordering::SeqCst);
        // A segment that is never used again needs none.
        if on_media != Some(in_memory) && !shared.is_suspect(segment) {
            return Err(AuditError::Generation {
                segment: index,
                in_memory,
                on_media,
            });
        }
    }
    Ok(())
}

impl Cache {
    /// Compares what is in memory with what the log says: references, segments, generations, index.
    /// `data`: the data reactors, in order; `gc`: the one that runs GC. `Ok(false)` if the cache is not
    /// at rest, and nothing was compared.
    pub(crate) fn audit(&self, data: &[&Cx], gc: &Cx) -> Result<bool, AuditError> {
        let shared = &*self.shared;
        let gc = gc.local::<GcCell>(shared.instance);
        let gc = gc.ok_or(AuditError::Missing)?;
        let gc = gc.0.borrow();
        let cells: Vec<_> = data
            .iter()
            .filter_map(|cx| cx.local::<GroupCell>(shared.instance))
            .collect();
        let groups: Vec<_> = cells.iter().map(|cell| cell.0.borrow()).collect();
        let lanes: Vec<&Lane> = groups.iter().flat_map(|group| &group.lanes).collect();
        if lanes.len() != shared.lanes as usize {
            return Err(AuditError::Missing);
        }
        let is_quiet = groups
            .iter()
            .flat_map(|group| &group.inboxes)
            .all(|inbox| inbox.is_empty())
            && lanes.iter().all(|lane| lane.is_quiet());
        let board = shared.resize.board.try_read();
        let is_taken_in = board.is_ok_and(|board| board.kept().is_some());
        if !gc.is_at_rest() || !is_quiet || !is_taken_in {
            return Ok(false);
        }
        let view = gc.view();
        let (mut reader, incarnations) = gc.place();
        let last = shared.last_sequence.load(Ordering::SeqCst);
        let generations: Vec<u64> = shared
            .generations
            .iter()
            .map(|generation| generation.load(Ordering::SeqCst))
            .collect();
        let written_back = shared.maintenance.dirty_sequence.load(Ordering::SeqCst);
        let mut log = Replayed::new(view, lanes.len(), &reader);
        while reader.pos.sequence <= last {
            let at = reader.pos.sequence;
            if let Some(lost) = gc.lost.iter().find(|lost| lost.has(at)) {
                reader.return_to(lost.to);
                log.log_segments.extend(&lost.left);
                continue;
            }
            match reader.next(view, &incarnations) {
                Ok(Entry::Kset(kset)) => {
                    log.take(view, &generations, &kset, CopiesUntil::NONE, written_back);
                }
                Ok(Entry::Last { .. }) => log.log_segments.push(reader.pos.segment),
                Err(_) => return Err(AuditError::LogEnds { at, last }),
            }
        }
        log.insert_late();
        for lane in &lanes {
            for key in lane.open_keys() {
                log.apply(view, &generations, key);
            }
        }
        for &(segment, count) in gc.lost.iter().flat_map(|lost| &lost.references) {
            log.references[segment.index()] += count;
        }
        self.compare(&lanes, &log, gc.dropped())?;
        check_generations(shared, view)?;
        for lane in lanes {
            let index = &log.indexes[usize::from(lane.number)];
            check_index(shared, lane, index, view.backing_bytes())?;
        }
        Ok(true)
    }

    fn compare(&self, lanes: &[&Lane], log: &Replayed, dropped: &[u64]) -> Result<(), AuditError> {
        let shared = &*self.shared;
        let mut roles = Roles(vec![None; shared.segments.places()]);
        let board = shared.resize.board.try_read();
        for &segment in board.iter().flat_map(|board| board.kept().unwrap_or(&[])) {
            roles.put(segment, "kept back")?;
        }
        if let (Some(alloc), Some(head)) = (shared.alloc.try_lock(), shared.log.try_lock()) {
            for segment in alloc.free() {
                roles.put(segment, "free")?;
            }
            for ready in &head.ready {
                roles.put(ready.segment, "in the log's reserve")?;
            }
        }
        for &segment in &log.log_segments {
            roles.put(segment, "a log segment")?;
        }
        let mut counted = vec![0; shared.segments.places()];
        for head in lanes.iter().filter_map(|lane| lane.head.as_ref()) {
            roles.put(head.segment, "a data head")?;
            counted[head.segment.index()] = head.added;
        }
        for index in 0..counted.len() {
            let added = shared.added[index].load(Ordering::SeqCst);
            if added & SEALED != 0 {
                roles.put(SegIx::of(index), "a data segment")?;
                counted[index] = added & !SEALED;
            }
            let (counted, found) = (counted[index], log.references[index]);
            if counted.checked_sub(dropped[index]) != Some(found) {
                return Err(AuditError::References {
                    segment: index,
                    counted: counted.wrapping_sub(dropped[index]),
                    found,
                });
            }
            let place = SegIx::of(index);
            let is_ours = !shared.segments.is_vacant(place) && !shared.is_suspect(place);
            if roles.0[index].is_none() && is_ours {
                return Err(AuditError::Leaked { segment: index });
            }
        }
        Ok(())
    }
}
