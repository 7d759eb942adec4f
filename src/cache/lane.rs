//! A lane: owns, alone and without locks, its subtrees' keys, its open kset, its data head and its
//! misses in flight. It lives on one reactor, in a [`super::group::Group`].

use super::admission::Admission;
use super::bad::Post;
use super::bypass::Bypasses;
use super::close::{Closing, OpenKset, PlacedKset};
use super::fault::Held;
use super::geometry::SegIx;
use super::group::Env;
use super::key_index::{BLOCK, KeyIndex, SUBTREE_BYTES};
use super::latency::{Stamp, Timed, Waited};
use super::marks::Marks;
use super::read::{Miss, ReadOp};
use super::settle::AwaitedBoundary;
use super::shared::{SEALED, Shared};
use super::staging::LaneStaging;
use super::stats::LaneStats;
use crate::bdev::{Data, Extent, IoStatus};
use crate::units::ByteRange;
use reactors::{Cx, Nanos, Wake};
use slab::Slab;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// What a lane is asked to do; the range lies within one subtree of the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneOp {
    Read,
    Write {
        fua: bool,
    },
    Zero {
        unmap: bool,
        fua: bool,
    },
    Prefetch,
    Extents,
    /// A FLUSH visits all lanes of a reactor: ends when all keys they hold have a sequence.
    Visit,
    /// The backing shall be flushed: of the first group only.
    FlushBacking,
    /// The client gives up what waits for space.
    Cancel,
}

/// A request, or the part of one that concerns one lane.
#[derive(Debug)]
pub(crate) struct LaneRequest {
    pub(crate) tag: u64,
    /// When the client gave it away.
    pub(crate) submitted: Nanos,
    pub(crate) op: LaneOp,
    /// Its stream is long: it passes the cache by.
    pub(crate) cut: bool,
    pub(crate) range: ByteRange,
    pub(crate) data: Data,
}

/// The end of a [`LaneRequest`].
#[derive(Debug)]
pub(crate) struct LaneDone {
    pub(crate) tag: u64,
    pub(crate) stamp: Stamp,
    pub(crate) status: IoStatus,
    pub(crate) data: Data,
}

/// A request on its lane.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) client: usize,
    pub(crate) begun: Nanos,
    pub(crate) request: LaneRequest,
    /// Bytes that are in the index already.
    pub(crate) progress: u64,
    pub(crate) waits_since: Option<Nanos>,
    /// Not before then: little room is left.
    pub(crate) begins: Nanos,
    /// Progress with which it asked for space last.
    pub(crate) asked_at: Option<u64>,
    /// A part of it is in the index, and all of it goes to the backing before it completes.
    pub(crate) is_through: bool,
    pub(crate) held: Held,
}

impl Job {
    /// Its end, with its memory or what was found.
    pub(crate) fn done(self, status: IoStatus) -> LaneDone {
        let stamp = self.stamp();
        let LaneRequest { tag, data, .. } = self.request;
        LaneDone {
            tag,
            stamp,
            status,
            data,
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        let kind = match self.request.op {
            LaneOp::Read => Timed::Read,
            LaneOp::Write { .. } => Timed::Write,
            LaneOp::Zero { .. } => Timed::Zero,
            _ => Timed::Other,
        };
        let waited = match (self.asked_at, self.waits_since) {
            (Some(_), _) => Waited::Space,
            _ if self.begins > self.begun => Waited::Pace,
            (None, Some(_)) => Waited::Queue,
            (None, None) => Waited::Nothing,
        };
        let range = self.request.range;
        Stamp {
            waited,
            offset: range.start(),
            // It lies within a subtree.
            len: u32::try_from(range.len()).unwrap_or(u32::MAX),
            ..Stamp::new(kind, self.request.submitted, self.begun)
        }
    }
}

/// Why a step of a request can't go on now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// No space: writeback and GC must make some, and will ring.
    Space,
    /// Somebody else holds a lock, or a staging slot is not free yet: try again from the loop.
    Moment,
}

