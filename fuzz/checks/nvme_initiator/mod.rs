//! The NVMe/TCP initiator on a controller that says anything, on all queues and in every stage of a set-up:
//! nothing panics; what the initiator sends is right; and once the controller behaves, each request that was
//! made has ended, once, and a block that is written is read again.

mod controller;

use super::input::Input;
use super::rig::reactors;
use controller::{BLOCK, Controller, SUBNQN, Wish};
use pmcache::bdev::{
    Bdev, Channel, Completion, Data, IoBuf, NvmeBdev, NvmeConfig, NvmeController, NvmeUri, Op,
    Request,
};
use pmcache::units::ByteRange;
use pmcache::wire::nvme::{Digests, Status, admin};
use reactors::{ManualClock, MonotonicClock, Reactor};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const DISK_BYTES: usize = 64 << 10;
const SEC_NS: u64 = 1_000_000_000;
/// Requests that are made of an input.
const REQUESTS_MAX: u64 = 64;
/// Connections that an input may bring about: each costs ports and time.
const HANG_UPS_MAX: u32 = 16;
/// Rounds of 100 ms within which everything ends.
const ROUNDS_MAX: usize = 2000;

struct World {
    controller: Controller,
    reactor: Reactor,
    clock: Arc<ManualClock>,
    bdev: NvmeBdev,
    channel: Box<dyn Channel>,
    done: Vec<Completion>,
    requests: u64,
    /// Those that ended, and whether well.
    ended: Vec<(u64, bool)>,
    hang_ups: u32,
}

/// Attaches to a controller that behaves, which a thread drives meanwhile.
fn attach(
    mut controller: Controller,
    config: NvmeConfig,
    reactor: &Reactor,
) -> (Controller, NvmeBdev) {
    let is_attached = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let served = scope.spawn(|| {
            while !is_attached.load(Ordering::SeqCst) {
                controller.serve();
                std::thread::yield_now();
            }
            controller
        });
        let attached = NvmeController::attach(config, &MonotonicClock, &reactor.handle());
        is_attached.store(true, Ordering::SeqCst);
        let controller = served.join().unwrap();
        (controller, attached.unwrap().bdevs().remove(0))
    })
}

