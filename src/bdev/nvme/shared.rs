//! What a controller's queues, on all reactors, and its keeper share.

use super::setup::{Found, FoundNamespace};
use super::unflushed::Unflushed;
use super::{NvmeConfig, NvmeFault};
use crate::bdev::live_info::LiveInfo;
use crate::bdev::{BdevError, BdevInfo, Supports, derived_uuid};
use crate::wire::nvme::{Identities, NamespaceTold};
use reactors::ReactorHandle;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use uuid::Uuid;

/// The longest transfer of one command, whatever the controller takes: so that requests take turns.
const TRANSFER_BYTES_MAX: u64 = 1 << 20;
/// The unit of MDTS and WZSL.
const PAGE_BYTES: u64 = 4096;
/// Blocks of one command at most.
const COMMAND_BLOCKS_MAX: u64 = 1 << 16;
/// Entries of an I/O queue at most: a command's place must fit into its identifier.
pub(super) const QUEUE_ENTRIES_MAX: u32 = 1024;
/// Bytes of one range of Dataset Management, if the controller sets no bound.
const RANGE_BYTES_MAX: u64 = 1 << 30;

/// How a controller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is no association.
    Down,
    /// Queues may connect to it.
    Up {
        /// Which association: they are counted from 1.
        epoch: u32,
        /// The controller's identifier.
        cntlid: u16,
    },
    /// It was given up.
    Failed,
}

const DOWN: u64 = 0;
const FAILED: u64 = u64::MAX;

/// One namespace: its bdev's description, and what must stay.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) nsid: u32,
    pub(super) live: Arc<LiveInfo>,
    pub(super) zeroes_deallocate: bool,
    /// It is gone, as the controller has told: it has none of this number, or another.
    gone: AtomicBool,
    identities: Identities,
    block_exponent: u8,
    metadata_bytes: u16,
}

/// A namespace, and what the controller says of it now.
type Looked<'a> = (&'a Namespace, Result<NamespaceTold, NvmeFault>);

/// A controller.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: NvmeConfig,
    pub(super) address: SocketAddr,
    pub(super) found: Found,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) unflushed: Unflushed,
    /// Tells it from others on a reactor.
    pub(super) key: u64,
    standing: AtomicU64,
    /// Queues fail in this association.
    suspected: AtomicU32,
    /// It is to be left.
    leaving: AtomicBool,
    keeper: Option<ReactorHandle>,
    seats: Box<[AtomicBool]>,
}

/// An I/O queue's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    shared: Arc<Shared>,
    index: usize,
}

impl Seat {
    /// The queue's identifier.
    pub(super) fn qid(&self) -> u16 {
        u16::try_from(self.index + 1).unwrap_or(u16::MAX)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(seat) = self.shared.seats.get(self.index) {
            seat.store(false, Ordering::Release);
        }
    }
}

/// The identity of a namespace's bdev: its own, or one that follows from another of its own.
fn uuid_of(config: &NvmeConfig, found: &Found, namespace: &FoundNamespace) -> Uuid {
    let identities = &namespace.identities;
    if let Some(uuid) = identities.uuid {
        return Uuid::from_bytes(uuid);
    }
    if let Some(nguid) = identities.nguid {
        return derived_uuid("nvme nguid", &[&nguid]);
    }
    if let Some(eui64) = identities.eui64 {
        return derived_uuid("nvme eui64", &[&eui64]);
    }
    let serial = found.controller.serial.as_bytes();
    let nsid = namespace.nsid.to_le_bytes();
    derived_uuid("nvme", &[config.uri.subnqn.as_bytes(), serial, &nsid])
}

impl Namespace {
    fn new(
        config: &NvmeConfig,
        found: &Found,
        namespace: &FoundNamespace,
    ) -> Result<Self, BdevError> {
        let (nsid, told) = (namespace.nsid, &namespace.told);
        let uri = &config.uri;
        let exponent = told.block_exponent;
        if !matches!(exponent, 9 | 12) || told.metadata_bytes != 0 {
            return Err(BdevError::NotSupported(format!(
                "{uri}: blocks of 2^{exponent} bytes with {} of metadata in namespace {nsid}",
                told.metadata_bytes
            )));
        }
        if told.blocks == 0 {
            return Err(BdevError::Invalid(format!(
                "{uri}: namespace {nsid} has no blocks"
            )));
        }
        let info = BdevInfo {
            name: format!("{}n{nsid}", config.name),
            product_name: "NVMe disk",
            uuid: uuid_of(config, found, namespace),
            block_size: 1 << exponent,
            blocks: told.blocks,
            volatile_cache: found.controller.volatile_cache,
            read_only: config.read_only || told.read_only,
            supports: Supports {
                discard: found.controller.dataset_management,
                // A hint to the controller, which may do nothing.
                discard_zeroes: false,
                write_zeroes: found.controller.write_zeroes,
                extents: false,
            },
        };
        Ok(Self {
            nsid,
            live: Arc::new(LiveInfo::new(info)),
            zeroes_deallocate: told.zeroes_deallocate,
            gone: AtomicBool::new(false),
            identities: namespace.identities,
            block_exponent: exponent,
            metadata_bytes: told.metadata_bytes,
        })
    }

