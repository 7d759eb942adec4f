//! Ranges of a device that commands hold against the writes of all qpairs, for fused Compare and Write.
//!
//! Whoever wants a range asks for it ([`Hold::ask`]): that puts it into a table, and raises the table's
//! version. It is granted once nothing that was asked for earlier overlaps it, and, if it is to be the
//! only one there, no write of any qpair that began before is under way in it.
//!
//! A write that meets no held range costs a store to a line of its own qpair and a load of the version,
//! in this order: either it sees the new version, and looks into the table, or who asked sees the
//! write. A qpair with writes under way looks at each new version in its next round, and says so once
//! none of its writes is in a held range; one without is not waited for, so that it may sleep. A write
//! that meets a held range asks for its own: so nobody waits for ever.

use crate::units::ByteRange;
use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// A range that somebody has asked for.
#[derive(Debug)]
struct Entry {
    range: ByteRange,
    /// Whether no write may be under way there besides.
    alone: bool,
}

/// What others see of a qpair's writes to a device; only the qpair changes it.
#[derive(Debug, Default)]
struct Seat {
    writes: AtomicU32,
    /// None of its writes is in a range that was asked for up to this version.
    clear_to: AtomicU64,
}

/// The held ranges of one device.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    version: CachePadded<AtomicU64>,
    /// In the order in which they were asked for.
    entries: ArcSwap<Vec<Arc<Entry>>>,
    seats: ArcSwap<Vec<Arc<CachePadded<Seat>>>>,
}

impl RangeLocks {
    fn changed(&self) -> u64 {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        // Before what follows looks at seats, as a new seat's qpair looks at the version only after
        // it has sat down.
        fence(Ordering::SeqCst);
        version
    }
}

fn without<T>(all: &[Arc<T>], one: &Arc<T>) -> Vec<Arc<T>> {
    let others = all.iter().filter(|other| !Arc::ptr_eq(other, one));
    others.cloned().collect()
}

/// A qpair's writes to a device.
#[derive(Debug)]
pub(super) struct Member {
    locks: Arc<RangeLocks>,
    own: Rc<Own>,
    /// The version that it has looked at, and the table of that time.
    seen: u64,
    entries: Arc<Vec<Arc<Entry>>>,
    /// Up to this version others know that it is clear.
    cleared: u64,
}

#[derive(Debug)]
struct Own {
    seat: Arc<CachePadded<Seat>>,
    writes: Cell<u32>,
}

impl Own {
    fn set_writes(&self, writes: u32) {
        self.writes.set(writes);
        self.seat.writes.store(writes, Ordering::SeqCst);
    }
}

/// A write that is under way.
#[derive(Debug)]
pub(super) struct WriteMark(Rc<Own>);

impl WriteMark {
    /// Whether it is one of `member`.
    pub(super) fn is_of(&self, member: &Member) -> bool {
        Rc::ptr_eq(&self.0, &member.own)
    }
}

impl Drop for WriteMark {
    fn drop(&mut self) {
        self.0.set_writes(self.0.writes.get() - 1);
    }
}

impl Member {
    pub(super) fn join(locks: &Arc<RangeLocks>) -> Self {
        let seat: Arc<CachePadded<Seat>> = Arc::default();
        locks.seats.rcu(|seats| {
            let mut seats = (**seats).clone();
            seats.push(Arc::clone(&seat));
            seats
        });
        fence(Ordering::SeqCst);
        let writes = Cell::new(0);
        Self {
            locks: Arc::clone(locks),
            own: Rc::new(Own { seat, writes }),
            // No version is 0 that somebody has made: the first look finds what there is.
            seen: 0,
            entries: Arc::default(),
            cleared: 0,
        }
    }

    /// A write of `range` begins; None if the range is held, so that the write has to ask for it.
    pub(super) fn begin_write(&self, range: ByteRange) -> Option<WriteMark> {
        self.own.set_writes(self.own.writes.get() + 1);
        // Dropped again if it may not begin.
        let mark = WriteMark(Rc::clone(&self.own));
        let version = self.locks.version.load(Ordering::SeqCst);
        if version == self.seen && self.entries.is_empty() {
            return Some(mark);
        }
        let entries = self.locks.entries.load();
        let is_held = entries.iter().any(|e| e.alone && e.range.overlaps(range));
        (!is_held).then_some(mark)
    }

