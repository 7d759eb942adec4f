//! What stands behind the place where a log can't be read on: it tells damage from the log's end.
//!
//! A kset that was torn by a power cut was never acknowledged, and no kset behind it carries a durable
//! sequence as high as its own. One that does proves that the unreadable one was durable once.

use super::CacheError;
use super::control_io::SlotPair;
use super::geometry::{SegIx, SegmentItem};
use super::log_reader::{LogReader, LogView};
use crate::bdev::PmemError;
use crate::media::{
    self, KSET_BYTES_MAX, KsetHeader, LAST_BYTES, LogStart, Parsed, SlotKind, kset_bytes,
    parse_kset,
};

/// What is given up at once where the medium can't be read.
const LOAD_BYTES: usize = 64;

/// A kset or LAST whose sequence is above the expected one, in a segment of the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Later<'a> {
    pub(crate) header: KsetHeader,
    /// None in a LAST.
    pub(crate) keys: &'a [media::Key],
}

impl<'a> Later<'a> {
    /// What stands at the start of `bytes`, with its length, if it is of a segment with this salt.
    fn parse(bytes: &'a [u8], salt: u64, expected: u64) -> Option<(Self, usize)> {
        let (header, keys, len) = match parse_kset(bytes).ok()? {
            Parsed::Kset(kset) => (kset.header, kset.keys, kset_bytes(kset.keys.len())),
            Parsed::Last(header, _) => (header, &[] as &[media::Key], LAST_BYTES),
        };
        let fits = header.salt == salt && header.sequence > expected;
        fits.then_some((Self { header, keys }, len))
    }
}

/// Fills `bytes` from the medium; what can't be read is zero, and so no kset.
pub(super) fn load_readable(view: &LogView, at: u64, bytes: &mut [u8]) -> Result<(), PmemError> {
    if view.pmem.load(at, bytes).is_ok() {
        return Ok(());
    }
    let mut from = at;
    for page in bytes.chunks_mut(LOAD_BYTES) {
        match view.pmem.load(from, page) {
            Err(PmemError::Poison { .. }) => page.fill(0),
            other => other?,
        }
        from += page.len() as u64;
    }
    Ok(())
}

/// Whether a START was written when more than the kset `expected` was durable: it says up to where
/// that was so then, or where a run began.
fn is_beyond(start: &LogStart, expected: u64) -> bool {
    start.sequence.get() > expected
}

impl LogReader {
    /// Whether a later kset or START proves that the kset expected here was durable once, and up to
    /// which sequence.
    ///
    /// # Errors
    /// The medium's.
    pub(crate) fn probe_hole(&self, view: &LogView) -> Result<Option<u64>, CacheError> {
        let mut proof = None;
        self.visit_later(view, &mut |later| {
            if later.header.durable >= self.pos.sequence {
                proof = Some(later.header.durable);
            }
            proof.is_none()
        })?;
        if proof.is_some() {
            return Ok(proof);
        }
        for (segment, _) in view.segments.iter() {
            if let Some(start) = self.later_start(view, segment)?
                && is_beyond(&start, self.pos.sequence)
            {
                return Ok(Some(start.sequence.get() - 1));
            }
        }
        Ok(None)
    }

    /// Shows `visit` the ksets of this log behind the one expected here until it returns false: in
    /// this segment wherever they stand, in all others from the start on.
    ///
    /// # Errors
    /// The medium's.
    pub(crate) fn visit_later(
        &self,
        view: &LogView,
        visit: &mut dyn FnMut(&Later) -> bool,
    ) -> Result<(), CacheError> {
        if !self.visit_here(view, visit)? {
            return Ok(());
        }
        for (segment, _) in view.segments.iter() {
            if segment != self.pos.segment && !self.visit_segment(view, segment, visit)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn visit_here(
        &self,
        view: &LogView,
        visit: &mut dyn FnMut(&Later) -> bool,
    ) -> Result<bool, PmemError> {
        let len = usize::try_from(view.geometry.segment_data_bytes()).unwrap_or(0);
        let mut bytes = vec![0; len];
        load_readable(view, view.data_at(self.pos.segment, 0), &mut bytes)?;
        let mut at = self.pos.offset as usize;
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= LAST_BYTES) {
            match Later::parse(rest, self.salt(), self.pos.sequence) {
                Some((later, _)) if !visit(&later) => return Ok(false),
                Some((_, len)) => at += len,
                None => at += media::KSET_ALIGN,
            }
        }
        Ok(true)
    }

    /// The START of another segment of this log, if it has one.
    fn later_start(&self, view: &LogView, segment: SegIx) -> Result<Option<LogStart>, PmemError> {
        if segment == self.pos.segment {
            return Ok(None);
        }
        let id = view.segments.id(segment);
        let at = view.geometry.segment_start(id) + SegmentItem::LogStart as u64;
        let pair = SlotPair::<LogStart>::read(&*view.pmem, at, SlotKind::LogStart)?;
        let start = pair.newest().ok().map(|(_, start, _)| start);
        Ok(start.filter(|start| start.segment.get() == id.0 && start.cache == view.cache))
    }

    /// A LAST may be what can't be read: then the log goes on in a segment that only its START names.
    fn visit_segment(
        &self,
        view: &LogView,
        segment: SegIx,
        visit: &mut dyn FnMut(&Later) -> bool,
    ) -> Result<bool, PmemError> {
        let Some(start) = self.later_start(view, segment)? else {
            return Ok(true);
        };
        // One that is behind the bad kset for certain is searched as a whole. In the others, most of
        // which hold data today, a log would begin with a good kset.
        let search = is_beyond(&start, self.pos.sequence);
        let mut bytes = vec![0; KSET_BYTES_MAX];
        let mut offset = 0;
        let data = usize::try_from(view.geometry.segment_data_bytes()).unwrap_or(0);
        while offset < data {
            let len = (data - offset).min(KSET_BYTES_MAX);
            let Some(bytes) = bytes.get_mut(..len) else {
                break;
            };
            let from = view.data_at(segment, u32::try_from(offset).unwrap_or(u32::MAX));
            load_readable(view, from, bytes)?;
            match Later::parse(bytes, start.salt.get(), self.pos.sequence) {
                Some((later, _)) if !visit(&later) => return Ok(false),
                Some((_, len)) => offset += len,
                None if search => offset += media::KSET_ALIGN,
                None => break,
            }
        }
        Ok(true)
    }
}
