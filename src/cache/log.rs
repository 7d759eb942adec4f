//! The log head: gives ksets their place, sequence and epoch. Shared by the lanes of a cache.
//!
//! Room is counted in largest ksets. Invariant: `promised() <= capacity()`, where a lane is promised
//! one before it opens a kset. So a close always finds room, and writeback and GC can go on when
//! nothing else can. One segment is promised for BAD keys only, which maintenance must log before it
//! can make room.

use super::geometry::{SegIx, largest_ksets};
use crate::media::{KSET_BYTES_MAX, LAST_BYTES, Last};
use std::collections::VecDeque;

/// A log segment whose START is durable, waiting to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadySegment {
    pub(crate) segment: SegIx,
    /// The same on media.
    pub(crate) pool_segment: u32,
    pub(crate) salt: u64,
}

/// The place that a kset or LAST was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: SegIx,
    /// Bytes from the start of the segment's data.
    pub(crate) offset: u32,
    pub(crate) salt: u64,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
}

/// What [`LogHead::place`] gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Where the kset goes.
    pub(crate) kset: Place,
    /// A LAST that must be stored too, since the log went on to the next segment.
    pub(crate) last: Option<(Place, Last)>,
    /// The lane has been promised room for its next kset.
    pub(crate) promised_again: bool,
}

/// The end of the log.
#[derive(Debug)]
pub(crate) struct LogHead {
    pub(crate) segment: SegIx,
    pub(crate) offset: u32,
    pub(crate) salt: u64,
    pub(crate) next_sequence: u64,
    pub(crate) epoch: u64,
    /// A kset was placed since the epoch was raised last.
    pub(crate) placed_in_epoch: bool,
    pub(crate) ready: VecDeque<ReadySegment>,
    /// The segments of the log in order, from the one with the key tail (or one before it) to the head's.
    pub(crate) chain: VecDeque<SegIx>,
    segment_data_bytes: u64,
    promised: u32,
}

impl LogHead {
    /// A log that goes on at `segment`, `offset` with `next_sequence`.
    pub(crate) fn new(at: Place, ready: VecDeque<ReadySegment>, segment_data_bytes: u64) -> Self {
        Self {
            segment: at.segment,
            offset: at.offset,
            salt: at.salt,
            next_sequence: at.sequence,
            epoch: at.epoch,
            placed_in_epoch: true,
            ready,
            chain: [at.segment].into(),
            segment_data_bytes,
            promised: 0,
        }
    }

    fn room_in_segment(&self) -> u64 {
        self.segment_data_bytes - u64::from(self.offset)
    }

    /// Largest ksets that there is room for.
    pub(crate) fn capacity(&self) -> u32 {
        let ready = u32::try_from(self.ready.len()).unwrap_or(u32::MAX);
        let per_segment = largest_ksets(self.segment_data_bytes);
        largest_ksets(self.room_in_segment()).saturating_add(ready.saturating_mul(per_segment))
    }

    /// Promises room for one largest kset, if there is any left beside what is kept for BAD keys.
    pub(crate) fn promise(&mut self) -> bool {
        let kept = largest_ksets(self.segment_data_bytes);
        self.promise_above(kept)
    }

    /// The same out of all that there is: for a kset that maintenance waits for.
    pub(crate) fn promise_reserved(&mut self) -> bool {
        self.promise_above(0)
    }

    fn promise_above(&mut self, kept: u32) -> bool {
        let granted = self.promised.saturating_add(kept) < self.capacity();
        if granted {
            self.promised += 1;
        }
        granted
    }

    /// Takes a promise back that was not used.
    pub(crate) fn give_back(&mut self) {
        self.promised = self.promised.saturating_sub(1);
    }

    fn take(&mut self, bytes: usize) -> Place {
        let place = Place {
            segment: self.segment,
            offset: self.offset,
            salt: self.salt,
            sequence: self.next_sequence,
            epoch: self.epoch,
        };
        self.offset += u32::try_from(bytes).unwrap_or(u32::MAX);
        self.next_sequence += 1;
        place
    }

