//! A whole controller over a byte array, whose I/O can be interfered with.

use super::peer::{Pdu, Peer};
use pmcache::wire::nvme::{
    CapsuleRespPdu, ConnectCommand, ConnectData, ControllerPage, Cqe, Digests, DsmRange, Kind,
    NamespacePage, PropertyCommand, R2tPdu, Sqe, Status, admin, cns, fctype, flag, io, property,
    put_descriptors, put_namespace_list, put_nvm_controller, sgl,
};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

pub(crate) const SUBNQN: &str = "nqn.2026-11.x:fake";

/// How it is; may change between connections.
#[derive(Clone, Debug)]
pub(crate) struct Nature {
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    pub(crate) namespaces: u32,
    pub(crate) volatile_cache: bool,
    pub(crate) read_only: bool,
    pub(crate) mdts: u8,
    /// Write Zeroes and Dataset Management are there.
    pub(crate) optional: bool,
    pub(crate) wzsl: u8,
    pub(crate) capsule: u32,
    pub(crate) h2c_max: u32,
    pub(crate) cpda: u8,
    pub(crate) queue_entries: u16,
    pub(crate) io_queues: u16,
    /// Bytes of a write to the socket, of a C2HData, and of an R2T.
    pub(crate) split: usize,
    pub(crate) c2h_bytes: usize,
    pub(crate) r2t_bytes: u32,
    /// The last data of a read are its completion.
    pub(crate) success: bool,
    /// So many completions are held back, and said in reverse.
    pub(crate) reverse: usize,
    /// Neither Keep Alive nor Get Log Page is answered.
    pub(crate) is_dumb: bool,
    /// Event requests fail.
    pub(crate) refuses_events: bool,
}

impl Default for Nature {
    fn default() -> Self {
        Self {
            uuid: [7; 16],
            nguid: [9; 16],
            blocks: 2048,
            block_size: 512,
            namespaces: 1,
            volatile_cache: true,
            read_only: false,
            mdts: 5,
            optional: true,
            wzsl: 0,
            capsule: 8192,
            h2c_max: 131_072,
            cpda: 0,
            queue_entries: 128,
            io_queues: 4,
            split: usize::MAX,
            c2h_bytes: usize::MAX,
            r2t_bytes: u32::MAX,
            success: false,
            reverse: 1,
            is_dumb: false,
            refuses_events: false,
        }
    }
}

/// Takes an I/O command over; whether it did. `data` are those in the capsule.
pub(crate) type Hook = Box<dyn Fn(&mut Peer, &Sqe, &[u8]) -> bool + Send + Sync>;

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicUsize,
    pub(crate) associations: AtomicUsize,
    pub(crate) flushes: AtomicUsize,
    pub(crate) fuas: AtomicUsize,
    pub(crate) keep_alives: AtomicUsize,
    pub(crate) deallocated: AtomicUsize,
    pub(crate) zeroed: AtomicUsize,
    pub(crate) shutdowns: AtomicUsize,
    pub(crate) event_requests: AtomicUsize,
    pub(crate) logs: AtomicUsize,
    /// Commands under way at most, on one queue.
    pub(crate) depth: AtomicUsize,
}

