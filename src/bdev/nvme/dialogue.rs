//! A queue on which one command at a time is under way, and perhaps an event request beside it: how every
//! queue begins, and all of the admin queue's life. Never waits.

use super::NvmeFault;
use super::receive::{Commands, Receiver};
use crate::wire::nvme::{
    Agreed, CapsuleCmdPdu, Cqe, DataPdu, Digests, Direction, Fault, FaultKind, IDENTIFY_BYTES,
    IcPdu, R2tPdu, Sqe, Status, admin, digest, put_term,
};
use reactors::Interest;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_nodelay, socket_error};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A command to be said.
#[derive(Debug)]
pub(super) struct Saying {
    /// Which; its identifier is ours to set.
    pub(super) sqe: Sqe,
    /// What goes with it, in the capsule.
    pub(super) data: Vec<u8>,
    /// How many bytes are to come back, at most a page.
    pub(super) wanted: usize,
    /// Fewer will do.
    pub(super) may_be_less: bool,
}

impl Saying {
    /// One without data.
    pub(super) fn plain(sqe: Sqe) -> Self {
        Self {
            sqe,
            data: vec![],
            wanted: 0,
            may_be_less: false,
        }
    }

    /// One that is answered with a page or the beginning of one; `sqe` says so. What does not come is 0.
    pub(super) fn for_part(sqe: Sqe) -> Self {
        Self {
            wanted: IDENTIFY_BYTES,
            may_be_less: true,
            ..Self::plain(sqe)
        }
    }

    /// One that is answered with a page.
    pub(super) fn for_page(sqe: Sqe) -> Self {
        Self {
            sqe: sqe.with_transport_data(4096),
            data: vec![],
            wanted: IDENTIFY_BYTES,
            may_be_less: false,
        }
    }
}

/// The command under way, as PDUs are about it.
#[derive(Debug)]
struct Answer {
    cid: u16,
    under_way: bool,
    wanted: usize,
    may_be_less: bool,
    received: usize,
    page: Box<[u8; IDENTIFY_BYTES]>,
    cqe: Option<Cqe>,
    /// The event request that waits.
    listening: Option<u16>,
    event: Option<Cqe>,
}

/// Identifiers of event requests are from here on, all others below.
const EVENT_CIDS: u16 = 0x8000;

impl Answer {
    fn own(&self, cid: u16) -> Result<(), NvmeFault> {
        match self.under_way && cid == self.cid {
            true => Ok(()),
            false => Err(NvmeFault::Cid(cid)),
        }
    }
}

impl Commands for Answer {
    fn data_begin(&mut self, pdu: &DataPdu) -> Result<u64, NvmeFault> {
        self.own(pdu.cid.get())?;
        let (at, len) = (pdu.offset.get() as usize, pdu.len.get() as usize);
        if at != self.received || len > self.wanted - self.received {
            return Err(NvmeFault::Outside(self.cid));
        }
        self.received += len;
        Ok(0)
    }

    fn place(&mut self, _command: u64, at: usize, len: usize) -> &mut [u8] {
        self.page.get_mut(at..at + len).unwrap_or_default()
    }

    fn data_end(&mut self, _command: u64, intact: bool, success: bool) -> Result<(), NvmeFault> {
        if !intact {
            return Err(NvmeFault::DataDigest);
        }
        if success {
            let cqe = Cqe::new(self.cid, Status::SUCCESS, 0, 0);
            return self.completed(&cqe);
        }
        Ok(())
    }

    fn completed(&mut self, cqe: &Cqe) -> Result<(), NvmeFault> {
        if self.listening == Some(cqe.cid.get()) {
            (self.listening, self.event) = (None, Some(*cqe));
            return Ok(());
        }
        self.own(cqe.cid.get())?;
        if cqe.status().is_ok() && self.received < self.wanted && !self.may_be_less {
            let bytes = |count| u32::try_from(count).unwrap_or(u32::MAX);
            return Err(NvmeFault::Incomplete {
                cid: self.cid,
                wanted: bytes(self.wanted),
                got: bytes(self.received),
            });
        }
        self.under_way = false;
        self.cqe = Some(*cqe);
        Ok(())
    }

