//! What a check has found: plain data.

use serde::Serialize;
use uuid::Uuid;

/// The outcome of [`super::check_pool`].
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Sizes and places; nothing if both superblocks are damaged.
    pub pool: Option<PoolCheck>,
    /// The caches of its table.
    pub caches: Vec<CacheCheck>,
    /// What is damaged, in the order in which it was found; at most 1000 are listed.
    pub damages: Vec<Finding>,
    /// How many there are in all.
    pub damages_total: u64,
    /// What is odd but loses nothing; at most 1000 are listed.
    pub warnings: Vec<Finding>,
    /// How many there are in all.
    pub warnings_total: u64,
}

impl CheckReport {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damages_total == 0
    }
}

/// What the superblock says.
#[derive(Clone, Debug, Serialize)]
pub struct PoolCheck {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its format.
    pub format: u32,
    /// Bytes of the medium.
    pub medium_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Where segment 0 begins.
    pub data_start: u64,
    /// How many segments there are …
    pub segments: u32,
    /// … how many of them belong to no cache …
    pub segments_free: u32,
    /// … and how many are marked bad.
    pub segments_bad: u32,
}

/// A cache. What could not be read is absent.
#[derive(Clone, Debug, Serialize)]
pub struct CacheCheck {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Name of the backing as last seen.
    pub backing_name: String,
    /// Its identity.
    pub backing_uuid: Uuid,
    /// Its size.
    pub backing_bytes: u64,
    /// The segment that holds the control items.
    pub first_segment: u32,
    /// Lanes.
    pub lanes: u32,
    /// Logical block, bytes.
    pub block_bytes: u32,
    /// The options that are kept.
    pub options: OptionsCheck,
    /// How often it has been loaded.
    pub incarnation: Option<u32>,
    /// The first sequence of the last run.
    pub first_sequence: Option<u64>,
    /// Whether the last run stopped cleanly. If not, the staging file may hold further keys, which
    /// a check does not look at.
    pub stopped_clean: Option<bool>,
    /// The sequence up to which an idle or stopped cache has noted its log as durable.
    pub durable_sequence: Option<u64>,
    /// Whether writeback was in a window that spans epochs.
    pub between_boundaries: Option<bool>,
    /// A flush of it failed behind writes that had bypassed the cache.
    pub backing_flush_failed: Option<bool>,
    /// Where replay begins.
    pub key_tail: Option<TailCheck>,
    /// Where writeback begins.
    pub dirty_tail: Option<TailCheck>,
    /// The walk along the log.
    pub log: Option<LogFigures>,
    /// Its segments.
    pub segments: SegmentFigures,
}

/// Options of a cache, in the words of the RPC methods.
#[derive(Clone, Debug, Serialize)]
pub struct OptionsCheck {
    /// wb, wt, wa, wo or pt.
    pub mode: &'static str,
    /// flush or write.
    pub durability: &'static str,
    /// adaptive, strict or relaxed.
    pub writeback_order: &'static str,
    /// Keys carry the CRC of their data.
    pub data_crc: bool,
    /// Hits verify it.
    pub verify_reads: bool,
    /// 0 to 90.
    pub gc_percent: u32,
    /// Age limit of an open kset, ms.
    pub kset_flush_ms: u32,
    /// Requests that writeback keeps under way.
    pub writeback_depth: u32,
    /// MiB/s; 0 for no limit.
    pub writeback_rate_mbps: u32,
    /// Younger keys wait, ms.
    pub writeback_delay_ms: u32,
    /// Lag at which adaptive order gives way, s.
    pub writeback_lag_s: u32,
    /// Writeback is paced from here …
    pub dirty_low_percent: u32,
    /// … and unbounded from here.
    pub dirty_high_percent: u32,
    /// 0 for never.
    pub no_space_timeout_s: u32,
    /// never, full or always.
    pub seq_cutoff_policy: &'static str,
    /// A stream longer than this is cut off.
    pub seq_cutoff_kib: u32,
    /// On which miss a block is kept.
    pub admission: u32,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TailCheck {
    /// Segment of the pool.
    pub segment: u32,
    /// Bytes from the start of the segment's data.
    pub offset: u32,
    /// Sequence of the kset that is expected there.
    pub sequence: u64,
    /// Epoch of the last kset before it.
    pub epoch: u64,
}

/// What the walk from the key tail has met.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogFigures {
    /// Ksets with keys.
    pub ksets: u64,
    /// LASTs.
    pub lasts: u64,
    /// Log segments, in order.
    pub segments: Vec<u32>,
    /// The first sequence …
    pub first_sequence: u64,
    /// … and the one behind the last.
    pub end_sequence: u64,
    /// Where the walk ended: segment …
    pub end_segment: u32,
    /// … and offset within its data.
    pub end_offset: u32,
    /// Keys, of all kinds.
    pub keys: u64,
    /// Keys whose segment has been released since.
    pub stale_keys: u64,
    /// Keys that writeback owes to the backing.
    pub dirty_keys: u64,
    /// Their bytes: what a load reports as dirty.
    pub dirty_bytes: u64,
    /// Keys of a clean copy.
    pub clean_keys: u64,
    /// Keys of zeroes.
    pub zero_keys: u64,
    /// Keys whose data were given up as lost …
    pub bad_keys: u64,
    /// … and the bytes of them that nothing has replaced since: reads of these fail.
    pub bad_bytes: u64,
    /// The data that live keys point at.
    pub data: DataFigures,
}

/// Data of live keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DataFigures {
    /// Keys with data whose segment is still theirs.
    pub live_keys: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Keys whose bytes have been read and compared with their CRC.
    pub verified_keys: u64,
    /// Of these, keys whose bytes are not what was written.
    pub damaged_keys: u64,
}

/// Segments of a cache, by what the log makes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SegmentFigures {
    /// All.
    pub total: u32,
    /// Those that the walk went through.
    pub log: u32,
    /// Those that keys of the log refer to, stale keys included.
    pub data: u32,
    /// Those that nothing refers to: free, or in the log's reserve.
    pub unreferenced: u32,
    /// References in all.
    pub references: u64,
}

/// What kind of thing a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A copy of the superblock.
    Superblock,
    /// The medium: too short, or can't be read.
    Medium,
    /// To whom a segment belongs.
    SegmentInfo,
    /// A segment's generation.
    Generation,
    /// The START of a log segment.
    LogStart,
    /// A control item of a cache.
    ControlItem,
    /// Key tail or dirty tail: good, but leads nowhere.
    Tail,
    /// A kset or LAST.
    Log,
    /// A good kset that says what can't be.
    Key,
    /// Data that are not what was written.
    Data,
}

/// A range of the logical device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LostRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// Whose it is; absent if the pool's.
    pub cache: Option<String>,
    /// Where it is, bytes from the start of the medium.
    pub at: u64,
    /// Segment of the pool, if it is within one.
    pub segment: Option<u32>,
    /// What is wrong.
    pub what: String,
    /// What is lost by it.
    pub lost: String,
    /// The logical ranges that are lost, where they are known.
    pub ranges: Vec<LostRange>,
}