struct State {
    nature: RwLock<Nature>,
    disk: RwLock<Vec<u8>>,
    hook: RwLock<Option<Hook>>,
    is_up: AtomicBool,
    streams: RwLock<Vec<(u16, TcpStream)>>,
    next_cntlid: AtomicU16,
    config: AtomicU32,
    /// The event request that waits: where, and its identifier.
    listener: RwLock<Option<(TcpStream, Digests, u16)>>,
    counts: Counts,
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl Fake {
    pub(crate) fn new(nature: Nature) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bytes = nature.blocks * u64::from(nature.block_size);
        let state = Arc::new(State {
            disk: RwLock::new(vec![0; usize::try_from(bytes).unwrap()]),
            nature: RwLock::new(nature),
            hook: RwLock::new(None),
            is_up: AtomicBool::new(true),
            streams: RwLock::new(vec![]),
            next_cntlid: AtomicU16::new(1),
            config: AtomicU32::new(0),
            listener: RwLock::new(None),
            counts: Counts::default(),
        });
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                served.counts.connections.fetch_add(1, Ordering::SeqCst);
                if served.is_up.load(Ordering::SeqCst) {
                    let state = Arc::clone(&served);
                    std::thread::spawn(move || state.serve(stream));
                }
            }
        });
        Self { address, state }
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.state.counts
    }

    pub(crate) fn disk(&self) -> Vec<u8> {
        self.state.disk.read().unwrap().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Nature)) {
        change(&mut self.state.nature.write().unwrap());
    }

    pub(crate) fn intercept(
        &self,
        hook: impl Fn(&mut Peer, &Sqe, &[u8]) -> bool + Send + Sync + 'static,
    ) {
        *self.state.hook.write().unwrap() = Some(Box::new(hook));
    }

    /// Answers the event request that waits; whether there was one. Only while the admin queue is at rest.
    pub(crate) fn tell(&self, dw0: u32) -> bool {
        let Some((mut stream, digests, cid)) = self.state.listener.write().unwrap().take() else {
            return false;
        };
        let mut out = vec![];
        let cqe = Cqe::new(cid, Status::SUCCESS, dw0.into(), 0);
        CapsuleRespPdu(cqe).put(digests, &mut out);
        stream.write_all(&out).unwrap();
        true
    }

    /// Hangs up on everybody, and on those who come, until [`Fake::revive`].
    pub(crate) fn kill(&self) {
        self.state.is_up.store(false, Ordering::SeqCst);
        self.hang_up(|_| true);
    }

    pub(crate) fn revive(&self) {
        self.state.is_up.store(true, Ordering::SeqCst);
    }

    /// Ends the connections of the queues that `wanted` says.
    pub(crate) fn hang_up(&self, wanted: impl Fn(u16) -> bool) {
        let mut streams = self.state.streams.write().unwrap();
        for (_, stream) in streams.iter().filter(|(qid, _)| wanted(*qid)) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        streams.retain(|(qid, _)| !wanted(*qid));
    }
}

/// What is held of a queue.
#[derive(Default)]
struct Queue {
    held: Vec<Vec<u8>>,
    /// Writes that wait for data: the command and what has come.
    writes: Vec<(Sqe, Vec<u8>)>,
}

impl State {
    fn nature(&self) -> Nature {
        self.nature.read().unwrap().clone()
    }

    fn serve(&self, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let bound = Some(Duration::from_secs(20));
        stream.set_write_timeout(bound).unwrap();
        let nature = self.nature();
        let mut peer = Peer {
            stream,
            digests: Digests::default(),
            cpda: nature.cpda,
            split: nature.split,
            capsule_data_max: 8192,
            data_max: nature.h2c_max,
        };
        if let Some(qid) = self.connect(&mut peer) {
            match qid {
                0 => self.admin(&mut peer),
                _ => self.io(&mut peer, &nature),
            };
        }
    }

    fn connect(&self, peer: &mut Peer) -> Option<u16> {
        peer.greet()?;
        let pdu = peer.pdu()?;
        let sqe = pdu.sqe();
        assert_eq!(
            (sqe.opcode, sqe.fctype()),
            (admin::FABRICS, fctype::CONNECT)
        );
        let (command, data) = (ConnectCommand::of(&sqe), ConnectData::decode(&pdu.data)?);
        assert_eq!(data.subnqn(), Some(SUBNQN));
        assert_eq!(data.hostnqn(), Some("nqn.2026-11.x:host"));
        let qid = command.qid.get();
        let cntlid = match qid {
            0 => {
                assert_eq!(data.cntlid.get(), ConnectData::ANY);
                self.counts.associations.fetch_add(1, Ordering::SeqCst);
                self.config.store(0, Ordering::SeqCst);
                self.next_cntlid.fetch_add(1, Ordering::SeqCst)
            }
            _ => data.cntlid.get(),
        };
        let status = match cntlid + 1 == self.next_cntlid.load(Ordering::SeqCst) {
            true => Status::SUCCESS,
            false => Status::INVALID_PARAMETER,
        };
        let stream = peer.stream.try_clone().ok()?;
        self.streams.write().unwrap().push((qid, stream));
        let cid = sqe.cid.get();
        let out = peer.completion(cid, status, cntlid.into());
        peer.say(&out);
        status.is_ok().then_some(qid)
    }