    /// Gives a kset of `bytes` its place, against a promise made before. `raise` ends the epoch
    /// behind it.
    ///
    /// # Panics
    /// If there is no room in spite of the promise: our own bug.
    pub(crate) fn place(&mut self, bytes: usize, raise: bool) -> Placed {
        assert!(
            bytes <= KSET_BYTES_MAX && self.promised > 0,
            "a kset without a promise"
        );
        let mut last = None;
        if self.room_in_segment() < (bytes + LAST_BYTES) as u64 {
            let next = self.ready.pop_front();
            assert!(
                next.is_some(),
                "the log reserve is empty though room was promised"
            );
            if let Some(next) = next {
                let place = self.take(LAST_BYTES);
                let to = Last {
                    next_segment: next.pool_segment,
                    next_salt: next.salt,
                };
                last = Some((place, to));
                self.chain.push_back(next.segment);
                self.segment = next.segment;
                self.salt = next.salt;
                self.offset = 0;
            }
        }
        let kset = self.take(bytes);
        self.placed_in_epoch = true;
        if raise {
            self.raise_epoch();
        }
        self.promised -= 1;
        let promised_again = self.promise();
        assert!(
            self.promised <= self.capacity(),
            "the log promised more than it has"
        );
        Placed {
            kset,
            last,
            promised_again,
        }
    }

    /// Ends the epoch if a kset was placed in it.
    pub(crate) fn raise_epoch(&mut self) {
        if self.placed_in_epoch {
            self.epoch += 1;
            self.placed_in_epoch = false;
        }
    }

    /// The highest sequence given out.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::kset_bytes;
    use proptest::prelude::*;

    const DATA: u64 = (256 << 10) - 8192;

    fn head(ready: u32) -> LogHead {
        let segment = |n: u32| ReadySegment {
            segment: SegIx(n),
            pool_segment: n,
            salt: n.into(),
        };
        let at = Place {
            segment: SegIx(0),
            offset: 0,
            salt: 0,
            sequence: 1,
            epoch: 1,
        };
        LogHead::new(at, (1..=ready).map(segment).collect(), DATA)
    }

    proptest! {
        #[test]
        fn whoever_was_promised_room_finds_it(sizes in proptest::collection::vec(1_usize..=128, 1..4000)) {
            let mut log = head(4);
            let mut expected = 1;
            for keys in sizes {
                if !log.promise() {
                    break;
                }
                let placed = log.place(kset_bytes(keys), false);
                if let Some((place, _)) = placed.last {
                    prop_assert_eq!(place.sequence, expected);
                    prop_assert!(u64::from(place.offset) + 64 <= DATA);
                    expected += 1;
                }
                prop_assert_eq!(placed.kset.sequence, expected);
                expected += 1;
                prop_assert!(u64::from(placed.kset.offset) + kset_bytes(keys) as u64 + 64 <= DATA);
                if placed.promised_again {
                    log.give_back();
                }
            }
        }
    }

    #[test]
    fn a_segment_is_kept_for_what_maintenance_logs() {
        let mut log = head(3);
        let per_segment = largest_ksets(DATA);
        let common = (0..).take_while(|_| log.promise()).count();
        assert_eq!(common, 3 * per_segment as usize);
        let reserved = (0..).take_while(|_| log.promise_reserved()).count();
        assert_eq!(reserved, per_segment as usize);
        assert_eq!(log.promised, log.capacity());
    }

    #[test]
    fn an_epoch_is_raised_once_for_what_was_placed() {
        let mut log = head(1);
        assert!(log.promise());
        let placed = log.place(128, true);
        assert_eq!((placed.kset.epoch, log.epoch), (1, 2));
        log.raise_epoch();
        assert_eq!(log.epoch, 2);
    }
}
