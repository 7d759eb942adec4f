//! What does it cost to send an item to another core and get it back? And a round of an idle loop?
//!
//! `cargo run --release -p reactors --example ring_round_trip [ROUND_TRIPS]` pins one thread to
//! each of the first two cores it may use, and prints nanoseconds per item, the best and the median
//! of 101 batches of that many round trips: through a pair of SPSC rings and a pair of
//! `ArrayQueue`s, for items of 8 and 64 bytes, one and 32 of them in flight; then per
//! `Reactor::step` that finds nothing.

#[cfg(not(loom))]
mod bench {
    use crossbeam_queue::ArrayQueue;
    use reactors::ring::{Consumer, Producer, spsc};
    use reactors::*;
    use std::sync::Arc;
    use std::thread;

    const BATCHES: u64 = 101;
    const CAPACITY: usize = 128;

    /// One end of a two-way link.
    trait Link<T>: Send + 'static {
        fn send(&mut self, item: T) -> Result<(), T>;
        fn receive(&mut self) -> Option<T>;
    }

    impl<T: Send + 'static> Link<T> for (Producer<T>, Consumer<T>) {
        fn send(&mut self, item: T) -> Result<(), T> {
            self.0.push(item)
        }
        fn receive(&mut self) -> Option<T> {
            self.1.pop()
        }
    }

    impl<T: Send + 'static> Link<T> for (Arc<ArrayQueue<T>>, Arc<ArrayQueue<T>>) {
        fn send(&mut self, item: T) -> Result<(), T> {
            self.0.push(item)
        }
        fn receive(&mut self) -> Option<T> {
            self.1.pop()
        }
    }

    fn spsc_pair<T: Send + 'static>() -> (impl Link<T>, impl Link<T>) {
        let (to_there, from_here) = spsc(CAPACITY);
        let (to_here, from_there) = spsc(CAPACITY);
        ((to_there, from_there), (to_here, from_here))
    }

    fn array_queue_pair<T: Send + 'static>() -> (impl Link<T>, impl Link<T>) {
        let there = Arc::new(ArrayQueue::new(CAPACITY));
        let here = Arc::new(ArrayQueue::new(CAPACITY));
        ((there.clone(), here.clone()), (here, there))
    }

    fn send<T>(link: &mut impl Link<T>, mut item: T) {
        while let Err(back) = link.send(item) {
            item = back;
            std::hint::spin_loop();
        }
    }

    fn receive<T>(link: &mut impl Link<T>) -> T {
        loop {
            match link.receive() {
                Some(item) => return item,
                None => std::hint::spin_loop(),
            }
        }
    }

    /// Hundredths of a nanosecond per item, of each batch.
    fn round_trips<const WORDS: usize>(
        (mut here, mut there): (impl Link<[u64; WORDS]>, impl Link<[u64; WORDS]>),
        trips: u64,
        depth: u64,
        cores: [core_affinity::CoreId; 2],
    ) -> Vec<u64> {
        core_affinity::set_for_current(cores[0]);
        let bursts = (trips / depth).max(1);
        let items = bursts * depth;
        let echo = thread::spawn(move || {
            core_affinity::set_for_current(cores[1]);
            for _ in 0..items * BATCHES {
                let item = receive(&mut there);
                send(&mut there, item);
            }
        });
        let mut batches = Vec::new();
        for _ in 0..BATCHES {
            let start = MonotonicClock.now();
            for _ in 0..bursts {
                for item in 0..depth {
                    send(&mut here, [item; WORDS]);
                }
                for item in 0..depth {
                    assert_eq!(receive(&mut here), [item; WORDS]);
                }
            }
            batches.push(MonotonicClock.now().since(start) * 100 / items);
        }
        assert!(echo.join().is_ok());
        batches
    }

    /// Hundredths of a nanosecond per round of a loop with `pollers` idle pollers.
    fn idle_rounds(pollers: u32, rounds: u64) -> std::io::Result<Vec<u64>> {
        struct Idle;
        impl Poller for Idle {
            fn poll(&mut self, _cx: &Cx, _budget: u32) -> u32 {
                0
            }
        }
        let config = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Poll,
            seed: 1,
        };
        let mut reactor = Reactor::new(&config, Arc::new(MonotonicClock), Quiescence::new(1))?;
        for _ in 0..pollers {
            reactor.cx().add_poller("idle", Box::new(Idle));
        }
        let batch = |_| {
            let start = MonotonicClock.now();
            for _ in 0..rounds {
                reactor.step();
            }
            MonotonicClock.now().since(start) * 100 / rounds
        };
        Ok((0..BATCHES).map(batch).collect())
    }

    fn print(what: &str, mut batches: Vec<u64>) {
        batches.sort_unstable();
        let best = batches.first().copied().unwrap_or(0);
        let median = batches.get(batches.len() / 2).copied().unwrap_or(0);
        let (best_whole, best_rest) = (best / 100, best % 100);
        let (whole, rest) = (median / 100, median % 100);
        println!("{what:<44} {best_whole:>5}.{best_rest:02} {whole:>6}.{rest:02} ns");
    }

    fn compare<const WORDS: usize>(trips: u64, depth: u64, cores: [core_affinity::CoreId; 2]) {
        let bytes = WORDS * 8;
        let rings = round_trips::<WORDS>(spsc_pair(), trips, depth, cores);
        print(&format!("SPSC rings, {bytes} B, {depth} in flight"), rings);
        let queues = round_trips::<WORDS>(array_queue_pair(), trips, depth, cores);
        print(
            &format!("ArrayQueues, {bytes} B, {depth} in flight"),
            queues,
        );
    }

    pub(crate) fn main() -> std::io::Result<()> {
        let trips = std::env::args()
            .nth(1)
            .and_then(|text| text.parse().ok())
            .filter(|trips| *trips > 0)
            .unwrap_or(5_000);
        println!("{:<44} {:>8} {:>9}", "", "best", "median");
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        if let [first, second, ..] = cores.as_slice() {
            for depth in [1, 32] {
                compare::<1>(trips, depth, [*first, *second]);
                compare::<8>(trips, depth, [*first, *second]);
            }
        } else {
            println!("round trips need two cores");
        }
        for pollers in [0, 4] {
            let rounds = idle_rounds(pollers, trips)?;
            print(&format!("idle round, {pollers} pollers"), rounds);
        }
        Ok(())
    }
}

#[cfg(not(loom))]
fn main() -> std::io::Result<()> {
    bench::main()
}

#[cfg(loom)]
fn main() {}
