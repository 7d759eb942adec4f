//! What a bench job does.

use crate::bdev::BdevInfo;
use crate::units::ByteRange;

/// Which requests a job makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads at uniformly random blocks.
    RandRead,
    /// Writes at uniformly random blocks.
    RandWrite,
    /// Reads, each behind the one before, wrapping around.
    SeqRead,
    /// Writes, each behind the one before, wrapping around.
    SeqWrite,
}

impl Pattern {
    /// As fio spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::SeqRead => "read",
            Self::SeqWrite => "write",
        }
    }

    /// Whether it writes.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::RandWrite | Self::SeqWrite)
    }

    /// Whether the place of a request is drawn.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }
}

/// A job for [`crate::bench::start`].
#[derive(Clone, Debug)]
pub struct Workload {
    /// Which requests.
    pub pattern: Pattern,
    /// Bytes of each; a multiple of the device's block.
    pub block_bytes: u32,
    /// Requests under way at any time, 1 to 4096.
    pub depth: u32,
    /// The part of the device to touch; whole blocks of it are used.
    pub range: ByteRange,
    /// How long to run before anything is counted, in nanoseconds.
    pub warmup_ns: u64,
    /// How long to count, in nanoseconds.
    pub run_ns: u64,
    /// Ends earlier, after this many requests (warm-up included).
    pub requests_max: Option<u64>,
}

/// Why a job can't run on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// No requests, or more than a job keeps.
    #[error("depth {0} is not within 1 to 4096")]
    Depth(u32),
    /// The device can't do requests of this size.
    #[error("{block_bytes} bytes are not a multiple of the device's block of {device_block} bytes")]
    Block {
        /// What was asked for.
        block_bytes: u32,
        /// The device's block in bytes.
        device_block: u32,
    },
    /// Not one request fits.
    #[error("range {range} of a device of {device_bytes} bytes has no room for a request")]
    Range {
        /// What was asked for.
        range: ByteRange,
        /// The device's size.
        device_bytes: u64,
    },
    /// Writes to a device that takes none.
    #[error("the device is read-only")]
    ReadOnly,
}

impl Workload {
    /// Writes all of `range` once, in order: memory is there, and no read is of a hole.
    #[must_use]
    pub fn fill(range: ByteRange, block_bytes: u32) -> Self {
        Self {
            pattern: Pattern::SeqWrite,
            block_bytes,
            depth: 4,
            range,
            warmup_ns: 0,
            run_ns: u64::MAX,
            requests_max: Some(range.len() / u64::from(block_bytes.max(1))),
        }
    }

    /// The number of places for a request on a device, once the job is known to fit it.
    ///
    /// # Errors
    /// What doesn't fit.
    pub fn places(&self, info: &BdevInfo) -> Result<u64, WorkloadError> {
        if !(1..=4096).contains(&self.depth) {
            return Err(WorkloadError::Depth(self.depth));
        }
        if self.block_bytes == 0 || !self.block_bytes.is_multiple_of(info.block_size) {
            return Err(WorkloadError::Block {
                block_bytes: self.block_bytes,
                device_block: info.block_size,
            });
        }
        if self.pattern.writes() && info.read_only {
            return Err(WorkloadError::ReadOnly);
        }
        let places = self.range.len() / u64::from(self.block_bytes);
        let aligned = self
            .range
            .start()
            .is_multiple_of(u64::from(info.block_size));
        if places == 0 || !aligned || self.range.end() > info.bytes() {
            return Err(WorkloadError::Range {
                range: self.range,
                device_bytes: info.bytes(),
            });
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Supports;
    use uuid::Uuid;

    #[test]
    fn a_job_that_does_not_fit_is_refused() {
        let info = BdevInfo {
            name: "d".to_owned(),
            product_name: "test",
            uuid: Uuid::nil(),
            block_size: 512,
            blocks: 16,
            volatile_cache: false,
            read_only: true,
            supports: Supports::default(),
        };
        let good = Workload {
            pattern: Pattern::RandRead,
            block_bytes: 4096,
            depth: 1,
            range: ByteRange::between(0, 8192),
            warmup_ns: 0,
            run_ns: 1,
            requests_max: None,
        };
        assert_eq!(good.places(&info), Ok(2));
        let mut bad = good.clone();
        bad.depth = 0;
        assert_eq!(bad.places(&info), Err(WorkloadError::Depth(0)));
        let mut bad = good.clone();
        bad.block_bytes = 700;
        assert!(matches!(
            bad.places(&info),
            Err(WorkloadError::Block { .. })
        ));
        let mut bad = good.clone();
        bad.range = ByteRange::between(4096, 12288);
        assert!(matches!(
            bad.places(&info),
            Err(WorkloadError::Range { .. })
        ));
        let mut bad = good;
        bad.pattern = Pattern::SeqWrite;
        assert_eq!(bad.places(&info), Err(WorkloadError::ReadOnly));
    }
}
