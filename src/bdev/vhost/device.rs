//! The bdev: what the back end said when it was made, and the connection that there is now.

use super::VhostFault;
use super::connection::{Connection, Shape};
use super::disk::Disk;
use super::keeper::{Dial, Keeper};
use super::link::{Link, VhostChannel};
use super::ring::Ring;
use crate::bdev::{Bdev, BdevError, BdevInfo, Channel, check_name, derived_uuid};
use arc_swap::ArcSwapOption;
use reactors::Cx;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use uuid::Uuid;

/// How long a back end may take to answer a handshake, if nobody says otherwise.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The largest ring that a split virtqueue may have.
const ENTRIES_MAX: u16 = 1024;

/// How to make a [`VhostBdev`].
#[derive(Clone, Debug)]
pub struct VhostConfig {
    /// Its name.
    pub name: String,
    /// The back end's socket.
    pub path: PathBuf,
    /// Its identity; otherwise derived from the path.
    pub uuid: Option<Uuid>,
    /// Refuse writes, even if the disk takes them.
    pub read_only: bool,
    /// How many queues to set up, so how many channels there can be at a time: at least 1. A back
    /// end that has fewer gives what it has.
    pub queues: u16,
    /// Entries of each queue: a power of two, 16 to 1024. A request takes three.
    pub entries: u16,
    /// How long the back end may take to answer when the bdev is made.
    pub patience: Duration,
}

impl VhostConfig {
    /// The disk behind the socket `path` as bdev `name`: four queues of 512 entries.
    #[must_use]
    pub fn new(name: &str, path: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            uuid: None,
            read_only: false,
            queues: 4,
            entries: 512,
            patience: HANDSHAKE,
        }
    }

    fn check(&self) -> Result<(), BdevError> {
        check_name(&self.name)?;
        if self.queues == 0 {
            return Err(BdevError::Invalid("no queues are wanted".to_owned()));
        }
        let entries = self.entries;
        if !entries.is_power_of_two() || !(16..=ENTRIES_MAX).contains(&entries) {
            return Err(BdevError::Invalid(format!(
                "a queue of {entries} entries is not a power of two from 16 to {ENTRIES_MAX}"
            )));
        }
        Ok(())
    }
}

/// "VirtioBlk Disk": the disk of a vhost-user-blk back end. Each channel is a queue of its own.
///
/// When the back end dies, what is under way fails with [`IoError`](crate::bdev::IoStatus::IoError).
/// What comes then waits for it to come back, 10 s after its death at most, and fails at once after
/// that, until it is back. If the disk has a volatile cache, the next flush on each channel that was
/// open fails, since writes may have been lost.
#[derive(Debug)]
pub struct VhostBdev {
    device: Arc<Device>,
}

/// What the channels and the keeper share.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) info: Arc<BdevInfo>,
    pub(super) path: PathBuf,
    /// As it was at first. One that comes back must be the same.
    pub(super) disk: Disk,
    shape: Shape,
    connection: ArcSwapOption<Connection>,
    channels: AtomicU16,
    /// The back end has died, and no flush has failed for it.
    owes_failure: AtomicBool,
}

impl Device {
    /// The device of a first connection.
    pub(super) fn new(config: VhostConfig, connection: Connection) -> Self {
        let disk = connection.disk;
        let derived = || derived_uuid("vhost", &[config.path.as_os_str().as_encoded_bytes()]);
        let info = Arc::new(BdevInfo {
            uuid: config.uuid.unwrap_or_else(derived),
            name: config.name,
            product_name: "VirtioBlk Disk",
            block_size: disk.block_bytes,
            blocks: disk.blocks(),
            volatile_cache: disk.has_flush(),
            read_only: config.read_only || disk.is_read_only(),
            supports: disk.supports(),
        });
        Self {
            info,
            path: config.path,
            disk,
            shape: Shape {
                queues: connection.queues,
                queues_min: connection.queues,
                entries: config.entries,
            },
            connection: ArcSwapOption::from_pointee(connection),
            channels: AtomicU16::new(0),
            owes_failure: AtomicBool::new(false),
        }
    }

    /// A queue of the connection, if there is a live one with a queue left.
    pub(super) fn take(&self) -> Option<(Ring, Arc<Connection>)> {
        let connection = self.connection.load_full()?;
        if connection.is_dead() {
            return None;
        }
        Some((connection.take()?, connection))
    }

