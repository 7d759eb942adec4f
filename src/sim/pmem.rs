//! A simulated medium: what is stored is visible at once, and durable only when a barrier has covered
//! it; at a power cut the rest is kept or lost piece by piece.

use super::pages::Pages;
use super::rng::Rng;
use super::universe::{Actor, Universe};
use crate::bdev::{
    Barrier, BarrierTicket, BdevError, IoBuf, MemView, Persistence, Pmem, PmemError,
};
use reactors::{Cx, Wake};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Bytes of a cache line.
const LINE: u64 = 64;
/// Stores of a dead process: no barrier of another one covers them.
const DEAD: Actor = usize::MAX;
/// The key of what everybody touched, where a barrier covers the stores of all.
const EVERYBODY: Actor = usize::MAX - 1;

/// What kind of medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediumKind {
    /// Cache lines reach the medium one by one, in any order; a fence covers the stores of its core.
    Dax,
    /// The same, and the caches survive the power: all stores stay.
    Eadr,
    /// An ordinary file: pages are written in any order until fdatasync, which covers all stores.
    Msync,
}

impl MediumKind {
    /// What is written at once, as a power of two.
    fn granule_shift(self) -> u32 {
        match self {
            Self::Dax | Self::Eadr => 6,
            Self::Msync => 12,
        }
    }
}

/// The part of a store that lies within one granule.
#[derive(Clone, Debug)]
struct Store {
    number: u64,
    actor: Actor,
    at: u64,
    /// Which bytes of `source` it is.
    from: usize,
    len: usize,
    source: Arc<[u8]>,
}

impl Store {
    fn bytes(&self) -> &[u8] {
        &self.source[self.from..self.from + self.len]
    }
}

/// The bytes of a medium, and which of them are safe.
#[derive(Clone, Debug)]
pub(super) struct Media {
    kind: MediumKind,
    visible: Pages,
    durable: Pages,
    /// For each granule the stores that are not known to be durable, in order.
    pending: BTreeMap<u64, Vec<Store>>,
    /// For each actor the granules that it has stored to, with the number of the store.
    touched: BTreeMap<Actor, Vec<(u64, u64)>>,
    stores: u64,
    /// Barriers submitted so far.
    barriers: u64,
    /// The barrier with this number fails, and each after it.
    fails_at: Option<u64>,
    failed: bool,
    /// Longest time that a barrier takes, ns.
    pub(super) barrier_ns: u64,
    /// Lines that can't be read until they are stored as a whole.
    poison: BTreeSet<u64>,
}

impl Media {
    pub(super) fn new(kind: MediumKind, bytes: u64) -> Self {
        Self {
            kind,
            visible: Pages::zeroed(bytes),
            durable: Pages::zeroed(bytes),
            pending: BTreeMap::new(),
            touched: BTreeMap::new(),
            stores: 0,
            barriers: 0,
            fails_at: None,
            failed: false,
            barrier_ns: 0,
            poison: BTreeSet::new(),
        }
    }

    fn key(&self, actor: Actor) -> Actor {
        match self.kind {
            MediumKind::Dax | MediumKind::Eadr => actor,
            MediumKind::Msync => EVERYBODY,
        }
    }

    fn note(&mut self, actor: Actor, at: u64, source: Arc<[u8]>) {
        let shift = self.kind.granule_shift();
        self.stores += 1;
        let number = self.stores;
        let end = at + source.len() as u64;
        let key = self.key(actor);
        let touched = self.touched.entry(key).or_default();
        let mut from = 0;
        let mut at = at;
        while at < end {
            let granule = at >> shift;
            let to = end.min((granule + 1) << shift);
            let len = super::rng::index(to - at);
            self.pending.entry(granule).or_default().push(Store {
                number,
                actor,
                at,
                from,
                len,
                source: source.clone(),
            });
            touched.push((number, granule));
            from += len;
            at = to;
        }
    }

    fn store(&mut self, actor: Actor, at: u64, src: &[u8]) {
        if !self.poison.is_empty() {
            let whole = at.div_ceil(LINE)..(at + src.len() as u64) / LINE;
            self.poison.retain(|line| !whole.contains(line));
        }
        self.visible.write(at, src);
        self.note(actor, at, src.into());
    }

