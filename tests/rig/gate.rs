//! A backing whose requests end when a test lets them: it holds writes or reads back, notes everything in
//! order, and may have a volatile cache whose flushes fail.

use pmcache::bdev::{
    Bdev, BdevError, BdevInfo, Channel, Completion, Data, IoStatus, Op, Request, Supports,
};
use pmcache::units::ByteRange;
use reactors::{Cx, Wake};
use std::sync::{Arc, RwLock};

#[derive(Debug, Default)]
struct State {
    visible: Vec<u8>,
    hold_writes: bool,
    hold_reads: bool,
    flushes_to_fail: u32,
    fail_writes: bool,
    /// What has ended, in order.
    ended: Vec<(Op, ByteRange)>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct GateDisk {
    info: Arc<BdevInfo>,
    state: Arc<RwLock<State>>,
}

impl GateDisk {
    pub(crate) fn new(bytes: u64, volatile_cache: bool) -> Self {
        let info = Arc::new(BdevInfo {
            name: "disk0".into(),
            product_name: "test disk",
            uuid: uuid::Uuid::from_bytes([9; 16]),
            block_size: 512,
            blocks: bytes / 512,
            volatile_cache,
            read_only: false,
            supports: Supports::default(),
        });
        let state = State {
            visible: vec![0; usize::try_from(bytes).unwrap()],
            ..State::default()
        };
        Self {
            info,
            state: Arc::new(RwLock::new(state)),
        }
    }

    /// Writes end only when this is called with false.
    pub(crate) fn hold_writes(&self, hold: bool) {
        self.state.write().unwrap().hold_writes = hold;
    }

    /// The same for reads; they bring what was there when they came in.
    pub(crate) fn hold_reads(&self, hold: bool) {
        self.state.write().unwrap().hold_reads = hold;
    }

    pub(crate) fn fail_flushes(&self, count: u32) {
        self.state.write().unwrap().flushes_to_fail = count;
    }

    pub(crate) fn fail_writes(&self, fail: bool) {
        self.state.write().unwrap().fail_writes = fail;
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let at = usize::try_from(at).unwrap();
        self.state.read().unwrap().visible[at..at + len].to_vec()
    }

    /// What has ended since it was asked last.
    pub(crate) fn take_ended(&self) -> Vec<(Op, ByteRange)> {
        std::mem::take(&mut self.state.write().unwrap().ended)
    }
}

impl Bdev for GateDisk {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.clone()
    }

    fn open(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(GateChannel {
            disk: self.clone(),
            queue: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct GateChannel {
    disk: GateDisk,
    queue: Vec<Request>,
}

impl State {
    fn is_held(&self, request: &Request) -> bool {
        match request.op {
            Op::Read => self.hold_reads,
            op if op.modifies() => self.hold_writes,
            _ => false,
        }
    }

    fn execute(&mut self, request: Request) -> Completion {
        let at = usize::try_from(request.range.start()).unwrap();
        let len = usize::try_from(request.range.len()).unwrap();
        self.ended.push((request.op, request.range));
        if request.op.modifies() && self.fail_writes {
            return request.complete(IoStatus::IoError);
        }
        let place = &mut self.visible[at..at + len];
        match (request.op, &request.data) {
            (Op::Write { .. }, Data::Buf(buf)) => place.copy_from_slice(buf),
            (Op::Write { .. }, Data::Gather(views)) => {
                let bytes: Vec<u8> = views.iter().flat_map(|v| v.iter().copied()).collect();
                place.copy_from_slice(&bytes);
            }
            (Op::Discard | Op::WriteZeroes { .. }, _) => place.fill(0),
            (Op::Flush, _) if self.flushes_to_fail > 0 => {
                self.flushes_to_fail -= 1;
                return request.complete(IoStatus::IoError);
            }
            _ => {}
        }
        request.complete(IoStatus::Ok)
    }
}

impl Channel for GateChannel {
    fn submit(&mut self, _cx: &Cx, mut request: Request) {
        assert_eq!(self.disk.info.admit(&request), Ok(()));
        if let (Op::Read, Data::Buf(buf)) = (request.op, &mut request.data) {
            let at = usize::try_from(request.range.start()).unwrap();
            let state = self.disk.state.read().unwrap();
            let len = buf.len();
            buf.copy_from_slice(&state.visible[at..at + len]);
        }
        self.queue.push(request);
    }

    fn poll(&mut self, _cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let mut state = self.disk.state.write().unwrap();
        let mut ended = 0;
        for request in std::mem::take(&mut self.queue) {
            if state.is_held(&request) {
                self.queue.push(request);
            } else {
                done.push(state.execute(request));
                ended += 1;
            }
        }
        ended
    }

    fn wake(&self) -> Wake {
        if self.queue.is_empty() {
            Wake::OnEvent
        } else {
            Wake::Now
        }
    }
}
