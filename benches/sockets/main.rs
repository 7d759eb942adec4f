//! How a reactor should use its sockets, asked over loopback: `cargo bench --bench sockets`, with a part of
//! a row's name to measure only such rows.
//!
//! One thread serves and polls, as a reactor does, and one on another core keeps requests under way. Every
//! way of a row runs once in turn, and that so often: a figure is the median of its runs, with the least
//! and the greatest, and ratios are to the row's first way in the same turn. `busy` is the server's time in
//! rounds that found something, for each request: what is left of the core for all else. Run as a test,
//! each runs once for a few requests.
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]
#![allow(clippy::panic, reason = "a bench stops at the first surprise")]

mod bodies;
mod exchange;
mod peer;
mod polled;
mod ring;
mod sys;

use bodies::{Bodies, Way};
use core_affinity::CoreId;
use exchange::{READ, Server, Shape, WRITE, pairs};
use peer::{Habit, Waits};
use polled::{Look, Polled};
use reactors::{Clock, MonotonicClock};
use ring::{Replies, Ring};
use sys::Notices;

const IS_TOY: bool = cfg!(debug_assertions);
const TURNS: usize = if IS_TOY { 1 } else { 7 };
const WARM_UP_NS: u64 = if IS_TOY { 1 } else { 30_000_000 };
const RUN_NS: u64 = if IS_TOY { u64::MAX } else { 200_000_000 };
/// After so many requests a run of a test ends.
const REQUESTS_MAX: u64 = if IS_TOY { 100 } else { u64::MAX };

/// How a server finds requests and sends replies.
#[derive(Clone, Copy, Debug)]
enum Use {
    Sockets(Look),
    Ring(Replies),
}

const USES: [(&str, Use); 7] = [
    ("recv, paced", Use::Sockets(Look::Paced)),
    ("recv, each round", Use::Sockets(Look::Each)),
    ("epoll each round", Use::Sockets(Look::Epoll)),
    (
        "epoll after 320 µs",
        Use::Sockets(Look::SilentByEpoll {
            silent_ns: 320_000,
            wait_ns: 20_000,
        }),
    ),
    (
        "epoll after 20 µs (ours)",
        Use::Sockets(Look::SilentByEpoll {
            silent_ns: 20_000,
            wait_ns: 4000,
        }),
    ),
    ("io_uring", Use::Ring(Replies::Ring)),
    ("io_uring recv, sendmsg", Use::Ring(Replies::Calls)),
];

const WAYS: [(&str, Way); 4] = [
    ("copy, sendmsg (ours)", Way::Copied),
    ("sendmsg from the map", Way::Mapped),
    ("MSG_ZEROCOPY", Way::ZeroCopy),
    ("sendfile", Way::File),
];

/// What one run has shown.
#[derive(Clone, Copy, Debug)]
struct Sample {
    requests_per_s: f64,
    busy_ns: f64,
}

/// What a row measures: connections that are busy, with so many requests under way on each, slow, with
/// a request a millisecond, and idle.
#[derive(Clone, Copy, Debug)]
struct Row {
    shape: Shape,
    depth: usize,
    busy: usize,
    slow: usize,
    idle: usize,
    waits: Waits,
}

fn rows() -> Vec<Row> {
    let row = |shape, depth, busy, idle| Row {
        shape,
        depth,
        busy,
        slow: 0,
        idle,
        waits: Waits::Polling,
    };
    let mut rows = vec![];
    for shape in [READ, WRITE] {
        rows.push(Row {
            waits: Waits::Blocked,
            ..row(shape, 1, 1, 0)
        });
        for depth in [1, 32] {
            rows.extend([1, 8, 32].map(|busy| row(shape, depth, busy, 0)));
        }
    }
    for depth in [1, 32] {
        rows.extend([8, 32, 128].map(|idle| row(READ, depth, 1, idle)));
        rows.push(Row {
            slow: 32,
            ..row(READ, depth, 1, 0)
        });
    }
    rows
}

impl Row {
    fn name(&self) -> String {
        let others = match (self.slow, self.idle) {
            (0, 0) => String::new(),
            (0, idle) => format!(" beside {idle} idle"),
            (slow, _) => format!(" beside {slow} slow"),
        };
        let waits = match self.waits {
            Waits::Blocked => ", the client sleeps",
            Waits::Polling => "",
        };
        let Self {
            shape, depth, busy, ..
        } = self;
        format!("{}, {busy} × QD{depth}{others}{waits}", shape.name)
    }