/// The segment that a lane fills.
#[derive(Debug)]
pub(crate) struct DataHead {
    pub(crate) segment: SegIx,
    pub(crate) offset: u32,
    pub(crate) generation: u64,
    pub(crate) added: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Its number within the cache.
    pub(crate) number: u16,
    pub(crate) index: KeyIndex,
    pub(crate) head: Option<DataHead>,
    pub(crate) staging: LaneStaging,
    pub(crate) open: Option<OpenKset>,
    /// Closed ksets without a place in the log, oldest first.
    pub(crate) closing: VecDeque<Closing>,
    /// Placed ksets that are not durable yet, oldest first.
    pub(crate) placed: VecDeque<PlacedKset>,
    /// The log has promised room for the next kset.
    pub(crate) promised: bool,
    /// Counts this lane's ksets: the next to be opened.
    pub(crate) next_order: u64,
    /// All ksets up to this one have a place …
    pub(crate) placed_order: u64,
    /// … and are durable.
    pub(crate) durable_order: u64,
    /// Writes that wait until a kset is durable: (order, client, end).
    pub(crate) acks: VecDeque<(u64, usize, LaneDone)>,
    /// They are counted among those who want to hear of durable ksets.
    pub(crate) acks_counted: bool,
    /// Close the open kset as soon as no other is closing.
    pub(crate) close_wanted: bool,
    /// Requests that wait for space or for their turn, and all writes behind them, in order.
    pub(crate) waiting: VecDeque<Job>,
    /// The first of them waits for space: counted in [`Shared::waiting_lanes`].
    counts_as_waiting: bool,
    pub(crate) reads: Slab<ReadOp>,
    pub(crate) misses: Slab<Miss>,
    pub(crate) next_miss: u64,
    /// Last serial given to a key without data.
    pub(crate) serial: u64,
    /// Keys that reads found damaged and that are not BAD yet.
    pub(crate) spoiled: Vec<Post>,
    /// BAD bytes as its statistics show them.
    pub(crate) shown_bad: u64,
    /// GC wants to know the sequence of one of its ksets.
    pub(crate) boundary: Option<AwaitedBoundary>,
    pub(crate) bypass: Bypasses,
    pub(crate) marks: Marks,
    pub(crate) admission: Admission,
}

/// What a lane starts from: fresh, or as replay left it.
#[derive(Debug)]
pub(crate) struct LaneSeed {
    pub(crate) number: u16,
    pub(crate) index: KeyIndex,
    pub(crate) staging: LaneStaging,
    pub(crate) serial: u64,
}

impl Lane {
    /// A lane of a cache whose log reaches to `last_sequence`.
    pub(crate) fn new(seed: LaneSeed, last_sequence: u64) -> Self {
        let shown_bad = seed.index.bad_blocks() * BLOCK;
        Self {
            number: seed.number,
            index: seed.index,
            head: None,
            staging: seed.staging,
            open: None,
            closing: VecDeque::new(),
            placed: VecDeque::new(),
            promised: false,
            next_order: 1,
            placed_order: 0,
            durable_order: 0,
            acks: VecDeque::new(),
            acks_counted: false,
            close_wanted: false,
            waiting: VecDeque::new(),
            counts_as_waiting: false,
            reads: Slab::new(),
            misses: Slab::new(),
            next_miss: 1,
            serial: seed.serial,
            spoiled: Vec::new(),
            shown_bad,
            boundary: None,
            bypass: Bypasses::default(),
            marks: Marks::new(last_sequence),
            admission: Admission::default(),
        }
    }