    /// Whether its requests fail, since it has been taken away.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It is there, as `told`.
    fn take_note(&self, config: &NvmeConfig, told: &NamespaceTold) {
        let read_only = config.read_only || told.read_only;
        self.live.set(told.blocks, read_only);
        self.gone.store(false, Ordering::Release);
    }

    /// Checks that `found` is the same one.
    fn recognise(&self, found: &FoundNamespace) -> Result<(), NvmeFault> {
        let (is, was) = (&found.told, self.live.get().blocks);
        let what = if found.identities != self.identities {
            "identity"
        } else if (is.block_exponent, is.metadata_bytes)
            != (self.block_exponent, self.metadata_bytes)
        {
            "block"
        } else if is.blocks < was {
            "and smaller size"
        } else {
            return Ok(());
        };
        let nsid = self.nsid;
        Err(NvmeFault::Changed { nsid, what })
    }
}

impl Shared {
    /// A controller as `found`, whose keeper is to run on `keeper`.
    pub(super) fn new(
        config: NvmeConfig,
        address: SocketAddr,
        found: Found,
        (key, keeper): (u64, Option<ReactorHandle>),
    ) -> Result<Self, BdevError> {
        let each = found.namespaces.iter();
        let namespaces = each.map(|namespace| Namespace::new(&config, &found, namespace));
        let namespaces = namespaces.collect::<Result<_, _>>()?;
        let seats = (0..found.queues).map(|_| AtomicBool::new(false)).collect();
        Ok(Self {
            config,
            address,
            namespaces,
            unflushed: Unflushed::default(),
            key,
            standing: AtomicU64::new(DOWN),
            suspected: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
            keeper,
            seats,
            found,
        })
    }

