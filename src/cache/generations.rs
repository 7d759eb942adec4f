//! The generations of a cache's segments as a load finds them, also where the newer slot is lost.

use super::CacheError;
use super::control_io::load_pair;
use super::geometry::{SegIx, SegmentItem};
use super::log_reader::LogView;
use super::plausible::check_count;
use crate::media::{self, Generation, SlotKind};

/// The generations of the segments of a cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generations {
    pub(crate) now: Vec<u64>,
    /// A slot is lost: it may have held the next one.
    doubtful: Vec<bool>,
    /// Which were found to be one above what their good slots say.
    pub(crate) raised: Vec<SegIx>,
}

impl Generations {
    /// Generations, and of which of them a slot is lost.
    pub(super) fn new(now: Vec<u64>, doubtful: Vec<bool>) -> Self {
        Self {
            now,
            doubtful,
            raised: Vec::new(),
        }
    }

    /// Looks at keys that are of a later life than their segments. One is durable before keys carry it:
    /// where a slot is lost, they prove that it held the next one. Whether that explains all of them.
    pub(super) fn learn(&mut self, view: &LogView, keys: &[media::Key]) -> bool {
        for key in keys {
            if view.check_key(key).is_err() || !view.is_ahead(&self.now, key) {
                continue;
            }
            let ident = view.ident(key);
            let place = ident.segment.index();
            if !self.doubtful[place] || ident.generation != self.now[place] + 1 {
                return false;
            }
            self.doubtful[place] = false;
            self.now[place] += 1;
            self.raised.push(ident.segment);
        }
        true
    }
}

/// Reads the generation of every segment of the cache.
pub(crate) fn load_generations(view: &LogView) -> Result<Generations, CacheError> {
    let places = view.segments.places();
    let mut generations = Generations::new(vec![0; places], vec![false; places]);
    for (segment, id) in view.segments.iter() {
        let at = view.geometry.segment_start(id) + SegmentItem::Generation as u64;
        let (body, pair) =
            load_pair::<Generation>(&*view.pmem, at, SlotKind::Generation, "generation")?;
        if body.segment.get() != id.0 {
            let (found, expected) = (body.segment.get().into(), id.0.into());
            return Err(CacheError::Identity {
                item: "generation",
                at,
                found,
                expected,
            });
        }
        check_count("generation", at, body.generation.get())?;
        generations.now[segment.index()] = body.generation.get();
        generations.doubtful[segment.index()] = pair.lost;
    }
    Ok(generations)
}