    /// A barrier of `actor` over its stores up to `number` is complete.
    fn complete(&mut self, actor: Actor, number: u64) {
        let key = self.key(actor);
        let Some(touched) = self.touched.get_mut(&key) else {
            return;
        };
        let behind = touched.partition_point(|(n, _)| *n <= number);
        for (_, granule) in touched.drain(..behind) {
            let Some(stores) = self.pending.get_mut(&granule) else {
                continue;
            };
            let covered = |s: &Store| s.number <= number && (key == EVERYBODY || s.actor == actor);
            let Some(last) = stores.iter().rposition(covered) else {
                continue;
            };
            for store in stores.drain(..=last) {
                self.durable.write(store.at, store.bytes());
            }
            if stores.is_empty() {
                self.pending.remove(&granule);
            }
        }
    }

    /// A barrier failed: the system forgets that some of the pages it should have written differ from
    /// the medium, and never tries again.
    fn lose_pages(&mut self, rng: &mut Rng) {
        if self.kind == MediumKind::Msync {
            let chance = rng.pick(&[300, 1000]);
            self.pending.retain(|_, _| !rng.permille(chance));
        }
    }

    /// The power fails now.
    pub(super) fn cut(&mut self, rng: &mut Rng) {
        if self.kind == MediumKind::Eadr {
            self.durable = self.visible.clone();
        } else {
            let chance = rng.pick(&[0, 100, 500, 900, 1000]);
            for stores in self.pending.values() {
                for store in stores {
                    if rng.permille(chance) {
                        self.durable.write(store.at, store.bytes());
                        continue;
                    }
                    // The last one may be there in part; aligned words are whole.
                    let words = rng.below(store.len as u64 / 8 + 1) * 8;
                    let end = (store.at + words) & !7;
                    if chance > 0 && end > store.at {
                        let part = super::rng::index(end - store.at).min(store.len);
                        self.durable.write(store.at, &store.bytes()[..part]);
                    }
                    break;
                }
            }
        }
        self.visible = self.durable.clone();
        self.pending.clear();
        self.touched.clear();
        self.reopen();
    }

    /// The process died. What it stored is visible, and no barrier of the next one covers it.
    pub(super) fn die(&mut self) {
        if self.kind != MediumKind::Msync {
            self.touched.clear();
            for store in self.pending.values_mut().flatten() {
                store.actor = DEAD;
            }
        }
        self.reopen();
    }

    /// Another process opens it: the failures of earlier ones are reported to nobody any more.
    fn reopen(&mut self) {
        self.failed = false;
        self.fails_at = None;
    }

    /// The system reads its pages from the medium again.
    fn settle(&mut self) {
        if self.kind == MediumKind::Msync {
            self.complete(EVERYBODY, self.stores);
            self.visible = self.durable.clone();
        }
    }

    /// The `count`-th barrier from now on fails, and with it all later ones.
    pub(super) fn fail_barrier(&mut self, count: u64) {
        self.fails_at = Some(self.barriers + count);
    }

    /// No barrier is going to fail any more, unless one has.
    pub(super) fn heal_barriers(&mut self) {
        self.fails_at = None;
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Counts a barrier; false if it fails.
    fn try_barrier(&mut self, rng: &mut Rng) -> bool {
        if self.failed || self.fails_at.is_some_and(|at| self.barriers >= at) {
            if !self.failed {
                self.failed = true;
                self.lose_pages(rng);
            }
            return false;
        }
        true
    }

    /// Changes bytes where they lie, as a medium does that decays.
    pub(super) fn flip(&mut self, at: u64, mask: u8) {
        for pages in [&mut self.visible, &mut self.durable] {
            let byte = pages.get(at, 1)[0] ^ mask;
            pages.write(at, &[byte]);
        }
        // What lines hold that are being written back is what the medium will have.
        let granule = at >> self.kind.granule_shift();
        for store in self.pending.get_mut(&granule).into_iter().flatten() {
            if (store.at..store.at + store.len as u64).contains(&at) {
                let mut source = store.source.to_vec();
                source[store.from + super::rng::index(at - store.at)] ^= mask;
                store.source = source.into();
            }
        }
    }

    /// Bytes as they are visible now.
    pub(super) fn peek(&self, at: u64, len: u64) -> Vec<u8> {
        self.visible.get(at, len)
    }

    /// Loads that touch the line of byte `at` fail from now on.
    pub(super) fn poison(&mut self, at: u64) {
        self.poison.insert(at / LINE);
    }

    /// Whether all of these bytes can be read.
    pub(super) fn is_readable(&self, at: u64, len: u64) -> bool {
        self.check(at, len).is_ok()
    }

    /// The line of byte `at` can be read again.
    pub(super) fn heal(&mut self, at: u64) {
        self.poison.remove(&(at / LINE));
    }

    /// Fails if some of these bytes can't be read.
    fn check(&self, at: u64, len: u64) -> Result<(), PmemError> {
        let lines = at / LINE..(at + len).div_ceil(LINE);
        match self.poison.range(lines).next() {
            Some(_) => Err(PmemError::Poison { at, len }),
            None => Ok(()),
        }
    }
}

/// The medium as the engine sees it.
#[derive(Clone, Debug)]
pub(super) struct SimPmem {
    universe: Universe,
    bytes: u64,
    kind: MediumKind,
}

impl SimPmem {
    pub(super) fn new(universe: Universe) -> Self {
        let state = universe.read();
        let (bytes, kind) = (state.media.visible.bytes(), state.media.kind);
        drop(state);
        Self {
            universe,
            bytes,
            kind,
        }
    }
}

impl Pmem for SimPmem {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn persistence(&self) -> Persistence {
        match self.kind {
            MediumKind::Dax | MediumKind::Eadr => Persistence::Dax,
            MediumKind::Msync => Persistence::Msync,
        }
    }

