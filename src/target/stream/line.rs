//! A connection's socket: what has come, what is to go, and when to look at it.

use super::Output;
use super::socket::peer_has_left;
use crate::bdev::BufPool;
use crate::bdev::stream::{Input, Pace, Received};
use reactors::{Cx, Nanos, Wake};
use rustix::io::Errno;
use rustix::net::Shutdown;
use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

/// When to look again whether a full socket takes more; sleeping reactors watch for input only.
const BLOCKED_NS: u64 = 200_000;
/// Empty rounds after which a peer with too much under way is no longer watched.
const FULL_ROUNDS_MAX: u32 = 64;
/// How often such a peer is asked whether it is still there.
const ASK_NS: u64 = 100_000_000;

/// This reactor's buffers, shared by the connections of its targets.
#[derive(Debug, Default)]
struct Buffers(Rc<RefCell<BufPool>>);

/// See the module.
#[derive(Debug)]
pub(in crate::target) struct Line {
    socket: OwnedFd,
    pub(in crate::target) input: Input,
    pub(in crate::target) output: Output,
    pub(in crate::target) pool: Rc<RefCell<BufPool>>,
    /// Received bytes may hold something that is not taken yet.
    pub(in crate::target) leftover: bool,
    pace: Pace,
    watched: bool,
    full_rounds: u32,
    /// When to ask again whether the peer is there, while it is not watched.
    ask_at: Nanos,
    polled_at: Nanos,
}

impl Line {
    /// Takes the socket over, on the reactor of `cx`.
    pub(in crate::target) fn new(cx: &Cx, socket: OwnedFd) -> Self {
        let buffers = cx.local::<Buffers>(0).unwrap_or_else(|| {
            let buffers = Rc::new(Buffers::default());
            cx.set_local(0, Rc::clone(&buffers));
            buffers
        });
        cx.watch(socket.as_raw_fd());
        Self {
            socket,
            input: Input::new(),
            output: Output::default(),
            pool: Rc::clone(&buffers.0),
            leftover: false,
            pace: Pace::default(),
            watched: true,
            full_rounds: 0,
            ask_at: cx.now(),
            polled_at: cx.now(),
        }
    }

    /// A round begins.
    pub(in crate::target) fn begin_round(&mut self, cx: &Cx) {
        self.polled_at = cx.now();
    }

    fn set_watched(&mut self, cx: &Cx, watched: bool) {
        if self.watched != watched {
            self.watched = watched;
            match watched {
                true => cx.watch(self.socket.as_raw_fd()),
                false => cx.unwatch(self.socket.as_raw_fd()),
            }
        }
    }

    /// Nothing more is to be received.
    pub(in crate::target) fn stop_receiving(&mut self, cx: &Cx) {
        self.leftover = false;
        self.set_watched(cx, false);
    }

    /// Forgets what was to be sent.
    pub(in crate::target) fn clear(&mut self) {
        self.output.clear(&self.pool);
    }

    /// Whether to look at the socket in this round. Of silent ones the reactor's set tells which.
    pub(in crate::target) fn is_due(&self, cx: &Cx) -> bool {
        let told = match self.watched && self.pace.is_silent(cx.now()) {
            true => cx.is_ready(self.socket.as_raw_fd()),
            false => None,
        };
        told.unwrap_or_else(|| self.pace.is_due(cx.now()))
    }

    /// Receives into `room`, and what comes behind it into the input.
    ///
    /// # Errors
    /// When the socket has failed.
    pub(in crate::target) fn receive(
        &mut self,
        cx: &Cx,
        room: &mut [u8],
    ) -> Result<Received, Errno> {
        let received = self.input.receive(&self.socket, room)?;
        match received {
            Received::Nothing => self.pace.silent(cx.now()),
            Received::Some { .. } => self.pace.heard(cx.now()),
            Received::End => {}
        }
        Ok(received)
    }

    /// Says that nothing more will be sent, and forgets what has come. Whether the peer may send more.
    pub(in crate::target) fn drain(&mut self) -> bool {
        // It fails if the peer is gone, as the read will tell.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        let received = self.input.receive(&self.socket, &mut []);
        self.input.skip(usize::MAX);
        matches!(received, Ok(Received::Nothing | Received::Some { .. }))
    }

    /// Sends what the socket takes. Returns whether it took something.
    ///
    /// # Errors
    /// When the socket has failed.
    pub(in crate::target) fn send(&mut self) -> Result<bool, Errno> {
        match self.output.is_empty() {
            true => Ok(false),
            false => Ok(self.output.send(&self.socket, &self.pool)? > 0),
        }
    }

