//! Which segments are free, and who gets the next one.

use super::geometry::SegIx;
use std::collections::VecDeque;

/// The free segments of a cache and the lanes that wait for one.
///
/// The log reserve goes first: data segments are given out only while the free ones exceed what the
/// reserve still lacks. Lanes that wait are served in the order in which they came.
#[derive(Debug)]
pub(crate) struct SegmentAlloc {
    free: VecDeque<SegIx>,
    waiting: VecDeque<u16>,
}

impl SegmentAlloc {
    pub(crate) fn new(free: VecDeque<SegIx>) -> Self {
        Self {
            free,
            waiting: VecDeque::new(),
        }
    }

    /// The free ones, for an audit.
    pub(crate) fn free(&self) -> impl Iterator<Item = SegIx> {
        self.free.iter().copied()
    }

    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// A data segment for `lane`, while the log's reserve lacks `log_deficit` segments. Without one
    /// the lane is noted as waiting.
    pub(crate) fn take_data(&mut self, lane: u16, log_deficit: u32) -> Option<SegIx> {
        let available = self.free.len().saturating_sub(log_deficit as usize);
        let place = self.waiting.iter().position(|&w| w == lane);
        let turn = place.unwrap_or(self.waiting.len());
        if turn >= available {
            if place.is_none() {
                self.waiting.push_back(lane);
            }
            return None;
        }
        if let Some(place) = place {
            self.waiting.remove(place);
        }
        self.free.pop_front()
    }

    /// `lane` waits no longer.
    pub(crate) fn stop_waiting(&mut self, lane: u16) {
        self.waiting.retain(|&w| w != lane);
    }

    /// A segment to be made ready for the log.
    pub(crate) fn take_log(&mut self) -> Option<SegIx> {
        self.free.pop_front()
    }

    /// A segment for which `fits` holds, to be kept from use.
    pub(crate) fn take_where(&mut self, fits: impl Fn(SegIx) -> bool) -> Option<SegIx> {
        let at = self.free.iter().rposition(|&segment| fits(segment))?;
        self.free.remove(at)
    }

    /// How many lanes wait.
    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// A segment is free again.
    pub(crate) fn release(&mut self, segment: SegIx) {
        debug_assert!(
            !self.free.contains(&segment),
            "segment {segment:?} released twice"
        );
        self.free.push_back(segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_reserve_goes_first_and_lanes_in_turn() {
        let mut alloc = SegmentAlloc::new([SegIx(0)].into());
        assert_eq!(alloc.take_data(0, 1), None);
        assert_eq!(alloc.take_data(1, 1), None);
        alloc.release(SegIx(1));
        assert_eq!(alloc.take_data(1, 1), None, "lane 0 came first");
        assert_eq!(alloc.take_data(0, 1), Some(SegIx(0)));
        assert_eq!(alloc.take_log(), Some(SegIx(1)));
        alloc.release(SegIx(2));
        assert_eq!(alloc.take_data(1, 0), Some(SegIx(2)));
    }
}