    fn wanted(&mut self, r2t: &R2tPdu) -> Result<(), NvmeFault> {
        // Whatever is said here went with its capsule.
        Err(NvmeFault::R2t(r2t.cid.get()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Dial,
    Connecting,
    Hello,
    Open,
}

/// A connection and the one command on it.
#[derive(Debug)]
pub(super) struct Dialogue {
    address: SocketAddr,
    digests: Digests,
    stage: Stage,
    socket: Option<OwnedFd>,
    receiver: Receiver,
    agreed: Option<Agreed>,
    out: Vec<u8>,
    sent: usize,
    answer: Answer,
    event_serial: u16,
}

impl Dialogue {
    /// One that is to be dialled.
    pub(super) fn new(address: SocketAddr, digests: Digests) -> Self {
        Self {
            address,
            digests,
            stage: Stage::Dial,
            socket: None,
            receiver: Receiver::new(),
            agreed: None,
            out: vec![],
            sent: 0,
            answer: Answer {
                cid: 0,
                under_way: false,
                wanted: 0,
                may_be_less: false,
                received: 0,
                page: Box::new([0; IDENTIFY_BYTES]),
                cqe: None,
                listening: None,
                event: None,
            },
            event_serial: 0,
        }
    }

    /// What must happen before there is a point in going on.
    pub(super) fn waits_for(&self) -> Option<(RawFd, Interest)> {
        let interest = match self.stage {
            Stage::Dial => return None,
            Stage::Connecting => Interest::Write,
            Stage::Hello | Stage::Open if self.sent < self.out.len() => Interest::ReadWrite,
            Stage::Hello | Stage::Open => Interest::Read,
        };
        Some((self.socket.as_ref()?.as_raw_fd(), interest))
    }

    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Goes as far as it can. Whether it is open and nothing is under way.
    ///
    /// # Errors
    /// Why there is no going on.
    pub(super) fn turn(&mut self) -> Result<bool, NvmeFault> {
        if self.stage == Stage::Dial {
            self.dial()?;
        }
        if self.stage == Stage::Connecting {
            self.look_whether_connected()?;
        }
        let Some(socket) = &self.socket else {
            return Ok(false);
        };
        if self.stage == Stage::Hello {
            send(socket, &self.out, &mut self.sent)?;
            let Some(agreed) = self.receiver.hello(socket, self.digests)? else {
                return Ok(false);
            };
            self.agreed = Some(agreed);
            self.stage = Stage::Open;
        }
        if self.stage == Stage::Open {
            send(socket, &self.out, &mut self.sent)?;
            self.receiver.receive(socket, &mut self.answer)?;
            return Ok(!self.answer.under_way);
        }
        Ok(false)
    }

    fn dial(&mut self) -> Result<(), Errno> {
        let family = match self.address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // Commands are gathered already: nothing is gained by waiting for more.
        set_tcp_nodelay(&socket, true)?;
        self.stage = match rustix::net::connect(&socket, &self.address) {
            Ok(()) => Stage::Hello,
            Err(Errno::INPROGRESS | Errno::INTR) => Stage::Connecting,
            Err(error) => return Err(error),
        };
        self.socket = Some(socket);
        // One R2T at a time for each command.
        IcPdu::new(0, self.digests, 0).put_request(&mut self.out);
        Ok(())
    }

    fn look_whether_connected(&mut self) -> Result<(), Errno> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let mut fds = [PollFd::new(socket, PollFlags::OUT)];
        if rustix::event::poll(&mut fds, Some(&Timespec::default()))? > 0 {
            socket_error(socket)??;
            self.stage = Stage::Hello;
        }
        Ok(())
    }

    /// Says the next command; only while none is under way.
    ///
    /// # Errors
    /// If the socket fails.
    pub(super) fn say(&mut self, saying: Saying) -> Result<(), NvmeFault> {
        let mut sqe = saying.sqe;
        let answer = &mut self.answer;
        answer.cid = answer.cid.wrapping_add(1) & 0x7fff;
        sqe.cid = answer.cid.into();
        (answer.under_way, answer.cqe) = (true, None);
        (answer.wanted, answer.received) = (saying.wanted.min(IDENTIFY_BYTES), 0);
        answer.may_be_less = saying.may_be_less;
        if answer.may_be_less {
            answer.page.fill(0);
        }
        self.put(sqe, &saying.data)
    }

    /// Asks for the next event, beside other commands; only while no such request waits.
    ///
    /// # Errors
    /// If the socket fails.
    pub(super) fn listen(&mut self) -> Result<(), NvmeFault> {
        self.event_serial = self.event_serial.wrapping_add(1) & !EVENT_CIDS;
        let cid = EVENT_CIDS | self.event_serial;
        self.answer.listening = Some(cid);
        self.put(Sqe::new(admin::ASYNC_EVENT_REQUEST, cid, 0), &[])
    }

    /// Whether an event request waits.
    pub(super) fn is_listening(&self) -> bool {
        self.answer.listening.is_some()
    }

    /// How the event request ended, once.
    pub(super) fn event(&mut self) -> Option<Cqe> {
        self.answer.event.take()
    }

    /// Sends a command, behind what is not all sent.
    fn put(&mut self, sqe: Sqe, data: &[u8]) -> Result<(), NvmeFault> {
        let Some(agreed) = &self.agreed else {
            return Err(Fault::of(FaultKind::Sequence).into());
        };
        self.out.drain(..self.sent.min(self.out.len()));
        self.sent = 0;
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let pdu = CapsuleCmdPdu(sqe);
        pdu.put(agreed.digests, agreed.alignment, len, &mut self.out);
        self.out.extend_from_slice(data);
        if agreed.digests.data && !data.is_empty() {
            self.out.extend_from_slice(&digest(data).to_le_bytes());
        }
        match &self.socket {
            Some(socket) => Ok(send(socket, &self.out, &mut self.sent)?),
            None => Ok(()),
        }
    }

    /// How the last command ended, once; its data are in [`Dialogue::page`].
    pub(super) fn answer(&mut self) -> Option<Cqe> {
        self.answer.cqe.take()
    }

    /// The data of the last answer.
    pub(super) fn page(&self) -> &[u8; IDENTIFY_BYTES] {
        &self.answer.page
    }

    /// Tells the controller what it did wrong, if it did; whether it hears it does not matter.
    pub(super) fn complain(&self, fault: &NvmeFault) {
        if let (Some(socket), NvmeFault::Pdu(fault)) = (&self.socket, fault) {
            complain(socket, *fault, &self.receiver);
        }
    }

    /// The parts, for a queue with many commands. Only while none is under way here.
    pub(super) fn into_parts(self) -> Option<(OwnedFd, Receiver, Agreed)> {
        Some((self.socket?, self.receiver, self.agreed?))
    }
}

/// Tells the controller why the connection ends; whether it hears it does not matter.
pub(super) fn complain(socket: &OwnedFd, fault: Fault, receiver: &Receiver) {
    let mut out = vec![];
    let header = receiver.last_header();
    put_term(Direction::FromHost, fault, header, &mut out);
    let _ = rustix::net::send(socket, &out, SendFlags::NOSIGNAL);
}

/// Sends what of `out` is not `sent` yet, as far as the socket takes it.
fn send(socket: &OwnedFd, out: &[u8], sent: &mut usize) -> Result<(), Errno> {
    while let Some(rest) = out.get(*sent..).filter(|rest| !rest.is_empty()) {
        match rustix::net::send(socket, rest, SendFlags::NOSIGNAL) {
            Ok(count) => *sent += count,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Dialogue {
    /// Waits until there is a point in going on, for `limit_ns` at most. For control threads.
    pub(super) fn wait(&self, limit_ns: u64) -> Result<(), NvmeFault> {
        let timeout = Timespec {
            tv_sec: i64::try_from(limit_ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(limit_ns % 1_000_000_000).unwrap_or(0),
        };
        let flags = match self.waits_for() {
            Some((_, Interest::Read)) | None => PollFlags::IN,
            Some((_, Interest::Write)) => PollFlags::OUT,
            Some((_, Interest::ReadWrite)) => PollFlags::IN | PollFlags::OUT,
        };
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        fds.extend(self.socket().map(|socket| PollFd::new(socket, flags)));
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(NvmeFault::Socket(error)),
        }
    }
}