    fn admin(&self, peer: &mut Peer) -> Option<()> {
        loop {
            let pdu = peer.pdu()?;
            if pdu.kind == Kind::H2cTerm {
                return None;
            }
            let sqe = pdu.sqe();
            let cid = sqe.cid.get();
            let nature = self.nature();
            let mut out = vec![];
            let mut result = 0;
            match (sqe.opcode, sqe.fctype()) {
                (admin::FABRICS, _) => result = self.property(&sqe, &nature),
                (admin::IDENTIFY, _) => {
                    let page = self.identify(&sqe, &nature);
                    let (first, rest) = page.split_at(page.len().min(nature.c2h_bytes));
                    let last = if rest.is_empty() { flag::LAST } else { 0 };
                    out.extend(peer.data(cid, 0, first, last));
                    if !rest.is_empty() {
                        let at = u32::try_from(first.len()).unwrap();
                        out.extend(peer.data(cid, at, rest, flag::LAST));
                    }
                }
                (admin::ASYNC_EVENT_REQUEST, _) => {
                    self.counts.event_requests.fetch_add(1, Ordering::SeqCst);
                    if nature.refuses_events {
                        let status = Status::INVALID_OPCODE;
                        peer.say(&peer.completion(cid, status, 0));
                        continue;
                    }
                    let digests = peer.digests;
                    let stream = peer.stream.try_clone().ok()?;
                    *self.listener.write().unwrap() = Some((stream, digests, cid));
                    continue;
                }
                (admin::GET_LOG_PAGE, _) => {
                    // The log of changed namespaces, whole, without RAE.
                    assert_eq!(sqe.cdw10.get(), 0x03ff_0004);
                    self.counts.logs.fetch_add(1, Ordering::SeqCst);
                    if nature.is_dumb {
                        continue;
                    }
                    out.extend(peer.data(cid, 0, &[0; 4096], flag::LAST));
                }
                (admin::SET_FEATURES, _) if sqe.cdw10.get() == 0x0b => {
                    assert_eq!(sqe.cdw11.get(), 1 << 8);
                }
                (admin::SET_FEATURES, _) => {
                    let last = u64::from(nature.io_queues) - 1;
                    result = last | last << 16;
                }
                (admin::KEEP_ALIVE, _) => {
                    self.counts.keep_alives.fetch_add(1, Ordering::SeqCst);
                    if nature.is_dumb {
                        continue;
                    }
                }
                other => panic!("no such admin command: {other:?}"),
            }
            out.extend(peer.completion(cid, Status::SUCCESS, result));
            peer.say(&out);
        }
    }

    fn property(&self, sqe: &Sqe, nature: &Nature) -> u64 {
        let command = PropertyCommand::of(sqe).unwrap();
        match (sqe.fctype(), command.offset) {
            (fctype::PROPERTY_GET, property::CAP) => u64::from(nature.queue_entries) - 1,
            (fctype::PROPERTY_GET, property::VS) => 0x0001_0400,
            (fctype::PROPERTY_GET, property::CSTS) => {
                u64::from(self.config.load(Ordering::SeqCst) & 1)
            }
            (fctype::PROPERTY_SET, property::CC) => {
                let value = u32::try_from(command.value).unwrap();
                if value & 3 << 14 != 0 {
                    self.counts.shutdowns.fetch_add(1, Ordering::SeqCst);
                }
                self.config.store(value, Ordering::SeqCst);
                0
            }
            other => panic!("no such property: {other:?}"),
        }
    }

