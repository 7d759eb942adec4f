//! An initiator bdev, a channel of it, and the reactor of both its keeper and its queue, driven by hand.

use super::fake::{Fake, SUBNQN};
use super::wait_until;
use pmcache::bdev::{
    Bdev, BdevError, Channel, Completion, Data, IoBuf, IoStatus, NvmeBdev, NvmeConfig,
    NvmeController, NvmeUri, Op, Request,
};
use pmcache::units::ByteRange;
use reactors::{Clock, IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::sync::Arc;

pub(crate) fn config(fake: &Fake) -> NvmeConfig {
    let uri = NvmeUri {
        host: fake.address.ip().to_string(),
        port: fake.address.port(),
        subnqn: SUBNQN.to_owned(),
        nsid: None,
    };
    NvmeConfig::new("Nvme0", uri, "nqn.2026-11.x:host".to_owned())
}

pub(crate) fn reactor(clock: Arc<dyn Clock>) -> Reactor {
    let config = ReactorConfig {
        id: ReactorId(0),
        idle: IdlePolicy::Poll,
        seed: 1,
    };
    Reactor::new(&config, clock, Quiescence::new(1)).unwrap()
}

pub(crate) struct Driver {
    pub(crate) channel: Box<dyn Channel>,
    pub(crate) done: Vec<Completion>,
    pub(crate) bdev: NvmeBdev,
    pub(crate) reactor: Reactor,
}

impl Driver {
    pub(crate) fn new(config: NvmeConfig) -> Self {
        Self::try_new(config, Arc::new(MonotonicClock)).unwrap()
    }

    /// The set-up goes by the real clock, what comes after by `clock`.
    pub(crate) fn try_new(config: NvmeConfig, clock: Arc<dyn Clock>) -> Result<Self, BdevError> {
        let reactor = reactor(clock);
        let controller = NvmeController::attach(config, &MonotonicClock, &reactor.handle())?;
        let bdev = controller.bdevs().remove(0);
        let channel = bdev.open(reactor.cx())?;
        Ok(Self {
            channel,
            done: vec![],
            bdev,
            reactor,
        })
    }

    pub(crate) fn submit(&mut self, tag: u64, op: Op, (at, len): (u64, u64), data: Data) {
        let range = ByteRange::new(at, len).unwrap();
        let request = Request {
            tag,
            op,
            range,
            data,
        };
        self.channel.submit(self.reactor.cx(), request);
    }

    pub(crate) fn read(&mut self, tag: u64, at: u64, len: u64) {
        let buf = IoBuf::zeroed(usize::try_from(len).unwrap());
        self.submit(tag, Op::Read, (at, len), Data::Buf(buf));
    }

    pub(crate) fn write(&mut self, tag: u64, at: u64, bytes: &[u8], fua: bool) {
        let data = Data::Buf(IoBuf::copy_of(bytes));
        self.submit(tag, Op::Write { fua }, (at, bytes.len() as u64), data);
    }

    pub(crate) fn step(&mut self) {
        self.reactor.step();
        let cx = self.reactor.cx();
        let count = self.channel.poll(cx, &mut self.done);
        assert!(count as usize <= self.done.len());
        // As before a sleep, so that no look is spared.
        let _ = (self.reactor.wake(), self.channel.wake());
    }

    /// Steps until `count` requests have ended; they are taken.
    pub(crate) fn wait(&mut self, count: usize) -> Vec<Completion> {
        self.wait_for("completions", |driver| driver.done.len() >= count);
        assert_eq!(self.done.len(), count);
        std::mem::take(&mut self.done)
    }

    pub(crate) fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        wait_until(what, || {
            self.step();
            holds(self)
        });
    }

    /// Steps until the one request under way has ended.
    pub(crate) fn status(&mut self) -> IoStatus {
        self.wait(1)[0].status
    }

    pub(crate) fn run(&mut self, op: Op, range: (u64, u64)) -> IoStatus {
        self.submit(0, op, range, Data::None);
        self.status()
    }

    pub(crate) fn bytes(&mut self, at: u64, len: u64) -> Vec<u8> {
        self.read(0, at, len);
        let done = self.wait(1).pop().unwrap();
        assert_eq!(done.status, IoStatus::Ok);
        done.data.into_buf().unwrap().to_vec()
    }
}
