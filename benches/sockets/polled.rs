//! Non-blocking sockets, and how to find those that have something.

use super::exchange::{INPUT_BYTES, Server, Shape, Traffic, bodies};
use reactors::Nanos;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

/// When a target looks at a silent socket again: after a share of its silence, and so long at most
/// (`src/bdev/stream/pace.rs`).
const WAIT_SHARE: u64 = 16;
const WAIT_MAX_NS: u64 = 20_000;

/// Which sockets a round looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// All of them.
    Each,
    /// Those that are due by the rule of the targets.
    Paced,
    /// Those that one `epoll_wait` of the round names.
    Epoll,
    /// Those that were heard lately, each round; the others when an `epoll_wait` names them, of which
    /// there is one in 20 µs.
    SilentByEpoll,
}

struct Conversation {
    socket: TcpStream,
    traffic: Traffic,
    input: Vec<u8>,
    heard: Nanos,
    next: Nanos,
    is_in_set: bool,
}

impl Conversation {
    /// Takes all that is there; returns how many requests that completes.
    fn receive(&mut self) -> u32 {
        let mut requests = 0;
        loop {
            match rustix::io::read(&self.socket, &mut self.input[..]) {
                Ok(0) => panic!("the peer has left"),
                Ok(count) => {
                    requests += self.traffic.received(count);
                    if count < INPUT_BYTES {
                        return requests;
                    }
                }
                Err(Errno::AGAIN) => return requests,
                Err(error) => panic!("read: {error}"),
            }
        }
    }
}

pub(crate) struct Polled {
    look: Look,
    all: Vec<Conversation>,
    bodies: Vec<u8>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    in_set: usize,
    wait_next: Nanos,
}

impl Polled {
    pub(crate) fn new(look: Look, shape: Shape, sockets: Vec<TcpStream>, now: Nanos) -> Self {
        let start = |socket: TcpStream| {
            socket.set_nonblocking(true).unwrap();
            Conversation {
                socket,
                traffic: Traffic::new(shape),
                input: vec![0; INPUT_BYTES],
                heard: now,
                next: now,
                is_in_set: false,
            }
        };
        let mut polled = Self {
            look,
            events: Vec::with_capacity(sockets.len()),
            all: sockets.into_iter().map(start).collect(),
            bodies: bodies(shape),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            in_set: 0,
            wait_next: now,
        };
        if look == Look::Epoll {
            (0..polled.all.len()).for_each(|index| polled.put_in_set(index));
        }
        polled
    }

    fn put_in_set(&mut self, index: usize) {
        let one = &mut self.all[index];
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &one.socket, data, epoll::EventFlags::IN).unwrap();
        one.is_in_set = true;
        self.in_set += 1;
    }

    fn take_from_set(&mut self, index: usize) {
        let one = &mut self.all[index];
        epoll::delete(&self.epoll, &one.socket).unwrap();
        one.is_in_set = false;
        self.in_set -= 1;
    }

    /// Looks at one socket and answers what is there.
    fn turn(&mut self, index: usize, now: Nanos) -> u32 {
        let one = &mut self.all[index];
        let requests = one.receive();
        if requests > 0 {
            (one.heard, one.next) = (now, now);
        } else {
            let wait = now.since(one.heard) / WAIT_SHARE;
            one.next = now.after(wait.min(WAIT_MAX_NS));
        }
        one.traffic.send(&one.socket, &self.bodies);
        requests
    }

    /// Asks the set, and has a turn with those that it names.
    fn wait(&mut self, now: Nanos) -> u32 {
        let mut events = std::mem::take(&mut self.events);
        let spare = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&self.epoll, spare, Some(&Timespec::default())).unwrap();
        let mut requests = 0;
        for event in events.drain(..) {
            let index = usize::try_from(event.data.u64()).unwrap();
            requests += self.turn(index, now);
            if self.look == Look::SilentByEpoll {
                self.take_from_set(index);
            }
        }
        self.events = events;
        requests
    }

    fn round_of_hybrid(&mut self, now: Nanos) -> u32 {
        let mut requests = 0;
        for index in 0..self.all.len() {
            let one = &self.all[index];
            if !one.is_in_set {
                if now.since(one.heard) >= WAIT_SHARE * WAIT_MAX_NS {
                    self.put_in_set(index);
                } else if now >= one.next {
                    requests += self.turn(index, now);
                }
            }
        }
        if self.in_set > 0 && now >= self.wait_next {
            self.wait_next = now.after(WAIT_MAX_NS);
            requests += self.wait(now);
        }
        requests
    }

    /// What did not fit into a socket before.
    fn send_rest(&mut self) {
        for one in &mut self.all {
            if one.traffic.has_replies() {
                one.traffic.send(&one.socket, &self.bodies);
            }
        }
    }
}

impl Server for Polled {
    fn round(&mut self, now: Nanos) -> u32 {
        self.send_rest();
        match self.look {
            Look::Epoll => self.wait(now),
            Look::SilentByEpoll => self.round_of_hybrid(now),
            Look::Each | Look::Paced => (0..self.all.len())
                .map(|index| {
                    let is_due = self.look == Look::Each || now >= self.all[index].next;
                    if is_due { self.turn(index, now) } else { 0 }
                })
                .sum(),
        }
    }
}
