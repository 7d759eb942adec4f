//! The thread that talks to a back end.

use super::VhostFault;
use super::connection::{Connection, Shape};
use super::device::{Device, VhostConfig};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

/// How long to wait before looking again whether a back end is there. The crate does not show its
/// socket, so the death of a back end is found out by asking.
const PAUSE: Duration = Duration::from_millis(100);

/// The sockets where a back end has been dialled for a new bdev, and has not answered. One that serves
/// another front end would collect threads and connections with each further try.
static DIALLED: RwLock<BTreeSet<PathBuf>> = RwLock::new(BTreeSet::new());

/// A place in [`DIALLED`].
#[derive(Debug)]
pub(super) struct Dial(PathBuf);

impl Dial {
    /// None if nobody has answered an earlier one yet.
    pub(super) fn start(path: &Path) -> Option<Self> {
        let mut dialled = DIALLED.write().unwrap_or_else(PoisonError::into_inner);
        dialled
            .insert(path.to_owned())
            .then(|| Self(path.to_owned()))
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let mut dialled = DIALLED.write().unwrap_or_else(PoisonError::into_inner);
        dialled.remove(&self.0);
    }
}

/// Connects a [`VhostBdev`](super::VhostBdev), and keeps it connected. The caller gives it a thread:
/// [`Keeper::run`].
pub struct Keeper {
    config: VhostConfig,
    shape: Shape,
    dial: Dial,
    made: SyncSender<Result<Arc<Device>, VhostFault>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    pub(super) fn new(
        config: VhostConfig,
        shape: Shape,
        dial: Dial,
        made: SyncSender<Result<Arc<Device>, VhostFault>>,
    ) -> Self {
        Self {
            config,
            shape,
            dial,
            made,
        }
    }

    /// Connects, and looks after the connection until the bdev and all of its channels are gone.
    pub fn run(self) {
        let opened = Connection::open(&self.config.path, self.shape);
        drop(self.dial);
        let made = opened.map(|connection| Arc::new(Device::new(self.config, connection)));
        let device = match &made {
            Ok(device) => Arc::downgrade(device),
            Err(_) => Weak::new(),
        };
        // Who has given up gets nothing, and the device ends here.
        let _ = self.made.send(made);
        let mut is_there = true;
        loop {
            std::thread::park_timeout(PAUSE);
            let Some(device) = device.upgrade() else {
                return;
            };
            let path = device.path.display();
            match device.tend() {
                Ok(()) if !is_there => {
                    is_there = true;
                    tracing::info!(%path, "vhost initiator: the back end is back");
                }
                Err(fault) if is_there => {
                    is_there = false;
                    tracing::warn!(%path, "vhost initiator: the back end is gone: {fault}");
                }
                Err(fault @ VhostFault::Changed { .. }) => {
                    tracing::debug!(%path, "vhost initiator: {fault}");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}