    fn identify(&self, sqe: &Sqe, nature: &Nature) -> Vec<u8> {
        let [page, ..] = sqe.cdw10.get().to_le_bytes();
        let nsid = sqe.nsid.get();
        let distinct = |mut bytes: [u8; 16]| {
            bytes[0] = bytes[0].wrapping_add(u8::try_from(nsid - 1).unwrap());
            bytes
        };
        let namespace = || NamespacePage {
            blocks: nature.blocks,
            block_size: nature.block_size,
            preferred_bytes: 4096,
            read_only: nature.read_only,
            discard_zeroes: false,
            nguid: match nature.nguid {
                [0, ..] => [0; 16],
                nguid => distinct(nguid),
            },
            eui64: [0; 8],
            ana_group: 0,
        };
        let mut out = vec![];
        match page {
            cns::CONTROLLER => {
                let page = ControllerPage {
                    serial: "SN1",
                    model: "fake",
                    firmware: "1",
                    subnqn: SUBNQN,
                    cntlid: self.next_cntlid.load(Ordering::SeqCst) - 1,
                    is_discovery: false,
                    version: 0x0001_0400,
                    mdts: nature.mdts,
                    keep_alive_unit: 1,
                    event_requests: 4,
                    commands_max: nature.queue_entries,
                    namespaces_max: 32,
                    volatile_cache: nature.volatile_cache,
                    capsule_data_max: nature.capsule,
                    ana: false,
                };
                out = page.encode();
                if !nature.optional {
                    out[520] = 0;
                }
            }
            cns::CSI_CONTROLLER => put_nvm_controller(nature.wzsl, 1, 0, &mut out),
            cns::ACTIVE_NAMESPACES => put_namespace_list(1..=nature.namespaces, nsid, &mut out),
            cns::NAMESPACE => out = namespace().encode(),
            cns::DESCRIPTORS => {
                let uuid = match nature.uuid {
                    [0, ..] => [0; 16],
                    uuid => distinct(uuid),
                };
                put_descriptors(&namespace(), uuid, &mut out);
            }
            other => panic!("no such page: {other}"),
        }
        out
    }

    fn io(&self, peer: &mut Peer, nature: &Nature) -> Option<()> {
        let mut queue = Queue::default();
        loop {
            let pdu = peer.pdu()?;
            match pdu.kind {
                Kind::CapsuleCmd => {
                    let sqe = pdu.sqe();
                    let hook = self.hook.read().unwrap();
                    if hook
                        .as_ref()
                        .is_some_and(|hook| hook(peer, &sqe, &pdu.data))
                    {
                        continue;
                    }
                    drop(hook);
                    self.command(peer, nature, &mut queue, &sqe, &pdu.data);
                }
                Kind::H2cData => self.more(peer, nature, &mut queue, &pdu),
                _ => return None,
            }
            let under_way = queue.held.len() + queue.writes.len();
            self.counts.depth.fetch_max(under_way, Ordering::SeqCst);
        }
    }

    fn command(&self, peer: &mut Peer, nature: &Nature, queue: &mut Queue, sqe: &Sqe, data: &[u8]) {
        let to_come = matches!(sqe.opcode, io::WRITE | io::DATASET_MANAGEMENT)
            && sqe.sgl_kind == sgl::TRANSPORT;
        if to_come {
            assert!(data.is_empty());
            queue.writes.push((*sqe, vec![]));
            self.ask(peer, nature, sqe, 0);
            return;
        }
        let out = self.execute(peer, nature, sqe, data);
        finish(peer, nature, queue, out);
    }

    fn ask(&self, peer: &mut Peer, nature: &Nature, sqe: &Sqe, at: u32) {
        let len = (sqe.sgl_len.get() - at).min(nature.r2t_bytes);
        let mut out = vec![];
        // The tag says which command; its bits are turned around.
        let cid = sqe.cid.get();
        R2tPdu::new(cid, !cid, at, len).put(peer.digests, &mut out);
        peer.say(&out);
    }

