//! Scrub: looks through the log of a running cache, and at the data that its keys tell of, at a pace.
//!
//! A poller beside GC, on the same reactor: what it finds between GC's tail and the end does not change
//! while it looks, since segments are released by that reactor only, and it looks at one place within
//! one round. It changes nothing; what it finds bad is left to those who repair it when they come there.

use super::CacheError;
use super::cache::{Cache, send};
use super::gc::{Gc, GcCell};
use super::load_report::BadPlace;
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop as Halt};
use super::shared::Shared;
use super::stop::Stop;
use crate::media::{self, KeyFlags};
use reactors::{Cx, Nanos, Poller, PollerId, Wake};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Bad places that are kept; more are counted.
const BAD_MAX: usize = 64;
/// Bytes that are looked at within one round.
const ROUND_BYTES: u64 = 64 << 10;

/// What a scrub looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScrubLevel {
    /// Ksets.
    #[default]
    Meta,
    /// Also the data of keys that count.
    Data,
}

/// How a scrub stands.
#[derive(Clone, Debug, Default)]
pub struct ScrubStatus {
    /// It goes on.
    pub in_progress: bool,
    /// It came to the end of what was in the log when it began.
    pub complete: bool,
    /// Ksets looked at.
    pub ksets: u64,
    /// Keys whose data were looked at.
    pub keys: u64,
    /// Bytes looked at, ksets and data.
    pub bytes: u64,
    /// How many places are bad …
    pub bad_total: u64,
    /// … and the first of them.
    pub bad: Vec<BadPlace>,
}

/// What the poller and control threads share.
#[derive(Debug, Default)]
pub(super) struct ScrubBoard {
    is_over: AtomicBool,
    is_complete: AtomicBool,
    stop: AtomicBool,
    ksets: AtomicU64,
    keys: AtomicU64,
    bytes: AtomicU64,
    bad_total: AtomicU64,
    bad: RwLock<Vec<BadPlace>>,
}

/// Reactor-local name of the poller.
struct ScrubPoller(PollerId);

/// See the module.
#[derive(Debug)]
pub(super) struct Scrub {
    shared: Arc<Shared>,
    board: Arc<ScrubBoard>,
    level: ScrubLevel,
    /// 0 for no limit.
    bytes_per_s: u64,
    /// Ksets from here on are not looked at.
    end: u64,
    reader: Option<LogReader>,
    /// Keys of the kset before the reader whose data are still to be looked at.
    keys: Vec<media::Key>,
    /// Sequence of that kset.
    sequence: u64,
    /// When it may go on.
    next: Nanos,
}

impl Scrub {
    fn note_bad(&self, at: BadPlace) {
        self.board.bad_total.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            cache = %self.shared.name, segment = at.segment.0, offset = at.offset,
            sequence = at.sequence, reason = %at.reason, "scrub: a bad place"
        );
        // A reader holds it for a moment only, and what is left out was counted.
        if let Ok(mut bad) = self.board.bad.try_write()
            && bad.len() < BAD_MAX
        {
            bad.push(at);
        }
    }

    fn end(&self, cx: &Cx, is_complete: bool) {
        self.board.is_complete.store(is_complete, Ordering::SeqCst);
        self.board.is_over.store(true, Ordering::SeqCst);
        Self::leave(self.shared.instance, cx);
    }

    /// Takes the poller of a cache off the reactor, if there is one.
    pub(super) fn leave(instance: u64, cx: &Cx) {
        if let Some(poller) = cx.local::<ScrubPoller>(instance) {
            cx.remove_poller(poller.0);
            cx.remove_local::<ScrubPoller>(instance);
        }
    }

    /// Looks at the data of one key; the bytes that were read.
    fn check_data(&self, view: &LogView, key: &media::Key) -> u64 {
        let ident = view.ident(key);
        let flags = key.flags();
        if !flags.has_data() || flags.has(KeyFlags::BAD) {
            return 0;
        }
        // GC may have passed it since, and its segment may have another life, or another owner.
        let is_ours = view.segments.find(key.segment.get()).is_some();
        if !is_ours || !self.shared.is_current(ident.segment, ident.generation) {
            return 0;
        }
        let len = key.len.get();
        let mut data = vec![0; len as usize];
        let at = view.data_at(ident.segment, ident.segment_offset);
        let found = match view.pmem.load(at, &mut data) {
            Err(error) => Some(error.to_string()),
            Ok(()) if !self.shared.data_crc || media::crc(&data) == key.crc.get() => None,
            Ok(()) => Some(format!(
                "data of {len} bytes at {}: CRC is {:#010x}, should be {:#010x}",
                key.offset.get(),
                media::crc(&data),
                key.crc.get()
            )),
        };
        self.board.keys.fetch_add(1, Ordering::Relaxed);
        if let Some(reason) = found {
            self.note_bad(BadPlace {
                segment: view.segments.id(ident.segment),
                offset: ident.segment_offset,
                sequence: self.sequence,
                reason,
            });
        }
        len.into()
    }

    /// Looks at the next kset; the bytes of it, or nothing at the end.
    fn check_kset(&mut self, gc: &Gc) -> Result<u64, bool> {
        let view = gc.view();
        let (place, incarnations) = gc.place();
        let mut reader = self.reader.take().unwrap_or_else(|| place.clone());
        if reader.pos.sequence < place.pos.sequence {
            // GC has passed it meanwhile.
            reader = place;
        }
        if reader.pos.sequence >= self.end {
            return Err(true);
        }
        if let Some(lost) = gc.lost.iter().find(|lost| lost.has(reader.pos.sequence)) {
            let to = lost.to;
            let reason = "ksets that could not be read; what was current of them is logged again";
            self.note_bad(BadPlace::new(view, &reader.pos, reason.to_owned()));
            reader.return_to(to);
            self.reader = Some(reader);
            return Ok(0);
        }
        let bytes = self.read_kset(view, &incarnations, &mut reader)?;
        self.reader = Some(reader);
        Ok(bytes)
    }

    fn read_kset(
        &mut self,
        view: &LogView,
        incarnations: &Incarnations,
        reader: &mut LogReader,
    ) -> Result<u64, bool> {
        let before = reader.pos;
        self.sequence = before.sequence;
        let reason = match reader.next(view, incarnations) {
            Ok(Entry::Kset(kset)) => {
                if self.level == ScrubLevel::Data {
                    self.keys.extend_from_slice(kset.keys);
                }
                let bytes = media::kset_bytes(kset.keys.len()) as u64;
                self.board.ksets.fetch_add(1, Ordering::Relaxed);
                return Ok(bytes);
            }
            Ok(Entry::Last { .. }) => return Ok(media::LAST_BYTES as u64),
            Err(Halt::NotThere(damage)) => damage.to_string(),
            Err(Halt::Error(error)) => error.to_string(),
        };
        // What stands behind it is found by those who repair the log.
        self.note_bad(BadPlace::new(view, &before, reason));
        Err(false)
    }
}

