//! Writing: reserve first, then mutate.
//!
//! Nothing that can fail or wait stands between the reservation of an extent (data space, a slot in
//! the open kset, log room to close it) and its insertion into the index: a request never waits while
//! it holds an extent that is not in the index yet.

use super::bypass::Way;
use super::close::Cause;
use super::fault::{self, Fault};
use super::geometry::{DATA_KEY_BYTES_MAX, SegIx};
use super::group::Env;
use super::key::{Key, Kind};
use super::key_index::{BLOCK, LEAF_BYTES};
use super::lane::{DataHead, Job, Lane, LaneDone, LaneOp, Wait};
use super::latency::Waited;
use super::shared::Shared;
use crate::bdev::{Data, IoStatus, PmemError};
use crate::media::{self, KEYS_MAX, KeyFlags};
use crate::units::ByteRange;
use reactors::Cx;
use std::sync::atomic::{Ordering, fence};
use zerocopy::little_endian::{U32, U64};

/// Whom a kset is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogRoom {
    /// Requests: one segment's worth of the log is not for them.
    Common,
    /// Keys that maintenance must have in the log before it can make room. The kset is closed at once.
    Reserved,
}

/// Data space for one extent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataSpace {
    pub(crate) segment: SegIx,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) generation: u64,
}

/// Why an extent is not in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no room for it now.
    Wait(Wait),
    /// Its place on the medium did not take it.
    Medium(PmemError),
}

impl From<Wait> for Refused {
    fn from(wait: Wait) -> Self {
        Self::Wait(wait)
    }
}

impl From<PmemError> for Refused {
    fn from(error: PmemError) -> Self {
        Self::Medium(error)
    }
}

/// How long the extent that starts at `offset` may be when `left` bytes are wanted.
fn extent_len(offset: u64, left: u64) -> u64 {
    left.min(DATA_KEY_BYTES_MAX)
        .min(LEAF_BYTES - offset % LEAF_BYTES)
}

impl Lane {
    /// Does a write, discard or write-zeroes as far as there is room; hands it back if it has to wait.
    pub(crate) fn modify(&mut self, env: &mut Env, cx: &Cx, mut job: Job) -> Option<(Job, Wait)> {
        if env.shared.has_failed() {
            env.reply(job.client, job.done(IoStatus::ReadOnly));
            return None;
        }
        let policy = env.shared.options.policy();
        if !policy.is_plain() || self.bypass.is_alert() {
            job = match self.find_way(env, cx, job, policy) {
                Way::Cached(job) => job,
                Way::Taken => return None,
                Way::Waits(job, wait) => return Some((job, wait)),
            };
        }
        match self.store_modification(env, cx, &mut job) {
            Ok(()) => {}
            Err(Refused::Wait(wait)) => return Some((job, wait)),
            Err(Refused::Medium(_)) => {
                env.reply(job.client, job.done(IoStatus::IoError));
                return None;
            }
        }
        let (client, op, range) = (job.client, job.request.op, job.request.range);
        let stats = self.stats(&env.shared);
        let fua = match op {
            LaneOp::Zero { fua, .. } => {
                stats.zeroes.add(1);
                stats.zero_bytes.add(range.len());
                fua
            }
            LaneOp::Write { fua } => {
                stats.writes.add(1);
                stats.write_bytes.add(range.len());
                fua
            }
            _ => false,
        };
        let done = job.done(IoStatus::Ok);
        if fua || env.shared.options.durable_writes() {
            self.acknowledge_when_durable(env, cx, client, done, fua);
        } else {
            env.reply(client, done);
        }
        None
    }

    /// Puts all that is left of a modification into the cache.
    pub(crate) fn store_modification(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        job: &mut Job,
    ) -> Result<(), Refused> {
        match job.request.op {
            LaneOp::Zero { unmap, .. } => self.write_zeroes(env, cx, job, unmap),
            _ => self.write_extents(env, cx, job),
        }
    }

    /// Completes a write once the kset with its last key is durable, and closes that kset.
    fn acknowledge_when_durable(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        client: usize,
        mut done: LaneDone,
        fua: bool,
    ) {
        if done.stamp.waited == Waited::Nothing {
            done.stamp.waited = Waited::Kset;
        }
        // The newest kset holds it: the open one, or the one that it has just filled.
        self.acks.push_back((self.next_order - 1, client, done));
        if fua {
            self.end_epoch_behind_newest(env);
        }
        self.close_soon(env, cx);
        if !self.acks.is_empty() && !self.acks_counted {
            self.acks_counted = true;
            env.shared.durable_waiters.fetch_add(1, Ordering::SeqCst);
            // What was durable before this was counted rang no bell.
            fence(Ordering::SeqCst);
            self.pump(env, cx);
        }
    }

