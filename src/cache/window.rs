//! A writeback window: the dirty keys of a stretch of the log, what later ones leave of earlier ones,
//! merged into as few writes as possible.

use super::CacheError;
use super::bad::Post;
use super::key::KeyIdent;
use super::log_reader::LogView;
use super::shared::LogPos;
use crate::bdev::{Data, MemView, Op, PmemError, Request};
use crate::media::{self, KeyFlags};
use crate::units::ByteRange;
use std::collections::BTreeMap;

/// Most bytes of one backing write.
const WRITE_BYTES_MAX: u64 = 1 << 20;
/// [`DATA_KEY_BYTES_MAX`](super::geometry::DATA_KEY_BYTES_MAX) as a size in memory.
pub(crate) const DATA_KEY_BYTES: usize = 32 << 10;
const _: () = assert!(DATA_KEY_BYTES as u64 == super::geometry::DATA_KEY_BYTES_MAX);
/// Most pieces of memory of one backing write.
const PIECES_MAX: usize = 64;

/// A dirty key of the window, as it was logged.
#[derive(Clone, Copy, Debug)]
struct Source {
    range: ByteRange,
    ident: KeyIdent,
    /// Of the kset that it stands in.
    sequence: u64,
    flags: KeyFlags,
    crc: u32,
}

/// What is left of a source after later ones; keyed by its start.
#[derive(Clone, Copy, Debug)]
struct Part {
    end: u64,
    source: usize,
}

/// A key whose data are lost.
#[derive(Debug)]
pub(crate) struct Damage {
    /// Of its kset.
    pub(crate) sequence: u64,
    pub(crate) post: Post,
    /// What is wrong with the data.
    pub(crate) error: CacheError,
}

/// How far the data of a window are verified.
#[derive(Debug, Default)]
struct Checks {
    /// Sources that have been.
    verified: Vec<bool>,
    /// The parts are looked at in their order, from here on.
    next: u64,
    /// Damaged sources …
    damages: Vec<(usize, CacheError)>,
    /// … and how many of them are left out already.
    left_out: usize,
}

/// One backing write.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    range: ByteRange,
    /// Nothing for zeroes.
    pieces: Vec<(ByteRange, usize)>,
    flags: KeyFlags,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Window {
    sources: Vec<Source>,
    parts: BTreeMap<u64, Part>,
    checks: Checks,
    pub(crate) writes: Vec<Write>,
    /// Dirty bytes of all its keys, elided ones included.
    pub(crate) dirty_bytes: u64,
    pub(crate) elided_bytes: u64,
    pub(crate) merged: u64,
    pub(crate) ksets: u64,
    /// Sequence of the first of them.
    pub(crate) first_sequence: u64,
    /// Where the log goes on behind it.
    pub(crate) end: LogPos,
}

impl Window {
    /// A window without keys, behind which the log goes on at `end`.
    pub(crate) fn empty(end: LogPos) -> Self {
        Self {
            end,
            ..Self::default()
        }
    }

    /// Adds a key of kset `sequence`; it overwrites what earlier keys of the window have there. Keys
    /// that are not dirty don't.
    pub(crate) fn add(&mut self, view: &LogView, key: &media::Key, sequence: u64) {
        let flags = key.flags();
        if !flags.is_dirty() {
            return;
        }
        let start = key.offset.get();
        let end = start + u64::from(key.len.get());
        let range = ByteRange::between(start, end);
        let source = Source {
            range,
            ident: view.ident(key),
            sequence,
            flags,
            crc: key.crc.get(),
        };
        self.dirty_bytes += range.len();
        self.put(range, self.sources.len());
        self.sources.push(source);
    }

    /// Puts a source over what earlier ones have there.
    fn put(&mut self, range: ByteRange, source: usize) {
        self.clear(range);
        let part = Part {
            end: range.end(),
            source,
        };
        self.parts.insert(range.start(), part);
    }

