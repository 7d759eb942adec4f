//! An initiator bdev, a channel of it, and a reactor driven by hand.

use super::wait_until;
use pmcache::bdev::{
    Bdev, BdevError, Channel, Completion, Data, IoBuf, IoStatus, NbdBdev, NbdConfig, NbdPlace,
    NbdUri, Op, Request,
};
use pmcache::units::ByteRange;
use reactors::{Clock, IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorId};
use std::path::Path;
use std::sync::Arc;

pub(crate) fn uri(socket: &Path, export: &str) -> NbdUri {
    NbdUri {
        place: NbdPlace::Unix(socket.to_owned()),
        export: export.to_owned(),
    }
}

pub(crate) fn connect(
    socket: &Path,
    export: &str,
    structured_replies: bool,
) -> Result<NbdBdev, BdevError> {
    let config = NbdConfig {
        structured_replies,
        ..NbdConfig::new("remote", uri(socket, export))
    };
    NbdBdev::connect(config, &MonotonicClock)
}

pub(crate) struct Driver {
    pub(crate) reactor: Reactor,
    pub(crate) channel: Box<dyn Channel>,
    pub(crate) done: Vec<Completion>,
}

impl Driver {
    pub(crate) fn new(bdev: &dyn Bdev) -> Self {
        Self::on(bdev, Arc::new(MonotonicClock))
    }

    pub(crate) fn on(bdev: &dyn Bdev, clock: Arc<dyn Clock>) -> Self {
        let config = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Poll,
            seed: 1,
        };
        let reactor = Reactor::new(&config, clock, Quiescence::new(1)).unwrap();
        let channel = bdev.open(reactor.cx()).unwrap();
        Self {
            reactor,
            channel,
            done: vec![],
        }
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
        wait_until("completions", || {
            self.step();
            self.done.len() >= count
        });
        assert_eq!(self.done.len(), count);
        std::mem::take(&mut self.done)
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
