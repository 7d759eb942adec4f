//! What the qpairs of one controller share, across reactors.

use super::auth::AuthInfo;
use super::listener::ListenAddress;
use super::subsystem::Subsystem;
use crate::target::stream::wake_all;
use crate::wire::nvme::{SmartFigures, cc, csts};
use reactors::{ReactorHandle, ReactorId};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

const TOLD_NOTHING: u8 = 0;
const TOLD_VOLATILE: u8 = 1;
const TOLD_STABLE: u8 = 2;

/// Who a host says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) nqn: String,
    pub(super) id: [u8; 16],
}

/// A controller, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Its identifier.
    pub cntlid: u16,
    /// It lists subsystems.
    pub is_discovery: bool,
    /// The host's name.
    pub hostnqn: String,
    /// The host's identifier.
    pub hostid: [u8; 16],
    /// I/O qpairs that are connected.
    pub io_qpairs: usize,
}

/// A qpair, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QpairInfo {
    /// Whose it is.
    pub cntlid: u16,
    /// 0 for the admin qpair.
    pub qid: u16,
    /// Where it runs.
    pub reactor: ReactorId,
    /// The host's name.
    pub hostnqn: String,
    /// Where it came in.
    pub listener: ListenAddress,
    /// Where it came from.
    pub peer: SocketAddr,
    /// How its host's authentication stands; nothing if none is asked for.
    pub auth: Option<AuthInfo>,
}

/// One connected qpair, as others see it; only its own reactor writes.
#[derive(Debug)]
pub(super) struct QpairStatus {
    pub(super) qid: u16,
    pub(super) reactor: ReactorId,
    pub(super) peer: SocketAddr,
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) media_errors: AtomicU64,
    /// An [`AuthInfo`]; 0 if the host need not prove anything.
    pub(super) auth: AtomicU32,
}

impl QpairStatus {
    pub(super) fn new(qid: u16, reactor: ReactorId, peer: SocketAddr) -> Self {
        Self {
            qid,
            reactor,
            peer,
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            media_errors: AtomicU64::new(0),
            auth: AtomicU32::new(0),
        }
    }

