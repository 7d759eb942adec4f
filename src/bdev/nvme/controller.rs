//! A controller that is attached, and its namespaces as bdevs.

use super::dialogue::Dialogue;
use super::keeper::{Established, Keeper, converse};
use super::link::{Link, NvmeChannel};
use super::setup::Setup;
use super::shared::{Shared, Standing};
use super::{NvmeConfig, NvmeFault};
use crate::bdev::{Bdev, BdevError, BdevInfo, Channel};
use reactors::{Clock, Cx, ReactorHandle};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often to look whether something has been calculated.
const CALCULATED_NS: u64 = 1_000_000;
/// Tells controllers apart.
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// Whether a controller can be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// It can.
    Enabled,
    /// Its connection is lost; it is being made again.
    Reconnecting,
    /// It was given up.
    Failed,
}

/// What a controller tells of itself.
#[derive(Clone, Debug)]
pub struct ControllerFacts {
    /// The controller's identifier at present, or the last one.
    pub cntlid: u16,
    /// VS.
    pub version: u32,
    /// The PCI vendor.
    pub vendor: u16,
    /// Its serial number.
    pub serial: String,
    /// Its model.
    pub model: String,
    /// Its firmware.
    pub firmware: String,
    /// I/O queues that it grants.
    pub io_queues: u16,
    /// Entries of each.
    pub queue_entries: u32,
}

/// A controller behind NVMe/TCP. Dropped, it is shut down; its bdevs hold it.
#[derive(Debug)]
pub struct NvmeController {
    shared: Arc<Shared>,
}

impl Drop for NvmeController {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

impl NvmeController {
    /// Connects, learns what there is, and leaves the admin queue to a poller on `keeper`. May wait for
    /// the controller, by `clock` for the time in `config` at most, and for the resolution of its name;
    /// so it is for control threads.
    ///
    /// # Errors
    /// [`BdevError::Nvme`] if there is no such controller, it refuses, or breaks the protocol;
    /// [`BdevError::NotSupported`] for a namespace whose blocks no bdev can have;
    /// [`BdevError::Invalid`] for a bad configuration.
    pub fn attach(
        config: NvmeConfig,
        clock: &dyn Clock,
        keeper: &ReactorHandle,
    ) -> Result<Arc<Self>, BdevError> {
        let (address, established) = establish(&config, clock)?;
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let found = established.found.clone();
        let shared = Shared::new(config, address, found, (key, Some(keeper.clone())))?;
        let shared = Arc::new(shared);
        // As the keeper will, when its reactor comes to it.
        let cntlid = shared.found.cntlid;
        shared.set_standing(Standing::Up { epoch: 1, cntlid });
        let kept = Arc::clone(&shared);
        let start = move |cx: &Cx| Keeper::start(cx, kept, established);
        keeper.send(Box::new(start)).map_err(|_full| {
            BdevError::Busy(format!("{}: the keeper's reactor", shared.config.uri))
        })?;
        Ok(Arc::new(Self { shared }))
    }

    /// Connects, learns what there is, and disconnects: its bdevs can tell of themselves, but not be
    /// opened. Otherwise as [`NvmeController::attach`].
    ///
    /// # Errors
    /// As there.
    pub fn probe(config: NvmeConfig, clock: &dyn Clock) -> Result<Arc<Self>, BdevError> {
        let (address, established) = establish(&config, clock)?;
        let shared = Shared::new(config, address, established.found, (0, None))?;
        shared.set_standing(Standing::Failed);
        let shared = Arc::new(shared);
        Ok(Arc::new(Self { shared }))
    }

