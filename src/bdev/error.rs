//! A filter that fails, stalls or corrupts chosen I/Os: what happens above when a disk is broken.
//!
//! Injections come from any thread. They are published by a generation number: a channel looks at
//! it once per I/O, and fetches the rules again when it has changed. If it finds the lock taken at
//! that moment, the thread that injects is not done yet, and the old rules still hold.

use super::identity::filter_info;
use super::in_flight::InFlight;
use super::inline::{take_all, wake_for};
use super::live_info::{Gate, LiveInfo};
use super::{Bdev, BdevError, BdevInfo, Channel, Completion, Data, IoBuf, IoStatus, Op, Request};
use reactors::{Cx, ReactorHandle, Wake};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use uuid::Uuid;

/// Which I/Os an injection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorIo {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards and write-zeroes.
    Unmap,
    /// Flushes.
    Flush,
    /// All of these, counted together.
    All,
}

/// What happens to an I/O that is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// It completes with [`IoStatus::IoError`]; the base does not see it.
    Failure,
    /// It completes with [`IoStatus::NoSpace`]; the base does not see it.
    NoMemory,
    /// It waits until [`ErrorBdev::resume_pending`] or [`ErrorBdev::clear`], then goes to the base.
    Pending,
    /// One byte changes on its way; only for reads and writes.
    Corrupt {
        /// Which byte of the I/O; if it is shorter, nothing happens.
        offset: u64,
        /// What to XOR it with, not 0.
        xor: u8,
    },
}

/// An order to spoil some I/Os.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Which.
    pub io: ErrorIo,
    /// How.
    pub kind: ErrorKind,
    /// How many of them pass first: k − 1 for the k-th.
    pub skip: u32,
    /// How many are struck after that; `u32::MAX` is without end.
    pub count: u32,
    /// Only I/Os that find at least this many under way on their channel are looked at.
    pub queue_depth: u64,
}

impl Injection {
    /// Strikes the next `count` I/Os.
    #[must_use]
    pub fn new(io: ErrorIo, kind: ErrorKind, count: u32) -> Self {
        Self {
            io,
            kind,
            skip: 0,
            count,
            queue_depth: 0,
        }
    }
}

/// An injection at work: the counts are shared by all channels.
#[derive(Debug)]
struct Rule {
    kind: ErrorKind,
    queue_depth: u64,
    skip: AtomicU32,
    left: AtomicU32,
}

impl Rule {
    /// Whether the next I/O is struck; counts it.
    fn strikes(&self, under_way: u64) -> bool {
        let take = |counter: &AtomicU32| {
            let minus_one = |n: u32| match n {
                u32::MAX => Some(u32::MAX),
                n => n.checked_sub(1),
            };
            let taken = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, minus_one);
            taken.is_ok()
        };
        under_way >= self.queue_depth && !take(&self.skip) && take(&self.left)
    }
}

/// The rule for each kind of I/O.
#[derive(Clone, Debug, Default)]
struct Rules {
    read: Option<Arc<Rule>>,
    write: Option<Arc<Rule>>,
    unmap: Option<Arc<Rule>>,
    flush: Option<Arc<Rule>>,
}

impl Rules {
    fn add(&mut self, injection: &Injection) {
        let rule = Arc::new(Rule {
            kind: injection.kind,
            queue_depth: injection.queue_depth,
            skip: AtomicU32::new(injection.skip),
            left: AtomicU32::new(injection.count),
        });
        let all = injection.io == ErrorIo::All;
        let has_data = matches!(injection.kind, ErrorKind::Corrupt { .. });
        for (io, slot) in [
            (ErrorIo::Read, &mut self.read),
            (ErrorIo::Write, &mut self.write),
            (ErrorIo::Unmap, &mut self.unmap),
            (ErrorIo::Flush, &mut self.flush),
        ] {
            let is_data = matches!(io, ErrorIo::Read | ErrorIo::Write);
            if injection.io == io || (all && (is_data || !has_data)) {
                *slot = Some(rule.clone());
            }
        }
    }