    /// One run; none where the kernel has not what it takes.
    fn run(&self, how: Use, other: Option<CoreId>) -> Option<Sample> {
        let (sockets, mut others) = pairs(self.busy + self.slow + self.idle);
        let idle = others.split_off(self.busy + self.slow);
        let slow = others.split_off(self.busy);
        let now = MonotonicClock.now();
        let mut server: Box<dyn Server> = match how {
            Use::Sockets(look) => Box::new(Polled::new(look, self.shape, sockets, now)),
            Use::Ring(replies) => match Ring::new(replies, self.shape, sockets) {
                Ok(ring) => Box::new(ring),
                Err(error) => {
                    println!("  no io_uring here: {error}");
                    return None;
                }
            },
        };
        let habit = Habit {
            shape: self.shape,
            depth: self.depth,
            waits: self.waits,
            core: other,
        };
        let peer = peer::start(others, slow, habit);
        let sample = measure(&mut *server);
        drop(server);
        peer.join().unwrap();
        drop(idle);
        Some(sample)
    }
}

/// Polls the server for the length of a run.
fn measure(server: &mut dyn Server) -> Sample {
    let clock = MonotonicClock;
    let start = clock.now();
    let mut now = start;
    while now.since(start) <= WARM_UP_NS {
        server.round(now);
        now = clock.now();
    }
    let start = now;
    let (mut busy_ns, mut requests) = (0, 0_u64);
    while now.since(start) < RUN_NS && requests < REQUESTS_MAX {
        let handled = server.round(now);
        let then = std::mem::replace(&mut now, clock.now());
        if handled > 0 {
            busy_ns += now.since(then);
            requests += u64::from(handled);
        }
    }
    assert!(requests > 0, "nobody asked for anything");
    Sample {
        requests_per_s: requests as f64 * 1e9 / now.since(start) as f64,
        busy_ns: busy_ns as f64 / requests as f64,
    }
}

/// Median, least and greatest.
fn spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(greatest)) = (sorted.first(), sorted.last()) else {
        return "-".to_owned();
    };
    let median = sorted[sorted.len() / 2];
    format!("{median:.digits$} ({least:.digits$}–{greatest:.digits$})")
}

/// Prints a row: each way's figures, and its ratios to the first way of the same turn.
fn print(name: &str, ways: &[(&str, Vec<Option<Sample>>)]) {
    println!("\n{name}");
    println!(
        "  {:24} {:32} {:24} {:20} busy of it",
        "", "requests/s", "of the first", "busy, ns"
    );
    for (way, samples) in ways {
        let ratio = |value: fn(&Sample) -> f64| {
            let pairs = samples.iter().zip(&ways[0].1);
            let ratios = pairs
                .filter_map(|(own, first)| Some(value(own.as_ref()?) / value(first.as_ref()?)));
            spread(ratios, 2)
        };
        let present = || samples.iter().flatten();
        println!(
            "  {way:24} {:32} {:24} {:20} {}",
            spread(present().map(|sample| sample.requests_per_s), 0),
            ratio(|sample| sample.requests_per_s),
            spread(present().map(|sample| sample.busy_ns), 0),
            ratio(|sample| sample.busy_ns),
        );
    }
}

/// Runs each of `all` in turn, and that so often.
fn in_turns<'a, T: Copy>(
    all: &[(&'a str, T)],
    mut run: impl FnMut(T) -> Option<Sample>,
) -> Vec<(&'a str, Vec<Option<Sample>>)> {
    let mut found: Vec<_> = all.iter().map(|(name, _)| (*name, vec![])).collect();
    for _ in 0..TURNS {
        for ((_, samples), (_, how)) in found.iter_mut().zip(all) {
            samples.push(run(*how));
        }
    }
    found
}

/// One run that sends bodies of so many bytes; what the kernel told goes to `notices`.
fn send_bodies(
    (way, body, depth): (Way, usize, usize),
    other: Option<CoreId>,
    notices: &mut Notices,
) -> Sample {
    let (mut sockets, peers) = pairs(1);
    let shape = Shape {
        name: "",
        request: bodies::REQUEST,
        head: bodies::HEAD,
        body,
    };
    let mut server = Bodies::new(way, sockets.remove(0), body, depth);
    let habit = Habit {
        shape,
        depth,
        waits: Waits::Polling,
        core: other,
    };
    let peer = peer::start(peers, vec![], habit);
    let sample = measure(&mut server);
    notices.add(server.notices);
    drop(server);
    peer.join().unwrap();
    sample
}

fn main() {
    // Flags are cargo's.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    // Asked before this thread is bound: afterwards there is only its own.
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let other = cores.get(1).copied();
    if let (Some(first), Some(_)) = (cores.first(), other) {
        core_affinity::set_for_current(*first);
    }
    for row in rows() {
        let name = row.name();
        if is_wanted(&name) {
            print(&name, &in_turns(&USES, |how| row.run(how, other)));
        }
    }
    for depth in [1, 32] {
        for kib in [4, 32, 128] {
            let name = format!("bodies of {kib} KiB, QD{depth}");
            if is_wanted(&name) {
                let mut told = Notices::default();
                let run = |way| Some(send_bodies((way, kib << 10, depth), other, &mut told));
                print(&name, &in_turns(&WAYS, run));
                println!(
                    "  MSG_ZEROCOPY: of {} notices, {} say that the kernel has copied",
                    told.done, told.copied
                );
            }
        }
    }
}
