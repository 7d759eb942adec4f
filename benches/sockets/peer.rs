//! The other side: a thread on the other core that always has so many requests under way.

use super::exchange::Shape;
use core_affinity::CoreId;
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

/// Begins on `core`, if there is one, and goes on until the server closes.
pub(crate) fn start(
    sockets: Vec<TcpStream>,
    shape: Shape,
    depth: usize,
    waits: Waits,
    core: Option<CoreId>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        if let Some(core) = core {
            core_affinity::set_for_current(core);
        }
        let requests = vec![1; shape.request * depth];
        let mut input = vec![0; INPUT_BYTES];
        let start = |socket| Conversation { socket, part: 0 };
        let mut all: Vec<_> = sockets.into_iter().map(start).collect();
        if !all.iter().all(|one| send_all(&one.socket, &requests)) {
            return;
        }
        let flags = match waits {
            Waits::Blocked => RecvFlags::empty(),
            Waits::Polling => RecvFlags::DONTWAIT,
        };
        loop {
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
