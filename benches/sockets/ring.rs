//! io_uring: one multishot receive for each connection into buffers that all share, and replies as
//! entries of the same ring or by `sendmsg`.
#![expect(
    unsafe_code,
    reason = "entries point to memory that this file keeps until the ring is closed"
)]

use super::exchange::{INPUT_BYTES, PIECES_MAX, Server, Shape, Traffic, bodies};
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use memmap2::MmapMut;
use reactors::Nanos;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

/// Who sends replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replies {
    /// The ring.
    Ring,
    /// `sendmsg`, as without a ring.
    Calls,
}

/// Buffers that receives draw from, a power of two.
const BUFFERS: u16 = 64;
const GROUP: u16 = 1;
/// Room for an entry for each connection in both directions.
const ENTRIES: u32 = 512;

/// The ring of buffers that the kernel takes from.
struct Buffers {
    entries: MmapMut,
    memory: Vec<u8>,
    tail: u16,
}

impl Buffers {
    fn new() -> Self {
        let bytes = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        let mut buffers = Self {
            entries: MmapMut::map_anon(bytes).unwrap(),
            memory: vec![0; usize::from(BUFFERS) * INPUT_BYTES],
            tail: 0,
        };
        (0..BUFFERS).for_each(|id| buffers.give(id));
        buffers
    }

    /// Lets the kernel use the buffer (again).
    fn give(&mut self, id: u16) {
        let address = self.memory[usize::from(id) * INPUT_BYTES..].as_ptr() as u64;
        let entries = self.entries.as_mut_ptr().cast::<BufRingEntry>();
        // SAFETY: the mapping has BUFFERS entries and is a page's multiple, so it is aligned. The
        // kernel reads an entry only once the tail is beyond it, and writes none.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(address);
            entry.set_len(u32::try_from(INPUT_BYTES).unwrap());
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is a u16 within the first entry, which is initialised (zero is valid),
        // and both sides access it atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

struct Conversation {
    socket: TcpStream,
    traffic: Traffic,
    parts: Box<[IoSlice<'static>; PIECES_MAX]>,
    message: Box<libc::msghdr>,
    is_sending: bool,
}

/// A ring and the memory that it uses; the ring comes first, so it is closed first.
pub(crate) struct Ring {
    ring: IoUring,
    replies: Replies,
    all: Vec<Conversation>,
    buffers: Buffers,
    bodies: &'static [u8],
    /// Entries that the kernel is not done with.
    open: usize,
}

impl Ring {
    /// Fails where the kernel has no io_uring or forbids it, or has not what is wanted of it.
    pub(crate) fn new(replies: Replies, shape: Shape, sockets: Vec<TcpStream>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(4 * ENTRIES)
            .build(ENTRIES)?;
        let buffers = Buffers::new();
        let address = buffers.entries.as_ptr() as u64;
        // SAFETY: the entries stay mapped until the ring is closed (see the order of the fields).
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)?;
        }
        let start = |socket| Conversation {
            socket,
            traffic: Traffic::new(shape),
            parts: Box::new([IoSlice::new(&[]); PIECES_MAX]),
            // SAFETY: all zeroes are a message without anything.
            message: Box::new(unsafe { std::mem::zeroed() }),
            is_sending: false,
        };
        let mut ring = Self {
            ring,
            replies,
            all: sockets.into_iter().map(start).collect(),
            buffers,
            // A few hundred KiB that stay until the bench ends.
            bodies: bodies(shape).leak(),
            open: 0,
        };
        (0..ring.all.len()).for_each(|index| ring.push_receive(index));
        Ok(ring)
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points to belongs to `self`, stays where it is on the heap, and is not
        // changed before the entry's completion.
        unsafe { self.ring.submission().push(entry).unwrap() };
        self.open += 1;
    }

    fn push_receive(&mut self, index: usize) {
        let fd = Fd(self.all[index].socket.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, GROUP)
            .build()
            .user_data(2 * index as u64);
        self.push(&entry);
    }

    fn push_send(&mut self, index: usize) {
        let one = &mut self.all[index];
        let count = one.traffic.pieces(self.bodies, &mut one.parts);
        one.message.msg_iov = one.parts.as_mut_ptr().cast();
        one.message.msg_iovlen = count;
        one.is_sending = true;
        let fd = Fd(one.socket.as_raw_fd());
        let entry = opcode::SendMsg::new(fd, &raw const *one.message)
            .flags(libc::MSG_NOSIGNAL.unsigned_abs())
            .build()
            .user_data(2 * index as u64 + 1);
        self.push(&entry);
    }

    fn received(&mut self, index: usize, result: i32, flags: u32) -> u32 {
        if !cqueue::more(flags) {
            self.push_receive(index);
        }
        if let Some(id) = cqueue::buffer_select(flags) {
            self.buffers.give(id);
        }
        match usize::try_from(result) {
            Ok(0) => panic!("the peer has left"),
            Ok(count) => self.all[index].traffic.received(count),
            Err(_) if result == -libc::ENOBUFS => 0,
            Err(_) => panic!("receive: {}", io::Error::from_raw_os_error(-result)),
        }
    }

    fn sent(&mut self, index: usize, result: i32) {
        let Ok(count) = usize::try_from(result) else {
            panic!("send: {}", io::Error::from_raw_os_error(-result));
        };
        self.all[index].is_sending = false;
        self.all[index].traffic.sent(count);
    }

    /// Takes what is complete; returns how many requests that makes.
    fn reap(&mut self) -> u32 {
        let mut requests = 0;
        loop {
            let entry = self.ring.completion().next();
            let Some(entry) = entry else {
                return requests;
            };
            self.open -= usize::from(!cqueue::more(entry.flags()));
            let index = usize::try_from(entry.user_data() / 2).unwrap();
            match entry.user_data() % 2 {
                0 => requests += self.received(index, entry.result(), entry.flags()),
                _ => self.sent(index, entry.result()),
            }
        }
    }
}

impl Server for Ring {
    fn round(&mut self, _now: Nanos) -> u32 {
        // No system call if the kernel has nothing for us.
        let queue = self.ring.submission();
        let is_needed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if is_needed {
            self.ring.submit().unwrap();
        }
        let requests = self.reap();
        for index in 0..self.all.len() {
            let one = &mut self.all[index];
            if one.traffic.has_replies() && !one.is_sending {
                match self.replies {
                    Replies::Ring => self.push_send(index),
                    Replies::Calls => one.traffic.send(&one.socket, self.bodies),
                }
            }
        }
        if self.replies == Replies::Ring && !self.ring.submission().is_empty() {
            self.ring.submit().unwrap();
        }
        requests
    }
}

impl Drop for Ring {
    /// Ends all receives, and waits for what the kernel still has.
    fn drop(&mut self) {
        for one in &self.all {
            // It fails if the peer was faster.
            let _ = one.socket.shutdown(std::net::Shutdown::Both);
        }
        while self.open > 0 && self.ring.submit_and_wait(1).is_ok() {
            for entry in self.ring.completion() {
                self.open -= usize::from(!cqueue::more(entry.flags()));
            }
        }
    }
}