    pub(super) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            DOWN => Standing::Down,
            FAILED => Standing::Failed,
            up => {
                let [c0, c1, e0, e1, e2, e3, ..] = up.to_le_bytes();
                Standing::Up {
                    epoch: u32::from_le_bytes([e0, e1, e2, e3]),
                    cntlid: u16::from_le_bytes([c0, c1]),
                }
            }
        }
    }

    pub(super) fn set_standing(&self, standing: Standing) {
        let value = match standing {
            Standing::Down => DOWN,
            Standing::Failed => FAILED,
            Standing::Up { epoch, cntlid } => u64::from(epoch) << 16 | u64::from(cntlid),
        };
        self.standing.store(value, Ordering::Release);
    }

    /// A queue can't work in association `epoch`: it is to be made anew.
    pub(super) fn suspect(&self, epoch: u32) {
        self.suspected.fetch_max(epoch, Ordering::AcqRel);
        self.wake_keeper();
    }

    pub(super) fn is_suspected(&self, epoch: u32) -> bool {
        self.suspected.load(Ordering::Acquire) >= epoch
    }

    /// Nobody wants it any more.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.wake_keeper();
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    fn wake_keeper(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.ring();
        }
    }

    /// A place for an I/O queue.
    pub(super) fn take_seat(self: &Arc<Self>) -> Result<Seat, BdevError> {
        let free = |seat: &AtomicBool| !seat.swap(true, Ordering::AcqRel);
        let index = self.seats.iter().position(free).ok_or_else(|| {
            let (uri, count) = (&self.config.uri, self.seats.len());
            BdevError::NotSupported(format!(
                "{uri}: all {count} I/O queues are in use, one for each reactor"
            ))
        })?;
        Ok(Seat {
            shared: Arc::clone(self),
            index,
        })
    }

    /// Checks that a new association found what the bdevs were made from, or more of it, but for
    /// namespaces that were taken away before; takes note of what may change.
    pub(super) fn recognise(&self, found: &Found) -> Result<(), NvmeFault> {
        let (was, is) = (&self.found, found);
        if is.controller.subnqn != was.controller.subnqn {
            return Err(NvmeFault::Unusable("is of another subsystem than before"));
        }
        let lacks = |had: bool, has: bool| had && !has;
        let weaker = if is.queues < was.queues {
            "fewer queues"
        } else if self.queue_entries_of(is) < self.queue_entries() {
            "shorter queues"
        } else if transfer_bytes(is) < transfer_bytes(was)
            || is.controller.capsule_data_max < was.controller.capsule_data_max
            || zeroes_bytes(is) < zeroes_bytes(was)
            || range_bytes(is) < range_bytes(was)
        {
            "shorter commands"
        } else if lacks(was.controller.write_zeroes, is.controller.write_zeroes)
            || lacks(
                was.controller.dataset_management,
                is.controller.dataset_management,
            )
        {
            "fewer commands"
        } else if is.controller.volatile_cache && !was.controller.volatile_cache {
            "a more volatile cache"
        } else {
            ""
        };
        if !weaker.is_empty() {
            return Err(NvmeFault::Weaker(weaker));
        }
        let looked = self.look_for_namespaces(found);
        for (namespace, outcome) in &looked {
            if let (Err(fault), false) = (outcome, namespace.is_gone()) {
                return Err(*fault);
            }
        }
        self.take_note(&looked);
        Ok(())
    }

    /// The controller has told of a change of its namespaces; `found` is what there is now. One that has
    /// been taken away, or replaced by another, is gone until it is there again.
    pub(super) fn review(&self, found: &Found) {
        let uri = &self.config.uri;
        let looked = self.look_for_namespaces(found);
        for (namespace, outcome) in &looked {
            if let (Err(fault), false) = (outcome, namespace.is_gone()) {
                tracing::warn!(%uri, nsid = namespace.nsid, "nvme: a namespace is gone: {fault}");
                // Whoever takes it away may make it anew.
                self.unflushed.note_loss();
                namespace.gone.store(true, Ordering::Release);
            }
        }
        self.take_note(&looked);
    }

    /// Each namespace with what `found` says of it, or why that is not it.
    fn look_for_namespaces<'a>(&'a self, found: &Found) -> Vec<Looked<'a>> {
        let look = |namespace: &Namespace| {
            let nsid = namespace.nsid;
            let mut all = found.namespaces.iter();
            let same = all.find(|found| found.nsid == nsid && found.told.blocks > 0);
            let same = same.ok_or(NvmeFault::NoNamespace(nsid))?;
            namespace.recognise(same).map(|()| same.told)
        };
        let each = self.namespaces.iter();
        each.map(|namespace| (namespace, look(namespace))).collect()
    }

    fn take_note(&self, looked: &[Looked<'_>]) {
        for (namespace, outcome) in looked {
            if let Ok(told) = outcome {
                if namespace.is_gone() {
                    let uri = &self.config.uri;
                    tracing::info!(%uri, nsid = namespace.nsid, "nvme: the namespace is back");
                    // Writes to what was there before may have been acknowledged since it went.
                    self.unflushed.note_loss();
                }
                namespace.take_note(&self.config, told);
            }
        }
    }

    fn queue_entries_of(&self, found: &Found) -> u32 {
        let entries = u32::from(self.config.queue_entries).min(QUEUE_ENTRIES_MAX);
        let entries = entries.min(found.capabilities.queue_entries_max());
        match found.controller.commands_max {
            0 => entries,
            max => entries.min(max.into()),
        }
        .max(2)
    }

    /// Entries of an I/O queue; one stays empty.
    pub(super) fn queue_entries(&self) -> u32 {
        self.queue_entries_of(&self.found)
    }

    /// The longest transfer of one command to a namespace of this block size, in bytes.
    pub(super) fn transfer_bytes(&self, block_size: u32) -> u64 {
        let block = u64::from(block_size);
        transfer_bytes(&self.found).min(COMMAND_BLOCKS_MAX * block) / block * block
    }

    /// The longest Write Zeroes, likewise.
    pub(super) fn zeroes_bytes(&self, block_size: u32) -> u64 {
        let block = u64::from(block_size);
        zeroes_bytes(&self.found).min(COMMAND_BLOCKS_MAX * block) / block * block
    }

    /// The longest range of Dataset Management, likewise.
    pub(super) fn range_bytes(&self, block_size: u32) -> u64 {
        let block = u64::from(block_size);
        match self.found.nvm.range_blocks_max {
            0 => RANGE_BYTES_MAX,
            max => (u64::from(max) * block).min(RANGE_BYTES_MAX),
        }
    }
}

fn exponential(exponent: u8) -> Option<u64> {
    let bytes = PAGE_BYTES.checked_shl(exponent.into());
    (exponent > 0).then(|| bytes.filter(|bytes| *bytes > 0).unwrap_or(u64::MAX))
}

fn transfer_bytes(found: &Found) -> u64 {
    let told = exponential(found.controller.mdts);
    told.unwrap_or(u64::MAX).min(TRANSFER_BYTES_MAX)
}

/// Where the controller tells no bound of its own for zeroes, other hosts go by MDTS.
fn zeroes_bytes(found: &Found) -> u64 {
    let told =
        exponential(found.nvm.zeroes_exponent).or_else(|| exponential(found.controller.mdts));
    told.unwrap_or(u64::MAX)
}

fn range_bytes(found: &Found) -> u64 {
    match found.nvm.range_blocks_max {
        0 => u64::MAX,
        max => max.into(),
    }
}
