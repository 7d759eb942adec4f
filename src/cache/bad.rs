//! What maintenance tells the lanes of a reactor, and what these do about lost data.
//!
//! Data that can't be read, or are not what was written, become a BAD key: the lane logs one wherever
//! its index still holds that very key. Reads of it fail until it is overwritten; the backing's older
//! bytes never come back in its place. Whoever asked is answered when that key, and every newer key of
//! the lane, is durable: only then may a tail pass what the log says of these bytes.

use super::CacheError;
use super::close::Cause;
use super::geometry::{SegIx, segments_needed};
use super::group::{Env, Group};
use super::key::{Key, KeyIdent};
use super::key_index::{BLOCK, SUBTREE_BYTES};
use super::lane::{Lane, Wait};
use super::settle::{Sweep, Sweeping};
use super::shared::Shared;
use super::write::LogRoom;
use crate::media::KeyFlags;
use crate::units::ByteRange;
use reactors::Cx;
use reactors::ring::{Consumer, Producer};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ranges that reads of a lane found damaged and that have no BAD key yet, at most: what is left out
/// is found again by the next read.
const SPOILED_MAX: usize = 64;

/// One key of the log, for the lane that owns its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Post {
    pub(crate) range: ByteRange,
    pub(crate) ident: KeyIdent,
}

/// Posts for the lanes of one reactor.
#[derive(Debug)]
pub(crate) struct PostBatch {
    pub(crate) posts: Vec<Post>,
    pub(crate) wish: PostWish,
}

/// What is to be done with posts.
#[derive(Debug)]
pub(crate) enum PostWish {
    /// Forget the keys.
    Forget,
    /// Replace the keys by BAD keys, and answer.
    Replace(Answer),
    /// The keys stand in ksets that can be read: they lose their mark.
    Unmark,
    /// Without posts: go through the whole index, and answer.
    Sweep(Sweep, Answer),
}

/// Counts the batches of one question that are not answered yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Arc<AtomicU32>);

/// The promise of one answer.
#[derive(Debug)]
pub(crate) struct Answer(Arc<AtomicU32>);

impl Answers {
    /// One more answer is expected.
    pub(crate) fn expect(&self) -> Answer {
        self.0.fetch_add(1, Ordering::SeqCst);
        Answer(Arc::clone(&self.0))
    }

    /// Whether all have been given.
    pub(crate) fn are_in(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

impl Answer {
    pub(super) fn give(self, shared: &Shared) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        shared.ring_maintenance();
    }
}

/// The sender's side of the rings to the data reactors.
#[derive(Debug)]
pub(crate) struct Outbox {
    rings: Vec<Producer<PostBatch>>,
    /// What a ring did not take yet.
    parked: VecDeque<(usize, PostBatch)>,
}

impl Outbox {
    pub(crate) fn new(rings: Vec<Producer<PostBatch>>) -> Self {
        Self {
            rings,
            parked: VecDeque::new(),
        }
    }

    /// Whether everything has been taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Asks all reactors for a sweep.
    pub(crate) fn ask_all(&mut self, shared: &Shared, sweep: &Sweep, answers: &Answers) {
        for reactor in 0..self.rings.len() {
            let wish = PostWish::Sweep(sweep.clone(), answers.expect());
            let posts = Vec::new();
            self.parked.push_back((reactor, PostBatch { posts, wish }));
        }
        self.pump(shared);
    }

    /// Sends `posts` to the reactors that run their lanes; with `answers` as keys to be replaced.
    pub(crate) fn send(
        &mut self,
        shared: &Shared,
        posts: impl IntoIterator<Item = Post>,
        answers: Option<&Answers>,
    ) {
        self.send_as(shared, posts, || {
            answers.map_or(PostWish::Forget, |answers| {
                PostWish::Replace(answers.expect())
            })
        });
    }

    /// Sends `posts` to the reactors that run their lanes.
    pub(crate) fn send_as(
        &mut self,
        shared: &Shared,
        posts: impl IntoIterator<Item = Post>,
        wish: impl Fn() -> PostWish,
    ) {
        let mut batches: Vec<Vec<Post>> = vec![Vec::new(); self.rings.len()];
        for post in posts {
            let lane = shared.lane_of(post.range.start());
            batches[shared.reactor_of(lane)].push(post);
        }
        for (reactor, posts) in batches.into_iter().enumerate() {
            if !posts.is_empty() {
                let wish = wish();
                self.parked.push_back((reactor, PostBatch { posts, wish }));
            }
        }
        self.pump(shared);
    }

