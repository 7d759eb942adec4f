//! Which request comes next: its operation, place and size, drawn from the job's generator.

use super::Workload;
use super::places::{Order, Places};
use super::rng::{Rng, share};
use crate::bdev::Op;
use crate::units::ByteRange;

/// The stream of a job's requests. Drawing one allocates nothing.
#[derive(Debug)]
pub(super) struct Requests {
    rng: Rng,
    /// None: in sequence.
    places: Option<Places>,
    start: u64,
    unit: u64,
    /// Bytes in use from `start` on: whole units.
    usable: u64,
    /// Where the next request of a sequence begins, from `start` on.
    next: u64,
    /// Reads among requests, in 2^32; None if all are alike.
    read_share: Option<u64>,
    reads_only: bool,
    sizes: Vec<Weighted>,
    fua: Every,
    flush: Every,
}

#[derive(Clone, Copy, Debug)]
struct Weighted {
    /// The size is chosen below this draw of 32 bits.
    below: u64,
    bytes: u64,
}

/// True once in so many times.
#[derive(Debug)]
struct Every {
    /// 0: never.
    period: u32,
    seen: u32,
}

impl Every {
    fn new(period: u32) -> Self {
        Self { period, seen: 0 }
    }

    fn count(&mut self) {
        if self.period > 0 {
            self.seen += 1;
        }
    }

    fn take(&mut self) -> bool {
        let due = self.period > 0 && self.seen >= self.period;
        if due {
            self.seen = 0;
        }
        due
    }
}

impl Requests {
    /// `places`: as [`Workload::places`] found them.
    pub(super) fn new(job: &Workload, places: u64) -> Self {
        let unit = u64::from(job.unit());
        let weights: u64 = job.sizes.iter().map(|size| u64::from(size.weight)).sum();
        let mut sum = 0;
        let weigh = |size: &super::workload::Size| {
            sum += u64::from(size.weight);
            Weighted {
                below: share(sum as f64 / weights.max(1) as f64),
                bytes: u64::from(size.bytes),
            }
        };
        Self {
            rng: Rng::new(job.seed),
            places: (job.order != Order::Sequential).then(|| Places::new(job.order, places)),
            start: job.range.start(),
            unit,
            usable: places * unit,
            next: job.first / unit % places * unit,
            read_share: (1..100)
                .contains(&job.read_percent)
                .then(|| share(f64::from(job.read_percent) / 100.0)),
            reads_only: job.read_percent >= 100,
            sizes: job.sizes.iter().map(weigh).collect(),
            fua: Every::new(job.fua_every),
            flush: Every::new(job.flush_every),
        }
    }

    /// Whether a flush comes before the next read or write; said once.
    #[inline]
    pub(super) fn take_flush(&mut self) -> bool {
        self.flush.take()
    }

    /// The next read or write.
    #[inline]
    pub(super) fn next(&mut self) -> (Op, ByteRange) {
        let op = self.next_op();
        let bytes = self.next_bytes();
        let at = match &self.places {
            Some(places) => places.draw(&mut self.rng) * self.unit,
            None => self.next,
        };
        // One that would leave the range ends where the range does.
        let at = at.min(self.usable - bytes);
        self.next = at + bytes;
        if self.next >= self.usable {
            self.next = 0;
        }
        let start = self.start + at;
        (op, ByteRange::between(start, start + bytes))
    }

    fn next_op(&mut self) -> Op {
        let reads = match self.read_share {
            Some(share) => self.rng.happens(share),
            None => self.reads_only,
        };
        if reads {
            return Op::Read;
        }
        self.fua.count();
        self.flush.count();
        Op::Write {
            fua: self.fua.take(),
        }
    }

    fn next_bytes(&mut self) -> u64 {
        if let [only] = self.sizes.as_slice() {
            return only.bytes;
        }
        let draw = self.rng.next() >> 32;
        let chosen = self.sizes.iter().find(|size| draw < size.below);
        chosen.map_or(self.unit, |size| size.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::Size;
    use super::*;

    fn job(change: impl FnOnce(&mut Workload)) -> Requests {
        let mut job = Workload::new(ByteRange::between(4096, 4096 + 64 * 4096), 4096);
        change(&mut job);
        let places = job.range.len() / u64::from(job.unit());
        Requests::new(&job, places)
    }

    #[test]
    fn a_sequence_wraps_around_and_starts_where_it_is_told() {
        let mut requests = job(|job| {
            job.order = Order::Sequential;
            job.first = 62 * 4096;
        });
        let starts: Vec<u64> = (0..4).map(|_| requests.next().1.start() / 4096).collect();
        assert_eq!(starts, [63, 64, 1, 2]);
    }

    #[test]
    fn reads_sizes_fua_and_flushes_come_as_often_as_they_should() {
        let mut requests = job(|job| {
            job.read_percent = 30;
            job.fua_every = 5;
            job.flush_every = 10;
            job.sizes = vec![
                Size {
                    bytes: 4096,
                    weight: 70,
                },
                Size {
                    bytes: 65536,
                    weight: 30,
                },
            ];
        });
        let (mut reads, mut fua, mut flushes, mut large) = (0, 0, 0, 0);
        for _ in 0..100_000 {
            flushes += u32::from(requests.take_flush());
            let (op, range) = requests.next();
            reads += u32::from(op == Op::Read);
            fua += u32::from(op == Op::Write { fua: true });
            large += u32::from(range.len() == 65536);
            assert!(range.start() >= 4096 && range.end() <= 65 * 4096);
            assert!(range.start().is_multiple_of(4096));
        }
        assert!((29_000..31_000).contains(&reads), "{reads}");
        assert!((29_000..31_000).contains(&large), "{large}");
        let writes = 100_000 - reads;
        assert_eq!(fua, writes / 5);
        assert!(flushes == writes / 10 || flushes + 1 == writes / 10);
    }

    #[test]
    fn the_same_seed_gives_the_same_requests() {
        let draw = |seed| {
            let mut requests = job(|job| {
                job.seed = seed;
                job.read_percent = 50;
            });
            (0..50).map(|_| requests.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
