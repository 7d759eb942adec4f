//! What the lanes do about parts of the log that can't be read: see `lost.rs`.
//!
//! A sweep goes through the whole index of every lane of a reactor, a little at a time. The first one
//! marks all keys. Keys of ksets that can be read lose their mark then, so that the second one finds
//! those that no such kset holds: it logs them again, or forgets them where the backing has the same.

use super::bad::{Answer, Post};
use super::close::Cause;
use super::group::{Env, Group};
use super::key::{Key, Kind};
use super::key_index::{BLOCK, SUBTREE_BYTES, Spot};
use super::lane::{Lane, Wait};
use super::shared::Shared;
use super::window::DATA_KEY_BYTES;
use super::write::LogRoom;
use crate::media::{self, KeyFlags};
use crate::units::ByteRange;
use reactors::Cx;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::little_endian::{U32, U64};

/// Leaves of the index that one round looks at …
const LEAVES_A_ROUND: usize = 256;
/// … and keys that it settles.
const KEYS_A_ROUND: usize = 16;

/// Where a lane stood when all its keys had been marked.
#[derive(Debug, Default)]
pub(crate) struct Boundary {
    /// Dirty bytes that had ever been added by then …
    pub(super) dirty: AtomicU64,
    /// … in ksets up to this sequence, and in none above.
    pub(super) sequence: AtomicU64,
}

/// The boundary of a lane whose newest kset has no sequence yet.
#[derive(Debug)]
pub(crate) struct AwaitedBoundary {
    order: u64,
    of: Arc<[Boundary]>,
}

/// What a sweep does to each key.
#[derive(Clone, Debug)]
pub(crate) enum Sweep {
    /// Marks it, and then notes the boundary of each lane of the cache.
    Mark(Arc<[Boundary]>),
    /// If it is marked: logs it again if it is BAD, or dirty and `dirty` says so; forgets it else.
    Settle { dirty: bool },
}

/// A sweep that has begun.
#[derive(Debug)]
pub(crate) struct Sweeping {
    sweep: Sweep,
    answer: Answer,
    /// The lane to go on with (local index), and where in its index.
    lane: usize,
    spot: Spot,
    /// It waits for room in the log, and counts among those who do.
    wants_room: bool,
    /// Once all is done: lanes, and the kset of each that must be durable.
    targets: Option<Vec<(usize, u64)>>,
}

impl Sweeping {
    pub(crate) fn new(sweep: Sweep, answer: Answer) -> Self {
        Self {
            sweep,
            answer,
            lane: 0,
            spot: Spot::default(),
            wants_room: false,
            targets: None,
        }
    }
}

impl Lane {
    /// One of its ksets has its place.
    pub(crate) fn note_boundary(&mut self, sequence: u64) {
        let order = self.placed_order;
        if let Some(awaited) = self.boundary.take_if(|awaited| awaited.order <= order) {
            let of = &awaited.of[usize::from(self.number)];
            of.sequence.store(sequence, Ordering::SeqCst);
        }
    }

    /// All its keys are marked: says where it stands. No key will be added to segments that hold any.
    fn begin_boundary(&mut self, shared: &Shared, of: &Arc<[Boundary]>) {
        self.seal_head(shared);
        let order = self.newest_order();
        let mine = &of[usize::from(self.number)];
        mine.dirty
            .store(self.stats(shared).dirty_added.get(), Ordering::SeqCst);
        if self.placed_order >= order {
            let last = shared.last_sequence.load(Ordering::SeqCst);
            mine.sequence.store(last, Ordering::SeqCst);
            return;
        }
        let of = Arc::clone(of);
        self.boundary = Some(AwaitedBoundary { order, of });
    }

    /// Settles up to [`KEYS_A_ROUND`] marked keys; true once there are no more.
    fn settle_next(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        spot: &mut Spot,
        dirty: bool,
    ) -> Result<bool, Wait> {
        let mut leaves = LEAVES_A_ROUND;
        for _ in 0..KEYS_A_ROUND {
            let Some(key) = self.index.next_marked(spot, &mut leaves) else {
                break;
            };
            self.settle(env, cx, spot.subtree, &key, dirty)?;
        }
        Ok(self.index.is_end(*spot))
    }

    /// Settles what is left of one key. In the log's order the new one stands where it belongs: what
    /// was written over it since has left the index, or this part of it.
    fn settle(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        subtree: usize,
        key: &Key,
        dirty: bool,
    ) -> Result<(), Wait> {
        let flags = key.kind.flags();
        let counts = !flags.has_data() || env.shared.is_current(key.segment, key.generation);
        let stays = flags.has(KeyFlags::BAD) || (dirty && flags.is_dirty());
        if !counts || !stays {
            self.index.remove_part(subtree, key);
            self.show_bad(&env.shared);
            return Ok(());
        }
        self.reserve_key(env, cx, LogRoom::Reserved)?;
        let lane = u64::from(self.number);
        let base = (subtree as u64 * u64::from(env.shared.lanes) + lane) * SUBTREE_BYTES;
        let at = |block: u16| base + u64::from(block) * BLOCK;
        let range = ByteRange::between(at(key.start), at(key.end()));
        self.stats(&env.shared).settled.add(1);
        if !flags.has_data() {
            self.put_without_data(env, cx, range, flags);
        } else if let Some(crc) = part_crc(&env.shared, key) {
            self.log_again(env, cx, subtree, key, range, crc);
        } else {
            self.put_without_data(env, cx, range, KeyFlags::BAD);
            self.stats(&env.shared).bad_keys.add(1);
        }
        Ok(())
    }

