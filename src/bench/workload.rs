//! What a bench job does.

use super::places::Order;
use crate::bdev::BdevInfo;
use crate::units::ByteRange;

/// Sizes that requests of one job may have.
const SIZES_MAX: usize = 64;
/// Bytes that a request may have.
const BLOCK_BYTES_MAX: u32 = 16 << 20;

/// When the requests of a job start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// As soon as one before has completed: always `depth` of them under way.
    Closed,
    /// At set times, whatever the device does; latencies count from there. At most `depth` are
    /// under way, the others wait.
    Open {
        /// Requests a second, on average; above 0.
        rate: f64,
        /// How the times lie.
        arrival: Arrival,
    },
}

/// How the times lie at which requests of an open loop should start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// At equal distances.
    Constant,
    /// Independent of each other: distances are exponentially distributed.
    Poisson,
}

/// One size of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes; a multiple of the device's block.
    pub bytes: u32,
    /// How often, against the weights of the others.
    pub weight: u32,
}

/// A job for [`crate::bench::start`].
#[derive(Clone, Debug)]
pub struct Workload {
    /// Of 100 requests, how many read; the others write.
    pub read_percent: u32,
    /// Where they go.
    pub order: Order,
    /// Their sizes, at least one. Places are multiples of the smallest.
    pub sizes: Vec<Size>,
    /// Requests under way at any time, 1 to 4096.
    pub depth: u32,
    /// The part of the device to touch; whole blocks of the smallest size of it are used.
    pub range: ByteRange,
    /// Where in `range` a sequential job begins, in bytes: jobs that share it need not follow each
    /// other.
    pub first: u64,
    /// When requests start.
    pub load: Load,
    /// How long to run before anything is counted, in nanoseconds …
    pub warmup_ns: u64,
    /// … or for so many requests, if that is less.
    pub warmup_requests_max: Option<u64>,
    /// How long to count, in nanoseconds.
    pub run_ns: u64,
    /// Ends earlier, after this many requests (warm-up included).
    pub requests_max: Option<u64>,
    /// One write in so many is FUA; 0 for none.
    pub fua_every: u32,
    /// A flush after so many writes; 0 for none.
    pub flush_every: u32,
    /// From which its generator is seeded.
    pub seed: u64,
    /// Latencies over time are told for each so many nanoseconds; 0 for not at all.
    pub series_ns: u64,
    /// Tag every sector of the range before, check all reads, and read everything at the end.
    /// Nobody else may write there.
    pub verify: bool,
}

/// Why a job can't run on a device.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
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
    /// Larger than a request may be.
    #[error("{0} bytes are more than a request may have ({BLOCK_BYTES_MAX})")]
    TooLarge(u32),
    /// No size, too many, or all of weight 0.
    #[error("{0} sizes of requests: 1 to {SIZES_MAX} are wanted, one of a weight above 0")]
    Sizes(usize),
    /// Not one request fits.
    #[error("range {range} of a device of {device_bytes} bytes has no room for a request")]
    Range {
        /// What was asked for.
        range: ByteRange,
        /// The device's size.
        device_bytes: u64,
    },
    /// More than all requests.
    #[error("{0} % reads are more than all")]
    Reads(u32),
    /// The numbers of a distribution are out of their bounds.
    #[error("{0:?} is out of bounds")]
    Order(Order),
    /// A rate that no job can have.
    #[error("a rate of {0} requests a second is not within 0.001 to 1e9")]
    Rate(f64),
    /// A size that would leave parts of units untagged.
    #[error("with verification sizes must be multiples of the smallest: {bytes} is none of {unit}")]
    Unit {
        /// The size.
        bytes: u32,
        /// The smallest size.
        unit: u32,
    },
    /// Writes to a device that takes none.
    #[error("the device is read-only")]
    ReadOnly,
}

impl Workload {
    /// Requests of `bytes` over `range`: uniformly random writes, one at a time, for ever.
    #[must_use]
    pub fn new(range: ByteRange, bytes: u32) -> Self {
        Self {
            read_percent: 0,
            order: Order::Uniform,
            sizes: vec![Size { bytes, weight: 1 }],
            depth: 1,
            range,
            first: 0,
            load: Load::Closed,
            warmup_ns: 0,
            warmup_requests_max: None,
            run_ns: u64::MAX,
            requests_max: None,
            fua_every: 0,
            flush_every: 0,
            seed: 1,
            series_ns: 0,
            verify: false,
        }
    }

    /// Writes all of `range` once, in order: memory is there, and no read is of a hole.
    #[must_use]
    pub fn fill(range: ByteRange, block_bytes: u32) -> Self {
        Self {
            order: Order::Sequential,
            depth: 4,
            requests_max: Some(range.len() / u64::from(block_bytes.max(1))),
            ..Self::new(range, block_bytes)
        }
    }

