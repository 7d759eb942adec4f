//! Reads pieces of a backing for a control thread, which no reactor and no dead device may block: a
//! poller on a maintenance reactor reads them, and whoever asked may give up.

use super::CacheError;
use super::cache::send;
use super::shared::next_instance;
use crate::bdev::{Bdev, Channel, Completion, Data, IoBuf, Op, Request};
use crate::units::ByteRange;
use crossbeam_queue::ArrayQueue;
use reactors::{Cx, Poller, PollerId, ReactorHandle, Wake};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Reads under way at most: as many as let a hard disk find a short way.
const DEPTH: usize = 32;

/// The bytes of the ranges in order, or what was in the way.
pub(super) type Outcome = Result<Vec<IoBuf>, &'static str>;

/// What both sides see.
#[derive(Debug)]
struct State {
    given_up: AtomicBool,
    outcome: ArrayQueue<Outcome>,
}

impl State {
    fn end(&self, outcome: Outcome) {
        // There is room: it ends once.
        let _ = self.outcome.push(outcome);
    }
}

/// A read that somebody waits for. Dropped, it is given up: the poller stays until the device has
/// ended what it has, and starts nothing more.
#[derive(Debug)]
pub(super) struct BackingRead {
    state: Arc<State>,
    reactor: ReactorHandle,
}

impl BackingRead {
    /// Starts to read `ranges` on `reactor`.
    ///
    /// # Errors
    /// A full inbox.
    pub(super) fn start(
        backing: Arc<dyn Bdev>,
        ranges: Vec<ByteRange>,
        reactor: &ReactorHandle,
    ) -> Result<Self, CacheError> {
        let state = Arc::new(State {
            given_up: AtomicBool::new(false),
            outcome: ArrayQueue::new(1),
        });
        let theirs = Arc::clone(&state);
        send(reactor, move |cx| match backing.open(cx) {
            Ok(channel) => install(channel, ranges, theirs, cx),
            Err(_) => theirs.end(Err("it can't be opened")),
        })?;
        Ok(Self {
            state,
            reactor: reactor.clone(),
        })
    }

    /// How it ended; nothing while it is under way.
    pub(super) fn take(&self) -> Option<Outcome> {
        self.state.outcome.pop()
    }
}

impl Drop for BackingRead {
    fn drop(&mut self) {
        self.state.given_up.store(true, Ordering::SeqCst);
        self.reactor.ring();
    }
}

/// Reactor-local name of the poller.
struct ReaderPoller(PollerId);

struct Reader {
    /// Key of its name.
    key: u64,
    channel: Box<dyn Channel>,
    ranges: Vec<ByteRange>,
    found: Vec<IoBuf>,
    next: usize,
    in_flight: usize,
    failed: bool,
    cancelled: bool,
    state: Arc<State>,
}

fn install(channel: Box<dyn Channel>, ranges: Vec<ByteRange>, state: Arc<State>, cx: &Cx) {
    let key = next_instance();
    let found = ranges.iter().map(|_| IoBuf::zeroed(0)).collect();
    let reader = Reader {
        key,
        channel,
        ranges,
        found,
        next: 0,
        in_flight: 0,
        failed: false,
        cancelled: false,
        state,
    };
    let id = cx.add_poller("pmcache_backing_read", Box::new(reader));
    cx.set_local(key, Rc::new(ReaderPoller(id)));
}

impl Reader {
    fn is_given_up(&self) -> bool {
        self.state.given_up.load(Ordering::SeqCst)
    }

    fn feed(&mut self, cx: &Cx) {
        while self.in_flight < DEPTH
            && let Some(&range) = self.ranges.get(self.next)
        {
            let len = usize::try_from(range.len()).unwrap_or(0);
            let request = Request {
                tag: self.next as u64,
                op: Op::Read,
                range,
                data: Data::Buf(IoBuf::zeroed(len)),
            };
            self.next += 1;
            self.in_flight += 1;
            self.channel.submit(cx, request);
        }
    }

    fn reap(&mut self, cx: &Cx) -> u32 {
        let mut done = Vec::new();
        self.channel.poll(cx, &mut done);
        let count = u32::try_from(done.len()).unwrap_or(u32::MAX);
        for Completion { tag, status, data } in done {
            self.in_flight -= 1;
            let place = usize::try_from(tag)
                .ok()
                .and_then(|tag| self.found.get_mut(tag));
            match (place, data.into_buf()) {
                (Some(place), Some(buf)) if status.is_ok() => *place = buf,
                _ => self.failed = true,
            }
        }
        count
    }

    fn end(&mut self, cx: &Cx) {
        let outcome = if self.failed {
            Err("reading it failed")
        } else {
            Ok(std::mem::take(&mut self.found))
        };
        self.state.end(outcome);
        if let Some(poller) = cx.local::<ReaderPoller>(self.key) {
            cx.remove_poller(poller.0);
            cx.remove_local::<ReaderPoller>(self.key);
        }
    }
}

impl Poller for Reader {
    fn poll(&mut self, cx: &Cx, _budget: u32) -> u32 {
        let given_up = self.is_given_up();
        if given_up && !self.cancelled {
            self.cancelled = true;
            self.channel.cancel(cx);
        }
        let stops = given_up || self.failed;
        if !stops {
            self.feed(cx);
        }
        let reaped = self.reap(cx);
        if self.in_flight == 0 && (stops || self.next == self.ranges.len()) {
            self.end(cx);
        }
        reaped
    }

    fn wake(&self) -> Wake {
        let idle = self.in_flight == 0;
        if idle || self.is_given_up() != self.cancelled {
            return Wake::Now;
        }
        self.channel.wake()
    }
}