    /// Cuts `range` out of the parts.
    fn clear(&mut self, range: ByteRange) {
        let (start, end) = (range.start(), range.end());
        if let Some((&at, &part)) = self.parts.range(..start).next_back()
            && part.end > start
        {
            self.parts.insert(at, Part { end: start, ..part });
            self.elided_bytes += part.end.min(end) - start;
            if part.end > end {
                self.parts.insert(end, part);
            }
        }
        while let Some((&at, &part)) = self.parts.range(start..end).next() {
            self.parts.remove(&at);
            self.elided_bytes += part.end.min(end) - at;
            if part.end > end {
                self.parts.insert(end, part);
            }
        }
    }

    /// Keys that it was made of.
    pub(crate) fn keys(&self) -> usize {
        self.sources.len()
    }

    /// Whether it is large enough: requests that wait for space wait for its end.
    pub(crate) fn is_full(&self, keys_max: usize, bytes_max: u64) -> bool {
        self.sources.len() >= keys_max || self.dirty_bytes >= bytes_max
    }

    /// Verifies the data of what is left, of at most `count` sources; true once all are. Damaged ones are
    /// left out: what they hid of earlier ones is written if that is good.
    pub(crate) fn verify(
        &mut self,
        view: &LogView,
        data_crc: bool,
        count: usize,
        bytes: &mut DataBytes,
    ) -> bool {
        let mut left = count;
        self.checks.verified.resize(self.sources.len(), false);
        loop {
            let checks = &mut self.checks;
            for (&at, part) in self.parts.range(checks.next..) {
                let source = &self.sources[part.source];
                if !source.flags.has_data() || checks.verified[part.source] {
                    continue;
                }
                checks.next = at;
                if left == 0 {
                    return false;
                }
                left -= 1;
                checks.verified[part.source] = true;
                if let Err(error) = verify(view, source, data_crc, bytes) {
                    checks.damages.push((part.source, error));
                }
            }
            if checks.damages.len() == checks.left_out {
                return true;
            }
            checks.left_out = checks.damages.len();
            checks.next = 0;
            self.leave_out();
        }
    }

    /// Sorts and merges what has been verified. Names the damaged sources in the order of the log.
    pub(crate) fn seal(&mut self) -> Vec<Damage> {
        self.merge();
        let mut damages = std::mem::take(&mut self.checks).damages;
        damages.sort_unstable_by_key(|&(source, _)| source);
        let name = |(source, error): (usize, CacheError)| {
            let Source {
                range,
                ident,
                sequence,
                ..
            } = self.sources[source];
            Damage {
                sequence,
                post: Post { range, ident },
                error,
            }
        };
        damages.into_iter().map(name).collect()
    }

    /// Makes the parts anew, of all sources but the damaged ones.
    fn leave_out(&mut self) {
        self.parts.clear();
        self.elided_bytes = 0;
        for source in 0..self.sources.len() {
            let damages = &self.checks.damages;
            if damages.iter().all(|(damaged, _)| *damaged != source) {
                self.put(self.sources[source].range, source);
            }
        }
    }

    /// Whether everything that is written can be read, as it was when it was verified.
    pub(crate) fn is_whole(&self, view: &LogView, data_crc: bool) -> bool {
        let pieces = self.writes.iter().flat_map(|write| &write.pieces);
        let mut sources = pieces.map(|&(_, source)| &self.sources[source]);
        let mut bytes = DataBytes::default();
        sources.all(|source| verify(view, source, data_crc, &mut bytes).is_ok())
    }

