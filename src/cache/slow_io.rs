//! The last requests that took long: how long, where, for what, and what maintenance did meanwhile.
//!
//! A ring for each data reactor, which alone writes it; the oldest gives way. Looked at only for
//! requests whose time is known anyway (`latency.rs`): those that waited, and a sample of the others.

use super::activity::{self, Activities};
use super::cache::Cache;
use super::latency::{Spent, Stamp, Timed, Waited};
use super::shared::Maintenance;
use crossbeam_utils::CachePadded;
use reactors::Nanos;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Entries of a reactor.
const ENTRIES: usize = 256;
/// What counts as slow if nothing else is said, ns.
const THRESHOLD_NS: u64 = 10_000_000;
/// Words of an entry.
const WORDS: usize = 6;

/// An entry, under a sequence lock of its own: odd while it is being written.
#[derive(Debug, Default)]
struct Slot {
    version: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Slot {
    /// The owner alone may call it.
    fn write(&self, words: [u64; WORDS]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // Nobody takes what follows for the old entry …
        fence(Ordering::Release);
        for (place, word) in self.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        // … nor what precedes for a whole one.
        self.version.store(version + 2, Ordering::Release);
    }

    /// Nothing if it was never written, or is just now.
    fn read(&self) -> Option<[u64; WORDS]> {
        let version = self.version.load(Ordering::Acquire);
        let words = self.words.each_ref().map(|w| w.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = version == self.version.load(Ordering::Relaxed);
        (whole && version > 0 && version.is_multiple_of(2)).then_some(words)
    }
}

#[derive(Debug)]
struct Ring {
    next: AtomicU64,
    slots: Box<[Slot]>,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(0),
            slots: (0..ENTRIES).map(|_| Slot::default()).collect(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SlowIos {
    threshold_ns: CachePadded<AtomicU64>,
    rings: Box<[CachePadded<Ring>]>,
}

/// A request, or the part of one that lies in 4 MiB of one lane, that took long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowIo {
    /// When it ended, by the service's clock, ns.
    pub ended_ns: u64,
    /// `read`, `write`, `zero` or `flush`.
    pub op: &'static str,
    /// First byte; 0 for a flush.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub length: u64,
    /// From the client to its lane, ns.
    pub ring_ns: u64,
    /// From there to its end, the backing included, ns.
    pub engine_ns: u64,
    /// The longest read of the backing that it waited for, ns.
    pub backing_ns: u64,
    /// What it waited for: `space`, `pace` (its turn, while little room is left), `queue` (behind another
    /// of its lane), `backing_read`, `kset` (to become durable), `flush`, `ring`, or `engine`: nothing of
    /// these, its reactor was busy.
    pub cause: &'static str,
    /// What writeback was at meanwhile: `write`, `flush` (of the backing), `tail`, `back_off` (after
    /// an error), `damage`, `halted`; nothing if it was idle.
    pub writeback: Vec<&'static str>,
    /// What GC was at: `pass` (ksets), `retire`, `quiesce`, `hand_out`, `damage`, `halted`.
    pub gc: Vec<&'static str>,
}

/// Operations and causes by number.
const OPS: [&str; 4] = ["read", "write", "zero", "flush"];
const CAUSES: [&str; 8] = [
    "engine",
    "ring",
    "flush",
    "kset",
    "backing_read",
    "queue",
    "pace",
    "space",
];

fn cause_of(stamp: &Stamp, spent: &Spent) -> u64 {
    match stamp.waited {
        _ if stamp.kind == Timed::Flush => 2,
        Waited::Nothing if spent.ring_ns > spent.engine_ns => 1,
        Waited::Nothing => 0,
        Waited::Kset => 3,
        Waited::Backing => 4,
        Waited::Queue => 5,
        Waited::Pace => 6,
        Waited::Space => 7,
    }
}

impl SlowIos {
    /// Empty, for so many data reactors.
    pub(crate) fn new(reactors: usize) -> Self {
        Self {
            threshold_ns: CachePadded::new(AtomicU64::new(THRESHOLD_NS)),
            rings: (0..reactors).map(|_| CachePadded::default()).collect(),
        }
    }

    /// From where on a request is slow, ns; 0 for never.
    pub(crate) fn threshold_ns(&self) -> u64 {
        self.threshold_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn set_threshold_ns(&self, ns: u64) {
        self.threshold_ns.store(ns, Ordering::Relaxed);
    }

    /// A request has ended at `now` after so long. On data reactor `reactor`.
    #[inline]
    pub(crate) fn note(
        &self,
        reactor: usize,
        stamp: &Stamp,
        spent: &Spent,
        now: Nanos,
        maintenance: &Maintenance,
    ) {
        let threshold = self.threshold_ns();
        if threshold > 0 && spent.ring_ns + spent.engine_ns >= threshold {
            self.keep(reactor, stamp, spent, now, maintenance);
        }
    }

    #[cold]
    fn keep(
        &self,
        reactor: usize,
        stamp: &Stamp,
        spent: &Spent,
        now: Nanos,
        maintenance: &Maintenance,
    ) {
        let Some(ring) = self.rings.get(reactor) else {
            return;
        };
        let writeback = maintenance.writeback_activity.since(stamp.submitted);
        let gc = maintenance.gc_activity.since(stamp.submitted);
        let packed = u64::from(stamp.len)
            | (stamp.kind as u64) << 32
            | cause_of(stamp, spent) << 40
            | u64::from(writeback.0) << 48
            | u64::from(gc.0) << 56;
        let number = ring.next.load(Ordering::Relaxed);
        let place = usize::try_from(number).unwrap_or(0) % ENTRIES;
        if let Some(slot) = ring.slots.get(place) {
            let backing_ns = u64::from(stamp.backing_us) * 1000;
            slot.write([
                now.0,
                stamp.offset,
                packed,
                spent.ring_ns,
                spent.engine_ns,
                backing_ns,
            ]);
        }
        ring.next.store(number.wrapping_add(1), Ordering::Relaxed);
    }

    /// The last `most`, latest first.
    pub(crate) fn last(&self, most: usize) -> Vec<SlowIo> {
        let slots = self.rings.iter().flat_map(|ring| &ring.slots);
        let mut found: Vec<SlowIo> = slots.filter_map(Slot::read).map(decoded).collect();
        found.sort_by_key(|io| std::cmp::Reverse(io.ended_ns));
        found.truncate(most);
        found
    }
}

fn decoded(words: [u64; WORDS]) -> SlowIo {
    let [ended_ns, offset, packed, ring_ns, engine_ns, backing_ns] = words;
    let [_, _, _, _, op, cause, writeback, gc] = packed.to_le_bytes();
    let name = |names: &[&'static str], number: u8| {
        let name = names.get(usize::from(number));
        *name.unwrap_or(&"")
    };
    SlowIo {
        ended_ns,
        op: name(&OPS, op),
        offset,
        length: packed & u64::from(u32::MAX),
        ring_ns,
        engine_ns,
        backing_ns,
        cause: name(&CAUSES, cause),
        writeback: Activities(writeback).names(&activity::WRITEBACK),
        gc: Activities(gc).names(&activity::GC),
    }
}

impl Cache {
    /// The last `most` requests that took long, latest first.
    #[must_use]
    pub fn slow_ios(&self, most: usize) -> Vec<SlowIo> {
        self.shared.slow_ios.last(most)
    }

    /// From how many µs on a request has taken long; 0: never.
    #[must_use]
    pub fn slow_io_us(&self) -> u64 {
        self.shared.slow_ios.threshold_ns() / 1000
    }

    /// Sets [`Cache::slow_io_us`], until the cache is unloaded.
    pub fn set_slow_io_us(&self, us: u64) {
        let ns = us.saturating_mul(1000);
        self.shared.slow_ios.set_threshold_ns(ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn stamp(kind: Timed, offset: u64) -> Stamp {
        Stamp {
            offset,
            len: 4096,
            ..Stamp::new(kind, Nanos(0), Nanos(0))
        }
    }

    fn spent(ring_ns: u64, engine_ns: u64) -> Spent {
        Spent { ring_ns, engine_ns }
    }

    #[test]
    fn only_what_took_long_is_kept_and_the_latest_come_first() {
        let (slow, maintenance) = (SlowIos::new(2), Maintenance::default());
        let end = |reactor, number: u64, ms: u64| {
            let stamp = stamp(Timed::Read, number * 4096);
            let spent = spent(0, ms * MS);
            slow.note(reactor, &stamp, &spent, Nanos(number), &maintenance);
        };
        slow.set_threshold_ns(5 * MS);
        for number in 0..500 {
            end((number % 2) as usize, number, number % 10);
        }
        let found = slow.last(3);
        let offsets: Vec<u64> = found.iter().map(|io| io.offset / 4096).collect();
        assert_eq!(offsets, [499, 498, 497]);
        assert!(
            slow.last(usize::MAX)
                .iter()
                .all(|io| io.engine_ns >= 5 * MS)
        );
        assert_eq!(slow.last(usize::MAX).len(), 250);
        let before = slow.last(usize::MAX);
        slow.set_threshold_ns(0);
        end(0, 2000, 1000);
        assert_eq!(slow.last(usize::MAX), before);
    }

    #[test]
    fn the_oldest_give_way() {
        let (slow, maintenance) = (SlowIos::new(1), Maintenance::default());
        for number in 0..2 * ENTRIES as u64 + 5 {
            let stamp = stamp(Timed::Write, 0);
            slow.note(0, &stamp, &spent(0, 20 * MS), Nanos(number), &maintenance);
        }
        let found = slow.last(usize::MAX);
        let oldest = found.iter().map(|io| io.ended_ns).min();
        assert_eq!((found.len(), oldest), (ENTRIES, Some(ENTRIES as u64 + 5)));
    }

    #[test]
    fn an_entry_says_what_it_waited_for_and_what_went_on() {
        let (slow, maintenance) = (SlowIos::new(1), Maintenance::default());
        maintenance.writeback_activity.show(1, Nanos(5));
        maintenance.gc_activity.show(4, Nanos(5));
        maintenance.gc_activity.show(0, Nanos(6));
        let mut read = stamp(Timed::Read, 1 << 40);
        read.waited = Waited::Backing;
        read.backing_us = 9000;
        slow.note(0, &read, &spent(MS, 10 * MS), Nanos(7), &maintenance);
        let expected = SlowIo {
            ended_ns: 7,
            op: "read",
            offset: 1 << 40,
            length: 4096,
            ring_ns: MS,
            engine_ns: 10 * MS,
            backing_ns: 9 * MS,
            cause: "backing_read",
            writeback: vec!["write"],
            gc: vec!["hand_out"],
        };
        assert_eq!(slow.last(1), [expected]);
        for (kind, waited, ring_ms, told) in [
            (Timed::Flush, Waited::Nothing, 0, "flush"),
            (Timed::Write, Waited::Kset, 0, "kset"),
            (Timed::Zero, Waited::Space, 90, "space"),
            (Timed::Write, Waited::Queue, 0, "queue"),
            (Timed::Write, Waited::Pace, 0, "pace"),
            (Timed::Read, Waited::Nothing, 90, "ring"),
            (Timed::Write, Waited::Nothing, 1, "engine"),
        ] {
            let stamp = Stamp {
                waited,
                ..stamp(kind, 0)
            };
            slow.note(
                0,
                &stamp,
                &spent(ring_ms * MS, 20 * MS),
                Nanos(8),
                &maintenance,
            );
            assert!(slow.last(9).iter().any(|io| io.cause == told), "{told}");
        }
    }

    #[test]
    fn a_reader_sees_whole_entries_only() {
        let slot = Slot::default();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut number = 1;
                while !stop.load(Ordering::Relaxed) {
                    slot.write([number; WORDS]);
                    number += 1;
                }
            });
            let (mut seen, mut torn) = (0, None);
            while seen < 10_000 && torn.is_none() {
                if let Some(words) = slot.read() {
                    torn = (words != [words[0]; WORDS]).then_some(words);
                    seen += 1;
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(torn, None);
        });
    }
}