    /// A peer that has too much under way stays readable, and would keep the reactor from sleeping while a
    /// stalled device completes nothing. So it is not watched, but asked now and then whether it is still
    /// there. One that streams is not watched either, until the reactor would sleep. `handled`: how much
    /// this round did. Returns whether the peer has left.
    pub(in crate::target) fn watch_or_not(&mut self, cx: &Cx, is_full: bool, handled: u32) -> bool {
        if !is_full {
            self.full_rounds = 0;
            self.set_watched(cx, !self.pace.is_stream());
        } else if handled == 0 {
            self.full_rounds = self.full_rounds.saturating_add(1);
            if self.watched && self.full_rounds > FULL_ROUNDS_MAX {
                self.set_watched(cx, false);
                self.ask_at = cx.now().after(ASK_NS);
            } else if !self.watched && cx.now() >= self.ask_at {
                self.ask_at = cx.now().after(ASK_NS);
                return peer_has_left(&self.socket);
            }
        }
        false
    }

    /// The reactor asks whether it may sleep.
    pub(in crate::target) fn before_sleep(&self) {
        self.pace.before_sleep();
    }

    /// When to look at a socket again that does not ring.
    pub(in crate::target) fn look_again(&self) -> Wake {
        Wake::At(self.polled_at.after(BLOCKED_NS))
    }

    /// When the connection must be polled again, if its requests want it at `wake`. `is_open`: it receives.
    pub(in crate::target) fn wake(&self, wake: Wake, is_full: bool, is_open: bool) -> Wake {
        let mut wake = wake;
        if !self.output.is_empty() {
            wake = wake.sooner(match self.output.is_blocked() {
                true => self.look_again(),
                false => Wake::Now,
            });
        }
        match (self.leftover, is_full, self.watched) {
            (true, false, _) => Wake::Now,
            // It streamed: the next round watches it again.
            (false, _, false) if is_open => Wake::Now,
            (true, true, false) => wake.sooner(Wake::At(self.ask_at)),
            _ => wake,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactors::{IdlePolicy, ManualClock, Quiescence, Reactor, ReactorConfig, ReactorId};
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    struct Rig {
        clock: Arc<ManualClock>,
        reactor: Reactor,
        line: Line,
        peer: UnixStream,
    }

    impl Rig {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::default());
            let config = ReactorConfig {
                id: ReactorId(0),
                idle: IdlePolicy::Poll,
                seed: 1,
            };
            let reactor = Reactor::new(&config, clock.clone(), Quiescence::new(1)).unwrap();
            let (peer, socket) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let line = Line::new(reactor.cx(), socket.into());
            Self {
                clock,
                reactor,
                line,
                peer,
            }
        }

        /// A round so much later; whether it looks at the socket.
        fn looks_after(&mut self, ns: u64) -> bool {
            self.clock.advance(ns);
            self.reactor.step();
            let cx = self.reactor.cx();
            let is_due = self.line.is_due(cx);
            if is_due {
                self.line.receive(cx, &mut []).unwrap();
            }
            self.line.watch_or_not(cx, false, 0);
            is_due
        }
    }

    #[test]
    fn a_silent_socket_is_left_alone_until_it_has_something() {
        let mut rig = Rig::new();
        for _ in 0..100 {
            assert!(!rig.looks_after(1_000_000));
        }
        rig.peer.write_all(b"x").unwrap();
        assert!(rig.looks_after(1_000_000));
        assert_eq!(rig.line.input.unread(), b"x");
        // It may go on at once.
        assert!(rig.looks_after(1000));
        assert!(!rig.looks_after(1_000_000));
        drop(rig.peer.shutdown(std::net::Shutdown::Write));
        assert!(rig.looks_after(1_000_000));
    }

    #[test]
    fn a_socket_that_has_streamed_is_looked_at_until_it_is_watched() {
        let mut rig = Rig::new();
        rig.looks_after(1_000_000);
        for _ in 0..40 {
            rig.peer.write_all(b"x").unwrap();
            rig.looks_after(5000);
        }
        assert!(!rig.line.watched);
        assert!(rig.looks_after(1_000_000));
        assert!(rig.line.watched);
        assert!(!rig.looks_after(1_000_000));
        rig.peer.write_all(b"x").unwrap();
        assert!(rig.looks_after(1_000_000));
    }
}