    fn store(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        let mut state = self.universe.write();
        state.point();
        let actor = state.actor;
        state.media.store(actor, at, src);
        Ok(())
    }

    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        let state = self.universe.read();
        state.media.check(at, dst.len() as u64)?;
        state.media.visible.read(at, dst);
        Ok(())
    }

    fn view(&self, at: u64, len: usize) -> Result<MemView, PmemError> {
        let mut buf = IoBuf::zeroed(len);
        let mut state = self.universe.write();
        state.media.check(at, len as u64)?;
        state.media.visible.read(at, &mut buf);
        state.views.insert(buf.as_ptr().addr(), at);
        Ok(MemView::from_buf(buf))
    }

    fn check(&self, at: u64, len: usize) -> Result<(), PmemError> {
        self.universe.read().media.check(at, len as u64)
    }

    fn write_back(&self, at: u64, len: u64) {
        let mut state = self.universe.write();
        let shift = state.media.kind.granule_shift();
        let from = at >> shift << shift;
        let to = (at + len).next_multiple_of(1 << shift).min(self.bytes);
        let bytes = state.media.peek(from, to - from);
        let actor = state.actor;
        state.media.note(actor, from, bytes.into());
    }

    fn open_barrier(&self, _cx: &Cx) -> Result<Box<dyn Barrier>, BdevError> {
        Ok(Box::new(SimBarrier {
            universe: self.universe.clone(),
            waiting: VecDeque::new(),
            submitted: 0,
            done: 0,
        }))
    }

    fn barrier_wait(&self) -> Result<(), PmemError> {
        let mut state = self.universe.write();
        state.point();
        let actor = state.actor;
        let mut rng = state.rng.fork();
        state.media.barriers += 1;
        if !state.media.try_barrier(&mut rng) {
            return Err(PmemError::BarrierFailed(5));
        }
        let number = state.media.stores;
        state.media.complete(actor, number);
        Ok(())
    }

    fn settle(&self) -> Result<(), PmemError> {
        self.barrier_wait()?;
        self.universe.write().media.settle();
        Ok(())
    }
}

/// A barrier under way.
#[derive(Debug)]
struct Waiting {
    actor: Actor,
    /// The last store that it covers.
    number: u64,
    due: u64,
}

#[derive(Debug)]
struct SimBarrier {
    universe: Universe,
    waiting: VecDeque<Waiting>,
    submitted: u64,
    done: u64,
}

impl Barrier for SimBarrier {
    fn submit(&mut self, _cx: &Cx) -> BarrierTicket {
        let mut state = self.universe.write();
        let (actor, now) = (state.actor, state.now());
        let longest = state.media.barrier_ns;
        let due = now + state.rng.below(longest + 1);
        state.media.barriers += 1;
        let number = state.media.stores;
        self.waiting.push_back(Waiting { actor, number, due });
        self.submitted += 1;
        BarrierTicket(self.submitted)
    }

    fn poll(&mut self, _cx: &Cx) -> Result<BarrierTicket, PmemError> {
        let mut state = self.universe.write();
        while let Some(first) = self.waiting.front() {
            let mut rng = state.rng.fork();
            if !state.media.try_barrier(&mut rng) {
                return Err(PmemError::BarrierFailed(5));
            }
            if first.due > state.now() {
                break;
            }
            state.point();
            state.media.complete(first.actor, first.number);
            self.waiting.pop_front();
            self.done += 1;
        }
        Ok(BarrierTicket(self.done))
    }

    fn wake(&self) -> Wake {
        if self.waiting.is_empty() {
            Wake::OnEvent
        } else {
            Wake::Now
        }
    }
}