    fn strike(&self, op: Op, under_way: u64) -> Option<ErrorKind> {
        let rule = match op {
            Op::Read => &self.read,
            Op::Write { .. } => &self.write,
            Op::Discard | Op::WriteZeroes { .. } => &self.unmap,
            Op::Flush => &self.flush,
            Op::Prefetch | Op::Extents => &None,
        };
        let rule = rule.as_ref()?;
        rule.strikes(under_way).then_some(rule.kind)
    }
}

#[derive(Debug, Default)]
struct Control {
    rules: Rules,
    /// Reactors with a channel, to be woken when stalled I/Os may go on.
    reactors: Vec<ReactorHandle>,
}

#[derive(Debug)]
struct Shared {
    control: RwLock<Control>,
    /// Raised with each change of the rules, under the lock.
    generation: AtomicU64,
    /// Raised when all I/Os that are stalled at that moment may go on.
    resumes: AtomicU64,
}

impl Shared {
    fn lock(&self) -> RwLockWriteGuard<'_, Control> {
        self.control.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// "Error disk", named `EE_` and the name of its base. Passes everything on until told otherwise.
#[derive(Debug)]
pub struct ErrorBdev {
    info: Arc<LiveInfo>,
    base: Arc<dyn Bdev>,
    shared: Arc<Shared>,
}

impl ErrorBdev {
    /// A filter over `base`. Without a `uuid`, one is derived from the base's.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] if the base's name leaves no room for the prefix.
    pub fn new(base: Arc<dyn Bdev>, uuid: Option<Uuid>) -> Result<Self, BdevError> {
        let name = format!("EE_{}", base.info().name);
        let info = filter_info(&*base, name, "Error disk", uuid)?;
        let info = Arc::new(LiveInfo::over(info, Arc::clone(&base)));
        let shared = Arc::new(Shared {
            control: RwLock::default(),
            generation: AtomicU64::new(0),
            resumes: AtomicU64::new(0),
        });
        Ok(Self { info, base, shared })
    }

    /// The bdev below.
    #[must_use]
    pub fn base(&self) -> &Arc<dyn Bdev> {
        &self.base
    }

    /// Strikes I/Os submitted from now on, in place of earlier injections for the same I/Os. For
    /// control threads.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a corruption that changes nothing.
    pub fn inject(&self, injection: &Injection) -> Result<(), BdevError> {
        if let ErrorKind::Corrupt { xor, .. } = injection.kind {
            let has_data = !matches!(injection.io, ErrorIo::Unmap | ErrorIo::Flush);
            if xor == 0 || !has_data {
                return Err(BdevError::Invalid(format!(
                    "{:?} with {:?} corrupts nothing",
                    injection.kind, injection.io
                )));
            }
        }
        let mut control = self.shared.lock();
        control.rules.add(injection);
        self.shared.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Ends all injections, and lets stalled I/Os go on. For control threads.
    pub fn clear(&self) {
        let mut control = self.shared.lock();
        control.rules = Rules::default();
        self.shared.generation.fetch_add(1, Ordering::Release);
        drop(control);
        self.resume_pending();
    }

    /// Lets I/Os that are stalled now go on to the base; injections stay. For control threads.
    pub fn resume_pending(&self) {
        self.shared.resumes.fetch_add(1, Ordering::Release);
        for reactor in &self.shared.lock().reactors {
            reactor.ring();
        }
    }
}

impl Bdev for ErrorBdev {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.get()
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let base = self.base.open(cx)?;
        let mut control = self.shared.lock();
        control.reactors.retain(|known| known.id() != cx.id());
        control.reactors.push(cx.handle());
        Ok(Box::new(ErrorChannel {
            gate: Gate::new(&self.info),
            rules: control.rules.clone(),
            generation: self.shared.generation.load(Ordering::Acquire),
            shared: self.shared.clone(),
            base,
            in_flight: InFlight::default(),
            from_base: Vec::new(),
            stalled: VecDeque::new(),
            ready: Vec::new(),
        }))
    }
}

/// What to do when the base has completed an I/O.
#[derive(Debug)]
enum After {
    Nothing,
    /// Change this byte of what was read.
    Corrupt {
        offset: u64,
        xor: u8,
    },
    /// The base was given a corrupted copy: hand the submitter's own memory back.
    Restore(Data),
}

#[derive(Debug)]
struct ErrorChannel {
    gate: Gate,
    shared: Arc<Shared>,
    rules: Rules,
    /// Of `rules`.
    generation: u64,
    base: Box<dyn Channel>,
    /// The user's tag, and what is left to do.
    in_flight: InFlight<(u64, After)>,
    from_base: Vec<Completion>,
    /// Oldest first, with the number of resumes before each.
    stalled: VecDeque<(u64, Request)>,
    ready: Vec<Completion>,
}

impl ErrorChannel {
    fn refresh(&mut self) {
        if self.shared.generation.load(Ordering::Acquire) == self.generation {
            return;
        }
        if let Ok(control) = self.shared.control.try_read() {
            self.rules = control.rules.clone();
            self.generation = self.shared.generation.load(Ordering::Acquire);
        }
    }

