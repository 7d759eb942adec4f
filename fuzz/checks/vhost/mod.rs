//! A vhost-user-blk target with a front end by hand: one thread steps the reactor, and talks.

pub(crate) mod chain;
mod guest;
mod machine;
pub(crate) mod session;

use super::rig::reactors;
use pmcache::bdev::{Bdev, MallocBdev, MallocConfig};
use pmcache::target::vhost::{VhostConfig, VhostController};
use reactors::{ManualClock, Reactor};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Turns within which anything has happened that is to happen at all.
const TURNS_MAX: u32 = 5_000_000;
const HEADER_BYTES: usize = 12;
const MESSAGE_BYTES_MAX: usize = 4096;

/// Codes of messages.
mod code {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_VRING_ERR: u32 = 14;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const GET_QUEUE_NUM: u32 = 17;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(super) const GET_CONFIG: u32 = 24;
    pub(super) const SET_CONFIG: u32 = 25;
    pub(super) const GET_INFLIGHT_FD: u32 = 31;
    pub(super) const SET_INFLIGHT_FD: u32 = 32;
    pub(super) const RESET_DEVICE: u32 = 34;
    pub(super) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(super) const ADD_MEM_REG: u32 = 37;
    pub(super) const REM_MEM_REG: u32 = 38;
}

/// A controller on a disk, on one reactor that the test steps.
struct Target {
    reactor: Reactor,
    clock: Arc<ManualClock>,
    controller: VhostController,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn disk(name: &str, blocks: u64) -> Arc<dyn Bdev> {
    let disk = MallocBdev::new(MallocConfig {
        name: name.into(),
        uuid: uuid::Uuid::from_bytes([1; 16]),
        block_size: 512,
        blocks,
    });
    Arc::new(disk.unwrap())
}

impl Target {
    fn new(bdev: Arc<dyn Bdev>) -> Self {
        let clock = Arc::new(ManualClock::default());
        let (mut reactors, _) = reactors(1, &clock, 1);
        let reactor = reactors.pop().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = VhostConfig {
            name: "c0".into(),
            dir: dir.path().to_owned(),
            bdev,
            read_only: false,
            reactors: vec![reactor.handle()],
        };
        let (controller, control) = VhostController::listen(config).unwrap();
        std::thread::spawn(move || control.run());
        Self {
            reactor,
            clock,
            path: controller.path().to_owned(),
            controller,
            _dir: dir,
        }
    }

    /// As a reactor's thread does: it looks at its rings before it would sleep.
    fn turn(&mut self) -> u32 {
        let handled = self.reactor.step();
        if handled == 0 {
            let _ = self.reactor.wake();
        }
        handled
    }

    /// Turns until `is_done`.
    fn turn_until(&mut self, what: &str, mut is_done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if is_done(self) {
                return;
            }
            self.turn();
            std::thread::yield_now();
        }
        panic!("{what}: never");
    }

    fn connect(&mut self) -> Front {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Front {
            stream,
            received: Vec::new(),
            file: None,
            asked: VecDeque::new(),
            is_closed: false,
        }
    }

    /// Waits until all that was asked is answered, or the target has hung up.
    fn settle(&mut self, front: &mut Front) {
        self.turn_until("an answer", |_| {
            front.receive();
            front.is_closed || front.asked.is_empty()
        });
    }

    /// The front end has gone, and so does all that the target knew of it.
    fn forget(&mut self, front: Front) {
        drop(front);
        self.turn_until("the session's end", |target| {
            target.controller.session().is_none()
        });
        // The reactor drops what has ended at the end of its round.
        self.turn();
    }
}

/// A front end's end of the socket.
struct Front {
    stream: UnixStream,
    received: Vec<u8>,
    /// What came with the last answer that had one.
    file: Option<File>,
    /// Codes of messages that must be answered, and are not.
    asked: VecDeque<u32>,
    is_closed: bool,
}

impl Front {
    /// Sends bytes and descriptors; the target may have hung up.
    fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        self.is_closed |= self.stream.send_with_fds(&[bytes], fds).is_err();
    }

    /// Sends a message; it must be answered if `answered`.
    fn message(&mut self, code: u32, body: &[u8], fds: &[RawFd], answered: bool) {
        // The fourth bit asks for an answer also where there would be none.
        let flags = if answered { 9_u32 } else { 1 };
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(u32::try_from(body.len()).unwrap().to_ne_bytes());
        bytes.extend(body);
        if answered {
            self.asked.push_back(code);
        }
        self.send(&bytes, fds);
    }

    fn receive(&mut self) {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        loop {
            match self.stream.recv_with_fd(&mut bytes) {
                Ok((0, _)) => return self.is_closed = true,
                Ok((count, file)) => {
                    self.received.extend_from_slice(&bytes[..count]);
                    self.file = file.or(self.file.take());
                }
                Err(error) if error.errno() == libc::EAGAIN => break,
                Err(_) => return self.is_closed = true,
            }
        }
        while self.take_answer() {}
    }

    /// Takes one whole answer from what was received: it answers what was asked, in order.
    fn take_answer(&mut self) -> bool {
        let word = |at: usize| {
            let bytes = self.received.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().unwrap()))
        };
        let (Some(code), Some(flags), Some(len)) = (word(0), word(4), word(8)) else {
            return false;
        };
        let len = usize::try_from(len).unwrap();
        assert_eq!(flags, 5, "the flags of an answer");
        assert!(HEADER_BYTES + len <= MESSAGE_BYTES_MAX, "{len} bytes");
        if self.received.len() < HEADER_BYTES + len {
            return false;
        }
        self.received.drain(..HEADER_BYTES + len);
        while let Some(asked) = self.asked.pop_front() {
            if asked == code {
                return true;
            }
            // Whoever has not agreed to answers gets none.
        }
        panic!("message {code} is answered, and nobody has asked");
    }
}

fn notifier() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Whether it has been rung, and not any more.
fn was_rung(fd: &OwnedFd) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

/// The system's number of each.
fn raw<const N: usize>(fds: [&OwnedFd; N]) -> [RawFd; N] {
    fds.map(AsRawFd::as_raw_fd)
}
