//! Reading: hits are copied out, gaps are fetched from the backing once for all who want them.
//!
//! A gap that is being fetched is marked by a placeholder in the index, which later writes trim like
//! any key. What is left of it when the data arrive is filled; the rest has a newer value already.

use super::bad::Post;
use super::fault::{self, Fault};
use super::geometry::DATA_KEY_BYTES_MAX;
use super::group::Env;
use super::key::{Key, Kind};
use super::key_index::{BLOCK, SUBTREE_BYTES};
use super::lane::{Job, Lane, LaneDone, LaneOp, LaneRequest, Wait};
use super::latency::Stamp;
use super::policy::Policy;
use super::shared::Shared;
use super::window::DATA_KEY_BYTES;
use super::write::{LogRoom, Refused};
use crate::bdev::{Data, IoBuf, IoStatus, Op, Request};
use crate::media::KeyFlags;
use crate::units::ByteRange;
use reactors::{Cx, Nanos};
use std::sync::atomic::Ordering;

/// [`BLOCK`] as a size in memory.
const BLOCK_BYTES: usize = 512;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK);

/// A read that waits for misses.
#[derive(Debug)]
pub(crate) struct ReadOp {
    pub(crate) client: usize,
    tag: u64,
    stamp: Stamp,
    /// First byte on the backing.
    offset: u64,
    /// Nothing for a prefetch.
    buf: Option<IoBuf>,
    /// Pieces that it still waits for.
    pending: usize,
    status: IoStatus,
}

/// A backing read in flight.
#[derive(Debug)]
pub(crate) struct Miss {
    /// Tells its placeholders from those of other misses.
    id: u64,
    range: ByteRange,
    begun: Nanos,
    /// Who wants which part.
    wanted: Vec<(usize, ByteRange)>,
    /// What it brings is kept, and others may join. Else it is one reader's own, for a second attempt or
    /// past the cache.
    keeps: bool,
}

/// What a walk over the index found that is not a hit.
#[derive(Debug, Default)]
struct Absent {
    gaps: Vec<ByteRange>,
    /// Gaps that are fetched without being kept.
    passes: Vec<ByteRange>,
    joins: Vec<(usize, ByteRange)>,
}

impl Absent {
    fn add_gap(&mut self, gap: ByteRange) {
        match self.gaps.last_mut() {
            Some(last) if last.end() == gap.start() => {
                *last = ByteRange::between(last.start(), gap.end());
            }
            _ => self.gaps.push(gap),
        }
    }
}