    fn more(&self, peer: &mut Peer, nature: &Nature, queue: &mut Queue, pdu: &Pdu) {
        let data = pmcache::wire::nvme::DataPdu::decode(&pdu.body).unwrap();
        let mut all = queue.writes.iter();
        let at = all.position(|(sqe, _)| sqe.cid == data.cid).unwrap();
        let (sqe, got) = &mut queue.writes[at];
        let sqe = *sqe;
        assert_eq!(data.tag.get(), !data.cid.get());
        assert_eq!(data.offset.get() as usize, got.len());
        assert_eq!(data.len.get() as usize, pdu.data.len());
        got.extend_from_slice(&pdu.data);
        let got_bytes = u32::try_from(got.len()).unwrap();
        let of_window = nature.r2t_bytes.min(sqe.sgl_len.get());
        let is_all = got_bytes == sqe.sgl_len.get();
        let is_last = is_all || got_bytes % of_window == 0;
        assert_eq!(pdu.flags & flag::LAST != 0, is_last);
        if is_all {
            let (_, got) = queue.writes.remove(at);
            let out = self.execute(peer, nature, &sqe, &got);
            finish(peer, nature, queue, out);
        } else if is_last {
            self.ask(peer, nature, &sqe, got_bytes);
        }
    }

    /// Does a command; returns its answer.
    fn execute(&self, peer: &Peer, nature: &Nature, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let cid = sqe.cid.get();
        let range = || {
            let range = sqe.blocks().within(nature.blocks, nature.block_size);
            let range = range.expect("the host checks");
            let (from, to) = (range.start(), range.end());
            usize::try_from(from).unwrap()..usize::try_from(to).unwrap()
        };
        if sqe.fua() {
            self.counts.fuas.fetch_add(1, Ordering::SeqCst);
        }
        let mut out = vec![];
        match sqe.opcode {
            io::READ => {
                let bytes = self.disk.read().unwrap()[range()].to_vec();
                assert_eq!(sqe.sgl_len.get() as usize, bytes.len());
                let mut at = 0;
                let pieces: Vec<_> = bytes.chunks(nature.c2h_bytes).collect();
                for (number, piece) in pieces.iter().enumerate() {
                    let flags = match (number + 1 == pieces.len(), nature.success) {
                        (true, true) => flag::LAST | flag::SUCCESS,
                        (true, false) => flag::LAST,
                        (false, _) => 0,
                    };
                    out.extend(peer.data(cid, at, piece, flags));
                    at += u32::try_from(piece.len()).unwrap();
                }
                if nature.success {
                    return out;
                }
            }
            io::WRITE => {
                assert!(data.len() <= 4096 << nature.mdts);
                self.disk.write().unwrap()[range()].copy_from_slice(data);
            }
            io::WRITE_ZEROES => {
                self.counts.zeroed.fetch_add(1, Ordering::SeqCst);
                self.disk.write().unwrap()[range()].fill(0);
            }
            io::FLUSH => {
                self.counts.flushes.fetch_add(1, Ordering::SeqCst);
            }
            io::DATASET_MANAGEMENT => {
                let ranges = DsmRange::decode(data, 1).unwrap();
                let blocks = ranges[0].blocks.get() as usize;
                self.counts.deallocated.fetch_add(blocks, Ordering::SeqCst);
            }
            other => panic!("no such I/O command: {other}"),
        }
        out.extend(peer.completion(cid, Status::SUCCESS, 0));
        out
    }
}

fn finish(peer: &mut Peer, nature: &Nature, queue: &mut Queue, out: Vec<u8>) {
    queue.held.push(out);
    if queue.held.len() >= nature.reverse {
        for out in queue.held.drain(..).rev() {
            peer.say(&out);
        }
    }
}