    fn add_to(&self, figures: &mut SmartFigures) {
        figures.reads += self.reads.load(Ordering::Relaxed);
        figures.writes += self.writes.load(Ordering::Relaxed);
        figures.bytes_read += self.bytes_read.load(Ordering::Relaxed);
        figures.bytes_written += self.bytes_written.load(Ordering::Relaxed);
        figures.media_errors += self.media_errors.load(Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Qpairs {
    connected: Vec<Arc<QpairStatus>>,
    /// Of those that are gone.
    past: SmartFigures,
}

/// One controller. Lives as long as its admin qpair; I/O qpairs look at it each round.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) cntlid: u16,
    pub(super) subsystem: Arc<Subsystem>,
    pub(super) host: Host,
    /// Where the host came in; all its qpairs must.
    pub(super) listener: SocketAddr,
    pub(super) listen_address: ListenAddress,
    /// Whoever may have its qpairs, to be woken.
    reactors: Vec<ReactorHandle>,
    /// How long the host may be silent, as it said when it connected; 0 if for ever.
    pub(super) keep_alive_ms: u32,
    /// The properties CC and CSTS.
    cc: AtomicU32,
    csts: AtomicU32,
    /// Raised when the host wants all I/O qpairs gone.
    epoch: AtomicU32,
    ended: AtomicBool,
    /// Its host has proved who it is, if it must, and others have heard of it.
    pub(super) welcomed: AtomicBool,
    /// What the host was told of a volatile cache: nothing yet, that there is one, or that there is none.
    told: AtomicU8,
    qpairs: RwLock<Qpairs>,
}

impl Controller {
    pub(super) fn new(
        cntlid: u16,
        subsystem: Arc<Subsystem>,
        host: Host,
        listen_address: ListenAddress,
        (reactors, keep_alive_ms): (Vec<ReactorHandle>, u32),
    ) -> Self {
        Self {
            cntlid,
            subsystem,
            host,
            listener: listen_address.listener,
            listen_address,
            reactors,
            keep_alive_ms,
            cc: AtomicU32::new(0),
            csts: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            welcomed: AtomicBool::new(false),
            told: AtomicU8::new(TOLD_NOTHING),
            qpairs: RwLock::default(),
        }
    }

    pub(super) fn cc(&self) -> u32 {
        self.cc.load(Ordering::Acquire)
    }

    pub(super) fn csts(&self) -> u32 {
        self.csts.load(Ordering::Acquire)
    }

    /// Takes commands and I/O qpairs.
    pub(super) fn is_enabled(&self) -> bool {
        self.cc() & cc::ENABLE != 0
    }

    /// Sets CC. Hosts disable and shut down to be sure that no I/O is under way.
    pub(super) fn configure(&self, value: u32) {
        let before = self.cc.swap(value, Ordering::AcqRel);
        let enabled = value & cc::ENABLE != 0;
        let shuts_down = value & cc::SHN != 0 && before & cc::SHN == 0;
        if (before & cc::ENABLE != 0 && !enabled) || shuts_down {
            self.epoch.fetch_add(1, Ordering::AcqRel);
            wake_all(&self.reactors);
        }
        let mut status = if enabled { csts::READY } else { 0 };
        if value & cc::SHN != 0 {
            status |= csts::SHUTDOWN_COMPLETE;
        }
        self.csts.store(status, Ordering::Release);
    }

    /// What CSTS says once no I/O qpair is left of those that had to go.
    pub(super) fn settled_csts(&self) -> u32 {
        let status = self.csts();
        let waits = self.io_qpairs() > 0;
        match waits {
            // The shutdown goes on.
            true if status & csts::SHUTDOWN_COMPLETE != 0 => {
                (status & !csts::SHUTDOWN_COMPLETE) | csts::SHUTDOWN_COMPLETE >> 1
            }
            // Not disabled before all I/O has ended.
            true if !self.is_enabled() => status | csts::READY,
            _ => status,
        }
    }

    /// The host has not been heard of for too long.
    pub(super) fn fail(&self) {
        self.csts.fetch_or(csts::FATAL, Ordering::AcqRel);
        self.end();
    }

    /// All its qpairs shall close.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        wake_all(&self.reactors);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The host is told whether there is a volatile cache. Once it has heard that there is none it need
    /// not listen again.
    pub(super) fn tell(&self, volatile: bool) {
        if !volatile {
            self.told.store(TOLD_STABLE, Ordering::Relaxed);
        } else if self.told.load(Ordering::Relaxed) == TOLD_NOTHING {
            self.told.store(TOLD_VOLATILE, Ordering::Relaxed);
        }
    }

    /// Whether the host flushes what it wants to be durable.
    pub(super) fn host_flushes(&self) -> bool {
        self.told.load(Ordering::Relaxed) == TOLD_VOLATILE
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    fn with_qpairs<R>(&self, f: impl FnOnce(&mut Qpairs) -> R) -> R {
        f(&mut self.qpairs.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Enters a qpair, unless its number is taken.
    pub(super) fn enter(self: &Arc<Self>, status: QpairStatus) -> Option<QpairEntry> {
        self.with_qpairs(|qpairs| {
            if qpairs.connected.iter().any(|other| other.qid == status.qid) {
                return None;
            }
            let status = Arc::new(status);
            qpairs.connected.push(Arc::clone(&status));
            let controller = Arc::clone(self);
            Some(QpairEntry { controller, status })
        })
    }

    fn io_qpairs(&self) -> usize {
        let qpairs = self.qpairs.read().unwrap_or_else(PoisonError::into_inner);
        qpairs
            .connected
            .iter()
            .filter(|qpair| qpair.qid > 0)
            .count()
    }

    /// Whether queues are connected already, so that their number can't be agreed on any more.
    pub(super) fn has_io_qpairs(&self) -> bool {
        self.io_qpairs() > 0
    }

    pub(super) fn figures(&self) -> SmartFigures {
        let qpairs = self.qpairs.read().unwrap_or_else(PoisonError::into_inner);
        let mut figures = qpairs.past;
        for qpair in &qpairs.connected {
            qpair.add_to(&mut figures);
        }
        figures
    }

    pub(super) fn info(&self) -> ControllerInfo {
        ControllerInfo {
            cntlid: self.cntlid,
            is_discovery: self.subsystem.is_discovery,
            hostnqn: self.host.nqn.clone(),
            hostid: self.host.id,
            io_qpairs: self.io_qpairs(),
        }
    }

    pub(super) fn qpair_infos(&self) -> Vec<QpairInfo> {
        let qpairs = self.qpairs.read().unwrap_or_else(PoisonError::into_inner);
        let infos = qpairs.connected.iter().map(|qpair| QpairInfo {
            cntlid: self.cntlid,
            qid: qpair.qid,
            reactor: qpair.reactor,
            hostnqn: self.host.nqn.clone(),
            listener: self.listen_address,
            peer: qpair.peer,
            auth: AuthInfo::of(qpair),
        });
        infos.collect()
    }
}

/// A qpair's place in its controller; the admin qpair's ends the controller when dropped.
#[derive(Debug)]
pub(super) struct QpairEntry {
    pub(super) controller: Arc<Controller>,
    pub(super) status: Arc<QpairStatus>,
}

impl Drop for QpairEntry {
    fn drop(&mut self) {
        self.controller.with_qpairs(|qpairs| {
            self.status.add_to(&mut qpairs.past);
            qpairs
                .connected
                .retain(|other| !Arc::ptr_eq(other, &self.status));
        });
        if self.status.qid == 0 {
            self.controller.end();
            self.controller.subsystem.forget(&self.controller);
        }
    }
}