impl Absent {
    fn len(&self) -> usize {
        self.gaps.len() + self.passes.len() + self.joins.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a key answers for its blocks.
fn is_hit(shared: &Shared, key: &Key) -> bool {
    let flags = key.kind.flags();
    if flags.has_data() {
        return shared.is_current(key.segment, key.generation);
    }
    !flags.has(KeyFlags::INVALID)
}

/// Whether the backing has what `key` has, for certain. A lane does not follow the dirty tail, but a load
/// takes what lies before it for clean; and when nothing is dirty, what was logged as dirty has been
/// written back.
fn is_in_backing(shared: &Shared, key: &Key) -> bool {
    key.kind.flags().has(KeyFlags::CLEAN) || shared.dirty_bytes() == 0
}

fn part_of(buf: &mut IoBuf, offset: u64, part: ByteRange) -> Option<&mut [u8]> {
    let from = usize::try_from(part.start().checked_sub(offset)?).ok()?;
    let len = usize::try_from(part.len()).ok()?;
    buf.get_mut(from..from.checked_add(len)?)
}

/// Why a hit could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HitError {
    /// The medium can't read it.
    Unreadable,
    /// The bytes are not those that were written.
    Crc,
}

/// Copies what `key` has for `part` out of the medium; with `verify` only if its checksum fits.
fn copy_hit(
    shared: &Shared,
    key: &Key,
    part_block: u16,
    into: &mut [u8],
    verify: bool,
) -> Result<(), HitError> {
    if key.kind.flags().has(KeyFlags::ZERO) {
        into.fill(0);
        return Ok(());
    }
    let skipped = u32::from(key.trim) + u32::from(part_block - key.start);
    let skipped = skipped * u32::try_from(BLOCK).unwrap_or(512);
    if verify {
        return copy_verified(shared, key, skipped, into);
    }
    let at = shared.data_at(key.segment, key.segment_offset + skipped);
    shared.pmem.load(at, into).map_err(|_| HitError::Unreadable)
}

/// Copies what stands `skipped` bytes from the start of the original, if the CRC of all of it fits.
#[inline(never)]
fn copy_verified(
    shared: &Shared,
    key: &Key,
    skipped: u32,
    into: &mut [u8],
) -> Result<(), HitError> {
    let mut original = [0; DATA_KEY_BYTES];
    let (len, skipped) = (usize::from(key.whole) * BLOCK_BYTES, skipped as usize);
    let wanted = skipped..skipped + into.len();
    let at = shared.data_at(key.segment, key.segment_offset);
    let original = original.get_mut(..len).ok_or(HitError::Crc)?;
    let loaded = shared.pmem.load(at, original);
    loaded.map_err(|_| HitError::Unreadable)?;
    let fits = crate::media::crc(original) == key.crc;
    let bytes = original.get(wanted).filter(|_| fits).ok_or(HitError::Crc)?;
    into.copy_from_slice(bytes);
    Ok(())
}

/// Names the whole original of a key of the subtree that begins at `tree_start`.
fn post_of(tree_start: u64, key: &Key) -> Post {
    let start = tree_start + u64::from(key.start - key.trim) * BLOCK;
    Post {
        range: ByteRange::between(start, start + u64::from(key.whole) * BLOCK),
        ident: key.ident(),
    }
}

impl Lane {
    /// Serves a read or prefetch as far as the cache has it, and fetches the rest.
    pub(crate) fn read(&mut self, env: &mut Env, cx: &Cx, mut job: Job) {
        let range = job.request.range;
        let stamp = job.stamp();
        let mut buf = std::mem::take(&mut job.request.data).into_buf();
        let shared = &*env.shared;
        let mut status = IoStatus::Ok;
        let mut absent = Absent::default();
        let mut faults = Vec::new();
        let verify = shared.options.verify_reads();
        let (subtree, start, end) = Self::locate(shared, range);
        let tree_start = range.start() - range.start() % SUBTREE_BYTES;
        self.index.walk(subtree, start, end, |piece| {
            let part = ByteRange::between(
                tree_start + u64::from(piece.start) * BLOCK,
                tree_start + u64::from(piece.end) * BLOCK,
            );
            match piece.key {
                Some(key) if key.kind.is_placeholder() => {
                    absent.joins.push((key.segment.index(), part));
                }
                Some(key) if is_hit(shared, &key) => {
                    let Some(buf) = &mut buf else { return };
                    if key.kind.is_bad() {
                        status = IoStatus::IoError;
                        return;
                    }
                    let copied = part_of(buf, range.start(), part).map_or(Ok(()), |into| {
                        copy_hit(shared, &key, piece.start, into, verify)
                    });
                    if let Err(fault) = copied {
                        let is_lost = !is_in_backing(shared, &key);
                        faults.push((key, fault, is_lost));
                        if is_lost {
                            status = IoStatus::IoError;
                        } else {
                            absent.add_gap(part);
                        }
                    }
                }
                _ => absent.add_gap(part),
            }
        });
        if !faults.is_empty() {
            self.meet_faults(env, cx, tree_start, &faults);
        }
        self.sort_out(&env.shared, &job.request, &mut absent);
        if absent.is_empty() {
            let data = buf.map_or(Data::None, Data::Buf);
            env.reply(
                job.client,
                LaneDone {
                    tag: job.request.tag,
                    stamp,
                    status,
                    data,
                },
            );
            return;
        }
        let read = self.reads.insert(ReadOp {
            client: job.client,
            tag: job.request.tag,
            stamp,
            offset: range.start(),
            buf,
            pending: absent.len(),
            status,
        });
        self.fetch_absent(env, cx, read, absent);
    }