    pub(crate) fn stats<'a>(&self, shared: &'a Shared) -> &'a LaneStats {
        &shared.stats[usize::from(self.number)]
    }

    /// The subtree's number within the lane, and the range in blocks of it.
    pub(crate) fn locate(shared: &Shared, range: ByteRange) -> (usize, u16, u16) {
        let subtree = range.start() / SUBTREE_BYTES;
        let start = (range.start() % SUBTREE_BYTES) / BLOCK;
        let blocks = range.len() / BLOCK;
        let subtree = usize::try_from(subtree / u64::from(shared.lanes)).unwrap_or(usize::MAX);
        let start16 = u16::try_from(start).unwrap_or(u16::MAX);
        let end16 = u16::try_from(start + blocks).unwrap_or(u16::MAX);
        (subtree, start16, end16)
    }

    /// Starts `request` for `client`. Whatever can be done at once is done when this returns.
    pub(crate) fn submit(&mut self, env: &mut Env, cx: &Cx, client: usize, request: LaneRequest) {
        let job = Job {
            client,
            begun: env.now,
            request,
            progress: 0,
            waits_since: None,
            begins: env.now,
            asked_at: None,
            is_through: false,
            held: Held::default(),
        };
        match job.request.op {
            LaneOp::Read => self.read(env, cx, job),
            LaneOp::Prefetch => self.read(env, cx, job),
            LaneOp::Extents => self.extents(env, job),
            LaneOp::Write { .. } | LaneOp::Zero { .. } => {
                match env.pace.admit(env.now, job.request.data.len()) {
                    None => self.take_up(env, cx, job),
                    Some(begins) => self.enqueue(env, Job { begins, ..job }),
                }
            }
            LaneOp::Visit | LaneOp::FlushBacking | LaneOp::Cancel => {
                env.reply(client, job.done(IoStatus::Invalid));
            }
        }
    }

    /// Begins a modification, or puts it behind those that wait.
    pub(crate) fn take_up(&mut self, env: &mut Env, cx: &Cx, job: Job) {
        if !self.waiting.is_empty() {
            self.enqueue(env, job);
        } else if let Some((job, wait)) = self.modify(env, cx, job) {
            self.start_waiting(env, cx, job, wait);
        }
    }

    /// Nobody of this lane has waited so far.
    pub(crate) fn start_waiting(&mut self, env: &mut Env, cx: &Cx, job: Job, wait: Wait) {
        self.enqueue(env, job);
        self.wait_for(env, cx, wait);
    }

    fn enqueue(&mut self, env: &Env, mut job: Job) {
        job.waits_since = Some(env.now);
        self.stats(&env.shared).space_waits.add(1);
        self.waiting.push_back(job);
    }

    /// The first of this lane that waits makes every lane close its open kset, since only closed
    /// ones can be written back and dropped, and wakes those who make room.
    fn wait_for(&mut self, env: &mut Env, cx: &Cx, wait: Wait) {
        self.counts_as_waiting = true;
        env.shared.waiting_lanes.fetch_add(1, Ordering::SeqCst);
        match wait {
            Wait::Moment => env.retry = true,
            Wait::Space => self.ask_for_space(env, cx),
        }
    }

    /// Makes every lane close its open kset, since writeback and GC can only free what closed ones
    /// hold, and lets these look now.
    fn ask_for_space(&mut self, env: &mut Env, cx: &Cx) {
        if let Some(job) = self.waiting.front_mut() {
            job.asked_at = Some(job.progress);
        }
        self.close(env, cx, super::close::Cause::Pressure);
        env.shared.make_room();
    }

    /// Lets waiting requests go on, in order.
    pub(crate) fn serve_waiting(&mut self, env: &mut Env, cx: &Cx) {
        if self.waiting.is_empty() {
            return;
        }
        while let Some(job) = self.waiting.pop_front() {
            let since = job.waits_since.unwrap_or(env.now);
            let limit = env.shared.options.no_space_timeout_ns();
            if limit > 0 && env.now.since(since) > limit {
                self.end_waiting_job(env, job, IoStatus::NoSpace);
                continue;
            }
            if job.begins > env.now {
                self.waiting.push_front(job);
                break;
            }
            let failed = env.shared.has_failed();
            match self.modify(env, cx, job) {
                None => self
                    .stats(&env.shared)
                    .space_wait_ns
                    .add(env.now.since(since)),
                Some((mut job, wait)) => {
                    job.waits_since = Some(since);
                    if !self.counts_as_waiting {
                        self.waiting.push_front(job);
                        self.wait_for(env, cx, wait);
                        return;
                    }
                    env.retry |= wait == Wait::Moment && !failed;
                    // What it has written since it asked last stands in an open kset again.
                    let ask = wait == Wait::Space && job.asked_at != Some(job.progress);
                    self.waiting.push_front(job);
                    if ask {
                        self.ask_for_space(env, cx);
                    }
                    return;
                }
            }
        }
        self.stop_waiting(env);
    }

    /// The lane does not wait for space: there is nothing, or only what may not begin yet.
    fn stop_waiting(&mut self, env: &mut Env) {
        if !std::mem::take(&mut self.counts_as_waiting) {
            return;
        }
        env.shared.waiting_lanes.fetch_sub(1, Ordering::SeqCst);
        env.leave_queue.push(self.number);
    }

    fn end_waiting_job(&mut self, env: &mut Env, job: Job, status: IoStatus) {
        env.reply(job.client, job.done(status));
    }

    /// Gives up what `client` has waiting for space; what of it is in the index stays.
    pub(crate) fn cancel(&mut self, env: &mut Env, client: Option<usize>) {
        let is_given_up = |job: &Job| client.is_none_or(|client| client == job.client);
        self.give_up_bypasses(env, is_given_up);
        if self.waiting.is_empty() {
            return;
        }
        for job in std::mem::take(&mut self.waiting) {
            if is_given_up(&job) {
                self.end_waiting_job(env, job, IoStatus::Aborted);
            } else {
                self.waiting.push_back(job);
            }
        }
        if self.waiting.is_empty() {
            self.stop_waiting(env);
        }
    }

    /// Whether its first request waits for space.
    pub(crate) fn waits_for_space(&self) -> bool {
        self.counts_as_waiting
    }

    /// When its requests that wait must be looked at, if nobody rings; those that wait for space can fail
    /// after `timeout`, if that is not 0.
    pub(crate) fn wake_waiting(&self, timeout: u64) -> Wake {
        let Some(job) = self.waiting.front() else {
            return Wake::OnEvent;
        };
        let since = job.waits_since.filter(|_| timeout > 0);
        let fails = since.map_or(Wake::OnEvent, |since| Wake::At(since.after(timeout + 1)));
        if self.counts_as_waiting {
            fails
        } else {
            fails.sooner(Wake::At(job.begins))
        }
    }

    /// Whether something that was asked by `client` is under way.
    pub(crate) fn serves(&self, client: usize) -> bool {
        self.waiting.iter().any(|job| job.client == client)
            || self.acks.iter().any(|(_, of, _)| *of == client)
            || self.reads.iter().any(|(_, read)| read.client == client)
            || self.bypass.serves(client)
    }

    /// The newest kset that has keys and no sequence.
    pub(crate) fn newest_unplaced(&self) -> Option<u64> {
        let open = self
            .open
            .as_ref()
            .filter(|open| open.count > 0)
            .map(|open| open.order);
        open.or_else(|| self.closing.back().map(|closing| closing.order))
    }

    /// Whether nothing is under way in it; keys may be open.
    pub(crate) fn is_quiet(&self) -> bool {
        self.closing.is_empty()
            && self.placed.is_empty()
            && self.waiting.is_empty()
            && self.misses.is_empty()
            && self.bypass.is_idle()
    }

    /// The keys of the open kset, oldest first.
    pub(crate) fn open_keys(&self) -> &[crate::media::Key] {
        self.open
            .as_ref()
            .map_or(&[], |open| self.staging.keys(open.slot, open.count))
    }

    /// Whether its open kset has keys.
    pub(crate) fn has_open(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.count > 0)
    }

    /// Whether it holds keys that have no sequence yet.
    pub(crate) fn has_unplaced(&self) -> bool {
        self.newest_unplaced().is_some()
    }

    /// No key will be added to the head's segment: what it holds may be released once dropped.
    pub(crate) fn seal_head(&mut self, shared: &Shared) {
        if let Some(head) = self.head.take() {
            shared.added[head.segment.index()].store(SEALED | head.added, Ordering::SeqCst);
        }
    }

    /// Goes on in another segment if the one that it fills has given a media error.
    pub(crate) fn leave_suspect(&mut self, shared: &Shared) {
        let head = self.head.as_ref();
        if head.is_some_and(|head| shared.is_suspect(head.segment)) {
            self.seal_head(shared);
        }
    }

    /// Tells what the range consists of.
    fn extents(&mut self, env: &mut Env, job: Job) {
        let (subtree, start, end) = Self::locate(&env.shared, job.request.range);
        let anything_dirty = env.shared.dirty_bytes() > 0;
        let mut found: Vec<Extent> = Vec::new();
        let shared = env.shared.clone();
        self.index.walk(subtree, start, end, |piece| {
            let mut extent = Extent::allocated(u64::from(piece.end - piece.start) * BLOCK);
            if let Some(key) = piece.key.filter(|k| !k.kind.is_placeholder()) {
                let flags = key.kind.flags();
                let current = if flags.has_data() {
                    shared.is_current(key.segment, key.generation)
                } else {
                    !flags.has(crate::media::KeyFlags::INVALID)
                };
                extent.cached = current;
                extent.dirty = current && anything_dirty && flags.is_dirty();
                extent.zero = flags.has(crate::media::KeyFlags::ZERO);
                extent.hole = extent.zero && flags.has(crate::media::KeyFlags::UNMAP);
            }
            match found.last_mut() {
                Some(last) if Extent { len: 0, ..*last } == Extent { len: 0, ..extent } => {
                    last.len += extent.len;
                }
                _ => found.push(extent),
            }
        });
        let (client, mut done) = (job.client, job.done(IoStatus::Ok));
        done.data = Data::Extents(found);
        env.reply(client, done);
    }
}