    /// The epoch ends behind the kset that got the newest key.
    pub(crate) fn end_epoch_behind_newest(&mut self, env: &mut Env) {
        if let Some(open) = &mut self.open {
            open.raise = true;
        } else if let Some(closing) = self.closing.back_mut() {
            closing.raise = true;
        } else {
            env.raise_wanted = true;
        }
    }

    /// Closes the open kset, or once no other is closing: several requests share one then.
    pub(crate) fn close_soon(&mut self, env: &mut Env, cx: &Cx) {
        if self.closing.is_empty() {
            self.close(env, cx, Cause::Fua);
        } else {
            self.close_wanted = true;
        }
        self.pump(env, cx);
    }

    fn write_extents(&mut self, env: &mut Env, cx: &Cx, job: &mut Job) -> Result<(), Refused> {
        let range = job.request.range;
        while job.progress < range.len() {
            let offset = range.start() + job.progress;
            let wanted = extent_len(offset, range.len() - job.progress);
            let (subtree, start, _) =
                Self::locate(&env.shared, ByteRange::between(offset, offset + wanted));
            // It arrives while the data are copied.
            self.index.prefetch(subtree, start);
            self.reserve_key(env, cx, LogRoom::Common)?;
            let space = match job.held.take(&env.shared) {
                Some(space) => space,
                None => self.reserve_data(env, wanted)?,
            };
            let ends_segment = u64::from(space.len) < wanted;
            if ends_segment && fault::injected(Fault::ExtentHeldWhileWaiting) {
                self.head = Some(self.new_head(env).inspect_err(|_| {
                    job.held.put(&env.shared, space);
                })?);
            }
            let from = usize::try_from(job.progress).unwrap_or(usize::MAX);
            let Data::Buf(buf) = &job.request.data else {
                return Ok(());
            };
            let Some(bytes) = buf.get(from..from + space.len as usize) else {
                return Ok(());
            };
            let extent = ByteRange::between(offset, offset + u64::from(space.len));
            self.put_extent(env, cx, extent, space, bytes, KeyFlags::DIRTY)?;
            job.progress += u64::from(space.len);
        }
        Ok(())
    }

    /// Stores the bytes of an extent in the space that was reserved for it, and makes it known: once
    /// it is stored nothing can fail.
    ///
    /// # Errors
    /// The medium's. The space is given back, and nothing else has changed.
    pub(crate) fn put_extent(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        extent: ByteRange,
        space: DataSpace,
        bytes: &[u8],
        flags: KeyFlags,
    ) -> Result<(), PmemError> {
        let at = env.shared.data_at(space.segment, space.offset);
        let flags = if env.shared.sums_lost_data {
            flags.with(KeyFlags::SUMMED)
        } else {
            flags
        };
        let stored = if env.shared.data_crc || env.shared.sums_lost_data {
            env.shared.pmem.store_data_crc(at, bytes)
        } else {
            env.shared.pmem.store_data(at, bytes).map(|()| 0)
        };
        let crc = stored.inspect_err(|_| self.give_back(&env.shared, space.segment))?;
        self.insert_key(&env.shared, extent, space, crc, flags);
        let key = media::Key {
            offset: U64::new(extent.start()),
            len: U32::new(space.len),
            flags: U32::new(flags.0),
            segment: U32::new(env.shared.segments.id(space.segment).0),
            segment_offset: U32::new(space.offset),
            generation: U64::new(space.generation),
            crc: U32::new(crc),
            spare: U32::ZERO,
        };
        self.append_key(env, cx, &key);
        Ok(())
    }

