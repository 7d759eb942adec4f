//! A medium whose barriers complete later, or fail, which can't be accessed in places, and whose power
//! can be cut.
//!
//! Each cache line keeps its stores until a barrier covers one of them; at a power cut it keeps a
//! prefix of them, the last one possibly in part. Which reactor stores is told by [`act_as`].

use super::rng::Rng;
use pmcache::bdev::{
    Barrier, BarrierTicket, BdevError, IoBuf, MemView, Persistence, Pmem, PmemError,
};
use reactors::{Cx, Wake};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

const LINE: u64 = 64;

/// The control thread.
pub(crate) const CONTROL: usize = 0;

thread_local! {
    static ACTOR: Cell<usize> = const { Cell::new(CONTROL) };
}

/// Says on whose behalf this thread stores from now on.
pub(crate) fn act_as(actor: usize) {
    ACTOR.set(actor);
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// A store to one line, not known to be durable.
#[derive(Clone, Debug)]
struct Store {
    number: u64,
    actor: usize,
    from: u8,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Media {
    visible: Vec<u8>,
    durable: Vec<u8>,
    lines: BTreeMap<u64, Vec<Store>>,
    /// Lines that an actor has stored to, with the number of the store.
    touched: BTreeMap<usize, Vec<(u64, u64)>>,
    stores: u64,
}

impl Media {
    fn note(&mut self, at: u64, len: u64) {
        let actor = ACTOR.get();
        self.stores += 1;
        let (number, end) = (self.stores, at + len);
        let mut at = at;
        while at < end {
            let line = at / LINE;
            let to = end.min((line + 1) * LINE);
            let bytes = self.visible[index(at)..index(to)].to_vec();
            let from = u8::try_from(at % LINE).unwrap();
            let store = Store {
                number,
                actor,
                from,
                bytes,
            };
            self.lines.entry(line).or_default().push(store);
            self.touched.entry(actor).or_default().push((number, line));
            at = to;
        }
    }

    fn apply(durable: &mut [u8], line: u64, store: &Store, len: usize) {
        let at = index(line * LINE) + usize::from(store.from);
        durable[at..at + len].copy_from_slice(&store.bytes[..len]);
    }

    /// A barrier of `actor` over its stores up to `number` is complete.
    fn complete(&mut self, actor: usize, number: u64) {
        let touched = self.touched.entry(actor).or_default();
        let behind = touched.partition_point(|(n, _)| *n <= number);
        let covered: Vec<_> = touched.drain(..behind).collect();
        for (_, line) in covered {
            let Some(stores) = self.lines.get_mut(&line) else {
                continue;
            };
            let last = stores
                .iter()
                .rposition(|s| s.actor == actor && s.number <= number);
            let Some(last) = last else { continue };
            for store in stores.drain(..=last) {
                Self::apply(&mut self.durable, line, &store, store.bytes.len());
            }
            if stores.is_empty() {
                self.lines.remove(&line);
            }
        }
    }

    /// What the medium holds after a power cut.
    fn cut(&self, rng: &mut Rng) -> Vec<u8> {
        let mut durable = self.durable.clone();
        let chance = rng.pick(&[0, 100, 500, 900, 1000]);
        for (line, stores) in &self.lines {
            for store in stores {
                if !rng.permille(chance) {
                    let words = rng.below(store.bytes.len() as u64 / 8 + 1) * 8;
                    if chance > 0 {
                        Self::apply(&mut durable, *line, store, index(words));
                    }
                    break;
                }
                Self::apply(&mut durable, *line, store, store.bytes.len());
            }
        }
        durable
    }
}

/// What a dead process left at a moment that was chosen before.
#[derive(Debug)]
pub(crate) struct Moment {
    media: Media,
    /// The files of the run directory.
    files: Vec<(PathBuf, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct State {
    media: Media,
    seed: u64,
    barriers: u64,
    /// The barrier with this number fails, and each after it.
    fails_at: Option<u64>,
    failed: bool,
    /// At the store with this number the state is kept.
    keep_at: Option<(u64, PathBuf)>,
    kept: Option<Moment>,
    /// Where nothing can be stored, and where nothing can be loaded.
    no_stores: Vec<Range<u64>>,
    no_loads: Vec<Range<u64>>,
}

/// The first bytes of `at..at + len` that are in one of `ranges`.
fn poison(ranges: &[Range<u64>], at: u64, len: u64) -> Result<(), PmemError> {
    let hits = ranges
        .iter()
        .map(|range| range.start.max(at)..range.end.min(at + len))
        .filter(|hit| hit.start < hit.end);
    match hits.min_by_key(|hit| hit.start) {
        None => Ok(()),
        Some(hit) => Err(PmemError::Poison {
            at: hit.start,
            len: hit.end - hit.start,
        }),
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct SlowPmem {
    state: Arc<RwLock<State>>,
    bytes: u64,
    /// Polls that a barrier takes at most.
    polls_max: u64,
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    paths
        .map(|p| (p.clone(), std::fs::read(p).unwrap()))
        .collect()
}

impl SlowPmem {
    pub(crate) fn new(bytes: u64, polls_max: u64, seed: u64) -> Self {
        Self::holding(vec![0; usize::try_from(bytes).unwrap()], polls_max, seed)
    }

    fn holding(image: Vec<u8>, polls_max: u64, seed: u64) -> Self {
        let bytes = image.len() as u64;
        let media = Media {
            visible: image.clone(),
            durable: image,
            ..Media::default()
        };
        let state = State {
            media,
            seed,
            ..State::default()
        };
        Self {
            state: Arc::new(RwLock::new(state)),
            bytes,
            polls_max,
        }
    }

    /// The medium after a power cut now.
    pub(crate) fn cut_power(&self, rng: &mut Rng) -> Self {
        let image = self.state.read().unwrap().media.cut(rng);
        Self::holding(image, self.polls_max, rng.next())
    }

    /// Keeps the state just before the `count`-th store from now on.
    pub(crate) fn keep_before_store(&self, count: u64, run_dir: &Path) {
        let mut state = self.state.write().unwrap();
        let at = state.media.stores + count;
        state.keep_at = Some((at, run_dir.to_path_buf()));
        state.kept = None;
    }

    /// What was kept, if it came to it; the run directory's files are put back.
    pub(crate) fn return_to_kept(&self) -> Option<Self> {
        let mut state = self.state.write().unwrap();
        state.keep_at = None;
        let Moment { media, files } = state.kept.take()?;
        for (path, bytes) in files {
            std::fs::write(path, bytes).unwrap();
        }
        let kept = Self::holding(Vec::new(), self.polls_max, state.seed);
        kept.state.write().unwrap().media = media;
        Some(Self {
            bytes: self.bytes,
            ..kept
        })
    }

    /// The `count`-th barrier from now on fails, and with it all later ones.
    pub(crate) fn fail_barrier(&self, count: u64) {
        let mut state = self.state.write().unwrap();
        state.fails_at = Some(state.barriers + count);
    }

    /// Stores to `range` fail from now on.
    pub(crate) fn refuse_stores(&self, range: Range<u64>) {
        self.state.write().unwrap().no_stores.push(range);
    }

    /// Loads from `range` fail from now on, and what was viewed there was wrong.
    pub(crate) fn refuse_loads(&self, range: Range<u64>) {
        self.state.write().unwrap().no_loads.push(range);
    }

    /// All of it can be accessed again, and holds what was stored.
    pub(crate) fn heal(&self) {
        let mut state = self.state.write().unwrap();
        state.no_stores.clear();
        state.no_loads.clear();
    }

    /// Flips a bit of each byte of a range, in memory and on the medium.
    pub(crate) fn flip(&self, at: u64, len: u64) {
        let mut state = self.state.write().unwrap();
        let range = index(at)..index(at + len);
        let Media {
            visible, durable, ..
        } = &mut state.media;
        for bytes in [visible, durable] {
            bytes[range.clone()].iter_mut().for_each(|b| *b ^= 4);
        }
    }

    /// Where these bytes stand.
    pub(crate) fn find(&self, bytes: &[u8]) -> Vec<u64> {
        let state = self.state.read().unwrap();
        let places = state.media.visible.chunks(512).enumerate();
        let first = &bytes[..512];
        let found = places.filter(|(_, chunk)| *chunk == first);
        found.map(|(place, _)| place as u64 * 512).collect()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.state.read().unwrap().failed
    }

    fn note(&self, at: u64, len: u64, src: Option<&[u8]>) {
        let mut state = self.state.write().unwrap();
        if let Some((number, dir)) = &state.keep_at
            && state.media.stores + 1 >= *number
        {
            let files = files(dir);
            let media = state.media.clone();
            state.keep_at = None;
            state.kept = Some(Moment { media, files });
        }
        if let Some(src) = src {
            let at = usize::try_from(at).unwrap();
            state.media.visible[at..at + src.len()].copy_from_slice(src);
        }
        state.media.note(at, len);
    }
}

impl Pmem for SlowPmem {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn persistence(&self) -> Persistence {
        Persistence::Msync
    }

    fn store(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        let lost = poison(&self.state.read().unwrap().no_stores, at, src.len() as u64);
        // What comes before the bad place is stored all the same.
        let good = match lost {
            Err(PmemError::Poison { at: bad, .. }) => &src[..index(bad - at)],
            _ => src,
        };
        if !good.is_empty() {
            self.note(at, good.len() as u64, Some(good));
        }
        lost
    }

    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        let state = self.state.read().unwrap();
        poison(&state.no_loads, at, dst.len() as u64)?;
        let at = usize::try_from(at).unwrap();
        dst.copy_from_slice(&state.media.visible[at..at + dst.len()]);
        Ok(())
    }

    fn view(&self, at: u64, len: usize) -> Result<MemView, PmemError> {
        let mut buf = IoBuf::zeroed(len);
        self.load(at, &mut buf)?;
        Ok(MemView::from_buf(buf))
    }

    fn check(&self, at: u64, len: usize) -> Result<(), PmemError> {
        poison(&self.state.read().unwrap().no_loads, at, len as u64)
    }

    fn write_back(&self, at: u64, len: u64) {
        let from = at / LINE * LINE;
        let to = (at + len).next_multiple_of(LINE).min(self.bytes);
        self.note(from, to - from, None);
    }

    fn open_barrier(&self, _cx: &Cx) -> Result<Box<dyn Barrier>, BdevError> {
        Ok(Box::new(SlowBarrier {
            pmem: self.clone(),
            waiting: VecDeque::new(),
            submitted: 0,
            done: 0,
        }))
    }

    fn barrier_wait(&self) -> Result<(), PmemError> {
        let mut state = self.state.write().unwrap();
        if state.failed {
            return Err(PmemError::BarrierFailed(5));
        }
        let number = state.media.stores;
        state.media.complete(ACTOR.get(), number);
        Ok(())
    }
}

#[derive(Debug)]
struct SlowBarrier {
    pmem: SlowPmem,
    /// Actor, last store covered, polls until it is complete.
    waiting: VecDeque<(usize, u64, u64)>,
    submitted: u64,
    done: u64,
}

impl Barrier for SlowBarrier {
    fn submit(&mut self, _cx: &Cx) -> BarrierTicket {
        let mut state = self.pmem.state.write().unwrap();
        state.seed = Rng::new(state.seed).next();
        let polls = state.seed % (self.pmem.polls_max + 1);
        state.barriers += 1;
        let number = state.media.stores;
        self.waiting.push_back((ACTOR.get(), number, polls));
        self.submitted += 1;
        BarrierTicket(self.submitted)
    }

    fn poll(&mut self, _cx: &Cx) -> Result<BarrierTicket, PmemError> {
        let mut state = self.pmem.state.write().unwrap();
        while let Some((actor, number, polls)) = self.waiting.front_mut() {
            if state.fails_at.is_some_and(|at| state.barriers >= at) {
                state.failed = true;
            }
            if state.failed {
                return Err(PmemError::BarrierFailed(5));
            }
            if *polls > 0 {
                *polls -= 1;
                break;
            }
            state.media.complete(*actor, *number);
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
