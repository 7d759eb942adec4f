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
/// So many looks that found something, without such a silence in between, make a stream, for which nobody
/// need wake the reactor.
const STREAM_LOOKS: u32 = 32;

/// Which sockets a round looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// All of them.
    Each,
    /// Those that are due by the rule of the targets.
    Paced,
    /// Those that one `epoll_wait` of the round names.
    Epoll,
    /// By that rule those that were heard within `silent_ns`; the others when an `epoll_wait` names
    /// them, of which there is one in `wait_ns` at most.
    SilentByEpoll { silent_ns: u64, wait_ns: u64 },
}

struct Conversation {
    socket: TcpStream,
    traffic: Traffic,
    input: Vec<u8>,
    heard: Nanos,
    next: Nanos,
    streak: u32,
    is_in_set: bool,
    is_ready: bool,
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
                streak: 0,
                is_in_set: false,
                is_ready: false,
            }
        };
        let mut polled = Self {
            look,
            events: Vec::with_capacity(sockets.len()),
            all: sockets.into_iter().map(start).collect(),
            bodies: bodies(shape),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            wait_next: now,
        };
        if look != Look::Each {
            (0..polled.all.len()).for_each(|index| polled.put_in_set(index));
        }
        polled
    }

    fn put_in_set(&mut self, index: usize) {
        let one = &mut self.all[index];
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &one.socket, data, epoll::EventFlags::IN).unwrap();
        one.is_in_set = true;
    }

    fn take_from_set(&mut self, index: usize) {
        let one = &mut self.all[index];
        epoll::delete(&self.epoll, &one.socket).unwrap();
        one.is_in_set = false;
    }

    /// Looks at one socket and answers what is there.
    fn turn(&mut self, index: usize, now: Nanos) -> u32 {
        let one = &mut self.all[index];
        let requests = one.receive();
        if requests > 0 {
            (one.heard, one.next) = (now, now);
            one.streak += 1;
        } else {
            let silence = now.since(one.heard);
            one.next = now.after((silence / WAIT_SHARE).min(WAIT_MAX_NS));
            if silence >= WAIT_MAX_NS {
                one.streak = 0;
            }
        }
        one.traffic.send(&one.socket, &self.bodies);
        requests
    }

    /// A turn, after which the socket is in the set unless it streams, as the targets have it for the
    /// reactor's sleep: then who sends pays for that.
    fn watched_turn(&mut self, index: usize, now: Nanos) -> u32 {
        let requests = self.turn(index, now);
        let one = &self.all[index];
        match (one.streak > STREAM_LOOKS, one.is_in_set) {
            (true, true) => self.take_from_set(index),
            (false, false) => self.put_in_set(index),
            _ => {}
        }
        requests
    }

    /// Asks the set which sockets are ready.
    fn wait(&mut self) {
        self.events.clear();
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        epoll::wait(&self.epoll, spare, Some(&Timespec::default())).unwrap();
        for event in &self.events {
            self.all[usize::try_from(event.data.u64()).unwrap()].is_ready = true;
        }
    }

    fn is_due(&self, index: usize, now: Nanos) -> bool {
        let one = &self.all[index];
        match self.look {
            Look::Each => true,
            Look::Paced => now >= one.next,
            Look::Epoll => one.is_ready,
            Look::SilentByEpoll { silent_ns, .. } => {
                let is_silent = one.is_in_set && now.since(one.heard) >= silent_ns;
                one.is_ready || (!is_silent && now >= one.next)
            }
        }
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
            Look::Each | Look::Paced => {}
            Look::Epoll => self.wait(),
            Look::SilentByEpoll { wait_ns, .. } => {
                if now >= self.wait_next {
                    self.wait_next = now.after(wait_ns);
                    self.wait();
                }
            }
        }
        let mut requests = 0;
        for index in 0..self.all.len() {
            if self.is_due(index, now) {
                self.all[index].is_ready = false;
                requests += match self.look {
                    Look::Each | Look::Epoll => self.turn(index, now),
                    Look::Paced | Look::SilentByEpoll { .. } => self.watched_turn(index, now),
                };
            }
        }
        requests
    }
}