    /// Gives the rings what they take now.
    pub(crate) fn pump(&mut self, shared: &Shared) {
        while let Some((reactor, batch)) = self.parked.pop_front() {
            let ring = &mut self.rings[reactor];
            if ring.is_orphaned() {
                continue;
            }
            match ring.push(batch) {
                Ok(()) => shared.runtime.data[reactor].ring(),
                Err(batch) => {
                    self.parked.push_front((reactor, batch));
                    return;
                }
            }
        }
    }
}

/// A batch of keys on their way to be BAD.
#[derive(Debug)]
struct Replacing {
    posts: Vec<Post>,
    /// The post to go on with.
    next: usize,
    answer: Answer,
    /// It waits for room in the log, and counts among those who do.
    wants_room: bool,
    /// Once all are replaced: lanes (local index), and the kset of each that must be durable.
    targets: Option<Vec<(usize, u64)>>,
}

/// The receiver's side of one ring.
#[derive(Debug)]
pub(crate) struct Inbox {
    ring: Consumer<PostBatch>,
    /// The batch that is not answered yet; those behind it wait.
    current: Option<Replacing>,
    /// The same for a sweep.
    pub(super) sweeping: Option<Sweeping>,
}

impl Inbox {
    pub(crate) fn new(ring: Consumer<PostBatch>) -> Self {
        Self {
            ring,
            current: None,
            sweeping: None,
        }
    }

    /// Whether nothing waits in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.current.is_none() && self.sweeping.is_none() && self.ring.is_empty()
    }
}

impl Lane {
    /// Replaces what the index still holds of the key of `post` by BAD keys, each as soon as there is
    /// room to log it.
    fn replace_by_bad(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        post: &Post,
        room: LogRoom,
    ) -> Result<(), Wait> {
        let (subtree, start, end) = Self::locate(&env.shared, post.range);
        let base = post.range.start() - post.range.start() % SUBTREE_BYTES;
        loop {
            let mut held = None;
            self.index.walk(subtree, start, end, |piece| {
                let same = |key: &Key| key.same_original(&post.ident);
                if held.is_none() && piece.key.as_ref().is_some_and(same) {
                    held = Some((piece.start, piece.end));
                }
            });
            let Some((from, to)) = held else {
                return Ok(());
            };
            self.reserve_key(env, cx, room)?;
            let at = |block: u16| base + u64::from(block) * BLOCK;
            let range = ByteRange::between(at(from), at(to));
            self.put_without_data(env, cx, range, KeyFlags::BAD);
            self.stats(&env.shared).bad_keys.add(1);
        }
    }

    /// A read found the data of a dirty key damaged.
    pub(crate) fn note_spoiled(&mut self, post: Post) {
        if self.spoiled.len() < SPOILED_MAX && !self.spoiled.contains(&post) {
            self.spoiled.push(post);
        }
    }

    /// Logs BAD keys for what reads found, as far as there is room. Not out of the log's reserve: such
    /// a key stands in the open kset like any other.
    pub(crate) fn replace_spoiled(&mut self, env: &mut Env, cx: &Cx) {
        if env.shared.has_failed() || env.stopping {
            self.spoiled.clear();
        }
        while let Some(post) = self.spoiled.last().copied() {
            match self.replace_by_bad(env, cx, &post, LogRoom::Common) {
                Ok(()) => {
                    self.spoiled.pop();
                }
                Err(wait) => {
                    env.retry |= wait == Wait::Moment;
                    return;
                }
            }
        }
    }

    /// Shows how many bytes of it are BAD, if that has changed.
    pub(crate) fn show_bad(&mut self, shared: &Shared) {
        let bytes = self.index.bad_blocks() * BLOCK;
        if bytes != self.shown_bad {
            self.shown_bad = bytes;
            self.stats(shared).bad_bytes.set(bytes);
        }
    }

    /// The newest kset that has keys.
    pub(super) fn newest_order(&self) -> u64 {
        match &self.open {
            Some(open) if open.count == 0 => open.order - 1,
            _ => self.next_order - 1,
        }
    }
}

impl Group {
    /// Takes posts from GC and writeback.
    pub(super) fn apply_posts(&mut self, cx: &Cx) -> u32 {
        let mut handled = 0;
        let mut inboxes = std::mem::take(&mut self.inboxes);
        for inbox in &mut inboxes {
            while inbox.current.is_none()
                && inbox.sweeping.is_none()
                && let Some(PostBatch { posts, wish }) = inbox.ring.pop()
            {
                handled += 1;
                match wish {
                    PostWish::Forget => self.forget(&posts),
                    PostWish::Unmark => self.unmark(&posts),
                    PostWish::Sweep(sweep, answer) => {
                        inbox.sweeping = Some(Sweeping::new(sweep, answer));
                    }
                    PostWish::Replace(answer) => {
                        inbox.current = Some(Replacing {
                            posts,
                            next: 0,
                            answer,
                            wants_room: false,
                            targets: None,
                        });
                        self.replace(cx, &mut inbox.current);
                    }
                }
            }
        }
        self.inboxes = inboxes;
        handled
    }