impl World {
    fn new(shape: u8) -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.advance(SEC_NS);
        let (mut reactors, _) = reactors(1, &clock, 1);
        let reactor = reactors.pop().unwrap();
        let digests = Digests {
            header: shape & 1 != 0,
            data: shape & 2 != 0,
        };
        let controller = Controller::new(digests, DISK_BYTES);
        let address = controller.address();
        let uri = NvmeUri {
            host: address.ip().to_string(),
            port: address.port(),
            subnqn: SUBNQN.to_owned(),
            nsid: None,
        };
        let config = NvmeConfig {
            header_digest: digests.header,
            data_digest: digests.data,
            no_flow_control: shape & 4 != 0,
            io_queues: 2,
            ..NvmeConfig::new("Nvme0", uri, "nqn.2026-11.fuzz:host".to_owned())
        };
        let (controller, bdev) = attach(controller, config, &reactor);
        let channel = bdev.open(reactor.cx()).unwrap();
        Self {
            controller,
            reactor,
            clock,
            bdev,
            channel,
            done: vec![],
            requests: 0,
            ended: vec![],
            hang_ups: 0,
        }
    }

    /// As a reactor's thread does: it looks at its sockets before it would sleep.
    fn turn(&mut self) {
        for _ in 0..3 {
            self.reactor.step();
            self.channel.poll(self.reactor.cx(), &mut self.done);
            let done = self.done.drain(..);
            self.ended
                .extend(done.map(|one| (one.tag, one.status.is_ok())));
            let _ = (self.reactor.wake(), self.channel.wake());
        }
    }

    /// The controller behaves, for a while.
    fn behave(&mut self) {
        let info = self.bdev.info();
        // What the host was told of these it holds on to.
        (self.controller.blocks, self.controller.read_only) = (info.blocks, false);
        self.controller.serve();
        self.turn();
    }

    fn submit(&mut self, op: Op, (at, len): (u64, u64)) {
        let data = match op {
            Op::Read | Op::Write { .. } => {
                let fill = u8::try_from(self.requests % 255 + 1).unwrap();
                let bytes = vec![fill; usize::try_from(len).unwrap()];
                Data::Buf(IoBuf::copy_of(&bytes))
            }
            _ => Data::None,
        };
        let request = Request {
            tag: self.requests,
            op,
            range: ByteRange::new(at, len).unwrap(),
            data,
        };
        self.requests += 1;
        self.channel.submit(self.reactor.cx(), request);
    }

    fn request(&mut self, input: &mut Input) {
        let (kind, at, len) = (input.u8(), input.u8(), input.u8());
        let block = u64::from(BLOCK);
        let range = (u64::from(at % 130) * block, u64::from(len % 33) * block);
        let fua = kind & 0x80 != 0;
        if self.requests >= REQUESTS_MAX {
            return;
        }
        match kind % 6 {
            0 | 1 => self.submit(Op::Read, range),
            2 | 3 => self.submit(Op::Write { fua }, range),
            4 => self.submit(Op::Flush, (0, 0)),
            _ if fua => self.submit(Op::Discard, range),
            _ => {
                let may_unmap = true;
                self.submit(Op::WriteZeroes { may_unmap, fua }, range);
            }
        }
    }

    fn hang_up(&mut self, at: usize) {
        if self.hang_ups < HANG_UPS_MAX {
            self.hang_ups += 1;
            self.controller.peers.remove(at);
        }
    }

    /// Something of the connection `at`, by the book or not.
    fn say(&mut self, at: usize, input: &mut Input) {
        let peer = &mut self.controller.peers[at];
        let cid = |input: &mut Input| {
            let which = input.u8();
            match peer.cid(which.into()) {
                Some(cid) if which < 0xe0 => cid,
                _ => input.u16(),
            }
        };
        match input.u8() % 10 {
            0 => {
                let (cid, status) = (cid(input), Status::from_field(input.u16()));
                peer.completion(cid, status, input.u64());
            }
            1 => {
                let (cid, result) = (cid(input), input.u32());
                peer.completion(cid, Status::SUCCESS, result.into());
                peer.wishes.retain(|wish| match wish {
                    Wish::Command(sqe, _) => sqe.cid.get() != cid,
                    Wish::Hello => true,
                });
            }
            2 => {
                let (cid, odd) = (cid(input), input.u8());
                let offset = if odd & 0x10 == 0 { 0 } else { input.u32() };
                let len = usize::from(input.u8()) * 64;
                peer.data(cid, offset, &vec![odd; len], (odd & 0xc, odd & 1 != 0));
            }
            3 => {
                let (cid, tag, odd) = (cid(input), input.u16(), input.u8());
                let offset = if odd & 1 == 0 { 0 } else { input.u32() };
                let len = if odd & 2 == 0 { 512 } else { input.u32() };
                peer.r2t(cid, tag, offset, len);
            }
            4 => {
                let mut pdu = vec![3, 0, 24, 0, 24, 0, 0, 0];
                pdu.extend_from_slice(input.bytes(16));
                peer.say(&pdu);
            }
            5 => {
                peer.wild = true;
                let count = usize::from(input.u8());
                peer.say(input.bytes(count));
            }
            6 => {
                let digests = Digests::from_byte(input.u8());
                let right = input.u8() & 1 == 0;
                let digests = if right {
                    self.controller.digests
                } else {
                    digests
                };
                peer.hello(digests, input.u8(), input.u32());
                // Digests that were not agreed on, or sizes that can't be, end the connection.
                peer.wild |= !right;
            }
            7 => self.event(at, input),
            8 => self.page(at, input),
            _ => self.hang_up(at),
        }
    }

    /// Answers the event request of a connection.
    fn event(&mut self, at: usize, input: &mut Input) {
        let peer = &mut self.controller.peers[at];
        let Some(cid) = peer.listening.take() else {
            return;
        };
        let odd = input.u8();
        let dw0 = if odd & 1 == 0 { 0x04_0002 } else { input.u32() };
        let status = match odd & 2 {
            0 => Status::SUCCESS,
            _ => Status::from_field(input.u16()),
        };
        peer.completion(cid, status, dw0.into());
    }

    /// Answers an Identify with a page of which some is changed.
    fn page(&mut self, at: usize, input: &mut Input) {
        let Some(Wish::Command(sqe, _)) = self.controller.peers[at].wishes.front() else {
            return;
        };
        if sqe.opcode != admin::IDENTIFY {
            return;
        }
        let (sqe, mut page) = (*sqe, self.controller.page(sqe));
        for _ in 0..input.u8() % 4 + 1 {
            let (at, count) = (usize::from(input.u16() % 4096), input.u8() % 9);
            let bytes = input.bytes(count.into());
            let end = (at + bytes.len()).min(page.len());
            page[at..end].copy_from_slice(&bytes[..end - at]);
        }
        let peer = &mut self.controller.peers[at];
        peer.wishes.pop_front();
        let cid = sqe.cid.get();
        peer.data(cid, 0, &page, (4, false));
        peer.completion(cid, Status::SUCCESS, 0);
    }

    /// One thing of the input.
    fn act(&mut self, input: &mut Input) {
        let what = input.u8();
        let count = self.controller.peers.len();
        let at = usize::from(what >> 4) % count.max(1);
        match what % 16 {
            0..=2 => self.request(input),
            3 => self.behave(),
            4 => {
                let ns = u64::from(input.u8()) * (SEC_NS / 16);
                self.clock.advance(ns);
            }
            5 => self.channel.cancel(self.reactor.cx()),
            6..=9 if count > 0 => {
                self.controller.answer(at);
            }
            _ if count > 0 => self.say(at, input),
            _ => self.clock.advance(SEC_NS / 16),
        }
        self.turn();
        self.controller.listen();
    }

    /// Lets everything end, with a controller that behaves from now on.
    fn settle(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..ROUNDS_MAX {
            if holds(self) {
                return;
            }
            self.clock.advance(SEC_NS / 10);
            self.behave();
        }
        panic!(
            "never happened: {what}; {:?}",
            self.bdev.controller().state()
        );
    }

    fn end(mut self) {
        // What was said last may be half of something.
        self.controller.peers.clear();
        self.settle("the end of all requests", |world| {
            world.ended.len() as u64 >= world.requests
        });
        self.ended.sort_unstable();
        assert!(self.ended.iter().map(|one| one.0).eq(0..self.requests));
        // A namespace that was said to be gone or read-only is there again by then.
        self.ended.clear();
        self.submit(Op::Write { fua: false }, (0, 512));
        self.settle("a write", |world| match world.ended.pop() {
            Some((_, true)) => true,
            Some((_, false)) => {
                world.submit(Op::Write { fua: false }, (0, 512));
                false
            }
            None => false,
        });
        let fill = u8::try_from((self.requests - 1) % 255 + 1).unwrap();
        assert!(self.controller.disk[..512] == [fill; 512]);
        drop(self.channel);
        drop(self.bdev);
        for _ in 0..4 {
            self.reactor.step();
        }
        self.controller.serve();
        assert!(self.controller.peers.is_empty(), "a connection stays");
    }
}

/// Makes of `data` what a controller says, and what is asked of it meanwhile.
pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(input.u8());
    if input.u8() & 1 == 0 {
        // All is connected when it begins.
        for _ in 0..16 {
            world.behave();
        }
    }
    while !input.is_empty() {
        world.act(&mut input);
    }
    world.end();
}