impl Poller for Scrub {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        if self.board.is_over.load(Ordering::SeqCst) || cx.now() < self.next {
            return 0;
        }
        let Some(gc) = cx.local::<GcCell>(self.shared.instance) else {
            self.end(cx, false);
            return 0;
        };
        if self.board.stop.load(Ordering::SeqCst) {
            self.end(cx, false);
            return 1;
        }
        let gc = gc.0.borrow();
        let mut bytes = 0;
        while bytes < ROUND_BYTES {
            if let Some(key) = self.keys.pop() {
                bytes += self.check_data(gc.view(), &key);
                continue;
            }
            match self.check_kset(&gc) {
                Ok(read) => bytes += read.max(1),
                Err(is_complete) => {
                    self.board.bytes.fetch_add(bytes, Ordering::Relaxed);
                    self.end(cx, is_complete);
                    return 1;
                }
            }
        }
        self.board.bytes.fetch_add(bytes, Ordering::Relaxed);
        let pause = (bytes * 1_000_000_000).checked_div(self.bytes_per_s);
        self.next = cx.now().after(pause.unwrap_or(0));
        1
    }

    fn wake(&self) -> Wake {
        if self.board.is_over.load(Ordering::SeqCst) {
            return Wake::OnEvent;
        }
        Wake::At(self.next)
    }
}

impl Cache {
    /// Starts a scrub of what is in the log now; `bytes_per_s` 0 for as fast as it goes.
    /// [`Cache::check_status`] tells how it stands. On control threads only.
    ///
    /// # Errors
    /// One that is under way, a cache that is loaded for salvage or stops.
    pub fn check_start(&self, level: ScrubLevel, bytes_per_s: u64) -> Result<(), CacheError> {
        let shutdown = self.shutdown.read().unwrap_or_else(PoisonError::into_inner);
        if shutdown.step != Stop::Running {
            return Err(CacheError::Busy("the cache is being stopped".into()));
        }
        let Some(handle) = self
            .shared
            .runtime
            .maintenance
            .last()
            .filter(|_| !self.shared.read_only)
        else {
            return Err(CacheError::Salvaged);
        };
        let mut scrub = self.scrub.write().unwrap_or_else(PoisonError::into_inner);
        if scrub
            .as_ref()
            .is_some_and(|board| !board.is_over.load(Ordering::SeqCst))
        {
            return Err(CacheError::Scrubbing);
        }
        let board = Arc::<ScrubBoard>::default();
        let poller = Scrub {
            shared: Arc::clone(&self.shared),
            board: Arc::clone(&board),
            level,
            bytes_per_s,
            end: self.shared.durable.mark() + 1,
            reader: None,
            keys: Vec::new(),
            sequence: 0,
            next: Nanos(0),
        };
        let key = self.shared.instance;
        send(handle, move |cx| {
            let id = cx.add_poller("pmcache_scrub", Box::new(poller));
            cx.set_local(key, Rc::new(ScrubPoller(id)));
        })?;
        *scrub = Some(board);
        Ok(())
    }

    /// Ends a scrub before its time.
    pub fn check_stop(&self) {
        let scrub = self.scrub.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(board) = &*scrub {
            board.stop.store(true, Ordering::SeqCst);
            self.shared.ring_maintenance();
        }
    }

    /// How the last scrub stands; nothing before the first.
    #[must_use]
    pub fn check_status(&self) -> ScrubStatus {
        let scrub = self.scrub.read().unwrap_or_else(PoisonError::into_inner);
        let Some(board) = &*scrub else {
            return ScrubStatus::default();
        };
        let bad = board.bad.read().unwrap_or_else(PoisonError::into_inner);
        ScrubStatus {
            in_progress: !board.is_over.load(Ordering::SeqCst),
            complete: board.is_complete.load(Ordering::SeqCst),
            ksets: board.ksets.load(Ordering::Relaxed),
            keys: board.keys.load(Ordering::Relaxed),
            bytes: board.bytes.load(Ordering::Relaxed),
            bad_total: board.bad_total.load(Ordering::Relaxed),
            bad: bad.clone(),
        }
    }
}