    /// Logs a part of a key as a key of its own, over the same data.
    fn log_again(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        subtree: usize,
        key: &Key,
        range: ByteRange,
        crc: u32,
    ) {
        let skipped = u32::from(key.trim) * u32::try_from(BLOCK).unwrap_or(512);
        // Another than the lost key has, which may stand in the log yet for all we know.
        let flags = key.kind.flags().toggled(KeyFlags::AGAIN);
        let part = Key {
            trim: 0,
            whole: key.len,
            segment_offset: key.segment_offset + skipped,
            crc,
            kind: Kind::of(flags),
            ..*key
        };
        // The segment is sealed, and the lost kset's reference to it is not given up yet.
        env.shared.added[key.segment.index()].fetch_add(1, Ordering::SeqCst);
        self.index.insert(subtree, part);
        let logged = media::Key {
            offset: U64::new(range.start()),
            len: U32::new(u32::try_from(range.len()).unwrap_or(u32::MAX)),
            flags: U32::new(flags.0),
            segment: U32::new(env.shared.segments.id(key.segment).0),
            segment_offset: U32::new(part.segment_offset),
            generation: U64::new(key.generation),
            crc: U32::new(crc),
            spare: U32::ZERO,
        };
        self.append_key(env, cx, &logged);
    }
}

/// The CRC of what is left of a key, 0 if keys carry none; nothing if its data are lost.
fn part_crc(shared: &Shared, key: &Key) -> Option<u32> {
    let block = usize::try_from(BLOCK).unwrap_or(512);
    let (skipped, len) = (usize::from(key.trim) * block, usize::from(key.len) * block);
    let mut bytes = [0; DATA_KEY_BYTES];
    let bytes = bytes.get_mut(..usize::from(key.whole) * block)?;
    let at = shared.data_at(key.segment, key.segment_offset);
    if shared.pmem.load(at, bytes).is_err() {
        shared.suspect(key.segment);
        return None;
    }
    if !shared.data_crc && !key.kind.flags().has(KeyFlags::SUMMED) {
        return Some(0);
    }
    // Never a new CRC over bytes that are not what was written.
    (media::crc(bytes) == key.crc).then(|| media::crc(&bytes[skipped..skipped + len]))
}

impl Group {
    /// These keys stand in ksets that can be read.
    pub(super) fn unmark(&mut self, posts: &[Post]) {
        for post in posts {
            let lane = self.lane_index(post.range.start());
            let (subtree, start, end) = Lane::locate(&self.env.shared, post.range);
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.index.unmark(subtree, start, end, &post.ident);
            }
        }
    }

    /// Takes a sweep one round on; empties `current` when it has been answered, or never will be.
    pub(super) fn sweep(&mut self, cx: &Cx, current: &mut Option<Sweeping>) {
        let Some(mut it) = current.take() else {
            return;
        };
        let given_up = self.env.stopping || self.env.shared.has_failed();
        if !given_up && it.targets.is_none() {
            let result = self.sweep_on(cx, &mut it);
            self.count_room(&mut it.wants_room, result == Err(Wait::Space));
            // Also when it has come to wait: what was durable before it was counted rang no bell.
            self.env.retry |= result != Err(Wait::Space);
        }
        let shared = &self.env.shared;
        if given_up {
            self.count_room(&mut it.wants_room, false);
            if it.targets.is_some() {
                shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
            }
            return;
        }
        let is_durable = |targets: &Vec<(usize, u64)>| {
            let durable = |&(lane, order): &(usize, u64)| {
                let lane = self.lanes.get(lane);
                lane.is_none_or(|lane| lane.durable_order >= order)
            };
            targets.iter().all(durable)
        };
        if it.targets.as_ref().is_some_and(is_durable) {
            shared.durable_waiters.fetch_sub(1, Ordering::SeqCst);
            it.answer.give(shared);
        } else {
            *current = Some(it);
        }
    }

    /// One round: a part of one lane's index, or the end of all.
    fn sweep_on(&mut self, cx: &Cx, it: &mut Sweeping) -> Result<(), Wait> {
        if let Some(lane) = self.lanes.get_mut(it.lane) {
            let done = match &it.sweep {
                Sweep::Mark(boundaries) => {
                    let done = lane.index.mark_next(&mut it.spot, LEAVES_A_ROUND);
                    if done {
                        // No key shall join those that the boundary counts.
                        lane.close(&mut self.env, cx, Cause::Pressure);
                        lane.begin_boundary(&self.env.shared, boundaries);
                    }
                    done
                }
                Sweep::Settle { dirty } => {
                    lane.settle_next(&mut self.env, cx, &mut it.spot, *dirty)?
                }
            };
            if done {
                it.lane += 1;
                it.spot = Spot::default();
            }
            return Ok(());
        }
        let mut targets = Vec::new();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            targets.push((index, lane.newest_order()));
            lane.close(&mut self.env, cx, Cause::Pressure);
        }
        let shared = &self.env.shared;
        shared.durable_waiters.fetch_add(1, Ordering::SeqCst);
        it.targets = Some(targets);
        Ok(())
    }
}
