//! A controller, as the control plane holds it.

use super::backing::Backing;
use super::calls::{Coalescing, SharedCoalescing};
use super::control::ControlLoop;
use super::queue_handle::QueueShared;
use super::{QUEUES_MAX, VhostError};
use crate::bdev::Bdev;
use crate::target::unix_socket::{SocketFile, listen_unix};
use reactors::ReactorHandle;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::FileType;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Longest name of a controller, in bytes: the socket's path has to fit 107.
const NAME_BYTES_MAX: usize = 80;

/// Controllers since the start of the process.
static CONTROLLERS: AtomicUsize = AtomicUsize::new(0);
/// Sessions since the start of the process.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// What to offer, and where.
#[derive(Clone, Debug)]
pub struct VhostConfig {
    /// 1 to 80 bytes of `[A-Za-z0-9_.:-]`; the socket's name in `dir`.
    pub name: String,
    /// Where the socket goes.
    pub dir: PathBuf,
    /// The disk.
    pub bdev: Arc<dyn Bdev>,
    /// Refuse writes even if the device would take them.
    pub read_only: bool,
    /// Who runs the queues, in turn.
    pub reactors: Vec<ReactorHandle>,
}

/// One front end, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Never used again in this process.
    pub vid: u64,
    /// Whether a queue runs.
    pub started: bool,
    /// How many queues run.
    pub queues: usize,
    /// Requests under way.
    pub under_way: u32,
}

#[derive(Debug)]
struct Connected {
    vid: u64,
    queues: Vec<Arc<QueueShared>>,
}

/// What is known of the front end, for lists.
#[derive(Debug, Default)]
pub(super) struct Status(RwLock<Option<Connected>>);

impl Status {
    /// A front end is there; returns its number.
    pub(super) fn enter(&self) -> u64 {
        let vid = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let queues = Vec::new();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Connected { vid, queues });
        vid
    }

    pub(super) fn leave(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn set_queues(&self, queues: Vec<Arc<QueueShared>>) {
        let mut connected = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(connected) = &mut *connected {
            connected.queues = queues;
        }
    }

    fn info(&self) -> Option<SessionInfo> {
        let connected = self.0.read().unwrap_or_else(PoisonError::into_inner);
        connected.as_ref().map(|connected| SessionInfo {
            vid: connected.vid,
            started: !connected.queues.is_empty(),
            queues: connected.queues.len(),
            under_way: connected.queues.iter().map(|queue| queue.under_way()).sum(),
        })
    }
}

/// What a controller shares with its thread.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) stopping: AtomicBool,
    pub(super) ended: AtomicBool,
    /// Readable once it is to stop.
    pub(super) bell: OwnedFd,
    pub(super) status: Arc<Status>,
    /// The front end's: shut down, nothing blocks on it.
    socket: RwLock<Option<UnixStream>>,
}

impl Shared {
    pub(super) fn set_socket(&self, socket: Option<UnixStream>) {
        *self.socket.write().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    fn break_off(&self) {
        let socket = self.socket.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket {
            // The only failure is that the front end has gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// A disk on a socket. Stops when dropped.
#[derive(Debug)]
pub struct VhostController {
    name: String,
    path: PathBuf,
    bdev: Arc<dyn Bdev>,
    read_only: bool,
    coalescing: Arc<SharedCoalescing>,
    shared: Arc<Shared>,
    file: Option<SocketFile>,
}

fn check_name(name: &str) -> Result<(), VhostError> {
    let known = |c: u8| c.is_ascii_alphanumeric() || b"_.:-".contains(&c);
    let bounded = (1..=NAME_BYTES_MAX).contains(&name.len());
    match bounded && name.bytes().all(known) && !name.starts_with('.') {
        true => Ok(()),
        false => Err(VhostError::BadName(name.to_owned())),
    }
}

fn listen(path: &Path) -> Result<(OwnedFd, SocketFile), VhostError> {
    if let Ok(stat) = rustix::fs::lstat(path)
        && FileType::from_raw_mode(stat.st_mode) != FileType::Socket
    {
        return Err(VhostError::NotASocket(path.to_owned()));
    }
    listen_unix(path).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => VhostError::AddressInUse(path.to_owned()),
        _ => VhostError::Listen {
            path: path.to_owned(),
            source,
        },
    })
}

impl VhostController {
    /// Listens on the socket. Front ends are served as soon as a thread runs the loop.
    ///
    /// # Errors
    /// See [`VhostError`].
    pub fn listen(config: VhostConfig) -> Result<(Self, ControlLoop), VhostError> {
        check_name(&config.name)?;
        if config.reactors.is_empty() {
            return Err(VhostError::NoReactor);
        }
        let path = config.dir.join(&config.name);
        let (listener, file) = listen(&path)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = eventfd(0, flags).map_err(|error| VhostError::Listen {
            path: path.clone(),
            source: error.into(),
        })?;
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            bell,
            status: Arc::default(),
            socket: RwLock::default(),
        });
        let read_only = config.read_only || config.bdev.info().read_only;
        let coalescing = Arc::<SharedCoalescing>::default();
        let backing = Arc::new(Backing {
            coalescing: Arc::clone(&coalescing),
            name: config.name.clone(),
            bdev: Arc::clone(&config.bdev),
            read_only: config.read_only,
            queues: QUEUES_MAX,
            write_back: AtomicBool::new(true),
            reactors: config.reactors,
            first: CONTROLLERS.fetch_add(1, Ordering::Relaxed),
        });
        let control = ControlLoop {
            listener,
            backing,
            shared: Arc::clone(&shared),
        };
        let controller = Self {
            name: config.name,
            path,
            bdev: config.bdev,
            read_only,
            coalescing,
            shared,
            file: Some(file),
        };
        Ok((controller, control))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its disk.
    #[must_use]
    pub fn bdev(&self) -> &Arc<dyn Bdev> {
        &self.bdev
    }

    /// Whether writes are refused, here or by the device.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether its calls may wait.
    #[must_use]
    pub fn coalescing(&self) -> Coalescing {
        self.coalescing.get()
    }

    /// Lets calls wait, or not; queues that run heed it within 10 ms.
    ///
    /// # Errors
    /// [`VhostError::Threshold`] below [`Coalescing::IOPS_MIN`].
    pub fn set_coalescing(&self, wanted: Coalescing) -> Result<(), VhostError> {
        if wanted.iops_threshold < Coalescing::IOPS_MIN {
            return Err(VhostError::Threshold(wanted.iops_threshold));
        }
        self.coalescing.set(wanted);
        Ok(())
    }

    /// The front end, if one is connected.
    #[must_use]
    pub fn session(&self) -> Option<SessionInfo> {
        self.shared.status.info()
    }

    /// Removes the socket and ends the session: what waits is given up, what the device has is
    /// finished first. Returns at once.
    pub fn stop(&mut self) {
        self.file = None;
        self.shared.stopping.store(true, Ordering::Release);
        // It fails only if it is full, and then it has rung.
        let _ = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
        self.shared.break_off();
    }

    /// Whether, after [`VhostController::stop`], nothing of it is left on a reactor.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }
}

impl Drop for VhostController {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_and_no_more() {
        for good in ["vhost.0", "a-b_c:d"] {
            check_name(good).unwrap();
        }
        for bad in ["", "a/b", ".hidden", "..", &"x".repeat(81)] {
            assert!(
                matches!(check_name(bad), Err(VhostError::BadName(_))),
                "{bad}"
            );
        }
    }
}
