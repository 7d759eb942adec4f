//! What the ring costs that requests take between reactors, beside a queue for many producers:
//! `cargo bench -p reactors --bench ring`.
//!
//! `examples/ring_round_trip.rs` has more shapes; this tells two commits apart. Run as a test,
//! everything happens once.

use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use divan::{Bencher, black_box};
use reactors::ring::{Consumer, Producer, spsc};
use std::sync::LazyLock;
use std::thread;

const CAPACITY: usize = 128;
/// Items of a burst.
const BURST: u64 = 32;

/// As large as what requests travel in.
type Item = [u64; 8];

/// Those that this process may use; asked once, since a thread that is pinned is told its own.
static CORES: LazyLock<Vec<CoreId>> =
    LazyLock::new(|| core_affinity::get_core_ids().unwrap_or_default());

fn main() {
    divan::main();
}

/// One item in and out, on one thread: instructions without the transfer.
#[divan::bench]
fn push_and_pop(bencher: Bencher<'_, '_>) {
    let (mut producer, mut consumer) = spsc::<Item>(CAPACITY);
    bencher.bench_local(|| {
        let is_full = producer.push(black_box([7; 8])).is_err();
        (is_full, consumer.pop())
    });
}

#[divan::bench]
fn push_and_pop_array_queue(bencher: Bencher<'_, '_>) {
    let queue = ArrayQueue::<Item>::new(CAPACITY);
    bencher.bench_local(|| {
        let is_full = queue.push(black_box([7; 8])).is_err();
        (is_full, queue.pop())
    });
}

/// A look at a ring that is empty, as an idle reactor takes at each turn.
#[divan::bench]
fn look_at_an_empty_one(bencher: Bencher<'_, '_>) {
    let (_producer, mut consumer) = spsc::<Item>(CAPACITY);
    bencher.bench_local(|| black_box(&mut consumer).pop());
}

/// Sends `count` items to the other end and takes them back.
fn exchange(there: &mut Producer<Item>, back: &mut Consumer<Item>, count: u64) {
    let (mut sent, mut received) = (0, 0);
    while received < count {
        if sent < count && there.push([sent; 8]).is_ok() {
            sent += 1;
        }
        while back.pop().is_some() {
            received += 1;
        }
        std::hint::spin_loop();
    }
}

/// So many items to another core and back; not where there is one core only.
#[divan::bench(args = [1, BURST])]
fn round_trip(bencher: Bencher<'_, '_>, count: u64) {
    let &[here, elsewhere, ..] = CORES.as_slice() else {
        return;
    };
    core_affinity::set_for_current(here);
    let (mut there, mut other_in) = spsc::<Item>(CAPACITY);
    let (mut other_out, mut back) = spsc::<Item>(CAPACITY);
    let echo = thread::spawn(move || {
        core_affinity::set_for_current(elsewhere);
        // Until the first end of the ring is gone.
        while !other_in.is_orphaned() {
            while let Some(item) = other_in.pop() {
                // As many as there is room for are under way at most.
                let _ = other_out.push(item);
            }
            std::hint::spin_loop();
        }
    });
    bencher.bench_local(|| exchange(&mut there, &mut back, count));
    drop(there);
    assert!(echo.join().is_ok(), "the other end is well");
}
