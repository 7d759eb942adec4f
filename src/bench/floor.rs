//! What the machine itself takes: the floors under every figure, measured as requests are, by a
//! clock reading on either side of each operation, on the reactor that runs the jobs.
//!
//! Each function keeps its reactor busy until it is done; nothing else should run there.

use super::outcome::histogram;
use super::rng::Rng;
use crate::bdev::{IoBuf, Pmem, PmemError};
use hdrhistogram::Histogram;
use reactors::Cx;
use reactors::ring::{Consumer, Producer, spsc};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Operations before anything is recorded, so that code and tables are warm.
const WARM: u32 = 1000;
/// Operations between two looks at the time limit are few enough: one clock reading serves both.
const RING: usize = 256;
/// Words of what goes through the ring: about what a request has on the data path.
const WORDS: usize = 9;

/// Why a floor has no number.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] PmemError),
    /// There is no histogram for it.
    #[error("no histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// Nobody answered on the other core.
    #[error("no answer from the other core")]
    Silent,
}

/// What is done to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryWork {
    /// Copy to it, and a barrier.
    Store,
    /// The same with the CRC of what is copied.
    StoreCrc,
    /// Copy from it.
    Load,
}

/// Times `work` on random places of `medium`, each `bytes` long and a multiple of it. Its barrier must be
/// a fence: the reactor would wait for any other.
///
/// # Errors
/// If the medium fails.
pub fn memory(
    cx: &Cx,
    medium: &dyn Pmem,
    work: MemoryWork,
    bytes: u32,
    run_ns: u64,
) -> Result<Histogram<u64>, FloorError> {
    let mut times = histogram()?;
    let mut rng = Rng::new(cx.random());
    let places = (medium.bytes() / u64::from(bytes)).max(1);
    let mut buf = IoBuf::zeroed(bytes as usize);
    buf.chunks_mut(8)
        .for_each(|word| word.copy_from_slice(&rng.next().to_le_bytes()[..word.len()]));
    let (mut warm, mut crc) = (WARM, 0);
    let end = cx.read_clock().after(run_ns);
    loop {
        let at = rng.below(places) * u64::from(bytes);
        let from = cx.read_clock();
        match work {
            MemoryWork::Store => medium.store_data(at, &buf)?,
            MemoryWork::StoreCrc => crc ^= medium.store_data_crc(at, &buf)?,
            MemoryWork::Load => medium.load(at, &mut buf)?,
        }
        if work != MemoryWork::Load {
            medium.barrier_wait()?;
        }
        let to = cx.read_clock();
        if warm > 0 {
            warm -= 1;
            continue;
        }
        times.saturating_record(to.since(from));
        if to >= end {
            std::hint::black_box((crc, &buf));
            return Ok(times);
        }
    }
}

/// The gaps between readings of the clock in a loop that does nothing else: what a reading costs,
/// and how long the machine takes the core away.
///
/// # Errors
/// Never for our bounds.
pub fn jitter(cx: &Cx, run_ns: u64) -> Result<Histogram<u64>, FloorError> {
    let mut gaps = histogram()?;
    for _ in 0..WARM {
        std::hint::black_box(cx.read_clock());
    }
    let mut last = cx.read_clock();
    let end = last.after(run_ns);
    while last < end {
        let now = cx.read_clock();
        gaps.saturating_record(now.since(last));
        last = now;
    }
    Ok(gaps)
}

/// One end of a round trip: sends, and times the answer.
#[derive(Debug)]
pub struct Ping {
    to: Producer<[u64; WORDS]>,
    from: Consumer<[u64; WORDS]>,
    stop: Arc<AtomicBool>,
}

/// The other: answers until it is stopped.
#[derive(Debug)]
pub struct Echo {
    from: Consumer<[u64; WORDS]>,
    to: Producer<[u64; WORDS]>,
    stop: Arc<AtomicBool>,
}

/// Both ends, through rings of the type that requests and completions take.
#[must_use]
pub fn round_trip() -> (Ping, Echo) {
    let (ping_to, echo_from) = spsc(RING);
    let (echo_to, ping_from) = spsc(RING);
    let stop = Arc::new(AtomicBool::new(false));
    let ping = Ping {
        to: ping_to,
        from: ping_from,
        stop: Arc::clone(&stop),
    };
    let echo = Echo {
        from: echo_from,
        to: echo_to,
        stop,
    };
    (ping, echo)
}

impl Echo {
    /// Keeps this thread busy until the other end has gone.
    pub fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(item) = self.from.pop() {
                // There is room: one item is under way.
                let _ = self.to.push(item);
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Ping {
    /// Times round trips, one at a time.
    ///
    /// # Errors
    /// [`FloorError::Silent`] if the other end does not answer within ten seconds.
    pub fn run(mut self, cx: &Cx, run_ns: u64) -> Result<Histogram<u64>, FloorError> {
        const PATIENCE_NS: u64 = 10_000_000_000;
        let mut times = histogram()?;
        let mut warm = WARM;
        // The other end may come late.
        let mut end = cx.read_clock().after(PATIENCE_NS);
        let mut number = 0_u64;
        loop {
            let from = cx.read_clock();
            number += 1;
            // There is room: one item is under way.
            let _ = self.to.push([number; WORDS]);
            let mut spins = 0_u32;
            while self.from.pop().is_none() {
                std::hint::spin_loop();
                spins += 1;
                if spins & 0xffff == 0 && cx.read_clock().since(from) > PATIENCE_NS {
                    return Err(FloorError::Silent);
                }
            }
            let to = cx.read_clock();
            if warm > 0 {
                warm -= 1;
                end = to.after(run_ns);
                continue;
            }
            times.saturating_record(to.since(from));
            if to >= end {
                return Ok(times);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Bdev;
    use crate::bdev::pmem::{PmemBdev, PmemConfig};
    use reactors::{IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorId};

    fn reactor() -> Reactor {
        let config = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Poll,
            seed: 1,
        };
        Reactor::new(&config, Arc::new(MonotonicClock), Quiescence::new(1)).unwrap()
    }

    #[test]
    fn every_floor_has_a_number_and_the_medium_is_really_used() {
        let reactor = reactor();
        let mut config = PmemConfig::new("m", "anon:");
        config.size = Some(1 << 20);
        let medium = PmemBdev::open(config).unwrap().pmem().unwrap();
        for work in [MemoryWork::Load, MemoryWork::StoreCrc, MemoryWork::Store] {
            let times = memory(reactor.cx(), &*medium, work, 4096, 1_000_000).unwrap();
            assert!(times.min() > 0 && !times.is_empty(), "{work:?}");
            let mut page = vec![0; 4096];
            medium.load(4096, &mut page).unwrap();
            let is_written = page.iter().any(|byte| *byte != 0);
            assert_eq!(is_written, work != MemoryWork::Load, "{work:?}");
        }
        let gaps = jitter(reactor.cx(), 1_000_000).unwrap();
        assert!(!gaps.is_empty());
    }

    #[test]
    fn a_round_trip_takes_two_threads_and_ends() {
        let (ping, echo) = round_trip();
        let other = std::thread::spawn(move || echo.run());
        let times = ping.run(reactor().cx(), 1_000_000).unwrap();
        assert!(times.min() > 0);
        other.join().unwrap();
    }
}