    /// Gives back the reference of an extent that `segment` did not take. The segment gets no further
    /// data: the next extent would meet the same fault.
    fn give_back(&mut self, shared: &Shared, segment: SegIx) {
        // Before the reference goes: from then on GC may release the segment.
        shared.suspect(segment);
        match &mut self.head {
            Some(head) if head.segment == segment => {
                head.added -= 1;
                self.seal_head(shared);
            }
            // Its end was reached with this very extent.
            _ => {
                shared.added[segment.index()].fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn insert_key(
        &mut self,
        shared: &Shared,
        extent: ByteRange,
        space: DataSpace,
        crc: u32,
        flags: KeyFlags,
    ) {
        let (subtree, start, end) = Self::locate(shared, extent);
        if fault::injected(Fault::ReferenceDroppedOnOverwrite) {
            self.give_references_up(shared, subtree, start, end);
        }
        let key = Key {
            start,
            len: end - start,
            trim: 0,
            whole: end - start,
            segment: space.segment,
            segment_offset: space.offset,
            generation: space.generation,
            crc,
            kind: Kind::of(flags),
        };
        self.index.insert(subtree, key);
        self.show_bad(shared);
    }

    /// For a fault only: keys that are about to be overwritten as a whole refer to nothing any more.
    fn give_references_up(&mut self, shared: &Shared, subtree: usize, start: u16, end: u16) {
        let head = &mut self.head;
        self.index.walk(subtree, start, end, |piece| {
            let covered = |key: &Key| {
                let is_whole = key.len == key.whole && key.start >= start && key.end() <= end;
                let has_data = !key.kind.is_placeholder() && key.kind.flags().has_data();
                is_whole && has_data && shared.is_current(key.segment, key.generation)
            };
            let Some(key) = piece.key.filter(covered) else {
                return;
            };
            match head.as_mut().filter(|head| head.segment == key.segment) {
                Some(head) => head.added -= 1,
                None => {
                    shared.added[key.segment.index()].fetch_sub(1, Ordering::SeqCst);
                }
            }
        });
    }

    /// Discard and write-zeroes: one key without data.
    fn write_zeroes(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        job: &mut Job,
        unmap: bool,
    ) -> Result<(), Refused> {
        self.check_log(&env.shared)?;
        self.reserve_key(env, cx, LogRoom::Common)?;
        let range = job.request.range;
        let flags = if unmap {
            KeyFlags::ZERO.with(KeyFlags::UNMAP)
        } else {
            KeyFlags::ZERO
        };
        self.put_without_data(env, cx, range, flags);
        job.progress = range.len();
        Ok(())
    }

    /// Whether a request that only logs may go on: it must not fill the pool with keys.
    pub(crate) fn check_log(&self, shared: &Shared) -> Result<(), Wait> {
        let log_segments = shared.maintenance.log_segments.load(Ordering::Relaxed);
        if log_segments > shared.log_segments_max() {
            return Err(Wait::Space);
        }
        Ok(())
    }

    /// Logs a key without data over `range`, for which a slot is reserved.
    pub(crate) fn put_without_data(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        range: ByteRange,
        flags: KeyFlags,
    ) {
        self.serial += 1;
        let len = u32::try_from(range.len()).unwrap_or(u32::MAX);
        let space = DataSpace {
            segment: SegIx(0),
            offset: 0,
            len,
            generation: self.serial,
        };
        self.insert_key(&env.shared, range, space, 0, flags);
        let key = media::Key {
            offset: U64::new(range.start()),
            len: U32::new(len),
            flags: U32::new(flags.0),
            segment: U32::ZERO,
            segment_offset: U32::ZERO,
            generation: U64::new(self.serial),
            crc: U32::ZERO,
            spare: U32::ZERO,
        };
        self.append_key(env, cx, &key);
    }

    /// Takes data space, with its reference, from the lane's data head; at most `wanted` bytes.
    pub(crate) fn reserve_data(&mut self, env: &mut Env, wanted: u64) -> Result<DataSpace, Wait> {
        let data_bytes = env.shared.geometry.segment_data_bytes();
        if self
            .head
            .as_ref()
            .is_some_and(|h| u64::from(h.offset) >= data_bytes)
        {
            self.seal_head(&env.shared);
        }
        if self.head.is_none() {
            self.head = Some(self.new_head(env)?);
        }
        let Some(head) = &mut self.head else {
            return Err(Wait::Moment);
        };
        let left = data_bytes - u64::from(head.offset);
        let len = u32::try_from(wanted.min(left)).unwrap_or(0);
        debug_assert!(u64::from(len) >= BLOCK);
        let space = DataSpace {
            segment: head.segment,
            offset: head.offset,
            len,
            generation: head.generation,
        };
        head.offset += len;
        head.added += 1;
        if u64::from(head.offset) >= data_bytes {
            self.seal_head(&env.shared);
        }
        Ok(space)
    }

    fn new_head(&mut self, env: &mut Env) -> Result<DataHead, Wait> {
        let shared = &env.shared;
        let Some(mut alloc) = shared.alloc.try_lock() else {
            return Err(Wait::Moment);
        };
        let deficit = shared.log_deficit.load(Ordering::SeqCst);
        let Some(segment) = alloc.take_data(self.number, deficit) else {
            return Err(Wait::Space);
        };
        let free = u32::try_from(alloc.free_count()).unwrap_or(u32::MAX);
        shared.free_segments.store(free, Ordering::Relaxed);
        drop(alloc);
        shared.added[segment.index()].store(0, Ordering::SeqCst);
        if super::gc::above_threshold(shared) {
            shared.kick_gc();
        }
        let generation = shared.generations[segment.index()].load(Ordering::Acquire);
        Ok(DataHead {
            segment,
            offset: 0,
            generation,
            added: 0,
        })
    }

    /// Makes sure that the open kset takes another key, and that it can be closed then.
    pub(crate) fn reserve_key(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        room: LogRoom,
    ) -> Result<(), Wait> {
        if let Some(open) = &self.open {
            debug_assert!(open.count < KEYS_MAX, "a full kset is closed at once");
            return Ok(());
        }
        self.open_kset(env, cx, room)
    }
}