    /// Finds out what of the gaps is kept, and counts a read.
    fn sort_out(&mut self, shared: &Shared, request: &LaneRequest, absent: &mut Absent) {
        let policy = shared.options.policy();
        if !policy.is_plain() || !self.bypass.is_idle() {
            self.choose_passes(shared, request, policy, absent);
        }
        if request.op == LaneOp::Read {
            self.count_read(shared, request.range, absent);
        }
    }

    fn count_read(&self, shared: &Shared, range: ByteRange, absent: &Absent) {
        let stats = self.stats(shared);
        stats.reads.add(1);
        stats.read_bytes.add(range.len());
        let joins = absent.joins.iter().map(|(_, r)| r);
        let gaps = absent.gaps.iter().chain(&absent.passes);
        match gaps.chain(joins).map(|r| r.len()).sum() {
            0 => stats.hits.add(1),
            missing if missing == range.len() => stats.misses.add(1),
            _ => stats.partial_hits.add(1),
        }
    }

    /// Counts what hits found damaged. What only the cache has becomes BAD; the rest is a miss.
    fn meet_faults(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        tree_start: u64,
        faults: &[(Key, HitError, bool)],
    ) {
        let shared = env.shared.clone();
        for &(ref key, fault, is_lost) in faults {
            let post = post_of(tree_start, key);
            match fault {
                HitError::Crc => self.stats(&shared).crc_errors.add(1),
                HitError::Unreadable => {
                    self.stats(&shared).unreadable.add(1);
                    shared.suspect(key.segment);
                    self.leave_suspect(&shared);
                }
            }
            tracing::warn!(
                cache = %shared.name, range = %post.range, ?fault, is_lost,
                segment = shared.segments.id(key.segment).0,
                segment_offset = key.segment_offset,
                "a read found damaged data"
            );
            if is_lost {
                self.note_spoiled(post);
            }
        }
        self.replace_spoiled(env, cx);
    }

    fn fetch_absent(&mut self, env: &mut Env, cx: &Cx, read: usize, absent: Absent) {
        let stats = self.stats(&env.shared);
        stats.joins.add(absent.joins.len() as u64);
        for (miss, part) in absent.joins {
            match self.misses.get_mut(miss) {
                Some(miss) => miss.wanted.push((read, part)),
                // A placeholder without its miss would be our own bug; fetch it all the same.
                None => self.start_miss(env, cx, part, read, false),
            }
        }
        for gap in absent.gaps {
            self.start_miss(env, cx, gap, read, true);
        }
        for gap in absent.passes {
            self.start_miss(env, cx, gap, read, false);
        }
    }

    /// What of a read's gaps is fetched without being kept: by mode or cut-off, where a write is on its way
    /// past the cache, and before the n-th miss. A prefetch of what would not be kept is none.
    fn choose_passes(
        &mut self,
        shared: &Shared,
        request: &LaneRequest,
        policy: Policy,
        absent: &mut Absent,
    ) {
        let is_prefetch = request.op == LaneOp::Prefetch;
        if request.cut {
            self.stats(shared).cut_offs.add(1);
        }
        if !policy.mode().fills() || request.cut {
            absent.passes.append(&mut absent.gaps);
        } else {
            absent.passes = self.bypass.take_out(&mut absent.gaps);
            let admission = policy.admission();
            if !is_prefetch && admission > 1 {
                let gaps = std::mem::take(&mut absent.gaps);
                let (kept, passed) = gaps
                    .into_iter()
                    .partition(|gap| self.admission.count(*gap, admission));
                absent.gaps = kept;
                let passed: Vec<ByteRange> = passed;
                let stats = self.stats(shared);
                stats.fills_not_admitted.add(passed.len() as u64);
                absent.passes.extend(passed);
            }
        }
        if is_prefetch {
            absent.passes.clear();
        } else if !absent.passes.is_empty() {
            self.stats(shared).reads_around.add(1);
        }
    }