    /// Looks whether ranges were asked for or given back. `writes_in` says whether a write of its own
    /// is under way in a range.
    pub(super) fn attend(&mut self, writes_in: impl Fn(&Self, ByteRange) -> bool) {
        let version = self.locks.version.load(Ordering::SeqCst);
        if version != self.seen {
            self.seen = version;
            // At least as new as the version.
            self.entries = self.locks.entries.load_full();
        }
        if self.cleared == version {
            return;
        }
        let mut held = self.entries.iter().filter(|entry| entry.alone);
        if self.own.writes.get() == 0 || !held.any(|entry| writes_in(self, entry.range)) {
            self.cleared = version;
            self.own.seat.clear_to.store(version, Ordering::SeqCst);
        }
    }

    /// Whether somebody may be waiting for it to look.
    pub(super) fn is_behind(&self) -> bool {
        self.own.writes.get() > 0 && self.seen != self.locks.version.load(Ordering::Relaxed)
    }

    pub(super) fn locks(&self) -> &Arc<RangeLocks> {
        &self.locks
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let seat = &self.own.seat;
        self.locks.seats.rcu(|seats| without(seats, seat));
    }
}

/// A range that was asked for, until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    locks: Arc<RangeLocks>,
    entry: Arc<Entry>,
    /// The version that came of it.
    version: u64,
    granted: bool,
}

impl Hold {
    /// Asks for `range`; `alone`: against all other writes, or only in turn after those that are
    /// alone.
    pub(super) fn ask(locks: &Arc<RangeLocks>, range: ByteRange, alone: bool) -> Self {
        let entry = Arc::new(Entry { range, alone });
        locks.entries.rcu(|entries| {
            let mut entries = (**entries).clone();
            entries.push(Arc::clone(&entry));
            entries
        });
        Self {
            version: locks.changed(),
            locks: Arc::clone(locks),
            entry,
            granted: false,
        }
    }

    /// Whether it is its turn. Once it is, it stays so.
    pub(super) fn is_granted(&mut self) -> bool {
        // Asked once more, qpairs that have begun to write elsewhere would seem to be in the way.
        self.granted = self.granted || self.is_its_turn();
        self.granted
    }