    /// As fio spells it.
    #[must_use]
    pub fn rw(&self) -> &'static str {
        match (self.order.is_random(), self.read_percent) {
            (true, 0) => "randwrite",
            (true, 100) => "randread",
            (true, _) => "randrw",
            (false, 0) => "write",
            (false, 100) => "read",
            (false, _) => "rw",
        }
    }

    /// The largest of the sizes.
    #[must_use]
    pub fn bytes_max(&self) -> u32 {
        self.sizes.iter().map(|size| size.bytes).max().unwrap_or(0)
    }

    /// The smallest of the sizes: places are multiples of it.
    #[must_use]
    pub fn unit(&self) -> u32 {
        self.sizes.iter().map(|size| size.bytes).min().unwrap_or(0)
    }

    /// The number of places for a request on a device, once the job is known to fit it.
    ///
    /// # Errors
    /// What doesn't fit.
    pub fn places(&self, info: &BdevInfo) -> Result<u64, WorkloadError> {
        if !(1..=4096).contains(&self.depth) {
            return Err(WorkloadError::Depth(self.depth));
        }
        self.check_sizes(info)?;
        if self.read_percent > 100 {
            return Err(WorkloadError::Reads(self.read_percent));
        }
        if !self.order.is_valid() {
            return Err(WorkloadError::Order(self.order));
        }
        if let Load::Open { rate, .. } = self.load
            && !(0.001..=1e9).contains(&rate)
        {
            return Err(WorkloadError::Rate(rate));
        }
        if (self.read_percent < 100 || self.verify) && info.read_only {
            return Err(WorkloadError::ReadOnly);
        }
        let places = self.range.len() / u64::from(self.unit());
        let aligned = self
            .range
            .start()
            .is_multiple_of(u64::from(info.block_size));
        let has_room = places * u64::from(self.unit()) >= u64::from(self.bytes_max());
        if places == 0 || !has_room || !aligned || self.range.end() > info.bytes() {
            return Err(WorkloadError::Range {
                range: self.range,
                device_bytes: info.bytes(),
            });
        }
        Ok(places)
    }

    fn check_sizes(&self, info: &BdevInfo) -> Result<(), WorkloadError> {
        let used = self.sizes.iter().any(|size| size.weight > 0);
        if !used || self.sizes.len() > SIZES_MAX {
            return Err(WorkloadError::Sizes(self.sizes.len()));
        }
        for size in &self.sizes {
            if size.bytes == 0 || !size.bytes.is_multiple_of(info.block_size) {
                return Err(WorkloadError::Block {
                    block_bytes: size.bytes,
                    device_block: info.block_size,
                });
            }
            if size.bytes > BLOCK_BYTES_MAX {
                return Err(WorkloadError::TooLarge(size.bytes));
            }
            if self.verify && !size.bytes.is_multiple_of(self.unit()) {
                return Err(WorkloadError::Unit {
                    bytes: size.bytes,
                    unit: self.unit(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Supports;
    use uuid::Uuid;

    fn info() -> BdevInfo {
        BdevInfo {
            name: "d".to_owned(),
            product_name: "test",
            uuid: Uuid::nil(),
            block_size: 512,
            blocks: 16,
            volatile_cache: false,
            read_only: true,
            supports: Supports::default(),
        }
    }

    #[test]
    fn a_job_that_does_not_fit_is_refused() {
        let info = info();
        let good = Workload {
            read_percent: 100,
            ..Workload::new(ByteRange::between(0, 8192), 4096)
        };
        assert_eq!(good.places(&info), Ok(2));
        let refused = |change: &dyn Fn(&mut Workload)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.places(&info).unwrap_err()
        };
        let size = |bytes, weight| Size { bytes, weight };
        assert_eq!(refused(&|job| job.depth = 0), WorkloadError::Depth(0));
        assert!(matches!(
            refused(&|job| job.sizes = vec![size(700, 1)]),
            WorkloadError::Block { .. }
        ));
        assert_eq!(
            refused(&|job| job.sizes = vec![size(512, 0)]),
            WorkloadError::Sizes(1)
        );
        assert_eq!(refused(&|job| job.sizes.clear()), WorkloadError::Sizes(0));
        assert!(matches!(
            refused(&|job| job.range = ByteRange::between(4096, 12288)),
            WorkloadError::Range { .. }
        ));
        assert!(matches!(
            refused(&|job| job.sizes = vec![size(512, 1), size(16384, 1)]),
            WorkloadError::Range { .. }
        ));
        assert_eq!(
            refused(&|job| job.read_percent = 99),
            WorkloadError::ReadOnly
        );
        assert_eq!(
            refused(&|job| job.read_percent = 101),
            WorkloadError::Reads(101)
        );
        let zipf = Order::Zipf { theta: -1.0 };
        assert_eq!(refused(&|job| job.order = zipf), WorkloadError::Order(zipf));
        let load = Load::Open {
            rate: 0.0,
            arrival: Arrival::Constant,
        };
        assert_eq!(refused(&|job| job.load = load), WorkloadError::Rate(0.0));
    }

    #[test]
    fn a_job_has_the_name_that_fio_gives_it() {
        let mut job = Workload::new(ByteRange::between(0, 8192), 4096);
        assert_eq!(job.rw(), "randwrite");
        job.read_percent = 70;
        assert_eq!(job.rw(), "randrw");
        job.order = Order::Sequential;
        assert_eq!(job.rw(), "rw");
        job.read_percent = 100;
        assert_eq!(job.rw(), "read");
    }
}