    fn forward(&mut self, cx: &Cx, mut request: Request, after: After) {
        request.tag = self.in_flight.insert((request.tag, after));
        self.base.submit(cx, request);
    }

    fn corrupt(&mut self, cx: &Cx, mut request: Request, offset: u64, xor: u8) {
        if request.op == Op::Read {
            self.forward(cx, request, After::Corrupt { offset, xor });
            return;
        }
        let mut copy = match &request.data {
            Data::Buf(buf) => buf.to_vec(),
            Data::Gather(views) => views.iter().flat_map(|view| view.iter().copied()).collect(),
            Data::None | Data::Extents(_) => Vec::new(),
        };
        flip(&mut copy, offset, xor);
        let copy = Data::Buf(IoBuf::copy_of(&copy));
        let own = std::mem::replace(&mut request.data, copy);
        self.forward(cx, request, After::Restore(own));
    }

    fn resume(&mut self, cx: &Cx) {
        let resumes = self.shared.resumes.load(Ordering::Acquire);
        while self.stalled.front().is_some_and(|(at, _)| *at < resumes) {
            if let Some((_, request)) = self.stalled.pop_front() {
                self.forward(cx, request, After::Nothing);
            }
        }
    }

    fn finish(&mut self, mut completion: Completion) {
        let Some((tag, after)) = self.in_flight.remove(completion.tag) else {
            return;
        };
        completion.tag = tag;
        match (after, &mut completion.data) {
            (After::Corrupt { offset, xor }, Data::Buf(buf)) => flip(buf, offset, xor),
            (After::Restore(own), data) => *data = own,
            _ => {}
        }
        self.ready.push(completion);
    }
}

fn flip(bytes: &mut [u8], offset: u64, xor: u8) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    if let Some(byte) = bytes.get_mut(offset) {
        *byte ^= xor;
    }
}

impl Channel for ErrorChannel {
    fn submit(&mut self, cx: &Cx, request: Request) {
        if let Err(status) = self.gate.admit(&request) {
            self.ready.push(request.complete(status));
            return;
        }
        self.refresh();
        let under_way = self.in_flight.len() as u64;
        match self.rules.strike(request.op, under_way) {
            None => self.forward(cx, request, After::Nothing),
            Some(ErrorKind::Failure) => self.ready.push(request.complete(IoStatus::IoError)),
            Some(ErrorKind::NoMemory) => self.ready.push(request.complete(IoStatus::NoSpace)),
            Some(ErrorKind::Pending) => {
                let resumes = self.shared.resumes.load(Ordering::Acquire);
                self.stalled.push_back((resumes, request));
            }
            Some(ErrorKind::Corrupt { offset, xor }) => self.corrupt(cx, request, offset, xor),
        }
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        self.resume(cx);
        let mut from_base = std::mem::take(&mut self.from_base);
        self.base.poll(cx, &mut from_base);
        for completion in from_base.drain(..) {
            self.finish(completion);
        }
        self.from_base = from_base;
        take_all(&mut self.ready, done)
    }

    fn wake(&self) -> Wake {
        let resumes = self.shared.resumes.load(Ordering::Acquire);
        if self.stalled.front().is_some_and(|(at, _)| *at < resumes) {
            return Wake::Now;
        }
        wake_for(&self.ready).sooner(self.base.wake())
    }

    fn cancel(&mut self, cx: &Cx) {
        for (_, request) in self.stalled.drain(..) {
            self.ready.push(request.complete(IoStatus::Aborted));
        }
        self.base.cancel(cx);
    }
}

#[cfg(test)]
mod tests;