    /// Whether a flush must fail for a channel that is opened now.
    pub(super) fn owes_failure(&self) -> bool {
        self.owes_failure.load(Ordering::Acquire)
    }

    /// A flush has failed for the back end's death.
    pub(super) fn has_failed(&self) {
        self.owes_failure.store(false, Ordering::Release);
    }

    /// Looks after the connection: finds out whether the back end is there, or connects again. Waits
    /// for it.
    ///
    /// # Errors
    /// Why there is no connection.
    pub(super) fn tend(&self) -> Result<(), VhostFault> {
        if let Some(connection) = self.connection.load_full() {
            let there = match connection.is_dead() {
                true => Err(io::Error::other("given up by its user")),
                false => connection.probe(),
            };
            let Err(error) = there else {
                return Ok(());
            };
            if self.info.volatile_cache && !self.info.read_only {
                self.owes_failure.store(true, Ordering::Release);
            }
            connection.bury();
            self.connection.store(None);
            return Err(VhostFault::Handshake(error));
        }
        let connection = Connection::open(&self.path, self.shape)?;
        if connection.disk != self.disk {
            return Err(VhostFault::Changed {
                was: self.disk.sectors,
                is: connection.disk.sectors,
            });
        }
        self.connection.store(Some(Arc::new(connection)));
        Ok(())
    }
}

/// A channel's place among those of its bdev.
#[derive(Debug)]
pub(super) struct Seat(Arc<Device>);

impl Seat {
    fn take(device: &Arc<Device>) -> Result<Self, BdevError> {
        let seats = device.shape.queues;
        let free = |taken: u16| (taken < seats).then_some(taken + 1);
        let order = Ordering::SeqCst;
        match device.channels.fetch_update(order, order, free) {
            Ok(_) => Ok(Self(Arc::clone(device))),
            Err(_) => Err(BdevError::NotSupported(format!(
                "{}: all {seats} queues are in use: more users need more of them",
                device.path.display()
            ))),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.channels.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VhostBdev {
    /// Connects, and learns what the disk is. `start` is given the [`Keeper`], to be run by a thread
    /// of its own, which ends by itself when the bdev and its channels are gone. Waits for the back
    /// end, so it is for control threads.
    ///
    /// # Errors
    /// [`BdevError::Vhost`] if there is no back end, it does not answer, or its disk is none that a
    /// bdev can be; [`BdevError::Invalid`] for a configuration out of bounds.
    pub fn connect(
        config: VhostConfig,
        start: impl FnOnce(Keeper) -> io::Result<()>,
    ) -> Result<Self, BdevError> {
        config.check()?;
        let path = config.path.display().to_string();
        let patience = config.patience;
        let shape = Shape {
            queues: config.queues,
            queues_min: 1,
            entries: config.entries,
        };
        let (sender, receiver) = mpsc::sync_channel(1);
        let dial = Dial::start(&config.path).ok_or(VhostFault::Timeout);
        let started = dial.and_then(|dial| {
            let keeper = Keeper::new(config, shape, dial, sender);
            start(keeper).map_err(VhostFault::Thread)
        });
        let made = started.and_then(|()| match receiver.recv_timeout(patience) {
            Ok(made) => made,
            // If the back end answers after all, the keeper finds nobody, and hangs up.
            Err(_) => Err(VhostFault::Timeout),
        });
        match made {
            Ok(device) => Ok(Self { device }),
            Err(source) => Err(BdevError::Vhost { path, source }),
        }
    }

    /// The back end's socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.device.path
    }

    /// How many queues there are, so how many channels there can be at a time.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.device.shape.queues
    }

    /// Entries of each queue.
    #[must_use]
    pub fn entries(&self) -> u16 {
        self.device.shape.entries
    }
}

impl Bdev for VhostBdev {
    fn info(&self) -> Arc<BdevInfo> {
        Arc::clone(&self.device.info)
    }

    /// Without a back end at the moment, requests wait for it.
    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let seat = Seat::take(&self.device)?;
        let link = Link::start(cx, Arc::clone(&self.device));
        Ok(Box::new(VhostChannel::new(link, seat)))
    }
}