    fn merge(&mut self) {
        for (&start, part) in &self.parts {
            let source = self.sources[part.source];
            let range = ByteRange::between(start, part.end);
            let mergeable = self.writes.last().is_some_and(|last| {
                last.range.end() == start
                    && last.flags == source.flags
                    && (!source.flags.has_data()
                        || (last.range.len() + range.len() <= WRITE_BYTES_MAX
                            && last.pieces.len() < PIECES_MAX))
            });
            let piece = (range, part.source);
            match self.writes.last_mut() {
                Some(last) if mergeable => {
                    last.range = ByteRange::between(last.range.start(), part.end);
                    if source.flags.has_data() {
                        last.pieces.push(piece);
                    }
                    self.merged += 1;
                }
                _ => {
                    let pieces = if source.flags.has_data() {
                        vec![piece]
                    } else {
                        Vec::new()
                    };
                    self.writes.push(Write {
                        range,
                        pieces,
                        flags: source.flags,
                    });
                }
            }
        }
    }

    /// The request for write number `index`, with the data straight from the medium: the keys are
    /// between the tails, so their segments stay as they are until the request has ended.
    ///
    /// # Errors
    /// Data that the medium has lost.
    pub(crate) fn request(
        &self,
        view: &LogView,
        index: usize,
    ) -> Result<Option<Request>, PmemError> {
        let Some(write) = self.writes.get(index) else {
            return Ok(None);
        };
        let (op, data) = if write.flags.has(KeyFlags::ZERO) {
            let may_unmap = write.flags.has(KeyFlags::UNMAP);
            (
                Op::WriteZeroes {
                    may_unmap,
                    fua: false,
                },
                Data::None,
            )
        } else {
            let views: Result<Vec<MemView>, PmemError> = self
                .places(view, write)
                .map(|(at, len)| view.pmem.view(at, len))
                .collect();
            (Op::Write { fua: false }, Data::Gather(views?))
        };
        Ok(Some(Request {
            tag: index as u64,
            op,
            range: write.range,
            data,
        }))
    }

    /// Where on the medium the pieces of a write are, and their lengths.
    fn places(&self, view: &LogView, write: &Write) -> impl Iterator<Item = (u64, usize)> {
        write.pieces.iter().map(|&(range, source)| {
            let source = self.sources[source];
            let skipped = range.start() - source.range.start();
            let at = view.data_at(source.ident.segment, source.ident.segment_offset) + skipped;
            (at, usize::try_from(range.len()).unwrap_or(0))
        })
    }

    /// Whether the device has got the data of write number `index`, now that it has ended.
    ///
    /// # Errors
    /// The medium has lost some of them, perhaps before they were read.
    pub(crate) fn check(&self, view: &LogView, index: usize) -> Result<(), PmemError> {
        let Some(write) = self.writes.get(index) else {
            return Ok(());
        };
        self.places(view, write)
            .try_for_each(|(at, len)| view.pmem.check(at, len))
    }

    /// Bytes of write number `index`.
    pub(crate) fn bytes(&self, index: usize) -> u64 {
        self.writes.get(index).map_or(0, |write| write.range.len())
    }
}

/// Room for the data of one key, which is zeroed once and not for each key.
#[derive(Debug)]
pub(crate) struct DataBytes(Box<[u8; DATA_KEY_BYTES]>);

impl Default for DataBytes {
    fn default() -> Self {
        Self(Box::new([0; DATA_KEY_BYTES]))
    }
}

/// Whether the bytes of a source can be read, and, with `data_crc`, are those that were written.
fn verify(
    view: &LogView,
    source: &Source,
    data_crc: bool,
    bytes: &mut DataBytes,
) -> Result<(), CacheError> {
    let at = view.data_at(source.ident.segment, source.ident.segment_offset);
    let len = u32::try_from(source.range.len()).unwrap_or(0);
    let bytes = &mut bytes.0[..len as usize];
    view.pmem.load(at, bytes)?;
    if !data_crc {
        return Ok(());
    }
    let computed = media::crc(bytes);
    if computed == source.crc {
        return Ok(());
    }
    Err(CacheError::DataDamaged {
        segment: view.segments.id(source.ident.segment),
        segment_offset: source.ident.segment_offset,
        offset: source.range.start(),
        len,
        stored: source.crc,
        computed,
    })
}
