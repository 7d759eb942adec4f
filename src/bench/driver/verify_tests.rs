//! Verification against devices that reorder, and against some that lie.

use super::tests::{Rig, malloc, whole};
use super::*;
use crate::bdev::BdevInfo;
use std::sync::Arc;

/// How a device lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Not at all.
    None,
    /// One write in 50 is not made.
    DropsWrites,
    /// One read in 50 is of the block before.
    WrongPlace,
    /// One byte of one read in 50 is another.
    FlipsBits,
}

/// A RAM disk that does what it is asked at some time between submission and completion, in any
/// order.
#[derive(Debug)]
struct Shuffling {
    disk: Arc<dyn Bdev>,
    lie: Lie,
}

#[derive(Debug)]
struct ShufflingChannel {
    below: Box<dyn Channel>,
    lie: Lie,
    waiting: Vec<Request>,
    done: Vec<Completion>,
}

impl Bdev for Shuffling {
    fn info(&self) -> Arc<BdevInfo> {
        self.disk.info()
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(ShufflingChannel {
            below: self.disk.open(cx)?,
            lie: self.lie,
            waiting: Vec::new(),
            done: Vec::new(),
        }))
    }
}

impl ShufflingChannel {
    fn execute(&mut self, cx: &Cx, mut request: Request) {
        let lies = cx.random().is_multiple_of(50);
        let writes = matches!(request.op, Op::Write { .. });
        match self.lie {
            Lie::DropsWrites if lies && writes => {
                let done = request.complete(crate::bdev::IoStatus::Ok);
                return self.done.push(done);
            }
            Lie::WrongPlace if lies && !writes && request.range.start() > 0 => {
                let (start, len) = (request.range.start(), request.range.len());
                request.range = ByteRange::between(start - len, start);
            }
            _ => {}
        }
        self.below.submit(cx, request);
        self.below.poll(cx, &mut self.done);
        let flips = self.lie == Lie::FlipsBits && lies && !writes;
        if flips && let Some(Data::Buf(buf)) = self.done.last_mut().map(|done| &mut done.data) {
            buf[100] ^= 4;
        }
    }
}

impl Channel for ShufflingChannel {
    fn submit(&mut self, _cx: &Cx, request: Request) {
        self.waiting.push(request);
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let pick = |len: usize| usize::try_from(cx.random()).unwrap() % (2 * len.max(1));
        let index = pick(self.waiting.len());
        let out = pick(self.done.len());
        if index < self.waiting.len() {
            let request = self.waiting.swap_remove(index);
            self.execute(cx, request);
        }
        if out < self.done.len() {
            done.push(self.done.swap_remove(out));
            return 1;
        }
        0
    }

    fn wake(&self) -> Wake {
        Wake::Now
    }
}

fn verified(lie: Lie) -> Outcome {
    let bdev = Shuffling {
        disk: Arc::new(malloc(64)),
        lie,
    };
    let size = |bytes, weight| super::super::Size { bytes, weight };
    let workload = Workload {
        read_percent: 50,
        depth: 16,
        sizes: vec![size(1024, 3), size(4096, 1)],
        requests_max: Some(5_000),
        verify: true,
        ..Workload::new(whole(64), 1024)
    };
    Rig::new().run(&bdev, &workload, 10)
}

#[test]
fn an_honest_device_that_reorders_what_overlaps_is_believed() {
    let outcome = verified(Lie::None);
    assert_eq!(outcome.mismatches, 0, "{:?}", outcome.first_mismatch);
    assert_eq!((outcome.requests, outcome.errors), (5_000, 0));
    let read_sectors = outcome.bytes / 512 - outcome.writes.len() * 2;
    assert!(outcome.verified > 64 && outcome.verified <= read_sectors + 64);
}

#[test]
fn a_device_that_lies_is_caught() {
    for lie in [Lie::DropsWrites, Lie::WrongPlace, Lie::FlipsBits] {
        let outcome = verified(lie);
        assert!(outcome.mismatches > 0, "{lie:?}");
        assert!(outcome.first_mismatch.is_some() && !outcome.is_good());
    }
}

#[test]
fn writes_alone_are_read_back_at_the_end() {
    let bdev = malloc(64);
    let workload = Workload {
        requests_max: Some(100),
        verify: true,
        ..Workload::new(whole(64), 512)
    };
    let outcome = Rig::new().run(&bdev, &workload, 10);
    assert_eq!((outcome.verified, outcome.mismatches), (64, 0));
    assert_eq!((outcome.requests, outcome.reads.len()), (100, 0));
}