    /// Reads `range` from the backing for `read`.
    fn start_miss(&mut self, env: &mut Env, cx: &Cx, range: ByteRange, read: usize, keeps: bool) {
        let id = self.next_miss;
        self.next_miss += 1;
        let wanted = vec![(read, range)];
        let slot = self.misses.insert(Miss {
            id,
            range,
            begun: env.now,
            wanted,
            keeps,
        });
        if keeps {
            let (subtree, start, end) = Self::locate(&env.shared, range);
            let placeholder = Key {
                start,
                len: end - start,
                trim: 0,
                whole: end - start,
                segment: super::geometry::SegIx::of(slot),
                segment_offset: 0,
                generation: id,
                crc: 0,
                kind: Kind::PLACEHOLDER,
            };
            self.index.insert(subtree, placeholder);
        }
        let stats = self.stats(&env.shared);
        stats.backing_reads.add(1);
        stats.backing_read_bytes.add(range.len());
        let len = usize::try_from(range.len()).unwrap_or(0);
        let data = Data::Buf(env.pool.take(len));
        let tag = env.backing_tag(self.number, slot);
        env.submit_backing(
            cx,
            Request {
                tag,
                op: Op::Read,
                range,
                data,
            },
        );
    }

    /// A backing read has ended.
    pub(crate) fn miss_done(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        slot: usize,
        status: IoStatus,
        data: Data,
    ) {
        let Some(miss) = self.misses.try_remove(slot) else {
            return;
        };
        env.time_backing_read(miss.begun);
        let buf = data.into_buf();
        let Some(buf) = buf.filter(|_| status.is_ok()) else {
            self.miss_failed(env, cx, &miss, status);
            return;
        };
        for &(read, part) in &miss.wanted {
            if let Some(op) = self.reads.get_mut(read) {
                let from = usize::try_from(part.start() - miss.range.start()).unwrap_or(0);
                let offset = op.offset;
                let len = usize::try_from(part.len()).unwrap_or(0);
                if let Some(into) = op.buf.as_mut().and_then(|b| part_of(b, offset, part))
                    && let Some(bytes) = buf.get(from..from + len)
                {
                    into.copy_from_slice(bytes);
                }
            }
        }
        if miss.keeps {
            self.fill(env, cx, &miss, &buf);
        }
        env.pool.give(buf);
        for &(read, _) in &miss.wanted {
            self.piece_done(env, read, miss.begun, IoStatus::Ok);
        }
    }

    /// A failed read that was merged or joined is tried once more for each reader, on its own range:
    /// one bad sector fails nobody else.
    fn miss_failed(&mut self, env: &mut Env, cx: &Cx, miss: &Miss, status: IoStatus) {
        self.stats(&env.shared).backing_errors.add(1);
        if miss.keeps {
            let (subtree, start, end) = Self::locate(&env.shared, miss.range);
            self.index.remove_placeholders(subtree, start, end, miss.id);
        }
        let alone = matches!(miss.wanted.as_slice(), [(_, part)] if *part == miss.range);
        let final_status = if status.is_ok() {
            IoStatus::IoError
        } else {
            status
        };
        for &(read, part) in &miss.wanted {
            if !miss.keeps || alone || final_status == IoStatus::Aborted {
                self.piece_done(env, read, miss.begun, final_status);
            } else {
                self.start_miss(env, cx, part, read, false);
            }
        }
    }