    /// How it was attached.
    #[must_use]
    pub fn config(&self) -> &NvmeConfig {
        &self.shared.config
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Whether it can be used now.
    #[must_use]
    pub fn state(&self) -> ControllerState {
        match self.shared.standing() {
            Standing::Up { .. } => ControllerState::Enabled,
            Standing::Down => ControllerState::Reconnecting,
            Standing::Failed => ControllerState::Failed,
        }
    }

    /// What it told of itself.
    #[must_use]
    pub fn facts(&self) -> ControllerFacts {
        let found = &self.shared.found;
        let told = &found.controller;
        ControllerFacts {
            cntlid: match self.shared.standing() {
                Standing::Up { cntlid, .. } => cntlid,
                Standing::Down | Standing::Failed => found.cntlid,
            },
            version: found.version,
            vendor: told.vendor,
            serial: told.serial.clone(),
            model: told.model.clone(),
            firmware: told.firmware.clone(),
            io_queues: found.queues,
            queue_entries: self.shared.queue_entries(),
        }
    }

    /// Its namespaces as bdevs, in order; none if it has none.
    #[must_use]
    pub fn bdevs(self: &Arc<Self>) -> Vec<NvmeBdev> {
        let each = 0..self.shared.namespaces.len();
        each.filter_map(|index| NvmeBdev::new(self, index))
            .collect()
    }
}

/// "NVMe disk": a namespace of an [`NvmeController`]. All channels of a reactor, to all namespaces,
/// share a queue.
///
/// While the controller is away requests wait, as long as [`Patience`](super::Patience) says; those
/// that were under way are sent again. A flush then fails if writes that were acknowledged before may
/// have been forgotten.
#[derive(Debug)]
pub struct NvmeBdev {
    controller: Arc<NvmeController>,
    index: usize,
    nsid: u32,
    live: Arc<crate::bdev::live_info::LiveInfo>,
}

impl NvmeBdev {
    fn new(controller: &Arc<NvmeController>, index: usize) -> Option<Self> {
        let namespace = controller.shared.namespaces.get(index)?;
        Some(Self {
            index,
            nsid: namespace.nsid,
            live: Arc::clone(&namespace.live),
            controller: Arc::clone(controller),
        })
    }

    /// Whose namespace it is.
    #[must_use]
    pub fn controller(&self) -> &Arc<NvmeController> {
        &self.controller
    }

    /// Which namespace.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.nsid
    }
}

impl Bdev for NvmeBdev {
    fn info(&self) -> Arc<BdevInfo> {
        self.live.get()
    }

    /// Begins to connect the reactor's queue, if it has none; requests wait until that is done.
    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let link = Link::of_reactor(cx, &self.controller.shared)?;
        let channel = NvmeChannel::new(link, Arc::clone(&self.controller), self.index, &self.live);
        Ok(Box::new(channel))
    }
}

fn establish(
    config: &NvmeConfig,
    clock: &dyn Clock,
) -> Result<(SocketAddr, Established), BdevError> {
    config.check()?;
    let uri = &config.uri;
    let addresses = (uri.host.as_str(), uri.port).to_socket_addrs();
    let addresses = addresses.map_err(|source| BdevError::Os {
        what: format!("looking up {}", uri.host),
        source,
    })?;
    let mut failed = NvmeFault::End;
    for address in addresses {
        let dialogue = Dialogue::new(address, config.digests());
        match set_up(dialogue, config, clock) {
            Ok(established) => return Ok((address, established)),
            Err(fault) => failed = fault,
        }
    }
    Err(BdevError::Nvme {
        uri: uri.to_string(),
        source: failed,
    })
}

/// Takes `dialogue` through the set-up. Waits.
fn set_up(
    mut dialogue: Dialogue,
    config: &NvmeConfig,
    clock: &dyn Clock,
) -> Result<Established, NvmeFault> {
    let mut setup = Setup::new(config, None);
    let deadline = clock
        .now()
        .after(config.connect_timeout_us.saturating_mul(1000));
    loop {
        match converse(&mut dialogue, &mut setup) {
            Ok(true) => {
                let found = setup.finish().ok_or(NvmeFault::Timeout)?;
                return Ok(Established { dialogue, found });
            }
            Ok(false) => {}
            Err(fault) => {
                dialogue.complain(&fault);
                return Err(fault);
            }
        }
        let left = deadline.since(clock.now());
        if left == 0 {
            return Err(NvmeFault::Timeout);
        }
        // Nothing comes from the controller meanwhile.
        let limit = match setup.is_calculating() {
            true => left.min(CALCULATED_NS),
            false => left,
        };
        dialogue.wait(limit)?;
    }
}