    fn is_its_turn(&self) -> bool {
        let Entry { range, alone } = *self.entry;
        let entries = self.locks.entries.load();
        let mut earlier = entries
            .iter()
            .take_while(|other| !Arc::ptr_eq(other, &self.entry));
        if earlier.any(|other| (alone || other.alone) && other.range.overlaps(range)) {
            return false;
        }
        let seats = self.locks.seats.load();
        let is_clear = |seat: &CachePadded<Seat>| {
            seat.writes.load(Ordering::SeqCst) == 0
                || seat.clear_to.load(Ordering::SeqCst) >= self.version
        };
        !alone || seats.iter().all(|seat| is_clear(seat))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let entry = &self.entry;
        self.locks.entries.rcu(|entries| without(entries, entry));
        self.locks.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    /// A qpair: its member, and what it has under way.
    struct Queue(Member, RefCell<Vec<(ByteRange, WriteMark)>>);

    impl Queue {
        fn join(locks: &Arc<RangeLocks>) -> Self {
            Self(Member::join(locks), RefCell::default())
        }

        fn write(&self, range: ByteRange) -> bool {
            let mark = self.0.begin_write(range);
            let has_begun = mark.is_some();
            self.1.borrow_mut().extend(mark.map(|mark| (range, mark)));
            has_begun
        }

        fn attend(&mut self) {
            let writes = self.1.borrow();
            self.0
                .attend(|_, range| writes.iter().any(|(of, _)| of.overlaps(range)));
        }

        fn end(&self, at: usize) {
            self.1.borrow_mut().remove(at);
        }
    }

    #[test]
    fn a_range_is_granted_once_the_writes_in_it_have_ended() {
        let locks = Arc::default();
        let (mut busy, idle) = (Queue::join(&locks), Queue::join(&locks));
        assert!(busy.write(range(0, 512)) && busy.write(range(4096, 512)));
        let mut hold = Hold::ask(&locks, range(0, 4096), true);
        assert!(!hold.is_granted());
        assert!(busy.0.is_behind() && !idle.0.is_behind());
        busy.attend();
        assert!(!hold.is_granted(), "its first write is in there");
        busy.end(0);
        assert!(!hold.is_granted(), "it has not said so");
        busy.attend();
        assert!(hold.is_granted(), "the other write is elsewhere");
        for queue in [&busy, &idle] {
            assert!(!queue.write(range(512, 512)), "the range is held");
            assert!(queue.write(range(8192, 512)), "this one is not");
        }
        assert!(hold.is_granted(), "that changes nothing");
        drop(hold);
        assert!(idle.write(range(512, 512)));
    }

    #[test]
    fn overlapping_ranges_are_granted_in_the_order_in_which_they_were_asked_for() {
        let locks = Arc::default();
        let mut first = Hold::ask(&locks, range(0, 1024), true);
        let mut waits = Hold::ask(&locks, range(512, 512), false);
        let mut last = Hold::ask(&locks, range(512, 1024), true);
        let mut apart = Hold::ask(&locks, range(8192, 512), true);
        assert!(first.is_granted() && apart.is_granted());
        assert!(!waits.is_granted() && !last.is_granted());
        drop(first);
        assert!(waits.is_granted() && !last.is_granted());
        let mut also = Hold::ask(&locks, range(512, 512), false);
        assert!(!also.is_granted(), "after the one that is to be alone");
        drop(waits);
        assert!(last.is_granted() && !also.is_granted());
        drop(last);
        assert!(also.is_granted());
    }

    #[test]
    fn who_leaves_is_not_waited_for() {
        let locks = Arc::default();
        let gone = Queue::join(&locks);
        assert!(gone.write(range(0, 512)));
        let mut hold = Hold::ask(&locks, range(0, 512), true);
        assert!(!hold.is_granted());
        drop(gone);
        assert!(hold.is_granted());
        assert!(locks.seats.load().is_empty());
        drop(hold);
        assert!(locks.entries.load().is_empty());
    }

    /// Threads write to two places and hold them: nobody ever writes where somebody is alone.
    #[test]
    fn nobody_writes_where_somebody_is_alone() {
        const THREADS: usize = 4;
        const ROUNDS: u32 = 3_000;
        let locks: Arc<RangeLocks> = Arc::default();
        // Who is in each place: one for a write, 1000 for who is alone.
        let inside: Arc<[AtomicU32; 2]> = Arc::default();
        let held = Arc::new(AtomicU32::new(0));
        let left = Arc::new(AtomicU32::new(u32::try_from(THREADS).unwrap()));
        let run = |thread: usize| {
            let (locks, inside) = (Arc::clone(&locks), Arc::clone(&inside));
            let (held, left) = (Arc::clone(&held), Arc::clone(&left));
            move || {
                let mut queue = Queue::join(&locks);
                for round in 0..ROUNDS {
                    let place = (round as usize + thread) % 2;
                    let here = range(place as u64 * 512, 512);
                    let is_alone = round % 5 == 0;
                    if !is_alone && queue.write(here) {
                        let before = inside[place].fetch_add(1, Ordering::SeqCst);
                        assert!(before < 1000, "somebody is alone here");
                        queue.attend();
                        inside[place].fetch_sub(1, Ordering::SeqCst);
                        queue.end(0);
                        continue;
                    }
                    let mut hold = Hold::ask(&locks, here, is_alone);
                    while !hold.is_granted() {
                        queue.attend();
                        std::thread::yield_now();
                    }
                    let weight = if is_alone { 1000 } else { 1 };
                    let before = inside[place].fetch_add(weight, Ordering::SeqCst);
                    assert!(before < 1000 && (before == 0 || !is_alone), "{before}");
                    held.fetch_add(1, Ordering::SeqCst);
                    inside[place].fetch_sub(weight, Ordering::SeqCst);
                }
                left.fetch_sub(1, Ordering::SeqCst);
                while left.load(Ordering::SeqCst) > 0 {
                    queue.attend();
                    std::thread::yield_now();
                }
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|t| std::thread::spawn(run(t))).collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let at_least = u32::try_from(THREADS).unwrap() * ROUNDS / 5;
        assert!(held.load(Ordering::SeqCst) >= at_least);
    }
}