    /// A read of the backing that was begun at `begun` has brought `read` a piece, or failed it.
    fn piece_done(&mut self, env: &mut Env, read: usize, begun: Nanos, status: IoStatus) {
        let Some(op) = self.reads.get_mut(read) else {
            return;
        };
        // It may have been on its way already.
        let since = begun.max(op.stamp.begun);
        op.stamp.waited_for_backing(env.now.since(since));
        op.status = op.status.and(status);
        op.pending -= 1;
        if op.pending > 0 {
            return;
        }
        if let Some(op) = self.reads.try_remove(read) {
            let data = op.buf.map_or(Data::None, Data::Buf);
            env.reply(
                op.client,
                LaneDone {
                    tag: op.tag,
                    stamp: op.stamp,
                    status: op.status,
                    data,
                },
            );
        }
    }

    /// Keeps what a miss brought, where nobody wrote since and while there is room.
    fn fill(&mut self, env: &mut Env, cx: &Cx, miss: &Miss, buf: &IoBuf) {
        let shared = env.shared.clone();
        let (subtree, start, end) = Self::locate(&shared, miss.range);
        let mut pieces = Vec::new();
        let is_ours = |key: &Key| {
            let any = fault::injected(Fault::FillByAnotherMiss);
            key.kind.is_placeholder() && (key.generation == miss.id || any)
        };
        self.index.walk(subtree, start, end, |piece| {
            let is_bypassed = |key: &Key| key.kind.flags().has(KeyFlags::INVALID);
            let despite = fault::injected(Fault::FillDespiteBypass)
                && piece.key.as_ref().is_none_or(is_bypassed);
            let key = piece.key.as_ref();
            if key.is_some_and(is_ours) || despite || fault::injected(Fault::FillOverWrite) {
                pieces.push((piece.start, piece.end));
            }
        });
        self.index.remove_placeholders(subtree, start, end, miss.id);
        if env.stopping || shared.read_only {
            return;
        }
        if !self.admits(&shared, miss.range) {
            self.stats(&shared).fills_unflushed.add(1);
            shared.want_backing_flush();
            return;
        }
        let tree_start = miss.range.start() - miss.range.start() % SUBTREE_BYTES;
        for (start, end) in pieces {
            let mut left = ByteRange::between(
                tree_start + u64::from(start) * BLOCK,
                tree_start + u64::from(end) * BLOCK,
            );
            while !left.is_empty() {
                let len = match self.fill_extent(env, cx, miss, left, buf) {
                    Ok(len) => len,
                    Err(refused) => {
                        self.stats(&shared).fills_skipped.add(1);
                        if matches!(refused, Refused::Wait(_)) {
                            env.shared.skipped_fill();
                        }
                        return;
                    }
                };
                left = ByteRange::between(left.start() + len, left.end());
            }
        }
    }

    fn fill_extent(
        &mut self,
        env: &mut Env,
        cx: &Cx,
        miss: &Miss,
        left: ByteRange,
        buf: &IoBuf,
    ) -> Result<u64, Refused> {
        if !self.waiting.is_empty() || env.shared.has_failed() {
            return Err(Wait::Space.into());
        }
        self.reserve_key(env, cx, LogRoom::Common)?;
        let space = match self.reserve_data(env, left.len().min(DATA_KEY_BYTES_MAX)) {
            Ok(space) => space,
            Err(wait) => {
                env.leave_queue.push(self.number);
                return Err(wait.into());
            }
        };
        let extent = ByteRange::between(left.start(), left.start() + u64::from(space.len));
        let from = usize::try_from(extent.start() - miss.range.start()).unwrap_or(0);
        let bytes = buf.get(from..from + space.len as usize).unwrap_or(&[]);
        self.put_extent(env, cx, extent, space, bytes, KeyFlags::CLEAN)?;
        self.stats(&env.shared).fills.add(1);
        Ok(u64::from(space.len))
    }
}

impl Shared {
    /// A fill found no room: GC shall make some, also below its threshold. Asked for once until it
    /// has.
    pub(crate) fn skipped_fill(&self) {
        if !self.maintenance.fill_skipped.swap(true, Ordering::SeqCst) {
            self.make_room();
        }
    }
}
