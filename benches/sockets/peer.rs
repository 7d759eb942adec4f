//! The other side: a thread on the other core that always has so many requests under way.

use super::exchange::Shape;
use core_affinity::CoreId;
use reactors::{Clock, MonotonicClock, Nanos};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::net::TcpStream;
use std::thread::JoinHandle;

/// How a peer waits for replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// In the kernel, on one connection after the other.
    Blocked,
    /// By asking again, as our initiators do.
    Polling,
}

/// Bytes that a peer receives at once.
const INPUT_BYTES: usize = 256 << 10;

struct Conversation {
    socket: TcpStream,
    /// Bytes of a reply that is not complete.
    part: usize,
}

/// Sends all of it; whether the server is still there.
fn send_all(socket: &TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(_) => return false,
        }
    }
    true
}

/// In this time there is one request on each slow connection.
const SLOW_NS: u64 = 1_000_000;

/// Connections on which there is a request now and then.
struct Slow {
    sockets: Vec<TcpStream>,
    next: usize,
    due: Nanos,
}

impl Slow {
    /// Sends the next request if it is time; whether the server is still there.
    fn turn(&mut self, request: &[u8], input: &mut [u8]) -> bool {
        if self.sockets.is_empty() {
            return true;
        }
        let now = MonotonicClock.now();
        if now < self.due {
            return true;
        }
        self.due = now.after(SLOW_NS / self.sockets.len() as u64);
        let socket = &self.sockets[self.next];
        self.next = (self.next + 1) % self.sockets.len();
        // The reply to the last one, of a millisecond ago.
        let left = matches!(recv(socket, input, RecvFlags::DONTWAIT), Ok((0, _)));
        !left && send_all(socket, request)
    }
}

/// How the peer asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habit {
    pub(crate) shape: Shape,
    /// Requests under way on each busy connection.
    pub(crate) depth: usize,
    pub(crate) waits: Waits,
    /// Where it runs.
    pub(crate) core: Option<CoreId>,
}

/// Begins, and goes on until the server closes.
pub(crate) fn start(busy: Vec<TcpStream>, slow: Vec<TcpStream>, habit: Habit) -> JoinHandle<()> {
    std::thread::spawn(move || {
        if let Some(core) = habit.core {
            core_affinity::set_for_current(core);
        }
        let shape = habit.shape;
        let requests = vec![1; shape.request * habit.depth];
        let mut input = vec![0; INPUT_BYTES];
        let start = |socket| Conversation { socket, part: 0 };
        let mut all: Vec<_> = busy.into_iter().map(start).collect();
        if !all.iter().all(|one| send_all(&one.socket, &requests)) {
            return;
        }
        let flags = match habit.waits {
            Waits::Blocked => RecvFlags::empty(),
            Waits::Polling => RecvFlags::DONTWAIT,
        };
        let mut slow = Slow {
            sockets: slow,
            next: 0,
            due: Nanos::default(),
        };
        loop {
            if !slow.turn(&requests[..shape.request], &mut input) {
                return;
            }
            for one in &mut all {
                let count = match recv(&one.socket, &mut input[..], flags) {
                    Ok((0, _)) => return,
                    Ok((count, _)) => count,
                    Err(Errno::AGAIN) => continue,
                    Err(_) => return,
                };
                let bytes = one.part + count;
                one.part = bytes % shape.reply();
                let replies = bytes / shape.reply();
                if !send_all(&one.socket, &requests[..replies * shape.request]) {
                    return;
                }
            }
        }
    })
}
