//! What can go wrong with a pool or a cache.

use crate::bdev::{BdevError, PmemError};
use crate::media::{KsetError, SlotError, SuperblockError};
use crate::units::SegmentId;

/// An error of a pool or cache. Each variant carries the place and both values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The medium failed.
    #[error("the pool's medium failed: {0}")]
    Medium(#[from] PmemError),
    /// A bdev could not be opened.
    #[error(transparent)]
    Bdev(#[from] BdevError),
    /// Neither superblock is good.
    #[error("no good superblock: first {first}; second {second}")]
    Superblock {
        /// What is wrong with the first.
        first: SuperblockError,
        /// What is wrong with the second.
        second: SuperblockError,
    },
    /// A copy of the superblock can't be read, and may have named a cache that the other one does not.
    #[error(
        "one superblock can't be read, and segment {segment} is of a cache that the other one does not \
         name: it may be in use"
    )]
    TableLost {
        /// Segment of the pool.
        segment: SegmentId,
    },
    /// The medium holds a pool already.
    #[error("the medium holds a formatted pool already; `force` would erase it")]
    Formatted,
    /// The medium holds something else.
    #[error("the medium is not empty and holds no pool; `force` would erase it")]
    Foreign,
    /// The pool says it is larger than its medium.
    #[error("the pool needs {needed} bytes, its medium has {available}")]
    MediumTooSmall {
        /// What the superblock says.
        needed: u64,
        /// What is there.
        available: u64,
    },
    /// Neither copy of an item is good.
    #[error("metadata corrupt: {item} at {at:#x}: first copy {first}; second copy {second}")]
    Metadata {
        /// Which item.
        item: &'static str,
        /// Place of the first copy, bytes.
        at: u64,
        /// What is wrong with the first.
        first: SlotError,
        /// What is wrong with the second.
        second: SlotError,
    },
    /// An item is good, but speaks of something else.
    #[error("metadata corrupt: {item} at {at:#x} says {found}, expected {expected}")]
    Identity {
        /// Which item.
        item: &'static str,
        /// Its place, bytes.
        at: u64,
        /// What it says.
        found: u64,
        /// What it should say.
        expected: u64,
    },
    /// An item is good, but says what no pool of ours says.
    #[error("metadata corrupt: {item} at {at:#x} has the impossible value {value}")]
    Impossible {
        /// Which item.
        item: &'static str,
        /// Its place, bytes.
        at: u64,
        /// What it says.
        value: u64,
    },
    /// The log is broken where it must not be.
    #[error("log damaged in segment {segment} at offset {offset}: {reason}")]
    LogDamaged {
        /// Segment of the pool.
        segment: SegmentId,
        /// Bytes from the start of its data.
        offset: u32,
        /// What is wrong.
        reason: LogDamage,
    },
    /// Dirty data do not match their checksum.
    #[error(
        "data of {offset}+{len} in segment {segment} at {segment_offset} are damaged: \
         CRC is {stored:#010x}, the bytes give {computed:#010x}"
    )]
    DataDamaged {
        /// Segment of the pool.
        segment: SegmentId,
        /// Bytes from the start of its data.
        segment_offset: u32,
        /// Logical offset, bytes.
        offset: u64,
        /// Length, bytes.
        len: u32,
        /// What the key says.
        stored: u32,
        /// What is there.
        computed: u32,
    },
    /// A parameter that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// No cache, or no pool, of that name.
    #[error("no cache {0:?} in this pool")]
    NoSuchCache(String),
    /// The name or the UUID is taken.
    #[error("cache {0:?} exists already")]
    Exists(String),
    /// Not enough segments.
    #[error("{wanted} segments wanted, {free} are free")]
    NoSegments {
        /// What was asked for.
        wanted: u32,
        /// What there is.
        free: u32,
    },
    /// The backing is not the recorded one.
    #[error("backing {name:?} is not the recorded one: {what} is {found}, recorded {recorded}")]
    BackingChanged {
        /// Name of the bdev.
        name: String,
        /// What differs.
        what: &'static str,
        /// What it is.
        found: String,
        /// What was recorded.
        recorded: String,
    },
    /// The backing holds something else than it did at the last clean stop.
    #[error(
        "backing {name:?} was changed since the cache was stopped: {part} had CRC {recorded:#010x}, \
         now it has {found:#010x}; `force` takes it as it is, and keeps only what it lacks"
    )]
    BackingAltered {
        /// Name of the bdev.
        name: String,
        /// Which of the samples differs.
        part: &'static str,
        /// The CRC when the cache was stopped.
        recorded: u32,
        /// What its bytes give now.
        found: u32,
    },
    /// The backing could not be compared with its sample.
    #[error(
        "backing {name:?} can't be compared with what it was when the cache was stopped: {why}; \
         `force` takes it as it is, and keeps only what it lacks"
    )]
    BackingUnread {
        /// Name of the bdev.
        name: String,
        /// What was in the way.
        why: &'static str,
    },
    /// A barrier of the pool's medium has failed in this process.
    #[error(
        "a barrier of the pool's medium has failed: the pool is read-only until it is loaded anew"
    )]
    PoolFailed,
    /// The pool is only looked at.
    #[error("the pool is loaded read-only")]
    PoolReadOnly,
    /// A salvaged cache is only looked at.
    #[error("the cache is loaded for salvage, and is read-only")]
    Salvaged,
    /// A scrub is under way.
    #[error("a check of it is under way already")]
    Scrubbing,
    /// A resize is under way.
    #[error("it is being resized to {target} segments; resize it to what it has to call that off")]
    Resizing {
        /// Its target.
        target: u32,
    },
    /// Something uses it.
    #[error("{0}")]
    Busy(String),
    /// Not possible in this version or configuration.
    #[error("{0}")]
    NotSupported(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// A step took too long.
    #[error("{what} did not end within {seconds} s")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// Dirty data would be lost, or the knowledge of which data are lost already.
    #[error(
        "{dirty_bytes} dirty bytes would be lost; repeat that number to discard them{}",
        bad_too(*bad_bytes)
    )]
    Dirty {
        /// How many.
        dirty_bytes: u64,
        /// BAD bytes, of which the backing has an older value.
        bad_bytes: u64,
    },
}