    /// Goes on with what could not be replaced or answered at once.
    pub(super) fn answer_posts(&mut self, cx: &Cx) {
        let mut inboxes = std::mem::take(&mut self.inboxes);
        for inbox in &mut inboxes {
            if inbox.current.is_some() {
                self.replace(cx, &mut inbox.current);
                // What stands behind it may be taken now.
                self.env.retry |= inbox.current.is_none();
            }
            if inbox.sweeping.is_some() {
                self.sweep(cx, &mut inbox.sweeping);
                self.env.retry |= inbox.sweeping.is_none();
            }
        }
        self.inboxes = inboxes;
    }

    fn forget(&mut self, posts: &[Post]) {
        for post in posts {
            let lane = self.lane_index(post.range.start());
            let (subtree, start, end) = Lane::locate(&self.env.shared, post.range);
            debug_assert!(post.range.is_aligned(BLOCK));
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.index.remove_exact(subtree, start, end, &post.ident);
                lane.stats(&self.env.shared).gc_posts.add(1);
            }
        }
    }

    /// Takes a batch as far as room and barriers allow; empties `current` when it has been answered,
    /// or never will be.
    fn replace(&mut self, cx: &Cx, current: &mut Option<Replacing>) {
        let Some(mut batch) = current.take() else {
            return;
        };
        let given_up = self.env.stopping || self.env.shared.has_failed();
        let result = if given_up || batch.targets.is_some() {
            Ok(())
        } else {
            self.replace_all(cx, &mut batch)
        };
        self.count_room(&mut batch.wants_room, result == Err(Wait::Space));
        self.env.retry |= result == Err(Wait::Moment);
        let shared = &self.env.shared;
        if given_up {
            // Whoever asked comes to rest, or halts, by itself.
            if batch.targets.is_some() {
                shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
            }
            return;
        }
        let Some(targets) = &batch.targets else {
            *current = Some(batch);
            return;
        };
        let lanes = &self.lanes;
        let durable = |&(lane, order): &(usize, u64)| {
            lanes.get(lane).is_none_or(|l| l.durable_order >= order)
        };
        if targets.iter().all(durable) {
            shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
            batch.answer.give(shared);
        } else {
            *current = Some(batch);
        }
    }

    /// Who waits for room in the log makes others make some.
    pub(super) fn count_room(&self, counted: &mut bool, wants: bool) {
        let shared = &self.env.shared;
        match (*counted, wants) {
            (false, true) => {
                shared.waiting_lanes.fetch_add(1, Ordering::SeqCst);
                shared.make_room();
            }
            (true, false) => {
                shared.waiting_lanes.fetch_sub(1, Ordering::SeqCst);
            }
            _ => {}
        }
        *counted = wants;
    }

    fn replace_all(&mut self, cx: &Cx, batch: &mut Replacing) -> Result<(), Wait> {
        while let Some(post) = batch.posts.get(batch.next) {
            let lane = self.lane_index(post.range.start());
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.replace_by_bad(&mut self.env, cx, post, LogRoom::Reserved)?;
            }
            batch.next += 1;
        }
        let offsets = batch.posts.iter().map(|post| post.range.start());
        let mut lanes: Vec<usize> = offsets.map(|at| self.lane_index(at)).collect();
        lanes.sort_unstable();
        lanes.dedup();
        let mut targets = Vec::new();
        for index in lanes {
            if let Some(lane) = self.lanes.get_mut(index) {
                // Also what is newer must be durable, or its loss would bring the backing's older
                // bytes back.
                targets.push((index, lane.newest_order()));
                lane.close(&mut self.env, cx, Cause::Pressure);
            }
        }
        let shared = &self.env.shared;
        shared.durable_waiters.fetch_add(1, Ordering::SeqCst);
        // What was durable before it was counted rang no bell.
        self.env.retry = true;
        batch.targets = Some(targets);
        Ok(())
    }
}

impl Shared {
    /// A segment gave a media error, or did not take data: it is used until GC has drained it, and
    /// never again.
    pub(crate) fn suspect(&self, segment: SegIx) {
        if !self.suspects[segment.index()].swap(true, Ordering::SeqCst) {
            let id = self.segments.id(segment).0;
            tracing::error!(
                cache = %self.name, segment = id,
                "a media error; the segment will not be used again once it is drained"
            );
            self.suspect_count.fetch_add(1, Ordering::SeqCst);
            self.kick_gc();
            self.check_segments();
        }
    }

    /// With fewer good segments than a cache needs to go on, requests would wait for space for ever:
    /// that is the end of it.
    pub(crate) fn check_segments(&self) {
        let bad = self.suspect_count.load(Ordering::SeqCst);
        let good = self.segment_count().saturating_sub(bad);
        let wanted = segments_needed(self.lanes, self.log_reserve);
        if good < wanted {
            self.fail_alone(&CacheError::NoSegments { wanted, free: good });
        }
    }

    /// Whether it gave a media error, now or in an earlier run.
    pub(crate) fn is_suspect(&self, segment: SegIx) -> bool {
        self.suspects[segment.index()].load(Ordering::SeqCst)
    }
}
