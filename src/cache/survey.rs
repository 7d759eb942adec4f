//! Where the parts of a cache stand on a medium that nobody uses: so that the simulator can damage
//! what it means to.

use super::CacheError;
use super::control::Control;
use super::generations::load_generations;
use super::geometry::{CONTROL_ITEMS_END, PAIR_DISTANCE, SEGMENT_ITEMS_BYTES};
use super::log_reader::{Entry, LogReader, LogView, Stop};
use super::pool::Pool;
use super::replay::open_view;
use crate::media::{KeyFlags, SLOT_BYTES, kset_bytes};
use crate::units::ByteRange;

/// A kset of the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SurveyedKset {
    /// Its first byte on the medium, and its length.
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) sequence: u64,
    /// The durable sequence that it states.
    pub(crate) durable: u64,
}

/// Data that a key of the log refers to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SurveyedData {
    /// The first byte on the medium.
    pub(crate) at: u64,
    /// The bytes of the volume.
    pub(crate) range: ByteRange,
    /// The backing has the same.
    pub(crate) is_clean: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    pub(crate) ksets: Vec<SurveyedKset>,
    pub(crate) data: Vec<SurveyedData>,
    /// First bytes of the slots of all pairs.
    pub(crate) slots: Vec<[u64; 2]>,
    /// All ksets below this sequence are written back.
    pub(crate) dirty_sequence: u64,
}

/// The slots of the cache's items and of its segments' own.
fn slots(view: &LogView) -> Vec<[u64; 2]> {
    let items = SEGMENT_ITEMS_BYTES as u64..CONTROL_ITEMS_END;
    let mut found = Vec::new();
    for (place, id) in view.segments.iter() {
        let start = view.geometry.segment_start(id);
        let own = (0..SEGMENT_ITEMS_BYTES as u64).chain(items.clone().filter(|_| place.0 == 0));
        for at in own.step_by(SLOT_BYTES) {
            found.push([start + at, start + at + PAIR_DISTANCE]);
        }
    }
    found
}

impl Pool {
    /// Surveys the cache `name`, which is not loaded and not damaged.
    ///
    /// # Errors
    /// Damage, and what the medium can't read.
    pub(crate) fn survey(&self, name: &str) -> Result<Survey, CacheError> {
        let (_, entry) = self.find(name)?;
        let view = open_view(self, &entry)?;
        let control = Control::load(&view)?;
        let generations = load_generations(&view)?.now;
        let incarnations = control.incarnations();
        let mut reader = LogReader::new(&view, control.key_tail.0)?;
        let mut survey = Survey {
            dirty_sequence: control.dirty_tail.0.sequence,
            slots: slots(&view),
            ..Survey::default()
        };
        loop {
            let place = reader.pos;
            let kset = match reader.next(&view, &incarnations) {
                Ok(Entry::Kset(kset)) => kset,
                Ok(Entry::Last { .. }) => continue,
                Err(Stop::NotThere(_)) => return Ok(survey),
                Err(Stop::Error(error)) => return Err(error),
            };
            survey.ksets.push(SurveyedKset {
                at: view.data_at(place.segment, place.offset),
                len: kset_bytes(kset.keys.len()) as u64,
                sequence: place.sequence,
                durable: kset.header.durable,
            });
            for key in kset.keys {
                let ident = view.ident(key);
                if ident.has_data && generations[ident.segment.index()] == ident.generation {
                    let start = key.offset.get();
                    survey.data.push(SurveyedData {
                        at: view.data_at(ident.segment, ident.segment_offset),
                        range: ByteRange::between(start, start + u64::from(key.len.get())),
                        is_clean: key.flags().has(KeyFlags::CLEAN),
                    });
                }
            }
        }
    }
}