fn bad_too(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        _ => format!("; {bytes} bytes are BAD: they are lost, and the backing has older ones"),
    }
}

impl CacheError {
    /// Whether there is no pool at all, rather than a damaged one.
    #[must_use]
    pub fn is_no_pool(&self) -> bool {
        let absent = |error: &SuperblockError| *error == SuperblockError::Magic;
        matches!(self, Self::Superblock { first, second } if absent(first) && absent(second))
    }
}

/// Why the log is held to be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogDamage {
    /// Not a kset though one was promised to be there.
    #[error("expected kset {expected}: {error}")]
    Kset {
        /// The sequence.
        expected: u64,
        /// What is wrong with the bytes.
        error: KsetError,
    },
    /// A good kset, but not the expected one.
    #[error("expected kset {expected}, found {found}")]
    Sequence {
        /// What was promised.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A kset of a run that the cache's control knows nothing of: the control item was lost.
    #[error("a kset of incarnation {found}, though the control says that {current} is the newest")]
    Incarnation {
        /// What the control says.
        current: u32,
        /// What the kset says.
        found: u32,
    },
    /// The place of the next kset can't be read, and nothing tells that none was durable there.
    #[error(
        "what stands where kset {expected} would can't be read, and nothing proves that it was not \
         written and durable"
    )]
    Unreadable {
        /// The sequence.
        expected: u64,
    },
    /// A later kset proves that this one was durable.
    #[error("kset {expected} is missing, though a later one shows that the log went on to {proof}")]
    Hole {
        /// The sequence that is missing.
        expected: u64,
        /// The durable sequence that a later kset carries, or the recorded one.
        proof: u64,
    },
    /// A key that cannot be.
    #[error("kset {sequence}, key {index}: {field} has the impossible value {value}")]
    Key {
        /// Its kset.
        sequence: u64,
        /// Its place in it.
        index: u32,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// An epoch that cannot be.
    #[error("kset {sequence}: epoch has the impossible value {epoch}")]
    Epoch {
        /// The kset.
        sequence: u64,
        /// What it says.
        epoch: u64,
    },
    /// LAST leads nowhere.
    #[error("LAST leads to segment {next}, which is no log segment of this cache")]
    Last {
        /// Where it leads.
        next: u32,
    },
}
